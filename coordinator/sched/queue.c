/*
 * Who waits, and who comes next: by class of priority; within one by what tenants were served (virtual token counters, arXiv:2401.00588); of a tenant's by
 * arrival, but for those that share a prefix with what runs.
 */
#include "coordinator/sched/state.h"

#include <stdlib.h>
#include <string.h>

enum {
    TENANTS_IDLE_MAX = 256, /* kept with what they were served, though nothing of theirs is open */
    NEAR_LOOK = 16,         /* how far behind the first of a tenant one is looked for that shares a prefix, */
    NEAR_OVERTAKES = 8,     /* how often one is overtaken so at most, */
    NEAR_BLOCKS = 4,        /* and blocks that it must share more */
    PROMOTE_MS = 100,       /* between looks at who has waited long */
};

/* ---- tenants ---- */

static double weight_of(const struct sched *s, const char *name)
{
    for (uint32_t i = 0; i < s->n_weights; i++)
        if (!strcmp(s->weights[i].name, name))
            return s->weights[i].weight;
    return 1;
}

static void idle_forget(struct sched *s)
{
    struct tenant **least = NULL;
    uint32_t n = 0;
    for (struct tenant **at = &s->tenants; *at; at = &(*at)->next) {
        if ((*at)->n_open)
            continue;
        n++;
        if (!least || (*at)->served < (*least)->served)
            least = at;
    }
    if (n < TENANTS_IDLE_MAX)
        return;
    struct tenant *t = *least;
    *least = t->next;
    free(t);
}

struct tenant *tenant_open(struct sched *s, const char *name)
{
    struct tenant *t = s->tenants;
    while (t && strcmp(t->name, name) != 0)
        t = t->next;
    if (!t) {
        idle_forget(s);
        t = sched_alloc(1, sizeof *t);
        strncpy(t->name, name, sizeof t->name - 1);
        t->weight = weight_of(s, name);
        t->next = s->tenants;
        s->tenants = t;
    }
    t->n_open++;
    return t;
}

void tenant_charge(struct tenant *t, uint64_t cost)
{
    t->served += (double)cost / t->weight;
}

/* "name=weight,...": weights of 0.001 to 1000. */
enum status tenant_weights_read(struct sched *s, const char *text)
{
    while (text && *text) {
        struct tenant_weight w = { .weight = 0 };
        const size_t n = strcspn(text, "=");
        char *end;
        if (!n || n >= sizeof w.name || !text[n])
            return ST_INVALID;
        memcpy(w.name, text, n);
        w.weight = strtod(text + n + 1, &end);
        if (end == text + n + 1 || (*end && *end != ',') || !(w.weight >= 0.001 && w.weight <= 1000))
            return ST_INVALID;
        sched_grow((void **)&s->weights, &s->weights_cap, s->n_weights + 1, sizeof *s->weights);
        s->weights[s->n_weights++] = w;
        text = *end ? end + 1 : end;
    }
    return ST_OK;
}

