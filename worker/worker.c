#include "worker/worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/open.h"
#include "worker/sequences.h"
#include "worker/step.h"

struct mail {
    struct control_message *message;
    struct mail *next;
};

/* Epochs below which a group's plans are refused. Groups come and go; the oldest entry gives way, its epochs being long past. */
enum { FENCES = 256, COPIES_MAX = 4096 };

struct outgoing {
    struct worker *worker;
    uint32_t slot;
    uint8_t header[];
};

struct worker {
    struct worker_config config;
    const struct model *model;
    const struct backend_ops *ops;
    struct backend *backend;
    struct kv_layout layout;
    struct kv_pool *pool;
    struct exchange *exchange;
    struct sequences *sequences;
    struct digest digest;
    char fingerprint[128];
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    size_t address_bytes;

    /* the step thread's */
    struct attend attend;
    struct open_blocks open;
    struct select select;
    struct step_row *rows;
    struct step_seal *seals; /* at most one a row */
    struct step_ask *asks;
    uint32_t asks_room;
    struct sequence **plan_sequences; /* of the plan that runs, by its seq index */
    uint32_t plan_sequences_room;
    struct {
        uint32_t group;
        uint64_t epoch;
    } fence[FENCES];
    uint32_t n_fences;
    uint64_t epoch; /* the highest of a plan */

    pthread_t thread;
    bool started;
    int wake;
    pthread_mutex_t lock;
    struct mail *first, **last; /* under the lock */
    bool quit;
    _Atomic uint32_t running_group; /* of the plan that runs: worker_free ends its waits */
    _Atomic uint64_t plans_done, ops_done, bytes_sent, bytes_received, dropped;
    _Atomic uint32_t blocks_used;
};

/* ---- fences ---- */

static uint64_t fence_of(const struct worker *w, uint32_t group)
{
    for (uint32_t i = 0; i < w->n_fences; i++)
        if (w->fence[i].group == group)
            return w->fence[i].epoch;
    return 0;
}

static void fence_raise(struct worker *w, uint32_t group, uint64_t epoch)
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

static uint32_t lookup_slot(void *ctx, uint32_t seq, uint32_t block)
{
    const struct lookup *l = ctx;
    const struct sequence *s = l->worker->plan_sequences[seq];
    return block < s->n_table ? kv_pool_find(l->worker->pool, s->table[block]) : UINT32_MAX;
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

static enum status plan_take(struct worker *w, const struct plan *plan, struct error *err)
{
    if (!reserve(&w->plan_sequences, &w->plan_sequences_room, plan->n_seqs, sizeof *w->plan_sequences))
        return error_set(err, ST_NO_MEMORY, "no memory for a plan");
    for (uint32_t i = 0; i < plan->n_drops; i++)
        kv_pool_drop(w->pool, plan->drops[i]);
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

static void plan_abort(struct worker *w, const struct plan *plan, uint16_t peer, const char *reason)
{
    const struct control_abort abort = { plan->group, plan->epoch, plan->number, peer, reason };
    w->config.on_abort(w->config.ctx, &abort);
}

static void plan_run(struct worker *w, const struct plan *plan)
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
                                        .reads_apart = w->config.reads_apart || w->ops->reads_apart };
    struct lookup lookup = { w, plan };
    const struct attend_lookup at = { lookup_slot, lookup_readers, &lookup };
    const struct select_lookup handles = { lookup_handle, &lookup };
    const int64_t deadline_ns = start + (int64_t)plan->deadline_ms * 1000000;
    uint16_t peer = UINT16_MAX;
    enum status st = ST_OK;
    if (plan->leaf_blocks != w->ops->leaf_blocks)
        st = error_set(&err, ST_PROTOCOL, "plan %llu: leaves of %u blocks", (unsigned long long)plan->number,
                       plan->leaf_blocks);
    if (!st)
        st = plan_take(w, plan, &err);
    if (!st)
        st = select_take(&w->select, plan, w->config.exchange.self, &handles, &err);
    if (!st)
        st = input_take(w, plan, &input, &err);
    if (!st)
        st = attend_build(&w->attend, plan, w->config.exchange.self, &shape, &at, &err);
    if (!st)
        st = select_build(&w->select, plan, w->config.exchange.self, &w->attend, c->n_kv_heads, &at, &err);
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
    if (st == ST_STALE) {                             /* the coordinator knows more than this worker */
        fence_raise(w, plan->group, plan->epoch + 1); /* plans that follow lack what this one was to sample */
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
    fence_raise(w, plan->group, plan->epoch + 1);
    plan_abort(w, plan, peer, text);
}

/* ---- blocks between workers ---- */

static void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    struct worker *w = ctx;
    struct error err = { 0 };
    struct control_copied copied = { .source = source };
    struct digest id;
    uint32_t position;
    const size_t sketch = sketch_wire_bytes(&w->select.store), block = bytes > sketch ? bytes - sketch : 0;
    enum status st = kv_pool_import(w->pool, data, block, &copied.handle, &position, &id, &err);
    if (st == ST_EXISTS)
        st = ST_OK;
    if (!st)
        kv_pool_name(w->pool, copied.handle, position, &id);
    if (!st && sketch) {
        st = sketch_import(&w->select.store, data + block, sketch, copied.handle, &err);
        if (!st)
            sketch_hold(sketch_find(&w->select.store, copied.handle));
    }
    if (st)
        log_warn("block from worker %u refused: %s", source, err.text);
    copied.status = st;
    if (copied.handle)
        w->config.on_copied(w->config.ctx, &copied);
}

