/* The next plan of a group: decode rows first, then chunks of prompts, the shortest rest first, within the budget of rows. */
#include "coordinator/sched/state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static const int32_t sampled_before = -1;

/* ---- runs ---- */

static struct plan_seq *seq_of(struct sched *s, struct sched_request *r)
{
    if (r->plan_stamp == s->stamp)
        return &s->seqs[r->plan_index];
    r->plan_stamp = s->stamp;
    r->plan_index = s->n_seqs;
    sched_grow((void **)&s->seqs, &s->seqs_cap, s->n_seqs + 1, sizeof *s->seqs);
    s->seqs[s->n_seqs] = (struct plan_seq){ .id = r->id, .fresh = r->fresh, .sampling = r->sampling };
    return &s->seqs[s->n_seqs++];
}

/* Opens what blocks the rows pos .. pos + n - 1 lack. -> how many of the rows have one */
static uint32_t blocks_open(struct sched *s, struct sched_request *r, uint32_t pos, uint32_t n)
{
    const uint32_t last = (pos + n - 1) / PLAN_BLOCK;
    while (r->n_table <= last) {
        if (r->brought[r->n_table]) {
            r->n_table++;
            continue;
        }
        const uint32_t leaf = r->n_table / r->leaf_blocks;
        const uint8_t slot = r->at[leaf];
        if (request_foreign(r, leaf)) {
            if (!r->window)
                request_window(s, r);
            if (!r->window) { /* until a leaf before it has gone */
                const uint32_t end = r->n_table * PLAN_BLOCK;
                return end > pos ? end - pos : 0;
            }
            r->window--;
            r->window_left--;
            r->window_open++;
        }
        if (r->bound && !r->promise[slot])
            retain_fill(s, r);
        if (r->bound && !r->promise[slot]) { /* until its window has left more, or there is room */
            const uint32_t end = r->n_table * PLAN_BLOCK;
            return end > pos ? end - pos : 0;
        }
        assert(r->promise[slot] > 0);
        r->promise[slot]--;
        r->unopened--;
        struct copy *c = directory_open(&s->dir, slot, r->n_table);
        r->copies[r->n_table] = c;
        r->table[r->n_table++] = c->block->handle;
    }
    return n;
}

/* What is asked of rows pos .. pos + n - 1; the last row's next token is sampled unless it is known. */
static void run_wants(const struct sched_request *r, struct plan_run *run, uint32_t *n_scored_out)
{
    const uint32_t end = run->pos + run->n_rows;
    const uint32_t forced_end = r->n_prompt + r->n_forced; /* targets of positions before this are known */
    const bool speaks = end >= r->n_prompt && r->max_tokens;
    uint32_t scored = 0;
    *n_scored_out = 0;
    if (end <= r->told)
        return;
    run->want = r->logits && run->pos >= r->logits_from ? WANT_LOGITS : 0;
    if (speaks && end >= forced_end)
        run->want |= WANT_SAMPLE;
    if ((r->score && run->cls == ROW_PROMPT) || (speaks && end < forced_end) ||
        (run->cls == ROW_GENERATED && run->pos + 1 < forced_end))
        scored = (end < forced_end ? end : forced_end - 1) - run->pos;
    if (scored) {
        run->want |= WANT_SCORE;
        run->targets = r->tokens + run->pos + 1;
    }
    run->n_top = run->want & (WANT_SAMPLE | WANT_SCORE) ? r->n_top : 0;
    *n_scored_out = scored;
}

