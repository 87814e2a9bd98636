#ifndef LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX2_H
#define LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX2_H

/*
 * A block of lossless-fast weights (model/lossless.h) as BF16's lines, by AVX2, 32 code bytes at a time. Classes become exponents by look-up,
 * which makes escapes zero; their bits are set afterwards in memory.
 *
 * Included only by files built for AVX2.
 */

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i lossless_classes_avx2(const uint32_t bits, const uint8_t *classes, const int p)
{
    const __m256i seven = _mm256_set1_epi8(7);
    if (bits == 4) {
        const __m256i line = _mm256_load_si256((const __m256i *)(classes + p / 2 * 64));
        return _mm256_and_si256(p % 2 ? _mm256_srli_epi16(line, 4) : line, _mm256_set1_epi8(15));
    }
    if (p < 6) {
        const __m256i line = _mm256_load_si256((const __m256i *)(classes + p / 2 * 64));
        return _mm256_and_si256(p % 2 ? _mm256_srli_epi16(line, 3) : line, seven);
    }
    const __m256i low = _mm256_load_si256((const __m256i *)(classes + (p - 6) * 64));
    const __m256i high = _mm256_load_si256((const __m256i *)(classes + 128));
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, 6), _mm256_set1_epi8(3)),
                           _mm256_and_si256(_mm256_srli_epi16(high, p - 2), _mm256_set1_epi8(4)));
}

/* Class -> exponent, 0 for the escape and for what is no class. */
INLINE __m128i lossless_table(const uint32_t bits, uint32_t base)
{
    const __m128i c = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m128i known = _mm_cmpgt_epi8(_mm_set1_epi8((char)((1 << bits) - 1)), c);
    return _mm_and_si128(known, _mm_add_epi8(c, _mm_set1_epi8((char)base)));
}

/* Sets the exponents of step p's escapes: bit j of mask is code byte j. */
INLINE const uint8_t *lossless_patch(uint64_t mask, int p, const uint8_t *escapes, uint16_t *block)
{
    for (; mask; mask &= mask - 1) {
        const unsigned j = (unsigned)__builtin_ctzll(mask);
        block[(2 * (unsigned)p + (j & 1)) * 32 + j / 2] |= (uint16_t)(*escapes++ << 7);
    }
    return escapes;
}

INLINE void lossless_decode_bits_avx2(const uint32_t bits, const struct lossless_group *g, size_t block,
                                      uint16_t *block_out)
{
    const uint8_t *at = g->planes + block * lossless_block_bytes(bits);
    const uint8_t *escapes = g->escapes + lossless_escapes_before(g->records[block]);
    const __m256i table = _mm256_broadcastsi128_si256(lossless_table(bits, lossless_base(g->records[block])));
    const __m256i keep = _mm256_set1_epi16((short)0x807F);
    const __m256i rotate = _mm256_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3, 14, 13, 12, 15, 10, 9,
                                           8, 11, 6, 5, 4, 7, 2, 1, 0, 3);
#pragma GCC unroll 8
    for (int p = 0; p < 8; p++) {
        uint64_t mask = 0;
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const __m256i c = lossless_classes_avx2(bits, at + LOSSLESS_SIGNS_BYTES + h * 32, p);
            const __m256i e = _mm256_shuffle_epi8(table, c);
            mask |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(e, _mm256_setzero_si256())) << h * 32;
            const __m256i s = _mm256_load_si256((const __m256i *)(at + p * 64 + h * 32));
            const __m256i even =
                _mm256_or_si256(_mm256_and_si256(s, keep), _mm256_andnot_si256(keep, _mm256_slli_epi16(e, 7)));
            const __m256i odd = _mm256_or_si256(_mm256_and_si256(_mm256_shuffle_epi8(s, rotate), keep),
                                                _mm256_andnot_si256(keep, _mm256_srli_epi16(e, 1)));
            _mm256_store_si256((__m256i *)(block_out + 2 * p * 32 + h * 16), even);
            _mm256_store_si256((__m256i *)(block_out + (2 * p + 1) * 32 + h * 16), odd);
        }
        escapes = lossless_patch(mask, p, escapes, block_out);
    }
}

INLINE void lossless_decode_avx2(const struct lossless_group *g, size_t block, uint16_t *block_out)
{
    if (g->class_bits == 3)
        lossless_decode_bits_avx2(3, g, block, block_out);
    else
        lossless_decode_bits_avx2(4, g, block, block_out);
}

#undef INLINE

#endif
