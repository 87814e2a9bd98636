#ifndef LONGSPAN_KERNELS_CPU_LINEAR_ROWS_H
#define LONGSPAN_KERNELS_CPU_LINEAR_ROWS_H

/*
 * What the vector variants (AVX2, AVX-512) of linear share: x widened to float32 and summed per block, and the walk over row blocks, groups
 * and tiles of rows. A lane is an output, so nothing is summed across lanes. Order of an output's sum, whatever the tile:
 *   acc = 0; for each block: t = 0; for k ascending: t = fma(q[k], x[k], t);
 *   then acc + t (plain floats), or acc = fma(d, t, acc) (Q8_0, Q4_0), acc = fma(m, sum of x, fma(d, t, acc)) (Q4_1),
 *   with d and m of struct weight_parts, scale and min multiplied in; of Q6_K each half of a block so, with its own t and d.
 * Included by files built for one ISA; everything here is plain C and computes the same bits in each.
 */

#include "kernels/cpu/linear_layout.h"

enum { LINEAR_ROW_BLOCK = 32 };

/* One call of the inner kernel: some rows by one group. */
struct linear_tile {
    const struct linear_shape *shape;
    const uint8_t *group;
    const uint8_t *expanded; /* the group in bf16, for functions that have `expand` */
    size_t n_blocks;
    const float *x; /* [rows][x_stride] */
    size_t x_stride;
    const float *sums; /* [rows][n_blocks]: sums of x per block, for codecs with a minimum */
    float *y;          /* [rows][y_stride], of the group's first output */
    size_t y_stride;
    uint32_t n_here; /* outputs of the group that exist */
    bool accumulate;
};

typedef void linear_tile_fn(const struct linear_tile *tile);

/* Inner kernels of a codec for 1, 2, 4 ... rows; NULL past the largest. */
struct linear_tile_fns {
    linear_tile_fn *by_log2_rows[6];
    bool wants_sums;
    /* Expands a group's blocks to bf16, once for a row block, in the scratch behind what linear_rows_scratch counts. NULL: it is not wanted. */
    void (*expand)(const struct linear_shape *shape, const uint8_t *packed, uint8_t *out);
};

static inline size_t linear_rows_scratch(const struct linear_shape *s, uint32_t n_rows, bool wants_sums)
{
    const size_t rows = n_rows < LINEAR_ROW_BLOCK ? n_rows : LINEAR_ROW_BLOCK, n_blocks = linear_n_blocks(s);
    const size_t floats = (s->x == DTYPE_F32 ? 0 : n_blocks * LINEAR_BLOCK) + (wants_sums ? n_blocks : 0);
    return (rows * floats * sizeof(float) + 63) / 64 * 64;
}

/* The sum of 32 in a fixed order: 8 lanes of 4, then halves. */
static inline float linear_sum32(const float *x)
{
    float s[8];
    for (int i = 0; i < 8; i++)
        s[i] = (x[i] + x[i + 8]) + (x[i + 16] + x[i + 24]);
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static inline void linear_rows_prepare(const struct linear_args *a, uint32_t r0, uint32_t rows, bool wants_sums,
                                       struct linear_tile *tile)
{
    const size_t padded = tile->n_blocks * LINEAR_BLOCK;
    float *free_scratch = a->scratch;
    if (a->shape->x == DTYPE_F32) {
        tile->x = (const float *)a->x + r0 * a->x_stride;
        tile->x_stride = a->x_stride;
    } else {
        for (uint32_t r = 0; r < rows; r++) {
            const uint16_t *from = (const uint16_t *)a->x + (r0 + r) * a->x_stride;
            uint32_t *to = (uint32_t *)free_scratch + r * padded;
            for (size_t k = 0; k < padded; k++)
                to[k] = (uint32_t)from[k] << 16;
        }
        tile->x = free_scratch;
        tile->x_stride = padded;
        free_scratch += rows * padded;
    }
    tile->sums = free_scratch;
    if (!wants_sums)
        return;
    for (uint32_t r = 0; r < rows; r++)
        for (size_t b = 0; b < tile->n_blocks; b++)
            free_scratch[r * tile->n_blocks + b] = linear_sum32(tile->x + r * tile->x_stride + b * LINEAR_BLOCK);
}

static inline void linear_rows_run(const struct linear_args *a, const struct linear_tile_fns *fns)
{
    const struct linear_shape *s = a->shape;
    const size_t stride = linear_group_bytes(s);
    for (uint32_t r0 = 0; r0 < a->n_rows; r0 += LINEAR_ROW_BLOCK) {
        const uint32_t rows = a->n_rows - r0 < LINEAR_ROW_BLOCK ? a->n_rows - r0 : LINEAR_ROW_BLOCK;
        struct linear_tile block = {
            .shape = s, .n_blocks = linear_n_blocks(s), .y_stride = a->y_stride, .accumulate = a->accumulate
        };
        linear_rows_prepare(a, r0, rows, fns->wants_sums, &block);
        for (uint32_t o = a->out_begin; o < a->out_end; o += LINEAR_GROUP) {
            block.group = (const uint8_t *)a->packed + o / LINEAR_GROUP * stride;
            if (fns->expand) {
                uint8_t *room = (uint8_t *)a->scratch + linear_rows_scratch(s, a->n_rows, fns->wants_sums);
                fns->expand(s, block.group, room);
                block.expanded = room;
            }
            block.n_here = a->out_end - o < LINEAR_GROUP ? a->out_end - o : LINEAR_GROUP;
            for (uint32_t r = 0; r < rows;) {
                int log2_rows = 0;
                while (2u << log2_rows <= rows - r && fns->by_log2_rows[log2_rows + 1])
                    log2_rows++;
                struct linear_tile tile = block;
                tile.x += r * block.x_stride;
                tile.sums += r * block.n_blocks;
                tile.y = a->y + (r0 + r) * a->y_stride + o;
                fns->by_log2_rows[log2_rows](&tile);
                r += 1u << log2_rows;
            }
        }
    }
}

/* Instantiates kernel(tile, codec, rows), an always_inline function, for every codec and 1, 2, 4 (, 8, 16) rows. */
#define LINEAR_TILE_FN(kernel, codec, rows)                                                                            \
    static void kernel##_##codec##_##rows(const struct linear_tile *tile)                                              \
    {                                                                                                                  \
        kernel(tile, WEIGHT_##codec, rows);                                                                            \
    }

#endif
