#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/letters.h"

#define FILTER(name)                                                                                                   \
    static struct jinja_value name(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args)

/* The value as a text; after a failure an empty one that nobody may add to. */
static struct jinja_text *text_of(struct jinja_run *r, struct jinja_value v)
{
    static struct jinja_text none = { .flat = "" };
    v = jinja_str(r, v);
    return r->st ? &none : v.text;
}

static int64_t integer_argument(struct jinja_run *r, const struct jinja_arguments *args, size_t i, const char *name,
                                int64_t absent)
{
    const struct jinja_value *v = jinja_argument(args, i, name);
    return v && v->kind != JINJA_IS_NONE ? jinja_integer(r, *v, name) : absent;
}

static bool flag_argument(const struct jinja_arguments *args, size_t i, const char *name, bool absent)
{
    const struct jinja_value *v = jinja_argument(args, i, name);
    return v ? jinja_truth(*v) : absent;
}

/* ---- texts ---- */

FILTER(trim)
{
    const struct jinja_value *set = jinja_argument(args, 0, "chars");
    return jinja_strip(r, text_of(r, v), set && set->kind == JINJA_IS_TEXT ? set->text : NULL, true, true);
}

FILTER(string)
{
    (void)args;
    return jinja_str(r, v);
}

FILTER(upper)
{
    (void)args;
    return jinja_letters(r, text_of(r, v), JINJA_UPPER);
}

FILTER(lower)
{
    (void)args;
    return jinja_letters(r, text_of(r, v), JINJA_LOWER);
}

FILTER(title)
{
    (void)args;
    return jinja_letters(r, text_of(r, v), JINJA_TITLE);
}

FILTER(capitalize)
{
    (void)args;
    return jinja_letters(r, text_of(r, v), JINJA_CAPITALIZE);
}

FILTER(replace)
{
    const struct jinja_value *old = jinja_argument(args, 0, "old"), *new = jinja_argument(args, 1, "new");
    const int64_t limit = integer_argument(r, args, 2, "count", INT64_MAX);
    if (!old || !new)
        return jinja_fail(r, ST_INVALID, "replace takes two texts");
    return jinja_replace(r, text_of(r, v), text_of(r, *old), text_of(r, *new), limit);
}

/* One line after the other; blank ones are left alone unless asked. */
FILTER(indent)
{
    const struct jinja_value *width = jinja_argument(args, 0, "width");
    const bool first = flag_argument(args, 1, "first", false), blank = flag_argument(args, 2, "blank", false);
    struct jinja_text *t = text_of(r, v), *by;
    const struct jinja_value out = jinja_text_new(r);
    size_t cap = 0, from = 0;
    if (width && width->kind == JINJA_IS_TEXT) {
        by = width->text;
    } else {
        const int64_t n = integer_argument(r, args, 0, "width", 4);
        if (n < 0 || n > 1000)
            return jinja_fail(r, ST_UNSUPPORTED, "indent by %" PRId64 " is not supported", n);
        char *blanks = jinja_new(r, (size_t)n + 1, 1);
        by = text_of(r, jinja_text_of(r, blanks, blanks ? (size_t)n : 0, false));
        if (blanks)
            memset(blanks, ' ', (size_t)n);
    }
    for (size_t line = 0; !r->st && from <= t->bytes; line++) {
        const size_t end = jinja_find(r, t, from, "\n", 1), to = end == SIZE_MAX ? t->bytes : end;
        if (line > 0)
            jinja_text_add(r, out.text, &cap, "\n", 1, false);
        if (line == 0 ? first : blank || to > from)
            jinja_text_add_text(r, out.text, &cap, by);
        const struct jinja_value part = jinja_text_part(r, t, from, to);
        if (!r->st)
            jinja_text_add_text(r, out.text, &cap, part.text);
        jinja_steps(r, t->n_parts);
        from = to + 1;
    }
    return out;
}

