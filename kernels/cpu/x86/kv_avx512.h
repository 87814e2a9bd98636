#ifndef LONGSPAN_KERNELS_CPU_X86_KV_AVX512_H
#define LONGSPAN_KERNELS_CPU_X86_KV_AVX512_H

/*
 * What the AVX-512 and AMX variants of attention over coded blocks share: all but the products, which are exact in both. So they give the same bits.
 * Empty in files that are not built with AVX-512.
 */

#include "kernels/cpu/kv.h"
#include "kernels/cpu/x86/attn_avx512.h"

#ifdef __AVX512DQ__
#include <immintrin.h>
#include <math.h>
#include <string.h>

/* One step of a rotation inside a vector: y is x with the partners changed places; in the lanes of `upper` the partner comes first. */
static inline __m512 kv_butterfly(__m512 x, __m512 y, __mmask16 upper)
{
    return _mm512_mask_sub_ps(_mm512_add_ps(x, y), upper, y, x);
}

/* kv_rotate, the same bits; order at least 16, x 64-byte aligned. */
static inline void kv_rotate_avx512(float *x, uint32_t n, uint32_t order)
{
    const __m512 unit = _mm512_set1_ps(1.0f / sqrtf((float)order));
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_load_ps(x + i);
        v = kv_butterfly(v, _mm512_permute_ps(v, 0xB1), 0xAAAA);
        v = kv_butterfly(v, _mm512_permute_ps(v, 0x4E), 0xCCCC);
        v = kv_butterfly(v, _mm512_shuffle_f32x4(v, v, 0xB1), 0xF0F0);
        v = kv_butterfly(v, _mm512_shuffle_f32x4(v, v, 0x4E), 0xFF00);
        _mm512_store_ps(x + i, v);
    }
    for (uint32_t half = 16; half < order; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j += 16) {
                const __m512 a = _mm512_load_ps(x + j), b = _mm512_load_ps(x + j + half);
                _mm512_store_ps(x + j, _mm512_add_ps(a, b));
                _mm512_store_ps(x + j + half, _mm512_sub_ps(a, b));
            }
    for (uint32_t i = 0; i < n; i += 16)
        _mm512_store_ps(x + i, _mm512_mul_ps(_mm512_load_ps(x + i), unit));
}

/* kv_quantize_q, the same bits. head_dim a multiple of 16, q of any alignment, q_out 32-byte aligned. */
static inline float kv_quantize_q_avx512(const struct attn_shape *shape, const float *q, int16_t *q_out, float *sum_out)
{
    float x[ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    const uint32_t d = shape->head_dim;
    __m512 top = _mm512_setzero_ps(), zero = _mm512_setzero_ps();
    for (uint32_t i = 0; i < d; i += 16)
        _mm512_store_si512(x + i, bf16_round_avx512(_mm512_loadu_ps(q + i)));
    if (shape->codec == KV_INT4_ROT)
        kv_rotate_avx512(x, d, kv_rotation_order(d));
    for (uint32_t i = 0; i < d; i += 16) {
        const __m512 v = _mm512_load_ps(x + i);
        top = _mm512_max_ps(top, _mm512_abs_ps(v));
        zero = _mm512_add_ps(zero, _mm512_mul_ps(v, _mm512_setzero_ps()));
    }
    const float most = hmax_avx512(top), up = KV_Q_MAX / most;
    const bool finite = hsum_avx512(zero) == 0;
    if (!finite || !(up < INFINITY)) {
        memset(q_out, 0, d * sizeof *q_out);
        *sum_out = 0;
        return finite ? 0 : NAN;
    }
    __m512i sum = _mm512_setzero_si512();
    for (uint32_t i = 0; i < d; i += 16) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(x + i), _mm512_set1_ps(up)));
        sum = _mm512_add_epi32(sum, v);
        _mm256_store_si256((__m256i *)(q_out + i), _mm512_cvtepi32_epi16(v));
    }
    *sum_out = (float)_mm512_reduce_add_epi32(sum);
    return most / KV_Q_MAX;
}

/* Of one block: the planes behind the codes, in f32. */
struct kv_planes {
    float k_scale[KV_BLOCK], k_least[KV_BLOCK], v_scale[KV_BLOCK], v_least[KV_BLOCK];
} __attribute__((aligned(64)));

static inline void kv_plane_load(const uint16_t *from, float *to)
{
    for (int j = 0; j < KV_BLOCK; j += 16)
        _mm512_store_ps(to + j, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + j))));
}

static inline __attribute__((always_inline)) void kv_planes_load(const struct attn_shape *shape, const void *k_part,
                                                                 const void *v_part, const bool affine,
                                                                 struct kv_planes *planes_out)
{
    kv_plane_load(kv_scales(shape, k_part), planes_out->k_scale);
    kv_plane_load(kv_scales(shape, v_part), planes_out->v_scale);
    if (!affine)
        return;
    kv_plane_load(kv_leasts(shape, k_part), planes_out->k_least);
    kv_plane_load(kv_leasts(shape, v_part), planes_out->v_least);
}

