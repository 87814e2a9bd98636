#include "kernels/kernels.h"

#include "kernels/cpu/rows.h"

const struct row_impl row_impls[] = {
    { "avx512", CPU_AVX512, rmsnorm_avx512, add_avx512, rope_avx512, silu_mul_avx512, attn_finish_avx512,
      logit_max_sum_avx512 },
    { "avx2", CPU_AVX2, rmsnorm_avx2, add_avx2, rope_avx2, silu_mul_avx2, attn_finish_avx2, logit_max_sum_avx2 },
    { "c", 0, rmsnorm_c, add_c, rope_c, silu_mul_c, attn_finish_c, logit_max_sum_c },
};
const uint32_t n_row_impls = sizeof row_impls / sizeof *row_impls;

const struct row_impl *row_find(uint32_t caps)
{
    for (uint32_t i = 0; i + 1 < n_row_impls; i++)
        if ((row_impls[i].needs & caps) == row_impls[i].needs)
            return &row_impls[i];
    return &row_impls[n_row_impls - 1];
}
