/*
 * Whole steps on a GPU through a worker: prefill in chunks, then decode, one sequence; or the decode steps alone of a batch whose context is there. Times are
 * the caller's, from the plan's post to its result, with plans, sampling and all. One JSON object.
 *
 *   cuda_step MODEL PREFIX [--chunk ROWS] [--kv CODEC] [--selector TEXT] [--batch N] [--filled] [--profile] CONTEXT ...
 *
 * --filled: what came before is not computed in order, which takes hours at a million tokens: each block is the first of a sequence of its own, and then in the
 * tables of those that are measured. Steps do the same work; what the model says means nothing. --batch: so many sequences, filled. --profile: a profiler that
 * waits to be started sees the last chunk of a prefill and one decode step, e.g. ncu --profile-from-start off --graph-profiling node.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_profiler_api.h>

#include "common/clock.h"
#include "common/rng.h"
#include "worker/worker.h"

enum { LEAF_BLOCKS = 16, DECODES = 200 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t results, aborts, busy_us;
    int32_t token;
} seen = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void on_result(void *ctx, const struct result *r)
{
    (void)ctx;
    pthread_mutex_lock(&seen.lock);
    seen.results++;
    seen.busy_us = r->busy_us;
    seen.token = r->n_rows ? r->rows[0].token : -1;
    pthread_cond_signal(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

static void on_abort(void *ctx, const struct control_abort *a)
{
    (void)ctx;
    fprintf(stderr, "cuda_step: plan %llu: %s\n", (unsigned long long)a->plan, a->reason);
    exit(1);
}

static void on_copied(void *ctx, const struct control_copied *m)
{
    (void)ctx;
    (void)m;
}

static struct {
    uint32_t batch, density;
    bool filled, profile;
} with = { .batch = 1 };

static void *take(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p)
        exit(1);
    return p;
}

/* Posts a plan; seconds until its result. */
static double plan_run(struct worker *w, struct plan *plan)
{
    static uint64_t number;
    static uint16_t self;
    plan->epoch = plan->group = plan->n_members = 1;
    plan->number = ++number;
    plan->leaf_blocks = LEAF_BLOCKS;
    plan->deadline_ms = 60000;
    plan->members = &self;
    const struct control_message m = { .kind = CONTROL_PLAN, .as.plan = plan };
    struct control_message *decoded;
    struct error err = { 0 };
    uint8_t *bytes;
    size_t n;
    if (control_encode(&m, &bytes, &n) || control_decode(bytes, n, &decoded, &err)) {
        fprintf(stderr, "cuda_step: %s\n", err.text);
        exit(1);
    }
    free(bytes);
    const int64_t start = clock_ns();
    pthread_mutex_lock(&seen.lock);
    const uint64_t before = seen.results;
    worker_post(w, decoded);
    while (seen.results == before)
        pthread_cond_wait(&seen.changed, &seen.lock);
    pthread_mutex_unlock(&seen.lock);
    return (double)(clock_ns() - start) / 1e9;
}

/* Sequences of the batch have blocks of their own. */
static kv_handle handle_of(uint32_t sequence, uint32_t block)
{
    return 1 + block + ((uint64_t)sequence << 32);
}

