#include <immintrin.h>
#include <math.h>

#include "kernels/codebook.h"

enum { LANES = 8, TOGETHER = 2 }; /* vectors of x that share the loads of centroids */

/* The least of the lanes, and of equal ones the one that stands for the lowest centroid. */
static uint32_t choose(__m256 least, __m256i at, float *distance_out)
{
    float d[LANES];
    uint32_t of[LANES], best = 0;
    _mm256_storeu_ps(d, least);
    _mm256_storeu_si256((void *)of, at);
    for (uint32_t i = 1; i < LANES; i++)
        best = d[i] < d[best] || (d[i] == d[best] && of[i] < of[best]) ? i : best;
    *distance_out = d[best];
    return of[best];
}

/* n is 1 or TOGETHER: constant where it is inlined. */
static inline __attribute__((always_inline)) void nearest(const float *planes, uint32_t room, uint32_t n_dims,
                                                          const float *x, int n, uint8_t *code_out, float *distance_out)
{
    __m256 least[TOGETHER];
    __m256i at[TOGETHER], i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int j = 0; j < n; j++) {
        least[j] = _mm256_set1_ps(INFINITY);
        at[j] = i;
    }
    for (uint32_t base = 0; base < room; base += LANES, i = _mm256_add_epi32(i, _mm256_set1_epi32(LANES))) {
        __m256 d[TOGETHER];
        for (int j = 0; j < n; j++)
            d[j] = _mm256_setzero_ps();
        for (uint32_t e = 0; e < n_dims; e++) {
            const __m256 c = _mm256_load_ps(planes + (size_t)e * room + base);
            for (int j = 0; j < n; j++) {
                const __m256 step = _mm256_sub_ps(_mm256_set1_ps(x[(size_t)j * n_dims + e]), c);
                d[j] = _mm256_add_ps(d[j], _mm256_mul_ps(step, step));
            }
        }
        for (int j = 0; j < n; j++) {
            const __m256 less = _mm256_cmp_ps(d[j], least[j], _CMP_LT_OQ);
            least[j] = _mm256_blendv_ps(least[j], d[j], less);
            at[j] = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(at[j]), _mm256_castsi256_ps(i), less));
        }
    }
    for (int j = 0; j < n; j++) {
        float d;
        code_out[j] = (uint8_t)choose(least[j], at[j], &d);
        if (distance_out)
            distance_out[j] = d;
    }
}

void codebook_nearest_avx2(const float *planes, uint32_t room, uint32_t n_dims, const float *x, uint32_t n,
                           uint8_t *code_out, float *distance_out)
{
    uint32_t j = 0;
    for (; j + TOGETHER <= n; j += TOGETHER)
        nearest(planes, room, n_dims, x + (size_t)j * n_dims, TOGETHER, code_out + j,
                distance_out ? distance_out + j : NULL);
    for (; j < n; j++)
        nearest(planes, room, n_dims, x + (size_t)j * n_dims, 1, code_out + j, distance_out ? distance_out + j : NULL);
}
