/*
 * cq-2b, cq-1b: codes are those of the nearest centroids, what they stand for is turned as RoPE turns it, and all variants write the same bits. Attention over
 * open parts is check_attn's. check.h says how to call it.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/codebook.h"
#include "kernels/cpu/kv_cq.h"

struct scene {
    struct attn_shape shape;
    struct kv_book books[2];
    struct kv_angles angles;
    double *angle;            /* [KV_BLOCK][head_dim / 2] */
    double scale;             /* of RoPE */
    const uint16_t *codes[2]; /* centroids bf16 [groups][CQ_CENTROIDS][channels] */
    uint16_t *open[2];        /* keys, values */
    uint8_t *sealed[2];       /* by the reference */
    bool finite;
};

static const struct attn_impl *reference(const struct scene *s)
{
    return attn_find(&s->shape, 0);
}

static void scene_seal(struct scene *s)
{
    s->finite = reference(s)->seal(&s->shape, s->open[0], s->open[1], s->sealed[0], s->sealed[1]);
}

/* A book as kv_cq.h lays it out, of any numbers. */
static void draw_book(struct check *ck, struct scene *s, int part, float size)
{
    const uint32_t d = s->shape.head_dim, c = cq_channels(&s->shape);
    float *planes = check_buffer(ck, (size_t)d * CQ_CENTROIDS * 6);
    uint16_t *centroids = (uint16_t *)(void *)(planes + (size_t)d * CQ_CENTROIDS);
    for (uint32_t g = 0; g < d / c; g++)
        for (uint32_t i = 0; i < CQ_CENTROIDS; i++)
            for (uint32_t e = 0; e < c; e++) {
                const uint16_t x = f32_to_bf16(check_normal(ck) * size);
                centroids[((size_t)g * CQ_CENTROIDS + i) * c + e] = x;
                planes[((size_t)g * c + e) * CQ_CENTROIDS + i] = bf16_to_f32(x);
            }
    s->codes[part] = centroids;
    s->books[part] = (struct kv_book){ planes, part == 1, &s->angles };
}

static void draw_angles(struct check *ck, struct scene *s)
{
    const uint32_t half = s->shape.head_dim / 2, first = check_below(ck, 2) ? check_below(ck, 1 << 14) * KV_BLOCK : 0;
    float *at = check_buffer(ck, half * 2 * sizeof *at), *step = check_buffer(ck, half * KV_BLOCK * 2 * sizeof *step);
    s->scale = check_below(ck, 3) ? 1 : 1.25;
    s->angle = check_buffer(ck, KV_BLOCK * half * sizeof *s->angle);
    for (uint32_t i = 0; i < half; i++) {
        const double turn = pow(10000, -(double)i / half);
        at[i] = (float)cos(first * turn);
        at[half + i] = (float)sin(first * turn);
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            step[i * KV_BLOCK + j] = (float)(cos(j * turn) * s->scale);
            step[(half + i) * KV_BLOCK + j] = (float)(sin(j * turn) * s->scale);
            s->angle[j * half + i] = (first + j) * turn;
        }
    }
    s->angles = (struct kv_angles){ { at, at + half },
                                    { step, step + (size_t)half * KV_BLOCK },
                                    (float)(1 / (s->scale * s->scale)) };
}

static void draw_scene(struct check *ck, struct scene *s)
{
    static const uint32_t dims[] = { 16, 32, 64, 96, 128, 256 };
    const uint32_t d = dims[check_below(ck, sizeof dims / sizeof *dims)], kind = check_below(ck, 4);
    const float size = ldexpf(1, (int)check_below(ck, 20) - 10);
    *s = (struct scene){ .shape = { d, check_below(ck, 2) ? KV_CQ_2B : KV_CQ_1B, 1, s->books } };
    draw_angles(ck, s);
    for (int part = 0; part < 2; part++) {
        draw_book(ck, s, part, size);
        s->open[part] = check_buffer(ck, (size_t)KV_BLOCK * d * sizeof(uint16_t));
        s->sealed[part] = check_buffer(ck, reference(s)->part_bytes(&s->shape));
        for (uint32_t i = 0; i < KV_BLOCK * d; i++)
            s->open[part][i] = f32_to_bf16((kind == 0 ? 0 : check_normal(ck)) * size);
    }
    check_context(ck, "%s, head_dim %u, kind %u, size %g", kv_codecs[s->shape.codec].name, d, kind, (double)size);
    scene_seal(s);
}

