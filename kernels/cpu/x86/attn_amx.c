#include "kernels/cpu/attn.h"

#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/x86/vec_avx512.h"

/*
 * Tiles are 16 rows of 64 bytes, always: a row's bits then do not depend on how many there are. A stored block is B operands as it lies:
 * 16 rows of keys are 32 channels of 16 positions, 16 rows of values 32 positions of 16 channels.
 * The intrinsics of the tile loads do not tell the compiler that they read memory; `tiles_see` does.
 */
enum { TILE_BYTES = 1024, TILE_CHANNELS = 32, TILE_COLUMNS = 16, K_STRIDE = KV_BLOCK * 4 };

struct palette {
    uint8_t id, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

/* Loading a palette takes 200 cycles, asking which one is loaded 20: a thread keeps ours from block to block, until another kernel's. */
static inline void tiles_configure(void)
{
    static const struct palette ours = {
        1, 0, { 0 }, { 64, 64, 64, 64, 64, 64, 64, 64 }, { 16, 16, 16, 16, 16, 16, 16, 16 }
    };
    struct palette now;
    __asm__ volatile("sttilecfg %0" : "=m"(now));
    if (_mm512_cmpneq_epi8_mask(_mm512_load_si512(&now), _mm512_load_si512(&ours)))
        _tile_loadconfig(&ours);
}

static inline void tiles_see(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

bool attn_accepts_amx(const struct attn_shape *shape)
{
    return attn_accepts_c(shape) && shape->codec == KV_BF16 && shape->head_dim % TILE_CHANNELS == 0;
}

size_t attn_q_tile_bytes_amx(const struct attn_shape *shape)
{
    return ATTN_ROWS * (size_t)shape->head_dim * sizeof(uint16_t);
}

void attn_pack_q_amx(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    assert(n <= ATTN_ROWS);
    uint8_t *tile = q_tile;
    for (uint32_t d = 0; d < shape->head_dim; d += TILE_CHANNELS, tile += TILE_BYTES) {
        for (uint32_t i = 0; i < n; i++) {
            const __m512 lo = _mm512_loadu_ps(q[i] + d), hi = _mm512_loadu_ps(q[i] + d + 16);
            _mm256_store_si256((__m256i *)(tile + i * 64), bf16_avx512(lo));
            _mm256_store_si256((__m256i *)(tile + i * 64 + 32), bf16_avx512(hi));
        }
        memset(tile + n * 64, 0, (ATTN_ROWS - n) * 64);
    }
}

/*
 * One tile of scores, for 16 positions: channels ascending. Operands alternate between two pairs of tiles, so that a load does not wait for
 * the product before it; the store of one tile of scores runs beside the products of the next.
 */
#define SCORE_TILE(acc)                                                                                                \
    do {                                                                                                               \
        const uint8_t *a = q, *b = k;                                                                                  \
        uint32_t left = head_dim / TILE_CHANNELS;                                                                      \
        _tile_zero(acc);                                                                                               \
        for (; left >= 2; left -= 2, a += 2 * TILE_BYTES, b += 2 * 16 * K_STRIDE) {                                    \
            _tile_loadd(4, a, 64);                                                                                     \
            _tile_loadd(6, b, K_STRIDE);                                                                               \
            _tile_dpbf16ps(acc, 4, 6);                                                                                 \
            _tile_loadd(5, a + TILE_BYTES, 64);                                                                        \
            _tile_loadd(7, b + 16 * K_STRIDE, K_STRIDE);                                                               \
            _tile_dpbf16ps(acc, 5, 7);                                                                                 \
        }                                                                                                              \
        if (left) {                                                                                                    \
            _tile_loadd(4, a, 64);                                                                                     \
            _tile_loadd(6, b, K_STRIDE);                                                                               \
            _tile_dpbf16ps(acc, 4, 6);                                                                                 \
        }                                                                                                              \
        _tile_stored(acc, s, KV_BLOCK * sizeof *s);                                                                    \
        k += 64;                                                                                                       \
        s += TILE_COLUMNS;                                                                                             \
    } while (0)

/* s [ATTN_ROWS][KV_BLOCK] = q k^T */
static inline __attribute__((always_inline)) void scores(const uint8_t *q, const uint8_t *k, const uint32_t head_dim,
                                                         float *s)
{
    SCORE_TILE(0);
    SCORE_TILE(1);
    SCORE_TILE(2);
    SCORE_TILE(3);
}

/* Joins the lanes of four vectors to one lane each, in one tree for all four. */
#define REDUCE4(name, OP)                                                                                              \
    static inline __m128 name(const __m512 x[4])                                                                       \
    {                                                                                                                  \
        const __m512 ab = _mm512_##OP##_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));            \
        const __m512 cd = _mm512_##OP##_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));            \
        const __m512 y = _mm512_##OP##_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));           \
        const __m256 h = _mm256_##OP##_ps(_mm512_castps512_ps256(y), _mm512_extractf32x8_ps(y, 1));                    \
        return _mm_##OP##_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));                                  \
    }
REDUCE4(max4, max)
REDUCE4(sum4, add)

struct softmax {
    float s[ATTN_ROWS * KV_BLOCK];     /* raw scores; later a tile of outputs */
    float l[ATTN_ROWS * TILE_COLUMNS]; /* lanes of l after the first half of the positions */
    uint8_t p[2][TILE_BYTES];          /* weights, bf16: two A operands of 32 positions */
    float top[ATTN_ROWS];              /* m in powers of two */
    uint64_t see[ATTN_ROWS];
} __attribute__((aligned(64)));

/* m of four rows, and the same in powers of two. */
static inline __attribute__((always_inline)) __m128 maxima4(struct softmax *w, uint32_t row, const bool full,
                                                            float scale)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    const float *s = w->s + row * KV_BLOCK;
    __m512 x[4];
    for (int r = 0; r < 4; r++, s += KV_BLOCK) {
        const uint64_t see = w->see[row + r];
        if (full) {
            x[r] = _mm512_max_ps(_mm512_max_ps(_mm512_load_ps(s), _mm512_load_ps(s + 16)),
                                 _mm512_max_ps(_mm512_load_ps(s + 32), _mm512_load_ps(s + 48)));
            continue;
        }
        x[r] = none;
        for (int j = 0; j < 4; j++)
            x[r] = _mm512_mask_max_ps(x[r], (__mmask16)(see >> (16 * j)), x[r], _mm512_load_ps(s + 16 * j));
    }
    const __m128 raw = max4(x);
    _mm_store_ps(w->top + row, _mm_mul_ps(raw, _mm_set1_ps(scale * EXP_LOG2E)));
    return _mm_mul_ps(raw, _mm_set1_ps(scale));
}

/*
 * Weights of four rows over one half of the positions, as bf16 into the A operand; returns the lanes' sums in f32 in l. Masked scores weigh
 * +0.0 in fixed lanes, so `full` (nothing is masked) changes no bit.
 */
static inline __attribute__((always_inline)) void weights4(struct softmax *w, uint32_t row, const int half,
                                                           const bool full, __m512 scale, __m512 l[4])
{
    const float *s = w->s + row * KV_BLOCK + half * 32;
    for (int r = 0; r < 4; r++, s += KV_BLOCK) {
        const __m512 top = _mm512_set1_ps(w->top[row + r]);
        __m512 p0 = exp2_avx512(_mm512_fmsub_ps(_mm512_load_ps(s), scale, top));
        __m512 p1 = exp2_avx512(_mm512_fmsub_ps(_mm512_load_ps(s + 16), scale, top));
        if (!full) {
            p0 = _mm512_maskz_mov_ps((__mmask16)(w->see[row + r] >> (32 * half)), p0);
            p1 = _mm512_maskz_mov_ps((__mmask16)(w->see[row + r] >> (32 * half + 16)), p1);
        }
        l[r] = _mm512_add_ps(p0, p1);
        _mm512_store_si512(w->p[half] + (row + r) * 64, (__m512i)_mm512_cvtne2ps_pbh(p1, p0));
    }
}

/* Adds half of the positions to `tiles` (1 .. 4) tiles of outputs, 16 channels each, in accumulators 0 .. 3; weights in tile `a`. */
#define OUTPUT_TILES(a, v, stride, tiles)                                                                              \
    do {                                                                                                               \
        _tile_loadd(6, v, stride);                                                                                     \
        _tile_dpbf16ps(0, a, 6);                                                                                       \
        _tile_loadd(7, (v) + 64, stride);                                                                              \
        _tile_dpbf16ps(1, a, 7);                                                                                       \
        if (tiles == 4) {                                                                                              \
            _tile_loadd(6, (v) + 128, stride);                                                                         \
            _tile_dpbf16ps(2, a, 6);                                                                                   \
            _tile_loadd(7, (v) + 192, stride);                                                                         \
            _tile_dpbf16ps(3, a, 7);                                                                                   \
        }                                                                                                              \
    } while (0)

static inline void outputs_store(float *o, size_t stride, bool four)
{
    _tile_stored(0, o, stride);
    _tile_stored(1, o + 16, stride);
    if (four) {
        _tile_stored(2, o + 32, stride);
        _tile_stored(3, o + 48, stride);
    }
}

static inline void outputs_zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Both halves, for the channels after the first 64. */
static void outputs_rest(const uint8_t *v, size_t stride, bool four)
{
    outputs_zero();
    if (four) {
        OUTPUT_TILES(4, v, stride, 4);
        OUTPUT_TILES(5, v + 16 * stride, stride, 4);
    } else {
        OUTPUT_TILES(4, v, stride, 2);
        OUTPUT_TILES(5, v + 16 * stride, stride, 2);
    }
}

/* `full`: every vector sees every position */
static inline __attribute__((always_inline)) void block(const uint32_t d, float scale, const uint8_t *q, uint32_t n,
                                                        const bool full, const uint8_t *k, const uint8_t *v,
                                                        struct softmax *w, float *partial)
{
    const __m512 scale2 = _mm512_set1_ps(scale * EXP_LOG2E);
    const size_t v_stride = (size_t)d * 2 * sizeof(uint16_t);
    const bool first_four = d >= 4 * TILE_COLUMNS;
    __m512 l[4];

