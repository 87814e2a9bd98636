/*
 * Coded blocks on the GPU against the processor's `_c` variants: what sealing makes, code by code, and attention over it, over random shapes; and every
 * vector alone against the same vector in company. Skips (77) where no GPU is that can run it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/codes.h"
#include "kernels/kernels.h"
#include "tests/kernels/check.h"
#include "tests/kernels/cuda_scene.h"

enum { LEAVES_MAX = 5, BLOCKS_MAX = LEAVES_MAX * CUDA_LEAF_BLOCKS, ROWS_MAX = 24, GROUP_MAX = 8 };

/* The last rows of a sequence, all of whose blocks are coded. */
struct scene {
    struct cuda_scene device;
    struct cuda_kv open, sealed;
    enum cuda_codec codec;
    struct attn_shape shape, open_shape;
    uint32_t group, layer, n_layers, n_blocks, n_rows, pos;
    uint32_t slot[BLOCKS_MAX];
    uint8_t *parts; /* [n_blocks][n_kv_heads][2 parts] as the reference seals them */
    float *q;       /* [n_rows][n_heads][head_dim], bf16 values */
    void *q_device;
};

static uint16_t *open_at(uint8_t *part, uint32_t position, uint32_t channel)
{
    return (uint16_t *)(void *)(part + (size_t)channel / 64 * 8192 + (size_t)position * 128 +
                                ((channel % 64 / 8) ^ (position & 7)) * 16 + channel % 8 * 2);
}

static struct cuda_kv pool_of(const struct scene *s, uint32_t n_kv, size_t part_bytes)
{
    return (struct cuda_kv){ .part_bytes = part_bytes,
                             .layer_bytes = part_bytes * 2 * n_kv,
                             .block_bytes = part_bytes * 2 * n_kv * s->n_layers,
                             .n_heads = n_kv * s->group,
                             .n_kv_heads = n_kv,
                             .head_dim = s->shape.head_dim };
}

/* Keys and values of block b, head j on both sides; to: the GPU's open part. */
static bool draw_block(struct check *ck, struct scene *s, float offset, uint8_t *to, uint8_t *sealed)
{
    const uint32_t d = s->shape.head_dim;
    const struct attn_impl *open = attn_find(&s->open_shape, 0), *it = attn_find(&s->shape, 0);
    const size_t bytes = open->part_bytes(&s->open_shape), part = it->part_bytes(&s->shape);
    uint8_t *k = calloc(1, bytes), *v = calloc(1, bytes);
    float x[2][128];
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        const float size = check_below(ck, 20) ? 1 : check_below(ck, 2) ? 0 : 1e-5f; /* a position at times nothing */
        for (uint32_t i = 0; i < d; i++) {
            x[0][i] = bf16_to_f32(f32_to_bf16(size * (check_normal(ck) + (i % d == 3 ? 4 * offset : 0))));
            x[1][i] = bf16_to_f32(f32_to_bf16(size * (check_normal(ck) + offset)));
            *open_at(to, t, i) = f32_to_bf16(x[0][i]);
            *open_at(to + (size_t)128 * d, t, i) = f32_to_bf16(x[1][i]);
        }
        open->store(&s->open_shape, t, x[0], x[1], k, v);
    }
    const bool finite = it->seal(&s->shape, k, v, sealed, sealed + part);
    free(k);
    free(v);
    return finite;
}

