/* Copies of sealed blocks between workers, and from a worker's disk to its memory, beside the steps. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

struct copy *transfer_start(struct sched *s, struct block *b, struct copy *src, uint8_t slot)
{
    struct transfer *t = sched_alloc(1, sizeof *t);
    struct copy *dst = directory_incoming(&s->dir, b, slot);
    *t = (struct transfer){ .src = src, .dst = dst, .disk = !src };
    if (src)
        directory_ref(&s->dir, src);
    dst->transfer = t;
    *s->transfers_end = t;
    s->transfers_end = &t->next;
    s->n_transfers++;
    s->transfers_waiting++;
    return dst;
}

void transfer_wait(struct copy *dst, struct sched_request *r, enum waiter_kind kind)
{
    struct waiter *w = sched_alloc(1, sizeof *w);
    *w = (struct waiter){ .r = r, .kind = kind, .next = dst->transfer->waiters };
    dst->transfer->waiters = w;
}

/* Off the list. linger: its source may be sending yet and is held a while; else no more. What becomes of dst is the caller's business. */
static void transfer_unlink(struct sched *s, struct transfer *t, bool linger)
{
    struct transfer **at = &s->transfers;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    if (s->transfers_end == &t->next)
        s->transfers_end = at;
    s->n_transfers--;
    s->n_replicas -= t->replica;
    if (!t->sent) {
        s->transfers_waiting--;
    } else if (t->disk) {
        s->workers[t->dst->slot].loading--;
    } else {
        s->workers[t->src->slot].sending--;
        s->workers[t->dst->slot].receiving--;
    }
    t->dst->transfer = NULL;
    if (t->disk) {
        /* nothing is held */
    } else if (linger && t->sent) {
        sched_grow((void **)&s->lingering, &s->lingering_cap, s->n_lingering + 1, sizeof *s->lingering);
        s->lingering[s->n_lingering++] =
            (struct lingering){ .src = t->src, .until_ms = sched_now_ms(s) + s->config.step_deadline_ms };
    } else {
        directory_unref(&s->dir, t->src);
    }
    t->src = NULL;
    s->admit_changed = true;
}

void transfer_unwait(struct sched *s, struct copy *dst, struct sched_request *r)
{
    struct transfer *t = dst->transfer;
    if (!t)
        return;
    for (struct waiter **at = &t->waiters; *at;) {
        struct waiter *w = *at;
        if (w->r != r) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        free(w);
    }
    if (t->sent || t->waiters)
        return;
    transfer_unlink(s, t, false);
    free(t);
}

static bool has_turn(const struct transfer *t, const struct worker *from, const struct worker *to)
{
    return t->disk ? to->loading < SCHED_LOADS_MAX
                   : from->sending < SCHED_TRANSFERS_MAX && to->receiving < SCHED_TRANSFERS_MAX;
}

void transfers_send(struct sched *s)
{
    if (!s->transfers_waiting)
        return;
    for (struct transfer *t = s->transfers; t; t = t->next) {
        struct worker *to = &s->workers[t->dst->slot], *from = t->disk ? to : &s->workers[t->src->slot];
        if (t->sent || !directory_can_receive(&s->dir, t->dst->slot) || !has_turn(t, from, to))
            continue;
        const struct block *b = t->dst->block;
        struct control_message m = { .kind = CONTROL_COPY };
        m.as.copy = (struct control_copy){ .handle = b->handle, .destination = to->id, .position = b->position };
        memcpy(m.as.copy.id, b->id.byte, sizeof m.as.copy.id);
        t->sent = true;
        t->sent_ms = sched_now_ms(s);
        s->transfers_waiting--;
        to->loading += t->disk;
        from->sending += !t->disk;
        to->receiving += !t->disk;
        s->ops.send(s->ctx, from->id, &m);
    }
}

/* Tells those who waited. The transfer is off the list; its dst is ready, or still INCOMING without a transfer (then each lets go of it). */
static void transfer_tell(struct sched *s, struct transfer *t, bool ok)
{
    struct copy *dst = t->dst;
    directory_ref(&s->dir, dst); /* until all are told */
    while (t->waiters) {
        struct waiter *w = t->waiters;
        t->waiters = w->next;
        if (w->kind == WAITS_TO_SHIP) {
            ship_arrived(s, w->r, ok);
        } else if (ok) {
            w->r->pending--;
        } else {
            w->r->alone = w->r->alone || !t->disk; /* what a disk has lost is not found there again */
            admit_undo(s, w->r);
        }
        free(w);
    }
    free(t);
    if (ok) {
        directory_unref(&s->dir, dst);
        return;
    }
    /* Nobody reads it: all who did waited for it. It may come late or have come: told to go. */
    assert(dst->refs == 1);
    dst->refs = 0;
    directory_drop(&s->dir, dst);
}