FILTER(tojson)
{
    const struct jinja_value *indent = jinja_argument(args, 1, "indent"), *pair = jinja_argument(args, 2, "separators");
    struct jinja_json_style style = { .indent = -1, .item = ", ", .pair = ": " };
    style.ascii = flag_argument(args, 0, "ensure_ascii", false);
    style.sort_keys = flag_argument(args, 3, "sort_keys", false);
    if (indent && indent->kind != JINJA_IS_NONE) {
        style.indent = jinja_integer(r, *indent, "tojson: indent");
        style.indent = style.indent < 0 ? 0 : style.indent;
        style.item = ",";
    }
    if (pair && pair->kind != JINJA_IS_NONE) {
        char *signs[2] = { NULL };
        for (size_t i = 0; i < 2 && jinja_is_list(*pair) && pair->list->n == 2; i++) {
            const struct jinja_value one = pair->list->items[i];
            if (one.kind == JINJA_IS_TEXT && (signs[i] = jinja_new(r, one.text->bytes + 1, 1)))
                memcpy(signs[i], jinja_flat(r, one.text), one.text->bytes);
        }
        if (!signs[0] || !signs[1])
            return jinja_fail(r, ST_INVALID, "tojson: separators must be two texts");
        style.item = signs[0];
        style.pair = signs[1];
    }
    return r->st ? jinja_undefined("") : jinja_to_json(r, v, &style);
}

/* ---- numbers ---- */

static bool text_number(struct jinja_run *r, struct jinja_value v, char out[64])
{
    const struct jinja_value t = jinja_strip(r, v.text, NULL, true, true);
    if (r->st || t.text->bytes == 0 || t.text->bytes >= 64)
        return false;
    memcpy(out, jinja_flat(r, t.text), t.text->bytes);
    out[t.text->bytes] = '\0';
    return strspn(out, "0123456789+-.eE") == t.text->bytes;
}

FILTER(to_int)
{
    char digits[64], *end;
    const struct jinja_value *other = jinja_argument(args, 0, "default");
    if (v.kind == JINJA_IS_FLOAT && fabs(v.real) < 9e18)
        return jinja_int((int64_t)v.real);
    if (v.kind == JINJA_IS_INT || v.kind == JINJA_IS_BOOL)
        return jinja_int(jinja_integer(r, v, ""));
    if (v.kind == JINJA_IS_TEXT && text_number(r, v, digits)) {
        const double real = strtod(digits, &end);
        if (!*end && fabs(real) < 9e18)
            return strpbrk(digits, ".eE") ? jinja_int((int64_t)real) : jinja_int(strtoll(digits, NULL, 10));
    }
    return other ? *other : jinja_int(0);
}

FILTER(to_float)
{
    char digits[64], *end;
    const struct jinja_value *other = jinja_argument(args, 0, "default");
    if (jinja_is_number(v))
        return jinja_float(jinja_real(v));
    if (v.kind == JINJA_IS_TEXT && text_number(r, v, digits)) {
        const double real = strtod(digits, &end);
        if (!*end)
            return jinja_float(real);
    }
    return other ? *other : jinja_float(0);
}

FILTER(absolute)
{
    (void)args;
    if (v.kind == JINJA_IS_FLOAT)
        return jinja_float(fabs(v.real));
    const int64_t n = jinja_integer(r, v, "abs: the value");
    if (n == INT64_MIN)
        return jinja_fail(r, ST_UNSUPPORTED, "an integer of more than 64 bits");
    return jinja_int(n < 0 ? -n : n);
}

/* ---- lists ---- */

FILTER(length)
{
    (void)args;
    return jinja_int((int64_t)jinja_length(r, v));
}

FILTER(first)
{
    (void)args;
    const struct jinja_list *list = jinja_iterate(r, v);
    return list && list->n ? list->items[0] : jinja_undefined("the first of nothing");
}

FILTER(last)
{
    (void)args;
    const struct jinja_list *list = jinja_iterate(r, v);
    return list && list->n ? list->items[list->n - 1] : jinja_undefined("the last of nothing");
}

FILTER(to_list)
{
    (void)args;
    const struct jinja_list *list = jinja_iterate(r, v);
    const struct jinja_value out = jinja_list(r, JINJA_IS_LIST, 0);
    for (size_t i = 0; list && i < list->n && !r->st; i++)
        jinja_list_add(r, out, list->items[i]);
    return out;
}

FILTER(reverse)
{
    const struct jinja_value by = jinja_int(-1);
    if (v.kind == JINJA_IS_TEXT || jinja_is_list(v))
        return jinja_slice(r, v, NULL, NULL, &by);
    v = to_list(r, v, args);
    return r->st ? v : jinja_slice(r, v, NULL, NULL, &by);
}

