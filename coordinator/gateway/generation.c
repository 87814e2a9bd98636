#include "coordinator/gateway/generation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "coordinator/gateway/text.h"

enum { PENDING_BYTES_MAX = 512 << 20 }; /* of bodies that wait for the helper */

enum stage { STAGE_PREPARING, STAGE_RUNNING, STAGE_ENDED };

struct generation_private {
    struct generation_host *host;
    struct generation *next, **link; /* in host->first while open */
    const struct generation_events *events;
    void *user;
    generation_parse *parse;
    struct refusal refusal;
    struct {
        struct refusal refusal;
        int32_t *prompt;
        size_t n_prompt;
    } prepared; /* as want: the helper's own until it is done */
    enum stage stage;
    bool held;     /* a post or the helper still has it */
    bool silent;   /* cancelled: no more events */
    uint32_t busy; /* callbacks on the stack: freed by the outermost */
    bool gone;     /* to be freed */
    size_t source_bytes;
    struct token_stream *stream;
    struct stop *stop;
    bool stop_found;
    struct sched_request *request;
    int64_t start_us, first_us, last_us;
};

static uint64_t draw_u64(void)
{
    static uint64_t n;
    uint64_t bits;
    if (getrandom(&bits, sizeof bits, GRND_NONBLOCK) != (ssize_t)sizeof bits)
        bits = rng_at((uint64_t)clock_ns(), ++n, (uint64_t)(uintptr_t)&n);
    return bits;
}

static void generation_free(struct generation *g)
{
    if (!g)
        return;
    struct generation_private *p = g->p;
    if (p) {
        token_stream_free(p->stream);
        stop_free(p->stop);
        free(p->prepared.prompt);
        free(p);
    }
    want_free(&g->want);
    free(g->prompt);
    free(g->tokens);
    free(g->tops);
    free(g->text);
    free(g->scores);
    free(g);
}

/* Leaves the list of open ones; the memory goes when nothing holds it any more. */
static void generation_leave(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->gone)
        return;
    p->gone = true;
    *p->link = p->next;
    if (p->next)
        p->next->p->link = p->link;
    p->host->n_open--;
}

static void generation_enter(struct generation *g)
{
    g->p->busy++;
}

static void generation_exit(struct generation *g)
{
    if (--g->p->busy == 0 && g->p->gone && !g->p->held)
        generation_free(g);
}

/* ---- the end ---- */

static enum generation_outcome outcome_of(const struct refusal *r)
{
    switch (r->status) {
    case ST_OK:
        return OUTCOME_OK;
    case ST_BUSY:
    case ST_CANCELLED:
        return OUTCOME_BUSY;
    case ST_INVALID:
    case ST_UNSUPPORTED:
    case ST_TOO_LARGE:
    case ST_NOT_FOUND:
        return OUTCOME_REFUSED;
    default:
        return OUTCOME_FAILED;
    }
}

static void measure_end(struct generation *g, enum generation_outcome outcome, uint32_t cached)
{
    struct generation_private *p = g->p;
    struct generation_host *host = p->host;
    metric_add(host->metrics.outcome[outcome], 1);
    metric_observe(host->metrics.duration, 1e-6 * (double)(clock_us() - p->start_us));
    if (g->n_sampled > 1)
        metric_observe(host->metrics.tpot, 1e-6 * (double)(p->last_us - p->first_us) / (double)(g->n_sampled - 1));
    metric_add(host->metrics.completion_tokens, g->n_sampled);
    if (p->request)
        metric_add(host->metrics.prompt_tokens, g->n_prompt);
    metric_add(host->metrics.cached_tokens, cached);
}

static void generation_finish(struct generation *g, const struct sched_done *sched, bool stopped)
{
    struct generation_private *p = g->p;
    const struct generation_done done = {
        .refusal = p->refusal,
        .stopped = stopped,
        .sched = sched,
        .total_ms = (clock_us() - p->start_us) / 1000,
        .prompt_tokens = (uint32_t)g->n_prompt,
        .cached_tokens = sched ? sched->cached_tokens : 0,
        .completion_tokens = (uint32_t)g->n_sampled,
    };
    p->stage = STAGE_ENDED;
    measure_end(g, outcome_of(&p->refusal), done.cached_tokens);
    log_debug("request %s ends: %s, %zu prompt tokens, %u cached, %zu generated, %lld ms", g->id,
              p->refusal.status ? p->refusal.message : "ok", g->n_prompt, done.cached_tokens, g->n_sampled,
              (long long)done.total_ms);
    generation_enter(g);
    generation_leave(g);
    if (!p->silent)
        p->events->done(p->user, g, &done);
    generation_exit(g);
}

