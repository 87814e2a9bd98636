/*
 * int4-rot: keys and values times a block-diagonal Hadamard matrix inside the head, then token-wise affine integers of 4 bits, one scale and least
 * value a position and KV head. Source: SAW-INT4 (together.ai), in the min form: x = scale c + least, c in 0 .. 15. Values are rotated as keys are.
 */
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv.h"

bool kv_accepts_int4_rot(const struct attn_shape *shape)
{
    return shape->codec == KV_INT4_ROT && shape->head_dim >= 16 && shape->head_dim % 16 == 0;
}

bool kv_seal_int4_rot(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                      void *v_part)
{
    const uint32_t d = shape->head_dim, order = kv_rotation_order(d);
    uint8_t *k = k_part, *v = v_part, code[256];
    uint16_t *k_scale = (uint16_t *)(uintptr_t)kv_scales(shape, k_part),
             *v_scale = (uint16_t *)(uintptr_t)kv_scales(shape, v_part);
    float x[256];
    bool finite = true;
    memset(v, 0, kv_code_bytes(shape));
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        for (uint32_t i = 0; i < d; i++)
            x[i] = kv_open_key(k_open, t, i);
        kv_rotate(x, d, order);
        finite = kv_quantize_affine(x, d, 15, code, &k_scale[t], &k_scale[KV_BLOCK + t]) && finite;
        for (uint32_t i = 0; i < d / 2; i++)
            k[((size_t)(i / 4) * KV_BLOCK + t) * 4 + i % 4] = (uint8_t)(code[i] | code[i + d / 2] << 4);
        for (uint32_t i = 0; i < d; i++)
            x[i] = kv_open_value(v_open, d, t, i);
        kv_rotate(x, d, order);
        finite = kv_quantize_affine(x, d, 15, code, &v_scale[t], &v_scale[KV_BLOCK + t]) && finite;
        const uint32_t low = t % (KV_BLOCK / 2), shift = t < KV_BLOCK / 2 ? 0 : 4;
        for (uint32_t i = 0; i < d; i++)
            v[((size_t)(low / 4) * d + i) * 4 + low % 4] |= (uint8_t)(code[i] << shift);
    }
    return finite;
}
