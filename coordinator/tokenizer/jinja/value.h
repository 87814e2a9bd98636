#ifndef LONGSPAN_COORDINATOR_TOKENIZER_JINJA_VALUE_H
#define LONGSPAN_COORDINATOR_TOKENIZER_JINJA_VALUE_H

/*
 * Values while a template runs, as Python has them. All memory is the run's arena. Texts are lists of parts that know whether they came from
 * outside, so that what a user wrote is still known as such in the output, whatever was cut from it or joined to it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "coordinator/tokenizer/jinja/arena.h"
#include "coordinator/tokenizer/jinja/jinja.h"

#ifdef __cplusplus
extern "C" {
#endif

enum jinja_kind {
    JINJA_UNDEFINED, /* name: of what is not there */
    JINJA_IS_NONE,
    JINJA_IS_BOOL,
    JINJA_IS_INT,
    JINJA_IS_FLOAT,
    JINJA_IS_TEXT,
    JINJA_IS_LIST,
    JINJA_IS_TUPLE,
    JINJA_IS_DICT,
    JINJA_IS_NAMESPACE, /* a dict that may be written to */
    JINJA_IS_LOOP,
    JINJA_IS_MACRO,
    JINJA_IS_FUNCTION, /* name */
};

struct jinja_text;
struct jinja_list;
struct jinja_dict;
struct jinja_macro;

/* The variable `loop`. */
struct jinja_loop {
    const struct jinja_list *items;
    size_t i;
};

struct jinja_value {
    enum jinja_kind kind;
    union {
        const char *name;
        bool flag;
        int64_t integer;
        double real;
        struct jinja_text *text;
        struct jinja_list *list;
        struct jinja_dict *dict;
        struct jinja_macro *macro;
        const struct jinja_loop *loop;
    };
};

/* Never changed after it is made, but flattened: the same bytes in one piece. */
struct jinja_text {
    size_t bytes;
    size_t n_parts;
    struct jinja_part *parts;
    const char *flat; /* NULL: not yet */
};

struct jinja_list {
    size_t n, cap;
    struct jinja_value *items;
};

struct jinja_entry {
    struct jinja_value key, value;
};

struct jinja_dict {
    size_t n, cap;
    struct jinja_entry *entries; /* in the order of insertion */
};

struct jinja_scope;

struct jinja_run {
    struct jinja_arena arena;
    const struct jinja_input *in;
    struct jinja_scope *scope;
    struct jinja_text *out; /* what is being written to: the output, or what a block captures */
    size_t out_cap;
    uint64_t steps;
    uint32_t line, calls;
    struct error *err;
    enum status st; /* the first failure; from then on everything yields UNDEFINED at once */
};

/* ---- failing ---- */

/* Returns UNDEFINED. what: printf; the line is put before it. */
struct jinja_value jinja_fail(struct jinja_run *r, enum status st, const char *what, ...)
    __attribute__((format(printf, 3, 4)));
/* Counts work; false: failed now or before. */
bool jinja_steps(struct jinja_run *r, size_t n);
/* Zeroed; NULL: failed. */
void *jinja_new(struct jinja_run *r, size_t n, size_t bytes);

/* ---- making (value.c) ---- */

struct jinja_value jinja_undefined(const char *name);
struct jinja_value jinja_none(void);
struct jinja_value jinja_bool(bool flag);
struct jinja_value jinja_int(int64_t integer);
struct jinja_value jinja_float(double real);
struct jinja_value jinja_list(struct jinja_run *r, enum jinja_kind kind, size_t cap);
struct jinja_value jinja_dict(struct jinja_run *r, enum jinja_kind kind);
void jinja_list_add(struct jinja_run *r, struct jinja_value list, struct jinja_value item);
/* Replaces the value of a key that is there. */
void jinja_dict_put(struct jinja_run *r, struct jinja_value dict, struct jinja_value key, struct jinja_value value);
void jinja_dict_put_name(struct jinja_run *r, struct jinja_value dict, const char *name, struct jinja_value value);
/* NULL: none */
const struct jinja_value *jinja_dict_get(struct jinja_run *r, struct jinja_value dict, struct jinja_value key);
const struct jinja_value *jinja_dict_name(struct jinja_run *r, struct jinja_value dict, const char *name, size_t bytes);
struct jinja_value jinja_of_json(struct jinja_run *r, const struct json_t *json, uint32_t depth);

/* ---- asking (value.c) ---- */

const char *jinja_type_name(struct jinja_value v); /* Python's word */
bool jinja_is_dict(struct jinja_value v);          /* also a namespace */
bool jinja_is_list(struct jinja_value v);          /* also a tuple */
bool jinja_is_number(struct jinja_value v);        /* also a bool */
bool jinja_truth(struct jinja_value v);
double jinja_real(struct jinja_value number);
/* An int or a bool; fails, naming what, for anything else. */
int64_t jinja_integer(struct jinja_run *r, struct jinja_value v, const char *what);
bool jinja_equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
/* -1, 0, 1; fails for what has no order. */
int jinja_order(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
/* What a loop goes through: a list; keys of a dict; characters of a text; nothing of UNDEFINED. Fails for anything else. */
struct jinja_list *jinja_iterate(struct jinja_run *r, struct jinja_value v);
/* Python's len; fails for what has none. */
size_t jinja_length(struct jinja_run *r, struct jinja_value v);

/* ---- texts (text.c) ---- */

struct jinja_value jinja_text_of(struct jinja_run *r, const char *text, size_t bytes, bool foreign); /* borrowed */
struct jinja_value jinja_text_copy(struct jinja_run *r, const char *text, size_t bytes, bool foreign);
/* An empty one to append to, until anything else is done with it. */
struct jinja_value jinja_text_new(struct jinja_run *r);
void jinja_text_add(struct jinja_run *r, struct jinja_text *to, size_t *cap, const char *text, size_t bytes,
                    bool foreign);
void jinja_text_add_text(struct jinja_run *r, struct jinja_text *to, size_t *cap, const struct jinja_text *from);
/* Its bytes in one piece, without a NUL; "" after a failure. */
const char *jinja_flat(struct jinja_run *r, struct jinja_text *t);
struct jinja_value jinja_text_part(struct jinja_run *r, struct jinja_text *t, size_t from, size_t to);
bool jinja_text_is(struct jinja_run *r, struct jinja_value v, const char *text);
bool jinja_text_foreign(const struct jinja_text *t); /* any of it */
struct jinja_value jinja_concat(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
/* The first place of needle in text at or after from; SIZE_MAX: none. */
size_t jinja_find(struct jinja_run *r, struct jinja_text *text, size_t from, const char *needle, size_t bytes);
/* Python's strip: of the characters of set, or (NULL) of white space. */
struct jinja_value jinja_strip(struct jinja_run *r, struct jinja_text *t, struct jinja_text *set, bool left,
                               bool right);
size_t jinja_points(struct jinja_run *r, struct jinja_text *t); /* characters */
/* The place in bytes of character i (at most their number). */
size_t jinja_point_at(struct jinja_run *r, struct jinja_text *t, size_t i);

/* ---- showing (show.c) ---- */

/* Python's str and repr. */
struct jinja_value jinja_str(struct jinja_run *r, struct jinja_value v);

struct jinja_json_style {
    int64_t indent;          /* -1: one line */
    const char *item, *pair; /* separators */
    bool sort_keys, ascii;
};
struct jinja_value jinja_to_json(struct jinja_run *r, struct jinja_value v, const struct jinja_json_style *style);

#ifdef __cplusplus
}
#endif
#endif
