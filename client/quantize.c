#include "client/quantize.h"

#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/product.h"
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

/* y [n_tokens][n_out] = x [n_tokens][x_stride] times stored rows of a codec */
static bool multiply(const struct quantize *q, enum weight_codec codec, const uint8_t *stored, uint32_t n_out,
                     uint32_t n_in, const uint16_t *x, uint32_t x_stride, uint32_t n_rows, float *y)
{
    const struct linear_shape shape = { .n_out = n_out, .n_in = n_in, .codec = codec, .x = DTYPE_BF16 };
    struct product p;
    const bool good = product_new(&shape, q->caps, n_rows, q->n_threads, &p);
    p.operands = (struct product_operands){ stored, x, x_stride, y };
    if (good)
        team_run(q->team, product_run, &p);
    product_free(&p);
    return good;
}

/* ---- quantizing ---- */

static void run_team(void *team, void (*work)(void *ctx, uint32_t member, uint32_t n_members), void *ctx)
{
    team_run(team, work, ctx);
}

struct turning {
    const struct activations *x;
    uint32_t n_tokens;
    uint16_t *out; /* [width][n_tokens] */
};

/* Tile by tile, so that what is read and what is written stay in the cache. */
static void turn_inputs(void *ctx, uint32_t member, uint32_t n_members)
{
    enum { TILE = 64 };
    const struct turning *t = ctx;
    uint32_t begin, end;
    team_share((t->x->width + TILE - 1) / TILE, member, n_members, &begin, &end);
    for (uint32_t tile = begin; tile < end; tile++)
        for (uint32_t from = 0; from < t->n_tokens; from += TILE)
            for (uint32_t i = tile * TILE; i < t->x->width && i < (tile + 1) * TILE; i++)
                for (uint32_t k = from; k < t->n_tokens && k < from + TILE; k++)
                    t->out[(size_t)i * t->n_tokens + k] = t->x->data[(size_t)k * t->x->stride + i];
}

struct scaling {
    const float *sums; /* [n][n], symmetric but for rounding: the lower half counts */
    double *h;
    uint32_t n, n_tokens;
};

static void scale_sums(void *ctx, uint32_t member, uint32_t n_members)
{
    enum { TILE = 32 };
    const struct scaling *s = ctx;
    const uint32_t n_tiles = (s->n + TILE - 1) / TILE;
    for (uint32_t tile = member; tile < n_tiles; tile += n_members)
        for (uint32_t other = 0; other <= tile; other++)
            for (size_t i = tile * TILE; i < s->n && i < (tile + 1) * TILE; i++)
                for (size_t j = other * TILE; j <= i && j < (other + 1) * TILE; j++)
                    s->h[i * s->n + j] = s->h[j * s->n + i] = 2 * (double)s->sums[i * s->n + j] / s->n_tokens;
}

