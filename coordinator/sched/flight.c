/* Plans in flight: results come in, positions are committed, tokens go out. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/kvstore.h"

struct flight *flight_new(struct sched *s)
{
    return s->n_spares ? s->spares[--s->n_spares] : sched_alloc(1, sizeof(struct flight));
}

void flight_free(struct flight *f)
{
    for (uint32_t i = 0; i < SCHED_SLOTS; i++)
        free(f->blobs[i]);
    free(f->runs);
    free(f->requests);
    free(f->rows);
    free(f);
}

void flight_recycle(struct sched *s, struct flight *f)
{
    for (uint32_t i = 0; i < SCHED_SLOTS; i++) {
        free(f->blobs[i]);
        f->blobs[i] = NULL;
    }
    f->n_runs = f->n_requests = f->n_rows = f->n_prefill_rows = 0;
    f->slowest_us = f->kv_read = f->kv_dense = 0;
    if (s->n_spares < sizeof s->spares / sizeof s->spares[0])
        s->spares[s->n_spares++] = f;
    else
        flight_free(f);
}

/* ---- a result comes in ---- */

/* Does row i of the run say something? A row of a scored run without a target may. */
static bool row_speaks(const struct flight_run *run, uint32_t i)
{
    return (run->want & WANT_LOGITS) || i < run->n_scored || ((run->want & WANT_SAMPLE) && i == run->n_rows - 1);
}

static uint32_t row_index(const struct flight_run *run, uint32_t i)
{
    return run->first + (run->n_results == run->n_rows ? i : 0);
}

/* The run that has the row; the search goes on from *at, since rows come in the plan's order. NULL: not one of the worker's. */
static const struct flight_run *run_find(const struct flight *f, uint8_t slot, const struct result_row *row,
                                         uint32_t *at)
{
    for (uint32_t i = 0; i < f->n_runs; i++, *at = (*at + 1) % f->n_runs) {
        const struct flight_run *run = &f->runs[*at];
        if (run->home == slot && run->r->id == row->seq && row->pos >= run->pos && row->pos - run->pos < run->n_rows)
            return run;
    }
    return NULL;
}

/* Takes the row; tops and logits go to *blob, which moves on. */
static enum status row_take(struct flight *f, const struct flight_run *run, const struct result_row *row, char **blob,
                            uint32_t *spoken, struct error *err)
{
    const uint32_t i = row->pos - run->pos;
    if (!(run->want & (WANT_SCORE | WANT_LOGITS)) && !row_speaks(run, i))
        return error_set(err, ST_PROTOCOL, "result: sequence %llu row %u was not asked for",
                         (unsigned long long)row->seq, row->pos);
    struct result_row *to = &f->rows[row_index(run, i)];
    if (to->seq)
        return error_set(err, ST_PROTOCOL, "result: sequence %llu row %u comes twice", (unsigned long long)row->seq,
                         row->pos);
    if ((run->want & WANT_SAMPLE) && i == run->n_rows - 1 && row->token < 0)
        return error_set(err, ST_PROTOCOL, "result: sequence %llu row %u has no token", (unsigned long long)row->seq,
                         row->pos);
    if (row->n_top > run->n_top || (!(run->want & WANT_LOGITS) && row->n_logits))
        return error_set(err, ST_PROTOCOL, "result: sequence %llu row %u has more than was asked for",
                         (unsigned long long)row->seq, row->pos);
    *to = *row;
    if (row->n_logits) {
        to->logits = memcpy(*blob, row->logits, row->n_logits * sizeof *row->logits);
        *blob += row->n_logits * sizeof *row->logits;
    }
    if (row->n_top) {
        to->top = memcpy(*blob, row->top, row->n_top * sizeof *row->top);
        *blob += row->n_top * sizeof *row->top;
    }
    *spoken += row_speaks(run, i);
    return ST_OK;
}

