#include "kernels/cpu/x86/kv_variants.h"

#include <assert.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_avx512.h"

bool kv_accepts_avx512(const struct attn_shape *shape)
{
    return kv_accepts_c(shape) && shape->head_dim % 16 == 0;
}

/* 32 integers in the order in which products take them: of each four, 0, 2, 1, 3. */
static inline __m512i pair_order(__m512i x)
{
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    return _mm512_shuffle_epi8(x, order);
}

void kv_pack_q_avx512(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    const uint32_t d = shape->head_dim;
    float *scale = q_tile, *sum = scale + ATTN_ROWS;
    int16_t *at = (int16_t *)(void *)(sum + ATTN_ROWS);
    assert(n <= ATTN_ROWS);
    memset(q_tile, 0, kv_q_tile_bytes(shape));
    for (uint32_t i = 0; i < n; i++)
        scale[i] = kv_quantize_q_avx512(shape, q[i], at + (size_t)i * d, &sum[i]);
    for (uint32_t i = 0; i < n * d; i += 16)
        _mm256_store_si256(
            (__m256i *)(at + i),
            _mm512_castsi512_si256(pair_order(_mm512_castsi256_si512(_mm256_load_si256((const __m256i *)(at + i))))));
}

void kv_rotate_partial_avx512(const struct attn_shape *shape, uint32_t n, float *partial)
{
    for (uint32_t i = 0; i < n; i++)
        kv_rotate_avx512(partial_o(partial) + (size_t)i * shape->head_dim, shape->head_dim,
                         kv_rotation_order(shape->head_dim));
}

static inline int32_t pair_at(const int16_t *a)
{
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return pair;
}

static inline __m512i add_products(__m512i sum, __m512i codes, const int16_t *a)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(codes, _mm512_set1_epi32(pair_at(a))));
}

/*
 * y [rows][y_stride] = a [rows][n] codes, 16 * groups columns of `columns`: the sum over n channels (keys), or positions (values). Four rows of codes
 * are a line of 16 columns; `half`: codes are half bytes, and the upper ones stand for rows n/2 later. Each line asks for the one in the same place
 * of `after`.
 */
static inline __attribute__((always_inline)) void product(const int16_t *a, size_t a_stride, const uint8_t *codes,
                                                          size_t columns, uint32_t n, const bool half, int32_t *y,
                                                          size_t y_stride, const int rows, const int groups,
                                                          const char *after)
{
    const __m512i low4 = _mm512_set1_epi16(15);
    __m512i sum[4][2];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++)
            sum[r][g] = _mm512_setzero_si512();
    for (uint32_t k = 0; k < (half ? n / 2 : n); k += 4, codes += 4 * columns, after += 4 * columns)
        for (int g = 0; g < groups; g++) {
            const __m512i x = _mm512_loadu_si512(codes + g * 64);
            _mm_prefetch(after + g * 64, _MM_HINT_T1);
            const __m512i even = half ? _mm512_and_si512(x, low4) : _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8);
            const __m512i odd = half ? _mm512_and_si512(_mm512_srli_epi16(x, 8), low4) : _mm512_srai_epi16(x, 8);
            const __m512i even_up = _mm512_and_si512(_mm512_srli_epi16(x, 4), low4), odd_up = _mm512_srli_epi16(x, 12);
            for (int r = 0; r < rows; r++) {
                const int16_t *at = a + r * a_stride + k;
                sum[r][g] = add_products(sum[r][g], even, at);
                sum[r][g] = add_products(sum[r][g], odd, at + 2);
                if (half) {
                    sum[r][g] = add_products(sum[r][g], even_up, at + n / 2);
                    sum[r][g] = add_products(sum[r][g], odd_up, at + n / 2 + 2);
                }
            }
        }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++)
            _mm512_storeu_si512(y + r * y_stride + g * 16, sum[r][g]);
}

static inline __attribute__((always_inline)) void product_columns(const int16_t *a, size_t a_stride,
                                                                  const uint8_t *codes, size_t columns, uint32_t n,
                                                                  const bool half, int32_t *y, const int rows,
                                                                  const char *after)
{
    size_t at = 0;
    for (; at + 32 <= columns; at += 32)
        product(a, a_stride, codes + 4 * at, columns, n, half, y + at, columns, rows, 2, after + 4 * at);
    if (at < columns)
        product(a, a_stride, codes + 4 * at, columns, n, half, y + at, columns, rows, 1, after + 4 * at);
}

static inline __attribute__((always_inline)) void products(const int16_t *a, size_t a_stride, const uint8_t *codes,
                                                           size_t columns, uint32_t n, const bool half, int32_t *y,
                                                           uint32_t rows, const char *after)
{
    switch (rows) {
    case 1:
        product_columns(a, a_stride, codes, columns, n, half, y, 1, after);
        break;
    case 2:
        product_columns(a, a_stride, codes, columns, n, half, y, 2, after);
        break;
    case 3:
        product_columns(a, a_stride, codes, columns, n, half, y, 3, after);
        break;
    default:
        product_columns(a, a_stride, codes, columns, n, half, y, 4, after);
        break;
    }
}

/* half: codes of half a byte, with least values */
static inline __attribute__((always_inline)) void block(const struct attn_shape *shape, const void *q_tile, uint32_t n,
                                                        const uint8_t *visible, const uint8_t *k_part,
                                                        const uint8_t *v_part, const char *after, const bool half,
                                                        float *partial)
{
    int32_t x[4 * ATTN_HEAD_DIM_MAX] __attribute__((aligned(64))) = { 0 };
    struct kv_planes planes;
    struct kv_weights w;
    uint64_t see[ATTN_ROWS];
    const uint32_t d = shape->head_dim;
    const float *q_scale = q_tile, *q_sum = q_scale + ATTN_ROWS;
    const int16_t *q = kv_tile_q(q_tile);
    float *o = partial_o(partial);
    attn_see(visible, n, see);
    kv_planes_load(shape, k_part, v_part, half, &planes);
    kv_planes_ask(shape, after);
    kv_planes_ask(shape, after + (v_part - k_part));
    for (uint32_t r = 0; r < n; r += 4) {
        const uint32_t rows = n - r < 4 ? n - r : 4;
        products(q + (size_t)r * d, d, k_part, KV_BLOCK, d, half, x, rows, (const char *)v_part);
        kv_weights4(&planes, x, see + r, half, shape->scale, q_scale + r, q_sum + r, attn_live4(r, n), &w, partial + r,
                    partial_l(partial) + r);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < KV_BLOCK; j += 32)
                _mm512_store_si512(&w.w[i][j], pair_order(_mm512_load_si512(&w.w[i][j])));
        products(w.w[0], KV_BLOCK, v_part, d, KV_BLOCK, half, x, rows, after);
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t c = 0; c < d; c += 16)
                _mm512_storeu_ps(o + (r + i) * d + c,
                                 _mm512_fmadd_ps(_mm512_set1_ps(w.w_scale[i]),
                                                 _mm512_cvtepi32_ps(_mm512_load_si512(x + i * d + c)),
                                                 _mm512_set1_ps(w.base[i])));
    }
}

void kv_block_avx512(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                     const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    const char *after = next_k_part ? next_k_part : v_part;
    assert(n <= ATTN_ROWS);
    if (shape->codec == KV_INT8)
        block(shape, q_tile, n, visible, k_part, v_part, after, false, partial_out);
    else
        block(shape, q_tile, n, visible, k_part, v_part, after, true, partial_out);
}
