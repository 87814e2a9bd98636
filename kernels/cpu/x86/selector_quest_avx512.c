#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/selector.h"

enum { GROUP = 4 }; /* queries that share a pass over a block's bounds */

static inline __m512 bounds(const struct selector_shape *shape, const void *sketch, size_t at)
{
    if (shape->open == KV_F32)
        return _mm512_loadu_ps((const float *)sketch + at);
    const __m256i h = _mm256_loadu_si256((const void *)((const uint16_t *)sketch + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Lanes join by halves. */
static inline float joined(__m512 lanes)
{
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* The best of n queries, at most GROUP, over one block: products and sums are rounded apart, as in C. */
static inline __attribute__((always_inline)) float best(const struct selector_shape *shape, size_t first,
                                                        const float *const *q, uint32_t n, const void *sketch)
{
    const uint32_t dim = shape->head_dim;
    __m512 sum[GROUP];
    float most = -INFINITY;
    for (uint32_t g = 0; g < GROUP; g++)
        sum[g] = _mm512_setzero_ps();
    for (uint32_t d = 0; d < dim; d += 16) {
        const __m512 lo = bounds(shape, sketch, first + d), hi = bounds(shape, sketch, first + dim + d);
        for (uint32_t g = 0; g < n; g++) {
            const __m512 x = _mm512_loadu_ps(q[g] + d);
            const __mmask16 up = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
            sum[g] = _mm512_add_ps(sum[g], _mm512_mul_ps(x, _mm512_mask_blend_ps(up, lo, hi)));
        }
    }
    for (uint32_t g = 0; g < n; g++) {
        const float score = joined(sum[g]);
        most = score > most ? score : most;
    }
    return most;
}

/* One head's best over one block. */
static inline float best_of(const struct selector_shape *shape, uint32_t head, const float *const *q, uint32_t group,
                            const void *sketch)
{
    const size_t first = (size_t)head * 2 * shape->head_dim;
    float most = -INFINITY;
    for (uint32_t g = 0; g < group; g += GROUP) {
        const uint32_t left = group - g;
        const float score =
            left >= GROUP ? best(shape, first, q + g, GROUP, sketch) : best(shape, first, q + g, left, sketch);
        most = score > most ? score : most;
    }
    return most;
}

/* Block by block, all heads of it, as they lie in memory; sketches lie apart, so the one after the next is asked for meanwhile. */
void selector_quest_score_avx512(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                 const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t group = shape->n_heads / shape->n_kv_heads, heads = head_end - head_begin;
    const size_t head_bytes = 2 * (size_t)shape->head_dim * (shape->open == KV_F32 ? 4 : 2);
    if (shape->head_dim % 16) {
        selector_quest_score_c(shape, head_begin, head_end, q, sketches, n, scores_out);
        return;
    }
    for (uint32_t b = 0; b < n; b++) {
        const char *after = b + 2 < n ? (const char *)sketches[b + 2] + head_begin * head_bytes : NULL;
        for (uint32_t head = 0; head < heads; head++) {
            for (size_t i = 0; after && i < head_bytes; i += 64)
                _mm_prefetch(after + head * head_bytes + i, _MM_HINT_T0);
            scores_out[(size_t)head * n + b] =
                best_of(shape, head_begin + head, q + (size_t)head * group, group, sketches[b]);
        }
    }
}
