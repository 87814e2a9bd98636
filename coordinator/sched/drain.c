/*
 * A worker that an operator wants to be empty gives what runs there to the others, while it runs: sealed blocks of a sequence are copied in the background to where
 * they will be read; then the sequence gives up its place at a plan boundary, as one that is preempted does, and is admitted again without that worker. Its blocks
 * are found by their ids, so what is computed again are the open rows, at most 63 and the blocks sealed since the last look. Sequences that nobody else has room
 * for stay until they end. The same way a sequence of one worker goes to an idler one, where leaves are to be evened out by command.
 */
#include "coordinator/sched/state.h"

#include <string.h>

#include "common/log.h"
#include "kvstore/kvstore.h"

enum {
    MOVING_MAX = 2,     /* sequences whose blocks are copied at once */
    COPIES_MAX = 16,    /* of these under way at once */
    PAUSE_MS = 500,     /* until it is looked again whether somebody has room */
    PATIENCE_MS = 3000, /* without a copy more: the rest is computed again */
};

static uint64_t emptying(const struct sched *s)
{
    uint64_t mask = 0;
    SCHED_EACH(slot, s->ready)
    {
        mask |= s->workers[slot].empties ? SCHED_BIT(slot) : 0;
    }
    return mask;
}

/* Workers whose copies of the request's blocks will be read. */
static uint64_t havens(const struct sched *s, const struct sched_request *r)
{
    uint64_t mask = 0;
    if (r->haven != SCHED_NO_SLOT)
        return SCHED_BIT(r->haven) & s->ready;
    SCHED_EACH(slot, s->ready)
    {
        const struct worker *w = &s->workers[slot];
        if (!w->draining && !w->suspect && !memcmp(&w->context, &s->workers[r->home].context, sizeof w->context))
            mask |= SCHED_BIT(slot);
    }
    return mask;
}

enum copied { COPIED, COMING, MISSING };

static enum copied copied(const struct block *b, uint64_t there)
{
    enum copied best = MISSING;
    for (const struct copy *c = b->copies; c; c = c->next) {
        if (!(there & SCHED_BIT(c->slot)))
            continue;
        if (c->state == COPY_READY)
            return COPIED;
        best = c->state == COPY_INCOMING ? COMING : best;
    }
    return best;
}

/* A leaf's blocks go to one worker: whom the map gives it, among those that stay. false: no room. */
static bool copy_begin(struct sched *s, uint32_t leaf, struct block *b, uint64_t there)
{
    uint8_t slots[SCHED_SLOTS];
    const uint32_t n = place_order(s, there, slots);
    struct copy *source = directory_source(b);
    const uint8_t slot = n ? slots[kv_slot_owner(leaf % PLAN_SLOTS, PLAN_SLOTS, n)] : SCHED_NO_SLOT;
    if (!source || slot == SCHED_NO_SLOT || directory_copy_at(b, slot) || !directory_promise(&s->dir, slot, 1))
        return false;
    transfer_start(s, b, source, slot)->transfer->replica = true;
    s->n_replicas++;
    return true;
}

/* One that can be found by its id where it will be; also of what a window has left, as long as it is cache somewhere. NULL: none is. */
static struct block *block_of(const struct sched *s, const struct sched_request *r, uint32_t i)
{
    const struct block *b = r->copies[i] ? r->copies[i]->block : directory_block(&s->dir, r->table[i]);
    struct block *found = b && directory_source(b) ? directory_find(&s->dir, &b->id) : NULL;
    return found && directory_source(found) ? found : NULL;
}

/* Starts what copies may be started. -> how many blocks are not where they will be read */
static uint32_t copy_all(struct sched *s, struct sched_request *r)
{
    const uint64_t there = havens(s, r);
    uint32_t left = 0;
    for (uint32_t i = 0; i < r->n_committed; i++) {
        struct block *b = block_of(s, r, i);
        const enum copied state = b ? copied(b, there) : COPIED;
        if (state == MISSING && s->n_replicas < COPIES_MAX)
            copy_begin(s, i / r->leaf_blocks, b, there);
        left += state != COPIED;
    }
    return left;
}

/* It gives its place up as soon as no plan in flight names it. */
static void go(struct sched *s, struct sched_request *r)
{
    log_debug("request %s sequence %llu leaves its workers after %u of %u positions", r->label,
              (unsigned long long)r->id, r->done, r->n_rows);
    r->leaves = false;
    r->haven = SCHED_NO_SLOT;
    r->n_recovered++;
    r->urgent = true; /* it was admitted before all that wait */
    r->preempting = true;
    s->n_preempting++;
    s->stats.sequences_moved++;
    request_settle(s, r);
}

