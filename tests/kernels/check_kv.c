/* Coded blocks of KV: what sealing keeps, and attention over them by every variant, against `_c` and against float64. check.h says how to call it. */

#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/f16.h"
#include "kernels/kernels.h"

enum { D_MAX = 256 };

static const enum kv_codec codecs[] = { KV_INT8, KV_INT4_ROT };

/* One block of one KV head: as it was computed, open, and sealed by the reference. */
struct scene {
    struct attn_shape shape;
    const struct attn_impl *c; /* reference of the codec */
    uint32_t n;
    float *q, *k, *v; /* [n][D], [KV_BLOCK][D] */
    uint8_t *k_open, *v_open, *k_part, *v_part;
    uint8_t visible[ATTN_ROWS];
    bool sealed;
};

static struct attn_shape open_shape(const struct attn_shape *shape)
{
    return (struct attn_shape){ shape->head_dim, kv_codecs[shape->codec].open, shape->scale, NULL };
}

static void scene_seal(struct scene *s)
{
    const struct attn_shape open = open_shape(&s->shape);
    const struct attn_impl *it = attn_find(&open, 0);
    const uint32_t d = s->shape.head_dim;
    for (uint32_t t = 0; t < KV_BLOCK; t++)
        it->store(&open, t, s->k + (size_t)t * d, s->v + (size_t)t * d, s->k_open, s->v_open);
    s->sealed = s->c->seal(&s->shape, s->k_open, s->v_open, s->k_part, s->v_part);
}

static struct scene draw_scene(struct check *ck)
{
    static const uint32_t dims[] = { 16, 32, 64, 64, 80, 96, 128, 128, 192, 256 };
    struct scene s = { .n = check_below(ck, 3) ? check_between(ck, 1, ATTN_ROWS) : ATTN_ROWS };
    const uint32_t d = dims[check_below(ck, sizeof dims / sizeof *dims)];
    const float spread = check_below(ck, 3) == 0 ? 6.0f : 1.0f, offset = check_below(ck, 3) == 0 ? 5.0f : 0.0f;
    s.shape = (struct attn_shape){ d, codecs[check_below(ck, 2)], 1.0f / sqrtf((float)d), NULL };
    s.c = attn_find(&s.shape, 0);
    s.q = check_buffer(ck, (size_t)s.n * d * sizeof(float));
    s.k = check_buffer(ck, (size_t)KV_BLOCK * d * sizeof(float));
    s.v = check_buffer(ck, (size_t)KV_BLOCK * d * sizeof(float));
    for (uint32_t i = 0; i < s.n * d; i++)
        s.q[i] = check_normal(ck) * spread;
    for (uint32_t i = 0; i < KV_BLOCK * d; i++) {
        s.k[i] = check_normal(ck) + (i % d == 3 ? 4 * offset : 0); /* a channel that stands out */
        s.v[i] = check_normal(ck) + offset;
    }
    const struct attn_shape open = open_shape(&s.shape);
    const size_t open_bytes = attn_find(&open, 0)->part_bytes(&open), part = s.c->part_bytes(&s.shape);
    s.k_open = check_buffer(ck, open_bytes);
    s.v_open = check_buffer(ck, open_bytes);
    s.k_part = check_buffer(ck, part);
    s.v_part = check_buffer(ck, part);
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        s.visible[i] = (uint8_t)(check_below(ck, 4) ? KV_BLOCK : check_below(ck, KV_BLOCK + 1));
    scene_seal(&s);
    check_context(ck, "%s, head_dim %u, n %u", kv_codecs[s.shape.codec].name, d, s.n);
    return s;
}

/* The normalised Hadamard matrix by its definition: entry (i, j) is -1 to the number of bits that i and j share. */
static void rotate64(double *x, uint32_t d)
{
    const uint32_t order = d & (0u - d);
    double y[D_MAX];
    for (uint32_t i = 0; i < d; i++) {
        y[i] = 0;
        for (uint32_t j = 0; j < order; j++)
            y[i] += __builtin_popcount(i % order & j) % 2 ? -x[i / order * order + j] : x[i / order * order + j];
        y[i] /= sqrt(order);
    }
    memcpy(x, y, d * sizeof *x);
}

