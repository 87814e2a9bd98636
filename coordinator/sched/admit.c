/* From the queue to the running: who comes next (queue.c) is placed and takes references and promises, or all wait until there is room. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "kvstore/kvstore.h"

/* Tokens of prefill that one more sequence at a worker is worth, when homes are compared. */
enum { LOAD_TOKENS = 256, COPIED_TOKENS = 48 };

/* Workers that take new sequences and whose blocks are as those of `like`. */
static uint64_t kin_of(const struct sched *s, uint8_t like)
{
    uint64_t kin = 0;
    SCHED_EACH(slot, s->ready)
    {
        const struct worker *w = &s->workers[slot];
        if (!w->draining && !w->suspect && !memcmp(&w->context, &s->workers[like].context, sizeof w->context))
            kin |= SCHED_BIT(slot);
    }
    return kin;
}

/*
 * The longest chain of known blocks at the prompt's start, or, after a worker was lost, all that are known. Ids are computed as far as they hit, a few at a time: false, others have their turn
 * before the rest.
 */
static bool hits_find(struct sched *s, struct sched_request *r, const struct digest *context)
{
    struct place *p = &s->place;
    uint32_t left = SCHED_IDS_A_RUN;
    p->n_hits = 0;
    if (memcmp(&r->ids_context, context, sizeof *context) != 0)
        r->n_ids_known = 0;
    r->ids_context = *context;
    sched_grow((void **)&p->hits, &p->hits_cap, r->n_ids, sizeof(struct block *));
    for (uint32_t i = 0; i < r->n_ids; i++) {
        if (i == r->n_ids_known) {
            if (!left--)
                return false;
            r->ids[i] = kv_block_id(i ? &r->ids[i - 1] : NULL, context, r->tokens + i * PLAN_BLOCK,
                                    request_prompt_rows(s, r, i));
            r->n_ids_known++;
        }
        struct block *b = directory_find(&s->dir, &r->ids[i]);
        b = b && place_reaches(p, b) ? b : NULL;
        if (!b && !r->n_recovered)
            break;
        p->hits[p->n_hits++] = b;
    }
    return true;
}

static void room_read(struct sched *s)
{
    SCHED_EACH(slot, s->ready)
    {
        s->place.room[slot] = directory_room(&s->dir, slot) + s->extra_room[slot];
    }
}

/* How well a worker would do as home: what it holds of the prefix, what could be copied, how busy it is. */
static void homes_rate(const struct sched *s, uint64_t usable, int64_t gain_out[SCHED_SLOTS])
{
    const struct place *p = &s->place;
    uint32_t held[SCHED_SLOTS] = { 0 }, on_disk[SCHED_SLOTS] = { 0 }, known = 0;
    for (uint32_t i = 0; i < p->n_hits; i++) {
        const bool copies = p->hits[i] && place_source(p, p->hits[i]);
        known += copies;
        SCHED_EACH(slot, p->hits[i] && !copies ? p->hits[i]->disks & usable : 0)
        {
            on_disk[slot]++;
        }
        for (const struct copy *c = p->hits[i] ? p->hits[i]->copies : NULL; c; c = c->next)
            held[c->slot] += c->state == COPY_READY;
    }
    SCHED_EACH(slot, usable)
    {
        gain_out[slot] = (int64_t)held[slot] * PLAN_BLOCK - (int64_t)s->workers[slot].n_homes * LOAD_TOKENS;
        if (p->may_copy)
            gain_out[slot] += ((int64_t)known - held[slot] + on_disk[slot]) * COPIED_TOKENS;
    }
}

/* Has each of these workers places for the open blocks of one more sequence? */
static bool ties_fit(const struct sched *s, uint64_t ties)
{
    SCHED_EACH(slot, ties)
    {
        if (s->workers[slot].n_ties - s->extra_ties[slot] >= s->workers[slot].ties_max)
            return false;
    }
    return true;
}

/* Takes the best home that has room. -> is there one; s->place has the answer */
static bool home_find(struct sched *s, uint64_t usable, bool spreads)
{
    uint8_t slots[SCHED_SLOTS];
    int64_t gain[SCHED_SLOTS];
    const uint32_t n = place_order(s, usable, slots);
    homes_rate(s, usable, gain);
    for (uint64_t left = usable; left;) {
        uint8_t best = SCHED_NO_SLOT;
        const int64_t drawn = sched_choose(s, "home", (uint32_t)__builtin_popcountll(left));
        int64_t i = 0;
        SCHED_EACH(slot, left)
        {
            if (drawn >= 0 ? i++ == drawn : best == SCHED_NO_SLOT || gain[slot] > gain[best])
                best = slot;
        }
        room_read(s);
        if ((spreads ? place_spread(s, &s->place, best, slots, n) : place_local(s, &s->place, best)) &&
            ties_fit(s, s->place.ties))
            return true;
        left &= ~SCHED_BIT(best);
    }
    return false;
}

enum found { FOUND, NO_ROOM, LATER };

