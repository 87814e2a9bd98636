#include "coordinator/gateway/generation_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"

enum { PENDING_BYTES_MAX = 512 << 20 }; /* of bodies that wait for the helper */

static uint64_t draw_u64(void)
{
    static uint64_t n;
    uint64_t bits;
    if (getrandom(&bits, sizeof bits, GRND_NONBLOCK) != (ssize_t)sizeof bits)
        bits = rng_at((uint64_t)clock_ns(), ++n, (uint64_t)(uintptr_t)&n);
    return bits;
}

enum status generation_model_check(const struct generation_host *host, const char *model, struct refusal *r)
{
    if (!model || !*model || !strcmp(model, "default") || !strcmp(model, host->model_name))
        return ST_OK;
    return refuse_code(r, ST_NOT_FOUND, "model", "model_not_found", "model: '%.100s' is not served here; '%.100s' is",
                       model, host->model_name);
}

/* The answer is to begin with a call, whose mark is a control token, that no grammar can ask for: it goes before the answer. */
static enum status prepare_mark(struct generation_private *p, struct refusal *r)
{
    int32_t *more = realloc(p->prepared.prompt, (p->prepared.n_prompt + 1) * sizeof *more);
    if (!more)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    p->prepared.prompt = more;
    more[p->prepared.n_prompt++] = tools_mark(p->prepared.tools);
    return ST_OK;
}

/* What it writes is looked at by nobody until it is done; likewise those below. Any thread. */
static bool prepare_want(struct generation *g)
{
    struct generation_private *p = g->p;
    struct want *w = &g->want;
    struct refusal *r = &p->prepared.refusal;
    if (p->parse(w, r))
        return false;
    const enum status st = stop_new(w->stops, w->n_stops, &p->stop);
    if (st)
        refuse(r, st, "stop", "stop: %s", status_text(st));
    return !st;
}

static void prepare_prompt(struct generation *g)
{
    struct generation_private *p = g->p;
    const struct generation_host *host = p->host;
    struct refusal *r = &p->prepared.refusal;
    if (want_tokenize(&g->want, host->tokenizer, host->model, host->positions_max, &p->prepared.prompt,
                      &p->prepared.n_prompt, r))
        return;
    if (p->prepared.tools && tools_marked(p->prepared.tools))
        prepare_mark(p, r);
}

/* The helper's thread. */
static void prepare_grammar(void *arg)
{
    struct generation *g = arg;
    struct generation_private *p = g->p;
    const struct want *w = &g->want;
    struct refusal *r = &p->prepared.refusal;
    if (w->tools && tools_new(w, p->host->tokenizer, &p->prepared.tools, r))
        return;
    if (!grammar_cache_get(p->host->grammars, w, p->prepared.tools, &p->prepared.grammar, &p->prepared.vocabulary, r))
        prepare_prompt(g);
}

/* The helper's thread. */
static void prepare(void *arg)
{
    struct generation *g = arg;
    if (!prepare_want(g))
        return;
    if (grammar_wanted(&g->want))
        prepare_grammar(g);
    else
        prepare_prompt(g);
}

static const char *prompt_field(const struct want *w)
{
    return w->kind == WANT_PROMPT_CHAT ? "messages" : "prompt";
}

/* The count that was asked for, or what is left of the context and of the pools. */
static enum status settle_length(struct generation *g, struct refusal *r)
{
    const struct generation_host *host = g->p->host;
    const char *field = prompt_field(&g->want);
    if (!g->n_prompt)
        return refuse(r, ST_INVALID, field, "%s must not be empty", field);
    g->max_tokens = g->want.max_tokens;
    if (!g->want.has_max_tokens) {
        const uint64_t fit = sched_positions_fit(host->sched);
        const uint64_t room = fit && fit < host->positions_max ? fit : host->positions_max;
        const uint64_t rest = room > g->n_prompt ? room - g->n_prompt : 1;
        g->max_tokens =
            (uint32_t)(host->max_tokens_default && host->max_tokens_default < rest ? host->max_tokens_default : rest);
    }
    if (g->n_prompt + g->max_tokens > host->positions_max)
        return refuse_code(r, ST_TOO_LARGE, field, "context_length_exceeded",
                           "the context of this server holds %u tokens; %zu were asked for (%zu in %s, %u to generate)",
                           host->positions_max, g->n_prompt + g->max_tokens, g->n_prompt, field, g->max_tokens);
    return ST_OK;
}

