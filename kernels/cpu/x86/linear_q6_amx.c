#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/linear_amx.h"
#include "kernels/cpu/linear_codes_amx.h"

/*
 * Q6_K by AMX without rounding a weight: codes less 32 are exact in bf16. Every 16 inputs have a scale of their own, so the tiles are half as
 * deep as those of the other codecs: a half is 16 inputs, 8 rows of a B tile. Order of an output's sum, for halves ascending:
 *   acc = fma(d * scale, C, acc)    C = sum of (q - 32) x, from zero
 */

#define INLINE static inline __attribute__((always_inline))

enum { HALF = 16, HALF_BYTES = HALF * 2, HALF_TILE = AMX_TILE / 2, PREFETCH = 2560 };

/* Tiles 0 .. n_c - 1 are C, the next two A, the rest B. */
static void configure(uint32_t rows, int n_c)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        const bool a = i >= n_c && i < n_c + 2;
        config.row_bytes[i] = a ? HALF_BYTES : 64;
        config.rows[i] = (uint8_t)(i < n_c + 2 ? rows : HALF / 2);
    }
    amx_sees(&config);
    _tile_loadconfig(&config);
}

/* ---- 2 to 16 rows: as in linear_q_amx.c, the blocks of all groups are one stream, and each step comes some blocks after the one before ---- */

enum { PIPE_SLOTS = 4, PIPE_MULTIPLY = 1, PIPE_STORE = 2, PIPE_ADD = 4 };

struct few_pipe {
    uint8_t b[PIPE_SLOTS][AMX_TILE];                 /* expanded weights, half after half */
    float c[PIPE_SLOTS][2][AMX_ROWS * LINEAR_GROUP]; /* products */
    float acc[AMX_ROWS * LINEAR_GROUP];
} __attribute__((aligned(64)));

#define FEW_MULTIPLY(c0, c1)                                                                                           \
    do {                                                                                                               \
        _tile_zero(c0);                                                                                                \
        _tile_loadd(4, x, a->x_stride * 2);                                                                            \
        _tile_loadd(6, b, 64);                                                                                         \
        _tile_dpbf16ps(c0, 4, 6);                                                                                      \
        _tile_zero(c1);                                                                                                \
        _tile_loadd(5, x + HALF, a->x_stride * 2);                                                                     \
        _tile_loadd(7, b + HALF_TILE, 64);                                                                             \
        _tile_dpbf16ps(c1, 5, 7);                                                                                      \
    } while (0)

INLINE void few_multiply(const struct linear_args *a, size_t block, bool odd, const uint8_t *b)
{
    const uint16_t *x = (const uint16_t *)a->x + block * LINEAR_BLOCK;
    amx_sees(b);
    if (odd)
        FEW_MULTIPLY(2, 3);
    else
        FEW_MULTIPLY(0, 1);
}

INLINE void few_store(bool odd, float (*c)[AMX_ROWS * LINEAR_GROUP])
{
    if (odd) {
        _tile_stored(2, c[0], 64);
        _tile_stored(3, c[1], 64);
    } else {
        _tile_stored(0, c[0], 64);
        _tile_stored(1, c[1], 64);
    }
}

/* The first block of a group starts from zero. */
INLINE void few_add(const struct linear_at *at, const float (*c)[AMX_ROWS * LINEAR_GROUP], float *acc,
                    const uint32_t n_rows)
{
    const __m512 d0 = linear_load_d(WEIGHT_Q6_K, at->group, at->unit, 0),
                 d1 = linear_load_d(WEIGHT_Q6_K, at->group, at->unit, 1);
    for (uint32_t r = 0; r < n_rows; r++) {
        __m512 v = at->unit ? _mm512_load_ps(acc + r * LINEAR_GROUP) : _mm512_setzero_ps();
        v = _mm512_fmadd_ps(d0, _mm512_load_ps(c[0] + r * LINEAR_GROUP), v);
        v = _mm512_fmadd_ps(d1, _mm512_load_ps(c[1] + r * LINEAR_GROUP), v);
        _mm512_store_ps(acc + r * LINEAR_GROUP, v);
    }
}

