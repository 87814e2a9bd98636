/*
 * Decode attention over coded KV, as one layer of a model of 8B shape does it: 32 query heads, 8 KV heads of 128, one row, contexts of 32 k and 128 k
 * positions, every codec in turn over the same machine. Blocks lie in memory as a worker's pool has them; threads take KV heads' leaves; partials of leaves of
 * four blocks join as they come. The floor is the time in which the threads only read the same bytes.
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

#include "kernels/kernels.h"

enum { HEAD_DIM = 128, KV_HEADS = 8, GROUP = 4, LEAF_BLOCKS = 4, THREADS_MAX = 64, ROUNDS_MAX = 64 };

struct layer {
    struct attn_shape shape;
    const struct attn_impl *it;
    size_t part, n_blocks;
    uint8_t *blocks; /* [n_blocks][KV_HEADS][keys, values], a block's other layers left out */
};

struct member {
    const struct layer *layer;
    uint32_t index, n_members;
    bool reads; /* only */
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

static void attend_leaf(struct member *m, size_t block, uint32_t head)
{
    const struct layer *l = m->layer;
    uint8_t visible[ATTN_ROWS];
    memset(visible, KV_BLOCK, sizeof visible);
    for (size_t b = block; b < block + LEAF_BLOCKS; b++) {
        const uint8_t *k = part_of(l, b, head);
        l->it->block(&l->shape, m->tile, GROUP, visible, k, k + l->part,
                     b + 1 < l->n_blocks ? part_of(l, b + 1, head) : NULL, b == block ? m->leaf : m->one);
        if (b > block)
            l->it->merge(&l->shape, GROUP, m->leaf, m->one);
    }
    l->it->merge(&l->shape, GROUP, m->total, m->leaf);
}

static uint64_t read_leaf(const struct layer *l, size_t block, uint32_t head)
{
    uint64_t x[8] = { 0 };
    for (size_t b = block; b < block + LEAF_BLOCKS; b++) {
        const uint64_t *at = (const uint64_t *)(const void *)part_of(l, b, head);
        for (size_t i = 0; i < 2 * l->part / 8; i += 8)
            for (int j = 0; j < 8; j++)
                x[j] ^= at[i + j];
    }
    return x[0] ^ x[1] ^ x[2] ^ x[3] ^ x[4] ^ x[5] ^ x[6] ^ x[7];
}

static void *work(void *arg)
{
    struct member *m = arg;
    const struct layer *l = m->layer;
    const size_t leaves = l->n_blocks / LEAF_BLOCKS, all = leaves * KV_HEADS;
    struct timespec took;
    cpu_thread_init();
    /* a run of one head's leaves, then the next head's */
    for (size_t i = all * m->index / m->n_members; i < all * (m->index + 1) / m->n_members; i++) {
        if (m->reads)
            m->sum ^= read_leaf(l, i % leaves * LEAF_BLOCKS, (uint32_t)(i / leaves));
        else
            attend_leaf(m, i % leaves * LEAF_BLOCKS, (uint32_t)(i / leaves));
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &took);
    m->ms = (double)took.tv_sec * 1e3 + (double)took.tv_nsec / 1e6;
    return NULL;
}

/* -> milliseconds of the thread that took longest */
static double pass(struct member *members, uint32_t n, const struct layer *l, bool reads)
{
    double slowest = 0;
    for (uint32_t i = 0; i < n; i++) {
        members[i].layer = l;
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

static void queries_pack(const struct layer *l, struct member *m)
{
    float q[GROUP][HEAD_DIM];
    const float *rows[GROUP];
    for (uint32_t i = 0; i < GROUP; i++) {
        rows[i] = q[i];
        for (uint32_t c = 0; c < HEAD_DIM; c++)
            q[i][c] = (float)((int)(i * 131 + c * 37) % 61 - 30) / 20;
    }
    l->it->pack_q(&l->shape, rows, GROUP, m->tile);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void measure(size_t positions, uint32_t n_threads, uint32_t n_rounds)
{
    static const enum kv_codec codecs[] = { KV_BF16, KV_INT8, KV_INT4_ROT };
    enum { N = sizeof codecs / sizeof *codecs };
    struct layer layers[N];
    struct member members[THREADS_MAX];
    double ms[N][2][ROUNDS_MAX];
    for (uint32_t i = 0; i < n_threads; i++)
        members[i] = (struct member){ .index = i, .n_members = n_threads, .tile = zeroed(ATTN_ROWS * HEAD_DIM * 8) };
    for (uint32_t i = 0; i < n_threads; i++) {
        const size_t bytes = attn_partial_floats(HEAD_DIM) * sizeof(float);
        members[i].leaf = zeroed(bytes);
        members[i].one = zeroed(bytes);
        members[i].total = zeroed(bytes);
    }
    for (int c = 0; c < N; c++)
        layers[c] = layer_new(codecs[c], positions);
    for (uint32_t r = 0; r < n_rounds; r++)
        for (int c = 0; c < N; c++) {
            for (uint32_t i = 0; i < n_threads; i++) {
                queries_pack(&layers[c], &members[i]);
                memset(members[i].total, 0, attn_partial_floats(HEAD_DIM) * sizeof(float));
            }
            ms[c][0][r] = pass(members, n_threads, &layers[c], false);
            ms[c][1][r] = pass(members, n_threads, &layers[c], true);
        }
    for (int c = 0; c < N; c++) {
        for (int what = 0; what < 2; what++)
            qsort(ms[c][what], n_rounds, sizeof(double), ascending);
        const double took = ms[c][0][n_rounds / 2], floor_ms = ms[c][1][n_rounds / 2];
        const double bytes = (double)(layers[c].n_blocks * KV_HEADS * 2 * layers[c].part);
        printf("%7zu positions, %u threads: %-8s %-6s %7.2f ms a layer (floor %7.2f), %5.1f GB/s, bytes %.3f of bf16: "
               "%.2f times as fast\n",
               positions, n_threads, kv_codecs[codecs[c]].name, layers[c].it->name, took, floor_ms, bytes / took / 1e6,
               (double)layers[c].part / (double)layers[0].part, ms[0][0][n_rounds / 2] / took);
        free(layers[c].blocks);
    }
    for (uint32_t i = 0; i < n_threads; i++) {
        free(members[i].tile);
        free(members[i].leaf);
        free(members[i].one);
        free(members[i].total);
    }
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
