#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/lexer.h"
#include "coordinator/tokenizer/jinja/node.h"

/* Expressions, one function a level of precedence, as in Jinja's own parser. */

static struct jinja_node *parse_unary(struct jinja_parser *p, bool filters);
static struct jinja_node *parse_condition(struct jinja_parser *p);

static struct jinja_node *text_node(struct jinja_parser *p, enum jinja_node_kind kind, const struct jinja_token *t)
{
    struct jinja_node *n = jinja_node_new(p, kind);
    if (n) {
        n->text = t->text;
        n->bytes = t->bytes;
    }
    return n;
}

static struct jinja_node *pair_node(struct jinja_parser *p, enum jinja_node_kind kind, struct jinja_node *a,
                                    struct jinja_node *b)
{
    struct jinja_node *n = jinja_node_new(p, kind);
    if (!n || !a || !b)
        return NULL;
    n->a = a;
    n->b = b;
    n->line = a->line;
    return n;
}

/* ---- lists of things ---- */

/* Items up to the closing sign, which is taken. */
static struct jinja_node *parse_items(struct jinja_parser *p, const char *close)
{
    struct jinja_node *first = NULL, **link = &first;
    while (!p->st && !jinja_skip_op(p, close)) {
        if (first)
            jinja_expect_op(p, ",");
        if (jinja_skip_op(p, close))
            break;
        *link = jinja_parse_expression(p, false);
        if (*link)
            link = &(*link)->next;
    }
    return first;
}

static struct jinja_node *parse_dict(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_DICT);
    struct jinja_node **link = n ? &n->list : NULL;
    while (n && !p->st && !jinja_skip_op(p, "}")) {
        if (n->list)
            jinja_expect_op(p, ",");
        if (jinja_skip_op(p, "}"))
            break;
        struct jinja_node *key = jinja_parse_expression(p, false);
        jinja_expect_op(p, ":");
        *link = pair_node(p, JINJA_PAIR, key, jinja_parse_expression(p, false));
        if (*link)
            link = &(*link)->next;
    }
    return n;
}

/* (a, b, k=c) after its opening; a keyword argument is a PAIR with its name as text. */
static struct jinja_node *parse_arguments(struct jinja_parser *p)
{
    struct jinja_node *first = NULL, **link = &first;
    bool keywords = false;
    while (!p->st && !jinja_skip_op(p, ")")) {
        if (first)
            jinja_expect_op(p, ",");
        if (jinja_skip_op(p, ")"))
            break;
        if (jinja_is_op(p, "*") || jinja_is_op(p, "**"))
            return jinja_parse_fail(p, ST_UNSUPPORTED, "arguments spread by %s are not supported", p->at->text);
        const bool keyword =
            p->at->kind == JINJA_TOKEN_NAME && p->at[1].kind == JINJA_TOKEN_OP && strcmp(p->at[1].text, "=") == 0;
        if (keywords && !keyword)
            return jinja_parse_fail(p, ST_INVALID, "an argument without a name after one with a name");
        if (keyword) {
            keywords = true;
            *link = text_node(p, JINJA_PAIR, p->at);
            p->at += 2;
            if (*link)
                (*link)->a = jinja_parse_expression(p, false);
        } else {
            *link = jinja_parse_expression(p, false);
        }
        if (*link)
            link = &(*link)->next;
    }
    return first;
}

static struct jinja_node *parse_tuple_in(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_TUPLE);
    if (!n || jinja_skip_op(p, ")"))
        return n;
    n->list = jinja_parse_expression(p, false);
    if (jinja_skip_op(p, ")"))
        return n->list;
    jinja_expect_op(p, ",");
    if (n->list)
        n->list->next = parse_items(p, ")");
    return n;
}

/* ---- primary ---- */