void generation_cancel(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->silent || p->stage == STAGE_ENDED)
        return;
    p->silent = true;
    generation_enter(g);
    if (p->stage == STAGE_RUNNING) {
        struct generation_host *host = p->host;
        sched_cancel(host->sched, p->request, FINISH_CANCELLED); /* calls on_done */
        host->kick(host->ctx);
    } else {
        p->stage = STAGE_ENDED;
        metric_add(p->host->metrics.outcome[OUTCOME_CANCELLED], 1);
        generation_leave(g);
    }
    generation_exit(g);
}

static void generation_end(struct generation *g, const char *why)
{
    struct generation_private *p = g->p;
    if (p->silent || p->stage == STAGE_ENDED)
        return;
    generation_enter(g);
    refuse(&p->refusal, ST_CANCELLED, "", "%s", why);
    if (p->stage == STAGE_RUNNING)
        sched_cancel(p->host->sched, p->request, FINISH_CANCELLED);
    else
        generation_finish(g, NULL, false);
    generation_exit(g);
}

void generation_end_all(struct generation_host *host, const char *why)
{
    /* each leaves the list as it ends; a callback may end others */
    while (host->first)
        generation_end(host->first, why);
}

/* ---- what the scheduler says ---- */

static bool grow(void **items, size_t *room, size_t need, size_t bytes)
{
    if (need <= *room)
        return true;
    size_t more = *room ? *room : 64;
    while (more < need)
        more *= 2;
    void *p = realloc(*items, more * bytes);
    if (!p)
        return false;
    *items = p;
    *room = more;
    return true;
}

static bool keep_top(struct generation *g, const struct result_row *row, uint8_t *n_out, size_t *from_out)
{
    const size_t n = row->n_top < g->want.n_top ? row->n_top : g->want.n_top;
    if (!grow((void **)&g->tops, &g->tops_room, g->n_tops + n, sizeof *g->tops))
        return false;
    if (n)
        memcpy(g->tops + g->n_tops, row->top, n * sizeof *row->top);
    *n_out = (uint8_t)n;
    *from_out = g->n_tops;
    g->n_tops += n;
    return true;
}

static bool is_end(const struct generation *g, int32_t id)
{
    const struct model_config *config = model_config(g->p->host->model);
    for (uint32_t i = 0; i < config->n_eos && !g->want.ignore_eos; i++)
        if (config->eos[i] == id)
            return true;
    return false;
}

static bool text_append(struct generation *g, const char *piece, size_t bytes)
{
    struct generation_private *p = g->p;
    if (!bytes)
        return true;
    if (!grow((void **)&g->text, &g->text_room, g->text_all + bytes, 1))
        return false;
    memcpy(g->text + g->text_all, piece, bytes);
    g->text_all += bytes;
    size_t end;
    if (stop_push(p->stop, piece, bytes, &end)) {
        p->stop_found = true;
        g->text_all = end;
    }
    return true;
}

/* What is settled goes out: all but a possible beginning of a stop string. Tokens from the stop string on are left out. */
static void settle(struct generation *g, bool all)
{
    const struct generation_private *p = g->p;
    g->n_text = p->stop_found || all ? g->text_all : g->text_all - stop_held(p->stop);
    for (; g->n_tokens < g->n_sampled; g->n_tokens++) {
        const struct generation_token *t = &g->tokens[g->n_tokens];
        if (p->stop_found ? t->text_from >= g->n_text : t->text_to > g->n_text)
            break;
    }
}

static bool token_append(struct generation *g, const struct result_row *row)
{
    struct generation_private *p = g->p;
    if (!grow((void **)&g->tokens, &g->tokens_room, g->n_sampled + 1, sizeof *g->tokens))
        return false;
    struct generation_token *t = &g->tokens[g->n_sampled];
    *t = (struct generation_token){ .id = row->token, .logprob = row->logprob, .text_from = g->text_all };
    if (!keep_top(g, row, &t->n_top, &t->top_from))
        return false;
    size_t bytes = 0;
    const char *piece = is_end(g, row->token) ? NULL : token_stream_push(p->stream, row->token, &bytes);
    if (!text_append(g, piece, bytes))
        return false;
    t->text_to = g->text_all;
    g->n_sampled++;
    settle(g, false);
    return true;
}

