/* Single situations, with what the plans must look like; test_lives.c has the random ones. */
#define CASES_REPLAY "sim_test_cases"
#include "tests/sim/cases.h"

/* Short sequences stay at one worker each, and workers step alone. */
static void test_local(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 300, 40), b = submit(sim, other, 300, 40);
    sim_finish(sim, 10000);
    assert_int_equal(seen.members_max, 1);
    const bool first = blocks_at(&sim->requests[a], 0) > 0;
    assert_int_equal(blocks_at(&sim->requests[a], first ? 0 : 1), (300 + 39) / 64);
    assert_int_equal(blocks_at(&sim->requests[b], first ? 1 : 0), (300 + 39) / 64);
    assert_int_equal(seen.copies, 0);
    assert_true(seen.sampled_before > 40); /* plans are made before results are back */
    sim_end(sim);
}

/* A long one is dealt by leaves; growing leaves go to their owners as they are full. */
static void test_spread(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(3, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 1000, 700);
    sim_finish(sim, 100000);
    assert_int_equal(seen.members_max, 3);
    uint32_t want[3] = { 0 }, got = 0;
    const uint32_t blocks = 1699 / 64,
                   leaves = blocks / 2; /* 26 sealed blocks, all leaves but the last are with their owners */
    for (uint32_t leaf = 0; leaf < leaves; leaf++)
        want[kv_slot_owner(leaf % 64, 64, 3)] += 2;
    for (uint16_t w = 0; w < 3; w++) {
        const uint32_t n = blocks_at(&sim->requests[a], w);
        got += n;
        /* The home may have more: the last leaf or two. */
        assert_in_range(n, want[w] > 4 ? want[w] - 4 : 0, want[w] + 4);
    }
    assert_int_equal(got, blocks);
    assert_true(seen.copies >= 5);
    sim_end(sim);
}

/* The same prompt again, and the next turn of a talk: all but the last block are there. */
static void test_hits(void **state)
{
    (void)state;
    struct seen seen;
    for (uint32_t spread = 0; spread < 2; spread++) {
        struct sim_options o = usual(spread ? 3 : 1, 200, &seen);
        o.config.spread_min_tokens = spread ? 100 : 100000;
        struct sim *sim = sim_new(&o);
        const uint32_t a = submit(sim, text, 640, 100);
        sim_finish(sim, 10000);
        const uint32_t b = submit(sim, text, 640, 10);
        sim_finish(sim, 10000);
        assert_int_equal(sim->requests[a].cached, 0);
        assert_int_equal(sim->requests[b].cached, 9 * 64);
        /* prompt and answer, and something new */
        int32_t next[TOKENS];
        memcpy(next, sim->requests[a].tokens, 740 * sizeof *next);
        memcpy(next + 740, other, 50 * sizeof *next);
        const uint32_t c = submit(sim, next, 790, 10);
        sim_finish(sim, 10000);
        assert_int_equal(sim->requests[c].cached, 739 / 64 * 64);
        struct sched_stats stats;
        sched_stats(sim->s, &stats);
        assert_int_equal(stats.prefix_hit_tokens, 9 * 64 + 11 * 64);
        assert_int_equal(stats.prompt_tokens, 640 + 640 + 790);
        assert_int_equal(stats.completion_tokens, 120);
        assert_int_equal(stats.requests_done, 3);
        sim_end(sim);
    }
}

/* Prefix sharing off, or scores wanted: nothing is taken from others. */
static void test_no_hits(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 200, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 640, 10);
    sim_finish(sim, 10000);
    const struct sim_want w = { .tokens = text, .n_tokens = 640, .score = true };
    const int b = sim_submit(sim, &w, NULL);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[b].cached, 0);
    assert_int_equal(sim->requests[b].n_scored, 639);
    sim_end(sim);
    o.config.prefix_sharing = false;
    sim = sim_new(&o);
    submit(sim, text, 640, 10);
    sim_finish(sim, 10000);
    const uint32_t c = submit(sim, text, 640, 10);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[c].cached, 0);
    sim_advance(sim, 1000);
    struct sched_worker_stats stats;
    sched_worker_stats(sim->s, &stats, 1);
    assert_int_equal(stats.blocks_used, 0);
    sim_end(sim);
}

