/* Where a request's blocks would live, and whether there is room for them. Changes nothing: admit.c does. */
#include "coordinator/sched/state.h"

#include <string.h>

#include "kvstore/kvstore.h"

void place_prepare(struct place *p, uint32_t n_prompt, uint32_t n_rows, uint32_t leaf_blocks, uint32_t bound)
{
    p->bound = bound;
    p->n_prompt = n_prompt;
    p->n_rows = n_rows;
    p->leaf_blocks = leaf_blocks;
    p->n_blocks = (n_rows + PLAN_BLOCK - 1) / PLAN_BLOCK;
    p->n_leaves = (p->n_blocks + leaf_blocks - 1) / leaf_blocks;
    sched_grow((void **)&p->at, &p->leaves_cap, p->n_leaves, 1);
    sched_grow((void **)&p->owner, &p->owner_cap, p->n_leaves, 1);
    sched_grow((void **)&p->brought, &p->brought_cap, p->n_blocks, sizeof *p->brought);
}

uint32_t place_order(const struct sched *s, uint64_t mask, uint8_t slots_out[SCHED_SLOTS])
{
    uint32_t n = 0;
    SCHED_EACH(slot, mask)
    {
        uint32_t i = n++;
        for (; i > 0 && s->workers[slots_out[i - 1]].id > s->workers[slot].id; i--)
            slots_out[i] = slots_out[i - 1];
        slots_out[i] = slot;
    }
    return n;
}

bool place_spreads(const struct sched *s, uint32_t n_rows, uint64_t usable)
{
    if (__builtin_popcountll(usable) < 2)
        return false;
    if (n_rows >= s->config.spread_min_tokens)
        return true;
    uint32_t most = 0;
    SCHED_EACH(slot, usable)
    {
        if (s->dir.pools[slot].n_blocks > most)
            most = s->dir.pools[slot].n_blocks;
    }
    return (n_rows + PLAN_BLOCK - 1) / PLAN_BLOCK > most;
}

static void reset(struct place *p, uint8_t home)
{
    p->home = home;
    p->hit = 0;
    p->window = p->window_left = 0;
    memset(p->brought, 0, p->n_blocks * sizeof *p->brought);
    memset(p->need, 0, sizeof p->need);
    p->ties = SCHED_BIT(home);
}

/* ---- hits ---- */

/* Of a leaf's blocks those at its start that are known. What comes behind a gap in it is computed again: a leaf is at one worker. */
static uint32_t hits_of(const struct place *p, uint32_t leaf)
{
    const uint32_t first = leaf * p->leaf_blocks;
    uint32_t n = 0;
    while (n < p->leaf_blocks && first + n < p->n_hits && p->hits[first + n])
        n++;
    return n;
}

/* A ready copy at a worker that can be relied on, or NULL. */
static struct copy *sound_copy(const struct place *p, const struct block *b)
{
    struct copy *c = b->copies;
    while (c && (c->state != COPY_READY || !(p->sound & SCHED_BIT(c->slot))))
        c = c->next;
    return c;
}

struct copy *place_source(const struct place *p, const struct block *b)
{
    return sound_copy(p, b);
}

bool place_reaches(const struct place *p, const struct block *b)
{
    return sound_copy(p, b) || (p->may_copy && b->disks & p->sound);
}

/* From another worker's memory, or from the disk of dst. */
static bool can_come(const struct place *p, const struct block *b, uint8_t dst)
{
    return p->may_copy && (sound_copy(p, b) || b->disks & SCHED_BIT(dst));
}

/* How many of the hits first .. first + n - 1, in a row, are at dst or can be brought there. missing_out: of these, those to be brought. */
static uint32_t hits_reach(const struct place *p, uint32_t first, uint32_t n, uint8_t dst, uint32_t *missing_out)
{
    uint32_t i = 0, missing = 0;
    for (; i < n; i++) {
        const struct copy *c = directory_copy_at(p->hits[first + i], dst);
        if (c && (c->state == COPY_READY || c->state == COPY_INCOMING) && (c->state == COPY_READY || p->may_copy))
            continue;
        if (c || !can_come(p, p->hits[first + i], dst))
            break;
        missing++;
    }
    *missing_out = missing;
    return i;
}

/* They will be read at dst: cached copies are cached no more, also where they are sent from. */
static void hits_take(struct place *p, uint32_t first, uint32_t n, uint8_t dst)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct copy *c = directory_copy_at(p->hits[first + i], dst);
        if (!c) {
            p->room[dst]--;
            c = sound_copy(p, p->hits[first + i]); /* NULL: it comes from the disk */
        }
        if (c && c->cached)
            p->room[c->slot]--;
        p->brought[first + i] = true;
    }
    p->hit += n;
    p->ties |= SCHED_BIT(dst);
}