/* Channel i of position t as the layout in kernels/cpu/kv.h says, in the sealed basis. step_out: the distance of two codes. */
static double decoded(const struct scene *s, bool value, uint32_t t, uint32_t i, double *step_out)
{
    const uint32_t d = s->shape.head_dim, row = value ? t : i, column = value ? i : t, rows = value ? KV_BLOCK : d,
                   columns = value ? d : KV_BLOCK;
    const uint8_t *part = value ? s->v_part : s->k_part;
    const bool half = s->shape.codec == KV_INT4_ROT;
    const uint16_t *planes = (const uint16_t *)(const void *)(part + (size_t)KV_BLOCK * d / (half ? 2 : 1));
    const uint32_t low = half ? row % (rows / 2) : row;
    const uint8_t byte = part[((size_t)(low / 4) * columns + column) * 4 + low % 4];
    *step_out = (double)f16_to_f32(planes[t]);
    if (!half)
        return *step_out * (int8_t)byte;
    return *step_out * (row < rows / 2 ? byte & 15 : byte >> 4) + (double)f16_to_f32(planes[KV_BLOCK + t]);
}

/* All of a position's channels as they were before sealing, or as they are after it, in the plain or the sealed basis. */
static void position(const struct scene *s, bool value, uint32_t t, bool sealed, bool plain, double *out)
{
    const uint32_t d = s->shape.head_dim;
    const float *x = (value ? s->v : s->k) + (size_t)t * d;
    double step;
    for (uint32_t i = 0; i < d; i++)
        out[i] = sealed ? decoded(s, value, t, i, &step) : (double)bf16_to_f32(f32_to_bf16(x[i]));
    if (s->shape.codec == KV_INT4_ROT && sealed == plain)
        rotate64(out, d);
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

static float *run(struct check *ck, const struct attn_impl *it, const struct scene *s, const uint32_t *rows, uint32_t n)
{
    uint8_t visible[ATTN_ROWS];
    for (uint32_t i = 0; i < n; i++)
        visible[i] = s->visible[rows[i]];
    float *out = check_buffer(ck, attn_partial_floats(s->shape.head_dim) * sizeof(float));
    it->block(&s->shape, pack(ck, it, s, rows, n), n, visible, s->k_part, s->v_part, NULL, out);
    return out;
}

static void row_of(const struct scene *s, const float *partial, uint32_t i, float *out)
{
    const uint32_t d = s->shape.head_dim;
    out[0] = partial[i];
    out[1] = partial[ATTN_ROWS + i];
    memcpy(out + 2, partial + 2 * ATTN_ROWS + (size_t)i * d, d * sizeof(float));
}

/* Row i against attention in float64 over the decoded block, in the plain basis; partial is in the sealed one. */
static void check_brute(struct check *ck, const struct attn_impl *it, const struct scene *s, const float *partial,
                        uint32_t i)
{
    const uint32_t d = s->shape.head_dim;
    double score[KV_BLOCK], x[D_MAX], o[D_MAX] = { 0 }, m = -INFINITY, l = 0, most = 0;
    float got[2 + D_MAX], want[D_MAX], turned[ATTN_ROWS * (2 + D_MAX)] __attribute__((aligned(64)));
    for (uint32_t t = 0; t < s->visible[i]; t++) {
        position(s, false, t, true, true, x);
        score[t] = 0;
        for (uint32_t j = 0; j < d; j++)
            score[t] += x[j] * (double)bf16_to_f32(f32_to_bf16(s->q[(size_t)i * d + j]));
        double size = 0;
        for (uint32_t j = 0; j < d; j++)
            size += fabs(x[j] * (double)s->q[(size_t)i * d + j]);
        most = fmax(most, size * (double)s->shape.scale);
        score[t] *= (double)s->shape.scale;
        m = fmax(m, score[t]);
    }
    for (uint32_t t = 0; t < s->visible[i]; t++) {
        position(s, true, t, true, true, x);
        l += exp(score[t] - m);
        for (uint32_t j = 0; j < d; j++)
            o[j] += exp(score[t] - m) * x[j];
    }
    memcpy(turned, partial, attn_partial_floats(d) * sizeof(float));
    if (it->rotate)
        it->rotate(&s->shape, s->n, turned);
    row_of(s, turned, i, got);
    if (l == 0) {
        if (got[0] != -INFINITY || got[1] != 0)
            check_fail(ck, "row %u sees nothing: m %g, l %g", i, (double)got[0], (double)got[1]);
        return;
    }
    for (uint32_t j = 0; j < d; j++)
        want[j] = (float)o[j];
    if (!(fabs((double)got[0] - m) <= 1e-4 * (1 + most)))
        check_fail(ck, "row %u: m is %.9g, should be %.9g", i, (double)got[0], m);
    const float right = (float)exp((double)got[0] - m); /* what m is off by, l and o are off by, the other way */
    for (uint32_t j = 1; j < 2 + d; j++)
        got[j] *= right;
    const float want_l = (float)l;
    check_close(ck, "l against float64", got + 1, &want_l, 1, 3e-3);
    check_close(ck, "o against float64", got + 2, want, d, 3e-3);
}

static void check_rows(struct check *ck, const struct scene *s, const float *got, const float *want, double rtol)
{
    float a[2 + D_MAX], b[2 + D_MAX];
    for (uint32_t i = 0; i < s->n; i++) {
        row_of(s, got, i, a);
        row_of(s, want, i, b);
        if (b[1] == 0) {
            check_same(ck, "empty partial", a, b, (2 + (size_t)s->shape.head_dim) * sizeof(float));
            continue;
        }
        if (!(fabsf(a[0] - b[0]) <= 1e-5f * (1 + fabsf(b[0]))))
            check_fail(ck, "row %u: m is %.9g, should be %.9g", i, (double)a[0], (double)b[0]);
        check_close(ck, "l", a + 1, b + 1, 1, 2e-5);
        check_close(ck, "o", a + 2, b + 2, s->shape.head_dim, rtol);
    }
}

/* Each variant: against `_c`, against float64, alone and in company; AMX and AVX-512 bit for bit. */
static void check_block(struct check *ck)
{
    const struct scene s = draw_scene(ck);
    uint32_t rows[ATTN_ROWS], shuffled[ATTN_ROWS];
    const uint32_t one = check_below(ck, s.n), few = check_between(ck, 1, s.n);
    for (uint32_t i = 0; i < ATTN_ROWS; i++) {
        rows[i] = i;
        shuffled[i] = (i * 5 + one) % s.n;
    }
    const float *want = run(ck, s.c, &s, rows, s.n), *of_avx512 = NULL;
    for (uint32_t v = n_coded_impls; v-- > 0;) {
        const struct attn_impl *it = &coded_impls[v];
        if (!it->accepts(&s.shape) || (it != s.c && !check_begin(ck, "block", it->name, it->needs)))
            continue;
        check_context(ck, "%s, head_dim %u, n %u", kv_codecs[s.shape.codec].name, s.shape.head_dim, s.n);
        const float *got = run(ck, it, &s, rows, s.n), *mixed = run(ck, it, &s, shuffled, s.n),
                    *some = run(ck, it, &s, shuffled, few), *alone = run(ck, it, &s, &one, 1);
        const size_t bytes = (2 + (size_t)s.shape.head_dim) * sizeof(float);
        float a[2 + D_MAX], w[2 + D_MAX];
        check_rows(ck, &s, got, want, it->rtol);
        for (uint32_t i = 0; i < s.n; i++) {
            check_brute(ck, it, &s, got, i);
            row_of(&s, got, shuffled[i], w);
            row_of(&s, mixed, i, a);
            check_same(ck, "a vector elsewhere in the tile", a, w, bytes);
            row_of(&s, i < few ? some : mixed, i, a);
            check_same(ck, "a vector among few", a, w, bytes);
        }
        row_of(&s, got, one, w);
        row_of(&s, alone, 0, a);
        check_same(ck, "a vector alone", a, w, bytes);
        if (it->rotate) {
            float *turned = check_buffer(ck, attn_partial_floats(s.shape.head_dim) * sizeof(float)),
                  *same = check_buffer(ck, attn_partial_floats(s.shape.head_dim) * sizeof(float));
            memcpy(turned, want, attn_partial_floats(s.shape.head_dim) * sizeof(float));
            memcpy(same, want, attn_partial_floats(s.shape.head_dim) * sizeof(float));
            it->rotate(&s.shape, s.n, turned);
            s.c->rotate(&s.shape, s.n, same);
            check_same(ck, "turned", turned, same, attn_partial_floats(s.shape.head_dim) * sizeof(float));
        }
        if (!strcmp(it->name, "avx512"))
            of_avx512 = got;
        if (!strcmp(it->name, "amx") && of_avx512)
            check_same(ck, "partials of amx and avx512", got, of_avx512,
                       attn_partial_floats(s.shape.head_dim) * sizeof(float));
    }
}

/* Sealing loses at most half a step a channel in its own basis, and all of a constant's or zero's error is the scale's rounding. */
static void check_seal(struct check *ck)
{
    struct scene s = draw_scene(ck);
    const uint32_t d = s.shape.head_dim, kind = check_below(ck, 6);
    for (uint32_t t = 0; t < KV_BLOCK && kind < 4; t++)
        for (uint32_t i = 0; i < d; i++) {
            float *k = &s.k[(size_t)t * d + i], *v = &s.v[(size_t)t * d + i];
            *k = kind == 0 ? 0 : kind == 1 ? 3.25f : kind == 2 ? (i == 1 ? 1e4f : *k) : *k * 1e-3f;
            *v = kind == 0 ? -0.0f : kind == 1 ? -7 : kind == 2 ? (t == 5 ? 2e3f : *v) : *v * 1e-3f;
        }
    scene_seal(&s);
    check_context(ck, "%s, head_dim %u, kind %u", kv_codecs[s.shape.codec].name, d, kind);
    if (!s.sealed)
        check_fail(ck, "finite keys and values are refused");
    for (uint32_t t = 0; t < KV_BLOCK; t++)
        for (int value = 0; value < 2; value++) {
            double was[D_MAX], is[D_MAX], step = 0, largest = 0;
            position(&s, value, t, false, false, was);
            position(&s, value, t, true, false, is);
            for (uint32_t i = 0; i < d; i++)
                largest = fmax(largest, fabs(was[i]));
            decoded(&s, value, t, 0, &step);
            /* half a step; 15 or 127 steps of a scale rounded to 11 bits may end short of the last value; least is rounded too */
            const double bound = 0.5 * step + largest * 0x1p-10 + 0x1p-20;
            for (uint32_t i = 0; i < d; i++)
                if (!(fabs(was[i] - is[i]) <= bound))
                    check_fail(ck, "%s %u channel %u: %g became %g, step %g", value ? "value" : "key", t, i, was[i],
                               is[i], step);
        }
    static const float poisons[] = { NAN, INFINITY, -INFINITY };
    float *const to = check_below(ck, 2) ? s.k : s.v;
    to[check_below(ck, KV_BLOCK * d)] = poisons[check_below(ck, 3)];
    scene_seal(&s);
    if (s.sealed)
        check_fail(ck, "what is not finite is sealed");
}

/* What rotation is for: with a channel 30 times larger than the others, the squared error of logits drops by more than 3. */
static void check_outlier(struct check *ck)
{
    const uint32_t d = check_below(ck, 2) ? 64 : 128;
    struct scene s = { .shape = { d, KV_INT4_ROT, 1.0f / sqrtf((float)d), NULL }, .n = 1 };
    const size_t part = (size_t)KV_BLOCK * d * 2;
    double with = 0, without = 0;
    s.c = attn_find(&s.shape, 0);
    s.k = check_buffer(ck, part * 2);
    s.v = check_buffer(ck, part * 2);
    s.k_open = check_buffer(ck, part);
    s.v_open = check_buffer(ck, part);
    s.k_part = check_buffer(ck, s.c->part_bytes(&s.shape));
    s.v_part = check_buffer(ck, s.c->part_bytes(&s.shape));
    for (uint32_t i = 0; i < KV_BLOCK * d; i++) {
        s.k[i] = i % d == 7 ? (check_below(ck, 2) ? 30.0f : -30.0f) : check_normal(ck);
        s.v[i] = 1;
    }
    scene_seal(&s);
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        double was[D_MAX], is[D_MAX], low = INFINITY, high = -INFINITY;
        position(&s, false, t, false, true, was);
        position(&s, false, t, true, true, is);
        for (uint32_t i = 0; i < d; i++) {
            low = fmin(low, was[i]);
            high = fmax(high, was[i]);
        }
        double error = 0, plain = 0;
        for (uint32_t i = 0; i < d; i++) { /* a query with nothing in the channel that stands out */
            const double q = i == 7 ? 0 : (double)check_normal(ck), step = (high - low) / 15;
            error += q * (is[i] - was[i]);
            plain += q * (low + step * floor((was[i] - low) / step + 0.5) - was[i]);
        }
        with += error * error;
        without += plain * plain;
    }
    check_context(ck, "head_dim %u", d);
    if (!(without > 3 * with))
        check_fail(ck, "squared errors of logits: %g rotated, %g plain", with, without);
}

