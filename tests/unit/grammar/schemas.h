#ifndef LONGSPAN_TESTS_UNIT_GRAMMAR_SCHEMAS_H
#define LONGSPAN_TESTS_UNIT_GRAMMAR_SCHEMAS_H

/* Schemas drawn at random, and a validator of the tests' own, which says whether a value fits one. Included once by a test program. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* strptime */
#endif
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/rng.h"

static struct rng rng = { .seed = 20 };

static const char *const names[] = { "a", "ab", "b", "name", "kind", "k\"q", "\xC3\xA9t\xC3\xA9" };

/* Expressions that mean the same to regcomp. */
static const char *const patterns[] = { "^[a-c]{2,5}$", "^(x|yz)+[0-9]?$", "^b\"?[^a-y]c$", "^\\(.{0,9}\\)$",
                                        "^$|^k*m$" };

/* As the formats are written; a validator of its own: what a printed value of such a kind looks like, read back. */
static bool fits_format(const char *format, const char *text)
{
    unsigned a, b, c, d;
    int n = 0;
    if (!strcmp(format, "ipv4"))
        return sscanf(text, "%3u.%3u.%3u.%3u%n", &a, &b, &c, &d, &n) == 4 && !text[n] && a < 256 && b < 256 &&
               c < 256 && d < 256;
    if (!strcmp(format, "uuid"))
        return strlen(text) == 36 && strspn(text, "0123456789abcdef-") == 36 && text[8] == '-' && text[23] == '-';
    if (!strcmp(format, "email"))
        return strchr(text, '@') > text && strrchr(text, '.') > strchr(text, '@') && !strpbrk(text, " \"\\");
    struct tm day = { 0 };
    const char *end = !strcmp(format, "time") ? text : strptime(text, "%Y-%m-%d", &day);
    const int asked = day.tm_mday;
    if (end && end != text && (timegm(&day), day.tm_mday != asked))
        return false;
    if (!strcmp(format, "date"))
        return end && !*end;
    if (end != text && (!end || *end++ != 'T'))
        return false;
    return sscanf(end, "%2u:%2u:%2u", &a, &b, &c) == 3 && a < 24 && b < 60 && c < 60 && strpbrk(end, "Z+-");
}

/* One of the keywords that narrow values. */
static json_t *draw_narrow(void)
{
    static const char *const formats[] = { "date", "time", "date-time", "uuid", "email", "ipv4" };
    const int low = (int)rng_below(&rng, 4000) - 2000, wide = (int)rng_below(&rng, 3000);
    switch (rng_below(&rng, 5)) {
    case 0:
        return json_pack("{s:s, s:i, s:f}", "type", "integer", "minimum", low, "maximum", low + wide + 0.5);
    case 1:
        return json_pack("{s:[s,s], s:i, s:i}", "type", "integer", "boolean", "exclusiveMinimum", low,
                         "exclusiveMaximum", low + wide + 2);
    case 2:
        return json_pack("{s:s}", "pattern", patterns[rng_below(&rng, sizeof patterns / sizeof *patterns)]);
    case 3:
        return json_pack("{s:[{s:s,s:i},{s:i},{s:i}]}", "allOf", "type", "integer", "minimum", low, "maximum",
                         low + wide, "minimum", low - 5);
    default:
        return json_pack("{s:s, s:s}", "type", "string", "format", formats[rng_below(&rng, 6)]);
    }
}

/* Kinds told apart by a member, and by type. */
static json_t *draw_one_of(json_t *a, json_t *b)
{
    return json_pack("{s:[{s:s,s:{s:{s:s},s:o},s:[s,s]},{s:s,s:{s:{s:[s,s]},s:o},s:[s]},{s:s}]}", "oneOf", "type",
                     "object", "properties", "kind", "const", "one", "a", a, "required", "kind", "a", "type", "object",
                     "properties", "kind", "enum", "two", "three", "b", b, "required", "kind", "type", "null");
}

