#ifndef LONGSPAN_KERNELS_CPU_LINEAR_CODES_AMX_H
#define LONGSPAN_KERNELS_CPU_LINEAR_CODES_AMX_H

/*
 * Packed codes to rows of AMX's B operand, in bf16, where integers are exact: row r holds inputs 2r (low half of a dword) and 2r+1. Codes of
 * four bits become 16 + q, of five 32 + q, which takes shifts and masks, of six q - 32 by look-up; of Q8_0 q * 2^24. What that is too much or
 * too large goes into m' and d.
 *
 * Included only by files built for AMX.
 */

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

#define INLINE static inline __attribute__((always_inline))

/* A place in the stream of all groups: of a codec's units, blocks or pairs of them. */
struct linear_at {
    const uint8_t *group;
    uint32_t g;
    size_t unit;
};

INLINE void linear_next(struct linear_at *at, size_t n_units, size_t stride)
{
    if (++at->unit == n_units) {
        at->unit = 0;
        at->group += stride;
        at->g++;
    }
}

INLINE bool linear_has_5_bits(enum weight_codec codec)
{
    return linear_codes_bytes(codec) == LINEAR_CODES_Q5;
}

/* Whether its sums take sums of x times m'. */
INLINE bool linear_has_min(enum weight_codec codec)
{
    return codec != WEIGHT_Q8_0 && codec != WEIGHT_Q6_K;
}

/* A dword with byte `byte` of each dword of q as its top byte, as float: q * 2^24, whose low 16 bits are zero. */
INLINE __m512i linear_q8_float(__m512i quads, int byte)
{
    const __m128i to_top =
        _mm_add_epi8(_mm_set_epi32(0x0C808080, 0x08808080, 0x04808080, 0x00808080), _mm_set1_epi32(byte << 24));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_shuffle_epi8(quads, _mm512_broadcast_i32x4(to_top))));
}

#define BF16_SIZE(i)                                                                                                   \
    ((i) >= 32   ? 0x4200 + ((i)-32) * 4                                                                               \
     : (i) >= 16 ? 0x4180 + ((i)-16) * 8                                                                               \
     : (i) >= 8  ? 0x4100 + ((i)-8) * 16                                                                               \
     : (i) >= 4  ? 0x4080 + ((i)-4) * 32                                                                               \
     : (i) >= 2  ? 0x4000 + ((i)-2) * 64                                                                               \
                 : 0x3F80)
#define BF16_INT(i) ((uint16_t)((i) == 0 ? 0 : (i) < 0 ? 0x8000 | BF16_SIZE(-(i)) : BF16_SIZE(i)))
#define BF16_4(i)   BF16_INT(i), BF16_INT((i) + 1), BF16_INT((i) + 2), BF16_INT((i) + 3)
#define BF16_16(i)  BF16_4(i), BF16_4((i) + 4), BF16_4((i) + 8), BF16_4((i) + 12)

/* bf16 of -32 .. 31 */
static const uint16_t linear_signed6[64]
    __attribute__((aligned(64))) = { BF16_16(-32), BF16_16(-16), BF16_16(0), BF16_16(16) };

#undef BF16_16
#undef BF16_4
#undef BF16_INT
#undef BF16_SIZE

