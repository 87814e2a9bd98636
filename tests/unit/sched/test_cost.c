/* What a decode step of 16 sequences of 500 blocks costs the coordinator: making and sending the plan, and taking its result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "coordinator/sched.h"

enum { SEQS = 16, BLOCKS = 500, STEPS = 2000 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LIMIT_NS = 1000000 };
#else
enum { LIMIT_NS = 30000 };
#endif

struct world {
    struct sched *s;
    struct result results[8];
    struct result_row rows[8][SEQS];
    uint32_t n, tokens;
};

/* Notes the result that the worker would send. */
static void op_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct world *w = ctx;
    (void)worker;
    if (m->kind != CONTROL_PLAN)
        return;
    const struct plan *p = m->as.plan;
    struct result *r = &w->results[w->n];
    *r = (struct result){ .epoch = p->epoch, .number = p->number, .group = p->group, .rows = w->rows[w->n] };
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct plan_run *run = &p->runs[i];
        if (run->want & WANT_SAMPLE)
            w->rows[w->n][r->n_rows++] =
                (struct result_row){ .seq = p->seqs[run->seq].id, .pos = run->pos + run->n_rows - 1, .token = 5 };
    }
    w->n++;
}

static int64_t op_now(void *ctx)
{
    (void)ctx;
    return clock_ms();
}

static void on_token(void *user, const struct result_row *row)
{
    (void)row;
    ((struct world *)user)->tokens++;
}

static void on_done(void *user, const struct sched_done *done)
{
    (void)user;
    (void)done;
}

static void take(struct world *w)
{
    const struct result r = w->results[0];
    struct result_row rows[SEQS];
    memcpy(rows, w->rows[0], sizeof rows);
    struct result now = r;
    now.rows = rows;
    w->n--;
    memmove(w->results, w->results + 1, w->n * sizeof w->results[0]);
    memmove(w->rows, w->rows + 1, w->n * sizeof w->rows[0]);
    for (uint32_t i = 0; i < w->n; i++)
        w->results[i].rows = w->rows[i];
    assert_int_equal(sched_result(w->s, 0, &now, NULL), ST_OK);
}

static int by_size(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void test_decode_plan(void **state)
{
    (void)state;
    static struct world w;
    static int32_t tokens[BLOCKS * 64 - 1000];
    const struct sched_config config = { .positions_max = 1 << 20,
                                         .step_rows_max = 65536,
                                         .prefill_chunk_rows = 65536,
                                         .sequences_max = SEQS,
                                         .queue_max = SEQS,
                                         .spread_min_tokens = 1 << 20,
                                         .step_deadline_ms = 60000,
                                         .plans_ahead = 2,
                                         .prefix_sharing = true };
    const struct sched_ops ops = { .send = op_send, .now_ms = op_now };
    const struct control_ready ready = { .fingerprint = "x", .leaf_blocks = 4, .n_blocks = SEQS * (BLOCKS + 100) };
    const struct sched_events events = { .token = on_token, .done = on_done };
    static int64_t run_ns[STEPS], result_ns[STEPS];
    assert_int_equal(sched_new(&config, &ops, &w, &w.s), ST_OK);
    assert_int_equal(sched_worker_ready(w.s, 0, &ready, NULL), ST_OK);
    for (uint32_t i = 0; i < SEQS; i++) {
        struct sched_request *r;
        tokens[0] = (int32_t)i;
        const struct sched_want want = { .tokens = tokens,
                                         .n_tokens = sizeof tokens / sizeof tokens[0],
                                         .max_tokens = 5000 };
        assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_OK);
    }
    while (w.tokens < 2 * SEQS) {
        sched_run(w.s);
        take(&w);
    }
    sched_run(w.s);
    for (uint32_t i = 0; i < STEPS; i++) {
        const int64_t start = clock_ns();
        take(&w);
        const int64_t taken = clock_ns();
        sched_run(w.s);
        run_ns[i] = clock_ns() - taken;
        result_ns[i] = taken - start;
    }
    qsort(run_ns, STEPS, sizeof run_ns[0], by_size);
    qsort(result_ns, STEPS, sizeof result_ns[0], by_size);
    print_message("plan of %d sequences of %d blocks: %.1f us, its result %.1f us (medians)\n", SEQS, BLOCKS,
                  (double)run_ns[STEPS / 2] / 1000, (double)result_ns[STEPS / 2] / 1000);
    assert_in_range(run_ns[STEPS / 2] + result_ns[STEPS / 2], 0, LIMIT_NS);
    sched_free(w.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_decode_plan) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