static json_t *draw_scalar(void)
{
    if (rng_below(&rng, 3) == 0)
        return draw_narrow();
    switch (rng_below(&rng, 5)) {
    case 0:
        return json_pack("{s:s, s:i, s:i}", "type", "string", "minLength", (int)rng_below(&rng, 3), "maxLength",
                         3 + (int)rng_below(&rng, 20));
    case 1:
        return json_pack("{s:s}", "type", "integer");
    case 2:
        return json_pack("{s:[s,s]}", "type", "number", "null");
    case 3:
        return json_pack("{s:[s,i,b,n,f,{s:i}]}", "enum", "x\"\n", 12, 1, 1.5, "q", 3);
    default:
        return json_pack("{s:s, s:s}", "type", rng_below(&rng, 2) ? "boolean" : "string", "description", "d");
    }
}

static json_t *draw_schema(int depth)
{
    const uint32_t kind = depth > 3 ? 9 : rng_below(&rng, 10);
    json_t *s = json_object();
    if (kind < 4) {
        json_object_set_new(s, "type", json_string("object"));
        json_t *properties = json_object(), *required = json_array();
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (rng_below(&rng, 2))
                continue;
            json_object_set_new(properties, names[i], draw_schema(depth + 1));
            if (rng_below(&rng, 2))
                json_array_append_new(required, json_string(names[i]));
        }
        json_object_set_new(s, "properties", properties);
        json_object_set_new(s, "required", required);
        const uint32_t other = rng_below(&rng, 3);
        if (other)
            json_object_set_new(s, "additionalProperties", other == 1 ? json_false() : draw_scalar());
        return s;
    }
    if (kind < 6) {
        const int min = (int)rng_below(&rng, 3);
        json_object_set_new(s, "type", json_string("array"));
        json_object_set_new(s, "items", draw_schema(depth + 1));
        json_object_set_new(s, "minItems", json_integer(min));
        json_object_set_new(s, "maxItems", json_integer(min + (int)rng_below(&rng, 3)));
        if (rng_below(&rng, 2))
            json_object_set_new(s, "prefixItems", json_pack("[o,o]", draw_scalar(), draw_scalar()));
        return s;
    }
    json_decref(s);
    if (kind == 6 && rng_below(&rng, 2))
        return draw_one_of(draw_scalar(), draw_schema(depth + 2));
    if (kind == 6)
        return json_pack("{s:[o,o]}", "anyOf", draw_schema(depth + 1), draw_schema(depth + 1));
    if (kind == 7)
        return json_pack("{s:s}", "$ref", "#/$defs/node");
    if (kind == 8 && depth)
        return json_pack("{s:o}", "const", json_pack("[i,s,b]", 5, "\\x\xE2\x82\xAC", 0));
    return draw_scalar();
}

/* The root has a definition that refers to itself. */
static json_t *draw_root(void)
{
    json_t *root = draw_schema(0);
    json_t *node = json_pack("{s:s, s:{s:{s:s,s:i}, s:{s:[{s:s},{s:s}]}}, s:[s], s:b}", "type", "object", "properties",
                             "v", "type", "string", "maxLength", 4, "next", "anyOf", "$ref", "#/$defs/node", "type",
                             "null", "required", "v", "additionalProperties", 0);
    json_object_set_new(root, "$defs", json_pack("{s:o}", "node", node));
    if (json_object_get(root, "$ref") || json_object_get(root, "anyOf") || json_object_get(root, "oneOf"))
        json_object_set_new(root, "title", json_string("t"));
    return root;
}

/* ---- the validator ---- */

static bool fits(const json_t *root, const json_t *schema, const json_t *v);

static bool fits_type(const char *type, const json_t *v)
{
    return (!strcmp(type, "object") && json_is_object(v)) || (!strcmp(type, "array") && json_is_array(v)) ||
           (!strcmp(type, "string") && json_is_string(v)) || (!strcmp(type, "integer") && json_is_integer(v)) ||
           (!strcmp(type, "number") && json_is_number(v)) || (!strcmp(type, "boolean") && json_is_boolean(v)) ||
           (!strcmp(type, "null") && json_is_null(v));
}