/* What was told before, if the answer can go on behind it: what is said of each row of the prompt comes from computing it. */
static enum status replay(struct generation *g, struct refusal *r)
{
    struct generation_private *p = g->p;
    const struct want *w = &g->want;
    if (g->index >= p->n_told || !p->told[g->index].n || w->score || w->logits || g->max_tokens < 2)
        return ST_OK;
    const struct generation_told *told = &p->told[g->index];
    const size_t n = told->n < g->max_tokens ? told->n : g->max_tokens - 1;
    p->told_ids = calloc(n, sizeof *p->told_ids);
    if (!p->told_ids)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    for (size_t i = 0; i < n; i++)
        p->told_ids[i] = told->rows[i].token;
    return generation_replay(g, told->rows, n, r);
}

/* Prompt, wants, seed and edits are there. */
static enum status submit(struct generation *g, struct refusal *r)
{
    struct generation_private *p = g->p;
    struct generation_host *host = p->host;
    const struct want *w = &g->want;
    const struct model_config *config = model_config(host->model);
    p->stream = token_stream_new(host->tokenizer);
    if (w->score)
        g->scores = calloc(g->n_prompt, sizeof *g->scores);
    if (!p->stream || (w->score && !g->scores))
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    token_stream_follow(p->stream, g->prompt, g->n_prompt);
    const enum status replayed = replay(g, r);
    if (replayed)
        return replayed;
    const struct sched_want want = {
        .tokens = g->prompt,
        .n_tokens = (uint32_t)g->n_prompt,
        .max_tokens = g->max_tokens,
        .eos = config->eos,
        .n_eos = w->ignore_eos ? 0 : config->n_eos,
        .sampling = { w->temperature, w->top_p, w->top_k, g->seed, w->min_p },
        .density = w->density,
        .salt = w->salted ? &w->salt : NULL,
        .n_top = w->n_top,
        .score = w->score,
        .logits = w->logits,
        .logits_from = w->logits_from,
        .forced = w->forced,
        .n_forced = (uint32_t)w->n_forced,
        .told = p->told_ids,
        .n_told = p->told_ids ? (uint32_t)g->n_sampled : 0,
        .edits = p->edits,
        .history = p->edits && edits_history(p->edits),
        .label = g->label,
        .priority = w->priority,
        .tenant = w->tenant,
        .deadline_ms = w->timeout_ms ? p->start_us / 1000 + w->timeout_ms : 0,
    };
    _Static_assert((int)WANT_TENANT_MAX <= (int)SCHED_TENANT_MAX, "the scheduler takes any name");
    struct error err = { 0 };
    const enum status st = sched_submit(host->sched, &want, &generation_sched_events, g, &p->request, &err);
    free(p->told_ids);
    p->told_ids = NULL;
    if (st) {
        if (st == ST_BUSY)
            r->retry_s = generation_retry_s(host);
        return refuse_code(r, st, st == ST_TOO_LARGE || st == ST_INVALID ? prompt_field(w) : "",
                           st == ST_TOO_LARGE ? "context_length_exceeded" : "", "%s",
                           *err.text ? err.text : status_text(st));
    }
    p->stage = STAGE_RUNNING;
    g->running = true;
    if (g->n_sampled)
        generation_tell(g); /* what was replayed */
    want_drop_source(&g->want);
    host->kick(host->ctx);
    return ST_OK;
}

/* Room for the choices to come, while the host's limit can still say so at once. */
static enum status choices_fit(const struct generation *g, struct refusal *r)
{
    const struct generation_host *host = g->p->host;
    if (!host->requests_max || g->want.n - 1 <= host->requests_max - host->n_open)
        return ST_OK;
    return refuse_code(r, ST_BUSY, "n", "too_many_requests", "n: %u choices are over the limit of %u open; try again",
                       g->want.n, host->requests_max);
}