static void measure_token(struct generation *g)
{
    struct generation_private *p = g->p;
    const int64_t now = clock_us();
    if (!p->first_us) {
        p->first_us = now;
        metric_observe(p->host->metrics.ttft, 1e-6 * (double)(now - p->start_us));
    } else {
        metric_observe(p->host->metrics.itl, 1e-6 * (double)(now - p->last_us));
    }
    p->last_us = now;
}

static void fail_memory(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->stage != STAGE_RUNNING || p->refusal.status)
        return;
    refuse(&p->refusal, ST_NO_MEMORY, "", "out of memory");
    log_error("request %s: out of memory", g->id);
    sched_cancel(p->host->sched, p->request, FINISH_CANCELLED);
}

static void on_token(void *user, const struct result_row *row)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    if (p->stage != STAGE_RUNNING || p->silent || p->stop_found)
        return;
    generation_enter(g);
    measure_token(g);
    if (!token_append(g, row))
        fail_memory(g);
    else
        p->events->output(p->user, g);
    if (p->stage == STAGE_RUNNING && p->stop_found)
        sched_cancel(p->host->sched, p->request, FINISH_STOP);
    generation_exit(g);
}

static void on_scored(void *user, uint32_t position, const struct result_row *row)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    if (p->stage != STAGE_RUNNING || p->silent || !g->scores || (size_t)position + 1 >= g->n_prompt)
        return;
    generation_enter(g);
    struct generation_score *score = &g->scores[position + 1];
    score->logprob = row->target_logprob;
    g->n_scored = position + 1;
    if (!keep_top(g, row, &score->n_top, &score->top_from))
        fail_memory(g);
    else
        p->events->output(p->user, g);
    generation_exit(g);
}

static void on_logits(void *user, const struct result_row *row)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    if (p->stage != STAGE_RUNNING || p->silent || !p->events->logits)
        return;
    generation_enter(g);
    p->events->logits(p->user, g, row);
    generation_exit(g);
}

static void on_progress(void *user, uint32_t done, uint32_t total)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    g->progress_done = done;
    g->progress_total = total;
    if (p->stage != STAGE_RUNNING || p->silent || !g->want.progress)
        return;
    generation_enter(g);
    p->events->output(p->user, g);
    generation_exit(g);
}

static void on_done(void *user, const struct sched_done *done)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    p->stage = STAGE_ENDED;
    if (p->silent) {
        measure_end(g, OUTCOME_CANCELLED, done->cached_tokens);
        log_debug("request %s cancelled after %zu tokens", g->id, g->n_sampled);
        generation_enter(g);
        generation_leave(g);
        generation_exit(g);
        return;
    }
    const bool ran = done->reason == FINISH_STOP || done->reason == FINISH_LENGTH;
    if (done->reason == FINISH_ERROR)
        refuse(&p->refusal, done->status ? done->status : ST_INTERNAL, "", "%s",
               done->message ? done->message : status_text(done->status));
    else if (done->reason == FINISH_CANCELLED)
        refuse(&p->refusal, ST_CANCELLED, "", "the server cancelled the request");
    if (ran && !p->stop_found) {
        size_t bytes = 0;
        const char *rest = token_stream_finish(p->stream, &bytes);
        if (!text_append(g, rest, bytes))
            refuse(&p->refusal, ST_NO_MEMORY, "", "out of memory");
        if (g->n_sampled)
            g->tokens[g->n_sampled - 1].text_to = g->text_all;
        settle(g, true);
    }
    generation_finish(g, done, done->reason == FINISH_STOP || p->stop_found);
}

static const struct sched_events sched_events = {
    .scored = on_scored, .token = on_token, .logits = on_logits, .progress = on_progress, .done = on_done
};

/* ---- the beginning ---- */

enum status generation_model_check(const struct generation_host *host, const char *model, struct refusal *r)
{
    if (!model || !*model || !strcmp(model, "default") || !strcmp(model, host->model_name))
        return ST_OK;
    return refuse_code(r, ST_NOT_FOUND, "model", "model_not_found", "model: '%.100s' is not served here; '%.100s' is",
                       model, host->model_name);
}

