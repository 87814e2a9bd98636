#include "kernels/cpu/linear_variants.h"

#include <immintrin.h>

#include "kernels/cpu/linear_expand.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/x86/lossless_avx2.h"

#define INLINE static inline __attribute__((always_inline))

enum { PREFETCH = 2048, PREFETCH_ESCAPES = 256, HALVES = 2 };

/*
 * Weights, or codes as floats, of inputs 8j .. 8j+7 of a block, of outputs 8h .. 8h+7. Codes of Q4_0 come as q, not q - 8: it is computed as
 * Q4_1 with m = -8 d. So is Q5_0, with -16 d; codes of Q6_K, whose halves of blocks have scales of their own, come as q - 32.
 */
INLINE void weights8(enum weight_codec codec, const uint8_t *codes, int j, int h, __m256 w[8])
{
    if (codec == WEIGHT_F32) {
        for (int i = 0; i < 8; i++)
            w[i] = _mm256_load_ps((const float *)(codes + (8 * j + i) * 64 + h * 32));
    } else if (codec == WEIGHT_F16) {
        for (int i = 0; i < 8; i++)
            w[i] = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(codes + (8 * j + i) * 32 + h * 16)));
    } else if (codec == WEIGHT_BF16) {
        for (int i = 0; i < 8; i += 2) {
            const __m256i pair = _mm256_load_si256((const __m256i *)(codes + (4 * j + i / 2) * 64 + h * 32));
            w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
            w[i + 1] = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xFFFF0000u)));
        }
    } else if (codec == WEIGHT_Q8_0) {
        for (int i = 0; i < 8; i++) {
            const __m256i quad = _mm256_load_si256((const __m256i *)(codes + (2 * j + i / 4) * 64 + h * 32));
            w[i] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quad, 24 - i % 4 * 8), 24));
        }
    } else if (linear_codes_bytes(codec) > LINEAR_CODES_Q4) {
        const int bits = codec == WEIGHT_Q6_K ? 2 : 1, at = bits == 2 ? j / 2 : 0;
        const __m256i low = _mm256_load_si256((const __m256i *)(codes + j * 64 + h * 32));
        const __m256i high = _mm256_srl_epi32(_mm256_load_si256((const __m256i *)(codes + 256 + at * 64 + h * 32)),
                                              _mm_cvtsi32_si128(bits == 2 ? j % 2 * 8 : j * 4));
        for (int i = 0; i < 8; i++) {
            const __m256i l = _mm256_and_si256(_mm256_srli_epi32(low, i / 2 * 4 + i % 2 * 16), _mm256_set1_epi32(15));
            const __m256i u =
                _mm256_and_si256(_mm256_srli_epi32(high, i / 2 * bits + i % 2 * 16), _mm256_set1_epi32(2 * bits - 1));
            const __m256i q = _mm256_or_si256(l, _mm256_slli_epi32(u, 4));
            w[i] = _mm256_cvtepi32_ps(codec == WEIGHT_Q6_K ? _mm256_sub_epi32(q, _mm256_set1_epi32(32)) : q);
        }
    } else {
        const __m256i line = _mm256_load_si256((const __m256i *)(codes + j * 64 + h * 32));
        for (int i = 0; i < 8; i++)
            w[i] = _mm256_cvtepi32_ps(
                _mm256_and_si256(_mm256_srli_epi32(line, i / 2 * 4 + i % 2 * 16), _mm256_set1_epi32(15)));
    }
}

INLINE __m256 load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p));
}

INLINE void store(float *y, uint32_t n_here, bool accumulate, __m256 v)
{
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i here = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n_here), lane);
    if (accumulate)
        v = _mm256_add_ps(_mm256_maskload_ps(y, here), v);
    _mm256_maskstore_ps(y, here, v);
}

/* Eight scales of a K type's block, or its half, times d. */
INLINE __m256 scaled(__m256 d, const int8_t *scale)
{
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)scale))));
}

INLINE __m256 load_m(enum weight_codec codec, const uint8_t *group, size_t b, int h, __m256 d)
{
    if (codec == WEIGHT_Q4_0 || codec == WEIGHT_Q5_0)
        return _mm256_mul_ps(d, _mm256_set1_ps(codec == WEIGHT_Q4_0 ? -8 : -16));
    const __m256 m = load_f16(linear_m(codec, group, b) + 8 * h);
    if (codec == WEIGHT_Q4_Z)
        return _mm256_mul_ps(d, _mm256_sub_ps(_mm256_setzero_ps(), m));
    if (!linear_is_k(codec))
        return m;
    const __m128i min = _mm_loadl_epi64((const __m128i *)(linear_min(codec, group, b) + 8 * h));
    return _mm256_mul_ps(m, _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), _mm256_cvtepu8_epi32(min))));
}

