#ifndef LONGSPAN_KERNELS_CPU_X86_VEC_AVX2_H
#define LONGSPAN_KERNELS_CPU_X86_VEC_AVX2_H

/* Vector helpers for files built with AVX2 and FMA; empty elsewhere, so that the header compiles alone. */

#include "kernels/cpu/exp.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

/* 2^t for EXP2_MIN <= t <= 0, +0 below, NaN for NaN: exp_f32() in powers of two. */
static inline __m256 exp2_avx2(__m256 t)
{
    const __m256 keep = _mm256_cmp_ps(t, _mm256_set1_ps(EXP2_MIN), _CMP_NLT_UQ);
    const __m256 n = _mm256_floor_ps(t), f = _mm256_sub_ps(t, n);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EXP_C5), f, _mm256_set1_ps(EXP_C4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP_C3));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP_C2));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP_C1));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256 e =
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
    const __m256 nan = _mm256_cmp_ps(t, t, _CMP_UNORD_Q); /* the sum above may have made a number of it */
    return _mm256_blendv_ps(_mm256_and_ps(keep, e), t, nan);
}

static inline __m256 exp_avx2(__m256 x)
{
    const __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_NLT_UQ);
    return _mm256_and_ps(keep, exp2_avx2(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E))));
}

/* f32_to_bf16() of each lane, kept in f32: the low halves are zeros. */
static inline __m256i bf16_round_avx2(__m256 x)
{
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(up, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    return _mm256_and_si256(r, _mm256_set1_epi32((int)0xFFFF0000u));
}

static inline __m128i bf16_avx2(__m256 x)
{
    const __m256i h = _mm256_srli_epi32(bf16_round_avx2(x), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

/* All ones in the first n lanes, n <= 8. */
static inline __m256i lanes_avx2(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Sum and maximum of the lanes, halves onto halves. */
static inline float hsum_avx2(__m256 x)
{
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

static inline float hmax_avx2(__m256 x)
{
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#endif
#endif
