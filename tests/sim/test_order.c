/* Who comes first: priorities, tenants, prefixes, preemption, deadlines, short prompts beside long ones. */
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

enum { TOKENS = 9000 };

static int32_t text[4][TOKENS];

static struct sim_options usual(uint32_t n_blocks)
{
    return sim_usual("sim_test_order", 1, n_blocks);
}

/* Lower classes first, each in the order of arrival. */
static void test_priority(void **state)
{
    (void)state;
    struct sim_options o = usual(100);
    o.config.sequences_max = 1;
    struct sim *sim = sim_new(&o);
    static const int32_t classes[] = { 0, 5, 0, -3, 5, -3, 0 };
    static const uint32_t order[] = { 0, 3, 5, 2, 6, 1, 4 };
    for (uint32_t i = 0; i < 7; i++)
        sim_accepted(
            sim, (struct sim_want){ .tokens = text[0] + i, .n_tokens = 100, .max_tokens = 5, .priority = classes[i] });
    sim_finish(sim, 100000);
    for (uint32_t i = 1; i < 7; i++)
        assert_true(sim->requests[order[i]].ended_ms > sim->requests[order[i - 1]].ended_ms);
    sim_end(sim);
}

/* Without weights equal shares, whoever asks more; with them by weight; and who comes late is not owed what it did not ask for. */
static void tenants(const char *weights, double share_least, double share_most)
{
    struct sim_options o = usual(100);
    o.config.sequences_max = 1;
    o.config.prefix_sharing = false;
    o.config.tenant_weights = weights;
    struct sim *sim = sim_new(&o);
    for (uint32_t i = 0; i < 60; i++)
        sim_accepted(sim,
                     (struct sim_want){ .tokens = text[0] + i, .n_tokens = 100, .max_tokens = 20, .tenant = "much" });
    for (uint32_t i = 0; i < 20; i++)
        sim_accepted(sim,
                     (struct sim_want){ .tokens = text[1] + i, .n_tokens = 100, .max_tokens = 20, .tenant = "few" });
    while (!sim->requests[79].ended)
        sim_advance(sim, 5);
    uint32_t much = 0;
    for (uint32_t i = 0; i < 60; i++)
        much += sim->requests[i].ended;
    assert_true(much >= 20 * share_least && much <= 20 * share_most);
    sim_end(sim);
}

static void test_tenants(void **state)
{
    (void)state;
    tenants(NULL, 0.9, 1.15);
    tenants("much=2", 1.8, 2.2);
    struct sim_options o = usual(100);
    struct sched *s;
    const struct sched_ops none = { .send = NULL };
    static const char *const wrong[] = { "a", "a=", "=1", "a=0", "a=-1", "a=nan", "a=1;b=2", "a=1000000", "a=1,b" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        o.config.tenant_weights = wrong[i];
        assert_int_equal(sched_new(&o.config, &none, NULL, &s), ST_INVALID);
    }
}

/* A lower class waits, but not for ever. */
static void test_starving(void **state)
{
    (void)state;
    for (uint32_t bound = 0; bound < 2; bound++) {
        struct sim_options o = usual(100);
        o.config.sequences_max = 1;
        o.config.starve_ms = bound ? 1000 : 0;
        struct sim *sim = sim_new(&o);
        sim_accepted(sim, (struct sim_want){ .tokens = text[0], .n_tokens = 100, .max_tokens = 5 });
        const uint32_t poor =
            sim_accepted(sim, (struct sim_want){ .tokens = text[1], .n_tokens = 100, .max_tokens = 5, .priority = 9 });
        for (uint32_t i = 0; i < 100; i++) {
            sim_accepted(sim, (struct sim_want){ .tokens = text[2] + i, .n_tokens = 100, .max_tokens = 20 });
            sim_advance(sim, 40);
        }
        assert_int_equal(sim->requests[poor].ended && sim->requests[poor].ended_ms < 3000, bound);
        sim_end(sim);
    }
}

/* A prompt that another computes already waits for its blocks. */
static void test_common_prefix(void **state)
{
    (void)state;
    struct sim_options o = usual(400);
    struct sim *sim = sim_new(&o);
    struct sched_stats stats;
    for (uint32_t i = 0; i < 8; i++) {
        int32_t tokens[1300];
        memcpy(tokens, text[0], sizeof tokens);
        for (uint32_t j = 1280; j < 1300; j++)
            tokens[j] = text[1][i * 20 + j - 1280];
        sim_accepted(sim, (struct sim_want){ .tokens = tokens, .n_tokens = 1300, .max_tokens = 10 });
    }
    sim_finish(sim, 100000);
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.prompt_rows, 1300 + 7 * 20);
    for (uint32_t i = 1; i < 8; i++)
        assert_int_equal(sim->requests[i].cached, 1280);
    sim_end(sim);
}

