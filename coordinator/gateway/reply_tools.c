#include "coordinator/gateway/reply_tools.h"

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "coordinator/gateway/tool_parser.h"

struct reply_tools {
    struct tool_parser *parser;
    const struct tool_family *family;
    const struct generation *g; /* while it is looked at */
    bool deltas;
    size_t text, n_marks; /* looked at */
    struct text content, calls, arguments;
    uint32_t index; /* of the call under way */
    bool open;      /* its entry is begun, its arguments are not in it yet */
    bool bad;
};

/* The same answer has the same ids. */
static void write_id(const struct reply_tools *t, struct text *out)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    struct hasher *h = hasher_new();
    hasher_add_text(h, t->g->id);
    hasher_add_u64(h, t->g->index);
    hasher_add_u64(h, t->index);
    const struct digest d = hasher_end(h);
    char id[24];
    const size_t n = t->family->id_characters ? t->family->id_characters : sizeof d.byte;
    for (size_t i = 0; i < n; i++)
        id[i] = letters[d.byte[i % sizeof d.byte] % (sizeof letters - 1)];
    text_str(out, t->family->id_characters ? "" : "call_");
    text_add(out, id, n);
}

static void entry_close(struct reply_tools *t)
{
    if (!t->open)
        return;
    text_json(&t->calls, t->arguments.data, t->arguments.n);
    text_str(&t->calls, "}}");
    t->bad = t->bad || t->arguments.bad;
    t->arguments.n = 0;
    t->open = false;
}

static void entry_open(struct reply_tools *t)
{
    text_str(&t->calls, t->calls.n ? ",{" : "{");
    if (t->deltas)
        text_printf(&t->calls, "\"index\":%u,", t->index);
    t->open = true;
}

static void on_content(void *ctx, const char *data, size_t bytes)
{
    struct reply_tools *t = ctx;
    text_add(&t->content, data, bytes);
}

static void on_call(void *ctx, uint32_t index, const char *name, size_t bytes)
{
    struct reply_tools *t = ctx;
    entry_close(t);
    t->index = index;
    entry_open(t);
    text_str(&t->calls, "\"id\":\"");
    write_id(t, &t->calls);
    text_str(&t->calls, "\",\"type\":\"function\",\"function\":{\"name\":");
    text_json(&t->calls, name, bytes);
    text_str(&t->calls, ",\"arguments\":");
}

static void on_arguments(void *ctx, const char *data, size_t bytes)
{
    struct reply_tools *t = ctx;
    if (!t->open) {
        entry_open(t);
        text_str(&t->calls, "\"function\":{\"arguments\":");
    }
    text_add(&t->arguments, data, bytes);
}

static const struct tool_sink sink = { .content = on_content, .call = on_call, .arguments = on_arguments };

struct reply_tools *reply_tools_new(struct tools *tools, bool deltas)
{
    struct reply_tools *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->deltas = deltas;
    t->family = tools_family(tools);
    t->parser = tool_parser_new(tools, &sink, t);
    if (t->parser)
        return t;
    free(t);
    return NULL;
}

void reply_tools_free(struct reply_tools *t)
{
    if (!t)
        return;
    tool_parser_free(t->parser);
    text_free(&t->content);
    text_free(&t->calls);
    text_free(&t->arguments);
    free(t);
}

uint32_t reply_tools_calls(const struct reply_tools *t)
{
    return tool_parser_calls(t->parser);
}

static void look_to(struct reply_tools *t, const struct generation *g, size_t to)
{
    if (to > t->text)
        tool_parser_push(t->parser, g->text + t->text, to - t->text);
    t->text = to;
}

bool reply_tools_feed(struct reply_tools *t, const struct generation *g, bool end)
{
    t->g = g;
    for (; t->n_marks < g->n_marks && g->marks[t->n_marks] <= g->n_text; t->n_marks++) {
        look_to(t, g, g->marks[t->n_marks]);
        tool_parser_mark(t->parser);
    }
    look_to(t, g, g->n_text);
    if (end && !tool_parser_finish(t->parser))
        t->bad = true;
    t->g = NULL;
    return t->content.n || t->calls.n || t->open;
}

void reply_tools_write(struct reply_tools *t, struct text *out)
{
    entry_close(t);
    if (t->content.n) {
        text_str(out, "\"content\":");
        text_json(out, t->content.data, t->content.n);
    } else if (!t->deltas) {
        text_str(out, t->calls.n ? "\"content\":null" : "\"content\":\"\"");
    }
    if (t->calls.n) {
        text_str(out, t->content.n || !t->deltas ? ",\"tool_calls\":[" : "\"tool_calls\":[");
        text_add(out, t->calls.data, t->calls.n);
        text_str(out, "]");
    }
    out->bad = out->bad || t->bad || t->content.bad || t->calls.bad;
    t->content.n = t->calls.n = 0;
}
