/*
 * Codecs that are attended in their open form: what sealing keeps, by the layout that kernels/cpu/kv_expand.h states, and that all variants expand to the
 * same bits. Attention over open parts is check_attn's. check.h says how to call it.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv_expand.h"
#include "kernels/kernels.h"

static const enum kv_codec codecs[] = { KV_FP8, KV_KIVI4, KV_KIVI2, KV_BF16_LOSSLESS };
enum { N_CODECS = sizeof codecs / sizeof *codecs };

struct scene {
    struct attn_shape shape;
    const struct attn_impl *c;
    uint32_t n;         /* numbers of an open part */
    uint16_t *open[2];  /* keys, values */
    uint8_t *sealed[2]; /* by the reference */
    bool finite;
};

static void scene_seal(struct scene *s)
{
    s->finite = s->c->seal(&s->shape, s->open[0], s->open[1], s->sealed[0], s->sealed[1]);
}

static struct scene draw_scene(struct check *ck)
{
    static const uint32_t dims[] = { 32, 64, 96, 128, 192, 256 };
    const uint32_t d = dims[check_below(ck, sizeof dims / sizeof *dims)], kind = check_below(ck, 5);
    struct scene s = { .shape = { d, codecs[check_below(ck, N_CODECS)], 1, NULL }, .n = KV_BLOCK * d };
    const float size = ldexpf(1, (int)check_below(ck, 30) - 20);
    s.c = attn_find(&s.shape, 0);
    for (int part = 0; part < 2; part++) {
        s.open[part] = check_buffer(ck, s.n * sizeof(uint16_t));
        s.sealed[part] = check_buffer(ck, s.c->part_bytes(&s.shape));
        for (uint32_t i = 0; i < s.n; i++) {
            const float x = kind == 0 ? 0 : kind == 1 ? -3.25f : check_normal(ck) + (i % 14 == 3 && kind == 2 ? 50 : 0);
            s.open[part][i] = f32_to_bf16(x * size);
        }
    }
    scene_seal(&s);
    check_context(ck, "%s, head_dim %u, kind %u, size %g", kv_codecs[s.shape.codec].name, d, kind, (double)size);
    return s;
}