/* ---- figures ---- */

struct bench {
    const struct attn_impl *it;
    struct attn_shape shape;
    uint32_t n;
    const void *q_tile;
    uint8_t *blocks;
    size_t part, n_blocks;
    float *partial, *total;
};

static struct bench bench_new(struct check *ck, const struct attn_impl *it, enum kv_codec codec, uint32_t d, uint32_t n,
                              size_t n_blocks)
{
    struct bench b = { .it = it, .shape = { d, codec, 1.0f / sqrtf((float)d), NULL }, .n = n, .n_blocks = n_blocks };
    const struct scene s = { .shape = b.shape, .q = check_buffer(ck, (size_t)n * d * sizeof(float)) };
    uint32_t rows[ATTN_ROWS];
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        rows[i] = i;
    for (uint32_t i = 0; i < n * d; i++)
        s.q[i] = check_normal(ck);
    b.q_tile = pack(ck, it, &s, rows, n);
    b.part = it->part_bytes(&b.shape);
    b.blocks = check_buffer(ck, 2 * b.part * n_blocks);
    for (size_t i = 0; i < b.part * n_blocks; i++) /* small numbers in every form */
        ((uint16_t *)(void *)b.blocks)[i] = (uint16_t)(0x2D00 + (i * 7919 & 0x0CFF));
    b.partial = check_buffer(ck, attn_partial_floats(d) * sizeof(float));
    b.total = check_buffer(ck, attn_partial_floats(d) * sizeof(float));
    return b;
}

