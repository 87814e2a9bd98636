/* What the CUDA backend is: its memory, on the device and pinned, its name, and what its blocks are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/log.h"
#include "model/rope.h"
#include "worker/cuda/links.h"

enum { KERNELS_VERSION = 2 /* raised when a kernel's bits change */ };

enum status gpu_status(int error, const char *what)
{
    if (!error)
        return ST_OK;
    cudaGetLastError(); /* it is told here, and not again by the next call */
    log_error("cuda: %s: %s", what, cudaGetErrorString((cudaError_t)error));
    return error == cudaErrorMemoryAllocation ? ST_NO_MEMORY : ST_INTERNAL;
}

enum status gpu_sync(struct backend *b, const char *what)
{
    gpu_links_watch(b);
    return gpu_status((int)cudaStreamSynchronize(b->stream), what);
}

void gpu_graphs_drop(struct backend *b)
{
    for (int i = 0; i < GPU_GRAPHS; i++) {
        if (b->graphs[i].exec)
            cudaGraphExecDestroy(b->graphs[i].exec);
        b->graphs[i] = (struct gpu_graph){ 0 };
    }
}

enum status gpu_reserve(struct backend *b, struct gpu_buffer *buffer, size_t bytes, bool pinned)
{
    if (bytes <= buffer->bytes && buffer->data)
        return ST_OK;
    gpu_graphs_drop(b);
    if (pinned)
        cudaFreeHost(buffer->data);
    else
        cudaFree(buffer->data);
    *buffer = (struct gpu_buffer){ 0 };
    const size_t room = bytes + bytes / 4 + 4096;
    const int e = (int)(pinned ? cudaMallocHost(&buffer->data, room) : cudaMalloc(&buffer->data, room));
    if (e) {
        buffer->data = NULL;
        return gpu_status(e, "memory of a step");
    }
    buffer->bytes = room;
    return ST_OK;
}

/* ---- open and close ---- */

void gpu_close(struct backend *b)
{
    if (!b)
        return;
    if (b->stream)
        cudaStreamSynchronize(b->stream);
    gpu_graphs_drop(b);
    gpu_links_free(b);
    gpu_weights_free(b);
    gpu_select_free(b);
    void *const device[] = { b->x,
                             b->q,
                             b->k,
                             b->v,
                             b->gate,
                             b->up,
                             b->h,
                             b->a,
                             b->f,
                             b->partials,
                             b->counters,
                             b->logits,
                             b->outcome,
                             b->arena.data,
                             b->queries.data,
                             b->store.data,
                             b->stack.data,
                             b->wire.data,
                             b->scratch_blocks };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        cudaFree(device[i]);
    void *const pinned[] = { b->host_logits, b->host_outcome, b->host_arena.data, b->host_wire.data,
                             b->host_lists.data };
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++)
        cudaFreeHost(pinned[i]);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    team_free(b->team);
    for (uint32_t i = 0; b->scratch && i < b->n_threads; i++)
        free(b->scratch[i]);
    free(b->scratch);
    free(b->row_scratch);
    for (int i = 0; i < SECTIONS; i++)
        free(b->list[i].data);
    free(b->ops);
    step_answers_free(&b->answers);
    free(b->job_store);
    free(b);
}

/* What these kernels do not do is refused before anything is loaded. */
static enum status refuse(const struct backend_config *config, const struct model_config *c, struct error *err)
{
    if (config->float32)
        return error_set(err, ST_UNSUPPORTED, "device cuda: precision float32 is the CPU's");
    if (config->kv_codec != KV_BF16 && config->kv_codec != KV_INT8 && config->kv_codec != KV_INT4_ROT)
        return error_set(err, ST_UNSUPPORTED, "device cuda: the KV codec must be bf16, int8 or int4-rot, not %s",
                         kv_codecs[config->kv_codec].name);
    if (c->head_dim != 64 && c->head_dim != 128)
        return error_set(err, ST_UNSUPPORTED, "device cuda: heads of 64 or 128, this model's are of %u", c->head_dim);
    if (c->d_model % 8 || c->d_ff % 8)
        return error_set(err, ST_UNSUPPORTED, "device cuda: widths %u and %u must be multiples of 8", c->d_model,
                         c->d_ff);
    return ST_OK;
}

