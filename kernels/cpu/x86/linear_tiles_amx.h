#ifndef LONGSPAN_KERNELS_CPU_X86_LINEAR_TILES_AMX_H
#define LONGSPAN_KERNELS_CPU_X86_LINEAR_TILES_AMX_H

/*
 * Products of many rows with bf16 B tiles, as they are stored or as they were decoded: y is one C tile accumulated over n_in, block by block.
 * The order of an output's sum: blocks ascending, inside a block the processor's.
 *
 * Included only by files built for AMX.
 */

#include "kernels/cpu/linear_amx.h"

/* What is done between tile operations, for weights that come next. */
typedef void amx_step_fn(void *ctx);

/*
 * Two row tiles by two groups (or one of either): C in tiles 0..3, A in 4 and 5, B in 6 and 7. w: B tiles of the chunk's blocks of `group`, those of
 * the next one w_next bytes later. step is called once a block.
 */
static inline __attribute__((always_inline)) void amx_chunk_tiles(const struct amx_chunk *c, uint32_t row_tile,
                                                                  uint32_t group, const uint8_t *w, size_t w_next,
                                                                  amx_step_fn *step, void *ctx, const int n_row_tiles,
                                                                  const int n_groups)
{
    const size_t n_blocks = c->block_end - c->block_begin;
    const struct amx_x x0 = amx_x_of(c, row_tile), x1 = n_row_tiles > 1 ? amx_x_of(c, row_tile + 1) : x0;
    const uint8_t *x_at = x0.at, *x1_at = x1.at;
    float *const c0 = amx_partial(c, row_tile, group), *const c2 = c0 + AMX_TILE / 4;
    float *const c1 = amx_partial(c, row_tile, group + 1), *const c3 = c1 + AMX_TILE / 4;
    if (c->first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c0, 64);
        if (n_groups > 1)
            _tile_loadd(1, c1, 64);
        if (n_row_tiles > 1)
            _tile_loadd(2, c2, 64);
        if (n_row_tiles > 1 && n_groups > 1)
            _tile_loadd(3, c3, 64);
    }
    const bool expects =
        c->last && amx_is_plain(c, row_tile + (uint32_t)n_row_tiles - 1, group + (uint32_t)n_groups - 1);
    for (size_t b = 0; b < n_blocks; b++, x_at += x0.block, x1_at += x1.block, w += AMX_TILE) {
        _tile_loadd(4, x_at, x0.row);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (n_groups > 1) {
            _tile_loadd(7, w + w_next, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (n_row_tiles > 1) {
            _tile_loadd(5, x1_at, x1.row);
            _tile_dpbf16ps(2, 5, 6);
            if (n_groups > 1)
                _tile_dpbf16ps(3, 5, 7);
        }
        step(ctx);
        if (expects && b < AMX_ROWS) {
            amx_expect_y(c, (size_t)row_tile * AMX_ROWS + b, group);
            if (n_groups > 1)
                amx_expect_y(c, (size_t)row_tile * AMX_ROWS + b, group + 1);
            if (n_row_tiles > 1)
                amx_expect_y(c, (size_t)(row_tile + 1) * AMX_ROWS + b, group);
            if (n_row_tiles > 1 && n_groups > 1)
                amx_expect_y(c, (size_t)(row_tile + 1) * AMX_ROWS + b, group + 1);
        }
    }
    /* A finished tile goes straight to y where it fits; else through memory of ours. */
    for (int t = 0; t < n_row_tiles; t++)
        for (int g = 0; g < n_groups; g++) {
            const uint32_t rt = row_tile + (uint32_t)t, gr = group + (uint32_t)g;
            const bool direct = c->last && amx_is_plain(c, rt, gr);
            float *to = t ? (g ? c3 : c2) : (g ? c1 : c0);
            size_t to_stride = 64;
            if (direct) {
                to =
                    c->args->y + (c->row_begin + (size_t)rt * AMX_ROWS) * c->args->y_stride + (size_t)gr * LINEAR_GROUP;
                to_stride = c->args->y_stride * 4;
            }
            switch (2 * t + g) {
            case 0:
                _tile_stored(0, to, to_stride);
                break;
            case 1:
                _tile_stored(1, to, to_stride);
                break;
            case 2:
                _tile_stored(2, to, to_stride);
                break;
            default:
                _tile_stored(3, to, to_stride);
            }
            if (c->last && !direct)
                amx_finish(c, rt, gr, to);
        }
}

/* All row tiles of the chunk by group `group`, and the next one if two. */
static inline __attribute__((always_inline)) void amx_chunk_groups(const struct amx_chunk *c, uint32_t group, bool two,
                                                                   const uint8_t *w, size_t w_next, amx_step_fn *step,
                                                                   void *ctx)
{
    uint32_t t = 0;
    for (; t + 1 < c->n_row_tiles; t += 2) {
        if (two)
            amx_chunk_tiles(c, t, group, w, w_next, step, ctx, 2, 2);
        else
            amx_chunk_tiles(c, t, group, w, w_next, step, ctx, 2, 1);
    }
    if (t < c->n_row_tiles) {
        if (two)
            amx_chunk_tiles(c, t, group, w, w_next, step, ctx, 1, 2);
        else
            amx_chunk_tiles(c, t, group, w, w_next, step, ctx, 1, 1);
    }
}

#endif
