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

/* The least and the greatest of a run's even and odd elements; 0 is +0. Several at a time, in lanes. -> false: not finite */
static bool bounds(const float x[KIVI_RUN], float low_out[2], float high_out[2])
{
    enum { LANES = 16 };
    float low[LANES], high[LANES], zero[LANES];
    for (uint32_t j = 0; j < LANES; j++) {
        low[j] = high[j] = x[j];
        zero[j] = x[j] * 0.0f;
    }
    for (uint32_t i = LANES; i < KIVI_RUN; i += LANES)
        for (uint32_t j = 0; j < LANES; j++) {
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
            zero[j] += x[i + j] * 0.0f;
        }
    float all = 0.0f;
    for (uint32_t j = 0; j < LANES; j++)
        all += zero[j];
    for (uint32_t j = 2; j < LANES; j++) {
        low[j % 2] = low[j] < low[j % 2] ? low[j] : low[j % 2];
        high[j % 2] = high[j] > high[j % 2] ? high[j] : high[j % 2];
    }
    for (uint32_t e = 0; e < 2; e++) {
        low_out[e] = low[e] + 0.0f;
        high_out[e] = high[e] + 0.0f;
    }
    return all == 0;
}

/* A run's codes, by kv_quantize_affine's rule. */
static bool quantize_run(const uint16_t *open, uint32_t top, uint8_t code[KIVI_RUN], uint16_t *scale_out,
                         uint16_t *least_out)
{
    float x[KIVI_RUN], low[2], high[2], least[KIVI_RUN], up[KIVI_RUN];
    const float most = (float)top;
    for (uint32_t i = 0; i < KIVI_RUN; i++)
        x[i] = bf16_to_f32(open[i]);
    if (!bounds(x, low, high)) {
        memset(code, 0, KIVI_RUN);
        memset(scale_out, 0, 2 * sizeof *scale_out);
        memset(least_out, 0, 2 * sizeof *least_out);
        return false;
    }
    for (uint32_t e = 0; e < 2; e++) {
        kv_affine_of(low[e], high[e], top, &scale_out[e], &least_out[e]);
        const float scale = f16_to_f32(scale_out[e]);
        least[e] = f16_to_f32(least_out[e]);
        up[e] = scale > 0 ? 1.0f / scale : 0.0f;
    }
    for (uint32_t i = 2; i < KIVI_RUN; i++) {
        least[i] = least[i - 2];
        up[i] = up[i - 2];
    }
    for (uint32_t i = 0; i < KIVI_RUN; i++) {
        const float c = (x[i] - least[i]) * up[i] + 0.5f, some = c < 0.0f ? 0.0f : c;
        code[i] = (uint8_t)(int32_t)(some >= most ? most : some);
    }
    return true;
}

static bool seal_part(const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t bits = kivi_bits(shape), bytes = KIVI_RUN * bits / 8, top = (1u << bits) - 1;
    const struct kivi_planes planes = kivi_planes(shape);
    uint16_t *scale = (uint16_t *)(void *)(part + planes.scale), *least = (uint16_t *)(void *)(part + planes.least);
    bool finite = true;
    for (uint32_t run = 0; run < shape->head_dim; run++, open += KIVI_RUN, part += bytes) {
        uint8_t code[KIVI_RUN];
        finite = quantize_run(open, top, code, &scale[2 * run], &least[2 * run]) && finite;
        if (bits == 4)
            for (uint32_t j = 0; j < 32; j++)
                part[j] = (uint8_t)(code[j] | code[j + 32] << 4);
        else
            for (uint32_t j = 0; j < 16; j++)
                part[j] = (uint8_t)(code[j] | code[j + 16] << 2 | code[j + 32] << 4 | code[j + 48] << 6);
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