static void on_sent(void *ctx, enum status st)
{
    struct outgoing *out = ctx;
    (void)st; /* the destination acknowledges to the coordinator, or does not */
    kv_pool_unpin(out->worker->pool, out->slot);
    free(out);
}

static void copy_run(struct worker *w, const struct control_copy *copy)
{
    const size_t header = kv_header_bytes(&w->layout), sketch = sketch_wire_bytes(&w->select.store);
    struct outgoing *out = malloc(sizeof *out + header + sketch);
    struct iovec parts[3];
    struct digest id;
    memcpy(id.byte, copy->id, sizeof id.byte);
    if (!out)
        return;
    *out = (struct outgoing){ w, kv_pool_find(w->pool, copy->handle) };
    if (out->slot == UINT32_MAX || kv_pool_export(w->pool, copy->handle, copy->position, &id, out->header, parts) ||
        (sketch && sketch_export(&w->select.store, copy->handle, out->header + header))) {
        log_warn("block %llu is not here to be copied to worker %u", (unsigned long long)copy->handle,
                 copy->destination);
        free(out);
        return;
    }
    kv_pool_pin(w->pool, out->slot);
    parts[2] = (struct iovec){ out->header + header, sketch };
    if (w->config.exchange_ops->send_block(w->exchange, copy->destination, parts, sketch ? 3 : 2, on_sent, out))
        on_sent(out, ST_PEER);
}

static void members_take(struct worker *w, const struct control_members *members)
{
    struct exchange_peer peers[PLAN_WORKERS_MAX];
    struct error err = { 0 };
    size_t n = 0;
    for (uint32_t i = 0; i < members->n_members && n < PLAN_WORKERS_MAX; i++)
        if (members->members[i].id != w->config.exchange.self)
            peers[n++] = (struct exchange_peer){ members->members[i].id, members->members[i].address,
                                                 members->members[i].address_bytes, members->members[i].token };
    exchange_roster(w->exchange, members->roster);
    if (w->config.exchange_ops->peers_set(w->exchange, peers, n, &err))
        log_error("members: %s", err.text);
}

static void names_take(struct worker *w, const struct control_blocks *names)
{
    for (uint32_t i = 0; i < names->n_blocks; i++) {
        struct digest id;
        memcpy(id.byte, names->blocks[i].id, sizeof id.byte);
        kv_pool_name(w->pool, names->blocks[i].handle, names->blocks[i].position, &id);
    }
}

/* ---- the step thread ---- */

static struct control_message *mail_take(struct worker *w, bool *quit)
{
    pthread_mutex_lock(&w->lock);
    struct mail *mail = w->first;
    if (mail) {
        w->first = mail->next;
        if (!w->first)
            w->last = &w->first;
    }
    *quit = w->quit;
    pthread_mutex_unlock(&w->lock);
    struct control_message *message = mail ? mail->message : NULL;
    free(mail);
    return message;
}