/* a.b.0: members of members, as jinja2's make_attrgetter */
static struct jinja_value member(struct jinja_run *r, struct jinja_value v, struct jinja_value path)
{
    if (path.kind != JINJA_IS_TEXT)
        return jinja_item(r, v, path);
    size_t from = 0;
    while (!r->st && from <= path.text->bytes) {
        const size_t dot = jinja_find(r, path.text, from, ".", 1), to = dot == SIZE_MAX ? path.text->bytes : dot;
        const struct jinja_value name = jinja_text_part(r, path.text, from, to);
        char digits[64];
        const bool index = !r->st && text_number(r, name, digits) && strspn(digits, "0123456789") == name.text->bytes;
        v = jinja_item(r, v, index ? jinja_int(strtoll(digits, NULL, 10)) : name);
        from = to + 1;
    }
    return v;
}

FILTER(join)
{
    const struct jinja_value *by = jinja_argument(args, 0, "d"), *attribute = jinja_argument(args, 1, "attribute");
    struct jinja_text *separator = by ? text_of(r, *by) : NULL;
    const struct jinja_list *list = jinja_iterate(r, v);
    const struct jinja_value out = jinja_text_new(r);
    size_t cap = 0;
    for (size_t i = 0; list && i < list->n && !r->st; i++) {
        if (i > 0 && separator)
            jinja_text_add_text(r, out.text, &cap, separator);
        const struct jinja_value one = jinja_str(r, attribute ? member(r, list->items[i], *attribute) : list->items[i]);
        if (!r->st)
            jinja_text_add_text(r, out.text, &cap, one.text);
    }
    return out;
}

FILTER(items)
{
    (void)args;
    if (v.kind == JINJA_UNDEFINED)
        return jinja_list(r, JINJA_IS_LIST, 0);
    if (v.kind != JINJA_IS_DICT)
        return jinja_fail(r, ST_INVALID, "Can only get item pairs from a mapping.");
    return jinja_items(r, v);
}

static void sort_items(struct jinja_run *r, struct jinja_value *v, struct jinja_value *keys, struct jinja_value *room,
                       size_t n)
{
    if (n < 2 || r->st)
        return;
    const size_t half = n / 2;
    sort_items(r, v, keys, room, half);
    sort_items(r, v + half, keys + half, room, n - half);
    memcpy(room, v, n * sizeof *v);
    memcpy(room + n, keys, n * sizeof *keys);
    for (size_t i = 0, a = 0, b = half; i < n && jinja_steps(r, 1); i++) {
        const bool left = b == n || (a < half && jinja_order(r, room[n + a], room[n + b]) <= 0);
        const size_t from = left ? a++ : b++;
        v[i] = room[from];
        keys[i] = room[n + from];
    }
}

/* Sorts a new list by keys, which are texts in lower case unless cases count. */
static struct jinja_value sorted(struct jinja_run *r, struct jinja_value list, struct jinja_value *keys, bool cases,
                                 bool backwards)
{
    const size_t n = r->st ? 0 : list.list->n;
    struct jinja_value *room = jinja_new(r, n + 1, 2 * sizeof *room);
    for (size_t i = 0; i < n && !cases && !r->st; i++) {
        if (keys[i].kind == JINJA_IS_TEXT)
            keys[i] = jinja_letters(r, keys[i].text, JINJA_LOWER);
    }
    if (!r->st)
        sort_items(r, list.list->items, keys, room, n);
    const struct jinja_value by = jinja_int(-1);
    return backwards && !r->st ? jinja_slice(r, list, NULL, NULL, &by) : list;
}

FILTER(sort)
{
    const struct jinja_value *attribute = jinja_argument(args, 2, "attribute");
    const struct jinja_value list = to_list(r, v, args);
    struct jinja_value *keys = r->st ? NULL : jinja_new(r, list.list->n + 1, sizeof *keys);
    for (size_t i = 0; keys && i < list.list->n && !r->st; i++)
        keys[i] = attribute ? member(r, list.list->items[i], *attribute) : list.list->items[i];
    return sorted(r, list, keys, flag_argument(args, 1, "case_sensitive", false),
                  flag_argument(args, 0, "reverse", false));
}

FILTER(dictsort)
{
    const struct jinja_value *by = jinja_argument(args, 1, "by");
    const bool values = by && jinja_text_is(r, *by, "value");
    if (v.kind != JINJA_IS_DICT)
        return jinja_fail(r, ST_INVALID, "dictsort of a %s", jinja_type_name(v));
    const struct jinja_value list = jinja_items(r, v);
    struct jinja_value *keys = jinja_new(r, v.dict->n + 1, sizeof *keys);
    for (size_t i = 0; keys && i < v.dict->n && !r->st; i++)
        keys[i] = values ? v.dict->entries[i].value : v.dict->entries[i].key;
    return sorted(r, list, keys, flag_argument(args, 0, "case_sensitive", false),
                  flag_argument(args, 2, "reverse", false));
}

