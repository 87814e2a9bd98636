#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/x86/linear_tiles_amx.h"

/*
 * bf16 weights as they stand are AMX's B operand: y is one C tile accumulated over n_in, block by block. The order of an output's sum: blocks
 * ascending, inside a block the processor's.
 */

enum { PREFETCH = 4096 };

static const uint8_t *group_at(const struct linear_args *a, uint32_t group)
{
    return (const uint8_t *)a->packed + (size_t)group * linear_group_stride(WEIGHT_BF16, linear_n_blocks(a->shape));
}

static void prefetch_tile(const uint8_t *at)
{
    for (size_t i = 0; i < AMX_TILE; i += 64)
        _mm_prefetch((const char *)at + i, _MM_HINT_T0);
}

/* Up to 16 rows, n_groups (1..4) groups: streams of memory side by side, whose tile products hide each other's latency. */
static inline __attribute__((always_inline)) void few_rows(const struct linear_args *a, uint32_t group,
                                                           const int n_groups)
{
    const size_t n_blocks = linear_n_blocks(a->shape), stride = linear_group_stride(WEIGHT_BF16, n_blocks);
    const uint8_t *w = group_at(a, group);
    const uint16_t *x = a->x;
    const size_t x_bytes = a->x_stride * 2;
    float c[4][AMX_ROWS * LINEAR_GROUP] __attribute__((aligned(64)));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t b = 0; b < n_blocks; b++, w += AMX_TILE) {
        _tile_loadd(4, x + b * LINEAR_BLOCK, x_bytes);
        for (int g = 0; g < n_groups; g++)
            prefetch_tile(w + g * stride + PREFETCH);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (n_groups > 1) {
            _tile_loadd(7, w + stride, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (n_groups > 2) {
            _tile_loadd(6, w + 2 * stride, 64);
            _tile_dpbf16ps(2, 4, 6);
        }
        if (n_groups > 3) {
            _tile_loadd(7, w + 3 * stride, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    const struct amx_chunk whole = { .args = a, .n_rows = a->n_rows };
    for (int g = 0; g < n_groups; g++)
        amx_finish(&whole, 0, group + (uint32_t)g, c[g]);
}

static void run_few_rows(const struct linear_args *a)
{
    const uint32_t end = (a->out_end + LINEAR_GROUP - 1) / LINEAR_GROUP;
    uint32_t g = a->out_begin / LINEAR_GROUP;
    amx_configure(a->n_rows);
    for (; end - g >= 4; g += 4)
        few_rows(a, g, 4);
    for (; end - g >= 2; g += 2)
        few_rows(a, g, 2);
    if (g < end)
        few_rows(a, g, 1);
    _tile_release();
}

/* Weights to be asked for while others are in use: the same blocks of the two groups that come next. */
struct ahead {
    const uint8_t *at[2];
    size_t left, per_step;
};

static inline void ahead_step(void *ctx)
{
    struct ahead *f = ctx;
    size_t n = f->per_step < f->left ? f->per_step : f->left;
    f->left -= n;
    for (; n; n--) {
        _mm_prefetch((const char *)f->at[0], _MM_HINT_T1);
        _mm_prefetch((const char *)f->at[1], _MM_HINT_T1);
        f->at[0] += 64;
        f->at[1] += 64;
    }
}

static void run_chunk(const struct amx_chunk *c)
{
    const size_t n_blocks = c->block_end - c->block_begin, lines = n_blocks * AMX_TILE / 64;
    const size_t steps = (c->n_row_tiles + 1) / 2 * n_blocks;
    for (uint32_t g = c->group_begin; g < c->group_end; g += 2) {
        const bool two = g + 1 < c->group_end;
        const bool more = g + 3 < c->group_end;
        struct ahead ahead = { .per_step = (lines + steps - 1) / steps };
        if (more || !c->last) {
            /* the next groups of this chunk, or the first groups of the next chunk */
            const size_t at = (more ? c->block_begin : c->block_end) * AMX_TILE;
            ahead.at[0] = group_at(c->args, more ? g + 2 : c->group_begin) + at;
            ahead.at[1] = ahead.at[0] + linear_group_stride(WEIGHT_BF16, linear_n_blocks(c->args->shape));
            ahead.left = lines;
        }
        amx_chunk_groups(c, g, two, group_at(c->args, g) + c->block_begin * AMX_TILE,
                         linear_group_stride(WEIGHT_BF16, linear_n_blocks(c->args->shape)), ahead_step, &ahead);
    }
}

bool linear_accepts_bf16_amx(const struct linear_shape *shape)
{
    return shape->x == DTYPE_BF16 && shape->codec == WEIGHT_BF16;
}

size_t linear_scratch_bf16_amx(const struct linear_shape *shape, uint32_t n_rows)
{
    return n_rows <= AMX_ROWS ? 0 : amx_many_rows_scratch(shape, n_rows, false, 0);
}

void linear_run_bf16_amx(const struct linear_args *a)
{
    if (a->n_rows == 0)
        return;
    if (a->n_rows <= AMX_ROWS)
        run_few_rows(a);
    else
        amx_many_rows(a, run_chunk, NULL, 0);
}
