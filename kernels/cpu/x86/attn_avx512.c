#include "kernels/cpu/attn.h"

#include <assert.h>
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/x86/vec_avx512.h"

bool attn_accepts_avx512(const struct attn_shape *shape)
{
    return attn_accepts_c(shape) && shape->codec == KV_BF16 && shape->head_dim % 16 == 0;
}

/*
 * c [rows][16 * groups] = a [rows][2 * n_pairs] b, where b [n_pairs][columns][2] bf16 is a stored part: keys, with channels as pairs, or
 * values, with positions as pairs. Pairs ascending, the first of a pair first: the same for any rows and groups.
 */
static inline __attribute__((always_inline)) void product(const float *a, size_t a_stride, const uint16_t *b,
                                                          size_t columns, uint32_t n_pairs, float *c, size_t c_stride,
                                                          const int rows, const int groups)
{
    __m512 acc[4][4];
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++)
            acc[r][g] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < n_pairs; k++, a += 2, b += 2 * columns)
        for (int g = 0; g < groups; g++) {
            const __m512i both = _mm512_loadu_si512(b + g * 32);
            const __m512 b0 = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            const __m512 b1 = _mm512_castsi512_ps(_mm512_and_si512(both, high));
            for (int r = 0; r < rows; r++) {
                acc[r][g] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride]), b0, acc[r][g]);
                acc[r][g] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride + 1]), b1, acc[r][g]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++)
            _mm512_storeu_ps(c + r * c_stride + g * 16, acc[r][g]);
}

static inline __attribute__((always_inline)) void product_rows(const float *a, size_t a_stride, const uint16_t *b,
                                                               size_t columns, uint32_t n_pairs, float *c,
                                                               size_t c_stride, const int rows)
{
    size_t at = 0;
    for (; at + 64 <= columns; at += 64)
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 4);
    switch ((columns - at) / 16) {
    case 3:
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 3);
        break;
    case 2:
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 2);
        break;
    case 1:
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 1);
        break;
    default:
        break;
    }
}

static void products(const float *a, size_t a_stride, const uint16_t *b, size_t columns, uint32_t n_pairs, float *c,
                     size_t c_stride, uint32_t rows)
{
    switch (rows) {
    case 1:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 1);
        break;
    case 2:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 2);
        break;
    case 3:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 3);
        break;
    default:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 4);
        break;
    }
}

/* Scores [KV_BLOCK] of one vector to weights, in place. Powers of two: u = s scale log2(e). */
static void weights(float *s, uint32_t visible, __m512 scale, float *m_out, float *l_out)
{
    const uint64_t see = _bzhi_u64(~UINT64_C(0), visible);
    __m512 u[4];
    for (int j = 0; j < 4; j++)
        u[j] = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(see >> (16 * j)), _mm512_load_ps(s + j * 16),
                                  scale);
    const float top = hmax_avx512(_mm512_max_ps(_mm512_max_ps(u[0], u[1]), _mm512_max_ps(u[2], u[3])));
    for (int j = 0; j < 4; j++) {
        u[j] = exp2_avx512(_mm512_sub_ps(u[j], _mm512_set1_ps(top)));
        u[j] = _mm512_maskz_mov_ps((__mmask16)(see >> (16 * j)), u[j]);
        _mm512_store_ps(s + j * 16, _mm512_castsi512_ps(bf16_round_avx512(u[j])));
    }
    *m_out = top * EXP_LN2;
    *l_out = hsum_avx512(_mm512_add_ps(_mm512_add_ps(u[0], u[1]), _mm512_add_ps(u[2], u[3])));
}

void attn_block_avx512(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                       const void *k_part, const void *v_part, float *partial_out)
{
    float s[4 * KV_BLOCK] __attribute__((aligned(64)));
    const uint32_t d = shape->head_dim;
    const __m512 scale = _mm512_set1_ps(shape->scale * EXP_LOG2E);
    const float *q = q_tile;
    float *o = partial_o(partial_out);
    assert(n <= ATTN_ROWS);
    for (uint32_t r = 0; r < n; r += 4, q += 4 * d, o += 4 * d) {
        const uint32_t rows = n - r < 4 ? n - r : 4;
        products(q, d, k_part, KV_BLOCK, d / 2, s, KV_BLOCK, rows);
        for (uint32_t i = 0; i < rows; i++) {
            assert(visible[r + i] <= KV_BLOCK);
            weights(s + i * KV_BLOCK, visible[r + i], scale, partial_out + r + i, partial_l(partial_out) + r + i);
        }
        products(s, KV_BLOCK, v_part, d, KV_BLOCK / 2, o, d, rows);
    }
}

void attn_merge_avx512(const struct attn_shape *shape, uint32_t n, float *a, const float *b)
{
    const uint32_t d = shape->head_dim;
    const __mmask16 live = lanes_avx512(n);
    const __m512 ma = _mm512_maskz_loadu_ps(live, a), mb = _mm512_maskz_loadu_ps(live, b);
    const __m512 la = _mm512_maskz_loadu_ps(live, partial_l(a)), lb = _mm512_maskz_loadu_ps(live, b + ATTN_ROWS);
    const __m512 m = _mm512_max_ps(ma, mb);
    const __m512 wa = exp_avx512(_mm512_sub_ps(ma, m)), wb = exp_avx512(_mm512_sub_ps(mb, m));
    const __mmask16 no_b = _mm512_mask_cmp_ps_mask(live, lb, _mm512_setzero_ps(), _CMP_EQ_OQ);
    const __mmask16 no_a = _mm512_mask_cmp_ps_mask(live & ~no_b, la, _mm512_setzero_ps(), _CMP_EQ_OQ);
    const __mmask16 both = live & ~no_a & ~no_b;
    _mm512_mask_storeu_ps(a, both, m);
    _mm512_mask_storeu_ps(a, no_a, mb);
    _mm512_mask_storeu_ps(partial_l(a), both, _mm512_fmadd_ps(la, wa, _mm512_mul_ps(lb, wb)));
    _mm512_mask_storeu_ps(partial_l(a), no_a, lb);

    float weight_a[ATTN_ROWS] __attribute__((aligned(64))), weight_b[ATTN_ROWS] __attribute__((aligned(64)));
    _mm512_store_ps(weight_a, wa);
    _mm512_store_ps(weight_b, wb);
    float *oa = partial_o(a);
    const float *ob = b + 2 * ATTN_ROWS;
    for (uint32_t r = 0; r < n; r++, oa += d, ob += d) {
        if (no_b >> r & 1)
            continue;
        if (no_a >> r & 1) {
            for (uint32_t i = 0; i < d; i += 16)
                _mm512_storeu_ps(oa + i, _mm512_loadu_ps(ob + i));
            continue;
        }
        const __m512 va = _mm512_set1_ps(weight_a[r]), vb = _mm512_set1_ps(weight_b[r]);
        for (uint32_t i = 0; i < d; i += 16)
            _mm512_storeu_ps(oa + i,
                             _mm512_fmadd_ps(_mm512_loadu_ps(oa + i), va, _mm512_mul_ps(_mm512_loadu_ps(ob + i), vb)));
    }
}
