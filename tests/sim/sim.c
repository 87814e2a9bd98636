#include "tests/sim/sim.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched/state.h"
#include "kvstore/kvstore.h"

/* ---- the oracle ---- */

uint64_t sim_hash(uint64_t before, int32_t token)
{
    return mix64(before ^ ((uint64_t)(uint32_t)token << 1) ^ 1);
}

int32_t sim_token(uint64_t hash)
{
    return mix64(hash) % 40 == 0 ? SIM_EOS : (int32_t)(mix64(hash ^ 99) % SIM_VOCAB);
}

float sim_logprob(uint64_t hash, int32_t token)
{
    return -(float)(mix64(hash ^ ((uint64_t)(uint32_t)token << 20)) % 100000) / 1000;
}

static uint64_t hash_of(const int32_t *tokens, uint32_t n)
{
    uint64_t hash = sim_hash(0, 0);
    for (uint32_t i = 0; i < n; i++)
        hash = sim_hash(hash, tokens[i]);
    return hash;
}

void sim_texts(int32_t *text_out, int32_t *other_out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        text_out[i] = (int32_t)(mix64(i) % SIM_VOCAB);
        other_out[i] = (int32_t)(mix64(i + 1000000) % SIM_VOCAB);
    }
}

int32_t sim_oracle(const int32_t *tokens, uint32_t n)
{
    return sim_token(hash_of(tokens, n));
}

void sim_wrong(struct sim *sim, const char *format, ...)
{
    va_list args;
    printf("[  WRONG   ] at %lld ms: ", (long long)sim->now);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\nreplay: %s --seed %llu\n", sim->options.replay, (unsigned long long)sim->options.seed);
    fflush(stdout);
    _Exit(1);
}

uint32_t sim_draw(struct sim *sim, uint32_t n)
{
    return n ? rng_below(&sim->rng, n) : 0;
}

/* ---- messages ---- */

/* Over the wire and back, so that all that decoding checks is checked. */
void *sim_message_copy(struct sim *sim, const struct control_message *m)
{
    struct control_message *to;
    struct error err = { 0 };
    uint8_t *bytes;
    size_t n;
    if (control_encode(m, &bytes, &n) || control_decode(bytes, n, &to, &err))
        sim_wrong(sim, "message of kind %d: %s", m->kind, err.text);
    free(bytes);
    return to;
}

/* What decoding does not know. */
static void plan_check(struct sim *sim, const struct plan *p)
{
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct plan_run *r = &p->runs[i];
        n_rows += r->n_rows;
        if (r->n_top && !(r->want & (WANT_SAMPLE | WANT_SCORE)))
            sim_wrong(sim, "plan %llu run %u: alternatives of nothing", (unsigned long long)p->number, i);
    }
    if (n_rows > sim->options.config.step_rows_max)
        sim_wrong(sim, "plan %llu: %u rows", (unsigned long long)p->number, n_rows);
}

/* ---- events ---- */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_post(struct sim *sim, int64_t at, enum sim_event_kind kind, uint16_t worker, void *data)
{
    sched_grow((void **)&sim->events, &sim->events_cap, sim->n_events + 1, sizeof *sim->events);
    const struct sim_event e = { .at = at, .order = sim->n_posted++, .kind = kind, .worker = worker, .data = data };
    uint32_t i = sim->n_events++;
    for (; i && before(&e, &sim->events[(i - 1) / 2]); i = (i - 1) / 2)
        sim->events[i] = sim->events[(i - 1) / 2];
    sim->events[i] = e;
}

static struct sim_event take_event(struct sim *sim)
{
    const struct sim_event first = sim->events[0], last = sim->events[--sim->n_events];
    uint32_t i = 0;
    for (uint32_t c; (c = 2 * i + 1) < sim->n_events; i = c) {
        c += c + 1 < sim->n_events && before(&sim->events[c + 1], &sim->events[c]);
        if (!before(&sim->events[c], &last))
            break;
        sim->events[i] = sim->events[c];
    }
    sim->events[i] = last;
    return first;
}

