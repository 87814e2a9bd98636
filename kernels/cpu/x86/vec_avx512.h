#ifndef LONGSPAN_KERNELS_CPU_X86_VEC_AVX512_H
#define LONGSPAN_KERNELS_CPU_X86_VEC_AVX512_H

/* Vector helpers for files built with AVX-512 (F, BW, VL, DQ); empty elsewhere, so that the header compiles alone. */

#include "kernels/cpu/exp.h"

#ifdef __AVX512DQ__
#include <immintrin.h>

/* 2^t for t <= 0, as exp_f32() but without its cut: below 2^-126 the result is denormal, or 0 under FTZ. -inf gives 0. */
static inline __m512 exp2_avx512(__m512 t)
{
    const __m512 f = _mm512_reduce_ps(t, 0x09); /* t - floor(t) */
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(EXP_C5), f, _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP_C2));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP_C1));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, t); /* p 2^floor(t) */
}

static inline __m512 exp_avx512(__m512 x)
{
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_MIN), _CMP_NLT_UQ); /* NaN stays */
    return _mm512_maskz_mov_ps(keep, exp2_avx512(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E))));
}

/* f32_to_bf16() of each lane, kept in f32: the low halves are zeros. */
static inline __m512i bf16_round_avx512(__m512 x)
{
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i r = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_and_si512(r, _mm512_set1_epi32((int)0xFFFF0000u));
}

static inline __m256i bf16_avx512(__m512 x)
{
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_round_avx512(x), 16));
}

/* The first n lanes, n <= 16. */
static inline __mmask16 lanes_avx512(uint32_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

/* Sum and maximum of the lanes, halves onto halves. */
static inline float hsum_avx512(__m512 x)
{
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

static inline float hmax_avx512(__m512 x)
{
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#endif
#endif
