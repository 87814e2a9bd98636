#include "coordinator/sched.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "coordinator/sched/state.h"

enum { LEAF_BLOCKS_MAX = 4096, TEMPERATURE_MAX = 1000000 }; /* as plans allow */

enum status sched_new(const struct sched_config *config, const struct sched_ops *ops, void *ctx,
                      struct sched **sched_out)
{
    if (!config->step_rows_max || config->step_rows_max > PLAN_ROWS_MAX || !config->prefill_chunk_rows ||
        !config->sequences_max || !config->plans_ahead || config->plans_ahead > SCHED_PLANS_MAX ||
        !config->step_deadline_ms || config->positions_max > PLAN_POSITIONS_MAX)
        return ST_INVALID;
    struct sched *s = calloc(1, sizeof *s);
    if (!s)
        return ST_NO_MEMORY;
    s->config = *config;
    s->ops = *ops;
    s->ctx = ctx;
    s->deadline_ms = s->over_ms = INT64_MAX;
    s->transfers_end = &s->transfers;
    if (tenant_weights_read(s, config->tenant_weights)) {
        tenants_free(s);
        free(s);
        return ST_INVALID;
    }
    s->config.tenant_weights = NULL;
    directory_init(&s->dir);
    *sched_out = s;
    return ST_OK;
}

void sched_enter(struct sched *s)
{
    s->depth++;
}

void sched_leave(struct sched *s)
{
    if (--s->depth)
        return;
    while (s->freed) {
        struct sched_request *r = s->freed;
        s->freed = r->next;
        request_free(r);
    }
}

static struct sched_request *find_live(const struct sched *s)
{
    if (s->n_queued)
        return queue_each(s, NULL);
    for (uint32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->state == REQUEST_RUNNING)
            return s->running[i];
    }
    return NULL;
}

