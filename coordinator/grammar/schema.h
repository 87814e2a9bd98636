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

#ifdef __cplusplus
}
#endif
#endif
