/* Step groups: workers tied by sequences step together; forming, epochs, and what happens when a step fails. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

struct group *group_new(struct sched *s, uint64_t members)
{
    struct group *g = sched_alloc(1, sizeof *g);
    g->members = members;
    g->epoch = ++s->epochs;
    g->n_members = place_order(s, members, g->slots);
    for (uint32_t i = 0; i < g->n_members; i++) {
        struct worker *w = &s->workers[g->slots[i]];
        g->ids[i] = w->id;
        w->group = g;
    }
    g->id = g->ids[0];
    g->leaf_blocks = s->workers[g->slots[0]].leaf_blocks;
    s->groups[s->n_groups++] = g;
    return g;
}

void group_free(struct sched *s, struct group *g)
{
    uint32_t i = 0;
    while (s->groups[i] != g)
        i++;
    s->groups[i] = s->groups[--s->n_groups];
    while (g->n_flights)
        flight_recycle(s, g->flights[--g->n_flights]);
    free(g->requests);
    free(g);
}

void group_remove(struct sched *s, struct group *g, const struct sched_request *r)
{
    uint32_t i = 0;
    if (r->state != REQUEST_RUNNING) /* else it comes again: no sign of others */
        g->company_ms = sched_now_ms(s);
    while (g->requests[i] != r)
        i++;
    memmove(g->requests + i, g->requests + i + 1, (--g->n_requests - i) * sizeof(struct sched_request *));
}

/* ---- forming ---- */

/* Workers joined by what the running sequences touch. -> how many components */
static uint32_t components(const struct sched *s, uint64_t parts_out[SCHED_SLOTS])
{
    uint32_t n = 0;
    SCHED_EACH(slot, s->ready)
    {
        parts_out[n++] = SCHED_BIT(slot);
    }
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->state != REQUEST_RUNNING)
            continue;
        uint64_t joined = s->running[i]->ties;
        uint32_t kept = 0;
        for (uint32_t j = 0; j < n; j++) {
            if (parts_out[j] & s->running[i]->ties)
                joined |= parts_out[j];
            else
                parts_out[kept++] = parts_out[j];
        }
        parts_out[kept++] = joined;
        n = kept;
    }
    return n;
}

static bool contains(const uint64_t *parts, uint32_t n, uint64_t part)
{
    while (n && parts[n - 1] != part)
        n--;
    return n > 0;
}

/* Workers that must change together: groups and components that overlap. */
static uint64_t overlap(const struct sched *s, const uint64_t *parts, uint32_t n, uint64_t all)
{
    for (uint64_t before = 0; before != all;) {
        before = all;
        for (uint32_t i = 0; i < s->n_groups; i++)
            all |= s->groups[i]->members & all ? s->groups[i]->members : 0;
        for (uint32_t i = 0; i < n; i++)
            all |= parts[i] & all ? parts[i] : 0;
    }
    return all;
}

static void request_join(struct sched *s, struct group *g, struct sched_request *r)
{
    sched_grow((void **)&g->requests, &g->requests_cap, g->n_requests + 1, sizeof(struct sched_request *));
    g->requests[g->n_requests++] = r;
    r->group = g;
    r->fresh = true;
    SCHED_EACH(slot, r->known & ~g->members)
    {
        outbox_push(&s->workers[slot].forgets, r->id);
    }
    r->known &= g->members;
}

/* The groups of these workers, all of them with nothing in flight, become one a component. */
static void reform(struct sched *s, const uint64_t *parts, uint32_t n, uint64_t all)
{
    for (uint32_t i = 0; i < s->n_groups;) {
        struct group *g = s->groups[i];
        if (!(g->members & all)) {
            i++;
            continue;
        }
        for (uint32_t j = 0; j < g->n_requests; j++)
            g->requests[j]->group = NULL;
        group_free(s, g);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!(parts[i] & all))
            continue;
        struct group *g = group_new(s, parts[i]);
        log_debug("group %u epoch %llu: %u workers", g->id, (unsigned long long)g->epoch, g->n_members);
    }
}

void groups_form(struct sched *s)
{
    uint64_t parts[SCHED_SLOTS];
    if (!s->groups_changed)
        return;
    const uint32_t n = components(s, parts);
    bool waits = false;
    for (uint32_t i = 0; i < s->n_groups; i++)
        s->groups[i]->hold = !contains(parts, n, s->groups[i]->members);
    for (uint32_t i = 0; i < s->n_groups;) {
        if (!s->groups[i]->hold) {
            i++;
            continue;
        }
        const uint64_t all = overlap(s, parts, n, s->groups[i]->members);
        bool quiet = true;
        for (uint32_t j = 0; j < s->n_groups; j++)
            quiet = quiet && (!(s->groups[j]->members & all) || !s->groups[j]->n_flights);
        if (quiet) {
            reform(s, parts, n, all);
            i = 0;
        } else {
            waits = true;
            i++;
        }
    }
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        struct group *g = s->workers[r->home].group;
        if (!r->group && r->state == REQUEST_RUNNING && !(r->ties & ~g->members))
            request_join(s, g, r);
    }
    s->groups_changed = waits;
}

