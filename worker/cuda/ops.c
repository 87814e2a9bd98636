#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "worker/cuda/gpu.h"

/* Strides as the pool has them: the difference of addresses, so that nothing here repeats its arithmetic. */
struct cuda_kv gpu_kv(const struct backend *b)
{
    const struct kv_pool *pool = b->input->pool;
    const struct model_config *c = b->config;
    struct kv_pool_stats stats;
    kv_pool_stats(pool, &stats);
    return (struct cuda_kv){ .pool = kv_pool_part(pool, 0, 0, 0),
                             .block_bytes = stats.block_bytes,
                             .layer_bytes = 2 * b->part_bytes * c->n_kv_heads,
                             .part_bytes = b->part_bytes,
                             .n_heads = c->n_heads,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim };
}

struct cuda_kv gpu_open_kv(const struct backend *b)
{
    struct cuda_kv kv = gpu_kv(b);
    struct kv_pool_stats stats;
    if (!b->open_part_bytes)
        return kv;
    kv_pool_stats(b->input->pool, &stats);
    kv.pool = stats.n_rows ? kv_pool_rows_part(b->input->pool, 0, 0, 0) : NULL;
    kv.scratch = b->scratch_blocks;
    kv.block_bytes = stats.rows_bytes;
    kv.part_bytes = b->open_part_bytes;
    kv.layer_bytes = 2 * kv.part_bytes * kv.n_kv_heads;
    return kv;
}

static float *float_of(const struct backend *b, uint32_t tensor)
{
    float *const at[TENSORS] = { [TENSOR_X] = b->x, [TENSOR_Q] = b->q,       [TENSOR_K] = b->k,
                                 [TENSOR_V] = b->v, [TENSOR_GATE] = b->gate, [TENSOR_UP] = b->up };
    return at[tensor];
}

static void *tiled_of(const struct backend *b, uint32_t tensor)
{
    return tensor == TENSOR_H ? b->h : tensor == TENSOR_A ? b->a : b->f;
}

int gpu_embed(struct backend *b, const struct gpu_op *op)
{
    (void)op;
    return gpu_status(cudaMemcpyAsync(b->x, gpu_at(b, SECTION_EMBED),
                                      (size_t)b->input->n_rows * b->config->d_model * sizeof(float),
                                      cudaMemcpyDeviceToDevice, b->stream),
                      "embed");
}

int gpu_norm(struct backend *b, const struct gpu_op *op)
{
    return gpu_status(cuda_norm(float_of(b, op->in), NULL, b->layers[op->layer].vector[op->kind], b->input->n_rows,
                                b->config->d_model, b->config->rms_eps, tiled_of(b, op->out), b->cap, b->stream),
                      "norm");
}

int gpu_norm_heads(struct backend *b, const struct gpu_op *op)
{
    const uint32_t n_heads = op->out == TENSOR_Q ? b->config->n_heads : b->config->n_kv_heads;
    return gpu_status(cuda_norm_heads(float_of(b, op->out), b->layers[op->layer].vector[op->kind], b->input->n_rows,
                                      n_heads, b->config->head_dim, b->config->rms_eps, b->stream),
                      "norm of heads");
}

static struct cuda_linear product(const struct backend *b, const void *x, uint32_t n_rows, uint32_t n_in)
{
    return (struct cuda_linear){
        .x = x, .cap = b->cap, .n_rows = n_rows, .n_in = n_in, .partials = b->partials, .counters = b->counters
    };
}

int gpu_linear(struct backend *b, const struct gpu_op *op)
{
    const struct gpu_layer *layer = &b->layers[op->layer];
    struct cuda_linear l = product(b, tiled_of(b, op->in), b->input->n_rows, layer->matrix[op->parts[0].weight].n_in);
    l.n_parts = op->n_parts;
    l.accumulate = op->flag;
    const struct gpu_matrix *m[3];
    for (uint32_t i = 0; i < op->n_parts; i++) {
        m[i] = &layer->matrix[op->parts[i].weight];
        l.part[i] = (struct cuda_part){ .y = float_of(b, op->parts[i].out),
                                        .bias = op->parts[i].bias ? layer->vector[op->parts[i].bias] : NULL,
                                        .n_out = m[i]->n_out,
                                        .y_stride = m[i]->n_out };
    }
    return gpu_status(gpu_product(b, &l, m), "product");
}

