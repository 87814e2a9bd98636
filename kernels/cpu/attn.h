#ifndef LONGSPAN_KERNELS_CPU_ATTN_H
#define LONGSPAN_KERNELS_CPU_ATTN_H

/*
 * Variants of the attention op: the functions behind the rows of attn_impls (kernels/attn.c), as struct attn_impl documents them.
 * Layouts belong to the codec, so part_bytes and store are shared by all variants.
 */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTN_HEAD_DIM_MAX = 256 };

/* The parts of a partial, see attn_partial_floats(). */
static inline float *partial_l(float *partial)
{
    return partial + ATTN_ROWS;
}

static inline float *partial_o(float *partial)
{
    return partial + 2 * ATTN_ROWS;
}

bool attn_accepts_c(const struct attn_shape *shape);
size_t attn_part_bytes(const struct attn_shape *shape);
void attn_store(const struct attn_shape *shape, uint32_t offset, const float *k, const float *v, void *k_part,
                void *v_part);

/* Tiles of the C, AVX2 and AVX-512 variants: [ATTN_ROWS][head_dim] f32, rounded to bf16 for KV_BF16. */
size_t attn_q_tile_bytes_f32(const struct attn_shape *shape);
void attn_pack_q_f32(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);

void attn_block_c(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                  const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
void attn_merge_c(const struct attn_shape *shape, uint32_t n, float *a, const float *b);

bool attn_accepts_avx2(const struct attn_shape *shape);
void attn_block_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                     const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
void attn_merge_avx2(const struct attn_shape *shape, uint32_t n, float *a, const float *b);

bool attn_accepts_avx512(const struct attn_shape *shape);
void attn_block_avx512(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                       const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
void attn_merge_avx512(const struct attn_shape *shape, uint32_t n, float *a, const float *b);

bool attn_accepts_amx(const struct attn_shape *shape);
/* [head_dim / 32][ATTN_ROWS][32] bf16: A operands, 1 KB each. */
size_t attn_q_tile_bytes_amx(const struct attn_shape *shape);
void attn_pack_q_amx(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void attn_block_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                    const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);

#ifdef __cplusplus
}
#endif
#endif
