#include "kernels/cpu/selector.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

size_t selector_quest_bytes(const struct selector_shape *shape)
{
    return 2 * (size_t)shape->n_kv_heads * shape->head_dim * (shape->open == KV_F32 ? 4 : 2);
}

void selector_quest_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out)
{
    const uint32_t dim = shape->head_dim;
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        for (uint32_t d = 0; d < dim; d++) {
            float lo = selector_key(shape->open, block->k_parts[j], 0, d), hi = lo;
            for (uint32_t p = 1; p < KV_BLOCK; p++) {
                const float k = selector_key(shape->open, block->k_parts[j], p, d);
                lo = k < lo ? k : lo;
                hi = k > hi ? k : hi;
            }
            const size_t at = (size_t)j * 2 * dim + d;
            if (shape->open == KV_F32) {
                ((float *)sketch_out)[at] = lo;
                ((float *)sketch_out)[at + dim] = hi;
            } else {
                ((uint16_t *)sketch_out)[at] = f32_to_bf16(lo);
                ((uint16_t *)sketch_out)[at + dim] = f32_to_bf16(hi);
            }
        }
    }
}

bool selector_quest_valid(const struct selector_shape *shape, const void *sketch)
{
    const size_t n = 2 * (size_t)shape->n_kv_heads * shape->head_dim;
    uint32_t bad = 0;
    for (size_t i = 0; i < n && shape->open == KV_BF16; i++)
        bad |= (((const uint16_t *)sketch)[i] & 0x7F80u) == 0x7F80u;
    for (size_t i = 0; i < n && shape->open == KV_F32; i++)
        bad |= (((const uint32_t *)sketch)[i] & 0x7F800000u) == 0x7F800000u;
    return !bad;
}

static float bound_at(const struct selector_shape *shape, const void *sketch, size_t at)
{
    return shape->open == KV_F32 ? ((const float *)sketch)[at] : bf16_to_f32(((const uint16_t *)sketch)[at]);
}

void selector_quest_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                            const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t dim = shape->head_dim, group = shape->n_heads / shape->n_kv_heads;
    for (uint32_t head = head_begin; head < head_end; head++, q += group, scores_out += n) {
        const size_t first = (size_t)head * 2 * dim;
        for (uint32_t b = 0; b < n; b++) {
            scores_out[b] = -INFINITY;
            for (uint32_t g = 0; g < group; g++) {
                float lane[LANES] = { 0 };
                for (uint32_t d = 0; d < dim; d++) { /* max(q lo, q hi), as lo <= hi */
                    const float bound = bound_at(shape, sketches[b], first + d + (q[g][d] >= 0 ? dim : 0));
                    lane[d % LANES] += q[g][d] * bound;
                }
                for (uint32_t half = LANES / 2; half; half /= 2)
                    for (uint32_t i = 0; i < half; i++)
                        lane[i] += lane[i + half];
                if (lane[0] > scores_out[b])
                    scores_out[b] = lane[0];
            }
        }
    }
}
