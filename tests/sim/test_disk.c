/* Disks of workers: what left their memory is read there again, and what cannot be read is computed; in single cases, and in random lives. */
#define CASES_REPLAY "sim_test_disk"
#include "tests/sim/cases.h"

#include "coordinator/sched/state.h"

enum {
#ifdef __SANITIZE_ADDRESS__
    LIVES = 40,
#else
    LIVES = 200,
#endif
    TEXTS = 4,
    TEXT = 700,
};

/* Three prompts of nine blocks through a pool of 20: those of the first have left it. -> prompt rows that its repetition computes */
static uint64_t again(struct sim *sim)
{
    int32_t third[600];
    for (uint32_t i = 0; i < 600; i++)
        third[i] = text[i] ^ 1;
    submit(sim, text, 600, 4);
    sim_finish(sim, 10000);
    submit(sim, other, 600, 4);
    sim_finish(sim, 10000);
    submit(sim, third, 600, 4);
    sim_finish(sim, 10000);
    sim_advance(sim, 100);
    const uint64_t before = sim->s->stats.prompt_rows;
    const uint32_t r = submit(sim, text, 600, 4);
    sim_finish(sim, 60000);
    assert_int_equal(sim->requests[r].reason, FINISH_LENGTH);
    assert_true(blocks_at(&sim->requests[r], 0));
    return sim->s->stats.prompt_rows - before;
}

static void test_found(void **state)
{
    (void)state;
    struct seen seen;
    for (uint32_t workers = 1; workers <= 2; workers++) {
        struct sim_options o = usual(workers, 20 / workers + 2 * (workers - 1), &seen);
        o.config.spread_min_tokens = 300;
        struct sim *sim = sim_new(&o);
        assert_true(again(sim) >= 3 * 64); /* without disks */
        assert_int_equal(sim->n_loads, 0);
        sim_end(sim);
        o.disk_blocks = 100;
        sim = sim_new(&o);
        assert_in_range(again(sim), 1, workers * 64);
        assert_true(sim->n_loads >= 3);
        sim_end(sim);
    }
}

/* Every read fails, or never ends: all is computed, and the request is not tried over and over. */
static void test_failing(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 20, &seen);
    o.disk_blocks = 100;
    for (uint64_t seed = 1; seed < 30; seed++) {
        o.seed = seed;
        struct sim *sim = sim_new(&o);
        sim->options.copy_faults = 0;
        submit(sim, text, 600, 4);
        sim_finish(sim, 10000);
        submit(sim, other, 1000, 4);
        sim_finish(sim, 10000);
        sim_advance(sim, 100);
        sim->options.copy_faults = seed % 3 ? 1000 : 300;
        const uint32_t r = submit(sim, text, 600, 4);
        sim_finish(sim, 20 * SCHED_LOAD_MS);
        assert_int_equal(sim->requests[r].reason, FINISH_LENGTH);
        assert_in_range(seen.copies, 1, 60);
        seen.copies = 0;
        sim->options.copy_faults = 0;
        sim_end(sim);
    }
}

/* The worker dies while its disk is read; another computes. */
static void test_lost(void **state)
{
    (void)state;
    struct seen seen;
    struct sim_options o = usual(1, 20, &seen);
    o.disk_blocks = 100;
    for (uint32_t ms = 0; ms < 30; ms += 3) {
        struct sim *sim = sim_new(&o);
        submit(sim, text, 600, 4);
        sim_finish(sim, 10000);
        submit(sim, other, 1000, 4);
        sim_finish(sim, 10000);
        sim_advance(sim, 100);
        const uint32_t r = submit(sim, text, 600, 4);
        sim_join(sim, 30);
        sim_advance(sim, ms);
        sim_crash(sim, 0, 5);
        sim_finish(sim, 60000);
        assert_int_equal(sim->requests[r].reason, FINISH_LENGTH);
        sim_end(sim);
    }
}

static uint32_t draw(struct rng *rng, uint32_t n)
{
    return rng_below(rng, n);
}

/* A few texts, asked for over and over in pools that hold two of them. */
static void live(uint64_t seed, uint64_t *loads, uint64_t *hits)
{
    static int32_t texts[TEXTS][TEXT];
    struct rng rng = { .seed = mix64(seed) };
    struct sim_options o = sim_usual("sim_test_disk", 1 + draw(&rng, 3), 14 + draw(&rng, 6));
    const bool faults = draw(&rng, 2);
    o.seed = seed;
    o.choices = draw(&rng, 3) == 0;
    o.copy_faults = faults ? 100 : 0;
    o.disk_blocks = draw(&rng, 3) ? 100 : 4 + draw(&rng, 20);
    o.delay_max_ms = draw(&rng, 6);
    o.config.spread_min_tokens = draw(&rng, 2) ? 300 : 100000;
    o.config.replicas = draw(&rng, 2);
    o.config.sequences_max = 1 + draw(&rng, 4);
    for (uint32_t i = 0; i < TEXTS; i++)
        for (uint32_t j = 0; j < TEXT; j++)
            texts[i][j] = (int32_t)(mix64(seed * 7 + i * 10000 + j) % SIM_VOCAB);
    struct sim *sim = sim_new(&o);
    for (uint32_t i = 0; i < 30; i++) {
        enum status st;
        const uint32_t n = 64 + draw(&rng, TEXT - 64);
        const struct sim_want w = { .tokens = texts[draw(&rng, TEXTS)],
                                    .n_tokens = n,
                                    .max_tokens = 1 + draw(&rng, 30),
                                    .cancel_at = draw(&rng, 5) ? 0 : 1 };
        const int r = sim_submit(sim, &w, &st);
        sim_advance(sim, draw(&rng, 3) ? draw(&rng, 60) : 1500);
        if (r >= 0 && draw(&rng, 8) == 0)
            sim_cancel(sim, (uint32_t)r);
        if (faults && draw(&rng, 12) == 0 && sim_alive(sim, (uint16_t)(sim->n_workers - 1))) {
            sim_crash(sim, (uint16_t)(sim->n_workers - 1), draw(&rng, 100));
            sim_join(sim, 16 + draw(&rng, 16));
        }
    }
    sim_finish(sim, 3000000);
    sim_check_empty(sim);
    for (uint32_t i = 0; i < sim->n_requests; i++)
        *hits += sim->requests[i].cached;
    *loads += sim->n_loads;
    sim_free(sim);
}

static void test_lives(void **state)
{
    (void)state;
    uint64_t loads = 0, hits = 0;
    for (uint64_t seed = 1; seed <= LIVES; seed++)
        live(seed, &loads, &hits);
    print_message("%d lives: %llu blocks read from disks, %llu tokens by prefix hit\n", LIVES,
                  (unsigned long long)loads, (unsigned long long)hits);
    assert_true(loads > 10 * LIVES);
}

int main(int argc, char **argv)
{
    uint64_t loads = 0, hits = 0;
    log_set_level(LOG_LEVEL_ERROR);
    sim_texts(text, other, TOKENS);
    if (argc == 3 && !strcmp(argv[1], "--seed")) {
        live(strtoull(argv[2], NULL, 10), &loads, &hits);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found),
        cmocka_unit_test(test_failing),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