/* H = 2 / N sum x x^T, as a product of the activations, turned, with themselves. */
static enum status measure(const struct quantize *q, const struct activations *x, struct leanquant **out,
                           struct error *err)
{
    const uint32_t n = x->width, n_tokens = q->n_tokens;
    uint16_t *turned = room((size_t)n * n_tokens, sizeof *turned);
    float *sums = room((size_t)n * n, sizeof *sums);
    double *h = room((size_t)n * n, sizeof *h);
    enum status st = turned && sums && h ? ST_OK : no_memory(err);
    if (!st)
        team_run(q->team, turn_inputs, &(struct turning){ x, n_tokens, turned });
    if (!st && !multiply(q, WEIGHT_BF16, (const uint8_t *)turned, n, n_tokens, turned, n_tokens, n, sums))
        st = no_memory(err);
    free(turned);
    if (!st) {
        team_run(q->team, scale_sums, &(struct scaling){ sums, h, n, n_tokens });
        st = leanquant_new(h, n, &leanquant_default, &(struct upper_team){ run_team, q->team }, out, err);
    }
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

struct code_room {
    float *w;        /* [LEANQUANT_ROWS][n_cols] */
    double *scratch; /* what leanquant_code takes */
    uint8_t *codes;  /* [LEANQUANT_ROWS][n_cols] */
    void *stored;
};

static bool code_together(const struct coding *c, const struct code_room *space, uint32_t first, uint32_t n)
{
    const struct model_tensor *t = c->tensor;
    const uint32_t bits = weight_grid_bits(c->codec), n_grid = 1u << bits;
    const size_t row_bytes = weight_row_bytes(c->codec, t->n_cols);
    float grids[LEANQUANT_ROWS * LEANQUANT_GRID_MAX];
    double losses[LEANQUANT_ROWS];
    for (uint32_t r = 0; r < n; r++) {
        uint16_t grid[LEANQUANT_GRID_MAX];
        float *w = space->w + (size_t)r * t->n_cols;
        weight_row_f32(t->codec, model_tensor_row(t, first + r, space->stored), t->n_cols, w);
        if (leanquant_grid(c->lean, w, bits, grid))
            return false;
        for (uint32_t i = 0; i < n_grid; i++)
            grids[r * n_grid + i] = bf16_to_f32(grid[i]);
        memcpy(memset(c->rows + (first + r) * row_bytes, 0, row_bytes), grid, n_grid * sizeof *grid);
    }
    const struct leanquant_rows rows = { .n = n, .n_grid = n_grid, .w = space->w, .grids = grids, .spread = true };
    leanquant_code(c->lean, &rows, space->scratch, space->codes, losses);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < t->n_cols; i++)
            weight_grid_put(bits, c->rows + (first + r) * row_bytes, i, space->codes[(size_t)r * t->n_cols + i]);
    return true;
}

static void code_rows(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct coding *c = ctx;
    const struct model_tensor *t = c->tensor;
    const size_t n = (size_t)LEANQUANT_ROWS * t->n_cols;
    struct code_room space = { room(n, sizeof *space.w),
                               room(leanquant_scratch(c->lean, LEANQUANT_ROWS), sizeof *space.scratch), room(n, 1),
                               room(t->row_bytes, 1) };
    bool good = space.w && space.scratch && space.codes && space.stored;
    uint32_t begin, end;
    team_share(t->n_rows, member, n_members, &begin, &end);
    for (uint32_t r = begin; r < end && good; r += LEANQUANT_ROWS)
        good = code_together(c, &space, r, end - r < LEANQUANT_ROWS ? end - r : LEANQUANT_ROWS);
    c->failed[member] = !good;
    free(space.w);
    free(space.scratch);
    free(space.codes);
    free(space.stored);
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
    bool *failed; /* [n_members] */
};

/* One head of one sequence. Keys and values in bf16, as caches have them. */
struct head {
    struct product scores, mix;
    uint16_t *queries, *keys, *values, *shares; /* [SEQUENCE][stride], [SEQUENCE][dim], [dim][SEQUENCE], [SEQUENCE]^2 */
    float *score, *mixed;                       /* [SEQUENCE]^2, [SEQUENCE][dim] */
    uint32_t stride;
};

static bool head_new(const struct quantize *q, struct head *h)
{
    const uint32_t dim = q->config->head_dim;
    const struct linear_shape scores = { .n_out = SEQUENCE, .n_in = dim, .codec = WEIGHT_BF16, .x = DTYPE_BF16 };
    const struct linear_shape mix = { .n_out = dim, .n_in = SEQUENCE, .codec = WEIGHT_BF16, .x = DTYPE_BF16 };
    h->stride = (dim + 31) / 32 * 32;
    h->queries = room((size_t)SEQUENCE * h->stride, sizeof *h->queries);
    h->keys = room((size_t)SEQUENCE * dim, sizeof *h->keys);
    h->values = room((size_t)SEQUENCE * dim, sizeof *h->values);
    h->shares = room(SEQUENCE * SEQUENCE, sizeof *h->shares);
    h->score = room(SEQUENCE * SEQUENCE, sizeof *h->score);
    h->mixed = room((size_t)SEQUENCE * dim, sizeof *h->mixed);
    const bool scored = product_new(&scores, q->caps, SEQUENCE, 1, &h->scores),
               mixed = product_new(&mix, q->caps, SEQUENCE, 1, &h->mix);
    h->scores.operands = (struct product_operands){ (uint8_t *)h->keys, h->queries, h->stride, h->score };
    h->mix.operands = (struct product_operands){ (uint8_t *)h->values, h->shares, SEQUENCE, h->mixed };
    return scored && mixed && h->queries && h->keys && h->values && h->shares && h->score && h->mixed;
}