int gpu_rope_store(struct backend *b, const struct gpu_op *op)
{
    const struct cuda_kv kv = gpu_open_kv(b);
    return gpu_status(cuda_rope_store(&kv, op->layer, b->q, b->k, b->v, gpu_at(b, SECTION_COS), gpu_at(b, SECTION_SIN),
                                      gpu_at(b, SECTION_ROWS), b->input->n_rows, b->queries.data, b->stream),
                      "rotation");
}

int gpu_seal(struct backend *b, const struct gpu_op *op)
{
    const struct cuda_kv open = gpu_open_kv(b), sealed = gpu_kv(b);
    const struct cuda_seals s = { .jobs = gpu_at(b, SECTION_SEALS),
                                  .n_jobs = (const uint32_t *)gpu_at(b, SECTION_COUNTS) + UNIT_LISTS,
                                  .codec = gpu_codec(b),
                                  .failed = &b->outcome->failed };
    /* as many as there is room for: a graph's shape stays */
    return gpu_status(cuda_seal_run(&open, &sealed, op->layer, &s,
                                    (uint32_t)(b->list[SECTION_SEALS].cap / sizeof(struct cuda_seal)), b->stream),
                      "sealing");
}

static struct cuda_attend attend_of(const struct backend *b, int list, uint32_t layer)
{
    struct cuda_attend a = { .units = gpu_at(b, SECTION_UNITS + list),
                             .n_units = (const uint32_t *)gpu_at(b, SECTION_COUNTS) + list,
                             .slots = gpu_at(b, SECTION_SLOTS),
                             .merges = gpu_at(b, SECTION_MERGES),
                             .q = b->queries.data,
                             .store = b->store.data,
                             .stack = b->stack.data,
                             .depth = b->depth,
                             .scale = 1 / sqrtf((float)b->config->head_dim) };
    gpu_select_lists(b, layer, &a);
    return a;
}

/* Units that are there; as many as the list has room for. */
static uint32_t units_of(const struct backend *b, int list, uint32_t *room_out)
{
    *room_out = (uint32_t)(b->list[SECTION_UNITS + list].cap / sizeof(struct cuda_unit));
    return (uint32_t)(b->list[SECTION_UNITS + list].bytes / sizeof(struct cuda_unit));
}

/*
 * op->flag: local jobs. Narrow units are taken by as many blocks of threads as the list has room for, so that a graph's shape stays for a while; no more,
 * since idle ones keep the next product from fetching its weights meanwhile.
 */
int gpu_attend(struct backend *b, const struct gpu_op *op)
{
    const struct cuda_kv open = gpu_open_kv(b), sealed = gpu_kv(b);
    const int side = op->flag ? 0 : 1;
    uint32_t room, n = units_of(b, UNITS_LOCAL_CODED + side, &room);
    int e = 0;
    if (n) {
        const struct cuda_attend a = attend_of(b, UNITS_LOCAL_CODED + side, op->layer);
        const uint32_t vectors = b->coded_vectors[side];
        e = cuda_attend_codes_run(&sealed, op->layer, gpu_codec(b), &a, vectors, room * ((vectors + 15) / 16),
                                  b->stream);
    }
    for (int wide = 0; wide < 2 && !e; wide++) {
        const int list = UNITS_LOCAL + 2 * side + wide;
        const struct cuda_attend a = attend_of(b, list, op->layer);
        const uint32_t most = 2 * (uint32_t)b->device.processors;
        n = units_of(b, list, &room);
        e = cuda_attend_run(&open, op->layer, &a, wide, !n || wide ? n : room < most ? room : most, b->stream);
    }
    return gpu_status(e, "attention");
}

