#include "client/bench/trace.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/file.h"

enum { COLUMNS_MAX = 64, FIELD_MAX = 256, SECONDS_MAX = 1 << 30 };

struct parse {
    const char *name;
    size_t line;
    struct trace *trace;
    struct error *err;
    /* CSV: where the columns stand */
    size_t timestamp, request, response;
};

static enum status refuse(const struct parse *p, const char *field, const char *why)
{
    return error_set(p->err, ST_INVALID, "%s:%zu: %s: %s", p->name, p->line, field, why);
}

static bool grow(void **array, size_t *room, size_t n, size_t size)
{
    if (n < *room)
        return true;
    const size_t want = *room ? *room * 2 : 256;
    void *bigger = realloc(*array, want * size);
    if (!bigger)
        return false;
    *array = bigger;
    *room = want;
    return true;
}

static enum status add_row(struct parse *p, const struct trace_row *row)
{
    struct trace *t = p->trace;
    if (!grow((void **)&t->rows, &t->rows_room, t->n_rows, sizeof *t->rows))
        return error_set(p->err, ST_NO_MEMORY, "%s: no memory", p->name);
    t->rows[t->n_rows] = *row;
    t->rows[t->n_rows++].line = p->line;
    return ST_OK;
}

/* ---- Mooncake ---- */

static enum status tokens_of(const struct parse *p, const json_t *object, const char *field, uint32_t *out)
{
    const json_t *v = json_object_get(object, field);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > TRACE_TOKENS_MAX)
        return refuse(p, field, "not a number of tokens");
    *out = (uint32_t)json_integer_value(v);
    return ST_OK;
}

static enum status blocks_of(struct parse *p, const json_t *object, struct trace_row *row)
{
    struct trace *t = p->trace;
    const json_t *ids = json_object_get(object, "hash_ids");
    row->first_block = t->n_blocks;
    if (!ids)
        return ST_OK;
    if (!json_is_array(ids))
        return refuse(p, "hash_ids", "not a list");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0)
            return refuse(p, "hash_ids", "not a list of ids");
        if (!grow((void **)&t->blocks, &t->blocks_room, t->n_blocks, sizeof *t->blocks))
            return error_set(p->err, ST_NO_MEMORY, "%s: no memory", p->name);
        t->blocks[t->n_blocks++] = (uint64_t)json_integer_value(id);
    }
    row->n_blocks = json_array_size(ids);
    return ST_OK;
}

static enum status mooncake_row(struct parse *p, const json_t *object)
{
    struct trace_row row = { 0 };
    const json_t *at = json_object_get(object, "timestamp");
    if (!json_is_number(at) || !(json_number_value(at) >= 0 && json_number_value(at) <= SECONDS_MAX * 1000.0))
        return refuse(p, "timestamp", "not milliseconds");
    row.at_us = llround(json_number_value(at) * 1000);
    enum status st = tokens_of(p, object, "input_length", &row.input_tokens);
    if (!st)
        st = tokens_of(p, object, "output_length", &row.output_tokens);
    if (!st)
        st = blocks_of(p, object, &row);
    return st ? st : add_row(p, &row);
}

static enum status mooncake_line(struct parse *p, const char *line, size_t bytes)
{
    json_error_t fault;
    json_t *object = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &fault);
    if (!json_is_object(object)) {
        json_decref(object);
        return refuse(p, "line", "not a JSON object");
    }
    const enum status st = mooncake_row(p, object);
    json_decref(object);
    return st;
}

/* ---- BurstGPT ---- */

/* The next field of a line of CSV into text; quotes as RFC 4180 has them. false: no field is left, or it is too long. */
static bool csv_field(const char **at, const char *end, char text[FIELD_MAX])
{
    const char *p = *at;
    size_t n = 0;
    if (!p)
        return false;
    bool quoted = p < end && *p == '"';
    p += quoted;
    while (p < end && (quoted || *p != ',')) {
        if (quoted && *p == '"') {
            if (p + 1 < end && p[1] == '"') {
                p++;
            } else {
                quoted = false;
                p++;
                continue;
            }
        }
        if (n + 1 >= FIELD_MAX)
            return false;
        text[n++] = *p++;
    }
    text[n] = 0;
    *at = p < end ? p + 1 : NULL;
    return true;
}

