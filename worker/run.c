/* A plan: what it says is taken over and checked, its step is recorded and run, and the result reported; fences. */
#include "worker/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

enum { ABANDONED_SHOWN = 8 }; /* requests of a plan that are named when it is abandoned */

/* ---- fences ---- */

static uint64_t fence_of(const struct worker *w, uint32_t group)
{
    for (uint32_t i = 0; i < w->n_fences; i++)
        if (w->fence[i].group == group)
            return w->fence[i].epoch;
    return 0;
}

void worker_fence(struct worker *w, uint32_t group, uint64_t epoch)
{
    uint32_t i = 0, lowest = 0;
    for (; i < w->n_fences; i++) {
        if (w->fence[i].group == group)
            break;
        if (w->fence[i].epoch < w->fence[lowest].epoch)
            lowest = i;
    }
    if (i == w->n_fences && w->n_fences < FENCES)
        w->n_fences++;
    else if (i == w->n_fences)
        i = lowest;
    if (w->fence[i].group != group || w->fence[i].epoch < epoch) {
        w->fence[i].group = group;
        w->fence[i].epoch = epoch;
    }
    w->config.exchange_ops->fence(w->exchange, group, epoch);
}
/* ---- a plan ---- */

struct lookup {
    struct worker *worker;
    const struct plan *plan;
};

static const uint32_t *lookup_slots(void *ctx, uint32_t seq, uint32_t block, uint32_t n)
{
    const struct lookup *l = ctx;
    struct sequence *s = l->worker->plan_sequences[seq];
    if (n > s->n_table || block > s->n_table - n)
        return NULL;
    for (uint32_t i = block; i < block + n; i++)
        s->slots[i] = kv_pool_find_near(l->worker->pool, s->table[i], s->slots[i]);
    return s->slots + block;
}

static kv_handle lookup_handle(void *ctx, uint32_t seq, uint32_t block)
{
    const struct lookup *l = ctx;
    const struct sequence *s = l->worker->plan_sequences[seq];
    return block < s->n_table ? s->table[block] : 0;
}

static const uint16_t *lookup_readers(void *ctx, uint32_t seq, uint32_t n)
{
    const struct lookup *l = ctx;
    const struct sequence *s = l->worker->plan_sequences[seq];
    return n <= s->n_readers ? s->readers : NULL;
}

static bool lookup_passed(void *ctx, const struct plan_run *run, uint32_t c)
{
    const struct lookup *l = ctx;
    return select_passed(&l->worker->select, l->plan, run, c);
}

static bool reserve(void *p, uint32_t *room, uint32_t n, size_t size)
{
    void **at = p;
    if (n <= *room)
        return true;
    free(*at);
    *at = malloc((n + n / 2) * size);
    *room = *at ? n + n / 2 : 0;
    return *at != NULL;
}

enum status worker_take(struct worker *w, const struct plan *plan, struct error *err)
{
    if (!reserve(&w->plan_sequences, &w->plan_sequences_room, plan->n_seqs, sizeof *w->plan_sequences))
        return error_set(err, ST_NO_MEMORY, "no memory for a plan");
    for (uint32_t i = 0; i < plan->n_drops; i++) {
        worker_disk_keep(w, plan->drops[i], 0);
        kv_pool_drop(w->pool, plan->drops[i]);
    }
    for (uint32_t i = 0; i < plan->n_forgets; i++)
        sequence_forget(w->sequences, plan->forgets[i]);
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const enum status st = sequence_update(w->sequences, &plan->seqs[i], &w->plan_sequences[i], err);
        if (st)
            return st;
    }
    open_blocks_step(&w->open, w->pool, w->sequences);
    return ST_OK;
}

static bool runs_join(const struct plan_run *a, const struct plan_run *b)
{
    return a->seq == b->seq && a->home == b->home && a->pos + a->n_rows == b->pos;
}

/* The positions around run r that its sequence has here in this plan without a gap. */
static void run_span(const struct plan *plan, uint32_t r, uint32_t *pos_out, uint32_t *end_out)
{
    uint32_t first = r, last = r;
    while (first && runs_join(&plan->runs[first - 1], &plan->runs[first]))
        first--;
    while (last + 1 < plan->n_runs && runs_join(&plan->runs[last], &plan->runs[last + 1]))
        last++;
    *pos_out = plan->runs[first].pos;
    *end_out = plan->runs[last].pos + plan->runs[last].n_rows;
}