/* Adds a block's finished sums t to acc, outputs of half h; of Q6_K those of a half of the block. */
INLINE void add_scaled(const struct linear_tile *tile, enum weight_codec codec, const int rows, size_t b, int h,
                       int block_half, __m256 t[4][HALVES], __m256 acc[4][HALVES])
{
    __m256 d = load_f16(linear_d(codec, tile->group, b) + 8 * h);
    if (linear_is_k(codec))
        d = scaled(d, linear_scale(codec, tile->group, b) + block_half * LINEAR_GROUP + 8 * h);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        acc[r][h] = _mm256_fmadd_ps(d, t[r][h], acc[r][h]);
    if (codec == WEIGHT_Q8_0 || codec == WEIGHT_Q6_K)
        return;
    const __m256 m = load_m(codec, tile->group, b, h, d);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        acc[r][h] = _mm256_fmadd_ps(m, _mm256_set1_ps(tile->sums[(size_t)r * tile->n_blocks + b]), acc[r][h]);
}

INLINE void store_rows(const struct linear_tile *tile, const int rows, __m256 acc[4][HALVES])
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        float *y = tile->y + (size_t)r * tile->y_stride;
        store(y, tile->n_here, tile->accumulate, acc[r][0]);
        if (tile->n_here > 8)
            store(y + 8, tile->n_here - 8, tile->accumulate, acc[r][1]);
    }
}

INLINE void tile_avx2(const struct linear_tile *tile, enum weight_codec codec, const int rows)
{
    __m256 acc[4][HALVES];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < tile->n_blocks; b++) {
        const uint8_t *codes = linear_codes(codec, tile->group, b);
        const float *x = tile->x + b * LINEAR_BLOCK;
        __m256 t[4][HALVES];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            t[r][0] = t[r][1] = _mm256_setzero_ps();
        for (size_t at = 0; at < linear_pair_bytes(codec) / 2; at += 64)
            _mm_prefetch((const char *)codes + PREFETCH + at, _MM_HINT_T0);
#pragma GCC unroll 1
        for (int j = 0; j < 4; j++) {
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; h++) {
                __m256 w[8];
                weights8(codec, codes, j, h, w);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++)
                        t[r][h] = _mm256_fmadd_ps(
                            w[i], _mm256_broadcast_ss(x + (size_t)r * tile->x_stride + (size_t)(8 * j + i)), t[r][h]);
                if (codec == WEIGHT_Q6_K && j == 1) { /* the first half has a scale of its own */
                    add_scaled(tile, codec, rows, b, h, 0, t, acc);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++)
                        t[r][h] = _mm256_setzero_ps();
                }
            }
        }
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            if (linear_is_q(codec)) {
                add_scaled(tile, codec, rows, b, h, codec == WEIGHT_Q6_K, t, acc);
                continue;
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                acc[r][h] = _mm256_add_ps(acc[r][h], t[r][h]);
        }
    }
    store_rows(tile, rows, acc);
}

/* Rows 2p and 2p + 1 of a block's lines: inputs x[0 .. 3]. */
INLINE void multiply_lossless(const uint8_t *signs, const uint8_t *exponents, const float *x, size_t x_stride,
                              const int rows, __m256 t[4][HALVES])
{
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000u);
#pragma GCC unroll 2
    for (size_t h = 0; h < HALVES; h++) {
        __m256i pair[2];
        lossless_rows_avx2(signs + h * 32, exponents + h * 32, pair);
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; i++) {
            const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair[i], 16)),
                         odd = _mm256_castsi256_ps(_mm256_and_si256(pair[i], upper));
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const float *from = x + (size_t)r * x_stride + 2 * i;
                t[r][h] = _mm256_fmadd_ps(even, _mm256_broadcast_ss(from), t[r][h]);
                t[r][h] = _mm256_fmadd_ps(odd, _mm256_broadcast_ss(from + 1), t[r][h]);
            }
        }
    }
}

