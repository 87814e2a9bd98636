#include "proto/plan.h"

#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

typedef Longspan__V1__ControlPlan plan_wire;

/* ---- to the wire ---- */

#define COLUMN(field, count)                                                                                           \
    do {                                                                                                               \
        w.n_##field = (count);                                                                                         \
        w.field = wire_take(arena, w.n_##field * sizeof *w.field);                                                     \
        if (!w.field)                                                                                                  \
            return ST_NO_MEMORY;                                                                                       \
    } while (0)

static enum status seqs_to_wire(const struct plan *plan, struct wire_arena *arena, plan_wire *wire)
{
    plan_wire w = *wire;
    size_t n_tables = 0, n_readers = 0, labels = 0;
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        labels += plan->seqs[i].label_bytes;
        n_tables += plan->seqs[i].n_table;
        n_readers += plan->seqs[i].n_readers;
    }
    COLUMN(seq_id, plan->n_seqs);
    COLUMN(seq_fresh, plan->n_seqs);
    COLUMN(seq_table_from, plan->n_seqs);
    COLUMN(seq_n_table, plan->n_seqs);
    COLUMN(seq_reader_from, plan->n_seqs);
    COLUMN(seq_n_readers, plan->n_seqs);
    COLUMN(seq_temperature, plan->n_seqs);
    COLUMN(seq_top_p, plan->n_seqs);
    COLUMN(seq_top_k, plan->n_seqs);
    COLUMN(seq_seed, plan->n_seqs);
    COLUMN(seq_min_p, plan->n_seqs);
    COLUMN(seq_committed, plan->n_seqs);
    COLUMN(seq_density, plan->n_seqs);
    COLUMN(seq_cast, plan->n_seqs);
    COLUMN(seq_n_label, plan->n_seqs);
    COLUMN(tables, n_tables);
    COLUMN(readers, n_readers);
    w.labels.data = wire_take(arena, labels);
    if (!w.labels.data)
        return ST_NO_MEMORY;
    uint64_t *table = w.tables;
    uint32_t *reader = w.readers;
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct plan_seq *s = &plan->seqs[i];
        w.seq_id[i] = s->id;
        w.seq_fresh[i] = s->fresh;
        w.seq_table_from[i] = s->table_from;
        w.seq_n_table[i] = s->n_table;
        w.seq_reader_from[i] = s->reader_from;
        w.seq_n_readers[i] = s->n_readers;
        w.seq_temperature[i] = s->sampling.temperature;
        w.seq_top_p[i] = s->sampling.top_p;
        w.seq_top_k[i] = s->sampling.top_k;
        w.seq_seed[i] = s->sampling.seed;
        w.seq_min_p[i] = s->sampling.min_p;
        w.seq_committed[i] = s->committed;
        w.seq_density[i] = s->density;
        w.seq_cast[i] = s->cast;
        w.seq_n_label[i] = s->label_bytes;
        if (s->label_bytes)
            memcpy(w.labels.data + w.labels.len, s->label, s->label_bytes);
        w.labels.len += s->label_bytes;
        for (uint32_t j = 0; j < s->n_table; j++)
            *table++ = s->table[j];
        for (uint32_t j = 0; j < s->n_readers; j++)
            *reader++ = s->readers[j];
    }
    *wire = w;
    return ST_OK;
}

