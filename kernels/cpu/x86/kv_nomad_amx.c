#include "kernels/cpu/kv_nomad.h"

#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_avx512.h"

/*
 * Without tiles: a permutation of 64 bytes looks four channels up at 16 positions, since their four tables of 16 are one register, and a product of bytes with
 * ones adds the four. A processor with tiles has both (kernels/cpu/cpu.c).
 */

enum { LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

/* Lines of the next block, asked for as this one's are read. */
struct stream {
    const char *at, *end;
};

INLINE void ask(struct stream *s, int lines)
{
    for (int i = 0; i < lines && s->at < s->end; i++, s->at += LINE)
        _mm_prefetch(s->at, _MM_HINT_T1);
}

/* x [rows][KV_BLOCK]: sums of the tables' numbers over all channels */
INLINE void look_up(const uint32_t d, const uint8_t *table, const uint8_t *part, struct stream *next, int32_t *x,
                    const int rows)
{
    const __m512i low = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1), channel = _mm512_set1_epi32(0x30201000);
    enum { OR_AND = 0xEA }; /* of a ternary operation: a & b | c */
    __m512i sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sum[r][j] = _mm512_setzero_si512();
    for (uint32_t c = 0; c < d; c += 4, part += 2 * LINE) {
        const __m512i a = _mm512_load_si512(part), b = _mm512_load_si512(part + LINE);
        const __m512i place[4] = {
            _mm512_ternarylogic_epi32(a, low, channel, OR_AND),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(a, 4), low, channel, OR_AND),
            _mm512_ternarylogic_epi32(b, low, channel, OR_AND),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(b, 4), low, channel, OR_AND),
        };
        ask(next, 2);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const __m512i t = _mm512_load_si512(table + ((size_t)r * d + c) * NOMAD_NUMBERS);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], _mm512_permutexvar_epi8(place[j], t), ones);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_store_si512(x + r * KV_BLOCK + 16 * j, sum[r][j]);
}

INLINE __m512i four(const uint8_t *bytes)
{
    int32_t all;
    memcpy(&all, bytes, sizeof all);
    return _mm512_set1_epi32(all);
}

/* o [rows][d] of integer weights, w: their high bytes [4][KV_BLOCK], then the low ones; 16 * lines channels from c on */
INLINE void some_outputs(const uint32_t d, uint32_t c, const uint8_t *w, const float *w_scale, const uint8_t *v,
                         struct stream *next, float *o, const int rows, const int lines)
{
    __m512i high[4][2], low[4][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < lines; i++)
            high[r][i] = low[r][i] = _mm512_setzero_si512();
#pragma GCC unroll 1
    for (uint32_t t = 0; t < KV_BLOCK; t += 4) {
        const uint8_t *at = v + (size_t)t * d + 4 * (size_t)c;
        const __m512i codes[2] = { _mm512_load_si512(at), _mm512_load_si512(at + (lines - 1) * LINE) };
        ask(next, lines);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const __m512i h = four(w + r * KV_BLOCK + t), l = four(w + (4 + r) * KV_BLOCK + t);
#pragma GCC unroll 2
            for (int i = 0; i < lines; i++) {
                high[r][i] = _mm512_dpbusd_epi32(high[r][i], h, codes[i]);
                low[r][i] = _mm512_dpbusd_epi32(low[r][i], l, codes[i]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < lines; i++) {
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][i], 8), low[r][i]);
            _mm512_storeu_ps(o + (uint32_t)r * d + c + 16 * (uint32_t)i,
                             _mm512_mul_ps(_mm512_set1_ps(w_scale[r]), _mm512_cvtepi32_ps(sum)));
        }
}

INLINE void outputs(const uint32_t d, const uint8_t *w, const float *w_scale, const uint8_t *v, struct stream *next,
                    float *o, const int rows)
{
    uint32_t c = 0;
    for (; c + 32 <= d; c += 32)
        some_outputs(d, c, w, w_scale, v, next, o, rows, 2);
    if (c < d)
        some_outputs(d, c, w, w_scale, v, next, o, rows, 1);
}

/* High and low bytes of 15-bit weights. */
INLINE void bytes_of(const struct kv_weights *weights, uint8_t *w)
{
    for (int r = 0; r < 4; r++)
        for (int t = 0; t < KV_BLOCK; t += 32) {
            const __m512i both = _mm512_load_si512(weights->w[r] + t);
            _mm256_store_si256((void *)(w + r * KV_BLOCK + t), _mm512_cvtepi16_epi8(_mm512_srli_epi16(both, 8)));
            _mm256_store_si256((void *)(w + (4 + r) * KV_BLOCK + t), _mm512_cvtepi16_epi8(both));
        }
}

/* Up to four vectors: `rows` of them are computed, `live` are the tile's. */
INLINE void some(const struct attn_shape *shape, const uint32_t d, const void *q_tile, uint32_t first, uint32_t live,
                 const uint64_t *see, const uint8_t *part, struct kv_planes *planes, struct stream *next,
                 float *partial, const int rows)
{
    int32_t x[4 * KV_BLOCK] __attribute__((aligned(64)));
    uint8_t w[8 * KV_BLOCK] __attribute__((aligned(64)));
    struct kv_weights weights;
    const float *unit = q_tile, *base = unit + ATTN_ROWS;
    const __mmask8 mask = attn_live4(0, live);
    if (rows < 4)
        memset(x, 0, sizeof x);
    look_up(d, kv_nomad_tables(q_tile) + (size_t)first * d * NOMAD_NUMBERS, part, next, x, rows);
    kv_weights4(planes, x, see + first, true, shape->scale, unit + first, base + first, mask, &weights, partial + first,
                partial_l(partial) + first);
    bytes_of(&weights, w);
    float *o = partial_o(partial) + (size_t)first * d;
    switch (live) { /* no more is written than the tile has */
    case 1:
        outputs(d, w, weights.w_scale, kv_nomad_values(shape, part), next, o, 1);
        break;
    case 2:
        outputs(d, w, weights.w_scale, kv_nomad_values(shape, part), next, o, 2);
        break;
    case 3:
        outputs(d, w, weights.w_scale, kv_nomad_values(shape, part), next, o, 3);
        break;
    default:
        outputs(d, w, weights.w_scale, kv_nomad_values(shape, part), next, o, 4);
        break;
    }
}

void kv_block_nomad_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                        const void *part, const void *v_part, const void *next_part, float *partial_out)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    struct kv_planes planes;
    uint64_t see[ATTN_ROWS];
    const char *from = next_part;
    struct stream next = { from, next_part ? from + 2 * kv_part_bytes_nomad(shape) : from };
    (void)v_part;
    assert(n <= ATTN_ROWS);
    attn_see(visible, n, see);
    for (int t = 0; t < KV_BLOCK; t += 16) {
        _mm512_store_ps(planes.k_scale + t, _mm512_set1_ps(1.0f));
        _mm512_store_ps(planes.k_least + t, _mm512_set1_ps(1.0f));
        _mm512_store_ps(planes.v_least + t, _mm512_setzero_ps());
    }
    kv_plane_load(kv_scales(&values, kv_nomad_values(shape, part)), planes.v_scale);
    for (uint32_t r = 0; r < n; r += 4) {
        const uint32_t live = n - r < 4 ? n - r : 4;
        if (live <= 2)
            some(shape, d, q_tile, r, live, see, part, &planes, &next, partial_out, 2);
        else if (d == 128)
            some(shape, 128, q_tile, r, live, see, part, &planes, &next, partial_out, 4);
        else
            some(shape, d, q_tile, r, live, see, part, &planes, &next, partial_out, 4);
    }
}
