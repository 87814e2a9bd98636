#include "coordinator/gateway/grpc_messages.h"

#include <stdlib.h>
#include <string.h>

#include <protobuf-c/protobuf-c.h>

#include "common/clock.h"
#include "proto/longspan.pb-c.h"
#include "proto/plan.h"

enum { SCORES_AT_ONCE = 256, WORKERS_MAX = 256 };

struct sink {
    ProtobufCBuffer base;
    struct text *out;
};

static void sink_append(ProtobufCBuffer *buffer, size_t n, const uint8_t *data)
{
    text_add(((struct sink *)buffer)->out, data, n);
}

static void append_message(const ProtobufCMessage *m, struct text *out)
{
    struct sink sink = { .base = { .append = sink_append }, .out = out };
    protobuf_c_message_pack_to_buffer(m, &sink.base);
}

enum { FIELD_TEXT = 1, FIELD_PLACE = 11 };

/* A string of GenerateResponse by hand: one of protobuf-c ends at the first NUL, and a model may well say one. Fields may stand in any order. */
static void append_text(uint8_t field, const char *data, size_t n, struct text *out)
{
    uint8_t head[11] = { (uint8_t)(field << 3 | 2) };
    size_t at = 1;
    size_t rest = n;
    do {
        head[at++] = (uint8_t)((rest & 0x7F) | (rest > 0x7F ? 0x80 : 0));
        rest >>= 7;
    } while (rest);
    text_add(out, head, at);
    text_add(out, data, n);
}

/* ---- alternatives: allocated in one piece a message ---- */

struct tops {
    Longspan__V1__TokenAlternatives *lists, **list_ptrs;
    Longspan__V1__TokenAlternative *items, **item_ptrs;
    size_t n_items, n_lists;
};

static bool tops_new(struct tops *t, size_t n_lists, size_t n_each)
{
    *t = (struct tops){ 0 };
    t->lists = calloc(n_lists + 1, sizeof *t->lists);
    t->list_ptrs = calloc(n_lists + 1, sizeof *t->list_ptrs);
    t->items = calloc(n_lists * n_each + 1, sizeof *t->items);
    t->item_ptrs = calloc(n_lists * n_each + 1, sizeof *t->item_ptrs);
    return t->lists && t->list_ptrs && t->items && t->item_ptrs;
}

static void tops_free(struct tops *t)
{
    free(t->lists);
    free(t->list_ptrs);
    free(t->items);
    free(t->item_ptrs);
}

static void tops_add(struct tops *t, const struct tokenizer *tokenizer, const struct result_top *top, size_t n)
{
    Longspan__V1__TokenAlternatives *list = &t->lists[t->n_lists];
    longspan__v1__token_alternatives__init(list);
    list->n_items = n;
    list->items = &t->item_ptrs[t->n_items];
    for (size_t i = 0; i < n; i++) {
        Longspan__V1__TokenAlternative *item = &t->items[t->n_items];
        longspan__v1__token_alternative__init(item);
        item->token_id = top[i].token;
        item->logprob = top[i].logprob;
        item->text.data =
            (uint8_t *)(uintptr_t)tokenizer_token_bytes(tokenizer, (int32_t)top[i].token, true, &item->text.len);
        t->item_ptrs[t->n_items++] = item;
    }
    t->list_ptrs[t->n_lists++] = list;
}

/* ---- what is new ---- */

/* Arrays of one message, freed together. */
struct pieces {
    uint32_t *ids;
    float *logprobs, *scores;
    struct tops tops, score_tops;
    Longspan__V1__PromptLogprobs prompt, *prompt_ptr;
    Longspan__V1__PromptProgress progress;
};

static void pieces_free(struct pieces *p)
{
    free(p->ids);
    free(p->logprobs);
    free(p->scores);
    tops_free(&p->tops);
    tops_free(&p->score_tops);
}

