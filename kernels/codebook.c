#include "kernels/codebook.h"

const struct codebook_impl codebook_impls[] = {
    { "avx512", CPU_AVX512, codebook_nearest_avx512 },
    { "avx2", CPU_AVX2, codebook_nearest_avx2 },
    { "c", 0, kmeans_nearest },
};
const uint32_t n_codebook_impls = sizeof codebook_impls / sizeof codebook_impls[0];

kmeans_nearest_fn *codebook_nearest_find(uint32_t caps)
{
    const struct codebook_impl *it = codebook_impls;
    while (it->needs & ~caps)
        it++;
    return it->nearest;
}