static bool zeroed(void *out, size_t bytes)
{
    void **at = out;
    return !cudaMalloc(at, bytes) && !cudaMemset(*at, 0, bytes);
}

/* The padding of products' inputs is read: it must be zeros. */
static bool tensors_alloc(struct backend *b)
{
    const struct model_config *c = b->config;
    const size_t rows = b->cap, heads = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    size_t partials = 0, tiles = ((size_t)c->n_vocab + 63) / 64;
    const size_t shapes[][2] = { { heads + 2 * kv + 192, c->d_model },
                                 { c->d_model, heads },
                                 { 2 * (size_t)c->d_ff + 128, c->d_model },
                                 { c->d_model, c->d_ff },
                                 { c->n_vocab, c->d_model } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const size_t n = cuda_linear_partials((uint32_t)shapes[i][0], (uint32_t)shapes[i][1]);
        partials = n > partials ? n : partials;
        tiles = shapes[i][0] / 64 + 1 > tiles ? shapes[i][0] / 64 + 1 : tiles;
    }
    return zeroed(&b->x, rows * c->d_model * sizeof(float)) && zeroed(&b->q, rows * heads * sizeof(float)) &&
           zeroed(&b->k, rows * kv * sizeof(float)) && zeroed(&b->v, rows * kv * sizeof(float)) &&
           zeroed(&b->gate, rows * c->d_ff * sizeof(float)) && zeroed(&b->up, rows * c->d_ff * sizeof(float)) &&
           zeroed(&b->h, cuda_tiled_bytes(b->cap, c->d_model)) &&
           zeroed(&b->a, cuda_tiled_bytes(b->cap, (uint32_t)heads)) &&
           zeroed(&b->f, cuda_tiled_bytes(b->cap, c->d_ff)) && zeroed(&b->partials, partials * sizeof(float)) &&
           zeroed(&b->counters, tiles * sizeof(uint32_t)) &&
           zeroed(&b->logits, (size_t)GPU_LOGIT_ROWS * c->n_vocab * sizeof(float)) &&
           zeroed(&b->outcome, sizeof *b->outcome) &&
           (!b->open_part_bytes ||
            zeroed(&b->scratch_blocks, (rows / KV_BLOCK + 1) * c->n_kv_heads * 2 * b->open_part_bytes)) &&
           !cudaMallocHost((void **)&b->host_logits, (size_t)GPU_LOGIT_ROWS * c->n_vocab * sizeof(float)) &&
           !cudaMallocHost((void **)&b->host_outcome, sizeof *b->host_outcome);
}

static bool scratch_alloc(struct backend *b)
{
    b->scratch = calloc(b->n_threads, sizeof *b->scratch);
    for (uint32_t i = 0; b->scratch && i < b->n_threads; i++)
        if (posix_memalign((void **)&b->scratch[i], 64, sample_scratch_bytes(b->config->n_vocab)))
            return false;
    b->row_scratch_bytes = (b->embedding.row_bytes + 127) / 64 * 64;
    return b->scratch && !posix_memalign((void **)&b->row_scratch, 64, b->n_threads * b->row_scratch_bytes);
}

static enum status open_parts(struct backend *b, void (*progress)(void *ctx, float fraction), void *ctx,
                              struct error *err)
{
    if (team_new(b->n_threads, &b->team))
        return error_set(err, ST_NO_MEMORY, "no memory for %u threads", b->n_threads);
    if (cudaSetDevice(0) || cudaStreamCreateWithFlags((cudaStream_t *)&b->stream, cudaStreamNonBlocking))
        return error_set(err, ST_IO, "device cuda: %s", cudaGetErrorString(cudaGetLastError()));
    const enum status st = gpu_weights_load(b, progress, ctx, err);
    if (st)
        return st;
    if (!tensors_alloc(b) || !scratch_alloc(b)) {
        cudaGetLastError();
        return error_set(err, ST_NO_MEMORY, "no GPU memory for the activations of %u rows", b->rows_max);
    }
    log_info("cuda: %s, %d multiprocessors, %.1f GB, weights %.2f GB", b->device.name, b->device.processors,
             (double)b->device.memory / 1e9, (double)b->weight_bytes / 1e9);
    return ST_OK;
}