static bool put_tokens(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, struct pieces *p,
                       Longspan__V1__GenerateResponse *m)
{
    const size_t n = g->n_sampled - told->tokens;
    if (!n)
        return true;
    p->ids = calloc(n, sizeof *p->ids);
    p->logprobs = calloc(n, sizeof *p->logprobs);
    if (!p->ids || !p->logprobs || !tops_new(&p->tops, n, g->want.n_top))
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct generation_token *token = &g->tokens[told->tokens + i];
        p->ids[i] = (uint32_t)token->id;
        p->logprobs[i] = token->logprob;
        if (g->want.n_top)
            tops_add(&p->tops, t, g->tops + token->top_from, token->n_top);
    }
    m->n_token_ids = m->n_logprobs = n;
    m->token_ids = p->ids;
    m->logprobs = p->logprobs;
    m->n_top = p->tops.n_lists;
    m->top = p->tops.list_ptrs;
    told->tokens = g->n_sampled;
    return true;
}

static bool put_scores(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, struct pieces *p,
                       Longspan__V1__GenerateResponse *m)
{
    const size_t n = g->n_scored - told->scores;
    if (!n)
        return true;
    p->scores = calloc(n, sizeof *p->scores);
    if (!p->scores || !tops_new(&p->score_tops, n, g->want.n_top))
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct generation_score *score = &g->scores[told->scores + 1 + i];
        p->scores[i] = score->logprob;
        if (g->want.n_top)
            tops_add(&p->score_tops, t, g->tops + score->top_from, score->n_top);
    }
    longspan__v1__prompt_logprobs__init(&p->prompt);
    p->prompt.position = (uint32_t)told->scores + 1;
    p->prompt.n_logprobs = n;
    p->prompt.logprobs = p->scores;
    p->prompt.n_top = p->score_tops.n_lists;
    p->prompt.top = p->score_tops.list_ptrs;
    p->prompt_ptr = &p->prompt;
    m->n_prompt_logprobs = 1;
    m->prompt_logprobs = &p->prompt_ptr;
    told->scores = g->n_scored;
    return true;
}

static void put_progress(struct grpc_told *told, const struct generation *g, struct pieces *p,
                         Longspan__V1__GenerateResponse *m)
{
    if (!g->want.progress || g->progress_done == told->progress)
        return;
    longspan__v1__prompt_progress__init(&p->progress);
    p->progress.done = told->progress = g->progress_done;
    p->progress.total = g->progress_total;
    m->progress = &p->progress;
}

static bool is_news(const struct grpc_told *told, const struct generation *g, bool all)
{
    const size_t scores = g->n_scored - told->scores;
    return g->n_sampled > told->tokens || g->n_text > told->text || (scores && (all || scores >= SCORES_AT_ONCE)) ||
           (g->want.progress && g->progress_done != told->progress) || (all && g->want.echo && !told->echoed);
}

/* Text that is new: the prompt first if it is to be echoed, with the first of the answer. */
static void put_text(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, bool all,
                     struct text *out)
{
    struct text echo = { 0 };
    if (g->want.echo && !told->echoed && (all || g->n_sampled)) {
        for (size_t i = 0; i < g->n_prompt; i++) {
            size_t n = 0;
            const char *bytes = tokenizer_token_bytes(t, g->prompt[i], false, &n);
            text_add(&echo, bytes, n);
        }
        told->echoed = true;
    }
    struct text whole = { 0 };
    text_utf8(&whole, echo.data, echo.n);
    text_add(&whole, g->text + told->text, g->n_text - told->text);
    if (whole.n)
        append_text(FIELD_TEXT, whole.data, whole.n, out);
    out->bad = out->bad || whole.bad || echo.bad;
    text_free(&whole);
    text_free(&echo);
    told->text = g->n_text;
}

static void put_id(struct grpc_told *told, const struct generation *g, Longspan__V1__GenerateResponse *m)
{
    if (!told->id)
        m->id = (char *)(uintptr_t)g->id;
    told->id = true;
}