static size_t characters(const json_t *v)
{
    size_t n = 0;
    for (size_t i = 0; i < json_string_length(v); i++)
        n += (json_string_value(v)[i] & 0xC0) != 0x80;
    return n;
}

static bool within(const json_t *schema, const char *least, const char *most, size_t n)
{
    const json_t *low = json_object_get(schema, least), *high = json_object_get(schema, most);
    return (!low || n >= (size_t)json_integer_value(low)) && (!high || n <= (size_t)json_integer_value(high));
}

static bool fits_object(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *other = json_object_get(schema, "additionalProperties");
    const json_t *required = json_object_get(schema, "required");
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)v, key, member)
    {
        const json_t *own = json_object_get(properties, key);
        if (own ? !fits(root, own, member) : json_is_false(other) || (other && !fits(root, other, member)))
            return false;
    }
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_object_get(v, json_string_value(json_array_get(required, i))))
            return false;
    return true;
}

static bool fits_array(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *prefix = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *s = i < json_array_size(prefix) ? json_array_get(prefix, i) : items;
        if (s && !fits(root, s, json_array_get(v, i)))
            return false;
    }
    return within(schema, "minItems", "maxItems", json_array_size(v));
}

static bool fits_bounds(const json_t *schema, double x)
{
    const json_t *k;
    return (!(k = json_object_get(schema, "minimum")) || x >= json_number_value(k)) &&
           (!(k = json_object_get(schema, "maximum")) || x <= json_number_value(k)) &&
           (!(k = json_object_get(schema, "exclusiveMinimum")) || x > json_number_value(k)) &&
           (!(k = json_object_get(schema, "exclusiveMaximum")) || x < json_number_value(k));
}

static bool fits_text(const json_t *schema, const json_t *v)
{
    const char *pattern = json_string_value(json_object_get(schema, "pattern"));
    const char *format = json_string_value(json_object_get(schema, "format"));
    bool ok = !format || fits_format(format, json_string_value(v));
    if (pattern) {
        regex_t r;
        assert_int_equal(regcomp(&r, pattern, REG_EXTENDED | REG_NOSUB), 0);
        ok = ok && !regexec(&r, json_string_value(v), 0, NULL, 0);
        regfree(&r);
    }
    return ok;
}

static bool fits(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *k;
    if (json_is_boolean(schema))
        return json_is_true(schema);
    if (json_object_get(schema, "$ref"))
        return fits(root, json_object_get(json_object_get(root, "$defs"), "node"), v);
    if ((k = json_object_get(schema, "const")) && !json_equal(k, v))
        return false;
    size_t n_fit = 0;
    for (size_t i = 0; i < json_array_size(json_object_get(schema, "oneOf")); i++)
        n_fit += fits(root, json_array_get(json_object_get(schema, "oneOf"), i), v);
    if (json_object_get(schema, "oneOf") && n_fit != 1)
        return false;
    for (size_t i = 0; i < json_array_size(json_object_get(schema, "allOf")); i++)
        if (!fits(root, json_array_get(json_object_get(schema, "allOf"), i), v))
            return false;
    bool any = !(k = json_object_get(schema, "anyOf"));
    for (size_t i = 0; i < json_array_size(k); i++)
        any = any || fits(root, json_array_get(k, i), v);
    any = any && (!(k = json_object_get(schema, "enum")) || json_array_size(k));
    bool among = !k;
    for (size_t i = 0; i < json_array_size(k); i++)
        among = among || json_equal(json_array_get(k, i), v);
    k = json_object_get(schema, "type");
    bool type = !k || (json_is_string(k) && fits_type(json_string_value(k), v));
    for (size_t i = 0; i < json_array_size(k); i++)
        type = type || fits_type(json_string_value(json_array_get(k, i)), v);
    if (!any || !among || !type)
        return false;
    return json_is_object(v)   ? fits_object(root, schema, v)
           : json_is_array(v)  ? fits_array(root, schema, v)
           : json_is_number(v) ? fits_bounds(schema, json_number_value(v))
           : json_is_string(v) ? within(schema, "minLength", "maxLength", characters(v)) && fits_text(schema, v)
                               : true;
}

#endif
