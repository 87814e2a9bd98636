/* What load and faults do to the times of others, in virtual time: steps cost their rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/log.h"
#include "coordinator/sched/state.h"
#include "tests/sim/sim.h"

enum { TOKENS = 10000 };
#ifdef __SANITIZE_ADDRESS__
enum { SEEDS = 8, PLACES_LEAST = 64 };
#else
enum { SEEDS = 40, PLACES_LEAST = 4 };
#endif
static int32_t text[TOKENS], other[TOKENS];

static struct sim_options usual(uint32_t n_workers)
{
    struct sim_options o = sim_usual("sim_test_load", n_workers, 1000);
    o.leaf_blocks = 4;
    o.delay_max_ms = 0;
    o.step_max_ms = 1;
    o.row_us = 1000;
    o.config.step_rows_max = 1024;
    o.config.step_target_ms = 40;
    o.config.sequences_max = 64;
    o.config.queue_max = 1024;
    o.config.spread_min_tokens = 100000;
    o.config.step_deadline_ms = 4000;
    o.config.recovery_share = 50;
    return o;
}

/* ---- more load than can be served ---- */

struct figures {
    uint32_t offered, refused, shed, good, late;
    double good_per_s;
    int64_t waited_max;
};

/*
 * Requests of 60 tokens that want 8, in 64 ms of a worker's time at most, so 14 a second or a little more by sharing steps; `per_s` come for so many seconds. Good
 * are those with their first token within a second.
 */
static struct figures offer(uint32_t per_s, uint32_t seconds, uint32_t queue_wait_ms, uint32_t sequences_max)
{
    struct sim_options o = usual(1);
    struct figures f = { 0 };
    o.config.queue_wait_ms = queue_wait_ms;
    o.config.sequences_max = sequences_max;
    struct sim *sim = sim_new(&o);
    struct rng rng = { .seed = per_s };
    const int64_t began = sim->now;
    int64_t next = began;
    while (sim->now < began + 1000 * seconds) {
        const struct sim_want w = { .tokens = text + 9 * f.offered, .n_tokens = 60, .max_tokens = 8 };
        enum status st;
        f.offered++;
        if (sim_submit(sim, &w, &st) < 0) {
            assert_int_equal(st, ST_BUSY);
            assert_true(sched_retry_ms(sim->s) > 0);
            f.refused++;
        }
        next += 1 + rng_below(&rng, 2000 / per_s);
        if (next > sim->now)
            sim_advance(sim, next - sim->now);
        sim->now = next;
    }
    sim_finish(sim, 1000000);
    int64_t last = 0;
    for (uint32_t i = 0; i < sim->n_requests; i++) {
        const struct sim_request *r = &sim->requests[i];
        if (r->reason == FINISH_ERROR) {
            assert_int_equal(r->status, ST_BUSY);
            assert_int_equal(r->n_tokens, 0);
            f.shed++;
            continue;
        }
        const int64_t ttft = r->first_ms - r->submitted_ms;
        f.good += ttft <= 1000;
        f.late += ttft > 1000;
        f.waited_max = ttft > f.waited_max ? ttft : f.waited_max;
        last = r->ended_ms > last ? r->ended_ms : last;
    }
    struct sched_stats stats;
    sched_stats(sim->s, &stats);
    assert_int_equal(stats.requests_shed, f.shed);
    assert_int_equal(stats.requests_failed, 0);
    /* nothing was computed for those that were refused or shed */
    assert_in_range(stats.prompt_rows, 60 * (f.good + f.late) - 60, 60 * (f.good + f.late));
    f.good_per_s = 1000.0 * f.good / (double)(last - began);
    sim_check_empty(sim);
    sim_free(sim);
    printf("%u a second, bound %u ms, %u places: %u offered, %u refused, %u shed, %u late, %.2f good a second, longest "
           "%lld ms\n",
           per_s, queue_wait_ms, sequences_max, f.offered, f.refused, f.shed, f.late, f.good_per_s,
           (long long)f.waited_max);
    return f;
}