static void write_news(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, bool all,
                       Longspan__V1__GenerateResponse *m, struct text *out)
{
    struct pieces p = { 0 };
    put_id(told, g, m);
    m->index = g->index;
    out->bad = out->bad || !put_tokens(told, g, t, &p, m) || !put_scores(told, g, t, &p, m);
    put_progress(told, g, &p, m);
    if (!out->bad) {
        put_text(told, g, t, all, out);
        append_message(&m->base, out);
    }
    pieces_free(&p);
}

bool grpc_write_output(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, bool all,
                       struct text *out)
{
    if (!is_news(told, g, all))
        return false;
    Longspan__V1__GenerateResponse m;
    longspan__v1__generate_response__init(&m);
    write_news(told, g, t, all, &m, out);
    return true;
}

void grpc_write_logits(const struct result_row *row, struct text *out)
{
    Longspan__V1__GenerateResponse m;
    Longspan__V1__LogitRow logits, *ptr = &logits;
    longspan__v1__generate_response__init(&m);
    longspan__v1__logit_row__init(&logits);
    logits.position = row->pos;
    logits.n_logits = row->n_logits;
    logits.logits = (float *)(uintptr_t)row->logits;
    m.n_logits = 1;
    m.logits = &ptr;
    append_message(&m.base, out);
}

void grpc_write_place(const struct resume *place, const char *request, struct text *out)
{
    struct text id = { 0 };
    resume_write(place, request, &id);
    append_text(FIELD_PLACE, id.data, id.n, out);
    out->bad = out->bad || id.bad;
    text_free(&id);
}

/* ---- the end ---- */

static const struct gateway_worker *worker_find(const struct gateway_worker *workers, uint32_t n, uint16_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (workers[i].id == id)
            return &workers[i];
    return NULL;
}

static uint64_t bytes_per_token(const struct gateway_worker *workers, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (workers[i].block_bytes)
            return workers[i].block_bytes / PLAN_BLOCK;
    return 0;
}

static struct gateway_worker *workers_get(const struct gateway_config *config, uint32_t *n_out)
{
    struct gateway_worker *workers = calloc(WORKERS_MAX, sizeof *workers);
    *n_out = workers ? config->workers(config->ctx, workers, WORKERS_MAX) : 0;
    return workers;
}

struct end {
    Longspan__V1__GenerateDone done;
    Longspan__V1__Usage usage;
    Longspan__V1__Timings timings;
    Longspan__V1__KvStats kv;
    Longspan__V1__WorkerShare *shares, **share_ptrs;
};

static bool end_shares(struct end *e, const struct sched_done *done, const struct gateway_worker *workers, uint32_t n)
{
    e->shares = calloc(done->n_shares + 1, sizeof *e->shares);
    e->share_ptrs = calloc(done->n_shares + 1, sizeof *e->share_ptrs);
    if (!e->shares || !e->share_ptrs)
        return false;
    for (uint32_t i = 0; i < done->n_shares; i++) {
        const struct sched_worker_share *from = &done->shares[i];
        const struct gateway_worker *worker = worker_find(workers, n, from->worker);
        Longspan__V1__WorkerShare *to = e->share_ptrs[i] = &e->shares[i];
        longspan__v1__worker_share__init(to);
        to->id = from->worker;
        to->blocks = from->blocks;
        to->bytes_sent = from->bytes_sent;
        to->bytes_received = from->bytes_received;
        if (worker)
            to->fingerprint = (char *)(uintptr_t)worker->fingerprint;
    }
    e->done.n_workers = done->n_shares;
    e->done.workers = e->share_ptrs;
    return true;
}