    tiles_configure();
    tiles_see(q);
    scores(q, k, d, w->s);
    for (uint32_t r = 0; r < n; r += 4) {
        const __mmask8 live = (__mmask8)(n - r < 4 ? (1u << (n - r)) - 1u : 15u);
        _mm_mask_storeu_ps(partial + r, live, maxima4(w, r, full, scale));
    }
    /* The products with the first half of the values run beside the weights of the second. */
    for (uint32_t r = 0; r < n; r += 4) {
        weights4(w, r, 0, full, scale2, l);
        for (int i = 0; i < 4; i++)
            _mm512_store_ps(w->l + (r + i) * TILE_COLUMNS, l[i]);
    }
    tiles_see(w);
    outputs_zero();
    _tile_loadd(4, w->p[0], 64);
    if (first_four)
        OUTPUT_TILES(4, v, v_stride, 4);
    else
        OUTPUT_TILES(4, v, v_stride, 2);
    for (uint32_t r = 0; r < n; r += 4) {
        const __mmask8 live = (__mmask8)(n - r < 4 ? (1u << (n - r)) - 1u : 15u);
        weights4(w, r, 1, full, scale2, l);
        for (int i = 0; i < 4; i++)
            l[i] = _mm512_add_ps(_mm512_load_ps(w->l + (r + i) * TILE_COLUMNS), l[i]);
        _mm_mask_storeu_ps(partial_l(partial) + r, live, sum4(l));
    }
    tiles_see(w);
    _tile_loadd(5, w->p[1], 64);
    if (first_four)
        OUTPUT_TILES(5, v + 16 * v_stride, v_stride, 4);
    else
        OUTPUT_TILES(5, v + 16 * v_stride, v_stride, 2);

