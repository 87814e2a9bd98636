#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_LETTERS_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_LETTERS_H

/* What filters and methods share. */

#include "coordinator/tokenizer/jinja/value.h"

#ifdef __cplusplus
extern "C" {
#endif

enum jinja_case { JINJA_UPPER, JINJA_LOWER, JINJA_TITLE, JINJA_CAPITALIZE };

/* Letters in another case, one character for one: what Python makes of more (the German sharp s) stays as it is. */
struct jinja_value jinja_letters(struct jinja_run *r, struct jinja_text *t, enum jinja_case how);
struct jinja_value jinja_replace(struct jinja_run *r, struct jinja_text *t, struct jinja_text *old,
                                 struct jinja_text *new_text, int64_t limit);
/* A list of pairs (tuples). v: a dict. */
struct jinja_value jinja_items(struct jinja_run *r, struct jinja_value v);

#ifdef __cplusplus
}
#endif
#endif
