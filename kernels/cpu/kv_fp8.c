/*
 * fp8: E4M3 numbers (1 sign, 4 exponent, 3 mantissa bits; largest 448), of one power of two a block, KV head, and keys or values: the least that lets
 * all of them fit. Being a power of two it costs no precision, so a number's error is that of its three bits. As vLLM's and TensorRT-LLM's fp8 caches,
 * whose scales are of a tensor or a head and come from calibration.
 */
#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv_expand.h"

enum { LEAST_EXPONENT = -100 /* below it nothing is told from zero, and products with it stay normal numbers */ };

bool kv_accepts_fp8(const struct attn_shape *shape)
{
    return shape->codec == KV_FP8 && shape->head_dim >= 16 && shape->head_dim % 16 == 0;
}

size_t kv_part_bytes_fp8(const struct attn_shape *shape)
{
    return (size_t)KV_BLOCK * shape->head_dim + 64;
}

/* Without branches, so that loops vectorise. */
static inline uint8_t e4m3_of(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    const uint32_t sign = v.u >> 24 & 0x80u;
    v.u &= 0x7FFFFFFFu;
    /* below 2^-6 (as bits 121 << 23) a multiple of 2^-9, the smallest normal number included */
    const int32_t bits = (int32_t)v.u, few = 121 << 23;
    v.u = (uint32_t)(bits < few ? bits : few);
    const int32_t small = (int32_t)kv_round(v.f * 0x1p9f);
    const int32_t h = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3), most = h > 0x7E ? 0x7E : h;
    const int32_t below = (bits - few) >> 31; /* all ones, or 0 */
    return (uint8_t)(sign | (uint32_t)((small & below) | (most & ~below)));
}

uint8_t kv_e4m3_of(float x)
{
    return e4m3_of(x);
}

float kv_e4m3_to_f32(uint8_t code)
{
    return f16_to_f32((uint16_t)((code & 0x80u) << 8 | (code & 0x7Fu) << 7)) * 0x1p8f;
}

/* -> false: not finite */
static bool seal_part(const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t n = KV_BLOCK * shape->head_dim;
    int16_t most = 0; /* magnitudes of bf16 are ordered as their bits are */
    float scale[16] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        const int16_t x = (int16_t)(open[i] & 0x7FFF);
        most = x > most ? x : most;
    }
    memset(part, 0, kv_part_bytes_fp8(shape));
    if (most >= 0x7F80)
        return false;
    const float top = bf16_to_f32((uint16_t)most);
    int exponent; /* top = fraction 2^exponent, fraction in 0.5 .. 1; 448 = 0.875 2^9 */
    const float fraction = frexpf(top, &exponent);
    exponent -= fraction > 0.875f ? 8 : 9;
    if (top == 0 || exponent < LEAST_EXPONENT)
        exponent = LEAST_EXPONENT;
    scale[0] = ldexpf(1.0f, exponent);
    const float up = ldexpf(1.0f, -exponent);
    for (uint32_t i = 0; i < n; i++)
        part[i] = e4m3_of(bf16_to_f32(open[i]) * up);
    memcpy(part + n, scale, sizeof scale);
    return true;
}

bool kv_seal_fp8(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    const bool keys = seal_part(shape, k_open, k_part);
    return seal_part(shape, v_open, v_part) && keys;
}

void kv_expand_fp8(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const uint32_t n = KV_BLOCK * shape->head_dim;
    const uint8_t *part = part_bytes;
    uint16_t *open = open_out;
    float scale;
    (void)next_part;
    memcpy(&scale, part + n, sizeof scale);
    for (uint32_t i = 0; i < n; i++)
        open[i] = f32_to_bf16(kv_e4m3_to_f32(part[i]) * scale);
}
