#include "client/quantize.h"

#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "kernels/kernels.h"
#include "model/leanquant.h"
#include "worker/team.h"

enum { TEXT_BYTES_MAX = 1 << 28 };
enum { SEQUENCE = 256, SEQUENCES_MAX = 32, SEQUENCES_MIN = 4, MATRICES = 7, NOT_YET = -1 };

static const enum model_tensor_kind matrices[MATRICES] = { MODEL_ATTN_Q,   MODEL_ATTN_K, MODEL_ATTN_V,  MODEL_ATTN_OUT,
                                                           MODEL_FFN_GATE, MODEL_FFN_UP, MODEL_FFN_DOWN };
enum { Q, K, V, OUT, GATE, UP, DOWN };

/* [n_tokens][stride] bf16, zeros past width */
struct activations {
    uint16_t *data;
    uint32_t width, stride;
};

struct quantize {
    const struct model *model;
    const struct model_config *config;
    const struct row_impl *row_ops;
    struct team *team;
    uint32_t caps, n_threads, n_tokens;
    int32_t *tokens;
    float *hidden; /* [n_tokens][d_model], before layer `layer + 1` */
    int64_t layer; /* the last one that was quantized */
    enum weight_codec codec;
    uint8_t *rows[MATRICES]; /* of that layer */
    char record[512];
};

static void *room(size_t n, size_t size)
{
    void *p = NULL;
    const size_t bytes = (n * size + 63) / 64 * 64;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : memset(p, 0, bytes ? bytes : 64);
}

static enum status no_memory(struct error *err)
{
    return error_set(err, ST_NO_MEMORY, "no memory to quantize weights");
}

static bool activations_new(const struct quantize *q, uint32_t width, struct activations *out)
{
    out->width = width;
    out->stride = (width + 31) / 32 * 32;
    out->data = room((size_t)q->n_tokens * out->stride, sizeof *out->data);
    return out->data != NULL;
}

/* ---- products ---- */

struct product {
    const struct quantize *q;
    struct linear_shape shape;
    const struct linear_impl *impl;
    const uint8_t *stored; /* [n_out] rows of row_bytes */
    size_t row_bytes, scratch_bytes;
    uint8_t *packed, *scratch;
    const uint16_t *x;
    uint32_t x_stride, n_rows;
    float *y;
};

static void product_run(void *ctx, uint32_t member, uint32_t n_members)
{
    struct product *p = ctx;
    const size_t group_bytes = p->impl->group_bytes(&p->shape);
    uint32_t begin, end;
    cpu_thread_init();
    team_share((p->shape.n_out + LINEAR_GROUP - 1) / LINEAR_GROUP, member, n_members, &begin, &end);
    for (uint32_t g = begin; g < end; g++) {
        const void *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++) {
            const uint32_t row = g * LINEAR_GROUP + i;
            rows[i] = row < p->shape.n_out ? p->stored + row * p->row_bytes : NULL;
        }
        p->impl->pack(&p->shape, rows, p->packed + g * group_bytes);
    }
    const uint32_t out_end = end * LINEAR_GROUP < p->shape.n_out ? end * LINEAR_GROUP : p->shape.n_out;
    if (begin == end)
        return;
    p->impl->run(&(struct linear_args){ .shape = &p->shape,
                                        .packed = p->packed,
                                        .x = p->x,
                                        .x_stride = p->x_stride,
                                        .n_rows = p->n_rows,
                                        .out_begin = begin * LINEAR_GROUP,
                                        .out_end = out_end,
                                        .y = p->y,
                                        .y_stride = p->shape.n_out,
                                        .scratch = p->scratch + member * p->scratch_bytes });
}

/* y [n_rows][n_out] = x [n_rows][x_stride] times stored rows of a codec */
static bool multiply(const struct quantize *q, enum weight_codec codec, const uint8_t *stored, uint32_t n_out,
                     uint32_t n_in, const uint16_t *x, uint32_t x_stride, uint32_t n_rows, float *y)
{
    struct product p = { .q = q,
                         .shape = { .n_out = n_out, .n_in = n_in, .codec = codec, .x = DTYPE_BF16 },
                         .stored = stored,
                         .row_bytes = weight_row_bytes(codec, n_in),
                         .x = x,
                         .x_stride = x_stride,
                         .n_rows = n_rows,
                         .y = y };
    p.impl = linear_find(&p.shape, q->caps);
    p.scratch_bytes = (p.impl->scratch_bytes(&p.shape, n_rows) + 63) / 64 * 64;
    p.packed = room(linear_packed_bytes(p.impl, &p.shape), 1);
    p.scratch = room(q->n_threads, p.scratch_bytes);
    const bool good = p.packed && p.scratch;
    if (good)
        team_run(q->team, product_run, &p);
    free(p.packed);
    free(p.scratch);
    return good;
}

