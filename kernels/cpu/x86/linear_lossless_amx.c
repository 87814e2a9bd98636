#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/x86/linear_tiles_amx.h"
#include "kernels/cpu/x86/lossless_vbmi2.h"

/*
 * lossless-fast weights (model/lossless.h) decoded in registers to rows of AMX's B operand, and then multiplied as linear_bf16_amx.c does: the
 * bits are those of the same weights in bf16. One row goes without tiles, as in linear_one_amx.c.
 */

#define INLINE static inline __attribute__((always_inline))

enum { PREFETCH = 2560, PREFETCH_ESCAPES = 256 };

INLINE void prefetch(const uint32_t bits, const struct lossless_group *g, size_t b)
{
    const uint8_t *at = g->planes + b * lossless_block_bytes(bits) + PREFETCH;
    for (size_t i = 0; i < lossless_block_bytes(bits); i += 64)
        _mm_prefetch((const char *)at + i, _MM_HINT_T0);
    _mm_prefetch((const char *)g->escapes + lossless_escapes_before(g->records[b]) + PREFETCH_ESCAPES, _MM_HINT_T0);
}

INLINE struct lossless_group group_at(const struct linear_args *a, uint32_t group)
{
    return linear_lossless_group(a->shape, (const uint8_t *)a->packed + group * linear_lossless_stride(a->shape));
}

/* ---- one row ---- */

INLINE __m512 group_row(const uint32_t bits, const struct lossless_group *g, const float *x)
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512 acc = _mm512_setzero_ps();
    for (size_t b = 0; b < g->n_blocks; b++, x += LINEAR_BLOCK) {
        struct lossless_coded c = lossless_coded_block(bits, g, b);
        __m512 e = _mm512_setzero_ps(), o = e;
        prefetch(bits, g, b);
#pragma GCC unroll 8
        for (unsigned p = 0; p < 8; p++) {
            __m512i rows[2];
            lossless_coded_step(bits, &c, p, rows);
#pragma GCC unroll 2
            for (unsigned i = 0; i < 2; i++) {
                const float *at = x + 4 * p + 2 * i;
                e = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(rows[i], 16)), _mm512_set1_ps(at[0]), e);
                o = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(rows[i], upper)), _mm512_set1_ps(at[1]), o);
            }
        }
        acc = _mm512_add_ps(acc, _mm512_add_ps(e, o));
    }
    return acc;
}

INLINE void one_row(const struct linear_args *a, const uint32_t bits)
{
    const struct amx_chunk whole = { .args = a, .n_rows = 1 };
    const uint16_t *x = a->x;
    float *wide = a->scratch;
    for (size_t k = 0; k < linear_n_blocks(a->shape) * LINEAR_BLOCK; k += 16) {
        const __m512i v = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(x + k)));
        _mm512_store_si512(wide + k, _mm512_slli_epi32(v, 16));
    }
    for (uint32_t g = a->out_begin / LINEAR_GROUP; g * LINEAR_GROUP < a->out_end; g++) {
        const struct lossless_group group = group_at(a, g);
        float y[LINEAR_GROUP] __attribute__((aligned(64)));
        _mm512_store_ps(y, group_row(bits, &group, wide));
        amx_finish(&whole, 0, g, y);
    }
}

/* ---- up to 16 rows: four groups side by side; blocks are decoded one round before they are multiplied ---- */