void sim_up(struct sim *sim, struct sim_worker *w, void *message)
{
    struct sim_link *link = sim_worker_link(w);
    int64_t at = sim->now + sim_draw(sim, sim->options.delay_max_ms + 1);
    at = at < link->up ? link->up : at;
    link->up = at;
    for (uint32_t i = 0; i < 256; i++) {
        if (sim->workers[i] == w)
            sim_post(sim, at, SIM_TO_COORDINATOR, (uint16_t)i, message);
    }
}

static void lost(struct sim *sim, uint16_t worker, const char *why)
{
    struct sim_link *link = sim_worker_link(sim->workers[worker]);
    if (!link->known)
        return;
    link->known = false;
    sim_worker_die(sim, sim->workers[worker]);
    sched_worker_lost(sim->s, worker, why);
}

static void to_coordinator(struct sim *sim, uint16_t worker, const struct control_message *m)
{
    struct error err = { 0 };
    enum status st = ST_OK;
    if (!sim_worker_link(sim->workers[worker])->known)
        return;
    if (m->kind == CONTROL_RESULT)
        st = sched_result(sim->s, worker, m->as.result, &err);
    else if (m->kind == CONTROL_ABORT)
        st = sched_abort(sim->s, worker, &m->as.abort);
    else if (m->kind == CONTROL_STORED || m->kind == CONTROL_GONE)
        sched_worker_disk(sim->s, worker, m->as.blocks.blocks, m->as.blocks.n_blocks, m->kind == CONTROL_GONE);
    else
        st = sched_copied(sim->s, worker, &m->as.copied);
    /* A worker that was told to stop may still have said something. */
    if (st && sched_slot(sim->s, worker) != SCHED_NO_SLOT)
        sim_wrong(sim, "message %d of worker %u is refused: %s %s", m->kind, worker, status_text(st), err.text);
    if (st)
        lost(sim, worker, "it was told to stop");
}

static void run_event(struct sim *sim, const struct sim_event *e)
{
    struct sim_worker *w = e->worker < 256 ? sim->workers[e->worker] : NULL;
    sim->now = e->at;
    switch (e->kind) {
    case SIM_TO_WORKER:
        sim_worker_receive(sim, w, e->data);
        break;
    case SIM_WAKE:
        sim_worker_wake(sim, w);
        break;
    case SIM_COPY:
        sim_worker_copy(sim, w, e->data);
        break;
    case SIM_TO_COORDINATOR:
        to_coordinator(sim, e->worker, e->data);
        free(e->data);
        sched_run(sim->s);
        break;
    case SIM_LOST:
        lost(sim, e->worker, "its connection ended");
        sched_run(sim->s);
        break;
    case SIM_RUN:
        sched_run(sim->s);
        sim_post(sim, sim->now + 20, SIM_RUN, 0, NULL);
        break;
    }
}

/* ---- the scheduler's world ---- */

static void op_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct sim *sim = ctx;
    struct sim_worker *w = sim->workers[worker];
    struct sim_link *link = sim_worker_link(w);
    if (m->kind == CONTROL_PLAN)
        plan_check(sim, m->as.plan);
    if (sim->options.spy)
        sim->options.spy(sim->options.spy_ctx, worker, m);
    int64_t at = sim->now + sim_draw(sim, sim->options.delay_max_ms + 1);
    at = at < link->down ? link->down : at;
    link->down = at;
    sim_post(sim, at, SIM_TO_WORKER, worker, sim_message_copy(sim, m));
}

static void op_named(void *ctx, uint16_t worker, const struct control_block *blocks, uint32_t n)
{
    struct sim *sim = ctx;
    for (uint32_t i = 0; i < n; i++)
        sim_worker_named(sim->workers[worker], &blocks[i]);
}

static int64_t op_now(void *ctx)
{
    return ((struct sim *)ctx)->now;
}

static uint32_t op_choose(void *ctx, const char *what, uint32_t n)
{
    (void)what;
    return sim_draw(ctx, n);
}

