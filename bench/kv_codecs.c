/*
 * Attention of one decode row over coded blocks, beside the same over bf16, in turns, so that what else runs on the machine disturbs all: one layer of 8B
 * shape (32 query heads, 8 KV heads of 128), random blocks. Blocks lie in memory as a worker's pool has them; threads take KV heads' leaves; partials of
 * leaves of four blocks join as they come. With a density, quest scores and chooses first, a list a KV head. The floor is the time in which the threads
 * only read the same bytes, sketches included. Processor time of the slowest thread, medians of the rounds; how many times as fast: the median of the
 * rounds' ratios.
 *
 *   kv_codecs [--threads N] [--rounds N] [--positions N]
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/rng.h"
#include "kernels/kernels.h"
#include "kernels/selector.h"

enum { HEAD_DIM = 128, KV_HEADS = 8, GROUP = 4, LEAF_BLOCKS = 4, THREADS_MAX = 64, ROUNDS_MAX = 256 };
enum { TENTH = SELECTOR_DENSITY_ONE / 10 };

struct layer {
    struct attn_shape shape;
    const struct attn_impl *it;
    size_t part, n_blocks;
    uint8_t *blocks; /* [n_blocks][KV_HEADS][keys, values], a block's other layers left out */
};

/* What quest has of the same blocks. */
struct sketches {
    const struct selector_impl *it;
    size_t bytes; /* of one */
    uint8_t *data;
    const void **of; /* [n_blocks] */
};

static const struct selector_shape selector_shape = { KV_HEADS * GROUP, KV_HEADS, HEAD_DIM, KV_BF16 };

struct member {
    const struct layer *layer;
    const struct sketches *sketches;
    uint32_t density; /* 0: dense */
    uint32_t index, n_members;
    bool reads; /* only */
    float q[GROUP][HEAD_DIM];
    float *scores;
    uint32_t *words;
    uint64_t *lists[KV_HEADS];
    float *tile, *leaf, *one, *total;
    uint64_t sum;
    double ms; /* of processor time: other programs disturb less */
    pthread_t thread;
};

static void *zeroed(size_t bytes)
{
    const size_t rounded = (bytes + 63) / 64 * 64;
    void *p = aligned_alloc(64, rounded);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", rounded);
        exit(1);
    }
    memset(p, 0, rounded);
    return p;
}

static const uint8_t *part_of(const struct layer *l, size_t block, uint32_t head)
{
    return l->blocks + (block * KV_HEADS + head) * 2 * l->part;
}

/* The block of `head` that is read next, from `block` on; n_blocks: none. */
static size_t next_block(const struct member *m, size_t block, uint32_t head)
{
    while (m->density && block < m->layer->n_blocks && !selector_has(m->lists[head], (uint32_t)block))
        block++;
    return block;
}

static void attend_leaf(struct member *m, size_t leaf, uint32_t head)
{
    const struct layer *l = m->layer;
    const size_t end = (leaf + 1) * LEAF_BLOCKS;
    uint8_t visible[ATTN_ROWS];
    bool any = false;
    memset(visible, KV_BLOCK, sizeof visible);
    for (size_t b = next_block(m, leaf * LEAF_BLOCKS, head), next; b < end; b = next) {
        const uint8_t *k = part_of(l, b, head);
        next = next_block(m, b + 1, head);
        l->it->block(&l->shape, m->tile, GROUP, visible, k, k + l->part,
                     next < l->n_blocks ? part_of(l, next, head) : NULL, any ? m->one : m->leaf);
        if (any)
            l->it->merge(&l->shape, GROUP, m->leaf, m->one);
        any = true;
    }
    if (any)
        l->it->merge(&l->shape, GROUP, m->total, m->leaf);
}

static uint64_t read_bytes(const uint8_t *from, size_t bytes)
{
    const uint64_t *at = (const uint64_t *)(const void *)from;
    uint64_t x[8] = { 0 };
    for (size_t i = 0; i < bytes / 8; i += 8)
        for (int j = 0; j < 8; j++)
            x[j] ^= at[i + j];
    return x[0] ^ x[1] ^ x[2] ^ x[3] ^ x[4] ^ x[5] ^ x[6] ^ x[7];
}

static uint64_t read_leaf(const struct member *m, size_t leaf, uint32_t head)
{
    const size_t end = (leaf + 1) * LEAF_BLOCKS;
    uint64_t x = 0;
    for (size_t b = next_block(m, leaf * LEAF_BLOCKS, head); b < end; b = next_block(m, b + 1, head))
        x ^= read_bytes(part_of(m->layer, b, head), 2 * m->layer->part);
    return x;
}