void sched_free(struct sched *s)
{
    if (!s)
        return;
    sched_enter(s);
    for (struct sched_request *r; (r = find_live(s));)
        request_end(s, r, FINISH_CANCELLED, ST_CANCELLED, "the coordinator stops");
    for (uint32_t i = 0; i < s->n_running; i++)
        s->running[i]->in_flight = 0;
    while (s->n_running)
        request_settle(s, s->running[0]);
    while (s->n_groups)
        group_free(s, s->groups[0]);
    while (s->n_spares)
        flight_free(s->spares[--s->n_spares]);
    for (struct transfer *t = s->transfers, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    sched_leave(s);
    for (uint32_t i = 0; i < SCHED_SLOTS; i++)
        outbox_deinit(&s->workers[i].forgets);
    directory_deinit(&s->dir);
    names_deinit(s);
    tenants_free(s);
    free(s->running);
    free(s->lingering);
    free(s->place.hits);
    free(s->place.at);
    free(s->place.owner);
    free(s->place.brought);
    free(s->seqs);
    free(s->order);
    free(s->runs);
    free(s);
}

/* ---- requests ---- */

static enum status want_check(struct sched *s, const struct sched_want *want, struct error *err)
{
    if (!want->n_tokens)
        return error_set(err, ST_INVALID, "the prompt has no tokens");
    if (!want->max_tokens && !want->score && !want->logits)
        return error_set(err, ST_INVALID, "max_tokens is 0 and nothing is scored");
    if (want->n_top > PLAN_TOP_MAX)
        return error_set(err, ST_INVALID, "%u alternatives a token, %u at most", want->n_top, PLAN_TOP_MAX);
    for (uint32_t i = 0; i < want->n_tokens; i++) {
        if (want->tokens[i] < 0)
            return error_set(err, ST_INVALID, "token %u of the prompt is negative", i);
    }
    for (uint32_t i = 0; want->forced && i < want->n_forced; i++) {
        if (want->forced[i] < 0)
            return error_set(err, ST_INVALID, "forced token %u is negative", i);
    }
    if (want->logits && want->logits_from >= request_rows(want))
        return error_set(err, ST_INVALID, "logits_from %u: there are %u rows", want->logits_from, request_rows(want));
    if (want->n_told && (want->n_told >= want->max_tokens || want->score || want->logits))
        return error_set(err, ST_INVALID, "%u tokens were told of %u, or more is asked than goes on behind them",
                         want->n_told, want->max_tokens);
    for (uint32_t i = 0; i < want->n_told; i++) {
        if (want->told[i] < 0)
            return error_set(err, ST_INVALID, "told token %u is negative", i);
    }
    if (want->tenant && strlen(want->tenant) > SCHED_TENANT_MAX)
        return error_set(err, ST_INVALID, "the tenant's name has more than %d bytes", SCHED_TENANT_MAX);
    if (want->deadline_ms && want->deadline_ms <= sched_now_ms(s))
        return error_set(err, ST_TIMEOUT, "the request's deadline has passed already");
    const struct plan_sampling *sampling = &want->sampling;
    if (!(sampling->temperature >= 0 && sampling->temperature <= TEMPERATURE_MAX))
        return error_set(err, ST_INVALID, "temperature %g", (double)sampling->temperature);
    if (!(sampling->top_p >= 0 && sampling->top_p <= 1) || (sampling->temperature > 0 && !(sampling->top_p > 0)))
        return error_set(err, ST_INVALID, "top_p %g", (double)sampling->top_p);
    if (!(sampling->min_p >= 0 && sampling->min_p <= 1))
        return error_set(err, ST_INVALID, "min_p %g", (double)sampling->min_p);
    if ((uint64_t)want->n_tokens + want->max_tokens > s->config.positions_max)
        return error_set(err, ST_TOO_LARGE,
                         "the prompt's %u tokens and max_tokens %u are more than the %u positions served",
                         want->n_tokens, want->max_tokens, s->config.positions_max);
    return ST_OK;
}

/* Who waits for blocks that another computes has a place among the running, if there is one. */
static bool queue_full(const struct sched *s)
{
    const uint32_t places = s->n_live < s->config.sequences_max ? s->config.sequences_max - s->n_live : 0;
    const uint32_t waiting = s->n_queued - (s->n_awaiting < places ? s->n_awaiting : places);
    return waiting >= s->config.queue_max && (s->n_queued || !places);
}

enum status sched_submit(struct sched *s, const struct sched_want *want, const struct sched_events *events, void *user,
                         struct sched_request **request_out, struct error *err)
{
    enum status st = want_check(s, want, err);
    if (st)
        return st;
    uint64_t taking = 0;
    SCHED_EACH(slot, s->ready)
    {
        taking |= s->workers[slot].draining ? 0 : SCHED_BIT(slot);
    }
    if (!taking)
        return error_set(err, ST_PEER, "no worker is ready");
    if (!place_ever(s, want->n_tokens, request_rows(want), retain_bound(s, want->n_tokens, want->density)))
        return error_set(err, ST_TOO_LARGE,
                         "the prompt's %u tokens and max_tokens %u are more than the workers' memory holds",
                         want->n_tokens, want->max_tokens);
    if (queue_full(s))
        return error_set(err, ST_BUSY, "%u requests wait already", s->n_queued);
    const uint32_t wait = wait_estimate(s, want->n_tokens, want->priority, want->tenant ? want->tenant : "");
    if (s->config.queue_wait_ms && wait > s->config.queue_wait_ms)
        return error_set(err, ST_BUSY, "it would wait for about %u ms, and %u is the limit", wait,
                         s->config.queue_wait_ms);
    struct sched_request *r;
    st = request_new(s, want, &r);
    if (st)
        return error_set(err, st, "no memory for a request of %u tokens", want->n_tokens);
    r->events = *events;
    r->user = user;
    if (r->told)
        request_ids_extend(s, r);
    if (r->deadline_ms && r->deadline_ms < s->deadline_ms)
        s->deadline_ms = r->deadline_ms;
    if (s->config.queue_wait_ms && r->submitted_ms + s->config.queue_wait_ms < s->over_ms)
        s->over_ms = r->submitted_ms + s->config.queue_wait_ms;
    if (!s->n_live && !s->n_queued)
        s->stats.progress_ms = sched_now_ms(s);
    queue_add(s, r);
    *request_out = r;
    return ST_OK;
}

void sched_cancel(struct sched *s, struct sched_request *r, enum finish_reason reason)
{
    sched_enter(s);
    request_end(s, r, reason, reason == FINISH_CANCELLED ? ST_CANCELLED : ST_OK, NULL);
    sched_leave(s);
}

/* ---- workers ---- */

uint8_t sched_slot(const struct sched *s, uint16_t worker)
{
    SCHED_EACH(slot, s->ready)
    {
        if (s->workers[slot].id == worker)
            return slot;
    }
    return SCHED_NO_SLOT;
}

const char *sched_names(const struct sched *s, uint64_t mask, char *text_out, size_t n)
{
    uint8_t slots[SCHED_SLOTS];
    const uint32_t n_slots = place_order(s, mask, slots);
    size_t at = (size_t)snprintf(text_out, n, n_slots == 1 ? "worker" : "workers");
    for (uint32_t i = 0; i < n_slots && at < n; i++)
        at += (size_t)snprintf(text_out + at, n - at, "%s %u", i ? "," : "", s->workers[slots[i]].id);
    return text_out;
}

enum status sched_worker_ready(struct sched *s, uint16_t worker, const struct control_ready *ready, struct error *err)
{
    if (sched_slot(s, worker) != SCHED_NO_SLOT)
        return error_set(err, ST_EXISTS, "ready: worker %u is ready already", worker);
    if (!ready->n_blocks || ready->n_blocks > INT32_MAX)
        return error_set(err, ST_INVALID, "ready: n_blocks %u", ready->n_blocks);
    if (!ready->leaf_blocks || ready->leaf_blocks > LEAF_BLOCKS_MAX)
        return error_set(err, ST_INVALID, "ready: leaf_blocks %u", ready->leaf_blocks);
    if (ready->open_blocks && ready->open_blocks <= s->config.plans_ahead)
        return error_set(err, ST_INVALID, "ready: open_blocks %u, a sequence may need %u", ready->open_blocks,
                         s->config.plans_ahead + 1);
    if (!ready->fingerprint)
        return error_set(err, ST_INVALID, "ready: no fingerprint");
    if (!~s->ready)
        return error_set(err, ST_BUSY, "%u workers are ready, no more can be served", SCHED_SLOTS);
    const uint8_t slot = (uint8_t)__builtin_ctzll(~s->ready);
    struct worker *w = &s->workers[slot];
    *w = (struct worker){
        .ready = true, .id = worker, .leaf_blocks = ready->leaf_blocks, .block_bytes = ready->block_bytes
    };
    /* Open at once are the last block of each plan in flight and one from before. */
    w->ties_max = ready->open_blocks ? ready->open_blocks / (s->config.plans_ahead + 1) : UINT32_MAX;
    struct hasher *h = hasher_new();
    hasher_add(h, s->config.context.byte, sizeof s->config.context.byte);
    hasher_add_text(h, ready->fingerprint);
    hasher_add(h, ready->model_digest, sizeof ready->model_digest);
    hasher_add_u64(h, ready->leaf_blocks);
    w->context = hasher_end(h);
    directory_pool_add(&s->dir, slot, ready->n_blocks);
    s->ready |= SCHED_BIT(slot);
    group_new(s, SCHED_BIT(slot));
    s->admit_changed = s->rebalance = true;
    recover_help(s, slot);
    return ST_OK;
}

/* Takes it out of a group that has nothing in flight. */
static void member_remove(struct sched *s, struct group *g, uint8_t slot)
{
    g->members &= ~SCHED_BIT(slot);
    if (!g->members) {
        group_free(s, g);
        return;
    }
    g->n_members = place_order(s, g->members, g->slots);
    for (uint32_t i = 0; i < g->n_members; i++)
        g->ids[i] = s->workers[g->slots[i]].id;
}

void sched_worker_lost(struct sched *s, uint16_t worker, const char *why)
{
    char text[256];
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return;
    struct worker *w = &s->workers[slot];
    struct group *g = w->group;
    snprintf(text, sizeof text, "worker %u was lost: %s", worker, why ? why : "no reason given");
    sched_enter(s);
    w->ready = false;
    s->ready &= ~SCHED_BIT(slot);
    group_break(s, g, SCHED_BIT(slot), text);
    transfers_lost(s, slot);
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        r->known &= ~SCHED_BIT(slot);
        r->leaves = r->leaves && r->haven != slot;
    }
    member_remove(s, g, slot);
    s->stats.recovered_copies += directory_pool_remove(&s->dir, slot);
    replicate_again(s);
    outbox_deinit(&w->forgets);
    *w = (struct worker){ 0 };
    recover_strand(s, text);
    recover_check(s);
    sched_leave(s);
}

