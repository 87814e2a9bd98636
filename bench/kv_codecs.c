/*
 * Attention of one decode row over coded blocks, beside the same over bf16, in turns, so that what else runs on the machine disturbs all: one layer of 8B
 * shape (32 query heads, 8 KV heads of 128), blocks of random numbers, sealed. And what sealing takes, a block and KV head. Blocks lie in memory as a worker's pool has them; threads take KV heads' leaves; partials of
 * leaves of four blocks join as they come. With a density, quest scores and chooses first, a list a KV head. The floor is the time in which the threads
 * only read the same bytes, sketches included. Processor time of the slowest thread, medians of the rounds; how many times as fast: the median of the
 * rounds' ratios. GB/s are of the codec's bytes, all threads together. nomad: keys by tables, values of int8 (kernels/cpu/kv_nomad.h).
 *
 *   kv_codecs [--table] [--threads N] [--rounds N] [--positions N]
 *
 * --table: in Markdown, what each codec costs to decode and to seal; of 16384 positions if none are said.
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
#include "kernels/cpu/kv_cq.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/kernels.h"
#include "kernels/selector.h"

enum { HEAD_DIM = 128, KV_HEADS = 8, GROUP = 4, LEAF_BLOCKS = 4, THREADS_MAX = 64, ROUNDS_MAX = 256 };
enum { TENTH = SELECTOR_DENSITY_ONE / 10 };
enum { DISTINCT = 16 /* sealed blocks, over and over */, OPEN_BYTES = KV_BLOCK * HEAD_DIM * 2 };

