#ifndef LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX512_H
#define LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX512_H

/*
 * A block of lossless-fast weights (model/lossless.h) as BF16's lines, by AVX-512 without VBMI, 64 code bytes at a time, as lossless_avx2.h has it.
 *
 * Included only by files built for AVX-512.
 */

#include "kernels/cpu/x86/lossless_avx2.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i lossless_classes_avx512(const uint32_t bits, const uint8_t *classes, const int p)
{
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 7);
    if (bits == 4 || p < 6) {
        const __m512i line = _mm512_load_si512(classes + p / 2 * 64);
        return _mm512_and_si512(p % 2 ? _mm512_srli_epi16(line, bits) : line, mask);
    }
    enum { AND_OR = 0xE0 }; /* a & (b | c) */
    const __m512i low =
        _mm512_and_si512(_mm512_srli_epi16(_mm512_load_si512(classes + (p - 6) * 64), 6), _mm512_set1_epi8(3));
    const __m512i high =
        _mm512_and_si512(_mm512_srli_epi16(_mm512_load_si512(classes + 128), (unsigned)p - 2), _mm512_set1_epi8(4));
    return _mm512_ternarylogic_epi32(mask, low, high, AND_OR);
}

INLINE void lossless_decode_bits_avx512(const uint32_t bits, const struct lossless_group *g, size_t block,
                                        uint16_t *block_out)
{
    enum { SELECT = 0xCA };
    const uint8_t *at = g->planes + block * lossless_block_bytes(bits);
    const uint8_t *escapes = g->escapes + lossless_escapes_before(g->records[block]);
    const __m512i table = _mm512_broadcast_i32x4(lossless_table(bits, lossless_base(g->records[block])));
    const __m512i keep = _mm512_set1_epi16((short)0x807F);
    __mmask64 mask[8];
#pragma GCC unroll 8
    for (int p = 0; p < 8; p++) {
        const __m512i e = _mm512_shuffle_epi8(table, lossless_classes_avx512(bits, at + LOSSLESS_SIGNS_BYTES, p));
        const __m512i s = _mm512_load_si512(at + p * 64);
        mask[p] = _mm512_testn_epi8_mask(e, e);
        _mm512_store_si512(block_out + 2 * p * 32, _mm512_ternarylogic_epi32(keep, s, _mm512_slli_epi16(e, 7), SELECT));
        _mm512_store_si512(block_out + (2 * p + 1) * 32,
                           _mm512_ternarylogic_epi32(keep, _mm512_rol_epi32(s, 8), _mm512_srli_epi16(e, 1), SELECT));
    }
#pragma GCC unroll 8
    for (int p = 0; p < 8; p++)
        escapes = lossless_patch(mask[p], p, escapes, block_out);
}

INLINE void lossless_decode_avx512(const struct lossless_group *g, size_t block, uint16_t *block_out)
{
    if (g->class_bits == 3)
        lossless_decode_bits_avx512(3, g, block, block_out);
    else
        lossless_decode_bits_avx512(4, g, block, block_out);
}

#undef INLINE

#endif
