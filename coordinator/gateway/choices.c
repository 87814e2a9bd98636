#include "coordinator/gateway/choices.h"

#include <stdlib.h>

struct choices {
    struct generation_host *host;
    const struct choices_events *events;
    void *user;
    uint32_t n_open, busy; /* busy: callbacks on the stack */
    bool spread, gone;
    struct choices_done sums;
    struct refusal refusal;
    struct generation *g[WANT_CHOICES_MAX]; /* open ones, by index */
};

static void choices_enter(struct choices *c)
{
    c->busy++;
}

static void choices_exit(struct choices *c)
{
    if (--c->busy == 0 && c->gone)
        free(c);
}

static void cancel_open(struct choices *c)
{
    for (uint32_t i = 0; i < WANT_CHOICES_MAX; i++) {
        struct generation *g = c->g[i];
        c->g[i] = NULL;
        if (g)
            generation_cancel(g);
    }
    c->n_open = 0;
}

void choices_cancel(struct choices *c)
{
    if (c->gone)
        return;
    choices_enter(c);
    c->gone = true;
    cancel_open(c);
    choices_exit(c);
}

static void end(struct choices *c)
{
    cancel_open(c);
    c->gone = true;
    c->sums.refusal = &c->refusal;
    c->events->end(c->user, &c->sums);
}

const char *choices_id(const struct choices *c)
{
    return c->g[0]->id;
}

bool choices_streams(const struct choices *c)
{
    for (uint32_t i = 0; i < WANT_CHOICES_MAX; i++)
        if (c->g[i] && c->g[i]->running)
            return c->g[i]->want.stream;
    return false;
}

/* The prompt is computed: now the others find it. */
static void spread(struct choices *c, struct generation *first)
{
    if (c->spread)
        return;
    c->spread = true;
    for (uint32_t i = 1; i < first->want.n && !c->gone; i++) {
        if (generation_again(first, i, &c->g[i], &c->refusal)) {
            end(c);
            return;
        }
        c->n_open++;
    }
}

static void on_output(void *user, struct generation *g)
{
    struct choices *c = user;
    choices_enter(c);
    if (g->n_sampled)
        spread(c, g);
    if (!c->gone)
        c->events->output(c->user, g);
    choices_exit(c);
}

static void on_logits(void *user, struct generation *g, const struct result_row *row)
{
    struct choices *c = user;
    choices_enter(c);
    if (!c->gone && c->events->logits)
        c->events->logits(c->user, g, row);
    choices_exit(c);
}

static void sum(struct choices *c, const struct generation *g, const struct generation_done *done)
{
    c->sums.completion_tokens += done->completion_tokens;
    c->sums.recomputed_tokens += done->sched->recomputed_tokens;
    c->sums.kv_bytes_read += done->sched->kv_bytes_read;
    c->sums.kv_bytes_dense += done->sched->kv_bytes_dense;
    if (done->total_ms > c->sums.total_ms)
        c->sums.total_ms = done->total_ms;
    if (g->index)
        return;
    c->sums.prompt_tokens = done->prompt_tokens;
    c->sums.cached_tokens = done->cached_tokens;
    c->sums.queued_ms = done->sched->queued_ms;
    c->sums.prefill_ms = done->sched->prefill_ms;
    c->sums.decode_ms = done->sched->decode_ms;
}

static void on_done(void *user, struct generation *g, const struct generation_done *done)
{
    struct choices *c = user;
    choices_enter(c);
    c->g[g->index] = NULL;
    c->n_open--;
    if (done->refusal.status) {
        c->refusal = done->refusal;
        end(c);
    } else {
        spread(c, g); /* only the first can be the first to end */
        if (!c->gone) {
            sum(c, g, done);
            c->events->done(c->user, g, done);
        }
        if (!c->gone && !c->n_open)
            end(c);
    }
    choices_exit(c);
}

static const struct generation_events events = { .output = on_output, .logits = on_logits, .done = on_done };

enum status choices_start(struct generation_host *host, const struct generation_start *start,
                          const struct choices_events *choices_events, void *user, struct choices **choices_out,
                          struct refusal *r)
{
    struct choices *c = calloc(1, sizeof *c);
    if (!c) {
        if (start->source_free)
            start->source_free(start->source);
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    }
    c->host = host;
    c->events = choices_events;
    c->user = user;
    struct generation_start own = *start;
    own.events = &events;
    own.user = c;
    const enum status st = generation_start(host, &own, &c->g[0], r);
    if (st) {
        free(c);
        return st;
    }
    c->n_open = 1;
    *choices_out = c;
    return ST_OK;
}