static void stats_refresh(struct worker *w)
{
    struct exchange_stats x;
    struct kv_pool_stats pool;
    w->config.exchange_ops->stats(w->exchange, &x);
    kv_pool_stats(w->pool, &pool);
    atomic_store(&w->bytes_sent, x.bytes_sent);
    atomic_store(&w->bytes_received, x.bytes_received);
    atomic_store(&w->dropped, x.dropped);
    atomic_store(&w->blocks_used, pool.used);
}

static void mail_run(struct worker *w, const struct control_message *message)
{
    switch (message->kind) {
    case CONTROL_PLAN:
        plan_run(w, message->as.plan);
        atomic_fetch_add(&w->plans_done, 1);
        break;
    case CONTROL_COPY:
        copy_run(w, &message->as.copy);
        break;
    case CONTROL_MEMBERS:
        members_take(w, &message->as.members);
        break;
    case CONTROL_NAMES:
        names_take(w, &message->as.blocks);
        break;
    case CONTROL_FENCE:
        fence_raise(w, message->as.fence.group, message->as.fence.epoch);
        break;
    default:
        log_warn("message of kind %d is not for a worker", (int)message->kind);
    }
    w->config.exchange_ops->progress(w->exchange);
    stats_refresh(w);
}

static void *step_thread(void *arg)
{
    struct worker *w = arg;
    bool quit = false;
    cpu_thread_init();
    for (;;) {
        struct control_message *message = mail_take(w, &quit);
        if (message) {
            if (!quit)
                mail_run(w, message);
            free(message);
            continue;
        }
        if (quit)
            break;
        w->config.exchange_ops->sleep(w->exchange, w->wake, 100);
        uint64_t n;
        if (read(w->wake, &n, sizeof n) < 0 && errno != EAGAIN)
            log_error("eventfd: %s", strerror(errno));
        stats_refresh(w);
    }
    return NULL;
}

enum status worker_post(struct worker *w, struct control_message *message)
{
    struct mail *mail = malloc(sizeof *mail);
    if (!mail)
        return ST_NO_MEMORY;
    if (message->kind == CONTROL_FENCE && message->as.fence.epoch)
        w->config.exchange_ops->abort(w->exchange, message->as.fence.group, message->as.fence.epoch - 1);
    *mail = (struct mail){ message, NULL };
    pthread_mutex_lock(&w->lock);
    *w->last = mail;
    w->last = &mail->next;
    pthread_mutex_unlock(&w->lock);
    const uint64_t one = 1;
    if (write(w->wake, &one, sizeof one) < 0)
        log_error("eventfd: %s", strerror(errno));
    return ST_OK;
}

/* ---- life ---- */

static size_t pool_block_bytes(const struct worker *w)
{
    struct kv_pool_stats pool;
    kv_pool_stats(w->pool, &pool);
    return pool.block_bytes;
}

uint64_t worker_open_blocks(uint64_t kv_bytes, uint64_t open_bytes)
{
    enum { OPEN_MIN = 16, OPEN_MAX = 512 };
    const uint64_t n = open_bytes ? kv_bytes / 8 / open_bytes : 0;
    return !open_bytes ? 0 : n < OPEN_MIN ? OPEN_MIN : n > OPEN_MAX ? OPEN_MAX : n;
}

static enum status pool_open(struct worker *w, struct error *err)
{
    const struct worker_config *c = &w->config;
    struct kv_layout open = w->layout;
    size_t block_bytes, open_bytes = 0;
    uint64_t n_blocks = c->n_blocks, n_open = 0;
    open.part_bytes = w->ops->open_part_bytes(w->backend);
    if (!kv_layout_block_bytes(&w->layout, &block_bytes) ||
        (open.part_bytes && !kv_layout_block_bytes(&open, &open_bytes)))
        return error_set(err, ST_TOO_LARGE, "a KV block of this model does not fit in memory");
    if (open_bytes)
        n_open = c->n_blocks ? c->open_blocks : worker_open_blocks(c->kv_bytes, open_bytes);
    if (!c->n_blocks)
        n_blocks = c->kv_bytes > n_open * open_bytes ? (c->kv_bytes - n_open * open_bytes) / block_bytes : 0;
    if (n_blocks < 2 || n_blocks >= UINT32_MAX)
        return error_set(
            err, ST_INVALID,
            "kv-bytes %llu: blocks of this model take %zu bytes, at least 2 are needed, and %zu for open ones",
            (unsigned long long)c->kv_bytes, block_bytes, (size_t)n_open * open_bytes);
    const enum status st = kv_pool_new_in(&w->layout, (uint32_t)n_blocks, w->ops->kv_memory, &w->pool, err);
    return st ? st : open_blocks_init(&w->open, w->pool, open.part_bytes, (uint32_t)n_open, err);
}