/* Any thread: what it writes is looked at by nobody until it is done. */
static void prepare(void *arg)
{
    struct generation *g = arg;
    struct generation_private *p = g->p;
    const struct generation_host *host = p->host;
    struct want *w = &g->want;
    struct refusal *r = &p->prepared.refusal;
    if (p->parse(w, r))
        return;
    const enum status st = stop_new(w->stops, w->n_stops, &p->stop);
    if (st) {
        refuse(r, st, "stop", "stop: %s", status_text(st));
        return;
    }
    want_tokenize(w, host->tokenizer, host->model, host->positions_max, &p->prepared.prompt, &p->prepared.n_prompt, r);
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

static enum status submit(struct generation *g, struct refusal *r)
{
    struct generation_private *p = g->p;
    struct generation_host *host = p->host;
    struct want *w = &g->want;
    enum status st = generation_model_check(host, w->model, r);
    if (!st)
        st = settle_length(g, r);
    if (st)
        return st;
    const struct model_config *config = model_config(host->model);
    for (size_t i = 0; i < w->n_forced; i++)
        if (w->forced[i] < 0 || (uint32_t)w->forced[i] >= config->n_vocab)
            return refuse(r, ST_INVALID, "forced_token_ids", "forced_token_ids: %d is not in the vocabulary",
                          (int)w->forced[i]);
    g->seed = w->has_seed ? w->seed : draw_u64();
    p->stream = token_stream_new(host->tokenizer);
    if (w->score)
        g->scores = calloc(g->n_prompt, sizeof *g->scores);
    if (!p->stream || (w->score && !g->scores))
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    const struct sched_want want = {
        .tokens = g->prompt,
        .n_tokens = (uint32_t)g->n_prompt,
        .max_tokens = g->max_tokens,
        .eos = config->eos,
        .n_eos = w->ignore_eos ? 0 : config->n_eos,
        .sampling = { w->temperature, w->top_p, w->top_k, g->seed },
        .n_top = w->n_top,
        .score = w->score,
        .logits = w->logits,
        .forced = w->forced,
        .n_forced = (uint32_t)w->n_forced,
        .label = g->id,
    };
    struct error err = { 0 };
    st = sched_submit(host->sched, &want, &sched_events, g, &p->request, &err);
    if (st)
        return refuse_code(r, st, st == ST_TOO_LARGE || st == ST_INVALID ? prompt_field(w) : "",
                           st == ST_TOO_LARGE ? "context_length_exceeded" : "", "%s",
                           *err.text ? err.text : status_text(st));
    p->stage = STAGE_RUNNING;
    g->running = true;
    want_drop_source(w);
    host->kick(host->ctx);
    return ST_OK;
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
        p->prepared.prompt = NULL;
        p->refusal = p->prepared.refusal;
        if (p->refusal.status || submit(g, &p->refusal))
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

static void on_posted(void *arg)
{
    struct generation *g = arg;
    if (!g->p->gone)
        prepare(g);
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
    g->want.source = start->source;
    g->want.source_free = start->source_free;
    p->events = start->events;
    p->user = start->user;
    p->parse = start->parse;
    p->start_us = clock_us();
    g->created_s = (int64_t)time(NULL);
    snprintf(g->id, sizeof g->id, "%s%016llx%016llx", start->id_prefix, (unsigned long long)draw_u64(),
             (unsigned long long)draw_u64());
    return g;
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
    if (host->requests_max && host->n_open >= host->requests_max)
        return refuse_code(r, ST_BUSY, "", "too_many_requests", "%u requests are open, which is the limit; try again",
                           host->n_open);
    return generation_may_wait(host, source_bytes, r);
}

enum status generation_start(struct generation_host *host, const struct generation_start *start,
                             struct generation **generation_out, struct refusal *r)
{
    const enum status st = admit(host, start->source_bytes, r);
    if (st) {
        metric_add(host->metrics.outcome[outcome_of(r)], 1);
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
    p->link = &host->first;
    p->next = host->first;
    if (p->next)
        p->next->p->link = &p->next;
    host->first = g;
    host->n_open++;
    *generation_out = g;
    return ST_OK;
}
