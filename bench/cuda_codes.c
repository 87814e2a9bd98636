/*
 * Figures of attention over coded blocks beside bf16 blocks of the same run, as one JSON object: decode, one layer of 32 / 8 heads of 128, batch 1, pages
 * shuffled, the items' join included, and with quest's selection; and of sealing. Medians of replayed graphs; 32 k rotates over several buffers, so that nothing stays in the cache.
 *
 *   cuda_codes [--quick]
 */
#include <string.h>

#include "bench/cuda_time.h"
#include "common/rng.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/quest.h"

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, GROUP = HEADS / KV_HEADS, TEMPLATE = 64, ROTATED_MAX = 8 };
enum form { BF16, INT8, INT4_ROT };
static const char *const names[] = { "bf16", "int8", "int4rot" };

static struct cuda_device device;

/* ---- pools ---- */

/* A part at random: bf16 about +-0.06 .. 1; or codes, with scales and least values of such size. */
static void draw_part(enum form form, uint64_t seed, uint8_t *part, size_t bytes)
{
    for (size_t i = 0; i < bytes / 8; i++) {
        const uint64_t x = mix64(seed * 65536 + i);
        memcpy(part + 8 * i, &x, 8);
    }
    for (size_t i = 0; form == BF16 && i < bytes / 2; i++) {
        const uint64_t x = mix64(seed * 65536 + i);
        const uint16_t y = (uint16_t)(0x3D80 + (x & 0x1FF) + (x >> 20 & 0x8000));
        memcpy(part + 2 * i, &y, 2);
    }
    for (uint32_t t = 0; form != BF16 && t < 64; t++) {
        const enum cuda_codec codec = form == INT8 ? CUDA_INT8 : CUDA_INT4_ROT;
        const uint16_t planes[2] = { (uint16_t)((form == INT8 ? 0x1C00 : 0x2C00) + mix64(seed + t) % 512), 0xB800 };
        memcpy(part + cuda_code_scale_at(codec, DIM, t), planes, form == INT8 ? 2 : 4);
    }
}

static struct cuda_kv pool_new(enum form form, uint32_t n_blocks)
{
    struct cuda_kv kv = { .n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM };
    kv.part_bytes = form == BF16 ? 64 * DIM * 2 : cuda_code_part_bytes(form == INT8 ? CUDA_INT8 : CUDA_INT4_ROT, DIM);
    kv.layer_bytes = kv.block_bytes = KV_HEADS * 2 * kv.part_bytes;
    kv.pool = take(n_blocks * kv.block_bytes);
    uint8_t *some = malloc(TEMPLATE * kv.block_bytes);
    for (uint32_t i = 0; i < TEMPLATE * KV_HEADS * 2; i++)
        draw_part(form, i, some + i * kv.part_bytes, kv.part_bytes);
    for (uint32_t b = 0; b < n_blocks; b += TEMPLATE) {
        const uint32_t n = n_blocks - b < TEMPLATE ? n_blocks - b : TEMPLATE;
        CUDA(cudaMemcpy(kv.pool + b * kv.block_bytes, some, n * kv.block_bytes, cudaMemcpyHostToDevice));
    }
    free(some);
    return kv;
}

static void *queries(void)
{
    uint16_t q[HEADS * DIM];
    for (uint32_t i = 0; i < HEADS * DIM; i++)
        q[i] = (uint16_t)(0x3F00 + (mix64(i) & 0xFF) + (mix64(i) >> 20 & 0x8000));
    return put(q, sizeof q);
}

/* ---- decode ---- */

struct decode {
    enum form form;
    struct cuda_kv kv;
    struct cuda_attend a[ROTATED_MAX];
    struct cuda_joins j;
    uint32_t n_rotated;
    bool join;
};