    float *o = partial_o(partial);
    for (uint32_t c = 0; c < d; c += 4 * TILE_COLUMNS) {
        const bool four = d - c >= 4 * TILE_COLUMNS;
        if (c)
            outputs_rest(v + c * 4, v_stride, four);
        if (n == ATTN_ROWS) {
            outputs_store(o + c, d * sizeof *o, four);
            continue;
        }
        outputs_store(w->s, KV_BLOCK * sizeof *o, four);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t i = 0; i < (four ? 64u : 32u); i += 16)
                _mm512_store_ps(o + (size_t)r * d + c + i, _mm512_load_ps(w->s + r * KV_BLOCK + i));
    }
}

void attn_block_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                    const void *k_part, const void *v_part, float *partial_out)
{
    struct softmax w;
    bool full = true;
    assert(n <= ATTN_ROWS);
    for (uint32_t i = 0; i < n; i++) {
        assert(visible[i] <= KV_BLOCK);
        w.see[i] = _bzhi_u64(~UINT64_C(0), visible[i]);
        full = full && visible[i] == KV_BLOCK;
    }
    for (uint32_t i = n; i < ATTN_ROWS; i++)
        w.see[i] = 0;
    if (full && shape->head_dim == 64)
        block(64, shape->scale, q_tile, n, true, k_part, v_part, &w, partial_out);
    else if (full && shape->head_dim == 128)
        block(128, shape->scale, q_tile, n, true, k_part, v_part, &w, partial_out);
    else if (full)
        block(shape->head_dim, shape->scale, q_tile, n, true, k_part, v_part, &w, partial_out);
    else
        block(shape->head_dim, shape->scale, q_tile, n, false, k_part, v_part, &w, partial_out);
}