/* Workers that hold all of them, on their disks too if disks. */
static uint64_t hits_held(const struct place *p, uint32_t first, uint32_t n, bool disks)
{
    uint64_t all = UINT64_MAX;
    for (uint32_t i = 0; i < n && all; i++) {
        uint64_t here = disks && p->may_copy ? p->hits[first + i]->disks : 0;
        for (const struct copy *c = p->hits[first + i]->copies; c; c = c->next)
            here |= c->state == COPY_READY ? SCHED_BIT(c->slot) : 0;
        all &= here;
    }
    return all;
}

/* ---- one worker ---- */

bool place_local(const struct sched *s, struct place *p, uint8_t home)
{
    uint32_t missing;
    (void)s;
    reset(p, home);
    p->spread = false;
    for (uint32_t leaf = 0; leaf < p->n_leaves; leaf++) {
        const uint32_t first = leaf * p->leaf_blocks;
        hits_take(p, first, hits_reach(p, first, hits_of(p, leaf), home, &missing), home);
    }
    memset(p->at, home, p->n_leaves);
    memset(p->owner, home, p->n_leaves);
    p->need[home] = p->n_blocks - p->hit;
    if (p->bound && p->need[home] > p->bound)
        p->need[home] = p->bound;
    p->room[home] -= p->need[home];
    return p->room[home] >= 0;
}

/* ---- several workers ---- */

struct spread {
    const struct sched *s;
    struct place *p;
    const uint8_t *slots;
    uint32_t n_slots;
    uint64_t mask;
    uint32_t gap_end;            /* blocks before this one that nobody has lie before some that are known */
    uint32_t dealt[SCHED_SLOTS]; /* leaves in gaps */
};

/* Leaves in gaps are those of lost workers, which the map gave them together: by the map one of those that are left would compute nearly all of them. */
static uint8_t gap_owner(const struct spread *x, uint8_t first, uint32_t n)
{
    uint8_t slot = first;
    for (uint32_t i = 0; i < x->n_slots; i++) {
        const uint8_t other = x->slots[i];
        if (x->p->room[other] >= n && (x->p->room[slot] < n || x->dealt[other] < x->dealt[slot]))
            slot = other;
    }
    return slot;
}

/* Whom the map gives the leaf, or, if there is no room for n blocks there, who has most room. */
static uint8_t leaf_owner(struct spread *x, uint32_t leaf, uint32_t n)
{
    const int64_t drawn = sched_choose(x->s, "owner", x->n_slots);
    uint8_t slot = x->slots[drawn >= 0 ? drawn : kv_slot_owner(leaf % PLAN_SLOTS, PLAN_SLOTS, x->n_slots)];
    if (drawn < 0 && leaf * x->p->leaf_blocks < x->gap_end)
        slot = gap_owner(x, slot, n);
    x->dealt[slot]++;
    if (x->p->room[slot] >= n)
        return slot;
    for (uint32_t i = 0; i < x->n_slots; i++) {
        if (x->p->room[x->slots[i]] > x->p->room[slot])
            slot = x->slots[i];
    }
    return x->p->room[slot] >= n ? slot : SCHED_NO_SLOT;
}

static void leaf_needs(const struct spread *x, uint8_t slot, uint32_t n)
{
    x->p->need[slot] += n;
    x->p->room[slot] -= n;
    x->p->ties |= SCHED_BIT(slot);
}

static bool leaf_grows(const struct place *p, uint32_t leaf)
{
    return (uint64_t)(leaf + 1) * p->leaf_blocks * PLAN_BLOCK > p->n_prompt;
}

/* A leaf that the hit covers whole. false: nobody can have all of it. */
static bool place_whole(const struct spread *x, uint32_t leaf)
{
    struct place *p = x->p;
    const uint32_t first = leaf * p->leaf_blocks;
    const uint64_t held = hits_held(p, first, p->leaf_blocks, false) & x->mask,
                   near = held ? held : hits_held(p, first, p->leaf_blocks, true) & x->mask;
    uint32_t missing = 0;
    uint8_t slot = x->slots[kv_slot_owner(leaf % PLAN_SLOTS, PLAN_SLOTS, x->n_slots)];
    if (near && !(near & SCHED_BIT(slot)))
        slot = (uint8_t)__builtin_ctzll(near);
    if (!held && (hits_reach(p, first, p->leaf_blocks, slot, &missing) < p->leaf_blocks || p->room[slot] < missing))
        return false;
    hits_take(p, first, p->leaf_blocks, slot);
    p->at[leaf] = p->owner[leaf] = slot;
    return true;
}

