/*
 * How long who comes now would wait for its first step, by what was done lately: for the rows of prompts before its own, and for a place among those that run.
 * Who would wait longer than queue_wait_ms is refused at once, and who does, since the estimate was wrong, ends before anything is computed for it: under
 * more load than can be served those that are taken are served in time, and the rest can go elsewhere.
 */
#include "coordinator/sched/state.h"

#include <stdio.h>
#include <string.h>

enum {
    PACE_US = 2000000, /* sums are halved then, so that they speak of lately */
    PACE_TAKEN = 32,
};

void wait_stepped(struct sched *s, const struct flight *f, int64_t us)
{
    struct pace *p = &s->prompts_pace;
    if (!f->prompts_wait || us <= 0)
        return;
    p->n += f->n_prefill_rows;
    p->us += (double)us;
    if (p->us > PACE_US) {
        p->n /= 2;
        p->us /= 2;
    }
}

void wait_queued(struct sched *s)
{
    if (!s->n_queued)
        s->queue_us = sched_now_us(s);
}

void wait_taken(struct sched *s)
{
    struct pace *p = &s->taken_pace;
    const int64_t now = sched_now_us(s);
    p->n++;
    p->us += (double)(now - s->queue_us);
    s->queue_us = now;
    if (p->n > PACE_TAKEN) {
        p->n /= 2;
        p->us /= 2;
    }
}

void wait_found(struct sched *s, uint32_t prompt, uint32_t hit)
{
    struct pace *p = &s->missed_pace;
    p->n += prompt - hit;
    p->us += prompt;
    if (p->us > PACE_US) {
        p->n /= 2;
        p->us /= 2;
    }
}

/* Short prompts go before long ones: of a longer one no more is counted than its own length. */
static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t wait_estimate(const struct sched *s, uint32_t n_prompt, int32_t priority, const char *tenant)
{
    uint32_t waiting = 0, own = 0, tenants = 0;
    double queued_rows = 0, rows = 0;
    for (const struct tenant *t = s->tenants; t; t = t->next) {
        const bool self = tenant && !strcmp(t->name, tenant);
        uint32_t n = 0;
        for (const struct sched_request *r = t->queue; r; r = r->next) {
            if (r->priority > priority && !r->urgent)
                continue;
            n++;
            queued_rows += least(r->n_prompt, n_prompt);
        }
        waiting += n;
        own = self ? n : own;
        tenants += n && !self;
    }
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct sched_request *r = s->running[i];
        const uint32_t end = least(r->told > r->n_prompt ? r->told : r->n_prompt, r->n_rows);
        if (r->state == REQUEST_RUNNING && r->done < end)
            rows += least(end - r->done, n_prompt);
    }
    /* Tenants take turns: of the others' each comes at most once for each of its own, itself among these. */
    const uint32_t turns = (own + 1) * (tenants + 1) - 1, before = tenant ? least(waiting, turns) : waiting;
    const struct pace *taken = &s->taken_pace, *prompts = &s->prompts_pace, *missed = &s->missed_pace;
    if (waiting)
        rows += queued_rows * before / waiting * (missed->us > 0 ? missed->n / missed->us : 1);
    double us = prompts->n > 0 && s->n_groups ? rows * prompts->us / prompts->n / s->n_groups : 0;
    if (before && taken->n > 0 && before * taken->us / taken->n > us)
        us = before * taken->us / taken->n;
    return us < 1e3 * UINT32_MAX ? (uint32_t)(us / 1e3) : UINT32_MAX;
}

uint32_t sched_retry_ms(const struct sched *s)
{
    const uint32_t ms = wait_estimate(s, UINT32_MAX, INT32_MAX, NULL), bound = s->config.queue_wait_ms;
    return ms > bound ? ms - bound : 0;
}

/* Nothing was computed for it yet. */
static bool is_new(const struct sched_request *r)
{
    return !r->started && !r->n_preempted && !r->told && (r->state == REQUEST_WAITING || r->state == REQUEST_RUNNING);
}

static struct sched_request *find_over(const struct sched *s, int64_t now, int64_t *first_out)
{
    int64_t first = INT64_MAX;
    const int64_t bound = s->config.queue_wait_ms;
    for (struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r)) {
        if (is_new(r) && r->submitted_ms + bound <= now)
            return r;
        if (is_new(r) && r->submitted_ms + bound < first)
            first = r->submitted_ms + bound;
    }
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        if (is_new(r) && r->submitted_ms + bound <= now)
            return r;
        if (is_new(r) && r->submitted_ms + bound < first)
            first = r->submitted_ms + bound;
    }
    *first_out = first;
    return NULL;
}

int64_t wait_check(struct sched *s)
{
    const int64_t now = sched_now_ms(s);
    char text[128];
    if (!s->config.queue_wait_ms)
        return SCHED_RUN_MS;
    if (s->over_ms <= now) {
        for (struct sched_request *r; (r = find_over(s, now, &s->over_ms));) {
            snprintf(text, sizeof text, "the request waited %u ms, and others are still before it",
                     (uint32_t)(now - r->submitted_ms));
            request_end(s, r, FINISH_ERROR, ST_BUSY, text);
        }
    }
    return s->over_ms == INT64_MAX ? SCHED_RUN_MS : s->over_ms - now;
}