/* Many on one prefix: the second worker gets copies, and stays a group of its own. */
static void test_copies(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 300, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 300, 5);
    sim_finish(sim, 10000);
    for (uint32_t i = 0; i < 8; i++)
        submit(sim, text, 300 + i, 60);
    sim_finish(sim, 10000);
    assert_int_equal(seen.members_max, 1);
    assert_int_equal(seen.copies, 4); /* each block once, whoever waits for it */
    for (uint32_t i = 1; i < 9; i++)
        assert_int_equal(sim->requests[i].cached, 256);
    assert_true(seen.steps_of[0] > 20 && seen.steps_of[1] > 20);
    sim_end(sim);
}

/* A copy that comes to nothing: the request runs without it. */
static void test_copies_fail(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 300, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 300, 5);
    sim_finish(sim, 10000);
    sim->options.copy_faults = 1000;
    for (uint32_t i = 0; i < 8; i++)
        submit(sim, text, 300 + i, 60);
    sim_finish(sim, 10000);
    assert_true(seen.copies > 0);
    sim->options.copy_faults = 0;
    sim_end(sim);
}

/* A block must not come before the drop that makes its room has arrived. */
static void test_copy_waits_for_drop(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 12, &seen);
    o.delay_max_ms = 0;
    o.step_max_ms = 60;
    struct sim *sim = sim_new(&o);
    submit(sim, text, 640, 1);  /* what worker 0 keeps */
    submit(sim, other, 640, 1); /* what worker 1 keeps */
    sim_finish(sim, 10000);
    sched_worker_drain(sim->s, 0);
    submit(sim, other + 2000, 60, 60); /* keeps worker 1 in a step */
    sim_advance(sim, 70);
    const uint32_t a = submit(sim, text, 640, 1); /* its blocks come from worker 0 while 1 is still to drop others */
    sim_finish(sim, 100000);
    assert_int_equal(seen.copies, 9);
    assert_int_equal(sim->requests[a].cached, 9 * 64);
    assert_int_equal(blocks_at(&sim->requests[a], 1), 10);
    sim_end(sim);
}

/* What can never fit is refused, exactly; what does not fit now waits, first come first served. */
static void test_memory(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 10, &seen);
    struct sim *sim = sim_new(&o);
    enum status st;
    struct sim_want w = { .tokens = text, .n_tokens = 600, .max_tokens = 42 }; /* 641 positions: 11 blocks */
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_TOO_LARGE);
    w.max_tokens = 41;
    const uint32_t a = (uint32_t)sim_submit(sim, &w, &st);
    const uint32_t b = submit(sim, other, 300, 30), c = submit(sim, other + 1000, 64, 1);
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.running, 1);
    assert_int_equal(stats.waiting, 2);
    sim_finish(sim, 10000);
    assert_true(sim->requests[a].ended_ms <= sim->requests[b].ended_ms);
    assert_int_equal(sim->requests[c].reason, FINISH_LENGTH);
    sim_end(sim);
}

/* Two pools hold what one does not, however short sequences must be to be spread; unequal pools are used whole. */
static void test_capacity(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 20, &seen);
    o.n_blocks[1] = 8;
    o.config.spread_min_tokens = 50000;
    struct sim *sim = sim_new(&o);
    assert_int_equal(sched_positions_fit(sim->s), 28 * 64);
    submit(sim, text, 28 * 64, 1);
    enum status st;
    const struct sim_want w = { .tokens = text, .n_tokens = 28 * 64, .max_tokens = 2 };
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_TOO_LARGE);
    sim_finish(sim, 100000);
    assert_int_equal(blocks_at(&sim->requests[0], 0), 20);
    assert_int_equal(blocks_at(&sim->requests[0], 1), 8);
    /* and with all of it in the cache, something else */
    submit(sim, other, 27 * 64, 30);
    sim_end(sim);
}

/* Decode rows first; prompts ride along in small chunks, and are computed in large ones when they are alone. */
static void test_batching(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 300, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 900, 300);
    sim_advance(sim, 60);
    assert_true(seen.rows_max == 512 - 512 % 128); /* chunks end with blocks, runs with leaves */
    for (uint32_t i = 0; i < 5; i++)
        submit(sim, other + 10 * i, 800, 30);
    sim_finish(sim, 100000);
    assert_true(seen.mixed > 0);
    assert_true(seen.chunk_max <= 128);
    assert_true(seen.decode_runs_max >= 5);
    sim_end(sim);
}