static void draw_scene(struct check *ck, struct scene *s)
{
    memset(s, 0, sizeof *s);
    const uint32_t d = check_below(ck, 2) ? 64 : 128, n_kv = check_between(ck, 1, 3);
    const float offset = check_below(ck, 3) == 0 ? 3.0f : 0.0f;
    s->codec = check_below(ck, 2) ? CUDA_INT8 : CUDA_INT4_ROT;
    s->group = check_between(ck, 1, GROUP_MAX);
    s->n_layers = check_between(ck, 1, 2);
    s->layer = check_below(ck, s->n_layers);
    s->n_rows = check_below(ck, 2) ? 1 : check_between(ck, 1, ROWS_MAX);
    s->n_blocks = check_between(ck, 1, check_below(ck, 3) ? 20 : BLOCKS_MAX);
    s->pos = s->n_blocks * 64 - check_between(ck, s->n_rows, 64);
    s->shape = (struct attn_shape){ d, s->codec == CUDA_INT8 ? KV_INT8 : KV_INT4_ROT, 1 / sqrtf((float)d), NULL };
    s->open_shape = (struct attn_shape){ d, KV_BF16, s->shape.scale, NULL };
    s->open = pool_of(s, n_kv, (size_t)128 * d);
    s->sealed = pool_of(s, n_kv, cuda_code_part_bytes(s->codec, d));
    check_context(ck, "%s, head_dim %u, %u x %u heads, %u rows at %u", kv_codecs[s->shape.codec].name, d, n_kv,
                  s->group, s->n_rows, s->pos);
    for (uint32_t b = 0; b < s->n_blocks; b++)
        s->slot[b] = b;
    for (uint32_t b = s->n_blocks; b-- > 1;) {
        const uint32_t other = check_below(ck, b + 1), x = s->slot[b];
        s->slot[b] = s->slot[other];
        s->slot[other] = x;
    }
    const size_t part = attn_find(&s->shape, 0)->part_bytes(&s->shape);
    uint8_t *open = check_buffer(ck, s->n_blocks * s->open.block_bytes);
    s->parts = check_buffer(ck, (size_t)s->n_blocks * n_kv * 2 * part);
    for (uint32_t b = 0; b < s->n_blocks; b++)
        for (uint32_t j = 0; j < n_kv; j++)
            if (!draw_block(ck, s, offset,
                            open + s->slot[b] * s->open.block_bytes + s->layer * s->open.layer_bytes +
                                2 * j * s->open.part_bytes,
                            s->parts + ((size_t)b * n_kv + j) * 2 * part))
                check_fail(ck, "the reference does not seal");
    s->open.pool = cuda_scene_put(&s->device, open, s->n_blocks * s->open.block_bytes);
    s->sealed.pool = cuda_scene_take(&s->device, s->n_blocks * s->sealed.block_bytes);
    const size_t n = (size_t)s->n_rows * s->open.n_heads * d;
    uint16_t *q = check_buffer(ck, n * 2);
    s->q = check_buffer(ck, n * 4);
    for (size_t i = 0; i < n; i++) {
        q[i] = f32_to_bf16(check_normal(ck) * 2);
        s->q[i] = bf16_to_f32(q[i]);
    }
    s->q_device = cuda_scene_put(&s->device, q, n * 2);
}

/* ---- sealing ---- */

static uint32_t seal(struct scene *s)
{
    struct cuda_seal jobs[BLOCKS_MAX];
    const uint32_t none = 0;
    uint32_t failed;
    for (uint32_t b = 0; b < s->n_blocks; b++)
        jobs[b] = (struct cuda_seal){ s->slot[b], s->slot[b] };
    const struct cuda_seals seals = { .jobs = cuda_scene_put(&s->device, jobs, s->n_blocks * sizeof *jobs),
                                      .n_jobs = cuda_scene_put(&s->device, &s->n_blocks, 4),
                                      .codec = s->codec,
                                      .failed = cuda_scene_put(&s->device, &none, 4) };
    CUDA(cuda_seal_run(&s->open, &s->sealed, s->layer, &seals, 7, NULL));
    cuda_scene_get(&failed, seals.failed, 4);
    return failed;
}

/* The code of a part as kernels/cpu/kv.h lays it out. */
static uint32_t reference_code(const struct scene *s, const uint8_t *part, bool value, uint32_t t, uint32_t i)
{
    const uint32_t d = s->shape.head_dim, row = value ? t : i, column = value ? i : t, rows = value ? KV_BLOCK : d,
                   columns = value ? d : KV_BLOCK;
    const bool half = s->codec == CUDA_INT4_ROT;
    const uint32_t low = half ? row % (rows / 2) : row;
    const uint8_t byte = part[((size_t)(low / 4) * columns + column) * 4 + low % 4];
    return !half ? byte : row < rows / 2 ? byte & 15 : byte >> 4;
}

static void compare_part(struct check *ck, const struct scene *s, const uint8_t *got, const uint8_t *want, bool value)
{
    const uint32_t d = s->shape.head_dim;
    const bool half = s->codec == CUDA_INT4_ROT;
    const uint8_t *planes = want + (size_t)KV_BLOCK * d / (half ? 2 : 1);
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        const uint8_t *scale = got + cuda_code_scale_at(s->codec, d, t);
        check_same(ck, "scale", scale, planes + 2 * t, 2);
        if (half)
            check_same(ck, "least", scale + 2, planes + 2 * (KV_BLOCK + t), 2);
        for (uint32_t i = 0; i < d; i++) {
            const struct cuda_code at = value ? cuda_value_at(s->codec, t, i) : cuda_key_at(s->codec, d, t, i);
            const uint8_t code = (uint8_t)(half ? got[at.byte] >> at.shift & 15 : got[at.byte]),
                          other = (uint8_t)reference_code(s, want, value, t, i);
            check_same(ck, value ? "value code" : "key code", &code, &other, 1);
        }
    }
}