static void run_add(struct sched *s, struct flight *f, struct sched_request *r, uint32_t pos, uint32_t n,
                    const int32_t *tokens)
{
    const uint8_t home = r->at[pos / request_leaf_rows(r)];
    struct plan_run run = { .pos = pos, .n_rows = n, .tokens = tokens, .home = s->workers[home].id };
    uint32_t n_scored;
    run.cls = pos < r->n_prompt ? ROW_PROMPT : ROW_GENERATED;
    run_wants(r, &run, &n_scored);
    if ((run.want & WANT_SAMPLE) && r->edits && r->events.edit)
        run.edits = r->events.edit(r->user, pos + n);
    const struct plan_seq *seq = seq_of(s, r);
    run.seq = (uint32_t)(seq - s->seqs);
    sched_grow((void **)&s->runs, &s->runs_cap, s->n_runs + 1, sizeof *s->runs);
    s->runs[s->n_runs++] = run;
    sched_grow((void **)&f->runs, &f->runs_cap, f->n_runs + 1, sizeof *f->runs);
    struct flight_run *fr = &f->runs[f->n_runs++];
    *fr = (struct flight_run){ .r = r,
                               .pos = pos,
                               .n_rows = n,
                               .n_scored = n_scored,
                               .first = f->n_rows,
                               .home = home,
                               .want = run.want,
                               .n_top = run.n_top };
    fr->n_results = run.want & (WANT_SCORE | WANT_LOGITS) ? n : run.want ? 1 : 0;
    f->n_rows += fr->n_results;
    r->ahead = pos + n;
}

/* Positions whose tokens are known from the start: the prompt, or what was computed before it gave way. */
static uint32_t prefill_end(const struct sched_request *r)
{
    const uint32_t end = r->told > r->n_prompt ? r->told : r->n_prompt;
    return end < r->n_rows ? end : r->n_rows;
}

/* Rows from r->ahead on, before `end`, whose tokens are known, at most n, cut at leaf borders. -> how many */
static uint32_t rows_add(struct sched *s, struct flight *f, struct sched_request *r, uint32_t end, uint32_t n)
{
    uint32_t added = 0;
    if (r->logits && !r->density)
        request_skip(r, &r->ahead);
    /* A plan has rows before the first that comes whole, or few from there on. */
    if (r->ahead < r->logits_from && end > r->logits_from)
        end = r->logits_from;
    else if (r->logits && r->ahead >= r->logits_from && n > SCHED_LOGIT_ROWS)
        n = SCHED_LOGIT_ROWS;
    while (added < n) {
        /* Who selects needs the sketches of all blocks before: of those that were brought it asks where a plan tells all of it. */
        if (!r->density)
            request_skip(r, &r->ahead);
        const uint32_t pos = r->ahead;
        if (pos >= end || (pos % PLAN_BLOCK == 0 && r->brought[pos / PLAN_BLOCK]))
            break;
        uint32_t m = request_leaf_rows(r) - pos % request_leaf_rows(r);
        if (m > n - added)
            m = n - added;
        if (m > end - pos)
            m = end - pos;
        /* A run has one class, and says something or is computed again in silence. */
        if (pos < r->n_prompt && m > r->n_prompt - pos)
            m = r->n_prompt - pos;
        if (pos < r->told && m > r->told - pos)
            m = r->told - pos;
        /* One row asks for its target where those before it do not. */
        if (!r->score && r->n_forced && pos + m == r->n_prompt && m > 1)
            m--;
        const uint32_t can = blocks_open(s, r, pos, m);
        if (can)
            run_add(s, f, r, pos, can, r->tokens + pos);
        added += can;
        if (can < m)
            break;
    }
    return added;
}

/* ---- sequences ---- */

static bool may_run(const struct sched *s, const struct sched_request *r)
{
    if (r->state != REQUEST_RUNNING || r->preempting || r->pending || r->ahead >= r->n_rows)
        return false;
    return sched_choose(s, "sit out", 8) != 1;
}

/* One decode row, or several whose tokens are forced. -> how many */
static uint32_t decode_add(struct sched *s, struct flight *f, struct sched_request *r, uint32_t budget)
{
    const uint32_t pos = r->ahead, known = r->n_known < r->n_rows ? r->n_known : r->n_rows;
    if (pos < known) {
        uint32_t n = known - pos;
        if (n > budget)
            n = budget;
        if (n > s->config.prefill_chunk_rows)
            n = s->config.prefill_chunk_rows;
        if (n > 1) {
            const int64_t drawn = sched_choose(s, "forced rows", n);
            n = drawn >= 0 ? (uint32_t)drawn + 1 : n;
        }
        return rows_add(s, f, r, known, n);
    }
    /* The token is known only where it was sampled, from a row that is in flight: too little for edits that follow from it. */
    if (r->history)
        return 0;
    const uint32_t leaf_rows = request_leaf_rows(r);
    if (pos == r->done || r->at[pos / leaf_rows] != r->at[(pos - 1) / leaf_rows])
        return 0;
    if (!blocks_open(s, r, pos, 1))
        return 0;
    run_add(s, f, r, pos, 1, &sampled_before);
    return 1;
}

