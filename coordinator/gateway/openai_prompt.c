/* Values of a request body, and what it wants answered: a text, or tokens. Messages: openai_chat.c. */
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