static enum status rows_take(struct flight *f, uint8_t slot, const struct result *result, struct error *err)
{
    size_t bytes = 0;
    uint32_t expected = 0, spoken = 0, at = 0;
    for (uint32_t i = 0; i < f->n_runs; i++) {
        const struct flight_run *run = &f->runs[i];
        for (uint32_t j = 0; run->home == slot && run->n_results && j < run->n_rows; j++)
            expected += row_speaks(run, j);
    }
    for (uint32_t i = 0; i < result->n_rows; i++)
        bytes += result->rows[i].n_logits * sizeof(float) + result->rows[i].n_top * sizeof(struct result_top);
    char *blob = bytes ? malloc(bytes) : NULL;
    if (bytes && !blob)
        return error_set(err, ST_NO_MEMORY, "result of %u rows", result->n_rows);
    free(f->blobs[slot]);
    f->blobs[slot] = blob;
    for (uint32_t i = 0; i < result->n_rows; i++) {
        const struct flight_run *run = run_find(f, slot, &result->rows[i], &at);
        if (!run)
            return error_set(err, ST_PROTOCOL, "result: sequence %llu row %u is not of this plan and worker",
                             (unsigned long long)result->rows[i].seq, result->rows[i].pos);
        const enum status st = row_take(f, run, &result->rows[i], &blob, &spoken, err);
        if (st)
            return st;
    }
    if (spoken != expected)
        return error_set(err, ST_PROTOCOL, "result: %u of %u rows are missing", expected - spoken, expected);
    return ST_OK;
}

/* ---- a step is complete ---- */

/* Blocks that the positions up to r->done complete. */
static void blocks_commit(struct sched *s, struct sched_request *r)
{
    if (r->n_committed == r->done / PLAN_BLOCK)
        return;
    const struct digest context = request_context(r, &s->workers[r->home].context);
    const bool known = !memcmp(&r->ids_context, &context, sizeof context);
    if (s->n_awaiting)
        s->admit_changed = true;
    for (; r->n_committed < r->done / PLAN_BLOCK; r->n_committed++) {
        const uint32_t c = r->n_committed;
        if (r->brought[c]) {
            r->last_id = r->copies[c]->block->id;
            continue;
        }
        r->last_id = known && c < r->n_ids_known
                         ? r->ids[c]
                         : kv_block_id(c ? &r->last_id : NULL, &context, r->tokens + c * PLAN_BLOCK,
                                       request_prompt_rows(s, r, c));
        directory_commit(&s->dir, r->copies[c], &r->last_id, s->config.prefix_sharing);
        names_note(s, r->copies[c]);
    }
}

/* The token after position pos is known; the row's callbacks are made. */
static void token_out(struct sched *s, struct sched_request *r, uint32_t pos, const struct result_row *row)
{
    struct result_row out = *row;
    if (pos + 1 < r->n_prompt + r->n_forced) {
        out.token = r->tokens[pos + 1];
        out.logprob = row->target_logprob;
    }
    if (!r->n_generated++)
        r->first_token_ms = sched_now_ms(s);
    s->stats.completion_tokens++;
    tenant_charge(r->tenant, SCHED_COST_GENERATED);
    if (r->events.token)
        r->events.token(r->user, &out);
    for (uint32_t i = 0; i < r->n_eos; i++) {
        if (r->eos[i] == out.token)
            request_end(s, r, FINISH_STOP, ST_OK, NULL);
    }
    if (r->n_generated >= r->max_tokens)
        request_end(s, r, FINISH_LENGTH, ST_OK, NULL);
}

/* The run's rows are computed: all that follows from it. Callbacks may end the request at any point. */
static void run_commit(struct sched *s, const struct flight *f, const struct flight_run *run)
{
    struct sched_request *r = run->r;
    const uint32_t end = run->pos + run->n_rows;
    if (r->state != REQUEST_RUNNING)
        return;
    assert(run->pos == r->done);
    r->done = end;
    request_skip(r, &r->done);
    if (r->done > end && r->density)
        r->fresh = true;
    r->ahead = r->done > r->ahead ? r->done : r->ahead;
    *(run->pos < r->n_prompt ? &s->stats.prompt_rows : &s->stats.decode_rows) += run->n_rows;
    if (end <= r->told && r->n_recovered) {
        r->n_again += run->n_rows;
        s->stats.recovered_rows += run->n_rows;
    }
    if (end > r->told && r->lost_ms) {
        s->stats.recovery_ms += (uint64_t)(sched_now_ms(s) - r->lost_ms);
        s->stats.recovered++;
        r->lost_ms = 0;
    }
    blocks_commit(s, r);
    if (end >= r->n_prompt && r->max_tokens) {
        const int32_t sampled = run->want & WANT_SAMPLE ? f->rows[row_index(run, run->n_rows - 1)].token : -1;
        if (sampled >= 0 && request_token(r, end, sampled)) {
            request_end(s, r, FINISH_ERROR, ST_NO_MEMORY, "the coordinator has no memory for another token");
            return;
        }
    }
    if (run->pos < r->n_prompt && end > r->told && r->events.progress)
        r->events.progress(r->user, end < r->n_prompt ? end : r->n_prompt, r->n_prompt);
    for (uint32_t i = 0; i < run->n_rows && r->state == REQUEST_RUNNING; i++) {
        const uint32_t pos = run->pos + i;
        if (!row_speaks(run, i))
            continue;
        const struct result_row *row = &f->rows[row_index(run, i)];
        if ((run->want & WANT_LOGITS) && r->logits && r->events.logits)
            r->events.logits(r->user, row);
        if (r->state == REQUEST_RUNNING && r->score && pos + 1 < r->n_prompt && r->events.scored)
            r->events.scored(r->user, pos, row);
        if (r->state == REQUEST_RUNNING && pos + 1 >= r->n_prompt && r->max_tokens)
            token_out(s, r, pos, row);
    }
    if (r->state == REQUEST_RUNNING && r->done >= r->n_rows)
        request_end(s, r, FINISH_LENGTH, ST_OK, NULL);
}

