#include "kernels/cpu/linear_variants.h"

#include <immintrin.h>

#include "kernels/cpu/linear_expand.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/x86/lossless_avx512.h"

#define INLINE static inline __attribute__((always_inline))

/* How far ahead of its use a group's memory is asked for: the hardware's prefetchers stop at pages. */
enum { PREFETCH = 2048, PREFETCH_ESCAPES = 256 };

/*
 * Codes of 5 and 6 bits of inputs 8j .. 8j+7: their low and high bits are brought together as the index of a look-up, whose own width drops
 * the rest, or as the mantissa of 2^23 + code.
 */
INLINE void wide_codes8(enum weight_codec codec, const uint8_t *codes, int j, __m512 w[8])
{
    const int high_bits = codec == WEIGHT_Q6_K ? 2 : 1;
    const __m512i low = _mm512_load_si512(codes + j * 64);
    const __m512i high = _mm512_rorv_epi32(_mm512_load_si512(codes + 256 + (codec == WEIGHT_Q6_K ? j / 2 * 64 : 0)),
                                           _mm512_set1_epi32(codec == WEIGHT_Q6_K ? j % 2 * 8 : j * 4));
    const __m512 zero = _mm512_set1_ps(codec == WEIGHT_Q5_0 ? 16 : 0);
    const __m512 to_15 = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 first = _mm512_sub_ps(to_15, zero), second = _mm512_add_ps(first, _mm512_set1_ps(16));
    const __m512i nibble = _mm512_set1_epi32(15), code6 = _mm512_set1_epi32(63);
    enum { SELECT = 0xCA, AND_OR = 0xEA };
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const __m512i to_4 = _mm512_set1_epi32((i / 2 * high_bits + i % 2 * 16 + 28) % 32);
        const __m512i code = _mm512_ternarylogic_epi32(
            nibble, _mm512_srli_epi32(low, (unsigned)(i / 2 * 4 + i % 2 * 16)), _mm512_rorv_epi32(high, to_4), SELECT);
        if (codec != WEIGHT_Q6_K)
            w[i] = _mm512_permutex2var_ps(first, code, second);
        else
            w[i] = _mm512_sub_ps(
                _mm512_castsi512_ps(_mm512_ternarylogic_epi32(code, code6, _mm512_set1_epi32(0x4B000000), AND_OR)),
                _mm512_set1_ps(0x1p23f + 32));
    }
}

/* Weights, or codes as floats, of inputs 8j .. 8j+7 of a block. Q8_0 codes come as q * 2^24 (see scale_d): cheaper than sign extension. */
INLINE void weights8(enum weight_codec codec, const uint8_t *codes, int j, __m512 w[8])
{
    if (codec == WEIGHT_F32) {
        for (int i = 0; i < 8; i++)
            w[i] = _mm512_load_ps(codes + (8 * j + i) * 64);
    } else if (codec == WEIGHT_F16) {
        for (int i = 0; i < 8; i++)
            w[i] = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(codes + (8 * j + i) * 32)));
    } else if (codec == WEIGHT_BF16) {
        for (int i = 0; i < 8; i += 2) {
            const __m512i pair = _mm512_load_si512(codes + (4 * j + i / 2) * 64);
            w[i] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
            w[i + 1] = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000u)));
        }
    } else if (codec == WEIGHT_Q8_0) {
        for (int i = 0; i < 8; i++) {
            const __m512i quad = _mm512_load_si512(codes + (2 * j + i / 4) * 64);
            /* byte i % 4 of each dword to its top byte, zeros below */
            const __m512i to_top = _mm512_broadcast_i32x4(_mm_add_epi8(
                _mm_set_epi32(0x0C808080, 0x08808080, 0x04808080, 0x00808080), _mm_set1_epi32((i % 4) << 24)));
            w[i] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(quad, to_top));
        }
    } else if (linear_codes_bytes(codec) > LINEAR_CODES_Q4) {
        wide_codes8(codec, codes, j, w);
    } else {
        const __m512i line = _mm512_load_si512(codes + j * 64);
        const float zero = codec == WEIGHT_Q4_0 ? 8 : 0;
        const __m512 value =
            _mm512_sub_ps(_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_ps(zero));
        for (int i = 0; i < 8; i++) /* the look-up takes the low four bits of each dword */
            w[i] = _mm512_permutexvar_ps(_mm512_srli_epi32(line, (unsigned)(i / 2 * 4 + i % 2 * 16)), value);
    }
}

INLINE __m512 load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
}