INLINE void few_groups(const struct linear_args *a, const uint32_t bits, uint32_t group, const int n_groups)
{
    const size_t n_blocks = linear_n_blocks(a->shape), x_bytes = a->x_stride * 2;
    const uint16_t *x = a->x;
    const struct amx_chunk whole = { .args = a, .n_rows = a->n_rows };
    uint8_t tiles[2][4][AMX_TILE] __attribute__((aligned(64)));
    float c[4][AMX_ROWS * LINEAR_GROUP] __attribute__((aligned(64)));
    struct lossless_group g[4];
#pragma GCC unroll 4
    for (int i = 0; i < n_groups; i++)
        g[i] = group_at(a, group + (uint32_t)i);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t b = 0; b <= n_blocks; b++) {
        const uint8_t(*ready)[AMX_TILE] = (const void *)tiles[(b + 1) % 2];
        if (b < n_blocks) {
#pragma GCC unroll 4
            for (int i = 0; i < n_groups; i++) {
                prefetch(bits, &g[i], b);
                lossless_decode_vbmi2(bits, &g[i], b, tiles[b % 2][i]);
            }
            amx_sees(tiles);
        }
        if (b == 0)
            continue;
        _tile_loadd(4, x + (b - 1) * LINEAR_BLOCK, x_bytes);
        _tile_loadd(6, ready[0], 64);
        _tile_dpbf16ps(0, 4, 6);
        if (n_groups > 1) {
            _tile_loadd(7, ready[1], 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (n_groups > 2) {
            _tile_loadd(6, ready[2], 64);
            _tile_dpbf16ps(2, 4, 6);
        }
        if (n_groups > 3) {
            _tile_loadd(7, ready[3], 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
#pragma GCC unroll 4
    for (int i = 0; i < n_groups; i++)
        amx_finish(&whole, 0, group + (uint32_t)i, c[i]);
}

INLINE void few_rows(const struct linear_args *a, const uint32_t bits)
{
    const uint32_t end = (a->out_end + LINEAR_GROUP - 1) / LINEAR_GROUP;
    uint32_t g = a->out_begin / LINEAR_GROUP;
    amx_configure(a->n_rows);
    for (; end - g >= 4; g += 4)
        few_groups(a, bits, g, 4);
    for (; g < end; g++)
        few_groups(a, bits, g, 1);
    _tile_release();
}

/* ---- more rows: a pair of groups is multiplied while the next is decoded ---- */

enum { EXPANDED = 4 }; /* groups: this pair and the next */

struct ahead {
    struct lossless_group group[2];
    const uint8_t
        *later[2]; /* planes of the first block that each group's successor has in the chunk, asked for meanwhile */
    uint8_t *tiles;
    size_t block_begin, n_blocks, n, done; /* n blocks of both groups to be decoded, so many are */
    size_t steps, credit;
};

INLINE void ahead_decode(const uint32_t bits, struct ahead *f)
{
    const size_t which = f->done >= f->n_blocks, b = f->done - which * f->n_blocks;
    const uint8_t *later = f->later[which] + b * lossless_block_bytes(bits);
    for (size_t i = 0; i < lossless_block_bytes(bits); i += 64)
        _mm_prefetch((const char *)later + i, _MM_HINT_T1);
    lossless_decode_vbmi2(bits, &f->group[which], f->block_begin + b,
                          f->tiles + (which * AMX_CHUNK_BLOCKS_MAX + b) * AMX_TILE);
    f->done++;
}

INLINE void ahead_step(const uint32_t bits, struct ahead *f)
{
    f->credit += f->n;
    if (f->credit < f->steps)
        return;
    for (; f->credit >= f->steps && f->done < f->n; f->credit -= f->steps)
        ahead_decode(bits, f);
    amx_sees(f->tiles);
}

static void ahead_step_3(void *f)
{
    ahead_step(3, f);
}

static void ahead_step_4(void *f)
{
    ahead_step(4, f);
}

/* What comes after a group: its next but one in this chunk, or at the chunk's end the first ones in the next. */
INLINE const uint8_t *later_planes(const struct amx_chunk *c, const uint32_t bits, uint32_t group)
{
    const bool more = group + 2 < c->group_end;
    const struct lossless_group g = group_at(c->args, more ? group + 2 : c->group_begin + group % 2);
    return g.planes + (more || c->last ? c->block_begin : c->block_end) * lossless_block_bytes(bits);
}

INLINE void run_chunk(const struct amx_chunk *c, const uint32_t bits)
{
    const size_t n_blocks = c->block_end - c->block_begin, pair_bytes = 2 * AMX_CHUNK_BLOCKS_MAX * AMX_TILE;
    struct ahead f = { .block_begin = c->block_begin,
                       .n_blocks = n_blocks,
                       .steps = (size_t)(c->n_row_tiles + 1) / 2 * n_blocks };
    size_t turn = 0;
    for (uint32_t g = c->group_begin; g < c->group_end + 2; g += 2, turn++) {
        /* the pair from g on is decoded while the one before is multiplied; nothing is before the first */
        f.n = f.done = f.credit = 0;
        f.tiles = c->expand + turn % 2 * pair_bytes;
        for (uint32_t i = 0; i < 2 && g + i < c->group_end; i++) {
            f.group[i] = group_at(c->args, g + i);
            f.later[i] = later_planes(c, bits, g + i);
            f.n += n_blocks;
        }
        if (turn)
            amx_chunk_groups(c, g - 2, g - 1 < c->group_end, c->expand + (turn + 1) % 2 * pair_bytes,
                             AMX_CHUNK_BLOCKS_MAX * AMX_TILE, bits == 3 ? ahead_step_3 : ahead_step_4, &f);
        while (f.done < f.n)
            ahead_decode(bits, &f);
        amx_sees(f.tiles);
    }
}

static void run_chunk_3(const struct amx_chunk *c)
{
    run_chunk(c, 3);
}

static void run_chunk_4(const struct amx_chunk *c)
{
    run_chunk(c, 4);
}

bool linear_accepts_lossless_amx(const struct linear_shape *shape)
{
    return shape->x == DTYPE_BF16 && shape->codec == WEIGHT_LOSSLESS_FAST;
}

size_t linear_scratch_lossless_amx(const struct linear_shape *shape, uint32_t n_rows)
{
    const size_t one = linear_n_blocks(shape) * LINEAR_BLOCK * sizeof(float);
    const size_t many = n_rows > AMX_ROWS ? amx_many_rows_scratch(shape, n_rows, false, EXPANDED) : 0;
    return many > one ? many : one;
}

void linear_run_lossless_amx(const struct linear_args *a)
{
    const bool three = a->shape->class_bits == 3;
    if (a->n_rows == 0)
        return;
    if (a->n_rows > AMX_ROWS)
        amx_many_rows(a, three ? run_chunk_3 : run_chunk_4, NULL, EXPANDED);
    else if (a->n_rows > 1 && three)
        few_rows(a, 3);
    else if (a->n_rows > 1)
        few_rows(a, 4);
    else if (three)
        one_row(a, 3);
    else
        one_row(a, 4);
}