/* Takes the own block of the row at pos, and where it is open. */
static enum status block_take(struct worker *w, const struct plan *plan, uint32_t r, uint32_t pos, struct step_row *row,
                              struct error *err)
{
    const struct sequence *s = w->plan_sequences[plan->runs[r].seq];
    const uint32_t block = pos / PLAN_BLOCK;
    uint32_t first, end;
    run_span(plan, r, &first, &end);
    enum status st = kv_pool_open(w->pool, s->table[block], &row->slot);
    if (!st)
        st = open_blocks_take(&w->open, w->pool, s, block, row->slot, first, end, &row->open);
    if (st)
        return error_set(err, st, "plan %llu: no room for block %u of sequence %llu", (unsigned long long)plan->number,
                         block, (unsigned long long)s->id);
    return ST_OK;
}

/*
 * Rows of a run whose home is here: tokens, positions, and the slots of their own blocks, which are taken now if they are new; and which of
 * these the run completes.
 */
static enum status rows_take(struct worker *w, const struct plan *plan, uint32_t r, struct step_input *input,
                             struct error *err)
{
    const struct plan_run *run = &plan->runs[r];
    const struct sequence *s = w->plan_sequences[run->seq];
    const bool joins = r && runs_join(run - 1, run); /* then the run before stands right before this one */
    uint32_t *n_rows = &input->n_rows;
    for (uint32_t i = 0; i < run->n_rows; i++) {
        const uint32_t pos = run->pos + i, block = pos / PLAN_BLOCK;
        struct step_row *row = &w->rows[*n_rows];
        if (block >= s->n_table || pos >= w->config.positions_max)
            return error_set(err, ST_PROTOCOL, "plan %llu: position %u of sequence %llu has no block",
                             (unsigned long long)plan->number, pos, (unsigned long long)s->id);
        row->token = run->tokens[i] >= 0 || pos == 0 ? run->tokens[i] : sequence_token_after(s, pos - 1);
        row->pos = pos;
        if (row->token < 0 || (uint32_t)row->token >= model_config(w->model)->n_vocab)
            return error_set(err, ST_PROTOCOL, "plan %llu: token %d at position %u", (unsigned long long)plan->number,
                             row->token, pos);
        if (pos % PLAN_BLOCK == 0 || (i == 0 && !joins)) {
            const enum status st = block_take(w, plan, r, pos, row, err);
            if (st)
                return st;
        } else {
            row->slot = row[-1].slot;
            row->open = row[-1].open;
        }
        if (pos % PLAN_BLOCK == PLAN_BLOCK - 1)
            w->seals[input->n_seals++] = (struct step_seal){ row->slot, row->open, block };
        (*n_rows)++;
    }
    return ST_OK;
}

static bool set_below(const uint8_t *set, uint32_t bytes, uint32_t n)
{
    for (uint32_t i = 0; i < bytes && i * 8 < n; i++)
        if (set[i] & (n - i * 8 >= 8 ? 0xFFu : (1u << (n - i * 8)) - 1))
            return true;
    return false;
}

/* The codec has bounded them; that they fit this model's vocabulary is seen here. */
static enum status edits_check(const struct worker *w, const struct plan *plan, const struct plan_run *run,
                               struct error *err)
{
    const struct plan_edits *e = run->edits;
    const uint32_t n_vocab = model_config(w->model)->n_vocab;
    if (e && e->n_adds && e->adds[e->n_adds - 1].token >= n_vocab)
        return error_set(err, ST_PROTOCOL, "plan %llu: an edit of token %u, the vocabulary has %u",
                         (unsigned long long)plan->number, e->adds[e->n_adds - 1].token, n_vocab);
    if (e && e->allowed && !set_below(e->allowed, e->allowed_bytes, n_vocab))
        return error_set(err, ST_PROTOCOL, "plan %llu: an edit allows no token of the vocabulary",
                         (unsigned long long)plan->number);
    return ST_OK;
}

static void ask_edit(struct step_ask *ask, const struct plan_edits *e)
{
    _Static_assert(sizeof(struct plan_edit) == sizeof(struct sample_edit), "one layout");
    ask->edited = true;
    ask->edits = (struct sample_edits){ .n_adds = e->n_adds,
                                        .repeated_bytes = e->repeated_bytes,
                                        .allowed_bytes = e->allowed_bytes,
                                        .adds = (const struct sample_edit *)(const void *)e->adds,
                                        .repetition = e->repetition,
                                        .repeated = e->repeated,
                                        .allowed = e->allowed };
}