/* Element of an open part by position and channel. */
static size_t place(const struct scene *s, int part, uint32_t j, uint32_t i)
{
    return part ? ((size_t)(j / 2) * s->shape.head_dim + i) * 2 + j % 2 : ((size_t)(i / 2) * KV_BLOCK + j) * 2 + i % 2;
}

static double opened(const struct scene *s, int part, uint32_t j, uint32_t i)
{
    return (double)bf16_to_f32(s->open[part][place(s, part, j, i)]);
}

/* Channel i at position j as it is coded: keys turned back, in float64. */
static double coded(const struct scene *s, int part, uint32_t j, uint32_t i)
{
    const uint32_t half = s->shape.head_dim / 2;
    if (part)
        return opened(s, part, j, i);
    const double a = s->angle[j * half + i % half], other = opened(s, part, j, (i + half) % (2 * half));
    return (opened(s, part, j, i) * cos(a) + (i < half ? other : -other) * sin(a)) / s->scale;
}

static double centroid(const struct scene *s, int part, uint32_t j, uint32_t i)
{
    const uint32_t c = cq_channels(&s->shape), g = i / c;
    const uint8_t code = s->sealed[part][(size_t)g * KV_BLOCK + j];
    return (double)bf16_to_f32(s->codes[part][((size_t)g * CQ_CENTROIDS + code) * c + i % c]);
}

/* No other centroid is nearer than the one of the code, but for rounding. */
static void check_group(struct check *ck, const struct scene *s, int part, uint32_t g, uint32_t j)
{
    const uint32_t c = cq_channels(&s->shape);
    double chosen = 0, least = INFINITY, size = 0;
    for (uint32_t e = 0; e < c; e++) {
        const double x = coded(s, part, j, g * c + e);
        chosen += pow(x - centroid(s, part, j, g * c + e), 2);
        size += x * x;
    }
    for (uint32_t i = 0; i < CQ_CENTROIDS; i++) {
        double d = 0;
        for (uint32_t e = 0; e < c; e++)
            d += pow(coded(s, part, j, g * c + e) -
                         (double)bf16_to_f32(s->codes[part][((size_t)g * CQ_CENTROIDS + i) * c + e]),
                     2);
        least = d < least ? d : least;
    }
    if (!(chosen <= least * (1 + 1e-5) + size * 1e-5))
        check_fail(ck, "%s, group %u, position %u: its centroid is %g away, another %g", part ? "values" : "keys", g, j,
                   sqrt(chosen), sqrt(least));
}

static void check_seal(struct check *ck)
{
    struct scene s;
    draw_scene(ck, &s);
    const struct attn_impl *c = reference(&s);
    const size_t bytes = c->part_bytes(&s.shape);
    if (!s.finite)
        check_fail(ck, "finite keys and values are refused");
    for (int n = 0; n < 40; n++)
        check_group(ck, &s, n % 2, check_below(ck, s.shape.head_dim / cq_channels(&s.shape)),
                    check_below(ck, KV_BLOCK));
    for (uint32_t v = 0; v < n_coded_impls; v++) {
        const struct attn_impl *it = &coded_impls[v];
        if (!it->accepts(&s.shape) || !check_begin(ck, "seal", it->name, it->needs))
            continue;
        uint8_t *k = check_buffer(ck, bytes), *w = check_buffer(ck, bytes);
        if (!it->seal(&s.shape, s.open[0], s.open[1], k, w))
            check_fail(ck, "finite keys and values are refused");
        check_same(ck, "sealed keys", k, s.sealed[0], bytes);
        check_same(ck, "sealed values", w, s.sealed[1], bytes);
    }
    static const float poisons[] = { NAN, INFINITY, -INFINITY };
    s.open[check_below(ck, 2)][check_below(ck, KV_BLOCK * s.shape.head_dim)] = f32_to_bf16(poisons[check_below(ck, 3)]);
    scene_seal(&s);
    if (s.finite)
        check_fail(ck, "what is not finite is sealed");
}