struct sim *sim_new(const struct sim_options *options)
{
    struct sim *sim = calloc(1, sizeof *sim);
    sim->options = *options;
    sim->rng = (struct rng){ .seed = options->seed };
    sim->now = 1000;
    const struct sched_ops ops = { .send = op_send,
                                   .now_ms = op_now,
                                   .choose = options->choices ? op_choose : NULL,
                                   .named = options->disk_blocks ? op_named : NULL };
    if (sched_new(&options->config, &ops, sim, &sim->s))
        sim_wrong(sim, "sched_new");
    for (uint32_t i = 0; i < options->n_workers; i++)
        sim_join(sim, options->n_blocks[i]);
    sim_post(sim, sim->now, SIM_RUN, 0, NULL);
    return sim;
}

struct sim_options sim_usual(const char *replay, uint32_t n_workers, uint32_t n_blocks)
{
    struct sim_options o = { .seed = 1,
                             .replay = replay,
                             .n_workers = n_workers,
                             .leaf_blocks = 2,
                             .delay_max_ms = 1,
                             .step_max_ms = 5,
                             .config = { .positions_max = 100000,
                                         .step_rows_max = 512,
                                         .prefill_chunk_rows = 128,
                                         .sequences_max = 16,
                                         .queue_max = 100,
                                         .spread_min_tokens = 1000,
                                         .step_deadline_ms = 500,
                                         .plans_ahead = 2,
                                         .prefix_sharing = true } };
    for (uint32_t i = 0; i < n_workers; i++)
        o.n_blocks[i] = n_blocks;
    return o;
}

void sim_free(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n_requests; i++)
        sim->requests[i].cancelled = true; /* those that still run end now */
    sched_free(sim->s);
    while (sim->n_events) {
        const struct sim_event e = take_event(sim);
        free(e.data);
    }
    for (uint32_t i = 0; i < 256; i++)
        sim_worker_free(sim->workers[i]);
    for (uint32_t i = 0; i < sim->n_requests; i++)
        free(sim->requests[i].tokens);
    free(sim->events);
    free(sim);
}

uint16_t sim_join(struct sim *sim, uint32_t n_blocks)
{
    return sim_join_as(sim, n_blocks, "sim");
}

uint16_t sim_join_as(struct sim *sim, uint32_t n_blocks, const char *fingerprint)
{
    const uint16_t id = (uint16_t)sim->n_workers++;
    const struct control_ready ready = { .fingerprint = fingerprint,
                                         .leaf_blocks = sim->options.leaf_blocks,
                                         .n_blocks = n_blocks,
                                         .open_blocks = sim->options.open_blocks };
    assert(id < 256);
    sim->workers[id] = sim_worker_new(sim, id, n_blocks);
    if (sched_worker_ready(sim->s, id, &ready, NULL))
        sim_wrong(sim, "worker %u is not taken", id);
    return id;
}

void sim_crash(struct sim *sim, uint16_t worker, uint32_t notice_ms)
{
    sim_worker_die(sim, sim->workers[worker]);
    sim_post(sim, sim->now + notice_ms, SIM_LOST, worker, NULL);
}

void sim_hang(struct sim *sim, uint16_t worker, int64_t ms)
{
    sim_worker_link(sim->workers[worker])->hung_until = ms == INT64_MAX ? ms : sim->now + ms;
    if (ms != INT64_MAX)
        sim_post(sim, sim->now + ms, SIM_WAKE, worker, NULL);
}

void sim_cut(struct sim *sim, uint16_t a, uint16_t b, int64_t ms)
{
    sim->cut[0] = a;
    sim->cut[1] = b;
    sim->cut_until = sim->now + ms;
}

bool sim_alive(const struct sim *sim, uint16_t worker)
{
    return sim->workers[worker] && sim_worker_link(sim->workers[worker])->alive;
}

/* ---- requests ---- */

static void expect(struct sim_request *r, const char *what, bool ok, uint32_t pos)
{
    if (!ok || r->ended)
        sim_wrong(r->sim, "request %td: %s at position %u%s", r - r->sim->requests, what, pos,
                  r->ended ? " after its end" : "");
}

