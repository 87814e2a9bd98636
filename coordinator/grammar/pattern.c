/*
 * Regular expressions (ECMA-262's, the part that is regular) to a program, for what stands between the quotes of a JSON string. First a tree, so that lengths and
 * emptiness are known; then nodes, from the end to the beginning. Complements leave control characters out, which is a subset of what the expression allows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/pattern.h"

enum { PARTS_MAX = 4096, RANGES_MAX = 8192, NESTING_MAX = 64, LENGTH_MAX = 1 << 30 };

struct range {
    uint32_t low, high;
};

enum part_kind { PART_EMPTY, PART_SET, PART_JOIN, PART_EITHER, PART_REPEAT };

struct part {
    enum part_kind kind;
    uint32_t a, b;     /* parts; of a set: ranges from .. end */
    uint32_t min, max; /* of a repeat; UINT32_MAX: any number */
    uint32_t shortest, longest;
};

struct pattern {
    struct part *parts;
    struct range *ranges;
    uint32_t n_parts, n_ranges;
    const char *at;
    uint32_t depth;
    const char *why; /* NULL: all is well */
    enum status status;
    char what[64];
};

enum { NONE = UINT32_MAX };

static uint32_t refuse(struct pattern *p, enum status st, const char *why)
{
    if (!p->why) {
        p->why = why;
        p->status = st;
    }
    return NONE;
}

/* ---- the tree ---- */

static uint32_t add_up(uint32_t a, uint32_t b)
{
    return a >= LENGTH_MAX || b >= LENGTH_MAX || a + b >= LENGTH_MAX ? (uint32_t)LENGTH_MAX : a + b;
}

static uint32_t times(uint32_t a, uint32_t n)
{
    return a && (n >= LENGTH_MAX || a >= LENGTH_MAX || (uint64_t)a * n >= LENGTH_MAX) ? (uint32_t)LENGTH_MAX : a * n;
}

static uint32_t part_new(struct pattern *p, struct part part)
{
    if (p->n_parts == PARTS_MAX)
        return refuse(p, ST_TOO_LARGE, "too long");
    p->parts[p->n_parts] = part;
    return p->n_parts++;
}

static uint32_t join(struct pattern *p, uint32_t a, uint32_t b)
{
    if (a == NONE || b == NONE)
        return NONE;
    const struct part *x = &p->parts[a], *y = &p->parts[b];
    return part_new(p, (struct part){ .kind = PART_JOIN,
                                      .a = a,
                                      .b = b,
                                      .shortest = add_up(x->shortest, y->shortest),
                                      .longest = add_up(x->longest, y->longest) });
}

static uint32_t either(struct pattern *p, uint32_t a, uint32_t b)
{
    if (a == NONE || b == NONE)
        return NONE;
    const struct part *x = &p->parts[a], *y = &p->parts[b];
    return part_new(p, (struct part){ .kind = PART_EITHER,
                                      .a = a,
                                      .b = b,
                                      .shortest = x->shortest < y->shortest ? x->shortest : y->shortest,
                                      .longest = x->longest > y->longest ? x->longest : y->longest });
}

static uint32_t repeat(struct pattern *p, uint32_t a, uint32_t min, uint32_t max)
{
    if (a == NONE)
        return NONE;
    const struct part x = p->parts[a];
    if (max == UINT32_MAX && !x.shortest)
        return refuse(p, ST_UNSUPPORTED, "any number of what may be empty is not supported");
    return part_new(p, (struct part){ .kind = PART_REPEAT,
                                      .a = a,
                                      .min = min,
                                      .max = max,
                                      .shortest = times(x.shortest, min),
                                      .longest = times(x.longest, max) });
}

/* ---- sets of characters ---- */

static void range_add(struct pattern *p, uint32_t low, uint32_t high)
{
    if (p->n_ranges == RANGES_MAX)
        refuse(p, ST_TOO_LARGE, "too many characters in classes");
    else
        p->ranges[p->n_ranges++] = (struct range){ low, high };
}

