#include "worker/cpu/cpu.h"
#include "worker/cpu/df11.h"
#include "worker/cpu/lossless.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void *cpu_alloc(size_t bytes)
{
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : p;
}

bool cpu_reserve(void *p, size_t *room, size_t bytes)
{
    void **at = p;
    if (bytes <= *room)
        return true;
    free(*at);
    *at = cpu_alloc(bytes + bytes / 4);
    *room = *at ? bytes + bytes / 4 : 0;
    return *at != NULL;
}

/* Packed weights are streamed whole at each step: huge pages spare most of the TLB misses. */
static uint8_t *packed_alloc(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    void *p = NULL;
    if (posix_memalign(&p, bytes >= huge ? huge : 64, bytes))
        return NULL;
    if (bytes >= huge)
        madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

struct pack_job {
    const struct cpu_weight *weight;
    const struct model_tensor *tensor;
    uint8_t *scratch; /* [n_members][LINEAR_GROUP] rows */
    size_t row_room;
    struct cpu_lossless *lossless; /* NULL: of another codec */
    struct cpu_df11 *df11;         /* likewise */
};

static void pack_groups(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct pack_job *job = ctx;
    const struct linear_shape *shape = &job->weight->shape;
    uint8_t *scratch = job->scratch + (size_t)member * LINEAR_GROUP * job->row_room;
    uint32_t begin, end;
    team_share((shape->n_out + LINEAR_GROUP - 1) / LINEAR_GROUP, member, n_members, &begin, &end);
    for (uint32_t g = begin; g < end; g++) {
        uint8_t *out = job->weight->packed + g * job->weight->group_bytes;
        if ((job->lossless && cpu_lossless_pack(job->lossless, shape, g, out)) ||
            (job->df11 && cpu_df11_pack(job->df11, shape, g, out)))
            continue;
        const void *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++) {
            const uint32_t row = g * LINEAR_GROUP + i;
            rows[i] = row < shape->n_out ? model_tensor_row(job->tensor, row, scratch + i * job->row_room) : NULL;
        }
        job->weight->impl->pack(shape, rows, out);
    }
}

static enum status load_matrix(struct backend *b, enum model_tensor_kind kind, uint32_t layer, struct cpu_weight *out,
                               struct error *err)
{
    struct model_tensor t;
    struct cpu_lossless lossless;
    struct cpu_df11 df11;
    enum status st = model_tensor(b->model, kind, layer, &t);
    if (st)
        return error_set(err, st, "the model has no tensor of kind %d in layer %u", (int)kind, layer);
    if ((st = model_tensor_check(&t, err)))
        return st;
    out->shape = (struct linear_shape){
        .n_out = t.n_rows, .n_in = t.n_cols, .codec = t.codec, .x = b->float32 ? DTYPE_F32 : DTYPE_BF16
    };
    const bool is_lossless = t.codec == WEIGHT_LOSSLESS_FAST, is_df11 = t.codec == WEIGHT_DF11;
    if (is_lossless && (st = cpu_lossless_begin(b->team, b->n_threads, &t, &out->shape, &lossless, err)))
        return st;
    if (is_df11 && !(out->df11 = malloc(sizeof *out->df11)))
        return error_set(err, ST_NO_MEMORY, "no memory for weights");
    if (is_df11 && (st = cpu_df11_begin(b->team, b->n_threads, &t, &out->shape, out->df11, &df11, err)))
        return st;
    out->impl = linear_find(&out->shape, b->caps);
    out->group_bytes = out->impl->group_bytes(&out->shape);
    const size_t bytes = linear_packed_bytes(out->impl, &out->shape), row_room = (t.row_bytes + 63) / 64 * 64;
    out->packed = packed_alloc(bytes);
    struct pack_job job = { out,
                            &t,
                            cpu_alloc(b->n_threads * (size_t)LINEAR_GROUP * row_room),
                            row_room,
                            is_lossless ? &lossless : NULL,
                            is_df11 ? &df11 : NULL };
    if (!out->packed || !job.scratch) {
        free(job.scratch);
        return error_set(err, ST_NO_MEMORY, "no memory for %zu bytes of weights", bytes);
    }
    team_run(b->team, pack_groups, &job);
    free(job.scratch);
    b->weights.bytes += bytes;
    if (is_lossless)
        return cpu_lossless_end(&lossless, err);
    return is_df11 ? cpu_df11_end(&df11, err) : ST_OK;
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
    uint8_t *scratch = cpu_alloc(t.row_bytes);
    *out = cpu_alloc(t.n_cols * sizeof(float));
    if (scratch && *out)
        weight_row_f32(t.codec, model_tensor_row(&t, 0, scratch), t.n_cols, *out);
    free(scratch);
    b->weights.bytes += t.n_cols * sizeof(float);
    return scratch && *out ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory for weights");
}

