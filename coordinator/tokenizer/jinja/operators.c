#include <math.h>
#include <string.h>

#include "coordinator/tokenizer/jinja/builtin.h"
#include "coordinator/tokenizer/jinja/node.h"

/* ---- arithmetic ---- */

static struct jinja_value no_operator(struct jinja_run *r, const char *sign, struct jinja_value a, struct jinja_value b)
{
    if (a.kind == JINJA_UNDEFINED || b.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", a.kind == JINJA_UNDEFINED ? a.name : b.name);
    return jinja_fail(r, ST_INVALID, "unsupported operand types for %s: '%s' and '%s'", sign, jinja_type_name(a),
                      jinja_type_name(b));
}

static int64_t floor_mod(int64_t a, int64_t b)
{
    const int64_t m = a % b;
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

static struct jinja_value integers(struct jinja_run *r, int op, int64_t a, int64_t b)
{
    int64_t v = 1;
    bool over = false;
    if ((op == JINJA_FLOORDIV || op == JINJA_MOD) && (b == 0 || b == -1)) { /* INT64_MIN / -1 has no value */
        if (b == 0)
            return jinja_fail(r, ST_INVALID, "division by zero");
        over = op == JINJA_FLOORDIV && __builtin_sub_overflow((int64_t)0, a, &v);
        v = op == JINJA_MOD ? 0 : v;
    } else if (op == JINJA_FLOORDIV) {
        v = (a - floor_mod(a, b)) / b;
    } else if (op == JINJA_MOD) {
        v = floor_mod(a, b);
    } else if (op == JINJA_POW) {
        for (int64_t i = 0; i < b && !over && (a > 1 || a < -1); i++)
            over = __builtin_mul_overflow(v, a, &v);
        v = a == 1 || (a == -1 && b % 2 == 0) || b == 0 ? 1 : a == 0 || a == -1 ? a : v;
    } else {
        over = op == JINJA_ADD   ? __builtin_add_overflow(a, b, &v)
               : op == JINJA_SUB ? __builtin_sub_overflow(a, b, &v)
                                 : __builtin_mul_overflow(a, b, &v);
    }
    return over ? jinja_fail(r, ST_UNSUPPORTED, "an integer of more than 64 bits") : jinja_int(v);
}

static struct jinja_value numbers(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b)
{
    const double x = jinja_real(a), y = jinja_real(b);
    const bool whole = a.kind != JINJA_IS_FLOAT && b.kind != JINJA_IS_FLOAT;
    if (whole && op != JINJA_DIV && !(op == JINJA_POW && y < 0))
        return integers(r, op, jinja_integer(r, a, ""), jinja_integer(r, b, ""));
    if ((op == JINJA_DIV || op == JINJA_FLOORDIV || op == JINJA_MOD) && y == 0)
        return jinja_fail(r, ST_INVALID, "division by zero");
    switch (op) {
    case JINJA_ADD:
        return jinja_float(x + y);
    case JINJA_SUB:
        return jinja_float(x - y);
    case JINJA_MUL:
        return jinja_float(x * y);
    case JINJA_DIV:
        return jinja_float(x / y);
    case JINJA_FLOORDIV:
        return jinja_float(floor(x / y));
    case JINJA_MOD:
        return jinja_float(x - y * floor(x / y));
    default:
        return jinja_float(pow(x, y));
    }
}

static struct jinja_value list_add(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    const struct jinja_value v = jinja_list(r, a.kind, a.list->n + b.list->n);
    for (size_t i = 0; i < a.list->n && !r->st; i++)
        jinja_list_add(r, v, a.list->items[i]);
    for (size_t i = 0; i < b.list->n && !r->st; i++)
        jinja_list_add(r, v, b.list->items[i]);
    return v;
}

static struct jinja_value repeat(struct jinja_run *r, struct jinja_value v, int64_t n)
{
    size_t cap = 0;
    if (v.kind != JINJA_IS_TEXT) {
        const struct jinja_value list = jinja_list(r, v.kind, 0);
        for (int64_t i = 0; i < n && v.list->n > 0 && !r->st; i++) {
            for (size_t k = 0; k < v.list->n && !r->st; k++)
                jinja_list_add(r, list, v.list->items[k]);
        }
        return list;
    }
    const struct jinja_value text = jinja_text_new(r);
    for (int64_t i = 0; i < n && v.text->bytes > 0 && !r->st; i++)
        jinja_text_add_text(r, text.text, &cap, v.text);
    return text;
}

struct jinja_value jinja_binary(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b)
{
    static const char *const signs[] = { "+", "-", "*", "/", "//", "%", "**", "~" };
    if (r->st)
        return jinja_undefined("");
    if (op == JINJA_JOIN) {
        a = jinja_str(r, a);
        b = jinja_str(r, b);
        return r->st ? jinja_undefined("") : jinja_concat(r, a, b);
    }
    if (jinja_is_number(a) && jinja_is_number(b))
        return numbers(r, op, a, b);
    if (op == JINJA_ADD && a.kind == JINJA_IS_TEXT && b.kind == JINJA_IS_TEXT)
        return jinja_concat(r, a, b);
    if (op == JINJA_ADD && jinja_is_list(a) && a.kind == b.kind)
        return list_add(r, a, b);
    if (op == JINJA_MUL && (a.kind == JINJA_IS_TEXT || jinja_is_list(a)) && b.kind == JINJA_IS_INT)
        return repeat(r, a, b.integer);
    if (op == JINJA_MUL && (b.kind == JINJA_IS_TEXT || jinja_is_list(b)) && a.kind == JINJA_IS_INT)
        return repeat(r, b, a.integer);
    if (op == JINJA_ADD && a.kind == JINJA_IS_TEXT && b.kind != JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "can only concatenate str (not \"%s\") to str", jinja_type_name(b));
    return no_operator(r, signs[op], a, b);
}

/* ---- comparisons ---- */

static bool contains(struct jinja_run *r, struct jinja_value in, struct jinja_value v)
{
    if (in.kind == JINJA_IS_TEXT) {
        if (v.kind != JINJA_IS_TEXT) {
            jinja_fail(r, ST_INVALID, "'in <string>' requires string as left operand, not %s", jinja_type_name(v));
            return false;
        }
        return jinja_find(r, in.text, 0, jinja_flat(r, v.text), v.text->bytes) != SIZE_MAX;
    }
    if (in.kind == JINJA_IS_DICT)
        return jinja_dict_get(r, in, v) != NULL;
    const struct jinja_list *list = jinja_iterate(r, in);
    for (size_t i = 0; list && i < list->n; i++) {
        if (!jinja_steps(r, 1) || jinja_equal(r, list->items[i], v))
            return !r->st;
    }
    return false;
}

bool jinja_compare(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b)
{
    if (r->st)
        return false;
    switch (op) {
    case JINJA_EQ:
        return jinja_equal(r, a, b);
    case JINJA_NE:
        return !jinja_equal(r, a, b);
    case JINJA_IN:
        return contains(r, b, a);
    case JINJA_NOT_IN:
        return !contains(r, b, a);
    default:
        break;
    }
    if (a.kind == JINJA_UNDEFINED || b.kind == JINJA_UNDEFINED) {
        no_operator(r, "<", a, b);
        return false;
    }
    if ((a.kind == JINJA_IS_FLOAT && isnan(a.real)) || (b.kind == JINJA_IS_FLOAT && isnan(b.real)))
        return false;
    const int order = jinja_order(r, a, b);
    return op == JINJA_LT ? order < 0 : op == JINJA_LE ? order <= 0 : op == JINJA_GT ? order > 0 : order >= 0;
}

/* ---- members ---- */

static struct jinja_value at_index(struct jinja_run *r, struct jinja_value a, int64_t i)
{
    const int64_t n = (int64_t)jinja_length(r, a);
    i += i < 0 ? n : 0;
    if (r->st || i < 0 || i >= n)
        return jinja_undefined("an item outside of the list");
    if (a.kind != JINJA_IS_TEXT)
        return a.list->items[i];
    const size_t from = jinja_point_at(r, a.text, (size_t)i);
    return jinja_text_part(r, a.text, from, jinja_point_at(r, a.text, (size_t)i + 1));
}

/* Names of what is not there live as long as the run. */
static const char *name_copy(struct jinja_run *r, struct jinja_value v)
{
    const struct jinja_value text = jinja_str(r, v);
    const size_t n = r->st ? 0 : text.text->bytes < 80 ? text.text->bytes : 80;
    char *copy = jinja_new(r, n + 1, 1);
    if (!copy)
        return "";
    memcpy(copy, jinja_flat(r, text.text), n);
    return copy;
}

struct jinja_value jinja_item(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    if (r->st)
        return jinja_undefined("");
    if (a.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", a.name);
    if (jinja_is_dict(a)) {
        const struct jinja_value *found = jinja_dict_get(r, a, b);
        return found ? *found : jinja_undefined(name_copy(r, b));
    }
    if ((jinja_is_list(a) || a.kind == JINJA_IS_TEXT) && (b.kind == JINJA_IS_INT || b.kind == JINJA_IS_BOOL))
        return at_index(r, a, jinja_integer(r, b, ""));
    return jinja_undefined(name_copy(r, b));
}

static struct jinja_value loop_attribute(struct jinja_run *r, const struct jinja_loop *loop, const char *name)
{
    static const char *const names[] = { "index0", "index", "revindex0", "revindex", "length",
                                         "first",  "last",  "previtem",  "nextitem" };
    const int64_t n = (int64_t)loop->items->n, i = (int64_t)loop->i;
    const struct jinja_value values[] = {
        jinja_int(i),
        jinja_int(i + 1),
        jinja_int(n - i - 1),
        jinja_int(n - i),
        jinja_int(n),
        jinja_bool(i == 0),
        jinja_bool(i + 1 == n),
        i > 0 ? loop->items->items[i - 1] : jinja_undefined("there is no previous item"),
        i + 1 < n ? loop->items->items[i + 1] : jinja_undefined("there is no next item"),
    };
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        if (strcmp(names[k], name) == 0)
            return values[k];
    }
    return jinja_fail(r, ST_UNSUPPORTED, "loop.%.60s is not supported", name);
}

struct jinja_value jinja_attribute(struct jinja_run *r, struct jinja_value a, const char *name)
{
    if (r->st)
        return jinja_undefined("");
    if (a.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", a.name);
    if (a.kind == JINJA_IS_LOOP)
        return loop_attribute(r, a.loop, name);
    if (jinja_is_dict(a) && !jinja_method_of(a, name)) {
        const struct jinja_value *found = jinja_dict_name(r, a, name, strlen(name));
        if (found)
            return *found;
    } else if (jinja_method_of(a, name)) {
        return (struct jinja_value){ .kind = JINJA_IS_FUNCTION, .name = name };
    }
    return jinja_undefined(name);
}

/* ---- slices ---- */

/* Python's rules: negative from the end, and everything outside is cut. */
static int64_t bound(struct jinja_run *r, const struct jinja_value *v, int64_t n, bool backwards, int64_t absent)
{
    if (!v || v->kind == JINJA_IS_NONE)
        return absent;
    int64_t i = jinja_integer(r, *v, "a slice's bound");
    const int64_t low = backwards ? -1 : 0, high = backwards ? n - 1 : n;
    if (i < 0)
        i = i < -n ? low : i + n;
    return i < low ? low : i > high ? high : i;
}

struct jinja_value jinja_slice(struct jinja_run *r, struct jinja_value a, const struct jinja_value *start,
                               const struct jinja_value *stop, const struct jinja_value *step)
{
    if (r->st)
        return jinja_undefined("");
    if (a.kind == JINJA_UNDEFINED)
        return jinja_fail(r, ST_INVALID, "'%.80s' is undefined", a.name);
    if (!jinja_is_list(a) && a.kind != JINJA_IS_TEXT)
        return jinja_fail(r, ST_INVALID, "a %s has no slices", jinja_type_name(a));
    const int64_t by = step && step->kind != JINJA_IS_NONE ? jinja_integer(r, *step, "a slice's step") : 1;
    if (by == 0 || by == INT64_MIN)
        return jinja_fail(r, ST_INVALID, "slice step cannot be zero");
    const int64_t n = (int64_t)jinja_length(r, a);
    const int64_t from = bound(r, start, n, by < 0, by < 0 ? n - 1 : 0),
                  to = bound(r, stop, n, by < 0, by < 0 ? -1 : n);
    if (r->st)
        return jinja_undefined("");
    if (a.kind == JINJA_IS_TEXT && by == 1) {
        const size_t begin = jinja_point_at(r, a.text, (size_t)from);
        return from >= to ? jinja_text_new(r)
                          : jinja_text_part(r, a.text, begin, jinja_point_at(r, a.text, (size_t)to));
    }
    const struct jinja_value v = a.kind == JINJA_IS_TEXT ? jinja_text_new(r) : jinja_list(r, a.kind, 0);
    const struct jinja_list *items = jinja_iterate(r, a);
    size_t cap = 0;
    for (int64_t i = from; items && !r->st && (by > 0 ? i < to : i > to);) {
        if (a.kind == JINJA_IS_TEXT)
            jinja_text_add_text(r, v.text, &cap, items->items[i].text);
        else
            jinja_list_add(r, v, items->items[i]);
        if (__builtin_add_overflow(i, by, &i))
            break;
    }
    return v;
}
