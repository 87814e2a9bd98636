#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "worker/cuda/gpu.h"

enum { STAGING = 64 << 20 };

enum status gpu_weights_alloc(struct backend *b, size_t bytes, void *out, struct error *err)
{
    void **at = out;
    if (cudaMalloc(at, bytes)) {
        cudaGetLastError();
        return error_set(err, ST_NO_MEMORY, "no GPU memory for %zu bytes of weights, %llu bytes are there already",
                         bytes, (unsigned long long)b->weight_bytes);
    }
    b->weight_bytes += bytes;
    return ST_OK;
}

struct pack_job {
    const struct model_tensor *tensor;
    uint8_t *staging, *scratch; /* scratch [n_members][64] rows */
    size_t row_room, tile_bytes;
    uint32_t first, n; /* rows of tiles */
};

void gpu_tile_rows(const struct model_tensor *t, uint32_t tile, uint8_t *scratch, size_t row_room,
                   const uint16_t *rows_out[CUDA_TILE])
{
    for (uint32_t i = 0; i < CUDA_TILE; i++) {
        const uint32_t row = tile * CUDA_TILE + i;
        rows_out[i] = row < t->n_rows ? model_tensor_row(t, row, scratch + i * row_room) : NULL;
    }
}

static void pack_rows(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct pack_job *job = ctx;
    uint8_t *scratch = job->scratch + (size_t)member * 64 * job->row_room;
    uint32_t begin, end;
    team_share(job->n, member, n_members, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const uint16_t *rows[CUDA_TILE];
        gpu_tile_rows(job->tensor, job->first + t, scratch, job->row_room, rows);
        cuda_pack_tiles(rows, job->tensor->n_cols, job->staging + t * job->tile_bytes);
    }
}

static enum status load_matrix(struct backend *b, enum model_tensor_kind kind, uint32_t layer, uint8_t *staging,
                               struct gpu_matrix *out, struct error *err)
{
    struct model_tensor t;
    enum status st = model_tensor(b->model, kind, layer, &t);
    if (st)
        return error_set(err, st, "the model has no tensor of kind %d in layer %u", (int)kind, layer);
    if (t.codec != WEIGHT_BF16 && t.codec != WEIGHT_LOSSLESS_FAST)
        return error_set(err, ST_UNSUPPORTED, "device cuda: weights must be bf16 or lossless-fast, this model's are %s",
                         weight_codec_name(t.codec));
    if ((st = model_tensor_check(&t, err)))
        return st;
    out->n_out = t.n_rows;
    out->n_in = t.n_cols;
    if (t.codec == WEIGHT_LOSSLESS_FAST) {
        st = gpu_lossless_load(b, &t, out, err);
        if (st || out->lossless)
            return st;
    }
    const uint32_t n_tiles = (t.n_rows + 63) / 64;
    const size_t tile_bytes = cuda_packed_bytes(64, t.n_cols), room = (t.row_bytes + 63) / 64 * 64;
    const uint32_t per = (uint32_t)(STAGING / tile_bytes);
    if (!per)
        return error_set(err, ST_UNSUPPORTED, "device cuda: rows of %u weights are too long", t.n_cols);
    st = gpu_weights_alloc(b, cuda_packed_bytes(t.n_rows, t.n_cols), &out->packed, err);
    struct pack_job job = { .tensor = &t, .staging = staging, .row_room = room, .tile_bytes = tile_bytes };
    if (!st && posix_memalign((void **)&job.scratch, 64, b->n_threads * 64 * room)) {
        job.scratch = NULL;
        st = error_set(err, ST_NO_MEMORY, "no memory to load weights");
    }
    for (job.first = 0; job.first < n_tiles && !st; job.first += job.n) {
        job.n = n_tiles - job.first < per ? n_tiles - job.first : per;
        team_run(b->team, pack_rows, &job);
        if (cudaMemcpy((uint8_t *)out->packed + job.first * tile_bytes, staging, job.n * tile_bytes,
                       cudaMemcpyHostToDevice))
            st = error_set(err, ST_IO, "weights do not reach the GPU: %s", cudaGetErrorString(cudaGetLastError()));
    }
    free(job.scratch);
    return st;
}

