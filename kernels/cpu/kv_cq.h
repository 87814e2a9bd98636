#ifndef LONGSPAN_KERNELS_CPU_KV_CQ_H
#define LONGSPAN_KERNELS_CPU_KV_CQ_H

/*
 * cq-2b, cq-1b: Coupled Quantization (arXiv:2405.03917), CQ-4c8b and CQ-8c8b: c channels of a head that lie side by side, 4 or 8, are one code of 8 bits for
 * the nearest of 256 centroids, which were learned for the layer, the KV head and these channels. Keys are coded before RoPE: sealing turns them back by
 * their positions, expanding turns what the codes stand for.
 *   part   u8 [D/c groups][64 positions]
 *   book   centroids as planes f32 [D/c][c][256], to seal; then as bf16 [D/c][256][c], to expand. The planes' numbers are bf16, too.
 * Arithmetic is f32, each step rounded once: position j's angle of a channel is cos = cos_first cos_step - sin_first sin_step, sin = sin_first cos_step +
 * cos_first sin_step; channel i is turned with i + D/2 to x_i cos - x_(i+D/2) sin, x_(i+D/2) cos + x_i sin, and back to unscale (x_i cos + x_(i+D/2) sin),
 * unscale (x_(i+D/2) cos - x_i sin).
 */

#include "kernels/cpu/kv.h"
#include "model/kmeans.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CQ_CENTROIDS = 256 };

static inline uint32_t cq_channels(const struct attn_shape *shape)
{
    return shape->codec == KV_CQ_2B ? 4 : 8;
}
static inline const uint16_t *cq_centroids(const struct attn_shape *shape, const void *book)
{
    return (const uint16_t *)(const void *)((const float *)book + (size_t)shape->head_dim * CQ_CENTROIDS);
}

extern const struct kv_calibrated kv_calibrated_cq;

bool kv_accepts_cq(const struct attn_shape *shape);
size_t kv_part_bytes_cq(const struct attn_shape *shape);
bool kv_seal_cq(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
bool kv_seal_cq_avx2(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                     void *v_part);
bool kv_seal_cq_avx512(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                       void *v_part);
/* What these are made of. */
bool kv_seal_cq_with(kmeans_nearest_fn *nearest, const struct attn_shape *shape, const void *k_open, const void *v_open,
                     void *k_part, void *v_part);

void kv_expand_cq(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);
void kv_expand_cq_avx2(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);
void kv_expand_cq_avx512(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);

#ifdef __cplusplus
}
#endif
#endif
