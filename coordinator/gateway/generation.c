#include "coordinator/gateway/generation_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

void generation_free(struct generation *g)
{
    if (!g)
        return;
    struct generation_private *p = g->p;
    if (p) {
        token_stream_free(p->stream);
        stop_free(p->stop);
        edits_free(p->edits);
        free(p->prepared.prompt);
        grammar_unref(p->prepared.grammar);
        tools_unref(p->prepared.tools);
        free(p);
    }
    want_free(&g->want);
    tools_unref(g->tools);
    free(g->prompt);
    free(g->tokens);
    free(g->tops);
    free(g->text);
    free(g->scores);
    free(g);
}

static void news_clear(struct generation *g)
{
    struct generation_private *p = g->p;
    if (!p->news_link)
        return;
    *p->news_link = p->news_next;
    if (p->news_next)
        p->news_next->p->news_link = p->news_link;
    p->news_link = NULL;
}

static void news_mark(struct generation *g)
{
    struct generation_private *p = g->p;
    struct generation_host *host = p->host;
    if (p->news_link)
        return;
    if (!host->news)
        loop_timer_set(host->tell, 0);
    p->news_next = host->news;
    if (p->news_next)
        p->news_next->p->news_link = &p->news_next;
    p->news_link = &host->news;
    host->news = g;
}

/* Leaves the list of open ones; the memory goes when nothing holds it any more. */
static void generation_leave(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->gone)
        return;
    p->gone = true;
    news_clear(g);
    *p->link = p->next;
    if (p->next)
        p->next->p->link = p->link;
    p->host->n_open--;
}

void generation_enter(struct generation *g)
{
    g->p->busy++;
}

void generation_exit(struct generation *g)
{
    if (--g->p->busy == 0 && g->p->gone && !g->p->held)
        generation_free(g);
}

static void on_tell(void *arg)
{
    struct generation_host *host = arg;
    for (struct generation *g; (g = host->news);) {
        news_clear(g);
        generation_enter(g);
        g->p->events->output(g->p->user, g);
        generation_exit(g);
    }
}

enum status generation_host_init(struct generation_host *host)
{
    const uint32_t n = model_config(host->model)->n_vocab, n_tokens = tokenizer_n_tokens(host->tokenizer);
    host->tell = loop_timer_new(host->loop, on_tell, host);
    host->grammars = grammar_cache_new(host->tokenizer, n < n_tokens ? n : n_tokens);
    return host->tell && host->grammars ? ST_OK : ST_NO_MEMORY;
}

void generation_host_deinit(struct generation_host *host)
{
    grammar_cache_free(host->grammars);
    host->grammars = NULL;
    loop_timer_free(host->tell);
    host->tell = NULL;
}

/* ---- the end ---- */

enum { RETRY_S_MAX = 60 };

uint32_t generation_retry_s(const struct generation_host *host)
{
    const uint32_t s = sched_retry_ms(host->sched) / 1000 + 1;
    return s < RETRY_S_MAX ? s : RETRY_S_MAX;
}

enum generation_outcome generation_outcome_of(const struct refusal *r)
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

void generation_finish(struct generation *g, const struct sched_done *sched, bool stopped)
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
    measure_end(g, generation_outcome_of(&p->refusal), done.cached_tokens);
    log_debug("request %s ends: %s, %zu prompt tokens, %u cached, %zu generated, %lld ms", g->label,
              p->refusal.status ? p->refusal.message : "ok", g->n_prompt, done.cached_tokens, g->n_sampled,
              (long long)done.total_ms);
    generation_enter(g);
    /* what came before an error is told before it; otherwise done tells all that is left */
    if (p->news_link && !p->silent && p->refusal.status)
        p->events->output(p->user, g);
    generation_leave(g);
    if (!p->silent)
        p->events->done(p->user, g, &done);
    generation_exit(g);
}

