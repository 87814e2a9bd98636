#include <string.h>

#include <utf8proc.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/letters.h"
#include "coordinator/tokenizer/unicode.h"

/* Methods of Python's str and dict. */

typedef struct jinja_value method_fn(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args);

/* Argument i as a text; NULL: absent or None, or (failed) of another type. */
static struct jinja_text *text_argument(struct jinja_run *r, const struct jinja_arguments *args, size_t i,
                                        const char *name)
{
    const struct jinja_value *v = jinja_argument(args, i, name);
    if (!v || v->kind == JINJA_IS_NONE)
        return NULL;
    if (v->kind == JINJA_IS_TEXT)
        return v->text;
    jinja_fail(r, ST_INVALID, "%s must be str, not %s", name, jinja_type_name(*v));
    return NULL;
}

static struct jinja_text *needed_text(struct jinja_run *r, const struct jinja_arguments *args, size_t i,
                                      const char *name)
{
    struct jinja_text *t = text_argument(r, args, i, name);
    if (!t)
        jinja_fail(r, ST_INVALID, "argument %zu (%s) is missing", i + 1, name);
    return r->st ? NULL : t;
}

/* ---- begins, ends, finds ---- */

static bool is_at(struct jinja_run *r, struct jinja_text *t, struct jinja_text *part, bool end)
{
    if (part->bytes > t->bytes)
        return false;
    const char *flat = jinja_flat(r, t), *other = jinja_flat(r, part);
    return !r->st && memcmp(flat + (end ? t->bytes - part->bytes : 0), other, part->bytes) == 0;
}

static struct jinja_value is_at_any(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args,
                                    bool end)
{
    const struct jinja_value *of = jinja_argument(args, 0, "prefix");
    if (of && of->kind == JINJA_IS_TUPLE) {
        bool is = false;
        for (size_t i = 0; i < of->list->n && !is; i++) {
            const struct jinja_value one = of->list->items[i];
            is = one.kind == JINJA_IS_TEXT && is_at(r, v.text, one.text, end);
        }
        return jinja_bool(is);
    }
    struct jinja_text *part = needed_text(r, args, 0, "prefix");
    return jinja_bool(part && is_at(r, v.text, part, end));
}

static struct jinja_value startswith(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return is_at_any(r, v, args, false);
}

static struct jinja_value endswith(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return is_at_any(r, v, args, true);
}

static struct jinja_value remove_at(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args,
                                    bool end)
{
    struct jinja_text *part = needed_text(r, args, 0, "prefix");
    if (!part || !is_at(r, v.text, part, end))
        return v;
    return end ? jinja_text_part(r, v.text, 0, v.text->bytes - part->bytes)
               : jinja_text_part(r, v.text, part->bytes, v.text->bytes);
}

static struct jinja_value removeprefix(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return remove_at(r, v, args, false);
}

static struct jinja_value removesuffix(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return remove_at(r, v, args, true);
}

static int64_t points_before(struct jinja_run *r, struct jinja_text *t, size_t at)
{
    const struct jinja_value part = jinja_text_part(r, t, 0, at);
    return r->st ? 0 : (int64_t)jinja_points(r, part.text);
}

static struct jinja_value find(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    struct jinja_text *part = needed_text(r, args, 0, "sub");
    const size_t at = part ? jinja_find(r, v.text, 0, jinja_flat(r, part), part->bytes) : SIZE_MAX;
    return jinja_int(at == SIZE_MAX ? -1 : points_before(r, v.text, at));
}

static struct jinja_value rfind(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    struct jinja_text *part = needed_text(r, args, 0, "sub");
    size_t found = SIZE_MAX, at = part ? jinja_find(r, v.text, 0, jinja_flat(r, part), part->bytes) : SIZE_MAX;
    for (; at != SIZE_MAX && jinja_steps(r, 1); at = jinja_find(r, v.text, at + 1, jinja_flat(r, part), part->bytes))
        found = at;
    return jinja_int(found == SIZE_MAX ? -1 : points_before(r, v.text, found));
}