/* d of block b; of Q6_K of its half. */
INLINE __m512 load_d(enum weight_codec codec, const uint8_t *group, size_t b, int half)
{
    const __m512 d = load_f16(linear_d(codec, group, b));
    if (codec == WEIGHT_Q8_0)
        return _mm512_mul_ps(d, _mm512_set1_ps(0x1p-24f));
    if (!linear_is_k(codec))
        return d;
    const __m128i scale = _mm_load_si128((const __m128i *)linear_scale(codec, group, b) + half);
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scale)));
}

INLINE bool has_min(enum weight_codec codec)
{
    return linear_has_m(codec) || codec == WEIGHT_Q4_K || codec == WEIGHT_Q5_K;
}

/* d: its load_d */
INLINE __m512 load_m(enum weight_codec codec, const uint8_t *group, size_t b, __m512 d)
{
    const __m512 m = load_f16(linear_m(codec, group, b));
    if (codec == WEIGHT_Q4_Z)
        return _mm512_mul_ps(d, _mm512_sub_ps(_mm512_setzero_ps(), m));
    if (!linear_is_k(codec))
        return m;
    const __m512i min = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)linear_min(codec, group, b)));
    return _mm512_mul_ps(m, _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setzero_si512(), min)));
}

INLINE void store_rows(const struct linear_tile *tile, const int rows, const __m512 *acc)
{
    const __mmask16 here = (__mmask16)((1u << tile->n_here) - 1);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        float *y = tile->y + (size_t)r * tile->y_stride;
        const __m512 before = tile->accumulate ? _mm512_maskz_loadu_ps(here, y) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y, here, tile->accumulate ? _mm512_add_ps(before, acc[r]) : acc[r]);
    }
}

INLINE void tile_avx512(const struct linear_tile *tile, enum weight_codec codec, const int rows)
{
    __m512 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < tile->n_blocks; b++) {
        const uint8_t *codes = linear_codes(codec, tile->group, b);
        const float *x = tile->x + b * LINEAR_BLOCK;
        __m512 t[16];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            t[r] = _mm512_setzero_ps();
        for (size_t at = 0; at < linear_pair_bytes(codec) / 2; at += 64)
            _mm_prefetch((const char *)codes + PREFETCH + at, _MM_HINT_T0);
#pragma GCC unroll 1
        for (int j = 0; j < 4; j++) {
            __m512 w[8];
            weights8(codec, codes, j, w);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++)
                    t[r] = _mm512_fmadd_ps(w[i], _mm512_set1_ps(x[(size_t)r * tile->x_stride + (size_t)(8 * j + i)]),
                                           t[r]);
            if (codec == WEIGHT_Q6_K && j == 1) { /* the first half has a scale of its own */
                const __m512 d = load_d(codec, tile->group, b, 0);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    acc[r] = _mm512_fmadd_ps(d, t[r], acc[r]);
                    t[r] = _mm512_setzero_ps();
                }
            }
        }
        if (!linear_is_q(codec)) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                acc[r] = _mm512_add_ps(acc[r], t[r]);
            continue;
        }
        const __m512 d = load_d(codec, tile->group, b, codec == WEIGHT_Q6_K);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            acc[r] = _mm512_fmadd_ps(d, t[r], acc[r]);
        if (has_min(codec)) {
            const __m512 m = load_m(codec, tile->group, b, d);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                acc[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(tile->sums[(size_t)r * tile->n_blocks + b]), acc[r]);
        }
    }
    store_rows(tile, rows, acc);
}

/* Rows 2p and 2p + 1 of a block's lines: inputs x[0 .. 3]. */
INLINE void multiply_lossless(const uint8_t *signs, const uint8_t *exponents, const float *x, size_t x_stride,
                              const int rows, __m512 *t)
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512i pair[2];
    lossless_rows_avx512(signs, exponents, pair);
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++) {
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair[i], 16)),
                     odd = _mm512_castsi512_ps(_mm512_and_si512(pair[i], upper));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float *from = x + (size_t)r * x_stride + 2 * i;
            t[r] = _mm512_fmadd_ps(even, _mm512_set1_ps(from[0]), t[r]);
            t[r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(from[1]), t[r]);
        }
    }
}

