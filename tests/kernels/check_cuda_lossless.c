/*
 * Weights in the GPU's lossless-fast form: every bit pattern comes back, and a product has the bits of the same product in bf16, whatever the number of rows.
 * Skips (77) where no GPU is that can run it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lossless.h"
#include "kernels/kernels.h"
#include "tests/kernels/check.h"
#include "tests/kernels/cuda_scene.h"

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

/* How weights are drawn: as a trained model's, with some that stand out, with many, of rows of other sizes, any bits at all. */
enum kind { PLAIN, SOME_FAR, MANY_FAR, BY_ROW, ANY, KINDS };

static uint16_t draw_weight(struct check *ck, enum kind kind, uint32_t row)
{
    float x = check_normal(ck) * 0.02f;
    if (kind == ANY)
        return (uint16_t)check_below(ck, 65536);
    if (kind == BY_ROW)
        x = ldexpf(x, -(int)(row % 7) * 5);
    if (kind == SOME_FAR && check_below(ck, 200) == 0)
        x = check_below(ck, 2) ? 0 : ldexpf(x, 30);
    if (kind == MANY_FAR && check_below(ck, 4) == 0)
        x = check_below(ck, 4) ? ldexpf(x, -40) : 0;
    return f32_to_bf16(x);
}

struct matrix {
    uint32_t n_out, n_in, listed;
    uint16_t *w;
    uint8_t *tiles; /* as cuda_pack_tiles makes them */
    void *bf16, *lossless;
    float *bias;
};

static struct matrix draw_matrix(struct check *ck, struct cuda_scene *s, enum kind kind, uint32_t n_out, uint32_t n_in)
{
    struct matrix m = { .n_out = n_out, .n_in = n_in, .w = check_buffer(ck, (size_t)n_out * n_in * 2) };
    const uint32_t tiles = (n_out + 63) / 64;
    const size_t plain = cuda_packed_bytes(64, n_in), coded = cuda_lossless_bytes(64, n_in);
    uint8_t *both = check_buffer(ck, tiles * coded + (size_t)tiles * 64 * n_in * 4);
    m.tiles = check_buffer(ck, tiles * plain);
    uint32_t *list = (uint32_t *)(void *)(both + tiles * coded);
    for (uint32_t r = 0; r < n_out; r++)
        for (uint32_t k = 0; k < n_in; k++)
            m.w[(size_t)r * n_in + k] = draw_weight(ck, kind, r);
    for (uint32_t t = 0; t < tiles; t++) {
        const uint16_t *rows[64];
        for (uint32_t i = 0; i < 64; i++)
            rows[i] = t * 64 + i < n_out ? m.w + (size_t)(t * 64 + i) * n_in : NULL;
        cuda_pack_tiles(rows, n_in, m.tiles + t * plain);
        m.listed += cuda_pack_lossless(rows, n_in, m.listed, both + t * coded, list + m.listed);
    }
    m.bf16 = cuda_scene_put(s, m.tiles, tiles * plain);
    m.lossless = cuda_scene_put(s, both, tiles * coded + (size_t)m.listed * 4); /* reads past the list show */
    return m;
}

static void check_expand(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const enum kind kind = (enum kind)check_below(ck, KINDS);
    const uint32_t n_out = check_between(ck, 1, 200), n_in = check_between(ck, 1, 60) * 8;
    check_begin(ck, "expand", "cuda", 0);
    check_context(ck, "%u x %u, kind %d", n_out, n_in, (int)kind);
    const struct matrix m = draw_matrix(ck, &s, kind, n_out, n_in);
    const size_t bytes = cuda_packed_bytes(n_out, n_in), row_bytes = cuda_packed_bytes(64, n_in);
    uint8_t *got = check_buffer(ck, bytes);
    void *out = cuda_scene_take(&s, bytes);
    CUDA(cuda_lossless_expand(m.lossless, n_out, n_in, out, NULL));
    cuda_scene_get(got, out, bytes);
    for (uint32_t r = 0; r < n_out; r++)
        for (uint32_t k = 0; k < n_in; k += 8) {
            const size_t at =
                r / 64 * row_bytes + (size_t)(k / 64) * 8192 + r % 64 * 128 + ((k % 64 / 8) ^ (r & 7)) * 16;
            check_same(ck, "weights", got + at, m.tiles + at, 16);
        }
    cuda_scene_free(&s);
}