static void asks_take(struct worker *w, const struct plan_run *run, uint32_t first_row, uint32_t *n_asks)
{
    const struct sequence *s = w->plan_sequences[run->seq];
    for (uint32_t i = 0; i < run->n_rows; i++) {
        const bool sample = run->want & WANT_SAMPLE && i + 1 == run->n_rows;
        const bool score = run->want & WANT_SCORE && run->targets[i] >= 0;
        if (!sample && !score && !(run->want & WANT_LOGITS))
            continue;
        w->asks[(*n_asks)++] = (struct step_ask){
            .row = first_row + i,
            .pos = run->pos + i,
            .sample = sample,
            .target = score ? run->targets[i] : -1,
            .n_top = sample || score ? run->n_top : 0,
            .logits = run->want & WANT_LOGITS,
            .sampling = { .temperature = s->sampling.temperature,
                          .top_p = s->sampling.top_p,
                          .top_k = s->sampling.top_k,
                          .seed = s->sampling.seed,
                          .min_p = s->sampling.min_p },
        };
        if (sample && run->edits)
            ask_edit(&w->asks[*n_asks - 1], run->edits);
    }
}

static uint32_t asks_count(const struct plan *plan, uint16_t self)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < plan->n_runs; r++)
        if (plan->runs[r].home == self)
            n += plan->runs[r].n_rows;
    return n;
}

static enum status input_take(struct worker *w, const struct plan *plan, struct step_input *input, struct error *err)
{
    const uint16_t self = w->config.exchange.self;
    const uint32_t n = asks_count(plan, self);
    if (n > w->config.step_rows_max)
        return error_set(err, ST_PROTOCOL, "plan %llu: %u rows here, at most %u were offered",
                         (unsigned long long)plan->number, n, w->config.step_rows_max);
    if (!reserve(&w->asks, &w->asks_room, n, sizeof *w->asks))
        return error_set(err, ST_NO_MEMORY, "no memory for a plan");
    for (uint32_t r = 0; r < plan->n_runs; r++) {
        const struct plan_run *run = &plan->runs[r];
        if (run->home != self)
            continue;
        const uint32_t first = input->n_rows;
        enum status st = edits_check(w, plan, run, err);
        if (st == ST_OK)
            st = rows_take(w, plan, r, input, err);
        if (st)
            return st;
        asks_take(w, run, first, &input->n_asks);
    }
    input->rows = w->rows;
    input->asks = w->asks;
    input->seals = w->seals;
    return ST_OK;
}

/* Which sequence an ask's row belongs to: runs here stand in the order of their rows. */
static struct sequence *ask_sequence(const struct worker *w, const struct plan *plan, const struct step_ask *ask)
{
    uint32_t row = 0;
    for (uint32_t r = 0; r < plan->n_runs; r++) {
        if (plan->runs[r].home != w->config.exchange.self)
            continue;
        row += plan->runs[r].n_rows;
        if (ask->row < row)
            return w->plan_sequences[plan->runs[r].seq];
    }
    return NULL;
}

static void report(struct worker *w, const struct plan *plan, const struct step_input *input,
                   const struct step_answer *answers, const struct step_cost *cost)
{
    struct result_row *rows = calloc(input->n_asks ? input->n_asks : 1, sizeof *rows);
    struct result result = {
        .epoch = plan->epoch, .number = plan->number, .group = plan->group, .n_rows = input->n_asks, .rows = rows
    };
    if (!rows) {
        log_error("plan %llu: no memory for its result", (unsigned long long)plan->number);
        return; /* the step's deadline will name this worker */
    }
    for (uint32_t i = 0; i < input->n_asks; i++) {
        const struct step_ask *ask = &input->asks[i];
        struct sequence *s = ask_sequence(w, plan, ask);
        _Static_assert(sizeof(struct result_top) == sizeof(struct sample_top), "one layout");
        rows[i] = (struct result_row){
            .seq = s->id,
            .pos = ask->pos,
            .token = ask->sample ? (int32_t)answers[i].result.token : -1,
            .logprob = answers[i].result.logprob,
            .target_logprob = answers[i].result.target_logprob,
            .n_top = ask->n_top,
            .top = (const struct result_top *)(const void *)answers[i].top,
            .n_logits = ask->logits ? model_config(w->model)->n_vocab : 0,
            .logits = answers[i].logits,
        };
        if (ask->sample)
            sequence_sampled(s, ask->pos, rows[i].token);
    }
    result.busy_us = (uint64_t)(cost->busy_ns / 1000);
    result.wait_us = (uint64_t)(cost->wait_ns / 1000);
    result.bytes_sent = cost->bytes_sent;
    result.bytes_received = cost->bytes_received;
    result.kv_bytes_read = cost->kv_bytes_read;
    result.kv_bytes_dense = cost->kv_bytes_dense;
    w->config.on_result(w->config.ctx, &result);
    free(rows);
}

