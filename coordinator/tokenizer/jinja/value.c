#include "coordinator/tokenizer/jinja/value.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- failing ---- */

struct jinja_value jinja_fail(struct jinja_run *r, enum status st, const char *what, ...)
{
    char text[400];
    va_list args;
    if (!r->st) {
        va_start(args, what);
        vsnprintf(text, sizeof text, what, args);
        va_end(args);
        r->st = error_set(r->err, st, "chat template, line %u: %s", r->line, text);
    }
    return jinja_undefined("");
}

bool jinja_steps(struct jinja_run *r, size_t n)
{
    r->steps += n;
    if (!r->st && (n > JINJA_STEPS_MAX || r->steps > JINJA_STEPS_MAX))
        jinja_fail(r, ST_TOO_LARGE, "over %d steps", JINJA_STEPS_MAX);
    return !r->st;
}

void *jinja_new(struct jinja_run *r, size_t n, size_t bytes)
{
    void *p = r->st ? NULL : jinja_alloc(&r->arena, n, bytes);
    if (!p && !r->st)
        jinja_fail(r, r->arena.st, r->arena.st == ST_NO_MEMORY ? "out of memory" : "it takes more than %zu bytes",
                   r->in->memory_max);
    return p;
}

/* ---- making ---- */

struct jinja_value jinja_undefined(const char *name)
{
    return (struct jinja_value){ .kind = JINJA_UNDEFINED, .name = name };
}

struct jinja_value jinja_none(void)
{
    return (struct jinja_value){ .kind = JINJA_IS_NONE };
}

struct jinja_value jinja_bool(bool flag)
{
    return (struct jinja_value){ .kind = JINJA_IS_BOOL, .flag = flag };
}

struct jinja_value jinja_int(int64_t integer)
{
    return (struct jinja_value){ .kind = JINJA_IS_INT, .integer = integer };
}

struct jinja_value jinja_float(double real)
{
    return (struct jinja_value){ .kind = JINJA_IS_FLOAT, .real = real };
}

struct jinja_value jinja_list(struct jinja_run *r, enum jinja_kind kind, size_t cap)
{
    struct jinja_list *l = jinja_new(r, 1, sizeof *l);
    if (!l)
        return jinja_undefined("");
    if (cap > 0 && (l->items = jinja_new(r, cap, sizeof *l->items)))
        l->cap = cap;
    return (struct jinja_value){ .kind = kind, .list = l };
}

struct jinja_value jinja_dict(struct jinja_run *r, enum jinja_kind kind)
{
    struct jinja_dict *d = jinja_new(r, 1, sizeof *d);
    return d ? (struct jinja_value){ .kind = kind, .dict = d } : jinja_undefined("");
}

void jinja_list_add(struct jinja_run *r, struct jinja_value list, struct jinja_value item)
{
    if (!jinja_is_list(list) || !jinja_steps(r, 1))
        return;
    struct jinja_list *l = list.list;
    if (l->n == l->cap) {
        const size_t cap = l->cap ? l->cap * 2 : 8;
        struct jinja_value *grown = jinja_new(r, cap, sizeof *grown);
        if (!grown)
            return;
        if (l->n > 0)
            memcpy(grown, l->items, l->n * sizeof *grown);
        l->items = grown;
        l->cap = cap;
    }
    l->items[l->n++] = item;
}

static struct jinja_entry *entry_of(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key)
{
    if (!jinja_steps(r, d->n / 8 + 1))
        return NULL;
    for (size_t i = 0; i < d->n && !r->st; i++) {
        if (jinja_equal(r, d->entries[i].key, key))
            return &d->entries[i];
    }
    return NULL;
}

static void entry_add(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key, struct jinja_value value)
{
    if (d->n == d->cap) {
        const size_t cap = d->cap ? d->cap * 2 : 4;
        struct jinja_entry *grown = jinja_new(r, cap, sizeof *grown);
        if (!grown)
            return;
        if (d->n > 0)
            memcpy(grown, d->entries, d->n * sizeof *grown);
        d->entries = grown;
        d->cap = cap;
    }
    d->entries[d->n++] = (struct jinja_entry){ key, value };
}

void jinja_dict_put(struct jinja_run *r, struct jinja_value dict, struct jinja_value key, struct jinja_value value)
{
    if (!jinja_is_dict(dict))
        return;
    if (jinja_is_list(key) || jinja_is_dict(key)) {
        jinja_fail(r, ST_INVALID, "a %s cannot be a key", jinja_type_name(key));
        return;
    }
    struct jinja_entry *e = entry_of(r, dict.dict, key);
    if (e)
        e->value = value;
    else if (!r->st)
        entry_add(r, dict.dict, key, value);
}

void jinja_dict_put_name(struct jinja_run *r, struct jinja_value dict, const char *name, struct jinja_value value)
{
    jinja_dict_put(r, dict, jinja_text_of(r, name, strlen(name), false), value);
}

