#include "kernels/cpu/attn.h"

#include <assert.h>
#include <immintrin.h>

#include "kernels/cpu/x86/attn_avx512.h"

bool attn_accepts_avx512(const struct attn_shape *shape)
{
    return attn_accepts_c(shape) && shape->codec == KV_BF16 && shape->head_dim % 16 == 0;
}

/*
 * c [rows][16 * groups] = a [rows][2 * n_pairs] b, where b [n_pairs][columns][2] bf16 is a stored part: keys, with channels as pairs, or
 * values, with positions as pairs. In AMX's order (attn_avx512.h), the same for any rows and groups. With each line of b that it reads it
 * asks for the line in the same place of the part that is wanted after it: more than the processor fetches ahead by itself, and evenly.
 */
static inline __attribute__((always_inline)) void product(const float *a, size_t a_stride, const uint16_t *b,
                                                          size_t columns, uint32_t n_pairs, float *c, size_t c_stride,
                                                          const int rows, const int groups, const char *after)
{
    __m512 even[4][4], odd[4][4];
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    for (uint32_t k = 0; k < n_pairs;) {
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < groups; g++)
                even[r][g] = odd[r][g] = _mm512_setzero_ps();
        const uint32_t first = k, stop = n_pairs - k < 16 ? n_pairs : k + 16;
        for (; k < stop; k++, a += 2, b += 2 * columns, after += 4 * columns)
            for (int g = 0; g < groups; g++) {
                const __m512i both = _mm512_loadu_si512(b + g * 32);
                const __m512 b0 = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
                const __m512 b1 = _mm512_castsi512_ps(_mm512_and_si512(both, high));
                _mm_prefetch(after + g * 64, _MM_HINT_T1);
                for (int r = 0; r < rows; r++) {
                    even[r][g] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride]), b0, even[r][g]);
                    odd[r][g] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride + 1]), b1, odd[r][g]);
                }
            }
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < groups; g++) {
                float *to = c + r * c_stride + g * 16;
                const __m512 sum = _mm512_add_ps(even[r][g], odd[r][g]);
                _mm512_storeu_ps(to, _mm512_add_ps(first ? _mm512_loadu_ps(to) : _mm512_setzero_ps(), sum));
            }
    }
}

/* Columns by 64, or by 32 where four rows would need more registers than there are. */
static inline __attribute__((always_inline)) void product_rows(const float *a, size_t a_stride, const uint16_t *b,
                                                               size_t columns, uint32_t n_pairs, float *c,
                                                               size_t c_stride, const int rows, const char *after)
{
    const int wide = rows == 4 ? 2 : 4;
    size_t at = 0;
    for (; at + 16 * wide <= columns; at += 16 * wide)
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, wide, after + 4 * at);
    for (; at + 32 <= columns; at += 32)
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 2, after + 4 * at);
    if (at < columns)
        product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, rows, 1, after + 4 * at);
}

static void products(const float *a, size_t a_stride, const uint16_t *b, size_t columns, uint32_t n_pairs, float *c,
                     size_t c_stride, uint32_t rows, const char *after)
{
    switch (rows) {
    case 1:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 1, after);
        break;
    case 2:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 2, after);
        break;
    case 3:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 3, after);
        break;
    default:
        product_rows(a, a_stride, b, columns, n_pairs, c, c_stride, 4, after);
        break;
    }
}

/* Raw scores of four rows to weights rounded to bf16, in place; m and l of those that `live` names. */
static void weights4(float *s, const uint64_t see[4], float scale, __mmask8 live, float *m_out, float *l_out)
{
    const __m512 scale2 = _mm512_set1_ps(scale * EXP_LOG2E);
    const __m128 raw = attn_maxima4(s, see, false);
    float top[4] __attribute__((aligned(16)));
    __m512 l[4];
    _mm_store_ps(top, _mm_mul_ps(raw, _mm_set1_ps(scale * EXP_LOG2E)));
    for (int r = 0; r < 4; r++, s += KV_BLOCK) {
        __m512 p[4];
        for (int j = 0; j < 4; j++) {
            p[j] = attn_weights(s + 16 * j, scale2, _mm512_set1_ps(top[r]), (__mmask16)(see[r] >> (16 * j)), false);
            _mm512_store_ps(s + 16 * j, _mm512_castsi512_ps(bf16_round_avx512(p[j])));
        }
        l[r] = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
    }
    _mm_mask_storeu_ps(m_out, live, _mm_mul_ps(raw, _mm_set1_ps(scale)));
    _mm_mask_storeu_ps(l_out, live, attn_sum4(l));
}

void attn_block_avx512(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                       const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    float s[4 * KV_BLOCK] __attribute__((aligned(64))) = { 0 };
    uint64_t see[ATTN_ROWS];
    const uint32_t d = shape->head_dim;
    const float *q = q_tile;
    float *o = partial_o(partial_out);
    assert(n <= ATTN_ROWS);
    attn_see(visible, n, see);
    /* The values are asked for while the keys are read, the next keys while the values are. */
    const void *after = next_k_part ? next_k_part : v_part;
    for (size_t i = 0; !next_k_part && i < attn_part_bytes(shape); i += 64)
        _mm_prefetch((const char *)k_part + i, _MM_HINT_T1);
    for (uint32_t r = 0; r < n; r += 4, q += 4 * d, o += 4 * d) {
        const uint32_t rows = n - r < 4 ? n - r : 4;
        products(q, d, k_part, KV_BLOCK, d / 2, s, KV_BLOCK, rows, v_part);
        weights4(s, see + r, shape->scale, attn_live4(r, n), partial_out + r, partial_l(partial_out) + r);
        products(s, KV_BLOCK, v_part, d, KV_BLOCK / 2, o, d, rows, after);
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