static uint32_t class_at(const uint8_t *bytes, uint32_t n, uint32_t i)
{
    return bytes[n + i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
}

/* Element i of n; escapes before it are counted. */
static double lossless(const uint8_t *bytes, uint32_t n, uint32_t i)
{
    const uint8_t *table = bytes + n + n / 2;
    uint32_t exponent = table[class_at(bytes, n, i)];
    if (class_at(bytes, n, i) == 15) {
        uint32_t before = 0;
        for (uint32_t j = 0; j < i; j++)
            before += class_at(bytes, n, j) == 15;
        exponent = table[16 + before];
    }
    return (double)bf16_to_f32((uint16_t)((bytes[i] & 0x80) << 8 | exponent << 7 | (bytes[i] & 0x7F)));
}

/* Element i of a part as its layout says, in float64. step_out: how far sealing may have moved it. */
static double decoded(const struct scene *s, int part, uint32_t i, double *step_out)
{
    const uint8_t *bytes = s->sealed[part];
    if (s->shape.codec == KV_BF16_LOSSLESS) {
        *step_out = 0;
        return lossless(bytes, s->n, i);
    }
    if (s->shape.codec == KV_FP8) {
        float scale;
        memcpy(&scale, bytes + s->n, sizeof scale);
        const double x = (double)kv_e4m3_to_f32(bytes[i]) * (double)scale;
        *step_out = fmax(fabs(x) / 16 * 1.07,
                         0x1p-10 * (double)scale); /* half of the last of four bits; below 2^-6 they are 2^-9 apart */
        return x;
    }
    const uint32_t bits = s->shape.codec == KV_KIVI4 ? 4 : 2, run = i / KIVI_RUN, at = i % KIVI_RUN,
                   run_bytes = KIVI_RUN * bits / 8;
    const uint16_t *planes = (const uint16_t *)(const void *)(bytes + (size_t)s->n * bits / 8);
    const double scale = (double)f16_to_f32(planes[2 * run + at % 2]),
                 least = (double)f16_to_f32(planes[2 * s->shape.head_dim + 2 * run + at % 2]);
    const uint32_t code = bytes[(size_t)run * run_bytes + at % run_bytes] >> at / run_bytes * bits & ((1u << bits) - 1);
    /* half a step; the steps of a scale rounded to 11 bits may end short of the greatest; least is rounded too */
    *step_out = scale / 2 + (fabs(least) + scale * ((1 << bits) - 1)) * 0x1p-10 + 0x1p-24 * (1 << bits);
    return scale * code + least;
}

static void check_seal(struct check *ck)
{
    struct scene s = draw_scene(ck);
    if (!s.finite)
        check_fail(ck, "finite keys and values are refused");
    for (int part = 0; part < 2; part++)
        for (uint32_t i = 0; i < s.n; i++) {
            double step;
            const double was = (double)bf16_to_f32(s.open[part][i]), is = decoded(&s, part, i, &step);
            if (!(fabs(was - is) <= step))
                check_fail(ck, "%s, element %u: %g became %g, step %g", part ? "values" : "keys", i, was, is, step);
        }
    static const float poisons[] = { NAN, INFINITY, -INFINITY };
    s.open[check_below(ck, 2)][check_below(ck, s.n)] = f32_to_bf16(poisons[check_below(ck, 3)]);
    scene_seal(&s);
    if (s.finite != (s.shape.codec == KV_BF16_LOSSLESS)) /* which keeps any bits */
        check_fail(ck, "what is not finite is %s", s.finite ? "sealed" : "refused");
}

static void check_expand(struct check *ck)
{
    const struct scene s = draw_scene(ck);
    for (int part = 0; part < 2; part++) {
        uint16_t *want = check_buffer(ck, s.n * sizeof *want);
        s.c->expand(&s.shape, s.sealed[part], NULL, want);
        for (uint32_t i = 0; i < s.n; i++) {
            double step;
            const double x = decoded(&s, part, i, &step), got = (double)bf16_to_f32(want[i]);
            if (!(fabs(got - x) <= fabs(x) * 0x1p-8 + 1e-37) ||
                ((s.shape.codec == KV_FP8 || s.shape.codec == KV_BF16_LOSSLESS) && got != x))
                check_fail(ck, "element %u is %g, should be %g", i, got, x);
        }
        for (uint32_t v = 0; v < n_coded_impls; v++) {
            const struct attn_impl *it = &coded_impls[v];
            if (!it->expand || !it->accepts(&s.shape) || !check_begin(ck, "expand", it->name, it->needs))
                continue;
            uint16_t *got = check_buffer(ck, s.n * sizeof *got);
            it->expand(&s.shape, s.sealed[part], s.sealed[1 - part], got);
            check_same(ck, "an expanded part", got, want, s.n * sizeof *got);
        }
    }
}

/* A block of keys and values from the nearest cache: expanded and attended, against the bf16 block as it is. */
static void bench_variant(struct check *ck, const struct attn_impl *it, enum kv_codec codec, uint32_t d)
{
    const struct attn_shape shape = { d, codec, 1, NULL }, open_shape = { d, KV_BF16, 1, NULL };
    const struct attn_impl *open = attn_find(&open_shape, it->needs == CPU_AVX512 ? ck->caps : it->needs);
    const size_t part = it->part_bytes(&shape), open_part = open->part_bytes(&open_shape);
    uint8_t *coded = check_buffer(ck, 2 * part), *wide = check_buffer(ck, 2 * open_part), all[ATTN_ROWS];
    uint8_t *tile = check_buffer(ck, open->q_tile_bytes(&open_shape));
    float *q = check_buffer(ck, d * sizeof *q), *out = check_buffer(ck, attn_partial_floats(d) * sizeof *out);
    const float *rows[4] = { q, q, q, q };
    memset(all, KV_BLOCK, sizeof all);
    for (uint32_t i = 0; i < d; i++)
        q[i] = check_normal(ck);
    for (uint32_t i = 0; i < open_part; i++)
        ((uint16_t *)(void *)wide)[i] = f32_to_bf16(check_normal(ck));
    it->seal(&shape, wide, wide + open_part, coded, coded + part);
    open->pack_q(&open_shape, rows, 4, tile);
    double plain, both, seal;
    CHECK_TIME(seal, it->seal(&shape, wide, wide + open_part, coded, coded + part));
    CHECK_TIME(plain, open->block(&open_shape, tile, 4, all, wide, wide + open_part, NULL, out));
    CHECK_TIME(both, (it->expand(&shape, coded, NULL, wide), it->expand(&shape, coded + part, NULL, wide + open_part),
                      open->block(&open_shape, tile, 4, all, wide, wide + open_part, NULL, out)));
    printf("%-13s %-6s head_dim %3u n 4: %5.0f ns a block in cache, bf16 %5.0f; sealing %6.0f; bytes %.3f\n",
           kv_codecs[codec].name, it->name, d, both * 1e9, plain * 1e9, seal * 1e9, (double)part / (double)open_part);
    check_buffers_free(ck);
}

static void check_bench(struct check *ck)
{
    for (uint32_t v = 0; v < n_coded_impls && ck->bench; v++)
        for (int c = 0; c < N_CODECS; c++)
            for (uint32_t d = 64; d <= 128; d *= 2) {
                const struct attn_impl *it = &coded_impls[v];
                const struct attn_shape shape = { d, codecs[c], 1, NULL };
                if (it->expand && it->needs && it->accepts(&shape) && check_begin(ck, "bench", it->name, it->needs))
                    bench_variant(ck, it, codecs[c], d);
            }
}

CHECK_UNLESS_BENCH(seal)
CHECK_UNLESS_BENCH(expand)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "seal", run_seal, 100 },
                                           { "expand", run_expand, 100 },
                                           { "bench", check_bench, 1 } };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
