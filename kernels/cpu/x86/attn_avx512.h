#ifndef LONGSPAN_KERNELS_CPU_X86_ATTN_AVX512_H
#define LONGSPAN_KERNELS_CPU_X86_ATTN_AVX512_H

/*
 * What the AVX-512 and AMX variants of attention share: they give the same bits, so that AMX may leave few vectors to AVX-512.
 * Empty in files that are not built with AVX-512.
 *
 * Products: AMX sums the even and the odd elements of 32 apart, then adds the two, then adds that to the sum so far (Intel SDM, TDPBF16PS;
 * inputs and results with denormals as zero). The products of two bf16 are exact in f32, so fused multiply-adds do the same.
 *
 * Weights: t = fma(raw score, scale log2(e), -top), p = 2^t; the lanes of l are (p[0..15] + p[16..31]) + (p[32..47] + p[48..63]), joined by
 * one tree. Masked scores weigh +0.0 in fixed lanes.
 */

#include "kernels/cpu/attn.h"

#ifdef __AVX512DQ__
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/x86/vec_avx512.h"

/* Joins the lanes of four vectors to one lane each, in one tree for all four. */
#define ATTN_REDUCE4(name, OP)                                                                                         \
    static inline __m128 name(const __m512 x[4])                                                                       \
    {                                                                                                                  \
        const __m512 ab = _mm512_##OP##_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));            \
        const __m512 cd = _mm512_##OP##_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));            \
        const __m512 y = _mm512_##OP##_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));           \
        const __m256 h = _mm256_##OP##_ps(_mm512_castps512_ps256(y), _mm512_extractf32x8_ps(y, 1));                    \
        return _mm_##OP##_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));                                  \
    }
ATTN_REDUCE4(attn_max4, max)
ATTN_REDUCE4(attn_sum4, add)

/*
 * Maxima of four rows of raw scores s [4][KV_BLOCK]; see[r]: a bit for each position that row r sees. `full`, here and below: every row sees
 * every position, which changes no bit.
 */
static inline __attribute__((always_inline)) __m128 attn_maxima4(const float *s, const uint64_t see[4], const bool full)
{
    __m512 x[4];
    for (int r = 0; r < 4; r++, s += KV_BLOCK) {
        if (full) {
            x[r] = _mm512_max_ps(_mm512_max_ps(_mm512_load_ps(s), _mm512_load_ps(s + 16)),
                                 _mm512_max_ps(_mm512_load_ps(s + 32), _mm512_load_ps(s + 48)));
            continue;
        }
        x[r] = _mm512_set1_ps(-INFINITY);
        for (int j = 0; j < 4; j++)
            x[r] = _mm512_mask_max_ps(x[r], (__mmask16)(see[r] >> (16 * j)), x[r], _mm512_load_ps(s + 16 * j));
    }
    return attn_max4(x);
}

/* Weights of 16 positions, s [16]; see: a bit for each */
static inline __attribute__((always_inline)) __m512 attn_weights(const float *s, __m512 scale2, __m512 top,
                                                                 __mmask16 see, const bool full)
{
    const __m512 p = exp2_avx512(_mm512_fmsub_ps(_mm512_load_ps(s), scale2, top));
    return full ? p : _mm512_maskz_mov_ps(see, p);
}

/* The bits of the positions that each of n vectors sees, zeros past n; true if all see all. */
static inline bool attn_see(const uint8_t *visible, uint32_t n, uint64_t see[ATTN_ROWS])
{
    bool full = true;
    for (uint32_t i = 0; i < ATTN_ROWS; i++) {
        see[i] = i < n ? _bzhi_u64(~UINT64_C(0), visible[i]) : 0;
        full = full && (i >= n || visible[i] == KV_BLOCK);
    }
    return full;
}

/* Rows row .. row + 3 of those below n, for masked stores of four. */
static inline __mmask8 attn_live4(uint32_t row, uint32_t n)
{
    return (__mmask8)(n - row < 4 ? (1u << (n - row)) - 1u : 15u);
}

#endif
#endif
