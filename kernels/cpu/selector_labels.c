/* double-sparsity: which channels of the keys are kept, and how. */
#include "kernels/cpu/selector_labels.h"

#include <string.h>

#include "kernels/cpu/kv.h"

size_t selector_labels_bytes(const struct selector_shape *shape)
{
    return shape->n_kv_heads * labels_head_bytes(shape->head_dim);
}

void selector_channels(const float *importance, uint32_t head_dim, uint32_t n, uint8_t *channels_out)
{
    bool kept[SELECTOR_HEAD_DIM_MAX] = { false };
    for (uint32_t i = 0; i < n; i++) {
        uint32_t best = head_dim;
        for (uint32_t d = 0; d < head_dim; d++)
            if (!kept[d] && (best == head_dim || importance[d] > importance[best]))
                best = d;
        kept[best] = true;
    }
    for (uint32_t d = 0, i = 0; d < head_dim; d++)
        if (kept[d])
            channels_out[i++] = (uint8_t)d;
}

/* The channels of the greatest mean magnitude in the block. */
static void choose(enum kv_codec open, const void *k_part, uint32_t dim, uint32_t n, uint8_t *channels_out)
{
    float sum[SELECTOR_HEAD_DIM_MAX] = { 0 };
    for (uint32_t d = 0; d < dim; d++)
        for (uint32_t p = 0; p < KV_BLOCK; p++)
            sum[d] += fabsf(selector_key(open, k_part, p, d));
    selector_channels(sum, dim, n, channels_out);
}

void selector_labels_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out)
{
    const uint32_t dim = shape->head_dim, n = selector_labels(dim), half = KV_BLOCK / 2;
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        uint8_t *channels = (uint8_t *)sketch_out + j * labels_head_bytes(dim), *codes = channels + labels_padded(dim);
        uint16_t *scale = (uint16_t *)(void *)(codes + (size_t)n * half), *least = scale + KV_BLOCK;
        if (block->channels)
            memcpy(channels, block->channels + (size_t)j * n, n);
        else
            choose(shape->open, block->k_parts[j], dim, n, channels);
        memset(channels + n, channels[n - 1], labels_padded(dim) - n);
        memset(codes, 0, (size_t)n * half);
        for (uint32_t p = 0; p < KV_BLOCK; p++) {
            float x[SELECTOR_HEAD_DIM_MAX];
            uint8_t code[SELECTOR_HEAD_DIM_MAX];
            for (uint32_t i = 0; i < n; i++)
                x[i] = selector_key(shape->open, block->k_parts[j], p, channels[i]);
            kv_quantize_affine(x, n, 15, code, &scale[p], &least[p]);
            for (uint32_t i = 0; i < n; i++)
                codes[i * half + p % half] |= (uint8_t)(code[i] << (p < half ? 0 : 4));
        }
    }
}

bool selector_labels_valid(const struct selector_shape *shape, const void *sketch)
{
    const uint32_t dim = shape->head_dim, n = labels_padded(dim);
    uint32_t bad = 0;
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        const uint8_t *head = (const uint8_t *)sketch + j * labels_head_bytes(dim);
        const uint16_t *planes =
            (const uint16_t *)(const void *)(head + n + (size_t)selector_labels(dim) * (KV_BLOCK / 2));
        for (uint32_t i = 0; i < n; i++)
            bad |= head[i] >= dim;
        for (uint32_t p = 0; p < 2 * KV_BLOCK; p++)
            bad |= (planes[p] & 0x7C00u) == 0x7C00u;
    }
    return !bad;
}

void selector_labels_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                             const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    labels_score(shape, head_begin, head_end, q, sketches, n, scores_out);
}
