/*
 * The CUDA backend: operations are records in a list, as the CPU's; run launches them on a stream, in order. A step of few rows that exchanges nothing
 * is captured as a graph once, and replayed as long as its shape stays.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/cuda/gpu.h"

enum { KERNELS_VERSION = 1 /* raised when a kernel's bits change */ };

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

static void gpu_close(struct backend *b)
{
    if (!b)
        return;
    if (b->stream)
        cudaStreamSynchronize(b->stream);
    gpu_graphs_drop(b);
    gpu_weights_free(b);
    void *const device[] = { b->x,          b->q,          b->k,        b->v,          b->gate,
                             b->up,         b->h,          b->a,        b->f,          b->partials,
                             b->counters,   b->logits,     b->failed,   b->arena.data, b->queries.data,
                             b->store.data, b->stack.data, b->wire.data };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        cudaFree(device[i]);
    void *const pinned[] = { b->host_logits, b->host_failed, b->host_arena.data, b->host_wire.data };
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
    free(b->answers);
    free(b->tops);
    free(b->kept_logits);
    free(b);
}

/* What these kernels do not do is refused before anything is loaded. */
static enum status refuse(const struct backend_config *config, const struct model_config *c, struct error *err)
{
    if (config->float32)
        return error_set(err, ST_UNSUPPORTED, "device cuda: precision float32 is the CPU's");
    if (config->kv_codec != KV_BF16)
        return error_set(err, ST_UNSUPPORTED, "device cuda: the KV codec must be bf16");
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
           zeroed(&b->failed, sizeof *b->failed) &&
           !cudaMallocHost((void **)&b->host_logits, (size_t)GPU_LOGIT_ROWS * c->n_vocab * sizeof(float)) &&
           !cudaMallocHost((void **)&b->host_failed, sizeof *b->host_failed);
}

