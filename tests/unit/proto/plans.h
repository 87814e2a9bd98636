#ifndef LONGSPAN_TESTS_PROTO_PLANS_H
#define LONGSPAN_TESTS_PROTO_PLANS_H

/* Random plans and results that keep all rules of proto/plan.h, and their comparison. One at a time: they live in static memory. */

#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "proto/plan.h"

enum { SEQS_MAX = 24, RUNS_MAX = 96, TABLE_MAX = 600, ROWS_EACH_MAX = 256, EDITS_EACH_MAX = 20, SET_BYTES_MAX = 90 };

struct plan_case {
    struct plan plan;
    uint16_t members[PLAN_WORKERS_MAX];
    struct plan_seq seqs[SEQS_MAX];
    struct plan_run runs[RUNS_MAX];
    kv_handle tables[SEQS_MAX][TABLE_MAX], drops[16];
    uint16_t readers[SEQS_MAX][TABLE_MAX];
    uint64_t forgets[16];
    int32_t tokens[RUNS_MAX][ROWS_EACH_MAX], targets[RUNS_MAX][ROWS_EACH_MAX];
    struct plan_edits edits[RUNS_MAX];
    struct plan_edit adds[RUNS_MAX][EDITS_EACH_MAX];
    uint8_t sets[RUNS_MAX][2][SET_BYTES_MAX];
};

/* Nothing is left out at times: no adds, no set. */
static inline const struct plan_edits *plan_case_edits(struct plan_case *c, uint32_t run, struct rng *rng)
{
    struct plan_edits *e = &c->edits[run];
    *e = (struct plan_edits){ .n_adds = rng_below(rng, EDITS_EACH_MAX + 1),
                              .repeated_bytes = rng_below(rng, 2) ? rng_below(rng, SET_BYTES_MAX) : 0,
                              .allowed_bytes = rng_below(rng, 2) ? 1 + rng_below(rng, SET_BYTES_MAX) : 0,
                              .adds = c->adds[run],
                              .repetition = 0.5f + (float)rng_below(rng, 4) };
    for (uint32_t i = 0, token = 0; i < e->n_adds; i++, token += 1 + rng_below(rng, 1000))
        c->adds[run][i] = (struct plan_edit){ token, (float)rng_below(rng, 200) - 100 };
    for (uint32_t i = 0; i < SET_BYTES_MAX; i++) {
        c->sets[run][0][i] = (uint8_t)rng_next(rng);
        c->sets[run][1][i] = (uint8_t)rng_next(rng);
    }
    c->sets[run][1][0] |= 1;
    e->repeated = e->repeated_bytes ? c->sets[run][0] : NULL;
    e->allowed = e->allowed_bytes ? c->sets[run][1] : NULL;
    return e->n_adds || e->repeated_bytes || e->allowed_bytes ? e : NULL;
}

static inline bool plan_edits_equal(const struct plan_edits *a, const struct plan_edits *b)
{
    if (!a || !b)
        return a == b;
    return a->n_adds == b->n_adds && a->repeated_bytes == b->repeated_bytes && a->allowed_bytes == b->allowed_bytes &&
           a->repetition == b->repetition && !a->repeated == !b->repeated && !a->allowed == !b->allowed &&
           !memcmp(a->adds, b->adds, a->n_adds * sizeof *a->adds) &&
           (!a->repeated || !memcmp(a->repeated, b->repeated, a->repeated_bytes)) &&
           (!a->allowed || !memcmp(a->allowed, b->allowed, a->allowed_bytes));
}

static inline void plan_case_runs(struct plan_case *c, uint32_t s, uint32_t pos, uint32_t n_rows, struct rng *rng)
{
    const uint32_t leaf_rows = c->plan.leaf_blocks * PLAN_BLOCK;
    const struct plan_seq *seq = &c->seqs[s];
    while (n_rows && c->plan.n_runs < RUNS_MAX) {
        struct plan_run *r = &c->runs[c->plan.n_runs];
        uint32_t n = leaf_rows - pos % leaf_rows;
        n = n < n_rows ? n : n_rows;
        n = n < ROWS_EACH_MAX ? n : ROWS_EACH_MAX;
        const uint32_t leaf = pos / leaf_rows;
        *r = (struct plan_run){ .seq = s,
                                .pos = pos,
                                .n_rows = n,
                                .tokens = c->tokens[c->plan.n_runs],
                                .home = seq->readers[leaf - seq->reader_from],
                                .cls = (uint8_t)rng_below(rng, 2),
                                .want = (uint8_t)rng_below(rng, 8),
                                .n_top = (uint8_t)rng_below(rng, PLAN_TOP_MAX + 1) };
        r->targets = r->want & WANT_SCORE ? c->targets[c->plan.n_runs] : NULL;
        for (uint32_t i = 0; i < n; i++) {
            c->tokens[c->plan.n_runs][i] = (int32_t)rng_below(rng, 200000);
            c->targets[c->plan.n_runs][i] = (int32_t)rng_below(rng, 1000) - 1;
        }
        if (r->cls == ROW_GENERATED && pos && rng_below(rng, 2))
            c->tokens[c->plan.n_runs][0] = -1;
        if ((r->want & WANT_SAMPLE) && rng_below(rng, 3))
            r->edits = plan_case_edits(c, c->plan.n_runs, rng);
        c->plan.n_runs++;
        pos += n;
        n_rows -= n;
    }
}