void generation_cancel(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->silent)
        return;
    p->silent = true;
    if (p->stage == STAGE_ENDED)
        return; /* from the last output: done is left out */
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
    for (const struct generation *last = NULL; host->first && host->first != last;) {
        last = host->first;
        generation_end(host->first, why);
    }
}

void generation_end_named(struct generation_host *host, const char *why)
{
    for (const struct generation *g = host->first; g; g = g->p->next)
        if (!g->p->named)
            return;
    generation_end_all(host, why);
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
    if (g->tools && row->token == tools_mark(g->tools) && g->n_marks < GENERATION_MARKS_MAX)
        g->marks[g->n_marks++] = g->text_all;
    size_t bytes = 0;
    const char *piece = is_end(g, row->token) ? NULL : token_stream_push(p->stream, row->token, &bytes);
    if (!text_append(g, piece, bytes))
        return false;
    t->text_to = g->text_all;
    g->n_sampled++;
    if (p->edits && !is_end(g, row->token) && edits_push(p->edits, row->token, &p->refusal))
        return false;
    p->complete = p->edits && edits_ended(p->edits);
    settle(g, false);
    return true;
}

enum status generation_replay(struct generation *g, const struct result_row *rows, size_t n, struct refusal *r)
{
    struct generation_private *p = g->p;
    for (size_t i = 0; i < n; i++) {
        if (rows[i].token < 0 || (uint32_t)rows[i].token >= model_config(p->host->model)->n_vocab ||
            is_end(g, rows[i].token))
            return refuse(r, ST_CORRUPT, "", "token %zu of the answer's journal cannot have been followed by another",
                          i);
        if (!token_append(g, &rows[i]))
            return refuse(r, p->refusal.status ? p->refusal.status : ST_NO_MEMORY, "", "%s",
                          p->refusal.status ? p->refusal.message : "out of memory");
        if (p->stop_found || p->complete)
            return refuse(r, ST_CORRUPT, "", "the answer's journal goes on behind its end");
    }
    return ST_OK;
}

void generation_tell(struct generation *g)
{
    news_mark(g);
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

static void fail_token(struct generation *g)
{
    struct generation_private *p = g->p;
    if (p->stage != STAGE_RUNNING)
        return;
    refuse(&p->refusal, ST_NO_MEMORY, "", "out of memory"); /* unless it was said what else is the matter */
    log_error("request %s: %s", g->label, p->refusal.message);
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
    if (token_append(g, row))
        news_mark(g);
    else
        fail_token(g);
    if (p->stage == STAGE_RUNNING && (p->stop_found || p->complete))
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
    if (keep_top(g, row, &score->n_top, &score->top_from))
        news_mark(g);
    else
        fail_token(g);
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
    if (p->stage == STAGE_RUNNING && !p->silent && g->want.progress)
        news_mark(g);
}

static void on_done(void *user, const struct sched_done *done)
{
    struct generation *g = user;
    struct generation_private *p = g->p;
    p->stage = STAGE_ENDED;
    if (p->silent) {
        measure_end(g, OUTCOME_CANCELLED, done->cached_tokens);
        log_debug("request %s cancelled after %zu tokens", g->label, g->n_sampled);
        generation_enter(g);
        generation_leave(g);
        generation_exit(g);
        return;
    }
    const bool ran = done->reason == FINISH_STOP || done->reason == FINISH_LENGTH;
    if (done->reason == FINISH_ERROR && done->status == ST_BUSY)
        p->refusal.retry_s = generation_retry_s(p->host);
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

static const struct plan_edits *on_edit(void *user, uint32_t position)
{
    struct generation *g = user;
    const uint32_t n_prompt = (uint32_t)g->n_prompt;
    return edits_at(g->p->edits, position > n_prompt ? position - n_prompt : 0);
}

const struct sched_events generation_sched_events = { .scored = on_scored,
                                                      .token = on_token,
                                                      .logits = on_logits,
                                                      .progress = on_progress,
                                                      .done = on_done,
                                                      .edit = on_edit };
