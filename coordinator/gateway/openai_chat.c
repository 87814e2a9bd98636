/*
 * What a chat body says of messages and tools. The tree becomes what a template sees: members that are null go, parts of a text are joined, arguments of
 * calls are objects.
 */
#include "coordinator/gateway/openai_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TOOLS_MAX = 128, TOOL_NAME_MAX = 64 };

/* The name of a field: messages[3].content */
struct field_name {
    char text[96];
};

static struct field_name name_of(const char *format, ...) __attribute__((format(printf, 1, 2)));

static struct field_name name_of(const char *format, ...)
{
    struct field_name f;
    va_list args;
    va_start(args, format);
    vsnprintf(f.text, sizeof f.text, format, args);
    va_end(args);
    return f;
}

static enum status no_memory(struct openai_parse *p)
{
    return refuse(p->r, ST_NO_MEMORY, "", "out of memory");
}

static bool is_word(const json_t *v, const char *word)
{
    return json_is_string(v) && !strcmp(json_string_value(v), word) && json_string_length(v) == strlen(word);
}

/* Members of `known` alone (NULL-terminated); those that are null go. */
static enum status check_members(struct openai_parse *p, const char *field, json_t *v, const char *const *known)
{
    const char *key;
    json_t *value;
    void *next;
    if (!json_is_object(v))
        return openai_wrong(p, field, "an object");
    json_object_foreach_safe(v, next, key, value)
    {
        size_t i = 0;
        if (json_is_null(value)) {
            json_object_del(v, key);
            continue;
        }
        while (known[i] && strcmp(key, known[i]) != 0)
            i++;
        if (!known[i])
            return openai_unsupported(p, name_of("%s.%.30s", field, key).text, "");
    }
    return ST_OK;
}

/* ---- messages ---- */

/* [{"type": "text", "text": "..."}, ...]: the texts, one after the other. */
static enum status join_parts(struct openai_parse *p, const char *field, json_t *message, json_t *parts)
{
    static const char *const known[] = { "type", "text", NULL };
    size_t n = 0, at = 0;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type)
            return refuse(p->r, ST_INVALID, field, "%s[%zu].type must be a string", field, i);
        if (strcmp(type, "text") != 0)
            return refuse(p->r, ST_UNSUPPORTED, field, "%s[%zu]: parts of type '%.40s' are not supported, only text",
                          field, i, type);
        if (!json_is_string(json_object_get(part, "text")))
            return refuse(p->r, ST_INVALID, field, "%s[%zu].text must be a string", field, i);
        if (check_members(p, name_of("%s[%zu]", field, i).text, part, known))
            return p->r->status;
        n += json_string_length(json_object_get(part, "text"));
    }
    char *joined = want_alloc(p->w, n + 1, 1);
    if (!joined)
        return no_memory(p);
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *text = json_object_get(json_array_get(parts, i), "text");
        memcpy(joined + at, json_string_value(text), json_string_length(text));
        at += json_string_length(text);
    }
    return json_object_set_new(message, "content", json_stringn_nocheck(joined, n)) ? no_memory(p) : ST_OK;
}

/* A call's arguments come as the text of an object; templates look into it. */
static enum status open_arguments(struct openai_parse *p, const char *field, json_t *function)
{
    const json_t *text = json_object_get(function, "arguments");
    const char *data = json_string_value(text);
    size_t n = json_string_length(text);
    if (!data)
        return openai_wrong(p, field, "a string that holds a JSON object");
    const size_t values = openai_values(data, n);
    if (values > p->values_left)
        return refuse_code(p->r, ST_TOO_LARGE, "messages", "context_length_exceeded",
                           "%s: more values than this server's context holds tokens", field);
    p->values_left -= values;
    json_t *object = n ? json_loadb(data, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL) : json_object();
    if (!json_is_object(object)) {
        json_decref(object);
        return openai_wrong(p, field, "a string that holds a JSON object");
    }
    return json_object_set_new(function, "arguments", object) ? no_memory(p) : ST_OK;
}