static struct jinja_value count(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    struct jinja_text *part = needed_text(r, args, 0, "sub");
    int64_t n = 0;
    if (part && part->bytes == 0)
        return jinja_int((int64_t)jinja_points(r, v.text) + 1);
    for (size_t at = 0; part && jinja_steps(r, 1); n++) {
        at = jinja_find(r, v.text, at, jinja_flat(r, part), part->bytes);
        if (at == SIZE_MAX)
            break;
        at += part->bytes;
    }
    return jinja_int(n);
}

/* ---- strips ---- */

static struct jinja_value strip(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return jinja_strip(r, v.text, text_argument(r, args, 0, "chars"), true, true);
}

static struct jinja_value lstrip(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return jinja_strip(r, v.text, text_argument(r, args, 0, "chars"), true, false);
}

static struct jinja_value rstrip(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    return jinja_strip(r, v.text, text_argument(r, args, 0, "chars"), false, true);
}

/* ---- splits ---- */

static int64_t split_limit(struct jinja_run *r, const struct jinja_arguments *args)
{
    const struct jinja_value *v = jinja_argument(args, 1, "maxsplit");
    const int64_t n = v ? jinja_integer(r, *v, "maxsplit") : -1;
    return n < 0 ? INT64_MAX : n;
}

/* Without a separator: words between white space. */
static struct jinja_value split_words(struct jinja_run *r, struct jinja_text *t, int64_t limit)
{
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, 0);
    struct jinja_value rest = jinja_strip(r, t, NULL, true, false);
    while (!r->st && rest.text->bytes > 0) {
        const uint8_t *p = (const uint8_t *)jinja_flat(r, rest.text), *end = p + rest.text->bytes, *at = p;
        uint32_t point;
        while (limit > 0 && at < end) {
            const uint32_t n = utf8_next(at, end, &point);
            if (text_class_of(point) == TEXT_SPACE || (point >= 0x1C && point <= 0x1F))
                break;
            at += n;
        }
        if (limit-- == 0) {
            jinja_list_add(r, list, rest);
            break;
        }
        jinja_list_add(r, list, jinja_text_part(r, rest.text, 0, (size_t)(at - p)));
        const struct jinja_value tail = jinja_text_part(r, rest.text, (size_t)(at - p), rest.text->bytes);
        if (jinja_steps(r, rest.text->n_parts))
            rest = jinja_strip(r, tail.text, NULL, true, false);
    }
    return list;
}

static struct jinja_value split(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    struct jinja_text *by = text_argument(r, args, 0, "sep");
    int64_t limit = split_limit(r, args);
    size_t from = 0;
    if (!by)
        return split_words(r, v.text, limit);
    if (by->bytes == 0)
        return jinja_fail(r, ST_INVALID, "empty separator");
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, 0);
    while (!r->st && limit-- > 0) {
        const size_t at = jinja_find(r, v.text, from, jinja_flat(r, by), by->bytes);
        if (at == SIZE_MAX)
            break;
        jinja_list_add(r, list, jinja_text_part(r, v.text, from, at));
        jinja_steps(r, v.text->n_parts);
        from = at + by->bytes;
    }
    jinja_list_add(r, list, jinja_text_part(r, v.text, from, v.text->bytes));
    return list;
}

static struct jinja_value splitlines(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, 0);
    const uint8_t *p = (const uint8_t *)jinja_flat(r, v.text), *end = p + (r->st ? 0 : v.text->bytes);
    size_t from = 0, at = 0;
    (void)args;
    while (p + at < end && jinja_steps(r, v.text->n_parts)) {
        uint32_t point;
        size_t n = utf8_next(p + at, end, &point);
        const bool ends = (point >= 0x0A && point <= 0x0D) || (point >= 0x1C && point <= 0x1E) || point == 0x85 ||
                          point == 0x2028 || point == 0x2029;
        if (ends) {
            jinja_list_add(r, list, jinja_text_part(r, v.text, from, at));
            n += point == '\r' && p + at + 1 < end && p[at + 1] == '\n';
            from = at + n;
        }
        at += n;
    }
    if (!r->st && from < v.text->bytes)
        jinja_list_add(r, list, jinja_text_part(r, v.text, from, v.text->bytes));
    return list;
}

