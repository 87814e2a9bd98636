/* As test_cases.c: workers that hang, pause, die, join, or are cut off from each other. */
#define CASES_REPLAY "sim_test_losses"
#include "tests/sim/cases.h"

/* A worker that hangs: its requests go on elsewhere with the same tokens (sim.c compares); the others do not notice; it is told to stop. */
static void test_hang(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 300, 400), b = submit(sim, other, 300, 400);
    sim_advance(sim, 100);
    assert_false(sim->requests[a].ended || sim->requests[b].ended);
    sim_hang(sim, 1, INT64_MAX);
    const int64_t start = sim->now;
    sim_finish(sim, 10000);
    const bool a_moved = sim->requests[a].again > 0;
    const struct sim_request *moved = &sim->requests[a_moved ? a : b], *fine = &sim->requests[a_moved ? b : a];
    assert_int_equal(moved->reason, FINISH_LENGTH);
    assert_in_range(moved->again, 300, 450); /* all that it had */
    assert_int_equal(fine->reason, FINISH_LENGTH);
    assert_int_equal(fine->again, 0);
    assert_true(sim->now - start < 6000);
    sim_advance(sim, 3000);
    assert_int_equal(seen.stops, 1);
    assert_int_equal(seen.stopped, 1);
    submit(sim, other, 500, 20);
    sim_end(sim);
}

/* In a group of two one hangs: all goes on at the other. */
static void test_hang_in_group(void **state)
{
    (void)state;
    struct seen seen;
    for (uint32_t ahead = 1; ahead < 4; ahead++) {
        struct sim_options o = usual(2, 100, &seen);
        o.config.plans_ahead = ahead;
        struct sim *sim = sim_new(&o);
        const uint32_t a = submit(sim, text, 1500, 400);
        sim_advance(sim, 150);
        const uint32_t b = submit(sim, other, 200, 300), c = submit(sim, other + 500, 200, 300);
        sim_advance(sim, 100);
        sim_hang(sim, 0, INT64_MAX);
        sim_finish(sim, 10000);
        assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
        assert_in_range(sim->requests[a].again, 500, 1100); /* half of its leaves, and the open one */
        assert_int_equal((sim->requests[b].again > 0) + (sim->requests[c].again > 0), 1);
        assert_int_equal(seen.stops, 1);
        sim_end(sim);
    }
}

/* A pause that is too long: the worker is good again once it has finished a step, and what it has is found there. */
static void test_pause(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 300, 400);
    sim_advance(sim, 100);
    sim_hang(sim, 0, 700);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
    assert_in_range(sim->requests[a].again, 0, 63); /* its open block */
    const uint32_t b = submit(sim, text, 300, 40);  /* waits until it has shown that it lives */
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[b].reason, FINISH_LENGTH);
    assert_int_equal(seen.stops, 0);
    sim_end(sim);
}

/* In a group of three one dies: what it had is computed again, no more; who had nothing there goes on after the change of epoch. */
static void test_crash(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(3, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 1500, 400); /* on all three */
    sim_advance(sim, 150);
    uint32_t locals[3];
    for (uint32_t i = 0; i < 3; i++)
        locals[i] = submit(sim, other + 200 * i, 200, 200);
    sim_advance(sim, 200);
    for (uint32_t i = 0; i < sim->n_requests; i++)
        assert_false(sim->requests[i].ended);
    sim_crash(sim, 2, 30);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
    assert_in_range(sim->requests[a].again, 400, 800);
    uint32_t moved = 0;
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(sim->requests[locals[i]].reason, FINISH_LENGTH);
        moved += sim->requests[locals[i]].again > 0;
    }
    assert_in_range(moved, 0, 2);
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.recoveries, 1 + moved);
    assert_int_equal(stats.recovered, 1 + moved);
    assert_true(seen.fences >= 2);
    const uint32_t b = submit(sim, text, 1500, 40);
    sim_finish(sim, 10000);
    assert_int_equal(sim->requests[b].reason, FINISH_LENGTH);
    sim_end(sim);
}

/* A worker that joins takes its part of the leaves over while the sequence runs; when it dies before it has one, nobody notices. */
static void test_join(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 2000, 1200);
    sim_advance(sim, 300);
    const uint16_t joined = sim_join(sim, 100);
    sim_advance(sim, 1);
    sim_crash(sim, joined, 0);
    sim_advance(sim, 200);
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.leaves_moved, 0);
    assert_int_equal(stats.recoveries, 0);
    const uint16_t second = sim_join(sim, 100);
    sim_finish(sim, 100000);
    assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
    assert_int_equal(sim->requests[a].again, 0);
    assert_int_equal(seen.members_max, 3);
    assert_in_range(blocks_at(&sim->requests[a], second), 10, 17); /* of 49 */
    sched_stats(sim->s, &stats);
    assert_true(stats.leaves_moved >= 5);
    sim_end(sim);
}

