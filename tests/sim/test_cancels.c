/*
 * Ten thousand requests that are cancelled at random moments, in every phase that a request has, while workers join, drain and die: nothing of them stays
 * in the scheduler or at a worker (sim_check_empty), and nobody else's tokens change. One seed, or: sim_test_cancels SEED.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "coordinator/sched/state.h"
#include "tests/sim/sim.h"

enum { CANCELS = 10000, TOKENS = 1200, OPEN_MAX = 24 };

enum phase {
    PHASE_QUEUED,
    PHASE_PLACED_AGAIN, /* waits after it lost its place */
    PHASE_AWAITS_COPIES,
    PHASE_NOT_STARTED,
    PHASE_PROMPT,
    PHASE_GENERATES,
    PHASE_CATCHES_UP, /* computes again what it was told */
    PHASE_SHIPS,      /* a leaf is on its way */
    PHASE_LEAVES,     /* for another worker, by command */
    PHASE_GIVES_WAY,
    PHASE_IN_CALLBACK,
    PHASES
};
static const char *const names[PHASES] = { "queued", "placed again", "awaits copies", "not started",
                                           "prompt", "generates",    "catches up",    "ships",
                                           "leaves", "gives way",    "in a callback" };

static struct rng rng;
static int32_t text[3][TOKENS];
static uint64_t n_cancelled[PHASES], n_total, n_requests;

static uint32_t draw(uint32_t n)
{
    return rng_below(&rng, n);
}

static enum phase phase_of(const struct sched_request *r)
{
    if (r->state == REQUEST_WAITING)
        return r->n_preempted ? PHASE_PLACED_AGAIN : PHASE_QUEUED;
    if (r->pending)
        return PHASE_AWAITS_COPIES;
    if (r->preempting)
        return PHASE_GIVES_WAY;
    if (r->leaves)
        return PHASE_LEAVES;
    if (!r->started)
        return PHASE_NOT_STARTED;
    if (r->done < r->told)
        return PHASE_CATCHES_UP;
    if (r->ship != SHIP_IDLE)
        return PHASE_SHIPS;
    return r->done < r->n_prompt ? PHASE_PROMPT : PHASE_GENERATES;
}

static struct sim_options options(uint64_t seed)
{
    struct sim_options o = { .seed = seed, .replay = "sim_test_cancels", .n_workers = 2 + draw(2), .leaf_blocks = 2 };
    for (uint32_t i = 0; i < o.n_workers; i++)
        o.n_blocks[i] = draw(2) ? 30 : 100;
    o.delay_max_ms = 3;
    o.step_max_ms = 6;
    o.copy_faults = draw(2) ? 0 : 30;
    o.choices = draw(2);
    o.config = (struct sched_config){
        .positions_max = 3000,
        .step_rows_max = 256,
        .prefill_chunk_rows = 64,
        .sequences_max = 12,
        .queue_max = 40,
        .spread_min_tokens = 400,
        .step_deadline_ms = 300,
        .plans_ahead = 2,
        .prefix_sharing = true,
        .preemption = true,
        .recovery_share = 50,
        .replicas = draw(2),
        .seed = seed,
    };
    return o;
}

static void submit(struct sim *sim)
{
    enum status st;
    struct sim_want w = { .tokens = text[draw(3)] };
    w.n_tokens = 1 + draw(draw(3) ? 200 : 900);
    w.max_tokens = 1 + draw(draw(2) ? 30 : 250);
    w.score = draw(10) == 0;
    w.priority = (int32_t)draw(3);
    w.cancel_at = draw(20) == 0 ? 1 + draw(8) : 0;
    const int i = sim_submit(sim, &w, &st);
    if (i < 0 && st != ST_BUSY && st != ST_PEER && st != ST_TOO_LARGE)
        sim_wrong(sim, "a request is refused: %s", status_text(st));
    n_requests += i >= 0;
}

/* One that is open, or -1. */
static int pick(const struct sim *sim, uint32_t *open_out)
{
    uint32_t open[SIM_REQUESTS_MAX], n = 0;
    for (uint32_t i = 0; i < sim->n_requests; i++) {
        if (!sim->requests[i].ended)
            open[n++] = i;
    }
    *open_out = n;
    return n ? (int)open[draw(n)] : -1;
}

static void cancel(struct sim *sim, uint32_t i)
{
    n_cancelled[phase_of(sim->requests[i].handle)]++;
    sim_cancel(sim, i);
}

static void disturb(struct sim *sim)
{
    const uint16_t worker = (uint16_t)draw(sim->n_workers);
    switch (draw(8)) {
    case 0:
        if (sim->n_workers < 6) {
            sim_crash(sim, worker, draw(20));
            sim_join(sim, 60);
        }
        break;
    case 1:
    case 2:
        sched_worker_empty(sim->s, worker);
        break;
    case 3:
        sched_rebalance(sim->s);
        break;
    default:
        sched_worker_resume(sim->s, worker);
    }
}

static void life(uint64_t seed)
{
    const struct sim_options o = options(seed);
    struct sim *sim = sim_new(&o);
    while (sim->n_requests < SIM_REQUESTS_MAX) {
        uint32_t open;
        const int i = pick(sim, &open);
        sim_advance(sim, draw(3) ? draw(4) : draw(30));
        if (i >= 0 && !sim->requests[i].ended && (open > OPEN_MAX || draw(3) == 0))
            cancel(sim, (uint32_t)i);
        else
            submit(sim);
        if (draw(12) == 0)
            disturb(sim);
    }
    for (uint32_t n = 1; n;) {
        const int i = pick(sim, &n);
        if (n)
            cancel(sim, (uint32_t)i);
        sim_advance(sim, draw(10));
    }
    for (uint32_t i = 0; i < sim->n_requests; i++) {
        const struct sim_request *r = &sim->requests[i];
        if (!r->ended)
            sim_wrong(sim, "request %u has not ended", i);
        n_total += r->reason == FINISH_CANCELLED;
        n_cancelled[PHASE_IN_CALLBACK] += r->reason == FINISH_CANCELLED && r->cancel_at && r->n_tokens == r->cancel_at;
    }
    sim_check_empty(sim);
    sim_free(sim);
}

int main(int argc, char **argv)
{
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    rng = (struct rng){ .seed = seed };
    log_set_level(LOG_LEVEL_ERROR);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t j = 0; j < TOKENS; j++)
            text[i][j] = j < 300 ? (int32_t)j + 10 : (int32_t)((i * 7919 + j * 31) % (SIM_VOCAB - 10)) + 10;
    for (uint64_t k = 0; n_total < CANCELS; k++)
        life(seed * 1000 + k);
    printf("%llu cancelled of %llu requests:", (unsigned long long)n_total, (unsigned long long)n_requests);
    for (int i = 0; i < PHASES; i++)
        printf(" %s %llu;", names[i], (unsigned long long)n_cancelled[i]);
    puts("");
    for (int i = 0; i < PHASES; i++) {
        if (n_cancelled[i] < 10) {
            printf("only %llu were cancelled in the phase \"%s\"\n", (unsigned long long)n_cancelled[i], names[i]);
            return 1;
        }
    }
    return 0;
}