static enum status runs_to_wire(const struct plan *plan, struct wire_arena *arena, plan_wire *wire)
{
    plan_wire w = *wire;
    size_t n_tokens = 0, n_targets = 0;
    for (uint32_t i = 0; i < plan->n_runs; i++) {
        n_tokens += plan->runs[i].n_rows;
        n_targets += plan->runs[i].want & WANT_SCORE ? plan->runs[i].n_rows : 0;
    }
    COLUMN(run_seq, plan->n_runs);
    COLUMN(run_pos, plan->n_runs);
    COLUMN(run_n_rows, plan->n_runs);
    COLUMN(run_home, plan->n_runs);
    COLUMN(run_cls, plan->n_runs);
    COLUMN(run_want, plan->n_runs);
    COLUMN(run_n_top, plan->n_runs);
    COLUMN(tokens, n_tokens);
    COLUMN(targets, n_targets);
    int32_t *token = w.tokens, *target = w.targets;
    for (uint32_t i = 0; i < plan->n_runs; i++) {
        const struct plan_run *r = &plan->runs[i];
        w.run_seq[i] = r->seq;
        w.run_pos[i] = r->pos;
        w.run_n_rows[i] = r->n_rows;
        w.run_home[i] = r->home;
        w.run_cls[i] = r->cls;
        w.run_want[i] = r->want;
        w.run_n_top[i] = r->n_top;
        memcpy(token, r->tokens, r->n_rows * sizeof *token);
        token += r->n_rows;
        if (r->want & WANT_SCORE) {
            memcpy(target, r->targets, r->n_rows * sizeof *target);
            target += r->n_rows;
        }
    }
    *wire = w;
    return ST_OK;
}

static enum status edits_to_wire(const struct plan *plan, struct wire_arena *arena, plan_wire *wire)
{
    plan_wire w = *wire;
    size_t n = 0, n_adds = 0, bytes = 0;
    for (uint32_t i = 0; i < plan->n_runs; i++) {
        const struct plan_edits *e = plan->runs[i].edits;
        n += e != NULL;
        n_adds += e ? e->n_adds : 0;
        bytes += e ? e->repeated_bytes + e->allowed_bytes : 0;
    }
    if (!n)
        return ST_OK;
    COLUMN(edit_run, n);
    COLUMN(edit_n_adds, n);
    COLUMN(edit_repetition, n);
    COLUMN(edit_repeated_bytes, n);
    COLUMN(edit_allowed_bytes, n);
    COLUMN(add_token, n_adds);
    COLUMN(add_value, n_adds);
    w.sets.len = bytes;
    w.sets.data = wire_take(arena, bytes);
    if (!w.sets.data)
        return ST_NO_MEMORY;
    size_t at = 0, add = 0;
    uint8_t *set = w.sets.data;
    for (uint32_t i = 0; i < plan->n_runs; i++) {
        const struct plan_edits *e = plan->runs[i].edits;
        if (!e)
            continue;
        w.edit_run[at] = i;
        w.edit_n_adds[at] = e->n_adds;
        w.edit_repetition[at] = e->repetition;
        w.edit_repeated_bytes[at] = e->repeated_bytes;
        w.edit_allowed_bytes[at++] = e->allowed_bytes;
        for (uint32_t j = 0; j < e->n_adds; j++, add++) {
            w.add_token[add] = e->adds[j].token;
            w.add_value[add] = e->adds[j].add;
        }
        if (e->repeated_bytes)
            memcpy(set, e->repeated, e->repeated_bytes);
        set += e->repeated_bytes;
        if (e->allowed_bytes)
            memcpy(set, e->allowed, e->allowed_bytes);
        set += e->allowed_bytes;
    }
    *wire = w;
    return ST_OK;
}

enum status plan_to_wire(const struct plan *plan, struct wire_arena *arena, plan_wire *wire_out)
{
    plan_wire w = LONGSPAN__V1__CONTROL_PLAN__INIT;
    w.epoch = plan->epoch;
    w.number = plan->number;
    w.group = plan->group;
    w.leaf_blocks = plan->leaf_blocks;
    w.deadline_ms = plan->deadline_ms;
    COLUMN(members, plan->n_members);
    for (uint32_t i = 0; i < plan->n_members; i++)
        w.members[i] = plan->members[i];
    /* packing only reads */
    w.n_drops = plan->n_drops;
    w.drops = (uint64_t *)(uintptr_t)plan->drops;
    w.n_forgets = plan->n_forgets;
    w.forgets = (uint64_t *)(uintptr_t)plan->forgets;
    enum status st = seqs_to_wire(plan, arena, &w);
    if (st == ST_OK)
        st = runs_to_wire(plan, arena, &w);
    if (st == ST_OK)
        st = edits_to_wire(plan, arena, &w);
    if (st == ST_OK)
        *wire_out = w;
    return st;
}