static void on_scored(void *user, uint32_t position, const struct result_row *row)
{
    struct sim_request *r = user;
    expect(r, "scored out of order", r->score && position == r->n_scored && position + 1 < r->n_prompt, position);
    expect(r, "wrong score",
           row->target_logprob == sim_logprob(hash_of(r->tokens, position + 1), r->tokens[position + 1]), position);
    r->n_scored++;
}

static void gap_note(struct sim_request *r, int64_t ms)
{
    r->gaps[ms < SIM_GAP_MAX ? ms : SIM_GAP_MAX - 1]++;
    r->gap_ms = ms > r->gap_ms ? ms : r->gap_ms;
}

static void on_token(void *user, const struct result_row *row)
{
    struct sim_request *r = user;
    expect(r, "it goes on after its deadline", !r->timeout_ms || r->sim->now <= r->submitted_ms + r->timeout_ms + 1000,
           row->pos);
    const uint32_t pos = r->n_prompt + r->n_tokens;
    expect(r, "a token too many", r->n_tokens < r->n_expected, pos);
    expect(r, "a row out of order", row->pos + 1 == pos, pos);
    expect(r, "wrong token", row->token == r->tokens[pos], pos);
    expect(r, "wrong log-probability", row->logprob == sim_logprob(hash_of(r->tokens, pos), row->token), pos);
    if (!r->n_tokens++)
        r->first_ms = r->sim->now;
    else
        gap_note(r, r->sim->now - r->last_ms);
    r->last_ms = r->sim->now;
    if (r->cancel_at && r->n_tokens == r->cancel_at) {
        r->cancelled = true;
        sched_cancel(r->sim->s, r->handle, FINISH_CANCELLED);
    }
}

static void on_logits(void *user, const struct result_row *row)
{
    struct sim_request *r = user;
    const uint64_t hash = hash_of(r->tokens, row->pos + 1);
    expect(r, "logits out of order", r->logits && row->pos == r->n_logits, row->pos);
    expect(r, "wrong logits", row->n_logits == 2 && !memcmp(row->logits, &hash, sizeof hash), row->pos);
    r->n_logits++;
}

/* Blocks are found by what they were computed from: ids of all that are committed follow from the tokens. */
static void check_ids(struct sim *sim, const struct sched_request *r)
{
    struct digest id;
    for (uint32_t c = 0; r->copies && c < r->n_committed; c++) {
        id = kv_block_id(c ? &id : NULL, &r->context, r->tokens + c * PLAN_BLOCK, request_prompt_rows(sim->s, r, c));
        if (r->copies[c] && memcmp(&id, &r->copies[c]->block->id, sizeof id) != 0)
            sim_wrong(sim, "sequence %llu: the id of block %u is not that of its tokens", (unsigned long long)r->id, c);
    }
}

static void on_done(void *user, const struct sched_done *done)
{
    struct sim_request *r = user;
    check_ids(r->sim, r->handle);
    expect(r, "done", true, 0);
    r->ended = true;
    r->ended_ms = r->sim->now;
    r->reason = done->reason;
    r->status = done->status;
    r->cached = done->cached_tokens;
    r->again = done->recomputed_tokens;
    snprintf(r->message, sizeof r->message, "%s", done->message ? done->message : "");
    r->n_shares = done->n_shares < SIM_WORKERS_MAX ? done->n_shares : SIM_WORKERS_MAX;
    memcpy(r->shares, done->shares, r->n_shares * sizeof r->shares[0]);
    if (done->prompt_tokens != r->n_prompt || done->completion_tokens != r->n_tokens)
        sim_wrong(r->sim, "done counts %u + %u tokens, not %u + %u", done->prompt_tokens, done->completion_tokens,
                  r->n_prompt, r->n_tokens);
    if (done->cached_tokens > (r->n_prompt - 1) / PLAN_BLOCK * PLAN_BLOCK ||
        (done->cached_tokens && (r->score || (r->logits && done->cached_tokens > r->logits_from))))
        sim_wrong(r->sim, "%u of %u prompt tokens by prefix hit", done->cached_tokens, r->n_prompt);
    if (done->reason == FINISH_CANCELLED && !r->cancelled)
        sim_wrong(r->sim, "cancelled by nobody");
    if (done->reason == FINISH_ERROR)
        return;
    if (done->reason == FINISH_CANCELLED)
        return;
    const bool stopped = r->eos && r->n_tokens && r->tokens[r->n_prompt + r->n_tokens - 1] == SIM_EOS;
    if (r->n_tokens != r->n_expected || (done->reason == FINISH_STOP) != stopped)
        sim_wrong(r->sim, "finished for reason %d after %u of %u tokens", done->reason, r->n_tokens, r->n_expected);
    if (r->score && r->n_scored != r->n_prompt - 1)
        sim_wrong(r->sim, "%u positions of %u scored", r->n_scored, r->n_prompt - 1);
    const uint32_t n_rows = r->n_prompt + (r->n_tokens ? r->n_tokens - 1 : 0);
    if (r->logits && r->n_logits != (n_rows > r->logits_from ? n_rows : r->logits_from))
        sim_wrong(r->sim, "%u rows of logits", r->n_logits);
}