static struct jinja_node *parse_strings(struct jinja_parser *p)
{
    struct jinja_node *n = text_node(p, JINJA_CONST_TEXT, p->at);
    size_t bytes = 0, at = 0;
    const struct jinja_token *first = p->at, *t;
    for (t = first; t->kind == JINJA_TOKEN_STRING; t++)
        bytes += t->bytes;
    p->at = t;
    if (!n || t == first + 1)
        return n;
    char *joined = jinja_alloc(p->arena, bytes + 1, 1);
    if (!joined)
        return jinja_parse_fail(p, p->arena->st, "the template takes too much memory");
    for (t = first; t->kind == JINJA_TOKEN_STRING; t++) {
        memcpy(joined + at, t->text, t->bytes);
        at += t->bytes;
    }
    n->text = joined;
    n->bytes = bytes;
    return n;
}

static struct jinja_node *parse_name(struct jinja_parser *p)
{
    static const struct {
        const char *name;
        enum jinja_node_kind kind;
        bool value;
    } constants[] = { { "true", JINJA_CONST_BOOL, true },   { "True", JINJA_CONST_BOOL, true },
                      { "false", JINJA_CONST_BOOL, false }, { "False", JINJA_CONST_BOOL, false },
                      { "none", JINJA_CONST_NONE, false },  { "None", JINJA_CONST_NONE, false } };
    const struct jinja_token *t = p->at++;
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (strcmp(t->text, constants[i].name) != 0)
            continue;
        struct jinja_node *n = jinja_node_new(p, constants[i].kind);
        if (n)
            n->flag = constants[i].value;
        return n;
    }
    struct jinja_node *n = text_node(p, JINJA_NAME, t);
    if (n) {
        n->d = p->names;
        p->names = n;
    }
    return n;
}

static struct jinja_node *parse_number(struct jinja_parser *p)
{
    const struct jinja_token *t = p->at++;
    struct jinja_node *n = jinja_node_new(p, t->kind == JINJA_TOKEN_INT ? JINJA_CONST_INT : JINJA_CONST_FLOAT);
    if (n) {
        n->integer = t->integer;
        n->real = t->real;
    }
    return n;
}

static struct jinja_node *parse_primary(struct jinja_parser *p)
{
    char shown[48];
    switch (p->at->kind) {
    case JINJA_TOKEN_NAME:
        return parse_name(p);
    case JINJA_TOKEN_STRING:
        return parse_strings(p);
    case JINJA_TOKEN_INT:
    case JINJA_TOKEN_FLOAT:
        return parse_number(p);
    default:
        break;
    }
    if (jinja_skip_op(p, "("))
        return parse_tuple_in(p);
    if (jinja_skip_op(p, "{"))
        return parse_dict(p);
    if (jinja_skip_op(p, "[")) {
        struct jinja_node *n = jinja_node_new(p, JINJA_LIST);
        if (n)
            n->list = parse_items(p, "]");
        return n;
    }
    return jinja_parse_fail(p, ST_INVALID, "%s where a value is expected", jinja_token_show(p->at, shown));
}

/* ---- what follows a primary ---- */

/* a[...] after its opening */
static struct jinja_node *parse_subscript(struct jinja_parser *p, struct jinja_node *a)
{
    struct jinja_node *parts[3] = { NULL }, *n;
    int n_colons = 0;
    while (!p->st && !jinja_is_op(p, "]")) {
        if (jinja_skip_op(p, ":")) {
            if (++n_colons > 2)
                return jinja_parse_fail(p, ST_INVALID, "a slice with more than two colons");
        } else if (jinja_is_op(p, ",")) {
            return jinja_parse_fail(p, ST_UNSUPPORTED, "a subscript of several values is not supported");
        } else if (parts[n_colons]) {
            jinja_expect_op(p, "]");
        } else {
            parts[n_colons] = jinja_parse_expression(p, false);
        }
    }
    jinja_expect_op(p, "]");
    if (n_colons == 0)
        return parts[0] ? pair_node(p, JINJA_GETITEM, a, parts[0])
                        : jinja_parse_fail(p, ST_INVALID, "a subscript without a value");
    n = jinja_node_new(p, JINJA_SLICE);
    if (n) {
        n->a = a;
        n->b = parts[0];
        n->c = parts[1];
        n->d = parts[2];
    }
    return n;
}

