#include "kernels/cpu/x86/kv_variants.h"

#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/vec_avx2.h"

bool kv_accepts_avx2(const struct attn_shape *shape)
{
    return kv_accepts_c(shape) && shape->head_dim % 16 == 0;
}

/* 16 integers in the order in which products take them: of each four, 0, 2, 1, 3. */
static inline void pair_order(int16_t *at)
{
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i *to = (__m256i *)(void *)at;
    _mm256_store_si256(to, _mm256_shuffle_epi8(_mm256_load_si256(to), order));
}

void kv_pack_q_avx2(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    int16_t *at = (int16_t *)(void *)((float *)q_tile + 2 * ATTN_ROWS);
    kv_pack_q(shape, q, n, q_tile);
    for (uint32_t i = 0; i < n * shape->head_dim; i += 16)
        pair_order(at + i);
}

static inline __m256i add_products(__m256i sum, __m256i codes, const int16_t *a)
{
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, _mm256_set1_epi32(pair)));
}

/*
 * y [rows][columns] = a [rows][n] codes, eight columns at a time: the sum over n channels (keys), or positions (values). Four rows of codes are 32 bytes
 * of eight columns; `half`: codes are half bytes, and the upper ones stand for rows n/2 later.
 */
static inline __attribute__((always_inline)) void product(const int16_t *a, size_t a_stride, const uint8_t *codes,
                                                          size_t columns, uint32_t n, const bool half, int32_t *y,
                                                          const int rows)
{
    const __m256i low4 = _mm256_set1_epi16(15);
    for (size_t c = 0; c < columns; c += 8) {
        __m256i sum[4];
        const uint8_t *from = codes + 4 * c;
        for (int r = 0; r < rows; r++)
            sum[r] = _mm256_setzero_si256();
        for (uint32_t k = 0; k < (half ? n / 2 : n); k += 4, from += 4 * columns) {
            const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)from);
            const __m256i even = half ? _mm256_and_si256(x, low4) : _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
            const __m256i odd = half ? _mm256_and_si256(_mm256_srli_epi16(x, 8), low4) : _mm256_srai_epi16(x, 8);
            const __m256i even_up = _mm256_and_si256(_mm256_srli_epi16(x, 4), low4), odd_up = _mm256_srli_epi16(x, 12);
            for (int r = 0; r < rows; r++) {
                const int16_t *at = a + (size_t)r * a_stride + k;
                sum[r] = add_products(sum[r], even, at);
                sum[r] = add_products(sum[r], odd, at + 2);
                if (half) {
                    sum[r] = add_products(sum[r], even_up, at + n / 2);
                    sum[r] = add_products(sum[r], odd_up, at + n / 2 + 2);
                }
            }
        }
        for (int r = 0; r < rows; r++)
            _mm256_store_si256((__m256i *)(void *)(y + (size_t)r * columns + c), sum[r]);
    }
}

static inline __attribute__((always_inline)) void products(const int16_t *a, size_t a_stride, const uint8_t *codes,
                                                           size_t columns, uint32_t n, const bool half, int32_t *y,
                                                           uint32_t rows)
{
    switch (rows) {
    case 1:
        product(a, a_stride, codes, columns, n, half, y, 1);
        break;
    case 2:
        product(a, a_stride, codes, columns, n, half, y, 2);
        break;
    case 3:
        product(a, a_stride, codes, columns, n, half, y, 3);
        break;
    default:
        product(a, a_stride, codes, columns, n, half, y, 4);
        break;
    }
}

struct planes {
    float k_scale[KV_BLOCK], k_least[KV_BLOCK], v_scale[KV_BLOCK], v_least[KV_BLOCK];
} __attribute__((aligned(64)));

static void plane_load(const uint16_t *from, float *to)
{
    for (int j = 0; j < KV_BLOCK; j += 8)
        _mm256_store_ps(to + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + j))));
}

/* Products x [KV_BLOCK] of one query with the keys' codes -> its weights as integers, m and l, and what its outputs are completed with. */
static inline __attribute__((always_inline)) void weights(const struct planes *p, const int32_t *x, int visible,
                                                          const bool half, float scale, float q_sum, int16_t *w_out,
                                                          float *w_scale, float *base_out, float *m_out, float *l_out)
{
    float s[KV_BLOCK] __attribute__((aligned(64)));
    const __m256 none = _mm256_set1_ps(-INFINITY), scale2 = _mm256_set1_ps(scale * EXP_LOG2E);
    __m256 top = none, l = _mm256_setzero_ps(), high = _mm256_setzero_ps(), base = _mm256_setzero_ps();
    for (int j = 0; j < KV_BLOCK; j += 8) {
        const __m256 codes = _mm256_cvtepi32_ps(_mm256_load_si256((const __m256i *)(const void *)(x + j)));
        const __m256 k_scale = _mm256_load_ps(p->k_scale + j);
        const __m256 raw =
            half ? _mm256_fmadd_ps(k_scale, codes, _mm256_mul_ps(_mm256_load_ps(p->k_least + j), _mm256_set1_ps(q_sum)))
                 : _mm256_mul_ps(k_scale, codes);
        const __m256 see = _mm256_castsi256_ps(lanes_avx2(visible - j));
        const __m256 u = _mm256_blendv_ps(none, _mm256_mul_ps(raw, scale2), see);
        _mm256_store_ps(s + j, u);
        top = _mm256_max_ps(top, u);
    }
    const float m = hmax_avx2(top);
    for (int j = 0; j < KV_BLOCK; j += 8) {
        const __m256 see = _mm256_castsi256_ps(lanes_avx2(visible - j));
        const __m256 e = _mm256_and_ps(see, exp2_avx2(_mm256_sub_ps(_mm256_load_ps(s + j), _mm256_set1_ps(m))));
        const __m256 w = _mm256_max_ps(_mm256_mul_ps(e, _mm256_load_ps(p->v_scale + j)), _mm256_setzero_ps());
        l = _mm256_add_ps(l, e);
        high = _mm256_max_ps(high, w);
        if (half)
            base = _mm256_fmadd_ps(e, _mm256_load_ps(p->v_least + j), base);
        _mm256_store_ps(s + j, w);
    }
    const float most = hmax_avx2(high), inverse = KV_W_MAX / most;
    const bool some = inverse < INFINITY;
    const __m256 up = _mm256_set1_ps(some ? inverse : 0.0f);
    for (int j = 0; j < KV_BLOCK; j += 8) {
        const __m256i w = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(s + j), up));
        _mm_store_si128((__m128i *)(void *)(w_out + j),
                        _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
    }
    *w_scale = some ? most / KV_W_MAX : 0.0f;
    *base_out = hsum_avx2(base);
    *m_out = m * EXP_LN2;
    *l_out = hsum_avx2(l);
}

