#ifndef LONGSPAN_KERNELS_CPU_X86_LOSSLESS_VBMI2_H
#define LONGSPAN_KERNELS_CPU_X86_LOSSLESS_VBMI2_H

/*
 * lossless-fast weights (model/lossless.h) decoded in registers by AVX-512 with VBMI2: a step of 64 code bytes takes a byte permute for the classes, an
 * expanding load for the escapes that puts each where its class is missing, and two shifts and two selections for two rows of B.
 *
 * Included only by files built for it.
 */

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

#define INLINE static inline __attribute__((always_inline))

enum { LOSSLESS_SELECT = 0xCA }; /* of a ternary operation: a ? b : c */

static const uint8_t lossless_iota[64] __attribute__((aligned(64))) = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
};

/* Where a block's decoding stands. */
struct lossless_coded {
    const uint8_t *at, *escapes;
    __m512i table; /* by the low bits of an index of six: the exponent, 0 for the escape */
};

INLINE struct lossless_coded lossless_coded_block(const uint32_t bits, const struct lossless_group *g, size_t b)
{
    const uint32_t record = g->records[b], top = (1u << bits) - 1;
    const __m512i c = _mm512_and_si512(_mm512_load_si512(lossless_iota), _mm512_set1_epi8((char)top));
    const __mmask64 known = bits == 3 ? 0x7F7F7F7F7F7F7F7Full : 0x7FFF7FFF7FFF7FFFull;
    return (struct lossless_coded){ .at = g->planes + b * lossless_block_bytes(bits),
                                    .escapes = g->escapes + lossless_escapes_before(record),
                                    .table = _mm512_maskz_add_epi8(known, c, _mm512_set1_epi8((char)record)) };
}

/* Rows 2p and 2p + 1 of B; p is a constant. */
INLINE void lossless_coded_step(const uint32_t bits, struct lossless_coded *c, const unsigned p, __m512i rows_out[2])
{
    const uint8_t *classes = c->at + LOSSLESS_SIGNS_BYTES;
    const __m512i keep = _mm512_set1_epi16((short)0x807F);
    __m512i index;
    if (bits == 4 || p < 6) {
        index = _mm512_load_si512(classes + p / 2 * 64);
        index = p % 2 ? _mm512_srli_epi16(index, bits) : index;
    } else {
        const __m512i low = _mm512_load_si512(classes + (size_t)(p - 6) * 64), high = _mm512_load_si512(classes + 128);
        index = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), _mm512_srli_epi16(low, 6),
                                          _mm512_srli_epi16(high, p - 2), LOSSLESS_SELECT);
    }
    __m512i e = _mm512_permutexvar_epi8(index, c->table);
    const __mmask64 missing = _mm512_testn_epi8_mask(e, e);
    e = _mm512_mask_expandloadu_epi8(e, missing, c->escapes);
    c->escapes += __builtin_popcountll(missing);
    const __m512i signs = _mm512_load_si512(c->at + (size_t)p * 64);
    rows_out[0] = _mm512_ternarylogic_epi32(keep, signs, _mm512_slli_epi16(e, 7), LOSSLESS_SELECT);
    rows_out[1] = _mm512_ternarylogic_epi32(keep, _mm512_rol_epi32(signs, 8), _mm512_srli_epi16(e, 1), LOSSLESS_SELECT);
}

INLINE void lossless_decode_vbmi2(const uint32_t bits, const struct lossless_group *g, size_t b, uint8_t *tile)
{
    struct lossless_coded c = lossless_coded_block(bits, g, b);
#pragma GCC unroll 8
    for (unsigned p = 0; p < 8; p++) {
        __m512i rows[2];
        lossless_coded_step(bits, &c, p, rows);
        _mm512_store_si512(tile + (size_t)(2 * p) * 64, rows[0]);
        _mm512_store_si512(tile + (size_t)(2 * p + 1) * 64, rows[1]);
    }
}

#undef INLINE

#endif
