#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_EVAL_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_EVAL_H

/* Walking the tree. */

#include "coordinator/tokenizer/jinja/node.h"
#include "coordinator/tokenizer/jinja/value.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Names that a place sees: its own, then those of the scope around it. */
struct jinja_scope {
    struct jinja_scope *around;
    struct jinja_value names; /* a dict */
};

struct jinja_macro {
    const struct jinja_node *node; /* MACRO, or CALL_BLOCK: its body */
    struct jinja_scope *scope;     /* where it was defined */
};

struct jinja_value jinja_eval(struct jinja_run *r, const struct jinja_node *n);
/* Statements in the current scope. GO_ON also after a failure. */
enum jinja_jump { JINJA_GO_ON, JINJA_JUMP_BREAK, JINJA_JUMP_CONTINUE };
enum jinja_jump jinja_run_body(struct jinja_run *r, const struct jinja_node *body);
/* A scope within the current one, or within `around`; NULL: failed. */
struct jinja_scope *jinja_scope_new(struct jinja_run *r, struct jinja_scope *around);
/* What a body writes, as a text. */
struct jinja_value jinja_capture(struct jinja_run *r, const struct jinja_node *body);
/* node: CALL. caller: what caller() runs in it, or NULL. */
struct jinja_value jinja_call(struct jinja_run *r, const struct jinja_node *node, const struct jinja_value *caller);
/* The filters of a block's tag over a text. */
struct jinja_value jinja_apply(struct jinja_run *r, const struct jinja_node *filter, struct jinja_value v);

#ifdef __cplusplus
}
#endif
#endif
