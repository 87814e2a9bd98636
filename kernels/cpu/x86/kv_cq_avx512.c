#include <immintrin.h>

#include "kernels/codebook.h"
#include "kernels/cpu/kv_cq.h"
#include "kernels/cpu/x86/kv_cq_values.h"
#include "kernels/cpu/x86/vec_avx512.h"

enum { LANES = 16 };

bool kv_seal_cq_avx512(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                       void *v_part)
{
    return kv_seal_cq_with(codebook_nearest_avx512, shape, k_open, v_open, k_part, v_part);
}

/* The first (odd: second) of pairs of bf16. */
static __m512 half_of(__m512i pairs, bool odd)
{
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xFFFF0000u))
                                   : _mm512_slli_epi32(pairs, 16));
}

/* Channels i, i + D/2 at LANES positions from j on, turned; bf16 in the upper halves. */
static inline void turn(const struct kv_angles *a, uint32_t i, uint32_t j, __m512 x, __m512 y, __m512i *low_out,
                        __m512i *high_out)
{
    const __m512 c = _mm512_set1_ps(a->first[0][i]), s = _mm512_set1_ps(a->first[1][i]),
                 cos_step = _mm512_load_ps(a->step[0] + (size_t)i * KV_BLOCK + j),
                 sin_step = _mm512_load_ps(a->step[1] + (size_t)i * KV_BLOCK + j);
    const __m512 cosines = _mm512_sub_ps(_mm512_mul_ps(c, cos_step), _mm512_mul_ps(s, sin_step)),
                 sines = _mm512_add_ps(_mm512_mul_ps(s, cos_step), _mm512_mul_ps(c, sin_step));
    *low_out = bf16_round_avx512(_mm512_sub_ps(_mm512_mul_ps(x, cosines), _mm512_mul_ps(y, sines)));
    *high_out = bf16_round_avx512(_mm512_add_ps(_mm512_mul_ps(y, cosines), _mm512_mul_ps(x, sines)));
}

static void expand_keys(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const uint32_t channels = cq_channels(shape), half = shape->head_dim / 2;
    const size_t group_size = (size_t)CQ_CENTROIDS * channels;
    const uint16_t *low = cq_centroids(shape, shape->books->data), *high = low + half / channels * group_size;
    for (uint32_t g = 0; g < half / channels; g++, low += group_size, high += group_size)
        for (uint32_t j = 0; j < KV_BLOCK; j += LANES) {
            const uint8_t *codes = part + (size_t)g * KV_BLOCK + j;
            const __m128i by =
                _mm_cvtsi32_si128(channels == 4 ? 1 : 2); /* pairs of channels of a centroid, as a shift */
            const __m512i at_low = _mm512_sll_epi32(_mm512_cvtepu8_epi32(_mm_load_si128((const void *)codes)), by),
                          at_high = _mm512_sll_epi32(_mm512_cvtepu8_epi32(_mm_load_si128(
                                                         (const void *)(codes + (size_t)half / channels * KV_BLOCK))),
                                                     by);
            for (uint32_t e = 0; e < channels; e += 2) {
                const uint32_t i = g * channels + e;
                const __m512i x = _mm512_i32gather_epi32(at_low, (const void *)(low + e), 4),
                              y = _mm512_i32gather_epi32(at_high, (const void *)(high + e), 4);
                __m512i low0, low1, high0, high1;
                turn(shape->books->angles, i, j, half_of(x, false), half_of(y, false), &low0, &high0);
                turn(shape->books->angles, i + 1, j, half_of(x, true), half_of(y, true), &low1, &high1);
                uint16_t *to = open + ((size_t)(i / 2) * KV_BLOCK + j) * 2;
                _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(low0, 16), low1));
                _mm512_store_si512(to + (size_t)half * KV_BLOCK, _mm512_or_si512(_mm512_srli_epi32(high0, 16), high1));
            }
        }
}

void kv_expand_cq_avx512(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out)
{
    cq_prefetch(next_part, kv_part_bytes_cq(shape));
    if (shape->books->values)
        cq_expand_values(shape, part, open_out);
    else
        expand_keys(shape, part, open_out);
}
