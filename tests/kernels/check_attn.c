/* The attention op: blocks, partials and merges of every variant. check.h says how to call it. */

#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/clock.h"
#include "kernels/kernels.h"

enum { N_BLOCKS_MAX = 6 };

static const struct attn_impl *reference(void)
{
    return &attn_impls[n_attn_impls - 1];
}

/* Keys, values and queries of one KV head, as they are before any rounding. */
struct scene {
    struct attn_shape shape;
    uint32_t n, n_blocks;
    float *q;                 /* [n][head_dim] */
    float *k, *v;             /* [n_blocks * KV_BLOCK][head_dim] */
    uint8_t *k_part, *v_part; /* [n_blocks] parts, stored by the reference */
    uint8_t visible[N_BLOCKS_MAX][ATTN_ROWS];
};

static float rounded(const struct scene *s, float x)
{
    return s->shape.codec == KV_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

static uint32_t draw_head_dim(struct check *ck)
{
    switch (check_below(ck, 6)) {
    case 0:
        return 64;
    case 1:
        return 128;
    case 2:
        return 2 * check_between(ck, 1, 128);
    case 3:
        return 16 * check_between(ck, 1, 16);
    default:
        return 32 * check_between(ck, 1, 8);
    }
}

/* What a row sees is a prefix of the sequence, at times one that ends before the block. */
static uint8_t draw_visible(struct check *ck, uint32_t block, uint32_t n_blocks)
{
    if (check_below(ck, 4) == 0)
        return (uint8_t)check_below(ck, KV_BLOCK + 1);
    return block + 1 < n_blocks || check_below(ck, 2) ? KV_BLOCK : 0;
}

static struct scene draw_scene(struct check *ck)
{
    struct scene s = { .shape = { draw_head_dim(ck), check_below(ck, 4) ? KV_BF16 : KV_F32, 0 } };
    const uint32_t d = s.shape.head_dim;
    const float spread = check_below(ck, 3) == 0 ? 6.0f : 1.0f; /* the first gives softmaxes of one position */
    s.shape.scale = 1.0f / sqrtf((float)d);
    s.n = check_below(ck, 3) ? check_between(ck, 1, ATTN_ROWS) : ATTN_ROWS;
    s.n_blocks = check_between(ck, 1, N_BLOCKS_MAX);
    s.q = check_buffer(ck, (size_t)s.n * d * sizeof(float));
    s.k = check_buffer(ck, (size_t)s.n_blocks * KV_BLOCK * d * sizeof(float));
    s.v = check_buffer(ck, (size_t)s.n_blocks * KV_BLOCK * d * sizeof(float));
    for (uint32_t i = 0; i < s.n * d; i++)
        s.q[i] = check_normal(ck) * spread;
    for (uint32_t i = 0; i < s.n_blocks * KV_BLOCK * d; i++) {
        s.k[i] = check_normal(ck);
        s.v[i] = check_normal(ck);
    }
    for (uint32_t b = 0; b < s.n_blocks; b++)
        for (uint32_t i = 0; i < ATTN_ROWS; i++)
            s.visible[b][i] = draw_visible(ck, b, s.n_blocks);
    const size_t part = reference()->part_bytes(&s.shape);
    s.k_part = check_buffer(ck, part * s.n_blocks);
    s.v_part = check_buffer(ck, part * s.n_blocks);
    memset(s.k_part, 0, part * s.n_blocks);
    memset(s.v_part, 0, part * s.n_blocks);
    for (uint32_t i = 0; i < s.n_blocks * KV_BLOCK; i++)
        reference()->store(&s.shape, i % KV_BLOCK, s.k + (size_t)i * d, s.v + (size_t)i * d,
                           s.k_part + i / KV_BLOCK * part, s.v_part + i / KV_BLOCK * part);
    check_context(ck, "head_dim %u, codec %d, n %u, %u blocks", d, (int)s.shape.codec, s.n, s.n_blocks);
    return s;
}

static void *pack(struct check *ck, const struct attn_impl *it, const struct scene *s, const uint32_t *rows, uint32_t n)
{
    const float *q[ATTN_ROWS];
    void *tile = check_buffer(ck, it->q_tile_bytes(&s->shape));
    for (uint32_t i = 0; i < n; i++)
        q[i] = s->q + (size_t)rows[i] * s->shape.head_dim;
    it->pack_q(&s->shape, q, n, tile);
    return tile;
}

static float *partial_new(struct check *ck, const struct scene *s)
{
    return check_buffer(ck, attn_partial_floats(s->shape.head_dim) * sizeof(float));
}

/* The partial of the given rows over block b, or over blocks 0 .. merged one after the other if b is n_blocks. */
static float *run(struct check *ck, const struct attn_impl *it, const struct scene *s, const uint32_t *rows, uint32_t n,
                  uint32_t b)
{
    const size_t part = it->part_bytes(&s->shape);
    const void *tile = pack(ck, it, s, rows, n);
    float *out = partial_new(ck, s), *next = partial_new(ck, s);
    uint8_t visible[ATTN_ROWS];
    for (uint32_t at = b < s->n_blocks ? b : 0; at < (b < s->n_blocks ? b + 1 : s->n_blocks); at++) {
        for (uint32_t i = 0; i < n; i++)
            visible[i] = s->visible[at][rows[i]];
        const bool first = b < s->n_blocks || at == 0;
        it->block(&s->shape, tile, n, visible, s->k_part + at * part, s->v_part + at * part,
                  at + 1 < s->n_blocks ? s->k_part + (at + 1) * part : NULL, first ? out : next);
        if (!first)
            it->merge(&s->shape, n, out, next);
    }
    return out;
}

/* Row i of a partial: m, l, o into one array of 2 + head_dim. */
static void row_of(const struct scene *s, const float *partial, uint32_t i, float *out)
{
    const uint32_t d = s->shape.head_dim;
    out[0] = partial[i];
    out[1] = partial[ATTN_ROWS + i];
    memcpy(out + 2, partial + 2 * ATTN_ROWS + (size_t)i * d, d * sizeof(float));
}

static void check_untouched(struct check *ck, const struct scene *s, const float *partial, uint32_t n)
{
    const uint32_t d = s->shape.head_dim;
    uint8_t fill[ATTN_ROWS * 256 * sizeof(float)];
    memset(fill, 0xA5, sizeof fill);
    check_same(ck, "m of rows past n", partial + n, fill, (ATTN_ROWS - n) * sizeof(float));
    check_same(ck, "l of rows past n", partial + ATTN_ROWS + n, fill, (ATTN_ROWS - n) * sizeof(float));
    check_same(ck, "o of rows past n", partial + 2 * ATTN_ROWS + (size_t)n * d, fill,
               (ATTN_ROWS - n) * (size_t)d * sizeof(float));
}

/* Compares row i of two partials as what they stand for: o and l at equal m. */
static void check_row(struct check *ck, const struct scene *s, const float *got, const float *want, uint32_t i,
                      double rtol)
{
    const uint32_t d = s->shape.head_dim;
    float a[2 + 256], b[2 + 256];
    row_of(s, got, i, a);
    row_of(s, want, i, b);
    if (b[1] == 0) {
        check_same(ck, "empty partial", a, b, (2 + (size_t)d) * sizeof(float));
        return;
    }
    if (!(fabsf(a[0] - b[0]) <= 1e-5f * (1 + fabsf(b[0]))))
        check_fail(ck, "row %u: m is %.9g, should be %.9g", i, (double)a[0], (double)b[0]);
    for (uint32_t j = 1; j < 2 + d; j++)
        a[j] = (float)((double)a[j] * exp((double)a[0] - (double)b[0]));
    check_close(ck, "l", a + 1, b + 1, 1, 2e-5);
    check_close(ck, "o", a + 2, b + 2, d, rtol);
}

/* o / l of row i in float64, over all visible positions. p is not rounded here: that is what tol is for. */
static void check_brute(struct check *ck, const struct scene *s, const float *partial, uint32_t i, double tol)
{
    const uint32_t d = s->shape.head_dim;
    double s_all[N_BLOCKS_MAX * KV_BLOCK], m = -INFINITY, l = 0, o[256] = { 0 };
    for (uint32_t p = 0; p < s->n_blocks * KV_BLOCK; p++) {
        s_all[p] = 0;
        for (uint32_t j = 0; j < d; j++)
            s_all[p] += (double)rounded(s, s->q[(size_t)i * d + j]) * (double)rounded(s, s->k[(size_t)p * d + j]);
        s_all[p] *= (double)s->shape.scale;
        if (p % KV_BLOCK < s->visible[p / KV_BLOCK][i])
            m = fmax(m, s_all[p]);
    }
    for (uint32_t p = 0; p < s->n_blocks * KV_BLOCK; p++) {
        if (p % KV_BLOCK >= s->visible[p / KV_BLOCK][i])
            continue;
        const double w = exp(s_all[p] - m);
        l += w;
        for (uint32_t j = 0; j < d; j++)
            o[j] += w * (double)rounded(s, s->v[(size_t)p * d + j]);
    }
    float got[2 + 256], want[256];
    row_of(s, partial, i, got);
    if (l == 0) {
        if (got[0] != -INFINITY || got[1] != 0)
            check_fail(ck, "row %u sees nothing: m %g, l %g", i, (double)got[0], (double)got[1]);
        return;
    }
    for (uint32_t j = 0; j < d; j++) {
        want[j] = (float)(o[j] / l);
        got[2 + j] /= got[1];
    }
    check_close(ck, "o / l against float64", got + 2, want, d, tol);
    if (!(fabs((double)got[0] - m) <= 1e-5 * (1 + fabs(m))))
        check_fail(ck, "row %u: m is %.9g, should be %.9g", i, (double)got[0], m);
}

/* A block and a chain of merges: against `_c`, against float64, alone and in company. */
static void check_block(struct check *ck)
{
    const struct scene s = draw_scene(ck);
    uint32_t rows[ATTN_ROWS], shuffled[ATTN_ROWS];
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        rows[i] = i;
    const uint32_t b = check_below(ck, s.n_blocks), one = check_below(ck, s.n), n_few = check_between(ck, 1, s.n);
    for (uint32_t i = 0; i < s.n; i++)
        shuffled[i] = (i * 5 + one) % s.n; /* with repetitions where 5 divides n */
    const float *want = NULL, *want_all = NULL, *of_avx512 = NULL;
    for (uint32_t v = n_attn_impls; v-- > 0;) {
        const struct attn_impl *it = &attn_impls[v];
        if (!it->accepts(&s.shape) || (it != reference() && !check_begin(ck, "block", it->name, it->needs)))
            continue;
        check_context(ck, "head_dim %u, codec %d, n %u, %u blocks", s.shape.head_dim, (int)s.shape.codec, s.n,
                      s.n_blocks);
        const float *got = run(ck, it, &s, rows, s.n, b), *all = run(ck, it, &s, rows, s.n, s.n_blocks);
        if (it == reference()) {
            want = got;
            want_all = all;
        }
        check_untouched(ck, &s, got, s.n);
        for (uint32_t i = 0; i < s.n; i++) {
            check_row(ck, &s, got, want, i, it->rtol);
            check_row(ck, &s, all, want_all, i, it->rtol);
            check_brute(ck, &s, all, i, s.shape.codec == KV_BF16 ? 4e-3 : 1e-5);
        }
        /* AMX leaves few vectors to AVX-512, so the two must agree in every bit. */
        if (!strcmp(it->name, "avx512"))
            of_avx512 = all;
        if (!strcmp(it->name, "amx") && of_avx512)
            check_same(ck, "partials of amx and avx512", all, of_avx512,
                       attn_partial_floats(s.shape.head_dim) * sizeof(float));
        const float *mixed = run(ck, it, &s, shuffled, s.n, s.n_blocks),
                    *few = run(ck, it, &s, shuffled, n_few, s.n_blocks);
        const float *alone = run(ck, it, &s, &one, 1, s.n_blocks);
        float a[2 + 256], w[2 + 256];
        const size_t bytes = (2 + (size_t)s.shape.head_dim) * sizeof(float);
        for (uint32_t i = 0; i < s.n; i++) {
            row_of(&s, all, shuffled[i], w);
            row_of(&s, mixed, i, a);
            check_same(ck, "a vector elsewhere in the tile", a, w, bytes);
            if (i >= n_few)
                continue;
            row_of(&s, few, i, a);
            check_same(ck, "a vector among few", a, w, bytes);
        }
        row_of(&s, all, one, w);
        row_of(&s, alone, 0, a);
        check_same(ck, "a vector alone", a, w, bytes);
    }
}

/* What lies past the visible positions is finite, and must not matter: neither stale rows nor the company of rows that see them. */
static void check_masked(struct check *ck)
{
    struct scene s = draw_scene(ck);
    const size_t part = reference()->part_bytes(&s.shape);
    uint32_t rows[ATTN_ROWS];
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        rows[i] = i;
    const uint32_t seen = check_below(ck, KV_BLOCK + 1);
    s.n_blocks = 1;
    for (uint32_t i = 0; i < s.n; i++)
        s.visible[0][i] = (uint8_t)check_below(ck, seen + 1);
    const float *before[8];
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t v = 0; v < n_attn_impls; v++) {
            const struct attn_impl *it = &attn_impls[v];
            if (!it->accepts(&s.shape) || !check_begin(ck, "masked", it->name, it->needs))
                continue;
            check_context(ck, "head_dim %u, codec %d, n %u, seen %u", s.shape.head_dim, (int)s.shape.codec, s.n, seen);
            const float *got = run(ck, it, &s, rows, s.n, 0);
            if (!pass)
                before[v] = got;
            else
                check_same(ck, "partial over other invisible rows", got, before[v],
                           attn_partial_floats(s.shape.head_dim) * sizeof(float));
        }
        for (uint32_t p = seen; p < KV_BLOCK; p++) {
            float k[256], w[256];
            for (uint32_t j = 0; j < s.shape.head_dim; j++) {
                k[j] = check_normal(ck) * 100;
                w[j] = check_normal(ck) * 1e30f;
            }
            reference()->store(&s.shape, p, k, w, s.k_part, s.v_part);
        }
    }
    (void)part;
}