const struct jinja_value *jinja_dict_get(struct jinja_run *r, struct jinja_value dict, struct jinja_value key)
{
    struct jinja_entry *e = entry_of(r, dict.dict, key);
    return e ? &e->value : NULL;
}

const struct jinja_value *jinja_dict_name(struct jinja_run *r, struct jinja_value dict, const char *name, size_t bytes)
{
    struct jinja_dict *d = dict.dict;
    if (!jinja_steps(r, d->n / 8 + 1))
        return NULL;
    for (size_t i = 0; i < d->n; i++) {
        const struct jinja_value key = d->entries[i].key;
        if (key.kind == JINJA_IS_TEXT && key.text->bytes == bytes &&
            memcmp(jinja_flat(r, key.text), name, bytes) == 0 && !r->st)
            return &d->entries[i].value;
    }
    return NULL;
}

/* Keys of JSON are different from each other: they are added without looking. */
static struct jinja_value of_object(struct jinja_run *r, const json_t *json, uint32_t depth)
{
    const struct jinja_value v = jinja_dict(r, JINJA_IS_DICT);
    const char *key;
    size_t bytes;
    json_t *item;
    if (r->st)
        return v;
    json_object_keylen_foreach((json_t *)(uintptr_t)json, key, bytes, item)
    {
        entry_add(r, v.dict, jinja_text_of(r, key, bytes, true), jinja_of_json(r, item, depth + 1));
        if (r->st)
            break;
    }
    return v;
}

struct jinja_value jinja_of_json(struct jinja_run *r, const json_t *json, uint32_t depth)
{
    struct jinja_value v;
    if (depth > JINJA_NESTING_MAX)
        return jinja_fail(r, ST_INVALID, "values are nested more than %d deep", JINJA_NESTING_MAX);
    if (!jinja_steps(r, 1))
        return jinja_undefined("");
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return of_object(r, json, depth);
    case JSON_ARRAY:
        v = jinja_list(r, JINJA_IS_LIST, json_array_size(json));
        for (size_t i = 0; !r->st && i < json_array_size(json); i++)
            jinja_list_add(r, v, jinja_of_json(r, json_array_get(json, i), depth + 1));
        return v;
    case JSON_STRING:
        return jinja_text_of(r, json_string_value(json), json_string_length(json), true);
    case JSON_INTEGER:
        return jinja_int(json_integer_value(json));
    case JSON_REAL:
        return jinja_float(json_real_value(json));
    case JSON_TRUE:
    case JSON_FALSE:
        return jinja_bool(json_is_true(json));
    case JSON_NULL:
        break;
    }
    return jinja_none();
}

/* ---- asking ---- */

const char *jinja_type_name(struct jinja_value v)
{
    static const char *const names[] = { "undefined", "NoneType", "bool",      "int",  "float", "str",     "list",
                                         "tuple",     "dict",     "namespace", "loop", "macro", "function" };
    return names[v.kind];
}

bool jinja_is_dict(struct jinja_value v)
{
    return v.kind == JINJA_IS_DICT || v.kind == JINJA_IS_NAMESPACE;
}

bool jinja_is_list(struct jinja_value v)
{
    return v.kind == JINJA_IS_LIST || v.kind == JINJA_IS_TUPLE;
}

bool jinja_is_number(struct jinja_value v)
{
    return v.kind == JINJA_IS_BOOL || v.kind == JINJA_IS_INT || v.kind == JINJA_IS_FLOAT;
}

bool jinja_truth(struct jinja_value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_IS_NONE:
        return false;
    case JINJA_IS_BOOL:
        return v.flag;
    case JINJA_IS_INT:
        return v.integer != 0;
    case JINJA_IS_FLOAT:
        return v.real != 0;
    case JINJA_IS_TEXT:
        return v.text->bytes > 0;
    case JINJA_IS_LIST:
    case JINJA_IS_TUPLE:
        return v.list->n > 0;
    case JINJA_IS_DICT:
        return v.dict->n > 0;
    case JINJA_IS_NAMESPACE:
    case JINJA_IS_LOOP:
    case JINJA_IS_MACRO:
    case JINJA_IS_FUNCTION:
        break;
    }
    return true;
}

double jinja_real(struct jinja_value v)
{
    return v.kind == JINJA_IS_FLOAT ? v.real : v.kind == JINJA_IS_BOOL ? v.flag : (double)v.integer;
}

int64_t jinja_integer(struct jinja_run *r, struct jinja_value v, const char *what)
{
    if (v.kind == JINJA_IS_BOOL)
        return v.flag;
    if (v.kind == JINJA_IS_INT)
        return v.integer;
    jinja_fail(r, ST_INVALID, "%s must be an integer, not %s", what, jinja_type_name(v));
    return 0;
}

static bool numbers_equal(struct jinja_value a, struct jinja_value b)
{
    if (a.kind == JINJA_IS_FLOAT || b.kind == JINJA_IS_FLOAT)
        return jinja_real(a) == jinja_real(b);
    return (a.kind == JINJA_IS_BOOL ? a.flag : a.integer) == (b.kind == JINJA_IS_BOOL ? b.flag : b.integer);
}

