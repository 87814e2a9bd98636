#include "kernels/cpu/kv_nomad.h"

#include <assert.h>
#include <immintrin.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_variants.h"

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

void kv_nomad_block_avx2(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                         const void *part_bytes, const void *next_part, float *partial_out)
{
    int32_t x[4 * ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    const uint8_t *part = part_bytes;
    const float *unit = q_tile, *base = unit + ATTN_ROWS;
    (void)next_part;
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