static void check_seal(struct check *ck)
{
    struct scene s;
    check_begin(ck, "seal", "cuda", 0);
    draw_scene(ck, &s);
    if (seal(&s))
        check_fail(ck, "finite values were refused");
    const uint32_t n_kv = s.open.n_kv_heads;
    const size_t part = attn_find(&s.shape, 0)->part_bytes(&s.shape), bytes = s.n_blocks * s.sealed.block_bytes;
    uint8_t *got = check_buffer(ck, bytes);
    cuda_scene_get(got, s.sealed.pool, bytes);
    for (uint32_t b = 0; b < s.n_blocks; b++)
        for (uint32_t j = 0; j < n_kv; j++)
            for (uint32_t value = 0; value < 2; value++)
                compare_part(ck, &s,
                             got + s.slot[b] * s.sealed.block_bytes + s.layer * s.sealed.layer_bytes +
                                 (2 * j + value) * s.sealed.part_bytes,
                             s.parts + (((size_t)b * n_kv + j) * 2 + value) * part, value);
    /* what is not finite is refused, and seen only there */
    const uint32_t b = check_below(ck, s.n_blocks), t = check_below(ck, 64), i = check_below(ck, s.shape.head_dim);
    const uint16_t bad = check_below(ck, 2) ? 0x7F80 : 0xFFC1;
    uint8_t *part_open = s.open.pool + s.slot[b] * s.open.block_bytes + s.layer * s.open.layer_bytes;
    CUDA(cudaMemcpy(open_at(part_open, t, i), &bad, 2, cudaMemcpyHostToDevice));
    if (!seal(&s))
        check_fail(ck, "a value that is not finite was taken");
    uint32_t scale = 1;
    cuda_scene_get(&scale,
                   s.sealed.pool + s.slot[b] * s.sealed.block_bytes + s.layer * s.sealed.layer_bytes +
                       cuda_code_scale_at(s.codec, s.shape.head_dim, t),
                   s.codec == CUDA_INT8 ? 2 : 4);
    if (s.codec == CUDA_INT8 ? (scale & 0xFFFF) != 0 : scale != 0)
        check_fail(ck, "its position has a scale");
    cuda_scene_free(&s.device);
}

/* ---- attention ---- */

/* One item over the whole sequence: its leaves join by a binary counter. store_out [n_kv_heads][n_tiles][16 (2 + d)] of rows first .. first + n. */
static void run_attend(struct check *ck, struct scene *s, uint32_t first, uint32_t n, uint32_t n_warps,
                       float *store_out)
{
    struct cuda_scene device = { 0 };
    const uint32_t n_kv = s->sealed.n_kv_heads, vectors = n * s->group, n_tiles = (vectors + 15) / 16,
                   n_leaves = (s->n_blocks + CUDA_LEAF_BLOCKS - 1) / CUDA_LEAF_BLOCKS, step = CUDA_UNIT_TILES;
    const size_t tile = 16 * (2 + (size_t)s->shape.head_dim), bytes = n_kv * n_tiles * tile * sizeof(float);
    struct cuda_unit units[3 * (ROWS_MAX * GROUP_MAX / 16 + 1)];
    uint8_t merges[LEAVES_MAX];
    uint32_t n_units = 0, depth = 0;
    for (uint32_t i = 0; i < n_leaves; i++) {
        merges[i] = 0;
        for (uint32_t k = i; k & 1; k >>= 1)
            merges[i]++;
        depth = depth + 1 - merges[i];
        if (i + 1 == n_leaves)
            merges[i] = (uint8_t)(merges[i] + depth - 1);
    }
    for (uint32_t head = 0; head < n_kv; head++)
        for (uint32_t t = 0; t < n_tiles; t += step)
            units[n_units++] = (struct cuda_unit){ .n_blocks = s->n_blocks,
                                                   .head = head,
                                                   .row = first,
                                                   .vector = t * 16,
                                                   .n_vectors = vectors,
                                                   .visible = s->pos + first,
                                                   .store = head * n_tiles + t };
    const uint32_t most = vectors < step * 16 ? vectors : step * 16;
    const struct cuda_attend a = {
        .units = cuda_scene_put(&device, units, n_units * sizeof *units),
        .n_units = cuda_scene_put(&device, &n_units, 4),
        .slots = cuda_scene_put(&device, s->slot, s->n_blocks * 4),
        .merges = cuda_scene_put(&device, merges, n_leaves),
        .q = s->q_device,
        .store = cuda_scene_take(&device, bytes),
        .stack = cuda_scene_take(&device, cuda_stack_floats(s->shape.head_dim, 4, 132) * sizeof(float)),
        .depth = 4,
        .scale = s->shape.scale,
    };
    (void)ck;
    CUDA(cuda_attend_codes_run(&s->sealed, s->layer, s->codec, &a, most, n_warps, NULL));
    cuda_scene_get(store_out, a.store, bytes);
    cuda_scene_free(&device);
}