/* A NaN or an infinity among what is seen shows in l, so that it cannot pass silently. */
static void check_poison(struct check *ck)
{
    struct scene s = draw_scene(ck);
    uint32_t rows[ATTN_ROWS];
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        rows[i] = i;
    static const float poisons[] = { NAN, INFINITY };
    const uint32_t p = check_below(ck, KV_BLOCK), c = check_below(ck, s.shape.head_dim);
    s.k[(size_t)p * s.shape.head_dim + c] = poisons[check_below(ck, 2)];
    reference()->store(&s.shape, p, s.k + (size_t)p * s.shape.head_dim, s.v + (size_t)p * s.shape.head_dim, s.k_part,
                       s.v_part);
    for (uint32_t i = 0; i < s.n; i++) {
        s.visible[0][i] = KV_BLOCK;
        s.q[(size_t)i * s.shape.head_dim + c] = 1;
    }
    for (uint32_t v = 0; v < n_attn_impls; v++) {
        const struct attn_impl *it = &attn_impls[v];
        if (!it->accepts(&s.shape) || !check_begin(ck, "poison", it->name, it->needs))
            continue;
        const float *got = run(ck, it, &s, rows, s.n, 0);
        for (uint32_t i = 0; i < s.n; i++)
            if (isfinite(got[ATTN_ROWS + i]))
                check_fail(ck, "row %u: l is %g", i, (double)got[ATTN_ROWS + i]);
    }
}

