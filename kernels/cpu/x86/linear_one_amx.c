#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/linear_amx.h"
#include "kernels/cpu/linear_codes_amx.h"

/*
 * One row by AVX-512, to the last bit as AMX has it: C[n] = C[n] + (e + o), where e and o are chains of fused multiply-adds from zero over the
 * even and the odd inputs of the tile's depth, ascending, denormals taken and made as zero. (So says the pseudocode of TDPBF16PS, and so do
 * the checks, which run rows alone and in company.) Nothing goes through tiles and memory, which is what costs when there is one row only.
 */

#define INLINE static inline __attribute__((always_inline))

enum { PREFETCH = 2560 };

/* Multiplies four rows of B with inputs 0 .. 7 of x. */
INLINE void multiply4(const __m512i rows[4], const float *x, __m512 *e, __m512 *o)
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        *e = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(rows[i], 16)), _mm512_set1_ps(x[2 * i]), *e);
        *o = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(rows[i], upper)), _mm512_set1_ps(x[2 * i + 1]), *o);
    }
}

INLINE __m512 group_row(enum weight_codec codec, const uint8_t *group, size_t n_blocks, const float *x,
                        const float *sums)
{
    __m512 acc = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++, x += LINEAR_BLOCK) {
        const uint8_t *codes = linear_codes(codec, group, b);
        for (size_t at = 0; at < linear_pair_bytes(codec) / 2; at += 64)
            _mm_prefetch((const char *)codes + PREFETCH + at, _MM_HINT_T0);
        __m512 e = _mm512_setzero_ps(), o = e;
#pragma GCC unroll 4
        for (unsigned j = 0; j < 4; j++) {
            __m512i rows[4];
            linear_expand4(codec, codes, j, rows);
            multiply4(rows, x + (size_t)j * 8, &e, &o);
            if (codec == WEIGHT_Q6_K && j == 1) { /* tiles of half the depth, see linear_q6_amx.c */
                acc = _mm512_fmadd_ps(linear_load_d(codec, group, b, 0), _mm512_add_ps(e, o), acc);
                e = o = _mm512_setzero_ps();
            }
        }
        const __m512 d = linear_load_d(codec, group, b, codec == WEIGHT_Q6_K);
        acc = _mm512_fmadd_ps(d, _mm512_add_ps(e, o), acc);
        if (linear_has_min(codec))
            acc = _mm512_fmadd_ps(linear_load_m(codec, group, b, d), _mm512_set1_ps(sums[b * AMX_ROWS]), acc);
    }
    return acc;
}

INLINE void one_row(const struct linear_args *a, enum weight_codec codec, const float *sums, const float *x)
{
    const size_t n_blocks = linear_n_blocks(a->shape), stride = linear_group_bytes(a->shape);
    const struct amx_chunk whole = { .args = a, .n_rows = 1 };
    for (uint32_t g = a->out_begin / LINEAR_GROUP; g * LINEAR_GROUP < a->out_end; g++) {
        float y[LINEAR_GROUP] __attribute__((aligned(64)));
        _mm512_store_ps(y, group_row(codec, (const uint8_t *)a->packed + (size_t)g * stride, n_blocks, x, sums));
        amx_finish(&whole, 0, g, y);
    }
}

#define CODEC(codec)                                                                                                   \
    static void one_row_##codec(const struct linear_args *a, const float *sums, const float *x)                        \
    {                                                                                                                  \
        one_row(a, WEIGHT_##codec, sums, x);                                                                           \
    }

CODEC(Q8_0)
CODEC(Q4_0)
CODEC(Q4_1)
CODEC(Q5_0)
CODEC(Q5_1)
CODEC(Q4_K)
CODEC(Q5_K)
CODEC(Q6_K)
CODEC(Q4_Z)

static void (*const fns[WEIGHT_CODECS])(const struct linear_args *a, const float *sums, const float *x) = {
    [WEIGHT_Q8_0] = one_row_Q8_0, [WEIGHT_Q4_0] = one_row_Q4_0, [WEIGHT_Q4_1] = one_row_Q4_1,
    [WEIGHT_Q5_0] = one_row_Q5_0, [WEIGHT_Q5_1] = one_row_Q5_1, [WEIGHT_Q4_K] = one_row_Q4_K,
    [WEIGHT_Q5_K] = one_row_Q5_K, [WEIGHT_Q6_K] = one_row_Q6_K, [WEIGHT_Q4_Z] = one_row_Q4_Z,
};

void linear_one_row_amx(const struct linear_args *a, const float *sums, float *scratch)
{
    const uint16_t *x = a->x;
    for (size_t k = 0; k < linear_n_blocks(a->shape) * LINEAR_BLOCK; k += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(x + k)));
        _mm512_storeu_ps(scratch + k, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
    fns[a->shape->codec](a, sums, scratch);
}