/* Positions begin .. end - 1 of each sequence in one step; returns seconds. known: the worker knows of them from the step before. */
static double step(struct worker *w, const int32_t *tokens, uint32_t begin, uint32_t end, bool known)
{
    const uint32_t leaf = LEAF_BLOCKS * 64, n_blocks = (end + 63) / 64, n_leaves = (end + leaf - 1) / leaf,
                   from = known ? begin / 64 : 0, leaf_from = known ? begin / leaf : 0;
    struct plan_run *runs = take((size_t)with.batch * (n_leaves + 1), sizeof *runs);
    struct plan_seq *seqs = take(with.batch, sizeof *seqs);
    kv_handle *table = take((size_t)with.batch * n_blocks, sizeof *table);
    uint16_t *readers = take(n_leaves, sizeof *readers);
    uint32_t n_runs = 0;
    for (uint32_t s = 0; s < with.batch; s++) {
        for (uint32_t pos = begin; pos < end; n_runs++) {
            const uint32_t border = (pos / leaf + 1) * leaf, stop = border < end ? border : end;
            runs[n_runs] = (struct plan_run){ .seq = s,
                                              .pos = pos,
                                              .n_rows = stop - pos,
                                              .tokens = tokens + pos,
                                              .cls = end - begin == 1 ? ROW_GENERATED : ROW_PROMPT };
            pos = stop;
        }
        runs[n_runs - 1].want = WANT_SAMPLE;
        for (uint32_t i = 0; i < n_blocks; i++)
            table[(size_t)s * n_blocks + i] = handle_of(s, i);
        seqs[s] = (struct plan_seq){ .id = 1 + s,
                                     .fresh = !known,
                                     .committed = begin,
                                     .density = with.density,
                                     .cast = with.density ? 1 : 0,
                                     .table_from = from,
                                     .n_table = n_blocks - from,
                                     .table = table + (size_t)s * n_blocks + from,
                                     .reader_from = leaf_from,
                                     .n_readers = n_leaves - leaf_from,
                                     .readers = readers };
    }
    struct plan plan = { .n_seqs = with.batch, .seqs = seqs, .n_runs = n_runs, .runs = runs };
    const double seconds = plan_run(w, &plan);
    free(runs);
    free(seqs);
    free(table);
    free(readers);
    return seconds;
}

/* The blocks of all sequences up to a context, chunk positions a step, each the first block of a sequence that is forgotten afterwards. */
static void fill(struct worker *w, const int32_t *tokens, uint32_t context, uint32_t chunk)
{
    static uint64_t ids = 1 << 20;
    static const uint16_t reader;
    const uint32_t n = chunk / 64, all = with.batch * ((context + 63) / 64), each = (context + 63) / 64;
    struct plan_run *runs = take(n, sizeof *runs);
    struct plan_seq *seqs = take(n, sizeof *seqs);
    kv_handle *table = take(n, sizeof *table);
    uint64_t *gone = take(n, sizeof *gone);
    uint32_t n_gone = 0;
    for (uint32_t first = 0; first < all; first += n) {
        const uint32_t some = all - first < n ? all - first : n;
        for (uint32_t i = 0; i < some; i++) {
            const uint32_t sequence = (first + i) / each, block = (first + i) % each;
            table[i] = handle_of(sequence, block);
            seqs[i] = (struct plan_seq){
                .id = ids++, .fresh = true, .n_table = 1, .table = &table[i], .n_readers = 1, .readers = &reader
            };
            runs[i] = (struct plan_run){ .seq = i, .n_rows = 64, .tokens = tokens + block * 64, .cls = ROW_PROMPT };
        }
        struct plan plan = {
            .n_seqs = some, .seqs = seqs, .n_runs = some, .runs = runs, .n_forgets = n_gone, .forgets = gone
        };
        plan_run(w, &plan);
        n_gone = some;
        for (uint32_t i = 0; i < some; i++)
            gone[i] = seqs[i].id;
    }
    free(runs);
    free(seqs);
    free(table);
    free(gone);
}