/* A leaf whose rows are all or partly to be computed; the first n_hit blocks of it would be hits. false: no room. */
static bool place_rest(struct spread *x, uint32_t leaf, uint32_t n_hit)
{
    struct place *p = x->p;
    const uint32_t first = leaf * p->leaf_blocks;
    const uint32_t blocks = leaf + 1 < p->n_leaves ? p->leaf_blocks : p->n_blocks - first;
    const bool grows = leaf_grows(p, leaf);
    uint32_t missing;
    uint8_t slot = p->home;
    if (!grows) {
        uint64_t held = n_hit ? hits_held(p, first, n_hit, false) & x->mask : 0;
        if (n_hit && !held)
            held = hits_held(p, first, n_hit, true) & x->mask;
        SCHED_EACH(i, held)
        {
            if (p->room[i] >= blocks)
                slot = i;
        }
        if (!(held & SCHED_BIT(slot)) || p->room[slot] < blocks)
            slot = leaf_owner(x, leaf, blocks);
        if (slot == SCHED_NO_SLOT)
            return false;
    }
    const uint32_t hit = hits_reach(p, first, n_hit, slot, &missing);
    hits_take(p, first, hit, slot);
    p->at[leaf] = p->owner[leaf] = slot;
    if (grows && leaf + 1 < p->n_leaves)
        p->owner[leaf] = leaf_owner(x, leaf, blocks);
    if (p->owner[leaf] == SCHED_NO_SLOT)
        return false;
    if (p->owner[leaf] == slot) {
        leaf_needs(x, slot, blocks - hit);
    } else {
        leaf_needs(x, p->owner[leaf], blocks);
        p->window_left += blocks - hit;
    }
    return p->room[slot] >= 0;
}

bool place_spread(const struct sched *s, struct place *p, uint8_t home, const uint8_t *slots, uint32_t n_slots)
{
    struct spread x = { .s = s, .p = p, .slots = slots, .n_slots = n_slots };
    for (uint32_t i = 0; i < n_slots; i++)
        x.mask |= SCHED_BIT(slots[i]);
    for (x.gap_end = p->n_hits; x.gap_end && !p->hits[x.gap_end - 1];)
        x.gap_end--;
    reset(p, home);
    p->spread = true;
    /* The home's own needs come first: the last leaf, and room for growing leaves on their way. */
    const uint32_t grow = p->n_prompt / (p->leaf_blocks * PLAN_BLOCK); /* the first leaf that grows */
    const uint32_t last = p->n_leaves - 1;
    uint32_t window = 0;
    if (grow < last)
        window = (last - grow > 1 ? 2 : 1) * p->leaf_blocks;
    p->room[home] -= window + (grow <= last ? p->n_blocks - last * p->leaf_blocks : 0);
    if (p->room[home] < 0)
        return false;
    for (uint32_t leaf = 0; leaf < p->n_leaves; leaf++) {
        const uint32_t n_hit = hits_of(p, leaf);
        if (n_hit == p->leaf_blocks && place_whole(&x, leaf))
            continue;
        if (leaf == last && leaf_grows(p, leaf))
            p->room[home] += p->n_blocks - last * p->leaf_blocks; /* reserved above */
        if (!place_rest(&x, leaf, n_hit))
            return false;
    }
    p->window = window < p->window_left ? window : p->window_left;
    p->room[home] += window;
    leaf_needs(&x, home, p->window);
    for (uint32_t i = 0; i < n_slots; i++) {
        if (p->room[slots[i]] < 0)
            return false;
    }
    return true;
}

bool place_ever(struct sched *s, uint32_t n_prompt, uint32_t n_rows, uint32_t bound)
{
    uint8_t slots[SCHED_SLOTS];
    struct place *p = &s->place;
    uint64_t left = s->ready;
    while (left) {
        const struct worker *w = &s->workers[__builtin_ctzll(left)];
        uint64_t kin = 0;
        SCHED_EACH(slot, s->ready)
        {
            if (!memcmp(&s->workers[slot].context, &w->context, sizeof w->context)) {
                left &= ~SCHED_BIT(slot);
                kin |= s->workers[slot].draining ? 0 : SCHED_BIT(slot);
            }
        }
        const uint32_t n = place_order(s, kin, slots);
        const bool spreads = place_spreads(s, n_rows, kin);
        place_prepare(p, n_prompt, n_rows, w->leaf_blocks, bound);
        p->n_hits = 0;
        p->may_copy = false;
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < n; j++)
                p->room[slots[j]] = s->dir.pools[slots[j]].n_blocks;
            if (spreads && place_spread(s, p, slots[i], slots, n))
                return true;
            for (uint32_t j = 0; j < n && spreads; j++)
                p->room[slots[j]] = s->dir.pools[slots[j]].n_blocks;
            if ((!spreads || bound) && place_local(s, p, slots[i]))
                return true;
        }
    }
    return false;
}
