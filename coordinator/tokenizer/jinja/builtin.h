#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_BUILTIN_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_BUILTIN_H

/* Filters, tests, methods and functions by name: what is not in these tables is refused when a template is parsed. */

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/tokenizer/jinja/value.h"

#ifdef __cplusplus
extern "C" {
#endif

struct jinja_argument {
    const char *name; /* NULL: by place */
    struct jinja_value value;
};

struct jinja_arguments {
    const struct jinja_argument *list;
    size_t n;
};

/* Argument i or of this name; NULL: not given. */
const struct jinja_value *jinja_argument(const struct jinja_arguments *args, size_t i, const char *name);
/* Fails if there are more than n_max by place, or one has a name that is not of names (ended by NULL). */
bool jinja_arguments_check(struct jinja_run *r, const struct jinja_arguments *args, const char *what, size_t n_max,
                           const char *const *names);

typedef struct jinja_value jinja_filter_fn(struct jinja_run *r, struct jinja_value v,
                                           const struct jinja_arguments *args);
typedef bool jinja_test_fn(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args);

struct jinja_filter {
    const char *name;
    jinja_filter_fn *run;
    size_t n_max;
    const char *names[5]; /* of arguments, in their places */
};

struct jinja_test {
    const char *name;
    jinja_test_fn *run;
    size_t n_arguments;
};

/* NULL: not known */
const struct jinja_filter *jinja_filter_find(const char *name);
const struct jinja_test *jinja_test_find(const char *name);
bool jinja_method_known(const char *name);
bool jinja_function_known(const char *name);

struct jinja_value jinja_filter_run(struct jinja_run *r, const struct jinja_filter *f, struct jinja_value v,
                                    const struct jinja_arguments *args);
bool jinja_test_run(struct jinja_run *r, const struct jinja_test *t, struct jinja_value v,
                    const struct jinja_arguments *args);
/* v.name(args) */
struct jinja_value jinja_method_call(struct jinja_run *r, struct jinja_value v, const char *name,
                                     const struct jinja_arguments *args);
/* The type of v has a method of this name (its methods come before members of the same name). */
bool jinja_method_of(struct jinja_value v, const char *name);
struct jinja_value jinja_function_call(struct jinja_run *r, const char *name, const struct jinja_arguments *args);

/* ---- operators.c ---- */

struct jinja_value jinja_binary(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b);
bool jinja_compare(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b);
/* a[b], a.b: undefined if there is none. */
struct jinja_value jinja_item(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
struct jinja_value jinja_attribute(struct jinja_run *r, struct jinja_value a, const char *name);
/* NULL: not given */
struct jinja_value jinja_slice(struct jinja_run *r, struct jinja_value a, const struct jinja_value *start,
                               const struct jinja_value *stop, const struct jinja_value *step);

#ifdef __cplusplus
}
#endif
#endif