static enum found find_place(struct sched *s, struct sched_request *r, bool sharing)
{
    const bool bound =
        (r->told && r->n_preempted) || (r->state == REQUEST_RUNNING && r->started); /* it goes on with the same bits */
    uint64_t seen = 0;
    s->place.sound = 0;
    SCHED_EACH(slot, s->ready)
    {
        s->place.sound |= s->workers[slot].suspect ? 0 : SCHED_BIT(slot);
    }
    SCHED_EACH(slot, s->ready)
    {
        const uint64_t usable = seen & SCHED_BIT(slot) ? 0 : kin_of(s, slot);
        seen |= usable;
        if (usable) {
            const struct worker *w = &s->workers[slot];
            place_prepare(&s->place, r->n_prompt, r->n_rows, w->leaf_blocks, retain_bound(s, r->n_prompt, r->density));
            s->place.may_copy = sharing && !r->alone;
            s->place.n_hits = 0;
            const struct digest context = request_context(r, &w->context);
            if (bound && memcmp(&context, &r->context, sizeof context) != 0)
                continue;
            if (sharing && !hits_find(s, r, &context))
                return LATER;
            const bool spreads = place_spreads(s, r->n_rows, usable);
            if ((spreads && r->near && home_find(s, usable, false)) || home_find(s, usable, spreads) ||
                (spreads && s->place.bound && home_find(s, usable, false)))
                return FOUND;
        }
    }
    return NO_ROOM;
}

static void hits_take(struct sched *s, struct sched_request *r)
{
    const struct place *p = &s->place;
    struct copy **sources = sched_alloc(p->n_blocks, sizeof(struct copy *));
    /* All that is read or sent is held first: room is then made from the rest. */
    for (uint32_t i = 0; i < p->n_blocks; i++) {
        if (!p->brought[i])
            continue;
        struct copy *c = directory_copy_at(p->hits[i], p->at[i / p->leaf_blocks]);
        r->copies[i] = c;
        if (!c)
            c = sources[i] = place_source(p, p->hits[i]);
        if (c) /* NULL: it comes from the disk */
            directory_ref(&s->dir, c);
    }
    for (uint32_t i = 0; i < p->n_blocks; i++) {
        if (!p->brought[i])
            continue;
        if (!r->copies[i]) {
            const uint8_t slot = p->at[i / p->leaf_blocks];
            const bool there = directory_promise(&s->dir, slot, 1);
            assert(there);
            (void)there;
            r->copies[i] = transfer_start(s, p->hits[i], sources[i], slot);
            directory_ref(&s->dir, r->copies[i]);
            if (sources[i])
                directory_unref(&s->dir, sources[i]); /* the transfer holds it */
        }
        if (r->copies[i]->state == COPY_INCOMING) {
            transfer_wait(r->copies[i], r, WAITS_TO_START);
            r->pending++;
        }
        r->table[i] = r->copies[i]->block->handle;
    }
    free(sources);
    r->hit = p->hit;
    r->done = 0;
    request_skip(r, &r->done);
    r->ahead = r->done;
    r->n_table = r->n_committed = r->done / PLAN_BLOCK;
    if (r->n_table)
        r->last_id = p->hits[r->n_table - 1]->id;
}

static bool arrays_new(struct sched_request *r, const struct place *p)
{
    r->table = calloc(p->n_blocks, sizeof *r->table);
    r->copies = calloc(p->n_blocks, sizeof *r->copies);
    r->brought = malloc(p->n_blocks * sizeof *r->brought);
    r->at = malloc(p->n_leaves);
    r->owner = malloc(p->n_leaves);
    r->readers = calloc(p->n_leaves, sizeof *r->readers);
    r->ship_copies = calloc(p->leaf_blocks, sizeof *r->ship_copies);
    return r->table && r->copies && r->brought && r->at && r->owner && r->readers && r->ship_copies;
}