static uint32_t prefill_add(struct sched *s, struct flight *f, struct sched_request *r, uint32_t budget)
{
    const uint32_t left = prefill_end(r) - r->ahead;
    uint32_t n = left < budget ? left : budget;
    const int64_t drawn = sched_choose(s, "chunk", n);
    if (drawn >= 0)
        n = (uint32_t)drawn + 1;
    else if (n < left && (r->ahead + n) / PLAN_BLOCK > r->ahead / PLAN_BLOCK)
        n -= (r->ahead + n) % PLAN_BLOCK; /* a chunk ends with a block where it can */
    return rows_add(s, f, r, prefill_end(r), n);
}

/* Lower classes first, of one class what is done soonest. */
static int prefill_order(const void *a, const void *b)
{
    const struct sched_request *x = *(struct sched_request *const *)a, *y = *(struct sched_request *const *)b;
    const uint32_t left_x = prefill_end(x) - x->ahead, left_y = prefill_end(y) - y->ahead;
    if (x->priority != y->priority)
        return x->priority < y->priority ? -1 : 1;
    if (left_x != left_y)
        return left_x < left_y ? -1 : 1;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

/* Rows of prompts in a step that others wait for, or may come to wait for: what took step_target_ms lately. */
static uint32_t chunk_rows(const struct sched *s, const struct group *g, uint32_t least)
{
    const uint32_t most = s->config.prefill_chunk_rows;
    if (!s->config.step_target_ms || !g->row_us)
        return most;
    const uint64_t rows = (uint64_t)s->config.step_target_ms * 1000 / g->row_us;
    return rows >= most ? most : rows > least ? (uint32_t)rows : least;
}

/*
 * Chunks of prompts. Short prompts go before long ones and whole. A long one has the whole step if nobody else is here or was lately; else a step that
 * was planned keeps who comes next waiting: it gets what the short ones leave of chunk_rows, and where they leave nothing it sits out, but for one
 * step of two.
 */
static void prefills_choose(struct sched *s, struct group *g, struct flight *f, uint32_t budget, bool decodes)
{
    const uint32_t chunk = s->config.prefill_chunk_rows, least = chunk / 8 ? chunk / 8 : 1;
    const uint32_t room = chunk_rows(s, g, least);
    const bool company = decodes || (g->company_ms && sched_now_ms(s) - g->company_ms < SCHED_COMPANY_MS);
    const uint32_t share = s->config.recovery_share ? s->config.recovery_share : 100;
    uint32_t n = 0, used = 0, again = room > 100 / share ? (uint32_t)((uint64_t)room * share / 100) : 1;
    bool passed_over = false;
    sched_grow((void **)&s->order, &s->order_cap, g->n_requests, sizeof(struct sched_request *));
    for (uint32_t i = 0; i < g->n_requests; i++) {
        if (g->requests[i]->ahead < prefill_end(g->requests[i]) && may_run(s, g->requests[i]))
            s->order[n++] = g->requests[i];
    }
    if (n > 1)
        qsort(s->order, n, sizeof(struct sched_request *), prefill_order);
    for (uint32_t i = 0; i < n && budget; i++) {
        uint32_t most = budget;
        if ((company || n > 1) && prefill_end(s->order[i]) - s->order[i]->ahead > chunk) {
            most = used + least <= room ? room - used : g->passed_over || !used ? least : 0;
            passed_over = passed_over || !most;
            if (!most)
                continue;
        }
        const bool recovers = (decodes || n > 1) && request_recovers(s->order[i]);
        if (recovers && most > again)
            most = again;
        if (!most)
            continue;
        const uint32_t added = prefill_add(s, f, s->order[i], most < budget ? most : budget);
        again -= recovers ? added : 0;
        budget -= added;
        used += added;
    }
    f->n_prefill_rows = used;
    f->prompts_wait = n;
    g->passed_over = passed_over;
}

static void rows_choose(struct sched *s, struct group *g, struct flight *f)
{
    uint32_t budget = s->config.step_rows_max, decodes = 0;
    const int64_t now = sched_now_ms(s);
    if (g->n_requests > 1)
        g->company_ms = now;
    if (g->turn >= g->n_requests)
        g->turn = 0;
    const uint32_t start = g->turn; /* who comes first, where the budget is less than a row each */
    for (uint32_t i = 0; i < g->n_requests && budget; i++) {
        struct sched_request *r = g->requests[(start + i) % g->n_requests];
        if (r->ahead >= prefill_end(r) && may_run(s, r)) {
            const uint32_t n = decode_add(s, f, r, budget);
            budget -= n;
            decodes += n;
            if (!budget)
                g->turn = (start + i + 1) % g->n_requests;
        }
    }
    prefills_choose(s, g, f, budget, decodes);
}

/* Members that are home of rows of it that select, from the first that is not committed on. */
static uint64_t cast_of(const struct sched *s, const struct group *g, const struct sched_request *r)
{
    const uint32_t first = s->config.prompt_sparse || r->done > r->n_prompt ? r->done : r->n_prompt;
    uint64_t slots = 0, cast = 0;
    for (uint32_t leaf = first / request_leaf_rows(r); leaf < r->n_leaves; leaf++)
        slots |= SCHED_BIT(r->at[leaf]);
    for (uint32_t i = 0; i < g->n_members; i++)
        cast |= slots & SCHED_BIT(g->slots[i]) ? (uint64_t)1 << i : 0;
    return cast;
}

/* What the workers lack of its table and readers, up to its last row of this plan. */
static void seq_describe(struct sched *s, struct group *g, struct flight *f, struct sched_request *r)
{
    struct plan_seq *seq = &s->seqs[r->plan_index];
    const uint32_t blocks = (r->ahead - 1) / PLAN_BLOCK + 1, leaves = (r->ahead - 1) / request_leaf_rows(r) + 1;
    seq->table_from = r->fresh ? 0 : r->sent_table;
    seq->committed = r->done;
    seq->label = r->label;
    seq->label_bytes = r->fresh ? (uint32_t)strlen(r->label) : 0;
    seq->density = r->density;
    seq->cast = r->density && r->density < PLAN_DENSITY_ONE ? cast_of(s, g, r) : 0;
    seq->reader_from = r->fresh ? 0 : r->readers_changed < r->sent_readers ? r->readers_changed : r->sent_readers;
    seq->n_table = blocks - seq->table_from;
    seq->n_readers = leaves - seq->reader_from;
    seq->table = r->table + seq->table_from;
    seq->readers = r->readers + seq->reader_from;
    r->sent_table = blocks;
    r->sent_readers = leaves;
    r->readers_changed = UINT32_MAX;
    r->fresh = false;
    if (!r->started && !r->n_preempted) {
        const uint32_t hit = r->hit * PLAN_BLOCK < r->n_prompt ? r->hit * PLAN_BLOCK : r->n_prompt;
        tenant_charge(r->tenant, r->n_prompt - hit);
        wait_found(s, r->n_prompt, hit);
        s->stats.prompt_tokens += r->n_prompt;
        s->stats.prefix_hit_tokens += hit;
    }
    r->started = true;
    r->known |= g->members;
    r->in_flight++;
    sched_grow((void **)&f->requests, &f->requests_cap, f->n_requests + 1, sizeof(struct sched_request *));
    f->requests[f->n_requests++] = r;
}

/* ---- sending ---- */

/* Without rows a plan is worth sending if a worker is to free something, or to show that it lives. */
static bool errand(const struct sched *s, const struct group *g)
{
    for (uint32_t i = 0; i < g->n_members && !g->n_flights; i++) {
        const struct worker *w = &s->workers[g->slots[i]];
        if (outbox_waits(&w->forgets) || outbox_waits(&s->dir.pools[g->slots[i]].drops) || (w->suspect && !w->pinged))
            return true;
    }
    return false;
}

/*
 * A worker counts from when it takes the plan up. By then others may still be at plans before it, so their time is granted too; an eighth is kept back,
 * that who waits names whom it waits for before we do.
 */
static uint32_t worker_deadline_ms(const struct sched *s, const struct group *g, const struct flight *f)
{
    uint64_t ms = f->deadline_ms - s->config.step_deadline_ms / 8;
    for (uint32_t i = 0; i < g->n_flights; i++)
        if (g->flights[i] != f)
            ms += g->flights[i]->deadline_ms;
    return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

static void send(struct sched *s, struct group *g, struct flight *f)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < s->n_runs; i++)
        rows += s->runs[i].n_rows;
    rows = s->config.step_deadline_ms + rows * s->config.step_row_ms;
    f->deadline_ms = rows < UINT32_MAX / 8 ? (uint32_t)rows : UINT32_MAX / 8;
    struct plan plan = {
        .epoch = g->epoch,
        .number = ++g->number,
        .group = g->id,
        .leaf_blocks = g->leaf_blocks,
        .deadline_ms = worker_deadline_ms(s, g, f),
        .n_members = g->n_members,
        .n_seqs = s->n_seqs,
        .n_runs = s->n_runs,
        .members = g->ids,
        .seqs = s->seqs,
        .runs = s->runs,
    };
    f->number = plan.number;
    f->pending = g->members;
    f->sent_ms = sched_now_ms(s);
    f->sent_us = sched_now_us(s);
    sched_grow((void **)&f->rows, &f->rows_cap, f->n_rows, sizeof *f->rows);
    if (f->n_rows)
        memset(f->rows, 0, f->n_rows * sizeof *f->rows);
    for (uint32_t i = 0; i < g->n_members; i++) {
        const uint8_t slot = g->slots[i];
        struct worker *w = &s->workers[slot];
        const uint64_t *items;
        /* Drops and forgets are each member's own. */
        plan.n_drops = f->n_drops[slot] = outbox_send(&s->dir.pools[slot].drops, &items);
        plan.drops = items;
        plan.n_forgets = f->n_forgets[slot] = outbox_send(&w->forgets, &items);
        plan.forgets = items;
        w->pinged = true;
        const struct control_message m = { .kind = CONTROL_PLAN, .as.plan = &plan };
        s->ops.send(s->ctx, w->id, &m);
    }
    g->flights[g->n_flights++] = f;
}

