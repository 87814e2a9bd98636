#include "kernels/cpu/kv_nomad.h"

#include <assert.h>
#include <immintrin.h>

#include "common/f16.h"
#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_variants.h"
#include "kernels/cpu/x86/vec_avx2.h"

enum { LINE = 64 }; /* bytes: 16 places of four channels, two halves each */

/*
 * 32 bytes of codes, [8 places][4 channels], to [4 channels][8 places]: of the two lanes each has four places, so that a channel's are gathered in one
 * dword of each; the permutation brings them together.
 */
static inline __m256i by_channel(__m256i x)
{
    const __m256i in_lane =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x, in_lane), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The line's codes by channel: out [2] has channels 0 and 1, and 2 and 3, 16 places each in a lane. */
static inline void line_by_channel(const uint8_t *line, __m256i out[2])
{
    const __m256i a = by_channel(_mm256_load_si256((const void *)line)),
                  b = by_channel(_mm256_load_si256((const void *)(line + 32)));
    const __m256i low = _mm256_unpacklo_epi64(a, b), high = _mm256_unpackhi_epi64(a, b); /* channels 0, 2; 1, 3 */
    out[0] = _mm256_permute2x128_si256(low, high, 0x20);
    out[1] = _mm256_permute2x128_si256(low, high, 0x31);
}

/* Sums of a line's 32 positions, as words: those of channels 0 and 2 in the lower lane, of 1 and 3 in the upper one; even positions, then odd ones. */
struct sums {
    __m256i even[2], odd[2]; /* [halves] */
};

static inline void add(struct sums *s, int half, __m256i u)
{
    s->even[half] = _mm256_add_epi16(s->even[half], _mm256_and_si256(u, _mm256_set1_epi16(255)));
    s->odd[half] = _mm256_add_epi16(s->odd[half], _mm256_srli_epi16(u, 8));
}

/* 16 sums of a half: both lanes together, in the order of positions. */
static inline void finish(__m256i even, __m256i odd, int32_t *out)
{
    const __m128i e = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1)),
                  o = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    _mm256_store_si256((void *)out, _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(e, o)));
    _mm256_store_si256((void *)(out + 8), _mm256_cvtepu16_epi32(_mm_unpackhi_epi16(e, o)));
}

