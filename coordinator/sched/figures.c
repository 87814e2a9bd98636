/* What is shown of the scheduler: sums, and each worker's part. */
#include "coordinator/sched/state.h"

#include <string.h>

static int64_t longest_wait(const struct sched *s)
{
    int64_t since = 0;
    for (const struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r))
        if (!since || r->queued_ms < since)
            since = r->queued_ms;
    return since;
}

void sched_stats(const struct sched *s, struct sched_stats *stats_out)
{
    *stats_out = s->stats;
    stats_out->waiting = s->n_queued;
    stats_out->running = s->n_live;
    stats_out->groups = s->n_groups;
    stats_out->waiting_ms = longest_wait(s);
    stats_out->replicas_due = replicate_due(s);
}

static uint64_t leaves_at(const struct sched *s, uint8_t slot)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct sched_request *r = s->running[i];
        if (r->state != REQUEST_RUNNING || !r->leaf_blocks)
            continue;
        const uint32_t hit = r->hit * PLAN_BLOCK, rows = r->done > hit ? r->done : hit;
        for (uint32_t leaf = 0; leaf < r->n_leaves && (uint64_t)leaf * request_leaf_rows(r) < rows; leaf++)
            n += r->at[leaf] == slot;
    }
    return n;
}

uint32_t sched_worker_stats(const struct sched *s, struct sched_worker_stats *stats_out, uint32_t max)
{
    uint8_t slots[SCHED_SLOTS];
    uint32_t n = place_order(s, s->ready, slots);
    if (n > max)
        n = max;
    for (uint32_t i = 0; i < n; i++) {
        const struct worker *w = &s->workers[slots[i]];
        const struct pool *p = &s->dir.pools[slots[i]];
        stats_out[i] = (struct sched_worker_stats){ .id = w->id,
                                                    .ready = true,
                                                    .draining = w->draining,
                                                    .n_blocks = p->n_blocks,
                                                    .blocks_used = p->named,
                                                    .blocks_cached = p->cached,
                                                    .sequences = w->n_homes,
                                                    .ties = w->n_ties,
                                                    .leaves = leaves_at(s, slots[i]),
                                                    .group = w->group->id,
                                                    .epoch = w->group->epoch,
                                                    .in_flight = w->group->n_flights,
                                                    .step_ms = w->step_ms };
    }
    return n;
}

/* Does what a sequence holds at once fit a worker, however long it is? A dense prompt is held whole. */
static bool windows_fit(const struct sched *s)
{
    const uint32_t bound = s->config.prompt_sparse ? retain_bound(s, 0, 0) : 0;
    SCHED_EACH(slot, s->ready)
    {
        if (bound && s->dir.pools[slot].n_blocks >= bound)
            return true;
    }
    return false;
}

/* The most over the kinds of workers: groups do not mix them. */
uint64_t sched_positions_fit(const struct sched *s)
{
    uint64_t most = 0;
    SCHED_EACH(like, s->ready)
    {
        uint64_t blocks = 0;
        SCHED_EACH(slot, s->ready)
        {
            const struct worker *w = &s->workers[slot];
            if (!memcmp(&w->context, &s->workers[like].context, sizeof w->context))
                blocks += s->dir.pools[slot].n_blocks / w->leaf_blocks * w->leaf_blocks;
        }
        most = blocks > most ? blocks : most;
    }
    if (most && windows_fit(s))
        return s->config.positions_max;
    most *= PLAN_BLOCK;
    return most < s->config.positions_max ? most : s->config.positions_max;
}
