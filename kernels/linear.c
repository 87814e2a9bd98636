#include "kernels/kernels.h"

#include <stddef.h>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/linear_variants.h"

static bool any_shape(const struct linear_shape *shape)
{
    (void)shape;
    return true;
}

const struct linear_impl linear_impls[] = {
    /* name  needs  accepts  group_bytes  pack  scratch_bytes  run  rtol vs _c */
    { "amx", CPU_AMX, linear_accepts_bf16_amx, linear_group_bytes, linear_pack, linear_scratch_bf16_amx,
      linear_run_bf16_amx, 2e-6f },
    { "amx", CPU_AMX, linear_accepts_lossless_amx, linear_group_bytes, linear_pack, linear_scratch_lossless_amx,
      linear_run_lossless_amx, 2e-6f },
    { "amx", CPU_AMX, linear_accepts_q_amx, linear_group_bytes, linear_pack, linear_scratch_q_amx, linear_run_q_amx,
      5e-6f },
    { "amx", CPU_AMX, linear_accepts_q6_amx, linear_group_bytes, linear_pack, linear_scratch_q6_amx, linear_run_q6_amx,
      2e-6f },
    { "amx", CPU_AMX, linear_accepts_expanded_amx, linear_group_bytes, linear_pack, linear_scratch_expanded_amx,
      linear_run_expanded_amx, 2e-6f },
    { "avx512", CPU_AVX512 | CPU_VBMI2, linear_accepts_lossless_vbmi2, linear_group_bytes, linear_pack,
      linear_scratch_lossless_vbmi2, linear_run_lossless_vbmi2, 2e-6f },
    { "avx512", CPU_AVX512, any_shape, linear_group_bytes, linear_pack, linear_scratch_avx512, linear_run_avx512,
      2e-6f },
    { "avx2", CPU_AVX2, any_shape, linear_group_bytes, linear_pack, linear_scratch_avx2, linear_run_avx2, 2e-6f },
    { "c", 0, any_shape, linear_group_bytes, linear_pack, linear_scratch_c, linear_run_c, 0 },
};
const uint32_t n_linear_impls = sizeof linear_impls / sizeof *linear_impls;

const struct linear_impl *linear_find(const struct linear_shape *shape, uint32_t caps)
{
    for (uint32_t i = 0; i + 1 < n_linear_impls; i++)
        if ((linear_impls[i].needs & caps) == linear_impls[i].needs && linear_impls[i].accepts(shape))
            return &linear_impls[i];
    return &linear_impls[n_linear_impls - 1];
}

size_t linear_packed_bytes(const struct linear_impl *impl, const struct linear_shape *shape)
{
    const size_t n_groups = ((size_t)shape->n_out + LINEAR_GROUP - 1) / LINEAR_GROUP;
    return n_groups * impl->group_bytes(shape);
}