void tenants_free(struct sched *s)
{
    for (struct tenant *t = s->tenants, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    free(s->weights);
}

/* ---- queues ---- */

static bool before(const struct sched_request *a, const struct sched_request *b)
{
    if (a->urgent != b->urgent)
        return a->urgent;
    if (!a->urgent && a->priority != b->priority)
        return a->priority < b->priority;
    return a->arrival < b->arrival;
}

/* Who was away has no claim to what was not asked for meanwhile. */
static void tenant_lift(struct sched *s, struct tenant *t)
{
    double least = s->served_last;
    bool any = false;
    for (const struct tenant *other = s->tenants; other; other = other->next) {
        if (other->n_queued && (!any || other->served < least)) {
            least = other->served;
            any = true;
        }
    }
    if (t->served < least)
        t->served = least;
}

static void tenant_insert(struct tenant *t, struct sched_request *r)
{
    struct sched_request **at = &t->queue;
    if (t->last && before(t->last, r))
        at = &t->last->next;
    while (*at && before(*at, r))
        at = &(*at)->next;
    r->next = *at;
    *at = r;
    if (!r->next)
        t->last = r;
    t->n_queued++;
}

static void tenant_take(struct tenant *t, struct sched_request *r)
{
    struct sched_request **at = &t->queue, *previous = NULL;
    while (*at != r) {
        previous = *at;
        at = &(*at)->next;
    }
    *at = r->next;
    if (t->last == r)
        t->last = previous;
    r->next = NULL;
    t->n_queued--;
}

void queue_add(struct sched *s, struct sched_request *r)
{
    if (!r->tenant->n_queued)
        tenant_lift(s, r->tenant);
    wait_queued(s);
    r->queued_ms = sched_now_ms(s);
    tenant_insert(r->tenant, r);
    s->n_queued++;
    s->admit_changed = true;
}

void queue_remove(struct sched *s, struct sched_request *r)
{
    tenant_take(r->tenant, r);
    if (!r->tenant->n_queued)
        s->served_last = r->tenant->served;
    s->n_awaiting -= r->awaits;
    r->awaits = false;
    r->waited_ms += sched_now_ms(s) - r->queued_ms;
    s->n_queued--;
}

struct sched_request *queue_each(const struct sched *s, const struct sched_request *r)
{
    const struct tenant *t = r ? r->tenant->next : s->tenants;
    if (r && r->next)
        return r->next;
    while (t && !t->queue)
        t = t->next;
    return t ? t->queue : NULL;
}

void queue_promote(struct sched *s)
{
    const int64_t now = sched_now_ms(s);
    if (!s->config.starve_ms || !s->n_queued || now < s->promote_ms)
        return;
    s->promote_ms = now + PROMOTE_MS;
    for (struct tenant *t = s->tenants; t; t = t->next) {
        for (struct sched_request *r = t->queue, *next; r; r = next) {
            next = r->next;
            if (r->urgent || r->waited_ms + now - r->queued_ms < s->config.starve_ms)
                continue;
            tenant_take(t, r);
            r->urgent = true;
            tenant_insert(t, r);
            s->admit_changed = true;
        }
    }
}

/* ---- prefixes ---- */

uint32_t queue_common(const struct sched_request *a, const struct sched_request *b)
{
    const uint32_t n = a->n_ids < b->n_prompt / PLAN_BLOCK ? a->n_ids : b->n_prompt / PLAN_BLOCK;
    uint32_t i = 0;
    if (a->density != b->density || memcmp(&a->salt, &b->salt, sizeof a->salt) != 0)
        return 0;
    while (i < n && !memcmp(a->tokens + i * PLAN_BLOCK, b->tokens + i * PLAN_BLOCK, PLAN_BLOCK * sizeof *a->tokens))
        i++;
    return i;
}

/* Blocks that it shares with one that runs. */
static uint32_t nearness(const struct sched *s, const struct sched_request *r)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const uint32_t n = s->running[i]->state == REQUEST_RUNNING ? queue_common(r, s->running[i]) : 0;
        most = n > most ? n : most;
    }
    return most;
}

static struct sched_request *not_awaiting(struct sched_request *r)
{
    while (r && r->awaits)
        r = r->next;
    return r;
}

/* Of a tenant's, which begins at `first`: it, or one that arrived a little later and shares more with what runs. */
static struct sched_request *nearest(const struct sched *s, struct sched_request *first)
{
    if (!s->config.prefix_sharing || first->urgent || first->overtaken >= NEAR_OVERTAKES || !first->next)
        return first;
    struct sched_request *best = first;
    uint32_t most = nearness(s, first) + NEAR_BLOCKS - 1;
    struct sched_request *r = not_awaiting(first->next);
    for (uint32_t i = 0; i < NEAR_LOOK && r && r->priority == first->priority; i++, r = not_awaiting(r->next)) {
        const uint32_t n = r->n_ids > most ? nearness(s, r) : 0;
        if (n > most) {
            best = r;
            most = n;
        }
    }
    return best;
}

struct sched_request *queue_next(struct sched *s)
{
    struct sched_request *best = NULL;
    for (const struct tenant *t = s->tenants; t; t = t->next) {
        struct sched_request *r = not_awaiting(t->queue);
        if (!r)
            continue;
        const bool alike = best && r->urgent == best->urgent && (r->urgent || r->priority == best->priority);
        if (!best || (!alike && before(r, best)) ||
            (alike && (r->urgent || t->served == best->tenant->served ? r->arrival < best->arrival
                                                                      : t->served < best->tenant->served)))
            best = r;
    }
    return best ? nearest(s, best) : NULL;
}

void queue_overtake(struct sched_request *r)
{
    struct sched_request *first = not_awaiting(r->tenant->queue);
    if (first != r)
        first->overtaken++;
}
