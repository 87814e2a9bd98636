#ifndef LONGSPAN_KERNELS_CPU_SELECTOR_LABELS_H
#define LONGSPAN_KERNELS_CPU_SELECTOR_LABELS_H

/*
 * double-sparsity: scoring, as loops over the positions of a block that compilers make vectors of. Each variant is this, built for its ISA: every number
 * is made by the same operations in the same order, so the bits are the same.
 */

#include <math.h>

#include "common/f16.h"
#include "kernels/cpu/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline uint32_t labels_padded(uint32_t head_dim)
{
    return (selector_labels(head_dim) + 3) / 4 * 4;
}

static inline size_t labels_head_bytes(uint32_t head_dim)
{
    return labels_padded(head_dim) + (size_t)selector_labels(head_dim) * (KV_BLOCK / 2) + 4 * KV_BLOCK;
}

/* The best of a block's positions for one query. head: what the sketch has of its KV head */
static inline float labels_best(const uint8_t *head, uint32_t dim, const float *q)
{
    const uint32_t n = selector_labels(dim);
    const uint8_t *codes = head + labels_padded(dim);
    const uint16_t *scale = (const uint16_t *)(const void *)(codes + (size_t)n * (KV_BLOCK / 2)),
                   *least = scale + KV_BLOCK;
    float sum[KV_BLOCK] = { 0 }, all = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float x = q[head[i]];
        const uint8_t *code = codes + (size_t)i * (KV_BLOCK / 2);
        for (uint32_t p = 0; p < KV_BLOCK / 2; p++)
            sum[p] += x * (float)(int32_t)(code[p] & 15);
        for (uint32_t p = 0; p < KV_BLOCK / 2; p++)
            sum[KV_BLOCK / 2 + p] += x * (float)(int32_t)(code[p] >> 4);
        all += x;
    }
    for (uint32_t p = 0; p < KV_BLOCK; p++)
        sum[p] = f16_to_f32(scale[p]) * sum[p] + f16_to_f32(least[p]) * all;
    for (uint32_t half = KV_BLOCK / 2; half; half /= 2)
        for (uint32_t p = 0; p < half; p++)
            sum[p] = sum[p + half] > sum[p] ? sum[p + half] : sum[p];
    return sum[0] + 0.0f; /* the better of two zeros depends on the instruction */
}

static inline void labels_score(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t group = shape->n_heads / shape->n_kv_heads, heads = head_end - head_begin;
    const size_t head_bytes = labels_head_bytes(shape->head_dim);
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t h = 0; h < heads; h++) {
            const uint8_t *head = (const uint8_t *)sketches[b] + (head_begin + h) * head_bytes;
            float most = -INFINITY;
            for (uint32_t g = 0; g < group; g++) {
                const float score = labels_best(head, shape->head_dim, q[(size_t)h * group + g]);
                most = score > most ? score : most;
            }
            scores_out[(size_t)h * n + b] = most;
        }
    }
}

#ifdef __cplusplus
}
#endif
#endif
