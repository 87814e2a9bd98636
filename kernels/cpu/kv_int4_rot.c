/*
 * int4-rot: keys and values times a block-diagonal Hadamard matrix inside the head, then token-wise affine integers of 4 bits, one scale and least
 * value a position and KV head. Source: SAW-INT4 (together.ai), in the min form: x = scale c + least, c in 0 .. 15. Values are rotated as keys are.
 */
#include <math.h>

#include "common/f16.h"
#include "kernels/cpu/kv.h"

bool kv_accepts_int4_rot(const struct attn_shape *shape)
{
    return shape->codec == KV_INT4_ROT && shape->head_dim >= 16 && shape->head_dim % 16 == 0;
}

/* So many positions side by side, so that loops over them vectorise: [channels][positions]. */
enum { SIDE = 16, D_MAX = 256 };
typedef float side_floats[SIDE];

static inline void butterfly(float *restrict a, float *restrict b)
{
    for (uint32_t t = 0; t < SIDE; t++) {
        const float sum = a[t] + b[t];
        b[t] = a[t] - b[t];
        a[t] = sum;
    }
}

/* kv_rotate of each position, the same steps. */
static void rotate(side_floats *x, uint32_t n, uint32_t order)
{
    for (uint32_t half = 1; half < order; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j++)
                butterfly(x[j], x[j + half]);
    const float unit = 1.0f / sqrtf((float)order);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < SIDE; t++)
            x[i][t] *= unit;
}

/* kv_quantize_affine of each position; x [n] becomes its codes. -> false: one is not finite, its codes are 0 */
static bool quantize(side_floats *x, uint32_t n, uint16_t *scale_out, uint16_t *least_out)
{
    const float most = 15.0f;
    side_floats low, high, zero, least, up;
    bool finite = true;
    for (uint32_t t = 0; t < SIDE; t++) {
        low[t] = high[t] = x[0][t];
        zero[t] = 0.0f;
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < SIDE; t++) {
            low[t] = x[i][t] < low[t] ? x[i][t] : low[t];
            high[t] = x[i][t] > high[t] ? x[i][t] : high[t];
            zero[t] += x[i][t] * 0.0f;
        }
    for (uint32_t t = 0; t < SIDE; t++) {
        scale_out[t] = least_out[t] = 0;
        if (zero[t] == 0)
            kv_affine_of(low[t], high[t], 15, &scale_out[t], &least_out[t]);
        for (uint32_t i = 0; i < n && zero[t] != 0; i++)
            x[i][t] = 0.0f;
        finite = finite && zero[t] == 0;
        const float scale = f16_to_f32(scale_out[t]);
        least[t] = f16_to_f32(least_out[t]);
        up[t] = scale > 0 ? 1.0f / scale : 0.0f;
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < SIDE; t++) {
            const float c = (x[i][t] - least[t]) * up[t] + 0.5f, some = c < 0.0f ? 0.0f : c;
            x[i][t] = some >= most ? most : some;
        }
    return finite;
}

static uint8_t code_of(float x)
{
    return (uint8_t)(int32_t)x;
}

/* Positions t .. t + SIDE - 1 */
static bool seal_keys(const struct attn_shape *shape, const uint16_t *open, uint32_t t, uint8_t *k)
{
    const uint32_t d = shape->head_dim;
    uint16_t *scale = (uint16_t *)(uintptr_t)kv_scales(shape, k);
    side_floats x[D_MAX];
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < SIDE; j++)
            x[i][j] = kv_open_key(open, t + j, i);
    rotate(x, d, kv_rotation_order(d));
    const bool finite = quantize(x, d, scale + t, scale + KV_BLOCK + t);
    for (uint32_t i = 0; i < d / 2; i++)
        for (uint32_t j = 0; j < SIDE; j++)
            k[((size_t)(i / 4) * KV_BLOCK + t + j) * 4 + i % 4] =
                (uint8_t)(code_of(x[i][j]) | code_of(x[i + d / 2][j]) << 4);
    return finite;
}

/* Positions t .. t + SIDE - 1, and as many half a block later. */
static bool seal_values(const struct attn_shape *shape, const uint16_t *open, uint32_t t, uint8_t *v)
{
    const uint32_t d = shape->head_dim;
    uint16_t *scale = (uint16_t *)(uintptr_t)kv_scales(shape, v);
    bool finite = true;
    for (uint32_t half = 0; half < 2; half++, t += KV_BLOCK / 2) {
        const uint32_t low = t % (KV_BLOCK / 2);
        side_floats x[D_MAX];
        for (uint32_t i = 0; i < d; i++)
            for (uint32_t j = 0; j < SIDE; j++)
                x[i][j] = kv_open_value(open, d, t + j, i);
        rotate(x, d, kv_rotation_order(d));
        finite = quantize(x, d, scale + t, scale + KV_BLOCK + t) && finite;
        for (uint32_t j = 0; j < SIDE; j++) {
            uint8_t *to = v + (size_t)((low + j) / 4) * d * 4 + (low + j) % 4;
            for (uint32_t i = 0; i < d; i++)
                to[4 * i] = (uint8_t)(half ? to[4 * i] | code_of(x[i][j]) << 4 : code_of(x[i][j]));
        }
    }
    return finite;
}

bool kv_seal_int4_rot(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                      void *v_part)
{
    bool finite = true;
    for (uint32_t t = 0; t < KV_BLOCK; t += SIDE)
        finite = seal_keys(shape, k_open, t, k_part) && finite;
    for (uint32_t t = 0; t < KV_BLOCK / 2; t += SIDE)
        finite = seal_values(shape, v_open, t, v_part) && finite;
    return finite;
}