static enum status selector_open(struct worker *w, struct error *err)
{
    const struct model_config *c = model_config(w->model);
    const struct selector_shape shape = { .n_heads = c->n_heads,
                                          .n_kv_heads = c->n_kv_heads,
                                          .head_dim = c->head_dim,
                                          .open = w->config.float32 ? KV_F32 : KV_BF16 };
    const enum status st =
        select_init(&w->select, w->config.selector ? w->config.selector : "dense", &shape, c->n_layers,
                    w->config.positions_max, w->ops->leaf_blocks, w->config.float32 ? 0 : cpu_caps(), err);
    w->select.store.device_queries = w->ops->kv_memory != NULL;
    return st;
}

static enum status exchange_start(struct worker *w, struct error *err)
{
    const enum status st = w->config.exchange_ops->open(&w->config.exchange, &w->exchange, err);
    if (!st)
        w->address_bytes = w->config.exchange_ops->address(w->exchange, w->address);
    return st;
}

static enum status open_parts(struct worker *w, struct error *err)
{
    const struct worker_config *c = &w->config;
    const struct backend_config backend = { c->n_threads, c->step_rows_max, c->float32, c->kv_codec, &w->ops_done };
    w->ops = backend_find(c->device);
    if (!w->ops)
        return error_set(err, ST_UNSUPPORTED, "device %s: this build has no such backend", c->device);
    enum status st = w->ops->open(&backend, w->model, c->on_progress, c->ctx, &w->backend, err);
    if (st)
        return st;
    w->ops->fingerprint(w->backend, w->fingerprint, sizeof w->fingerprint);
    w->ops->kv_layout(w->backend, &w->layout);
    st = selector_open(w, err);
    if (st)
        return st;
    st = pool_open(w, err);
    if (st)
        return st;
    w->config.exchange.on_block = on_block;
    w->config.exchange.ctx = w;
    if (!w->config.exchange.message_bytes_max)
        w->config.exchange.message_bytes_max = pool_block_bytes(w) + kv_header_bytes(&w->layout) + (1u << 28);
    return exchange_start(w, err);
}

static enum status thread_start(struct worker *w, struct error *err)
{
    w->quit = false;
    w->started = !pthread_create(&w->thread, NULL, step_thread, w);
    return w->started ? ST_OK : error_set(err, ST_NO_MEMORY, "no thread");
}

/* What runs is abandoned, what waits is dropped. */
static void thread_stop(struct worker *w)
{
    if (w->started) {
        const uint64_t one = 1;
        pthread_mutex_lock(&w->lock);
        w->quit = true;
        pthread_mutex_unlock(&w->lock);
        if (write(w->wake, &one, sizeof one) < 0)
            log_error("eventfd: %s", strerror(errno));
        w->config.exchange_ops->abort(w->exchange, atomic_load(&w->running_group),
                                      UINT64_MAX - 1); /* a step that waits ends */
        pthread_join(w->thread, NULL);
    }
    w->started = false;
    bool quit;
    for (struct control_message *m; (m = mail_take(w, &quit));)
        free(m);
}

/* As a plan would say it that drops all that has no name, and forgets all sequences. */
static enum status forget_all(struct worker *w, struct error *err)
{
    struct plan plan = { .leaf_blocks = w->ops->leaf_blocks };
    kv_handle *drops = NULL;
    uint64_t *forgets = NULL;
    enum status st = kv_pool_nameless(w->pool, &drops, &plan.n_drops);
    if (!st)
        st = sequences_ids(w->sequences, &forgets, &plan.n_forgets);
    plan.drops = drops;
    plan.forgets = forgets;
    if (!st)
        st = plan_take(w, &plan, err);
    if (!st)
        st = select_take(&w->select, &plan, w->config.exchange.self, NULL, err);
    free(drops);
    free(forgets);
    return st ? error_set(err, st, "no memory to forget what the coordinator said") : ST_OK;
}

