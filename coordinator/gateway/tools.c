#include "coordinator/gateway/tools.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { CALLS_MAX = 16 }; /* that a grammar lets an answer make */

/* The first that fits. */
static const struct tool_family families[] = {
    { .name = "Hermes and Qwen",
      .hints = { "<tool_call>" },
      .not_hints = { "<function=", "<arg_key>" }, /* calls in XML */
      .mark = "<tool_call>",
      .close = "</tool_call>",
      .arguments = "arguments",
      .before = "\n",
      .between = "\n</tool_call>\n<tool_call>\n",
      .end = "\n</tool_call>" },
    { .name = "Mistral",
      .hints = { "[TOOL_CALLS]" },
      .not_hints = { "[ARGS]" }, /* a name before its arguments, without an object around them */
      .mark = "[TOOL_CALLS]",
      .close = "",
      .list = true,
      .arguments = "arguments",
      .before = " [",
      .between = ", ",
      .end = "]",
      .id_characters = 9 },
    { .name = "Llama 3",
      .hints = { "<|start_header_id|>", "\"parameters\"" },
      .mark = "<|python_tag|>",
      .close = "",
      .bare = true,
      .arguments = "parameters",
      .before = "",
      .between = "; ",
      .end = "" },
};

const struct tool_family *tool_family_find(const char *text)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const struct tool_family *f = &families[i];
        bool fits = true;
        for (int k = 0; k < 2; k++)
            fits = fits && (!f->hints[k] || strstr(text, f->hints[k])) &&
                   (!f->not_hints[k] || !strstr(text, f->not_hints[k]));
        if (fits)
            return f;
    }
    return NULL;
}

struct tools {
    atomic_uint refs;
    const struct tool_family *family;
    int32_t mark;
    bool held, calls_only, one;
    size_t n;
    char **names;
};

struct tools *tools_ref(struct tools *t)
{
    atomic_fetch_add(&t->refs, 1);
    return t;
}

void tools_unref(struct tools *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    for (size_t i = 0; i < t->n; i++)
        free(t->names[i]);
    free(t->names);
    free(t);
}

static const json_t *function_at(const struct want *w, size_t i)
{
    return json_object_get(json_array_get(w->tools, i), "function");
}

static const char *name_at(const struct want *w, size_t i)
{
    return json_string_value(json_object_get(function_at(w, i), "name"));
}

static bool names_copy(struct tools *t, const struct want *w)
{
    t->names = calloc(json_array_size(w->tools), sizeof *t->names);
    for (size_t i = 0; t->names && i < json_array_size(w->tools); i++) {
        if (!(t->names[i] = strdup(name_at(w, i))))
            return false;
        t->n++;
    }
    return t->names;
}

static bool any_strict(const struct want *w)
{
    for (size_t i = 0; i < json_array_size(w->tools); i++)
        if (json_is_true(json_object_get(function_at(w, i), "strict")))
            return true;
    return false;
}

static enum status family_of(const struct tokenizer *tokenizer, const struct tool_family **family_out,
                             struct refusal *r)
{
    const char *text = chat_template(tokenizer);
    if (!text || !chat_reads(tokenizer, "tools"))
        return refuse(r, ST_UNSUPPORTED, "tools", "tools: the chat template of this model takes none");
    *family_out = tool_family_find(text);
    if (!*family_out)
        return refuse(r, ST_UNSUPPORTED, "tools",
                      "tools: the chat template of this model writes calls in a form that is not known here");
    return ST_OK;
}

enum status tools_new(const struct want *w, const struct tokenizer *tokenizer, struct tools **tools_out,
                      struct refusal *r)
{
    const struct tool_family *family = NULL;
    if (family_of(tokenizer, &family, r))
        return r->status;
    struct tools *t = calloc(1, sizeof *t);
    if (!t)
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    t->refs = 1;
    t->family = family;
    t->mark = tokenizer_control(tokenizer, family->mark);
    t->calls_only = w->tool_choice != WANT_TOOL_AUTO;
    t->one = w->one_tool_call;
    t->held = t->calls_only || any_strict(w) || w->json_schema || w->json_object;
    if (!names_copy(t, w)) {
        tools_unref(t);
        return refuse(r, ST_NO_MEMORY, "", "out of memory");
    }
    if (t->held && !t->calls_only && !family->bare && t->mark >= 0) {
        tools_unref(t);
        return refuse(
            r, ST_UNSUPPORTED, "tools",
            "tools: with tool_choice 'auto', strict tools and response_format are not supported for this model, "
            "whose mark of a call is a control token");
    }
    *tools_out = t;
    return ST_OK;
}

const struct tool_family *tools_family(const struct tools *t)
{
    return t->family;
}

bool tools_has(const struct tools *t, const char *name, size_t bytes)
{
    for (size_t i = 0; i < t->n; i++)
        if (strlen(t->names[i]) == bytes && !memcmp(t->names[i], name, bytes))
            return true;
    return false;
}

bool tools_one(const struct tools *t)
{
    return t->one;
}

int32_t tools_mark(const struct tools *t)
{
    return t->mark;
}

bool tools_marked(const struct tools *t)
{
    return t->calls_only && !t->family->bare && t->mark >= 0;
}

bool tools_held(const struct tools *t)
{
    return t->held;
}

/* Which tools, and which of their schemas, the grammar follows: all that may be called; with 'auto', schemas of strict ones. */
static size_t grammar_tools_of(const struct tools *t, const struct want *w, struct grammar_tool *out)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n; i++) {
        const json_t *function = function_at(w, i);
        const bool follow = t->calls_only || json_is_true(json_object_get(function, "strict"));
        if (w->tool_choice == WANT_TOOL_NAMED && strcmp(t->names[i], w->tool_name) != 0)
            continue;
        out[n++] = (struct grammar_tool){ .name = t->names[i],
                                          .parameters = follow ? json_object_get(function, "parameters") : NULL,
                                          .index = (uint32_t)i };
    }
    return n;
}

enum status tools_grammar(const struct tools *t, const struct want *w, struct grammar **grammar_out, struct error *err)
{
    const struct tool_family *f = t->family;
    struct grammar_tool *list = calloc(t->n, sizeof *list);
    if (!list)
        return error_set(err, ST_NO_MEMORY, "out of memory");
    /* Llama 3's own template shows one call a turn */
    const bool one = t->one || f->bare || w->tool_choice == WANT_TOOL_NAMED;
    const struct grammar_tools tools = { .tools = list,
                                         .n_tools = grammar_tools_of(t, w, list),
                                         .arguments = f->arguments,
                                         .mark = tools_marked(t) || f->bare ? "" : f->mark,
                                         .before = f->before,
                                         .between = f->between,
                                         .end = f->end,
                                         .calls_max = one ? 1 : CALLS_MAX,
                                         .text = t->calls_only    ? GRAMMAR_TEXT_NONE
                                                 : w->json_schema ? GRAMMAR_TEXT_SCHEMA
                                                 : w->json_object ? GRAMMAR_TEXT_OBJECT
                                                                  : GRAMMAR_TEXT_FREE,
                                         .text_schema = w->json_schema,
                                         .text_mark = f->mark,
                                         .text_bare = f->bare };
    const enum status st = grammar_of_tools(&tools, grammar_out, err);
    free(list);
    return st;
}