FILTER(unique)
{
    (void)args;
    const struct jinja_list *list = jinja_iterate(r, v);
    const struct jinja_value out = jinja_list(r, JINJA_IS_LIST, 0), seen = jinja_list(r, JINJA_IS_LIST, 0);
    for (size_t i = 0; list && i < list->n && !r->st; i++) {
        struct jinja_value key = list->items[i];
        if (key.kind == JINJA_IS_TEXT)
            key = jinja_letters(r, key.text, JINJA_LOWER);
        bool known = false;
        for (size_t k = 0; !r->st && k < seen.list->n && !known && jinja_steps(r, 1); k++)
            known = jinja_equal(r, seen.list->items[k], key);
        if (known || r->st)
            continue;
        jinja_list_add(r, seen, key);
        jinja_list_add(r, out, list->items[i]);
    }
    return out;
}

FILTER(sum)
{
    const struct jinja_value *attribute = jinja_argument(args, 0, "attribute"),
                             *start = jinja_argument(args, 1, "start");
    const struct jinja_list *list = jinja_iterate(r, v);
    struct jinja_value total = start ? *start : jinja_int(0);
    for (size_t i = 0; list && i < list->n && !r->st; i++)
        total = jinja_binary(r, 0, total, attribute ? member(r, list->items[i], *attribute) : list->items[i]);
    return total;
}

static struct jinja_value extreme(struct jinja_run *r, struct jinja_value v, int sign)
{
    const struct jinja_list *list = jinja_iterate(r, v);
    struct jinja_value best = jinja_undefined("the extreme of nothing");
    for (size_t i = 0; list && i < list->n && !r->st; i++) {
        if (i == 0 || jinja_order(r, list->items[i], best) * sign > 0)
            best = list->items[i];
    }
    return best;
}

FILTER(max)
{
    (void)args;
    return extreme(r, v, 1);
}

FILTER(min)
{
    (void)args;
    return extreme(r, v, -1);
}

/* ---- filters of lists by tests, and through filters ---- */

static const char *name_argument(struct jinja_run *r, struct jinja_value v, char out[64])
{
    if (v.kind != JINJA_IS_TEXT || v.text->bytes >= 64) {
        jinja_fail(r, ST_INVALID, "a name must be a str of at most 63 bytes");
        return "";
    }
    memcpy(out, jinja_flat(r, v.text), v.text->bytes);
    out[v.text->bytes] = '\0';
    return out;
}

static struct jinja_arguments rest_of(const struct jinja_arguments *args, size_t from)
{
    const size_t n = args->n > from ? args->n - from : 0;
    return (struct jinja_arguments){ .list = args->list + (args->n - n), .n = n };
}

/* Keeps the items of which a test (by default truth) says `keep`; of the items themselves, or of an attribute of theirs. */
static struct jinja_value select_by(struct jinja_run *r, struct jinja_value v, const struct jinja_arguments *args,
                                    bool by_attribute, bool keep)
{
    char name[64];
    const size_t at = by_attribute;
    if (by_attribute && (args->n == 0 || args->list[0].name))
        return jinja_fail(r, ST_INVALID, "an attribute is missing");
    const struct jinja_test *test = NULL;
    if (args->n > at) {
        test = jinja_test_find(name_argument(r, args->list[at].value, name));
        if (!test)
            return jinja_fail(r, ST_UNSUPPORTED, "the test %.60s is not supported", r->st ? "" : name);
    }
    const struct jinja_arguments rest = rest_of(args, at + 1);
    const struct jinja_list *list = jinja_iterate(r, v);
    const struct jinja_value out = jinja_list(r, JINJA_IS_LIST, 0);
    for (size_t i = 0; list && i < list->n && !r->st; i++) {
        const struct jinja_value one = by_attribute ? member(r, list->items[i], args->list[0].value) : list->items[i];
        const bool is = test ? jinja_test_run(r, test, one, &rest) : jinja_truth(one);
        if (is == keep)
            jinja_list_add(r, out, list->items[i]);
    }
    return out;
}

FILTER(select_items)
{
    return select_by(r, v, args, false, true);
}

FILTER(reject)
{
    return select_by(r, v, args, false, false);
}

FILTER(selectattr)
{
    return select_by(r, v, args, true, true);
}

