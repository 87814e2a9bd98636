#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "coordinator/tokenizer/jinja/value.h"
#include "coordinator/tokenizer/unicode.h"

/* Text that is being written, as Python would show a value. */
struct show {
    struct jinja_run *r;
    struct jinja_text *to;
    size_t cap;
    const struct jinja_json_style *json; /* NULL: repr */
};

static void put(struct show *s, const char *text, size_t bytes, bool foreign)
{
    jinja_text_add(s->r, s->to, &s->cap, text, bytes, foreign);
}

/* text: of the program itself */
static void put_words(struct show *s, const char *text)
{
    put(s, text, strlen(text), false);
}

static void put_copy(struct show *s, const char *text, bool foreign)
{
    const size_t n = strlen(text);
    char *copy = jinja_new(s->r, n + 1, 1);
    if (copy) {
        memcpy(copy, text, n);
        put(s, copy, n, foreign);
    }
}

/* The shortest digits that read back as the same number, spelled as Python spells them. */
static void put_float(struct show *s, double x)
{
    char digits[40], text[64];
    int n = 1;
    if (!isfinite(x)) {
        const bool json = s->json != NULL;
        put_words(s, isnan(x) ? (json ? "NaN" : "nan")
                     : x > 0  ? (json ? "Infinity" : "inf")
                     : json   ? "-Infinity"
                              : "-inf");
        return;
    }
    for (; n <= 17; n++) {
        snprintf(digits, sizeof digits, "%.*e", n - 1, x);
        if (strtod(digits, NULL) == x)
            break;
    }
    const int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        snprintf(text, sizeof text, "%.*e", n - 1, x);
    } else {
        snprintf(text, sizeof text, "%.*f", n - 1 - exponent > 0 ? n - 1 - exponent : 0, x);
        if (!strchr(text, '.'))
            strcat(text, ".0");
    }
    put_copy(s, text, false);
}

