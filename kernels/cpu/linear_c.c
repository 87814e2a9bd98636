#include "kernels/cpu/linear_variants.h"

#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/linear_expand.h"

/*
 * The definition: with w the weight in float32 (q * d, or q * d + m rounded once, as weight_row_f32 has it),
 *   y = sum over blocks b, ascending, of (sum over k in b, ascending, of w[k] * x[k]),
 * each product and each sum rounded to float32, sums from +0. A lane is an output: nothing is reassociated.
 */

enum { ROWS = 8 };

static void decode_q(enum weight_codec codec, const uint8_t *group, size_t b, float w[LINEAR_BLOCK][LINEAR_GROUP])
{
    const uint8_t *codes = linear_codes(codec, group, b);
    const uint16_t *dh = linear_d(codec, group, b), *mh = linear_m(codec, group, b);
    float d[LINEAR_GROUP], m[LINEAR_GROUP];
    for (int n = 0; n < LINEAR_GROUP; n++) {
        d[n] = f16_to_f32(dh[n]);
        m[n] = linear_has_m(codec) ? f16_to_f32(mh[n]) : 0.0f;
    }
    for (int k = 0; k < LINEAR_BLOCK; k++) {
        uint32_t word[LINEAR_GROUP];
        if (codec == WEIGHT_Q8_0) {
            memcpy(word, codes + k / 4 * 64, 64);
            for (int n = 0; n < LINEAR_GROUP; n++)
                w[k][n] = (float)((int32_t)(word[n] << (24 - k % 4 * 8)) >> 24) * d[n];
            continue;
        }
        const int shift = k % 8 / 2 * 4 + k % 2 * 16;
        memcpy(word, codes + k / 8 * 64, 64);
        if (codec == WEIGHT_Q4_0)
            for (int n = 0; n < LINEAR_GROUP; n++)
                w[k][n] = (float)((int32_t)(word[n] >> shift & 15) - 8) * d[n];
        else if (codec == WEIGHT_Q4_Z)
            for (int n = 0; n < LINEAR_GROUP; n++)
                w[k][n] = ((float)(int32_t)(word[n] >> shift & 15) - m[n]) * d[n];
        else
            for (int n = 0; n < LINEAR_GROUP; n++)
                w[k][n] = (float)(int32_t)(word[n] >> shift & 15) * d[n] + m[n];
    }
}

/* Q5 and K types: the weight is q * d + m with d and m as struct weight_parts says, q centred where there is no m. */
static void decode_parts(enum weight_codec codec, const uint8_t *group, size_t b, float w[LINEAR_BLOCK][LINEAR_GROUP])
{
    const uint16_t *dh = linear_d(codec, group, b), *mh = linear_m(codec, group, b);
    const bool has_min = codec != WEIGHT_Q5_0 && codec != WEIGHT_Q6_K;
    const int32_t centre = codec == WEIGHT_Q5_0 ? 16 : codec == WEIGHT_Q6_K ? 32 : 0;
    uint32_t line[6][LINEAR_GROUP] = { 0 };
    memcpy(line, linear_codes(codec, group, b), linear_codes_bytes(codec));
    for (int half = 0; half < 2; half++) {
        float d[LINEAR_GROUP], m[LINEAR_GROUP];
        for (int n = 0; n < LINEAR_GROUP; n++) {
            d[n] = f16_to_f32(dh[n]);
            m[n] = has_min ? f16_to_f32(mh[n]) : 0.0f;
            if (linear_is_k(codec))
                d[n] *= (float)linear_scale(codec, group, b)[(codec == WEIGHT_Q6_K ? half * LINEAR_GROUP : 0) + n];
            if (linear_is_k(codec) && has_min)
                m[n] *= -(float)linear_min(codec, group, b)[n];
        }
        for (int k = half * 16; k < half * 16 + 16; k++)
            for (int n = 0; n < LINEAR_GROUP; n++) {
                const int row = k / 2, at = k % 2 * 16;
                uint32_t q = line[row / 4][n] >> (row % 4 * 4 + at) & 15;
                if (codec == WEIGHT_Q6_K)
                    q |= (line[4 + row / 8][n] >> (row % 8 * 2 + at) & 3) << 4;
                else
                    q |= (line[4][n] >> (row + at) & 1) << 4; /* zeros for Q4_K */
                const float weight = (float)((int32_t)q - centre) * d[n];
                w[k][n] = has_min ? weight + m[n] : weight;
            }
    }
}

