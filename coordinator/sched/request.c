/* A request's memory, its end, and what it gives back. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

uint32_t request_rows(const struct sched_want *want)
{
    if (want->max_tokens)
        return want->n_tokens + want->max_tokens - 1;
    /* The last row of a prompt that is only scored says nothing. */
    return want->logits || want->n_tokens == 1 ? want->n_tokens : want->n_tokens - 1;
}

struct digest request_context(const struct sched_request *r, const struct digest *worker)
{
    static const struct digest none;
    const bool salted = memcmp(&r->salt, &none, sizeof none) != 0;
    if (!r->density && !salted)
        return *worker;
    struct hasher *h = hasher_new();
    hasher_add(h, worker->byte, sizeof worker->byte);
    hasher_add_u64(h, r->density);
    if (salted)
        hasher_add(h, r->salt.byte, sizeof r->salt.byte);
    return hasher_end(h);
}

uint32_t request_prompt_rows(const struct sched *s, const struct sched_request *r, uint32_t c)
{
    const uint32_t first = c * PLAN_BLOCK;
    const bool by_density = r->density && r->density < PLAN_DENSITY_ONE && !s->config.prompt_sparse;
    if ((!by_density && !s->config.row_classes) || r->n_prompt <= first)
        return 0;
    return r->n_prompt - first < PLAN_BLOCK ? r->n_prompt - first : PLAN_BLOCK;
}

enum status request_new(struct sched *s, const struct sched_want *want, struct sched_request **r_out)
{
    struct sched_request *r = calloc(1, sizeof *r);
    if (!r)
        return ST_NO_MEMORY;
    r->n_prompt = want->n_tokens;
    r->max_tokens = want->max_tokens;
    r->n_forced = want->forced ? want->n_forced : 0;
    if (r->n_forced > r->max_tokens)
        r->n_forced = r->max_tokens;
    r->n_known = r->n_prompt + (want->n_told > r->n_forced ? want->n_told : r->n_forced);
    r->n_rows = request_rows(want);
    r->score = want->score;
    r->logits = want->logits;
    r->logits_from = want->logits ? want->logits_from : 0;
    r->edits = want->edits;
    r->history = want->history;
    r->n_top = want->n_top;
    r->sampling = want->sampling;
    r->density = want->density && s->config.density ? want->density : s->config.density;
    if (want->salt)
        r->salt = *want->salt;
    r->priority = want->priority;
    _Static_assert(sizeof r->label == PLAN_LABEL_MAX + 1, "workers take any label");
    snprintf(r->label, sizeof r->label, "%s", want->label ? want->label : "");
    for (char *c = r->label; *c; c++)
        *c = *c > ' ' && *c <= '~' ? *c : '?'; /* it stands in logs, here and at workers */
    r->tokens_cap = r->n_known + PLAN_BLOCK;
    r->tokens = malloc(r->tokens_cap * sizeof *r->tokens);
    r->eos = calloc(want->n_eos + 1, sizeof *r->eos);
    if (s->config.prefix_sharing && !r->score)
        r->n_ids = (r->logits && r->logits_from < r->n_prompt ? r->logits_from : r->n_prompt - 1) / PLAN_BLOCK;
    r->ids = calloc(r->n_ids + 1, sizeof *r->ids);
    if (!r->tokens || !r->eos || !r->ids) {
        request_free(r);
        return ST_NO_MEMORY;
    }
    r->deadline_ms = want->deadline_ms;
    r->tenant = tenant_open(s, want->tenant ? want->tenant : "");
    r->arrival = ++s->arrivals;
    r->submitted_ms = sched_now_ms(s);
    memcpy(r->tokens, want->tokens, r->n_prompt * sizeof *r->tokens);
    if (r->n_forced)
        memcpy(r->tokens + r->n_prompt, want->forced, r->n_forced * sizeof *r->tokens);
    if (want->n_told) { /* as one that gave way after its last token */
        memcpy(r->tokens + r->n_prompt, want->told, want->n_told * sizeof *r->tokens);
        r->n_generated = want->n_told;
        r->told = r->n_prompt + want->n_told - 1;
    }
    memset(r->tokens + r->n_known, 0xff, (r->tokens_cap - r->n_known) * sizeof *r->tokens); /* -1 */
    r->n_eos = want->n_eos;
    if (r->n_eos)
        memcpy(r->eos, want->eos, r->n_eos * sizeof *r->eos);
    *r_out = r;
    return ST_OK;
}

static void request_unplace(struct sched_request *r)
{
    free(r->table);
    free(r->copies);
    free(r->brought);
    free(r->at);
    free(r->owner);
    free(r->readers);
    free(r->ship_copies);
    free(r->deferred);
    r->table = NULL;
    r->copies = NULL;
    r->brought = NULL;
    r->at = r->owner = NULL;
    r->readers = NULL;
    r->ship_copies = NULL;
    r->deferred = NULL;
    r->deferred_cap = 0;
}

