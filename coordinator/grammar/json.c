/* The rules of JSON (RFC 8259), with bounds: a number's digits, white space between marks. */
#include "coordinator/grammar/program.h"

#include <string.h>

enum { DIGITS_MAX = 15, EXPONENT_DIGITS_MAX = 2, INDENT_MAX = 16 };

static node_id rule_any(struct builder *b)
{
    node_id n = build_text(b, "null", NODE_RETURN);
    n = build_split(b, build_text(b, "true", NODE_RETURN), n);
    n = build_split(b, build_text(b, "false", NODE_RETURN), n);
    n = build_split(b, build_json(b, RULE_NUMBER, NODE_RETURN), n);
    n = build_split(b, build_json(b, RULE_STRING, NODE_RETURN), n);
    n = build_split(b, build_json(b, RULE_ARRAY, NODE_RETURN), n);
    return build_split(b, build_json(b, RULE_OBJECT, NODE_RETURN), n);
}

/* "", " ", or a new line and an indent. */
static node_id rule_space(struct builder *b)
{
    node_id indent = NODE_RETURN;
    for (int i = 0; i < INDENT_MAX; i++)
        indent = build_split(b, NODE_RETURN, build_range(b, ' ', ' ', indent));
    const node_id line = build_range(b, '\n', '\n', indent), one = build_range(b, ' ', ' ', NODE_RETURN);
    return build_split(b, NODE_RETURN, build_split(b, one, line));
}

static node_id rule_gap(struct builder *b)
{
    return build_split(b, NODE_RETURN, build_range(b, ' ', ' ', NODE_RETURN));
}

static node_id build_hex(struct builder *b, int n, node_id next)
{
    for (; n; n--) {
        const node_id letters = build_split(b, build_range(b, 'a', 'f', next), build_range(b, 'A', 'F', next));
        next = build_split(b, build_range(b, '0', '9', next), letters);
    }
    return next;
}

/* After a backslash. Halves of surrogate pairs are left out: characters beyond the first plane stand as themselves. */
static node_id build_escape(struct builder *b, node_id next)
{
    const node_id three = build_hex(b, 3, next), two = build_hex(b, 2, next);
    node_id u = build_split(b, build_range(b, 'd', 'd', build_range(b, '0', '7', two)),
                            build_range(b, 'D', 'D', build_range(b, '0', '7', two)));
    u = build_split(b, build_range(b, '0', '9', three), u);
    u = build_split(b, build_range(b, 'a', 'c', three), u);
    u = build_split(b, build_range(b, 'A', 'C', three), u);
    u = build_split(b, build_range(b, 'e', 'f', three), u);
    u = build_split(b, build_range(b, 'E', 'F', three), u);
    node_id n = build_range(b, 'u', 'u', u);
    for (const char *c = "\"\\/bfnrt"; *c; c++)
        n = build_split(b, build_range(b, (uint8_t)*c, (uint8_t)*c, next), n);
    return n;
}

/* Two to four bytes of UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static node_id build_wide(struct builder *b, node_id next)
{
    const node_id one = build_range(b, 0x80, 0xBF, next), two = build_range(b, 0x80, 0xBF, one);
    const node_id three = build_range(b, 0x80, 0xBF, two);
    node_id n = build_range(b, 0xC2, 0xDF, one);
    n = build_split(b, build_range(b, 0xE0, 0xE0, build_range(b, 0xA0, 0xBF, one)), n);
    n = build_split(b, build_range(b, 0xE1, 0xEC, two), n);
    n = build_split(b, build_range(b, 0xED, 0xED, build_range(b, 0x80, 0x9F, one)), n);
    n = build_split(b, build_range(b, 0xEE, 0xEF, two), n);
    n = build_split(b, build_range(b, 0xF0, 0xF0, build_range(b, 0x90, 0xBF, two)), n);
    n = build_split(b, build_range(b, 0xF1, 0xF3, three), n);
    return build_split(b, build_range(b, 0xF4, 0xF4, build_range(b, 0x80, 0x8F, two)), n);
}

node_id build_plain_char(struct builder *b, const char *but, node_id next)
{
    node_id n = build_wide(b, next);
    for (int c = ' '; c < 0x7F;) {
        int end = c;
        while (end < 0x7F && end != '"' && end != '\\' && !strchr(but, end))
            end++;
        if (end > c)
            n = build_split(b, build_range(b, (uint8_t)c, (uint8_t)(end - 1), next), n);
        c = end + 1;
    }
    return n;
}

static node_id build_char(struct builder *b, node_id next)
{
    return build_split(b, build_plain_char(b, "", next), build_range(b, '\\', '\\', build_escape(b, next)));
}

static node_id rule_string(struct builder *b)
{
    const node_id more = build_hole(b);
    build_fill(b, more, build_range(b, '"', '"', NODE_RETURN), build_char(b, more));
    return build_range(b, '"', '"', more);
}

/* At most n digits, perhaps none. */
static node_id build_digits(struct builder *b, int n, node_id next)
{
    node_id at = next;
    for (int i = 0; i < n; i++)
        at = build_split(b, next, build_range(b, '0', '9', at));
    return at;
}