/* The head's list; or its sketches are only read, and the list stays. */
static void choose(struct member *m, uint32_t head)
{
    const uint32_t n = (uint32_t)m->layer->n_blocks;
    const size_t bytes = m->sketches->bytes / KV_HEADS;
    const float *q[GROUP];
    for (uint32_t c = 0; c < n && m->reads; c++)
        m->sum ^= read_bytes((const uint8_t *)m->sketches->of[c] + head * bytes, bytes);
    if (m->reads)
        return;
    for (uint32_t i = 0; i < GROUP; i++)
        q[i] = m->q[i];
    m->sketches->it->score(&selector_shape, head, head + 1, q, m->sketches->of, n, m->scores);
    const struct selector_choice choice = { .own = n - 1, .density = m->density, .leaf_blocks = LEAF_BLOCKS };
    selector_choose(&choice, m->scores, m->words, m->lists[head]);
}

static void *work(void *arg)
{
    struct member *m = arg;
    const size_t leaves = m->layer->n_blocks / LEAF_BLOCKS;
    const uint32_t step = m->n_members < KV_HEADS ? m->n_members : KV_HEADS;
    struct timespec took;
    cpu_thread_init();
    for (uint32_t head = m->index; head < KV_HEADS; head += step) {
        if (m->density)
            choose(m, head);
        for (size_t leaf = 0; leaf < leaves; leaf++) {
            if (m->reads)
                m->sum ^= read_leaf(m, leaf, head);
            else
                attend_leaf(m, leaf, head);
        }
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &took);
    m->ms = (double)took.tv_sec * 1e3 + (double)took.tv_nsec / 1e6;
    return NULL;
}

/* -> milliseconds of the thread that took longest */
static double pass(struct member *members, uint32_t n, const struct layer *l, uint32_t density, bool reads)
{
    double slowest = 0;
    for (uint32_t i = 0; i < n; i++) {
        members[i].layer = l;
        members[i].density = density;
        members[i].reads = reads;
        if (pthread_create(&members[i].thread, NULL, work, &members[i])) {
            fprintf(stderr, "no thread\n");
            exit(1);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(members[i].thread, NULL);
        slowest = members[i].ms > slowest ? members[i].ms : slowest;
    }
    return slowest;
}

static struct layer layer_new(enum kv_codec codec, size_t positions)
{
    struct layer l = { .shape = { HEAD_DIM, codec, 1 / sqrtf(HEAD_DIM) }, .n_blocks = positions / KV_BLOCK };
    l.it = attn_find(&l.shape, cpu_caps());
    l.part = l.it->part_bytes(&l.shape);
    const size_t bytes = l.n_blocks * KV_HEADS * 2 * l.part;
    if (posix_memalign((void **)&l.blocks, (size_t)2 << 20, bytes)) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    (void)madvise(l.blocks, bytes, MADV_HUGEPAGE); /* as a pool's */
    for (size_t i = 0; i < bytes / 2; i++)         /* small numbers as bf16, as codes and as f16 */
        ((uint16_t *)(void *)l.blocks)[i] = (uint16_t)(0x2D00 + (i * 7919 & 0x0CFF));
    return l;
}

static struct sketches sketches_new(size_t n_blocks)
{
    struct sketches s = { .it = selector_find("quest", cpu_caps()) };
    s.bytes = s.it->sketch_bytes(&selector_shape);
    s.data = zeroed(n_blocks * s.bytes);
    s.of = zeroed(n_blocks * sizeof *s.of);
    for (size_t i = 0; i < n_blocks * s.bytes / 4; i++) { /* least, then largest, of a channel */
        const float x = (float)rng_unit(rng_at(2, i, 0)) - 0.5f;
        const uint32_t two = (uint32_t)f32_to_bf16(x + 0.5f) << 16 | f32_to_bf16(x);
        memcpy(s.data + 4 * i, &two, 4);
    }
    for (size_t i = 0; i < n_blocks; i++)
        s.of[i] = s.data + i * s.bytes;
    return s;
}

static void queries_pack(const struct layer *l, struct member *m)
{
    const float *rows[GROUP];
    for (uint32_t i = 0; i < GROUP; i++) {
        rows[i] = m->q[i];
        for (uint32_t c = 0; c < HEAD_DIM; c++)
            m->q[i][c] = (float)((int)(i * 131 + c * 37) % 61 - 30) / 20;
    }
    l->it->pack_q(&l->shape, rows, GROUP, m->tile);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x, uint32_t n)
{
    qsort(x, n, sizeof *x, ascending);
    return x[n / 2];
}

static void members_new(struct member *members, uint32_t n, const struct sketches *sketches, size_t n_blocks)
{
    const size_t bytes = attn_partial_floats(HEAD_DIM) * sizeof(float);
    for (uint32_t i = 0; i < n; i++) {
        struct member *m = &members[i];
        *m = (struct member){ .index = i, .n_members = n, .sketches = sketches };
        m->tile = zeroed(ATTN_ROWS * HEAD_DIM * 8);
        m->leaf = zeroed(bytes);
        m->one = zeroed(bytes);
        m->total = zeroed(bytes);
        m->scores = zeroed(n_blocks * sizeof(float));
        m->words = zeroed(2 * n_blocks * sizeof(uint32_t));
        for (uint32_t head = 0; head < KV_HEADS; head++)
            m->lists[head] = zeroed(selector_words((uint32_t)n_blocks) * sizeof(uint64_t));
    }
}

static void members_free(struct member *members, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct member *m = &members[i];
        void *of[] = { m->tile, m->leaf, m->one, m->total, m->scores, m->words };
        for (size_t k = 0; k < sizeof of / sizeof *of; k++)
            free(of[k]);
        for (uint32_t head = 0; head < KV_HEADS; head++)
            free(m->lists[head]);
    }
}

