/* Strings by length, pattern and format; integers by bounds. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/grammar/pattern.h"
#include "coordinator/grammar/schema.h"

/* ---- strings ---- */

#define DATE                                                                                                           \
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-"         \
    "(?:0[1-9]|1[0-9]|2[0-8]))"
#define TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

/* A part of what each allows: no 29th of February, no leap seconds, addresses without quotes. */
static const struct {
    const char *name, *pattern;
} formats[] = {
    { "date", "^" DATE "$" },
    { "time", "^" TIME "$" },
    { "date-time", "^" DATE "T" TIME "$" },
    { "uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$" },
    { "email", "^[A-Za-z0-9_+-]{1,32}(?:\\.[A-Za-z0-9_+-]{1,16}){0,3}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
               "\\.){1,3}[A-Za-z]{2,12}$" },
    { "ipv4", "^(?:" BYTE "\\.){3}" BYTE "$" },
};

/* The expression that the schema asks for, or NULL; *keyword: which asks. */
static const char *pattern_of(struct compiler *c, const json_t *schema, const char **keyword)
{
    const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
    const json_t *v = pattern ? pattern : format;
    *keyword = pattern ? "pattern" : "format";
    if (!v)
        return NULL;
    if (pattern && format)
        schema_fail(c, ST_UNSUPPORTED, "format", "not supported beside pattern");
    else if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        schema_fail(c, ST_INVALID, *keyword, "must be a string");
    else if (pattern)
        return json_string_value(v);
    else
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
            if (!strcmp(formats[i].name, json_string_value(v)))
                return formats[i].pattern;
    schema_fail(c, ST_UNSUPPORTED, *keyword, "'%.40s' is not supported", json_string_value(v));
    return NULL;
}

node_id schema_string(struct compiler *c, const json_t *schema, node_id next)
{
    uint32_t min = 0, max = UINT32_MAX;
    const char *keyword;
    if (!schema_count(c, schema, "minLength", &min) || !schema_count(c, schema, "maxLength", &max))
        return NODE_NONE;
    if (min > max)
        return schema_fail(c, ST_INVALID, "minLength", "is more than maxLength");
    const char *pattern = pattern_of(c, schema, &keyword);
    if (c->b.status)
        return NODE_NONE;
    if (!pattern && !min && max == UINT32_MAX)
        return build_json(&c->b, RULE_STRING, next);
    node_id text = build_range(&c->b, '"', '"', next);
    if (pattern) {
        struct pattern_fault fault;
        text = build_pattern(&c->b, pattern, min, max, text, &fault);
        if (fault.why)
            return schema_fail(c, fault.status, keyword, "%s", fault.why);
    } else {
        text = build_repeat(&c->b, json_rule(&c->b, RULE_CHAR), NODE_NONE, min, max, text);
    }
    return build_range(&c->b, '"', '"', text);
}

/* ---- numbers ---- */

#define PLAIN_MOST  INT64_C(999999999999999)    /* of numbers without bounds */
#define DIGITS_MOST INT64_C(999999999999999999) /* of those with: 18 digits */

static const char *const bounds[] = { "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum" };

/* Narrows low .. high by one keyword. */
static bool bound_read(struct compiler *c, const json_t *schema, int which, int64_t *low, int64_t *high)
{
    const json_t *v = json_object_get(schema, bounds[which]);
    const bool lower = which < 2, beyond = which % 2;
    if (!v)
        return true;
    if (!json_is_number(v)) {
        schema_fail(c, ST_INVALID, bounds[which], "must be a number");
        return false;
    }
    const double x = json_number_value(v), nearest = lower ? ceil(x) : floor(x);
    int64_t n = json_is_integer(v)               ? json_integer_value(v)
                : nearest > (double)DIGITS_MOST  ? DIGITS_MOST + 1
                : nearest < (double)-DIGITS_MOST ? -DIGITS_MOST - 1
                                                 : (int64_t)nearest;
    const bool exact = json_is_integer(v) || nearest == x;
    n = n > DIGITS_MOST ? DIGITS_MOST + 1 : n < -DIGITS_MOST ? -DIGITS_MOST - 1 : n;
    n += beyond && exact ? (lower ? 1 : -1) : 0;
    if (lower && n > *low)
        *low = n;
    if (!lower && n < *high)
        *high = n;
    return true;
}

/* The numbers low .. high, neither below 0, without zeros before them. */
static node_id build_natural(struct builder *b, int64_t low, int64_t high, node_id next)
{
    node_id n = NODE_NONE;
    uint64_t least = 0, most = 9;
    for (uint32_t digits = 1; digits <= 18; digits++, least = most + 1, most = most * 10 + 9) {
        char from[24], to[24];
        const uint64_t first = (uint64_t)low > least ? (uint64_t)low : least,
                       last = (uint64_t)high < most ? (uint64_t)high : most;
        if (first > last)
            continue;
        snprintf(from, sizeof from, "%llu", (unsigned long long)first);
        snprintf(to, sizeof to, "%llu", (unsigned long long)last);
        const node_id some = build_between(b, (const uint8_t *)from, (const uint8_t *)to, digits, '0', '9', next);
        n = n == NODE_NONE ? some : build_split(b, n, some);
    }
    return n;
}

node_id schema_integer(struct compiler *c, const json_t *schema, node_id next)
{
    int64_t low = INT64_MIN, high = INT64_MAX;
    for (int i = 0; i < 4; i++)
        if (!bound_read(c, schema, i, &low, &high))
            return NODE_NONE;
    if (low == INT64_MIN && high == INT64_MAX)
        return build_json(&c->b, RULE_INTEGER, next);
    /* an end that is not said is where numbers without bounds end, or, if that is not beyond the other, where they can */
    if (low == INT64_MIN)
        low = high >= -PLAIN_MOST ? -PLAIN_MOST : -DIGITS_MOST;
    if (high == INT64_MAX)
        high = low <= PLAIN_MOST ? PLAIN_MOST : DIGITS_MOST;
    low = low < -DIGITS_MOST ? -DIGITS_MOST : low;
    high = high > DIGITS_MOST ? DIGITS_MOST : high;
    if (low > high)
        return schema_fail(c, ST_INVALID, json_object_get(schema, "minimum") ? "minimum" : "maximum",
                           "no integer of at most 18 digits is within the bounds");
    node_id n = NODE_NONE, negative = NODE_NONE;
    if (high >= 0)
        n = build_natural(&c->b, low > 0 ? low : 0, high, next);
    if (low < 0)
        negative = build_range(&c->b, '-', '-', build_natural(&c->b, high < 0 ? -high : 1, -low, next));
    return n == NODE_NONE ? negative : negative == NODE_NONE ? n : build_split(&c->b, n, negative);
}

node_id schema_number(struct compiler *c, const json_t *schema, node_id next)
{
    for (int i = 0; i < 4; i++)
        if (json_object_get(schema, bounds[i]))
            return schema_fail(c, ST_UNSUPPORTED, bounds[i], "supported for type 'integer' alone");
    return build_json(&c->b, RULE_NUMBER, next);
}
