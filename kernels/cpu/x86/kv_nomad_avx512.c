#include <immintrin.h>

#include "common/f16.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/cpu/x86/vec_avx512.h"

enum { LINE = 64 /* codes of four channels at 32 positions; elements of a pair of channels at as many */ };

/* Numbers of two channels, as words. */
static __m512i pair_numbers(const float *number)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(bf16_avx512(_mm512_load_ps(number))),
                              bf16_avx512(_mm512_load_ps(number + NOMAD_NUMBERS)), 1);
}

/* A dword has a position's codes of four channels: one permutation looks up two of them at 16 positions, since their numbers are 32 words. */
static void expand_keys(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const __m512i even = _mm512_set1_epi32(15), odd = _mm512_set1_epi32(15 << 16), second = _mm512_set1_epi32(16 << 16);
    const float *number = kv_nomad_book(shape);
    for (uint32_t c = 0; c < shape->head_dim; c += 4, number += 4 * NOMAD_NUMBERS, open += 4 * KV_BLOCK) {
        const __m512i low = pair_numbers(number), high = pair_numbers(number + 2 * NOMAD_NUMBERS);
        for (uint32_t t = 0; t < KV_BLOCK; t += 16) {
            __m512i x = _mm512_load_si512(part + (size_t)c * KV_BLOCK / 2 + t / 32 * LINE);
            if (t % 32)
                x = _mm512_srli_epi32(x, 4);
            const __m512i first = _mm512_or_si512(_mm512_and_si512(x, even),
                                                  _mm512_and_si512(_mm512_slli_epi32(x, 8), odd)),
                          last = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(x, 16), even),
                                                 _mm512_and_si512(_mm512_srli_epi32(x, 8), odd));
            _mm512_store_si512(open + 2 * t, _mm512_permutexvar_epi16(_mm512_or_si512(first, second), low));
            _mm512_store_si512(open + 2 * KV_BLOCK + 2 * t,
                               _mm512_permutexvar_epi16(_mm512_or_si512(last, second), high));
        }
    }
}

/* Byte `at` of each dword, times scale, as bf16 in the upper halves. */
static inline __m512i value_of(__m512i four, uint32_t at, float scale)
{
    const __m512i x = _mm512_srai_epi32(_mm512_sll_epi32(four, _mm_cvtsi32_si128(24 - 8 * (int)at)), 24);
    return bf16_round_avx512(_mm512_mul_ps(_mm512_cvtepi32_ps(x), _mm512_set1_ps(scale)));
}

static void expand_values(const struct attn_shape *shape, const uint8_t *k_part, uint16_t *open)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    const uint8_t *v = kv_nomad_values(shape, k_part);
    const uint16_t *scale = kv_scales(&values, v);
    for (uint32_t t = 0; t < KV_BLOCK; t += 4) {
        float by[4];
        for (uint32_t i = 0; i < 4; i++)
            by[i] = f16_to_f32(scale[t + i]);
        for (uint32_t c = 0; c < d; c += 16, v += LINE)
            for (uint32_t i = 0; i < 4; i += 2) {
                const __m512i four = _mm512_load_si512(v), first = value_of(four, i, by[i]),
                              second = value_of(four, i + 1, by[i + 1]);
                _mm512_store_si512(open + ((size_t)(t + i) / 2 * d + c) * 2,
                                   _mm512_or_si512(_mm512_srli_epi32(first, 16), second));
            }
    }
}

void kv_expand_nomad_avx512(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out)
{
    for (size_t i = 0; next_part && i < kv_part_bytes_nomad(shape); i += 64)
        _mm_prefetch((const char *)next_part + i, _MM_HINT_T0);
    if (shape->books->values)
        expand_values(shape, (const uint8_t *)part - kv_part_bytes_nomad(shape), open_out);
    else
        expand_keys(shape, part, open_out);
}

static void tables(const struct nomad_query *q, const float *number, uint32_t d, uint8_t *table_out)
{
    const __m512 a = _mm512_set1_ps(q->a), half = _mm512_set1_ps(0.5f), most = _mm512_set1_ps(255.0f);
    for (uint32_t i = 0; i < d; i++, number += NOMAD_NUMBERS, table_out += NOMAD_NUMBERS) {
        const __m512 product = _mm512_mul_ps(_mm512_set1_ps(q->x[i]), _mm512_load_ps(number)),
                     u = _mm512_add_ps(_mm512_mul_ps(_mm512_sub_ps(product, _mm512_set1_ps(q->least[i])), a), half);
        _mm_store_si128((void *)table_out, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(_mm512_min_ps(u, most))));
    }
}

void kv_pack_q_nomad_avx512(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    kv_pack_q_nomad_with(tables, shape, q, n, q_tile);
}