/* ---- changes ---- */

struct jinja_value jinja_replace(struct jinja_run *r, struct jinja_text *t, struct jinja_text *old,
                                 struct jinja_text *new, int64_t limit)
{
    const struct jinja_value out = jinja_text_new(r);
    size_t from = 0, cap = 0, look = 0;
    while (!r->st && limit-- > 0) {
        const size_t at = jinja_find(r, t, look, jinja_flat(r, old), old->bytes);
        if (at == SIZE_MAX)
            break;
        jinja_text_add_text(r, out.text, &cap, jinja_text_part(r, t, from, at).text);
        if (r->st)
            break;
        jinja_text_add_text(r, out.text, &cap, new);
        jinja_steps(r, t->n_parts);
        from = at + old->bytes;
        look = from;
        if (old->bytes == 0) { /* between all characters */
            const char *flat = jinja_flat(r, t);
            for (look++; look < t->bytes && ((unsigned char)flat[look] & 0xC0) == 0x80; look++)
                ;
        }
    }
    const struct jinja_value rest = jinja_text_part(r, t, from < t->bytes ? from : t->bytes, t->bytes);
    if (!r->st)
        jinja_text_add_text(r, out.text, &cap, rest.text);
    return out;
}

static struct jinja_value replace(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    struct jinja_text *old = needed_text(r, args, 0, "old"), *new = needed_text(r, args, 1, "new");
    const struct jinja_value *n = jinja_argument(args, 2, "count");
    const int64_t limit = n ? jinja_integer(r, *n, "count") : -1;
    return r->st ? jinja_undefined("") : jinja_replace(r, v.text, old, new, limit < 0 ? INT64_MAX : limit);
}

static struct jinja_value upper(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    (void)args;
    return jinja_letters(r, v.text, JINJA_UPPER);
}

static struct jinja_value lower(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    (void)args;
    return jinja_letters(r, v.text, JINJA_LOWER);
}

static struct jinja_value title(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    (void)args;
    return jinja_letters(r, v.text, JINJA_TITLE);
}

static struct jinja_value capitalize(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    (void)args;
    return jinja_letters(r, v.text, JINJA_CAPITALIZE);
}

static struct jinja_value join(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const struct jinja_value out = jinja_text_new(r);
    const struct jinja_list *list = args->n ? jinja_iterate(r, args->list[0].value) : NULL;
    size_t cap = 0;
    if (!list)
        return jinja_fail(r, ST_INVALID, "join takes one iterable");
    for (size_t i = 0; i < list->n && !r->st; i++) {
        if (list->items[i].kind != JINJA_IS_TEXT)
            return jinja_fail(r, ST_INVALID, "sequence item %zu: expected str instance, %s found", i,
                              jinja_type_name(list->items[i]));
        if (i > 0)
            jinja_text_add_text(r, out.text, &cap, v.text);
        jinja_text_add_text(r, out.text, &cap, list->items[i].text);
    }
    return out;
}

static struct jinja_value isdigit_(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const uint8_t *p = (const uint8_t *)jinja_flat(r, v.text), *end = p + (r->st ? 0 : v.text->bytes);
    bool is = p < end;
    (void)args;
    while (p < end && is) {
        uint32_t point;
        p += utf8_next(p, end, &point);
        is = point < 0x110000 && utf8proc_category((utf8proc_int32_t)point) == UTF8PROC_CATEGORY_ND;
    }
    return jinja_bool(is);
}

/* ---- dict ---- */

static struct jinja_value items(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    (void)args;
    return jinja_items(r, v);
}