/* n_seqs sequences of few rows if decode, else any */
static inline struct plan *plan_case_make(struct plan_case *c, struct rng *rng, uint32_t n_seqs, bool decode)
{
    memset(&c->plan, 0, sizeof c->plan);
    struct plan *p = &c->plan;
    p->epoch = rng_next(rng) >> rng_below(rng, 64);
    p->number = rng_next(rng) >> 20;
    p->group = (uint32_t)rng_next(rng);
    p->leaf_blocks = 1 + rng_below(rng, decode ? 4 : 20);
    p->deadline_ms = 1 + rng_below(rng, 100000);
    p->n_members = 1 + rng_below(rng, decode ? 4 : PLAN_WORKERS_MAX);
    p->members = c->members;
    p->seqs = c->seqs;
    p->runs = c->runs;
    p->drops = c->drops;
    p->forgets = c->forgets;
    for (uint32_t i = 0, id = 0; i < p->n_members; i++)
        c->members[i] = (uint16_t)(id += 1 + rng_below(rng, 900));
    p->n_drops = rng_below(rng, decode ? 2 : 16);
    p->n_forgets = rng_below(rng, decode ? 2 : 16);
    for (uint32_t i = 0; i < 16; i++) {
        c->drops[i] = 1 + (rng_next(rng) >> 1);
        c->forgets[i] = rng_next(rng);
    }
    p->n_seqs = n_seqs;
    for (uint32_t s = 0; s < n_seqs; s++) {
        struct plan_seq *q = &c->seqs[s];
        const bool fresh = !decode && rng_below(rng, 2);
        const uint32_t first = fresh ? 0 : decode ? 100 : rng_below(rng, 1000); /* block */
        const uint32_t n_blocks = decode ? rng_below(rng, 2) : 1 + rng_below(rng, TABLE_MAX);
        const uint32_t leaf_from = first / p->leaf_blocks;
        const uint32_t n_leaves = n_blocks ? (first + n_blocks - 1) / p->leaf_blocks - leaf_from + 1 : 1;
        *q = (struct plan_seq){ .id = mix64(p->epoch + s),
                                .fresh = fresh,
                                .table_from = first,
                                .n_table = n_blocks,
                                .table = c->tables[s],
                                .density = rng_below(rng, PLAN_DENSITY_ONE + 1),
                                .cast = p->n_members < 64 ? rng_next(rng) & (((uint64_t)1 << p->n_members) - 1)
                                                          : rng_next(rng),
                                .reader_from = leaf_from,
                                .n_readers = n_leaves,
                                .readers = c->readers[s],
                                .sampling = { .temperature = (float)rng_below(rng, 3),
                                              .top_p = 0.25f,
                                              .top_k = rng_below(rng, 100),
                                              .seed = rng_next(rng),
                                              .min_p = (float)rng_below(rng, 4) / 4 } };
        q->label = "cmpl-0123456789abcdef~!#" + rng_below(rng, 10);
        q->label_bytes = decode ? 0 : rng_below(rng, 14);
        for (uint32_t i = 0; i < n_blocks; i++)
            c->tables[s][i] = 1 + (rng_next(rng) >> 1 >> rng_below(rng, 62));
        for (uint32_t i = 0; i < n_leaves; i++)
            c->readers[s][i] = c->members[rng_below(rng, p->n_members)];
        const uint32_t rows_max = (n_blocks ? n_blocks : 1) * PLAN_BLOCK;
        const uint32_t skip = rng_below(rng, rows_max);
        plan_case_runs(c, s, first * PLAN_BLOCK + skip, decode ? 1 : 1 + rng_below(rng, rows_max - skip), rng);
    }
    for (uint32_t i = 0; i < p->n_runs && decode; i++)
        c->runs[i].edits = NULL;
    return p;
}

