#include "coordinator/gateway/tool_parser.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/json_scan.h"
#include "common/text.h"

enum { CANDIDATE_BYTES_MAX = 1 << 20 }; /* that are held back before it is known what they are */

enum place {
    IN_TEXT,
    BEFORE_CALL,  /* after a mark, or between the calls of a list */
    IN_CALL,      /* in its object, which is not a call yet */
    IN_ARGUMENTS, /* of a call that was told */
    IN_REST,      /* of its object, after the arguments */
    AFTER_CALL,
    IN_BROKEN, /* a call's object that is none after all: until its close */
    AT_END,    /* one call was wanted, and it was there */
};

struct tool_parser {
    struct tools *tools;
    const struct tool_family *family;
    const struct tool_sink *sink;
    void *ctx;
    enum place place;
    struct text held; /* not told yet: white space, a part of a mark, a candidate */
    size_t lead;      /* of held: up to the candidate's first byte that may be text by itself */
    size_t matched;   /* of the mark, or of the close */
    bool began;       /* something other than white space was there */
    bool in_list;     /* after its '[' */
    uint32_t n_calls;
    struct json_scan scan;
    size_t key, key_end;             /* in held: the outermost object's last key */
    size_t name, name_end;           /* its "name"; name_end 0: none yet */
    size_t arguments, arguments_end; /* "arguments" or "parameters"; end 0: none yet */
    bool arguments_odd;              /* they are no object */
    bool bad;
};

struct tool_parser *tool_parser_new(struct tools *tools, const struct tool_sink *sink, void *ctx)
{
    struct tool_parser *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->tools = tools_ref(tools);
    p->family = tools_family(tools);
    p->sink = sink;
    p->ctx = ctx;
    if (tools_marked(tools))
        p->place = BEFORE_CALL;
    return p;
}

void tool_parser_free(struct tool_parser *p)
{
    if (!p)
        return;
    tools_unref(p->tools);
    text_free(&p->held);
    free(p);
}

