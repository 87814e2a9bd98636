/*
 * Figures of the GPU's kernels, as one JSON object: decode attention against a copy, products of one row and of many, prefill attention. Medians of
 * replayed graphs; buffers are larger than the cache, or rotated so that nothing stays in it.
 *
 *   cuda_kernels [--quick | --decode | --decode-in-order]     (the last two: decode attention alone, over shuffled blocks or not)
 */
#include <math.h>
#include <string.h>

#include "bench/cuda_time.h"
#include "common/rng.h"
#include "kernels/cuda/cuda.h"

static struct cuda_device device;

/* bf16 values about +-0.06 .. 1, at random: zeros would run faster */
static void *noise(size_t bytes)
{
    enum { PIECE = 1 << 24 };
    static uint16_t *piece;
    uint8_t *p = take(bytes);
    if (!piece) {
        piece = malloc(PIECE);
        for (size_t i = 0; i < PIECE / 2; i++) {
            const uint64_t x = mix64(i);
            piece[i] = (uint16_t)(0x3D80 + (x & 0x1FF) + (x >> 20 & 0x8000));
        }
    }
    for (size_t at = 0; at < bytes; at += PIECE)
        CUDA(cudaMemcpy(p + at, piece, bytes - at < PIECE ? bytes - at : PIECE, cudaMemcpyHostToDevice));
    return p;
}

/* ---- copy ---- */

struct copy {
    uint8_t *a, *b;
    size_t bytes;
};

static void copy_run(void *ctx, int i)
{
    const struct copy *c = ctx;
    (void)i;
    CUDA(cudaMemcpyAsync(c->b, c->a, c->bytes, cudaMemcpyDeviceToDevice, stream));
}

static void bench_copy(void)
{
    struct copy c = { noise((size_t)4 << 30), take((size_t)4 << 30), (size_t)4 << 30 };
    printf("  \"copy_TBps\": %.3f,\n", 2.0 * (double)c.bytes / time_ms(copy_run, &c, 1) / 1e9);
    CUDA(cudaFree(c.a));
    CUDA(cudaFree(c.b));
}

/* ---- attention ---- */

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, GROUP = HEADS / KV_HEADS };

struct attention {
    struct cuda_kv kv;
    struct cuda_attend a[8];
    struct cuda_joins j[8];
    uint32_t n_rotated, grid;
    bool wide, join;
};

static void attention_run(void *ctx, int i)
{
    const struct attention *t = ctx;
    const uint32_t r = (uint32_t)i % t->n_rotated;
    CUDA(cuda_attend_run(&t->kv, 0, &t->a[r], t->wide, t->grid, stream));
    if (t->join)
        CUDA(cuda_join_run(&t->kv, &t->j[r], stream));
}

static struct cuda_kv pool_new(uint32_t n_blocks)
{
    struct cuda_kv kv = { .part_bytes = 64 * DIM * 2,
                          .layer_bytes = (size_t)KV_HEADS * 2 * 64 * DIM * 2,
                          .n_heads = HEADS,
                          .n_kv_heads = KV_HEADS,
                          .head_dim = DIM };
    kv.block_bytes = kv.layer_bytes;
    kv.pool = noise(n_blocks * kv.block_bytes);
    return kv;
}

/* The merges that join leaves first .. first + n by a binary counter, the rest at the end. */
static void count_merges(uint8_t *merges, uint32_t n)
{
    uint32_t depth = 0;
    for (uint32_t i = 0; i < n; i++) {
        merges[i] = 0;
        for (uint32_t k = i; k & 1; k >>= 1)
            merges[i]++;
        depth += 1u - merges[i];
    }
    merges[n - 1] = (uint8_t)(merges[n - 1] + depth - 1);
}

static bool in_order; /* blocks stand in the order in which they are read */

