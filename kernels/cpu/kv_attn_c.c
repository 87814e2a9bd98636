#include "kernels/cpu/kv.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/attn.h"
#include "kernels/cpu/exp.h"

bool kv_accepts_c(const struct attn_shape *shape)
{
    return (kv_accepts_int8(shape) || kv_accepts_int4_rot(shape)) && shape->head_dim <= ATTN_HEAD_DIM_MAX &&
           shape->scale > 0 && isfinite(shape->scale);
}

size_t kv_part_bytes(const struct attn_shape *shape)
{
    const size_t planes = shape->codec == KV_INT8 ? 1 : 2;
    return kv_code_bytes(shape) + planes * KV_BLOCK * sizeof(uint16_t);
}

uint16_t kv_f16_of(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    const uint32_t sign = v.u >> 16 & 0x8000u;
    v.u &= 0x7FFFFFFFu;
    if (v.f >= 65504.0f)
        return (uint16_t)(sign | 0x7BFFu);
    if (v.f < 0x1p-14f) /* a multiple of 2^-24, the smallest normal number included */
        return (uint16_t)(sign | (uint32_t)kv_round(v.f * 0x1p24f));
    const uint32_t up =
        v.u + 0xFFFu + (v.u >> 13 & 1u); /* a carry out of the mantissa raises the exponent, as it should */
    const uint32_t h = (up - (112u << 23)) >> 13;
    return (uint16_t)(sign | (h > 0x7BFFu ? 0x7BFFu : h));
}

void kv_affine_of(float low, float high, uint32_t top, uint16_t *scale_out, uint16_t *least_out)
{
    *least_out = kv_f16_of(low);
    const float least = f16_to_f32(*least_out);
    *scale_out = kv_f16_of(high > least ? (high - least) / (float)top : 0.0f);
}

bool kv_quantize_affine(const float *x, uint32_t n, uint32_t top, uint8_t *code_out, uint16_t *scale_out,
                        uint16_t *least_out)
{
    float low = x[0], high = x[0], zero = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        zero += x[i] * 0.0f;
    }
    if (zero != 0) {
        memset(code_out, 0, n);
        *scale_out = *least_out = 0;
        return false;
    }
    kv_affine_of(low, high, top, scale_out, least_out);
    const float least = f16_to_f32(*least_out), most = (float)top;
    const float scale = f16_to_f32(*scale_out), up = scale > 0 ? 1.0f / scale : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const float c = (x[i] - least) * up + 0.5f;
        code_out[i] = (uint8_t)(c >= most ? (int)top : c < 0.0f ? 0 : (int)c);
    }
    return true;
}

void kv_rotate(float *x, uint32_t n, uint32_t order)
{
    assert(order && n % order == 0);
    for (uint32_t half = 1; half < order; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j++) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
    const float unit = 1.0f / sqrtf((float)order);
    for (uint32_t i = 0; i < n; i++)
        x[i] *= unit;
}

void kv_rotate_partial(const struct attn_shape *shape, uint32_t n, float *partial)
{
    float *o = partial_o(partial);
    for (uint32_t i = 0; i < n; i++, o += shape->head_dim)
        kv_rotate(o, shape->head_dim, kv_rotation_order(shape->head_dim));
}

float kv_quantize_q(const struct attn_shape *shape, const float *q, int16_t *q_out, float *sum_out)
{
    const uint32_t d = shape->head_dim;
    float x[ATTN_HEAD_DIM_MAX], top = 0.0f, zero = 0.0f;
    for (uint32_t i = 0; i < d; i++)
        x[i] = bf16_to_f32(f32_to_bf16(q[i]));
    if (shape->codec == KV_INT4_ROT)
        kv_rotate(x, d, kv_rotation_order(d));
    for (uint32_t i = 0; i < d; i++) {
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        zero += x[i] * 0.0f;
    }
    const float up = KV_Q_MAX / top;
    if (zero != 0 || !isfinite(up)) { /* not finite, or so small that it might as well be zero */
        memset(q_out, 0, d * sizeof *q_out);
        *sum_out = 0;
        return zero != 0 ? NAN : 0;
    }
    int32_t sum = 0;
    for (uint32_t i = 0; i < d; i++) {
        q_out[i] = (int16_t)kv_round(x[i] * up);
        sum += q_out[i];
    }
    *sum_out = (float)sum;
    return top / KV_Q_MAX;
}

size_t kv_q_tile_bytes(const struct attn_shape *shape)
{
    return ATTN_ROWS * (2 * sizeof(float) + shape->head_dim * sizeof(int16_t));
}

