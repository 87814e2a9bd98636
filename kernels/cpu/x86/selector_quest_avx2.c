#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/selector.h"

enum { GROUP = 4 }; /* queries that share a pass over a block's bounds */

static inline __m256 bounds(const struct selector_shape *shape, const void *sketch, size_t at)
{
    if (shape->open == KV_F32)
        return _mm256_loadu_ps((const float *)sketch + at);
    const __m128i h = _mm_loadu_si128((const void *)((const uint16_t *)sketch + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* Lanes join by halves. */
static inline float joined(__m256 low, __m256 high)
{
    const __m256 a = _mm256_add_ps(low, high);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

static inline __m256 product(__m256 x, __m256 lo, __m256 hi)
{
    const __m256 up = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ);
    return _mm256_mul_ps(x, _mm256_blendv_ps(lo, hi, up));
}

/* The best of n queries, at most GROUP, over one block: products and sums are rounded apart, as in C. */
static inline __attribute__((always_inline)) float best(const struct selector_shape *shape, size_t first,
                                                        const float *const *q, uint32_t n, const void *sketch)
{
    const uint32_t dim = shape->head_dim;
    __m256 sum[GROUP][2];
    float most = -INFINITY;
    for (uint32_t g = 0; g < GROUP; g++)
        sum[g][0] = sum[g][1] = _mm256_setzero_ps();
    for (uint32_t d = 0; d < dim; d += 16) {
        for (uint32_t half = 0; half < 2; half++) {
            const size_t at = first + d + half * 8;
            const __m256 lo = bounds(shape, sketch, at), hi = bounds(shape, sketch, at + dim);
            for (uint32_t g = 0; g < n; g++)
                sum[g][half] = _mm256_add_ps(sum[g][half], product(_mm256_loadu_ps(q[g] + d + half * 8), lo, hi));
        }
    }
    for (uint32_t g = 0; g < n; g++) {
        const float score = joined(sum[g][0], sum[g][1]);
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
void selector_quest_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
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
