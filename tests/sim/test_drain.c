/* Sequences that leave their worker by command, and go on elsewhere with the same tokens (sim.c compares every one). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/log.h"
#include "tests/sim/sim.h"

enum { TOKENS = 3000, NOBODY = UINT16_MAX };

static int32_t text[4][TOKENS];

static struct sim *cluster(uint32_t n_workers, uint32_t n_blocks, bool prefix_sharing)
{
    struct sim_options o = sim_usual("sim_test_drain", n_workers, n_blocks);
    o.config.prefix_sharing = prefix_sharing;
    return sim_new(&o);
}

static uint32_t submit(struct sim *sim, uint32_t which, uint32_t n, uint32_t max_tokens)
{
    return sim_accepted(sim, (struct sim_want){ .tokens = text[which], .n_tokens = n, .max_tokens = max_tokens });
}

static struct sched_worker_stats of(const struct sim *sim, uint16_t worker)
{
    struct sched_worker_stats stats[SIM_WORKERS_MAX];
    const uint32_t n = sched_worker_stats(sim->s, stats, SIM_WORKERS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        if (stats[i].id == worker)
            return stats[i];
    }
    fail_msg("worker %u is not there", worker);
    return stats[0];
}

static uint16_t home(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n_workers; i++) {
        if (of(sim, (uint16_t)i).sequences)
            return (uint16_t)i;
    }
    return NOBODY;
}

static struct sched_stats sums(const struct sim *sim)
{
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    return stats;
}

static void end(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n_requests; i++)
        assert_int_equal(sim->requests[i].reason, FINISH_LENGTH);
    sim_check_empty(sim);
    sim_free(sim);
}

/* Until nothing runs at the worker. -> ms */
static uint32_t drained(struct sim *sim, uint16_t worker)
{
    uint32_t ms = 0;
    while (of(sim, worker).ties && ms < 10000) {
        sim_advance(sim, 5);
        ms += 5;
    }
    assert_int_equal(of(sim, worker).ties, 0);
    assert_int_equal(of(sim, worker).leaves, 0);
    return ms;
}

/* What it has goes to the other, and but for the open rows nothing is computed again. */
static void test_local(void **state)
{
    (void)state;
    struct sim *sim = cluster(2, 100, true);
    const uint32_t a = submit(sim, 0, 600, 390);
    sim_advance(sim, 200);
    const uint16_t worker = home(sim);
    assert_int_not_equal(worker, NOBODY);
    sched_worker_empty(sim->s, worker);
    assert_true(of(sim, worker).draining);
    drained(sim, worker);
    assert_false(sim->requests[a].ended);
    const uint32_t b = submit(sim, 1, 100, 10);
    sim_finish(sim, 100000);
    assert_int_equal(of(sim, worker).blocks_used, of(sim, worker).blocks_cached);
    assert_in_range(sim->requests[a].again, 1, 128);
    assert_int_equal(sim->requests[b].again, 0);
    assert_int_equal(sums(sim).sequences_moved, 1);
    assert_int_equal(sums(sim).recoveries, 0);
    end(sim);
}

/* What its window has left is cache, and goes along. */
static void test_window(void **state)
{
    (void)state;
    struct sim_options o = sim_usual("sim_test_drain", 2, 100);
    o.config.window = 2 * PLAN_BLOCK;
    o.config.density = 1;
    o.config.prompt_sparse = true;
    struct sim *sim = sim_new(&o);
    const uint32_t a = submit(sim, 0, 600, 390);
    sim_advance(sim, 200);
    const uint16_t worker = home(sim);
    assert_int_not_equal(worker, NOBODY);
    assert_true(sums(sim).blocks_passed > 5);
    sched_worker_empty(sim->s, worker);
    drained(sim, worker);
    assert_false(sim->requests[a].ended);
    sim_finish(sim, 100000);
    assert_in_range(sim->requests[a].again, 1, 128);
    assert_int_equal(sums(sim).sequences_moved, 1);
    end(sim);
}

/* A part of a spread sequence goes too, whether its home is there or not; others of its workers keep theirs. */
static void test_spread(void **state)
{
    (void)state;
    for (uint16_t worker = 0; worker < 3; worker++) {
        struct sim *sim = cluster(3, 60, true);
        const uint32_t a = submit(sim, 0, 2000, 700);
        sim_advance(sim, 400);
        assert_true(of(sim, worker).leaves > 0);
        sched_worker_empty(sim->s, worker);
        drained(sim, worker);
        assert_false(sim->requests[a].ended);
        sim_finish(sim, 100000);
        assert_in_range(sim->requests[a].again, 0, 128);
        assert_int_equal(sums(sim).sequences_moved, 1);
        end(sim);
    }
}