/* ---- from the wire: one allocation ---- */

void plan_wire_size(const plan_wire *w, struct wire_size *size)
{
    wire_size_add(size, 1, sizeof(struct plan));
    wire_size_add(size, w->n_members, sizeof(uint16_t));
    wire_size_add(size, w->n_seq_id, sizeof(struct plan_seq));
    wire_size_add(size, w->n_run_seq, sizeof(struct plan_run));
    wire_size_add(size, w->n_drops, sizeof(kv_handle));
    wire_size_add(size, w->n_forgets, sizeof(uint64_t));
    wire_size_add(size, w->n_tables, sizeof(kv_handle));
    wire_size_add(size, w->n_readers, sizeof(uint16_t));
    wire_size_add(size, w->n_tokens, sizeof(int32_t));
    wire_size_add(size, w->n_targets, sizeof(int32_t));
    wire_size_add(size, w->n_edit_run, sizeof(struct plan_edits));
    wire_size_add(size, w->n_add_token, sizeof(struct plan_edit));
    wire_size_add(size, w->sets.len, 1);
    wire_size_add(size, w->labels.len, 1);
}

static void *copy_take(struct wire_room *room, const void *from, size_t n, size_t item)
{
    void *to = wire_room_take(room, n, item);
    if (n)
        memcpy(to, from, n * item);
    return to;
}

static const uint16_t *u16_take(struct wire_room *room, const uint32_t *from, size_t n)
{
    uint16_t *to = wire_room_take(room, n, sizeof *to);
    for (size_t i = 0; i < n; i++)
        to[i] = (uint16_t)from[i];
    return to;
}

static void edits_fill(const plan_wire *w, struct wire_room *room, struct plan_run *runs)
{
    struct plan_edits *edits = wire_room_take(room, w->n_edit_run, sizeof *edits);
    struct plan_edit *add = wire_room_take(room, w->n_add_token, sizeof *add);
    const uint8_t *set = copy_take(room, w->sets.data, w->sets.len, 1);
    for (size_t i = 0; i < w->n_add_token; i++)
        add[i] = (struct plan_edit){ w->add_token[i], w->add_value[i] };
    for (size_t i = 0; i < w->n_edit_run; i++) {
        const uint32_t repeated = w->edit_repeated_bytes[i], allowed = w->edit_allowed_bytes[i];
        edits[i] = (struct plan_edits){ .n_adds = w->edit_n_adds[i],
                                        .repeated_bytes = repeated,
                                        .allowed_bytes = allowed,
                                        .adds = add,
                                        .repetition = w->edit_repetition[i],
                                        .repeated = repeated ? set : NULL,
                                        .allowed = allowed ? set + repeated : NULL };
        runs[w->edit_run[i]].edits = &edits[i];
        add += edits[i].n_adds;
        set += repeated + allowed;
    }
}