static void test_queue_full(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 300, &seen);
    o.config.sequences_max = 2;
    o.config.queue_max = 3;
    struct sim *sim = sim_new(&o);
    for (uint32_t i = 0; i < 5; i++)
        submit(sim, text, 100, 50);
    enum status st;
    const struct sim_want w = { .tokens = text, .n_tokens = 10, .max_tokens = 1 };
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_BUSY);
    sim_cancel(sim, 4);
    sim_cancel(sim, 0);
    submit(sim, text, 10, 1);
    sim_end(sim);
}

/* At every moment of a life: cancel, and all is free. */
static void test_cancel(void **state)
{
    (void)state;
    struct seen seen;
    for (uint32_t ms = 0; ms < 160; ms += 4) {
        struct sim_options o = usual(3, 40, &seen);
        o.seed = ms;
        struct sim *sim = sim_new(&o);
        submit(sim, text, 1000, 300);
        submit(sim, text, 400, 100);
        sim_advance(sim, ms);
        sim_cancel(sim, 0);
        sim_cancel(sim, 1);
        sim_end(sim);
    }
}

/* The same, and the scheduler is freed. */
static void test_freed(void **state)
{
    (void)state;
    struct seen seen;
    for (uint32_t ms = 0; ms < 300; ms += 7) {
        struct sim_options o = usual(3, 40, &seen);
        o.seed = ms;
        o.delay_max_ms = 5;
        struct sim *sim = sim_new(&o);
        for (uint32_t i = 0; i < 6; i++) {
            submit(sim, text, 200 + 150 * (i % 3), 300);
            sim_advance(sim, ms / 6);
        }
        sim_free(sim);
    }
}

/* Forced tokens come back as tokens, with their log-probabilities, several rows a step; then sampling goes on. */
static void test_forced(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    struct sim *sim = sim_new(&o);
    struct sim_want w = { .tokens = text, .n_tokens = 200, .max_tokens = 300, .n_forced = 250, .logits = true };
    assert_true(sim_submit(sim, &w, NULL) >= 0);
    sim_finish(sim, 10000);
    assert_true(seen.plans < 100);
    /* rows before the first whose logits are wanted are found, or computed many at a time */
    w = (struct sim_want){
        .tokens = text, .n_tokens = 200, .max_tokens = 70, .n_forced = 70, .logits = true, .logits_from = 190
    };
    const uint32_t found = sim_accepted(sim, w);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[found].cached, 128);
    w.tokens = text + 300;
    w.n_tokens = 1000;
    w.logits_from = 999;
    const uint32_t before = seen.plans;
    sim_accepted(sim, w);
    sim_finish(sim, 10000);
    assert_in_range(seen.plans - before, 1, 40);
    enum status st;
    w.logits_from = 1069;
    sim_submit(sim, &w, &st);
    assert_int_equal(st, ST_INVALID);
    w = (struct sim_want){ .tokens = text, .n_tokens = 64, .max_tokens = 3, .n_forced = 3, .score = true };
    assert_true(sim_submit(sim, &w, NULL) >= 0);
    w = (struct sim_want){ .tokens = text, .n_tokens = 1, .score = true };
    assert_true(sim_submit(sim, &w, NULL) >= 0);
    w = (struct sim_want){ .tokens = text, .n_tokens = 1, .score = true, .logits = true };
    assert_true(sim_submit(sim, &w, NULL) >= 0);
    sim_end(sim);
}

/* A worker that drains finishes what runs and gets nothing new. */
static void test_drain(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 30, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 300, 100);
    submit(sim, other, 300, 100);
    sim_advance(sim, 30);
    sched_worker_drain(sim->s, 0);
    const uint32_t c = submit(sim, text + 700, 300, 10);
    sim_finish(sim, 10000);
    assert_int_equal(blocks_at(&sim->requests[c], 0), 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(sim->requests[i].reason, FINISH_LENGTH);
    enum status st;
    const struct sim_want w = { .tokens = text, .n_tokens = 1950, .max_tokens = 10 };
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_TOO_LARGE);
    sched_worker_drain(sim->s, 1);
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_PEER);
    sim_end(sim);
}

