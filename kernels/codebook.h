#ifndef LONGSPAN_KERNELS_CODEBOOK_H
#define LONGSPAN_KERNELS_CODEBOOK_H

/* The nearest of a codebook's centroids, by vectors: variants of kmeans_nearest (model/kmeans.h), the same bits. */

#include "kernels/kernels.h"
#include "model/kmeans.h"

#ifdef __cplusplus
extern "C" {
#endif

struct codebook_impl {
    const char *name;
    uint32_t needs; /* enum cpu_cap */
    kmeans_nearest_fn *nearest;
};
/* Best first, `c` last. */
extern const struct codebook_impl codebook_impls[];
extern const uint32_t n_codebook_impls;
kmeans_nearest_fn *codebook_nearest_find(uint32_t caps);

kmeans_nearest_fn codebook_nearest_avx2, codebook_nearest_avx512;

#ifdef __cplusplus
}
#endif
#endif