static void stop(struct sched_request *r)
{
    r->leaves = false;
    r->haven = SCHED_NO_SLOT;
}

/* Somebody must have room; alone: a sequence of one worker goes to one. */
static bool begin(struct sched *s, struct sched_request *r)
{
    const int64_t now = sched_now_ms(s);
    if (now < r->leave_after_ms)
        return false;
    if (!admit_finds(s, r)) {
        r->leave_after_ms = now + PAUSE_MS;
        return false;
    }
    r->leaves = true;
    r->haven = s->place.ties & (s->place.ties - 1) ? SCHED_NO_SLOT : s->place.home;
    r->leave_left = UINT32_MAX;
    r->leave_seen_ms = now;
    return true;
}

static void step(struct sched *s, struct sched_request *r)
{
    const int64_t now = sched_now_ms(s);
    if (r->haven != SCHED_NO_SLOT && (s->workers[r->haven].draining || !s->workers[r->haven].ready)) {
        stop(r);
        return;
    }
    const uint32_t left = copy_all(s, r);
    if (left < r->leave_left) {
        r->leave_left = left;
        r->leave_seen_ms = now;
    }
    if (left && now - r->leave_seen_ms < PATIENCE_MS)
        return;
    if (admit_finds(s, r)) {
        go(s, r);
        return;
    }
    stop(r);
    r->leave_after_ms = now + PAUSE_MS;
}

/* May it be asked to leave now? */
static bool can_leave(const struct sched *s, const struct sched_request *r)
{
    return r->state == REQUEST_RUNNING && !r->preempting && r->started && r->group && !r->group->abort.active &&
           !request_recovers(r) && s->config.prefix_sharing;
}

/* Of one that has not begun nothing is lost. -> it waits again */
static bool not_begun(struct sched *s, struct sched_request *r)
{
    if (r->state != REQUEST_RUNNING || r->started || r->in_flight || r->preempting || !admit_finds(s, r))
        return false;
    admit_undo(s, r);
    return true;
}

/* One of a busier worker that an idler one should have: at most one at a time. */
static void level(struct sched *s)
{
    uint8_t most = SCHED_NO_SLOT, least = SCHED_NO_SLOT;
    struct sched_request *best = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->leaves || s->running[i]->preempting)
            return;
    }
    SCHED_EACH(slot, s->ready)
    {
        const struct worker *w = &s->workers[slot];
        if (w->draining || w->suspect)
            continue;
        if (most == SCHED_NO_SLOT || w->n_homes > s->workers[most].n_homes)
            most = slot;
        if (least == SCHED_NO_SLOT || w->n_homes < s->workers[least].n_homes)
            least = slot;
    }
    s->leveling = false;
    if (most == SCHED_NO_SLOT || s->workers[most].n_homes < s->workers[least].n_homes + 2 ||
        memcmp(&s->workers[most].context, &s->workers[least].context, sizeof s->workers[most].context) != 0)
        return;
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        if (r->home == most && r->ties == SCHED_BIT(most) && can_leave(s, r) && !r->alone && !r->n_leveled &&
            directory_room(&s->dir, least) >= r->n_blocks && (!best || r->n_committed < best->n_committed))
            best = r;
    }
    if (!best)
        return;
    s->leveling = true;
    best->leaves = true;
    best->n_leveled = 1;
    best->haven = least;
    best->leave_left = UINT32_MAX;
    best->leave_seen_ms = sched_now_ms(s);
}

void drain_all(struct sched *s)
{
    const uint64_t gone = emptying(s);
    uint32_t moving = 0;
    if (!gone && !s->leveling)
        return;
    if (s->leveling)
        level(s);
    for (uint32_t i = 0; i < s->n_running;) {
        struct sched_request *r = s->running[i];
        const bool here = r->ties & gone;
        if (r->leaves && !here && r->haven == SCHED_NO_SLOT)
            stop(r); /* the worker is taken back */
        if (!(here && not_begun(s, r)) && can_leave(s, r) && moving < MOVING_MAX &&
            (r->leaves || (here && begin(s, r)))) {
            moving++;
            step(s, r);
        }
        if (i < s->n_running && s->running[i] == r)
            i++;
    }
}

bool sched_worker_empty(struct sched *s, uint16_t worker)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT || s->workers[slot].empties)
        return false;
    s->workers[slot].empties = true;
    sched_worker_drain(s, worker);
    return true;
}

void sched_worker_resume(struct sched *s, uint16_t worker)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return;
    s->workers[slot].empties = s->workers[slot].draining = false;
    s->admit_changed = s->rebalance = true;
}

void sched_rebalance(struct sched *s)
{
    s->rebalance = s->leveling = true;
    for (uint32_t i = 0; i < s->n_running; i++)
        s->running[i]->n_leveled = 0;
}