static int by_low(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* The ranges from `from` on in order, each character once. */
static void ranges_tidy(struct pattern *p, uint32_t from)
{
    uint32_t n = from;
    qsort(p->ranges + from, p->n_ranges - from, sizeof *p->ranges, by_low);
    for (uint32_t i = from; i < p->n_ranges; i++) {
        const struct range r = p->ranges[i];
        if (n > from && r.low <= p->ranges[n - 1].high + 1)
            p->ranges[n - 1].high = r.high > p->ranges[n - 1].high ? r.high : p->ranges[n - 1].high;
        else
            p->ranges[n++] = r;
    }
    p->n_ranges = n;
}

static void ranges_invert(struct pattern *p, uint32_t from)
{
    ranges_tidy(p, from);
    const uint32_t end = p->n_ranges;
    uint32_t low = ' ';
    for (uint32_t i = from; i < end; i++) {
        const struct range r = p->ranges[i];
        if (r.low > low)
            range_add(p, low, r.low - 1);
        low = r.high + 1 > low ? r.high + 1 : low;
    }
    if (low <= 0x10FFFF)
        range_add(p, low, 0x10FFFF);
    memmove(p->ranges + from, p->ranges + end, (p->n_ranges - end) * sizeof *p->ranges);
    p->n_ranges -= end - from;
}

/* \d, \w, \s and their complements. false: another letter. */
static bool class_add(struct pattern *p, char letter)
{
    static const struct range digits[] = { { '0', '9' } };
    static const struct range word[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
    static const struct range space[] = { { 9, 13 }, { ' ', ' ' } };
    const struct range *of = letter == 'd' || letter == 'D'   ? digits
                             : letter == 'w' || letter == 'W' ? word
                             : letter == 's' || letter == 'S' ? space
                                                              : NULL;
    const uint32_t n = of == digits ? 1 : of == word ? 4 : 2, from = p->n_ranges;
    if (!of)
        return false;
    for (uint32_t i = 0; i < n; i++)
        range_add(p, of[i].low, of[i].high);
    if (letter < 'a')
        ranges_invert(p, from);
    return true;
}

static uint32_t hex(struct pattern *p, int n)
{
    uint32_t value = 0;
    for (; n; n--, p->at++) {
        const char c = *p->at;
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) {
            refuse(p, ST_INVALID, "an escape lacks hexadecimal digits");
            return 0;
        }
        value = value * 16 + (uint32_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    if (value >= 0xD800 && value <= 0xDFFF)
        refuse(p, ST_UNSUPPORTED, "surrogates are not supported");
    return value;
}

/* After a backslash: one character. */
static uint32_t escaped(struct pattern *p)
{
    static const char letters[] = "nrtfv0", means[] = "\n\r\t\f\v";
    const char c = *p->at ? *p->at++ : 0;
    const char *known = c ? strchr(letters, c) : NULL;
    if (known && !(c == '0' && *p->at >= '0' && *p->at <= '9'))
        return (uint8_t)means[known - letters];
    if (c == 'x')
        return hex(p, 2);
    if (c == 'u')
        return hex(p, 4);
    if (c >= '0' && c <= '9')
        refuse(p, ST_UNSUPPORTED, "back references are not supported");
    else if (c == 'b' || c == 'B')
        refuse(p, ST_UNSUPPORTED, "word boundaries are not supported");
    else if (c == 'k')
        refuse(p, ST_UNSUPPORTED, "back references are not supported");
    else if (c == 'p' || c == 'P')
        refuse(p, ST_UNSUPPORTED, "\\p is not supported");
    else if (!c || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (uint8_t)c >= 0x80)
        refuse(p, ST_INVALID, "an escape is not known");
    return (uint8_t)c;
}

/* One character of UTF-8, which the text is known to be. */
static uint32_t character(struct pattern *p)
{
    const uint8_t c = (uint8_t)*p->at++;
    uint32_t value = c < 0x80 ? c : c < 0xE0 ? c & 0x1F : c < 0xF0 ? c & 0x0F : c & 0x07;
    for (int more = c < 0xC0 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3; more; more--)
        value = value << 6 | ((uint8_t)*p->at++ & 0x3F);
    return value;
}

/* Ranges from `from` on become a part. */
static uint32_t set_end(struct pattern *p, uint32_t from)
{
    ranges_tidy(p, from);
    if (from == p->n_ranges)
        return refuse(p, ST_INVALID, "a class is empty");
    return part_new(p, (struct part){ .kind = PART_SET, .a = from, .b = p->n_ranges, .shortest = 1, .longest = 1 });
}

/* After '[' */
static uint32_t bracket(struct pattern *p)
{
    const uint32_t from = p->n_ranges;
    const bool invert = *p->at == '^';
    p->at += invert;
    while (*p->at && *p->at != ']' && !p->why) {
        if (*p->at == '\\' && class_add(p, p->at[1])) {
            p->at += 2;
            continue;
        }
        uint32_t low = 0, high;
        if (*p->at == '\\' && p->at[1] == 'b') {
            p->at += 2;
            low = '\b';
        } else {
            low = *p->at == '\\' ? (p->at++, escaped(p)) : character(p);
        }
        high = low;
        if (*p->at == '-' && p->at[1] && p->at[1] != ']') {
            p->at++;
            if (*p->at == '\\' && p->at[1] && strchr("dDwWsS", p->at[1]))
                return refuse(p, ST_INVALID, "a range ends in a class");
            high = *p->at == '\\' ? (p->at++, escaped(p)) : character(p);
        }
        if (high < low)
            return refuse(p, ST_INVALID, "a range is out of order");
        range_add(p, low, high);
    }
    if (*p->at++ != ']')
        return refuse(p, ST_INVALID, "a class does not end");
    if (p->why)
        return NONE;
    if (invert)
        ranges_invert(p, from);
    return set_end(p, from);
}

static uint32_t one(struct pattern *p, uint32_t c)
{
    const uint32_t from = p->n_ranges;
    range_add(p, c, c);
    return p->why ? NONE : set_end(p, from);
}

static uint32_t anything_but_lines(struct pattern *p)
{
    const uint32_t from = p->n_ranges;
    range_add(p, 0x2028, 0x2029);
    ranges_invert(p, from);
    return p->why ? NONE : set_end(p, from);
}

/* ---- reading ---- */

static uint32_t alternatives(struct pattern *p, bool outermost);

static uint32_t group(struct pattern *p)
{
    if (p->at[0] == '?') {
        if (p->at[1] == '=' || p->at[1] == '!' || (p->at[1] == '<' && (p->at[2] == '=' || p->at[2] == '!')))
            return refuse(p, ST_UNSUPPORTED, "look-around is not supported");
        if (p->at[1] != ':')
            return refuse(p, ST_UNSUPPORTED, "named groups and flags are not supported");
        p->at += 2;
    }
    if (++p->depth > NESTING_MAX)
        return refuse(p, ST_TOO_LARGE, "groups are nested too deep");
    const uint32_t n = alternatives(p, false);
    p->depth--;
    if (n != NONE && *p->at++ != ')')
        return refuse(p, ST_INVALID, "a group does not end");
    return n;
}

static uint32_t atom(struct pattern *p)
{
    const char c = *p->at;
    const uint32_t from = p->n_ranges;
    switch (c) {
    case '(':
        p->at++;
        return group(p);
    case '[':
        p->at++;
        return bracket(p);
    case '.':
        p->at++;
        return anything_but_lines(p);
    case '\\':
        p->at++;
        if (*p->at && class_add(p, *p->at)) {
            p->at++;
            return p->why ? NONE : set_end(p, from);
        }
        const uint32_t value = escaped(p);
        return p->why ? NONE : one(p, value);
    case '^':
    case '$':
        return refuse(p, ST_UNSUPPORTED, "'^' and '$' are supported at the ends of an alternative alone");
    case '*':
    case '+':
    case '?':
    case '{':
        return refuse(p, ST_INVALID, "nothing to repeat");
    default:
        return one(p, character(p));
    }
}

/* {m}, {m,}, {m,n} */
static bool counts(struct pattern *p, uint32_t *min, uint32_t *max)
{
    char *end;
    const char *at = p->at + 1;
    if (*at < '0' || *at > '9')
        return false;
    unsigned long m = strtoul(at, &end, 10), n = m;
    if (*end == ',' && end[1] == '}') {
        n = UINT32_MAX;
        end++;
    } else if (*end == ',' && end[1] >= '0' && end[1] <= '9') {
        n = strtoul(end + 1, &end, 10);
    }
    if (*end != '}' || m > n || m > GRAMMAR_REPEAT_MAX || (n != UINT32_MAX && n > GRAMMAR_REPEAT_MAX))
        return false;
    p->at = end + 1;
    *min = (uint32_t)m;
    *max = (uint32_t)n;
    return true;
}

static uint32_t term(struct pattern *p)
{
    uint32_t n = atom(p), min = 0, max = UINT32_MAX;
    const char c = n == NONE ? 0 : *p->at;
    if (c == '*' || c == '+' || c == '?') {
        p->at++;
        min = c == '+';
        max = c == '?' ? 1 : UINT32_MAX;
    } else if (c != '{') {
        return n;
    } else if (!counts(p, &min, &max)) {
        return refuse(p, ST_INVALID, "a count in braces is not well formed, or too large");
    }
    p->at += *p->at == '?'; /* lazy ones allow the same texts */
    return repeat(p, n, min, max);
}

/* Any characters, where an alternative is not tied to an end of the text. */
static uint32_t around(struct pattern *p)
{
    const uint32_t from = p->n_ranges;
    range_add(p, ' ', 0x10FFFF);
    return p->why ? NONE : repeat(p, set_end(p, from), 0, UINT32_MAX);
}

static uint32_t alternative(struct pattern *p, bool outermost)
{
    bool first = outermost && *p->at == '^', last = false;
    p->at += first;
    uint32_t n = part_new(p, (struct part){ .kind = PART_EMPTY });
    if (outermost && !first)
        n = join(p, n, around(p));
    while (n != NONE && *p->at && *p->at != '|' && *p->at != ')') {
        last = outermost && *p->at == '$' && (!p->at[1] || p->at[1] == '|');
        if (last)
            p->at++;
        else
            n = join(p, n, term(p));
    }
    return outermost && !last ? join(p, n, around(p)) : n;
}

static uint32_t alternatives(struct pattern *p, bool outermost)
{
    uint32_t n = alternative(p, outermost);
    while (n != NONE && *p->at == '|') {
        p->at++;
        n = either(p, n, alternative(p, outermost));
    }
    return n;
}

/* ---- building ---- */

/* How a character stands in a JSON string, if not as itself: the escape without its backslash. */
static const char *escape_of(uint32_t c, char room[8])
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *at = c && c < 0x80 ? strchr(from, (int)c) : NULL;
    if (at)
        snprintf(room, 8, "%c", to[at - from]);
    else if (c < ' ')
        snprintf(room, 8, "u%04x", (unsigned)c);
    else
        return NULL;
    return room;
}

static node_id build_escaped(struct builder *b, const struct range *r, node_id next)
{
    node_id n = NODE_NONE;
    char room[8];
    for (uint32_t c = 0; c <= '\\'; c++) {
        const char *escape = c >= r->low && c <= r->high ? escape_of(c, room) : NULL;
        if (!escape)
            continue;
        const node_id one_more = build_text(b, escape, next);
        n = n == NODE_NONE ? one_more : build_split(b, n, one_more);
    }
    return n == NODE_NONE ? NODE_NONE : build_range(b, '\\', '\\', n);
}

static uint32_t utf8(uint32_t c, uint8_t out[4])
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    const uint32_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t heads[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    for (uint32_t i = n; i-- > 1; c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)(heads[n] | c);
    return n;
}

/* Characters that stand as themselves: none of '"', '\', those below ' '; no surrogates; in pieces of one length. */
static node_id build_plain(struct builder *b, const struct range *r, node_id next)
{
    static const struct range pieces[] = { { ' ', '!' },      { '#', '[' },       { ']', 0x7F },        { 0x80, 0x7FF },
                                           { 0x800, 0xD7FF }, { 0xE000, 0xFFFF }, { 0x10000, 0x10FFFF } };
    node_id n = NODE_NONE;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        const uint32_t low = r->low > pieces[i].low ? r->low : pieces[i].low;
        const uint32_t high = r->high < pieces[i].high ? r->high : pieces[i].high;
        uint8_t from[4], to[4];
        if (low > high)
            continue;
        const uint32_t bytes = utf8(low, from);
        utf8(high, to);
        const node_id some = build_between(b, from, to, bytes, 0x80, 0xBF, next);
        n = n == NODE_NONE ? some : build_split(b, n, some);
    }
    return n;
}

static node_id build_set(struct builder *b, const struct pattern *p, const struct part *part, node_id next)
{
    node_id n = NODE_NONE;
    for (uint32_t i = part->a; i < part->b && !b->status; i++) {
        const node_id both[] = { build_plain(b, &p->ranges[i], next), build_escaped(b, &p->ranges[i], next) };
        for (int k = 0; k < 2; k++)
            if (both[k] != NODE_NONE)
                n = n == NODE_NONE ? both[k] : build_split(b, n, both[k]);
    }
    return n;
}

static node_id build_part(struct builder *b, const struct pattern *p, uint32_t at, node_id next)
{
    const struct part *part = &p->parts[at];
    if (b->status || next == NODE_NONE)
        return NODE_NONE;
    switch (part->kind) {
    case PART_EMPTY:
        return next;
    case PART_SET:
        return build_set(b, p, part, next);
    case PART_JOIN:
        return build_part(b, p, part->a, build_part(b, p, part->b, next));
    case PART_EITHER:
        return build_split(b, build_part(b, p, part->a, next), build_part(b, p, part->b, next));
    case PART_REPEAT:
        break;
    }
    if (part->max == 1)
        return part->min ? build_part(b, p, part->a, next) : build_split(b, next, build_part(b, p, part->a, next));
    return build_repeat(b, build_part(b, p, part->a, NODE_RETURN), NODE_NONE, part->min, part->max, next);
}

node_id build_pattern(struct builder *b, const char *text, uint32_t shortest, uint32_t longest, node_id next,
                      struct pattern_fault *fault)
{
    struct pattern p = { .at = text };
    node_id n = NODE_NONE;
    p.parts = calloc(PARTS_MAX, sizeof *p.parts);
    p.ranges = calloc(RANGES_MAX, sizeof *p.ranges);
    if (!p.parts || !p.ranges) {
        refuse(&p, ST_NO_MEMORY, "out of memory");
    } else {
        const uint32_t root = alternatives(&p, true);
        if (root != NONE && *p.at)
            refuse(&p, ST_INVALID, "a ')' too many");
        else if (root != NONE &&
                 (p.parts[root].shortest < shortest || (longest < LENGTH_MAX && p.parts[root].longest > longest)))
            refuse(&p, ST_UNSUPPORTED, "not supported beside a length that it does not keep by itself");
        else if (root != NONE)
            n = build_part(b, &p, root, next);
    }
    *fault = (struct pattern_fault){ .status = p.status, .why = p.why };
    free(p.parts);
    free(p.ranges);
    return n;
}