int sim_submit(struct sim *sim, const struct sim_want *want, enum status *st_out)
{
    assert(sim->n_requests < SIM_REQUESTS_MAX);
    struct sim_request *r = &sim->requests[sim->n_requests];
    static const struct sched_events events = {
        .scored = on_scored, .token = on_token, .logits = on_logits, .done = on_done
    };
    const int32_t eos = SIM_EOS;
    *r = (struct sim_request){ .used = true,
                               .n_prompt = want->n_tokens,
                               .max_tokens = want->max_tokens,
                               .eos = want->eos,
                               .score = want->score,
                               .logits = want->logits,
                               .logits_from = want->logits_from,
                               .n_logits = want->logits_from,
                               .cancel_at = want->cancel_at,
                               .submitted_ms = sim->now,
                               .timeout_ms = want->timeout_ms,
                               .sim = sim };
    r->tokens = malloc((want->n_tokens + want->max_tokens) * sizeof(int32_t));
    memcpy(r->tokens, want->tokens, want->n_tokens * sizeof(int32_t));
    uint64_t hash = hash_of(r->tokens, r->n_prompt);
    for (uint32_t i = 0; i < want->max_tokens; i++) {
        r->tokens[r->n_prompt + i] = sim_token(hash);
        hash = sim_hash(hash, r->tokens[r->n_prompt + i]);
        r->n_expected++;
        if (r->eos && r->tokens[r->n_prompt + i] == SIM_EOS)
            break;
    }
    r->n_forced = want->n_forced < r->n_expected ? want->n_forced : r->n_expected;
    const struct sched_want w = { .tokens = want->tokens,
                                  .n_tokens = want->n_tokens,
                                  .max_tokens = want->max_tokens,
                                  .eos = &eos,
                                  .n_eos = want->eos,
                                  .score = want->score,
                                  .logits = want->logits,
                                  .logits_from = want->logits_from,
                                  .forced = r->tokens + r->n_prompt,
                                  .n_forced = r->n_forced,
                                  .label = "sim",
                                  .priority = want->priority,
                                  .tenant = want->tenant,
                                  .deadline_ms = want->timeout_ms ? sim->now + want->timeout_ms : 0 };
    const enum status st = sched_submit(sim->s, &w, &events, r, &r->handle, NULL);
    if (st_out)
        *st_out = st;
    if (st) {
        free(r->tokens);
        return -1;
    }
    sched_run(sim->s);
    return (int)sim->n_requests++;
}

uint32_t sim_accepted(struct sim *sim, struct sim_want want)
{
    enum status st;
    const int i = sim_submit(sim, &want, &st);
    if (i < 0)
        sim_wrong(sim, "refused: %s", status_text(st));
    return (uint32_t)i;
}

