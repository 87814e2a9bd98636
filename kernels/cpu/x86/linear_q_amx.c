#include "kernels/cpu/linear_variants.h"

#include "kernels/cpu/linear_amx.h"
#include "kernels/cpu/linear_codes_amx.h"

/*
 * Q8_0, and Q4 and Q5 types, by AMX without rounding a weight: integer codes are exact in bf16. A block of codes is expanded into a B tile,
 * multiplied into a C tile that starts at zero, and scaled in float32. Codes of four bits are expanded to 16 + q, of five to 32 + q, which
 * takes shifts and masks; what that is too much goes into the minimum. Order of an output's sum, for blocks ascending:
 *   Q8_0  acc = fma(d, C, acc)                             C = sum of q x
 *   Q4    acc = fma(m', sum of x, fma(d, C, acc))          C = sum of (16 + q) x, m' = m - 16 d (Q4_1), -24 d (Q4_0)
 *   Q5    likewise                                         C = sum of (32 + q) x, m' = m - 32 d (Q5_1), -48 d (Q5_0)
 * with d and m of struct weight_parts (Q4_K, Q5_K: d times scale, -m times min).
 */

#define INLINE static inline __attribute__((always_inline))

enum { PREFETCH = 2560 };

/*
 * Sums of x over a block, in a fixed order: input 2i to 2i+1, then lanes to lanes half a vector away. Of one row, and of 16 rows at once by
 * the same additions.
 */
INLINE __m512 sum_pairs(const uint16_t *x)
{
    const __m512i pair = _mm512_load_si512(x);
    return _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)),
                         _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000u))));
}

static float sum_block(const uint16_t *x)
{
    const __m512 s16 = sum_pairs(x);
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(s16), _mm512_extractf32x8_ps(s16, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* Lanes of a row: 16 of one vector become 8 of a vector of two rows, and so on. */
INLINE __m512 fold8(__m512 a, __m512 b) /* quarters 01 | 23 of a and of b */
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

INLINE __m512 fold4(__m512 a, __m512 b) /* quarters 0 | 1 and 2 | 3 */
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

INLINE __m512 fold2(__m512 a, __m512 b) /* in each quarter, pairs 0 | 1 */
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
}

INLINE __m512 fold1(__m512 a, __m512 b) /* in each quarter, lanes 0 | 1 and 2 | 3 */
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

INLINE void sum_block16(const uint16_t *x, size_t stride, float *sums_out)
{
    __m512 s4[4], s2[2];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) { /* quarter q of s4[i] is row 4q + i */
        const __m512 a = fold8(sum_pairs(x + i * stride), sum_pairs(x + (4 + i) * stride));
        const __m512 b = fold8(sum_pairs(x + (8 + i) * stride), sum_pairs(x + (12 + i) * stride));
        s4[i] = fold4(a, b);
    }
    s2[0] = fold2(s4[0], s4[1]);
    s2[1] = fold2(s4[2], s4[3]);
    _mm512_storeu_ps(sums_out, fold1(s2[0], s2[1]));
}

static void sum_x(const struct linear_args *a, uint32_t row_begin, uint32_t n_rows, size_t n_blocks, float *sums_out)
{
    for (uint32_t r0 = 0; r0 < n_rows; r0 += AMX_ROWS, sums_out += n_blocks * AMX_ROWS) {
        const uint16_t *x = (const uint16_t *)a->x + ((size_t)row_begin + r0) * a->x_stride;
        const uint32_t rows = n_rows - r0 < AMX_ROWS ? n_rows - r0 : AMX_ROWS;
        for (size_t b = 0; b < n_blocks; b++, x += LINEAR_BLOCK) {
            float *to = sums_out + b * AMX_ROWS;
            if (rows == AMX_ROWS) {
                sum_block16(x, a->x_stride, to);
                continue;
            }
            _mm512_storeu_ps(to, _mm512_setzero_ps());
            for (uint32_t r = 0; r < rows; r++)
                to[r] = sum_block(x + r * a->x_stride);
        }
    }
}

/* ---- 2 to 16 rows; one row: linear_one_amx.c ---- */

/*
 * The pairs of blocks of all groups are one stream. What lies between expanding a pair and adding its products, and how many pairs later each
 * step comes, so that none waits for the one before; the stream does not end with a group, which may be a few pairs only.
 */