static enum status read_call(struct openai_parse *p, const char *field, json_t *call)
{
    static const char *const known[] = { "id", "type", "function", "index", NULL };
    static const char *const parts[] = { "name", "arguments", NULL };
    json_t *function = json_object_get(call, "function");
    if (check_members(p, field, call, known))
        return p->r->status;
    json_object_del(call, "index"); /* of a stream's deltas, that were put together */
    if (!json_is_string(json_object_get(call, "id")))
        return openai_wrong(p, name_of("%s.id", field).text, "a string");
    if (!is_word(json_object_get(call, "type"), "function"))
        return openai_wrong(p, name_of("%s.type", field).text, "'function'");
    if (check_members(p, name_of("%s.function", field).text, function, parts))
        return p->r->status;
    if (!json_is_string(json_object_get(function, "name")))
        return openai_wrong(p, name_of("%s.function.name", field).text, "a string");
    return open_arguments(p, name_of("%s.function.arguments", field).text, function);
}

static enum status read_calls(struct openai_parse *p, const char *field, const json_t *calls)
{
    if (!json_is_array(calls) || !json_array_size(calls))
        return openai_wrong(p, field, "a list of at least one call");
    for (size_t i = 0; i < json_array_size(calls); i++)
        if (read_call(p, name_of("%s[%zu]", field, i).text, json_array_get(calls, i)))
            return p->r->status;
    return ST_OK;
}

/* What a role's message may have beside role and content. */
static enum status check_role(struct openai_parse *p, size_t i, json_t *m)
{
    static const char *const plain[] = { "role", "content", NULL };
    static const char *const assistant[] = { "role", "content", "tool_calls", NULL };
    static const char *const tool[] = { "role", "content", "tool_call_id", "name", NULL };
    const struct field_name field = name_of("messages[%zu]", i);
    const json_t *role = json_object_get(m, "role");
    const bool is_tool = is_word(role, "tool");
    if (!json_is_string(role) || strlen(json_string_value(role)) != json_string_length(role))
        return openai_wrong(p, name_of("messages[%zu].role", i).text, "a string");
    if (check_members(p, field.text, m, is_tool ? tool : is_word(role, "assistant") ? assistant : plain))
        return p->r->status;
    if (is_tool && !json_is_string(json_object_get(m, "tool_call_id")))
        return openai_wrong(p, name_of("messages[%zu].tool_call_id", i).text, "a string");
    if (json_object_get(m, "name") && !json_is_string(json_object_get(m, "name")))
        return openai_wrong(p, name_of("messages[%zu].name", i).text, "a string");
    const json_t *calls = json_object_get(m, "tool_calls");
    return calls ? read_calls(p, name_of("messages[%zu].tool_calls", i).text, calls) : ST_OK;
}

static enum status read_message(struct openai_parse *p, size_t i, json_t *m)
{
    const struct field_name field = name_of("messages[%zu].content", i);
    if (!json_is_object(m))
        return openai_wrong(p, name_of("messages[%zu]", i).text, "an object");
    if (check_role(p, i, m))
        return p->r->status;
    json_t *content = json_object_get(m, "content");
    if (json_is_array(content))
        return join_parts(p, field.text, m, content);
    if (!content && json_object_get(m, "tool_calls")) /* templates join it to texts, so it is one */
        return json_object_set_new(m, "content", json_string("")) ? no_memory(p) : ST_OK;
    return json_is_string(content) ? ST_OK : openai_wrong(p, field.text, "a string or a list of text parts");
}

enum status openai_read_messages(struct openai_parse *p, const char *field, const json_t *v)
{
    p->has_messages = true;
    if (!json_is_array(v) || !json_array_size(v))
        return openai_wrong(p, field, "a list of at least one message");
    for (size_t i = 0; i < json_array_size(v); i++)
        if (read_message(p, i, json_array_get(v, i)))
            return p->r->status;
    p->w->kind = WANT_PROMPT_CHAT;
    p->w->messages = v;
    return ST_OK;
}

enum status openai_read_template_args(struct openai_parse *p, const char *field, const json_t *v)
{
    if (!json_is_object(v))
        return openai_wrong(p, field, "an object");
    p->w->template_args = v;
    return ST_OK;
}

/* ---- tools ---- */

static bool is_tool_name(const json_t *v)
{
    const char *name = json_string_value(v);
    const size_t n = json_string_length(v);
    return name && n && n <= TOOL_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == n;
}

