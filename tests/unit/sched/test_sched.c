/* The face: what is refused, what callbacks may do, what a result must be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/log.h"
#include "coordinator/sched.h"

enum { TOKENS = 300 };

/* One worker, whose results the tests write by hand. */
struct world {
    struct sched *s;
    int64_t now;
    struct {
        uint64_t epoch, number;
        uint32_t group, n_runs, n_rows, n_top;
        uint64_t seq;
        uint32_t pos;
        uint8_t want;
        struct plan_sampling sampling;
    } plan; /* the last one */
    uint32_t n_plans, n_answered, n_fences;
    uint32_t tokens, scored, dones, progress;
    enum finish_reason reason;
    enum status status;
    char message[256];
    struct sched_request *r;
    uint32_t cancel_at_token, submit_at_done;
    struct result_top top;
};

static int32_t text[TOKENS];

static void op_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct world *w = ctx;
    assert_int_equal(worker, 9);
    w->n_fences += m->kind == CONTROL_FENCE;
    if (m->kind != CONTROL_PLAN)
        return;
    const struct plan *p = m->as.plan;
    w->n_plans++;
    w->plan.epoch = p->epoch;
    w->plan.number = p->number;
    w->plan.group = p->group;
    w->plan.n_runs = p->n_runs;
    if (!p->n_runs)
        return;
    w->plan.seq = p->seqs[p->runs[0].seq].id;
    w->plan.pos = p->runs[0].pos;
    w->plan.n_rows = p->runs[0].n_rows;
    w->plan.want = p->runs[0].want;
    w->plan.n_top = p->runs[0].n_top;
    w->plan.sampling = p->seqs[0].sampling;
}

static int64_t op_now(void *ctx)
{
    return ((struct world *)ctx)->now;
}

static void submit(struct world *w, uint32_t n_tokens, uint32_t max_tokens);

static void on_token(void *user, const struct result_row *row)
{
    struct world *w = user;
    assert_int_equal(row->token, 77);
    if (row->n_top)
        w->top = row->top[0];
    if (++w->tokens == w->cancel_at_token)
        sched_cancel(w->s, w->r, FINISH_STOP);
}

static void on_scored(void *user, uint32_t position, const struct result_row *row)
{
    (void)row;
    assert_int_equal(position, ((struct world *)user)->scored++);
}

static void on_progress(void *user, uint32_t done, uint32_t total)
{
    struct world *w = user;
    assert_true(done <= total && done >= w->progress);
    w->progress = done;
}

static void on_done(void *user, const struct sched_done *done)
{
    struct world *w = user;
    w->dones++;
    w->reason = done->reason;
    w->status = done->status;
    strncpy(w->message, done->message ? done->message : "", sizeof w->message - 1);
    if (w->submit_at_done) {
        w->submit_at_done--;
        w->progress = 0;
        submit(w, 20, 2);
    }
}

static const struct sched_events events = {
    .token = on_token, .scored = on_scored, .progress = on_progress, .done = on_done
};

static void submit(struct world *w, uint32_t n_tokens, uint32_t max_tokens)
{
    const struct sched_want want = {
        .tokens = text, .n_tokens = n_tokens, .max_tokens = max_tokens, .n_top = 2, .label = "t"
    };
    assert_int_equal(sched_submit(w->s, &want, &events, w, &w->r, NULL), ST_OK);
}

static const struct control_ready ready9 = { .fingerprint = "f", .leaf_blocks = 2, .n_blocks = 8 };

static void begin(struct world *w)
{
    const struct sched_config config = { .positions_max = 1000,
                                         .step_rows_max = 100,
                                         .prefill_chunk_rows = 50,
                                         .sequences_max = 4,
                                         .queue_max = 4,
                                         .spread_min_tokens = 1,
                                         .step_deadline_ms = 1000,
                                         .plans_ahead = 1,
                                         .prefix_sharing = true };
    const struct sched_ops ops = { .send = op_send, .now_ms = op_now };
    *w = (struct world){ .now = 5000 };
    assert_int_equal(sched_new(&config, &ops, w, &w->s), ST_OK);
    assert_int_equal(sched_worker_ready(w->s, 9, &ready9, NULL), ST_OK);
}

static struct result answer(const struct world *w, struct result_row *row)
{
    *row = (struct result_row){ .seq = w->plan.seq, .pos = w->plan.pos + w->plan.n_rows - 1, .token = 77 };
    return (struct result){ .epoch = w->plan.epoch,
                            .number = w->plan.number,
                            .group = w->plan.group,
                            .n_rows = w->plan.n_runs && w->plan.want & WANT_SAMPLE ? 1 : 0,
                            .rows = row };
}