struct layer {
    const char *codec, *variant;
    struct attn_shape shape, attn_shape; /* of what seals, and expands keys; of what attends */
    struct kv_book *books;               /* of codecs with a calibration: keys', values'; else NULL */
    const struct attn_impl *it,
        *attn;             /* the codec's; what attends: the same, or that of the open form that it expands to */
    size_t part, n_blocks; /* part: half of a block's keys and values */
    double seal_us;        /* a block and KV head */
    uint8_t *blocks;       /* [n_blocks][KV_HEADS][keys, values], a block's other layers left out */
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
    uint8_t *wide; /* an open block */
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

static void attend_block(struct member *m, const uint8_t *k, const uint8_t *next, float *out)
{
    const struct layer *l = m->layer;
    uint8_t visible[ATTN_ROWS];
    memset(visible, KV_BLOCK, sizeof visible);
    if (l->it->block) {
        l->it->block(&l->shape, m->tile, GROUP, visible, k, k + l->part, next, out);
        return;
    }
    struct attn_shape values = l->shape;
    values.books = l->books ? l->books + 1 : NULL;
    l->it->expand(&l->shape, k, next, m->wide);
    l->it->expand(&values, k + l->part, next ? next + l->part : NULL, m->wide + OPEN_BYTES);
    l->attn->block(&l->attn_shape, m->tile, GROUP, visible, m->wide, m->wide + OPEN_BYTES, NULL, out);
}

static void merge(const struct layer *l, float *a, const float *b)
{
    l->attn->merge(&l->attn_shape, GROUP, a, b);
}

static void attend_leaf(struct member *m, size_t leaf, uint32_t head)
{
    const struct layer *l = m->layer;
    const size_t end = (leaf + 1) * LEAF_BLOCKS;
    bool any = false;
    for (size_t b = next_block(m, leaf * LEAF_BLOCKS, head), next; b < end; b = next) {
        const uint8_t *k = part_of(l, b, head);
        next = next_block(m, b + 1, head);
        attend_block(m, k, next < l->n_blocks ? part_of(l, next, head) : NULL, any ? m->one : m->leaf);
        if (any)
            merge(l, m->leaf, m->one);
        any = true;
    }
    if (any)
        merge(l, m->total, m->leaf);
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

/* About N(0, 1). */
static float normal(uint64_t seed, uint64_t i)
{
    float sum = 0;
    for (uint32_t k = 0; k < 12; k++)
        sum += (float)rng_unit(rng_at(seed, i, k));
    return sum - 6;
}

/* Random centroids for the keys and the values of one head, which all heads use one after the other, and the angles of some block. */
static void learn(struct layer *l)
{
    const uint32_t n = HEAD_DIM * CQ_CENTROIDS, half = HEAD_DIM / 2;
    float *at = zeroed(HEAD_DIM * sizeof *at), *step = zeroed((size_t)HEAD_DIM * KV_BLOCK * sizeof *step);
    struct kv_angles *angles = zeroed(sizeof *angles);
    for (uint32_t i = 0; i < half * KV_BLOCK; i++) {
        const float turn = powf(10000, -(float)(i / KV_BLOCK) / (float)half), by = (float)(i % KV_BLOCK) * turn;
        at[i / KV_BLOCK] = cosf(4096 * turn);
        at[half + i / KV_BLOCK] = sinf(4096 * turn);
        step[i] = cosf(by);
        step[half * KV_BLOCK + i] = sinf(by);
    }
    *angles = (struct kv_angles){ { at, at + half }, { step, step + (size_t)half * KV_BLOCK }, 1 };
    l->books = zeroed(2 * sizeof *l->books);
    for (uint32_t part = 0, c = cq_channels(&l->shape); part < 2; part++) {
        float *planes = zeroed((size_t)n * 6);
        uint16_t *centroids = (uint16_t *)(void *)(planes + n);
        for (uint32_t i = 0; i < n; i++) {
            centroids[i] = f32_to_bf16(normal(7 + part, i));
            planes[(i / c / CQ_CENTROIDS * c + i % c) * CQ_CENTROIDS + i / c % CQ_CENTROIDS] =
                bf16_to_f32(centroids[i]);
        }
        l->books[part] = (struct kv_book){ planes, part == 1, angles };
    }
    l->shape.books = l->books;
}

/* Random numbers for the keys of one head, which all heads use. */
static void learn_numbers(struct layer *l)
{
    float *numbers = zeroed(HEAD_DIM * NOMAD_NUMBERS * sizeof *numbers);
    float *book = zeroed(kv_calibrated_nomad.book_bytes(&l->shape));
    for (uint32_t i = 0; i < HEAD_DIM * NOMAD_NUMBERS; i++)
        numbers[i] = normal(3, i);
    kv_nomad_book_of(numbers, HEAD_DIM, book);
    free(numbers);
    l->books = zeroed(2 * sizeof *l->books);
    l->books[0] = (struct kv_book){ .data = book };
    l->books[1] = (struct kv_book){ .values = true };
    l->shape.books = l->attn_shape.books = l->books;
}

static void forget(struct layer *l)
{
    if (!l->books)
        return;
    if (l->books[0].angles) {
        free((void *)l->books[0].angles->first[0]);
        free((void *)l->books[0].angles->step[0]);
        free((void *)l->books[0].angles);
    }
    free((void *)l->books[0].data);
    free((void *)l->books[1].data);
    free(l->books);
}

static struct layer codec_of(int codec)
{
    struct layer l = { .shape = { .head_dim = HEAD_DIM, .codec = (enum kv_codec)codec } };
    l.shape.scale = 1 / sqrtf(HEAD_DIM);
    l.attn_shape = l.shape;
    l.it = l.attn = attn_find(&l.shape, cpu_caps());
    l.part = l.it->part_bytes(&l.shape);
    if (codec == KV_CQ_2B || codec == KV_CQ_1B)
        learn(&l);
    if (codec == KV_NOMAD)
        learn_numbers(&l);
    l.codec = kv_codecs[codec].name;
    if (!l.it->block) {
        l.attn_shape.codec = kv_codecs[codec].open;
        l.attn = attn_find(&l.attn_shape, cpu_caps());
    }
    l.variant = l.it->name;
    return l;
}

static double cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
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

/* DISTINCT sealed blocks of one KV head; the median of what sealing took. */
static double seal_some(const struct layer *l, uint8_t *sealed)
{
    uint16_t *open = zeroed(2 * OPEN_BYTES);
    double us[DISTINCT];
    for (uint32_t b = 0; b < DISTINCT; b++, sealed += 2 * l->part) {
        for (size_t i = 0; i < OPEN_BYTES; i++)
            open[i] = f32_to_bf16(normal(b, i));
        const uint8_t *v_open = (const uint8_t *)open + OPEN_BYTES;
        const double began = cpu_us();
        if (l->it->seal)
            (void)l->it->seal(&l->shape, open, v_open, sealed, sealed + l->part);
        else
            memcpy(sealed, open, 2 * OPEN_BYTES);
        us[b] = cpu_us() - began;
    }
    free(open);
    return median(us, DISTINCT);
}

static struct layer layer_new(int codec, size_t positions)
{
    struct layer l = codec_of(codec);
    l.n_blocks = positions / KV_BLOCK;
    const size_t pair = 2 * l.part, bytes = l.n_blocks * KV_HEADS * pair;
    uint8_t *some = zeroed(DISTINCT * pair);
    l.seal_us = seal_some(&l, some);
    if (posix_memalign((void **)&l.blocks, (size_t)2 << 20, bytes)) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    (void)madvise(l.blocks, bytes, MADV_HUGEPAGE); /* as a pool's */
    for (size_t i = 0; i < l.n_blocks * KV_HEADS; i++)
        memcpy(l.blocks + i * pair, some + i % DISTINCT * pair, pair);
    free(some);
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
    l->attn->pack_q(&l->attn_shape, rows, GROUP, m->tile);
}

static void members_new(struct member *members, uint32_t n, const struct sketches *sketches, size_t n_blocks)
{
    const size_t bytes = attn_partial_floats(HEAD_DIM) * sizeof(float);
    for (uint32_t i = 0; i < n; i++) {
        struct member *m = &members[i];
        *m = (struct member){ .index = i, .n_members = n, .sketches = sketches };
        m->tile = zeroed(ATTN_ROWS * (HEAD_DIM * NOMAD_NUMBERS + 64));
        m->wide = zeroed(2 * OPEN_BYTES);
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
        void *of[] = { m->tile, m->leaf, m->one, m->total, m->scores, m->words, m->wide };
        for (size_t k = 0; k < sizeof of / sizeof *of; k++)
            free(of[k]);
        for (uint32_t head = 0; head < KV_HEADS; head++)
            free(m->lists[head]);
    }
}

struct figure {
    size_t positions;
    uint32_t n_threads, density;
    double ms, floor_ms, bytes, times; /* bytes: of bf16's; times as fast as bf16 */
};

/* table: one of Markdown, a block and KV head a row; with a density nothing. */
static void print(const struct layer *l, const struct figure *f, bool table)
{
    const double pairs = (double)l->n_blocks * KV_HEADS, rate = pairs * 2 * (double)l->part / f->ms / 1e6;
    if (table && !f->density)
        printf("| `%s` | %s | %.1f %% | %.2f | %.2f | %.1f | %.1f |\n", l->codec, l->variant, 100 * f->bytes,
               f->ms * 1e3 * f->n_threads / pairs, f->times, rate, l->seal_us);
    if (!table)
        printf("%7zu positions, %u threads: %-13s %-6s %-12s %7.2f ms a layer (floor %6.2f), %5.1f GB/s, a block %.3f "
               "of bf16: %.2f times as fast; sealing %6.1f us\n",
               f->positions, f->n_threads, l->codec, l->variant, f->density ? "quest, 10 %" : "", f->ms, f->floor_ms,
               f->density ? 0.0 : rate, f->bytes, f->times, l->seal_us);
}

static void measure(size_t positions, uint32_t n_threads, uint32_t n_rounds, bool table)
{
    static const int codecs[] = { KV_BF16,  KV_BF16_LOSSLESS, KV_FP8,   KV_INT8,  KV_INT4_ROT,
                                  KV_KIVI4, KV_KIVI2,         KV_CQ_2B, KV_CQ_1B, KV_NOMAD };
    static const struct {
        int codec; /* place in codecs */
        uint32_t density;
    } subjects[] = { { 0, 0 }, { 1, 0 }, { 2, 0 }, { 3, 0 }, { 4, 0 },     { 5, 0 },
                     { 6, 0 }, { 7, 0 }, { 8, 0 }, { 9, 0 }, { 0, TENTH }, { 4, TENTH } };
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
    if (table)
        printf(
            "Decode attention over %zu positions, %u threads, processor time:\n\n"
            "| codec | variant | bytes | decode, us a block and KV head | times bf16's speed | GB/s of coded bytes | "
            "sealing, us a block and KV head |\n| --- | --- | --- | --- | --- | --- | --- |\n",
            positions, n_threads);
    for (int s = 0; s < N; s++) {
        const struct layer *l = &layers[subjects[s].codec];
        const double took = median(ms[s], n_rounds), floor_took = median(floor_ms[s], n_rounds);
        print(l,
              &(struct figure){ positions, n_threads, subjects[s].density, took, floor_took,
                                (double)l->part / (double)layers[0].part, median(ratio[s], n_rounds) },
              table);
    }
    for (int c = 0; c < CODECS; c++) {
        free(layers[c].blocks);
        forget(&layers[c]);
    }
    free(sketches.data);
    free(sketches.of);
    members_free(members, n_threads);
}

int main(int argc, char **argv)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = cores > 1 ? (uint32_t)cores : 1, rounds = 9, positions = 0;
    const bool table = argc % 2 == 0 && !strcmp(argv[1], "--table");
    for (int i = table ? 2 : 1; i < argc; i += 2) {
        uint32_t *to = !strcmp(argv[i], "--threads")     ? &threads
                       : !strcmp(argv[i], "--rounds")    ? &rounds
                       : !strcmp(argv[i], "--positions") ? &positions
                                                         : NULL;
        const long value = i + 1 < argc ? strtol(argv[i + 1], NULL, 10) : 0;
        if (!to || value < 1 || value > 1 << 24) {
            fprintf(stderr, "usage: kv_codecs [--table] [--threads N] [--rounds N] [--positions N]\n");
            return 2;
        }
        *to = (uint32_t)value;
    }
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    rounds = rounds < ROUNDS_MAX ? rounds : ROUNDS_MAX;
    cpu_caps();
    if (positions || table) {
        measure(positions ? (positions + 255) / 256 * 256 : 16384, threads, rounds, table);
        return 0;
    }
    measure(16384, threads, rounds, false);
    measure(32768, threads, rounds, false);
    measure(131072, threads, rounds, false);
    return 0;
}
