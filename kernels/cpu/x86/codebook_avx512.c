#include <immintrin.h>
#include <math.h>

#include "kernels/codebook.h"

enum { LANES = 16, TOGETHER = 4 }; /* vectors of x that share the loads of centroids */

/* The least of the lanes, and of equal ones the one that stands for the lowest centroid. */
static uint32_t choose(__m512 least, __m512i at, float *distance_out)
{
    const float d = _mm512_reduce_min_ps(least);
    const __mmask16 equal = _mm512_cmp_ps_mask(least, _mm512_set1_ps(d), _CMP_EQ_OQ);
    *distance_out = d;
    return _mm512_mask_reduce_min_epu32(equal, at);
}

/* n is 1 or TOGETHER: constant where it is inlined. */
static inline __attribute__((always_inline)) void nearest(const float *planes, uint32_t room, uint32_t n_dims,
                                                          const float *x, int n, uint8_t *code_out, float *distance_out)
{
    __m512 least[TOGETHER];
    __m512i at[TOGETHER], i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int j = 0; j < n; j++) {
        least[j] = _mm512_set1_ps(INFINITY);
        at[j] = i;
    }
    for (uint32_t base = 0; base < room; base += LANES, i = _mm512_add_epi32(i, _mm512_set1_epi32(LANES))) {
        __m512 d[TOGETHER];
        for (int j = 0; j < n; j++)
            d[j] = _mm512_setzero_ps();
        for (uint32_t e = 0; e < n_dims; e++) {
            const __m512 c = _mm512_load_ps(planes + (size_t)e * room + base);
            for (int j = 0; j < n; j++) {
                const __m512 step = _mm512_sub_ps(_mm512_set1_ps(x[(size_t)j * n_dims + e]), c);
                d[j] = _mm512_add_ps(d[j], _mm512_mul_ps(step, step));
            }
        }
        for (int j = 0; j < n; j++) {
            const __mmask16 less = _mm512_cmp_ps_mask(d[j], least[j], _CMP_LT_OQ);
            least[j] = _mm512_mask_mov_ps(least[j], less, d[j]);
            at[j] = _mm512_mask_mov_epi32(at[j], less, i);
        }
    }
    for (int j = 0; j < n; j++) {
        float d;
        code_out[j] = (uint8_t)choose(least[j], at[j], &d);
        if (distance_out)
            distance_out[j] = d;
    }
}

void codebook_nearest_avx512(const float *planes, uint32_t room, uint32_t n_dims, const float *x, uint32_t n,
                             uint8_t *code_out, float *distance_out)
{
    uint32_t j = 0;
    for (; j + TOGETHER <= n; j += TOGETHER)
        nearest(planes, room, n_dims, x + (size_t)j * n_dims, TOGETHER, code_out + j,
                distance_out ? distance_out + j : NULL);
    for (; j < n; j++)
        nearest(planes, room, n_dims, x + (size_t)j * n_dims, 1, code_out + j, distance_out ? distance_out + j : NULL);
}
