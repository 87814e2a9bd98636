#include "client/batch_line.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

static const char *const urls[] = { "/v1/chat/completions", "/v1/completions" };

static enum status read_id(const json_t *json, struct batch_line *l, struct error *err)
{
    const json_t *id = json_object_get(json, "custom_id");
    const size_t n = json_string_length(id);
    if (!json_is_string(id) || !n || n > BATCH_ID_MAX || strlen(json_string_value(id)) != n)
        return error_set(err, ST_INVALID, "custom_id: a string of 1 to %d bytes is wanted", BATCH_ID_MAX);
    memcpy(l->custom_id, json_string_value(id), n + 1);
    return ST_OK;
}

static enum status read_rest(const json_t *json, struct batch_line *l, struct error *err)
{
    const char *method = json_string_value(json_object_get(json, "method"));
    const char *url = json_string_value(json_object_get(json, "url"));
    const json_t *body = json_object_get(json, "body");
    if (!method || strcmp(method, "POST") != 0)
        return error_set(err, ST_INVALID, "method: POST is wanted");
    for (size_t i = 0; url && i < sizeof urls / sizeof *urls; i++)
        if (!strcmp(url, urls[i]))
            l->url = urls[i];
    if (!l->url)
        return error_set(err, ST_INVALID, "url: %s or %s is wanted", urls[0], urls[1]);
    if (!json_is_object(body))
        return error_set(err, ST_INVALID, "body: an object is wanted");
    l->body = json_dumps(body, JSON_COMPACT);
    if (!l->body)
        return error_set(err, ST_NO_MEMORY, "out of memory");
    l->body_bytes = strlen(l->body);
    return ST_OK;
}

enum status batch_line_read(const char *line, size_t bytes, struct batch_line *line_out, struct error *err)
{
    json_error_t where;
    *line_out = (struct batch_line){ 0 };
    if (bytes > BATCH_LINE_MAX)
        return error_set(err, ST_INVALID, "the line has %zu bytes, at most %d are taken", bytes, BATCH_LINE_MAX);
    json_t *json = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &where);
    enum status st = ST_OK;
    if (!json)
        st = error_set(err, ST_INVALID, "not JSON: %s (column %d)", where.text, where.column);
    else if (!json_is_object(json))
        st = error_set(err, ST_INVALID, "an object is wanted");
    if (!st)
        st = read_id(json, line_out, err);
    if (!st)
        st = read_rest(json, line_out, err);
    json_decref(json);
    return st;
}

void batch_line_free(struct batch_line *line)
{
    free(line->body);
    *line = (struct batch_line){ 0 };
}
