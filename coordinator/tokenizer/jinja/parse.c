#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/jinja.h"
#include "coordinator/tokenizer/jinja/lexer.h"
#include "coordinator/tokenizer/jinja/node.h"

/* ---- what both parts of the parser use ---- */

struct jinja_node *jinja_parse_fail(struct jinja_parser *p, enum status st, const char *what, ...)
{
    char text[256];
    va_list args;
    if (p->st)
        return NULL;
    va_start(args, what);
    vsnprintf(text, sizeof text, what, args);
    va_end(args);
    p->st = error_set(p->err, st, "line %u: %s", p->at->line, text);
    return NULL;
}

struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind)
{
    if (p->st)
        return NULL;
    struct jinja_node *n = jinja_alloc(p->arena, 1, sizeof *n);
    if (!n)
        return jinja_parse_fail(p, p->arena->st, "the template takes too much memory");
    n->kind = kind;
    n->line = p->at->line;
    return n;
}

bool jinja_enter(struct jinja_parser *p)
{
    if (++p->depth > JINJA_NESTING_MAX)
        jinja_parse_fail(p, ST_UNSUPPORTED, "nested more than %d deep", JINJA_NESTING_MAX);
    return !p->st;
}

void jinja_leave(struct jinja_parser *p)
{
    p->depth--;
}

bool jinja_is_op(const struct jinja_parser *p, const char *op)
{
    return p->at->kind == JINJA_TOKEN_OP && strcmp(p->at->text, op) == 0;
}

bool jinja_is_name(const struct jinja_parser *p, const char *name)
{
    return p->at->kind == JINJA_TOKEN_NAME && strcmp(p->at->text, name) == 0;
}

bool jinja_skip_op(struct jinja_parser *p, const char *op)
{
    const bool is = !p->st && jinja_is_op(p, op);
    p->at += is;
    return is;
}

bool jinja_skip_name(struct jinja_parser *p, const char *name)
{
    const bool is = !p->st && jinja_is_name(p, name);
    p->at += is;
    return is;
}

void jinja_expect_op(struct jinja_parser *p, const char *op)
{
    char shown[48];
    if (!jinja_skip_op(p, op))
        jinja_parse_fail(p, ST_INVALID, "%s where '%s' is expected", jinja_token_show(p->at, shown), op);
}

const struct jinja_token *jinja_expect_name(struct jinja_parser *p)
{
    char shown[48];
    if (!p->st && p->at->kind == JINJA_TOKEN_NAME)
        return p->at++;
    jinja_parse_fail(p, ST_INVALID, "%s where a name is expected", jinja_token_show(p->at, shown));
    return NULL;
}

/* ---- statements ---- */

static struct jinja_node *parse_body(struct jinja_parser *p, const char *const *ends);

static void expect_end_of_tag(struct jinja_parser *p)
{
    char shown[48];
    if (p->st)
        return;
    if (p->at->kind == JINJA_TOKEN_BLOCK_END)
        p->at++;
    else
        jinja_parse_fail(p, ST_INVALID, "%s where the tag should end", jinja_token_show(p->at, shown));
}

/* The body up to {% end %}, which is taken. */
static struct jinja_node *parse_block(struct jinja_parser *p, const char *end)
{
    expect_end_of_tag(p);
    struct jinja_node *body = parse_body(p, (const char *const[]){ end, NULL });
    if (!p->st)
        p->at++;
    expect_end_of_tag(p);
    return body;
}

/* After "if" or "elif"; an elif is an if in its else. */
static struct jinja_node *parse_if(struct jinja_parser *p)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL };
    struct jinja_node *n = jinja_node_new(p, JINJA_IF);
    if (!n || !jinja_enter(p))
        return NULL;
    n->a = jinja_parse_tuple(p, false);
    expect_end_of_tag(p);
    n->list = parse_body(p, ends);
    if (jinja_skip_name(p, "elif")) {
        n->other = parse_if(p);
    } else if (jinja_skip_name(p, "else")) {
        n->other = parse_block(p, "endif");
    } else if (jinja_skip_name(p, "endif")) {
        expect_end_of_tag(p);
    }
    jinja_leave(p);
    return n;
}

static struct jinja_node *parse_for(struct jinja_parser *p)
{
    static const char *const ends[] = { "else", "endfor", NULL };
    struct jinja_node *n = jinja_node_new(p, JINJA_FOR);
    if (!n)
        return NULL;
    n->a = jinja_parse_target(p, false);
    if (!jinja_skip_name(p, "in"))
        return jinja_parse_fail(p, ST_INVALID, "a for without in");
    n->b = jinja_parse_tuple(p, true);
    if (jinja_skip_name(p, "if"))
        n->c = jinja_parse_expression(p, false);
    if (jinja_is_name(p, "recursive"))
        return jinja_parse_fail(p, ST_UNSUPPORTED, "a recursive for is not supported");
    expect_end_of_tag(p);
    p->loops++;
    n->list = parse_body(p, ends);
    p->loops--;
    if (jinja_skip_name(p, "else")) {
        n->other = parse_block(p, "endfor");
    } else if (jinja_skip_name(p, "endfor")) {
        expect_end_of_tag(p);
    }
    return n;
}