void request_free(struct sched_request *r)
{
    if (!r)
        return;
    request_unplace(r);
    if (r->tenant)
        r->tenant->n_open--;
    free(r->tokens);
    free(r->eos);
    free(r->ids);
    free(r);
}

enum status request_token(struct sched_request *r, uint32_t position, int32_t token)
{
    /* One more stays -1 behind the last: targets of rows whose next token nobody knows. */
    if (position + 2 > r->tokens_cap) {
        const uint32_t cap = 2 * r->tokens_cap;
        int32_t *more = realloc(r->tokens, cap * sizeof *more);
        if (!more)
            return ST_NO_MEMORY;
        memset(more + r->tokens_cap, 0xff, (cap - r->tokens_cap) * sizeof *more);
        r->tokens = more;
        r->tokens_cap = cap;
    }
    r->tokens[position] = token;
    if (position + 1 > r->n_known)
        r->n_known = position + 1;
    return ST_OK;
}

void request_ids_extend(struct sched *s, struct sched_request *r)
{
    if (!s->config.prefix_sharing)
        return;
    /* One position at least is computed: the one after those whose rows were told. Rows that were told need no telling again, scores too. */
    const uint32_t n = r->told / PLAN_BLOCK;
    if (n <= r->n_ids)
        return;
    struct digest *ids = sched_alloc(n, sizeof *ids);
    memcpy(ids, r->ids, r->n_ids * sizeof *ids);
    free(r->ids);
    r->ids = ids;
    r->n_ids = n;
}

void request_skip(const struct sched_request *r, uint32_t *pos)
{
    while (*pos % PLAN_BLOCK == 0 && *pos / PLAN_BLOCK < r->n_blocks && r->brought[*pos / PLAN_BLOCK])
        *pos += PLAN_BLOCK;
}

static void promise_return(struct sched *s, struct sched_request *r)
{
    SCHED_EACH(slot, r->ties)
    {
        directory_unpromise(&s->dir, slot, r->promise[slot]);
        r->promise[slot] = 0;
    }
    r->window = r->window_left = r->window_open = 0;
}

/* A copy whose transfer was called off before it was sent does not exist. */
static void copy_let_go(struct sched *s, struct copy *c)
{
    const bool vain = c->state == COPY_INCOMING && !c->transfer;
    directory_unref(&s->dir, c);
    if (vain && !c->refs)
        directory_forget(&s->dir, c);
}

static void waits_end(struct sched *s, struct sched_request *r)
{
    for (uint32_t i = 0; i < r->n_blocks && r->pending; i++) {
        if (r->brought[i] && r->copies[i]->state == COPY_INCOMING)
            transfer_unwait(s, r->copies[i], r);
    }
    r->pending = 0;
    request_unship(s, r);
}

void request_unship(struct sched *s, struct sched_request *r)
{
    for (uint32_t i = 0; i < r->leaf_blocks && r->ship == SHIP_UNDER_WAY; i++) {
        struct copy *c = r->ship_copies[i];
        if (!c)
            continue;
        r->ship_copies[i] = NULL;
        if (c->state == COPY_INCOMING)
            transfer_unwait(s, c, r);
        copy_let_go(s, c);
    }
    r->ship = SHIP_IDLE;
    r->moving = false;
    r->ship_pending = 0;
}

void request_release(struct sched *s, struct sched_request *r)
{
    assert(!r->in_flight);
    waits_end(s, r);
    request_retire(s, r, UINT64_MAX);
    promise_return(s, r);
    /* The deepest first, so that what is evicted first leaves the longest prefix. */
    for (uint32_t i = r->n_blocks; i > 0; i--) {
        if (r->copies[i - 1])
            copy_let_go(s, r->copies[i - 1]);
    }
    r->n_table = 0;
    SCHED_EACH(slot, r->known)
    {
        if (s->workers[slot].ready)
            outbox_push(&s->workers[slot].forgets, r->id);
    }
    r->known = 0;
    SCHED_EACH(slot, r->ties)
    {
        s->workers[slot].n_ties -= s->workers[slot].ready;
    }
    if (s->workers[r->home].ready)
        s->workers[r->home].n_homes--;
    if (r->group)
        group_remove(s, r->group, r);
    r->group = NULL;
    uint32_t i = 0;
    while (s->running[i] != r)
        i++;
    memmove(s->running + i, s->running + i + 1, (--s->n_running - i) * sizeof(struct sched_request *));
    request_unplace(r);
    s->admit_changed = s->groups_changed = true;
}

void request_settle(struct sched *s, struct sched_request *r)
{
    if (r->in_flight)
        return;
    if (r->state == REQUEST_RUNNING && r->preempting)
        preempt_settle(s, r);
    if (r->state != REQUEST_ENDED)
        return;
    request_release(s, r);
    r->state = REQUEST_FREED;
    r->next = s->freed;
    s->freed = r;
}

