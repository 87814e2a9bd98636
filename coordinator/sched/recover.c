/*
 * What a worker held is gone, or cannot be relied on: the sequences that touch it are placed again at once. Blocks are found by their ids wherever a
 * copy is left, so only those that nobody has are computed again, ascending, as rows of steps; the rest is read where it is. Tokens that are
 * known are forced rows, and what a client was told is not told again, so that it goes on as if nothing had been.
 */
#include "coordinator/sched/state.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"

void request_again(struct sched *s, struct sched_request *r)
{
    s->n_live--;
    request_release(s, r);
    r->state = REQUEST_WAITING;
    if (r->done > r->told)
        r->told = r->done;
    r->done = r->ahead = r->hit = r->n_committed = 0;
    r->n_preempted++;
    request_ids_extend(s, r);
    queue_add(s, r);
}

static void recover(struct sched *s, struct sched_request *r, bool apart, const char *message)
{
    const int64_t now = sched_now_ms(s);
    if (r->done > r->told) {
        r->n_vain = 0;
    } else if (now - r->vain_ms >= SCHED_VAIN_APART_MS) {
        r->n_vain++;
        r->vain_ms = now;
    }
    if (r->n_vain >= SCHED_VAIN_MAX) {
        request_end(s, r, FINISH_ERROR, ST_PEER, message);
        return;
    }
    log_info("request %s sequence %llu: after %u positions it is placed again: %s", r->label, (unsigned long long)r->id,
             r->done > r->told ? r->done : r->told, message);
    r->n_recovered++;
    r->near = r->near || apart;
    r->urgent = true; /* it was admitted before all that wait */
    if (!r->lost_ms)
        r->lost_ms = now;
    s->stats.recoveries++;
    request_again(s, r);
}

/* A running request that touches at least n of the guilty. */
static struct sched_request *find_touched(const struct sched *s, uint64_t guilty, int n)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->state == REQUEST_RUNNING && __builtin_popcountll(s->running[i]->ties & guilty) >= n)
            return s->running[i];
    }
    return NULL;
}

void recover_touched(struct sched *s, uint64_t guilty, int n, bool apart, const char *message)
{
    rebalance_untie(s, guilty);
    if (n > 1 && !find_touched(s, guilty, n))
        n = 1;
    for (struct sched_request *r; (r = find_touched(s, guilty, n));) {
        if (r->started)
            recover(s, r, apart, message);
        else
            admit_undo(s, r);
    }
    s->groups_changed = s->admit_changed = true;
}

/* ---- a worker comes while something is computed again ---- */

enum { HELP_BLOCKS = 8 }; /* left to compute, from which on it is worth the open block */

/* Blocks that are still to be computed again. */
static uint32_t blocks_left(const struct sched_request *r)
{
    uint32_t n = 0;
    for (uint32_t c = r->ahead / PLAN_BLOCK; c < r->told / PLAN_BLOCK; c++)
        n += !r->brought[c];
    return n;
}

void recover_help(struct sched *s, uint8_t slot)
{
    const struct worker *w = &s->workers[slot];
    uint64_t kin = 0;
    SCHED_EACH(i, s->ready)
    {
        kin |= s->workers[i].draining || memcmp(&s->workers[i].context, &w->context, sizeof w->context) != 0
                   ? 0
                   : SCHED_BIT(i);
    }
    for (uint32_t i = 0; i < s->n_running;) {
        struct sched_request *r = s->running[i];
        if (r->state == REQUEST_RUNNING && !r->preempting && r->started && !r->near && s->config.prefix_sharing &&
            !memcmp(&s->workers[r->home].context, &w->context, sizeof w->context) && request_recovers(r) &&
            place_spreads(s, r->n_rows, kin) && blocks_left(r) >= HELP_BLOCKS) {
            log_info("request %s sequence %llu: worker %u computes some of what was lost", r->label,
                     (unsigned long long)r->id, w->id);
            r->preempting = true; /* it is placed again as soon as no plan in flight names it */
            s->n_preempting++;
            request_settle(s, r);
        }
        if (i < s->n_running && s->running[i] == r)
            i++;
    }
}

/* ---- too few workers are left ---- */

void recover_strand(struct sched *s, const char *why)
{
    snprintf(s->stranded, sizeof s->stranded, "the workers that are left cannot hold the request: %s", why);
    for (struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r)) {
        if (r->give_up_ms || place_ever(s, r->n_prompt, r->n_rows, retain_bound(s, r->n_prompt, r->density)))
            continue;
        r->give_up_ms = sched_now_ms(s) + s->config.worker_wait_ms;
        s->n_stranded++;
    }
}

/* The next whose time is over, though workers may have come back; *first_out: of the others the first time. */
static struct sched_request *find_stranded(struct sched *s, int64_t now, int64_t *first_out)
{
    *first_out = INT64_MAX;
    s->n_stranded = 0;
    for (struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r)) {
        if (!r->give_up_ms)
            continue;
        if (place_ever(s, r->n_prompt, r->n_rows, retain_bound(s, r->n_prompt, r->density))) {
            r->give_up_ms = 0;
            continue;
        }
        if (r->give_up_ms <= now)
            return r;
        s->n_stranded++;
        *first_out = r->give_up_ms < *first_out ? r->give_up_ms : *first_out;
    }
    return NULL;
}

int64_t recover_check(struct sched *s)
{
    const int64_t now = sched_now_ms(s);
    int64_t first = INT64_MAX;
    if (!s->n_stranded)
        return SCHED_RUN_MS;
    for (struct sched_request *r; (r = find_stranded(s, now, &first));)
        request_end(s, r, FINISH_ERROR, ST_PEER, s->stranded);
    return first - now < SCHED_RUN_MS ? first - now : SCHED_RUN_MS;
}
