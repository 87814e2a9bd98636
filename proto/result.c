#include "proto/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

enum { LOGITS_MAX = 1 << 24 }; /* a row */

typedef Longspan__V1__ControlResult result_wire;

#define COLUMN(field, count)                                                                                           \
    do {                                                                                                               \
        w.n_##field = (count);                                                                                         \
        w.field = wire_take(arena, w.n_##field * sizeof *w.field);                                                     \
        if (!w.field)                                                                                                  \
            return ST_NO_MEMORY;                                                                                       \
    } while (0)

enum status result_to_wire(const struct result *result, struct wire_arena *arena, result_wire *wire_out)
{
    result_wire w = LONGSPAN__V1__CONTROL_RESULT__INIT;
    w.epoch = result->epoch;
    w.number = result->number;
    w.group = result->group;
    w.busy_us = result->busy_us;
    w.wait_us = result->wait_us;
    w.bytes_sent = result->bytes_sent;
    w.bytes_received = result->bytes_received;
    w.kv_bytes_read = result->kv_bytes_read;
    w.kv_bytes_dense = result->kv_bytes_dense;
    size_t n_top = 0, n_logits = 0;
    for (uint32_t i = 0; i < result->n_rows; i++) {
        n_top += result->rows[i].n_top;
        n_logits += result->rows[i].n_logits;
    }
    COLUMN(row_seq, result->n_rows);
    COLUMN(row_pos, result->n_rows);
    COLUMN(row_token, result->n_rows);
    COLUMN(row_logprob, result->n_rows);
    COLUMN(row_target_logprob, result->n_rows);
    COLUMN(row_n_top, result->n_rows);
    COLUMN(row_n_logits, result->n_rows);
    COLUMN(top_token, n_top);
    COLUMN(top_logprob, n_top);
    COLUMN(logits, n_logits);
    size_t top = 0;
    float *logits = w.logits;
    for (uint32_t i = 0; i < result->n_rows; i++) {
        const struct result_row *r = &result->rows[i];
        w.row_seq[i] = r->seq;
        w.row_pos[i] = r->pos;
        w.row_token[i] = r->token;
        w.row_logprob[i] = r->logprob;
        w.row_target_logprob[i] = r->target_logprob;
        w.row_n_top[i] = r->n_top;
        w.row_n_logits[i] = r->n_logits;
        for (uint32_t j = 0; j < r->n_top; j++, top++) {
            w.top_token[top] = r->top[j].token;
            w.top_logprob[top] = r->top[j].logprob;
        }
        if (r->n_logits)
            memcpy(logits, r->logits, r->n_logits * sizeof *logits);
        logits += r->n_logits;
    }
    *wire_out = w;
    return ST_OK;
}

#define SAME_COUNT(first, field)                                                                                       \
    do {                                                                                                               \
        if (w->n_##field != w->n_##first)                                                                              \
            return error_set(err, ST_CORRUPT, "result." #field ": %zu values, " #first " has %zu", w->n_##field,       \
                             w->n_##first);                                                                            \
    } while (0)

/* Never wrong silently: a NaN is the mark of a broken step. -inf is a probability that underflowed. */
static bool logprob_ok(float v)
{
    return !isnan(v) && v < INFINITY;
}

enum status result_wire_check(const result_wire *w, struct error *err)
{
    if (w->n_row_seq > PLAN_ROWS_MAX)
        return error_set(err, ST_TOO_LARGE, "result.row_seq: %zu rows, at most %d", w->n_row_seq, PLAN_ROWS_MAX);
    SAME_COUNT(row_seq, row_pos);
    SAME_COUNT(row_seq, row_token);
    SAME_COUNT(row_seq, row_logprob);
    SAME_COUNT(row_seq, row_target_logprob);
    SAME_COUNT(row_seq, row_n_top);
    SAME_COUNT(row_seq, row_n_logits);
    SAME_COUNT(top_token, top_logprob);
    size_t n_top = 0, n_logits = 0;
    for (size_t i = 0; i < w->n_row_seq; i++) {
        if (w->row_pos[i] >= PLAN_POSITIONS_MAX)
            return error_set(err, ST_CORRUPT, "result.row_pos[%zu]: %u", i, w->row_pos[i]);
        if (w->row_token[i] < -1)
            return error_set(err, ST_CORRUPT, "result.row_token[%zu]: %d", i, w->row_token[i]);
        if (!logprob_ok(w->row_logprob[i]) || !logprob_ok(w->row_target_logprob[i]))
            return error_set(err, ST_CORRUPT, "result.row_logprob[%zu]: not a log-probability", i);
        if (w->row_n_top[i] > PLAN_TOP_MAX)
            return error_set(err, ST_CORRUPT, "result.row_n_top[%zu]: %u, at most %d", i, w->row_n_top[i],
                             PLAN_TOP_MAX);
        if (w->row_n_logits[i] > LOGITS_MAX)
            return error_set(err, ST_CORRUPT, "result.row_n_logits[%zu]: %u", i, w->row_n_logits[i]);
        n_top += w->row_n_top[i];
        n_logits += w->row_n_logits[i];
    }
    if (w->n_top_token != n_top || w->n_logits != n_logits)
        return error_set(err, ST_CORRUPT, "result.top_token: %zu, and %zu logits; rows say %zu and %zu", w->n_top_token,
                         w->n_logits, n_top, n_logits);
    for (size_t i = 0; i < n_top; i++)
        if (w->top_token[i] > INT32_MAX || !logprob_ok(w->top_logprob[i]))
            return error_set(err, ST_CORRUPT, "result.top_logprob[%zu]: not a token's log-probability", i);
    return ST_OK;
}

void result_wire_size(const result_wire *w, struct wire_size *size)
{
    wire_size_add(size, 1, sizeof(struct result));
    wire_size_add(size, w->n_row_seq, sizeof(struct result_row));
    wire_size_add(size, w->n_top_token, sizeof(struct result_top));
    wire_size_add(size, w->n_logits, sizeof(float));
}

struct result *result_wire_fill(const result_wire *w, struct wire_room *room)
{
    struct result *result = wire_room_take(room, 1, sizeof *result);
    struct result_row *rows = wire_room_take(room, w->n_row_seq, sizeof *rows);
    struct result_top *top = wire_room_take(room, w->n_top_token, sizeof *top);
    float *logits = wire_room_take(room, w->n_logits, sizeof *logits);
    *result = (struct result){
        .epoch = w->epoch,
        .number = w->number,
        .group = w->group,
        .n_rows = (uint32_t)w->n_row_seq,
        .rows = rows,
        .busy_us = w->busy_us,
        .wait_us = w->wait_us,
        .bytes_sent = w->bytes_sent,
        .bytes_received = w->bytes_received,
        .kv_bytes_read = w->kv_bytes_read,
        .kv_bytes_dense = w->kv_bytes_dense,
    };
    for (size_t i = 0; i < w->n_top_token; i++)
        top[i] = (struct result_top){ w->top_token[i], w->top_logprob[i] };
    if (w->n_logits)
        memcpy(logits, w->logits, w->n_logits * sizeof *logits);
    for (size_t i = 0; i < w->n_row_seq; i++) {
        rows[i] = (struct result_row){
            .seq = w->row_seq[i],
            .pos = w->row_pos[i],
            .token = w->row_token[i],
            .logprob = w->row_logprob[i],
            .target_logprob = w->row_target_logprob[i],
            .n_top = w->row_n_top[i],
            .top = top,
            .n_logits = w->row_n_logits[i],
            .logits = logits,
        };
        top += w->row_n_top[i];
        logits += w->row_n_logits[i];
    }
    return result;
}

enum status result_encode(const struct result *result, uint8_t **bytes_out, size_t *n_out)
{
    struct wire_arena arena;
    result_wire wire;
    wire_arena_init(&arena, SIZE_MAX);
    enum status st = result_to_wire(result, &arena, &wire);
    if (st == ST_OK)
        st = wire_pack(&wire.base, bytes_out, n_out);
    wire_arena_deinit(&arena);
    return st;
}

enum status result_decode(const uint8_t *bytes, size_t n, struct result **result_out, struct error *err)
{
    struct wire_arena arena;
    wire_arena_init(&arena, wire_unpack_max(n));
    enum status st = ST_OK;
    const result_wire *w = longspan__v1__control_result__unpack(&arena.allocator, n, bytes);
    if (!w)
        st = error_set(err, ST_CORRUPT, "result: malformed message of %zu bytes", n);
    else
        st = result_wire_check(w, err);
    if (st == ST_OK) {
        struct wire_size size = { 0 };
        result_wire_size(w, &size);
        struct wire_room room = { size.bad ? NULL : malloc(size.bytes) };
        if (room.at)
            *result_out = result_wire_fill(w, &room);
        else
            st = error_set(err, ST_NO_MEMORY, "result: out of memory");
    }
    wire_arena_deinit(&arena);
    return st;
}