static bool equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b, uint32_t depth);

static bool dicts_equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b, uint32_t depth)
{
    if (a.dict->n != b.dict->n)
        return false;
    for (size_t i = 0; i < a.dict->n && !r->st; i++) {
        const struct jinja_value *other = jinja_dict_get(r, b, a.dict->entries[i].key);
        if (!other || !equal(r, a.dict->entries[i].value, *other, depth + 1))
            return false;
    }
    return true;
}

static bool equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b, uint32_t depth)
{
    if (depth > JINJA_NESTING_MAX) {
        jinja_fail(r, ST_INVALID, "values are nested more than %d deep", JINJA_NESTING_MAX);
        return false;
    }
    if (jinja_is_number(a) && jinja_is_number(b))
        return numbers_equal(a, b);
    if (a.kind != b.kind || !jinja_steps(r, 1))
        return false;
    switch (a.kind) {
    case JINJA_UNDEFINED:
    case JINJA_IS_NONE:
        return true;
    case JINJA_IS_TEXT:
        return a.text->bytes == b.text->bytes && jinja_steps(r, a.text->bytes / 64) &&
               memcmp(jinja_flat(r, a.text), jinja_flat(r, b.text), a.text->bytes) == 0 && !r->st;
    case JINJA_IS_LIST:
    case JINJA_IS_TUPLE:
        if (a.list->n != b.list->n)
            return false;
        for (size_t i = 0; i < a.list->n; i++) {
            if (!equal(r, a.list->items[i], b.list->items[i], depth + 1))
                return false;
        }
        return true;
    case JINJA_IS_DICT:
        return dicts_equal(r, a, b, depth);
    default:
        return a.dict == b.dict;
    }
}

bool jinja_equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    return equal(r, a, b, 0);
}

int jinja_order(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    if (jinja_is_number(a) && jinja_is_number(b)) {
        const double x = jinja_real(a), y = jinja_real(b);
        if (a.kind == JINJA_IS_INT && b.kind == JINJA_IS_INT)
            return (a.integer > b.integer) - (a.integer < b.integer);
        return (x > y) - (x < y);
    }
    if (a.kind == JINJA_IS_TEXT && b.kind == JINJA_IS_TEXT) {
        const size_t n = a.text->bytes < b.text->bytes ? a.text->bytes : b.text->bytes;
        jinja_steps(r, n / 64);
        const char *x = jinja_flat(r, a.text), *y = jinja_flat(r, b.text);
        if (r->st)
            return 0;
        const int order = memcmp(x, y, n);
        return order ? (order > 0) - (order < 0) : (a.text->bytes > b.text->bytes) - (a.text->bytes < b.text->bytes);
    }
    jinja_fail(r, ST_INVALID, "%s and %s have no order", jinja_type_name(a), jinja_type_name(b));
    return 0;
}

static struct jinja_list *characters(struct jinja_run *r, struct jinja_text *t)
{
    const size_t n = jinja_points(r, t);
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, n);
    size_t at = 0;
    const char *flat = jinja_flat(r, t);
    for (size_t i = 0; i < n && !r->st; i++) {
        size_t end = at + 1;
        while (end < t->bytes && ((unsigned char)flat[end] & 0xC0) == 0x80)
            end++;
        jinja_list_add(r, list, jinja_text_part(r, t, at, end));
        at = end;
    }
    return r->st ? NULL : list.list;
}

struct jinja_list *jinja_iterate(struct jinja_run *r, struct jinja_value v)
{
    struct jinja_value list;
    switch (v.kind) {
    case JINJA_IS_LIST:
    case JINJA_IS_TUPLE:
        return r->st ? NULL : v.list;
    case JINJA_IS_TEXT:
        return characters(r, v.text);
    case JINJA_IS_DICT:
        list = jinja_list(r, JINJA_IS_LIST, v.dict->n);
        for (size_t i = 0; i < v.dict->n; i++)
            jinja_list_add(r, list, v.dict->entries[i].key);
        return r->st ? NULL : list.list;
    case JINJA_UNDEFINED:
        list = jinja_list(r, JINJA_IS_LIST, 0);
        return r->st ? NULL : list.list;
    default:
        jinja_fail(r, ST_INVALID, "'%s' object is not iterable", jinja_type_name(v));
        return NULL;
    }
}

size_t jinja_length(struct jinja_run *r, struct jinja_value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return 0;
    case JINJA_IS_LIST:
    case JINJA_IS_TUPLE:
        return v.list->n;
    case JINJA_IS_TEXT:
        return jinja_points(r, v.text);
    case JINJA_IS_DICT:
        return v.dict->n;
    default:
        jinja_fail(r, ST_INVALID, "object of type '%s' has no len()", jinja_type_name(v));
        return 0;
    }
}