/* Partials at random: at times empty, huge, far apart, with zeros of both signs. */
static void draw_partial(struct check *ck, const struct scene *s, float *p)
{
    const uint32_t d = s->shape.head_dim;
    for (uint32_t i = 0; i < ATTN_ROWS; i++) {
        const bool empty = check_below(ck, 4) == 0;
        const float size = check_below(ck, 8) == 0 ? 1e30f : 1.0f;
        p[i] = empty ? -INFINITY : check_normal(ck) * (check_below(ck, 3) ? 3.0f : 60.0f);
        p[ATTN_ROWS + i] = empty ? 0 : 1.0f + fabsf(check_normal(ck)) * size;
        for (uint32_t j = 0; j < d; j++)
            p[2 * ATTN_ROWS + (size_t)i * d + j] = empty ? 0 : check_below(ck, 16) ? check_normal(ck) * size : -0.0f;
    }
}

static void check_merge(struct check *ck)
{
    struct scene s = { .shape = { draw_head_dim(ck), KV_BF16, 1 }, .n = check_between(ck, 1, ATTN_ROWS) };
    const size_t bytes = attn_partial_floats(s.shape.head_dim) * sizeof(float);
    float *a = partial_new(ck, &s), *b = partial_new(ck, &s), *want = partial_new(ck, &s);
    draw_partial(ck, &s, a);
    draw_partial(ck, &s, b);
    memcpy(want, a, bytes);
    reference()->merge(&s.shape, s.n, want, b);
    for (uint32_t v = 0; v < n_attn_impls; v++) {
        const struct attn_impl *it = &attn_impls[v];
        if (!it->accepts(&s.shape) || !check_begin(ck, "merge", it->name, it->needs))
            continue;
        check_context(ck, "head_dim %u, n %u", s.shape.head_dim, s.n);
        float *got = partial_new(ck, &s), *alone = partial_new(ck, &s), *pair = partial_new(ck, &s);
        memcpy(got, a, bytes);
        it->merge(&s.shape, s.n, got, b);
        float x[2 + 256], y[2 + 256];
        for (uint32_t i = 0; i < ATTN_ROWS; i++) {
            const bool a_empty = a[ATTN_ROWS + i] == 0, b_empty = b[ATTN_ROWS + i] == 0;
            const size_t row_bytes = (2 + (size_t)s.shape.head_dim) * sizeof(float);
            row_of(&s, got, i, x);
            if (i >= s.n || b_empty || a_empty) {
                row_of(&s, i >= s.n || b_empty ? a : b, i, y);
                check_same(ck, "row beside an empty one", x, y, row_bytes);
                if (i >= s.n)
                    continue;
            } else {
                check_row(ck, &s, got, want, i, 1e-6);
            }
            /* alone, in place 0 */
            row_of(&s, a, i, y);
            alone[0] = y[0];
            alone[ATTN_ROWS] = y[1];
            memcpy(alone + 2 * ATTN_ROWS, y + 2, row_bytes - 8);
            row_of(&s, b, i, y);
            pair[0] = y[0];
            pair[ATTN_ROWS] = y[1];
            memcpy(pair + 2 * ATTN_ROWS, y + 2, row_bytes - 8);
            it->merge(&s.shape, 1, alone, pair);
            row_of(&s, alone, 0, y);
            check_same(ck, "a row merged alone", y, x, row_bytes);
        }
    }
}