void request_retire(struct sched *s, struct sched_request *r, uint64_t number)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < r->n_deferred; i++) {
        const struct deferred *d = &r->deferred[i];
        if (d->number > number) {
            r->deferred[kept++] = *d;
            continue;
        }
        /* The owner has it now: here it goes, unless others read it. */
        const bool last = d->copy->refs == 1;
        directory_unref(&s->dir, d->copy);
        if (last && d->copy->state == COPY_READY)
            directory_drop(&s->dir, d->copy);
        if (d->window)
            r->window_open--;
    }
    if (kept == r->n_deferred)
        return;
    r->n_deferred = kept;
    s->admit_changed = true;
    if (r->state == REQUEST_RUNNING)
        request_window(s, r);
}

bool request_window(struct sched *s, struct sched_request *r)
{
    const uint32_t full = 2 * r->leaf_blocks;
    uint32_t wanted = r->window_open < full ? full - r->window_open : 0;
    if (wanted > r->window_left)
        wanted = r->window_left;
    while (r->window < wanted && directory_promise(&s->dir, r->home, 1)) {
        r->window++;
        r->promise[r->home]++;
    }
    return r->window >= wanted;
}

/* Sealed blocks of this request, by the worker that reads them. */
static void blocks_by_worker(const struct sched_request *r, uint32_t blocks_out[SCHED_SLOTS])
{
    const uint32_t sealed = r->done / PLAN_BLOCK;
    memset(blocks_out, 0, SCHED_SLOTS * sizeof *blocks_out);
    for (uint32_t leaf = 0, left = sealed; left; leaf++) {
        const uint32_t n = left < r->leaf_blocks ? left : r->leaf_blocks;
        blocks_out[r->at[leaf]] += n;
        left -= n;
    }
}

static void done_call(struct sched *s, struct sched_request *r, struct sched_done *done)
{
    const int64_t now = sched_now_ms(s);
    struct sched_worker_share shares[SCHED_SLOTS];
    uint32_t blocks[SCHED_SLOTS], n = 0;
    done->prompt_tokens = r->n_prompt;
    done->completion_tokens = r->n_generated;
    done->recomputed_tokens = r->n_again;
    done->queued_ms = (r->admitted_ms ? r->admitted_ms : now) - r->submitted_ms;
    if (r->admitted_ms) {
        done->cached_tokens = r->first_hit * PLAN_BLOCK < r->n_prompt ? r->first_hit * PLAN_BLOCK : r->n_prompt;
        done->prefill_ms = (r->first_token_ms ? r->first_token_ms : now) - r->admitted_ms;
        done->decode_ms = r->first_token_ms ? now - r->first_token_ms : 0;
        done->kv_bytes_read = r->kv_read;
        done->kv_bytes_dense = r->kv_dense;
    }
    if (r->table) {
        blocks_by_worker(r, blocks);
        SCHED_EACH(slot, r->ties | r->known)
        {
            if (s->workers[slot].ready)
                shares[n++] = (struct sched_worker_share){ .worker = s->workers[slot].id,
                                                           .blocks = blocks[slot],
                                                           .bytes_sent = r->shares[slot].sent,
                                                           .bytes_received = r->shares[slot].received };
        }
    }
    done->shares = shares;
    done->n_shares = n;
    r->events.done(r->user, done);
}

void request_end(struct sched *s, struct sched_request *r, enum finish_reason reason, enum status status,
                 const char *message)
{
    if (r->state == REQUEST_ENDED || r->state == REQUEST_FREED)
        return;
    const bool queued = r->state == REQUEST_WAITING;
    if (queued)
        queue_remove(s, r);
    else
        s->n_live--;
    r->state = REQUEST_ENDED;
    s->n_preempting -= r->preempting;
    r->preempting = false;
    if (reason == FINISH_ERROR && status == ST_TIMEOUT) { /* as if its client had gone at that time */
        log_info("request %s sequence %llu: %s", r->label, (unsigned long long)r->id, message);
        s->stats.requests_cancelled++;
    } else if (reason == FINISH_ERROR && status == ST_BUSY) {
        log_debug("request %s: %s", r->label, message);
        s->stats.requests_shed++;
    } else if (reason == FINISH_ERROR) {
        log_warn("request %s sequence %llu: %s", r->label, (unsigned long long)r->id, message);
        s->stats.requests_failed++;
    } else if (reason == FINISH_CANCELLED) {
        s->stats.requests_cancelled++;
    } else {
        s->stats.requests_done++;
    }
    struct sched_done done = { .reason = reason, .status = status, .message = message };
    done_call(s, r, &done);
    if (queued) {
        r->state = REQUEST_FREED;
        r->next = s->freed;
        s->freed = r;
        s->admit_changed = true;
    } else {
        s->groups_changed = true;
        request_settle(s, r);
    }
}