static void end_fill(struct end *e, const struct generation *g, const struct generation_done *done,
                     const struct gateway_config *config)
{
    const struct sched_done *s = done->sched;
    longspan__v1__generate_done__init(&e->done);
    longspan__v1__usage__init(&e->usage);
    longspan__v1__timings__init(&e->timings);
    longspan__v1__kv_stats__init(&e->kv);
    e->done.finish_reason = done->stopped ? LONGSPAN__V1__FINISH_REASON__FINISH_REASON_STOP
                                          : LONGSPAN__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    e->done.seed = g->seed;
    e->done.model = (char *)(uintptr_t)config->model_name;
    e->usage.prompt_tokens = done->prompt_tokens;
    e->usage.cached_tokens = done->cached_tokens;
    e->usage.completion_tokens = done->completion_tokens;
    e->usage.recomputed_tokens = s->recomputed_tokens;
    e->timings.queued_ms = (double)s->queued_ms;
    e->timings.prefill_ms = (double)s->prefill_ms;
    e->timings.decode_ms = (double)s->decode_ms;
    e->timings.total_ms = (double)done->total_ms;
    e->kv.bytes_read = s->kv_bytes_read;
    e->kv.bytes_dense = s->kv_bytes_dense;
    e->kv.density = s->kv_bytes_dense ? (double)s->kv_bytes_read / (double)s->kv_bytes_dense : 1;
    e->done.usage = &e->usage;
    e->done.timings = &e->timings;
    e->done.kv = &e->kv;
}

void grpc_write_done(struct grpc_told *told, const struct generation *g, const struct generation_done *done,
                     const struct gateway_config *config, struct text *out)
{
    struct end e = { 0 };
    uint32_t n = 0;
    struct gateway_worker *workers = workers_get(config, &n);
    end_fill(&e, g, done, config);
    e.kv.bytes_per_token = bytes_per_token(workers, n);
    if (!workers || !end_shares(&e, done->sched, workers, n))
        out->bad = true;
    Longspan__V1__GenerateResponse m;
    longspan__v1__generate_response__init(&m);
    m.done = &e.done;
    write_news(told, g, config->tokenizer, true, &m, out);
    free(e.shares);
    free(e.share_ptrs);
    free(workers);
}

/* ---- Cluster/Status ---- */

static void worker_fill(Longspan__V1__WorkerStatus *to, const struct gateway_worker *from,
                        const struct sched_worker_stats *stats, uint32_t n_stats)
{
    longspan__v1__worker_status__init(to);
    to->id = from->id;
    to->pid = from->pid;
    to->address = (char *)(uintptr_t)from->address;
    to->state = (char *)(uintptr_t)from->state;
    to->load_fraction = from->load_fraction;
    to->fingerprint = (char *)(uintptr_t)from->fingerprint;
    to->blocks = from->blocks;
    to->n_blocks = from->n_blocks;
    to->block_bytes = from->block_bytes;
    to->weight_bytes = from->weight_bytes;
    to->pool_bytes = from->pool_bytes;
    to->resident_bytes = from->resident_bytes;
    to->sketch_bytes = from->sketch_bytes;
    to->bytes_sent = from->bytes_sent;
    to->bytes_received = from->bytes_received;
    to->device = (char *)(uintptr_t)from->device;
    to->host = (char *)(uintptr_t)from->host;
    to->sequences = from->sequences;
    to->leaves = from->leaves;
    to->group = from->group;
    to->term = gateway_worker_term(from);
    to->epoch = gateway_worker_epoch(from);
    to->step_age_ms = from->step_age_ms;
    to->dropped = from->dropped;
    for (uint32_t i = 0; i < n_stats; i++)
        if (stats[i].id == from->id) {
            to->blocks = stats[i].blocks_used;
            to->blocks_cached = stats[i].blocks_cached;
        }
}

static void sched_fill(Longspan__V1__SchedulerStatus *to, const struct gateway_config *config)
{
    struct sched_stats s = { 0 };
    sched_stats(config->sched, &s);
    longspan__v1__scheduler_status__init(to);
    to->waiting = s.waiting;
    to->running = s.running;
    to->groups = s.groups;
    to->steps = s.steps;
    to->prompt_rows = s.prompt_rows;
    to->decode_rows = s.decode_rows;
    to->prefix_hit_tokens = s.prefix_hit_tokens;
    to->prompt_tokens = s.prompt_tokens;
    to->completion_tokens = s.completion_tokens;
    to->requests_done = s.requests_done;
    to->requests_failed = s.requests_failed;
    to->requests_cancelled = s.requests_cancelled;
    to->coordination_us = s.coordination_us;
    to->preemptions = s.preemptions;
    to->waited_ms = s.waiting_ms ? (uint64_t)(clock_ms() - s.waiting_ms) : 0;
    to->stalled_ms = config->stalled_ms ? (uint64_t)config->stalled_ms(config->ctx) : 0;
    to->kv_bytes_read = s.kv_bytes_read;
    to->kv_bytes_dense = s.kv_bytes_dense;
    to->leaves_moved = s.leaves_moved;
    to->sequences_moved = s.sequences_moved;
}

