/*
 * A second copy of sealed blocks, beside the steps, for the day on which the worker of the first is lost. A replica is prefix cache at another worker: nobody
 * refers to it, so it costs room that nothing else needs and goes, oldest first, when something does. What is left is found like any other block.
 */
#include "coordinator/sched/state.h"

#include <string.h>

enum { REPLICAS_A_WORKER = 2 }; /* under way at once: copies that somebody waits for come behind them */

static bool copied(const struct block *b)
{
    uint32_t n = 0;
    for (const struct copy *c = b->copies; c; c = c->next)
        n += c->state == COPY_READY || c->state == COPY_INCOMING;
    return n > 1;
}

/* Those of a leaf go to one worker, leaves to all in turn. SCHED_NO_SLOT: nobody can have it. */
static uint8_t destination(const struct sched *s, const struct sched_request *r, uint32_t leaf, const struct copy *c)
{
    uint8_t slots[SCHED_SLOTS], usable[SCHED_SLOTS];
    const uint32_t all = place_order(s, s->ready, slots);
    uint32_t n = 0;
    for (uint32_t i = 0; i < all; i++) {
        const struct worker *w = &s->workers[slots[i]];
        if (slots[i] != c->slot && slots[i] != r->owner[leaf] && !w->draining && !w->suspect &&
            !memcmp(&w->context, &s->workers[c->slot].context, sizeof w->context))
            usable[n++] = slots[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t slot = usable[(leaf + i) % n];
        if (directory_room(&s->dir, slot) && !directory_copy_at(c->block, slot))
            return slot;
    }
    return SCHED_NO_SLOT;
}

/* false: no more now */
static bool replicate(struct sched *s, struct sched_request *r)
{
    const uint32_t leaf = r->n_replicated / r->leaf_blocks;
    struct copy *c = r->copies[r->n_replicated];
    if (!c) { /* given back */
        r->n_replicated++;
        return true;
    }
    if (r->at[leaf] != r->owner[leaf] && r->at[leaf] == r->home && __builtin_popcountll(s->ready) < 3)
        return false; /* it is about to go to where its copy would be */
    if (c->state == COPY_READY && !copied(c->block)) {
        const uint8_t slot = destination(s, r, leaf, c);
        if (slot != SCHED_NO_SLOT && directory_promise(&s->dir, slot, 1)) {
            struct transfer *t = transfer_start(s, c->block, c, slot)->transfer;
            t->replica = t->second = true;
            s->n_replicas++;
        }
    }
    r->n_replicated++;
    return true;
}

void replicate_all(struct sched *s)
{
    const uint32_t most = REPLICAS_A_WORKER * (uint32_t)__builtin_popcountll(s->ready);
    if (!s->config.replicas || !s->config.prefix_sharing || most <= REPLICAS_A_WORKER)
        return;
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        while (r->state == REQUEST_RUNNING && r->n_replicated < r->n_committed && s->n_replicas < most) {
            if (!replicate(s, r))
                break;
        }
    }
}

void replicate_again(struct sched *s)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        s->running[i]->n_replicated = 0;
}

uint32_t replicate_due(const struct sched *s)
{
    uint32_t n = 0;
    if (!s->config.replicas || !s->config.prefix_sharing)
        return 0;
    for (const struct transfer *t = s->transfers; t; t = t->next)
        n += t->second;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct sched_request *r = s->running[i];
        if (r->state == REQUEST_RUNNING && r->n_committed > r->n_replicated)
            n += r->n_committed - r->n_replicated;
    }
    return n;
}