/* Functions are known by name, or are macros, which jinja_parse looks up when it has seen all; methods are known by name. */
static struct jinja_node *parse_call(struct jinja_parser *p, struct jinja_node *a)
{
    struct jinja_node *n = jinja_node_new(p, JINJA_CALL);
    if (!n || !a)
        return NULL;
    n->a = a;
    n->list = parse_arguments(p);
    if (a->kind == JINJA_GETATTR && !jinja_method_known(a->text))
        return jinja_parse_fail(p, ST_UNSUPPORTED, "the method %.60s is not supported", a->text);
    if (a->kind != JINJA_GETATTR && a->kind != JINJA_NAME)
        return jinja_parse_fail(p, ST_UNSUPPORTED, "a call of what is neither a name nor a method is not supported");
    return n;
}

static struct jinja_node *parse_postfix(struct jinja_parser *p, struct jinja_node *a)
{
    while (a && !p->st) {
        if (jinja_skip_op(p, ".")) {
            const struct jinja_token *t = p->at;
            if (t->kind == JINJA_TOKEN_INT) {
                a = pair_node(p, JINJA_GETITEM, a, parse_number(p));
                continue;
            }
            if (!jinja_expect_name(p))
                return NULL;
            struct jinja_node *n = text_node(p, JINJA_GETATTR, t);
            if (n)
                n->a = a;
            a = n;
        } else if (jinja_skip_op(p, "[")) {
            a = parse_subscript(p, a);
        } else if (jinja_skip_op(p, "(")) {
            a = parse_call(p, a);
        } else {
            break;
        }
    }
    return a;
}

static struct jinja_node *parse_filter(struct jinja_parser *p, struct jinja_node *a)
{
    const struct jinja_token *t = jinja_expect_name(p);
    struct jinja_node *n = t ? text_node(p, JINJA_FILTER, t) : NULL;
    if (!n)
        return NULL;
    n->a = a;
    n->method = jinja_filter_find(n->text);
    if (!n->method || jinja_is_op(p, "."))
        return jinja_parse_fail(p, ST_UNSUPPORTED, "the filter %.60s is not supported", n->text);
    if (jinja_skip_op(p, "("))
        n->list = parse_arguments(p);
    return n;
}

struct jinja_node *jinja_parse_filters(struct jinja_parser *p, struct jinja_node *a)
{
    struct jinja_node *n = parse_filter(p, a);
    while (n && jinja_skip_op(p, "|"))
        n = parse_filter(p, n);
    return n;
}

static bool begins_test_argument(const struct jinja_parser *p)
{
    static const char *const ends[] = { "else", "or", "and", "if", "is", "in", "not" };
    switch (p->at->kind) {
    case JINJA_TOKEN_STRING:
    case JINJA_TOKEN_INT:
    case JINJA_TOKEN_FLOAT:
        return true;
    case JINJA_TOKEN_NAME:
        for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
            if (jinja_is_name(p, ends[i]))
                return false;
        }
        return true;
    default:
        return jinja_is_op(p, "[") || jinja_is_op(p, "{");
    }
}

static struct jinja_node *parse_test(struct jinja_parser *p, struct jinja_node *a)
{
    const bool negated = jinja_skip_name(p, "not");
    const struct jinja_token *t = jinja_expect_name(p);
    struct jinja_node *n = t ? text_node(p, JINJA_TEST, t) : NULL;
    if (!n)
        return NULL;
    n->a = a;
    n->flag = negated;
    n->method = jinja_test_find(n->text);
    if (!n->method)
        return jinja_parse_fail(p, ST_UNSUPPORTED, "the test %.60s is not supported", n->text);
    if (jinja_skip_op(p, "("))
        n->list = parse_arguments(p);
    else if (begins_test_argument(p))
        n->list = parse_postfix(p, parse_primary(p));
    return n;
}

static struct jinja_node *parse_filters_and_tests(struct jinja_parser *p, struct jinja_node *a)
{
    while (a && !p->st) {
        if (jinja_skip_op(p, "|"))
            a = parse_filter(p, a);
        else if (jinja_skip_name(p, "is"))
            a = parse_test(p, a);
        else if (jinja_skip_op(p, "("))
            a = parse_call(p, a);
        else
            break;
    }
    return a;
}