/* What each variant stores is the codec's layout as kernels.h gives it, and nothing but its position. */
static void check_store(struct check *ck)
{
    const struct attn_shape shape = { draw_head_dim(ck), check_below(ck, 2) ? KV_BF16 : KV_F32, 1, NULL };
    const uint32_t d = shape.head_dim, at = check_below(ck, KV_BLOCK);
    float k[256], v[256];
    for (uint32_t i = 0; i < d; i++) {
        k[i] = check_normal(ck);
        v[i] = check_normal(ck);
    }
    for (uint32_t n = 0; n < n_attn_impls; n++) {
        const struct attn_impl *it = &attn_impls[n];
        if (!it->accepts(&shape) || !check_begin(ck, "store", it->name, it->needs))
            continue;
        check_context(ck, "head_dim %u, codec %d, position %u", d, (int)shape.codec, at);
        const size_t bytes = it->part_bytes(&shape);
        uint8_t *got_k = check_buffer(ck, bytes), *got_v = check_buffer(ck, bytes);
        uint8_t *want_k = check_buffer(ck, bytes), *want_v = check_buffer(ck, bytes);
        for (uint32_t i = 0; i < d; i++)
            if (shape.codec == KV_F32) {
                ((float *)want_k)[i * KV_BLOCK + at] = k[i];
                ((float *)want_v)[at * d + i] = v[i];
            } else {
                ((uint16_t *)want_k)[i / 2 * KV_BLOCK * 2 + at * 2 + i % 2] = f32_to_bf16(k[i]);
                ((uint16_t *)want_v)[at / 2 * d * 2 + i * 2 + at % 2] = f32_to_bf16(v[i]);
            }
        it->store(&shape, at, k, v, got_k, got_v);
        check_same(ck, "keys", got_k, want_k, bytes);
        check_same(ck, "values", got_v, want_v, bytes);
    }
}

