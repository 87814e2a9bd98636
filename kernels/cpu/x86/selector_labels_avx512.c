#include <immintrin.h>

#include "kernels/cpu/selector_labels.h"

enum { GROUP = 4 /* queries that share a block's codes */, PARTS = KV_BLOCK / 16 };

/* Codes of positions 0 .. 15, 16 .. 31, and so on, of a channel. */
static inline void codes_of(const uint8_t *code, __m512 codes_out[PARTS])
{
    const __m256i both = _mm256_loadu_si256((const void *)code), low = _mm256_and_si256(both, _mm256_set1_epi8(15)),
                  high = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    codes_out[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(low)));
    codes_out[1] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(low, 1)));
    codes_out[2] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(high)));
    codes_out[3] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(high, 1)));
}

static inline __m512 plane(const uint16_t *h)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)h));
}

/* The best of n queries, at most GROUP, over one block: products and sums are rounded apart, as in C. */
static inline __attribute__((always_inline)) float best(const uint8_t *head, uint32_t dim, const float *const *q,
                                                        uint32_t n)
{
    const uint32_t channels = selector_labels(dim);
    const uint8_t *codes = head + labels_padded(dim);
    const uint16_t *scale = (const uint16_t *)(const void *)(codes + (size_t)channels * (KV_BLOCK / 2)),
                   *least = scale + KV_BLOCK;
    __m512 sum[GROUP][PARTS], most = _mm512_set1_ps(-INFINITY);
    float all[GROUP] = { 0 };
    for (uint32_t g = 0; g < n; g++)
        for (uint32_t i = 0; i < PARTS; i++)
            sum[g][i] = _mm512_setzero_ps();
    for (uint32_t c = 0; c < channels; c++) {
        __m512 code[PARTS];
        codes_of(codes + (size_t)c * (KV_BLOCK / 2), code);
        for (uint32_t g = 0; g < n; g++) {
            const float x = q[g][head[c]];
            for (uint32_t i = 0; i < PARTS; i++)
                sum[g][i] = _mm512_add_ps(sum[g][i], _mm512_mul_ps(_mm512_set1_ps(x), code[i]));
            all[g] += x;
        }
    }
    for (uint32_t i = 0; i < PARTS; i++) {
        const __m512 s = plane(scale + i * 16), l = plane(least + i * 16);
        for (uint32_t g = 0; g < n; g++)
            most = _mm512_max_ps(most,
                                 _mm512_add_ps(_mm512_mul_ps(s, sum[g][i]), _mm512_mul_ps(l, _mm512_set1_ps(all[g]))));
    }
    return _mm512_reduce_max_ps(most) + 0.0f;
}

void selector_labels_score_avx512(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                  const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t group = shape->n_heads / shape->n_kv_heads, heads = head_end - head_begin, dim = shape->head_dim;
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t h = 0; h < heads; h++) {
            const uint8_t *head = (const uint8_t *)sketches[b] + (head_begin + h) * labels_head_bytes(dim);
            const float *const *of = q + (size_t)h * group;
            float most = -INFINITY;
            for (uint32_t g = 0; g < group; g += GROUP) {
                const float score =
                    group - g >= GROUP ? best(head, dim, of + g, GROUP) : best(head, dim, of + g, group - g);
                most = score > most ? score : most;
            }
            scores_out[(size_t)h * n + b] = most;
        }
    }
}