/* One row over n_leaves whole leaves, in items of some leaves each, and the items' join. */
static void bench_decode(uint32_t context, const char *name)
{
    const uint32_t n_leaves = context / 1024, n_blocks = context / 64;
    uint32_t fine = 1;
    while (n_leaves / fine * KV_HEADS > 4 * 2 * (uint32_t)device.processors)
        fine *= 2;
    const uint32_t n_items = (n_leaves + fine - 1) / fine;
    struct attention t = { .join = true };
    t.n_rotated = context >= 131072 ? 1 : 4; /* 32 k: 128 MB, the cache 50 */
    t.kv = pool_new(n_blocks * t.n_rotated);
    t.grid = 2 * (uint32_t)device.processors;
    const size_t tile = 16 * (2 + DIM);
    struct cuda_unit *units = calloc(n_items * KV_HEADS, sizeof *units);
    uint8_t *merges = calloc(n_leaves, 1);
    uint32_t *slots = calloc(n_blocks, 4), *pairs = calloc(2 * n_items, 4), levels[32] = { 0 }, n_levels = 0, n = 0;
    uint32_t n_units = 0;
    for (uint32_t i = 0; i < n_items; i++)
        count_merges(merges + i * fine, fine);
    for (uint32_t i = 0; i < n_items; i++)
        for (uint32_t head = 0; head < KV_HEADS; head++)
            units[n_units++] = (struct cuda_unit){ .slot = i * fine * 16,
                                                   .n_blocks = fine * 16,
                                                   .merges = i * fine,
                                                   .head = head,
                                                   .n_vectors = GROUP,
                                                   .visible = UINT32_MAX,
                                                   .store = i * KV_HEADS + head };
    for (uint32_t gap = 1; gap < n_items; gap *= 2) {
        for (uint32_t i = 0; i + gap < n_items; i += 2 * gap, n++) {
            pairs[2 * n] = i;
            pairs[2 * n + 1] = i + gap;
        }
        levels[++n_levels] = n;
    }
    const struct cuda_join join = { .n_tiles = 1, .n_vectors = GROUP, .n_levels = n_levels, .n_items = n_items };
    float *store = take(n_items * KV_HEADS * tile * 4);
    void *q = noise(HEADS * DIM * 2), *out = take(cuda_tiled_bytes(128, HEADS * DIM));
    uint32_t *failed = take(4);
    for (uint32_t r = 0; r < t.n_rotated; r++) {
        for (uint32_t i = 0; i < n_blocks; i++)
            slots[i] = i + r * n_blocks;
        for (uint32_t i = in_order ? 0 : n_blocks; i-- > 1;) {
            const uint32_t k = (uint32_t)(rng_at(1, i, r) % (i + 1)), x = slots[i];
            slots[i] = slots[k];
            slots[k] = x;
        }
        t.a[r] = (struct cuda_attend){ .units = put(units, n_units * sizeof *units),
                                       .n_units = put(&n_units, 4),
                                       .slots = put(slots, n_blocks * 4),
                                       .merges = put(merges, n_leaves),
                                       .q = q,
                                       .store = store,
                                       .stack = take(cuda_stack_floats(DIM, 8, (uint32_t)device.processors) * 4),
                                       .depth = 8,
                                       .scale = 0.0883883f };
        t.j[r] = (struct cuda_joins){ .joins = put(&join, sizeof join),
                                      .n_joins = 1,
                                      .n_blocks = KV_HEADS,
                                      .items_max = n_items,
                                      .levels = put(levels, sizeof levels),
                                      .pairs = put(pairs, 2 * n_items * 4),
                                      .store = store,
                                      .out = out,
                                      .cap = 128,
                                      .failed = failed };
    }
    const double ms = time_ms(attention_run, &t, 8), bytes = (double)n_blocks * (double)t.kv.block_bytes;
    t.join = false;
    const double apart = time_ms(attention_run, &t, 8);
    printf("  \"decode_attn_bf16_%s_ms\": %.4f, \"decode_attn_bf16_%s_TBps\": %.3f, "
           "\"decode_attn_bf16_%s_unjoined_ms\": %.4f,\n",
           name, ms, name, bytes / ms / 1e9, name, apart);
    fflush(stdout);
    CUDA(cudaFree(t.kv.pool));
    CUDA(cudaFree(store));
    for (uint32_t r = 0; r < t.n_rotated; r++)
        CUDA(cudaFree(t.a[r].stack));
    free(units);
    free(merges);
    free(slots);
    free(pairs);
}