/* half: codes of half a byte, with least values */
static inline __attribute__((always_inline)) void block(const struct attn_shape *shape, const void *q_tile, uint32_t n,
                                                        const uint8_t *visible, const uint8_t *k_part,
                                                        const uint8_t *v_part, const bool half, float *partial)
{
    int32_t x[4 * ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    int16_t w[4][KV_BLOCK] __attribute__((aligned(64)));
    float w_scale[4], base[4];
    struct planes planes;
    const uint32_t d = shape->head_dim;
    const float *q_scale = q_tile, *q_sum = q_scale + ATTN_ROWS;
    const int16_t *q = kv_tile_q(q_tile);
    plane_load(kv_scales(shape, k_part), planes.k_scale);
    plane_load(kv_scales(shape, v_part), planes.v_scale);
    if (half) {
        plane_load(kv_leasts(shape, k_part), planes.k_least);
        plane_load(kv_leasts(shape, v_part), planes.v_least);
    }
    for (uint32_t r = 0; r < n; r += 4) {
        const uint32_t rows = n - r < 4 ? n - r : 4;
        float *o = partial_o(partial) + (size_t)r * d;
        products(q + (size_t)r * d, d, k_part, KV_BLOCK, d, half, x, rows);
        for (uint32_t i = 0; i < rows; i++) {
            weights(&planes, x + (size_t)i * KV_BLOCK, visible[r + i], half, shape->scale * q_scale[r + i],
                    q_sum[r + i], w[i], &w_scale[i], &base[i], partial + r + i, partial_l(partial) + r + i);
            for (int j = 0; j < KV_BLOCK; j += 16)
                pair_order(w[i] + j);
        }
        products(w[0], KV_BLOCK, v_part, d, KV_BLOCK, half, x, rows);
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t c = 0; c < d; c += 8) {
                const __m256 y =
                    _mm256_cvtepi32_ps(_mm256_load_si256((const __m256i *)(const void *)(x + (size_t)i * d + c)));
                _mm256_storeu_ps(o + (size_t)i * d + c,
                                 _mm256_fmadd_ps(_mm256_set1_ps(w_scale[i]), y, _mm256_set1_ps(base[i])));
            }
    }
}

void kv_outputs_int8_avx2(const struct attn_shape *shape, uint32_t rows, int32_t *x, const float *unit,
                          const float *base, const uint8_t *visible, const uint8_t *v_part, float *m_out, float *l_out,
                          float *o)
{
    int16_t w[4][KV_BLOCK] __attribute__((aligned(64)));
    float w_scale[4], none;
    struct planes planes;
    const uint32_t d = shape->head_dim;
    for (int t = 0; t < KV_BLOCK; t++) {
        planes.k_scale[t] = planes.k_least[t] = 1.0f;
        planes.v_least[t] = 0.0f;
    }
    plane_load(kv_scales(shape, v_part), planes.v_scale);
    for (uint32_t i = 0; i < rows; i++) {
        weights(&planes, x + (size_t)i * KV_BLOCK, visible[i], true, shape->scale * unit[i], base[i], w[i], &w_scale[i],
                &none, &m_out[i], &l_out[i]);
        for (int j = 0; j < KV_BLOCK; j += 16)
            pair_order(w[i] + j);
    }
    products(w[0], KV_BLOCK, v_part, d, KV_BLOCK, false, x, rows);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t c = 0; c < d; c += 8) {
            const __m256i y = _mm256_load_si256((const __m256i *)(const void *)(x + (size_t)i * d + c));
            _mm256_storeu_ps(o + (size_t)i * d + c, _mm256_mul_ps(_mm256_set1_ps(w_scale[i]), _mm256_cvtepi32_ps(y)));
        }
}

void kv_block_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                   const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    (void)next_k_part;
    assert(n <= ATTN_ROWS);
    if (shape->codec == KV_INT8)
        block(shape, q_tile, n, visible, k_part, v_part, false, partial_out);
    else
        block(shape, q_tile, n, visible, k_part, v_part, true, partial_out);
}