void sim_cancel(struct sim *sim, uint32_t request)
{
    struct sim_request *r = &sim->requests[request];
    if (r->ended)
        return;
    r->cancelled = true;
    sched_cancel(sim->s, r->handle, FINISH_CANCELLED);
    if (!r->ended)
        sim_wrong(sim, "cancel does not end request %u", request);
}

/* ---- time ---- */

void sim_advance(struct sim *sim, int64_t ms)
{
    const int64_t until = sim->now + ms;
    while (sim->n_events && sim->events[0].at <= until) {
        const struct sim_event e = take_event(sim);
        run_event(sim, &e);
    }
    sim->now = until;
}

static uint32_t open_requests(const struct sim *sim)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < sim->n_requests; i++)
        n += !sim->requests[i].ended;
    return n;
}

void sim_finish(struct sim *sim, int64_t limit_ms)
{
    const int64_t limit = sim->now + limit_ms;
    while (open_requests(sim)) {
        if (sim->now > limit)
            sim_wrong(sim, "%u requests have not ended", open_requests(sim));
        sim_advance(sim, 20);
    }
}

void sim_check_empty(struct sim *sim)
{
    struct sched_stats stats;
    struct sched_worker_stats workers[SCHED_SLOTS];
    /* Time for what is in flight, for copies that nobody waits for any more, and for those that never come. */
    sim_advance(sim, 20 * (int64_t)sim->options.config.step_deadline_ms +
                         (sim->options.disk_blocks ? 3 * SCHED_LOAD_MS : 0));
    sched_stats(sim->s, &stats);
    if (stats.waiting || stats.running || sim->s->n_running || sim->s->n_transfers)
        sim_wrong(sim, "%u wait, %u run, %u are not freed, %u transfers", stats.waiting, stats.running,
                  sim->s->n_running, sim->s->n_transfers);
    const uint32_t n = sched_worker_stats(sim->s, workers, SCHED_SLOTS);
    if (stats.groups != n)
        sim_wrong(sim, "%u groups of %u workers", stats.groups, n);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t slot = sched_slot(sim->s, workers[i].id);
        struct pool *p = &sim->s->dir.pools[slot];
        const uint32_t held = sim_worker_blocks(sim->workers[workers[i].id]);
        const uint32_t sequences = sim_worker_sequences(sim->workers[workers[i].id]);
        if (p->promised || p->dropping || p->named != p->cached || held != p->named || sequences)
            sim_wrong(sim, "worker %u: %u promised, %u dropping, %u named, %u cached, %u held, %u sequences known",
                      workers[i].id, p->promised, p->dropping, p->named, p->cached, held, sequences);
        if (p->on_disk > sim_worker_stored(sim->workers[workers[i].id]))
            sim_wrong(sim, "worker %u: %u blocks on its disk, there are %u", workers[i].id, p->on_disk,
                      sim_worker_stored(sim->workers[workers[i].id]));
        if (!directory_promise(&sim->s->dir, slot, p->n_blocks))
            sim_wrong(sim, "worker %u: its cache cannot be evicted", workers[i].id);
        directory_unpromise(&sim->s->dir, slot, p->n_blocks);
    }
    sim_advance(sim, 10 * (int64_t)sim->options.config.step_deadline_ms);
    for (uint32_t i = 0; i < n; i++) {
        const struct sim_worker *w = sim->workers[workers[i].id];
        if (sim_worker_blocks(w))
            sim_wrong(sim, "worker %u holds %u blocks after all were evicted", workers[i].id, sim_worker_blocks(w));
    }
    for (uint8_t slot = 0; slot < SCHED_SLOTS; slot++) {
        directory_disk_lost(&sim->s->dir, slot);
        if (sim->s->dir.pools[slot].on_disk)
            sim_wrong(sim, "slot %u: %u blocks on a disk that are none", slot, sim->s->dir.pools[slot].on_disk);
    }
    if (sim->s->dir.n_blocks)
        sim_wrong(sim, "the directory has %u blocks", sim->s->dir.n_blocks);
}

void sim_end(struct sim *sim)
{
    sim_finish(sim, 1000000);
    sim_check_empty(sim);
    sim_free(sim);
}
