/* Who comes first: priorities. */
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
    return (struct sim_options){ .seed = 1,
                                 .replay = "sim_test_order",
                                 .n_workers = 1,
                                 .leaf_blocks = 2,
                                 .n_blocks = { n_blocks },
                                 .delay_max_ms = 1,
                                 .step_max_ms = 5,
                                 .config = { .positions_max = 100000,
                                             .step_rows_max = 512,
                                             .prefill_chunk_rows = 128,
                                             .sequences_max = 16,
                                             .queue_max = 100,
                                             .spread_min_tokens = 1000,
                                             .step_deadline_ms = 500,
                                             .plans_ahead = 2,
                                             .prefix_sharing = true } };
}

static uint32_t submit(struct sim *sim, struct sim_want w)
{
    enum status st;
    const int i = sim_submit(sim, &w, &st);
    if (i < 0)
        fail_msg("refused: %s", status_text(st));
    return (uint32_t)i;
}

static void end(struct sim *sim)
{
    sim_finish(sim, 1000000);
    sim_check_empty(sim);
    sim_free(sim);
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
        submit(sim,
               (struct sim_want){ .tokens = text[0] + i, .n_tokens = 100, .max_tokens = 5, .priority = classes[i] });
    sim_finish(sim, 100000);
    for (uint32_t i = 1; i < 7; i++)
        assert_true(sim->requests[order[i]].ended_ms > sim->requests[order[i - 1]].ended_ms);
    end(sim);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t i = 0; i < TOKENS; i++)
            text[k][i] = (int32_t)(mix64(k * 1000000 + i) % SIM_VOCAB);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priority),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