/* Of those that wait, who shares a prefix with what runs comes first, and overtakes the first of them so often and no more. */
static void test_grouped(void **state)
{
    (void)state;
    struct sim_options o = usual(400);
    o.config.sequences_max = 1;
    struct sim *sim = sim_new(&o);
    sim_accepted(sim, (struct sim_want){ .tokens = text[0], .n_tokens = 600, .max_tokens = 30 });
    const uint32_t other = sim_accepted(sim, (struct sim_want){ .tokens = text[1], .n_tokens = 600, .max_tokens = 30 });
    for (uint32_t i = 0; i < 12; i++)
        sim_accepted(sim, (struct sim_want){ .tokens = text[0], .n_tokens = 600 + i, .max_tokens = 30 });
    sim_finish(sim, 100000);
    uint32_t before = 0;
    for (uint32_t i = 2; i < 14; i++)
        before += sim->requests[i].ended_ms < sim->requests[other].ended_ms;
    assert_in_range(before, 0, 8);
    sim_end(sim);
}

/* Memory for one: who comes first has it, the other goes on afterwards as if nothing had been. The checks of tokens are sim.c's. */
static void test_preemption(void **state)
{
    (void)state;
    for (uint32_t ms = 0; ms < 400; ms += 7) {
        struct sim_options o = usual(ms % 2 ? 16 : 12);
        struct sched_stats stats;
        o.config.preemption = true;
        o.seed = ms;
        struct sim *sim = sim_new(&o);
        const uint32_t a = sim_accepted(
            sim, (struct sim_want){
                     .tokens = text[0], .n_tokens = 500, .max_tokens = 150, .priority = 1, .score = ms % 3 == 0 });
        sim_advance(sim, ms);
        const bool over = sim->requests[a].ended;
        const uint32_t b = sim_accepted(sim, (struct sim_want){ .tokens = text[1], .n_tokens = 400, .max_tokens = 50 });
        sim_finish(sim, 100000);
        sched_stats(sim->s, &stats);
        assert_int_equal(stats.preemptions, !over);
        assert_true(over || sim->requests[b].ended_ms < sim->requests[a].ended_ms);
        assert_int_equal(sim->requests[a].n_tokens, 150);
        assert_int_equal(stats.completion_tokens, 200);
        sim_end(sim);
    }
}

/* Spread over workers, again and again, with forced tokens and prefix hits; also those of the same class that came later, once the first has waited long. */
static void test_preemption_again(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < 20; seed++) {
        struct sim_options o = usual(20);
        struct sched_stats stats;
        o.seed = seed;
        o.n_workers = 3;
        o.n_blocks[1] = o.n_blocks[2] = 20;
        o.choices = seed % 2;
        o.config.spread_min_tokens = 400;
        o.config.preemption = true;
        o.config.starve_ms = seed % 4 ? 300 : 0;
        struct sim *sim = sim_new(&o);
        sim_accepted(sim,
                     (struct sim_want){
                         .tokens = text[0], .n_tokens = 1500, .max_tokens = 500, .n_forced = 100, .priority = 20 });
        for (uint32_t i = 0; i < 12; i++) {
            sim_advance(sim, 60);
            sim_accepted(sim, (struct sim_want){ .tokens = text[i % 3],
                                                 .n_tokens = 900 + 50 * i,
                                                 .max_tokens = 60,
                                                 .priority = 10 - (int32_t)(i % 8) });
        }
        sim_finish(sim, 200000);
        sched_stats(sim->s, &stats);
        assert_true(stats.preemptions > 1);
        assert_int_equal(sim->requests[0].n_tokens, 500);
        sim_end(sim);
    }
}

static void test_deadline(void **state)
{
    (void)state;
    struct sim_options o = usual(30);
    o.config.sequences_max = 1;
    struct sim *sim = sim_new(&o);
    enum status st;
    const struct sim_want late = { .tokens = text[0], .n_tokens = 10, .max_tokens = 1, .timeout_ms = -5 };
    assert_int_equal(sim_submit(sim, &late, &st), -1);
    assert_int_equal(st, ST_TIMEOUT);
    const uint32_t a = sim_accepted(
        sim, (struct sim_want){ .tokens = text[0], .n_tokens = 300, .max_tokens = 1000, .timeout_ms = 500 });
    const uint32_t b =
        sim_accepted(sim, (struct sim_want){ .tokens = text[1], .n_tokens = 300, .max_tokens = 10, .timeout_ms = 200 });
    const uint32_t c = sim_accepted(
        sim, (struct sim_want){ .tokens = text[1], .n_tokens = 300, .max_tokens = 10, .timeout_ms = 5000 });
    sim_finish(sim, 10000);
    const struct sim_request *r = sim->requests;
    assert_int_equal(r[a].status, ST_TIMEOUT);
    assert_in_range(r[a].ended_ms - r[a].submitted_ms, 500, 530);
    assert_true(r[a].n_tokens > 0 && strstr(r[a].message, "before it was done"));
    assert_int_equal(r[b].status, ST_TIMEOUT);
    assert_in_range(r[b].ended_ms - r[b].submitted_ms, 200, 230);
    assert_true(!r[b].n_tokens && strstr(r[b].message, "while it waited"));
    assert_int_equal(r[c].reason, FINISH_LENGTH);
    sim_end(sim);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t i = 0; i < TOKENS; i++)
            text[k][i] = (int32_t)(mix64(k * 1000000 + i) % SIM_VOCAB);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priority),         cmocka_unit_test(test_tenants),  cmocka_unit_test(test_starving),
        cmocka_unit_test(test_common_prefix),    cmocka_unit_test(test_grouped),  cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_preemption_again), cmocka_unit_test(test_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