/* What is captured cannot leave a loop around it. */
static struct jinja_node *parse_own_block(struct jinja_parser *p, const char *end)
{
    const uint32_t loops = p->loops;
    p->loops = 0;
    struct jinja_node *body = parse_block(p, end);
    p->loops = loops;
    return body;
}

static struct jinja_node *parse_set(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_SET);
    if (!n)
        return NULL;
    n->a = jinja_parse_target(p, true);
    if (jinja_skip_op(p, "=")) {
        n->b = jinja_parse_tuple(p, false);
        expect_end_of_tag(p);
        return n;
    }
    n->kind = JINJA_SET_BLOCK;
    if (jinja_skip_op(p, "|"))
        n->b = jinja_parse_filters(p, NULL);
    n->list = parse_own_block(p, "endset");
    return n;
}

static struct jinja_node *parse_parameters(struct jinja_parser *p)
{
    struct jinja_node *first = NULL, **link = &first;
    bool defaults = false;
    jinja_expect_op(p, "(");
    while (!p->st && !jinja_skip_op(p, ")")) {
        if (first)
            jinja_expect_op(p, ",");
        if (jinja_skip_op(p, ")"))
            break;
        const struct jinja_token *t = jinja_expect_name(p);
        *link = t ? jinja_node_new(p, JINJA_PAIR) : NULL;
        if (!*link)
            return NULL;
        (*link)->text = t->text;
        (*link)->bytes = t->bytes;
        if (jinja_skip_op(p, "=")) {
            defaults = true;
            (*link)->a = jinja_parse_expression(p, false);
        } else if (defaults) {
            return jinja_parse_fail(p, ST_INVALID, "a parameter without a default after one with a default");
        }
        link = &(*link)->next;
    }
    return first;
}

static struct jinja_node *parse_macro(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_MACRO);
    const struct jinja_token *t = jinja_expect_name(p);
    if (!n || !t)
        return NULL;
    n->text = t->text;
    n->bytes = t->bytes;
    n->other = parse_parameters(p);
    n->list = parse_own_block(p, "endmacro");
    return n;
}

static struct jinja_node *parse_call_block(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_CALL_BLOCK);
    if (!n)
        return NULL;
    if (jinja_is_op(p, "("))
        return jinja_parse_fail(p, ST_UNSUPPORTED, "a call block with parameters is not supported");
    n->a = jinja_parse_expression(p, false);
    if (n->a && (n->a->kind != JINJA_CALL || n->a->a->kind != JINJA_NAME))
        return jinja_parse_fail(p, ST_INVALID, "a call block without a call of a macro");
    n->list = parse_own_block(p, "endcall");
    return n;
}

static struct jinja_node *parse_filter_block(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_FILTER_BLOCK);
    if (!n)
        return NULL;
    n->b = jinja_parse_filters(p, NULL);
    n->list = parse_own_block(p, "endfilter");
    return n;
}

static struct jinja_node *parse_with(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_WITH);
    struct jinja_node **link = n ? &n->other : NULL;
    while (n && !p->st && p->at->kind != JINJA_TOKEN_BLOCK_END) {
        if (n->other)
            jinja_expect_op(p, ",");
        *link = jinja_node_new(p, JINJA_SET);
        if (!*link)
            return NULL;
        (*link)->a = jinja_parse_target(p, false);
        jinja_expect_op(p, "=");
        (*link)->b = jinja_parse_expression(p, false);
        link = &(*link)->next;
    }
    if (n)
        n->list = parse_block(p, "endwith");
    return n;
}

/* {% generation %} marks what an assistant said, for training: here it is its body. */
static struct jinja_node *parse_generation(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_GROUP);
    if (n)
        n->list = parse_block(p, "endgeneration");
    return n;
}

static struct jinja_node *parse_jump(struct jinja_parser *p, enum jinja_node_kind kind)
{
    struct jinja_node *n = jinja_node_new(p, kind);
    if (!p->loops)
        return jinja_parse_fail(p, ST_INVALID, "%s outside of a loop", kind == JINJA_BREAK ? "break" : "continue");
    expect_end_of_tag(p);
    return n;
}

static struct jinja_node *parse_break(struct jinja_parser *p)
{
    return parse_jump(p, JINJA_BREAK);
}

static struct jinja_node *parse_continue(struct jinja_parser *p)
{
    return parse_jump(p, JINJA_CONTINUE);
}