static void step(struct world *w)
{
    struct result_row row;
    sched_run(w->s);
    if (w->n_answered == w->n_plans)
        return; /* nothing to do */
    w->n_answered = w->n_plans;
    const struct result r = answer(w, &row);
    assert_int_equal(sched_result(w->s, 9, &r, NULL), ST_OK);
}

static void test_refused(void **state)
{
    (void)state;
    struct world w;
    struct sched_request *r;
    struct error err = { 0 };
    begin(&w);
    struct sched_want want = { .tokens = text, .n_tokens = 0, .max_tokens = 4 };
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "no tokens"));
    want.n_tokens = 10;
    want.max_tokens = 0;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_INVALID);
    want.max_tokens = 991;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_TOO_LARGE); /* positions_max */
    want.max_tokens = 990;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_TOO_LARGE); /* pool */
    want.max_tokens = 8 * 64 - 8;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_TOO_LARGE);
    want.max_tokens = 8 * 64 - 9;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_OK);
    want.max_tokens = 5;
    want.n_top = 21;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_INVALID);
    want.n_top = 0;
    want.sampling.temperature = -1;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_INVALID);
    want.sampling.temperature = 1; /* and top_p 0 */
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_INVALID);
    want.sampling.top_p = 0.5f;
    text[3] = -4;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_INVALID);
    text[3] = 4;
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &r, NULL), ST_OK);
    sched_free(w.s);
    assert_int_equal(w.dones, 2);
    assert_int_equal(w.reason, FINISH_CANCELLED);
}

static void test_config_refused(void **state)
{
    (void)state;
    struct sched *s;
    const struct sched_ops ops = { .send = op_send, .now_ms = op_now };
    const struct sched_config good = { .positions_max = 10,
                                       .step_rows_max = 1,
                                       .prefill_chunk_rows = 1,
                                       .sequences_max = 1,
                                       .step_deadline_ms = 1,
                                       .plans_ahead = 1 };
    struct sched_config c = good;
    c.step_rows_max = 0;
    assert_int_equal(sched_new(&c, &ops, NULL, &s), ST_INVALID);
    c = good;
    c.plans_ahead = 100;
    assert_int_equal(sched_new(&c, &ops, NULL, &s), ST_INVALID);
    c = good;
    c.step_rows_max = PLAN_ROWS_MAX + 1;
    assert_int_equal(sched_new(&c, &ops, NULL, &s), ST_INVALID);
    sched_free(NULL);
}

static void test_workers(void **state)
{
    (void)state;
    struct world w;
    struct error err = { 0 };
    begin(&w);
    assert_int_equal(sched_worker_ready(w.s, 9, &ready9, NULL), ST_EXISTS);
    struct control_ready bad = ready9;
    bad.n_blocks = 0;
    assert_int_equal(sched_worker_ready(w.s, 10, &bad, &err), ST_INVALID);
    bad = ready9;
    bad.leaf_blocks = 0;
    assert_int_equal(sched_worker_ready(w.s, 10, &bad, NULL), ST_INVALID);
    bad = ready9;
    bad.fingerprint = NULL;
    assert_int_equal(sched_worker_ready(w.s, 10, &bad, NULL), ST_INVALID);
    for (uint16_t i = 100; i < 163; i++)
        assert_int_equal(sched_worker_ready(w.s, i, &ready9, NULL), ST_OK);
    assert_int_equal(sched_worker_ready(w.s, 163, &ready9, NULL), ST_BUSY);
    sched_worker_lost(w.s, 120, "x");
    sched_worker_lost(w.s, 120, "x");
    assert_int_equal(sched_worker_ready(w.s, 163, &ready9, NULL), ST_OK);
    struct sched_worker_stats stats[100];
    assert_int_equal(sched_worker_stats(w.s, stats, 100), 64);
    assert_int_equal(stats[0].id, 9);
    assert_int_equal(stats[63].id, 163);
    assert_int_equal(sched_worker_stats(w.s, stats, 3), 3);
    sched_free(w.s);
}