/* The place was found: takes it. */
static void admit(struct sched *s, struct sched_request *r)
{
    const struct place *p = &s->place;
    queue_overtake(r);
    queue_remove(s, r);
    wait_taken(s);
    r->overtaken = 0;
    sched_grow((void **)&s->running, &s->running_cap, s->n_running + 1, sizeof(struct sched_request *));
    s->running[s->n_running++] = r;
    s->n_live++;
    r->state = REQUEST_RUNNING;
    r->id = ++s->next_seq;
    r->home = p->home;
    r->context = request_context(r, &s->workers[r->home].context);
    r->leaf_blocks = p->leaf_blocks;
    r->n_blocks = p->n_blocks;
    r->n_leaves = p->n_leaves;
    r->ties = p->ties;
    r->window = p->window;
    r->window_open = 0;
    r->window_left = p->window_left;
    r->bound = p->spread ? 0 : p->bound;
    r->passed = 1;
    r->unopened = p->n_blocks - p->hit;
    r->pending = 0;
    r->give_up_ms = 0;
    r->n_replicated = 0;
    r->leaves = false;
    r->haven = SCHED_NO_SLOT;
    r->started = false;
    r->fresh = true;
    r->known = 0;
    r->ship_leaf = r->n_prompt / request_leaf_rows(r);
    r->ship_tries = 0;
    r->ship_after_ms = 0;
    if (!r->n_preempted)
        r->admitted_ms = sched_now_ms(s);
    memset(r->shares, 0, sizeof r->shares);
    memcpy(r->brought, p->brought, p->n_blocks * sizeof *r->brought);
    memcpy(r->at, p->at, p->n_leaves);
    memcpy(r->owner, p->owner, p->n_leaves);
    for (uint32_t i = 0; i < p->n_leaves; i++)
        r->readers[i] = s->workers[r->at[i]].id;
    hits_take(s, r);
    if (!r->n_preempted)
        r->first_hit = r->hit;
    SCHED_EACH(slot, r->ties)
    {
        const bool there = directory_promise(&s->dir, slot, p->need[slot]);
        assert(there);
        (void)there;
        r->promise[slot] = p->need[slot];
        s->workers[slot].n_ties++;
    }
    s->workers[r->home].n_homes++;
    s->groups_changed = true;
    log_debug("request %s sequence %llu: home worker %u, %u of %u blocks by prefix hit", r->label,
              (unsigned long long)r->id, s->workers[r->home].id, r->hit, r->n_blocks);
    if (r->events.progress && !r->n_preempted)
        r->events.progress(r->user, r->done < r->n_prompt ? r->done : r->n_prompt, r->n_prompt);
}

/* What runs comes before what waits: a leaf whose old copy others still read has left its home's window too small. */
static bool windows_full(struct sched *s)
{
    bool full = true;
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->state == REQUEST_RUNNING && s->running[i]->window_left)
            full = request_window(s, s->running[i]) && full;
        if (s->running[i]->state == REQUEST_RUNNING && s->running[i]->bound)
            full = retain_fill(s, s->running[i]) && full;
    }
    return full;
}

/* Another computes blocks now that r would compute again: r waits until they are there. */
static bool awaits_blocks(const struct sched *s, const struct sched_request *r)
{
    if (!s->config.prefix_sharing || r->alone || r->urgent)
        return false;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct sched_request *q = s->running[i];
        if (q->state != REQUEST_RUNNING || q->preempting || q->priority > r->priority || q->done >= q->n_prompt)
            continue;
        const uint32_t n = queue_common(r, q);
        if (n > s->place.n_hits && n > q->n_committed)
            return true;
    }
    return false;
}

static void awaiting_reset(struct sched *s)
{
    if (!s->n_awaiting)
        return;
    s->n_awaiting = 0;
    for (struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r))
        r->awaits = false;
}

static bool fits(struct sched *s, struct sched_request *r)
{
    return find_place(s, r, s->config.prefix_sharing) == FOUND;
}

void admit_all(struct sched *s)
{
    queue_promote(s);
    if (s->admit_changed && !windows_full(s))
        s->admit_changed = false;
    if (s->admit_changed)
        awaiting_reset(s);
    for (struct sched_request *r; s->admit_changed && (r = queue_next(s));) {
        enum found found = find_place(s, r, s->config.prefix_sharing);
        /* All alone and still no room: what its prefix occupies is in the way. */
        if (found == NO_ROOM && !s->n_running && !s->n_transfers && !s->n_lingering)
            found = find_place(s, r, false);
        if (found == FOUND && awaits_blocks(s, r)) {
            r->awaits = true;
            s->n_awaiting++;
            continue;
        }
        if (found == FOUND && s->n_live >= s->config.sequences_max)
            found = NO_ROOM;
        if (found == NO_ROOM && s->config.preemption && !s->n_preempting && preempt_for(s, r, fits))
            continue;
        if (found != FOUND) {
            s->admit_changed = found == LATER;
            break;
        }
        if (arrays_new(r, &s->place))
            admit(s, r);
        else
            request_end(s, r, FINISH_ERROR, ST_NO_MEMORY, "the coordinator has no memory for the request's tables");
    }
}

bool admit_finds(struct sched *s, struct sched_request *r)
{
    SCHED_EACH(slot, r->ties)
    {
        s->extra_room[slot] = r->promise[slot];
        s->extra_ties[slot] = 1;
    }
    const bool found = fits(s, r);
    memset(s->extra_room, 0, sizeof s->extra_room);
    memset(s->extra_ties, 0, sizeof s->extra_ties);
    return found;
}

void admit_undo(struct sched *s, struct sched_request *r)
{
    if (r->state != REQUEST_RUNNING)
        return;
    assert(!r->started && !r->in_flight);
    s->n_live--;
    request_release(s, r);
    r->state = REQUEST_WAITING;
    r->done = r->ahead = r->hit = r->n_committed = 0;
    if (!r->n_preempted)
        r->admitted_ms = 0;
    queue_add(s, r);
}