static int join(struct backend *b, int side, void *out)
{
    const struct cuda_kv kv = gpu_kv(b);
    const struct cuda_joins j = { .joins = gpu_at(b, SECTION_JOINS + side),
                                  .n_joins = (uint32_t)(b->list[SECTION_JOINS + side].bytes / sizeof(struct cuda_join)),
                                  .n_blocks = b->join_blocks[side],
                                  .items_max = b->items_max,
                                  .levels = gpu_at(b, SECTION_LEVELS),
                                  .pairs = gpu_at(b, SECTION_PAIRS),
                                  .store = b->store.data,
                                  .out = out,
                                  .cap = b->cap,
                                  .failed = &b->outcome->failed };
    return gpu_status(cuda_join_run(&kv, &j, b->stream), "join of partials");
}

int gpu_attend_join(struct backend *b, const struct gpu_op *op)
{
    (void)op;
    return join(b, 1, NULL);
}

int gpu_attend_finish(struct backend *b, const struct gpu_op *op)
{
    (void)op;
    return join(b, 0, b->a);
}

int gpu_silu_mul(struct backend *b, const struct gpu_op *op)
{
    (void)op;
    return gpu_status(cuda_silu_mul(b->gate, b->up, b->input->n_rows, b->config->d_ff, b->f, b->cap, b->stream),
                      "silu");
}

/* Logits of asks begin .. end to the host. H is free by then. */
int gpu_answer(struct backend *b, const struct gpu_op *op)
{
    const struct model_config *c = b->config;
    const uint32_t n = op->end - op->begin;
    int e = cuda_norm(b->x, (const uint32_t *)gpu_at(b, SECTION_WHICH) + op->begin, b->output_norm, n, c->d_model,
                      c->rms_eps, b->h, b->cap, b->stream);
    struct cuda_linear l = product(b, b->h, n, c->d_model);
    l.n_parts = 1;
    l.part[0] = (struct cuda_part){ .y = b->logits, .n_out = c->n_vocab, .y_stride = c->n_vocab };
    const struct gpu_matrix *const output = &b->output;
    if (!e)
        e = gpu_product(b, &l, &output);
    if (!e)
        e = (int)cudaMemcpyAsync(b->host_logits, b->logits, (size_t)n * c->n_vocab * sizeof(float),
                                 cudaMemcpyDeviceToHost, b->stream);
    return gpu_status(e, "logits");
}

/* ---- sampling, on the host ---- */

static void sample_share(void *ctx, uint32_t member, uint32_t n_members)
{
    struct backend *b = ctx;
    const uint32_t n_vocab = b->config->n_vocab;
    for (uint32_t i = b->sample_begin + member; i < b->sample_end; i += n_members) {
        const struct step_ask *ask = &b->input->asks[i];
        const float *logits = b->host_logits + (size_t)(i - b->sample_begin) * n_vocab;
        struct step_answer *answer = &b->answers.list[i];
        sample_row(b->rows, logits, n_vocab, &ask->sampling, ask->edited ? &ask->edits : NULL, ask->pos, ask->target,
                   ask->n_top, (struct sample_top *)(uintptr_t)answer->top, b->scratch[member], &answer->result);
        if (answer->logits)
            memcpy((float *)(uintptr_t)answer->logits, logits, n_vocab * sizeof(float));
        if (!answer->result.finite)
            atomic_store(&b->bad_row, 1);
    }
}

enum status gpu_sample(struct backend *b, uint32_t begin, uint32_t end)
{
    b->sample_begin = begin;
    b->sample_end = end;
    if (end - begin == 1) /* waking threads takes longer than one row */
        sample_share(b, 0, 1);
    else
        team_run(b->team, sample_share, b);
    return atomic_load(&b->bad_row) ? ST_CORRUPT : ST_OK;
}