static enum status csv_header(struct parse *p, const char *line, size_t bytes)
{
    char text[FIELD_MAX];
    const char *at = line;
    p->timestamp = p->request = p->response = COLUMNS_MAX;
    for (size_t i = 0; i < COLUMNS_MAX && csv_field(&at, line + bytes, text); i++) {
        if (!strcasecmp(text, "Timestamp"))
            p->timestamp = i;
        else if (!strcasecmp(text, "Request tokens"))
            p->request = i;
        else if (!strcasecmp(text, "Response tokens"))
            p->response = i;
    }
    if (p->timestamp == COLUMNS_MAX)
        return refuse(p, "Timestamp", "no such column");
    if (p->request == COLUMNS_MAX)
        return refuse(p, "Request tokens", "no such column");
    return p->response == COLUMNS_MAX ? refuse(p, "Response tokens", "no such column") : ST_OK;
}

static bool csv_number(const char *text, double max, double *out)
{
    char *end;
    if ((*text < '0' || *text > '9') && *text != '.')
        return false;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= 0 && *out <= max;
}

static enum status burstgpt_line(struct parse *p, const char *line, size_t bytes)
{
    char text[FIELD_MAX];
    const char *at = line;
    double seconds = -1, request = -1, response = -1;
    if (p->line == 1)
        return csv_header(p, line, bytes);
    for (size_t i = 0; i < COLUMNS_MAX && csv_field(&at, line + bytes, text); i++) {
        if (i == p->timestamp && !csv_number(text, SECONDS_MAX, &seconds))
            return refuse(p, "Timestamp", "not seconds");
        if (i == p->request && !csv_number(text, TRACE_TOKENS_MAX, &request))
            return refuse(p, "Request tokens", "not a number of tokens");
        if (i == p->response && !csv_number(text, TRACE_TOKENS_MAX, &response))
            return refuse(p, "Response tokens", "not a number of tokens");
    }
    if (seconds < 0 || request < 0 || response < 0)
        return refuse(p, "line", "too few columns");
    if (request < 1 || response < 1) { /* it failed when it was recorded */
        p->trace->n_skipped++;
        return ST_OK;
    }
    return add_row(p, &(struct trace_row){ .at_us = llround(seconds * 1e6),
                                           .input_tokens = (uint32_t)request,
                                           .output_tokens = (uint32_t)response });
}

/* ---- both ---- */

static int by_time(const void *a, const void *b)
{
    const struct trace_row *x = a, *y = b;
    if (x->at_us != y->at_us)
        return x->at_us < y->at_us ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

static void sort_rows(struct trace *t)
{
    bool sorted = true;
    for (size_t i = 1; i < t->n_rows; i++)
        sorted = sorted && t->rows[i - 1].at_us <= t->rows[i].at_us;
    if (!sorted)
        qsort(t->rows, t->n_rows, sizeof *t->rows, by_time);
    for (size_t i = t->n_rows; i-- > 0;)
        t->rows[i].at_us -= t->rows[0].at_us;
}

static enum status parse_lines(struct parse *p, const char *text, size_t bytes, enum trace_format format,
                               size_t rows_max)
{
    const char *at = text, *end = text + bytes;
    while (at < end && (!rows_max || p->trace->n_rows < rows_max)) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        const char *next = stop ? stop + 1 : end;
        size_t n = (size_t)((stop ? stop : end) - at);
        p->line++;
        if (n && at[n - 1] == '\r')
            n--;
        const enum status st = !n                         ? ST_OK
                               : format == TRACE_BURSTGPT ? burstgpt_line(p, at, n)
                                                          : mooncake_line(p, at, n);
        if (st)
            return st;
        at = next;
    }
    return p->trace->n_rows ? ST_OK : error_set(p->err, ST_INVALID, "%s: no requests in it", p->name);
}

enum status trace_parse(const char *text, size_t bytes, enum trace_format format, size_t rows_max, const char *name,
                        struct trace *trace_out, struct error *err)
{
    struct trace t = { 0 };
    struct parse p = { .name = name, .trace = &t, .err = err };
    if (format == TRACE_AUTO)
        format = bytes && text[0] == '{' ? TRACE_MOONCAKE : TRACE_BURSTGPT;
    const enum status st = parse_lines(&p, text, bytes, format, rows_max);
    if (st) {
        trace_close(&t);
        return st;
    }
    sort_rows(&t);
    *trace_out = t;
    return ST_OK;
}

enum status trace_open(const char *path, enum trace_format format, size_t rows_max, struct trace *trace_out,
                       struct error *err)
{
    char *text;
    size_t bytes;
    enum status st = file_read(path, TRACE_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    st = trace_parse(text, bytes, format, rows_max, path, trace_out, err);
    free(text);
    return st;
}

void trace_close(struct trace *t)
{
    free(t->rows);
    free(t->blocks);
    *t = (struct trace){ 0 };
}