static bool is_printable(uint32_t point)
{
    if (point < 0x80)
        return point >= 0x20 && point != 0x7F;
    switch (utf8proc_category((utf8proc_int32_t)point)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

/* The escape of a character, or "" if it stands for itself. */
static void escape_of(const struct show *s, uint32_t point, char quote, char out[16])
{
    static const char from[] = "\n\r\t\b\f", to[] = "nrtbf";
    const char *known = point < 0x80 && point ? strchr(from, (int)point) : NULL;
    *out = '\0';
    if (point == (uint32_t)quote || point == '\\')
        snprintf(out, 16, "\\%c", (char)point);
    else if (known && (s->json || known < from + 3))
        snprintf(out, 16, "\\%c", to[known - from]);
    else if (s->json && (point < 0x20 || (s->json->ascii && point > 0x7E && point < 0x10000)))
        snprintf(out, 16, "\\u%04" PRIx32, point);
    else if (s->json && s->json->ascii && point >= 0x10000)
        snprintf(out, 16, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xD800 + ((point - 0x10000) >> 10),
                 0xDC00 + ((point - 0x10000) & 0x3FF));
    else if (!s->json && !is_printable(point))
        snprintf(out, 16, point < 0x100 ? "\\x%02" PRIx32 : point < 0x10000 ? "\\u%04" PRIx32 : "\\U%08" PRIx32, point);
}

static void put_string(struct show *s, struct jinja_text *t)
{
    const uint8_t *p = (const uint8_t *)jinja_flat(s->r, t), *end = p + (s->r->st ? 0 : t->bytes), *from = p;
    const bool foreign = jinja_text_foreign(t);
    const bool single = memchr(p, '\'', (size_t)(end - p)) != NULL, twice = memchr(p, '"', (size_t)(end - p)) != NULL;
    const char quote = s->json || (single && !twice) ? '"' : '\'';
    const char quotes[2] = { quote, '\0' };
    char escape[16];
    put_copy(s, quotes, false);
    jinja_steps(s->r, (size_t)(end - p) / 16);
    while (p < end && !s->r->st) {
        uint32_t point;
        const uint32_t n = utf8_next(p, end, &point);
        escape_of(s, point, quote, escape);
        if (*escape) {
            put(s, (const char *)from, (size_t)(p - from), foreign);
            put_copy(s, escape, foreign);
            from = p + n;
        }
        p += n;
    }
    put(s, (const char *)from, (size_t)(end - from), foreign);
    put_copy(s, quotes, false);
}

static void show(struct show *s, struct jinja_value v, uint32_t depth);

static void put_line(struct show *s, uint32_t depth)
{
    if (!s->json || s->json->indent < 0)
        return;
    put_words(s, "\n");
    const int64_t n = s->json->indent * depth;
    if (n > 100000) {
        jinja_fail(s->r, ST_TOO_LARGE, "tojson: indent is too large");
        return;
    }
    static const char blanks[] = "                                                                ";
    for (int64_t left = n; left > 0; left -= 64)
        put(s, blanks, (size_t)(left < 64 ? left : 64), false);
}

static void put_separator(struct show *s, size_t i, uint32_t depth)
{
    if (i > 0)
        put_words(s, s->json ? s->json->item : ", ");
    put_line(s, depth);
}

static void show_list(struct show *s, struct jinja_value v, uint32_t depth)
{
    const bool tuple = v.kind == JINJA_IS_TUPLE && !s->json;
    put_words(s, tuple ? "(" : "[");
    for (size_t i = 0; i < v.list->n && !s->r->st; i++) {
        put_separator(s, i, depth + 1);
        show(s, v.list->items[i], depth + 1);
    }
    if (v.list->n > 0)
        put_line(s, depth);
    put_words(s, tuple ? (v.list->n == 1 ? ",)" : ")") : "]");
}

static void show_key(struct show *s, struct jinja_value key, uint32_t depth)
{
    if (!s->json || key.kind == JINJA_IS_TEXT) {
        show(s, key, depth);
    } else if (jinja_is_number(key) || key.kind == JINJA_IS_NONE) { /* JSON has no keys but texts */
        put_words(s, "\"");
        show(s, key, depth);
        put_words(s, "\"");
    } else {
        jinja_fail(s->r, ST_INVALID, "tojson: keys must be str, int, float, bool or None, not %s",
                   jinja_type_name(key));
    }
}

static void sort_entries(struct jinja_run *r, struct jinja_entry *e, struct jinja_entry *room, size_t n)
{
    if (n < 2 || r->st)
        return;
    const size_t half = n / 2;
    sort_entries(r, e, room, half);
    sort_entries(r, e + half, room, n - half);
    memcpy(room, e, n * sizeof *e);
    for (size_t i = 0, a = 0, b = half; i < n && jinja_steps(r, 1); i++) {
        const bool left = b == n || (a < half && jinja_order(r, room[a].key, room[b].key) <= 0);
        e[i] = left ? room[a++] : room[b++];
    }
}

static void show_dict(struct show *s, struct jinja_value v, uint32_t depth)
{
    const size_t n = v.dict->n;
    struct jinja_entry *entries = v.dict->entries;
    if (s->json && s->json->sort_keys && n > 1) {
        struct jinja_entry *sorted = jinja_new(s->r, n, 2 * sizeof *sorted);
        if (!sorted)
            return;
        memcpy(sorted, entries, n * sizeof *sorted);
        sort_entries(s->r, sorted, sorted + n, n);
        entries = sorted;
    }
    put_words(s, "{");
    for (size_t i = 0; i < n && !s->r->st; i++) {
        put_separator(s, i, depth + 1);
        show_key(s, entries[i].key, depth + 1);
        put_words(s, s->json ? s->json->pair : ": ");
        show(s, entries[i].value, depth + 1);
    }
    if (n > 0)
        put_line(s, depth);
    put_words(s, "}");
}

static void show(struct show *s, struct jinja_value v, uint32_t depth)
{
    char number[32];
    const bool json = s->json != NULL;
    if (depth > JINJA_NESTING_MAX)
        jinja_fail(s->r, ST_INVALID, "values are nested more than %d deep", JINJA_NESTING_MAX);
    if (!jinja_steps(s->r, 1))
        return;
    switch (v.kind) {
    case JINJA_IS_NONE:
        put_words(s, json ? "null" : "None");
        break;
    case JINJA_IS_BOOL:
        put_words(s, v.flag ? (json ? "true" : "True") : json ? "false" : "False");
        break;
    case JINJA_IS_INT:
        snprintf(number, sizeof number, "%" PRId64, v.integer);
        put_copy(s, number, false);
        break;
    case JINJA_IS_FLOAT:
        put_float(s, v.real);
        break;
    case JINJA_IS_TEXT:
        put_string(s, v.text);
        break;
    case JINJA_IS_LIST:
    case JINJA_IS_TUPLE:
        show_list(s, v, depth);
        break;
    case JINJA_IS_DICT:
        show_dict(s, v, depth);
        break;
    case JINJA_UNDEFINED:
        if (!json) {
            put_words(s, "Undefined");
            break;
        }
        jinja_fail(s->r, ST_INVALID, "tojson: '%s' is undefined", v.name);
        break;
    default:
        jinja_fail(s->r, ST_UNSUPPORTED, "a %s cannot be shown", jinja_type_name(v));
    }
}

static struct jinja_value show_new(struct jinja_run *r, struct jinja_value v, const struct jinja_json_style *json)
{
    const struct jinja_value out = jinja_text_new(r);
    if (r->st)
        return out;
    struct show s = { .r = r, .to = out.text, .json = json };
    show(&s, v, 0);
    return out;
}

struct jinja_value jinja_str(struct jinja_run *r, struct jinja_value v)
{
    if (v.kind == JINJA_IS_TEXT)
        return v;
    return v.kind == JINJA_UNDEFINED ? jinja_text_new(r) : show_new(r, v, NULL);
}

struct jinja_value jinja_to_json(struct jinja_run *r, struct jinja_value v, const struct jinja_json_style *style)
{
    return show_new(r, v, style);
}