void sched_worker_drain(struct sched *s, uint16_t worker)
{
    char text[64];
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT || s->workers[slot].draining)
        return;
    sched_enter(s);
    s->workers[slot].draining = true;
    s->admit_changed = true;
    snprintf(text, sizeof text, "worker %u drains", worker);
    recover_strand(s, text);
    recover_check(s);
    sched_leave(s);
}

/* ---- messages ---- */

enum status sched_result(struct sched *s, uint16_t worker, const struct result *result, struct error *err)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return error_set(err, ST_PROTOCOL, "result: worker %u is not ready", worker);
    struct group *g = s->workers[slot].group;
    if (result->epoch < g->epoch)
        return ST_OK; /* of a plan that was abandoned */
    if (result->epoch > g->epoch || result->group != g->id)
        return error_set(err, ST_PROTOCOL, "result: group %u epoch %llu, worker %u is in group %u epoch %llu",
                         result->group, (unsigned long long)result->epoch, worker, g->id, (unsigned long long)g->epoch);
    sched_enter(s);
    const enum status st = flight_result(s, g, slot, result, err);
    sched_leave(s);
    return st;
}

enum status sched_copied(struct sched *s, uint16_t worker, const struct control_copied *copied)
{
    const uint8_t slot = sched_slot(s, worker);
    if (slot == SCHED_NO_SLOT)
        return ST_PROTOCOL;
    sched_enter(s);
    const enum status st = transfer_arrived(s, slot, copied);
    if (!st)
        s->stats.progress_ms = sched_now_ms(s);
    sched_leave(s);
    return st;
}