static void few_rows(const struct linear_args *a, const uint32_t n_rows)
{
    const size_t n_blocks = linear_n_blocks(a->shape), stride = linear_group_bytes(a->shape);
    const struct amx_chunk whole = { .args = a, .n_rows = n_rows };
    const uint32_t begin = a->out_begin / LINEAR_GROUP, end = (a->out_end + LINEAR_GROUP - 1) / LINEAR_GROUP;
    const size_t total = (end - begin) * n_blocks;
    const struct linear_at first = { (const uint8_t *)a->packed + begin * stride, begin, 0 };
    struct linear_at expanded = first, multiplied = first, added = first;
    struct few_pipe p;
    configure(n_rows, 4);
    for (size_t i = 0; i < total + PIPE_ADD; i++) {
        if (i < total) {
            const uint8_t *codes = linear_codes(WEIGHT_Q6_K, expanded.group, expanded.unit);
            for (size_t at = 0; at < linear_pair_bytes(WEIGHT_Q6_K) / 2; at += 64)
                _mm_prefetch((const char *)codes + PREFETCH + at, _MM_HINT_T0);
            linear_expand(WEIGHT_Q6_K, codes, p.b[i % PIPE_SLOTS]);
            linear_next(&expanded, n_blocks, stride);
        }
        if (i >= PIPE_ADD) {
            few_add(&added, (const void *)p.c[(i - PIPE_ADD) % PIPE_SLOTS], p.acc, n_rows);
            if (added.unit + 1 == n_blocks)
                amx_finish(&whole, 0, added.g, p.acc);
            linear_next(&added, n_blocks, stride);
        }
        if (i >= PIPE_MULTIPLY && i - PIPE_MULTIPLY < total) {
            const size_t at = i - PIPE_MULTIPLY;
            few_multiply(a, multiplied.unit, at % 2, p.b[at % PIPE_SLOTS]);
            linear_next(&multiplied, n_blocks, stride);
        }
        if (i >= PIPE_STORE && i - PIPE_STORE < total)
            few_store((i - PIPE_STORE) % 2, p.c[(i - PIPE_STORE) % PIPE_SLOTS]);
    }
    _tile_release();
}

/* ---- more rows: as in linear_q_amx.c, B tiles stay in the tile registers while all row tiles pass ---- */

enum { HELD_BLOCKS = 2, HELD = 2 * HELD_BLOCKS }; /* rows are whole eights of blocks, and so is a chunk of them */
_Static_assert(AMX_CHUNK_BLOCKS % HELD_BLOCKS == 0, "a chunk is made of whole runs of held blocks");

struct products {
    float c[2][HELD][AMX_ROWS * LINEAR_GROUP];
} __attribute__((aligned(64)));

/* The scaled products of rows r0 .. r0+3 of a row tile are added up, half by half. */
INLINE void add_products(const __m512 d[HELD], float (*c)[AMX_ROWS * LINEAR_GROUP], float *acc, bool fresh,
                         const int r0)
{
#pragma GCC unroll 4
    for (int r = r0; r < r0 + 4; r++) {
        __m512 v = fresh ? _mm512_setzero_ps() : _mm512_load_ps(acc + r * LINEAR_GROUP);
#pragma GCC unroll 4
        for (int i = 0; i < HELD; i++)
            v = _mm512_fmadd_ps(d[i], _mm512_load_ps(c[i] + r * LINEAR_GROUP), v);
        _mm512_store_ps(acc + r * LINEAR_GROUP, v);
    }
}

#define MULTIPLY(c_tile, a_tile, b_tile, at)                                                                           \
    do {                                                                                                               \
        _tile_zero(c_tile);                                                                                            \
        _tile_loadd(a_tile, at, x.row);                                                                                \
        _tile_dpbf16ps(c_tile, a_tile, b_tile);                                                                        \
    } while (0)