enum status gpu_open(const struct backend_config *config, const struct model *model,
                     void (*progress)(void *ctx, float fraction), void *ctx, struct backend **backend_out,
                     struct error *err)
{
    char text[256];
    struct cuda_device device;
    enum status st = refuse(config, model_config(model), err);
    if (st)
        return st;
    if (cuda_device_find(&device, text, sizeof text))
        return error_set(err, ST_UNSUPPORTED, "device cuda: %s", text);
    struct backend *b = calloc(1, sizeof *b);
    if (!b)
        return error_set(err, ST_NO_MEMORY, "no memory");
    b->model = model;
    b->config = model_config(model);
    b->device = device;
    b->n_threads = config->n_threads ? config->n_threads : 1;
    b->rows_max = config->step_rows_max > GPU_LOGIT_ROWS ? config->step_rows_max : GPU_LOGIT_ROWS;
    b->cap = (b->rows_max + CUDA_ROWS_STEP - 1) / CUDA_ROWS_STEP * CUDA_ROWS_STEP;
    b->rows = row_find(cpu_caps());
    b->codec = config->kv_codec;
    b->part_bytes = (size_t)KV_BLOCK * b->config->head_dim * 2;
    if (b->codec != KV_BF16) {
        b->open_part_bytes = b->part_bytes;
        b->part_bytes = cuda_code_part_bytes(gpu_codec(b), b->config->head_dim);
    }
    b->partial_floats = attn_partial_floats(b->config->head_dim);
    st = open_parts(b, progress, ctx, err);
    if (st) {
        gpu_close(b);
        return st;
    }
    *backend_out = b;
    return ST_OK;
}

/* ---- what it is ---- */

/* Kernels, the codec, the leaf, the rotation angles, which come from the host's libm, and the sampler's variant. */
void gpu_fingerprint(const struct backend *b, char *text_out, size_t bytes)
{
    const struct model_config *c = b->config;
    struct hasher *h = hasher_new();
    const uint32_t version = KERNELS_VERSION;
    hasher_add(h, &version, sizeof version);
    hasher_add_text(h, b->rows->name);
    hasher_add_text(h, kv_codecs[b->codec].name);
    hasher_add_u64(h, kv_codecs[b->codec].version);
    rope_hash(c->inv_freq, c->head_dim, c->rope_scale, h);
    char digest[33];
    const struct digest d = hasher_end(h);
    digest_text(&d, digest);
    snprintf(text_out, bytes, "cuda/bf16/sm_%d%d/leaf%d/%.8s", b->device.major, b->device.minor,
             CUDA_LEAF_BLOCKS * KV_BLOCK, digest);
}

uint64_t gpu_weight_bytes(const struct backend *b)
{
    return b->weight_bytes;
}

void gpu_kv_layout(const struct backend *b, struct kv_layout *layout_out)
{
    enum { VERSION = 0x10000 /* layouts of kernels/cuda/cuda.h and codes.h */ };
    *layout_out = (struct kv_layout){ .n_layers = b->config->n_layers,
                                      .n_kv_heads = b->config->n_kv_heads,
                                      .part_bytes = b->part_bytes,
                                      .version = VERSION + (b->codec == KV_BF16 ? 0 : kv_codecs[b->codec].version) };
}

size_t gpu_open_part_bytes(const struct backend *b)
{
    return b->open_part_bytes;
}

/* ---- the pool's memory ---- */

static void *pool_alloc(size_t bytes)
{
    void *p = NULL;
    /* zeros: what attention masks must be finite, and so is what an earlier block left */
    if (cudaMalloc(&p, bytes) || cudaMemset(p, 0, bytes)) {
        cudaGetLastError();
        cudaFree(p);
        return NULL;
    }
    return p;
}

static void pool_free(void *p)
{
    cudaFree(p);
}

static bool pool_read(void *to, const void *from, size_t bytes)
{
    return !gpu_status((int)cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "a block");
}

static bool pool_write(void *to, const void *from, size_t bytes)
{
    return !gpu_status((int)cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "a block");
}

const struct kv_memory_ops gpu_pool_memory = { pool_alloc, pool_free, pool_read, pool_write };
