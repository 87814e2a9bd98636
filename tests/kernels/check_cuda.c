/*
 * The GPU's kernels against the processor's `_c` variants, over random shapes, and every row alone against the same row in company. Skips (77) where no
 * GPU is that can run them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/kernels.h"
#include "tests/kernels/check.h"
#include "tests/kernels/cuda_scene.h"

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

static uint16_t *tiled_at(uint8_t *out, uint32_t cap, uint32_t row, uint32_t k)
{
    return (uint16_t *)(void *)(out + ((size_t)(k / 64) * cap + row) * 128 + ((k % 64 / 8) ^ (row & 7)) * 16 +
                                k % 8 * 2);
}

/* rows [n][width] bf16 as a tiled buffer on the device; places past the rows hold NaN */
static void *put_tiled(struct check *ck, struct cuda_scene *s, const uint16_t *rows, uint32_t n, uint32_t width,
                       uint32_t cap)
{
    const size_t bytes = cuda_tiled_bytes(cap, width);
    uint8_t *host = check_buffer(ck, bytes);
    memset(host, 0xFF, bytes);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t k = 0; k < round_up(width, 128); k++)
            *tiled_at(host, cap, r, k) = k < width ? rows[(size_t)r * width + k] : 0;
    return cuda_scene_put(s, host, bytes);
}

static void get_tiled(struct check *ck, const void *from, uint32_t n, uint32_t width, uint32_t cap, float *out)
{
    const size_t bytes = cuda_tiled_bytes(cap, width);
    uint8_t *host = check_buffer(ck, bytes);
    cuda_scene_get(host, from, bytes);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t k = 0; k < width; k++)
            out[(size_t)r * width + k] = bf16_to_f32(*tiled_at(host, cap, r, k));
}