static enum status begin(struct generation *g, struct refusal *r)
{
    struct generation_private *p = g->p;
    const struct want *w = &g->want;
    const struct model_config *config = model_config(p->host->model);
    enum status st = generation_model_check(p->host, w->model, r);
    if (!st)
        st = settle_length(g, r);
    if (!st)
        st = choices_fit(g, r);
    if (st)
        return st;
    if (w->density && !p->host->selects)
        return refuse(r, ST_INVALID, "density", "density: this deployment reads everything (selector dense)");
    if (w->density && p->host->windowed)
        return refuse(r, ST_INVALID, "density",
                      "density: this deployment reads a window of positions (selector streaming)");
    for (size_t i = 0; i < w->n_forced; i++)
        if (w->forced[i] < 0 || (uint32_t)w->forced[i] >= config->n_vocab)
            return refuse(r, ST_INVALID, "forced_token_ids", "forced_token_ids: %d is not in the vocabulary",
                          (int)w->forced[i]);
    g->seed = w->has_seed ? w->seed : p->has_seed ? p->seed : draw_u64();
    const struct edits_start edits = { .want = w,
                                       .prompt = g->prompt,
                                       .n_prompt = g->n_prompt,
                                       .eos = config->eos,
                                       .n_eos = w->ignore_eos ? 0 : config->n_eos,
                                       .n_vocab = config->n_vocab,
                                       .grammar = p->prepared.grammar,
                                       .vocabulary = p->prepared.vocabulary,
                                       .tokenizer = p->host->tokenizer };
    st = edits_new(&edits, &p->edits, r);
    return st ? st : submit(g, r);
}

/* On the loop again, prepared or refused. */
static void prepared(struct generation *g)
{
    struct generation_private *p = g->p;
    generation_enter(g);
    p->held = false;
    if (!p->gone) {
        g->prompt = p->prepared.prompt;
        g->n_prompt = p->prepared.n_prompt;
        g->tools = p->prepared.tools;
        p->prepared.prompt = NULL;
        p->prepared.tools = NULL;
        p->refusal = p->prepared.refusal;
        if (p->refusal.status || begin(g, &p->refusal))
            generation_finish(g, NULL, false);
    }
    generation_exit(g);
}

/* The helper ends before the host does; a post to the loop may outlive it, then the generation is gone already. */
static void on_helped(void *arg)
{
    struct generation *g = arg;
    g->p->host->pending_bytes -= g->p->source_bytes;
    prepared(g);
}

/* Grammars take too long for the loop. */
static void on_posted(void *arg)
{
    struct generation *g = arg;
    if (!g->p->gone && prepare_want(g)) {
        if (!grammar_wanted(&g->want))
            prepare_prompt(g);
        else if (!helper_run(g->p->host->helper, prepare_grammar, on_helped, g))
            return;
        else
            refuse(&g->p->prepared.refusal, ST_NO_MEMORY, "", "out of memory");
    }
    prepared(g);
}

static struct generation *generation_new(const struct generation_start *start)
{
    struct generation *g = calloc(1, sizeof *g);
    struct generation_private *p = calloc(1, sizeof *p);
    if (!g || !p) {
        free(g);
        free(p);
        if (start->source_free)
            start->source_free(start->source);
        return NULL;
    }
    g->p = p;
    want_init(&g->want);
    if (start->owner) {
        want_set_tenant(&g->want, start->owner, strlen(start->owner));
        want_add_salt(&g->want, "owner", start->owner, strlen(start->owner));
    }
    if (start->tenant)
        want_set_tenant(&g->want, start->tenant, strlen(start->tenant));
    g->want.timeout_ms = start->timeout_ms;
    g->want.source = start->source;
    g->want.source_free = start->source_free;
    p->events = start->events;
    p->user = start->user;
    p->parse = start->parse;
    p->start_us = clock_us();
    p->has_seed = start->has_seed;
    p->seed = start->seed;
    p->told = start->told;
    p->n_told = start->n_told;
    p->named = start->id != NULL;
    g->created_s = start->created_s ? start->created_s : (int64_t)time(NULL);
    if (start->id)
        snprintf(g->id, sizeof g->id, "%s", start->id);
    else
        snprintf(g->id, sizeof g->id, "%s%016llx%016llx", start->id_prefix, (unsigned long long)draw_u64(),
                 (unsigned long long)draw_u64());
    const bool named = generation_label_ok(start->label);
    snprintf(g->label, sizeof g->label, "%s", named ? start->label : g->id);
    if (named)
        log_debug("request %s: its answer is %s", g->label, g->id);
    return g;
}