static void figures(struct sched *s, struct group *g, const struct flight *f)
{
    const int64_t now = sched_now_us(s), from = f->sent_us > g->done_us ? f->sent_us : g->done_us;
    if (f->n_runs) {
        s->stats.steps++;
        if (now - from > (int64_t)f->slowest_us)
            s->stats.coordination_us += (uint64_t)(now - from) - f->slowest_us;
    }
    if (f->n_prefill_rows && f->slowest_us) {
        const uint64_t took = f->slowest_us / f->n_prefill_rows;
        g->row_us = g->row_us ? (3 * g->row_us + took) / 4 : took;
    }
    wait_stepped(s, f, now - from);
    g->done_us = now;
    g->done_ms = sched_now_ms(s);
    for (uint32_t i = 0; i < f->n_requests; i++) {
        struct sched_request *r = f->requests[i];
        r->kv_read += f->kv_read;
        r->kv_dense += f->kv_dense;
        SCHED_EACH(slot, g->members)
        {
            r->shares[slot].sent += f->shares[slot].sent;
            r->shares[slot].received += f->shares[slot].received;
        }
    }
}

static void flight_complete(struct sched *s, struct group *g)
{
    struct flight *f = g->flights[0];
    memmove(g->flights, g->flights + 1, --g->n_flights * sizeof(struct flight *));
    figures(s, g, f);
    for (uint32_t i = 0; i < f->n_runs; i++)
        run_commit(s, f, &f->runs[i]);
    for (uint32_t i = 0; i < g->n_requests; i++) {
        if (g->requests[i]->n_deferred)
            request_retire(s, g->requests[i], f->number);
    }
    for (uint32_t i = 0; i < f->n_requests; i++) {
        f->requests[i]->in_flight--;
        request_settle(s, f->requests[i]);
    }
    flight_recycle(s, f);
    if (g->probing)
        group_answered(s, g);
}

enum status flight_result(struct sched *s, struct group *g, uint8_t slot, const struct result *result,
                          struct error *err)
{
    struct worker *w = &s->workers[slot];
    struct flight *f = NULL;
    for (uint32_t i = 0; i < g->n_flights && !f; i++)
        f = g->flights[i]->pending & SCHED_BIT(slot) ? g->flights[i] : NULL;
    if (!f || result->number != f->number)
        return error_set(err, ST_PROTOCOL, "result: plan %llu of epoch %llu is not expected",
                         (unsigned long long)result->number, (unsigned long long)result->epoch);
    const enum status st = rows_take(f, slot, result, err);
    if (st)
        return st;
    f->pending &= ~SCHED_BIT(slot);
    w->step_ms = s->stats.progress_ms = sched_now_ms(s);
    if (result->busy_us + result->wait_us > f->slowest_us)
        f->slowest_us = result->busy_us + result->wait_us;
    f->kv_read += result->kv_bytes_read;
    s->stats.kv_bytes_read += result->kv_bytes_read;
    s->stats.kv_bytes_dense += result->kv_bytes_dense;
    f->kv_dense += result->kv_bytes_dense;
    f->shares[slot] = (struct share){ result->bytes_sent, result->bytes_received };
    directory_dropped(&s->dir, slot, f->n_drops[slot]);
    for (uint32_t i = 0; i < f->n_forgets[slot]; i++)
        outbox_pop(&w->forgets);
    if (f->n_drops[slot])
        s->admit_changed = true;
    if (w->suspect) {
        w->suspect = false;
        s->admit_changed = true;
    }
    while (g->n_flights && !g->flights[0]->pending)
        flight_complete(s, g);
    names_tell(s);
    return ST_OK;
}
