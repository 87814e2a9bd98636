#ifndef LONGSPAN_KERNELS_CPU_LINEAR_VARIANTS_H
#define LONGSPAN_KERNELS_CPU_LINEAR_VARIANTS_H

/* What the files of the linear op offer to its table (kernels/linear.c). Docs: struct linear_impl. */

#include "kernels/kernels.h"

size_t linear_scratch_c(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_c(const struct linear_args *args);

size_t linear_scratch_avx2(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_avx2(const struct linear_args *args);

size_t linear_scratch_avx512(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_avx512(const struct linear_args *args);

bool linear_accepts_bf16_amx(const struct linear_shape *shape);
size_t linear_scratch_bf16_amx(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_bf16_amx(const struct linear_args *args);

bool linear_accepts_lossless_vbmi2(const struct linear_shape *shape);
size_t linear_scratch_lossless_vbmi2(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_lossless_vbmi2(const struct linear_args *args);

bool linear_accepts_lossless_amx(const struct linear_shape *shape);
size_t linear_scratch_lossless_amx(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_lossless_amx(const struct linear_args *args);

bool linear_accepts_expanded_amx(const struct linear_shape *shape);
size_t linear_scratch_expanded_amx(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_expanded_amx(const struct linear_args *args);

bool linear_accepts_q_amx(const struct linear_shape *shape);
size_t linear_scratch_q_amx(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_q_amx(const struct linear_args *args);

/* One row, with the bits of the two variants around: sums of x [n_blocks][16], or NULL without m'; scratch: n_in floats, rounded up to 32. */
void linear_one_row_amx(const struct linear_args *args, const float *sums, float *scratch);

bool linear_accepts_q6_amx(const struct linear_shape *shape);
size_t linear_scratch_q6_amx(const struct linear_shape *shape, uint32_t n_rows);
void linear_run_q6_amx(const struct linear_args *args);

#endif