static void decode(const struct linear_shape *s, const uint8_t *group, size_t b, float w[LINEAR_BLOCK][LINEAR_GROUP])
{
    const enum weight_codec codec = s->codec;
    uint16_t block[LINEAR_BLOCK * LINEAR_GROUP];
    if (codec == WEIGHT_LOSSLESS_FAST) {
        const struct lossless_group parts = linear_lossless_group(s, group);
        lossless_decode(&parts, (uint32_t)b, block);
    }
    const uint8_t *p = codec == WEIGHT_LOSSLESS_FAST ? (const uint8_t *)block : linear_codes(codec, group, b);
    const uint16_t *restrict h = (const uint16_t *)p;
    float *restrict out = w[0];
    switch (codec) {
    case WEIGHT_F32:
        memcpy(w, p, sizeof(float) * LINEAR_BLOCK * LINEAR_GROUP);
        return;
    case WEIGHT_F16:
        for (int i = 0; i < LINEAR_BLOCK * LINEAR_GROUP; i++)
            out[i] = f16_to_f32(h[i]);
        return;
    case WEIGHT_BF16:
    case WEIGHT_LOSSLESS_FAST:
        for (int j = 0; j < LINEAR_BLOCK / 2; j++) {
            uint32_t pair[LINEAR_GROUP], even[LINEAR_GROUP];
            memcpy(pair, p + j * 64, 64);
            for (int n = 0; n < LINEAR_GROUP; n++) {
                even[n] = pair[n] << 16;
                pair[n] &= 0xFFFF0000u;
            }
            memcpy(w[2 * j], even, 64);
            memcpy(w[2 * j + 1], pair, 64);
        }
        return;
    case WEIGHT_Q5_0:
    case WEIGHT_Q5_1:
    case WEIGHT_Q4_K:
    case WEIGHT_Q5_K:
    case WEIGHT_Q6_K:
        decode_parts(codec, group, b, w);
        return;
    default:
        decode_q(codec, group, b, w);
    }
}

static void load_x(const struct linear_args *a, uint32_t row, size_t b, float x[LINEAR_BLOCK])
{
    const size_t at = row * a->x_stride + b * LINEAR_BLOCK;
    if (a->shape->x == DTYPE_F32) {
        memcpy(x, (const float *)a->x + at, sizeof(float) * LINEAR_BLOCK);
        return;
    }
    const uint16_t *h = (const uint16_t *)a->x + at;
    for (int k = 0; k < LINEAR_BLOCK; k++)
        x[k] = bf16_to_f32(h[k]);
}

/* The compiler vectorises the outer loop: a lane is an output. Unrolling the inner one would keep it from doing so. */
static void add_block(float w[restrict LINEAR_BLOCK][LINEAR_GROUP], const float x[restrict LINEAR_BLOCK],
                      float acc[restrict LINEAR_GROUP])
{
    for (int n = 0; n < LINEAR_GROUP; n++) {
        float sum = 0;
#pragma GCC unroll 1
        for (int k = 0; k < LINEAR_BLOCK; k++)
            sum += w[k][n] * x[k];
        acc[n] += sum;
    }
}

size_t linear_scratch_c(const struct linear_shape *shape, uint32_t n_rows)
{
    return linear_is_expanded(shape->codec) ? linear_scratch_expanded(shape, n_rows, linear_scratch_c) : 0;
}

void linear_run_c(const struct linear_args *a)
{
    if (linear_is_expanded(a->shape->codec)) {
        linear_run_expanded(a, linear_expand_c, linear_scratch_c, linear_run_c);
        return;
    }
    const struct linear_shape *s = a->shape;
    const size_t n_blocks = linear_n_blocks(s), stride = linear_group_bytes(s);
    for (uint32_t o = a->out_begin; o < a->out_end; o += LINEAR_GROUP) {
        const uint8_t *group = (const uint8_t *)a->packed + o / LINEAR_GROUP * stride;
        const uint32_t n_here = a->out_end - o < LINEAR_GROUP ? a->out_end - o : LINEAR_GROUP;
        for (uint32_t r0 = 0; r0 < a->n_rows; r0 += ROWS) {
            const uint32_t rows = a->n_rows - r0 < ROWS ? a->n_rows - r0 : ROWS;
            float acc[ROWS][LINEAR_GROUP] = { 0 };
            for (size_t b = 0; b < n_blocks; b++) {
                float w[LINEAR_BLOCK][LINEAR_GROUP], x[LINEAR_BLOCK];
                decode(s, group, b, w);
                for (uint32_t r = 0; r < rows; r++) {
                    load_x(a, r0 + r, b, x);
                    add_block(w, x, acc[r]);
                }
            }
            for (uint32_t r = 0; r < rows; r++) {
                float *y = a->y + (r0 + r) * a->y_stride + o;
                for (uint32_t n = 0; n < n_here; n++)
                    y[n] = a->accumulate ? y[n] + acc[r][n] : acc[r][n];
            }
        }
    }
}
