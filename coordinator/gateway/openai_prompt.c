/* Values of a request body, and what it wants answered: a text, tokens, or messages. */
#include "coordinator/gateway/openai_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

enum status openai_wrong(struct openai_parse *p, const char *field, const char *must)
{
    return refuse(p->r, ST_INVALID, field, "%s must be %s", field, must);
}

enum status openai_unsupported(struct openai_parse *p, const char *field, const char *why)
{
    return refuse(p->r, ST_UNSUPPORTED, field, "%s is not supported%s%s", field, *why ? ": " : "", why);
}

enum status openai_bool(struct openai_parse *p, const char *field, const json_t *v, bool *out)
{
    if (!json_is_boolean(v))
        return openai_wrong(p, field, "true or false");
    *out = json_is_true(v);
    return ST_OK;
}

enum status openai_int(struct openai_parse *p, const char *field, const json_t *v, int64_t *out)
{
    if (!json_is_integer(v))
        return openai_wrong(p, field, "an integer");
    *out = json_integer_value(v);
    return ST_OK;
}

enum status openai_number(struct openai_parse *p, const char *field, const json_t *v, double *out)
{
    if (!json_is_number(v))
        return openai_wrong(p, field, "a number");
    *out = json_number_value(v);
    return ST_OK;
}

/* ---- prompts ---- */

static enum status get_ids(struct openai_parse *p, const char *field, const json_t *v)
{
    const size_t n = json_array_size(v);
    int32_t *ids = want_alloc(p->w, n + 1, sizeof *ids);
    if (!ids)
        return refuse(p->r, ST_NO_MEMORY, "", "out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(v, i);
        const json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id < 0 || id > INT32_MAX)
            return refuse(p->r, ST_INVALID, field, "%s[%zu] must be a token id", field, i);
        ids[i] = (int32_t)id;
    }
    p->w->tokens = ids;
    p->w->n_tokens = n;
    p->w->kind = WANT_PROMPT_TOKENS;
    return ST_OK;
}

static void take_text(struct want *w, const json_t *v)
{
    w->kind = WANT_PROMPT_TEXT;
    w->text = json_string_value(v);
    w->text_bytes = json_string_length(v);
}

/* A string, token ids, or a list of exactly one of either. */
enum status openai_read_prompt(struct openai_parse *p, const char *field, const json_t *v)
{
    static const char must[] = "a string, a list of token ids, or a list of one of these";
    p->has_prompt = true;
    if (json_is_array(v) && json_array_size(v) > 0 && !json_is_integer(json_array_get(v, 0))) {
        const json_t *only = json_array_get(v, 0);
        if (!json_is_string(only) && !json_is_array(only))
            return openai_wrong(p, field, must);
        if (json_array_size(v) > 1)
            return openai_unsupported(p, field, "several prompts in one request; send one request each");
        v = only;
    }
    if (json_is_string(v)) {
        take_text(p->w, v);
        return ST_OK;
    }
    if (json_is_array(v))
        return get_ids(p, field, v);
    return openai_wrong(p, field, must);
}

enum status openai_read_tokens(struct openai_parse *p, const char *field, const json_t *v)
{
    p->has_tokens = true;
    return json_is_array(v) ? get_ids(p, field, v) : openai_wrong(p, field, "a list of token ids");
}

/* [{"type": "text", "text": "..."}, ...]: the texts, one after the other */
static enum status join_parts(struct openai_parse *p, const char *field, const json_t *parts, struct chat_message *m)
{
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (!type)
            return refuse(p->r, ST_INVALID, field, "%s[%zu].type must be a string", field, i);
        if (strcmp(type, "text") != 0)
            return refuse(p->r, ST_UNSUPPORTED, field, "%s[%zu]: parts of type '%.40s' are not supported, only text",
                          field, i, type);
        if (!json_is_string(text))
            return refuse(p->r, ST_INVALID, field, "%s[%zu].text must be a string", field, i);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)part, key,
                            value) if (strcmp(key, "type") != 0 && strcmp(key, "text") != 0 &&
                                       !json_is_null(value)) return refuse(p->r, ST_UNSUPPORTED, field,
                                                                           "%s[%zu].%.40s is not supported", field, i,
                                                                           key);
        n += json_string_length(text);
    }
    char *joined = want_alloc(p->w, n + 1, 1);
    if (!joined)
        return refuse(p->r, ST_NO_MEMORY, "", "out of memory");
    m->content = joined;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *text = json_object_get(json_array_get(parts, i), "text");
        memcpy(joined + m->content_bytes, json_string_value(text), json_string_length(text));
        m->content_bytes += json_string_length(text);
    }
    return ST_OK;
}

static enum status read_message(struct openai_parse *p, size_t i, const json_t *v, struct chat_message *m)
{
    char field[64];
    snprintf(field, sizeof field, "messages[%zu]", i);
    if (!json_is_object(v))
        return openai_wrong(p, field, "an object");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        if (!strcmp(key, "role") || !strcmp(key, "content") || json_is_null(value))
            continue;
        snprintf(field, sizeof field, "messages[%zu].%.30s", i, key);
        return openai_unsupported(p, field, "");
    }
    const json_t *role = json_object_get(v, "role"), *content = json_object_get(v, "content");
    snprintf(field, sizeof field, "messages[%zu].role", i);
    if (!json_is_string(role) || strlen(json_string_value(role)) != json_string_length(role))
        return openai_wrong(p, field, "a string");
    m->role = json_string_value(role);
    snprintf(field, sizeof field, "messages[%zu].content", i);
    if (json_is_array(content))
        return join_parts(p, field, content, m);
    if (!json_is_string(content))
        return openai_wrong(p, field, "a string or a list of text parts");
    m->content = json_string_value(content);
    m->content_bytes = json_string_length(content);
    return ST_OK;
}

enum status openai_read_messages(struct openai_parse *p, const char *field, const json_t *v)
{
    const size_t n = json_array_size(v);
    p->has_messages = true;
    if (!json_is_array(v) || !n)
        return openai_wrong(p, field, "a list of at least one message");
    struct chat_message *messages = want_alloc(p->w, n, sizeof *messages);
    if (!messages)
        return refuse(p->r, ST_NO_MEMORY, "", "out of memory");
    for (size_t i = 0; i < n; i++) {
        const enum status st = read_message(p, i, json_array_get(v, i), &messages[i]);
        if (st)
            return st;
    }
    p->w->kind = WANT_PROMPT_CHAT;
    p->w->messages = messages;
    p->w->n_messages = n;
    return ST_OK;
}
