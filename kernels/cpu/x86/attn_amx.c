#include "kernels/cpu/attn.h"

#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/x86/attn_avx512.h"

/*
 * Tiles are 16 rows of 64 bytes, always: a row's bits then do not depend on how many there are. A stored block is B operands as it lies:
 * 16 rows of keys are 32 channels of 16 positions, 16 rows of values 32 positions of 16 channels.
 * The intrinsics of the tile loads do not tell the compiler that they read memory; `tiles_see` does.
 */
enum { ATTN_FEW = 4, TILE_BYTES = 1024, TILE_CHANNELS = 32, TILE_COLUMNS = 16, K_STRIDE = KV_BLOCK * 4 };

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
 * One tile of scores or outputs: 16 columns, the sum over n_a operands of 32 channels or positions, in ascending order. A operand i lies at
 * a + i KB and is, if `resident`, in tile 5 - i already. The B operands take turns in two tiles, so that a load does not wait for the
 * product before it; the store of a finished tile runs beside the products of the next, which is in another accumulator.
 */
#define TILE_PRODUCT(acc, n_a, resident, a, b, b_stride, to, to_stride)                                                \
    do {                                                                                                               \
        const uint8_t *a_ = (a), *b_ = (b);                                                                            \
        const size_t b_step_ = 16 * (b_stride);                                                                        \
        _tile_zero(acc);                                                                                               \
        for (uint32_t i_ = 0; i_ < (n_a); i_ += 2, a_ += 2 * TILE_BYTES, b_ += 2 * b_step_) {                          \
            if (!(resident))                                                                                           \
                _tile_loadd(5, a_, 64);                                                                                \
            _tile_loadd(6, b_, b_stride);                                                                              \
            if ((resident) && i_)                                                                                      \
                _tile_dpbf16ps(acc, 3, 6);                                                                             \
            else                                                                                                       \
                _tile_dpbf16ps(acc, 5, 6);                                                                             \
            if (i_ + 1 == (n_a))                                                                                       \
                break;                                                                                                 \
            if (!(resident))                                                                                           \
                _tile_loadd(4, a_ + TILE_BYTES, 64);                                                                   \
            _tile_loadd(7, b_ + b_step_, b_stride);                                                                    \
            if ((resident) && i_)                                                                                      \
                _tile_dpbf16ps(acc, 2, 7);                                                                             \
            else                                                                                                       \
                _tile_dpbf16ps(acc, 4, 7);                                                                             \
        }                                                                                                              \
        _tile_stored(acc, to, to_stride);                                                                              \
    } while (0)

static inline void tiles_resident(const uint8_t *a, const uint32_t n_a)
{
    _tile_loadd(5, a, 64);
    _tile_loadd(4, a + TILE_BYTES, 64);
    if (n_a == 4) {
        _tile_loadd(3, a + 2 * TILE_BYTES, 64);
        _tile_loadd(2, a + 3 * TILE_BYTES, 64);
    }
}

/* s [ATTN_ROWS][KV_BLOCK] = q k^T */
static inline __attribute__((always_inline)) void scores(const uint8_t *q, const uint8_t *k, const uint32_t head_dim,
                                                         float *s)
{
    enum { S_STRIDE = KV_BLOCK * sizeof *s };
    const uint32_t n_a = head_dim / TILE_CHANNELS;
    const bool resident = n_a == 2 || n_a == 4;
    if (resident)
        tiles_resident(q, n_a);
    for (uint32_t c = 0; c < KV_BLOCK; c += 2 * TILE_COLUMNS, k += 128) {
        TILE_PRODUCT(0, n_a, resident, q, k, K_STRIDE, s + c, S_STRIDE);
        TILE_PRODUCT(1, n_a, resident, q, k + 64, K_STRIDE, s + c + TILE_COLUMNS, S_STRIDE);
    }
}

struct softmax {
    float s[ATTN_ROWS * KV_BLOCK]; /* raw scores */
    uint8_t p[2 * TILE_BYTES];     /* weights, bf16: two A operands of 32 positions */
    uint64_t see[ATTN_ROWS];
    float raw[ATTN_ROWS];                   /* maxima of s */
    float o[ATTN_ROWS * ATTN_HEAD_DIM_MAX]; /* outputs, where not all of the tile's rows may be written */
} __attribute__((aligned(64)));