/* Who is in the midst of its prompt goes on behind what is sealed; who has not begun just begins elsewhere. */
static void test_prompts(void **state)
{
    (void)state;
    struct sim *sim = cluster(2, 200, true);
    const uint32_t a = submit(sim, 0, 900, 20), b = submit(sim, 1, 900, 20);
    sim_advance(sim, 12);
    sched_worker_empty(sim->s, 0);
    drained(sim, 0);
    assert_false(sim->requests[a].ended && sim->requests[b].ended);
    sim_finish(sim, 100000);
    end(sim);
}

/* Nobody else can hold it: it ends where it is, and the worker takes nothing new. */
static void test_no_room(void **state)
{
    (void)state;
    struct sim *sim = cluster(2, 20, true);
    const uint32_t a = submit(sim, 0, 600, 390), b = submit(sim, 1, 600, 390);
    sim_advance(sim, 100);
    sched_worker_empty(sim->s, 0);
    sim_advance(sim, 300);
    assert_int_equal(of(sim, 0).ties, 1);
    assert_int_equal(of(sim, 0).sequences, 1);
    sim_finish(sim, 100000);
    assert_int_equal(sim->requests[a].again, 0);
    assert_int_equal(sim->requests[b].again, 0);
    assert_int_equal(sums(sim).sequences_moved, 0);
    end(sim);
}

/* Blocks without names are found nowhere: the sequence ends where it is. */
static void test_no_names(void **state)
{
    (void)state;
    struct sim *sim = cluster(2, 100, false);
    submit(sim, 0, 600, 200);
    sim_advance(sim, 100);
    sched_worker_empty(sim->s, home(sim));
    sim_finish(sim, 100000);
    assert_int_equal(sums(sim).sequences_moved, 0);
    assert_int_equal(sim->requests[0].again, 0);
    end(sim);
}

/* Taken back, it gets new sequences, and by command half of the others'. */
static void test_resume(void **state)
{
    (void)state;
    struct sim *sim = cluster(2, 300, true);
    sched_worker_empty(sim->s, 0);
    for (uint32_t i = 0; i < 4; i++)
        submit(sim, i, 300, 600);
    sim_advance(sim, 200);
    assert_int_equal(of(sim, 1).sequences, 4);
    sched_rebalance(sim->s);
    sim_advance(sim, 200);
    assert_int_equal(of(sim, 1).sequences, 4); /* nobody goes to who drains */
    sched_worker_resume(sim->s, 0);
    assert_false(of(sim, 0).draining);
    sim_advance(sim, 200);
    assert_int_equal(of(sim, 1).sequences, 4);
    sched_rebalance(sim->s);
    sim_advance(sim, 400);
    assert_int_equal(of(sim, 0).sequences, 2);
    assert_int_equal(of(sim, 1).sequences, 2);
    assert_int_equal(sums(sim).sequences_moved, 2);
    sim_finish(sim, 100000);
    uint32_t again = 0;
    for (uint32_t i = 0; i < 4; i++)
        again += sim->requests[i].again;
    assert_in_range(again, 1, 2 * 128);
    end(sim);
}

/* Taken back while its blocks are copied: nothing goes. And who it was to go to dies: it goes to another. */
static void test_turns(void **state)
{
    (void)state;
    struct sim *sim = cluster(3, 100, true);
    submit(sim, 0, 600, 390);
    sim_advance(sim, 200);
    const uint16_t worker = home(sim);
    for (uint32_t i = 0; i < 20; i++) {
        sched_worker_empty(sim->s, worker);
        sim_advance(sim, 1);
        sched_worker_resume(sim->s, worker);
    }
    sched_worker_empty(sim->s, worker);
    sim_advance(sim, 2);
    sim_crash(sim, worker == 1 ? 2 : 1, 0);
    drained(sim, worker);
    sim_finish(sim, 100000);
    end(sim);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < TOKENS; j++)
            text[i][j] = (int32_t)((i * 7919 + j * 31) % (SIM_VOCAB - 10)) + 10;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),   cmocka_unit_test(test_spread),   cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_no_room), cmocka_unit_test(test_no_names), cmocka_unit_test(test_resume),
        cmocka_unit_test(test_turns),   cmocka_unit_test(test_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
