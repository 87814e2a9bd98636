#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_avx512.h"
#include "kernels/cpu/x86/kv_variants.h"

/*
 * int4-rot for a KV head's group in decode, one to four vectors: products of bytes in vector registers, with the A operands of kv_amx.c, so codes are
 * expanded in registers and nothing of a block is written before its outputs. Tiles take as long for four vectors as for eight, wait for the stores
 * of what they read, and take four times as long where a neighbour shares the core; these products take less than twice.
 * A processor with tiles has these products (kernels/cpu/cpu.c asks for both).
 */

enum { GROUPS = 8 /* of four codes, in one run */, RUN = 4 * GROUPS, STEP = 64, A_STEP_BYTES = ATTN_ROWS * 128 };

/* Asks for a part of a block to come, line by line. */
struct stream {
    const char *at;
};

static inline __attribute__((always_inline)) void ask(struct stream *s)
{
    _mm_prefetch(s->at, _MM_HINT_T1);
    _mm_prefetch(s->at + 64, _MM_HINT_T1);
    s->at += 128;
}

static inline __m512i four(const uint8_t *bytes)
{
    int32_t all;
    memcpy(&all, bytes, sizeof all);
    return _mm512_set1_epi32(all);
}

/* Products of codes 0 .. 15 with the bytes of a vector's integers: signed ones of queries, unsigned ones of weights. */
static inline __attribute__((always_inline)) __m512i add_products(__m512i sum, __m512i codes, __m512i bytes,
                                                                  const bool keys)
{
    return keys ? _mm512_dpbusd_epi32(sum, codes, bytes) : _mm512_dpbusd_epi32(sum, bytes, codes);
}

/* Sums of 32 columns by the vectors' integers, high and low bytes apart. */
struct sums {
    __m512i high[4][2], low[4][2];
};

/*
 * Adds a run of GROUPS lines of two; rows of codes are `stride` bytes. a: the vectors' bytes [n][high, low][64] for the lower halves of the codes, a_up: for
 * the upper ones.
 */
static inline __attribute__((always_inline)) void run(struct sums *s, const uint8_t *codes, size_t stride,
                                                      const uint8_t *a, const uint8_t *a_up, const int n,
                                                      const bool keys, struct stream *next)
{
    const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 1
    for (int g = 0; g < GROUPS; g++, codes += stride, a += 4, a_up += 4) {
        const __m512i x[2] = { _mm512_load_si512(codes), _mm512_load_si512(codes + 64) };
        ask(next);
#pragma GCC unroll 2
        for (int up = 0; up < 2; up++) {
            const uint8_t *at = up ? a_up : a;
            __m512i c[2];
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++)
                c[k] = _mm512_and_si512(up ? _mm512_srli_epi16(x[k], 4) : x[k], mask);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
                const __m512i high = four(at + 128 * i), low = four(at + 128 * i + 64);
#pragma GCC unroll 2
                for (int k = 0; k < 2; k++) {
                    s->high[i][k] = add_products(s->high[i][k], c[k], high, keys);
                    s->low[i][k] = add_products(s->low[i][k], c[k], low, keys);
                }
            }
        }
    }
}

static inline __attribute__((always_inline)) void sums_clear(struct sums *s, const int n)
{
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 2; k++)
            s->high[i][k] = s->low[i][k] = _mm512_setzero_si512();
}

static inline __m512i joined(__m512i high, __m512i low)
{
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

/* Where the integers of channel c are in the A operands. */
static inline const uint8_t *channel(const uint8_t *q, uint32_t c)
{
    return q + (size_t)(c / STEP) * A_STEP_BYTES + c % STEP;
}

/* x [4][KV_BLOCK]: the queries' products with the keys */
static inline __attribute__((always_inline)) void keys_products(const uint32_t d, const uint8_t *q, const uint8_t *k,
                                                                const int n, struct stream *next, int32_t *x)
{
    for (uint32_t t = 0; t < KV_BLOCK; t += 32) {
        struct sums s;
        sums_clear(&s, n);
        for (uint32_t c = 0; c < d / 2; c += RUN)
            run(&s, k + (size_t)c * KV_BLOCK + 4 * t, 4 * KV_BLOCK, channel(q, c), channel(q, c + d / 2), n, true,
                next);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            _mm512_store_si512(x + i * KV_BLOCK + t, joined(s.high[i][0], s.low[i][0]));
            _mm512_store_si512(x + i * KV_BLOCK + t + 16, joined(s.high[i][1], s.low[i][1]));
        }
    }
}