static void measure(size_t positions, uint32_t n_threads, uint32_t n_rounds)
{
    static const enum kv_codec codecs[] = { KV_BF16, KV_INT8, KV_INT4_ROT };
    static const struct {
        int codec;
        uint32_t density;
    } subjects[] = { { 0, 0 }, { 1, 0 }, { 2, 0 }, { 0, TENTH }, { 2, TENTH } };
    enum { N = sizeof subjects / sizeof *subjects, CODECS = sizeof codecs / sizeof *codecs };
    struct layer layers[CODECS];
    struct member members[THREADS_MAX];
    static double ms[N][ROUNDS_MAX], floor_ms[N][ROUNDS_MAX], ratio[N][ROUNDS_MAX];
    struct sketches sketches = sketches_new(positions / KV_BLOCK);
    members_new(members, n_threads, &sketches, positions / KV_BLOCK);
    for (int c = 0; c < CODECS; c++)
        layers[c] = layer_new(codecs[c], positions);
    for (uint32_t r = 0; r < n_rounds; r++)
        for (int s = 0; s < N; s++) {
            const struct layer *l = &layers[subjects[s].codec];
            for (uint32_t i = 0; i < n_threads; i++) {
                queries_pack(l, &members[i]);
                memset(members[i].total, 0, attn_partial_floats(HEAD_DIM) * sizeof(float));
            }
            ms[s][r] = pass(members, n_threads, l, subjects[s].density, false);
            floor_ms[s][r] = pass(members, n_threads, l, subjects[s].density, true);
            ratio[s][r] = ms[0][r] / ms[s][r];
        }
    for (int s = 0; s < N; s++) {
        const struct layer *l = &layers[subjects[s].codec];
        const double took = median(ms[s], n_rounds), floor_took = median(floor_ms[s], n_rounds);
        printf("%7zu positions, %u threads: %-8s %-6s %-12s %7.2f ms a layer (floor %6.2f), a block %.3f of bf16: %.2f "
               "times as fast\n",
               positions, n_threads, kv_codecs[codecs[subjects[s].codec]].name, l->it->name,
               subjects[s].density ? "quest, 10 %" : "", took, floor_took, (double)l->part / (double)layers[0].part,
               median(ratio[s], n_rounds));
    }
    for (int c = 0; c < CODECS; c++)
        free(layers[c].blocks);
    free(sketches.data);
    free(sketches.of);
    members_free(members, n_threads);
}

int main(int argc, char **argv)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = cores > 1 ? (uint32_t)cores : 1, rounds = 9, positions = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint32_t *to = !strcmp(argv[i], "--threads")     ? &threads
                       : !strcmp(argv[i], "--rounds")    ? &rounds
                       : !strcmp(argv[i], "--positions") ? &positions
                                                         : NULL;
        const long value = strtol(argv[i + 1], NULL, 10);
        if (!to || value < 1 || value > 1 << 24) {
            fprintf(stderr, "usage: kv_codecs [--threads N] [--rounds N] [--positions N]\n");
            return 2;
        }
        *to = (uint32_t)value;
    }
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    rounds = rounds < ROUNDS_MAX ? rounds : ROUNDS_MAX;
    cpu_caps();
    if (positions) {
        measure((positions + 255) / 256 * 256, threads, rounds);
        return 0;
    }
    measure(32768, threads, rounds);
    measure(131072, threads, rounds);
    return 0;
}
