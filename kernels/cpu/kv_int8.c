/* int8: token-wise symmetric integers of 8 bits, one scale a position and KV head (as vLLM's per-token-head mode; scales in a plane of their own). */
#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv.h"

bool kv_accepts_int8(const struct attn_shape *shape)
{
    return shape->codec == KV_INT8 && shape->head_dim >= 4 && shape->head_dim % 4 == 0;
}

/* Of one position's x [n]. The scale is rounded up to f16, so that no code passes 127. -> false: not finite */
static bool quantize(const float *x, uint32_t n, int8_t *code_out, uint16_t *scale_out)
{
    float top = 0.0f, zero = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        zero += x[i] * 0.0f;
    }
    if (zero != 0) {
        memset(code_out, 0, n);
        *scale_out = 0;
        return false;
    }
    *scale_out = kv_f16_of(top / 127.0f);
    if (f16_to_f32(*scale_out) * 127.0f < top && *scale_out < 0x7BFF)
        ++*scale_out;
    const float scale = f16_to_f32(*scale_out), up = scale > 0 ? 1.0f / scale : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const float c = x[i] * up;
        code_out[i] = (int8_t)kv_round(c > 127.0f ? 127.0f : c < -127.0f ? -127.0f : c);
    }
    return true;
}

bool kv_seal_int8_values(const struct attn_shape *shape, const void *v_open, void *v_part)
{
    const uint32_t d = shape->head_dim;
    int8_t *v = v_part, code[256];
    uint16_t *scale = (uint16_t *)(uintptr_t)kv_scales(shape, v_part);
    float x[256];
    bool finite = true;
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        for (uint32_t i = 0; i < d; i++)
            x[i] = kv_open_value(v_open, d, t, i);
        finite = quantize(x, d, code, &scale[t]) && finite;
        for (uint32_t i = 0; i < d; i++)
            v[((size_t)(t / 4) * d + i) * 4 + t % 4] = code[i];
    }
    return finite;
}

bool kv_seal_int8(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    const uint32_t d = shape->head_dim;
    int8_t *k = k_part, code[256];
    uint16_t *k_scale = (uint16_t *)(uintptr_t)kv_scales(shape, k_part);
    float x[256];
    bool finite = true;
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        for (uint32_t i = 0; i < d; i++)
            x[i] = kv_open_key(k_open, t, i);
        finite = quantize(x, d, code, &k_scale[t]) && finite;
        for (uint32_t i = 0; i < d; i++)
            k[((size_t)(i / 4) * KV_BLOCK + t) * 4 + i % 4] = code[i];
    }
    return kv_seal_int8_values(shape, v_open, v_part) && finite;
}