/* Asks for the planes of a part whose codes are asked for line by line. */
static inline void kv_planes_ask(const struct attn_shape *shape, const void *part)
{
    const char *at = (const char *)kv_scales(shape, part);
    for (int i = 0; i < (shape->codec == KV_INT8 ? 2 : 4); i++)
        _mm_prefetch(at + 64 * i, _MM_HINT_T0);
}

/* Four rows' weights as integers, and what their products are completed with: o = w_scale sum w c + base. */
struct kv_weights {
    int16_t w[4][KV_BLOCK];
    float w_scale[4], base[4];
} __attribute__((aligned(64)));

/*
 * Products x [4][KV_BLOCK] of four rows' queries with the keys' codes -> their weights, and m and l of those that `live` names.
 * q_scale, q_sum, m_out, l_out: of the four, any alignment; no more is read of them than `live` says.
 */
static inline __attribute__((always_inline)) void kv_weights4(const struct kv_planes *planes, const int32_t *x,
                                                              const uint64_t see[4], const bool affine, float scale,
                                                              const float *q_scale, const float *q_sum, __mmask8 live,
                                                              struct kv_weights *out, float *m_out, float *l_out)
{
    float s[4 * KV_BLOCK] __attribute__((aligned(64))), sum[4] __attribute__((aligned(16)));
    float scale2[4] __attribute__((aligned(16))), top[4] __attribute__((aligned(16)));
    float up[4] __attribute__((aligned(16)));
    __m512 l[4], high[4], base[4], w[4][4];
    _mm_store_ps(sum, _mm_maskz_loadu_ps(live, q_sum));
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < KV_BLOCK; j += 16) {
            const __m512 codes = _mm512_cvtepi32_ps(_mm512_load_si512(x + r * KV_BLOCK + j));
            const __m512 k_scale = _mm512_load_ps(planes->k_scale + j);
            _mm512_store_ps(
                s + r * KV_BLOCK + j,
                affine ? _mm512_fmadd_ps(k_scale, codes,
                                         _mm512_mul_ps(_mm512_load_ps(planes->k_least + j), _mm512_set1_ps(sum[r])))
                       : _mm512_mul_ps(k_scale, codes));
        }
    const __m128 raw = attn_maxima4(s, see, false);
    const __m128 unit = _mm_mul_ps(_mm_maskz_loadu_ps(live, q_scale), _mm_set1_ps(scale));
    const __m128 unit2 = _mm_mul_ps(unit, _mm_set1_ps(EXP_LOG2E));
    const __mmask8 sees = _mm_cmp_ps_mask(raw, _mm_set1_ps(-INFINITY), _CMP_NEQ_UQ); /* who sees nothing keeps -inf */
    _mm_store_ps(scale2, unit2);
    _mm_store_ps(top, _mm_maskz_mul_ps(sees, raw, unit2));
    _mm_mask_storeu_ps(m_out, live, _mm_mask_mul_ps(raw, sees, raw, unit));
    for (int r = 0; r < 4; r++) {
        __m512 p[4];
        for (int j = 0; j < 4; j++) {
            p[j] = attn_weights(s + r * KV_BLOCK + 16 * j, _mm512_set1_ps(scale2[r]), _mm512_set1_ps(top[r]),
                                (__mmask16)(see[r] >> (16 * j)), false);
            w[r][j] = _mm512_max_ps(_mm512_mul_ps(p[j], _mm512_load_ps(planes->v_scale + 16 * j)), _mm512_setzero_ps());
        }
        l[r] = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
        high[r] = _mm512_max_ps(_mm512_max_ps(w[r][0], w[r][1]), _mm512_max_ps(w[r][2], w[r][3]));
        base[r] = _mm512_setzero_ps();
        for (int j = 0; j < 4 && affine; j++)
            base[r] = _mm512_fmadd_ps(p[j], _mm512_load_ps(planes->v_least + 16 * j), base[r]);
    }
    _mm_mask_storeu_ps(l_out, live, attn_sum4(l));
    _mm_store_ps(out->base, attn_sum4(base));
    const __m128 most = attn_max4(high), inverse = _mm_div_ps(_mm_set1_ps(KV_W_MAX), most);
    const __mmask8 some = _mm_cmp_ps_mask(inverse, _mm_set1_ps(INFINITY), _CMP_LT_OQ);
    _mm_store_ps(up, _mm_maskz_mov_ps(some, inverse));
    _mm_store_ps(out->w_scale, _mm_maskz_div_ps(some, most, _mm_set1_ps(KV_W_MAX)));
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < 4; j++)
            _mm256_store_si256((__m256i *)(out->w[r] + 16 * j), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(
                                                                    _mm512_mul_ps(w[r][j], _mm512_set1_ps(up[r])))));
}

#endif
#endif