static void bench_pass(const struct bench *b, size_t first, size_t n)
{
    uint8_t visible[ATTN_ROWS];
    memset(visible, KV_BLOCK, sizeof visible);
    for (size_t i = first; i < first + n; i++) {
        const uint8_t *at = b->blocks + 2 * i * b->part;
        b->it->block(&b->shape, b->q_tile, b->n, visible, at, at + b->part,
                     i + 1 < b->n_blocks ? at + 2 * b->part : NULL, i > first ? b->partial : b->total);
        if (i > first)
            b->it->merge(&b->shape, b->n, b->total, b->partial);
    }
}

/* Slices in turn with bf16's, so that both meet the same machine. */
static void bench_codec(struct check *ck, const struct attn_impl *it, enum kv_codec codec, uint32_t d, uint32_t n)
{
    enum { SLICES = 32, PASSES = 3 };
    const struct attn_shape plain = { d, KV_BF16, 1.0f / sqrtf((float)d), NULL };
    const struct attn_impl *open = attn_find(&plain, ck->caps);
    const size_t n_blocks = ((size_t)256 << 20) / (2 * open->part_bytes(&plain)), per = n_blocks / SLICES;
    const struct bench b[2] = { bench_new(ck, open, KV_BF16, d, n, n_blocks),
                                bench_new(ck, it, codec, d, n, n_blocks) };
    double seconds[2][SLICES * PASSES], cached[2];
    for (int i = 0; i < 2; i++)
        CHECK_TIME(cached[i], bench_pass(&b[i], 0, 4));
    for (int i = 0; i < SLICES * PASSES; i++)
        for (int j = 0; j < 2; j++) {
            const int64_t t0 = clock_ns();
            bench_pass(&b[j], (size_t)(i % SLICES) * per, per);
            seconds[j][i] = (double)(clock_ns() - t0) / 1e9;
        }
    double median[2];
    for (int j = 0; j < 2; j++)
        median[j] = check_median(seconds[j], SLICES * PASSES);
    printf(
        "%-8s %-6s head_dim %3u n %2u: %5.0f ns a block in cache (bf16 %5.0f); from memory %5.0f (bf16 %5.0f), %4.1f "
        "GB/s (%4.1f): %.2f times as fast; bytes %.3f\n",
        kv_codecs[codec].name, it->name, d, n, cached[1] / 4 * 1e9, cached[0] / 4 * 1e9, median[1] / (double)per * 1e9,
        median[0] / (double)per * 1e9, (double)(2 * b[1].part * per) / median[1] / 1e9,
        (double)(2 * b[0].part * per) / median[0] / 1e9, median[0] / median[1], (double)b[1].part / (double)b[0].part);
    check_buffers_free(ck);
}

static void check_bench(struct check *ck)
{
    if (!ck->bench)
        return;
    for (uint32_t v = 0; v < n_coded_impls; v++)
        for (int c = 0; c < 2; c++)
            for (uint32_t d = 64; d <= 128; d *= 2) {
                const struct attn_impl *it = &coded_impls[v];
                const struct attn_shape shape = { d, codecs[c], 1, NULL };
                if (!it->needs || !it->accepts(&shape) || !check_begin(ck, "bench", it->name, it->needs))
                    continue;
                bench_codec(ck, it, codecs[c], d, d == 64 ? 3 : 4);
                bench_codec(ck, it, codecs[c], d, ATTN_ROWS);
            }
}

CHECK_UNLESS_BENCH(block)
CHECK_UNLESS_BENCH(seal)
CHECK_UNLESS_BENCH(outlier)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "block", run_block, 60 },
                                           { "seal", run_seal, 60 },
                                           { "outlier", run_outlier, 20 },
                                           { "bench", check_bench, 1 } };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