bool generation_label_ok(const char *label)
{
    size_t n = 0;
    while (label && label[n] > ' ' && label[n] <= '~' && !strchr("\"'\\:", label[n]))
        n++;
    return n && !label[n] && n < sizeof((struct generation *)NULL)->label;
}

enum status generation_may_wait(const struct generation_host *host, size_t source_bytes, struct refusal *r)
{
    if (source_bytes <= GENERATION_INLINE_BYTES_MAX || host->pending_bytes + source_bytes <= PENDING_BYTES_MAX)
        return ST_OK;
    return refuse_code(r, ST_BUSY, "", "too_many_requests", "too many large prompts wait already; try again");
}

static enum status admit(const struct generation_host *host, size_t source_bytes, struct refusal *r)
{
    if (host->draining)
        return refuse_code(r, ST_CANCELLED, "", "shutting_down", "the server is shutting down");
    if (host->standby[0])
        return refuse_code(r, ST_CANCELLED, "", "standby", "%s", host->standby);
    if (host->requests_max && host->n_open >= host->requests_max)
        return refuse_code(r, ST_BUSY, "", "too_many_requests", "%u requests are open, which is the limit; try again",
                           host->n_open);
    return generation_may_wait(host, source_bytes, r);
}

static void host_add(struct generation_host *host, struct generation *g)
{
    struct generation_private *p = g->p;
    p->link = &host->first;
    p->next = host->first;
    if (p->next)
        p->next->p->link = &p->next;
    host->first = g;
    host->n_open++;
}

enum status generation_start(struct generation_host *host, const struct generation_start *start,
                             struct generation **generation_out, struct refusal *r)
{
    const enum status st = admit(host, start->source_bytes, r);
    if (st) {
        metric_add(host->metrics.outcome[generation_outcome_of(r)], 1);
        if (start->source_free)
            start->source_free(start->source);
        return st;
    }
    struct generation *g = generation_new(start);
    if (!g)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    struct generation_private *p = g->p;
    p->host = host;
    p->held = true;
    if (start->source_bytes <= GENERATION_INLINE_BYTES_MAX) {
        loop_post(host->loop, on_posted, g);
    } else {
        p->source_bytes = start->source_bytes;
        if (helper_run(host->helper, prepare, on_helped, g)) {
            generation_free(g);
            return refuse(r, ST_NO_MEMORY, "", "out of memory");
        }
        host->pending_bytes += p->source_bytes;
    }
    host_add(host, g);
    *generation_out = g;
    return ST_OK;
}

/* What another choice takes over from the first. */
static enum status again_fill(const struct generation *first, struct generation *g)
{
    struct generation_private *p = g->p;
    const struct generation_private *from = first->p;
    g->want = first->want; /* its source was dropped when it was submitted */
    g->max_tokens = first->max_tokens;
    g->prompt = malloc(first->n_prompt * sizeof *g->prompt);
    p->stop = stop_again(from->stop);
    p->edits = from->edits ? edits_again(from->edits) : NULL;
    if (!g->prompt || !p->stop || (from->edits && !p->edits))
        return ST_NO_MEMORY;
    memcpy(g->prompt, first->prompt, first->n_prompt * sizeof *g->prompt);
    g->n_prompt = first->n_prompt;
    g->tools = first->tools ? tools_ref(first->tools) : NULL;
    g->created_s = first->created_s;
    memcpy(g->id, first->id, sizeof g->id);
    return ST_OK;
}

enum status generation_again(const struct generation *first, uint32_t index, struct generation **generation_out,
                             struct refusal *r)
{
    struct generation_host *host = first->p->host;
    enum status st = admit(host, 0, r);
    if (st)
        return st;
    const struct generation_start start = { .id_prefix = "",
                                            .told = first->p->told,
                                            .n_told = first->p->n_told,
                                            .events = first->p->events,
                                            .user = first->p->user };
    struct generation *g = generation_new(&start);
    if (!g)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    g->p->host = host;
    g->p->named = first->p->named;
    memcpy(g->label, first->label, sizeof g->label);
    g->index = index;
    g->seed = first->seed + index;
    st = again_fill(first, g);
    if (st)
        refuse(r, st, "", "out of memory");
    else
        st = submit(g, r);
    if (st) {
        generation_free(g);
        return st;
    }
    host_add(host, g);
    *generation_out = g;
    return ST_OK;
}