/* Groups form when a long sequence comes, and part when it has gone. */
static void test_groups(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(4, 100, &seen);
    struct sim *sim = sim_new(&o);
    struct sched_stats stats;
    submit(sim, other, 100, 800);
    sim_advance(sim, 100);
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.groups, 4);
    const uint32_t a = submit(sim, text, 2000, 100);
    sim_advance(sim, 100);
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.groups, 1);
    while (!sim->requests[a].ended)
        sim_advance(sim, 10);
    sim_advance(sim, 100);
    assert_false(sim->requests[0].ended);
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.groups, 4);
    sim_end(sim);
}

/* What a worker's pool has that is no cache: the most of it since the last look. */
static uint32_t held(struct sim *sim)
{
    struct sched_worker_stats w;
    assert_int_equal(sched_worker_stats(sim->s, &w, 1), 1);
    return w.blocks_used - w.blocks_cached;
}

/*
 * With a window a sequence holds what that needs, however long it becomes, in a pool that could not hold all of it; two that begin alike, and one that is
 * dense, beside it. Placed again after its worker has died it finds nothing and goes on.
 */
static void test_window(void **state)
{
    (void)state;
    struct sim_options o = sim_usual("sim_test_cases", 1, 24);
    struct sched_stats stats;
    o.config.step_rows_max = o.config.prefill_chunk_rows = 64;
    o.config.worker_wait_ms = 10000;
    enum status st;
    struct sim *sim = sim_new(&o);
    const struct sim_want far = { .tokens = text, .n_tokens = 1000, .max_tokens = 6000 };
    assert_int_equal(sim_submit(sim, &far, &st), -1);
    assert_int_equal(st, ST_TOO_LARGE);
    assert_int_equal(sched_positions_fit(sim->s), 24 * PLAN_BLOCK);
    sim_end(sim);
    o.config.window = 2 * PLAN_BLOCK;
    o.config.density = 1;
    for (int prompt = 0; prompt < 2; prompt++) {
        o.config.prompt_sparse = !prompt;
        o.n_blocks[0] = prompt ? 60 : 24;
        sim = sim_new(&o);
        assert_int_equal(sched_positions_fit(sim->s), prompt ? 60 * PLAN_BLOCK : 100000);
        const uint32_t bound = 3 + 2 + 3 * 2 + (prompt ? 1000 / PLAN_BLOCK + 1 : 0);
        sim_accepted(sim, far);
        for (int i = 0; i < 2; i++) { /* the second finds what is left of the first's blocks, and keeps some of them */
            for (uint32_t ms = 0; ms < 4000; ms += 50) {
                sim_advance(sim, 50);
                assert_true(held(sim) <= (uint32_t)(1 + i) * bound);
            }
            if (!i)
                sim_accepted(sim, far);
        }
        sched_stats(sim->s, &stats);
        assert_true(stats.blocks_passed > 20);
        sim_crash(sim, 0, 10);
        sim_advance(sim, 100);
        sim_join(sim, o.n_blocks[0]);
        sim_finish(sim, 10000000);
        assert_int_equal(sim->requests[0].n_tokens, 6000);
        assert_int_equal(sim->requests[1].n_tokens, 6000);
        sched_stats(sim->s, &stats);
        assert_true(stats.recoveries >= 2);
        sim_end(sim);
    }
}

/* Workers whose bits differ share neither groups nor blocks. */
static void test_fingerprints(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 100, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 640, 10);
    sim_finish(sim, 10000);
    sim_join_as(sim, 100, "another");
    assert_int_equal(sched_positions_fit(sim->s), 6400);
    sched_worker_drain(sim->s, 0);
    const uint32_t a = submit(sim, text, 640, 10);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[a].cached, 0);
    const uint32_t b = submit(sim, text, 1200, 10);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[b].cached,
                     640 - 64 + 64); /* 640 and 9 more rows of the one before complete ten blocks */
    assert_int_equal(seen.members_max, 1);
    sim_end(sim);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    sim_texts(text, other, TOKENS);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_hits),
        cmocka_unit_test(test_no_hits),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_copies_fail),
        cmocka_unit_test(test_copy_waits_for_drop),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_batching),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_freed),
        cmocka_unit_test(test_forced),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_fingerprints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