enum { PIPE_SLOTS = 4, PIPE_MULTIPLY = 1, PIPE_STORE = 2, PIPE_ADD = 4 };

/* Half a page lies between a pair's weights and what is read while they are written: at the same place in a page, loads wait for stores. */
struct few_pipe {
    uint8_t b[PIPE_SLOTS][2][AMX_TILE]; /* expanded weights */
    uint8_t apart[2 * AMX_TILE];
    float c[PIPE_SLOTS][2][AMX_ROWS * LINEAR_GROUP]; /* products */
    float acc[AMX_ROWS * LINEAR_GROUP];
} __attribute__((aligned(64)));

/* The second half of an odd number's last pair is zeros: expanded for nothing, never multiplied. */
INLINE void few_expand(enum weight_codec codec, const struct linear_at *at, uint8_t (*b)[AMX_TILE])
{
    const uint8_t *codes = linear_codes(codec, at->group, 2 * at->unit);
    for (size_t i = 0; i < linear_pair_bytes(codec); i += 64)
        _mm_prefetch((const char *)codes + PREFETCH + i, _MM_HINT_T0);
    linear_expand(codec, codes, b[0]);
    linear_expand(codec, codes + linear_codes_bytes(codec), b[1]);
}

/* C of even places is in tiles 0 and 1, of odd ones in 2 and 3: one pair is stored while the next is multiplied. */
#define FEW_MULTIPLY(c0, c1)                                                                                           \
    do {                                                                                                               \
        _tile_zero(c0);                                                                                                \
        _tile_loadd(4, x, a->x_stride * 2);                                                                            \
        _tile_loadd(6, b[0], 64);                                                                                      \
        _tile_dpbf16ps(c0, 4, 6);                                                                                      \
        if (whole) {                                                                                                   \
            _tile_zero(c1);                                                                                            \
            _tile_loadd(5, x + LINEAR_BLOCK, a->x_stride * 2);                                                         \
            _tile_loadd(7, b[1], 64);                                                                                  \
            _tile_dpbf16ps(c1, 5, 7);                                                                                  \
        }                                                                                                              \
    } while (0)

INLINE void few_multiply(const struct linear_args *a, const struct linear_at *at, bool odd,
                         const uint8_t (*b)[AMX_TILE])
{
    const uint16_t *x = (const uint16_t *)a->x + at->unit * 2 * LINEAR_BLOCK;
    const bool whole = 2 * at->unit + 1 < linear_n_blocks(a->shape);
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

/* Adds a pair's products, or the last block's, to the sums of `room` rows; those beyond n_rows are never looked at. */
INLINE void few_add(enum weight_codec codec, const struct linear_at *at, const float (*c)[AMX_ROWS * LINEAR_GROUP],
                    const float *sums, __m512 *acc, const uint32_t room, const int n)
{
    const size_t block = 2 * at->unit;
    __m512 d[2], m[2];
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        d[i] = linear_load_d(codec, at->group, block + (size_t)i, 0);
        m[i] = linear_load_m(codec, at->group, block + (size_t)i, d[i]);
    }
#pragma GCC unroll 16
    for (uint32_t r = 0; r < room; r++) {
#pragma GCC unroll 2
        for (int i = 0; i < n; i++) {
            acc[r] = _mm512_fmadd_ps(d[i], _mm512_load_ps(c[i] + r * LINEAR_GROUP), acc[r]);
            if (linear_has_min(codec))
                acc[r] = _mm512_fmadd_ps(m[i], _mm512_set1_ps(sums[(block + (size_t)i) * AMX_ROWS + r]), acc[r]);
        }
    }
}