/* ---- operators ---- */

static struct jinja_node *parse_unary(struct jinja_parser *p, bool filters)
{
    struct jinja_node *n;
    if (!jinja_enter(p)) {
        n = NULL;
    } else if (jinja_is_op(p, "-") || jinja_is_op(p, "+")) {
        n = jinja_node_new(p, jinja_is_op(p, "-") ? JINJA_NEG : JINJA_POS);
        p->at++;
        if (n)
            n->a = parse_unary(p, false);
    } else {
        n = parse_postfix(p, parse_primary(p));
    }
    jinja_leave(p);
    return filters ? parse_filters_and_tests(p, n) : n;
}

struct level {
    const char *signs[4];
    enum jinja_op ops[4];
};

/* From the loosest to the tightest; all group to the left. */
static const struct level levels[] = {
    { { "+", "-" }, { JINJA_ADD, JINJA_SUB } },
    { { "~" }, { JINJA_JOIN } },
    { { "*", "/", "//", "%" }, { JINJA_MUL, JINJA_DIV, JINJA_FLOORDIV, JINJA_MOD } },
    { { "**" }, { JINJA_POW } },
};

static int sign_of(const struct jinja_parser *p, const struct level *l)
{
    for (int i = 0; i < 4 && l->signs[i]; i++) {
        if (jinja_is_op(p, l->signs[i]))
            return i;
    }
    return -1;
}

/* Operators that group to the left make a tree as deep as they are many: each counts as nesting until the expression ends. */
static struct jinja_node *parse_level(struct jinja_parser *p, size_t level)
{
    if (level == sizeof levels / sizeof levels[0])
        return parse_unary(p, true);
    struct jinja_node *a = parse_level(p, level + 1);
    uint32_t entered = 0;
    for (int i; !p->st && (i = sign_of(p, &levels[level])) >= 0;) {
        p->at++;
        entered++;
        if (!jinja_enter(p))
            break;
        a = pair_node(p, JINJA_BINARY, a, parse_level(p, level + 1));
        if (a)
            a->op = levels[level].ops[i];
    }
    for (; entered > 0; entered--)
        jinja_leave(p);
    return a;
}

static bool take_comparison(struct jinja_parser *p, enum jinja_op *op_out)
{
    static const char *const signs[] = { "==", "!=", "<", "<=", ">", ">=" };
    static const enum jinja_op ops[] = { JINJA_EQ, JINJA_NE, JINJA_LT, JINJA_LE, JINJA_GT, JINJA_GE };
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        if (jinja_skip_op(p, signs[i])) {
            *op_out = ops[i];
            return true;
        }
    }
    if (jinja_skip_name(p, "in")) {
        *op_out = JINJA_IN;
        return true;
    }
    if (jinja_is_name(p, "not") && p->at[1].kind == JINJA_TOKEN_NAME && strcmp(p->at[1].text, "in") == 0) {
        p->at += 2;
        *op_out = JINJA_NOT_IN;
        return true;
    }
    return false;
}

static struct jinja_node *parse_compare(struct jinja_parser *p)
{
    struct jinja_node *a = parse_level(p, 0), *n = NULL, **link = NULL;
    enum jinja_op op;
    while (a && !p->st && take_comparison(p, &op)) {
        if (!n) {
            n = jinja_node_new(p, JINJA_COMPARE);
            if (!n)
                return NULL;
            n->a = a;
            link = &n->list;
        }
        struct jinja_node *operand = jinja_node_new(p, JINJA_OPERAND);
        if (!operand)
            return NULL;
        operand->op = op;
        operand->a = parse_level(p, 0);
        *link = operand;
        link = &operand->next;
    }
    return n ? n : a;
}

static struct jinja_node *parse_not(struct jinja_parser *p)
{
    if (!jinja_is_name(p, "not"))
        return parse_compare(p);
    struct jinja_node *n = jinja_node_new(p, JINJA_NOT);
    p->at++;
    if (jinja_enter(p) && n)
        n->a = parse_not(p);
    jinja_leave(p);
    return n;
}

