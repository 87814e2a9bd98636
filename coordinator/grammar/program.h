#ifndef LONGSPAN_COORDINATOR_GRAMMAR_PROGRAM_H
#define LONGSPAN_COORDINATOR_GRAMMAR_PROGRAM_H

/*
 * A pushdown automaton as a list of nodes, and how it is built: backwards, each part knowing what follows it. Shared by the compilers.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "coordinator/grammar/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint32_t node_id;
enum { NODE_NONE = UINT32_MAX, NODE_END = 0, NODE_RETURN = 1 }; /* every program has these two */

enum node_op {
    OP_END,    /* the text may end */
    OP_RETURN, /* from a call */
    OP_RANGE,  /* a byte of low .. high, then a */
    OP_SPLIT,  /* a or b */
    OP_CALL,   /* a, and after its return b */
};

struct node {
    uint8_t op, low, high;
    node_id a, b;
    uint32_t
        need; /* calls deep that it takes at least to get from here to the return or end; UINT32_MAX: it never gets there */
    bool empty; /* it may get there without a byte */
    uint8_t mark;
};

/* Rules that all schemas use, compiled when they are first asked for. */
enum json_rule {
    RULE_SPACE,  /* between marks */
    RULE_GAP,    /* after a colon */
    RULE_CHAR,   /* one character in a string, escaped or not */
    RULE_STRING, /* in quotes */
    RULE_INTEGER,
    RULE_NUMBER,
    RULE_MEMBER, /* "string": any */
    RULE_OBJECT,
    RULE_ARRAY,
    RULE_ANY,
    JSON_RULES
};

struct program {
    struct node *nodes;
    uint32_t n, room;
    node_id start;
};

/* A failed build stays failed: parts return NODE_NONE from then on, and err has the first cause. */
struct builder {
    struct program *program;
    node_id rules[JSON_RULES]; /* NODE_NONE: not yet */
    enum status status;
    struct error *err;
};

void builder_init(struct builder *b, struct program *p, struct error *err);
/* Any NODE_NONE among the arguments makes the result NODE_NONE. */
node_id build_range(struct builder *b, uint8_t low, uint8_t high, node_id next);
node_id build_split(struct builder *b, node_id a, node_id c);
node_id build_call(struct builder *b, node_id rule, node_id next);
node_id build_bytes(struct builder *b, const char *bytes, size_t n, node_id next);
node_id build_text(struct builder *b, const char *text, node_id next);
/* n bytes that are low .. high in order of bytes; after a first that differs from theirs, each is one of least .. most. */
node_id build_between(struct builder *b, const uint8_t *low, const uint8_t *high, uint32_t n, uint8_t least,
                      uint8_t most, node_id next);
/* A split whose parts are set later: for loops and rules that call themselves. */
node_id build_hole(struct builder *b);
void build_fill(struct builder *b, node_id hole, node_id a, node_id c);
/* rule, min to max times (max UINT32_MAX: any number), `between` (a rule, or NODE_NONE for nothing) between two. */
node_id build_repeat(struct builder *b, node_id rule, node_id between, uint32_t min, uint32_t max, node_id next);
/* A rule of JSON, called. */
node_id build_json(struct builder *b, enum json_rule rule, node_id next);
/* The rule itself. */
node_id json_rule(struct builder *b, enum json_rule rule);
/* A string's character that is one of neither '"', '\' nor ASCII below ' ', from its first byte on; ASCII of `but` left out. */
node_id build_plain_char(struct builder *b, const char *but, node_id next);

/* Sets the start, finds what each node needs. ST_INVALID: no finite text. */
enum status program_finish(struct builder *b, node_id start, const char *field);
void program_deinit(struct program *p);
/* Takes the program. NULL: no memory, and it is freed. */
struct grammar *grammar_new(struct program *p);

#ifdef __cplusplus
}
#endif
#endif
