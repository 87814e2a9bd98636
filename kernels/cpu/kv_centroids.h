#ifndef LONGSPAN_KERNELS_CPU_KV_CENTROIDS_H
#define LONGSPAN_KERNELS_CPU_KV_CENTROIDS_H

/* Centroids of a calibration, of codecs that code by the nearest of some: bf16 [n_layers][n_kv_heads][groups][centroids][channels]. */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An array of this shape whose numbers are above no model's, and far below what could become infinite: 2^60. ST_NOT_FOUND, ST_INVALID: err names what is not. */
enum status kv_centroids_check(const struct attn_shape *shape, const struct calibration *c, const char *array,
                               const uint32_t dims[5], struct error *err);
/* Those of one KV head in one layer, [groups][centroids][channels], borrowed. The array has passed the check. */
const uint16_t *kv_centroids_of(const struct calibration *c, const char *array, uint32_t layer, uint32_t kv_head);

#ifdef __cplusplus
}
#endif
#endif