static struct jinja_node *parse_statement(struct jinja_parser *p)
{
    static const struct {
        const char *name;
        struct jinja_node *(*parse)(struct jinja_parser *p);
    } statements[] = {
        { "if", parse_if },           { "for", parse_for },
        { "set", parse_set },         { "macro", parse_macro },
        { "call", parse_call_block }, { "filter", parse_filter_block },
        { "with", parse_with },       { "generation", parse_generation },
        { "break", parse_break },     { "continue", parse_continue },
    };
    char shown[48];
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (jinja_skip_name(p, statements[i].name))
            return statements[i].parse(p);
    }
    return jinja_parse_fail(p, ST_UNSUPPORTED, "the tag %s is not supported here", jinja_token_show(p->at, shown));
}

static struct jinja_node *parse_output(struct jinja_parser *p)
{
    char shown[48];
    struct jinja_node *n = jinja_node_new(p, JINJA_OUTPUT);
    if (!n)
        return NULL;
    n->a = jinja_parse_tuple(p, false);
    if (!p->st && p->at->kind != JINJA_TOKEN_OUTPUT_END)
        return jinja_parse_fail(p, ST_INVALID, "%s where the tag should end", jinja_token_show(p->at, shown));
    p->at++;
    return n;
}

static struct jinja_node *parse_text(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_TEXT);
    if (n) {
        n->text = p->at->text;
        n->bytes = p->at->bytes;
        p->at++;
    }
    return n;
}

static bool is_any(const struct jinja_parser *p, const char *const *names)
{
    for (; names && *names; names++) {
        if (jinja_is_name(p, *names))
            return true;
    }
    return false;
}

/* Statements up to a tag that is one of ends; the place is then at its word. ends NULL: up to the end. */
static struct jinja_node *parse_body(struct jinja_parser *p, const char *const *ends)
{
    struct jinja_node *first = NULL, **link = &first;
    if (!jinja_enter(p)) {
        jinja_leave(p);
        return NULL;
    }
    while (!p->st) {
        if (p->at->kind == JINJA_TOKEN_END) {
            if (ends)
                jinja_parse_fail(p, ST_INVALID, "the template ends before %s", ends[0]);
            break;
        }
        if (p->at->kind == JINJA_TOKEN_TEXT) {
            *link = parse_text(p);
        } else if (p->at->kind == JINJA_TOKEN_OUTPUT_BEGIN) {
            p->at++;
            *link = parse_output(p);
        } else {
            p->at++; /* BLOCK_BEGIN: nothing else is outside of tags */
            if (is_any(p, ends))
                break;
            *link = parse_statement(p);
        }
        if (*link)
            link = &(*link)->next;
    }
    jinja_leave(p);
    return first;
}

/* ---- functions ---- */

struct calls {
    struct jinja_parser *p;
    const struct jinja_node *macros[256];
    size_t n_macros;
};

static void walk(struct calls *c, struct jinja_node *n, bool collect);

static void visit(struct calls *c, struct jinja_node *n, bool collect)
{
    if (collect && n->kind == JINJA_MACRO) {
        if (c->n_macros == sizeof c->macros / sizeof c->macros[0])
            jinja_parse_fail(c->p, ST_UNSUPPORTED, "more than %zu macros are not supported", c->n_macros);
        else
            c->macros[c->n_macros++] = n;
    }
    if (collect || n->kind != JINJA_CALL || n->a->kind != JINJA_NAME)
        return;
    bool known = jinja_function_known(n->a->text) || strcmp(n->a->text, "caller") == 0;
    for (size_t i = 0; !known && i < c->n_macros; i++)
        known = strcmp(c->macros[i]->text, n->a->text) == 0;
    if (!known && !c->p->st) {
        c->p->st =
            error_set(c->p->err, ST_UNSUPPORTED, "line %u: the function %.60s is not supported", n->line, n->a->text);
    }
}

/* As deep as the tree is, which the parser bounded; along lists it is a loop. */
static void walk(struct calls *c, struct jinja_node *n, bool collect)
{
    for (; n && !c->p->st; n = n->next) {
        visit(c, n, collect);
        walk(c, n->a, collect);
        walk(c, n->b, collect);
        walk(c, n->c, collect);
        if (n->kind == JINJA_SLICE)
            walk(c, n->d, collect);
        walk(c, n->list, collect);
        walk(c, n->other, collect);
    }
}

enum status jinja_parse(struct jinja_arena *arena, const char *text, size_t bytes, struct jinja_node **root_out,
                        struct jinja_node **names_out, struct error *err)
{
    const struct jinja_token *tokens;
    const enum status st = jinja_lex(arena, text, bytes, &tokens, err);
    if (st)
        return st;
    struct jinja_parser p = { .arena = arena, .at = tokens, .err = err };
    struct jinja_node *root = jinja_node_new(&p, JINJA_GROUP);
    if (root)
        root->list = parse_body(&p, NULL);
    struct calls c = { .p = &p };
    walk(&c, root, true);
    walk(&c, root, false);
    if (p.st)
        return p.st;
    *root_out = root;
    *names_out = p.names;
    return ST_OK;
}