static inline bool plan_equal(const struct plan *a, const struct plan *b)
{
    if (a->epoch != b->epoch || a->number != b->number || a->group != b->group || a->leaf_blocks != b->leaf_blocks ||
        a->deadline_ms != b->deadline_ms || a->n_members != b->n_members || a->n_seqs != b->n_seqs ||
        a->n_runs != b->n_runs || a->n_drops != b->n_drops || a->n_forgets != b->n_forgets ||
        memcmp(a->members, b->members, a->n_members * sizeof *a->members) ||
        memcmp(a->drops, b->drops, a->n_drops * sizeof *a->drops) ||
        memcmp(a->forgets, b->forgets, a->n_forgets * sizeof *a->forgets))
        return false;
    for (uint32_t i = 0; i < a->n_seqs; i++) {
        const struct plan_seq *s = &a->seqs[i], *t = &b->seqs[i];
        if (s->id != t->id || s->fresh != t->fresh || s->table_from != t->table_from || s->n_table != t->n_table ||
            s->reader_from != t->reader_from || s->n_readers != t->n_readers ||
            s->sampling.temperature != t->sampling.temperature || s->sampling.top_p != t->sampling.top_p ||
            s->sampling.top_k != t->sampling.top_k || s->sampling.seed != t->sampling.seed ||
            s->label_bytes != t->label_bytes || memcmp(s->label, t->label, s->label_bytes) != 0 ||
            s->density != t->density || s->cast != t->cast || s->sampling.min_p != t->sampling.min_p ||
            memcmp(s->table, t->table, s->n_table * sizeof *s->table) ||
            memcmp(s->readers, t->readers, s->n_readers * sizeof *s->readers))
            return false;
    }
    for (uint32_t i = 0; i < a->n_runs; i++) {
        const struct plan_run *r = &a->runs[i], *t = &b->runs[i];
        if (r->seq != t->seq || r->pos != t->pos || r->n_rows != t->n_rows || r->home != t->home || r->cls != t->cls ||
            r->want != t->want || r->n_top != t->n_top || memcmp(r->tokens, t->tokens, r->n_rows * sizeof *r->tokens) ||
            !r->targets != !t->targets || !plan_edits_equal(r->edits, t->edits) ||
            (r->targets && memcmp(r->targets, t->targets, r->n_rows * sizeof *r->targets)))
            return false;
    }
    return true;
}

struct result_case {
    struct result result;
    struct result_row rows[200];
    struct result_top top[200][PLAN_TOP_MAX];
    float logits[200][40];
};

static inline struct result *result_case_make(struct result_case *c, struct rng *rng, uint32_t n_rows)
{
    c->result = (struct result){ .epoch = rng_next(rng),
                                 .number = rng_next(rng) >> 30,
                                 .group = rng_below(rng, 9),
                                 .n_rows = n_rows,
                                 .rows = c->rows,
                                 .busy_us = rng_below(rng, 100000),
                                 .wait_us = rng_below(rng, 1000),
                                 .bytes_sent = rng_next(rng) >> 30,
                                 .bytes_received = rng_next(rng) >> 30,
                                 .kv_bytes_read = rng_next(rng) >> 20,
                                 .kv_bytes_dense = rng_next(rng) >> 20 };
    for (uint32_t i = 0; i < n_rows; i++) {
        c->rows[i] = (struct result_row){ .seq = rng_next(rng),
                                          .pos = rng_below(rng, PLAN_POSITIONS_MAX),
                                          .token = (int32_t)rng_below(rng, 100000) - 1,
                                          .logprob = -(float)rng_unit(rng_next(rng)),
                                          .target_logprob = -(float)rng_unit(rng_next(rng)),
                                          .n_top = rng_below(rng, PLAN_TOP_MAX + 1),
                                          .top = c->top[i],
                                          .n_logits = rng_below(rng, 4) ? 0 : rng_below(rng, 40),
                                          .logits = c->logits[i] };
        for (uint32_t j = 0; j < PLAN_TOP_MAX; j++)
            c->top[i][j] = (struct result_top){ rng_below(rng, 100000), -(float)j };
        for (uint32_t j = 0; j < 40; j++)
            c->logits[i][j] = (float)rng_unit(rng_next(rng));
    }
    return &c->result;
}

static inline bool result_equal(const struct result *a, const struct result *b)
{
    if (a->epoch != b->epoch || a->number != b->number || a->group != b->group || a->n_rows != b->n_rows ||
        a->busy_us != b->busy_us || a->wait_us != b->wait_us || a->bytes_sent != b->bytes_sent ||
        a->bytes_received != b->bytes_received || a->kv_bytes_read != b->kv_bytes_read ||
        a->kv_bytes_dense != b->kv_bytes_dense)
        return false;
    for (uint32_t i = 0; i < a->n_rows; i++) {
        const struct result_row *r = &a->rows[i], *t = &b->rows[i];
        if (r->seq != t->seq || r->pos != t->pos || r->token != t->token ||
            memcmp(&r->logprob, &t->logprob, sizeof r->logprob) ||
            memcmp(&r->target_logprob, &t->target_logprob, sizeof r->logprob) || r->n_top != t->n_top ||
            memcmp(r->top, t->top, r->n_top * sizeof *r->top) || r->n_logits != t->n_logits ||
            memcmp(r->logits, t->logits, r->n_logits * sizeof *r->logits))
            return false;
    }
    return true;
}

#endif
