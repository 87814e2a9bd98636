#ifndef LONGSPAN_KERNELS_CPU_X86_KV_CQ_VALUES_H
#define LONGSPAN_KERNELS_CPU_X86_KV_CQ_VALUES_H

/* What the AVX2 and AVX-512 variants of cq share: values are whole centroids, moved by 8 or 16 bytes. Empty elsewhere, so that the header compiles alone. */

#include "kernels/cpu/kv_cq.h"

#ifdef __AVX2__
#include <immintrin.h>

static inline void cq_prefetch(const uint8_t *next, size_t bytes)
{
    for (size_t i = 0; next && i < bytes; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
}

/* Two positions' centroids of a group of 4 (8) channels become 8 (16) numbers of an open part that lie side by side. */
static inline void cq_expand_values(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const uint32_t channels = cq_channels(shape), d = shape->head_dim;
    const uint16_t *group = cq_centroids(shape, shape->books->data);
    for (uint32_t g = 0; g < d / channels; g++, group += (size_t)CQ_CENTROIDS * channels, part += KV_BLOCK) {
        uint16_t *to = open + (size_t)g * channels * 2;
        for (uint32_t j = 0; j < KV_BLOCK; j += 2, to += 2 * (size_t)d) {
            const uint16_t *a = group + (size_t)part[j] * channels, *b = group + (size_t)part[j + 1] * channels;
            if (channels == 4) {
                _mm_store_si128((void *)to,
                                _mm_unpacklo_epi16(_mm_loadl_epi64((const void *)a), _mm_loadl_epi64((const void *)b)));
                continue;
            }
            const __m128i x = _mm_load_si128((const void *)a), y = _mm_load_si128((const void *)b);
            _mm_store_si128((void *)to, _mm_unpacklo_epi16(x, y));
            _mm_store_si128((void *)(to + 8), _mm_unpackhi_epi16(x, y));
        }
    }
}
#endif
#endif