/* Two blocks from `first` of the chunk, all row tiles, by one group: C in tiles 0 and 1, A in 2 and 3, B in 4..7. */
static void chunk_blocks(const struct amx_chunk *c, const uint8_t *w, uint32_t group, size_t first, struct products *p)
{
    const size_t b0 = c->block_begin + first, n_blocks = linear_n_blocks(c->args->shape);
    const bool fresh = b0 == 0, final = b0 + HELD_BLOCKS == n_blocks;
    const uint8_t *b = c->expand + first * AMX_TILE;
    const __m512 d[HELD] = { linear_load_d(WEIGHT_Q6_K, w, b0, 0), linear_load_d(WEIGHT_Q6_K, w, b0, 1),
                             linear_load_d(WEIGHT_Q6_K, w, b0 + 1, 0), linear_load_d(WEIGHT_Q6_K, w, b0 + 1, 1) };
    _tile_loadd(4, b, 64);
    _tile_loadd(5, b + HALF_TILE, 64);
    _tile_loadd(6, b + 2 * HALF_TILE, 64);
    _tile_loadd(7, b + 3 * HALF_TILE, 64);
    for (uint32_t t = 0; t <= c->n_row_tiles; t++) {
        float(*to)[AMX_ROWS * LINEAR_GROUP] = p->c[t % 2], (*from)[AMX_ROWS * LINEAR_GROUP] = p->c[(t + 1) % 2];
        const bool more = t < c->n_row_tiles;
        const struct amx_x x = amx_x_of(c, more ? t : 0);
        const uint8_t *at = x.at + first * x.block;
        float *acc = t ? amx_partial(c, t - 1, group) : NULL;
        if (more)
            MULTIPLY(0, 2, 4, at);
        if (t)
            add_products(d, from, acc, fresh, 0);
        if (more)
            MULTIPLY(1, 3, 5, at + HALF_BYTES);
        if (t)
            add_products(d, from, acc, fresh, 4);
        if (more) {
            _tile_stored(0, to[0], 64);
            MULTIPLY(0, 2, 6, at + x.block);
        }
        if (t)
            add_products(d, from, acc, fresh, 8);
        if (more) {
            _tile_stored(1, to[1], 64);
            MULTIPLY(1, 3, 7, at + x.block + HALF_BYTES);
        }
        if (t)
            add_products(d, from, acc, fresh, 12);
        if (t && final)
            amx_finish(c, t - 1, group, acc);
        if (more) {
            _tile_stored(0, to[2], 64);
            _tile_stored(1, to[3], 64);
        }
    }
}

static void run_chunk(const struct amx_chunk *c)
{
    const size_t stride = linear_group_bytes(c->args->shape), n_blocks = c->block_end - c->block_begin;
    struct products p;
    configure(AMX_ROWS, 2);
    for (uint32_t g = c->group_begin; g < c->group_end; g++) {
        const uint8_t *w = (const uint8_t *)c->args->packed + (size_t)g * stride;
        for (size_t i = 0; i < n_blocks; i++)
            linear_expand(WEIGHT_Q6_K, linear_codes(WEIGHT_Q6_K, w, c->block_begin + i), c->expand + i * AMX_TILE);
        amx_sees(c->expand);
        for (size_t i = 0; i < n_blocks; i += HELD_BLOCKS) {
            /* what this group's neighbour will expand, asked for bit by bit */
            const uint8_t *next = linear_codes(WEIGHT_Q6_K, w + stride, c->block_begin + i);
            for (size_t at = 0; at < linear_pair_bytes(WEIGHT_Q6_K); at += 64)
                _mm_prefetch((const char *)next + at, _MM_HINT_T1);
            chunk_blocks(c, w, g, i, &p);
        }
    }
}

bool linear_accepts_q6_amx(const struct linear_shape *shape)
{
    return shape->x == DTYPE_BF16 && shape->codec == WEIGHT_Q6_K;
}

size_t linear_scratch_q6_amx(const struct linear_shape *shape, uint32_t n_rows)
{
    return n_rows <= AMX_ROWS ? shape->n_in * sizeof(float) : amx_many_rows_scratch(shape, n_rows, false, 1);
}

void linear_run_q6_amx(const struct linear_args *a)
{
    if (a->n_rows > AMX_ROWS)
        amx_many_rows(a, run_chunk, NULL, 1);
    else if (a->n_rows == 1)
        linear_one_row_amx(a, NULL, a->scratch);
    else if (a->n_rows)
        few_rows(a, a->n_rows);
}