/* room: 4, 8 or 16, not less than the rows: how many sums are held in registers */
INLINE void few_rows(const struct linear_args *a, enum weight_codec codec, const uint32_t room)
{
    const size_t n_blocks = linear_n_blocks(a->shape), n_pairs = (n_blocks + 1) / 2,
                 stride = linear_group_bytes(a->shape);
    const struct amx_chunk whole = { .args = a, .n_rows = a->n_rows };
    const uint32_t begin = a->out_begin / LINEAR_GROUP, end = (a->out_end + LINEAR_GROUP - 1) / LINEAR_GROUP;
    const size_t total = (end - begin) * n_pairs;
    const struct linear_at first = { (const uint8_t *)a->packed + begin * stride, begin, 0 };
    struct linear_at expanded = first, multiplied = first, added = first;
    struct few_pipe p;
    __m512 acc[AMX_ROWS];
#pragma GCC unroll 16
    for (uint32_t r = 0; r < room; r++)
        acc[r] = _mm512_setzero_ps();
    memset(p.c, 0, sizeof p.c);
    amx_configure(a->n_rows);
    for (size_t i = 0; i < total + PIPE_ADD; i++) {
        if (i < total) {
            few_expand(codec, &expanded, p.b[i % PIPE_SLOTS]);
            linear_next(&expanded, n_pairs, stride);
        }
        if (i >= PIPE_ADD) {
            const float(*c)[AMX_ROWS * LINEAR_GROUP] = (const void *)p.c[(i - PIPE_ADD) % PIPE_SLOTS];
            if (2 * added.unit + 1 < n_blocks)
                few_add(codec, &added, c, a->scratch, acc, room, 2);
            else
                few_add(codec, &added, c, a->scratch, acc, room, 1);
            if (added.unit + 1 == n_pairs) {
#pragma GCC unroll 16
                for (uint32_t r = 0; r < room; r++) {
                    _mm512_store_ps(p.acc + r * LINEAR_GROUP, acc[r]);
                    acc[r] = _mm512_setzero_ps();
                }
                amx_finish(&whole, 0, added.g, p.acc);
            }
            linear_next(&added, n_pairs, stride);
        }
        if (i >= PIPE_MULTIPLY && i - PIPE_MULTIPLY < total) {
            const size_t at = i - PIPE_MULTIPLY;
            few_multiply(a, &multiplied, at % 2, (const void *)p.b[at % PIPE_SLOTS]);
            linear_next(&multiplied, n_pairs, stride);
        }
        if (i >= PIPE_STORE && i - PIPE_STORE < total)
            few_store((i - PIPE_STORE) % 2, p.c[(i - PIPE_STORE) % PIPE_SLOTS]);
    }
    _tile_release();
}

/* ---- more rows ---- */

enum { HELD = 4 }; /* blocks whose B tiles stay in the tile registers while all row tiles pass */

/* Products of two row tiles: one is being made while the other is added up. */
struct products {
    float c[2][HELD][AMX_ROWS * LINEAR_GROUP];
} __attribute__((aligned(64)));

/* What the products of the blocks held are scaled with. */
struct held {
    __m512 d[HELD], m[HELD];
};

/* Where a row tile's unfinished sums come from and go to; rows are 16 floats apart, and to_stride. */
struct sums_place {
    const float *from;
    float *to;
    size_t to_stride;
};

/* The scaled products of rows r0 .. r0+3 of a row tile are added up, block by block. sums: of x, [n][16]. */
INLINE void add_products(enum weight_codec codec, const struct held *h, float (*c)[AMX_ROWS * LINEAR_GROUP],
                         const float *sums, const struct sums_place *place, const int r0, const int n)
{
#pragma GCC unroll 4
    for (int r = r0; r < r0 + 4; r++) {
        __m512 v = _mm512_load_ps(place->from + r * LINEAR_GROUP);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            v = _mm512_fmadd_ps(h->d[i], _mm512_load_ps(c[i] + r * LINEAR_GROUP), v);
            if (linear_has_min(codec))
                v = _mm512_fmadd_ps(h->m[i], _mm512_set1_ps(sums[i * AMX_ROWS + r]), v);
        }
        _mm512_storeu_ps(place->to + (size_t)r * place->to_stride, v);
    }
}

static const float zeros[AMX_ROWS * LINEAR_GROUP] __attribute__((aligned(64)));

/* Sums stay in memory of ours between chunks; the last go to y where they fit as they are. */
INLINE struct sums_place place_of(const struct amx_chunk *c, uint32_t row_tile, uint32_t group, float *acc, bool fresh,
                                  bool final)
{
    const struct linear_args *a = c->args;
    struct sums_place p = { .from = fresh ? zeros : acc, .to = acc, .to_stride = LINEAR_GROUP };
    if (final && amx_is_plain(c, row_tile, group)) {
        p.to = a->y + (c->row_begin + (size_t)row_tile * AMX_ROWS) * a->y_stride + (size_t)group * LINEAR_GROUP;
        p.to_stride = a->y_stride;
    }
    return p;
}