/* x [rows][KV_BLOCK]: sums of the tables' numbers over all channels, 65535 at most, for positions 32 h .. 32 h + 31 */
static inline __attribute__((always_inline)) void look_up(const uint32_t d, const uint8_t *table, const uint8_t *part,
                                                          const int h, int32_t *x, const int rows)
{
    const __m256i low = _mm256_set1_epi8(15);
    struct sums s[4];
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            s[r].even[half] = s[r].odd[half] = _mm256_setzero_si256();
    for (uint32_t g = 0; g < d / 4; g++) {
        __m256i codes[2];
        line_by_channel(part + ((size_t)g * 2 + (uint32_t)h) * LINE, codes);
        for (int two = 0; two < 2; two++) {
            const __m256i first = _mm256_and_si256(codes[two], low),
                          second = _mm256_and_si256(_mm256_srli_epi16(codes[two], 4), low);
            for (int r = 0; r < rows; r++) {
                const __m256i t = _mm256_load_si256(
                    (const void *)(table + ((size_t)r * d + 4 * g + 2 * (uint32_t)two) * NOMAD_NUMBERS));
                add(&s[r], 0, _mm256_shuffle_epi8(t, first));
                add(&s[r], 1, _mm256_shuffle_epi8(t, second));
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            finish(s[r].even[half], s[r].odd[half], x + r * KV_BLOCK + 32 * h + 16 * half);
}

void kv_block_nomad_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                         const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    int32_t x[4 * ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    const uint8_t *part = k_part;
    const float *unit = q_tile, *base = unit + ATTN_ROWS;
    (void)v_part;
    (void)next_k_part;
    assert(n <= ATTN_ROWS);
    for (uint32_t r = 0; r < n; r += 4) {
        const uint8_t *table = kv_nomad_tables(q_tile) + (size_t)r * d * NOMAD_NUMBERS;
        const uint32_t rows = n - r < 4 ? n - r : 4;
        for (int h = 0; h < 2; h++)
            if (rows == 1)
                look_up(d, table, part, h, x, 1);
            else /* a tile has tables for all its rows */
                look_up(d, table, part, h, x, 4);
        kv_outputs_int8_avx2(&values, rows, x, unit + r, base + r, visible + r, kv_nomad_values(shape, part),
                             partial_out + r, partial_l(partial_out) + r, partial_o(partial_out) + (size_t)r * d);
    }
}

/* ---- expanding ---- */

/* 16 numbers of each of two channels as bytes: [0] the low ones, [1] the high ones; a channel a lane. */
static void pair_numbers(const float *number, __m256i out[2])
{
    const __m256i byte = _mm256_set1_epi16(255);
    __m256i words[2];
    for (int i = 0; i < 2; i++, number += NOMAD_NUMBERS)
        words[i] = _mm256_set_m128i(bf16_avx2(_mm256_load_ps(number + 8)), bf16_avx2(_mm256_load_ps(number)));
    const __m256i first = _mm256_permute2x128_si256(words[0], words[1], 0x20), /* numbers 0 .. 7 of both */
        last = _mm256_permute2x128_si256(words[0], words[1], 0x31);
    out[0] = _mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(last, byte));
    out[1] = _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(last, 8));
}

/* Words of one channel, and of the next, to pairs: 8 positions. */
static void store_pairs(__m256i words, uint16_t *to)
{
    const __m128i a = _mm256_castsi256_si128(words), b = _mm256_extracti128_si256(words, 1);
    _mm_store_si128((void *)to, _mm_unpacklo_epi16(a, b));
    _mm_store_si128((void *)(to + 8), _mm_unpackhi_epi16(a, b));
}

/* codes: two channels at 16 positions, a channel a lane */
static void expand16(__m256i codes, const __m256i number[2], uint16_t *to)
{
    const __m256i low = _mm256_shuffle_epi8(number[0], codes), high = _mm256_shuffle_epi8(number[1], codes);
    store_pairs(_mm256_unpacklo_epi8(low, high), to);
    store_pairs(_mm256_unpackhi_epi8(low, high), to + 16);
}

static void expand_keys(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const __m256i low = _mm256_set1_epi8(15);
    const float *number = kv_nomad_book(shape);
    for (uint32_t c = 0; c < shape->head_dim; c += 4, number += 4 * NOMAD_NUMBERS, open += 4 * KV_BLOCK) {
        __m256i numbers[2][2], codes[2];
        for (int two = 0; two < 2; two++)
            pair_numbers(number + 2 * two * NOMAD_NUMBERS, numbers[two]);
        for (uint32_t h = 0; h < 2; h++) {
            line_by_channel(part + ((size_t)c / 2 + h) * LINE, codes);
            for (int two = 0; two < 2; two++) {
                uint16_t *to = open + (size_t)two * 2 * KV_BLOCK + (size_t)64 * h;
                expand16(_mm256_and_si256(codes[two], low), numbers[two], to);
                expand16(_mm256_and_si256(_mm256_srli_epi16(codes[two], 4), low), numbers[two], to + 32);
            }
        }
    }
}

/* Byte `at` of each dword, times scale, as bf16 in the upper halves. */
static inline __m256i value_of(__m256i four, uint32_t at, float scale)
{
    const __m256i x = _mm256_srai_epi32(_mm256_sll_epi32(four, _mm_cvtsi32_si128(24 - 8 * (int)at)), 24);
    return bf16_round_avx2(_mm256_mul_ps(_mm256_cvtepi32_ps(x), _mm256_set1_ps(scale)));
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
        for (uint32_t c = 0; c < d; c += 8, v += LINE / 2)
            for (uint32_t i = 0; i < 4; i += 2) {
                const __m256i four = _mm256_load_si256((const void *)v), first = value_of(four, i, by[i]),
                              second = value_of(four, i + 1, by[i + 1]);
                _mm256_store_si256((void *)(open + ((size_t)(t + i) / 2 * d + c) * 2),
                                   _mm256_or_si256(_mm256_srli_epi32(first, 16), second));
            }
    }
}

void kv_expand_nomad_avx2(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out)
{
    for (size_t i = 0; next_part && i < kv_part_bytes_nomad(shape); i += 64)
        _mm_prefetch((const char *)next_part + i, _MM_HINT_T0);
    if (shape->books->values)
        expand_values(shape, (const uint8_t *)part - kv_part_bytes_nomad(shape), open_out);
    else
        expand_keys(shape, part, open_out);
}

/* ---- tables ---- */

/* Eight of a channel's. */
static __m256i table8(const struct nomad_query *q, uint32_t i, const float *number)
{
    const __m256 product = _mm256_mul_ps(_mm256_set1_ps(q->x[i]), _mm256_load_ps(number)),
                 u = _mm256_add_ps(
                     _mm256_mul_ps(_mm256_sub_ps(product, _mm256_set1_ps(q->least[i])), _mm256_set1_ps(q->a)),
                     _mm256_set1_ps(0.5f));
    return _mm256_cvttps_epi32(_mm256_min_ps(u, _mm256_set1_ps(255.0f)));
}

static void tables(const struct nomad_query *q, const float *number, uint32_t d, uint8_t *table_out)
{
    for (uint32_t i = 0; i < d; i++, number += NOMAD_NUMBERS, table_out += NOMAD_NUMBERS) {
        const __m256i a = table8(q, i, number), b = table8(q, i, number + 8);
        const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)),
                      high = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
        _mm_store_si128((void *)table_out, _mm_packus_epi16(low, high));
    }
}

void kv_pack_q_nomad_avx2(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    kv_pack_q_nomad_with(tables, shape, q, n, q_tile);
}