/* Blocks one after the other in memory, and what attends over them. */
struct bench {
    const struct attn_impl *it;
    struct attn_shape shape;
    uint32_t n;
    const void *q_tile;
    uint8_t *blocks;
    size_t part, n_blocks;
    uint8_t visible[ATTN_ROWS];
    float *partial, *total;
};

static struct bench bench_new(struct check *ck, const struct attn_impl *it, uint32_t head_dim, uint32_t n, size_t bytes)
{
    struct bench b = { .it = it, .shape = { head_dim, KV_BF16, 1.0f / sqrtf((float)head_dim) }, .n = n };
    struct scene s = { .shape = b.shape, .n = n };
    uint32_t rows[ATTN_ROWS];
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        rows[i] = i;
    b.part = it->part_bytes(&b.shape);
    b.n_blocks = bytes / (2 * b.part);
    b.blocks = check_buffer(ck, bytes);
    for (size_t i = 0; i < bytes / 2; i++)
        ((uint16_t *)b.blocks)[i] = (uint16_t)(0x3D00 + (i * 7919 & 0x80FF));
    memset(b.visible, KV_BLOCK, sizeof b.visible);
    s.q = check_buffer(ck, (size_t)n * head_dim * sizeof(float));
    for (uint32_t i = 0; i < n * head_dim; i++)
        s.q[i] = check_normal(ck);
    b.q_tile = pack(ck, it, &s, rows, n);
    b.partial = partial_new(ck, &s);
    b.total = partial_new(ck, &s);
    it->block(&b.shape, b.q_tile, n, b.visible, b.blocks, b.blocks + b.part, NULL, b.total);
    return b;
}

