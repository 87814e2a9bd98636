/* The fields of a request body: one table, a reader for each, and what they say together. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/openai_internal.h"
#include "proto/plan.h"

enum {
    COMPLETION = 1 << OPENAI_COMPLETION,
    CHAT = 1 << OPENAI_CHAT,
    TOKENIZE = 1 << OPENAI_TOKENIZE,
    DETOKENIZE = 1 << OPENAI_DETOKENIZE,
    BOTH = COMPLETION | CHAT,
    ALL = BOTH | TOKENIZE | DETOKENIZE
};

/* ---- what is honoured ---- */

static enum status read_model(struct openai_parse *p, const char *field, const json_t *v)
{
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        return openai_wrong(p, field, "a string");
    p->w->model = json_string_value(v);
    return ST_OK;
}

static enum status read_stream(struct openai_parse *p, const char *field, const json_t *v)
{
    return openai_bool(p, field, v, &p->w->stream);
}

static enum status read_stream_options(struct openai_parse *p, const char *field, const json_t *v)
{
    p->has_stream_options = true;
    if (!json_is_object(v))
        return openai_wrong(p, field, "an object");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        char name[64];
        snprintf(name, sizeof name, "stream_options.%.40s", key);
        if (json_is_null(value))
            continue;
        if (strcmp(key, "include_usage") != 0)
            return openai_unsupported(p, name, "");
        const enum status st = openai_bool(p, name, value, &p->w->include_usage);
        if (st)
            return st;
    }
    return ST_OK;
}

static enum status read_max_tokens(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const bool had = p->w->has_max_tokens;
    const uint32_t before = p->w->max_tokens;
    const enum status st = openai_int(p, field, v, &n);
    if (st || want_set_max_tokens(p->w, field, n, p->r))
        return p->r->status;
    if (had && before != p->w->max_tokens)
        return refuse(p->r, ST_INVALID, field, "%s: max_tokens and max_completion_tokens say different things", field);
    return ST_OK;
}

static enum status read_temperature(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_temperature(p->w, x, p->r);
}

static enum status read_top_p(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_top_p(p->w, x, p->r);
}

static enum status read_top_k(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    return st ? st : want_set_top_k(p->w, n, p->r);
}

static enum status read_min_p(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_min_p(p->w, x, p->r);
}

static enum status read_density(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_density(p->w, x, p->r);
}

static enum status read_presence_penalty(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_presence_penalty(p->w, x, p->r);
}

static enum status read_frequency_penalty(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_frequency_penalty(p->w, x, p->r);
}

static enum status read_repetition_penalty(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_repetition_penalty(p->w, x, p->r);
}

static enum status read_min_tokens(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    return st ? st : want_set_min_tokens(p->w, n, p->r);
}

static enum status read_n(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    return st ? st : want_set_n(p->w, n, p->r);
}

/* {"token id": bias} */
static enum status read_logit_bias(struct openai_parse *p, const char *field, const json_t *v)
{
    static const char must[] = "an object of token ids and numbers";
    if (!json_is_object(v))
        return openai_wrong(p, field, must);
    struct plan_edit *bias = want_alloc(p->w, json_object_size(v) + 1, sizeof *bias);
    if (!bias)
        return refuse(p->r, ST_NO_MEMORY, "", "out of memory");
    size_t n = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        char *end;
        const unsigned long id = strtoul(key, &end, 10);
        if (*key < '0' || *key > '9' || *end || id > INT32_MAX || !json_is_number(value))
            return openai_wrong(p, field, must);
        const double add = json_number_value(value);
        bias[n++] = (struct plan_edit){ (uint32_t)id, add >= -101 && add <= 101 ? (float)add : NAN };
    }
    return want_set_bias(p->w, bias, n, p->r);
}

static enum status read_seed(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    if (st)
        return st;
    if (n < 0)
        return openai_wrong(p, field, "0 or above");
    p->w->has_seed = true;
    p->w->seed = (uint64_t)n;
    return ST_OK;
}