/* Whose rows were in it. */
static void requests_log(struct worker *w, const struct plan *plan, const char *why)
{
    for (uint32_t i = 0; i < plan->n_seqs && i < ABANDONED_SHOWN; i++) {
        const struct sequence *s = sequence_find(w->sequences, plan->seqs[i].id);
        if (s)
            log_info("request %s sequence %llu: plan %llu abandoned: %s", s->label, (unsigned long long)s->id,
                     (unsigned long long)plan->number, why);
    }
}

static void plan_abort(struct worker *w, const struct plan *plan, uint16_t peer, const char *reason)
{
    const struct control_abort abort = { plan->group, plan->epoch, plan->number, peer, reason };
    w->config.on_abort(w->config.ctx, &abort);
}

void worker_run(struct worker *w, const struct plan *plan)
{
    if (plan->epoch < fence_of(w, plan->group))
        return; /* a new epoch is on its way */
    atomic_store(&w->running_group, plan->group);
    w->epoch = plan->epoch > w->epoch ? plan->epoch : w->epoch;
    const int64_t start = clock_ns();
    struct error err = { 0 };
    struct step_input input = {
        .attend = &w->attend,
        .select = &w->select,
        .pool = w->pool,
        .key = { .epoch = plan->epoch, .plan = plan->number, .group = plan->group },
    };
    const struct model_config *c = model_config(w->model);
    const struct attend_shape shape = { .n_heads = c->n_heads,
                                        .n_kv_heads = c->n_kv_heads,
                                        .head_dim = c->head_dim,
                                        .n_threads = w->ops->n_parts ? w->ops->n_parts : w->config.n_threads,
                                        .query_bytes = w->config.float32 ? 4 : 2,
                                        .reads_apart = w->config.reads_apart || w->ops->reads_apart,
                                        .row_classes = kv_codecs[w->config.kv_codec].row_classes };
    struct lookup lookup = { w, plan };
    const struct attend_lookup at = { lookup_slots, lookup_readers, lookup_passed, &lookup };
    const struct select_lookup handles = { lookup_handle, &lookup };
    const int64_t deadline_ns = start + (int64_t)plan->deadline_ms * 1000000;
    uint16_t peer = UINT16_MAX;
    enum status st = ST_OK;
    if (plan->leaf_blocks != w->ops->leaf_blocks)
        st = error_set(&err, ST_PROTOCOL, "plan %llu: leaves of %u blocks", (unsigned long long)plan->number,
                       plan->leaf_blocks);
    if (!st)
        st = worker_take(w, plan, &err);
    if (!st)
        st = select_take(&w->select, plan, w->config.exchange.self, &handles, &err);
    if (!st)
        st = input_take(w, plan, &input, &err);
    if (!st)
        st = attend_build(&w->attend, plan, w->config.exchange.self, &shape, &at, &err);
    if (!st)
        st = select_build(&w->select, plan, w->config.exchange.self, &w->attend, c->n_kv_heads, &at, &handles, &err);
    if (!st)
        st = select_catch_up(&w->select, plan, w->config.exchange.self, &at, &handles, w->config.exchange_ops,
                             w->exchange, &input.key, deadline_ns, &peer, &err);
    if (!st)
        st = w->ops->begin(w->backend, &input);
    if (!st) {
        const struct step_answer *answers = NULL;
        struct step_cost cost = { 0 };
        step_record(w->ops, w->backend, c, &input);
        const int64_t recorded = clock_ns();
        st = w->ops->run(w->backend, w->config.exchange_ops, w->exchange, deadline_ns, &answers, &cost, &peer);
        cost.busy_ns += recorded - start;
        if (!st)
            report(w, plan, &input, answers, &cost);
    }
    if (!st)
        return;
    if (st == ST_STALE) {                              /* the coordinator knows more than this worker */
        worker_fence(w, plan->group, plan->epoch + 1); /* plans that follow lack what this one was to sample */
        return;
    }
    char text[640];
    if (err.status)
        snprintf(text, sizeof text, "%s", err.text);
    else if (peer != UINT16_MAX)
        snprintf(text, sizeof text, "waiting for worker %u: %s", peer, status_text(st));
    else
        snprintf(text, sizeof text, "%s", status_text(st));
    log_warn("group %u epoch %llu plan %llu abandoned: %s", plan->group, (unsigned long long)plan->epoch,
             (unsigned long long)plan->number, text);
    requests_log(w, plan, text);
    worker_fence(w, plan->group, plan->epoch + 1);
    plan_abort(w, plan, peer, text);
}