static void decode_run(void *ctx, int i)
{
    const struct decode *t = ctx;
    const struct cuda_attend *a = &t->a[(uint32_t)i % t->n_rotated];
    if (t->form == BF16)
        CUDA(cuda_attend_run(&t->kv, 0, a, false, 2 * (uint32_t)device.processors, stream));
    else
        CUDA(cuda_attend_codes_run(&t->kv, 0, t->form == INT8 ? CUDA_INT8 : CUDA_INT4_ROT, a, GROUP, 0, stream));
    if (t->join)
        CUDA(cuda_join_run(&t->kv, &t->j, stream));
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

/* One row over the first n_blocks blocks, all of them listed, in items of some leaves each. */
static void decode_plan(struct decode *t, uint32_t n_blocks)
{
    const uint32_t n_leaves = n_blocks / CUDA_LEAF_BLOCKS;
    uint32_t fine = 1, n_units = 0, n = 0, n_levels = 0, levels[32] = { 0 };
    while (n_leaves / fine * KV_HEADS > 8 * (uint32_t)device.processors)
        fine *= 2;
    const uint32_t n_items = (n_leaves + fine - 1) / fine;
    struct cuda_unit *units = calloc(n_items * KV_HEADS, sizeof *units);
    uint8_t *merges = calloc(n_items * fine, 1);
    uint32_t *slots = calloc(n_blocks, 4), *pairs = calloc(2 * n_items, 4);
    for (uint32_t i = 0; i < n_items; i++) {
        const uint32_t have = n_leaves - i * fine < fine ? n_leaves - i * fine : fine;
        count_merges(merges + i * fine, have);
        for (uint32_t head = 0; head < KV_HEADS; head++)
            units[n_units++] = (struct cuda_unit){ .slot = i * fine * CUDA_LEAF_BLOCKS,
                                                   .n_blocks = have * CUDA_LEAF_BLOCKS,
                                                   .merges = i * fine,
                                                   .head = head,
                                                   .n_vectors = GROUP,
                                                   .visible = UINT32_MAX,
                                                   .store = i * KV_HEADS + head };
    }
    for (uint32_t gap = 1; gap < n_items; gap *= 2) {
        for (uint32_t i = 0; i + gap < n_items; i += 2 * gap, n++) {
            pairs[2 * n] = i;
            pairs[2 * n + 1] = i + gap;
        }
        levels[++n_levels] = n;
    }
    const struct cuda_join join = { .n_tiles = 1, .n_vectors = GROUP, .n_levels = n_levels, .n_items = n_items };
    const struct cuda_attend a = { .units = put(units, n_units * sizeof *units),
                                   .n_units = put(&n_units, 4),
                                   .merges = put(merges, n_items * fine),
                                   .q = queries(),
                                   .store = take((size_t)n_items * KV_HEADS * 16 * (2 + DIM) * 4),
                                   .stack = take(cuda_stack_floats(DIM, 12, (uint32_t)device.processors) * 4),
                                   .depth = 12,
                                   .scale = 0.0883883f };
    for (uint32_t r = 0; r < t->n_rotated; r++) {
        for (uint32_t i = 0; i < n_blocks; i++)
            slots[i] = i + r * n_blocks;
        for (uint32_t i = n_blocks; i-- > 1;) {
            const uint32_t k = (uint32_t)(rng_at(1, i, r) % (i + 1)), x = slots[i];
            slots[i] = slots[k];
            slots[k] = x;
        }
        t->a[r] = a;
        t->a[r].slots = put(slots, n_blocks * 4);
    }
    t->j = (struct cuda_joins){ .joins = put(&join, sizeof join),
                                .n_joins = 1,
                                .n_blocks = KV_HEADS,
                                .items_max = n_items,
                                .levels = put(levels, sizeof levels),
                                .pairs = put(pairs, (size_t)2 * n_items * 4),
                                .store = a.store,
                                .out = take(cuda_tiled_bytes(128, HEADS * DIM)),
                                .cap = 128,
                                .failed = take(4) };
    free(units);
    free(merges);
    free(slots);
    free(pairs);
}

/* The units read what their heads' lists have. */
static void decode_lists(struct decode *t, uint32_t words)
{
    uint32_t n;
    CUDA(cudaMemcpy(&n, t->a[0].n_units, 4, cudaMemcpyDeviceToHost));
    struct cuda_unit *units = malloc(n * sizeof *units);
    CUDA(cudaMemcpy(units, t->a[0].units, n * sizeof *units, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < n; i++)
        units[i].words = words;
    for (uint32_t r = 0; r < t->n_rotated; r++)
        t->a[r].units = put(units, n * sizeof *units);
    free(units);
}

static double bench_decode(enum form form, uint32_t context, const char *name, double beside)
{
    const uint32_t n_blocks = context / 64;
    struct decode t = { .form = form, .n_rotated = context >= 131072 ? 2 : ROTATED_MAX, .join = true };
    t.kv = pool_new(form, n_blocks * t.n_rotated);
    decode_plan(&t, n_blocks);
    const double ms = time_ms(decode_run, &t, 8), bytes = (double)n_blocks * (double)t.kv.block_bytes;
    t.join = false;
    const double apart = time_ms(decode_run, &t, 8);
    printf(
        "  \"decode_attn_%s_%s_ms\": %.4f, \"decode_attn_%s_%s_TBps\": %.3f, \"decode_attn_%s_%s_unjoined_ms\": %.4f",
        names[form], name, ms, names[form], name, bytes / ms / 1e9, names[form], name, apart);
    if (form != BF16)
        printf(", \"decode_attn_%s_%s_over_bf16\": %.3f", names[form], name, beside / ms);
    printf(",\n");
    fflush(stdout);
    CUDA(cudaFree(t.kv.pool));
    CUDA(cudaFree(t.a[0].store));
    CUDA(cudaFree(t.a[0].stack));
    return ms;
}

/* ---- quest ---- */

struct sparse {
    struct decode t;
    struct cuda_quest c[ROTATED_MAX];
    bool score, choose, attend;
};

static void sparse_run(void *ctx, int i)
{
    const struct sparse *s = ctx;
    const struct cuda_quest *c = &s->c[(uint32_t)i % s->t.n_rotated];
    if (s->score)
        CUDA(cuda_quest_score(&s->t.kv, 0, c, stream));
    if (s->choose)
        CUDA(cuda_quest_choose(KV_HEADS, c, stream));
    if (s->attend)
        decode_run((void *)(uintptr_t)&s->t, i);
}

static double sparse_ms(struct sparse *s, bool score, bool choose, bool attend, bool join)
{
    s->score = score;
    s->choose = choose;
    s->attend = attend;
    s->t.join = join;
    return time_ms(sparse_run, s, 8);
}

/* Each head reads its own twentieth of the blocks: the units of dense attention, by lists. */
static void bench_quest(enum form form, uint32_t context, const char *name, double beside)
{
    const uint32_t n_blocks = context / 64, words = n_blocks / 64;
    struct sparse s = { .t = { .form = form, .n_rotated = 2 }, .score = true, .choose = true };
    const size_t each = cuda_quest_bytes(KV_HEADS, DIM);
    uint8_t *some = malloc(each * 1024), **pointers = malloc(n_blocks * sizeof *pointers);
    uint32_t *numbers = malloc(n_blocks * 4);
    s.t.kv = pool_new(form, n_blocks * s.t.n_rotated);
    decode_plan(&s.t, n_blocks);
    uint8_t *sketches = take(each * n_blocks * s.t.n_rotated);
    for (uint32_t i = 0; i < 1024; i++) /* bounds at random; the order of two does not matter to the time */
        draw_part(BF16, i, some + i * each, each);
    for (uint32_t b = 0; b < n_blocks * s.t.n_rotated; b += 1024)
        CUDA(cudaMemcpy(sketches + b * each, some, 1024 * each, cudaMemcpyHostToDevice));
    const struct cuda_quest_job job = { .own = n_blocks - 1, .budget = (n_blocks + 19) / 20, .words = words };
    for (uint32_t i = 0; i < n_blocks; i++)
        numbers[i] = i;
    const uint32_t *blocks = put(numbers, n_blocks * 4);
    for (uint32_t r = 0; r < s.t.n_rotated; r++) {
        for (uint32_t i = 0; i < n_blocks; i++)
            pointers[i] = sketches + ((size_t)r * n_blocks + i) * each;
        s.c[r] = (struct cuda_quest){ .jobs = put(&job, sizeof job),
                                      .n_jobs = 1,
                                      .own_max = n_blocks,
                                      .sketches = put(pointers, n_blocks * sizeof *pointers),
                                      .layer_bytes = each,
                                      .q = s.t.a[r].q,
                                      .scores = take((size_t)KV_HEADS * n_blocks * 4),
                                      .lists = take((size_t)KV_HEADS * words * 8) };
        s.t.a[r].lists = s.c[r].lists;
        s.t.a[r].blocks = blocks;
        s.t.a[r].by_row = 1;
        s.t.a[r].skipped = take(8);
    }
    decode_lists(&s.t, words);
    sparse_run(&s, 0); /* both lists are there, for attention by itself */
    sparse_run(&s, 1);
    const double ms = sparse_ms(&s, true, true, true, true), select = sparse_ms(&s, true, true, false, false),
                 score = sparse_ms(&s, true, false, false, false), choose = sparse_ms(&s, false, true, false, false),
                 joined = sparse_ms(&s, false, false, true, true), apart = sparse_ms(&s, false, false, true, false);
    printf("  \"decode_attn_%s_quest_5pct_%s_ms\": %.4f, \"quest_5pct_%s_select_ms\": %.4f, "
           "\"decode_attn_%s_quest_5pct_%s_over_bf16\": %.2f,\n",
           names[form], name, ms, name, select, names[form], name, beside / ms);
    printf("  \"quest_5pct_%s_score_ms\": %.4f, \"quest_5pct_%s_choose_ms\": %.4f, \"quest_5pct_%s_attend_ms\": %.4f, "
           "\"quest_5pct_%s_attend_unjoined_ms\": %.4f,\n",
           name, score, name, choose, name, joined, name, apart);
    fflush(stdout);
    CUDA(cudaFree(s.t.kv.pool));
    CUDA(cudaFree(sketches));
    free(some);
    free(pointers);
    free(numbers);
}

/* ---- sealing ---- */

struct sealing {
    struct cuda_kv open, sealed;
    struct cuda_seals s[ROTATED_MAX];
    uint32_t n;
};

static void sealing_run(void *ctx, int i)
{
    const struct sealing *t = ctx;
    CUDA(cuda_seal_run(&t->open, &t->sealed, 0, &t->s[i % ROTATED_MAX], t->n, stream));
}

/* Blocks of 1024 positions, one layer. */
static void bench_seal(enum form form)
{
    struct sealing t = { .open = pool_new(BF16, 16 * ROTATED_MAX), .n = 16 };
    struct cuda_seal jobs[16];
    t.sealed = pool_new(form, 16 * ROTATED_MAX);
    for (uint32_t r = 0; r < ROTATED_MAX; r++) {
        for (uint32_t i = 0; i < 16; i++)
            jobs[i] = (struct cuda_seal){ r * 16 + i, r * 16 + i };
        t.s[r] = (struct cuda_seals){ .jobs = put(jobs, sizeof jobs),
                                      .n_jobs = put(&t.n, 4),
                                      .codec = form == INT8 ? CUDA_INT8 : CUDA_INT4_ROT,
                                      .failed = take(4) };
    }
    printf("  \"seal_%s_1k_layer_us\": %.2f,\n", names[form], 1e3 * time_ms(sealing_run, &t, 8));
    CUDA(cudaFree(t.open.pool));
    CUDA(cudaFree(t.sealed.pool));
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
    struct copy c = { .bytes = (size_t)4 << 30 };
    const struct cuda_kv kv = pool_new(BF16, (uint32_t)(c.bytes / (KV_HEADS * 2 * 64 * DIM * 2)));
    c.a = kv.pool;
    c.b = take(c.bytes);
    printf("  \"copy_TBps\": %.3f,\n", 2.0 * (double)c.bytes / time_ms(copy_run, &c, 1) / 1e9);
    CUDA(cudaFree(c.a));
    CUDA(cudaFree(c.b));
}

int main(int argc, char **argv)
{
    static const struct {
        uint32_t context;
        const char *name;
    } sizes[] = {
        { 8 << 10, "8k" }, { 32 << 10, "32k" }, { 128 << 10, "128k" }, { 512 << 10, "512k" }, { 1024 << 10, "1m" }
    };
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "cuda_codes: %s\n", text);
        return 1;
    }
    repeats = quick ? 10 : 50;
    CUDA(cudaStreamCreate(&stream));
    printf("{\n  \"gpu\": \"%s\",\n", device.name);
    bench_copy();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (quick && sizes[i].context != 128 << 10)
            continue;
        const double beside = bench_decode(BF16, sizes[i].context, sizes[i].name, 0);
        bench_decode(INT8, sizes[i].context, sizes[i].name, beside);
        bench_decode(INT4_ROT, sizes[i].context, sizes[i].name, beside);
        if (sizes[i].context >= 128 << 10)
            bench_quest(INT4_ROT, sizes[i].context, sizes[i].name, beside);
    }
    bench_seal(INT8);
    bench_seal(INT4_ROT);
    printf("  \"repeats\": %d\n}\n", repeats);
    return 0;
}