/* ---- quantizing ---- */

/* H = 2 / N sum x x^T, as a product of the activations, turned, with themselves. */
static enum status measure(const struct quantize *q, const struct activations *x, struct leanquant **out,
                           struct error *err)
{
    const uint32_t n = x->width, n_tokens = q->n_tokens;
    uint16_t *turned = room((size_t)n * n_tokens, sizeof *turned);
    float *sums = room((size_t)n * n, sizeof *sums);
    double *h = room((size_t)n * n, sizeof *h);
    enum status st = turned && sums && h ? ST_OK : no_memory(err);
    for (uint32_t t = 0; t < n_tokens && !st; t++)
        for (uint32_t i = 0; i < n; i++)
            turned[(size_t)i * n_tokens + t] = x->data[(size_t)t * x->stride + i];
    if (!st && !multiply(q, WEIGHT_BF16, (const uint8_t *)turned, n, n_tokens, turned, n_tokens, n, sums))
        st = no_memory(err);
    for (size_t i = 0; i < n && !st; i++)
        for (size_t j = 0; j <= i; j++)
            h[i * n + j] = h[j * n + i] = 2 * (double)sums[i * n + j] / n_tokens;
    if (!st)
        st = leanquant_new(h, n, &leanquant_default, out, err);
    free(turned);
    free(sums);
    free(h);
    return st;
}

struct coding {
    const struct leanquant *lean;
    const struct model_tensor *tensor;
    enum weight_codec codec;
    uint8_t *rows;
    bool *failed; /* [n_members] */
};

static void code_row(const struct coding *c, const float *w, double *scratch, uint8_t *codes, uint8_t *row)
{
    const uint32_t bits = weight_grid_bits(c->codec), n = c->tensor->n_cols;
    uint16_t grid[LEANQUANT_GRID_MAX];
    float values[LEANQUANT_GRID_MAX];
    leanquant_grid(c->lean, w, bits, grid);
    for (uint32_t i = 0; i < 1u << bits; i++)
        values[i] = bf16_to_f32(grid[i]);
    leanquant_code(c->lean, w, values, 1u << bits, true, scratch, codes);
    memset(row, 0, weight_row_bytes(c->codec, n));
    memcpy(row, grid, sizeof *grid << bits);
    for (uint32_t i = 0; i < n; i++)
        weight_grid_put(bits, row, i, codes[i]);
}

static void code_rows(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct coding *c = ctx;
    const struct model_tensor *t = c->tensor;
    const size_t row_bytes = weight_row_bytes(c->codec, t->n_cols);
    float *w = room(t->n_cols, sizeof *w);
    double *scratch = room(t->n_cols, sizeof *scratch);
    uint8_t *codes = room(t->n_cols, 1), *stored = room(t->row_bytes, 1);
    uint32_t begin, end;
    team_share(t->n_rows, member, n_members, &begin, &end);
    c->failed[member] = !w || !scratch || !codes || !stored;
    for (uint32_t r = begin; r < end && !c->failed[member]; r++) {
        weight_row_f32(t->codec, model_tensor_row(t, r, stored), t->n_cols, w);
        code_row(c, w, scratch, codes, c->rows + r * row_bytes);
    }
    free(w);
    free(scratch);
    free(codes);
    free(stored);
}

static enum status code(struct quantize *q, const struct leanquant *lean, uint32_t layer, int which, struct error *err)
{
    struct model_tensor t;
    enum status st = model_tensor(q->model, matrices[which], layer, &t);
    if (st || (st = model_tensor_check(&t, err)))
        return st;
    free(q->rows[which]);
    q->rows[which] = room(t.n_rows, weight_row_bytes(q->codec, t.n_cols));
    struct coding c = { lean, &t, q->codec, q->rows[which], calloc(q->n_threads, sizeof *c.failed) };
    if (c.rows && c.failed)
        team_run(q->team, code_rows, &c);
    st = c.rows && c.failed ? ST_OK : no_memory(err);
    for (uint32_t i = 0; i < q->n_threads && !st; i++)
        st = c.failed[i] ? no_memory(err) : ST_OK;
    free(c.failed);
    return st;
}