/* ---- failing ---- */

static void flights_abandon(struct sched *s, struct group *g)
{
    for (uint32_t i = 0; i < g->n_flights; i++) {
        struct flight *f = g->flights[i];
        for (uint32_t j = 0; j < f->n_requests; j++)
            f->requests[j]->in_flight--;
        flight_recycle(s, f);
    }
    g->n_flights = 0;
    for (uint32_t i = 0; i < g->n_members; i++) {
        outbox_rewind(&s->workers[g->slots[i]].forgets);
        outbox_rewind(&s->dir.pools[g->slots[i]].drops);
    }
}

static void fence(struct sched *s, const struct group *g)
{
    const struct control_message m = { .kind = CONTROL_FENCE, .as.fence = { .group = g->id, .epoch = g->epoch } };
    for (uint32_t i = 0; i < g->n_members; i++) {
        if (s->workers[g->slots[i]].ready)
            s->ops.send(s->ctx, g->ids[i], &m);
    }
}

/* What is in flight is abandoned; what is committed stands and is planned on from there. */
static void epoch_raise(struct sched *s, struct group *g)
{
    flights_abandon(s, g);
    g->epoch = ++s->epochs;
    g->number = 0;
    g->abort.active = g->probing = false;
    fence(s, g);
    for (uint32_t i = 0; i < g->n_requests; i++) {
        struct sched_request *r = g->requests[i];
        r->ahead = r->done;
        r->fresh = true;
        request_retire(s, r, UINT64_MAX);
    }
    for (uint32_t i = 0; i < g->n_requests;) {
        struct sched_request *r = g->requests[i];
        if (r->state == REQUEST_ENDED || r->preempting)
            request_settle(s, r);
        else
            i++;
    }
}

void group_break(struct sched *s, struct group *g, uint64_t guilty, const char *message)
{
    log_warn("group %u epoch %llu is abandoned: %s", g->id, (unsigned long long)g->epoch, message);
    epoch_raise(s, g);
    recover_touched(s, guilty, 1, false, message);
}

/* The step of these workers failed: are they still there? A plan will show; one that fails that too is told to stop. */
static void suspect(struct sched *s, uint64_t guilty)
{
    SCHED_EACH(slot, guilty)
    {
        struct worker *w = &s->workers[slot];
        if (w->ready && w->suspect && w->pinged) {
            const struct control_message m = { .kind = CONTROL_STOP };
            const uint16_t id = w->id;
            s->ops.send(s->ctx, id, &m);
            sched_worker_lost(s, id, "it finishes no step and was told to stop");
        } else if (w->ready) {
            w->suspect = true;
            w->pinged = false;
        }
    }
}

/*
 * Who gave up waits for somebody, who may wait for somebody else. The fault is with those who were blamed and say nothing; else where the chain of
 * blame ends; where it closes (a link is cut, or one woke up too late) with who spoke last.
 */
static uint64_t abort_guilty(const struct group *g)
{
    const uint64_t silent = g->abort.blamed & ~g->abort.spoke;
    uint64_t seen = 0;
    uint8_t at = g->abort.first;
    if (silent)
        return silent;
    for (; !(seen & SCHED_BIT(at)); at = g->abort.blame[at]) {
        seen |= SCHED_BIT(at);
        if (g->abort.blame[at] == SCHED_NO_SLOT)
            return SCHED_BIT(at);
    }
    uint8_t last = at;
    for (uint8_t i = g->abort.blame[at]; i != at; i = g->abort.blame[i])
        last = g->abort.order[i] > g->abort.order[last] ? i : last;
    return SCHED_BIT(last);
}

static void abort_end(struct sched *s, struct group *g)
{
    char names[128], text[384];
    const uint64_t guilty = abort_guilty(g);
    snprintf(text, sizeof text, "%s failed: %s", sched_names(s, guilty, names, sizeof names), g->abort.reason);
    group_break(s, g, guilty, text);
    suspect(s, guilty);
}

static int64_t oldest_due(const struct group *g)
{
    const int64_t sent = g->flights[0]->sent_ms;
    return (sent > g->done_ms ? sent : g->done_ms) + g->flights[0]->deadline_ms;
}

static const char *late_text(const struct sched *s, const struct group *g, uint64_t guilty, char *text_out, size_t n)
{
    char names[128];
    sched_names(s, guilty, names, sizeof names);
    if (g->deaf)
        snprintf(text_out, n, "%s wait for messages of each other, and none came for %u ms", names, g->late_ms);
    else
        snprintf(text_out, n, "%s did not finish %s step within %u ms", names, guilty & (guilty - 1) ? "their" : "its",
                 g->late_ms);
    return text_out;
}

static void late_end(struct sched *s, struct group *g, uint64_t guilty)
{
    char text[256];
    group_break(s, g, guilty, late_text(s, g, guilty, text, sizeof text));
    suspect(s, guilty);
}

