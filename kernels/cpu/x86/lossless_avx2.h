#ifndef LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX2_H
#define LONGSPAN_KERNELS_CPU_X86_LOSSLESS_AVX2_H

/*
 * A block of lossless-fast weights (model/lossless.h) by AVX2, 32 code bytes at a time, in two passes. The first writes exponents: classes become them by
 * look-up, which makes escapes zero, and those are put in their places, without branches that data decide. The second makes rows of weights in registers.
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

/* Bytes: a block's exponents in the order of code bytes, and a place that nobody reads. */
enum { LOSSLESS_CODES = 512, LOSSLESS_EXPONENTS = LOSSLESS_CODES + 64 };

/*
 * A block's exponents in the making, and where its escapes are. The usual number of them (four a step, sixteen a block) is noted and put whether there are
 * so many or not, so that no branch is mispredicted for most blocks.
 */
enum { LOSSLESS_STEP_USUAL = 4, LOSSLESS_USUAL = 16 };
struct lossless_exponents {
    uint8_t *out; /* [LOSSLESS_EXPONENTS], 64-byte aligned */
    const uint8_t *classes, *escapes, *end;
    __m128i table;
    uint16_t *at; /* [LOSSLESS_CODES + LOSSLESS_USUAL] */
    unsigned n;
};

INLINE struct lossless_exponents lossless_begin(const uint32_t bits, const struct lossless_group *g, size_t block,
                                                uint8_t *out, uint16_t *at)
{
    for (unsigned i = 0; i < LOSSLESS_USUAL; i++)
        at[i] = LOSSLESS_CODES;
    return (struct lossless_exponents){
        .out = out,
        .classes = g->planes + block * lossless_block_bytes(bits) + LOSSLESS_SIGNS_BYTES,
        .escapes = g->escapes + lossless_escapes_before(g->records[block]),
        .end = g->escapes + g->n_escapes,
        .table = lossless_table(bits, lossless_base(g->records[block])),
        .at = at,
    };
}

/* Bit j of missing: code byte j of step p is an escape. */
INLINE void lossless_note(struct lossless_exponents *x, unsigned p, uint64_t missing)
{
    const unsigned count = (unsigned)__builtin_popcountll(missing);
    volatile uint16_t *at = x->at + x->n; /* one store each: they are quicker than joining four */
#pragma GCC unroll 4
    for (unsigned k = 0; k < LOSSLESS_STEP_USUAL; k++, missing &= missing - 1)
        at[k] = (uint16_t)(64 * p + (unsigned)__builtin_ctzll(missing | UINT64_C(1) << 63));
    for (unsigned k = LOSSLESS_STEP_USUAL; __builtin_expect(k < count, 0); k++, missing &= missing - 1)
        at[k] = (uint16_t)(64 * p + (unsigned)__builtin_ctzll(missing));
    x->n += count;
}

/* After the last step: the escapes go to their places. */
INLINE void lossless_end(const struct lossless_exponents *x)
{
    unsigned i = 0;
    for (unsigned k = 0; k < LOSSLESS_STEP_USUAL; k++)
        x->at[x->n + k] = LOSSLESS_CODES;
    if (x->end - x->escapes >= LOSSLESS_USUAL)
#pragma GCC unroll 16
        for (; i < LOSSLESS_USUAL; i++)
            x->out[x->at[i]] = x->escapes[i];
    for (; i < x->n; i++)
        x->out[x->at[i]] = x->escapes[i];
}

INLINE void lossless_step_avx2(const uint32_t bits, struct lossless_exponents *x, unsigned p)
{
    const __m256i table = _mm256_broadcastsi128_si256(x->table);
    uint64_t missing = 0;
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        const __m256i e = _mm256_shuffle_epi8(table, lossless_classes_avx2(bits, x->classes + h * 32, (int)p));
        const uint32_t none = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(e, _mm256_setzero_si256()));
        missing |= (uint64_t)none << h * 32;
        _mm256_store_si256((__m256i *)(x->out + p * 64 + h * 32), e);
    }
    lossless_note(x, p, missing);
}

/* Eight outputs of rows 2p and 2p + 1 of BF16's lines, from 32 bytes of signs and 32 exponents. */
INLINE void lossless_rows_avx2(const uint8_t *signs, const uint8_t *exponents, __m256i rows_out[2])
{
    const __m256i keep = _mm256_set1_epi16((short)0x807F);
    const __m256i rotate = _mm256_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3, 14, 13, 12, 15, 10, 9,
                                           8, 11, 6, 5, 4, 7, 2, 1, 0, 3);
    const __m256i s = _mm256_load_si256((const __m256i *)signs), e = _mm256_load_si256((const __m256i *)exponents);
    rows_out[0] = _mm256_or_si256(_mm256_and_si256(s, keep), _mm256_andnot_si256(keep, _mm256_slli_epi16(e, 7)));
    rows_out[1] = _mm256_or_si256(_mm256_and_si256(_mm256_shuffle_epi8(s, rotate), keep),
                                  _mm256_andnot_si256(keep, _mm256_srli_epi16(e, 1)));
}

#undef INLINE

#endif