/* Causal, n_rows rows of one sequence from position 0: the own leaf, and what is before it, of each 1024 rows. */
static void bench_prefill(uint32_t n_rows, const char *name)
{
    const uint32_t n_leaves = n_rows / 1024, tiles = 1024 * GROUP / 16, per = tiles / CUDA_WIDE_TILES;
    struct attention t = { .wide = true, .n_rotated = 1 };
    t.kv = pool_new(n_rows / 64);
    struct cuda_unit *units = calloc(2 * n_leaves * KV_HEADS * per, sizeof *units);
    uint8_t *merges = calloc((n_leaves + 1) * (n_leaves + 1), 1);
    uint32_t *slots = calloc(n_rows / 64, 4), n_units = 0;
    for (uint32_t i = 0; i < n_rows / 64; i++)
        slots[i] = i;
    for (uint32_t i = n_leaves; i-- > 0;) { /* the heaviest first */
        uint8_t *m = merges + i * (n_leaves + 1);
        if (i)
            count_merges(m, i);
        for (uint32_t own = i ? 0 : 1; own < 2; own++)
            for (uint32_t head = 0; head < KV_HEADS; head++)
                for (uint32_t p = per; p-- > 0;)
                    units[n_units++] = (struct cuda_unit){ .slot = own ? i * 16 : 0,
                                                           .n_blocks = own ? ((p + 1) * 128 / GROUP + 63) / 64 : i * 16,
                                                           .merges = own ? i * (n_leaves + 1) + i : i * (n_leaves + 1),
                                                           .head = head,
                                                           .row = i * 1024,
                                                           .vector = p * 128,
                                                           .n_vectors = 1024 * GROUP,
                                                           .visible = own ? 0 : UINT32_MAX,
                                                           .store = ((i * 2 + own) * KV_HEADS + head) * tiles + p * 8 };
    }
    t.grid = n_units;
    t.a[0] = (struct cuda_attend){ .units = put(units, n_units * sizeof *units),
                                   .n_units = put(&n_units, 4),
                                   .slots = put(slots, n_rows / 64 * 4),
                                   .merges = put(merges, (n_leaves + 1) * (n_leaves + 1)),
                                   .q = noise((size_t)n_rows * HEADS * DIM * 2),
                                   .store = take((size_t)n_leaves * 2 * KV_HEADS * tiles * 16 * (2 + DIM) * 4),
                                   .stack = take(cuda_stack_floats(DIM, 12, (uint32_t)device.processors) * 4),
                                   .depth = 12,
                                   .scale = 0.0883883f };
    const double ms = time_ms(attention_run, &t, 1), flop = 2.0 * n_rows * n_rows * HEADS * DIM;
    printf("  \"prefill_attn_bf16_%s_ms\": %.3f, \"prefill_attn_bf16_%s_TFLOPs\": %.1f,\n", name, ms, name,
           flop / ms / 1e9);
    fflush(stdout);
    CUDA(cudaFree(t.kv.pool));
    CUDA(cudaFree(t.a[0].store));
    CUDA(cudaFree(t.a[0].stack));
    free(units);
    free(merges);
    free(slots);
}

/* ---- products ---- */

struct product {
    struct cuda_linear l[8];
    int n;
};

static void product_run(void *ctx, int i)
{
    const struct product *p = ctx;
    CUDA(cuda_linear_run(&p->l[i % p->n], stream));
}