static void test_results(void **state)
{
    (void)state;
    struct world w;
    struct result_row row;
    begin(&w);
    submit(&w, 30, 4);
    sched_run(w.s);
    assert_int_equal(w.plan.n_rows, 30);
    assert_int_equal(w.plan.want, WANT_SAMPLE);
    assert_int_equal(w.plan.n_top, 2);
    const struct result good = answer(&w, &row);
    struct result r = good;
    assert_int_equal(sched_result(w.s, 8, &r, NULL), ST_PROTOCOL); /* nobody */
    r.epoch++;
    assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL);
    r = good;
    r.number++;
    assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL);
    r = good;
    r.group++;
    assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL);
    r = good;
    r.n_rows = 0;
    assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL);
    row.pos = 3;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL); /* not asked for */
    row.pos = 30;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL);
    row.pos = 29;
    row.seq++;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL);
    row.seq--;
    row.token = -1;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL);
    row.token = 77;
    row.n_top = 3;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL);
    row.n_top = 0;
    row.n_logits = 5;
    assert_int_equal(sched_result(w.s, 9, &good, NULL), ST_PROTOCOL);
    row.n_logits = 0;
    r = good;
    r.n_rows = 2;
    const struct result_row twice[2] = { row, row };
    r.rows = twice;
    assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL);
    assert_int_equal(w.tokens, 0);
    /* The caller drops such a worker; its request ends naming it. */
    sched_worker_lost(w.s, 9, "it breaks the protocol");
    assert_int_equal(w.status, ST_PEER);
    assert_non_null(strstr(w.message, "worker 9"));
    sched_free(w.s);
}

static void test_good_results(void **state)
{
    (void)state;
    struct world w;
    struct result_row row;
    const struct result_top top[2] = { { 77, -0.5f }, { 3, -2 } };
    begin(&w);
    submit(&w, 250, 4);
    while (!w.dones) {
        sched_run(w.s);
        struct result r = answer(&w, &row);
        row.n_top = r.n_rows ? 2 : 0;
        row.top = top;
        assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_OK);
        if (r.n_rows)
            assert_int_equal(sched_result(w.s, 9, &r, NULL), ST_PROTOCOL); /* once more */
        row = (struct result_row){ 0 };
    }
    assert_int_equal(w.tokens, 4);
    assert_int_equal(w.progress, 250);
    assert_int_equal(w.top.token, 77);
    assert_int_equal(w.reason, FINISH_LENGTH);
    sched_free(w.s);
}

/* What comes of epochs that are over is ignored. */
static void test_stale(void **state)
{
    (void)state;
    struct world w;
    struct result_row row;
    begin(&w);
    submit(&w, 30, 4);
    sched_run(w.s);
    const struct result late = answer(&w, &row);
    w.now += 1000;
    sched_run(w.s);
    assert_int_equal(w.dones, 0); /* it waits until the worker can be relied on */
    assert_int_equal(w.n_fences, 1);
    assert_int_equal(sched_result(w.s, 9, &late, NULL), ST_OK);
    const struct control_abort abort = { late.group, late.epoch, late.number, UINT16_MAX, "late" };
    assert_int_equal(sched_abort(w.s, 9, &abort), ST_OK);
    assert_int_equal(w.tokens, 0);
    /* A plan without rows asks whether it lives; then it serves again. */
    assert_int_equal(w.plan.n_runs, 0);
    for (uint32_t i = 0; i < 8; i++)
        step(&w);
    assert_int_equal(w.dones, 1);
    assert_int_equal(w.tokens, 4);
    assert_int_equal(w.reason, FINISH_LENGTH);
    sched_free(w.s);
}

static void test_abort(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    submit(&w, 30, 4);
    sched_run(w.s);
    struct control_abort abort = { w.plan.group, w.plan.epoch + 1, w.plan.number, UINT16_MAX, "not a number" };
    assert_int_equal(sched_abort(w.s, 9, &abort), ST_PROTOCOL);
    assert_int_equal(sched_abort(w.s, 8, &abort), ST_PROTOCOL);
    /* The third step in vain ends it. */
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(w.dones, 0);
        if (!w.plan.n_runs) { /* does it live? */
            step(&w);
            sched_run(w.s);
        }
        assert_int_equal(w.plan.n_runs, 1);
        abort.epoch = w.plan.epoch;
        abort.plan = w.plan.number;
        assert_int_equal(sched_abort(w.s, 9, &abort), ST_OK);
        w.now += 1000; /* workers that fail together count once */
        sched_run(w.s);
    }
    assert_int_equal(w.dones, 1);
    assert_string_equal(w.message, "worker 9 failed: not a number (reported by worker 9)");
    sched_free(w.s);
}

static void deaf_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct world *w = ctx;
    w->n_fences += m->kind == CONTROL_FENCE;
    if (m->kind == CONTROL_PLAN && worker == 9)
        w->plan.n_runs = m->as.plan->n_runs;
}