static enum status load_layer(struct backend *b, uint32_t layer, struct error *err)
{
    static const enum model_tensor_kind matrices[] = { MODEL_ATTN_Q,   MODEL_ATTN_K, MODEL_ATTN_V,  MODEL_ATTN_OUT,
                                                       MODEL_FFN_GATE, MODEL_FFN_UP, MODEL_FFN_DOWN };
    static const struct {
        enum model_tensor_kind kind;
        bool optional; /* where the architecture has none; model_open saw to it that none is missing */
    } vectors[] = { { MODEL_ATTN_NORM, false },  { MODEL_FFN_NORM, false },   { MODEL_ATTN_Q_BIAS, true },
                    { MODEL_ATTN_K_BIAS, true }, { MODEL_ATTN_V_BIAS, true }, { MODEL_ATTN_Q_NORM, true },
                    { MODEL_ATTN_K_NORM, true } };
    struct cpu_layer *l = &b->weights.layers[layer];
    struct model_tensor t;
    enum status st = ST_OK;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors && !st; i++)
        if (!vectors[i].optional || !model_tensor(b->model, vectors[i].kind, layer, &t))
            st = load_vector(b, vectors[i].kind, layer, &l->vector[vectors[i].kind], err);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices && !st; i++)
        st = load_matrix(b, matrices[i], layer, &l->weight[matrices[i]], err);
    return st;
}

enum status cpu_weights_load(struct backend *b, void (*progress)(void *ctx, float fraction), void *ctx,
                             struct error *err)
{
    const struct model_config *c = b->config;
    b->weights.layers = calloc(c->n_layers, sizeof *b->weights.layers);
    if (!b->weights.layers)
        return error_set(err, ST_NO_MEMORY, "no memory for weights");
    enum status st = model_tensor(b->model, MODEL_EMBEDDING, 0, &b->weights.embedding);
    if (st)
        return error_set(err, st, "the model has no embedding");
    if (!c->tied_output && (st = model_tensor_check(&b->weights.embedding, err)))
        return st;
    for (uint32_t layer = 0; layer < c->n_layers && !st; layer++) {
        st = load_layer(b, layer, err);
        if (progress && !st)
            progress(ctx, (float)(layer + 1) / (float)(c->n_layers + 1));
    }
    if (!st)
        st = load_vector(b, MODEL_OUTPUT_NORM, 0, &b->weights.output_norm, err);
    if (!st)
        st = load_matrix(b, c->tied_output ? MODEL_EMBEDDING : MODEL_OUTPUT, 0, &b->weights.output, err);
    if (progress && !st)
        progress(ctx, 1);
    model_drop_pages(b->model); /* all but the embedding's rows has been packed */
    return st;
}

void cpu_weights_free(struct backend *b)
{
    for (uint32_t layer = 0; b->weights.layers && layer < b->config->n_layers; layer++) {
        for (int kind = 0; kind < MODEL_TENSOR_KINDS; kind++) {
            free(b->weights.layers[layer].weight[kind].packed);
            free(b->weights.layers[layer].weight[kind].df11);
            free(b->weights.layers[layer].vector[kind]);
        }
    }
    free(b->weights.layers);
    free(b->weights.output.packed);
    free(b->weights.output.df11);
    free(b->weights.output_norm);
}