/* The next one whose deadline has passed; *first_out: of the others the first deadline. */
static struct sched_request *find_late(const struct sched *s, int64_t now, int64_t *first_out)
{
    *first_out = INT64_MAX;
    for (struct sched_request *r = queue_each(s, NULL); r; r = queue_each(s, r)) {
        if (r->deadline_ms && r->deadline_ms <= now)
            return r;
        if (r->deadline_ms && r->deadline_ms < *first_out)
            *first_out = r->deadline_ms;
    }
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *r = s->running[i];
        if (r->state != REQUEST_RUNNING || !r->deadline_ms)
            continue;
        if (r->deadline_ms <= now)
            return r;
        if (r->deadline_ms < *first_out)
            *first_out = r->deadline_ms;
    }
    return NULL;
}

/* Ends what is late. -> ms until the next deadline */
static int64_t deadlines_check(struct sched *s)
{
    const int64_t now = sched_now_ms(s);
    char text[128];
    if (s->deadline_ms <= now) {
        for (struct sched_request *r; (r = find_late(s, now, &s->deadline_ms));) {
            snprintf(text, sizeof text, "the request's deadline passed %s, after %u tokens",
                     r->state == REQUEST_WAITING ? "while it waited for room" : "before it was done", r->n_generated);
            request_end(s, r, FINISH_ERROR, ST_TIMEOUT, text);
        }
    }
    return s->deadline_ms == INT64_MAX ? SCHED_RUN_MS : s->deadline_ms - now;
}

int64_t sched_run(struct sched *s)
{
    sched_enter(s);
    int64_t wait = groups_check(s);
    const int64_t late = deadlines_check(s);
    wait = late < wait ? late : wait;
    const int64_t over = wait_check(s);
    wait = over < wait ? over : wait;
    const int64_t stranded = recover_check(s);
    wait = stranded < wait ? stranded : wait;
    transfers_check(s);
    admit_all(s);
    groups_form(s);
    for (uint32_t i = 0; i < s->n_groups; i++) {
        while (planner_send(s, s->groups[i])) {
        }
        const struct group *g = s->groups[i];
        if (g->n_flights && s->config.step_deadline_ms < wait)
            wait = s->config.step_deadline_ms;
    }
    rebalance_all(s);
    drain_all(s);
    replicate_all(s);
    transfers_send(s);
    if (s->admit_changed && s->n_queued)
        wait = 1;
    if (s->n_transfers) {
        const int64_t due = transfers_deadline(s);
        wait = due < wait ? due : wait;
    }
    if (wait > SCHED_SHIP_PAUSE_MS && s->n_live)
        wait = SCHED_SHIP_PAUSE_MS;
    sched_leave(s);
    return wait > 0 ? wait : 1;
}
