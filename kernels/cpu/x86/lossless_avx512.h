#ifndef LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX512_H
#define LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX512_H

/*
 * A block of lossless-fast weights (model/lossless.h) by AVX-512 without VBMI, 64 code bytes at a time, in the two passes of lossless_avx2.h.
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

INLINE void lossless_step_avx512(const uint32_t bits, struct lossless_exponents *x, unsigned p)
{
    const __m512i table = _mm512_broadcast_i32x4(x->table);
    const __m512i e = _mm512_shuffle_epi8(table, lossless_classes_avx512(bits, x->classes, (int)p));
    _mm512_store_si512(x->out + p * 64, e);
    lossless_note(x, p, _mm512_testn_epi8_mask(e, e));
}

/* Rows 2p and 2p + 1 of BF16's lines, from 64 bytes of signs and 64 exponents. */
INLINE void lossless_rows_avx512(const uint8_t *signs, const uint8_t *exponents, __m512i rows_out[2])
{
    enum { SELECT = 0xCA };
    const __m512i keep = _mm512_set1_epi16((short)0x807F);
    const __m512i s = _mm512_load_si512(signs), e = _mm512_load_si512(exponents);
    rows_out[0] = _mm512_ternarylogic_epi32(keep, s, _mm512_slli_epi16(e, 7), SELECT);
    rows_out[1] = _mm512_ternarylogic_epi32(keep, _mm512_rol_epi32(s, 8), _mm512_srli_epi16(e, 1), SELECT);
}

#undef INLINE

#endif