/*
 * n (1..4) blocks from `first` of the chunk, all row tiles, by one group: C in tiles 0 and 1, A in 2 and 3, B in 4..7. The products of the
 * row tile before are added between this one's tile operations, which hides both.
 */
INLINE void chunk_blocks(const struct amx_chunk *c, enum weight_codec codec, const uint8_t *w, uint32_t group,
                         size_t first, struct products *p, const int n)
{
    const size_t b0 = c->block_begin + first, n_blocks = linear_n_blocks(c->args->shape);
    const bool fresh = b0 == 0, final = b0 + (size_t)n == n_blocks;
    const uint8_t *b = c->expand + first * AMX_TILE;
    float *acc = amx_partial(c, 0, group);
    const float *sums = linear_has_min(codec) ? c->sums + b0 * AMX_ROWS : NULL;
    struct sums_place place = { 0 };
    struct held h;
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        h.d[i] = linear_load_d(codec, w, b0 + (size_t)i, 0);
        h.m[i] = linear_load_m(codec, w, b0 + (size_t)i, h.d[i]);
    }
    _tile_loadd(4, b, 64);
    if (n > 1)
        _tile_loadd(5, b + AMX_TILE, 64);
    if (n > 2)
        _tile_loadd(6, b + 2 * AMX_TILE, 64);
    if (n > 3)
        _tile_loadd(7, b + 3 * AMX_TILE, 64);
    for (uint32_t t = 0; t <= c->n_row_tiles; t++) {
        float(*to)[AMX_ROWS * LINEAR_GROUP] = p->c[t % 2], (*from)[AMX_ROWS * LINEAR_GROUP] = p->c[(t + 1) % 2];
        const bool more = t < c->n_row_tiles;
        const struct amx_x x = amx_x_of(c, more ? t : 0);
        const uint8_t *at = x.at + first * x.block;
        if (more) {
            _tile_zero(0);
            _tile_loadd(2, at, x.row);
            _tile_dpbf16ps(0, 2, 4);
        }
        if (t)
            add_products(codec, &h, from, sums, &place, 0, n);
        if (more && n > 1) {
            _tile_zero(1);
            _tile_loadd(3, at + x.block, x.row);
            _tile_dpbf16ps(1, 3, 5);
        }
        if (t)
            add_products(codec, &h, from, sums, &place, 4, n);
        if (more) {
            _tile_stored(0, to[0], 64);
            if (n > 2) {
                _tile_zero(0);
                _tile_loadd(2, at + 2 * x.block, x.row);
                _tile_dpbf16ps(0, 2, 6);
            }
        }
        if (t)
            add_products(codec, &h, from, sums, &place, 8, n);
        if (more && n > 1) {
            _tile_stored(1, to[1], 64);
            if (n > 3) {
                _tile_zero(1);
                _tile_loadd(3, at + 3 * x.block, x.row);
                _tile_dpbf16ps(1, 3, 7);
            }
        }
        if (t) {
            add_products(codec, &h, from, sums, &place, 12, n);
            if (final && place.to_stride == LINEAR_GROUP && place.to == acc + (size_t)(t - 1) * (AMX_TILE / 4))
                amx_finish(c, t - 1, group, place.to);
            sums = linear_has_min(codec) ? sums + n_blocks * AMX_ROWS : NULL;
        }
        if (more && n > 2)
            _tile_stored(0, to[2], 64);
        if (more && n > 3)
            _tile_stored(1, to[3], 64);
        if (more && b0 + (size_t)n + HELD >= n_blocks && !final && amx_is_plain(c, t, group))
            for (size_t r = 0; r < AMX_ROWS; r++)
                amx_expect_y(c, (size_t)t * AMX_ROWS + r, group);
        if (more)
            place = place_of(c, t, group, acc + (size_t)t * (AMX_TILE / 4), fresh, final);
    }
}

