#ifndef LONGSPAN_KERNELS_CPU_ROWS_H
#define LONGSPAN_KERNELS_CPU_ROWS_H

/* Variants of the row operations: the functions behind the rows of row_impls (kernels/rows.c), as struct row_impl documents them. */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ROW_VARIANT(isa)                                                                                               \
    void rmsnorm_##isa(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out,          \
                       uint32_t pad);                                                                                  \
    void add_##isa(float *x, const float *b, uint32_t n);                                                              \
    void rope_##isa(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos, const float *sin);                \
    void silu_mul_##isa(const float *gate, const float *up, uint32_t n, enum dtype out_type, void *out, uint32_t pad); \
    void attn_finish_##isa(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite);  \
    void logit_max_sum_##isa(const float *x, uint32_t n, uint32_t *argmax_out, float *max_out, float *sum_out)

ROW_VARIANT(c);
ROW_VARIANT(avx2);
ROW_VARIANT(avx512);

/* out[n..pad) = 0 */
void row_pad(enum dtype type, void *out, uint32_t n, uint32_t pad);

#ifdef __cplusplus
}
#endif
#endif
