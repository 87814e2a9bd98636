/* Is a plan from the wire one that a worker may trust? Every count, range and cross-reference, and the field's name where it is not. */
#include <string.h>

#include "common/rng.h"
#include "proto/wire.h"

enum {
    LEAF_BLOCKS_MAX = 4096,
    BLOCKS_MAX = PLAN_POSITIONS_MAX / PLAN_BLOCK,
    WANT_ALL = WANT_SAMPLE | WANT_SCORE | WANT_LOGITS,
};

typedef Longspan__V1__ControlPlan plan_wire;

#define SAME_COUNT(first, field)                                                                                       \
    do {                                                                                                               \
        if (w->n_##field != w->n_##first)                                                                              \
            return error_set(err, ST_CORRUPT, "plan." #field ": %zu values, " #first " has %zu", w->n_##field,         \
                             w->n_##first);                                                                            \
    } while (0)

static enum status members_check(const plan_wire *w, struct error *err)
{
    if (w->n_members == 0 || w->n_members > PLAN_WORKERS_MAX)
        return error_set(err, ST_CORRUPT, "plan.members: %zu, must be 1 to %d", w->n_members, PLAN_WORKERS_MAX);
    for (size_t i = 0; i < w->n_members; i++)
        if (w->members[i] >= UINT16_MAX || (i && w->members[i] <= w->members[i - 1]))
            return error_set(err, ST_CORRUPT, "plan.members[%zu]: %u is out of range or order", i, w->members[i]);
    return ST_OK;
}

static bool is_member(const plan_wire *w, uint32_t worker)
{
    for (size_t i = 0; i < w->n_members; i++)
        if (w->members[i] == worker)
            return true;
    return false;
}

/* No sequence twice: a table of twice their number, on 64-bit ids mixed well. */
static enum status ids_check(const plan_wire *w, struct wire_arena *arena, struct error *err)
{
    size_t room = 16;
    while (room < 2 * w->n_seq_id)
        room *= 2;
    uint32_t *slots = wire_take(arena, room * sizeof *slots);
    if (!slots)
        return error_set(err, ST_NO_MEMORY, "plan: out of memory");
    memset(slots, 0xFF, room * sizeof *slots);
    for (size_t i = 0; i < w->n_seq_id; i++) {
        size_t at = mix64(w->seq_id[i]) & (room - 1);
        for (; slots[at] != UINT32_MAX; at = (at + 1) & (room - 1))
            if (w->seq_id[slots[at]] == w->seq_id[i])
                return error_set(err, ST_CORRUPT, "plan.seq_id[%zu]: sequence %llu is there twice", i,
                                 (unsigned long long)w->seq_id[i]);
        slots[at] = (uint32_t)i;
    }
    return ST_OK;
}

/* Parts of joined lists: each within its limit, all together as many as were sent. */
static enum status parts_check(const uint32_t *from, const uint32_t *n, size_t n_parts, uint32_t end_max,
                               size_t n_joined, const char *field, struct error *err)
{
    size_t sum = 0;
    for (size_t i = 0; i < n_parts; i++) {
        if (n[i] > end_max || from[i] > end_max - n[i])
            return error_set(err, ST_CORRUPT, "plan.%s: part %zu: %u from %u is over %u", field, i, n[i], from[i],
                             end_max);
        sum += n[i]; /* at most PLAN_ROWS_MAX parts of at most PLAN_POSITIONS_MAX */
    }
    if (sum != n_joined)
        return error_set(err, ST_CORRUPT, "plan.%s: %zu values, counts say %zu", field, n_joined, sum);
    return ST_OK;
}

/* They stand in logs. */
static enum status labels_check(const plan_wire *w, struct error *err)
{
    size_t sum = 0;
    for (size_t i = 0; i < w->n_seq_id; i++) {
        if (w->seq_n_label[i] > PLAN_LABEL_MAX)
            return error_set(err, ST_CORRUPT, "plan.seq_n_label[%zu]: %u bytes, at most %d", i, w->seq_n_label[i],
                             PLAN_LABEL_MAX);
        sum += w->seq_n_label[i];
    }
    if (sum != w->labels.len)
        return error_set(err, ST_CORRUPT, "plan.labels: %zu bytes, counts say %zu", w->labels.len, sum);
    for (size_t i = 0; i < sum; i++)
        if (w->labels.data[i] <= ' ' || w->labels.data[i] > '~')
            return error_set(err, ST_CORRUPT, "plan.labels: byte %zu is not printable", i);
    return ST_OK;
}

static enum status seqs_check(const plan_wire *w, struct wire_arena *arena, struct error *err)
{
    if (w->n_seq_id > PLAN_ROWS_MAX)
        return error_set(err, ST_TOO_LARGE, "plan.seq_id: %zu sequences, at most %d", w->n_seq_id, PLAN_ROWS_MAX);
    SAME_COUNT(seq_id, seq_fresh);
    SAME_COUNT(seq_id, seq_table_from);
    SAME_COUNT(seq_id, seq_n_table);
    SAME_COUNT(seq_id, seq_reader_from);
    SAME_COUNT(seq_id, seq_n_readers);
    SAME_COUNT(seq_id, seq_temperature);
    SAME_COUNT(seq_id, seq_top_p);
    SAME_COUNT(seq_id, seq_top_k);
    SAME_COUNT(seq_id, seq_seed);
    SAME_COUNT(seq_id, seq_min_p);
    SAME_COUNT(seq_id, seq_committed);
    SAME_COUNT(seq_id, seq_density);
    SAME_COUNT(seq_id, seq_cast);
    SAME_COUNT(seq_id, seq_n_label);
    enum status st = ids_check(w, arena, err);
    if (st == ST_OK)
        st = parts_check(w->seq_table_from, w->seq_n_table, w->n_seq_id, BLOCKS_MAX, w->n_tables, "tables", err);
    if (st == ST_OK)
        st = parts_check(w->seq_reader_from, w->seq_n_readers, w->n_seq_id,
                         (BLOCKS_MAX + w->leaf_blocks - 1) / w->leaf_blocks, w->n_readers, "readers", err);
    if (st == ST_OK)
        st = labels_check(w, err);
    if (st)
        return st;
    for (size_t i = 0; i < w->n_seq_id; i++) {
        if (w->seq_fresh[i] && (w->seq_table_from[i] || w->seq_reader_from[i]))
            return error_set(err, ST_CORRUPT, "plan.seq_fresh[%zu]: a fresh sequence's lists begin at 0", i);
        if (!(w->seq_temperature[i] >= 0 && w->seq_temperature[i] <= 1e6f))
            return error_set(err, ST_CORRUPT, "plan.seq_temperature[%zu]: out of range", i);
        if (!(w->seq_top_p[i] >= 0 && w->seq_top_p[i] <= 1))
            return error_set(err, ST_CORRUPT, "plan.seq_top_p[%zu]: out of range", i);
        if (!(w->seq_min_p[i] >= 0 && w->seq_min_p[i] <= 1))
            return error_set(err, ST_CORRUPT, "plan.seq_min_p[%zu]: out of range", i);
        if (w->seq_density[i] > PLAN_DENSITY_ONE)
            return error_set(err, ST_CORRUPT, "plan.seq_density[%zu]: %u millionths", i, w->seq_density[i]);
        if (w->n_members < 64 && w->seq_cast[i] >> w->n_members)
            return error_set(err, ST_CORRUPT, "plan.seq_cast[%zu]: more workers than members", i);
    }
    for (size_t i = 0; i < w->n_tables; i++)
        if (!w->tables[i])
            return error_set(err, ST_CORRUPT, "plan.tables[%zu]: no block", i);
    for (size_t i = 0; i < w->n_readers; i++)
        if (!is_member(w, w->readers[i]))
            return error_set(err, ST_CORRUPT, "plan.readers[%zu]: worker %u is no member", i, w->readers[i]);
    return ST_OK;
}

static enum status run_check(const plan_wire *w, size_t i, const int32_t *tokens, struct error *err)
{
    const uint32_t leaf_rows = w->leaf_blocks * PLAN_BLOCK;
    const uint32_t pos = w->run_pos[i], n = w->run_n_rows[i], want = w->run_want[i];
    if (w->run_seq[i] >= w->n_seq_id)
        return error_set(err, ST_CORRUPT, "plan.run_seq[%zu]: %u of %zu sequences", i, w->run_seq[i], w->n_seq_id);
    if (n == 0 || n > PLAN_ROWS_MAX || pos >= PLAN_POSITIONS_MAX || n > PLAN_POSITIONS_MAX - pos)
        return error_set(err, ST_CORRUPT, "plan.run_pos[%zu]: %u rows from position %u", i, n, pos);
    if (pos / leaf_rows != (pos + n - 1) / leaf_rows)
        return error_set(err, ST_CORRUPT, "plan.run_n_rows[%zu]: %u rows from position %u cross a leaf border", i, n,
                         pos);
    if (!is_member(w, w->run_home[i]))
        return error_set(err, ST_CORRUPT, "plan.run_home[%zu]: worker %u is no member", i, w->run_home[i]);
    if (w->run_cls[i] > ROW_GENERATED)
        return error_set(err, ST_CORRUPT, "plan.run_cls[%zu]: %u", i, w->run_cls[i]);
    if (want & ~(uint32_t)WANT_ALL)
        return error_set(err, ST_CORRUPT, "plan.run_want[%zu]: %u", i, want);
    if (w->run_n_top[i] > PLAN_TOP_MAX)
        return error_set(err, ST_CORRUPT, "plan.run_n_top[%zu]: %u, at most %d", i, w->run_n_top[i], PLAN_TOP_MAX);
    for (uint32_t j = 0; j < n; j++)
        if (tokens[j] < 0 && (tokens[j] != -1 || j || !pos || w->run_cls[i] != ROW_GENERATED))
            return error_set(err, ST_CORRUPT, "plan.tokens: run %zu row %u: token %d", i, j, tokens[j]);
    return ST_OK;
}

/* A run against what this plan says of its sequence: order, and where it is fresh, that its rows see nothing unknown. */
static enum status run_in_seq_check(const plan_wire *w, size_t i, uint32_t *next_pos, uint32_t readers_at,
                                    struct error *err)
{
    const uint32_t s = w->run_seq[i], pos = w->run_pos[i], last = pos + w->run_n_rows[i] - 1;
    if (pos < next_pos[s])
        return error_set(err, ST_CORRUPT, "plan.run_pos[%zu]: position %u is behind the run before it", i, pos);
    if (pos < w->seq_committed[s])
        return error_set(err, ST_CORRUPT, "plan.seq_committed[%u]: position %u is computed again", s, pos);
    next_pos[s] = last + 1;
    const uint32_t block = last / PLAN_BLOCK, leaf = block / w->leaf_blocks;
    if (w->seq_fresh[s] && (block >= w->seq_n_table[s] || leaf >= w->seq_n_readers[s]))
        return error_set(err, ST_CORRUPT, "plan.run_pos[%zu]: position %u is over a fresh sequence's table or readers",
                         i, last);
    const uint32_t from = w->seq_reader_from[s];
    if (leaf >= from && leaf - from < w->seq_n_readers[s] && w->readers[readers_at + leaf - from] != w->run_home[i])
        return error_set(err, ST_CORRUPT, "plan.run_home[%zu]: worker %u, but %u reads leaf %u", i, w->run_home[i],
                         w->readers[readers_at + leaf - from], leaf);
    if ((w->run_want[i] & WANT_SAMPLE) && w->seq_temperature[s] > 0 && !(w->seq_top_p[s] > 0))
        return error_set(err, ST_CORRUPT, "plan.seq_top_p[%u]: 0 samples nothing", s);
    return ST_OK;
}

static enum status runs_count_check(const plan_wire *w, struct error *err)
{
    if (w->n_run_seq > PLAN_ROWS_MAX)
        return error_set(err, ST_TOO_LARGE, "plan.run_seq: %zu runs, at most %d", w->n_run_seq, PLAN_ROWS_MAX);
    SAME_COUNT(run_seq, run_pos);
    SAME_COUNT(run_seq, run_n_rows);
    SAME_COUNT(run_seq, run_home);
    SAME_COUNT(run_seq, run_cls);
    SAME_COUNT(run_seq, run_want);
    SAME_COUNT(run_seq, run_n_top);
    size_t n_tokens = 0, n_targets = 0;
    for (size_t i = 0; i < w->n_run_seq; i++) {
        n_tokens += w->run_n_rows[i];
        n_targets += w->run_want[i] & WANT_SCORE ? w->run_n_rows[i] : 0;
    }
    if (n_tokens > PLAN_ROWS_MAX)
        return error_set(err, ST_TOO_LARGE, "plan.run_n_rows: %zu rows, at most %d", n_tokens, PLAN_ROWS_MAX);
    if (w->n_tokens != n_tokens || w->n_targets != n_targets)
        return error_set(err, ST_CORRUPT, "plan.tokens: %zu and %zu targets, runs say %zu and %zu", w->n_tokens,
                         w->n_targets, n_tokens, n_targets);
    for (size_t i = 0; i < n_targets; i++)
        if (w->targets[i] < -1)
            return error_set(err, ST_CORRUPT, "plan.targets[%zu]: token %d", i, w->targets[i]);
    return ST_OK;
}

static enum status runs_check(const plan_wire *w, struct wire_arena *arena, struct error *err)
{
    enum status st = runs_count_check(w, err);
    if (st)
        return st;
    uint32_t *next_pos = wire_take(arena, w->n_seq_id * sizeof *next_pos);
    uint32_t *readers_at = wire_take(arena, w->n_seq_id * sizeof *readers_at);
    if (!next_pos || !readers_at)
        return error_set(err, ST_NO_MEMORY, "plan: out of memory");
    uint32_t at = 0;
    for (size_t i = 0; i < w->n_seq_id; i++) {
        next_pos[i] = 0;
        readers_at[i] = at;
        at += w->seq_n_readers[i];
    }
    const int32_t *tokens = w->tokens;
    for (size_t i = 0; i < w->n_run_seq; i++) {
        st = run_check(w, i, tokens, err);
        if (st == ST_OK)
            st = run_in_seq_check(w, i, next_pos, readers_at[w->run_seq[i]], err);
        if (st)
            return st;
        tokens += w->run_n_rows[i];
    }
    return ST_OK;
}

static bool set_empty(const uint8_t *set, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (set[i])
            return false;
    return true;
}

static enum status edits_count_check(const plan_wire *w, struct error *err)
{
    size_t n_adds = 0, bytes = 0;
    if (w->n_edit_run > w->n_run_seq)
        return error_set(err, ST_TOO_LARGE, "plan.edit_run: %zu values, %zu runs", w->n_edit_run, w->n_run_seq);
    SAME_COUNT(edit_run, edit_n_adds);
    SAME_COUNT(edit_run, edit_repetition);
    SAME_COUNT(edit_run, edit_repeated_bytes);
    SAME_COUNT(edit_run, edit_allowed_bytes);
    SAME_COUNT(add_token, add_value);
    for (size_t i = 0; i < w->n_edit_run; i++) {
        n_adds += w->edit_n_adds[i];
        bytes += (size_t)w->edit_repeated_bytes[i] + w->edit_allowed_bytes[i];
        if (w->edit_repeated_bytes[i] > PLAN_VOCAB_MAX / 8 || w->edit_allowed_bytes[i] > PLAN_VOCAB_MAX / 8)
            return error_set(err, ST_CORRUPT, "plan.edit_allowed_bytes[%zu]: a set over %d bytes", i,
                             PLAN_VOCAB_MAX / 8);
    }
    if (w->n_add_token != n_adds || w->sets.len != bytes)
        return error_set(err, ST_CORRUPT, "plan.add_token: %zu and %zu bytes of sets, runs say %zu and %zu",
                         w->n_add_token, w->sets.len, n_adds, bytes);
    return ST_OK;
}

static enum status edits_check(const plan_wire *w, struct error *err)
{
    const enum status st = edits_count_check(w, err);
    if (st)
        return st;
    size_t add = 0;
    const uint8_t *set = w->sets.data;
    for (size_t i = 0; i < w->n_edit_run; i++) {
        const uint32_t run = w->edit_run[i], n = w->edit_n_adds[i];
        if (run >= w->n_run_seq || (i && run <= w->edit_run[i - 1]) || !(w->run_want[run] & WANT_SAMPLE))
            return error_set(err, ST_CORRUPT, "plan.edit_run[%zu]: run %u is out of range or order, or samples nothing",
                             i, run);
        if (!(w->edit_repetition[i] > 0 && w->edit_repetition[i] <= 1e6f))
            return error_set(err, ST_CORRUPT, "plan.edit_repetition[%zu]: out of range", i);
        if (!n && !w->edit_repeated_bytes[i] && !w->edit_allowed_bytes[i])
            return error_set(err, ST_CORRUPT, "plan.edit_n_adds[%zu]: nothing is edited", i);
        for (uint32_t j = 0; j < n; j++, add++) {
            if (w->add_token[add] >= PLAN_VOCAB_MAX || (j && w->add_token[add] <= w->add_token[add - 1]))
                return error_set(err, ST_CORRUPT, "plan.add_token[%zu]: %u is out of range or order", add,
                                 w->add_token[add]);
            if (!(w->add_value[add] >= -1e6f && w->add_value[add] <= 1e6f))
                return error_set(err, ST_CORRUPT, "plan.add_value[%zu]: out of range", add);
        }
        set += w->edit_repeated_bytes[i];
        if (w->edit_allowed_bytes[i] && set_empty(set, w->edit_allowed_bytes[i]))
            return error_set(err, ST_CORRUPT, "plan.sets: edit %zu allows no token", i);
        set += w->edit_allowed_bytes[i];
    }
    return ST_OK;
}

enum status plan_wire_check(const plan_wire *w, struct wire_arena *arena, struct error *err)
{
    if (w->leaf_blocks == 0 || w->leaf_blocks > LEAF_BLOCKS_MAX)
        return error_set(err, ST_CORRUPT, "plan.leaf_blocks: %u, must be 1 to %d", w->leaf_blocks, LEAF_BLOCKS_MAX);
    if (w->deadline_ms == 0)
        return error_set(err, ST_CORRUPT, "plan.deadline_ms: 0");
    for (size_t i = 0; i < w->n_drops; i++)
        if (!w->drops[i])
            return error_set(err, ST_CORRUPT, "plan.drops[%zu]: no block", i);
    enum status st = members_check(w, err);
    if (st == ST_OK)
        st = seqs_check(w, arena, err);
    if (st == ST_OK)
        st = runs_check(w, arena, err);
    if (st == ST_OK)
        st = edits_check(w, err);
    return st;
}