INLINE void run_chunk(const struct amx_chunk *c, enum weight_codec codec)
{
    const size_t stride = linear_group_bytes(c->args->shape), n_blocks = c->block_end - c->block_begin;
    struct products p;
    for (uint32_t g = c->group_begin; g < c->group_end; g++) {
        const uint8_t *w = (const uint8_t *)c->args->packed + (size_t)g * stride;
        for (size_t i = 0; i < n_blocks; i++)
            linear_expand(codec, linear_codes(codec, w, c->block_begin + i), c->expand + i * AMX_TILE);
        amx_sees(c->expand);
        size_t i = 0;
        for (; i + HELD <= n_blocks; i += HELD) {
            /* what this group's neighbour will expand, asked for bit by bit */
            const uint8_t *next = linear_codes(codec, w + stride, c->block_begin + i);
            for (size_t at = 0; at < HELD / 2 * linear_pair_bytes(codec); at += 64)
                _mm_prefetch((const char *)next + at, _MM_HINT_T1);
            chunk_blocks(c, codec, w, g, i, &p, HELD);
        }
        if (n_blocks - i == 3)
            chunk_blocks(c, codec, w, g, i, &p, 3);
        else if (n_blocks - i == 2)
            chunk_blocks(c, codec, w, g, i, &p, 2);
        else if (n_blocks - i == 1)
            chunk_blocks(c, codec, w, g, i, &p, 1);
    }
}

#define CODEC(codec)                                                                                                   \
    static void run_chunk_##codec(const struct amx_chunk *c)                                                           \
    {                                                                                                                  \
        run_chunk(c, WEIGHT_##codec);                                                                                  \
    }                                                                                                                  \
    static void run_few_##codec(const struct linear_args *a)                                                           \
    {                                                                                                                  \
        if (a->n_rows <= 4)                                                                                            \
            few_rows(a, WEIGHT_##codec, 4);                                                                            \
        else if (a->n_rows <= 8)                                                                                       \
            few_rows(a, WEIGHT_##codec, 8);                                                                            \
        else                                                                                                           \
            few_rows(a, WEIGHT_##codec, AMX_ROWS);                                                                     \
    }

CODEC(Q8_0)
CODEC(Q4_0)
CODEC(Q4_1)
CODEC(Q5_0)
CODEC(Q5_1)
CODEC(Q4_K)
CODEC(Q5_K)
CODEC(Q4_Z)

static const struct {
    amx_chunk_fn *chunk;
    void (*few)(const struct linear_args *a);
    bool wants_sums;
} fns[WEIGHT_CODECS] = {
    [WEIGHT_Q8_0] = { run_chunk_Q8_0, run_few_Q8_0, false }, [WEIGHT_Q4_0] = { run_chunk_Q4_0, run_few_Q4_0, true },
    [WEIGHT_Q4_1] = { run_chunk_Q4_1, run_few_Q4_1, true },  [WEIGHT_Q5_0] = { run_chunk_Q5_0, run_few_Q5_0, true },
    [WEIGHT_Q5_1] = { run_chunk_Q5_1, run_few_Q5_1, true },  [WEIGHT_Q4_K] = { run_chunk_Q4_K, run_few_Q4_K, true },
    [WEIGHT_Q5_K] = { run_chunk_Q5_K, run_few_Q5_K, true },  [WEIGHT_Q4_Z] = { run_chunk_Q4_Z, run_few_Q4_Z, true },
};

bool linear_accepts_q_amx(const struct linear_shape *shape)
{
    return shape->x == DTYPE_BF16 && fns[shape->codec].chunk;
}

size_t linear_scratch_q_amx(const struct linear_shape *shape, uint32_t n_rows)
{
    const bool sums = fns[shape->codec].wants_sums;
    if (n_rows <= AMX_ROWS)
        return linear_n_blocks(shape) * (LINEAR_BLOCK + (sums ? AMX_ROWS : 0)) * sizeof(float);
    return amx_many_rows_scratch(shape, n_rows, sums, 1);
}

void linear_run_q_amx(const struct linear_args *a)
{
    const enum weight_codec codec = a->shape->codec;
    amx_sums_fn *sums = fns[codec].wants_sums ? sum_x : NULL;
    if (a->n_rows == 0)
        return;
    if (a->n_rows > AMX_ROWS) {
        amx_many_rows(a, fns[codec].chunk, sums, 1);
        return;
    }
    if (sums)
        sums(a, 0, a->n_rows, linear_n_blocks(a->shape), a->scratch);
    if (a->n_rows == 1)
        linear_one_row_amx(a, a->scratch, (float *)a->scratch + (sums ? linear_n_blocks(a->shape) * AMX_ROWS : 0));
    else
        fns[codec].few(a);
}