/* Centroids encode to themselves: what a part of values expands to is sealed as it was. */
static void check_again(struct check *ck, const struct scene *s, const uint16_t *values)
{
    uint8_t *k = check_buffer(ck, reference(s)->part_bytes(&s->shape)),
            *v = check_buffer(ck, reference(s)->part_bytes(&s->shape));
    reference(s)->seal(&s->shape, s->open[0], values, k, v);
    check_same(ck, "values sealed again", v, s->sealed[1], reference(s)->part_bytes(&s->shape));
}

static void check_expand(struct check *ck)
{
    struct scene s;
    draw_scene(ck, &s);
    const uint32_t d = s.shape.head_dim, half = d / 2;
    for (int part = 0; part < 2; part++) {
        uint16_t *want = check_buffer(ck, (size_t)KV_BLOCK * d * sizeof *want);
        struct attn_shape shape = s.shape;
        shape.books = &s.books[part];
        reference(&s)->expand(&shape, s.sealed[part], NULL, want);
        for (uint32_t j = 0; j < KV_BLOCK; j++)
            for (uint32_t i = 0; i < d; i++) {
                const double x = centroid(&s, part, j, i), y = centroid(&s, part, j, (i + half) % d),
                             a = s.angle[j * half + i % half],
                             is = part ? x : s.scale * (x * cos(a) + (i < half ? -y : y) * sin(a)),
                             got = (double)bf16_to_f32(want[place(&s, part, j, i)]);
                if (!(fabs(got - is) <= (part ? 0 : fabs(is) * 0x1p-8 + (fabs(x) + fabs(y)) * 1e-5)))
                    check_fail(ck, "%s, position %u, channel %u is %g, should be %g", part ? "values" : "keys", j, i,
                               got, is);
            }
        if (part)
            check_again(ck, &s, want);
        for (uint32_t v = 0; v < n_coded_impls; v++) {
            const struct attn_impl *it = &coded_impls[v];
            if (!it->accepts(&shape) || !check_begin(ck, "expand", it->name, it->needs))
                continue;
            uint16_t *got = check_buffer(ck, (size_t)KV_BLOCK * d * sizeof *got);
            it->expand(&shape, s.sealed[part], s.sealed[1 - part], got);
            check_same(ck, "an expanded part", got, want, (size_t)KV_BLOCK * d * sizeof *got);
        }
    }
}

static void check_nearest(struct check *ck)
{
    const uint32_t k = check_between(ck, 1, KMEANS_CENTROIDS_MAX), dims = check_between(ck, 1, KMEANS_DIMS_MAX),
                   n = check_between(ck, 1, 70), room = kmeans_room(k);
    float *centroids = check_buffer(ck, (size_t)k * dims * 4), *planes = check_buffer(ck, (size_t)room * dims * 4),
          *x = check_buffer(ck, (size_t)n * dims * 4), *want_distance = check_buffer(ck, n * 4);
    uint8_t *want = check_buffer(ck, n);
    for (uint32_t i = 0; i < k * dims; i++)
        centroids[i] = roundf(check_normal(ck) * 3); /* ties are common */
    for (uint32_t i = 0; i < n * dims; i++)
        x[i] = check_below(ck, 3) ? roundf(check_normal(ck) * 3) : check_normal(ck) * 1e3f;
    kmeans_planes(centroids, k, dims, planes);
    kmeans_nearest(planes, room, dims, x, n, want, want_distance);
    check_context(ck, "%u centroids of %u channels, %u vectors", k, dims, n);
    for (uint32_t v = 0; v < n_codebook_impls; v++) {
        if (!check_begin(ck, "nearest", codebook_impls[v].name, codebook_impls[v].needs))
            continue;
        uint8_t *got = check_buffer(ck, n), *alone = check_buffer(ck, n);
        float *distance = check_buffer(ck, n * 4);
        codebook_impls[v].nearest(planes, room, dims, x, n, got, distance);
        check_same(ck, "codes", got, want, n);
        check_same(ck, "distances", distance, want_distance, n * 4);
        for (uint32_t j = 0; j < n; j++)
            codebook_impls[v].nearest(planes, room, dims, x + (size_t)j * dims, 1, alone + j, NULL);
        check_same(ck, "codes of each alone", alone, want, n);
    }
}