uint32_t tool_parser_calls(const struct tool_parser *p)
{
    return p->n_calls;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static void push(struct tool_parser *p, char c);

/* ---- text ---- */

static void hold(struct tool_parser *p, char c)
{
    text_add(&p->held, &c, 1);
    p->bad = p->bad || p->held.bad;
}

/* White space after calls is dropped, that before text is told with it. */
static void held_tell(struct tool_parser *p)
{
    size_t from = 0;
    while (p->n_calls && !p->began && from < p->held.n && is_space(p->held.data[from]))
        from++;
    if (from < p->held.n)
        p->sink->content(p->ctx, p->held.data + from, p->held.n - from);
    p->held.n = 0;
}

static void candidate_begin(struct tool_parser *p)
{
    p->place = BEFORE_CALL;
    p->lead = p->held.n;
    p->in_list = false;
    p->matched = 0;
}

static void object_begin(struct tool_parser *p)
{
    p->place = IN_CALL;
    p->scan = (struct json_scan){ 0 };
    p->name_end = p->arguments_end = 0;
    p->arguments_odd = false;
}

static void push_text(struct tool_parser *p, char c)
{
    const char *mark = p->family->mark;
    if (c == mark[p->matched]) { /* no mark's first byte comes again in it */
        hold(p, c);
        if (!mark[++p->matched])
            candidate_begin(p);
        return;
    }
    if (p->matched) {
        p->matched = 0;
        held_tell(p);
        p->began = true;
        push_text(p, c);
    } else if (is_space(c)) {
        hold(p, c);
    } else if (c == '{' && p->family->bare && !p->began) {
        p->lead = p->held.n + 1;
        object_begin(p);
        push(p, c);
    } else {
        hold(p, c);
        held_tell(p);
        p->began = true;
    }
}

/* It is no call. The mark, or the brace, was text; what came after it is looked through again. */
static void candidate_fail(struct tool_parser *p)
{
    struct text rest = p->held;
    const size_t lead = p->lead < rest.n ? p->lead : rest.n;
    p->held = (struct text){ 0 };
    p->place = IN_TEXT;
    p->matched = 0;
    size_t blank = 0;
    while (blank < lead && is_space(rest.data[blank]))
        blank++;
    if (blank < lead) {
        text_add(&p->held, rest.data, lead);
        p->bad = p->bad || p->held.bad;
        held_tell(p);
        p->began = true;
    }
    for (size_t i = blank < lead ? lead : 0; i < rest.n; i++)
        push(p, rest.data[i]);
    text_free(&rest);
}

/* ---- calls ---- */

static bool key_is(const struct tool_parser *p, const char *word)
{
    return p->key_end - p->key == strlen(word) && !memcmp(p->held.data + p->key, word, strlen(word));
}

static bool key_is_arguments(const struct tool_parser *p)
{
    return key_is(p, "arguments") || key_is(p, "parameters");
}

static bool name_known(const struct tool_parser *p)
{
    return p->name_end && tools_has(p->tools, p->held.data + p->name, p->name_end - p->name);
}

static void call_tell(struct tool_parser *p)
{
    p->sink->call(p->ctx, p->n_calls++, p->held.data + p->name, p->name_end - p->name);
}

static void call_end(struct tool_parser *p)
{
    p->held.n = 0;
    p->matched = 0;
    p->began = false; /* of what follows */
    p->place = tools_one(p->tools) ? AT_END : AFTER_CALL;
}

/* The object is whole, and its arguments did not come after its name. */
static void call_whole(struct tool_parser *p)
{
    const bool arguments = p->arguments_end;
    if (!name_known(p) || p->arguments_odd || (!arguments && p->family->bare)) {
        candidate_fail(p);
        return;
    }
    call_tell(p);
    if (arguments)
        p->sink->arguments(p->ctx, p->held.data + p->arguments, p->arguments_end - p->arguments);
    else
        p->sink->arguments(p->ctx, "{}", 2);
    call_end(p);
}

/* Where the outermost object's keys and values are; held has the byte already. before: the scan as it was. */
static void note(struct tool_parser *p, const struct json_scan *before)
{
    const size_t at = p->held.n - 1;
    const struct json_scan *now = &p->scan;
    if (before->depth != 1)
        goto deeper;
    if (now->at == JSON_AT_NAME && before->at != JSON_AT_NAME)
        p->key = at + 1;
    else if (before->at == JSON_AT_NAME && now->at == JSON_AT_COLON)
        p->key_end = at;
    else if (before->at == JSON_AT_VALUE && now->at == JSON_AT_STRING && key_is(p, "name"))
        p->name = at + 1;
    else if (before->at == JSON_AT_STRING && now->at == JSON_AT_COMMA && key_is(p, "name"))
        p->name_end = at;
    else if (before->at == JSON_AT_VALUE && now->at != JSON_AT_VALUE && key_is_arguments(p)) {
        p->arguments = at;
        p->arguments_odd = p->arguments_odd || p->held.data[at] != '{';
    }
    return;
deeper:
    if (before->depth == 2 && now->depth == 1 && p->held.data[at] == '}' && key_is_arguments(p))
        p->arguments_end = at + 1;
}

static void push_call(struct tool_parser *p, char c)
{
    const struct json_scan before = p->scan;
    if (!json_scan_push(&p->scan, c) || p->held.n >= CANDIDATE_BYTES_MAX) {
        hold(p, c);
        candidate_fail(p);
        return;
    }
    hold(p, c);
    if (p->bad)
        return;
    note(p, &before);
    if (before.at == JSON_AT_VALUE && before.depth == 1 && c == '{' && key_is_arguments(p) && name_known(p)) {
        call_tell(p);
        p->held.n = 0;
        p->place = IN_ARGUMENTS;
        p->sink->arguments(p->ctx, "{", 1);
    } else if (p->scan.at == JSON_AT_END) {
        call_whole(p);
    }
}

/* After what was told of it, the object is no JSON any more. */
static void call_break(struct tool_parser *p, char c)
{
    call_end(p);
    if (p->place == AT_END)
        return;
    p->place = *p->family->close ? IN_BROKEN : IN_TEXT;
    push(p, c);
}

static void push_arguments(struct tool_parser *p, char c)
{
    if (!json_scan_push(&p->scan, c)) {
        call_break(p, c);
        return;
    }
    p->sink->arguments(p->ctx, &c, 1);
    if (p->scan.depth == 1)
        p->place = IN_REST;
}

static void push_rest(struct tool_parser *p, char c)
{
    if (!json_scan_push(&p->scan, c))
        call_break(p, c);
    else if (p->scan.at == JSON_AT_END)
        call_end(p);
}

static void push_broken(struct tool_parser *p, char c)
{
    const char *close = p->family->close;
    p->matched = c == close[p->matched] ? p->matched + 1 : c == close[0];
    if (!close[p->matched]) {
        p->matched = 0;
        p->place = IN_TEXT;
    }
}

/* ---- between calls ---- */

static void push_before(struct tool_parser *p, char c)
{
    if (c == '{' && (!p->family->list || p->in_list)) {
        object_begin(p);
        push_call(p, c);
        return;
    }
    hold(p, c);
    if (c == '[' && p->family->list && !p->in_list)
        p->in_list = true;
    else if (!is_space(c))
        candidate_fail(p);
}

/* A list goes on or ends; Llama's objects come one after the other, with ';' between; others are closed. */
static void push_after(struct tool_parser *p, char c)
{
    const char *close = p->family->close;
    if (*close) {
        if (c == close[p->matched]) {
            hold(p, c);
            if (!close[++p->matched]) {
                p->held.n = p->matched = 0;
                p->place = IN_TEXT;
            }
            return;
        }
        if (!p->matched && is_space(c))
            return;
    } else if (is_space(c)) {
        return;
    } else if (p->in_list && (c == ',' || c == ']')) {
        p->place = c == ',' ? BEFORE_CALL : IN_TEXT;
        p->in_list = c == ',';
        p->lead = 0;
        return;
    } else if (p->family->bare && c == ';') {
        return;
    } else if (p->family->bare && c == '{') {
        p->lead = 1;
        object_begin(p);
        push_call(p, c);
        return;
    }
    p->place = IN_TEXT; /* what was held is the beginning of text */
    p->matched = 0;
    held_tell(p);
    push_text(p, c);
}

static void push(struct tool_parser *p, char c)
{
    switch (p->place) {
    case IN_TEXT:
        push_text(p, c);
        break;
    case BEFORE_CALL:
        push_before(p, c);
        break;
    case IN_CALL:
        push_call(p, c);
        break;
    case IN_ARGUMENTS:
        push_arguments(p, c);
        break;
    case IN_REST:
        push_rest(p, c);
        break;
    case AFTER_CALL:
        push_after(p, c);
        break;
    case IN_BROKEN:
        push_broken(p, c);
        break;
    case AT_END:
        break;
    }
}

void tool_parser_push(struct tool_parser *p, const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes && !p->bad; i++)
        push(p, data[i]);
}

void tool_parser_mark(struct tool_parser *p)
{
    if (p->bad || p->place == AT_END)
        return;
    if (p->place == BEFORE_CALL || p->place == IN_CALL)
        candidate_fail(p);
    else if (p->place == IN_ARGUMENTS || p->place == IN_REST)
        call_end(p);
    if (p->matched && p->place == IN_TEXT) {
        held_tell(p);
        p->began = true;
    }
    candidate_begin(p);
}

bool tool_parser_finish(struct tool_parser *p)
{
    while (!p->bad && (p->place == BEFORE_CALL || p->place == IN_CALL))
        candidate_fail(p);
    const bool blank = p->place == IN_TEXT && !p->matched; /* only white space is held */
    if (!p->bad && p->place == IN_TEXT && !(blank && p->n_calls))
        held_tell(p);
    p->held.n = 0;
    return !p->bad;
}