/* A block's exponents are written while the block before is multiplied, so that what was put into them one by one has reached the cache. */
INLINE void tile_lossless(const struct linear_tile *tile, const uint32_t bits, const int rows)
{
    const struct lossless_group g = linear_lossless_group(tile->shape, tile->group);
    uint8_t exponents[2][LOSSLESS_EXPONENTS] __attribute__((aligned(64)));
    __m256 acc[4][HALVES];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    uint16_t at[LOSSLESS_CODES + LOSSLESS_USUAL];
    struct lossless_exponents next = lossless_begin(bits, &g, 0, exponents[0], at);
#pragma GCC unroll 8
    for (unsigned p = 0; p < 8; p++)
        lossless_step_avx2(bits, &next, p);
    lossless_end(&next);
    for (size_t b = 0; b < tile->n_blocks; b++) {
        const uint8_t *signs = g.planes + b * lossless_block_bytes(bits), *e = exponents[b % 2];
        const float *x = tile->x + b * LINEAR_BLOCK;
        __m256 t[4][HALVES];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            t[r][0] = t[r][1] = _mm256_setzero_ps();
        for (size_t i = 0; i < lossless_block_bytes(bits); i += 64)
            _mm_prefetch((const char *)signs + PREFETCH + i, _MM_HINT_T0);
        _mm_prefetch((const char *)g.escapes + lossless_escapes_before(g.records[b]) + PREFETCH_ESCAPES, _MM_HINT_T0);
        /* the last block is its own successor */
        next = lossless_begin(bits, &g, b + 1 < tile->n_blocks ? b + 1 : b, exponents[(b + 1) % 2], at);
        /* one row: in turns, so that sums, which wait for one another, have company; more rows have it themselves */
#pragma GCC unroll 8
        for (unsigned p = 0; p < 8; p++) {
            lossless_step_avx2(bits, &next, p);
            if (rows == 1)
                multiply_lossless(signs + p * 64, e + p * 64, x + 4 * (size_t)p, tile->x_stride, rows, t);
        }
#pragma GCC unroll 1
        for (size_t p = 0; p < 8 && rows > 1; p++)
            multiply_lossless(signs + p * 64, e + p * 64, x + 4 * p, tile->x_stride, rows, t);
        lossless_end(&next);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < HALVES; h++)
                acc[r][h] = _mm256_add_ps(acc[r][h], t[r][h]);
    }
    store_rows(tile, rows, acc);
}

#define FNS(codec)                                                                                                     \
    LINEAR_TILE_FN(tile_avx2, codec, 1)                                                                                \
    LINEAR_TILE_FN(tile_avx2, codec, 2)                                                                                \
    LINEAR_TILE_FN(tile_avx2, codec, 4)
#define ROW(codec, sums)                                                                                               \
    [WEIGHT_##codec] = { { tile_avx2_##codec##_1, tile_avx2_##codec##_2, tile_avx2_##codec##_4 }, sums, NULL }

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
    static void tile_avx2_LOSSLESS_FAST_##rows(const struct linear_tile *tile)                                         \
    {                                                                                                                  \
        if (tile->shape->class_bits == 3)                                                                              \
            tile_lossless(tile, 3, rows);                                                                              \
        else                                                                                                           \
            tile_lossless(tile, 4, rows);                                                                              \
    }

LOSSLESS(1)
LOSSLESS(2)
LOSSLESS(4)

static const struct linear_tile_fns fns[WEIGHT_CODECS] = {
    ROW(F32, false),  ROW(F16, false),           ROW(BF16, false), ROW(Q8_0, false), ROW(Q4_0, true),
    ROW(Q4_1, true),  ROW(Q5_0, true),           ROW(Q5_1, true),  ROW(Q4_K, true),  ROW(Q5_K, true),
    ROW(Q6_K, false), ROW(LOSSLESS_FAST, false), ROW(Q4_Z, true),
};

size_t linear_scratch_avx2(const struct linear_shape *shape, uint32_t n_rows)
{
    if (linear_is_expanded(shape->codec))
        return linear_scratch_expanded(shape, n_rows, linear_scratch_avx2);
    return linear_rows_scratch(shape, n_rows, fns[shape->codec].wants_sums);
}

void linear_run_avx2(const struct linear_args *a)
{
    if (linear_is_expanded(a->shape->codec))
        linear_run_expanded(a, linear_expand_avx2, linear_scratch_avx2, linear_run_avx2);
    else
        linear_rows_run(a, &fns[a->shape->codec]);
}
