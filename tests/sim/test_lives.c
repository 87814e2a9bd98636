/*
 * Random lives of a cluster: layouts, batches, chunks, prefix hits, shipping, second copies, disks, cancels, and in half of them crashes, hangs and cut links, in
 * whatever phase. All that is checked is checked by sim.c and sim_worker.c while it runs: every token and log-probability against the oracle, each once and
 * in order; every block that a row sees is at its one reader, complete, and of the right tokens; ids of blocks follow from tokens; no pool holds more
 * than it has room for; all that was accepted ends, and then nothing is held. A seed replays exactly.
 *
 *   sim_test_lives [--lives N] [--seed N] [--from N]
 *
 * Bugs that were planted to see it find them, each within 200 lives: a token is told twice, or not at all, after a recovery; ids behind a gap have the
 * wrong parent; blocks behind a gap are never given back; a gap inside a leaf is overlooked; the epoch is not raised; what was in flight counts as
 * computed; one block too many is stepped over; second copies take room that is not there; another block is taken for a lost one; what a lost worker
 * was sent stays held.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "tests/sim/sim.h"

struct life {
    struct sim *sim;
    struct rng rng;
    bool faults;
    uint16_t guilty[32]; /* workers that something happened to */
    uint32_t n_guilty;
    int32_t *stems[4]; /* prompts share their starts */
};

struct totals {
    uint64_t lives, requests, refused, failed, cancelled, cached, steps, spread, copies, plans, far, aborts, vain,
        blamed, blamed_wrongly, late, preempted, recovered, moved, left, shed, passed, loads;
};

enum { STEM = 2000 };
#ifdef __SANITIZE_ADDRESS__
enum { LIVES = 200 };
#else
enum { LIVES = 1000 };
#endif

static uint32_t draw(struct life *l, uint32_t n)
{
    return rng_below(&l->rng, n);
}

static struct sim_options options(struct life *l, uint64_t seed)
{
    struct sim_options o = { .seed = seed, .replay = "sim_test_lives" };
    o.n_workers = 1 + draw(l, 5);
    o.leaf_blocks = 1u << draw(l, 3);
    const bool tight = draw(l, 2);
    for (uint32_t i = 0; i < o.n_workers; i++)
        o.n_blocks[i] = tight ? 12 + draw(l, 30) : 60 + draw(l, 200);
    o.choices = draw(l, 3) > 0;
    o.copy_faults = l->faults && draw(l, 2) ? 200 : 0;
    o.delay_max_ms = draw(l, 6);
    o.step_max_ms = 1 + draw(l, 20);
    static const uint32_t budgets[] = { 3, 64, 100, 256, 1000, 2048 }, chunks[] = { 1, 64, 70, 200, 512 };
    o.config = (struct sched_config){
        .positions_max = 3000,
        .step_rows_max = budgets[draw(l, 6)],
        .prefill_chunk_rows = chunks[draw(l, 5)],
        .sequences_max = 1 + draw(l, 16),
        .queue_max = 50,
        .queue_wait_ms = draw(l, 3) ? 0 : 20 + draw(l, 2000),
        .spread_min_tokens = draw(l, 4)   ? 200 + draw(l, 800)
                             : draw(l, 2) ? 1
                                          : 100000,
        .step_deadline_ms = 400,
        .plans_ahead = 1 + draw(l, 3),
        .prefix_sharing = draw(l, 5) > 0,
        .preemption = draw(l, 4) > 0,
        .starve_ms = draw(l, 2) ? 0 : 200 + draw(l, 2000),
        .tenant_weights = draw(l, 2) ? NULL : "a=2,b=0.5",
        .recovery_share = 10 + draw(l, 91),
        .worker_wait_ms = draw(l, 2) ? 0 : draw(l, 4000),
        .replicas = draw(l, 2),
        .seed = seed,
    };
    o.open_blocks = draw(l, 2) ? 0 : (o.config.plans_ahead + 1) * (1 + draw(l, 6));
    const uint64_t bits = mix64(seed ^ 0x57494e444f57); /* of their own: other lives stay what they were */
    if (bits % 4 == 0) {
        o.config.window = PLAN_BLOCK * (1 + (uint32_t)(bits >> 8) % 6);
        o.config.density = 1;
        o.config.prompt_sparse = bits >> 16 & 1;
    }
    if (bits >> 32 & 1)
        o.disk_blocks = 5 + (uint32_t)(bits >> 40) % 200;
    return o;
}

