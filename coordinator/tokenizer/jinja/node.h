#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_NODE_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_NODE_H

/* A template as a tree. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "coordinator/tokenizer/jinja/arena.h"

#ifdef __cplusplus
extern "C" {
#endif

enum jinja_node_kind {
    /* expressions */
    JINJA_CONST_NONE,
    JINJA_CONST_BOOL,
    JINJA_CONST_INT,
    JINJA_CONST_FLOAT,
    JINJA_CONST_TEXT,
    JINJA_NAME,
    JINJA_LIST, /* list */
    JINJA_TUPLE,
    JINJA_DICT,    /* list of PAIR: a: b */
    JINJA_PAIR,    /* also a keyword argument: text = a */
    JINJA_GETATTR, /* a.text */
    JINJA_GETITEM, /* a[b] */
    JINJA_SLICE,   /* a[b:c:d] */
    JINJA_CALL,    /* a(list) */
    JINJA_FILTER,  /* a | text(list) */
    JINJA_TEST,    /* a is text(list); flag: is not */
    JINJA_NOT,
    JINJA_NEG,
    JINJA_POS,
    JINJA_AND,
    JINJA_OR,
    JINJA_BINARY,  /* a op b */
    JINJA_COMPARE, /* a, then list of OPERAND: op a */
    JINJA_OPERAND,
    JINJA_COND, /* a if b else c (may be NULL) */
    /* statements */
    JINJA_TEXT,
    JINJA_OUTPUT,       /* {{ a }} */
    JINJA_IF,           /* if a: list, else: other */
    JINJA_FOR,          /* for a in b if c: list, else: other */
    JINJA_SET,          /* a = b */
    JINJA_SET_BLOCK,    /* a = list, through the filter b */
    JINJA_MACRO,        /* text(other: PAIRs of names and defaults, a may be NULL): list */
    JINJA_CALL_BLOCK,   /* a (a CALL) with list as caller() */
    JINJA_FILTER_BLOCK, /* list through the filter b */
    JINJA_WITH,         /* other: SETs; list */
    JINJA_GROUP,        /* list */
    JINJA_BREAK,
    JINJA_CONTINUE,
};

enum jinja_op {
    JINJA_ADD,
    JINJA_SUB,
    JINJA_MUL,
    JINJA_DIV,
    JINJA_FLOORDIV,
    JINJA_MOD,
    JINJA_POW,
    JINJA_JOIN, /* ~ */
    JINJA_EQ,
    JINJA_NE,
    JINJA_LT,
    JINJA_LE,
    JINJA_GT,
    JINJA_GE,
    JINJA_IN,
    JINJA_NOT_IN,
};

struct jinja_node {
    enum jinja_node_kind kind;
    uint32_t line;
    enum jinja_op op;
    bool flag;
    const char *text; /* ends with a NUL that is not counted */
    size_t bytes;
    int64_t integer;
    double real;
    const void *method; /* row of the table that text was found in: filters, tests, functions */
    struct jinja_node *a, *b, *c, *d;
    struct jinja_node *list, *other, *next;
};

/* ---- parse.c, parse_expression.c: the one uses the other ---- */

struct jinja_token;

struct jinja_parser {
    struct jinja_arena *arena;
    const struct jinja_token *at; /* the current token; the last is an END */
    struct jinja_node *names;     /* all NAME nodes, linked by d */
    uint32_t depth;
    uint32_t loops; /* that the current place is in, since the last macro */
    struct error *err;
    enum status st; /* the first failure; from then on everything returns NULL */
};

struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind);
/* Return NULL. what: printf. */
struct jinja_node *jinja_parse_fail(struct jinja_parser *p, enum status st, const char *what, ...)
    __attribute__((format(printf, 3, 4)));
bool jinja_enter(struct jinja_parser *p); /* false, failed: nested too deeply; leave all the same */
void jinja_leave(struct jinja_parser *p);
bool jinja_is_op(const struct jinja_parser *p, const char *op);
bool jinja_is_name(const struct jinja_parser *p, const char *name);
bool jinja_skip_op(struct jinja_parser *p, const char *op);
bool jinja_skip_name(struct jinja_parser *p, const char *name);
void jinja_expect_op(struct jinja_parser *p, const char *op);
/* The current token's name, taken; NULL: it is none. */
const struct jinja_token *jinja_expect_name(struct jinja_parser *p);

/* no_condition: `x if y` ends before the if, which is a loop's own */
struct jinja_node *jinja_parse_expression(struct jinja_parser *p, bool no_condition);
/* a, b, c without parentheses: one expression or a TUPLE */
struct jinja_node *jinja_parse_tuple(struct jinja_parser *p, bool no_condition);
/* | filter | filter(...) after a; a may be NULL */
struct jinja_node *jinja_parse_filters(struct jinja_parser *p, struct jinja_node *a);
/* What may be assigned to: a name, a name's attribute, a tuple of names. */
struct jinja_node *jinja_parse_target(struct jinja_parser *p, bool attribute);

/* root_out: GROUP. names_out: NAME nodes linked by d. */
enum status jinja_parse(struct jinja_arena *arena, const char *text, size_t bytes, struct jinja_node **root_out,
                        struct jinja_node **names_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
