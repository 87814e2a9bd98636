/* Logit edits: asked for each row that samples, and a row whose edits follow from the tokens before waits for these. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/log.h"
#include "coordinator/sched.h"

enum { PROMPT = 5, TOKENS = 4, PLANS_MAX = 16 };

/* One worker, whose results are written by hand. */
struct world {
    struct sched *s;
    struct sched_request *r;
    struct result results[PLANS_MAX];
    struct result_row rows[PLANS_MAX];
    uint32_t n_plans, n_answered, n_tokens, n_edits, n_edited;
    bool history, done;
    struct plan_edit add;
    struct plan_edits edits;
};

static void op_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct world *w = ctx;
    (void)worker;
    if (m->kind != CONTROL_PLAN || !m->as.plan->n_runs)
        return;
    const struct plan *p = m->as.plan;
    const struct plan_run *run = &p->runs[0];
    assert_true(w->n_plans < PLANS_MAX);
    w->rows[w->n_plans] = (struct result_row){ .seq = p->seqs[0].id,
                                               .pos = run->pos + run->n_rows - 1,
                                               .token = 40 + (int32_t)w->n_plans };
    w->results[w->n_plans] = (struct result){
        .epoch = p->epoch, .number = p->number, .group = p->group, .n_rows = 1, .rows = &w->rows[w->n_plans]
    };
    w->n_plans++;
    if (run->edits) {
        assert_int_equal(run->edits->n_adds, 1);
        assert_int_equal(run->edits->adds[0].token, run->pos + run->n_rows); /* as on_edit said */
        w->n_edited++;
    }
}

static int64_t op_now(void *ctx)
{
    (void)ctx;
    return 5000;
}

static void on_token(void *user, const struct result_row *row)
{
    struct world *w = user;
    assert_int_equal(row->token, 40 + w->n_tokens);
    w->n_tokens++;
}

static const struct plan_edits *on_edit(void *user, uint32_t position)
{
    struct world *w = user;
    if (w->history)
        assert_int_equal(position, PROMPT + w->n_tokens); /* all before it have been told */
    assert_int_equal(position, PROMPT + w->n_edits);
    w->n_edits++;
    w->add = (struct plan_edit){ position, 1 };
    w->edits = (struct plan_edits){ .n_adds = 1, .adds = &w->add, .repetition = 1 };
    return &w->edits;
}

static void on_done(void *user, const struct sched_done *done)
{
    struct world *w = user;
    assert_int_equal(done->reason, FINISH_LENGTH);
    w->done = true;
}

static void run(struct world *w, bool edits, bool history)
{
    static const int32_t prompt[PROMPT] = { 1, 2, 3, 4, 5 };
    static const struct sched_events events = { .token = on_token, .edit = on_edit, .done = on_done };
    static const struct control_ready ready = { .fingerprint = "f", .leaf_blocks = 2, .n_blocks = 8 };
    const struct sched_config config = { .positions_max = 1000,
                                         .step_rows_max = 100,
                                         .prefill_chunk_rows = 50,
                                         .sequences_max = 4,
                                         .queue_max = 4,
                                         .spread_min_tokens = 1,
                                         .step_deadline_ms = 1000,
                                         .plans_ahead = 2 };
    const struct sched_ops ops = { .send = op_send, .now_ms = op_now };
    const struct sched_want want = {
        .tokens = prompt, .n_tokens = PROMPT, .max_tokens = TOKENS, .edits = edits, .history = history, .label = "t"
    };
    *w = (struct world){ .history = history };
    assert_int_equal(sched_new(&config, &ops, w, &w->s), ST_OK);
    assert_int_equal(sched_worker_ready(w->s, 9, &ready, NULL), ST_OK);
    assert_int_equal(sched_submit(w->s, &want, &events, w, &w->r, NULL), ST_OK);
    sched_run(w->s);
    assert_int_equal(w->n_plans, history ? 1 : 2); /* in flight */
    while (!w->done) {
        assert_true(w->n_answered < w->n_plans);
        assert_int_equal(sched_result(w->s, 9, &w->results[w->n_answered++], NULL), ST_OK);
        if (!w->done)
            sched_run(w->s);
        assert_true(!history || w->n_plans - w->n_answered <= 1);
    }
    assert_int_equal(w->n_tokens, TOKENS);
    assert_int_equal(w->n_plans, TOKENS);
    assert_int_equal(w->n_edited, edits ? TOKENS : 0);
    assert_int_equal(w->n_edits, edits ? TOKENS : 0);
    sched_free(w->s);
}

static void test_edits(void **state)
{
    (void)state;
    struct world w;
    run(&w, false, false);
    run(&w, true, false);
    run(&w, true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_edits) };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