static enum status read_tool(struct openai_parse *p, const char *field, json_t *tool)
{
    static const char *const known[] = { "type", "function", NULL };
    static const char *const parts[] = { "name", "description", "parameters", "strict", NULL };
    if (check_members(p, field, tool, known))
        return p->r->status;
    json_t *function = json_object_get(tool, "function");
    if (!is_word(json_object_get(tool, "type"), "function"))
        return openai_unsupported(p, name_of("%s.type", field).text, "'function' is");
    if (check_members(p, name_of("%s.function", field).text, function, parts))
        return p->r->status;
    const json_t *words = json_object_get(function, "description"), *schema = json_object_get(function, "parameters");
    const json_t *strict = json_object_get(function, "strict");
    if (!is_tool_name(json_object_get(function, "name")))
        return openai_wrong(p, name_of("%s.function.name", field).text, "1 to 64 letters, digits, '_' and '-'");
    if (words && !json_is_string(words))
        return openai_wrong(p, name_of("%s.function.description", field).text, "a string");
    if (schema && !json_is_object(schema))
        return openai_wrong(p, name_of("%s.function.parameters", field).text, "a schema");
    if (strict && !json_is_boolean(strict))
        return openai_wrong(p, name_of("%s.function.strict", field).text, "true or false");
    return ST_OK;
}

static const char *tool_name(const json_t *tools, size_t i)
{
    return json_string_value(json_object_get(json_object_get(json_array_get(tools, i), "function"), "name"));
}

enum status openai_read_tools(struct openai_parse *p, const char *field, const json_t *v)
{
    const size_t n = json_array_size(v);
    if (!json_is_array(v))
        return openai_wrong(p, field, "a list of tools");
    if (n > TOOLS_MAX)
        return refuse(p->r, ST_INVALID, field, "tools: at most %d", TOOLS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (read_tool(p, name_of("tools[%zu]", i).text, json_array_get(v, i)))
            return p->r->status;
        for (size_t k = 0; k < i; k++)
            if (!strcmp(tool_name(v, k), tool_name(v, i)))
                return refuse(p->r, ST_INVALID, field, "tools[%zu].function.name: '%s' is there twice", i,
                              tool_name(v, i));
    }
    p->w->tools = n ? v : NULL;
    return ST_OK;
}

enum status openai_read_tool_choice(struct openai_parse *p, const char *field, const json_t *v)
{
    static const char *const known[] = { "type", "function", NULL }, *const parts[] = { "name", NULL };
    struct want *w = p->w;
    p->tool_choice = is_word(v, "none") ? TOOLS_OFF : TOOLS_ON;
    if (is_word(v, "none") || is_word(v, "auto"))
        return ST_OK;
    if (is_word(v, "required")) {
        w->tool_choice = WANT_TOOL_REQUIRED;
        return ST_OK;
    }
    if (!json_is_object(v))
        return openai_wrong(p, field, "'none', 'auto', 'required', or an object that names a function");
    if (check_members(p, field, (json_t *)v, known))
        return p->r->status;
    json_t *function = json_object_get(v, "function");
    if (!is_word(json_object_get(v, "type"), "function"))
        return openai_unsupported(p, "tool_choice.type", "'function' is");
    if (check_members(p, "tool_choice.function", function, parts))
        return p->r->status;
    w->tool_choice = WANT_TOOL_NAMED;
    w->tool_name = json_string_value(json_object_get(function, "name"));
    return w->tool_name ? ST_OK : openai_wrong(p, "tool_choice.function.name", "a string");
}

enum status openai_read_parallel_tool_calls(struct openai_parse *p, const char *field, const json_t *v)
{
    bool parallel = true;
    p->has_parallel = true;
    const enum status st = openai_bool(p, field, v, &parallel);
    p->w->one_tool_call = !parallel;
    return st;
}

enum status openai_check_tools(struct openai_parse *p)
{
    struct want *w = p->w;
    bool known = w->tool_choice != WANT_TOOL_NAMED;
    if (!w->tools && p->tool_choice == TOOLS_ON)
        return refuse(p->r, ST_INVALID, "tool_choice", "tool_choice needs tools");
    if (!w->tools && p->has_parallel)
        return refuse(p->r, ST_INVALID, "parallel_tool_calls", "parallel_tool_calls needs tools");
    for (size_t i = 0; i < json_array_size(w->tools) && !known; i++)
        known = !strcmp(tool_name(w->tools, i), w->tool_name);
    if (!known)
        return refuse(p->r, ST_INVALID, "tool_choice", "tool_choice: '%.64s' is not among the tools", w->tool_name);
    if (p->tool_choice == TOOLS_OFF)
        w->tools = NULL;
    return ST_OK;
}
