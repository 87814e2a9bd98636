/*
 * kivi4, kivi2: affine integers of 4 or 2 bits; keys of one channel over 32 positions have a scale and a least value together, values of one position
 * over 32 channels. Source: KIVI (arXiv:2402.02750), groups of 32 in min form; its window of recent tokens in full precision is not kept: a block is
 * sealed whole, and a row reads its own block open. In the open form both are runs of 32 pairs of u16, so one function serves keys and values.
 */
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv_expand.h"

bool kv_accepts_kivi(const struct attn_shape *shape)
{
    return (shape->codec == KV_KIVI4 || shape->codec == KV_KIVI2) && shape->head_dim >= KIVI_GROUP &&
           shape->head_dim % KIVI_GROUP == 0;
}

size_t kv_part_bytes_kivi(const struct attn_shape *shape)
{
    const struct kivi_planes planes = kivi_planes(shape);
    return planes.least + (size_t)shape->head_dim * 2 * sizeof(uint16_t);
}

static bool seal_part(const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t bits = kivi_bits(shape), bytes = KIVI_RUN * bits / 8, top = (1u << bits) - 1;
    const struct kivi_planes planes = kivi_planes(shape);
    uint16_t *scale = (uint16_t *)(void *)(part + planes.scale), *least = (uint16_t *)(void *)(part + planes.least);
    bool finite = true;
    memset(part, 0, planes.scale);
    for (uint32_t run = 0; run < shape->head_dim; run++, open += KIVI_RUN, part += bytes)
        for (uint32_t e = 0; e < 2; e++) {
            float x[KIVI_GROUP];
            uint8_t code[KIVI_GROUP];
            for (uint32_t i = 0; i < KIVI_GROUP; i++)
                x[i] = bf16_to_f32(open[2 * i + e]);
            finite = kv_quantize_affine(x, KIVI_GROUP, top, code, &scale[2 * run + e], &least[2 * run + e]) && finite;
            for (uint32_t i = 0; i < KIVI_GROUP; i++) {
                const uint32_t at = 2 * i + e;
                part[at % bytes] |= (uint8_t)(code[i] << at / bytes * bits);
            }
        }
    return finite;
}

bool kv_seal_kivi(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    const bool keys = seal_part(shape, k_open, k_part);
    return seal_part(shape, v_open, v_part) && keys;
}

void kv_expand_kivi(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out)
{
    const uint32_t bits = kivi_bits(shape), bytes = KIVI_RUN * bits / 8, top = (1u << bits) - 1;
    const struct kivi_planes planes = kivi_planes(shape);
    const uint8_t *part = part_bytes;
    const uint16_t *scale = (const uint16_t *)(const void *)(part + planes.scale),
                   *least = (const uint16_t *)(const void *)(part + planes.least);
    uint16_t *open = open_out;
    (void)next_part;
    for (uint32_t run = 0; run < shape->head_dim; run++, open += KIVI_RUN, part += bytes)
        for (uint32_t at = 0; at < KIVI_RUN; at++) {
            const float c = (float)(part[at % bytes] >> at / bytes * bits & top);
            open[at] = f32_to_bf16(c * f16_to_f32(scale[2 * run + at % 2]) + f16_to_f32(least[2 * run + at % 2]));
        }
}