static struct jinja_value keys(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, v.dict->n);
    (void)args;
    for (size_t i = 0; i < v.dict->n && !r->st; i++)
        jinja_list_add(r, list, v.dict->entries[i].key);
    return list;
}

static struct jinja_value values(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const struct jinja_value list = jinja_list(r, JINJA_IS_LIST, v.dict->n);
    (void)args;
    for (size_t i = 0; i < v.dict->n && !r->st; i++)
        jinja_list_add(r, list, v.dict->entries[i].value);
    return list;
}

static struct jinja_value get(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)
{
    const struct jinja_value *key = jinja_argument(args, 0, "key"), *other = jinja_argument(args, 1, "default");
    if (!key)
        return jinja_fail(r, ST_INVALID, "get expected at least 1 argument, got 0");
    const struct jinja_value *found = jinja_dict_get(r, v, *key);
    return found ? *found : other ? *other : jinja_none();
}

/* ---- the table ---- */

static const struct method {
    const char *name;
    enum jinja_kind of;
    method_fn *run;
    size_t n_max;
    const char *names[3];
} methods[] = {
    { "startswith", JINJA_IS_TEXT, startswith, 1, { NULL } },
    { "endswith", JINJA_IS_TEXT, endswith, 1, { NULL } },
    { "removeprefix", JINJA_IS_TEXT, removeprefix, 1, { NULL } },
    { "removesuffix", JINJA_IS_TEXT, removesuffix, 1, { NULL } },
    { "find", JINJA_IS_TEXT, find, 1, { NULL } },
    { "rfind", JINJA_IS_TEXT, rfind, 1, { NULL } },
    { "count", JINJA_IS_TEXT, count, 1, { NULL } },
    { "strip", JINJA_IS_TEXT, strip, 1, { NULL } },
    { "lstrip", JINJA_IS_TEXT, lstrip, 1, { NULL } },
    { "rstrip", JINJA_IS_TEXT, rstrip, 1, { NULL } },
    { "split", JINJA_IS_TEXT, split, 2, { "sep", "maxsplit" } },
    { "splitlines", JINJA_IS_TEXT, splitlines, 0, { NULL } },
    { "replace", JINJA_IS_TEXT, replace, 3, { NULL } },
    { "upper", JINJA_IS_TEXT, upper, 0, { NULL } },
    { "lower", JINJA_IS_TEXT, lower, 0, { NULL } },
    { "title", JINJA_IS_TEXT, title, 0, { NULL } },
    { "capitalize", JINJA_IS_TEXT, capitalize, 0, { NULL } },
    { "join", JINJA_IS_TEXT, join, 1, { NULL } },
    { "isdecimal", JINJA_IS_TEXT, isdigit_, 0, { NULL } },
    { "items", JINJA_IS_DICT, items, 0, { NULL } },
    { "keys", JINJA_IS_DICT, keys, 0, { NULL } },
    { "values", JINJA_IS_DICT, values, 0, { NULL } },
    { "get", JINJA_IS_DICT, get, 2, { NULL } },
};

bool jinja_method_known(const char *name)
{
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        if (strcmp(methods[i].name, name) == 0)
            return true;
    }
    return false;
}

static const struct method *method_of(struct jinja_value v, const char *name)
{
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        if (methods[i].of == v.kind && strcmp(methods[i].name, name) == 0)
            return &methods[i];
    }
    return NULL;
}

bool jinja_method_of(struct jinja_value v, const char *name)
{
    return method_of(v, name) != NULL;
}

struct jinja_value jinja_method_call(struct jinja_run *r, struct jinja_value v, const char *name,
                                     const struct jinja_arguments *args)
{
    const struct method *m = method_of(v, name);
    if (v.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", v.name);
    if (!m)
        return jinja_fail(r, ST_INVALID, "'%s' object has no method '%.60s'", jinja_type_name(v), name);
    if (!jinja_arguments_check(r, args, name, m->n_max, m->names))
        return jinja_undefined("");
    return m->run(r, v, args);
}