/* At ten times the load as many are served in time as at once; without the bound next to none. */
static void test_goodput(void **state)
{
    (void)state;
    for (uint32_t places = PLACES_LEAST; places <= 64; places *= 16) {
        const struct figures once = offer(10, 12, 700, places), twice = offer(20, 10, 700, places),
                             ten = offer(100, 10, 700, places), unbound = offer(100, 10, 0, places);
        assert_int_equal(once.refused + once.shed, 0);
        assert_int_equal(once.late, 0);
        assert_true(twice.good_per_s > once.good_per_s);
        assert_true(ten.good_per_s > 0.95 * twice.good_per_s);
        assert_true(ten.late <= ten.good / 50);
        assert_true(ten.shed <= ten.refused / 20); /* they hear of it at once */
        assert_true(unbound.good_per_s < 0.5 * ten.good_per_s);
    }
}

/* The estimate errs: a place is free by the clock, but its holder goes on. Who has waited so long ends all the same. */
static void test_shed(void **state)
{
    (void)state;
    struct sim_options o = usual(1);
    o.config.queue_wait_ms = 300;
    o.config.sequences_max = 1;
    struct sim *sim = sim_new(&o);
    sim_accepted(sim, (struct sim_want){ .tokens = text, .n_tokens = 10, .max_tokens = 500 });
    sim_advance(sim, 50);
    const uint32_t b = sim_accepted(sim, (struct sim_want){ .tokens = other, .n_tokens = 10, .max_tokens = 2 });
    sim_advance(sim, 290);
    assert_false(sim->requests[b].ended);
    sim_advance(sim, 30);
    assert_true(sim->requests[b].ended);
    assert_int_equal(sim->requests[b].status, ST_BUSY);
    assert_non_null(strstr(sim->requests[b].message, "waited"));
    assert_false(sim->requests[0].ended);
    sim_end(sim);
}

/* Who is in a better class, or another tenant's, does not wait behind all, and is not refused for them. */
static void test_turns(void **state)
{
    (void)state;
    struct sim_options o = usual(1);
    enum status st;
    o.config.queue_wait_ms = 1000;
    o.config.sequences_max = 1;
    struct sim *sim = sim_new(&o);
    const struct sim_want w = { .tokens = text, .n_tokens = 100, .max_tokens = 2, .tenant = "a" };
    for (uint32_t i = 0; i < 3; i++) { /* what one takes is known: 0.1 s */
        sim_accepted(sim,
                     (struct sim_want){ .tokens = other + 100 * i, .n_tokens = 100, .max_tokens = 2, .tenant = "a" });
        sim_finish(sim, 1000);
    }
    uint32_t n = 0;
    while (n < 100 && sim_submit(sim, &w, &st) >= 0)
        n++;
    assert_in_range(n, 8, 13);
    assert_int_equal(st, ST_BUSY);
    assert_true(sched_retry_ms(sim->s) > 0 && sched_retry_ms(sim->s) < 500);
    struct sim_want better = w;
    better.priority = -1;
    sim_accepted(sim, better);
    better = w;
    better.tenant = "b";
    sim_accepted(sim, better);
    sim_end(sim);
}

/* ---- one long prompt among short ones ---- */

static int64_t ttft_p99(bool with_long)
{
    struct sim_options o = usual(1);
    o.row_us = 1500; /* as two cores of 2023 with the default model: 64 rows take 0.1 s */
    struct sim *sim = sim_new(&o);
    enum { N = 200 };
    int64_t ttft[N];
    uint32_t ids[N];
    struct rng rng = { .seed = 5 };
    sim_accepted(sim, (struct sim_want){ .tokens = other + 9000, .n_tokens = 64, .max_tokens = 2 });
    sim_finish(sim, 1000);
    for (uint32_t i = 0; i < N; i++) {
        if (i == 4 && with_long)
            sim_accepted(sim, (struct sim_want){ .tokens = other, .n_tokens = 8000, .max_tokens = 16 });
        ids[i] = sim_accepted(sim, (struct sim_want){ .tokens = text + 20 * i, .n_tokens = 64, .max_tokens = 16 });
        sim_advance(sim, 50 + rng_below(&rng, 400)); /* 4 a second */
    }
    sim_finish(sim, 100000);
    for (uint32_t i = 0; i < N; i++) {
        const struct sim_request *r = &sim->requests[ids[i]];
        int64_t v = r->first_ms - r->submitted_ms;
        uint32_t at = i;
        for (; at && ttft[at - 1] > v; at--)
            ttft[at] = ttft[at - 1];
        ttft[at] = v;
    }
    sim_check_empty(sim);
    sim_free(sim);
    return ttft[N * 99 / 100];
}