static void bench_attend(const struct bench *b, size_t first, size_t n, bool merge, bool hint)
{
    for (size_t i = first; i < first + n; i++) {
        const uint8_t *at = b->blocks + 2 * i * b->part;
        b->it->block(&b->shape, b->q_tile, b->n, b->visible, at, at + b->part,
                     hint && i + 1 < b->n_blocks ? at + 2 * b->part : NULL, b->partial);
        if (merge)
            b->it->merge(&b->shape, b->n, b->total, b->partial);
    }
}

#if defined(__x86_64__)
/* What one thread reads at best: with the widest loads. */
static __attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t *at, size_t bytes)
{
    __m512i x = _mm512_setzero_si512();
    for (size_t i = 0; i < bytes; i += 64)
        x = _mm512_xor_si512(x, _mm512_load_si512(at + i));
    return (uint64_t)_mm512_reduce_add_epi64(x);
}
#endif

static uint64_t bench_read(const struct check *ck, const struct bench *b, size_t first, size_t n)
{
    const uint8_t *at = b->blocks + 2 * first * b->part;
    const uint64_t *words = (const uint64_t *)(const void *)at;
    uint64_t x[8] = { 0 };
#if defined(__x86_64__)
    if (ck->caps & CPU_AVX512)
        return read_avx512(at, n * 2 * b->part);
#endif
    for (size_t i = 0; i < n * 2 * b->part / 8; i += 8)
        for (int j = 0; j < 8; j++)
            x[j] ^= words[i + j];
    return x[0] ^ x[1] ^ x[2] ^ x[3] ^ x[4] ^ x[5] ^ x[6] ^ x[7];
}