static void *put_tiled(struct check *ck, struct cuda_scene *s, const uint16_t *x, uint32_t n, uint32_t width,
                       uint32_t cap)
{
    const size_t bytes = cuda_tiled_bytes(cap, width);
    uint8_t *host = check_buffer(ck, bytes);
    memset(host, 0xFF, bytes); /* NaN where no row is */
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t k = 0; k < round_up(width, 128); k++) {
            const uint16_t v = k < width ? x[(size_t)r * width + k] : 0;
            memcpy(host + ((size_t)(k / 64) * cap + r) * 128 + ((k % 64 / 8) ^ (r & 7)) * 16 + k % 8 * 2, &v, 2);
        }
    return cuda_scene_put(s, host, bytes);
}

static void check_linear(struct check *ck)
{
    struct cuda_scene s = { 0 };
    static const uint32_t few[] = { 1, 1, 5, 8, 16, 17, 33, 64 };
    const uint32_t n_parts = check_between(ck, 1, 3), n_in = check_between(ck, 1, check_below(ck, 2) ? 400 : 40) * 8,
                   n_rows = few[check_below(ck, sizeof few / sizeof *few)], cap = CUDA_ROWS_STEP;
    const enum kind kind = (enum kind)check_below(ck, ANY);
    const bool accumulate = check_below(ck, 2), biased = check_below(ck, 2);
    struct cuda_linear l = { .cap = cap, .n_rows = n_rows, .n_in = n_in, .n_parts = n_parts, .accumulate = accumulate };
    struct matrix m[3];
    float *got[3], *want[3], *before[3], *bias[3] = { 0 };
    uint16_t *x = check_buffer(ck, (size_t)n_rows * n_in * 2);
    size_t outs = 0;
    check_begin(ck, "linear", "cuda", 0);
    check_context(ck, "%u parts, n_in %u, %u rows, kind %d", n_parts, n_in, n_rows, (int)kind);
    for (size_t i = 0; i < (size_t)n_rows * n_in; i++)
        x[i] = f32_to_bf16(check_normal(ck));
    l.x = put_tiled(ck, &s, x, n_rows, n_in, cap);
    for (uint32_t i = 0; i < n_parts; i++) {
        m[i] = draw_matrix(ck, &s, kind, check_between(ck, 1, 300), n_in);
        const size_t n = (size_t)n_rows * m[i].n_out;
        got[i] = check_buffer(ck, n * 4);
        want[i] = check_buffer(ck, n * 4);
        before[i] = check_buffer(ck, n * 4);
        for (size_t k = 0; k < n; k++)
            before[i][k] = check_normal(ck);
        if (biased)
            bias[i] = cuda_scene_put(&s, before[i], m[i].n_out * 4);
        outs += round_up(m[i].n_out, 64);
    }
    l.partials = cuda_scene_take(&s, cuda_linear_partials((uint32_t)outs, n_in) * 4);
    l.counters = cuda_scene_take(&s, outs / 64 * 4);
    CUDA(cudaMemset(l.counters, 0, outs / 64 * 4));
    for (int lossless = 0; lossless < 2; lossless++) {
        for (uint32_t i = 0; i < n_parts; i++)
            l.part[i] = (struct cuda_part){ .packed = lossless ? m[i].lossless : m[i].bf16,
                                            .y = cuda_scene_put(&s, before[i], (size_t)n_rows * m[i].n_out * 4),
                                            .bias = bias[i],
                                            .n_out = m[i].n_out,
                                            .y_stride = m[i].n_out };
        CUDA(lossless ? cuda_linear_lossless_run(&l, NULL) : cuda_linear_run(&l, NULL));
        for (uint32_t i = 0; i < n_parts; i++)
            cuda_scene_get(lossless ? got[i] : want[i], l.part[i].y, (size_t)n_rows * m[i].n_out * 4);
    }
    for (uint32_t i = 0; i < n_parts; i++)
        check_same(ck, "y beside bf16", got[i], want[i], (size_t)n_rows * m[i].n_out * 4);
    cuda_scene_free(&s);
}

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "expand", check_expand, 20 }, { "linear", check_linear, 40 } };
    struct cuda_device device;
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "check_cuda_lossless: skipped: %s\n", text);
        return 77;
    }
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