/* Quantizes n matrices that read x, and multiplies: y[i] [n_tokens][outputs], made here. */
static enum status take_matrices(struct quantize *q, uint32_t layer, const struct activations *x, int first, int n,
                                 float *y[], struct error *err)
{
    struct leanquant *lean = NULL;
    enum status st = measure(q, x, &lean, err);
    for (int i = 0; i < n; i++)
        y[i] = NULL;
    for (int i = 0; i < n && !st; i++) {
        struct model_tensor t;
        model_tensor(q->model, matrices[first + i], layer, &t);
        if ((st = code(q, lean, layer, first + i, err)))
            break;
        y[i] = room((size_t)q->n_tokens * t.n_rows, sizeof *y[i]);
        if (!y[i] ||
            !multiply(q, q->codec, q->rows[first + i], t.n_rows, t.n_cols, x->data, x->stride, q->n_tokens, y[i]))
            st = no_memory(err);
    }
    leanquant_free(lean);
    return st;
}

/* ---- a layer ---- */

static float *vector(const struct quantize *q, enum model_tensor_kind kind, uint32_t layer)
{
    struct model_tensor t;
    float *out = NULL;
    if (model_tensor(q->model, kind, layer, &t))
        return NULL;
    void *stored = room(t.row_bytes, 1);
    if (stored && (out = room(t.n_cols, sizeof *out)))
        weight_row_f32(t.codec, model_tensor_row(&t, 0, stored), t.n_cols, out);
    free(stored);
    return out;
}

static enum status norm(const struct quantize *q, enum model_tensor_kind kind, uint32_t layer, struct activations *out,
                        struct error *err)
{
    const uint32_t d = q->config->d_model;
    float *w = vector(q, kind, layer);
    const bool good = w && activations_new(q, d, out);
    for (uint32_t t = 0; t < q->n_tokens && good; t++)
        q->row_ops->rmsnorm(q->hidden + (size_t)t * d, w, d, q->config->rms_eps, DTYPE_BF16,
                            out->data + (size_t)t * out->stride, out->stride);
    free(w);
    return good ? ST_OK : no_memory(err);
}

/* Bias, norm of heads and RoPE of q or k [n_tokens][n_heads][head_dim]; bias of v. */
static enum status turn(const struct quantize *q, uint32_t layer, enum model_tensor_kind bias,
                        enum model_tensor_kind head_norm, uint32_t n_heads, float *x, struct error *err)
{
    const struct model_config *c = q->config;
    const uint32_t dim = c->head_dim, width = n_heads * dim, half = dim / 2;
    float *b = c->qkv_bias ? vector(q, bias, layer) : NULL;
    float *w = c->qk_norm && head_norm != MODEL_TENSOR_KINDS ? vector(q, head_norm, layer) : NULL;
    const bool good = (!c->qkv_bias || b) && (!c->qk_norm || head_norm == MODEL_TENSOR_KINDS || w);
    for (uint32_t t = 0; t < q->n_tokens && good; t++) {
        float *row = x + (size_t)t * width, cosines[MODEL_HEAD_DIM_MAX / 2], sines[MODEL_HEAD_DIM_MAX / 2];
        if (b)
            q->row_ops->add(row, b, width);
        if (head_norm == MODEL_TENSOR_KINDS)
            continue;
        for (uint32_t h = 0; h < n_heads && w; h++)
            q->row_ops->rmsnorm(row + h * dim, w, dim, c->rms_eps, DTYPE_F32, row + h * dim, dim);
        for (uint32_t i = 0; i < half; i++) {
            const double angle = (double)(t % SEQUENCE) * c->inv_freq[i];
            cosines[i] = (float)(cos(angle) * c->rope_scale);
            sines[i] = (float)(sin(angle) * c->rope_scale);
        }
        q->row_ops->rope(row, n_heads, dim, cosines, sines);
    }
    free(b);
    free(w);
    return good ? ST_OK : no_memory(err);
}

struct attention {
    const struct quantize *q;
    const float *queries, *keys, *values;
    struct activations *out;
};

/* Causal attention of one head of one sequence. */
static void attend_head(const struct attention *a, uint32_t sequence, uint32_t head)
{
    const struct model_config *c = a->q->config;
    const uint32_t dim = c->head_dim, q_width = c->n_heads * dim, kv_width = c->n_kv_heads * dim;
    const uint32_t kv = head / (c->n_heads / c->n_kv_heads) * dim;
    const float scale = 1 / sqrtf((float)dim);
    for (uint32_t i = 0; i < SEQUENCE; i++) {
        const size_t row = (size_t)sequence * SEQUENCE + i, first = (size_t)sequence * SEQUENCE;
        const float *query = a->queries + row * q_width + head * dim;
        float score[SEQUENCE], out[MODEL_HEAD_DIM_MAX] = { 0 }, most = -INFINITY, sum = 0;
        for (uint32_t j = 0; j <= i; j++) {
            const float *key = a->keys + (first + j) * kv_width + kv;
            float s = 0;
            for (uint32_t e = 0; e < dim; e++)
                s += query[e] * key[e];
            score[j] = s * scale;
            most = score[j] > most ? score[j] : most;
        }
        for (uint32_t j = 0; j <= i; j++) {
            const float p = expf(score[j] - most), *value = a->values + (first + j) * kv_width + kv;
            sum += p;
            for (uint32_t e = 0; e < dim; e++)
                out[e] += p * value[e];
        }
        for (uint32_t e = 0; e < dim; e++)
            a->out->data[row * a->out->stride + head * dim + e] = f32_to_bf16(out[e] / sum);
    }
}

