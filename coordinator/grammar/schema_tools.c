/* Calls of functions, in the forms that models write them, by the schemas of their arguments; and text beside them. */
#include <stdio.h>
#include <string.h>

#include "coordinator/grammar/schema.h"

/* A rule: {"name": NAME, ARGUMENTS: {...}} */
static node_id build_call_of(struct compiler *c, const struct grammar_tools *tools, const struct grammar_tool *tool)
{
    struct builder *b = &c->b;
    const json_t *schema = tool->parameters;
    snprintf(c->path, sizeof c->path, "tools[%u].function.parameters", tool->index);
    c->root = schema;
    node_id n = build_json(b, RULE_SPACE, build_range(b, '}', '}', NODE_RETURN));
    const json_t *type = json_object_get(schema, "type");
    if (json_object_size(schema) && !(json_is_string(type) && !strcmp(json_string_value(type), "object")) &&
        !(!type && json_object_get(schema, "properties")))
        return schema_fail(c, ST_UNSUPPORTED, "type", "must be 'object'");
    n = json_object_size(schema) ? schema_build(c, schema, n) : build_json(b, RULE_OBJECT, n);
    n = build_text(b, "\": ", n);
    n = build_text(b, tools->arguments, n);
    n = build_text(b, "\", \"", n);
    n = build_text(b, tool->name, n);
    return build_text(b, "{\"name\": \"", n);
}

/*
 * Any text that the mark is not in, which ends the whole or goes on after a mark with `calls`; with NODE_NONE, no mark may come. One state for each part of
 * the mark that was just written; *second: after its first byte.
 */
static node_id build_free(struct compiler *c, const char *mark, node_id calls, node_id *second)
{
    struct builder *b = &c->b;
    const size_t n = strlen(mark);
    node_id at[32];
    if (n < 2 || n >= sizeof at / sizeof *at)
        return *second = schema_fail(c, ST_INTERNAL, "", "a mark has 2 to 31 bytes");
    for (size_t i = 0; i < n; i++)
        at[i] = build_hole(b);
    for (size_t i = 0; i < n && !b->status; i++) {
        const uint8_t go = (uint8_t)mark[i], first = (uint8_t)mark[0]; /* no mark's first byte comes again in it */
        node_id next = NODE_NONE;
        for (int low = 0; low < 256;) {
            int high = low;
            while (high < 255 && low != go && low != first && high + 1 != go && high + 1 != first)
                high++;
            node_id to = low == go ? (i + 1 < n ? at[i + 1] : calls) : low == first ? at[1] : at[0];
            if (to != NODE_NONE) {
                const node_id one = build_range(b, (uint8_t)low, (uint8_t)high, to);
                next = next == NODE_NONE ? one : build_split(b, next, one);
            }
            low = high + 1;
        }
        build_fill(b, at[i], NODE_END, next);
    }
    *second = at[1];
    return at[0];
}

/* As build_free, but it does not begin with a brace, after white space or without. */
static node_id build_free_bare(struct compiler *c, const char *mark)
{
    static const uint8_t ranges[][2] = { { 0, 8 }, { 11, 12 }, { 14, 31 }, { '!', '{' - 1 }, { '{' + 1, 255 } };
    struct builder *b = &c->b;
    node_id second = NODE_NONE, n = NODE_END;
    const node_id start = build_hole(b), rest = build_free(c, mark, NODE_NONE, &second);
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const uint8_t low = ranges[i][0], high = ranges[i][1], first = (uint8_t)mark[0];
        if (first < low || first > high) {
            n = build_split(b, n, build_range(b, low, high, rest));
            continue;
        }
        n = build_split(b, n, build_range(b, first, first, second));
        if (first > low)
            n = build_split(b, n, build_range(b, low, (uint8_t)(first - 1), rest));
        if (first < high)
            n = build_split(b, n, build_range(b, (uint8_t)(first + 1), high, rest));
    }
    for (const char *space = " \t\n\r"; *space; space++)
        n = build_split(b, n, build_range(b, (uint8_t)*space, (uint8_t)*space, start));
    build_fill(b, start, n, n);
    return start;
}

/* What may be instead of calls; free text may come before them. */
static node_id build_beside(struct compiler *c, const struct grammar_tools *tools, node_id calls)
{
    if (tools->text == GRAMMAR_TEXT_OBJECT)
        return build_json(&c->b, RULE_OBJECT, NODE_END);
    if (tools->text == GRAMMAR_TEXT_SCHEMA) {
        snprintf(c->path, sizeof c->path, "response_format.json_schema.schema");
        c->root = tools->text_schema;
        return schema_build(c, tools->text_schema, NODE_END);
    }
    node_id second;
    return tools->text_bare ? build_free_bare(c, tools->text_mark) : build_free(c, tools->text_mark, calls, &second);
}

enum status grammar_of_tools(const struct grammar_tools *tools, struct grammar **grammar_out, struct error *err)
{
    struct compiler c;
    node_id one = NODE_NONE;
    compiler_init(&c, "tools", err);
    for (size_t i = 0; i < tools->n_tools; i++) {
        const node_id call = build_call_of(&c, tools, &tools->tools[i]);
        one = i ? build_split(&c.b, one, call) : call;
    }
    const node_id end = build_text(&c.b, tools->end, NODE_END);
    const node_id between = build_text(&c.b, tools->between, NODE_RETURN);
    node_id n = build_repeat(&c.b, one, between, 1, tools->calls_max, end);
    n = build_text(&c.b, tools->before, n);
    const node_id marked = build_text(&c.b, tools->mark, n);
    if (tools->text == GRAMMAR_TEXT_NONE)
        return compiler_finish(&c, marked, "tools", grammar_out);
    const node_id beside = build_beside(&c, tools, n);
    const bool within = tools->text == GRAMMAR_TEXT_FREE && !tools->text_bare; /* the text leads to calls itself */
    return compiler_finish(&c, within ? beside : build_split(&c.b, marked, beside), "tools", grammar_out);
}