static enum status read_stop(struct openai_parse *p, const char *field, const json_t *v)
{
    if (json_is_string(v))
        return want_add_stop(p->w, json_string_value(v), json_string_length(v), p->r);
    if (!json_is_array(v))
        return openai_wrong(p, field, "a string or a list of strings");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *s = json_array_get(v, i);
        if (!json_is_string(s))
            return openai_wrong(p, field, "a string or a list of strings");
        const enum status st = want_add_stop(p->w, json_string_value(s), json_string_length(s), p->r);
        if (st)
            return st;
    }
    return ST_OK;
}

/* Completions: a count of alternatives. Chat: a switch, and top_logprobs is the count. */
static enum status read_logprobs(struct openai_parse *p, const char *field, const json_t *v)
{
    if (p->kind == OPENAI_CHAT)
        return openai_bool(p, field, v, &p->w->logprobs);
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    p->w->logprobs = true;
    return st ? st : want_set_top(p->w, field, n, p->r);
}

static enum status read_top_logprobs(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    p->has_top_logprobs = true;
    const enum status st = openai_int(p, field, v, &n);
    return st ? st : want_set_top(p->w, field, n, p->r);
}

static enum status read_ignore_eos(struct openai_parse *p, const char *field, const json_t *v)
{
    return openai_bool(p, field, v, &p->w->ignore_eos);
}

static enum status read_echo(struct openai_parse *p, const char *field, const json_t *v)
{
    return openai_bool(p, field, v, &p->w->echo);
}

static enum status read_add_special_tokens(struct openai_parse *p, const char *field, const json_t *v)
{
    bool add;
    const enum status st = openai_bool(p, field, v, &add);
    if (!st)
        p->w->no_specials = !add;
    return st;
}

static enum status read_add_generation_prompt(struct openai_parse *p, const char *field, const json_t *v)
{
    bool add;
    const enum status st = openai_bool(p, field, v, &add);
    if (!st)
        p->w->no_generation_prompt = !add;
    return st;
}

/* Whose request it is: tenants have fair shares. */
static enum status read_user(struct openai_parse *p, const char *field, const json_t *v)
{
    if (!json_is_string(v))
        return openai_wrong(p, field, "a string");
    want_set_tenant(p->w, json_string_value(v), json_string_length(v));
    return ST_OK;
}

/* As in vLLM: who guesses a prompt cannot tell from the time it takes that another has sent it. */
static enum status read_cache_salt(struct openai_parse *p, const char *field, const json_t *v)
{
    if (!json_is_string(v) || !json_string_length(v))
        return openai_wrong(p, field, "a string that is not empty");
    want_add_salt(p->w, "cache_salt", json_string_value(v), json_string_length(v));
    return ST_OK;
}

/* An opaque name for the provider's own records: we keep none, and no answer depends on it. */
static enum status read_name(struct openai_parse *p, const char *field, const json_t *v)
{
    return json_is_string(v) ? ST_OK : openai_wrong(p, field, "a string");
}

static enum status read_priority(struct openai_parse *p, const char *field, const json_t *v)
{
    int64_t n;
    const enum status st = openai_int(p, field, v, &n);
    return st ? st : want_set_priority(p->w, n, p->r);
}

static enum status read_timeout(struct openai_parse *p, const char *field, const json_t *v)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    return st ? st : want_set_timeout(p->w, x, p->r);
}

/* ---- what is accepted only where it changes nothing ---- */

static enum status only_number(struct openai_parse *p, const char *field, const json_t *v, double neutral)
{
    double x;
    const enum status st = openai_number(p, field, v, &x);
    if (st)
        return st;
    char why[48];
    snprintf(why, sizeof why, "only %g is accepted", neutral);
    return x == neutral ? ST_OK : openai_unsupported(p, field, why);
}

static enum status only_1(struct openai_parse *p, const char *field, const json_t *v)
{
    return only_number(p, field, v, 1);
}

static enum status only_empty(struct openai_parse *p, const char *field, const json_t *v)
{
    const bool empty = (json_is_object(v) && !json_object_size(v)) || (json_is_array(v) && !json_array_size(v));
    return empty ? ST_OK : openai_unsupported(p, field, "");
}