/* Blocks one by one in the reference's own order. out [n_rows][n_heads][head_dim] */
static void reference_attend(struct check *ck, const struct scene *s, float *out)
{
    const uint32_t d = s->shape.head_dim, n_kv = s->open.n_kv_heads, h = s->open.n_heads;
    const struct attn_impl *it = attn_find(&s->shape, 0);
    const size_t part = it->part_bytes(&s->shape), floats = attn_partial_floats(d);
    float *sum = check_buffer(ck, floats * 4), *one = check_buffer(ck, floats * 4);
    void *tile = check_buffer(ck, it->q_tile_bytes(&s->shape));
    for (uint32_t v = 0; v < s->n_rows * h; v++) {
        const uint32_t row = v / h, head = v % h / s->group, pos = s->pos + row;
        const float *q = s->q + (size_t)v * d;
        it->pack_q(&s->shape, &q, 1, tile);
        for (uint32_t b = 0; b <= pos / 64; b++) {
            const uint8_t visible = (uint8_t)(pos - b * 64 < 63 ? pos - b * 64 + 1 : 64);
            const uint8_t *k = s->parts + ((size_t)b * n_kv + head) * 2 * part;
            it->block(&s->shape, tile, 1, &visible, k, k + part, NULL, b ? one : sum);
            if (b)
                it->merge(&s->shape, 1, sum, one);
        }
        if (it->rotate)
            it->rotate(&s->shape, 1, sum);
        for (uint32_t i = 0; i < d; i++)
            out[(size_t)v * d + i] = sum[2 * ATTN_ROWS + i] / sum[ATTN_ROWS];
    }
}

static void check_attend(struct check *ck)
{
    struct scene s;
    check_begin(ck, "attend", "cuda", 0);
    draw_scene(ck, &s);
    seal(&s);
    const uint32_t d = s.shape.head_dim, n_kv = s.open.n_kv_heads, h = s.open.n_heads, vectors = s.n_rows * s.group,
                   n_tiles = (vectors + 15) / 16;
    const size_t tile = 16 * (2 + (size_t)d), floats = n_kv * n_tiles * tile, n_out = (size_t)s.n_rows * h * d;
    float *store = check_buffer(ck, floats * 4), *other = check_buffer(ck, floats * 4),
          *out = check_buffer(ck, n_out * 4), *want = check_buffer(ck, n_out * 4);
    run_attend(ck, &s, 0, s.n_rows, check_below(ck, 2) ? 0 : 5, store);
    for (uint32_t head = 0; head < n_kv; head++)
        for (uint32_t v = 0; v < vectors; v++) {
            const float *t = store + ((size_t)head * n_tiles + v / 16) * tile;
            for (uint32_t i = 0; i < d; i++)
                out[((size_t)(v / s.group) * h + head * s.group + v % s.group) * d + i] =
                    t[32 + v % 16 * d + i] / t[16 + v % 16];
        }
    reference_attend(ck, &s, want);
    check_close(ck, "o", out, want, n_out, 4e-4);
    for (int t = 0; t < 3; t++) {
        const uint32_t first = check_below(ck, s.n_rows), n = t ? check_between(ck, 1, s.n_rows - first) : 1,
                       tiles = (n * s.group + 15) / 16;
        run_attend(ck, &s, first, n, t == 1 ? 3 : 0, other);
        for (uint32_t head = 0; head < n_kv; head++)
            for (uint32_t v = 0; v < n * s.group; v++) {
                const uint32_t w = first * s.group + v;
                const float *a = other + ((size_t)head * tiles + v / 16) * tile,
                            *b = store + ((size_t)head * n_tiles + w / 16) * tile;
                check_same(ck, "m alone", a + v % 16, b + w % 16, 4);
                check_same(ck, "l alone", a + 16 + v % 16, b + 16 + w % 16, 4);
                check_same(ck, "o alone", a + 32 + v % 16 * d, b + 32 + w % 16 * d, d * 4);
            }
    }
    cuda_scene_free(&s.device);
}

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "seal", check_seal, 15 }, { "attend", check_attend, 40 } };
    struct cuda_device device;
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "check_cuda_codes: skipped: %s\n", text);
        return 77;
    }
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
