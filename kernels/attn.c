#include "kernels/kernels.h"

#include "kernels/cpu/attn.h"

/* rtol: p is rounded to bf16, so a last-bit difference of a score moves a p by up to 2^-8 of itself; rows where none does differ by 1e-6. */
const struct attn_impl attn_impls[] = {
    { "amx", CPU_AMX, attn_accepts_amx, attn_part_bytes, attn_store, attn_q_tile_bytes_amx, attn_pack_q_amx,
      attn_block_amx, attn_merge_avx512, 4e-3f, NULL, NULL, NULL },
    { "avx512", CPU_AVX512, attn_accepts_avx512, attn_part_bytes, attn_store, attn_q_tile_bytes_f32, attn_pack_q_f32,
      attn_block_avx512, attn_merge_avx512, 4e-3f, NULL, NULL, NULL },
    { "avx2", CPU_AVX2, attn_accepts_avx2, attn_part_bytes, attn_store, attn_q_tile_bytes_f32, attn_pack_q_f32,
      attn_block_avx2, attn_merge_avx2, 4e-3f, NULL, NULL, NULL },
    { "c", 0, attn_accepts_c, attn_part_bytes, attn_store, attn_q_tile_bytes_f32, attn_pack_q_f32, attn_block_c,
      attn_merge_c, 0, NULL, NULL, NULL },
};
const uint32_t n_attn_impls = sizeof attn_impls / sizeof attn_impls[0];

static const struct attn_impl *find(const struct attn_impl *impls, uint32_t n, const struct attn_shape *shape,
                                    uint32_t caps)
{
    for (uint32_t i = 0; i < n; i++)
        if ((impls[i].needs & ~caps) == 0 && impls[i].accepts(shape))
            return &impls[i];
    return NULL;
}

const struct attn_impl *attn_find(const struct attn_shape *shape, uint32_t caps)
{
    const struct attn_impl *open = find(attn_impls, n_attn_impls, shape, caps);
    return open ? open : find(coded_impls, n_coded_impls, shape, caps);
}
