#ifndef LONGSPAN_COORDINATOR_GATEWAY_TOOLS_H
#define LONGSPAN_COORDINATOR_GATEWAY_TOOLS_H

/*
 * Tools that an answer may call: the families of models by the form in which they write calls, and what a request's tools mean for its answer.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "coordinator/grammar/grammar.h"
#include "coordinator/gateway/want.h"
#include "coordinator/tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A call is an object {"name": NAME, "arguments" or "parameters": {...}}. `mark` comes before a call, or before the list of them; `close`, if there is one,
 * after each. Models that write no mark say a call with their first byte (bare).
 */
struct tool_family {
    const char *name;
    const char *hints[2]; /* texts of its templates, all of them; NULL: no more */
    const char *not_hints[2];
    const char *mark, *close;
    bool list; /* calls are items of a list */
    bool bare;
    const char *arguments;              /* the member's name, as the model was taught */
    const char *before, *between, *end; /* around calls, as its template writes them; `before` after the mark */
    uint8_t id_characters;              /* of a call's id: its template asks for so many; 0: any number */
};

/* By the template's text. NULL: none is known to be its. */
const struct tool_family *tool_family_find(const char *template_text);

/* Counted; any thread. Not changed once it is made. */
struct tools;

/*
 * w: with tools. ST_UNSUPPORTED: a template that takes no tools, or whose family is not known; a grammar over text whose mark is a control token. ST_INVALID,
 * ST_TOO_LARGE: schemas, when the choice needs them.
 */
enum status tools_new(const struct want *w, const struct tokenizer *t, struct tools **tools_out, struct refusal *r);
struct tools *tools_ref(struct tools *t);
void tools_unref(struct tools *t);

const struct tool_family *tools_family(const struct tools *t);
bool tools_has(const struct tools *t, const char *name, size_t bytes);
/* At most one call. */
bool tools_one(const struct tools *t);
/* The control token that is the family's mark; -1: its mark is text. */
int32_t tools_mark(const struct tools *t);
/* The mark is the prompt's last token: the answer begins after it. */
bool tools_marked(const struct tools *t);

/* Does a grammar hold the answer to what w asks for: a call that is required, strict tools, or response_format beside tools? */
bool tools_held(const struct tools *t);
/* As grammar_of_schema; w as it was for tools_new. */
enum status tools_grammar(const struct tools *t, const struct want *w, struct grammar **grammar_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