static void head_free(struct head *h)
{
    product_free(&h->scores);
    product_free(&h->mix);
    free(h->queries);
    free(h->keys);
    free(h->values);
    free(h->shares);
    free(h->score);
    free(h->mixed);
}

/* Scores of a query on the keys up to its own become shares, which are divided by the sum that this returns. */
static float share_out(const float *score, uint32_t n, float scale, uint16_t *shares)
{
    float most = -INFINITY, sum = 0;
    for (uint32_t j = 0; j < n; j++)
        most = score[j] > most ? score[j] : most;
    for (uint32_t j = 0; j < SEQUENCE; j++) {
        const float p = j < n ? expf((score[j] - most) * scale) : 0;
        shares[j] = f32_to_bf16(p);
        sum += p;
    }
    return sum;
}

static void attend_head(const struct attention *a, struct head *h, uint32_t sequence, uint32_t head)
{
    const struct model_config *c = a->q->config;
    const uint32_t dim = c->head_dim, q_width = c->n_heads * dim, kv_width = c->n_kv_heads * dim;
    const uint32_t kv = head / (c->n_heads / c->n_kv_heads) * dim;
    const size_t first = (size_t)sequence * SEQUENCE;
    float sums[SEQUENCE];
    for (uint32_t i = 0; i < SEQUENCE; i++)
        for (uint32_t e = 0; e < dim; e++) {
            h->queries[(size_t)i * h->stride + e] = f32_to_bf16(a->queries[(first + i) * q_width + head * dim + e]);
            h->keys[(size_t)i * dim + e] = f32_to_bf16(a->keys[(first + i) * kv_width + kv + e]);
            h->values[(size_t)e * SEQUENCE + i] = f32_to_bf16(a->values[(first + i) * kv_width + kv + e]);
        }
    product_run(&h->scores, 0, 1);
    for (uint32_t i = 0; i < SEQUENCE; i++)
        sums[i] = share_out(h->score + i * SEQUENCE, i + 1, 1 / sqrtf((float)dim), h->shares + i * SEQUENCE);
    product_run(&h->mix, 0, 1);
    for (uint32_t i = 0; i < SEQUENCE; i++)
        for (uint32_t e = 0; e < dim; e++)
            a->out->data[(first + i) * a->out->stride + head * dim + e] =
                f32_to_bf16(h->mixed[(size_t)i * dim + e] / sums[i]);
}

static void attend(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct attention *a = ctx;
    const uint32_t n_heads = a->q->config->n_heads;
    struct head h = { 0 };
    uint32_t begin, end;
    team_share(a->q->n_tokens / SEQUENCE * n_heads, member, n_members, &begin, &end);
    a->failed[member] = !head_new(a->q, &h);
    for (uint32_t i = begin; i < end && !a->failed[member]; i++)
        attend_head(a, &h, i / n_heads, i % n_heads);
    head_free(&h);
}

static enum status attend_all(const struct quantize *q, float *y[3], struct activations *out, struct error *err)
{
    struct attention a = { q, y[0], y[1], y[2], out, calloc(q->n_threads, sizeof *a.failed) };
    enum status st = a.failed ? ST_OK : no_memory(err);
    if (!st)
        team_run(q->team, attend, &a);
    for (uint32_t i = 0; i < q->n_threads && !st; i++)
        st = a.failed[i] ? no_memory(err) : ST_OK;
    free(a.failed);
    return st;
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
    if (!st)
        st = attend_all(q, y, &mixed, err);
    if (!st)
        st = take_matrices(q, layer, &mixed, OUT, 1, added, err);
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
