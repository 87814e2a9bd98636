/*
 * A complete growing leaf goes to its owner, or any complete leaf to a worker that has joined, in the background; readers change at a plan boundary, once all of
 * it is there.
 */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <string.h>

#include "common/log.h"

static uint32_t leaf_first(const struct sched_request *r)
{
    return r->way_leaf * r->leaf_blocks;
}

/* The leaf stays at home for good, and its blocks are no longer the window's. */
static void stay(struct sched *s, struct sched_request *r)
{
    r->owner[r->ship_leaf] = r->home;
    for (uint32_t i = leaf_first(r); i < leaf_first(r) + r->leaf_blocks; i++)
        r->window_open -= !r->brought[i];
    s->admit_changed = true;
    request_window(s, r);
}

/* Is every block of the leaf free to come to its owner? */
static bool can_start(const struct sched_request *r, uint32_t leaf, uint8_t owner)
{
    for (uint32_t i = 0; i < r->leaf_blocks; i++) {
        const struct copy *c = directory_copy_at(r->copies[leaf * r->leaf_blocks + i]->block, owner);
        if (c && c->state == COPY_DROPPING)
            return false;
    }
    return true;
}

/* Room for it is promised there. */
static void start(struct sched *s, struct sched_request *r, uint32_t leaf, uint8_t owner)
{
    r->ship = SHIP_UNDER_WAY;
    r->ship_failed = false;
    r->ship_pending = 0;
    r->way_leaf = leaf;
    r->way_to = owner;
    for (uint32_t i = 0; i < r->leaf_blocks; i++) {
        struct copy *here = r->copies[leaf_first(r) + i];
        struct copy *c = directory_copy_at(here->block, owner);
        if (c)
            directory_unpromise(&s->dir, owner, 1);
        else
            c = transfer_start(s, here->block, here, owner);
        directory_ref(&s->dir, c);
        r->ship_copies[i] = c;
        if (c->state == COPY_INCOMING) {
            transfer_wait(c, r, WAITS_TO_SHIP);
            r->ship_pending++;
        }
    }
}

/* All of it is there: plans from now on read it there. */
static void flip(struct sched *s, struct sched_request *r)
{
    const uint64_t number = r->group && r->in_flight ? r->group->number : 0;
    for (uint32_t i = 0; i < r->leaf_blocks; i++) {
        const uint32_t at = leaf_first(r) + i;
        sched_grow((void **)&r->deferred, &r->deferred_cap, r->n_deferred + 1, sizeof *r->deferred);
        r->deferred[r->n_deferred++] =
            (struct deferred){ .number = number, .copy = r->copies[at], .window = !r->moving && !r->brought[at] };
        r->copies[at] = r->ship_copies[i];
        r->ship_copies[i] = NULL;
    }
    r->at[r->way_leaf] = r->owner[r->way_leaf] = r->way_to;
    r->readers[r->way_leaf] = s->workers[r->way_to].id;
    if (r->way_leaf < r->readers_changed)
        r->readers_changed = r->way_leaf;
    r->ship = SHIP_IDLE;
    r->ship_tries = 0;
    if (!r->moving)
        r->ship_leaf++;
    s->stats.leaves_moved += r->moving;
    r->moving = false;
    if (!number)
        request_retire(s, r, 0);
}

/* Some did not come. What came is given back, and the owner's room is asked for again. */
static void undo(struct sched *s, struct sched_request *r)
{
    const uint8_t owner = r->way_to;
    for (uint32_t i = 0; i < r->leaf_blocks; i++) {
        struct copy *c = r->ship_copies[i];
        r->ship_copies[i] = NULL;
        if (!c)
            continue;
        const bool last = c->refs == 1;
        directory_unref(&s->dir, c);
        if (last && c->state == COPY_READY)
            directory_drop(&s->dir, c);
    }
    r->ship = SHIP_IDLE;
    r->ship_after_ms = sched_now_ms(s) + SCHED_SHIP_PAUSE_MS;
    if (r->moving) {
        r->moving = false;
        return;
    }
    if (++r->ship_tries < SCHED_SHIPS_MAX && directory_promise(&s->dir, owner, r->leaf_blocks)) {
        r->promise[owner] += r->leaf_blocks;
        return;
    }
    log_warn("request %s sequence %llu: leaf %u stays at worker %u, worker %u did not take it", r->label,
             (unsigned long long)r->id, r->ship_leaf, s->workers[r->home].id, s->workers[owner].id);
    r->ship_tries = 0;
    stay(s, r);
}

void ship_arrived(struct sched *s, struct sched_request *r, bool ok)
{
    assert(r->ship == SHIP_UNDER_WAY && r->ship_pending > 0);
    r->ship_pending--;
    if (!ok)
        r->ship_failed = true;
    if (ok)
        return;
    for (uint32_t i = 0; i < r->leaf_blocks; i++) {
        struct copy *c = r->ship_copies[i];
        if (c && c->state == COPY_INCOMING && !c->transfer) {
            r->ship_copies[i] = NULL;
            directory_unref(&s->dir, c);
        }
    }
}

void ship_step(struct sched *s, struct sched_request *r)
{
    if (r->ship == SHIP_UNDER_WAY) {
        if (r->ship_pending)
            return;
        if (r->ship_failed)
            undo(s, r);
        else if (r->group->members & SCHED_BIT(r->way_to))
            flip(s, r);
        else
            return; /* until its group has the worker */
    }
    while (r->ship_leaf < r->n_leaves && (uint64_t)(r->ship_leaf + 1) * request_leaf_rows(r) <= r->done) {
        const uint8_t owner = r->owner[r->ship_leaf];
        if (owner == r->at[r->ship_leaf]) {
            r->ship_leaf++;
            continue;
        }
        if (sched_now_ms(s) < r->ship_after_ms || sched_choose(s, "ship", 2) == 1 || !can_start(r, r->ship_leaf, owner))
            return;
        r->promise[owner] -= r->leaf_blocks;
        start(s, r, r->ship_leaf, owner);
        if (r->ship_pending)
            return;
        flip(s, r);
    }
}

bool ship_move(struct sched *s, struct sched_request *r, uint32_t leaf, uint8_t to)
{
    assert(r->ship == SHIP_IDLE && !r->moving);
    if (!can_start(r, leaf, to) || !directory_promise(&s->dir, to, r->leaf_blocks))
        return false;
    if (!can_start(r, leaf, to)) { /* room was made by dropping one that it could have had there */
        directory_unpromise(&s->dir, to, r->leaf_blocks);
        return false;
    }
    r->moving = true;
    if (!(r->ties & SCHED_BIT(to))) {
        r->ties |= SCHED_BIT(to);
        s->workers[to].n_ties++;
        s->groups_changed = true;
    }
    start(s, r, leaf, to);
    return true;
}