static void test_long_among_short(void **state)
{
    (void)state;
    const int64_t alone = ttft_p99(false), among = ttft_p99(true);
    printf("TTFT p99 of short prompts: %lld ms, beside one of 8000 tokens %lld ms\n", (long long)alone,
           (long long)among);
    assert_true(2 * among <= 3 * alone);
}

/* ---- a worker is lost ---- */

/* The middle one of the gaps between its tokens. */
static int64_t gap_median(const struct sim_request *r)
{
    uint32_t n = 0, half = 0;
    for (uint32_t i = 0; i < SIM_GAP_MAX; i++)
        n += r->gaps[i];
    for (uint32_t i = 0; i < SIM_GAP_MAX; i++) {
        half += r->gaps[i];
        if (2 * half >= n)
            return i;
    }
    return 0;
}

static uint16_t worker_of(const struct sim *sim, uint32_t request)
{
    return sim->s->workers[sim->requests[request].handle->home].id;
}

static int64_t longest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/*
 * A long sequence loses its worker in the midst of its decode, and another takes it over. Other step groups do not notice: they have no gap over 1.5 times their
 * median. Where one has to share its steps, gaps are no longer than the share allows.
 */
static void test_others_go_on(void **state)
{
    (void)state;
    uint32_t apart = 0, together = 0;
    double worst = 0;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        struct sim_options o = usual(seed % 2 ? 5 : 4); /* with one to spare, or none */
        o.seed = seed;
        o.step_max_ms = 2;
        o.row_us = 5000;
        o.config.step_row_ms = 20;
        o.config.recovery_share = 10 + 80 * seed / SEEDS;
        struct sim *sim = sim_new(&o);
        const uint32_t a = sim_accepted(sim, (struct sim_want){ .tokens = text, .n_tokens = 1500, .max_tokens = 600 });
        uint32_t others[3];
        for (uint32_t i = 0; i < 3; i++)
            others[i] =
                sim_accepted(sim, (struct sim_want){ .tokens = other + 500 * i, .n_tokens = 100, .max_tokens = 2200 });
        while (sim->requests[a].n_tokens < 100)
            sim_advance(sim, 10);
        for (uint32_t i = 0; i < 3; i++)
            memset(sim->requests[others[i]].gaps, 0, sizeof sim->requests[0].gaps);
        for (uint32_t i = 0; i < 3; i++)
            sim->requests[others[i]].gap_ms = 0;
        const struct sched_request *lost = sim->requests[a].handle;
        sim_crash(sim, worker_of(sim, a), 20 + seed);
        sim_advance(sim, 20 + seed + 100);
        assert_int_equal(lost->state, REQUEST_RUNNING);
        const struct group *taken = lost->group;
        bool shares[3];
        for (uint32_t i = 0; i < 3; i++) {
            assert_false(sim->requests[others[i]].ended);
            shares[i] = sim->requests[others[i]].handle->group == taken;
        }
        const uint32_t before = sim->requests[a].n_tokens;
        while (sim->requests[a].n_tokens < before + 5 && !sim->requests[others[0]].ended &&
               !sim->requests[others[1]].ended && !sim->requests[others[2]].ended)
            sim_advance(sim, 10);
        for (uint32_t i = 0; i < 3; i++) {
            const struct sim_request *r = &sim->requests[others[i]];
            const int64_t median = gap_median(r);
            assert_int_equal(r->again, 0);
            assert_in_range(median, 6, 120);
            if (!shares[i]) {
                worst = (double)r->gap_ms / (double)median > worst ? (double)r->gap_ms / (double)median : worst;
                assert_true(2 * r->gap_ms <= 3 * median);
            } else {
                /* a decode row, and of a step's prompt rows (16 here: an eighth of a chunk) the share */
                const int64_t rows = longest(1, 16 * o.config.recovery_share / 100);
                assert_true(r->gap_ms <= 5 * (1 + rows) + 2 + 3);
            }
            together += shares[i];
            apart += !shares[i];
        }
        sim_end(sim);
    }
    printf("gaps of other step groups over their median: %.2f at most, in %u; %u shared their steps\n", worst, apart,
           together);
    assert_true(apart >= 2 * SEEDS && together >= SEEDS / 3);
}