/* Members of a group that say they wait for messages, all of them, do not hear each other: the step is given up before its deadline. */
static void test_deaf(void **state)
{
    (void)state;
    struct world w = { .now = 5000 };
    const struct sched_config config = { .positions_max = 1000,
                                         .step_rows_max = 400,
                                         .prefill_chunk_rows = 400,
                                         .sequences_max = 4,
                                         .queue_max = 4,
                                         .spread_min_tokens = 1,
                                         .step_deadline_ms = 4000,
                                         .waits_ms = 1500,
                                         .plans_ahead = 1 };
    const struct sched_ops ops = { .send = deaf_send, .now_ms = op_now };
    assert_int_equal(sched_new(&config, &ops, &w, &w.s), ST_OK);
    assert_int_equal(sched_worker_ready(w.s, 9, &ready9, NULL), ST_OK);
    assert_int_equal(sched_worker_ready(w.s, 8, &ready9, NULL), ST_OK);
    submit(&w, 300, 4); /* leaves at both */
    sched_run(w.s);
    assert_true(w.plan.n_runs > 0);
    const uint32_t fences = w.n_fences;
    w.now += 1600;
    sched_worker_waits(w.s, 9, 1590); /* the other computes */
    sched_run(w.s);
    assert_int_equal(w.n_fences, fences);
    sched_worker_waits(w.s, 8, 1000); /* not for long */
    sched_run(w.s);
    assert_int_equal(w.n_fences, fences);
    sched_worker_waits(w.s, 8, 1700); /* for something before this step */
    sched_run(w.s);
    assert_int_equal(w.n_fences, fences);
    sched_worker_waits(w.s, 7, 9999); /* who is that? */
    sched_worker_waits(w.s, 8, 1500);
    sched_worker_waits(w.s, 9, 0); /* it goes on */
    sched_run(w.s);
    assert_int_equal(w.n_fences, fences);
    sched_worker_waits(w.s, 9, 1550);
    sched_run(w.s);
    assert_int_equal(w.n_fences, fences + 2);
    assert_int_equal(w.plan.n_runs, 0); /* do they live? */
    sched_free(w.s);
}

static void test_copied(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    submit(&w, 200, 4);
    struct control_copied copied = { .handle = 1, .source = 3 };
    assert_int_equal(sched_copied(w.s, 9, &copied), ST_PROTOCOL); /* no block has that handle yet */
    step(&w);
    step(&w);
    assert_int_equal(sched_copied(w.s, 9, &copied), ST_OK); /* there already */
    copied.handle = 4000;
    assert_int_equal(sched_copied(w.s, 9, &copied), ST_PROTOCOL);
    assert_int_equal(sched_copied(w.s, 7, &copied), ST_PROTOCOL);
    sched_free(w.s);
}

/* Callbacks may cancel their own request, and submit others. */
static void test_callbacks(void **state)
{
    (void)state;
    struct world w;
    struct sched_stats stats;
    begin(&w);
    w.cancel_at_token = 3;
    w.submit_at_done = 2;
    submit(&w, 20, 10);
    for (uint32_t i = 0; i < 20; i++)
        step(&w);
    assert_int_equal(w.dones, 3);
    assert_int_equal(w.tokens, 3 + 2 + 2);
    sched_stats(w.s, &stats);
    assert_int_equal(stats.requests_done, 3);
    assert_int_equal(stats.running + stats.waiting, 0);
    w.progress = 0;
    submit(&w, 20, 10);
    submit(&w, 20, 10);
    sched_worker_lost(w.s, 9, "gone");
    assert_int_equal(w.dones, 5);
    sched_free(w.s);
}

/* Without a network, an end of text and the end of the row budget are seen where they are. */
static void test_eos(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    const int32_t eos[2] = { 5, 77 };
    const struct sched_want want = { .tokens = text, .n_tokens = 10, .max_tokens = 5, .eos = eos, .n_eos = 2 };
    assert_int_equal(sched_submit(w.s, &want, &events, &w, &w.r, NULL), ST_OK);
    step(&w);
    assert_int_equal(w.reason, FINISH_STOP);
    assert_int_equal(w.tokens, 1); /* the token that ends it is told */
    sched_free(w.s);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    for (uint32_t i = 0; i < TOKENS; i++)
        text[i] = (int32_t)i + 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused), cmocka_unit_test(test_config_refused), cmocka_unit_test(test_workers),
        cmocka_unit_test(test_results), cmocka_unit_test(test_good_results),   cmocka_unit_test(test_stale),
        cmocka_unit_test(test_abort),   cmocka_unit_test(test_copied),         cmocka_unit_test(test_callbacks),
        cmocka_unit_test(test_eos),     cmocka_unit_test(test_deaf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