void kv_pack_q(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    float *scale = q_tile, *sum = scale + ATTN_ROWS;
    int16_t *out = (int16_t *)(void *)(sum + ATTN_ROWS);
    assert(n <= ATTN_ROWS);
    memset(q_tile, 0, kv_q_tile_bytes(shape));
    for (uint32_t i = 0; i < n; i++)
        scale[i] = kv_quantize_q(shape, q[i], out + (size_t)i * shape->head_dim, &sum[i]);
}

float kv_quantize_w(const float *p, const uint16_t *scale, int16_t *w_out)
{
    float w[KV_BLOCK], top = 0.0f;
    for (int t = 0; t < KV_BLOCK; t++) {
        w[t] = p[t] * f16_to_f32(scale[t]);
        w[t] = w[t] > 0 ? w[t] : 0.0f;
        top = w[t] > top ? w[t] : top;
    }
    const float up = KV_W_MAX / top;
    if (!isfinite(up) || up == 0) { /* nothing is seen; a scale that seal does not write shows */
        memset(w_out, 0, KV_BLOCK * sizeof *w_out);
        return up == 0 ? NAN : 0;
    }
    for (int t = 0; t < KV_BLOCK; t++)
        w_out[t] = (int16_t)kv_round(w[t] * up);
    return top / KV_W_MAX;
}

/* Code of a key: channel of position t. Values: position as channel, channel as t, of a head of KV_BLOCK channels and head_dim positions. */
static int32_t code_at(const struct attn_shape *shape, const uint8_t *codes, uint32_t n, uint32_t columns, uint32_t row,
                       uint32_t column)
{
    if (shape->codec == KV_INT8)
        return (int8_t)codes[((size_t)(row / 4) * columns + column) * 4 + row % 4];
    const uint32_t low = row % (n / 2);
    const uint8_t both = codes[((size_t)(low / 4) * columns + column) * 4 + low % 4];
    return row < n / 2 ? both & 15 : both >> 4;
}

/* sums [columns] = sum over n rows of a[row] code[row][column] */
static void sums(const struct attn_shape *shape, const int16_t *a, const void *part, uint32_t n, uint32_t columns,
                 int32_t *sums_out)
{
    for (uint32_t c = 0; c < columns; c++) {
        sums_out[c] = 0;
        for (uint32_t r = 0; r < n; r++)
            sums_out[c] += a[r] * code_at(shape, part, n, columns, r, c);
    }
}

void kv_outputs_c(const struct attn_shape *shape, const float p[KV_BLOCK], const void *v_part, float *o)
{
    int16_t w[KV_BLOCK];
    int32_t y[ATTN_HEAD_DIM_MAX];
    float base = 0.0f;
    const float w_scale = kv_quantize_w(p, kv_scales(shape, v_part), w);
    for (int t = 0; t < KV_BLOCK && shape->codec != KV_INT8; t++)
        base += p[t] * f16_to_f32(kv_leasts(shape, v_part)[t]);
    sums(shape, w, v_part, KV_BLOCK, shape->head_dim, y);
    for (uint32_t i = 0; i < shape->head_dim; i++)
        o[i] = w_scale * (float)y[i] + base;
}

void kv_block_c(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    const uint32_t d = shape->head_dim;
    const float *q_scale = q_tile, *q_sum = q_scale + ATTN_ROWS;
    const uint16_t *scale = kv_scales(shape, k_part), *least = kv_leasts(shape, k_part);
    (void)next_k_part;
    assert(n <= ATTN_ROWS);
    for (uint32_t r = 0; r < n; r++) {
        int32_t x[KV_BLOCK];
        float s[KV_BLOCK], m = -INFINITY, l = 0.0f;
        sums(shape, kv_tile_q(q_tile) + (size_t)r * d, k_part, d, KV_BLOCK, x);
        for (int t = 0; t < KV_BLOCK; t++) {
            const float base = shape->codec == KV_INT8 ? 0.0f : f16_to_f32(least[t]) * q_sum[r];
            s[t] = (f16_to_f32(scale[t]) * (float)x[t] + base) * (q_scale[r] * shape->scale);
        }
        for (int t = 0; t < visible[r]; t++)
            m = s[t] > m ? s[t] : m;
        for (int t = 0; t < KV_BLOCK; t++)
            s[t] = t < visible[r] ? exp_f32(s[t] - m) : 0.0f;
        for (int t = 0; t < KV_BLOCK; t++)
            l += s[t];
        kv_outputs_c(shape, s, v_part, partial_o(partial_out) + (size_t)r * d);
        partial_out[r] = m;
        partial_l(partial_out)[r] = l;
    }
}
