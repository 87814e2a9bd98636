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

uint8_t kv_e4m3_of(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    const uint32_t sign = v.u >> 24 & 0x80u;
    v.u &= 0x7FFFFFFFu;
    if (v.f >= 448.0f)
        return (uint8_t)(sign | 0x7Eu);
    if (v.f < 0x1p-6f) /* a multiple of 2^-9, the smallest normal number included */
        return (uint8_t)(sign | (uint32_t)kv_round(v.f * 0x1p9f));
    const uint32_t up = v.u + 0x7FFFFu + (v.u >> 20 & 1u);
    const uint32_t h = (up - (120u << 23)) >> 20;
    return (uint8_t)(sign | (h > 0x7Eu ? 0x7Eu : h));
}

float kv_e4m3_to_f32(uint8_t code)
{
    return f16_to_f32((uint16_t)((code & 0x80u) << 8 | (code & 0x7Fu) << 7)) * 0x1p8f;
}

/* -> false: not finite */
static bool seal_part(const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t n = KV_BLOCK * shape->head_dim;
    float top = 0.0f, zero = 0.0f, scale[16] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        const float x = bf16_to_f32(open[i]);
        top = fabsf(x) > top ? fabsf(x) : top;
        zero += x * 0.0f;
    }
    memset(part, 0, kv_part_bytes_fp8(shape));
    if (zero != 0)
        return false;
    int exponent; /* top = fraction 2^exponent, fraction in 0.5 .. 1; 448 = 0.875 2^9 */
    const float fraction = frexpf(top, &exponent);
    exponent -= fraction > 0.875f ? 8 : 9;
    if (top == 0 || exponent < LEAST_EXPONENT)
        exponent = LEAST_EXPONENT;
    scale[0] = ldexpf(1.0f, exponent);
    const float up = ldexpf(1.0f, -exponent);
    for (uint32_t i = 0; i < n; i++)
        part[i] = kv_e4m3_of(bf16_to_f32(open[i]) * up);
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