/* A step that a profiler sees. */
static double profiled(struct worker *w, const int32_t *tokens, uint32_t begin, uint32_t end, bool known)
{
    cudaProfilerStart();
    const double seconds = step(w, tokens, begin, end, known);
    cudaProfilerStop();
    return seconds;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct worker *w, const int32_t *tokens, const char *prefix, uint32_t context, uint32_t chunk)
{
    double prefill = 0, seconds[DECODES];
    uint64_t busy = 0;
    if (with.filled) {
        fill(w, tokens, context, chunk);
    } else {
        step(w, tokens, 0, chunk < context ? chunk : context, false); /* what is made at first is made here */
        for (uint32_t pos = 0; pos < context; pos += chunk)
            prefill += (with.profile && pos + chunk >= context ? profiled : step)(
                w, tokens, pos, pos + chunk < context ? pos + chunk : context, pos > 0);
    }
    for (int k = 0; k < DECODES; k++) {
        seconds[k] = (with.profile && k == DECODES / 2 ? profiled : step)(w, tokens, context + (uint32_t)k,
                                                                          context + (uint32_t)k + 1, k || !with.filled);
        busy += seen.busy_us;
    }
    qsort(seconds, DECODES, sizeof *seconds, by_value);
    if (!with.filled)
        printf("  \"%s_prefill_%u_s\": %.4f,", prefix, context, prefill);
    printf("  \"%s_step_%u_ms\": %.3f, \"%s_step_%u_best_ms\": %.3f, \"%s_step_%u_busy_ms\": %.3f,\n", prefix, context,
           seconds[DECODES / 2] * 1e3, prefix, context, seconds[0] * 1e3, prefix, context,
           (double)busy / DECODES / 1e3);
    if (with.batch > 1)
        printf("  \"%s_batch\": %u, \"%s_tokens_per_s\": %.0f,\n", prefix, with.batch, prefix,
               with.batch / seconds[DECODES / 2]);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct model *model;
    struct worker *w;
    struct error err = { 0 };
    struct selector_spec spec = { 0 };
    const char *codec = "bf16", *selector = "dense";
    uint32_t chunk = 2048, longest = 0;
    int first = 3;
    for (; first < argc && argv[first][0] == '-'; first++) {
        const char *flag = argv[first], *value = first + 1 < argc ? argv[first + 1] : "";
        with.filled = with.filled || !strcmp(flag, "--filled");
        with.profile = with.profile || !strcmp(flag, "--profile");
        if (!strcmp(flag, "--filled") || !strcmp(flag, "--profile"))
            continue;
        first++;
        if (!strcmp(flag, "--chunk"))
            chunk = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(flag, "--kv"))
            codec = value;
        else if (!strcmp(flag, "--selector"))
            selector = value;
        else if (!strcmp(flag, "--batch"))
            with.batch = (uint32_t)strtoul(value, NULL, 10);
        else
            chunk = 0; /* refused below */
    }
    if (argc <= first || argv[first][0] == '-' || chunk < 64 || !with.batch || with.batch > 1024) {
        fprintf(stderr,
                "usage: cuda_step MODEL PREFIX [--chunk ROWS] [--kv CODEC] [--selector TEXT] [--batch N] [--filled] "
                "[--profile] CONTEXT ...\n");
        return 2;
    }
    with.filled = with.filled || with.batch > 1;
    for (int i = first; i < argc; i++) {
        const uint32_t context = (uint32_t)strtoul(argv[i], NULL, 10);
        longest = context > longest ? context : longest;
    }
    longest += DECODES + 64;
    const int64_t start = clock_ns();
    struct worker_config config = { .device = "cuda",
                                    .selector = selector,
                                    .n_threads = 16,
                                    .step_rows_max = chunk,
                                    .positions_max = longest,
                                    .n_blocks = with.batch * (longest / 64 + 2),
                                    .open_blocks = 4 * with.batch,
                                    .exchange_ops = &exchange_local,
                                    .exchange = { .spin_us = 20, .stash_bytes_max = 1 << 20 },
                                    .on_result = on_result,
                                    .on_abort = on_abort,
                                    .on_copied = on_copied };
    if (kv_codec_find(codec, false, &config.kv_codec, &err) || selector_parse(selector, &spec, &err) ||
        model_open(argv[1], &model, &err)) {
        fprintf(stderr, "cuda_step: %s\n", err.text);
        return 1;
    }
    with.density = strcmp(spec.name, "dense") ? spec.density : 0;
    config.exchange.hub = exchange_hub_new();
    if (worker_new(&config, model, &w, &err)) {
        fprintf(stderr, "cuda_step: %s\n", err.text);
        return 1;
    }
    int32_t *tokens = take(longest, sizeof *tokens);
    for (uint32_t i = 0; i < longest; i++)
        tokens[i] = (int32_t)(rng_at(3, i, 0) % model_config(model)->n_vocab);
    printf("{\n  \"%s_model\": \"%s\", \"%s_kv\": \"%s\", \"%s_selector\": \"%s\", \"%s_load_s\": %.1f,\n", argv[2],
           argv[1], argv[2], codec, argv[2], selector, argv[2], (double)(clock_ns() - start) / 1e9);
    for (int i = first; i < argc; i++)
        measure(w, tokens, argv[2], (uint32_t)strtoul(argv[i], NULL, 10), chunk);
    printf("  \"%s_steps\": %d\n}\n", argv[2], DECODES);
    worker_free(w);
    exchange_hub_free(config.exchange.hub);
    model_close(model);
    free(tokens);
    return 0;
}
