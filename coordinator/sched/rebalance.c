/*
 * A worker that has joined takes leaves over from those that have most of a sequence, one at a time and while the sequence runs: its blocks are copied,
 * the worker is tied to the group, and at a plan boundary the leaf changes its reader (ship.c). Only complete leaves move. A worker that serves
 * others by itself is left alone, as its group would become one with the sequence's.
 */
#include "coordinator/sched/state.h"

#include <string.h>

enum { MOVES_MAX = 2, PAUSE_MS = 1000 }; /* sequences that move a leaf at once; after one that did not come */

static bool idle_or_tied(const struct sched *s, const struct sched_request *r, uint8_t slot)
{
    const struct worker *w = &s->workers[slot];
    return w->group == r->group || (!w->group->n_requests && !w->n_ties);
}

static bool can_take(const struct sched *s, const struct sched_request *r, uint8_t slot)
{
    const struct worker *w = &s->workers[slot];
    return !w->draining && !w->suspect && !memcmp(&w->context, &s->workers[r->home].context, sizeof w->context) &&
           directory_room(&s->dir, slot) >= r->leaf_blocks && idle_or_tied(s, r, slot) &&
           ((r->ties & SCHED_BIT(slot)) || w->n_ties < w->ties_max);
}

/* The leaf that goes, and where to. false: it is well as it is. */
static bool move_find(const struct sched *s, const struct sched_request *r, uint32_t *leaf_out, uint8_t *to_out)
{
    const uint32_t complete = r->done / request_leaf_rows(r);
    uint32_t n[SCHED_SLOTS] = { 0 };
    uint8_t most = r->home, to = SCHED_NO_SLOT;
    for (uint32_t leaf = 0; leaf < complete; leaf++)
        n[r->at[leaf]] += r->at[leaf] == r->owner[leaf];
    SCHED_EACH(slot, s->ready)
    {
        if (n[slot] > n[most])
            most = slot;
        if (can_take(s, r, slot) && (to == SCHED_NO_SLOT || n[slot] < n[to]))
            to = slot;
    }
    if (to == SCHED_NO_SLOT || n[most] < n[to] + 2)
        return false;
    uint32_t leaf = complete;
    while (leaf && (r->at[leaf - 1] != most || r->owner[leaf - 1] != most))
        leaf--;
    *leaf_out = leaf - 1;
    *to_out = to;
    return leaf > 0 && (r->passed <= 1 || (leaf - 1) * r->leaf_blocks >= r->passed);
}

static bool spreads(const struct sched *s, const struct sched_request *r)
{
    return (r->ties & (r->ties - 1)) || place_spreads(s, r->n_rows, s->ready);
}

void rebalance_all(struct sched *s)
{
    uint32_t moving = 0, waits = 0;
    if (!s->rebalance)
        return;
    for (uint32_t i = 0; i < s->n_running; i++)
        moving += s->running[i]->moving;
    waits = moving;
    for (uint32_t i = 0; i < s->n_running && moving < MOVES_MAX; i++) {
        struct sched_request *r = s->running[i];
        uint32_t leaf;
        uint8_t to;
        if (r->state != REQUEST_RUNNING || r->preempting || r->moving || r->near || !spreads(s, r))
            continue;
        if (r->ship != SHIP_IDLE || !r->group || !r->started || request_recovers(r) ||
            sched_now_ms(s) < r->ship_after_ms) {
            waits++;
            continue;
        }
        if (!move_find(s, r, &leaf, &to))
            continue;
        waits++;
        if (!ship_move(s, r, leaf, to)) {
            r->ship_after_ms = sched_now_ms(s) + PAUSE_MS;
            continue;
        }
        moving++;
    }
    s->rebalance = waits > 0;
}

void rebalance_untie(struct sched *s, uint64_t guilty)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        const uint64_t gone = r->ties & guilty;
        if (!gone || !r->group || (r->group->members & guilty))
            continue;
        if (r->moving && (gone & SCHED_BIT(r->way_to)))
            request_unship(s, r);
        r->ties &= ~gone;
        SCHED_EACH(slot, gone)
        {
            s->workers[slot].n_ties -= s->workers[slot].ready;
        }
        s->groups_changed = true;
    }
}