/* A new prompt on a shared stem, or one that goes on where an earlier request ended. */
static uint32_t prompt(struct life *l, int32_t *tokens)
{
    uint32_t n = 0;
    const uint32_t i = l->sim->n_requests ? draw(l, l->sim->n_requests) : 0;
    if (l->sim->n_requests && draw(l, 3) == 0 && l->sim->requests[i].ended) {
        const struct sim_request *r = &l->sim->requests[i];
        n = r->n_prompt + r->n_tokens;
        memcpy(tokens, r->tokens, n * sizeof *tokens);
    } else {
        n = draw(l, 4) ? draw(l, draw(l, 3) ? 300 : 900) : draw(l, 12) * 64;
        memcpy(tokens, l->stems[draw(l, 4)], n * sizeof *tokens);
    }
    const uint32_t more = n && draw(l, 4) == 0 ? 0 : 1 + draw(l, draw(l, 2) ? 20 : 150);
    for (uint32_t j = 0; j < more && n < STEM; j++)
        tokens[n++] = (int32_t)draw(l, SIM_VOCAB);
    return n;
}

static void submit(struct life *l, struct totals *t)
{
    int32_t tokens[STEM + 1000];
    struct sim_want w = { .tokens = tokens };
    w.n_tokens = prompt(l, tokens);
    if (w.n_tokens > STEM)
        return;
    w.eos = draw(l, 3) > 0;
    w.score = draw(l, 8) == 0;
    w.logits = draw(l, 12) == 0;
    w.logits_from = w.logits ? w.n_tokens % 3 * (w.n_tokens - 1) / 2 : 0;
    w.max_tokens = draw(l, 3) ? 1 + draw(l, 60) : 1 + draw(l, 500);
    if ((w.score || w.logits) && draw(l, 2))
        w.max_tokens = 0;
    w.n_forced = draw(l, 6) == 0 ? draw(l, w.max_tokens + 1) : 0;
    static const char *const tenants[] = { NULL, "a", "b", "c" };
    w.priority = draw(l, 2) ? 0 : (int32_t)draw(l, 4) - 1;
    w.tenant = tenants[draw(l, 4)];
    w.timeout_ms = draw(l, 12) ? 0 : 1 + draw(l, 3000);
    w.cancel_at = draw(l, 6) == 0 ? 1 + draw(l, 40) : 0;
    enum status st;
    const int i = sim_submit(l->sim, &w, &st);
    t->requests++;
    t->refused += i < 0;
    if (i < 0 && st != ST_TOO_LARGE && st != ST_BUSY && st != ST_PEER)
        sim_wrong(l->sim, "a request is refused: %s", status_text(st));
    if (i < 0 && st == ST_PEER && !l->faults)
        sim_wrong(l->sim, "no worker is ready");
}

static void fault(struct life *l)
{
    uint16_t alive[256];
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->sim->n_workers; i++) {
        if (sim_alive(l->sim, (uint16_t)i))
            alive[n++] = (uint16_t)i;
    }
    if (!n || l->n_guilty >= 12)
        return;
    const uint16_t worker = alive[draw(l, n)];
    l->guilty[l->n_guilty++] = worker;
    const uint16_t second = alive[draw(l, n)];
    const uint32_t what = draw(l, 8);
    if (what == 0 && second != worker) {
        l->guilty[l->n_guilty++] = second;
        sim_cut(l->sim, worker, second, draw(l, 3000));
        return;
    }
    if (what == 1) {
        if (draw(l, 2))
            sched_worker_drain(l->sim->s, worker);
        else
            sched_worker_empty(l->sim->s, worker);
    } else if (what < 5)
        sim_crash(l->sim, worker, draw(l, 300));
    else
        sim_hang(l->sim, worker, draw(l, 3) ? 50 + draw(l, 1200) : INT64_MAX);
    if (n < 3 || draw(l, 2))
        sim_join(l->sim, 60 + draw(l, 100));
}

/* An operator's commands. One worker at a time is to be empty: the others may be too small for what waits, which is then named as its fault. */
static void command(struct life *l)
{
    const uint16_t worker = (uint16_t)draw(l, l->sim->n_workers);
    const uint32_t what = draw(l, 3);
    if (what == 0)
        sched_rebalance(l->sim->s);
    if (what < 2 || !l->faults || l->n_guilty >= 12 || !sim_alive(l->sim, worker))
        return;
    if (l->n_guilty)
        sched_worker_resume(l->sim->s, l->guilty[l->n_guilty - 1]);
    l->guilty[l->n_guilty++] = worker;
    sched_worker_empty(l->sim->s, worker);
}