static enum status load_vector(struct backend *b, enum model_tensor_kind kind, uint32_t layer, float **out,
                               struct error *err)
{
    struct model_tensor t;
    enum status st = model_tensor(b->model, kind, layer, &t);
    if (st)
        return error_set(err, st, "the model has no tensor of kind %d in layer %u", (int)kind, layer);
    if ((st = model_tensor_check(&t, err)))
        return st;
    void *row = malloc(t.row_bytes + 64);
    float *values = malloc(t.n_cols * sizeof *values);
    st = row && values ? gpu_weights_alloc(b, t.n_cols * sizeof *values, out, err)
                       : error_set(err, ST_NO_MEMORY, "no memory to load weights");
    if (!st) {
        uint8_t *at = (uint8_t *)(((uintptr_t)row + 63) & ~(uintptr_t)63);
        weight_row_f32(t.codec, model_tensor_row(&t, 0, at), t.n_cols, values);
        if (cudaMemcpy(*out, values, t.n_cols * sizeof *values, cudaMemcpyHostToDevice))
            st = error_set(err, ST_IO, "weights do not reach the GPU: %s", cudaGetErrorString(cudaGetLastError()));
    }
    free(row);
    free(values);
    return st;
}

static enum status load_layer(struct backend *b, uint32_t layer, uint8_t *staging, struct error *err)
{
    static const enum model_tensor_kind matrices[] = { MODEL_ATTN_Q,   MODEL_ATTN_K, MODEL_ATTN_V,  MODEL_ATTN_OUT,
                                                       MODEL_FFN_GATE, MODEL_FFN_UP, MODEL_FFN_DOWN };
    static const enum model_tensor_kind vectors[] = { MODEL_ATTN_NORM,   MODEL_FFN_NORM,    MODEL_ATTN_Q_BIAS,
                                                      MODEL_ATTN_K_BIAS, MODEL_ATTN_V_BIAS, MODEL_ATTN_Q_NORM,
                                                      MODEL_ATTN_K_NORM };
    struct gpu_layer *l = &b->layers[layer];
    struct model_tensor t;
    enum status st = ST_OK;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors && !st; i++)
        if (i < 2 || !model_tensor(b->model, vectors[i], layer, &t)) /* the first two are in every architecture */
            st = load_vector(b, vectors[i], layer, &l->vector[vectors[i]], err);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices && !st; i++)
        st = load_matrix(b, matrices[i], layer, staging, &l->matrix[matrices[i]], err);
    return st;
}

enum status gpu_weights_load(struct backend *b, void (*progress)(void *ctx, float fraction), void *ctx,
                             struct error *err)
{
    const struct model_config *c = b->config;
    void *staging = NULL;
    b->layers = calloc(c->n_layers, sizeof *b->layers);
    if (!b->layers || cudaMallocHost(&staging, STAGING))
        return error_set(err, ST_NO_MEMORY, "no memory to load weights");
    enum status st = model_tensor(b->model, MODEL_EMBEDDING, 0, &b->embedding);
    if (st)
        error_set(err, st, "the model has no embedding");
    else if (!c->tied_output)
        st = model_tensor_check(&b->embedding, err);
    for (uint32_t layer = 0; layer < c->n_layers && !st; layer++) {
        st = load_layer(b, layer, staging, err);
        if (progress && !st)
            progress(ctx, (float)(layer + 1) / (float)(c->n_layers + 1));
    }
    if (!st)
        st = load_vector(b, MODEL_OUTPUT_NORM, 0, &b->output_norm, err);
    if (!st)
        st = load_matrix(b, c->tied_output ? MODEL_EMBEDDING : MODEL_OUTPUT, 0, staging, &b->output, err);
    if (!st)
        st = gpu_lossless_room(b, err);
    cudaFreeHost(staging);
    if (progress && !st)
        progress(ctx, 1);
    model_drop_pages(b->model); /* all but the embedding's rows is on the device */
    return st;
}

void gpu_weights_free(struct backend *b)
{
    for (uint32_t layer = 0; b->layers && layer < b->config->n_layers; layer++)
        for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++) {
            cudaFree(b->layers[layer].matrix[kind].packed);
            cudaFree(b->layers[layer].vector[kind]);
        }
    free(b->layers);
    cudaFree(b->output.packed);
    cudaFree(b->expanded);
    cudaFree(b->output_norm);
}