/* w: bytes of the weights, as the A operands are. Outputs of `live` vectors are written, no more than n. */
static inline __attribute__((always_inline)) void outputs(const uint32_t d, const struct kv_weights *weights,
                                                          const uint8_t *w, const uint8_t *v, const int n, int live,
                                                          struct stream *next, float *o)
{
    for (uint32_t c = 0; c < d; c += 32) {
        struct sums s;
        sums_clear(&s, n);
        run(&s, v + 4 * (size_t)c, 4 * (size_t)d, w, w + KV_BLOCK / 2, n, false, next);
#pragma GCC unroll 4
        for (int i = 0; i < n && i < live; i++) {
            const __m512 scale = _mm512_set1_ps(weights->w_scale[i]), base = _mm512_set1_ps(weights->base[i]);
#pragma GCC unroll 2
            for (uint32_t k = 0; k < 2; k++)
                _mm512_storeu_ps(o + (uint32_t)i * d + c + 16 * k,
                                 _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(joined(s.high[i][k], s.low[i][k])), base));
        }
    }
}

/* n: vectors that are computed, `live` of them the tile's */
static inline __attribute__((always_inline)) void
block(const struct attn_shape *shape, const uint32_t d, const void *q_tile, const int n, uint32_t live,
      const uint8_t *visible, const uint8_t *k_part, const uint8_t *v_part, const uint8_t *next_k_part, float *partial)
{
    int32_t x[4 * KV_BLOCK] __attribute__((aligned(64)));
    uint8_t w[4 * 128] __attribute__((aligned(64)));
    struct kv_weights weights;
    struct kv_planes planes;
    const float *q_scale = q_tile, *q_sum = q_scale + ATTN_ROWS;
    const char *next = (const char *)(next_k_part ? next_k_part : k_part), *next_v = next + (v_part - k_part);
    struct stream k_stream = { next }, v_stream = { next_v };
    uint64_t see[4] = { 0 };
    for (uint32_t i = 0; i < live; i++)
        see[i] = _bzhi_u64(~UINT64_C(0), visible[i]);
    if (n < 4)
        memset(x, 0, sizeof x);
    kv_planes_load(shape, k_part, v_part, true, &planes);
    keys_products(d, (const uint8_t *)(q_sum + ATTN_ROWS), k_part, n, &k_stream, x);
    kv_planes_ask(shape, next);
    kv_planes_ask(shape, next_v);
    kv_weights4(&planes, x, see, true, shape->scale, q_scale, q_sum, attn_live4(0, live), &weights, partial,
                partial_l(partial));
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        for (int t = 0; t < KV_BLOCK; t += 32) {
            const __m512i both = _mm512_load_si512(weights.w[i] + t);
            _mm256_store_si256((__m256i *)(w + 128 * i + t), _mm512_cvtepi16_epi8(_mm512_srli_epi16(both, 8)));
            _mm256_store_si256((__m256i *)(w + 128 * i + 64 + t), _mm512_cvtepi16_epi8(both));
        }
    outputs(d, &weights, w, v_part, n, (int)live, &v_stream, partial_o(partial));
}

void kv_block_few_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                      const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    const uint32_t d = shape->head_dim;
    assert(n && n <= 4 && shape->codec == KV_INT4_ROT);
    if (n <= 2 && d == 128)
        block(shape, 128, q_tile, 2, n, visible, k_part, v_part, next_k_part, partial_out);
    else if (d == 128)
        block(shape, 128, q_tile, 4, n, visible, k_part, v_part, next_k_part, partial_out);
    else
        block(shape, d, q_tile, 4, n, visible, k_part, v_part, next_k_part, partial_out);
}