FILTER(rejectattr)
{
    return select_by(r, v, args, true, false);
}

FILTER(map)
{
    char name[64];
    const struct jinja_value *attribute = jinja_argument(args, SIZE_MAX, "attribute"),
                             *other = jinja_argument(args, SIZE_MAX, "default");
    const struct jinja_filter *filter = NULL;
    if (!attribute) {
        filter = args->n ? jinja_filter_find(name_argument(r, args->list[0].value, name)) : NULL;
        if (!filter)
            return jinja_fail(r, ST_UNSUPPORTED, "map needs an attribute or a filter that is supported");
    }
    const struct jinja_arguments rest = rest_of(args, 1);
    const struct jinja_list *list = jinja_iterate(r, v);
    const struct jinja_value out = jinja_list(r, JINJA_IS_LIST, 0);
    for (size_t i = 0; list && i < list->n && !r->st; i++) {
        struct jinja_value one =
            attribute ? member(r, list->items[i], *attribute) : jinja_filter_run(r, filter, list->items[i], &rest);
        if (one.kind == JINJA_UNDEFINED && other)
            one = *other;
        jinja_list_add(r, out, one);
    }
    return out;
}

/* ---- others ---- */

FILTER(default_value)
{
    const struct jinja_value *other = jinja_argument(args, 0, "default_value");
    const bool falsy = flag_argument(args, 1, "boolean", false);
    if (v.kind != JINJA_UNDEFINED && !(falsy && !jinja_truth(v)))
        return v;
    return other ? *other : jinja_text_new(r);
}

FILTER(attribute)
{
    char name[64];
    if (args->n != 1)
        return jinja_fail(r, ST_INVALID, "attr takes one name");
    const char *text = name_argument(r, args->list[0].value, name);
    char *copy = jinja_new(r, strlen(text) + 1, 1);
    return copy ? jinja_attribute(r, v, strcpy(copy, text)) : jinja_undefined("");
}

static const struct jinja_filter filters[] = {
    { "trim", trim, 1, { "chars" } },
    { "string", string, 0, { NULL } },
    { "safe", string, 0, { NULL } }, /* nothing is escaped */
    { "upper", upper, 0, { NULL } },
    { "lower", lower, 0, { NULL } },
    { "title", title, 0, { NULL } },
    { "capitalize", capitalize, 0, { NULL } },
    { "replace", replace, 3, { "old", "new", "count" } },
    { "indent", indent, 3, { "width", "first", "blank" } },
    { "tojson", tojson, 4, { "ensure_ascii", "indent", "separators", "sort_keys" } },
    { "int", to_int, 1, { "default" } },
    { "float", to_float, 1, { "default" } },
    { "abs", absolute, 0, { NULL } },
    { "length", length, 0, { NULL } },
    { "count", length, 0, { NULL } },
    { "first", first, 0, { NULL } },
    { "last", last, 0, { NULL } },
    { "list", to_list, 0, { NULL } },
    { "reverse", reverse, 0, { NULL } },
    { "join", join, 2, { "d", "attribute" } },
    { "items", items, 0, { NULL } },
    { "sort", sort, 3, { "reverse", "case_sensitive", "attribute" } },
    { "dictsort", dictsort, 3, { "case_sensitive", "by", "reverse" } },
    { "unique", unique, 0, { NULL } },
    { "sum", sum, 2, { "attribute", "start" } },
    { "max", max, 0, { NULL } },
    { "min", min, 0, { NULL } },
    { "select", select_items, SIZE_MAX, { NULL } },
    { "reject", reject, SIZE_MAX, { NULL } },
    { "selectattr", selectattr, SIZE_MAX, { NULL } },
    { "rejectattr", rejectattr, SIZE_MAX, { NULL } },
    { "map", map, SIZE_MAX, { "attribute", "default" } },
    { "default", default_value, 2, { "default_value", "boolean" } },
    { "d", default_value, 2, { "default_value", "boolean" } },
    { "attr", attribute, 1, { NULL } },
};

const struct jinja_filter *jinja_filter_find(const char *name)
{
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++) {
        if (strcmp(filters[i].name, name) == 0)
            return &filters[i];
    }
    return NULL;
}

struct jinja_value jinja_filter_run(struct jinja_run *r, const struct jinja_filter *f, struct jinja_value v,
                                    const struct jinja_arguments *args)
{
    if (!jinja_arguments_check(r, args, f->name, f->n_max, f->names))
        return jinja_undefined("");
    return f->run(r, v, args);
}
