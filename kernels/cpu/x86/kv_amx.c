#include "kernels/cpu/x86/kv_variants.h"

#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/attn.h"
#include "kernels/cpu/x86/kv_avx512.h"

/*
 * Byte products. A 16-bit integer is two bytes, 256 high + low, in two rows of one A operand: eight vectors a tile. Codes of int8 are B operands as
 * they lie; those of int4-rot become two by a mask and a shift, in a buffer that stays in the nearest cache.
 */
enum { TILE_VECTORS = 8, TILE_BYTES = 1024, STEP = 64 /* channels or positions of one operand */ };

/* FEW vectors (decode, a KV head's group) take half the rows, and so half the time, of products. */
enum { FEW = 4, PAGE = 4096 };

struct palette {
    uint8_t id, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

/* Tiles 0 to 3 are sums, 4 the A operand, the others B operands. For many it is the palette of attn_amx.c, which a thread then keeps. */
static inline void tiles_configure(bool few)
{
    static const struct palette palettes[2] = {
        { 1, 0, { 0 }, { 64, 64, 64, 64, 64, 64, 64, 64 }, { 16, 16, 16, 16, 16, 16, 16, 16 } },
        { 1, 0, { 0 }, { 64, 64, 64, 64, 64, 64, 64, 64 }, { 8, 8, 8, 8, 8, 16, 16, 16 } },
    };
    struct palette now;
    __asm__ volatile("sttilecfg %0" : "=m"(now));
    if (_mm512_cmpneq_epi8_mask(_mm512_load_si512(&now), _mm512_load_si512(&palettes[few])))
        _tile_loadconfig(&palettes[few]);
}

static inline void tiles_see(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

bool kv_accepts_amx(const struct attn_shape *shape)
{
    return kv_accepts_c(shape) && shape->head_dim % STEP == 0;
}

size_t kv_q_tile_bytes_amx(const struct attn_shape *shape)
{
    return ATTN_ROWS * (2 * sizeof(float) + 2 * (size_t)shape->head_dim);
}

/* 32 integers to two bytes each, 256 high + low: low is in -128 .. 127 if they are signed, else 0 .. 255. */
static inline void split(__m512i x, const bool is_signed, uint8_t *high, uint8_t *low)
{
    const __m512i up =
        is_signed ? _mm512_srai_epi16(_mm512_add_epi16(x, _mm512_set1_epi16(128)), 8) : _mm512_srli_epi16(x, 8);
    _mm256_store_si256((__m256i *)high, _mm512_cvtepi16_epi8(up));
    _mm256_store_si256((__m256i *)low, _mm512_cvtepi16_epi8(x));
}

void kv_pack_q_amx(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    int16_t x[ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    float *scale = q_tile, *sum = scale + ATTN_ROWS;
    uint8_t *rows = (uint8_t *)(sum + ATTN_ROWS);
    assert(n <= ATTN_ROWS);
    memset(q_tile, 0, kv_q_tile_bytes_amx(shape));
    for (uint32_t i = 0; i < n; i++) {
        scale[i] = kv_quantize_q_avx512(shape, q[i], x, &sum[i]);
        for (uint32_t c = 0; c < shape->head_dim; c += 32) {
            uint8_t *high = rows + (size_t)(c / STEP) * 2 * TILE_BYTES + i * 128 + c % STEP;
            split(_mm512_load_si512(x + c), true, high, high + 64);
        }
    }
}

/* Half-byte codes as bytes: rows of `bytes` bytes; the upper halves are rows n_rows later. Each line asks for the one in the same place of `after`. */
static inline __attribute__((always_inline)) void expand(const uint8_t *codes, size_t bytes, uint8_t *low,
                                                         uint8_t *high, const char *after)
{
    const __m512i mask = _mm512_set1_epi8(15);
    for (size_t i = 0; i < bytes; i += 64) {
        const __m512i x = _mm512_load_si512(codes + i);
        _mm_prefetch(after + i, _MM_HINT_T0);
        _mm512_store_si512(low + i, _mm512_and_si512(x, mask));
        _mm512_store_si512(high + i, _mm512_and_si512(_mm512_srli_epi16(x, 4), mask));
    }
}

/*
 * y [16, or 8][y_stride] = rows of the A operands a (n_steps KB apart by a_step) times codes b [n_steps * 16 lines][b_stride bytes], 64 columns: four tiles
 * beside one another, so that products do not wait for each other.
 */
#define COLUMNS64(op, a, a_step, n_steps, b, b_stride, y, y_stride)                                                    \
    do {                                                                                                               \
        const uint8_t *a_ = (a), *b_ = (b);                                                                            \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        for (uint32_t i_ = 0; i_ < (n_steps); i_++, a_ += (a_step), b_ += 16 * (b_stride)) {                           \
            _tile_loadd(4, a_, 64);                                                                                    \
            _tile_loadd(5, b_, b_stride);                                                                              \
            op(0, 4, 5);                                                                                               \
            _tile_loadd(6, b_ + 64, b_stride);                                                                         \
            op(1, 4, 6);                                                                                               \
            _tile_loadd(7, b_ + 128, b_stride);                                                                        \
            op(2, 4, 7);                                                                                               \
            _tile_loadd(5, b_ + 192, b_stride);                                                                        \
            op(3, 4, 5);                                                                                               \
        }                                                                                                              \
        _tile_stored(0, y, (y_stride)*4);                                                                              \
        _tile_stored(1, (y) + 16, (y_stride)*4);                                                                       \
        _tile_stored(2, (y) + 32, (y_stride)*4);                                                                       \
        _tile_stored(3, (y) + 48, (y_stride)*4);                                                                       \
    } while (0)

struct work {
    uint8_t codes[KV_BLOCK * ATTN_HEAD_DIM_MAX + PAGE]; /* of a part, as bytes */
    int32_t y[16 * ATTN_HEAD_DIM_MAX];                  /* high and low products of eight vectors */
    int32_t x[ATTN_ROWS * KV_BLOCK];                    /* of all vectors with the keys */
    uint8_t w[2][TILE_BYTES];                           /* A operands: weights of eight vectors each */
    struct kv_weights weights[ATTN_ROWS / 4];
    struct kv_planes planes;
} __attribute__((aligned(64)));

/*
 * Where a part's bytes go: a line before it, within a page. A processor takes a load for one of a store under way if both are at the same place of a page;
 * here that store is always still to come.
 */
static inline uint8_t *codes_beside(struct work *w, const uint8_t *part)
{
    return w->codes + (((uintptr_t)part - 64 - (uintptr_t)w->codes) & (PAGE - 64));
}

static inline __m512i joined(const int32_t *high, const int32_t *low)
{
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(high), 8), _mm512_load_si512(low));
}

/* half: codes of half a byte, with least values. d: head_dim */
static inline __attribute__((always_inline)) void block(const struct attn_shape *shape, const uint32_t d,
                                                        const void *q_tile, uint32_t n, const uint8_t *visible,
                                                        const uint8_t *k_part, const uint8_t *v_part,
                                                        const uint8_t *next, const bool half, struct work *w,
                                                        float *partial)
{
    const float *q_scale = q_tile, *q_sum = q_scale + ATTN_ROWS;
    const uint8_t *q = (const uint8_t *)(q_sum + ATTN_ROWS), *k = k_part, *v = v_part;
    const size_t bytes = (size_t)KV_BLOCK * d / (half ? 2 : 1);
    const char *after = (const char *)(next ? next : k_part), *after_v = after + (v_part - k_part);
    uint64_t see[ATTN_ROWS];
    tiles_configure(n <= FEW);
    attn_see(visible, n, see);
    kv_planes_load(shape, k_part, v_part, half, &w->planes);
    kv_planes_ask(shape, after);
    kv_planes_ask(shape, after_v);
    if (half) {
        k = codes_beside(w, k_part);
        expand(k_part, bytes, (uint8_t *)(uintptr_t)k, (uint8_t *)(uintptr_t)k + bytes, after);
    }
    tiles_see(q);
    tiles_see(w->codes);
    for (uint32_t first = 0; first < n; first += TILE_VECTORS) {
        COLUMNS64(_tile_dpbssd, q + first * 128, 2 * TILE_BYTES, d / STEP, k, KV_BLOCK * 4, w->y, KV_BLOCK);
        tiles_see(w->y);
        for (uint32_t i = first; i < n && i < first + TILE_VECTORS; i++)
            for (int c = 0; c < KV_BLOCK; c += 16) {
                const int32_t *y = w->y + (i - first) * 2 * KV_BLOCK + c;
                _mm512_store_si512(w->x + i * KV_BLOCK + c, joined(y, y + KV_BLOCK));
            }
    }
    for (size_t i = 0; !half && next && i < bytes; i += 64) {
        _mm_prefetch(after + i, _MM_HINT_T1);
        _mm_prefetch(after_v + i, _MM_HINT_T1);
    }
    for (uint32_t r = 0; r < n; r += 4) {
        struct kv_weights *out = &w->weights[r / 4];
        kv_weights4(&w->planes, w->x + r * KV_BLOCK, see + r, half, shape->scale, q_scale + r, q_sum + r,
                    attn_live4(r, n), out, partial + r, partial_l(partial) + r);
        for (uint32_t i = 0; i < 4; i++)
            for (int c = 0; c < KV_BLOCK; c += 32) {
                uint8_t *high = w->w[r / TILE_VECTORS] + (r % TILE_VECTORS + i) * 128 + c;
                split(_mm512_load_si512(out->w[i] + c), false, high, high + 64);
            }
    }
    if (half) {
        v = codes_beside(w, v_part);
        expand(v_part, bytes, (uint8_t *)(uintptr_t)v, (uint8_t *)(uintptr_t)v + bytes, after_v);
    }
    tiles_see(w->w);
    tiles_see(w->codes);
    float *o = partial_o(partial);
    for (uint32_t first = 0; first < n; first += TILE_VECTORS) {
        for (uint32_t c = 0; c < d; c += 64)
            COLUMNS64(_tile_dpbusd, w->w[first / TILE_VECTORS], 0, 1, v + 4 * c, (size_t)d * 4, w->y + c, (size_t)d);
        tiles_see(w->y);
        for (uint32_t i = first; i < n && i < first + TILE_VECTORS; i++) {
            const __m512 scale = _mm512_set1_ps(w->weights[i / 4].w_scale[i % 4]),
                         base = _mm512_set1_ps(w->weights[i / 4].base[i % 4]);
            const int32_t *y = w->y + (size_t)(i - first) * 2 * d;
            for (uint32_t c = 0; c < d; c += 16)
                _mm512_storeu_ps(o + i * d + c,
                                 _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(joined(y + c, y + d + c)), base));
        }
    }
}

void kv_block_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                  const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    struct work w;
    const uint32_t d = shape->head_dim;
    assert(n <= ATTN_ROWS);
    if (shape->codec == KV_INT8)
        block(shape, d, q_tile, n, visible, k_part, v_part, next_k_part, false, &w, partial_out);
    else if (n <= FEW)
        kv_block_few_amx(shape, q_tile, n, visible, k_part, v_part, next_k_part, partial_out);
    else if (d == 128)
        block(shape, 128, q_tile, n, visible, k_part, v_part, next_k_part, true, &w, partial_out);
    else if (d == 64)
        block(shape, 64, q_tile, n, visible, k_part, v_part, next_k_part, true, &w, partial_out);
    else
        block(shape, d, q_tile, n, visible, k_part, v_part, next_k_part, true, &w, partial_out);
}
