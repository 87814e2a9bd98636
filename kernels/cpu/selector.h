#ifndef LONGSPAN_KERNELS_CPU_SELECTOR_H
#define LONGSPAN_KERNELS_CPU_SELECTOR_H

/* The functions behind the rows of selector_impls (kernels/selector.c), as struct selector_impl documents them. */

#include "kernels/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SELECTOR_HEAD_DIM_MAX = 256 };

/* Channel d of the key at a position of an open block. */
static inline float selector_key(enum kv_codec open, const void *k_part, uint32_t position, uint32_t d)
{
    if (open == KV_F32)
        return ((const float *)k_part)[(size_t)d * KV_BLOCK + position];
    return bf16_to_f32(((const uint16_t *)k_part)[((size_t)(d / 2) * KV_BLOCK + position) * 2 + d % 2]);
}

/* [n_kv_heads][lowest, highest][head_dim] bf16, or f32: exact, they are keys. */
size_t selector_quest_bytes(const struct selector_shape *shape);
void selector_quest_sketch(const struct selector_shape *shape, const void *const *k_parts, const float *q_means,
                           void *sketch_out);
void selector_quest_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                            const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_quest_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                               const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_quest_score_avx512(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                 const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);

/*
 * [query half, key half][r] f32, r = min(SELECTOR_WALK_DIM, n), n = head_dim rounded up to a power of two. A half is the block's mean vector (of positions'
 * means over heads, positions ascending), signs flipped, through the Walsh-Hadamard transform, r coordinates of it divided by sqrt(r): <query, key>
 * is an unbiased estimate of the means' product, exact for r = n.
 * Signs and coordinates are drawn once for all heads, layers and workers: sign i is the top bit of rng_at(SELECTOR_WALK_SEED, 0, i); coordinates are the first
 * r of 0 .. n-1 shuffled (place i takes what place i + rng_at(SELECTOR_WALK_SEED, 1, i) mod (n - i) has), ascending.
 */
#define SELECTOR_WALK_SEED 0x534B4554434836ull
size_t selector_walk_bytes(const struct selector_shape *shape);
void selector_walk_sketch(const struct selector_shape *shape, const void *const *k_parts, const float *q_means,
                          void *sketch_out);
void selector_walk_logits_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                            float *logits_out);
void selector_walk_weights_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                             float *logits, uint16_t *w_out);
/* x [n], n a power of two: (u, v) -> (u + v, u - v) at distances 1, 2, 4, .. */
void selector_fwht(float *x, uint32_t n);
/* signs_out [n] 1 or -1, coordinates_out [r] */
void selector_walk_draw(uint32_t n, uint32_t r, float *signs_out, uint32_t *coordinates_out);

#ifdef __cplusplus
}
#endif
#endif