/* One of those who are late may keep the others waiting: who does not answer either is at fault. */
static void late_ask(struct sched *s, struct group *g)
{
    char text[256];
    log_warn("group %u epoch %llu is abandoned: %s", g->id, (unsigned long long)g->epoch,
             late_text(s, g, g->late, text, sizeof text));
    epoch_raise(s, g);
    planner_probe(s, g);
    g->probing = true;
}

/* All live: they do not reach each other, or the step was too long. Requests of one worker go on by themselves. */
void group_answered(struct sched *s, struct group *g)
{
    char text[256];
    g->probing = false;
    recover_touched(s, g->late, 2, true, late_text(s, g, g->late, text, sizeof text));
}

/*
 * Nobody of those whose results are missing computes: each waits for a message of another, since after the step was sent. Then no deadline has to be awaited:
 * some link is cut. -> for how long at least, 0: they do not
 */
static uint32_t deaf_for_ms(const struct sched *s, const struct group *g, int64_t now)
{
    const uint64_t pending = g->flights[0]->pending;
    int64_t last = 0;
    if (g->probing || !(pending & (pending - 1)))
        return 0;
    SCHED_EACH(slot, pending)
    {
        const struct worker *w = &s->workers[slot];
        if (!w->waits_from_ms || w->waits_from_ms < g->flights[0]->sent_ms)
            return 0;
        last = w->waits_from_ms > last ? w->waits_from_ms : last;
    }
    return (uint32_t)(now - last);
}

void sched_worker_waits(struct sched *s, uint16_t worker, uint32_t waits_ms)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return;
    const bool long_enough = s->config.waits_ms && waits_ms >= s->config.waits_ms;
    s->workers[slot].waits_from_ms = long_enough ? sched_now_ms(s) - waits_ms : 0;
}

/* -> was it broken */
static bool group_check(struct sched *s, struct group *g, int64_t now)
{
    if (g->abort.active && (now >= g->abort.until_ms || !(g->members & ~g->abort.spoke))) {
        abort_end(s, g);
        return true;
    }
    if (!g->n_flights || g->abort.active)
        return false;
    const uint32_t deaf_ms = now < oldest_due(g) ? deaf_for_ms(s, g, now) : 0;
    if (now < oldest_due(g) && !deaf_ms)
        return false;
    const uint64_t late = g->flights[0]->pending;
    if (g->probing) {
        late_end(s, g, late);
        return true;
    }
    g->late = late;
    g->late_ms = deaf_ms ? deaf_ms : g->flights[0]->deadline_ms;
    g->deaf = deaf_ms != 0;
    if (late & (late - 1))
        late_ask(s, g);
    else
        late_end(s, g, late);
    return true;
}

int64_t groups_check(struct sched *s)
{
    int64_t first = SCHED_RUN_MS;
    const int64_t now = sched_now_ms(s);
    for (uint32_t i = 0; i < s->n_groups;) {
        if (group_check(s, s->groups[i], now)) {
            i = 0;
            continue;
        }
        const struct group *g = s->groups[i++];
        const int64_t due = g->abort.active ? g->abort.until_ms : g->n_flights ? oldest_due(g) : now + SCHED_RUN_MS;
        if (due - now < first)
            first = due - now;
    }
    return first;
}

enum status sched_abort(struct sched *s, uint16_t worker, const struct control_abort *abort)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return ST_PROTOCOL;
    struct group *g = s->workers[slot].group;
    if (abort->epoch < g->epoch)
        return ST_OK; /* of a step that is over already */
    if (abort->epoch > g->epoch || abort->group != g->id)
        return ST_PROTOCOL;
    const uint8_t peer = abort->peer == UINT16_MAX ? SCHED_NO_SLOT : sched_slot(s, abort->peer);
    const bool blames = peer != SCHED_NO_SLOT && peer != slot && (SCHED_BIT(peer) & g->members);
    if (g->abort.active && (g->abort.spoke & SCHED_BIT(slot)))
        return ST_OK; /* it said so already */
    sched_enter(s);
    if (!g->abort.active) {
        const int64_t grace = s->config.step_deadline_ms / 4;
        memset(&g->abort, 0, sizeof g->abort);
        g->abort.active = true;
        g->abort.until_ms = sched_now_ms(s) + (grace < SCHED_ABORT_GRACE_MS ? grace : SCHED_ABORT_GRACE_MS);
        g->abort.first = slot;
        snprintf(g->abort.reason, sizeof g->abort.reason, "%s (reported by worker %u)",
                 abort->reason ? abort->reason : "no reason given", worker);
    }
    g->abort.order[slot] = (uint32_t)__builtin_popcountll(g->abort.spoke);
    g->abort.spoke |= SCHED_BIT(slot);
    g->abort.blame[slot] = blames ? peer : SCHED_NO_SLOT;
    g->abort.blamed |= blames ? SCHED_BIT(peer) : 0;
    sched_leave(s);
    return ST_OK;
}