/* Whoever failed names a worker that something happened to, and only where faults are. */
static void check_failures(struct life *l, struct totals *t)
{
    for (uint32_t i = 0; i < l->sim->n_requests; i++) {
        const struct sim_request *r = &l->sim->requests[i];
        t->failed += r->reason == FINISH_ERROR;
        t->cancelled += r->reason == FINISH_CANCELLED;
        t->cached += r->cached;
        if (r->reason != FINISH_ERROR)
            continue;
        if (r->status == ST_BUSY) {
            const uint32_t bound = l->sim->options.config.queue_wait_ms;
            if (!bound || r->n_tokens || r->n_scored || r->ended_ms < r->submitted_ms + bound ||
                r->ended_ms > r->submitted_ms + bound + 1000)
                sim_wrong(l->sim, "request %u: waited too long, it says, after %lld ms", i,
                          (long long)(r->ended_ms - r->submitted_ms));
            t->shed++;
            continue;
        }
        if (r->status == ST_TIMEOUT) {
            if (!r->timeout_ms || r->ended_ms < r->submitted_ms + r->timeout_ms)
                sim_wrong(l->sim, "request %u ended before its time", i);
            t->late++;
            continue;
        }
        bool named = false;
        for (uint32_t j = 0; j < l->n_guilty; j++) {
            char name[16];
            snprintf(name, sizeof name, " %u", l->guilty[j]);
            named = named || strstr(r->message, name);
        }
        /* Who waits for one who waits for another may blame the wrong one, if messages cross. */
        const bool hearsay = strstr(r->message, "reported by") != NULL;
        t->blamed += hearsay;
        t->blamed_wrongly += hearsay && !named;
        if (!l->faults || r->status != ST_PEER || (!named && !hearsay))
            sim_wrong(l->sim, "request %u ended with %s: %s", i, status_text(r->status), r->message);
    }
}

static void live(uint64_t seed, struct totals *t)
{
    struct life l = { .rng = { .seed = mix64(seed) } };
    l.faults = draw(&l, 2);
    const struct sim_options o = options(&l, seed);
    for (uint32_t i = 0; i < 4; i++) {
        l.stems[i] = malloc(STEM * sizeof(int32_t));
        for (uint32_t j = 0; j < STEM; j++)
            l.stems[i][j] = j < 100 ? (int32_t)j + 10 : (int32_t)(mix64(i * 10000 + j) % SIM_VOCAB);
    }
    l.sim = sim_new(&o);
    const uint32_t wanted = 4 + draw(&l, 20);
    for (uint32_t i = 0; i < wanted; i++) {
        sim_advance(l.sim, draw(&l, 3) ? draw(&l, 40) : draw(&l, 1500));
        submit(&l, t);
        if (l.faults && draw(&l, 6) == 0)
            fault(&l);
        if (draw(&l, 5) == 0)
            command(&l);
        if (l.sim->n_requests && draw(&l, 6) == 0)
            sim_cancel(l.sim, draw(&l, l.sim->n_requests));
    }
    sim_finish(l.sim, 3000000);
    check_failures(&l, t);
    sim_check_empty(l.sim);
    struct sched_stats stats;
    sched_stats(l.sim->s, &stats);
    t->preempted += stats.preemptions;
    t->recovered += stats.recoveries;
    t->moved += stats.leaves_moved;
    t->left += stats.sequences_moved;
    t->passed += stats.blocks_passed;
    t->lives++;
    t->steps += l.sim->n_steps;
    t->spread += l.sim->n_spread_steps;
    t->copies += l.sim->n_copies;
    t->loads += l.sim->n_loads;
    t->plans += l.sim->n_plans;
    t->far += l.sim->n_shipped_rows;
    t->aborts += l.sim->n_aborts;
    t->vain += l.sim->n_vain;
    sim_free(l.sim);
    for (uint32_t i = 0; i < 4; i++)
        free(l.stems[i]);
}

int main(int argc, char **argv)
{
    uint64_t from = 1, lives = LIVES;
    struct totals t = { 0 };
    log_set_level(LOG_LEVEL_ERROR);
    for (int i = 1; i + 1 < argc; i += 2) {
        const uint64_t value = strtoull(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--lives"))
            lives = value;
        if (!strcmp(argv[i], "--from"))
            from = value;
        if (!strcmp(argv[i], "--seed")) {
            from = value;
            lives = 1;
            log_set_level(LOG_LEVEL_DEBUG);
        }
    }
    for (uint64_t k = from; k < from + lives; k++)
        live(k, &t);
    printf("%llu lives: %llu requests, %llu refused, %llu failed, %llu cancelled, %llu tokens by prefix hit, %llu "
           "steps, %llu of "
           "several workers, %llu blocks copied, %llu read from disks, %llu read far from home, %llu aborts, %llu "
           "steps in vain, %llu "
           "failed on hearsay, %llu of them wrongly, %llu "
           "preemptions, %llu too late, %llu placed again, %llu leaves moved to who joined, %llu "
           "sequences moved by command, %llu waited too long, %llu blocks given back by windows\n",
           (unsigned long long)t.lives, (unsigned long long)t.requests, (unsigned long long)t.refused,
           (unsigned long long)t.failed, (unsigned long long)t.cancelled, (unsigned long long)t.cached,
           (unsigned long long)t.steps, (unsigned long long)t.spread, (unsigned long long)t.copies,
           (unsigned long long)t.loads, (unsigned long long)t.far, (unsigned long long)t.aborts,
           (unsigned long long)t.vain, (unsigned long long)t.blamed, (unsigned long long)t.blamed_wrongly,
           (unsigned long long)t.preempted, (unsigned long long)t.late, (unsigned long long)t.recovered,
           (unsigned long long)t.moved, (unsigned long long)t.left, (unsigned long long)t.shed,
           (unsigned long long)t.passed);
    return 0;
}