static float *draw(struct check *ck, size_t n, float size)
{
    float *x = check_buffer(ck, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = check_normal(ck) * size;
    return x;
}

/* ---- products ---- */

struct matrix {
    uint32_t n_out, n_in;
    uint16_t *w; /* [n_out][n_in] */
    void *packed;
    const float *bias;
    float *device_bias;
};

static struct matrix draw_matrix(struct check *ck, struct cuda_scene *s, uint32_t n_out, uint32_t n_in)
{
    struct matrix m = { n_out, n_in, check_buffer(ck, (size_t)n_out * n_in * 2), NULL, NULL, NULL };
    const size_t bytes = cuda_packed_bytes(n_out, n_in), row = cuda_packed_bytes(64, n_in);
    uint8_t *tiles = check_buffer(ck, bytes);
    for (size_t i = 0; i < (size_t)n_out * n_in; i++)
        m.w[i] = f32_to_bf16(check_normal(ck) * 0.1f);
    for (uint32_t t = 0; t < (n_out + 63) / 64; t++) {
        const uint16_t *rows[64];
        for (uint32_t i = 0; i < 64; i++)
            rows[i] = t * 64 + i < n_out ? m.w + (size_t)(t * 64 + i) * n_in : NULL;
        cuda_pack_tiles(rows, n_in, tiles + t * row);
    }
    m.packed = cuda_scene_put(s, tiles, bytes);
    if (check_below(ck, 2)) {
        m.bias = draw(ck, n_out, 1);
        m.device_bias = cuda_scene_put(s, m.bias, n_out * sizeof(float));
    }
    return m;
}

/* y as the reference has it: linear_c over the same weights */
static void reference_product(struct check *ck, const struct matrix *m, const uint16_t *x, uint32_t n_rows, float *y)
{
    const struct linear_shape shape = { .n_out = m->n_out, .n_in = m->n_in, .codec = WEIGHT_BF16, .x = DTYPE_BF16 };
    const struct linear_impl *it = linear_find(&shape, 0);
    const uint32_t stride = round_up(m->n_in, 32);
    const size_t group = it->group_bytes(&shape);
    uint8_t *packed = check_buffer(ck, linear_packed_bytes(it, &shape));
    uint16_t *rows = check_buffer(ck, (size_t)n_rows * stride * 2);
    memset(rows, 0, (size_t)n_rows * stride * 2);
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(rows + (size_t)r * stride, x + (size_t)r * m->n_in, m->n_in * 2);
    for (uint32_t g = 0; g < (m->n_out + LINEAR_GROUP - 1) / LINEAR_GROUP; g++) {
        const void *stored[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++)
            stored[i] = g * LINEAR_GROUP + i < m->n_out ? m->w + (size_t)(g * LINEAR_GROUP + i) * m->n_in : NULL;
        it->pack(&shape, stored, packed + g * group);
    }
    it->run(&(struct linear_args){ .shape = &shape,
                                   .packed = packed,
                                   .x = rows,
                                   .x_stride = stride,
                                   .n_rows = n_rows,
                                   .out_end = m->n_out,
                                   .y = y,
                                   .y_stride = m->n_out });
    for (uint32_t r = 0; m->bias && r < n_rows; r++)
        for (uint32_t o = 0; o < m->n_out; o++)
            y[(size_t)r * m->n_out + o] += m->bias[o];
}

/* Runs rows first .. first + n of x against the matrices; y_out[i] [n][n_out]. before: what y held. */
static void run_product(struct check *ck, const struct matrix *m, uint32_t n_parts, const uint16_t *x, uint32_t n,
                        const float *const *before, float *const *y_out)
{
    struct cuda_scene s = { 0 };
    const uint32_t cap = round_up(n, CUDA_ROWS_STEP);
    struct cuda_linear l = {
        .cap = cap, .n_rows = n, .n_in = m->n_in, .n_parts = n_parts, .accumulate = before != NULL
    };
    size_t outs = 0;
    l.x = put_tiled(ck, &s, x, n, m->n_in, cap);
    for (uint32_t i = 0; i < n_parts; i++) {
        const size_t bytes = (size_t)n * m[i].n_out * sizeof(float);
        l.part[i] = (struct cuda_part){
            .packed = m[i].packed, .bias = m[i].device_bias, .n_out = m[i].n_out, .y_stride = m[i].n_out
        };
        l.part[i].y = before ? cuda_scene_put(&s, before[i], bytes) : cuda_scene_take(&s, bytes);
        outs += round_up(m[i].n_out, 64);
    }
    l.partials = cuda_scene_take(&s, cuda_linear_partials((uint32_t)outs, m->n_in) * sizeof(float));
    l.counters = cuda_scene_take(&s, outs / 64 * 4);
    CUDA(cudaMemset(l.counters, 0, outs / 64 * 4));
    for (int again = 0; again < (before ? 1 : 2); again++) /* the counters are as they were */
        CUDA(cuda_linear_run(&l, NULL));
    for (uint32_t i = 0; i < n_parts; i++)
        cuda_scene_get(y_out[i], l.part[i].y, (size_t)n * m[i].n_out * sizeof(float));
    cuda_scene_free(&s);
}

static void check_linear(struct check *ck)
{
    struct cuda_scene s = { 0 };
    static const uint32_t few[] = { 1, 5, 8, 16, 17, 33, 64, 65, 128, 200 };
    const uint32_t n_parts = check_between(ck, 1, 3), n_in = check_between(ck, 1, check_below(ck, 2) ? 400 : 40) * 8,
                   n_rows = few[check_below(ck, sizeof few / sizeof *few)];
    struct matrix m[3];
    float *got[3], *want[3], *alone[3], *before[3];
    uint16_t *x = check_buffer(ck, (size_t)n_rows * n_in * 2);
    const bool accumulate = check_below(ck, 2);
    check_begin(ck, "linear", "cuda", 0);
    check_context(ck, "%u parts, n_in %u, %u rows", n_parts, n_in, n_rows);
    for (size_t i = 0; i < (size_t)n_rows * n_in; i++)
        x[i] = f32_to_bf16(check_normal(ck));
    for (uint32_t i = 0; i < n_parts; i++) {
        m[i] = draw_matrix(ck, &s, check_between(ck, 1, 300), n_in);
        const size_t n = (size_t)n_rows * m[i].n_out;
        before[i] = draw(ck, n, 1);
        got[i] = check_buffer(ck, n * sizeof(float));
        want[i] = check_buffer(ck, n * sizeof(float));
        alone[i] = check_buffer(ck, n * sizeof(float));
    }
    run_product(ck, m, n_parts, x, n_rows, accumulate ? (const float *const *)before : NULL, got);
    for (uint32_t i = 0; i < n_parts; i++) {
        reference_product(ck, &m[i], x, n_rows, want[i]);
        for (size_t k = 0; accumulate && k < (size_t)n_rows * m[i].n_out; k++)
            want[i][k] += before[i][k];
        check_close(ck, "y", got[i], want[i], (size_t)n_rows * m[i].n_out, 2e-5);
    }
    for (int t = 0; t < 3; t++) { /* some rows in other company */
        const uint32_t first = check_below(ck, n_rows), n = check_between(ck, 1, n_rows - first);
        const float *part[3];
        for (uint32_t i = 0; i < n_parts; i++)
            part[i] = before[i] + (size_t)first * m[i].n_out;
        run_product(ck, m, n_parts, x + (size_t)first * n_in, n, accumulate ? part : NULL, alone);
        for (uint32_t i = 0; i < n_parts; i++)
            check_same(ck, "rows in other company", alone[i], got[i] + (size_t)first * m[i].n_out,
                       (size_t)n * m[i].n_out * sizeof(float));
    }
    cuda_scene_free(&s);
}

/* ---- rows ---- */

static void check_rows(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const struct row_impl *c = row_find(0);
    const uint32_t n = check_between(ck, 1, 600) * 8, n_rows = check_between(ck, 1, 20), cap = CUDA_ROWS_STEP;
    const float *x = draw(ck, (size_t)n_rows * n, 2), *w = draw(ck, n, 1), *up = draw(ck, (size_t)n_rows * n, 2);
    float *got = check_buffer(ck, (size_t)n_rows * n * 4), *want = check_buffer(ck, (size_t)n_rows * n * 4);
    uint16_t *row = check_buffer(ck, n * 2);
    uint32_t *which = check_buffer(ck, n_rows * 4);
    check_begin(ck, "rows", "cuda", 0);
    check_context(ck, "%u rows of %u", n_rows, n);
    for (uint32_t r = 0; r < n_rows; r++)
        which[r] = check_below(ck, n_rows);
    void *dx = cuda_scene_put(&s, x, (size_t)n_rows * n * 4), *dup = cuda_scene_put(&s, up, (size_t)n_rows * n * 4),
         *dw = cuda_scene_put(&s, w, n * 4), *dwhich = cuda_scene_put(&s, which, n_rows * 4),
         *out = cuda_scene_take(&s, cuda_tiled_bytes(cap, n));
    for (int picked = 0; picked < 2; picked++) {
        CUDA(cuda_norm(dx, picked ? dwhich : NULL, dw, n_rows, n, 1e-5f, out, cap, NULL));
        get_tiled(ck, out, n_rows, n, cap, got);
        for (uint32_t r = 0; r < n_rows; r++) {
            c->rmsnorm(x + (size_t)(picked ? which[r] : r) * n, w, n, 1e-5f, DTYPE_BF16, row, n);
            for (uint32_t i = 0; i < n; i++)
                want[(size_t)r * n + i] = bf16_to_f32(row[i]);
        }
        check_close(ck, "norm", got, want, (size_t)n_rows * n, 1e-3); /* a last bit of bf16 here and there */
    }
    CUDA(cuda_silu_mul(dx, dup, n_rows, n, out, cap, NULL));
    get_tiled(ck, out, n_rows, n, cap, got);
    for (uint32_t r = 0; r < n_rows; r++) {
        c->silu_mul(x + (size_t)r * n, up + (size_t)r * n, n, DTYPE_BF16, row, n);
        for (uint32_t i = 0; i < n; i++)
            want[(size_t)r * n + i] = bf16_to_f32(row[i]);
    }
    check_close(ck, "silu", got, want, (size_t)n_rows * n, 1e-3);
    const uint32_t dim = 8 * check_between(ck, 1, 16), heads = n / dim;
    if (heads) {
        float *h = cuda_scene_put(&s, x, (size_t)n_rows * heads * dim * 4);
        CUDA(cuda_norm_heads(h, dw, n_rows, heads, dim, 1e-6f, NULL));
        cuda_scene_get(got, h, (size_t)n_rows * heads * dim * 4);
        for (uint32_t i = 0; i < n_rows * heads; i++)
            c->rmsnorm(x + (size_t)i * dim, w, dim, 1e-6f, DTYPE_F32, want + (size_t)i * dim, dim);
        check_close(ck, "heads", got, want, (size_t)n_rows * heads * dim, 2e-6);
    }
    cuda_scene_free(&s);
}

/* ---- attention ---- */

enum { LEAVES_MAX = 6, BLOCKS_MAX = LEAVES_MAX * CUDA_LEAF_BLOCKS, ROWS_MAX = 40 };

/* A run of rows at positions pos .. of one sequence, its keys and values, stored on both sides. */
struct scene {
    struct cuda_scene device;
    struct cuda_kv kv;
    struct attn_shape shape;
    uint32_t group, n_leaves, pos, n_rows, n_blocks, n_vectors, n_tiles, layer, n_layers;
    uint32_t slot[BLOCKS_MAX];
    uint8_t *host; /* [n_blocks][n_kv_heads][2 parts] as the reference has them */
    float *q;      /* [n_rows][n_heads][head_dim], rotated and rounded */
    void *q_device;
};

static void draw_scene(struct check *ck, struct scene *s)
{
    const uint32_t d = check_below(ck, 2) ? 64 : 128, n_kv = check_between(ck, 1, 3);
    const struct row_impl *c = row_find(0);
    memset(s, 0, sizeof *s);
    s->group = check_between(ck, 1, 5);
    s->n_leaves = check_below(ck, 3) ? check_below(ck, LEAVES_MAX - 1) : 0;
    s->n_rows = check_below(ck, 2) ? 1 : check_between(ck, 1, ROWS_MAX);
    s->pos = s->n_leaves * 1024 + check_below(ck, 1024 - s->n_rows);
    s->n_blocks = (s->pos + s->n_rows + 63) / 64;
    s->n_layers = check_between(ck, 1, 2);
    s->layer = check_below(ck, s->n_layers);
    s->shape = (struct attn_shape){ d, KV_BF16, 1 / sqrtf((float)d), NULL };
    s->n_vectors = s->n_rows * s->group;
    s->n_tiles = (s->n_vectors + ATTN_ROWS - 1) / ATTN_ROWS;
    s->kv = (struct cuda_kv){ .part_bytes = (size_t)128 * d,
                              .layer_bytes = (size_t)256 * d * n_kv,
                              .block_bytes = (size_t)256 * d * n_kv * s->n_layers,
                              .n_heads = n_kv * s->group,
                              .n_kv_heads = n_kv,
                              .head_dim = d };
    check_context(ck, "head_dim %u, %u x %u heads, %u rows at %u", d, n_kv, s->group, s->n_rows, s->pos);
    const struct attn_impl *it = attn_find(&s->shape, 0);
    const uint32_t n = s->n_blocks * 64, h = s->kv.n_heads;
    const size_t part = it->part_bytes(&s->shape);
    s->host = check_buffer(ck, (size_t)s->n_blocks * n_kv * 2 * part);
    memset(s->host, 0, (size_t)s->n_blocks * n_kv * 2 * part);
    for (uint32_t b = 0; b < s->n_blocks; b++)
        s->slot[b] = b;
    for (uint32_t b = s->n_blocks; b-- > 1;) {
        const uint32_t other = check_below(ck, b + 1), x = s->slot[b];
        s->slot[b] = s->slot[other];
        s->slot[other] = x;
    }
    s->kv.pool = cuda_scene_take(&s->device, s->n_blocks * s->kv.block_bytes);
    CUDA(cudaMemset(s->kv.pool, 0, s->n_blocks * s->kv.block_bytes));
    /* all positions enter as rows of one call: their queries are the last rows' */
    const uint32_t end = s->pos + s->n_rows;
    float *q = draw(ck, (size_t)end * h * d, 1), *k = draw(ck, (size_t)end * n_kv * d, 1.5f),
          *v = draw(ck, (size_t)end * n_kv * d, 1), *cs = check_buffer(ck, (size_t)end * d / 2 * 4),
          *sn = check_buffer(ck, (size_t)end * d / 2 * 4);
    struct cuda_row *rows = check_buffer(ck, n * sizeof *rows);
    for (uint32_t p = 0; p < end; p++) {
        rows[p] = (struct cuda_row){ s->slot[p / 64], p % 64 };
        for (uint32_t i = 0; i < d / 2; i++) {
            const double angle = p * pow(10000, -2.0 * i / d);
            cs[(size_t)p * d / 2 + i] = (float)cos(angle);
            sn[(size_t)p * d / 2 + i] = (float)sin(angle);
        }
    }
    void *dq = cuda_scene_put(&s->device, q, (size_t)end * h * d * 4),
         *dk = cuda_scene_put(&s->device, k, (size_t)end * n_kv * d * 4),
         *dv = cuda_scene_put(&s->device, v, (size_t)end * n_kv * d * 4),
         *dc = cuda_scene_put(&s->device, cs, (size_t)end * d / 2 * 4),
         *ds = cuda_scene_put(&s->device, sn, (size_t)end * d / 2 * 4),
         *dr = cuda_scene_put(&s->device, rows, end * sizeof *rows);
    uint16_t *q_out = cuda_scene_take(&s->device, (size_t)end * h * d * 2);
    CUDA(cuda_rope_store(&s->kv, s->layer, dq, dk, dv, dc, ds, dr, end, q_out, NULL));
    s->q_device = q_out + (size_t)s->pos * h * d;
    for (uint32_t p = 0; p < end; p++) {
        c->rope(q + (size_t)p * h * d, h, d, cs + (size_t)p * d / 2, sn + (size_t)p * d / 2);
        c->rope(k + (size_t)p * n_kv * d, n_kv, d, cs + (size_t)p * d / 2, sn + (size_t)p * d / 2);
        for (uint32_t j = 0; j < n_kv; j++) {
            uint8_t *to = s->host + ((size_t)p / 64 * n_kv + j) * 2 * part;
            it->store(&s->shape, p % 64, k + ((size_t)p * n_kv + j) * d, v + ((size_t)p * n_kv + j) * d, to, to + part);
        }
    }
    s->q = q + (size_t)s->pos * h * d;
    uint16_t *rounded = check_buffer(ck, (size_t)s->n_rows * h * d * 2);
    cuda_scene_get(rounded, s->q_device, (size_t)s->n_rows * h * d * 2);
    float *have = check_buffer(ck, (size_t)s->n_rows * h * d * 4);
    for (size_t i = 0; i < (size_t)s->n_rows * h * d; i++)
        have[i] = bf16_to_f32(rounded[i]);
    check_close(ck, "q", have, s->q, (size_t)s->n_rows * h * d, 4e-3);
    memcpy(s->q, have, (size_t)s->n_rows * h * d * 4); /* from here on both have the same queries */
}

/*
 * What the units write: item 0 the leaves before the own one, joined by adjacent pairs, item 1 the own leaf. Rows first .. first + n of the scene
 * alone; store_out [2][n_kv_heads][n_tiles][16 (2 + d)].
 */
static void run_attend(struct check *ck, struct scene *s, uint32_t first, uint32_t n, bool wide, uint32_t grid,
                       float *store_out, float *out)
{
    struct cuda_scene device = { 0 };
    const uint32_t n_kv = s->kv.n_kv_heads, vectors = n * s->group, n_tiles = (vectors + 15) / 16,
                   step = wide ? CUDA_WIDE_TILES : CUDA_UNIT_TILES, own = s->n_leaves * CUDA_LEAF_BLOCKS;
    const size_t tile = 16 * (2 + (size_t)s->kv.head_dim), bytes = 2 * n_kv * n_tiles * tile * sizeof(float);
    struct cuda_unit units[2 * 3 * (ROWS_MAX * 5 / 16 + 1)];
    uint8_t merges[LEAVES_MAX + 1];
    uint32_t n_units = 0, depth = 0;
    for (uint32_t i = 0; i < s->n_leaves; i++) { /* a binary counter: pairs of equals join, the rest at the end */
        merges[i] = 0;
        for (uint32_t k = i; k & 1; k >>= 1)
            merges[i]++;
        depth = depth + 1 - merges[i];
        if (i + 1 == s->n_leaves)
            merges[i] = (uint8_t)(merges[i] + depth - 1);
    }
    merges[s->n_leaves] = 0;
    for (uint32_t item = s->n_leaves ? 0 : 1; item < 2; item++)
        for (uint32_t head = 0; head < n_kv; head++)
            for (uint32_t t = 0; t < n_tiles; t += step)
                units[n_units++] = (struct cuda_unit){
                    .slot = item ? own : 0,
                    .n_blocks = item ? (s->pos + first + n + 63) / 64 - own : own,
                    .merges = item ? s->n_leaves : 0,
                    .head = head,
                    .row = first,
                    .vector = t * 16,
                    .n_vectors = vectors,
                    .visible = item ? s->pos + first - own * 64 : UINT32_MAX,
                    .store = (item * n_kv + head) * n_tiles + t,
                };
    const struct cuda_attend a = {
        .units = cuda_scene_put(&device, units, n_units * sizeof *units),
        .n_units = cuda_scene_put(&device, &n_units, 4),
        .slots = cuda_scene_put(&device, s->slot, s->n_blocks * 4),
        .merges = cuda_scene_put(&device, merges, sizeof merges),
        .q = s->q_device,
        .store = cuda_scene_take(&device, bytes),
        .stack = cuda_scene_take(&device, cuda_stack_floats(s->kv.head_dim, 8, 132) * sizeof(float)),
        .depth = 8,
        .scale = s->shape.scale,
    };
    CUDA(cuda_attend_run(&s->kv, s->layer, &a, wide, grid < n_units ? grid : n_units, NULL));
    cuda_scene_get(store_out, a.store, bytes);
    if (out) {
        const struct cuda_join join = { .n_tiles = n_tiles,
                                        .n_vectors = vectors,
                                        .n_levels = s->n_leaves ? 1 : 0,
                                        .n_items = 2,
                                        .item = s->n_leaves ? 0 : 1 };
        const uint32_t levels[2] = { 0, 1 }, pairs[2] = { 0, 1 }, none = 0, cap = round_up(n, CUDA_ROWS_STEP);
        const uint32_t width = s->kv.n_heads * s->kv.head_dim;
        const struct cuda_joins j = {
            .joins = cuda_scene_put(&device, &join, sizeof join),
            .n_joins = 1,
            .n_blocks = n_kv * n_tiles,
            .items_max = 2,
            .levels = cuda_scene_put(&device, levels, sizeof levels),
            .pairs = cuda_scene_put(&device, pairs, sizeof pairs),
            .store = a.store,
            .out = cuda_scene_take(&device, cuda_tiled_bytes(cap, width)),
            .cap = cap,
            .failed = cuda_scene_put(&device, &none, 4),
        };
        uint32_t failed;
        CUDA(cuda_join_run(&s->kv, &j, NULL));
        cuda_scene_get(&failed, j.failed, 4);
        if (failed)
            check_fail(ck, "join found a result that is not finite");
        get_tiled(ck, j.out, n, width, cap, out);
    }
    cuda_scene_free(&device);
}

/* The reference: blocks one by one, leaves before the own one and then all, in the order of the program (its bits are its own anyway). */
static void reference_attend(struct check *ck, const struct scene *s, float *out)
{
    const uint32_t d = s->kv.head_dim, n_kv = s->kv.n_kv_heads, h = s->kv.n_heads;
    const struct attn_impl *it = attn_find(&s->shape, 0);
    const struct row_impl *c = row_find(0);
    const size_t part = it->part_bytes(&s->shape), floats = attn_partial_floats(d);
    float *sum = check_buffer(ck, floats * 4), *one = check_buffer(ck, floats * 4);
    void *tile = check_buffer(ck, it->q_tile_bytes(&s->shape));
    for (uint32_t v = 0; v < s->n_vectors * n_kv; v++) {
        const uint32_t head = v / s->n_vectors, at = v % s->n_vectors, row = at / s->group,
                       q_head = head * s->group + at % s->group, pos = s->pos + row;
        const float *q = s->q + ((size_t)row * h + q_head) * d;
        it->pack_q(&s->shape, &q, 1, tile);
        for (uint32_t b = 0; b <= pos / 64; b++) {
            const uint8_t visible = (uint8_t)(pos - b * 64 < 63 ? pos - b * 64 + 1 : 64);
            const uint8_t *k = s->host + ((size_t)b * n_kv + head) * 2 * part;
            it->block(&s->shape, tile, 1, &visible, k, k + part, NULL, b ? one : sum);
            if (b)
                it->merge(&s->shape, 1, sum, one);
        }
        bool finite = true;
        c->attn_finish(sum + 2 * ATTN_ROWS, sum[ATTN_ROWS], d, DTYPE_F32, out + ((size_t)row * h + q_head) * d,
                       &finite);
    }
}

static void check_attend_(struct check *ck)
{
    struct scene s;
    check_begin(ck, "attend", "cuda", 0);
    draw_scene(ck, &s);
    const uint32_t d = s.kv.head_dim, n_kv = s.kv.n_kv_heads, h = s.kv.n_heads;
    const size_t tile = 16 * (2 + (size_t)d), floats = 2 * n_kv * s.n_tiles * tile, n_out = (size_t)s.n_rows * h * d;
    float *store = check_buffer(ck, floats * 4), *other = check_buffer(ck, floats * 4),
          *out = check_buffer(ck, n_out * 4), *want = check_buffer(ck, n_out * 4);
    const bool wide = check_below(ck, 2);
    run_attend(ck, &s, 0, s.n_rows, wide, check_below(ck, 2) ? 3 : 264, store, out);
    reference_attend(ck, &s, want);
    check_close(ck, "o", out, want, n_out, 6e-3);
    for (int t = 0; t < 3; t++) {
        const uint32_t first = check_below(ck, s.n_rows), n = t ? check_between(ck, 1, s.n_rows - first) : 1,
                       tiles = (n * s.group + 15) / 16;
        run_attend(ck, &s, first, n, t == 1 ? !wide : wide, 264, other, NULL);
        for (uint32_t item = s.n_leaves ? 0 : 1; item < 2; item++)
            for (uint32_t head = 0; head < n_kv; head++)
                for (uint32_t v = 0; v < n * s.group; v++) {
                    const uint32_t w = first * s.group + v;
                    const float *a = other + ((item * n_kv + head) * tiles + v / 16) * tile,
                                *b = store + ((item * n_kv + head) * s.n_tiles + w / 16) * tile;
                    check_same(ck, "m alone", a + v % 16, b + w % 16, 4);
                    check_same(ck, "l alone", a + 16 + v % 16, b + 16 + w % 16, 4);
                    check_same(ck, "o alone", a + 32 + v % 16 * d, b + 32 + w % 16 * d, d * 4);
                }
    }
    cuda_scene_free(&s.device);
}

/* ---- joining ---- */

/* Items at random, at times empty, joined by adjacent pairs; against the same merges one after the other on the processor. */
static void check_join(struct check *ck)
{
    struct cuda_scene s = { 0 };
    const uint32_t d = check_below(ck, 2) ? 64 : 128, group = check_between(ck, 1, 4), n_kv = check_between(ck, 1, 2),
                   n_rows = check_between(ck, 1, 9), n_items = check_between(ck, 1, 40), vectors = n_rows * group,
                   n_tiles = (vectors + 15) / 16;
    const struct cuda_kv kv = { .n_heads = group * n_kv, .n_kv_heads = n_kv, .head_dim = d };
    const struct attn_shape shape = { d, KV_BF16, 1, NULL };
    const struct attn_impl *it = attn_find(&shape, 0);
    const size_t tile = 16 * (2 + (size_t)d), floats = (size_t)n_items * n_kv * n_tiles * tile;
    float *p = draw(ck, floats, 1), *got = check_buffer(ck, floats * 4);
    uint32_t levels[8] = { 0 }, pairs[80], n_levels = 0, n = 0;
    check_begin(ck, "join", "cuda", 0);
    check_context(ck, "head_dim %u, %u items, %u vectors", d, n_items, vectors);
    for (size_t t = 0; t < floats / tile; t++)
        for (uint32_t i = 0; i < 16; i++) {
            const bool empty = check_below(ck, 5) == 0;
            p[t * tile + i] = empty ? -INFINITY : check_normal(ck) * 3;
            p[t * tile + 16 + i] = empty ? 0 : 1 + fabsf(p[t * tile + 16 + i]);
            for (uint32_t k = 0; empty && k < d; k++)
                p[t * tile + 32 + i * d + k] = 0;
        }
    float *first = check_buffer(ck, floats * 4);
    memcpy(first, p, floats * 4);
    void *store = cuda_scene_put(&s, p, floats * 4);
    for (uint32_t gap = 1; gap < n_items; gap *= 2) {
        for (uint32_t i = 0; i + gap < n_items; i += 2 * gap, n++) {
            pairs[2 * n] = i;
            pairs[2 * n + 1] = i + gap;
        }
        levels[++n_levels] = n;
    }
    const struct cuda_join join = {
        .n_tiles = n_tiles, .n_vectors = vectors, .n_levels = n_levels, .n_items = n_items
    };
    const struct cuda_joins j = { .joins = cuda_scene_put(&s, &join, sizeof join),
                                  .n_joins = 1,
                                  .n_blocks = n_kv * n_tiles,
                                  .items_max = 2,
                                  .levels = cuda_scene_put(&s, levels, sizeof levels),
                                  .pairs = cuda_scene_put(&s, pairs, sizeof pairs),
                                  .store = store };
    CUDA(cuda_join_run(&kv, &j, NULL));
    cuda_scene_get(got, store, floats * 4);
    const size_t item = n_kv * n_tiles * tile;
    for (size_t t = 0; t < floats / tile; t++) /* m here is in powers of two, there in powers of e */
        for (uint32_t i = 0; i < 16; i++)
            p[t * tile + i] *= 0.693147182f;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < n_kv * n_tiles; t++)
            it->merge(&shape, 16, p + pairs[2 * i] * item + t * tile, p + pairs[2 * i + 1] * item + t * tile);
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t head = 0; head < n_kv; head++) {
            const float *a = got + (head * n_tiles + v / 16) * tile, *b = p + (head * n_tiles + v / 16) * tile;
            check_close(ck, "l", a + 16 + v % 16, b + 16 + v % 16, 1, 1e-5);
            check_close(ck, "o", a + 32 + v % 16 * d, b + 32 + v % 16 * d, d, 1e-5);
        }
    /* finished, by either launch: the same bits, those of o / l */
    const uint32_t none = 0, width = kv.n_heads * d;
    float *result[2];
    for (int many = 0; many < 2; many++) {
        struct cuda_joins finish = j;
        finish.store = cuda_scene_put(&s, first, floats * 4);
        finish.items_max = many ? n_items : 0;
        finish.out = cuda_scene_take(&s, cuda_tiled_bytes(CUDA_ROWS_STEP, width));
        finish.cap = CUDA_ROWS_STEP;
        finish.failed = cuda_scene_put(&s, &none, 4);
        CUDA(cuda_join_run(&kv, &finish, NULL));
        result[many] = check_buffer(ck, (size_t)n_rows * width * 4);
        get_tiled(ck, finish.out, n_rows, width, CUDA_ROWS_STEP, result[many]);
    }
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t head = 0; head < n_kv; head++) {
            const float *a = got + (head * n_tiles + v / 16) * tile, l = a[16 + v % 16];
            const size_t at = (size_t)(v / group) * width + (head * group + v % group) * d;
            for (uint32_t k = 0; k < d && l > 0; k++) {
                const float want = bf16_to_f32(f32_to_bf16(a[32 + v % 16 * d + k] / l));
                check_same(ck, "finished", result[0] + at + k, &want, 4);
                check_same(ck, "finished by many", result[1] + at + k, &want, 4);
            }
        }
    float *wire = cuda_scene_take(&s, (size_t)n_rows * kv.n_heads * (d + 2) * 4);
    CUDA(cuda_node_copy(&kv, store, 0, n_tiles, n_rows, wire, true, NULL, NULL));
    CUDA(cudaMemset(store, 0, item * 4));
    uint32_t *failed = cuda_scene_put(&s, &none, 4);
    CUDA(cuda_node_copy(&kv, store, 0, n_tiles, n_rows, wire, false, failed, NULL));
    float *back = check_buffer(ck, item * 4);
    cuda_scene_get(back, store, item * 4);
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t head = 0; head < n_kv; head++) {
            const size_t at = (head * n_tiles + v / 16) * tile;
            check_same(ck, "m over the wire", back + at + v % 16, got + at + v % 16, 4);
            check_same(ck, "o over the wire", back + at + 32 + v % 16 * d, got + at + 32 + v % 16 * d, d * 4);
        }
    /* one vector that is no partial: a NaN, an m without l, a negative l, an o past all bounds */
    const float faults[][2] = { { 0, NAN },      { 0, INFINITY },      { 1, 0 }, { 1, -1 }, { 1, NAN },
                                { 2, INFINITY }, { (float)d + 1, NAN } };
    const uint32_t fault = check_below(ck, sizeof faults / sizeof *faults),
                   vector = check_below(ck, n_rows * kv.n_heads), yes = 1;
    uint32_t seen;
    cuda_scene_get(&seen, failed, 4);
    check_same(ck, "good partials", &seen, &none, 4);
    float ml[2];
    cuda_scene_get(ml, wire + (size_t)vector * (d + 2), sizeof ml);
    if (faults[fault][0] != 1 || faults[fault][1] != 0 || ml[1] > 0) {
        CUDA(cudaMemcpy(wire + (size_t)vector * (d + 2) + (size_t)faults[fault][0], &faults[fault][1], 4,
                        cudaMemcpyHostToDevice));
        CUDA(cuda_node_copy(&kv, store, 0, n_tiles, n_rows, wire, false, failed, NULL));
        cuda_scene_get(&seen, failed, 4);
        check_same(ck, "a vector that is no partial", &seen, &yes, 4);
    }
    cuda_scene_free(&s);
}

CHECK_UNLESS_BENCH(linear)
CHECK_UNLESS_BENCH(rows)
CHECK_UNLESS_BENCH(attend_)
CHECK_UNLESS_BENCH(join)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = {
        { "linear", run_linear, 60 },
        { "rows", run_rows, 30 },
        { "attend", run_attend_, 40 },
        { "join", run_join, 40 },
    };
    struct cuda_device device;
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "check_cuda: skipped: %s\n", text);
        return 77;
    }
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
