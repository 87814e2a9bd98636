/*
 * socket where bytes can be permuted: a table of 256 is two operands of two registers, its low and its high bytes apart, and 64 positions are looked up at
 * a time. Sums of bytes stay below 60 * 255 < 2^16.
 */
#include <immintrin.h>

#include "kernels/cpu/selector_socket.h"

enum {
    PLACES = 5, /* registers of hash places that share keys: six passes over them */
    SHARED = 4, /* positions that share planes, */
    BLOCKS = 2, /* blocks that share a table's registers, */
    QUERIES = 4 /* queries that share a pass over the codes: their tables stay in the second cache */
};

static void codes_vbmi2(const float *planes, const float *keys, uint32_t dim, uint8_t *codes)
{
    _Static_assert(SOCKET_HASHES % (16 * PLACES) == 0, "whole passes");
    for (uint32_t place = 0; place < SOCKET_HASHES; place += 16 * PLACES) {
        for (uint32_t p = 0; p < KV_BLOCK; p += SHARED) {
            __m512 z[SHARED][PLACES];
            for (uint32_t i = 0; i < SHARED; i++)
                for (uint32_t j = 0; j < PLACES; j++)
                    z[i][j] = _mm512_setzero_ps();
            for (uint32_t d = 0; d < dim; d++) {
                const float *w = planes + (size_t)d * SOCKET_HASHES + place;
                for (uint32_t i = 0; i < SHARED; i++) {
                    const __m512 k = _mm512_set1_ps(keys[(size_t)(p + i) * dim + d]);
                    for (uint32_t j = 0; j < PLACES; j++)
                        z[i][j] = _mm512_add_ps(z[i][j], _mm512_mul_ps(_mm512_loadu_ps(w + j * 16), k));
                }
            }
            for (uint32_t i = 0; i < SHARED; i++) {
                for (uint32_t j = 0; j < PLACES; j++) {
                    const uint32_t bits = _mm512_cmp_ps_mask(z[i][j], _mm512_setzero_ps(), _CMP_GE_OQ);
                    uint8_t *to = codes + (place / 8 + 2 * j) * KV_BLOCK + p + i;
                    to[0] = (uint8_t)bits;
                    to[KV_BLOCK] = (uint8_t)(bits >> 8);
                }
            }
        }
    }
}

void selector_socket_sketch_vbmi2(const struct selector_shape *shape, const struct selector_block *block,
                                  void *sketch_out)
{
    socket_sketch(shape, block, codes_vbmi2, sketch_out);
}

/* A query's tables: of each the low bytes, then the high ones. */
static void split(const uint16_t *tables, uint8_t *out)
{
    for (uint32_t l = 0; l < SOCKET_TABLES; l++, tables += SOCKET_CORNERS, out += 2 * SOCKET_CORNERS) {
        for (uint32_t i = 0; i < SOCKET_CORNERS; i += 32) {
            const __m512i t = _mm512_loadu_si512(tables + i);
            _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm512_cvtepi16_epi8(t));
            _mm256_storeu_si256((__m256i *)(void *)(out + SOCKET_CORNERS + i),
                                _mm512_cvtepi16_epi8(_mm512_srli_epi16(t, 8)));
        }
    }
}

static inline __m512i look_up(const __m512i table[4], __m512i code)
{
    const __m512i low = _mm512_permutex2var_epi8(table[0], code, table[1]),
                  high = _mm512_permutex2var_epi8(table[2], code, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), low, high);
}

/* 16-bit sums of the even positions, and of the odd ones. */
struct sums {
    __m512i even, odd;
};

static inline void add_bytes(struct sums *s, __m512i bytes)
{
    s->even = _mm512_add_epi16(s->even, _mm512_and_si512(bytes, _mm512_set1_epi16(0xFF)));
    s->odd = _mm512_add_epi16(s->odd, _mm512_srli_epi16(bytes, 8));
}

/* 256 high + low of 32 positions, whose 16-bit sums these are: every second one of a block. */
static inline void widen(__m512i low, __m512i high, uint32_t *sum_out, uint32_t first)
{
    for (uint32_t half = 0; half < 2; half++) {
        const __m512i l = _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(low, 1) : _mm512_castsi512_si256(low)),
                      h = _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(high, 1)
                                                     : _mm512_castsi512_si256(high)),
                      at = _mm512_add_epi32(
                          _mm512_set1_epi32((int)(first + half * 32)),
                          _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 1));
        _mm512_i32scatter_epi32(sum_out, at, _mm512_add_epi32(_mm512_slli_epi32(h, 8), l), 4);
    }
}

/* n <= BLOCKS blocks for one query. */
static inline __attribute__((always_inline)) void best_of(const uint8_t *tables, const uint8_t *const *heads,
                                                          uint32_t n, float *scores)
{
    struct sums low[BLOCKS], high[BLOCKS];
    for (uint32_t b = 0; b < n; b++)
        low[b].even = low[b].odd = high[b].even = high[b].odd = _mm512_setzero_si512();
    for (uint32_t l = 0; l < SOCKET_TABLES; l++) {
        __m512i t[8];
        for (uint32_t i = 0; i < 8; i++)
            t[i] = _mm512_loadu_si512(tables + (size_t)l * 2 * SOCKET_CORNERS + i * 64);
        for (uint32_t b = 0; b < n; b++) {
            const __m512i code = _mm512_loadu_si512(heads[b] + (size_t)l * KV_BLOCK);
            add_bytes(&low[b], look_up(t, code));
            add_bytes(&high[b], look_up(t + 4, code));
        }
    }
    for (uint32_t b = 0; b < n; b++) {
        uint32_t sum[KV_BLOCK];
        widen(low[b].even, high[b].even, sum, 0);
        widen(low[b].odd, high[b].odd, sum, 1);
        const float best = socket_best(heads[b], sum);
        scores[b] = best > scores[b] ? best : scores[b];
    }
}

/* Queries head, head + 1, .. of one KV head, at most QUERIES. */
static void score_some(const struct selector_shape *shape, uint32_t head, const float *const *q, uint32_t n_q,
                       const void *const *sketches, uint32_t n, float *scores)
{
    uint16_t tables[SOCKET_TABLES * SOCKET_CORNERS];
    uint8_t bytes[QUERIES][2 * SOCKET_TABLES * SOCKET_CORNERS];
    for (uint32_t i = 0; i < n_q; i++) {
        socket_tables(shape, q[i], tables);
        split(tables, bytes[i]);
    }
    for (uint32_t b = 0; b < n; b += BLOCKS) {
        const uint8_t *heads[BLOCKS];
        const uint32_t some = n - b < BLOCKS ? n - b : BLOCKS;
        for (uint32_t k = 0; k < some; k++)
            heads[k] = (const uint8_t *)sketches[b + k] + (size_t)head * SOCKET_HEAD_BYTES;
        for (uint32_t i = 0; i < n_q; i++) {
            if (some == BLOCKS)
                best_of(bytes[i], heads, BLOCKS, scores + b);
            else
                best_of(bytes[i], heads, some, scores + b);
        }
    }
}

void selector_socket_score_vbmi2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                 const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    memset(scores_out, 0, (size_t)(head_end - head_begin) * n * sizeof *scores_out);
    for (uint32_t head = head_begin; head < head_end; head++, q += group, scores_out += n)
        for (uint32_t g = 0; g < group; g += QUERIES)
            score_some(shape, head, q + g, group - g < QUERIES ? group - g : QUERIES, sketches, n, scores_out);
}
