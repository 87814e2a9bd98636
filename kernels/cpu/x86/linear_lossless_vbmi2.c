#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/x86/lossless_vbmi2.h"

/*
 * The AVX-512 product with lossless-fast weights on processors with VBMI2: up to 16 rows decode in registers, more decode a group once for a row block and go on
 * with bf16. The order of sums is that of linear_avx512.c.
 */

#define INLINE static inline __attribute__((always_inline))

enum { PREFETCH = 2048, PREFETCH_ESCAPES = 256 };

INLINE void prefetch(const uint32_t bits, const struct lossless_group *g, size_t b)
{
    const uint8_t *at = g->planes + b * lossless_block_bytes(bits) + PREFETCH;
    for (size_t i = 0; i < lossless_block_bytes(bits); i += 64)
        _mm_prefetch((const char *)at + i, _MM_HINT_T0);
    _mm_prefetch((const char *)g->escapes + lossless_escapes_before(g->records[b]) + PREFETCH_ESCAPES, _MM_HINT_T0);
}

/* Two rows of B, inputs x[0 .. 3]. */
INLINE void multiply(const struct linear_tile *tile, const __m512i pair[2], const float *x, __m512 *t, const int rows)
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair[i], 16)),
                     odd = _mm512_castsi512_ps(_mm512_and_si512(pair[i], upper));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float *at = x + (size_t)r * tile->x_stride + 2 * i;
            t[r] = _mm512_fmadd_ps(even, _mm512_set1_ps(at[0]), t[r]);
            t[r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(at[1]), t[r]);
        }
    }
}

/* A block of B in registers, decoded step by step. */
INLINE void multiply_coded(const struct linear_tile *tile, const uint32_t bits, const struct lossless_group *g,
                           size_t b, __m512 *t, const int rows)
{
    struct lossless_coded c = lossless_coded_block(bits, g, b);
#pragma GCC unroll 8
    for (unsigned p = 0; p < 8; p++) {
        __m512i pair[2];
        lossless_coded_step(bits, &c, p, pair);
        multiply(tile, pair, tile->x + b * LINEAR_BLOCK + 4 * p, t, rows);
    }
}

/* A block of B in memory. */
INLINE void multiply_plain(const struct linear_tile *tile, const uint8_t *block, size_t b, __m512 *t, const int rows)
{
#pragma GCC unroll 1
    for (size_t p = 0; p < 8; p++) {
        const __m512i pair[2] = { _mm512_load_si512(block + 2 * p * 64), _mm512_load_si512(block + (2 * p + 1) * 64) };
        multiply(tile, pair, tile->x + b * LINEAR_BLOCK + 4 * p, t, rows);
    }
}

/* expanded: the group's blocks in bf16, or NULL: decoded here; for more rows than registers hold beside the decoder, by way of memory */
INLINE void tile_rows(const struct linear_tile *tile, const uint32_t bits, const uint8_t *expanded, const int rows)
{
    const struct lossless_group g = linear_lossless_group(tile->shape, tile->group);
    uint8_t decoded[LINEAR_BLOCK_BF16] __attribute__((aligned(64)));
    __m512 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < tile->n_blocks; b++) {
        __m512 t[16];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            t[r] = _mm512_setzero_ps();
        if (expanded) {
            multiply_plain(tile, expanded + b * LINEAR_BLOCK_BF16, b, t, rows);
        } else {
            prefetch(bits, &g, b);
            if (rows <= 4) {
                multiply_coded(tile, bits, &g, b, t, rows);
            } else {
                lossless_decode_vbmi2(bits, &g, b, decoded);
                multiply_plain(tile, decoded, b, t, rows);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            acc[r] = _mm512_add_ps(acc[r], t[r]);
    }
    const __mmask16 here = (__mmask16)((1u << tile->n_here) - 1);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        float *y = tile->y + (size_t)r * tile->y_stride;
        const __m512 before = tile->accumulate ? _mm512_maskz_loadu_ps(here, y) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y, here, tile->accumulate ? _mm512_add_ps(before, acc[r]) : acc[r]);
    }
}

#define TILES(rows)                                                                                                    \
    static void coded_##rows(const struct linear_tile *tile)                                                           \
    {                                                                                                                  \
        if (tile->shape->class_bits == 3)                                                                              \
            tile_rows(tile, 3, NULL, rows);                                                                            \
        else                                                                                                           \
            tile_rows(tile, 4, NULL, rows);                                                                            \
    }                                                                                                                  \
    static void expanded_##rows(const struct linear_tile *tile)                                                        \
    {                                                                                                                  \
        tile_rows(tile, 3, tile->expanded, rows);                                                                      \
    }

TILES(1)
TILES(2)
TILES(4)
TILES(8)
TILES(16)

static void expand_group(const struct linear_shape *shape, const uint8_t *packed, uint8_t *out)
{
    const struct lossless_group g = linear_lossless_group(shape, packed);
    for (size_t b = 0; b < g.n_blocks; b++, out += LINEAR_BLOCK_BF16) {
        if (shape->class_bits == 3) {
            prefetch(3, &g, b);
            lossless_decode_vbmi2(3, &g, b, out);
        } else {
            prefetch(4, &g, b);
            lossless_decode_vbmi2(4, &g, b, out);
        }
    }
}

static const struct linear_tile_fns coded = { { coded_1, coded_2, coded_4, coded_8, coded_16 }, false, NULL };
static const struct linear_tile_fns expanded = { { expanded_1, expanded_2, expanded_4, expanded_8, expanded_16 },
                                                 false,
                                                 expand_group };
enum { TILE_ROWS = 16 };

bool linear_accepts_lossless_vbmi2(const struct linear_shape *shape)
{
    return shape->codec == WEIGHT_LOSSLESS_FAST;
}

size_t linear_scratch_lossless_vbmi2(const struct linear_shape *shape, uint32_t n_rows)
{
    return linear_rows_scratch(shape, n_rows, false) + linear_n_blocks(shape) * LINEAR_BLOCK_BF16;
}

void linear_run_lossless_vbmi2(const struct linear_args *a)
{
    linear_rows_run(a, a->n_rows > TILE_ROWS ? &expanded : &coded);
}