enum status worker_pause(struct worker *w, struct error *err)
{
    thread_stop(w);
    w->config.exchange_ops->close(w->exchange); /* blocks on their way out are let go */
    w->exchange = NULL;
    w->n_fences = 0; /* the next one's epochs are higher, or it is not obeyed */
    return forget_all(w, err);
}

enum status worker_resume(struct worker *w, uint16_t self, void *ctx, struct error *err)
{
    w->config.ctx = ctx;
    w->config.exchange.self = self;
    const enum status st = exchange_start(w, err);
    return st ? st : thread_start(w, err);
}

enum status worker_inventory(const struct worker *w, struct kv_named **blocks_out, uint32_t *n_out, uint64_t *epoch_out)
{
    *epoch_out = w->epoch;
    return kv_pool_named(w->pool, blocks_out, n_out);
}

enum status worker_new(const struct worker_config *config, const struct model *model, struct worker **worker_out,
                       struct error *err)
{
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return error_set(err, ST_NO_MEMORY, "no memory");
    w->config = *config;
    w->model = model;
    w->digest = model_digest(model);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->last = &w->first;
    pthread_mutex_init(&w->lock, NULL);
    w->sequences = sequences_new();
    w->rows = malloc(config->step_rows_max * sizeof *w->rows);
    w->seals = malloc(config->step_rows_max * sizeof *w->seals);
    enum status st = w->wake < 0 || !w->sequences || !w->rows || !w->seals ? error_set(err, ST_NO_MEMORY, "no memory")
                                                                           : open_parts(w, err);
    if (!st)
        st = thread_start(w, err);
    if (st) {
        worker_free(w);
        return st;
    }
    *worker_out = w;
    return ST_OK;
}

void worker_free(struct worker *w)
{
    if (!w)
        return;
    thread_stop(w);
    if (w->exchange)
        w->config.exchange_ops->close(w->exchange);
    open_blocks_deinit(&w->open);
    kv_pool_free(w->pool);
    select_deinit(&w->select); /* the backend takes its copies of sketches back */
    if (w->backend)
        w->ops->close(w->backend);
    sequences_free(w->sequences);
    attend_free(&w->attend);
    free(w->rows);
    free(w->seals);
    free(w->asks);
    free(w->plan_sequences);
    if (w->wake >= 0)
        close(w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void worker_ready(const struct worker *w, struct control_ready *ready_out)
{
    struct kv_pool_stats pool;
    kv_pool_stats(w->pool, &pool);
    *ready_out = (struct control_ready){
        .fingerprint = w->fingerprint,
        .leaf_blocks = w->ops->leaf_blocks,
        .n_blocks = pool.n_blocks,
        .block_bytes = pool.block_bytes,
        .weight_bytes = w->ops->weight_bytes(w->backend),
        .open_blocks = pool.n_rows,
        .pool_bytes = (uint64_t)pool.n_blocks * pool.block_bytes + (uint64_t)pool.n_rows * pool.rows_bytes,
        .address = w->address,
        .address_bytes = (uint32_t)w->address_bytes,
    };
    memcpy(ready_out->model_digest, w->digest.byte, sizeof ready_out->model_digest);
    memcpy(ready_out->secret, exchange_secret(w->exchange), sizeof ready_out->secret);
}

void worker_stats(const struct worker *w, struct worker_stats *stats_out)
{
    *stats_out = (struct worker_stats){
        .plans_done = atomic_load(&w->plans_done),
        .bytes_sent = atomic_load(&w->bytes_sent),
        .bytes_received = atomic_load(&w->bytes_received),
        .blocks_used = atomic_load(&w->blocks_used),
        .sketch_bytes = atomic_load(&w->select.store.bytes),
        .work = atomic_load(&w->plans_done) + atomic_load(&w->ops_done),
        .dropped = atomic_load(&w->dropped),
    };
}