static const char *identity(const struct gateway_worker *workers, uint32_t n)
{
    const char *first = NULL;
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(workers[i].state, "ready") != 0)
            continue;
        if (first && strcmp(first, workers[i].fingerprint) != 0)
            return "tolerance";
        first = workers[i].fingerprint;
    }
    return "exact";
}

static char *or_default(const char *value, const char *otherwise)
{
    return (char *)(uintptr_t)(value ? value : otherwise);
}

void grpc_write_status(const struct gateway_config *config, const struct generation_host *host, bool ready,
                       struct text *out)
{
    uint32_t n = 0;
    struct gateway_worker *workers = workers_get(config, &n);
    struct sched_worker_stats *stats = calloc(WORKERS_MAX, sizeof *stats);
    Longspan__V1__WorkerStatus *status = calloc(n + 1, sizeof *status), **ptrs = calloc(n + 1, sizeof *ptrs);
    Longspan__V1__SchedulerStatus sched;
    Longspan__V1__StatusResponse m;
    if (!workers || !stats || !status || !ptrs) {
        out->bad = true;
        goto done;
    }
    const uint32_t n_stats = sched_worker_stats(config->sched, stats, WORKERS_MAX);
    for (uint32_t i = 0; i < n; i++)
        worker_fill(ptrs[i] = &status[i], &workers[i], stats, n_stats);
    sched_fill(&sched, config);
    longspan__v1__status_response__init(&m);
    m.version = or_default(GATEWAY_VERSION, "");
    m.model = or_default(config->model_name, "");
    m.positions_max = config->positions_max;
    m.positions_fit = sched_positions_fit(config->sched);
    m.ready = ready;
    m.precision = or_default(config->precision, "bf16");
    m.kv_codec = or_default(config->kv_codec, "bf16");
    m.selector = or_default(config->selector, "dense");
    m.identity = or_default(identity(workers, n), "");
    m.uptime_ms = (uint64_t)(clock_ms() - host->started_ms);
    m.kv_bytes_per_token = bytes_per_token(workers, n);
    m.n_workers = n;
    m.workers = ptrs;
    m.scheduler = &sched;
    m.role = or_default(config->role ? config->role(config->ctx) : NULL, "alone");
    append_message(&m.base, out);
done:
    free(workers);
    free(stats);
    free(status);
    free(ptrs);
}

void grpc_write_drain(const struct gateway_config *config, uint16_t worker, struct text *out)
{
    uint32_t n = 0;
    struct gateway_worker *workers = workers_get(config, &n);
    struct sched_worker_stats *stats = calloc(WORKERS_MAX, sizeof *stats);
    Longspan__V1__WorkerStatus status;
    Longspan__V1__DrainResponse m;
    longspan__v1__drain_response__init(&m);
    if (!workers || !stats)
        out->bad = true;
    const uint32_t n_stats = stats ? sched_worker_stats(config->sched, stats, WORKERS_MAX) : 0;
    for (uint32_t i = 0; i < n && stats; i++) {
        if (workers[i].id != worker)
            continue;
        worker_fill(&status, &workers[i], stats, n_stats);
        m.worker = &status;
    }
    append_message(&m.base, out);
    free(workers);
    free(stats);
}

void grpc_write_rebalance(const struct gateway_config *config, struct text *out)
{
    struct sched_stats s = { 0 };
    Longspan__V1__RebalanceResponse m;
    sched_stats(config->sched, &s);
    longspan__v1__rebalance_response__init(&m);
    m.leaves_moved = s.leaves_moved;
    m.sequences_moved = s.sequences_moved;
    append_message(&m.base, out);
}