static enum status only_false(struct openai_parse *p, const char *field, const json_t *v)
{
    return json_is_false(v) ? ST_OK : openai_unsupported(p, field, "");
}

static enum status only_true(struct openai_parse *p, const char *field, const json_t *v)
{
    return json_is_true(v) ? ST_OK : openai_unsupported(p, field, "");
}

static enum status only_none(struct openai_parse *p, const char *field, const json_t *v)
{
    const char *s = json_string_value(v);
    return s && !strcmp(s, "none") ? ST_OK : openai_unsupported(p, field, "only 'none' is accepted");
}

/* {"name", "schema", "strict", "description"} */
static enum status read_json_schema(struct openai_parse *p, const json_t *v)
{
    const char *key;
    json_t *value;
    if (!json_is_object(v))
        return openai_wrong(p, "response_format.json_schema", "an object");
    json_object_foreach((json_t *)v, key, value)
    {
        char name[80];
        snprintf(name, sizeof name, "response_format.json_schema.%.40s", key);
        if (!strcmp(key, "schema"))
            p->w->json_schema = value;
        else if (!strcmp(key, "strict") ? !json_is_boolean(value) && !json_is_null(value)
                                        : !json_is_string(value) && !json_is_null(value))
            return openai_wrong(p, name, !strcmp(key, "strict") ? "true or false" : "a string");
        else if (strcmp(key, "strict") != 0 && strcmp(key, "name") != 0 && strcmp(key, "description") != 0)
            return openai_unsupported(p, name, "");
    }
    if (!json_is_object(p->w->json_schema))
        return openai_wrong(p, "response_format.json_schema.schema", "an object");
    p->w->schema_field = "response_format.json_schema.schema";
    return ST_OK;
}

static enum status read_response_format(struct openai_parse *p, const char *field, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!json_is_object(v) || !type)
        return openai_wrong(p, field, "an object with a type");
    const bool schema = !strcmp(type, "json_schema");
    if (!schema && strcmp(type, "text") != 0 && strcmp(type, "json_object") != 0)
        return openai_unsupported(p, "response_format.type", "text, json_object and json_schema are");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        char name[80];
        snprintf(name, sizeof name, "response_format.%.40s", key);
        if (strcmp(key, "type") != 0 && !(schema && !strcmp(key, "json_schema")))
            return openai_unsupported(p, name, "");
    }
    p->w->json_object = !strcmp(type, "json_object");
    return schema ? read_json_schema(p, json_object_get(v, "json_schema")) : ST_OK;
}

static enum status only_text_modality(struct openai_parse *p, const char *field, const json_t *v)
{
    const char *s = json_string_value(json_array_get(v, 0));
    return json_array_size(v) == 1 && s && !strcmp(s, "text")
               ? ST_OK
               : openai_unsupported(p, field, "only [\"text\"] is accepted");
}

static const struct field {
    const char *name;
    int where;
    enum status (*read)(struct openai_parse *p, const char *field, const json_t *v);
} fields[] = {
    { "model", ALL, read_model },
    { "prompt", COMPLETION | TOKENIZE, openai_read_prompt },
    { "messages", CHAT | TOKENIZE, openai_read_messages },
    { "tokens", DETOKENIZE, openai_read_tokens },
    { "stream", BOTH, read_stream },
    { "stream_options", BOTH, read_stream_options },
    { "max_tokens", BOTH, read_max_tokens },
    { "max_completion_tokens", CHAT, read_max_tokens },
    { "temperature", BOTH, read_temperature },
    { "top_p", BOTH, read_top_p },
    { "top_k", BOTH, read_top_k },
    { "seed", BOTH, read_seed },
    { "stop", BOTH, read_stop },
    { "logprobs", BOTH, read_logprobs },
    { "top_logprobs", CHAT, read_top_logprobs },
    { "ignore_eos", BOTH, read_ignore_eos },
    { "echo", COMPLETION, read_echo },
    { "add_special_tokens", COMPLETION | TOKENIZE, read_add_special_tokens },
    { "add_generation_prompt", TOKENIZE, read_add_generation_prompt },
    { "user", BOTH, read_user },
    { "cache_salt", BOTH, read_cache_salt },
    { "priority", BOTH, read_priority },
    { "timeout", BOTH, read_timeout },
    { "safety_identifier", BOTH, read_name },
    { "prompt_cache_key", BOTH, read_name },
    { "n", BOTH, read_n },
    { "best_of", COMPLETION, only_1 },
    { "presence_penalty", BOTH, read_presence_penalty },
    { "frequency_penalty", BOTH, read_frequency_penalty },
    { "repetition_penalty", BOTH, read_repetition_penalty },
    { "min_p", BOTH, read_min_p },
    { "density", BOTH, read_density },
    { "min_tokens", BOTH, read_min_tokens },
    { "logit_bias", BOTH, read_logit_bias },
    { "response_format", BOTH, read_response_format },
    { "modalities", CHAT, only_text_modality },
    { "chat_template_kwargs", CHAT | TOKENIZE, openai_read_template_args },
    { "tools", CHAT | TOKENIZE, openai_read_tools },
    { "tool_choice", CHAT, openai_read_tool_choice },
    { "parallel_tool_calls", CHAT, openai_read_parallel_tool_calls },
    { "functions", CHAT, only_empty },
    { "function_call", CHAT, only_none },
    { "metadata", BOTH, only_empty },
    { "store", BOTH, only_false },
    { "skip_special_tokens", BOTH, only_true },
};