static bool scratch_alloc(struct backend *b)
{
    b->scratch = calloc(b->n_threads, sizeof *b->scratch);
    for (uint32_t i = 0; b->scratch && i < b->n_threads; i++)
        if (posix_memalign((void **)&b->scratch[i], 64, sample_scratch_bytes(b->config->n_vocab)))
            return false;
    return b->scratch && !posix_memalign((void **)&b->row_scratch, 64, b->embedding.row_bytes + 64);
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

static enum status gpu_open(const struct backend_config *config, const struct model *model,
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
    b->part_bytes = (size_t)KV_BLOCK * b->config->head_dim * 2;
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

/* Kernels, the leaf, the rotation angles, which come from the host's libm, and the sampler's variant. */
static void gpu_fingerprint(const struct backend *b, char *text_out, size_t bytes)
{
    const struct model_config *c = b->config;
    struct hasher *h = hasher_new();
    const uint32_t version = KERNELS_VERSION;
    hasher_add(h, &version, sizeof version);
    hasher_add_text(h, b->rows->name);
    for (uint32_t i = 0; i < 64; i++) {
        const double angle = (double)(i * 9973 % 131072) * c->inv_freq[i % (c->head_dim / 2)];
        const float pair[2] = { (float)(cos(angle) * c->rope_scale), (float)(sin(angle) * c->rope_scale) };
        hasher_add(h, pair, sizeof pair);
    }
    char digest[33];
    const struct digest d = hasher_end(h);
    digest_text(&d, digest);
    snprintf(text_out, bytes, "cuda/bf16/sm_%d%d/leaf%d/%.8s", b->device.major, b->device.minor,
             CUDA_LEAF_BLOCKS * KV_BLOCK, digest);
}

static uint64_t gpu_weight_bytes(const struct backend *b)
{
    return b->weight_bytes;
}

static void gpu_kv_layout(const struct backend *b, struct kv_layout *layout_out)
{
    enum { VERSION = 0x10000 /* kernels/cuda/cuda.h: rows of 64 channels, chunks changed about */ };
    *layout_out = (struct kv_layout){ .n_layers = b->config->n_layers,
                                      .n_kv_heads = b->config->n_kv_heads,
                                      .part_bytes = b->part_bytes,
                                      .version = VERSION + (uint32_t)KV_BF16 };
}

static size_t gpu_open_part_bytes(const struct backend *b)
{
    (void)b;
    return 0;
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

static const struct kv_memory_ops pool_memory = { pool_alloc, pool_free, pool_read, pool_write };

/* ---- recording ---- */

static struct gpu_op *record(struct backend *b, gpu_op_fn *fn)
{
    static struct gpu_op spare;
    if (b->n_ops == b->ops_room) {
        const uint32_t room = b->ops_room ? b->ops_room * 2 : 256;
        struct gpu_op *ops = realloc(b->ops, room * sizeof *ops);
        if (!ops) {
            b->overflow = true;
            return &spare;
        }
        b->ops = ops;
        b->ops_room = room;
    }
    struct gpu_op *op = &b->ops[b->n_ops++];
    *op = (struct gpu_op){ .fn = fn };
    return op;
}

static bool host_reserve(void *p, size_t *room, size_t bytes)
{
    void **at = p;
    if (bytes <= *room)
        return true;
    free(*at);
    *at = malloc(bytes + bytes / 4);
    *room = *at ? bytes + bytes / 4 : 0;
    return *at != NULL;
}

static bool answers_reserve(struct backend *b)
{
    size_t n_tops = 0, n_logits = 0;
    for (uint32_t i = 0; i < b->input->n_asks; i++) {
        n_tops += b->input->asks[i].n_top;
        n_logits += b->input->asks[i].logits ? b->config->n_vocab : 0;
    }
    if (!host_reserve(&b->answers, &b->answers_room, b->input->n_asks * sizeof *b->answers) ||
        !host_reserve(&b->tops, &b->tops_room, n_tops * sizeof *b->tops) ||
        !host_reserve(&b->kept_logits, &b->kept_room, n_logits * sizeof(float)))
        return false;
    n_tops = n_logits = 0;
    for (uint32_t i = 0; i < b->input->n_asks; i++) {
        const struct step_ask *ask = &b->input->asks[i];
        b->answers[i] = (struct step_answer){ .top = ask->n_top ? b->tops + n_tops : NULL,
                                              .logits = ask->logits ? b->kept_logits + n_logits : NULL };
        n_tops += ask->n_top;
        n_logits += ask->logits ? b->config->n_vocab : 0;
    }
    return true;
}

static enum status gpu_begin(struct backend *b, const struct step_input *input)
{
    const struct attend *a = input->attend;
    size_t wire = 0;
    if (input->n_rows > b->rows_max)
        return ST_TOO_LARGE;
    if (a->n_leaves) /* reads_apart is this backend's wish */
        return ST_INTERNAL;
    b->input = input;
    b->n_ops = 0;
    b->overflow = false;
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        for (uint32_t i = 0; i < a->n_messages[kind]; i++)
            wire = a->messages[kind][i].bytes > wire ? a->messages[kind][i].bytes : wire;
    if (!answers_reserve(b))
        return ST_NO_MEMORY;
    enum status st = gpu_sync(b, "step before"); /* an abandoned one may still read the arena */
    if (!st && wire)
        st = gpu_reserve(b, &b->wire, wire, false);
    if (!st && wire)
        st = gpu_reserve(b, &b->host_wire, wire, true);
    return st ? st : gpu_arena_build(b);
}

static void record_embed(struct backend *b)
{
    record(b, gpu_embed);
}

static void record_norm(struct backend *b, enum tensor in, enum model_tensor_kind weight, uint32_t layer,
                        enum tensor out)
{
    struct gpu_op *op = record(b, gpu_norm);
    op->in = in;
    op->kind = weight;
    op->layer = layer;
    op->out = out;
}

static void record_linear(struct backend *b, enum tensor in, uint32_t layer, const struct backend_part *parts,
                          uint32_t n_parts, bool accumulate)
{
    struct gpu_op *op = record(b, gpu_linear);
    op->in = in;
    op->layer = layer;
    op->n_parts = n_parts;
    memcpy(op->parts, parts, n_parts * sizeof *parts);
    op->flag = accumulate;
}

static void record_norm_heads(struct backend *b, enum tensor tensor, enum model_tensor_kind weight, uint32_t layer)
{
    struct gpu_op *op = record(b, gpu_norm_heads);
    op->out = tensor;
    op->kind = weight;
    op->layer = layer;
}

static void record_rope_store(struct backend *b, uint32_t layer)
{
    record(b, gpu_rope_store)->layer = layer;
}

/* Blocks are open in their sealed form: there is nothing to do. */
static void record_seal(struct backend *b, uint32_t layer)
{
    (void)b;
    (void)layer;
}

static void record_send(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    struct gpu_op *op = record(b, gpu_send);
    op->layer = layer;
    op->kind = what;
}

static void record_receive(struct backend *b, uint32_t layer, enum attend_traffic what)
{
    struct gpu_op *op = record(b, gpu_receive);
    op->layer = layer;
    op->kind = what;
}

static void record_attend(struct backend *b, uint32_t layer, bool local)
{
    struct gpu_op *op = record(b, gpu_attend);
    op->layer = layer;
    op->flag = local;
    if (!local)
        record(b, gpu_attend_join);
}

static void record_attend_finish(struct backend *b)
{
    record(b, gpu_attend_finish);
}

static void record_silu_mul(struct backend *b)
{
    record(b, gpu_silu_mul);
}

static void record_answer(struct backend *b)
{
    for (uint32_t begin = 0; begin < b->input->n_asks; begin += GPU_LOGIT_ROWS) {
        const uint32_t left = b->input->n_asks - begin;
        struct gpu_op *op = record(b, gpu_answer);
        op->begin = begin;
        op->end = begin + (left < GPU_LOGIT_ROWS ? left : GPU_LOGIT_ROWS);
    }
}

/* ---- running ---- */

static enum status run_begin(struct backend *b)
{
    int e = (int)cudaMemcpyAsync(b->arena.data, b->host_arena.data, b->arena_bytes, cudaMemcpyHostToDevice, b->stream);
    if (!e)
        e = (int)cudaMemsetAsync(b->failed, 0, sizeof *b->failed, b->stream);
    return gpu_status(e, "a step's plan");
}

static enum status run_end(struct backend *b)
{
    return gpu_status(
        (int)cudaMemcpyAsync(b->host_failed, b->failed, sizeof *b->failed, cudaMemcpyDeviceToHost, b->stream),
        "a step's end");
}

static enum status run_eager(struct backend *b)
{
    enum status st = run_begin(b);
    for (uint32_t i = 0; i < b->n_ops && !st; i++) {
        const struct gpu_op *op = &b->ops[i];
        st = (enum status)op->fn(b, op);
        if (!st && op->fn == gpu_answer) {
            st = gpu_sync(b, "logits");
            if (!st)
                st = gpu_sample(b, op->begin, op->end);
        }
    }
    if (!st)
        st = run_end(b);
    const enum status synced = gpu_sync(b, "a step");
    return st ? st : synced;
}

/* Captures what run_eager would launch; exec NULL if it can not be. */
static void *capture(struct backend *b)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal))
        return NULL;
    enum status st = run_begin(b);
    for (uint32_t i = 0; i < b->n_ops && !st; i++)
        st = (enum status)b->ops[i].fn(b, &b->ops[i]);
    if (!st)
        st = run_end(b);
    if (cudaStreamEndCapture(b->stream, &graph) || st || cudaGraphInstantiate(&exec, graph, 0))
        exec = NULL;
    if (graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
    return exec;
}

/* The graph of a step of this shape; made if there is none. NULL: it can not be. */
static void *graph_of(struct backend *b)
{
    const uint64_t key = gpu_arena_key(b);
    struct gpu_graph *oldest = &b->graphs[0];
    for (int i = 0; i < GPU_GRAPHS; i++) {
        struct gpu_graph *g = &b->graphs[i];
        if (g->key == key) {
            g->used = ++b->clock;
            return g->exec;
        }
        if (g->used < oldest->used)
            oldest = g;
    }
    void *exec = capture(b);
    if (!exec)
        log_debug("cuda: a step of %u rows is no graph", b->input->n_rows);
    if (oldest->exec)
        cudaGraphExecDestroy(oldest->exec);
    *oldest = (struct gpu_graph){ key, ++b->clock, exec };
    return exec;
}

static bool exchanges(const struct attend *a)
{
    for (int kind = 0; kind < ATTEND_TRAFFICS; kind++)
        if (a->n_messages[kind])
            return true;
    return false;
}

static enum status run_list(struct backend *b)
{
    const uint32_t n_asks = b->input->n_asks;
    void *exec = NULL;
    if (b->input->n_rows <= CUDA_ROWS_FEW && n_asks <= GPU_LOGIT_ROWS && !exchanges(b->input->attend))
        exec = graph_of(b);
    if (!exec)
        return run_eager(b);
    enum status st = gpu_status((int)cudaGraphLaunch(exec, b->stream), "a step");
    if (!st)
        st = gpu_sync(b, "a step");
    return st || !n_asks ? st : gpu_sample(b, 0, n_asks);
}

static enum status gpu_run(struct backend *b, const struct exchange_ops *exchange_ops, struct exchange *exchange,
                           int64_t deadline_ns, const struct step_answer **answers_out, struct step_cost *cost_out,
                           uint16_t *peer_out)
{
    if (b->overflow)
        return ST_NO_MEMORY;
    b->exchange_ops = exchange_ops;
    b->exchange = exchange;
    b->deadline_ns = deadline_ns;
    b->cost = (struct step_cost){ 0 };
    b->failed_peer = UINT16_MAX;
    atomic_store(&b->bad_row, 0);
    const int64_t start = clock_ns();
    enum status st = run_list(b);
    if (!st && *b->host_failed)
        st = ST_CORRUPT;
    b->cost.busy_ns = clock_ns() - start - b->cost.wait_ns;
    b->cost.kv_bytes_read = b->cost.kv_bytes_dense = b->parts_read * 2 * (uint64_t)b->part_bytes * b->config->n_layers;
    *answers_out = b->answers;
    *cost_out = b->cost;
    *peer_out = b->failed_peer;
    return st;
}

const struct backend_ops backend_cuda = {
    .name = "cuda",
    .open = gpu_open,
    .close = gpu_close,
    .fingerprint = gpu_fingerprint,
    .weight_bytes = gpu_weight_bytes,
    .kv_layout = gpu_kv_layout,
    .open_part_bytes = gpu_open_part_bytes,
    .kv_memory = &pool_memory,
    .leaf_blocks = CUDA_LEAF_BLOCKS,
    .n_parts = GPU_PARTS,
    .reads_apart = true,
    .begin = gpu_begin,
    .embed = record_embed,
    .norm = record_norm,
    .linear = record_linear,
    .norm_heads = record_norm_heads,
    .rope_store = record_rope_store,
    .seal = record_seal,
    .send = record_send,
    .receive = record_receive,
    .attend = record_attend,
    .attend_finish = record_attend_finish,
    .silu_mul = record_silu_mul,
    .answer = record_answer,
    .run = gpu_run,
};