/* With second copies nothing but the open block is computed again, and what was copied is nobody's once all have ended. */
static void test_replicas(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(3, 100, &seen);
    o.config.replicas = 1;
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 1500, 400), b = submit(sim, other, 500, 300);
    sim_advance(sim, 700);
    assert_false(sim->requests[a].ended || sim->requests[b].ended);
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    assert_true(stats.replicas >= 23 + 7); /* of both prompts */
    assert_int_equal(stats.replicas_due, 0);
    sim_crash(sim, 0, 30);
    sim_finish(sim, 10000);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(sim->requests[i].reason, FINISH_LENGTH);
        assert_in_range(sim->requests[i].again, 0, 3 * 64);
    }
    sched_stats(sim->s, &stats);
    assert_true(stats.recovered_copies >= 7);
    sim_end(sim);
}

/* Copies count when they have come; those that a lost worker had are made again at one that joins. */
static void test_replicas_again(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    o.config.replicas = 1;
    o.config.spread_min_tokens = TOKENS;
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 500, 1200);
    struct sched_stats stats;
    uint32_t due = 0;
    for (uint32_t i = 0; i < 300; i++) {
        sim_advance(sim, 1);
        sched_stats(sim->s, &stats);
        due = stats.replicas_due > due ? stats.replicas_due : due;
        assert_true(stats.replicas + stats.replicas_due <= (500 + sim->requests[a].n_tokens) / 64);
    }
    assert_true(due >= 2); /* the prompt's blocks are sealed some at a time */
    assert_int_equal(stats.replicas_due, 0);
    assert_true(stats.replicas >= 7);
    struct sched_worker_stats workers[2];
    assert_int_equal(sched_worker_stats(sim->s, workers, 2), 2);
    const uint16_t home = workers[workers[1].sequences].id, other_one = workers[workers[0].sequences].id;
    sim_crash(sim, other_one, 1);
    sim_advance(sim, 20);
    assert_int_equal(sim->requests[a].again, 0);
    const uint16_t joined = sim_join(sim, 100);
    sim_advance(sim, 300);
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.replicas_due, 0);
    assert_true(stats.replicas >= 2 * 7);
    assert_false(sim->requests[a].ended);
    sim_crash(sim, home, 1);
    sim_finish(sim, 20000);
    assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
    assert_in_range(sim->requests[a].again, 0, 2 * 64);
    assert_true(blocks_at(&sim->requests[a], joined) > 0);
    sim_end(sim);
}

/* Two workers do not reach each other: the sequence on both goes on at one of them, and alone they serve. */
static void test_cut(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(2, 100, &seen);
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, text, 1500, 400);
    sim_advance(sim, 150);
    const uint32_t b = submit(sim, other, 200, 300), c = submit(sim, other + 500, 200, 300);
    sim_advance(sim, 100);
    sim_cut(sim, 0, 1, 60000);
    const int64_t start = sim->now;
    sim_finish(sim, 100000);
    assert_int_equal(sim->requests[a].reason, FINISH_LENGTH);
    assert_true(sim->requests[a].ended_ms - start < 20000);
    assert_true(blocks_at(&sim->requests[a], 0) == 29 || blocks_at(&sim->requests[a], 1) == 29);
    assert_int_equal(sim->requests[b].reason, FINISH_LENGTH);
    assert_int_equal(sim->requests[c].reason, FINISH_LENGTH);
    submit(sim, other, 300, 20);
    submit(sim, other + 700, 300, 20);
    sim_finish(sim, 2000);
    assert_int_equal(sim->requests[3].reason, FINISH_LENGTH);
    assert_int_equal(sim->requests[4].reason, FINISH_LENGTH);
    assert_int_equal(seen.stops, 0);
    sim_advance(sim, 60000);
    const uint32_t d = submit(sim, text, 1500, 20);
    sim_finish(sim, 100000);
    assert_int_equal(sim->requests[d].reason, FINISH_LENGTH);
    sim_end(sim);
}

/* Nobody is left: all ends, nothing more is taken, until one comes. */
static void test_all_lost(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 20, &seen);
    struct sim *sim = sim_new(&o);
    submit(sim, text, 700, 400);
    const uint32_t waits = submit(sim, other, 700, 400);
    sim_advance(sim, 100);
    sim_crash(sim, 0, 10);
    sim_advance(sim, 50);
    assert_int_equal(sim->requests[waits].status, ST_PEER);
    enum status st;
    const struct sim_want w = { .tokens = text, .n_tokens = 10, .max_tokens = 1 };
    assert_int_equal(sim_submit(sim, &w, &st), -1);
    assert_int_equal(st, ST_PEER);
    sim_join(sim, 20);
    submit(sim, text, 100, 4);
    sim_end(sim);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    sim_texts(text, other, TOKENS);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hang),           cmocka_unit_test(test_hang_in_group), cmocka_unit_test(test_pause),
        cmocka_unit_test(test_crash),          cmocka_unit_test(test_join),          cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_replicas_again), cmocka_unit_test(test_cut),           cmocka_unit_test(test_all_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
