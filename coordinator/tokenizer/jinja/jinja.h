#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_JINJA_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_JINJA_H

/*
 * Chat templates evaluated: the subset of Jinja2 that chat templates use, in the environment that the `transformers` package gives them
 * (trim_blocks, lstrip_blocks, loop controls, `generation` blocks, tojson without HTML escapes, raise_exception, strftime_now; nothing is
 * escaped). docs/api.md lists what is evaluated. Everything else is refused by name when the template is parsed.
 *
 * Templates are hostile and so is what they are applied to: sizes, nesting, steps, memory and output are bounded.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    JINJA_TEMPLATE_BYTES_MAX = 1 << 20, /* CHAT_TEMPLATE_BYTES_MAX, for those who only set one */
    JINJA_NESTING_MAX = 200,            /* of blocks and of expressions in a template; of values */
    JINJA_CALLS_MAX = 24,               /* of macros, one within the other */
    JINJA_STEPS_MAX = 1 << 24,          /* nodes evaluated, and a step for 64 bytes looked at */
};

struct json_t;
struct jinja_template;

/* text: borrowed for the call. ST_UNSUPPORTED names a construct that is not evaluated, ST_INVALID what is not Jinja; both with the line. */
enum status jinja_template_new(const char *text, size_t bytes, struct jinja_template **template_out, struct error *err);
void jinja_template_free(struct jinja_template *t);
/* The template has a name (no attribute) spelled so. */
bool jinja_template_names(const struct jinja_template *t, const char *name);

/* A variable of the template. The first that is not NULL is its value; none is. Borrowed. */
struct jinja_variable {
    const char *name;
    const struct json_t *json; /* its strings are foreign */
    const char *text;          /* not foreign */
    const bool *flag;
};

struct jinja_input {
    const struct jinja_variable *variables;
    size_t n_variables;
    const struct tm *now; /* what strftime_now shows; NULL: strftime_now is not defined */
    size_t memory_max;    /* bytes, and of the output as well */
};

/* A stretch of the output. foreign: it came from a variable's JSON, not from the template. */
struct jinja_part {
    const char *text;
    size_t bytes;
    bool foreign;
};

/* Some parts point into the JSON and the template: both must live as long. */
struct jinja_output {
    const struct jinja_part *parts;
    size_t n_parts;
    size_t bytes;
    void *memory;
};

/*
 * Thread-safe on one template. ST_INVALID: the template's own exception (its text alone), or what cannot be evaluated with these variables
 * (with the line); ST_TOO_LARGE: over the steps or memory_max; ST_NO_MEMORY.
 */
enum status jinja_render(const struct jinja_template *t, const struct jinja_input *in, struct jinja_output *out,
                         struct error *err);
/* Forgives a zeroed struct. */
void jinja_output_free(struct jinja_output *out);

#ifdef __cplusplus
}
#endif
#endif
