/*
 * Whole steps on a GPU through a worker: prefill in chunks, then decode, one sequence. Times are the caller's, from the plan's post to its result, with
 * plans, sampling and all. One JSON object.
 *
 *   cuda_step MODEL PREFIX [--chunk ROWS] CONTEXT ...
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Positions begin .. end - 1 of the sequence in one step; returns seconds. */
static double step(struct worker *w, const int32_t *tokens, uint32_t begin, uint32_t end)
{
    static uint64_t number;
    const uint32_t leaf = LEAF_BLOCKS * 64, n_blocks = (end + 63) / 64, n_leaves = (end + leaf - 1) / leaf;
    struct plan_run *runs = calloc(n_leaves + 1, sizeof *runs);
    kv_handle *table = malloc(n_blocks * sizeof *table);
    uint16_t *readers = calloc(n_leaves, sizeof *readers);
    uint16_t self = 0;
    uint32_t n_runs = 0;
    for (uint32_t pos = begin; pos < end; n_runs++) {
        const uint32_t border = (pos / leaf + 1) * leaf, stop = border < end ? border : end;
        runs[n_runs] = (struct plan_run){ .pos = pos, .n_rows = stop - pos, .tokens = tokens + pos };
        pos = stop;
    }
    runs[n_runs - 1].want = WANT_SAMPLE;
    for (uint32_t i = 0; i < n_blocks; i++)
        table[i] = i + 1;
    struct plan_seq s = {
        .id = 1, .fresh = begin == 0, .n_table = n_blocks, .table = table, .n_readers = n_leaves, .readers = readers
    };
    struct plan plan = { .epoch = 1,
                         .number = ++number,
                         .group = 1,
                         .leaf_blocks = LEAF_BLOCKS,
                         .deadline_ms = 60000,
                         .n_members = 1,
                         .members = &self,
                         .n_seqs = 1,
                         .seqs = &s,
                         .n_runs = n_runs,
                         .runs = runs };
    const struct control_message m = { .kind = CONTROL_PLAN, .as.plan = &plan };
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
    const double seconds = (double)(clock_ns() - start) / 1e9;
    free(runs);
    free(table);
    free(readers);
    return seconds;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    struct model *model;
    struct worker *w;
    struct error err = { 0 };
    uint32_t chunk = 2048, longest = 0;
    int first = 3;
    if (argc > 4 && !strcmp(argv[3], "--chunk")) {
        chunk = (uint32_t)strtoul(argv[4], NULL, 10);
        first = 5;
    }
    if (argc <= first || !chunk) {
        fprintf(stderr, "usage: cuda_step MODEL PREFIX [--chunk ROWS] CONTEXT ...\n");
        return 2;
    }
    for (int i = first; i < argc; i++) {
        const uint32_t context = (uint32_t)strtoul(argv[i], NULL, 10);
        longest = context > longest ? context : longest;
    }
    longest += DECODES + 64;
    const int64_t start = clock_ns();
    if (model_open(argv[1], &model, &err)) {
        fprintf(stderr, "cuda_step: %s\n", err.text);
        return 1;
    }
    struct exchange_hub *hub = exchange_hub_new();
    const struct worker_config config = { .device = "cuda",
                                          .n_threads = 16,
                                          .step_rows_max = chunk > 64 ? chunk : 64,
                                          .positions_max = longest,
                                          .n_blocks = longest / 64 + 2,
                                          .exchange_ops = &exchange_local,
                                          .exchange = { .spin_us = 20, .stash_bytes_max = 1 << 20, .hub = hub },
                                          .on_result = on_result,
                                          .on_abort = on_abort,
                                          .on_copied = on_copied };
    if (worker_new(&config, model, &w, &err)) {
        fprintf(stderr, "cuda_step: %s\n", err.text);
        return 1;
    }
    int32_t *tokens = malloc(longest * sizeof *tokens);
    for (uint32_t i = 0; i < longest; i++)
        tokens[i] = (int32_t)(rng_at(3, i, 0) % model_config(model)->n_vocab);
    printf("{\n  \"%s_model\": \"%s\", \"%s_load_s\": %.1f,\n", argv[2], argv[1], argv[2],
           (double)(clock_ns() - start) / 1e9);
    for (int i = first; i < argc; i++) {
        const uint32_t context = (uint32_t)strtoul(argv[i], NULL, 10);
        double prefill = 0, seconds[DECODES];
        uint64_t busy = 0;
        step(w, tokens, 0, chunk < context ? chunk : context); /* what is made at first is made here */
        for (uint32_t pos = 0; pos < context; pos += chunk)
            prefill += step(w, tokens, pos, pos + chunk < context ? pos + chunk : context);
        for (int k = 0; k < DECODES; k++) {
            seconds[k] = step(w, tokens, context + (uint32_t)k, context + (uint32_t)k + 1);
            busy += seen.busy_us;
        }
        qsort(seconds, DECODES, sizeof *seconds, by_value);
        printf("  \"%s_prefill_%u_s\": %.4f, \"%s_step_%u_ms\": %.3f, \"%s_step_%u_best_ms\": %.3f, "
               "\"%s_step_%u_busy_ms\": %.3f,\n",
               argv[2], context, prefill, argv[2], context, seconds[DECODES / 2] * 1e3, argv[2], context,
               seconds[0] * 1e3, argv[2], context, (double)busy / DECODES / 1e3);
        fflush(stdout);
    }
    printf("  \"%s_steps\": %d\n}\n", argv[2], DECODES);
    worker_free(w);
    exchange_hub_free(hub);
    model_close(model);
    free(tokens);
    return 0;
}