static void attend(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct attention *a = ctx;
    const uint32_t n_heads = a->q->config->n_heads;
    uint32_t begin, end;
    team_share(a->q->n_tokens / SEQUENCE * n_heads, member, n_members, &begin, &end);
    for (uint32_t i = begin; i < end; i++)
        attend_head(a, i / n_heads, i % n_heads);
}

static enum status attention_part(struct quantize *q, uint32_t layer, struct error *err)
{
    const struct model_config *c = q->config;
    struct activations x = { 0 }, mixed = { 0 };
    float *y[3] = { NULL }, *added[1] = { NULL };
    enum status st = norm(q, MODEL_ATTN_NORM, layer, &x, err);
    if (!st)
        st = take_matrices(q, layer, &x, Q, 3, y, err);
    if (!st)
        st = turn(q, layer, MODEL_ATTN_Q_BIAS, MODEL_ATTN_Q_NORM, c->n_heads, y[0], err);
    if (!st)
        st = turn(q, layer, MODEL_ATTN_K_BIAS, MODEL_ATTN_K_NORM, c->n_kv_heads, y[1], err);
    if (!st)
        st = turn(q, layer, MODEL_ATTN_V_BIAS, MODEL_TENSOR_KINDS, c->n_kv_heads, y[2], err);
    if (!st && !activations_new(q, c->n_heads * c->head_dim, &mixed))
        st = no_memory(err);
    if (!st) {
        team_run(q->team, attend, &(struct attention){ q, y[0], y[1], y[2], &mixed });
        st = take_matrices(q, layer, &mixed, OUT, 1, added, err);
    }
    if (!st)
        q->row_ops->add(q->hidden, added[0], q->n_tokens * c->d_model);
    for (int i = 0; i < 3; i++)
        free(y[i]);
    free(added[0]);
    free(x.data);
    free(mixed.data);
    return st;
}

static enum status ffn_part(struct quantize *q, uint32_t layer, struct error *err)
{
    const struct model_config *c = q->config;
    struct activations x = { 0 }, inner = { 0 };
    float *y[2] = { NULL }, *added[1] = { NULL };
    enum status st = norm(q, MODEL_FFN_NORM, layer, &x, err);
    if (!st)
        st = take_matrices(q, layer, &x, GATE, 2, y, err);
    if (!st && !activations_new(q, c->d_ff, &inner))
        st = no_memory(err);
    for (uint32_t t = 0; t < q->n_tokens && !st; t++)
        q->row_ops->silu_mul(y[0] + (size_t)t * c->d_ff, y[1] + (size_t)t * c->d_ff, c->d_ff, DTYPE_BF16,
                             inner.data + (size_t)t * inner.stride, inner.stride);
    if (!st)
        st = take_matrices(q, layer, &inner, DOWN, 1, added, err);
    if (!st)
        q->row_ops->add(q->hidden, added[0], q->n_tokens * c->d_model);
    free(y[0]);
    free(y[1]);
    free(added[0]);
    free(x.data);
    free(inner.data);
    return st;
}

/* ---- the face ---- */