static void bench_cached(struct check *ck, const struct attn_impl *it, uint32_t head_dim, uint32_t n)
{
    const struct bench b = bench_new(ck, it, head_dim, n, 1 << 18);
    double one, all, merged;
    CHECK_TIME(one, for (int i = 0; i < 16; i++) bench_attend(&b, 0, 1, false, false));
    CHECK_TIME(all, bench_attend(&b, 0, b.n_blocks, false, false));
    CHECK_TIME(merged, bench_attend(&b, 0, b.n_blocks, true, false));
    printf("attn %-6s head_dim %3u n %2u: %6.0f ns a block, the same again and again; %6.0f over 256 KB; %6.0f with "
           "its merge\n",
           it->name, head_dim, n, one / 16 * 1e9, all / (double)b.n_blocks * 1e9, merged / (double)b.n_blocks * 1e9);
    check_buffers_free(ck);
}

/* Slices are attended over and read plainly in turn, so that both meet the same machine. */
static void bench_memory(struct check *ck, const struct attn_impl *it, uint32_t head_dim, uint32_t n)
{
    enum { SLICES = 64, PASSES = 4 };
    const struct bench b = bench_new(ck, it, head_dim, n, 256u << 20);
    const size_t per = b.n_blocks / SLICES;
    const double bytes = (double)(per * 2 * b.part);
    double seconds[2][SLICES * PASSES / 2];
    volatile uint64_t sink = 0;
    for (int i = 0; i < SLICES * PASSES; i++) {
        const int what = (i + i / SLICES) % 2;
        const size_t first = (size_t)(i % SLICES) * per;
        const int64_t t0 = clock_ns();
        if (what)
            sink ^= bench_read(ck, &b, first, per);
        else
            bench_attend(&b, first, per, true, true);
        seconds[what][i / 2] = (double)(clock_ns() - t0) / 1e9;
    }
    (void)sink;
    const double attend = check_median(seconds[0], SLICES * PASSES / 2),
                 read = check_median(seconds[1], SLICES * PASSES / 2);
    printf("attn %-6s head_dim %3u n %2u over 256 MB, with merges: %5.1f GB/s (best tenth %5.1f); plain reads %5.1f "
           "(%5.1f): %.2f "
           "of it (%.2f)\n",
           it->name, head_dim, n, bytes / attend / 1e9, bytes / seconds[0][SLICES * PASSES / 20] / 1e9,
           bytes / read / 1e9, bytes / seconds[1][SLICES * PASSES / 20] / 1e9, read / attend,
           seconds[1][SLICES * PASSES / 20] / seconds[0][SLICES * PASSES / 20]);
    check_buffers_free(ck);
}