/* A block's exponents are written while the block before is multiplied, so that what was put into them one by one has reached the cache. */
INLINE void tile_lossless(const struct linear_tile *tile, const uint32_t bits, const int rows)
{
    const struct lossless_group g = linear_lossless_group(tile->shape, tile->group);
    uint8_t exponents[2][LOSSLESS_EXPONENTS] __attribute__((aligned(64)));
    __m512 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        acc[r] = _mm512_setzero_ps();
    uint16_t at[LOSSLESS_CODES + LOSSLESS_USUAL];
    struct lossless_exponents next = lossless_begin(bits, &g, 0, exponents[0], at);
#pragma GCC unroll 8
    for (unsigned p = 0; p < 8; p++)
        lossless_step_avx512(bits, &next, p);
    lossless_end(&next);
    for (size_t b = 0; b < tile->n_blocks; b++) {
        const uint8_t *signs = g.planes + b * lossless_block_bytes(bits), *e = exponents[b % 2];
        const float *x = tile->x + b * LINEAR_BLOCK;
        __m512 t[16];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            t[r] = _mm512_setzero_ps();
        for (size_t i = 0; i < lossless_block_bytes(bits); i += 64)
            _mm_prefetch((const char *)signs + PREFETCH + i, _MM_HINT_T0);
        _mm_prefetch((const char *)g.escapes + lossless_escapes_before(g.records[b]) + PREFETCH_ESCAPES, _MM_HINT_T0);
        /* the last block is its own successor */
        next = lossless_begin(bits, &g, b + 1 < tile->n_blocks ? b + 1 : b, exponents[(b + 1) % 2], at);
        /* one row: in turns, so that sums, which wait for one another, have company; more rows have it themselves */
#pragma GCC unroll 8
        for (unsigned p = 0; p < 8; p++) {
            lossless_step_avx512(bits, &next, p);
            if (rows == 1)
                multiply_lossless(signs + p * 64, e + p * 64, x + 4 * (size_t)p, tile->x_stride, rows, t);
        }
#pragma GCC unroll 1
        for (size_t p = 0; p < 8 && rows > 1; p++)
            multiply_lossless(signs + p * 64, e + p * 64, x + 4 * p, tile->x_stride, rows, t);
        lossless_end(&next);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            acc[r] = _mm512_add_ps(acc[r], t[r]);
    }
    store_rows(tile, rows, acc);
}

#define FNS(codec)                                                                                                     \
    LINEAR_TILE_FN(tile_avx512, codec, 1)                                                                              \
    LINEAR_TILE_FN(tile_avx512, codec, 2)                                                                              \
    LINEAR_TILE_FN(tile_avx512, codec, 4)                                                                              \
    LINEAR_TILE_FN(tile_avx512, codec, 8)                                                                              \
    LINEAR_TILE_FN(tile_avx512, codec, 16)
#define ROW(codec, sums)                                                                                               \
    [WEIGHT_##codec] = { { tile_avx512_##codec##_1, tile_avx512_##codec##_2, tile_avx512_##codec##_4,                  \
                           tile_avx512_##codec##_8, tile_avx512_##codec##_16 },                                        \
                         sums,                                                                                         \
                         NULL }

FNS(F32)
FNS(F16)
FNS(BF16)
FNS(Q8_0)
FNS(Q4_0)
FNS(Q4_1)
FNS(Q5_0)
FNS(Q5_1)
FNS(Q4_K)
FNS(Q5_K)
FNS(Q6_K)
FNS(Q4_Z)

#define LOSSLESS(rows)                                                                                                 \
    static void tile_avx512_LOSSLESS_FAST_##rows(const struct linear_tile *tile)                                       \
    {                                                                                                                  \
        if (tile->shape->class_bits == 3)                                                                              \
            tile_lossless(tile, 3, rows);                                                                              \
        else                                                                                                           \
            tile_lossless(tile, 4, rows);                                                                              \
    }

LOSSLESS(1)
LOSSLESS(2)
LOSSLESS(4)
LOSSLESS(8)
LOSSLESS(16)

static const struct linear_tile_fns fns[WEIGHT_CODECS] = {
    ROW(F32, false),  ROW(F16, false),           ROW(BF16, false), ROW(Q8_0, false), ROW(Q4_0, false),
    ROW(Q4_1, true),  ROW(Q5_0, false),          ROW(Q5_1, true),  ROW(Q4_K, true),  ROW(Q5_K, true),
    ROW(Q6_K, false), ROW(LOSSLESS_FAST, false), ROW(Q4_Z, true),
};

size_t linear_scratch_avx512(const struct linear_shape *shape, uint32_t n_rows)
{
    if (linear_is_expanded(shape->codec))
        return linear_scratch_expanded(shape, n_rows, linear_scratch_avx512);
    return linear_rows_scratch(shape, n_rows, fns[shape->codec].wants_sums);
}

void linear_run_avx512(const struct linear_args *a)
{
    if (linear_is_expanded(a->shape->codec))
        linear_run_expanded(a, linear_expand_avx512, linear_scratch_avx512, linear_run_avx512);
    else
        linear_rows_run(a, &fns[a->shape->codec]);
}