static struct jinja_node *parse_and_or(struct jinja_parser *p, bool or)
{
    struct jinja_node *a = or ? parse_and_or(p, false) : parse_not(p);
    uint32_t entered = 0;
    while (!p->st && jinja_skip_name(p, or ? "or" : "and")) {
        entered++;
        if (!jinja_enter(p))
            break;
        a = pair_node(p, or ? JINJA_OR : JINJA_AND, a, or ? parse_and_or(p, false) : parse_not(p));
    }
    for (; entered > 0; entered--)
        jinja_leave(p);
    return a;
}

static struct jinja_node *parse_condition(struct jinja_parser *p)
{
    struct jinja_node *a = parse_and_or(p, true);
    uint32_t entered = 0;
    while (a && !p->st && jinja_skip_name(p, "if")) {
        struct jinja_node *n = jinja_node_new(p, JINJA_COND);
        entered++;
        if (!jinja_enter(p) || !n)
            break;
        n->a = a;
        n->b = parse_and_or(p, true);
        if (jinja_skip_name(p, "else"))
            n->c = parse_condition(p);
        a = n;
    }
    for (; entered > 0; entered--)
        jinja_leave(p);
    return a;
}

struct jinja_node *jinja_parse_expression(struct jinja_parser *p, bool no_condition)
{
    struct jinja_node *n = jinja_enter(p) ? (no_condition ? parse_and_or(p, true) : parse_condition(p)) : NULL;
    jinja_leave(p);
    return p->st ? NULL : n;
}

static bool ends_tuple(const struct jinja_parser *p)
{
    return p->at->kind == JINJA_TOKEN_BLOCK_END || p->at->kind == JINJA_TOKEN_OUTPUT_END || jinja_is_op(p, "=") ||
           jinja_is_op(p, ")") || jinja_is_name(p, "in");
}

struct jinja_node *jinja_parse_tuple(struct jinja_parser *p, bool no_condition)
{
    struct jinja_node *first = jinja_parse_expression(p, no_condition);
    if (!first || !jinja_is_op(p, ","))
        return first;
    struct jinja_node *n = jinja_node_new(p, JINJA_TUPLE), **link = &first->next;
    while (!p->st && jinja_skip_op(p, ",") && !ends_tuple(p)) {
        *link = jinja_parse_expression(p, no_condition);
        if (*link)
            link = &(*link)->next;
    }
    if (n)
        n->list = first;
    return n;
}

/* ---- what is assigned to ---- */

static struct jinja_node *parse_target_name(struct jinja_parser *p)
{
    static const char *const reserved[] = { "true", "false", "none", "True", "False", "None" };
    const struct jinja_token *t = jinja_expect_name(p);
    for (size_t i = 0; t && i < sizeof reserved / sizeof reserved[0]; i++) {
        if (strcmp(t->text, reserved[i]) == 0)
            return jinja_parse_fail(p, ST_INVALID, "%s cannot be assigned to", t->text);
    }
    return t ? text_node(p, JINJA_NAME, t) : NULL;
}

struct jinja_node *jinja_parse_target(struct jinja_parser *p, bool attribute)
{
    const bool parentheses = jinja_skip_op(p, "(");
    struct jinja_node *first = parse_target_name(p);
    if (attribute && first && jinja_skip_op(p, ".")) {
        const struct jinja_token *t = jinja_expect_name(p);
        struct jinja_node *n = t ? text_node(p, JINJA_GETATTR, t) : NULL;
        if (n)
            n->a = first;
        return n;
    }
    if (!first || !jinja_is_op(p, ",")) {
        if (parentheses)
            jinja_expect_op(p, ")");
        return first;
    }
    struct jinja_node *n = jinja_node_new(p, JINJA_TUPLE), **link = &first->next;
    while (!p->st && jinja_skip_op(p, ",") && !ends_tuple(p)) {
        *link = parse_target_name(p);
        if (*link)
            link = &(*link)->next;
    }
    if (parentheses)
        jinja_expect_op(p, ")");
    if (n)
        n->list = first;
    return n;
}
