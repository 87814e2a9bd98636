#ifndef LONGSPAN_TESTS_SIM_CASES_H
#define LONGSPAN_TESTS_SIM_CASES_H

/* What single situations begin with: a usual cluster, two texts, and what was sent as far as tests ask. Included once by a test program, which defines CASES_REPLAY, its name. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/log.h"
#include "kvstore/kvstore.h"
#include "tests/sim/sim.h"

enum { TOKENS = 4000 };

/* What was sent, as far as the tests ask. */
struct seen {
    uint32_t plans, members_max, mixed, chunk_max, sampled_before, stops, fences, copies, drops,
        steps_of[SIM_WORKERS_MAX];
    uint32_t decode_runs_max, rows_max;
    uint16_t stopped;
};

static int32_t text[TOKENS], other[TOKENS];

static void spy(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct seen *seen = ctx;
    if (m->kind == CONTROL_STOP) {
        seen->stops++;
        seen->stopped = worker;
    }
    seen->fences += m->kind == CONTROL_FENCE;
    seen->copies += m->kind == CONTROL_COPY;
    if (m->kind != CONTROL_PLAN)
        return;
    const struct plan *p = m->as.plan;
    uint32_t prompt_rows = 0, decodes = 0, longest = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        if (p->runs[i].cls == ROW_GENERATED) {
            decodes++;
            seen->sampled_before += p->runs[i].tokens[0] == -1;
        } else {
            prompt_rows += p->runs[i].n_rows;
            longest = p->runs[i].n_rows > longest ? p->runs[i].n_rows : longest;
        }
    }
    seen->plans++;
    seen->drops += p->n_drops;
    seen->steps_of[worker] += p->n_runs > 0;
    seen->mixed += prompt_rows && decodes;
    if (decodes && longest > seen->chunk_max)
        seen->chunk_max = longest;
    if (p->n_members > seen->members_max)
        seen->members_max = p->n_members;
    if (decodes > seen->decode_runs_max)
        seen->decode_runs_max = decodes;
    if (prompt_rows + decodes > seen->rows_max)
        seen->rows_max = prompt_rows + decodes;
}

static struct sim_options usual(uint32_t n_workers, uint32_t n_blocks, struct seen *seen)
{
    struct sim_options o = sim_usual(CASES_REPLAY, n_workers, n_blocks);
    o.config.queue_max = 20;
    *seen = (struct seen){ 0 };
    o.spy = spy;
    o.spy_ctx = seen;
    return o;
}

static uint32_t submit(struct sim *sim, const int32_t *tokens, uint32_t n, uint32_t max_tokens)
{
    return sim_accepted(sim, (struct sim_want){ .tokens = tokens, .n_tokens = n, .max_tokens = max_tokens });
}

static uint32_t blocks_at(const struct sim_request *r, uint16_t worker)
{
    for (uint32_t i = 0; i < r->n_shares; i++) {
        if (r->shares[i].worker == worker)
            return r->shares[i].blocks;
    }
    return 0;
}

#endif
