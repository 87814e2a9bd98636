#include "model/json.h"

#include <stdlib.h>
#include <string.h>

#include "model/source.h"

enum status json_parse_object(const char *text, size_t bytes, const char *where, json_t **root_out, struct error *err)
{
    json_error_t e;
    char shown[160];
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        return error_set(err, ST_CORRUPT, "%s: line %d, column %d: %s", where, e.line, e.column,
                         model_printable(shown, sizeof shown, e.text, strlen(e.text)));
    if (!json_is_object(root)) {
        json_decref(root);
        return error_set(err, ST_CORRUPT, "%s: the top is not an object", where);
    }
    *root_out = root;
    return ST_OK;
}

const json_t *json_find(const struct json_in *in, const char *key)
{
    const json_t *v = json_object_get(in->object, key);
    return json_is_null(v) ? NULL : v;
}

static const json_t *lookup(const struct json_in *in, const char *key, bool *found_out, enum status *st,
                            struct error *err)
{
    const json_t *v = json_find(in, key);
    *st = ST_OK;
    if (found_out)
        *found_out = v != NULL;
    else if (!v)
        *st = error_set(err, ST_CORRUPT, "%s: key %s%s is missing", in->where, in->prefix, key);
    return v;
}

static enum status wrong_type(const struct json_in *in, const char *key, const char *want, const json_t *v,
                              struct error *err)
{
    char shown[64];
    return error_set(err, ST_CORRUPT, "%s: key %s%s: %s is not %s", in->where, in->prefix, key,
                     json_show(shown, sizeof shown, v), want);
}

enum status json_read_u32(const struct json_in *in, const char *key, uint32_t *value_out, bool *found_out,
                          struct error *err)
{
    enum status st;
    const json_t *v = lookup(in, key, found_out, &st, err);
    if (!v)
        return st;
    const json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 0 || i > UINT32_MAX)
        return wrong_type(in, key, "an integer from 0 to 2^32 - 1", v, err);
    *value_out = (uint32_t)i;
    return ST_OK;
}

enum status json_read_f64(const struct json_in *in, const char *key, double *value_out, bool *found_out,
                          struct error *err)
{
    enum status st;
    const json_t *v = lookup(in, key, found_out, &st, err);
    if (!v)
        return st;
    if (!json_is_number(v))
        return wrong_type(in, key, "a number", v, err);
    *value_out = json_number_value(v);
    return ST_OK;
}

enum status json_read_bool(const struct json_in *in, const char *key, bool *value_out, bool *found_out,
                           struct error *err)
{
    enum status st;
    const json_t *v = lookup(in, key, found_out, &st, err);
    if (!v)
        return st;
    if (!json_is_boolean(v))
        return wrong_type(in, key, "true or false", v, err);
    *value_out = json_is_true(v);
    return ST_OK;
}

enum status json_read_text(const struct json_in *in, const char *key, const char **text_out, bool *found_out,
                           struct error *err)
{
    enum status st;
    const json_t *v = lookup(in, key, found_out, &st, err);
    if (!v)
        return st;
    if (!json_is_string(v))
        return wrong_type(in, key, "a string", v, err);
    *text_out = json_string_value(v);
    return ST_OK;
}

enum status json_read_printable(const struct json_in *in, const char *key, char *out, size_t room, struct error *err)
{
    const char *text;
    const enum status st = json_read_text(in, key, &text, NULL, err);
    if (st)
        return st;
    if (strlen(text) >= room)
        return error_set(err, ST_CORRUPT, "%s: key %s%s is longer than %zu bytes", in->where, in->prefix, key,
                         room - 1);
    model_printable(out, room, text, strlen(text));
    return ST_OK;
}

const char *json_show(char *buffer, size_t room, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    model_printable(buffer, room, text ? text : "?", text ? strlen(text) : 1);
    free(text);
    return buffer;
}