static enum status read_each(struct openai_parse *p, const json_t *root)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value)
    {
        if (json_is_null(value))
            continue;
        const struct field *f = NULL;
        for (size_t i = 0; i < sizeof fields / sizeof *fields && !f; i++)
            if (!strcmp(fields[i].name, key) && fields[i].where & (1 << p->kind))
                f = &fields[i];
        char name[64];
        snprintf(name, sizeof name, "%.60s", key);
        const enum status st = f ? f->read(p, f->name, value) : openai_unsupported(p, name, "");
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- fields together ---- */

static enum status check_prompt(struct openai_parse *p)
{
    switch (p->kind) {
    case OPENAI_COMPLETION:
        return p->has_prompt ? ST_OK : refuse(p->r, ST_INVALID, "prompt", "prompt is missing");
    case OPENAI_CHAT:
        return p->has_messages ? ST_OK : refuse(p->r, ST_INVALID, "messages", "messages is missing");
    case OPENAI_DETOKENIZE:
        return p->has_tokens ? ST_OK : refuse(p->r, ST_INVALID, "tokens", "tokens is missing");
    case OPENAI_TOKENIZE:
        break;
    }
    if (p->has_prompt == p->has_messages)
        return refuse(p->r, ST_INVALID, "prompt", "exactly one of prompt and messages must be there");
    return ST_OK;
}

static enum status check_together(struct openai_parse *p)
{
    struct want *w = p->w;
    if (check_prompt(p) || openai_check_tools(p))
        return p->r->status;
    if (p->kind == OPENAI_TOKENIZE && !p->has_messages && (w->tools || w->template_args))
        return refuse(p->r, ST_INVALID, "messages", "messages must be there with tools and chat_template_kwargs");
    if (p->kind > OPENAI_CHAT)
        return ST_OK;
    if (p->has_stream_options && !w->stream)
        return refuse(p->r, ST_INVALID, "stream_options", "stream_options needs stream: true");
    if (p->has_top_logprobs && !w->logprobs)
        return refuse(p->r, ST_INVALID, "top_logprobs", "top_logprobs needs logprobs: true");
    if (p->kind == OPENAI_COMPLETION && !w->has_max_tokens) {
        w->max_tokens = 16;
        w->has_max_tokens = true;
    }
    if (w->has_max_tokens && !w->max_tokens && !w->echo)
        return refuse(p->r, ST_INVALID, "max_tokens", "max_tokens must be at least 1%s",
                      p->kind == OPENAI_COMPLETION ? ", or 0 with echo" : "");
    w->score = w->echo && (w->logprobs || !w->max_tokens);
    return want_check(w, p->r);
}

enum status openai_read_fields(struct openai_parse *p, const json_t *root)
{
    const enum status st = read_each(p, root);
    return st ? st : check_together(p);
}