static void transfer_fail(struct sched *s, struct transfer *t, bool linger)
{
    transfer_unlink(s, t, linger);
    transfer_tell(s, t, false);
}

/* Lets go of sources that have lingered until now, and of all at a worker that is gone. */
static void lingering_end(struct sched *s, int64_t now, uint8_t gone)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->n_lingering; i++) {
        const struct lingering l = s->lingering[i];
        if (l.until_ms > now && l.src->slot != gone)
            s->lingering[kept++] = l;
        else
            directory_unref(&s->dir, l.src);
    }
    if (kept != s->n_lingering)
        s->admit_changed = true;
    s->n_lingering = kept;
}

enum status transfer_arrived(struct sched *s, uint8_t slot, const struct control_copied *copied)
{
    struct block *b = directory_block(&s->dir, copied->handle);
    struct copy *dst = b ? directory_copy_at(b, slot) : NULL;
    struct transfer *t = dst && dst->state == COPY_INCOMING ? dst->transfer : NULL;
    const bool ok = copied->status == ST_OK || copied->status == ST_EXISTS;
    if (!t) { /* given up before it came */
        if (ok && copied->handle < s->dir.next)
            directory_drop_stray(&s->dir, slot, copied->handle);
        return copied->handle < s->dir.next ? ST_OK : ST_PROTOCOL;
    }
    if (!ok && !t->sent)
        return ST_OK;     /* about an attempt before this one */
    if (!ok && t->disk) { /* the worker has said what is wrong with it */
        log_debug("worker %u: block %llu did not come from its disk: %s", s->workers[slot].id,
                  (unsigned long long)copied->handle, status_text((enum status)copied->status));
        directory_disk_remove(&s->dir, slot, &b->id);
        transfer_fail(s, t, false);
        return ST_OK;
    }
    if (!ok) {
        log_warn("worker %u: block %llu did not come from worker %u: %s", s->workers[slot].id,
                 (unsigned long long)copied->handle, copied->source, status_text((enum status)copied->status));
        transfer_fail(s, t, false);
        return ST_OK;
    }
    s->stats.replicas += t->second;
    transfer_unlink(s, t, false);
    directory_ref(&s->dir, dst);
    directory_arrived(&s->dir, dst);
    transfer_tell(s, t, true);
    directory_unref(&s->dir, dst);
    return ST_OK;
}

/* A transfer waits for its turn after at most plans_ahead steps. */
static int64_t patience(const struct sched *s)
{
    return (int64_t)s->config.step_deadline_ms * (s->config.plans_ahead + 1);
}

static int64_t due_ms(const struct sched *s, const struct transfer *t)
{
    return t->sent_ms + (t->disk ? SCHED_LOAD_MS : patience(s));
}

static void say_late(struct sched *s, const struct transfer *t)
{
    const uint16_t to = s->workers[t->dst->slot].id;
    if (t->disk)
        log_warn("worker %u: its disk does not answer: what is there is used no more", to);
    else
        log_warn("block %llu did not come from worker %u to worker %u in time",
                 (unsigned long long)t->dst->block->handle, s->workers[t->src->slot].id, to);
}

void transfers_check(struct sched *s)
{
    const int64_t now = sched_now_ms(s);
    if (s->n_lingering)
        lingering_end(s, sched_now_ms(s), SCHED_NO_SLOT);
    for (struct transfer *t = s->transfers; t;) {
        if (!t->sent || due_ms(s, t) > now) {
            t = t->next;
            continue;
        }
        say_late(s, t);
        if (t->disk)
            directory_disk_lost(&s->dir, t->dst->slot);
        transfer_fail(s, t, true);
        t = s->transfers; /* others may have gone with it */
    }
}

int64_t transfers_deadline(const struct sched *s)
{
    int64_t first = SCHED_RUN_MS;
    const int64_t now = sched_now_ms(s);
    for (const struct transfer *t = s->transfers; t; t = t->next) {
        if (t->sent && due_ms(s, t) - now < first)
            first = due_ms(s, t) - now;
    }
    return first;
}

void transfers_lost(struct sched *s, uint8_t slot)
{
    for (struct transfer *t = s->transfers; t;) {
        if ((t->disk || t->src->slot != slot) && t->dst->slot != slot) {
            t = t->next;
            continue;
        }
        transfer_fail(s, t, !t->disk && t->src->slot != slot);
        t = s->transfers;
    }
    lingering_end(s, INT64_MIN, slot);
}
