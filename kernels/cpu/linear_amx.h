#ifndef LONGSPAN_KERNELS_CPU_LINEAR_AMX_H
#define LONGSPAN_KERNELS_CPU_LINEAR_AMX_H

/*
 * What the AMX variants of linear share: tile palettes, and the blocking for many rows. AMX's unit is C[rows][16 outputs] += A[rows][32 inputs]
 * B[32 inputs][16 outputs] in bf16 with float32 sums; the order of the sum over the 32 is the processor's and the same for each row of the
 * tile. C is float32 exactly, so it may leave the tiles and come back between steps: blocking does not touch bits.
 *
 * Up to 16 rows are read with palettes of that many rows. Of more rows, full tiles of 16 are read in place too, unless the rows' stride puts
 * them all into one or two sets of the L1 cache; the others, and the last rows, are copied into tiles (padded with zero rows).
 *
 * Included only by files built for AMX.
 */

#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/linear_layout.h"

enum {
    AMX_ROWS = 16,
    AMX_TILE = 1024,           /* bytes */
    AMX_ROW_BLOCK = 512,       /* rows that share one pass over the weights */
    AMX_GROUP_BLOCK = 32,      /* groups that pass while a chunk of x stays in the L2 cache */
    AMX_CHUNK_BLOCKS = 16,     /* blocks of 32 inputs whose B tiles stay in the L1 cache ... */
    AMX_CHUNK_BLOCKS_MAX = 18, /* ... or all, if there are no more than these */
};

/* The intrinsics of tile loads do not tell the compiler that they read memory: this makes it finish what it has to store there. */
static inline void amx_sees(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

/* Tiles 0..5 have the given number of rows (C and A), tiles 6 and 7 have 16 (B); all are 64 bytes wide. */
static inline void amx_configure(uint32_t rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i < 6 ? rows : 16);
    }
    amx_sees(&config);
    _tile_loadconfig(&config);
}

/* One chunk of inputs by one block of outputs by one block of rows. */
struct amx_chunk {
    const struct linear_args *args;
    uint32_t row_begin, n_rows, n_row_tiles;
    uint32_t group_begin, group_end;
    size_t block_begin, block_end;
    bool first, last;       /* of the chunks of these outputs */
    const uint8_t *x_tiles; /* [n_row_tiles - copied_from][block_end - block_begin] tiles */
    uint32_t copied_from;   /* row tiles from here on are read from x_tiles, not from args->x */
    const float *sums;      /* [n_row_tiles][n_blocks][16]: sums of x per block and row, or NULL */
    float *partial;         /* [AMX_GROUP_BLOCK][n_row_tiles] C tiles, unfinished */
    uint8_t *expand;        /* n_expand times AMX_CHUNK_BLOCKS_MAX tiles for expanded weights, or NULL */
};

static inline size_t amx_chunk_blocks(size_t n_blocks)
{
    return n_blocks <= AMX_CHUNK_BLOCKS_MAX ? n_blocks : AMX_CHUNK_BLOCKS;
}

static inline size_t amx_row_tiles(uint32_t n_rows)
{
    return ((size_t)(n_rows < AMX_ROW_BLOCK ? n_rows : AMX_ROW_BLOCK) + AMX_ROWS - 1) / AMX_ROWS;
}

/* n_expand: groups whose chunks of expanded weights are held */
static inline size_t amx_many_rows_scratch(const struct linear_shape *s, uint32_t n_rows, bool wants_sums,
                                           size_t n_expand)
{
    const size_t n_blocks = linear_n_blocks(s), tiles = amx_row_tiles(n_rows);
    return tiles * (amx_chunk_blocks(n_blocks) * AMX_TILE + AMX_GROUP_BLOCK * AMX_TILE +
                    (wants_sums ? n_blocks * AMX_ROWS * sizeof(float) : 0)) +
           n_expand * AMX_CHUNK_BLOCKS_MAX * AMX_TILE;
}

/* Where a row tile's A tiles lie: bytes from row to row, and from block to block. */
struct amx_x {
    const uint8_t *at;
    size_t row, block;
};

static inline struct amx_x amx_x_of(const struct amx_chunk *c, uint32_t row_tile)
{
    const struct linear_args *a = c->args;
    const size_t n_blocks = c->block_end - c->block_begin, row = c->row_begin + (size_t)row_tile * AMX_ROWS;
    if (row_tile >= c->copied_from)
        return (struct amx_x){ c->x_tiles + (row_tile - c->copied_from) * n_blocks * AMX_TILE, 64, AMX_TILE };
    return (struct amx_x){ (const uint8_t *)a->x + (row * a->x_stride + c->block_begin * LINEAR_BLOCK) * 2,
                           a->x_stride * 2, 64 };
}

static inline bool amx_copies_all(const struct linear_args *a)
{
    return a->x_stride * 2 % 2048 == 0;
}

static inline void amx_copy_x(const struct amx_chunk *c, uint8_t *tiles_out)
{
    const struct linear_args *a = c->args;
    const size_t n_blocks = c->block_end - c->block_begin;
    for (uint32_t r = c->copied_from * AMX_ROWS; r < c->n_row_tiles * AMX_ROWS; r++) {
        uint8_t *to = tiles_out + (r / AMX_ROWS - c->copied_from) * n_blocks * AMX_TILE + r % AMX_ROWS * 64;
        const uint16_t *x =
            (const uint16_t *)a->x + (c->row_begin + (size_t)r) * a->x_stride + c->block_begin * LINEAR_BLOCK;
        for (size_t b = 0; b < n_blocks; b++)
            _mm512_store_si512(to + b * AMX_TILE,
                               r < c->n_rows ? _mm512_load_si512(x + b * LINEAR_BLOCK) : _mm512_setzero_si512());
    }
    amx_sees(tiles_out);
}