bool planner_send(struct sched *s, struct group *g)
{
    if (g->hold || g->probing || g->abort.active || g->n_flights >= s->config.plans_ahead)
        return false;
    /* Behind a step of many rows the next one is not made yet: who comes meanwhile would wait for both. */
    const uint64_t rows = g->n_flights ? g->flights[g->n_flights - 1]->n_prefill_rows : 0;
    if (rows > SCHED_HEAVY_ROWS || rows * g->row_us > SCHED_HEAVY_US)
        return false;
    struct flight *f = flight_new(s);
    s->stamp++;
    s->n_seqs = s->n_runs = 0;
    for (uint32_t i = 0; i < g->n_requests; i++) {
        struct sched_request *r = g->requests[i];
        if (r->state == REQUEST_RUNNING && (r->ship_leaf < r->n_leaves || r->moving))
            ship_step(s, r);
        if (r->state == REQUEST_RUNNING && s->config.window)
            retain_step(s, r);
    }
    rows_choose(s, g, f);
    if (!s->n_runs && !errand(s, g)) {
        flight_recycle(s, f);
        return false;
    }
    for (uint32_t i = 0; i < f->n_runs; i++) {
        struct sched_request *r = f->runs[i].r;
        if (!i || r != f->runs[i - 1].r)
            seq_describe(s, g, f, r);
    }
    send(s, g, f);
    return true;
}

void planner_probe(struct sched *s, struct group *g)
{
    struct flight *f = flight_new(s);
    s->n_seqs = s->n_runs = 0;
    send(s, g, f);
    const uint32_t half = s->config.step_deadline_ms / 2;
    f->deadline_ms = half < SCHED_PROBE_MS ? half : SCHED_PROBE_MS;
}