/* n blocks as the fixed tree joins them: left folds inside leaves of 4 blocks, leaves by adjacent pairs on a stack. */
static void bench_tree(const struct bench *b, float *const *stack, size_t first, size_t n)
{
    enum { LEAF_BLOCKS = 4 };
    uint32_t depth = 0;
    for (size_t at = 0; at < n; at += LEAF_BLOCKS) {
        struct bench one = *b;
        one.total = stack[depth];
        b->it->block(&b->shape, b->q_tile, b->n, b->visible, b->blocks + 2 * (first + at) * b->part,
                     b->blocks + (2 * (first + at) + 1) * b->part, b->blocks + 2 * (first + at + 1) * b->part,
                     one.total);
        bench_attend(&one, first + at + 1, LEAF_BLOCKS - 1, true, true);
        depth++;
        for (size_t i = at / LEAF_BLOCKS; i & 1; i >>= 1, depth--)
            b->it->merge(&b->shape, b->n, stack[depth - 2], stack[depth - 1]);
    }
    while (depth-- > 1)
        b->it->merge(&b->shape, b->n, stack[depth - 1], stack[depth]);
}

/* What the fixed order costs: the same blocks joined by the tree and as they come, in turn. */
static void bench_order(struct check *ck, const struct attn_impl *it, uint32_t head_dim, uint32_t n)
{
    enum { SLICES = 64, PASSES = 4, DEPTH = 16 };
    const struct bench b = bench_new(ck, it, head_dim, n, 256u << 20);
    const struct scene s = { .shape = b.shape, .n = n };
    const size_t per = b.n_blocks / SLICES / 4 * 4;
    double seconds[2][SLICES * PASSES / 2];
    float *stack[DEPTH];
    for (int i = 0; i < DEPTH; i++)
        stack[i] = partial_new(ck, &s);
    for (int i = 0; i < SLICES * PASSES; i++) {
        const int what = (i + i / SLICES) % 2;
        const size_t first = (size_t)(i % SLICES) * per;
        const int64_t t0 = clock_ns();
        if (what)
            bench_tree(&b, stack, first, per);
        else
            bench_attend(&b, first, per, true, true);
        seconds[what][i / 2] = (double)(clock_ns() - t0) / 1e9;
    }
    const double tree = check_median(seconds[1], SLICES * PASSES / 2),
                 come = check_median(seconds[0], SLICES * PASSES / 2);
    printf("attn %-6s head_dim %3u n %2u over 256 MB: %6.0f ns a block joined by the fixed tree, %6.0f as they come: "
           "%.3f\n",
           it->name, head_dim, n, tree / (double)per * 1e9, come / (double)per * 1e9, tree / come);
    check_buffers_free(ck);
}

static void check_bench(struct check *ck)
{
    if (!ck->bench)
        return;
    for (uint32_t v = 0; v + 1 < n_attn_impls; v++)
        for (uint32_t d = 64; d <= 128; d *= 2)
            if (check_begin(ck, "bench", attn_impls[v].name, attn_impls[v].needs)) {
                bench_cached(ck, &attn_impls[v], d, ATTN_ROWS);
                bench_cached(ck, &attn_impls[v], d, d == 64 ? 3 : 4);
                bench_memory(ck, &attn_impls[v], d, d == 64 ? 3 : 4);
                bench_memory(ck, &attn_impls[v], d, 8);
                bench_order(ck, &attn_impls[v], d, d == 64 ? 3 : 4);
            }
}

/* Under --bench only the last one speaks. */
CHECK_UNLESS_BENCH(block)
CHECK_UNLESS_BENCH(masked)
CHECK_UNLESS_BENCH(poison)
CHECK_UNLESS_BENCH(merge)
CHECK_UNLESS_BENCH(store)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = {
        { "block", run_block, 60 },  { "masked", run_masked, 60 }, { "poison", run_poison, 40 },
        { "merge", run_merge, 200 }, { "store", run_store, 100 },  { "bench", check_bench, 1 },
    };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
