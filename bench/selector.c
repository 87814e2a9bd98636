/*
 * What a choice costs: one row of 8B shape (32 query heads, 8 KV heads of 128) in one layer, on one thread. Usage: selector [BLOCKS [DENSITY]]. quest,
 * socket, double-sparsity: score and choose for all KV heads, from sketches that lie as a worker's do; sketch-walk: what a block of 64 positions costs, a
 * row of weights, the walk and the choice; streaming: a list. And what the sketch of a block costs, whose keys are in the nearest caches. Prints microseconds,
 * the median of several passes, beside the bytes of keys and values that dense attention of the layer would read.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "kernels/selector.h"

enum { PASSES = 9, LAYERS = 8 };

static const struct selector_shape shape = { 32, 8, 128, KV_BF16 };

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *us)
{
    qsort(us, PASSES, sizeof *us, compare);
    return us[PASSES / 2];
}

struct data {
    uint32_t n, density;
    size_t bytes;
    const void **sketches; /* [LAYERS][n]: in memory block by block */
    float *scores, *walk, *next, *logits;
    uint32_t *words;
    uint64_t *list;
    uint16_t **weights;
};

static void choose(const struct data *d, const float *scores)
{
    const struct selector_choice c = { .own = d->n, .density = d->density, .leaf_blocks = 4 };
    selector_choose(&c, scores, d->words, d->list);
}

static double row_us(const struct data *d, const struct selector_impl *impl)
{
    static float q[32][128];
    const float *queries[32];
    double us[PASSES];
    for (uint32_t i = 0; i < 32; i++)
        queries[i] = q[i];
    for (uint32_t i = 0; i < 32 * 128; i++)
        q[i / 128][i % 128] = (float)(rng_at(1, i, 0) >> 40) / 16777216.0f - 0.5f;
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const int64_t start = clock_ns();
        impl->score(&shape, 0, shape.n_kv_heads, queries, d->sketches + (size_t)(pass % LAYERS) * d->n, d->n,
                    d->scores);
        for (uint32_t head = 0; head < shape.n_kv_heads; head++)
            choose(d, d->scores + (size_t)head * d->n);
        us[pass] = (double)(clock_ns() - start) / 1e3;
    }
    return median(us);
}

static double walk_us(const struct data *d, const struct selector_impl *impl)
{
    double us[PASSES];
    for (uint32_t i = 0; i < d->n; i++) {
        d->weights[i] = malloc((i + 1) * sizeof(uint16_t));
        impl->weights(&shape, d->sketches, i, d->logits, d->weights[i]);
    }
    for (uint32_t j = 0; j < d->n; j++)
        d->walk[j] = bf16_to_f32(d->weights[d->n - 1][j]);
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const int64_t start = clock_ns();
        impl->weights(&shape, d->sketches + (size_t)(pass % LAYERS) * d->n, d->n - 1, d->logits, d->weights[d->n - 1]);
        selector_walk((const uint16_t *const *)d->weights, d->n, d->walk, d->next);
        selector_walk_scores(d->next, d->logits, d->n, d->scores);
        choose(d, d->scores);
        us[pass] = (double)(clock_ns() - start) / 1e3;
    }
    return median(us);
}

static double window_us(const struct data *d)
{
    double us[PASSES];
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const int64_t start = clock_ns();
        selector_window(d->n, 16, d->list);
        us[pass] = (double)(clock_ns() - start) / 1e3;
    }
    return median(us);
}

/* The sketch of one block, of all KV heads. */
static double sketch_us(const struct selector_impl *impl, uint8_t *sketch)
{
    enum { HEADS = 8, NUMBERS = KV_BLOCK * 128 };
    static uint16_t part[2 * HEADS][NUMBERS];
    static float means[NUMBERS];
    const void *parts[2 * HEADS];
    double us[PASSES];
    for (uint32_t j = 0; j < 2 * HEADS; j++) {
        parts[j] = part[j];
        for (uint32_t i = 0; i < NUMBERS; i++)
            part[j][i] = f32_to_bf16((float)(rng_at(3, j, i) >> 40) / 16777216.0f - 0.5f);
    }
    const struct selector_block block = { .k_parts = parts, .v_parts = parts + HEADS, .q_means = means };
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const int64_t start = clock_ns();
        impl->sketch(&shape, &block, sketch);
        us[pass] = (double)(clock_ns() - start) / 1e3;
    }
    return median(us);
}

int main(int argc, char **argv)
{
    struct data d = { .n = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2048 };
    if (d.n < 8 || d.n > SELECTOR_WALK_BLOCKS ||
        !selector_density_parse(argc > 2 ? argv[2] : "0.1", strlen(argc > 2 ? argv[2] : "0.1"), &d.density)) {
        fprintf(stderr, "usage: selector [BLOCKS [DENSITY]]\n");
        return 2;
    }
    cpu_thread_init();
    d.sketches = calloc((size_t)LAYERS * d.n, sizeof(void *));
    d.scores = calloc((size_t)d.n * shape.n_kv_heads, sizeof(float));
    d.walk = calloc(d.n, sizeof(float));
    d.next = calloc(d.n, sizeof(float));
    d.logits = calloc(d.n, sizeof(float));
    d.words = calloc(2 * (size_t)d.n, sizeof(uint32_t));
    d.list = calloc(selector_words(d.n), sizeof(uint64_t));
    d.weights = calloc(d.n, sizeof(uint16_t *));
    printf("%u blocks, density %.6f; dense attention reads %.1f MB a layer\n", d.n, d.density / 1e6,
           (double)d.n * 64 * 2 * 8 * 128 * 2 / 1e6);
    for (uint32_t v = 0; v < n_selector_impls; v++) {
        const struct selector_impl *impl = &selector_impls[v];
        if (impl->needs & ~cpu_caps())
            continue;
        if (impl->windowed) {
            printf("%-16s %-7s %9.1f us a block\n", impl->name, "", window_us(&d));
            continue;
        }
        d.bytes = impl->sketch_bytes(&shape);
        uint8_t *memory = malloc(LAYERS * d.n * d.bytes);
        const double made = sketch_us(impl, memory);
        for (size_t c = 1; c < (size_t)LAYERS * d.n; c++)
            memcpy(memory + c * d.bytes, memory, d.bytes);
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t c = 0; c < d.n; c++)
                d.sketches[(size_t)l * d.n + c] = memory + ((size_t)c * LAYERS + l) * d.bytes;
        const double us = impl->by_row ? row_us(&d, impl) : walk_us(&d, impl);
        printf("%-16s %-7s %9.1f us a %s, %.2f MB of sketches a layer, %.1f us to make one\n", impl->name,
               !impl->by_row              ? ""
               : impl->needs & CPU_VBMI2  ? "vbmi2"
               : impl->needs & CPU_AVX512 ? "avx512"
               : impl->needs              ? "avx2"
                                          : "c",
               us, impl->by_row ? "row" : "block", (double)d.n * (double)d.bytes / 1e6, made);
        free(memory);
    }
    return 0;
}
