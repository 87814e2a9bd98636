#ifndef LONGSPAN_KERNELS_CPU_X86_KV_VARIANTS_H
#define LONGSPAN_KERNELS_CPU_X86_KV_VARIANTS_H

/* Variants of attention over coded blocks: the functions behind the rows of coded_impls (kernels/kv.c). */

#include "kernels/cpu/kv.h"

#ifdef __cplusplus
extern "C" {
#endif

bool kv_accepts_avx2(const struct attn_shape *shape);
/* The tile of kv_pack_q, with the integers of each four in the order 0, 2, 1, 3. */
void kv_pack_q_avx2(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void kv_block_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                   const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);

/*
 * Up to four vectors' scores (x + base) unit, x [rows][KV_BLOCK], to their partials over int8 values. x has room for [4][head_dim] and is not kept; 64-byte aligned.
 * base, unit, m_out, l_out [rows]; o [rows][head_dim].
 */
void kv_outputs_int8_avx2(const struct attn_shape *shape, uint32_t rows, int32_t *x, const float *unit,
                          const float *base, const uint8_t *visible, const uint8_t *v_part, float *m_out, float *l_out,
                          float *o);

bool kv_accepts_avx512(const struct attn_shape *shape);
/* As kv_rotate_partial, the same bits. */
void kv_rotate_partial_avx512(const struct attn_shape *shape, uint32_t n, float *partial);
/* As kv_pack_q_avx2. */
void kv_pack_q_avx512(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void kv_block_avx512(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                     const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);

bool kv_accepts_amx(const struct attn_shape *shape);
/* q_scale f32 [ATTN_ROWS], sum f32 [ATTN_ROWS], then A operands i8 [head_dim / 64][ATTN_ROWS][high, low][64]. */
size_t kv_q_tile_bytes_amx(const struct attn_shape *shape);
void kv_pack_q_amx(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void kv_block_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                  const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
/* kv_block_amx of int4-rot for one to four vectors. */
void kv_block_few_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                      const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);

#ifdef __cplusplus
}
#endif
#endif