struct plan *plan_wire_fill(const plan_wire *w, struct wire_room *room)
{
    struct plan *plan = wire_room_take(room, 1, sizeof *plan);
    const uint16_t *members = u16_take(room, w->members, w->n_members);
    struct plan_seq *seqs = wire_room_take(room, w->n_seq_id, sizeof *seqs);
    struct plan_run *runs = wire_room_take(room, w->n_run_seq, sizeof *runs);
    *plan = (struct plan){
        .epoch = w->epoch,
        .number = w->number,
        .group = w->group,
        .leaf_blocks = w->leaf_blocks,
        .deadline_ms = w->deadline_ms,
        .n_members = (uint32_t)w->n_members,
        .n_seqs = (uint32_t)w->n_seq_id,
        .n_runs = (uint32_t)w->n_run_seq,
        .n_drops = (uint32_t)w->n_drops,
        .n_forgets = (uint32_t)w->n_forgets,
        .members = members,
        .seqs = seqs,
        .runs = runs,
        .drops = copy_take(room, w->drops, w->n_drops, sizeof *w->drops),
        .forgets = copy_take(room, w->forgets, w->n_forgets, sizeof *w->forgets),
    };
    const kv_handle *table = copy_take(room, w->tables, w->n_tables, sizeof *table);
    const uint16_t *reader = u16_take(room, w->readers, w->n_readers);
    for (size_t i = 0; i < w->n_seq_id; i++) {
        seqs[i] = (struct plan_seq){
            .id = w->seq_id[i],
            .fresh = w->seq_fresh[i],
            .table_from = w->seq_table_from[i],
            .n_table = w->seq_n_table[i],
            .table = table,
            .committed = w->seq_committed[i],
            .density = w->seq_density[i],
            .cast = w->seq_cast[i],
            .reader_from = w->seq_reader_from[i],
            .n_readers = w->seq_n_readers[i],
            .readers = reader,
            .sampling = { .temperature = w->seq_temperature[i],
                          .top_p = w->seq_top_p[i],
                          .top_k = w->seq_top_k[i],
                          .seed = w->seq_seed[i],
                          .min_p = w->seq_min_p[i] },
        };
        table += w->seq_n_table[i];
        reader += w->seq_n_readers[i];
    }
    const int32_t *token = copy_take(room, w->tokens, w->n_tokens, sizeof *token);
    const int32_t *target = copy_take(room, w->targets, w->n_targets, sizeof *target);
    for (size_t i = 0; i < w->n_run_seq; i++) {
        const bool score = w->run_want[i] & WANT_SCORE;
        runs[i] = (struct plan_run){
            .seq = w->run_seq[i],
            .pos = w->run_pos[i],
            .n_rows = w->run_n_rows[i],
            .tokens = token,
            .targets = score ? target : NULL,
            .home = (uint16_t)w->run_home[i],
            .cls = (uint8_t)w->run_cls[i],
            .want = (uint8_t)w->run_want[i],
            .n_top = (uint8_t)w->run_n_top[i],
        };
        token += w->run_n_rows[i];
        target += score ? w->run_n_rows[i] : 0;
    }
    edits_fill(w, room, runs);
    const char *label = copy_take(room, w->labels.data, w->labels.len, 1);
    for (size_t i = 0; i < w->n_seq_id; i++) {
        seqs[i].label_bytes = w->seq_n_label[i];
        seqs[i].label = label;
        label += w->seq_n_label[i];
    }
    return plan;
}

enum status plan_encode(const struct plan *plan, uint8_t **bytes_out, size_t *n_out)
{
    struct wire_arena arena;
    plan_wire wire;
    wire_arena_init(&arena, SIZE_MAX);
    enum status st = plan_to_wire(plan, &arena, &wire);
    if (st == ST_OK)
        st = wire_pack(&wire.base, bytes_out, n_out);
    wire_arena_deinit(&arena);
    return st;
}

enum status plan_decode(const uint8_t *bytes, size_t n, struct plan **plan_out, struct error *err)
{
    struct wire_arena arena;
    wire_arena_init(&arena, wire_unpack_max(n));
    enum status st = ST_OK;
    const plan_wire *w = longspan__v1__control_plan__unpack(&arena.allocator, n, bytes);
    if (!w)
        st = error_set(err, ST_CORRUPT, "plan: malformed message of %zu bytes", n);
    else
        st = plan_wire_check(w, &arena, err);
    if (st == ST_OK) {
        struct wire_size size = { 0 };
        plan_wire_size(w, &size);
        struct wire_room room = { size.bad ? NULL : malloc(size.bytes) };
        if (room.at)
            *plan_out = plan_wire_fill(w, &room);
        else
            st = error_set(err, ST_NO_MEMORY, "plan: out of memory");
    }
    wire_arena_deinit(&arena);
    return st;
}