/* Sequences spread evenly over the text's tokens. */
static enum status take_tokens(struct quantize *q, const char *flag, const char *text, size_t bytes, struct error *err)
{
    struct tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    char digest[33];
    enum status st = tokenizer_new(q->model, &tokenizer, err);
    if (!st && (st = tokenizer_encode(tokenizer, text, bytes, false, 0, &ids, &n)))
        error_set(err, st, "%s: the text cannot be tokenized: %s", flag, status_text(st));
    if (!st && n < (size_t)SEQUENCES_MIN * SEQUENCE)
        st = error_set(err, ST_INVALID, "%s: %zu tokens, a calibration takes %d at least", flag, n,
                       SEQUENCES_MIN * SEQUENCE);
    if (!st) {
        const size_t n_sequences = n / SEQUENCE < SEQUENCES_MAX ? n / SEQUENCE : SEQUENCES_MAX;
        q->n_tokens = (uint32_t)n_sequences * SEQUENCE;
        if (!(q->tokens = room(q->n_tokens, sizeof *q->tokens)))
            st = no_memory(err);
        for (size_t s = 0; s < n_sequences && !st; s++)
            memcpy(q->tokens + s * SEQUENCE, ids + n / n_sequences * s, SEQUENCE * sizeof *ids);
    }
    if (!st) {
        const struct digest d = digest_of(q->tokens, q->n_tokens * sizeof *q->tokens);
        digest_text(&d, digest);
        snprintf(q->record, sizeof q->record,
                 "{\"method\": \"leanquant\", \"weighting\": \"U_ii^-p\", \"power\": %g, \"damping\": %g, \"order\": "
                 "\"diagonal\", "
                 "\"tokens\": %u, \"sequence\": %d, \"text\": \"%s\"}",
                 leanquant_default.power, leanquant_default.damping, q->n_tokens, SEQUENCE, digest);
    }
    free(ids);
    tokenizer_free(tokenizer);
    return st;
}

static enum status embed(struct quantize *q, struct error *err)
{
    struct model_tensor t;
    const uint32_t d = q->config->d_model;
    enum status st = model_tensor(q->model, MODEL_EMBEDDING, 0, &t);
    if (st || (st = model_tensor_check(&t, err)))
        return st;
    void *stored = room(t.row_bytes, 1);
    q->hidden = room((size_t)q->n_tokens * d, sizeof *q->hidden);
    for (uint32_t i = 0; i < q->n_tokens && stored && q->hidden; i++)
        weight_row_f32(t.codec, model_tensor_row(&t, (uint32_t)q->tokens[i], stored), d, q->hidden + (size_t)i * d);
    st = stored && q->hidden ? ST_OK : no_memory(err);
    free(stored);
    return st;
}

enum status quantize_new(const struct model *m, const char *flag, const char *text, size_t bytes, uint32_t threads,
                         struct quantize **q_out, struct error *err)
{
    struct quantize *q = calloc(1, sizeof *q);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (!q)
        return no_memory(err);
    q->model = m;
    q->config = model_config(m);
    q->caps = cpu_caps();
    q->row_ops = row_find(q->caps);
    q->n_threads = threads ? threads : cores > 0 ? (uint32_t)cores : 1;
    q->layer = NOT_YET;
    enum status st = take_tokens(q, flag, text, bytes, err);
    if (!st)
        st = embed(q, err);
    if (!st && (st = team_new(q->n_threads, &q->team)))
        error_set(err, st, "no threads to quantize weights with");
    if (st)
        quantize_free(q);
    else
        *q_out = q;
    return st;
}

void quantize_free(struct quantize *q)
{
    if (!q)
        return;
    team_free(q->team);
    for (int i = 0; i < MATRICES; i++)
        free(q->rows[i]);
    free(q->tokens);
    free(q->hidden);
    free(q);
}

const char *quantize_record(const struct quantize *q)
{
    return q->record;
}

enum status quantize_rows(void *ctx, const struct model_tensor *t, enum weight_codec codec, const uint8_t **rows_out,
                          struct error *err)
{
    struct quantize *q = ctx;
    enum status st = ST_OK;
    fenv_t before;
    fegetenv(&before); /* products set the caller's treatment of denormal numbers */
    q->codec = codec;
    while (q->layer < (int64_t)t->layer && !st) {
        st = attention_part(q, (uint32_t)(q->layer + 1), err);
        if (!st)
            st = ffn_part(q, (uint32_t)(q->layer + 1), err);
        q->layer += !st;
    }
    fesetenv(&before);
    for (int i = 0; i < MATRICES && !st; i++)
        if (matrices[i] == t->kind) {
            *rows_out = q->rows[i];
            return ST_OK;
        }
    return st ? st : error_set(err, ST_INVALID, "a tensor of kind %d is not quantized", (int)t->kind);
}

enum status quantize_options(const struct model *m, const char *flag, const char *path, struct pack_options *options,
                             struct quantize **q_out, struct error *err)
{
    char *text;
    size_t bytes;
    if (!path[0])
        return error_set(err, ST_INVALID, "weights %s are quantized over a text, which %s FILE names",
                         pack_weights_name(options->weights), flag);
    enum status st = file_read(path, TEXT_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    st = quantize_new(m, flag, text, bytes, 0, q_out, err);
    free(text);
    if (st)
        return st;
    options->quantize = quantize_rows;
    options->quantize_ctx = *q_out;
    options->quantized = quantize_record(*q_out);
    return ST_OK;
}