/* A prompt of 7000 tokens, decoded, on so many workers; one is lost, and another comes join_ms later (0: none). -> until its next token; rows computed again */
static int64_t rebuild_ms(uint32_t n_workers, bool home, uint32_t replicas, int64_t join_ms, uint32_t *again_out)
{
    struct sim_options o = usual(n_workers);
    o.config.spread_min_tokens = 1000;
    o.config.step_row_ms = 20;
    o.config.replicas = replicas;
    struct sim *sim = sim_new(&o);
    const uint32_t a = sim_accepted(sim, (struct sim_want){ .tokens = text, .n_tokens = 7000, .max_tokens = 1000 });
    while (sim->requests[a].n_tokens < 300)
        sim_advance(sim, 10);
    uint16_t worker = 0;
    while ((worker == worker_of(sim, a)) != home)
        worker++;
    sim_crash(sim, worker, 0);
    if (join_ms) {
        sim_advance(sim, join_ms);
        sim_join(sim, 1000);
    }
    sim_finish(sim, 100000);
    const int64_t ms = sim->requests[a].gap_ms;
    *again_out = sim->requests[a].again;
    sim_end(sim);
    return ms;
}

static int64_t prefill_ms(uint32_t n_workers)
{
    struct sim_options o = usual(n_workers);
    o.config.spread_min_tokens = 1000;
    o.config.step_row_ms = 20;
    struct sim *sim = sim_new(&o);
    const uint32_t a = sim_accepted(sim, (struct sim_want){ .tokens = text, .n_tokens = 7000, .max_tokens = 1 });
    sim_finish(sim, 100000);
    const int64_t ms = sim->requests[a].first_ms - sim->requests[a].submitted_ms;
    sim_end(sim);
    return ms;
}

/* What was lost is computed again and nothing else, by all workers that are left, as fast as they would compute a prompt of so many rows. */
static void test_rebuilt(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 4; n++) {
        const int64_t whole = prefill_ms(n - 1);
        for (int home = 0; home < 2; home++) {
            uint32_t again, few, more;
            const int64_t ms = rebuild_ms(n, home, 0, 0, &again), copied = rebuild_ms(n, home, 1, 0, &few),
                          helped = rebuild_ms(n, home, 0, 500, &more);
            printf(
                "%u workers, %s is lost: %u rows again in %lld ms, with second copies %u in %lld; a whole prefill by "
                "those that are left takes %lld; with another worker after 0.5 s %u in %lld\n",
                n, home ? "the home" : "another", again, (long long)ms, few, (long long)copied, (long long)whole, more,
                (long long)helped);
            assert_true(again <= 7300 / n + 4 * 64 + 64);
            assert_true((double)ms <= (n == 2 ? 0.6 : 0.5) * (double)whole);
            assert_true(more <= again + 64);
            assert_true((double)helped <= (n == 2 ? 0.75 : 1.05) * (double)ms);
            assert_true(few <= 4 * 64 + 64);
            assert_true(10 * copied <= whole);
        }
    }
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    sim_texts(text, other, TOKENS);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goodput),          cmocka_unit_test(test_shed),         cmocka_unit_test(test_turns),
        cmocka_unit_test(test_long_among_short), cmocka_unit_test(test_others_go_on), cmocka_unit_test(test_rebuilt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