static node_id build_integer(struct builder *b, node_id next)
{
    node_id n = build_range(b, '1', '9', build_digits(b, DIGITS_MAX - 1, next));
    n = build_split(b, build_range(b, '0', '0', next), n);
    return build_split(b, n, build_range(b, '-', '-', n));
}

static node_id rule_number(struct builder *b)
{
    node_id e = build_range(b, '0', '9', build_digits(b, EXPONENT_DIGITS_MAX - 1, NODE_RETURN));
    e = build_split(b, e, build_split(b, build_range(b, '+', '+', e), build_range(b, '-', '-', e)));
    e = build_split(b, build_range(b, 'e', 'e', e), build_range(b, 'E', 'E', e));
    e = build_split(b, NODE_RETURN, e);
    const node_id fraction = build_range(b, '.', '.', build_range(b, '0', '9', build_digits(b, DIGITS_MAX - 1, e)));
    return build_integer(b, build_split(b, e, fraction));
}

static node_id rule_member(struct builder *b)
{
    const node_id value = build_json(b, RULE_ANY, NODE_RETURN);
    return build_json(b, RULE_STRING, build_range(b, ':', ':', build_json(b, RULE_GAP, value)));
}

/* open, items with commas, close */
static node_id build_list(struct builder *b, char open, enum json_rule item, char close)
{
    const node_id end = build_json(b, RULE_SPACE, build_range(b, (uint8_t)close, (uint8_t)close, NODE_RETURN));
    const node_id comma = build_range(b, ',', ',', build_json(b, RULE_SPACE, NODE_RETURN));
    const node_id items = build_repeat(b, json_rule(b, item), comma, 1, UINT32_MAX, end);
    return build_range(b, (uint8_t)open, (uint8_t)open, build_split(b, end, build_json(b, RULE_SPACE, items)));
}

static node_id rule_build(struct builder *b, enum json_rule rule)
{
    switch (rule) {
    case RULE_SPACE:
        return rule_space(b);
    case RULE_GAP:
        return rule_gap(b);
    case RULE_CHAR:
        return build_char(b, NODE_RETURN);
    case RULE_STRING:
        return rule_string(b);
    case RULE_INTEGER:
        return build_integer(b, NODE_RETURN);
    case RULE_NUMBER:
        return rule_number(b);
    case RULE_MEMBER:
        return rule_member(b);
    case RULE_OBJECT:
        return build_list(b, '{', RULE_MEMBER, '}');
    case RULE_ARRAY:
        return build_list(b, '[', RULE_ANY, ']');
    default:
        return rule_any(b);
    }
}

node_id json_rule(struct builder *b, enum json_rule rule)
{
    if (b->rules[rule] == NODE_NONE) {
        /* known by its hole before it is built: rules call each other */
        b->rules[rule] = build_hole(b);
        if (b->rules[rule] == NODE_NONE)
            return NODE_NONE; /* the build has failed: nothing would stop them calling each other */
        const node_id body = rule_build(b, rule);
        build_fill(b, b->rules[rule], body, body);
    }
    return b->rules[rule];
}

node_id build_json(struct builder *b, enum json_rule rule, node_id next)
{
    return build_call(b, json_rule(b, rule), next);
}