/* Writes a finished C tile (16 rows of 16 floats) to where y has rows and outputs. */
static inline void amx_finish(const struct amx_chunk *c, uint32_t row_tile, uint32_t group, const float *tile)
{
    const struct linear_args *a = c->args;
    const uint32_t o = group * LINEAR_GROUP, r0 = row_tile * AMX_ROWS;
    const uint32_t outs = a->out_end - o < LINEAR_GROUP ? a->out_end - o : LINEAR_GROUP;
    const uint32_t rows = c->n_rows - r0 < AMX_ROWS ? c->n_rows - r0 : AMX_ROWS;
    const __mmask16 here = (__mmask16)((1u << outs) - 1);
    float *y = a->y + (c->row_begin + (size_t)r0) * a->y_stride + o;
    for (uint32_t r = 0; r < rows; r++, y += a->y_stride) {
        __m512 v = _mm512_load_ps(tile + r * LINEAR_GROUP);
        if (a->accumulate)
            v = _mm512_add_ps(_mm512_maskz_loadu_ps(here, y), v);
        _mm512_mask_storeu_ps(y, here, v);
    }
}

/* The unfinished C tile of a row tile and a group. Where one chunk is all there is, they are not kept from group to group. */
static inline float *amx_partial(const struct amx_chunk *c, uint32_t row_tile, uint32_t group)
{
    const size_t kept = c->first && c->last ? 0 : group - c->group_begin;
    return c->partial + (kept * c->n_row_tiles + row_tile) * (AMX_TILE / 4);
}

/* Whether a C tile lies wholly inside y and may be stored there as it is. */
static inline bool amx_is_plain(const struct amx_chunk *c, uint32_t row_tile, uint32_t group)
{
    return !c->args->accumulate && (row_tile + 1) * AMX_ROWS <= c->n_rows &&
           (group + 1) * LINEAR_GROUP <= c->args->out_end;
}

/* Asks for the line of y that row and group will be written to: y seldom is in a near cache, and its rows lie far apart. */
static inline void amx_expect_y(const struct amx_chunk *c, size_t row, uint32_t group)
{
    const float *y = c->args->y + (c->row_begin + row) * c->args->y_stride + (size_t)group * LINEAR_GROUP;
    __asm__ volatile("prefetchw %0" : : "m"(*y));
}

typedef void amx_chunk_fn(const struct amx_chunk *chunk);
/* Sums of x per block: [n_row_tiles][n_blocks][16]; zeros for rows that are not there. */
typedef void amx_sums_fn(const struct linear_args *a, uint32_t row_begin, uint32_t n_rows, size_t n_blocks,
                         float *sums_out);

static inline void amx_many_rows(const struct linear_args *a, amx_chunk_fn *run_chunk, amx_sums_fn *sum_x,
                                 size_t n_expand)
{
    const size_t n_blocks = linear_n_blocks(a->shape), step = amx_chunk_blocks(n_blocks),
                 tiles = amx_row_tiles(a->n_rows);
    const uint32_t groups_end = (a->out_end + LINEAR_GROUP - 1) / LINEAR_GROUP;
    uint8_t *x_tiles = a->scratch, *partial = x_tiles + tiles * step * AMX_TILE;
    uint8_t *expand = partial + tiles * AMX_GROUP_BLOCK * AMX_TILE;
    float *sums = (float *)(expand + n_expand * AMX_CHUNK_BLOCKS_MAX * AMX_TILE);
    struct amx_chunk c = { .args = a,
                           .x_tiles = x_tiles,
                           .partial = (float *)partial,
                           .expand = n_expand ? expand : NULL,
                           .sums = sum_x ? sums : NULL };
    amx_configure(AMX_ROWS);
    for (uint32_t r0 = 0; r0 < a->n_rows; r0 += AMX_ROW_BLOCK) {
        c.row_begin = r0;
        c.n_rows = a->n_rows - r0 < AMX_ROW_BLOCK ? a->n_rows - r0 : AMX_ROW_BLOCK;
        c.n_row_tiles = (c.n_rows + AMX_ROWS - 1) / AMX_ROWS;
        c.copied_from = amx_copies_all(a) ? 0 : c.n_rows / AMX_ROWS;
        if (sum_x)
            sum_x(a, r0, c.n_rows, n_blocks, sums);
        for (uint32_t g = a->out_begin / LINEAR_GROUP; g < groups_end; g += AMX_GROUP_BLOCK) {
            c.group_begin = g;
            c.group_end = groups_end - g < AMX_GROUP_BLOCK ? groups_end : g + AMX_GROUP_BLOCK;
            for (size_t b = 0; b < n_blocks; b += step) {
                c.block_begin = b;
                c.block_end = n_blocks - b < step ? n_blocks : b + step;
                c.first = b == 0;
                c.last = c.block_end == n_blocks;
                if (step < n_blocks ||
                    g == a->out_begin / LINEAR_GROUP) /* all of n_in in one chunk: one copy will do */
                    amx_copy_x(&c, x_tiles);
                run_chunk(&c);
            }
        }
    }
    _tile_release();
}

#endif