/* Weights of rows row .. row + 3 and their m and l. */
static inline __attribute__((always_inline)) void weights4(struct softmax *w, uint32_t row, uint32_t n, const bool full,
                                                           float scale, float *partial)
{
    const __m512 scale2 = _mm512_set1_ps(scale * EXP_LOG2E);
    const float *s = w->s + row * KV_BLOCK;
    const __m128 raw = _mm_load_ps(w->raw + row);
    float top[4] __attribute__((aligned(16)));
    __m512 l[4];
    _mm_store_ps(top, _mm_mul_ps(raw, _mm_set1_ps(scale * EXP_LOG2E)));
    for (int r = 0; r < 4; r++, s += KV_BLOCK) {
        const __m512 at = _mm512_set1_ps(top[r]);
        const uint64_t see = w->see[row + r];
        __m512 p[4];
        for (int j = 0; j < 4; j++)
            p[j] = attn_weights(s + 16 * j, scale2, at, (__mmask16)(see >> (16 * j)), full);
        l[r] = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
        _mm512_store_si512(w->p + (row + r) * 64, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
        _mm512_store_si512(w->p + TILE_BYTES + (row + r) * 64, (__m512i)_mm512_cvtne2ps_pbh(p[3], p[2]));
    }
    _mm_mask_storeu_ps(partial + row, attn_live4(row, n), _mm_mul_ps(raw, _mm_set1_ps(scale)));
    _mm_mask_storeu_ps(partial_l(partial) + row, attn_live4(row, n), attn_sum4(l));
}

/* `full`: every vector sees every position */
static inline __attribute__((always_inline)) void block(const uint32_t d, float scale, const uint8_t *q, uint32_t n,
                                                        const bool full, const uint8_t *k, const uint8_t *v,
                                                        const void *next, struct softmax *w, float *partial)
{
    const size_t stride = (size_t)d * sizeof(float); /* of values and of outputs */
    const size_t part_bytes = (size_t)KV_BLOCK * d * sizeof(uint16_t);
    tiles_configure();
    tiles_see(q);
    /* Tile loads get little from memory at a time: what is not in a cache is asked for before. 16 vectors without a hint are prefill. */
    for (size_t i = 0; n < ATTN_ROWS && !next && i < part_bytes; i += 64)
        _mm_prefetch((const char *)k + i, _MM_HINT_T0);
    for (size_t i = 0; (n < ATTN_ROWS || next) && i < part_bytes; i += 64)
        _mm_prefetch((const char *)v + i, _MM_HINT_T1);
    scores(q, k, d, w->s);
    for (uint32_t r = 0; r < n; r += 4)
        _mm_store_ps(w->raw + r, attn_maxima4(w->s + r * KV_BLOCK, w->see + r, full));
    for (uint32_t r = 0; r < n; r += 4) {
        if (next)
            for (size_t i = part_bytes * r / n; i < part_bytes * (r + 4) / n && i < part_bytes; i += 64)
                _mm_prefetch((const char *)next + i, _MM_HINT_T1);
        weights4(w, r, n, full, scale, partial);
    }
    tiles_see(w->p);
    float *o = n == ATTN_ROWS ? partial_o(partial) : w->o;
    tiles_resident(w->p, 2);
    for (uint32_t c = 0; c < d; c += 2 * TILE_COLUMNS, v += 128) {
        TILE_PRODUCT(0, 2, true, w->p, v, stride, o + c, stride);
        TILE_PRODUCT(1, 2, true, w->p, v + 64, stride, o + c + TILE_COLUMNS, stride);
    }
    if (n < ATTN_ROWS)
        memcpy(partial_o(partial), o, n * stride);
}

/*
 * One to four vectors (decode, a KV head's group) are left to AVX-512, which gives the same bits: vector loads get all that memory gives,
 * and the arithmetic, 1300 cycles for three vectors over a block of head_dim 64, takes a third of the time of reading the block.
 */
static void block_few(const struct attn_shape *shape, const uint8_t *q_tile, uint32_t n, const uint8_t *visible,
                      const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    float q[ATTN_FEW * ATTN_HEAD_DIM_MAX] __attribute__((aligned(64)));
    const uint32_t d = shape->head_dim;
    for (uint32_t c = 0; c < d; c += TILE_CHANNELS, q_tile += TILE_BYTES)
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t half = 0; half < 2; half++) {
                const __m256i h = _mm256_load_si256((const __m256i *)(q_tile + i * 64 + half * 32));
                _mm512_store_si512(q + i * d + c + half * 16, _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
            }
    attn_block_avx512(shape, q, n, visible, k_part, v_part, next_k_part, partial_out);
}

void attn_block_amx(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                    const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    struct softmax w;
    assert(n <= ATTN_ROWS);
    if (n <= ATTN_FEW) {
        block_few(shape, q_tile, n, visible, k_part, v_part, next_k_part, partial_out);
        return;
    }
    const bool full = attn_see(visible, n, w.see);
    if (full && shape->head_dim == 64)
        block(64, shape->scale, q_tile, n, true, k_part, v_part, next_k_part, &w, partial_out);
    else if (full && shape->head_dim == 128)
        block(128, shape->scale, q_tile, n, true, k_part, v_part, next_k_part, &w, partial_out);
    else if (full)
        block(shape->head_dim, shape->scale, q_tile, n, true, k_part, v_part, next_k_part, &w, partial_out);
    else
        block(shape->head_dim, shape->scale, q_tile, n, false, k_part, v_part, next_k_part, &w, partial_out);
}