/* A block of keys and values from the nearest cache: expanded and attended, against the bf16 block as it is; and sealed. */
static void bench_variant(struct check *ck, const struct attn_impl *it, enum kv_codec codec, uint32_t d)
{
    struct scene s = { .shape = { d, codec, 1, s.books } };
    const struct attn_shape open_shape = { d, KV_BF16, 1, NULL };
    struct attn_shape shape[2] = { s.shape, s.shape };
    const struct attn_impl *open = attn_find(&open_shape, it->needs == CPU_AVX512 ? ck->caps : it->needs);
    const size_t part = it->part_bytes(&s.shape), open_part = open->part_bytes(&open_shape);
    uint8_t *coded_parts = check_buffer(ck, 2 * part), *wide = check_buffer(ck, 2 * open_part), all[ATTN_ROWS];
    uint8_t *tile = check_buffer(ck, open->q_tile_bytes(&open_shape));
    float *q = check_buffer(ck, d * sizeof *q), *out = check_buffer(ck, attn_partial_floats(d) * sizeof *out);
    const float *rows[4] = { q, q, q, q };
    draw_angles(ck, &s);
    draw_book(ck, &s, 0, 1);
    draw_book(ck, &s, 1, 1);
    shape[1].books++;
    memset(all, KV_BLOCK, sizeof all);
    for (uint32_t i = 0; i < d; i++)
        q[i] = check_normal(ck);
    for (uint32_t i = 0; i < open_part; i++)
        ((uint16_t *)(void *)wide)[i] = f32_to_bf16(check_normal(ck));
    open->pack_q(&open_shape, rows, 4, tile);
    double plain, both, seal;
    CHECK_TIME(seal, it->seal(&s.shape, wide, wide + open_part, coded_parts, coded_parts + part));
    CHECK_TIME(plain, open->block(&open_shape, tile, 4, all, wide, wide + open_part, NULL, out));
    CHECK_TIME(both, (it->expand(&shape[0], coded_parts, NULL, wide),
                      it->expand(&shape[1], coded_parts + part, NULL, wide + open_part),
                      open->block(&open_shape, tile, 4, all, wide, wide + open_part, NULL, out)));
    printf("%-6s %-6s head_dim %3u n 4: %5.0f ns a block in cache, bf16 %5.0f; sealing %6.0f; bytes %.4f\n",
           kv_codecs[codec].name, it->name, d, both * 1e9, plain * 1e9, seal * 1e9, (double)part / (double)open_part);
    check_buffers_free(ck);
}

static void check_bench(struct check *ck)
{
    static const enum kv_codec codecs[] = { KV_CQ_2B, KV_CQ_1B };
    for (uint32_t v = 0; v < n_coded_impls && ck->bench; v++)
        for (int c = 0; c < 2; c++)
            for (uint32_t d = 64; d <= 128; d *= 2) {
                const struct attn_impl *it = &coded_impls[v];
                const struct attn_shape shape = { d, codecs[c], 1, NULL };
                if (it->needs && it->accepts(&shape) && check_begin(ck, "bench", it->name, it->needs))
                    bench_variant(ck, it, codecs[c], d);
            }
}

CHECK_UNLESS_BENCH(seal)
CHECK_UNLESS_BENCH(expand)
CHECK_UNLESS_BENCH(nearest)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "seal", run_seal, 20 },
                                           { "expand", run_expand, 20 },
                                           { "nearest", run_nearest, 100 },
                                           { "bench", check_bench, 1 } };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
