#ifndef LONGSPAN_COORDINATOR_GRAMMAR_SCHEMA_H
#define LONGSPAN_COORDINATOR_GRAMMAR_SCHEMA_H

/*
 * What the compilers of schemas share: schema*.c. Parts return NODE_NONE once anything has failed; the compiler's builder has the cause.
 */

#include <jansson.h>

#include "coordinator/grammar/program.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SCHEMA_PATH_BYTES = 200 };

struct compiler {
    struct builder b;
    struct program program;
    const json_t *root;           /* that references are looked up in */
    struct reference *references; /* definitions met so far */
    char path[SCHEMA_PATH_BYTES]; /* of the schema being read, for refusals */
    uint32_t depth;
    json_t *made;      /* schemas that others were merged to: a list, or NULL */
    uint32_t n_merged; /* schemas merged so far */
};

void compiler_init(struct compiler *c, const char *field, struct error *err);
/* Frees what the compiler holds. */
enum status compiler_finish(struct compiler *c, node_id start, const char *field, struct grammar **grammar_out);

/* "PATH.KEYWORD: ..."; -> NODE_NONE. The first cause stays. */
node_id schema_fail(struct compiler *c, enum status st, const char *keyword, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* What fits the schema, then next. */
node_id schema_build(struct compiler *c, const json_t *schema, node_id next);
/* Likewise; the schema is at `part`.`name` ("": no name) of the one being read. */
node_id schema_within(struct compiler *c, const char *part, const char *name, const json_t *schema, node_id next);
/* This very value, as compact JSON. */
node_id schema_value(struct compiler *c, const json_t *value, node_id next);
/* A count of 0 .. GRAMMAR_REPEAT_MAX, if the keyword is there. false: it failed. */
bool schema_count(struct compiler *c, const json_t *schema, const char *keyword, uint32_t *value);

/* Nothing but notes beside `keyword`; else false: it failed. */
bool schema_alone(struct compiler *c, const json_t *schema, const char *keyword);
/* A keyword that says nothing of what fits. */
bool schema_is_note(const char *keyword);
/* May a value be of `types`, a type or a list of types, or NULL? */
bool schema_may_be(const json_t *types, const json_t *value);
/* "#", "#/$defs/name", ...; NULL: it is not there. */
const json_t *schema_find(const struct compiler *c, const char *reference);

/* anyOf; oneOf, if no value fits two of its schemas; allOf, merged to one schema (schema_combine.c). */
node_id schema_any_of(struct compiler *c, const json_t *schema, const char *keyword, const json_t *list, node_id next);
node_id schema_all_of(struct compiler *c, const json_t *schema, node_id next);

/* What has type array, object (schema_lists.c). */
node_id schema_array(struct compiler *c, const json_t *schema, node_id next);
node_id schema_object(struct compiler *c, const json_t *schema, node_id next);
/* What has type string, integer, number (schema_values.c). */
node_id schema_string(struct compiler *c, const json_t *schema, node_id next);
node_id schema_integer(struct compiler *c, const json_t *schema, node_id next);
node_id schema_number(struct compiler *c, const json_t *schema, node_id next);

#ifdef __cplusplus
}
#endif
#endif
