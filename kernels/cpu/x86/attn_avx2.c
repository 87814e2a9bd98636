#include "kernels/cpu/attn.h"

#include <assert.h>
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/x86/vec_avx2.h"

bool attn_accepts_avx2(const struct attn_shape *shape)
{
    return attn_accepts_c(shape) && shape->codec == KV_BF16 && shape->head_dim % 16 == 0;
}

/*
 * c [rows][16] = a [rows][2 * n_pairs] b, where b [n_pairs][columns][2] bf16 is a stored part: keys, with channels as pairs, or values,
 * with positions as pairs. Pairs ascending, the first of a pair first, for any rows.
 */
static inline __attribute__((always_inline)) void product(const float *a, size_t a_stride, const uint16_t *b,
                                                          size_t columns, uint32_t n_pairs, float *c, size_t c_stride,
                                                          const int rows)
{
    __m256 acc[4][2];
    const __m256i high = _mm256_set1_epi32((int)0xFFFF0000u);
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < n_pairs; k++, a += 2, b += 2 * columns)
        for (int g = 0; g < 2; g++) {
            const __m256i both = _mm256_loadu_si256((const __m256i *)(b + g * 16));
            const __m256 b0 = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
            const __m256 b1 = _mm256_castsi256_ps(_mm256_and_si256(both, high));
            for (int r = 0; r < rows; r++) {
                acc[r][g] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + r * a_stride), b0, acc[r][g]);
                acc[r][g] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + r * a_stride + 1), b1, acc[r][g]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 2; g++)
            _mm256_storeu_ps(c + r * c_stride + g * 8, acc[r][g]);
}

static void products(const float *a, size_t a_stride, const uint16_t *b, size_t columns, uint32_t n_pairs, float *c,
                     size_t c_stride, uint32_t rows)
{
    for (size_t at = 0; at < columns; at += 16)
        switch (rows) {
        case 1:
            product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, 1);
            break;
        case 2:
            product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, 2);
            break;
        case 3:
            product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, 3);
            break;
        default:
            product(a, a_stride, b + 2 * at, columns, n_pairs, c + at, c_stride, 4);
            break;
        }
}

/* Scores [KV_BLOCK] of one vector to weights, in place. Powers of two: u = s scale log2(e). Eight lanes, their vectors ascending. */
static void weights(float *s, int visible, __m256 scale, float *m_out, float *l_out)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256 top = none, l = _mm256_setzero_ps();
    for (int j = 0; j < KV_BLOCK; j += 8) {
        const __m256 see = _mm256_castsi256_ps(lanes_avx2(visible - j));
        const __m256 u = _mm256_blendv_ps(none, _mm256_mul_ps(_mm256_load_ps(s + j), scale), see);
        _mm256_store_ps(s + j, u);
        top = _mm256_max_ps(top, u);
    }
    const float m = hmax_avx2(top);
    for (int j = 0; j < KV_BLOCK; j += 8) {
        const __m256 see = _mm256_castsi256_ps(lanes_avx2(visible - j));
        const __m256 p = _mm256_and_ps(see, exp2_avx2(_mm256_sub_ps(_mm256_load_ps(s + j), _mm256_set1_ps(m))));
        l = _mm256_add_ps(l, p);
        _mm256_store_ps(s + j, _mm256_castsi256_ps(bf16_round_avx2(p)));
    }
    *m_out = m * EXP_LN2;
    *l_out = hsum_avx2(l);
}

void attn_block_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                     const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    float s[4 * KV_BLOCK] __attribute__((aligned(64)));
    const uint32_t d = shape->head_dim;
    const __m256 scale = _mm256_set1_ps(shape->scale * EXP_LOG2E);
    const float *q = q_tile;
    float *o = partial_o(partial_out);
    (void)next_k_part;
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

void attn_merge_avx2(const struct attn_shape *shape, uint32_t n, float *a, const float *b)
{
    const uint32_t d = shape->head_dim;
    float *la = partial_l(a), *oa = partial_o(a);
    const float *lb = b + ATTN_ROWS, *ob = b + 2 * ATTN_ROWS;
    float wa[8], wb[8];
    for (uint32_t r = 0; r < n; r++, oa += d, ob += d) {
        if (r % 8 == 0) {
            const __m256i live = lanes_avx2((int)(n - r));
            const __m256 ma = _mm256_maskload_ps(a + r, live), mb = _mm256_maskload_ps(b + r, live);
            const __m256 m = _mm256_max_ps(ma, mb);
            _mm256_storeu_ps(wa, exp_avx2(_mm256_sub_ps(ma, m)));
            _mm256_storeu_ps(wb, exp_avx2(_mm256_sub_ps(mb, m)));
        }
        if (lb[r] == 0)
            continue;
        if (la[r] == 0) {
            a[r] = b[r];
            la[r] = lb[r];
            for (uint32_t i = 0; i < d; i += 8)
                _mm256_storeu_ps(oa + i, _mm256_loadu_ps(ob + i));
            continue;
        }
        a[r] = a[r] > b[r] ? a[r] : b[r];
        la[r] = la[r] * wa[r % 8] + lb[r] * wb[r % 8];
        const __m256 va = _mm256_set1_ps(wa[r % 8]), vb = _mm256_set1_ps(wb[r % 8]);
        for (uint32_t i = 0; i < d; i += 8)
            _mm256_storeu_ps(oa + i,
                             _mm256_fmadd_ps(_mm256_loadu_ps(oa + i), va, _mm256_mul_ps(_mm256_loadu_ps(ob + i), vb)));
    }
}