static double bench_product(const char *name, const uint32_t *outs, uint32_t n_parts, uint32_t n_in, uint32_t n_rows)
{
    struct product p = { .n = 1 };
    const uint32_t cap = (n_rows + 127) / 128 * 128;
    uint32_t n_out = 0;
    for (uint32_t i = 0; i < n_parts; i++)
        n_out += (outs[i] + 63) / 64 * 64;
    const double bytes = (double)n_out * n_in * 2;
    if (n_rows <= CUDA_ROWS_FEW && bytes < 4e8)
        p.n = bytes < 1.2e8 ? 8 : 2;
    void *x = noise(cuda_tiled_bytes(cap, n_in));
    float *y = take((size_t)n_rows * n_out * 4), *partials = take(cuda_linear_partials(n_out, n_in) * 4);
    uint32_t *counters = take(n_out / 64 * 4);
    CUDA(cudaMemset(counters, 0, n_out / 64 * 4));
    for (int k = 0; k < p.n; k++) {
        p.l[k] = (struct cuda_linear){ .x = x,
                                       .cap = cap,
                                       .n_rows = n_rows,
                                       .n_in = n_in,
                                       .n_parts = n_parts,
                                       .partials = partials,
                                       .counters = counters };
        for (uint32_t i = 0; i < n_parts; i++)
            p.l[k].part[i] = (struct cuda_part){
                .packed = noise(cuda_packed_bytes(outs[i], n_in)), .y = y, .n_out = outs[i], .y_stride = n_out
            };
    }
    const double ms = time_ms(product_run, &p, n_rows > 64 ? 2 : 8);
    if (n_rows <= CUDA_ROWS_FEW)
        printf("  \"linear_%s_%u_us\": %.2f, \"linear_%s_%u_TBps\": %.3f,\n", name, n_rows, ms * 1e3, name, n_rows,
               bytes / ms / 1e9);
    else
        printf("  \"linear_%s_%u_ms\": %.4f, \"linear_%s_%u_TFLOPs\": %.1f,\n", name, n_rows, ms, name, n_rows,
               bytes * n_rows / ms / 1e9);
    fflush(stdout);
    for (int k = 0; k < p.n; k++)
        for (uint32_t i = 0; i < n_parts; i++)
            CUDA(cudaFree((void *)(uintptr_t)p.l[k].part[i].packed));
    CUDA(cudaFree(x));
    CUDA(cudaFree(y));
    CUDA(cudaFree(partials));
    CUDA(cudaFree(counters));
    return ms;
}

int main(int argc, char **argv)
{
    static const uint32_t qkv[] = { 4096, 1024, 1024 }, out[] = { 4096 }, up[] = { 14336, 14336 }, head[] = { 128256 };
    const char *mode = argc > 1 ? argv[1] : "";
    const bool quick = !strcmp(mode, "--quick");
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "cuda_kernels: %s\n", text);
        return 1;
    }
    repeats = quick ? 10 : 50;
    CUDA(cudaStreamCreate(&stream));
    printf("{\n  \"gpu\": \"%s\",\n", device.name);
    if (!strcmp(mode, "--decode") || !strcmp(mode, "--decode-in-order")) {
        in_order = strcmp(mode, "--decode");
        bench_decode(32 << 10, "32k");
        bench_decode(128 << 10, "128k");
        bench_decode(512 << 10, "512k");
        bench_decode(1024 << 10, "1m");
        printf("  \"repeats\": %d\n}\n", repeats);
        return 0;
    }
    bench_copy();
    static const uint32_t rows[] = { 1, 16, 64 };
    for (int i = 0; i < (quick ? 1 : 3); i++) {
        const double a = bench_product("qkv", qkv, 3, 4096, rows[i]), b = bench_product("out", out, 1, 4096, rows[i]),
                     c = bench_product("up", up, 2, 4096, rows[i]), d = bench_product("down", out, 1, 14336, rows[i]),
                     e = bench_product("head", head, 1, 4096, rows[i]);
        printf("  \"linear_8b_%u_ms\": %.3f,\n", rows[i], 32 * (a + b + c + d) + e);
    }
    bench_product("qkv", qkv, 3, 4096, 2048);
    bench_product("up", up, 2, 4096, 2048);
    bench_product("down", out, 1, 14336, 2048);
    bench_decode(8 << 10, "8k");
    bench_decode(32 << 10, "32k");
    bench_decode(128 << 10, "128k");
    if (!quick) {
        bench_decode(512 << 10, "512k");
        bench_decode(1024 << 10, "1m");
    }
    bench_prefill(8 << 10, "8k");
    if (!quick)
        bench_prefill(32 << 10, "32k");
    printf("  \"repeats\": %d\n}\n", repeats);
    return 0;
}