/* Rows 4j .. 4j+3 of a block; j is a constant. */
INLINE void linear_expand4(enum weight_codec codec, const uint8_t *codes, const unsigned j, __m512i rows_out[4])
{
    enum { AND_OR = 0xEA, SELECT = 0xCA };
    if (codec == WEIGHT_Q8_0) {
#pragma GCC unroll 2
        for (unsigned i = 0; i < 2; i++) {
            const __m512i quads = _mm512_load_si512(codes + (2 * j + i) * 64);
            const __m512i a = linear_q8_float(quads, 0), b = linear_q8_float(quads, 1), c = linear_q8_float(quads, 2),
                          d = linear_q8_float(quads, 3);
            rows_out[2 * i] = _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
            rows_out[2 * i + 1] = _mm512_or_si512(_mm512_srli_epi32(c, 16), d);
        }
        return;
    }
    /* the code's low four bits are in bits 4i of row 4j+i's words, its upper ones in bits `at` */
    const bool six = codec == WEIGHT_Q6_K, five = linear_has_5_bits(codec);
    const unsigned top = six ? 0 : five ? 2 : 3; /* 16 + q is 0x4180 + 8 q, 32 + q is 0x4200 + 4 q */
    const __m512i line = _mm512_load_si512(codes + j * 64);
    const __m512i high =
        six || five ? _mm512_load_si512(codes + LINEAR_CODES_Q4 + (six ? j / 2 * 64 : 0)) : _mm512_setzero_si512();
    const __m512i low_bits = _mm512_set1_epi16((short)(15 << top)), high_bit = _mm512_set1_epi16(0x0040);
    const __m512i base = _mm512_set1_epi16(five ? 0x4200 : 0x4180);
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++) {
        const unsigned at = six ? (4 * j + i) % 8 * 2 : 4 * j + i, to = six ? 4 : 6;
        const __m512i low = 4 * i < top ? _mm512_slli_epi16(line, top - 4 * i) : _mm512_srli_epi16(line, 4 * i - top);
        const __m512i up = at < to ? _mm512_slli_epi16(high, to - at) : _mm512_srli_epi16(high, at - to);
        if (six) { /* the look-up takes the low six bits of a word */
            const __m512i code = _mm512_ternarylogic_epi32(low_bits, low, up, SELECT);
            rows_out[i] = _mm512_permutex2var_epi16(_mm512_load_si512(linear_signed6), code,
                                                    _mm512_load_si512(linear_signed6 + 32));
            continue;
        }
        rows_out[i] = _mm512_ternarylogic_epi32(low, low_bits, base, AND_OR);
        if (five)
            rows_out[i] = _mm512_ternarylogic_epi32(up, high_bit, rows_out[i], AND_OR);
    }
}

/* One block of codes to a B tile. */
INLINE void linear_expand(enum weight_codec codec, const uint8_t *codes, uint8_t *tile)
{
#pragma GCC unroll 4
    for (unsigned j = 0; j < 4; j++) {
        __m512i rows[4];
        linear_expand4(codec, codes, j, rows);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++)
            _mm512_store_si512(tile + (size_t)(4 * j + i) * 64, rows[i]);
    }
}

/* d of block b, times 2^-24 for Q8_0, times the scale for K types: of Q6_K of its half. */
INLINE __m512 linear_load_d(enum weight_codec codec, const uint8_t *group, size_t b, int half)
{
    const __m512 d = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)linear_d(codec, group, b)));
    if (linear_is_k(codec)) {
        const __m128i scale = _mm_load_si128((const __m128i *)linear_scale(codec, group, b) + half);
        return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scale)));
    }
    return codec == WEIGHT_Q8_0 ? _mm512_mul_ps(d, _mm512_set1_ps(0x1p-24f)) : d;
}

/* m' of a codec that has one; d: its linear_load_d */
INLINE __m512 linear_load_m(enum weight_codec codec, const uint8_t *group, size_t b, __m512 d)
{
    if (!linear_has_min(codec))
        return _mm512_setzero_ps();
    if (codec == WEIGHT_Q4_0 || codec == WEIGHT_Q5_0)
        return _mm512_mul_ps(d, _mm512_set1_ps(codec == WEIGHT_Q4_0 ? -24 : -48));
    const __m512 m = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)linear_m(codec, group, b)));
    const __m512 less = _mm512_set1_ps(linear_has_5_bits(codec) ? -32 : -16);
    if (codec == WEIGHT_Q4_Z)
        return _mm512_mul_ps(d, _mm512_sub_ps(less, m));
    if (!linear_is_k(codec))
        return _mm512_fmadd_ps(d, less, m);
    const __m128i min = _mm_load_si128((const __m128i *)linear_min(codec, group, b));
    return _mm512_fnmadd_ps(m, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(min)), _mm512_mul_ps(d, less));
}

#undef INLINE

#endif
