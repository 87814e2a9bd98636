/* JSON schema (2020-12, the part that can be generated from left to right) to a program. What is not followed is refused by its name. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "coordinator/grammar/schema.h"

struct reference {
    const json_t *schema;
    node_id rule;
    struct reference *next;
};

node_id schema_fail(struct compiler *c, enum status st, const char *keyword, const char *format, ...)
{
    char why[160];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    if (!c->b.status)
        c->b.status = error_set(c->b.err, st, "%s%s%.60s: %s", c->path, *keyword ? "." : "", keyword, why);
    return NODE_NONE;
}

/* A part of the path is added; the length before comes back. */
static size_t path_add(struct compiler *c, const char *part, const char *name)
{
    const size_t n = strlen(c->path);
    snprintf(c->path + n, sizeof c->path - n, ".%s%s%.40s", part, *name ? "." : "", name);
    return n;
}

node_id schema_within(struct compiler *c, const char *part, const char *name, const json_t *schema, node_id next)
{
    const size_t n = path_add(c, part, name);
    const node_id node = schema_build(c, schema, next);
    c->path[n] = 0;
    return node;
}

static bool is_one_of(const char *word, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(word, words[i]))
            return true;
    return false;
}
#define IS_ONE_OF(word, words) is_one_of(word, words, sizeof(words) / sizeof *(words))

static const char *const notes[] = { "title",    "description", "default",  "examples",     "$schema", "$id",
                                     "$comment", "deprecated",  "readOnly", "writeOnly",    "$defs",   "definitions",
                                     "$anchor",  "example",     "x-order",  "discriminator" };
static const char *const followed[] = { "type",
                                        "enum",
                                        "const",
                                        "anyOf",
                                        "oneOf",
                                        "allOf",
                                        "$ref",
                                        "properties",
                                        "required",
                                        "items",
                                        "pattern",
                                        "format",
                                        "minLength",
                                        "maxLength",
                                        "minimum",
                                        "exclusiveMinimum",
                                        "maximum",
                                        "minItems",
                                        "maxItems",
                                        "prefixItems",
                                        "exclusiveMaximum",
                                        "additionalProperties" };

static bool check_keywords(struct compiler *c, const json_t *schema)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)schema, key, value)
    {
        if (!IS_ONE_OF(key, notes) && !IS_ONE_OF(key, followed)) {
            schema_fail(c, ST_UNSUPPORTED, key, "this keyword is not supported");
            return false;
        }
    }
    return true;
}

bool schema_is_note(const char *keyword)
{
    return IS_ONE_OF(keyword, notes);
}

/* Nothing but notes beside `keyword`. */
bool schema_alone(struct compiler *c, const json_t *schema, const char *keyword)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)schema, key, value)
    {
        if (strcmp(key, keyword) != 0 && !IS_ONE_OF(key, notes)) {
            schema_fail(c, ST_UNSUPPORTED, key, "not supported beside %s", keyword);
            return false;
        }
    }
    return true;
}

bool schema_count(struct compiler *c, const json_t *schema, const char *keyword, uint32_t *value)
{
    const json_t *v = json_object_get(schema, keyword);
    if (!v)
        return true;
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
        schema_fail(c, ST_INVALID, keyword, "must be an integer of 0 or more");
        return false;
    }
    if (json_integer_value(v) > GRAMMAR_REPEAT_MAX) {
        schema_fail(c, ST_TOO_LARGE, keyword, "at most %d", GRAMMAR_REPEAT_MAX);
        return false;
    }
    *value = (uint32_t)json_integer_value(v);
    return true;
}

/* ---- values as they are ---- */

static bool is_type(const json_t *value, const char *type)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return !strcmp(type, "object");
    case JSON_ARRAY:
        return !strcmp(type, "array");
    case JSON_STRING:
        return !strcmp(type, "string");
    case JSON_INTEGER:
        return !strcmp(type, "integer") || !strcmp(type, "number");
    case JSON_REAL:
        return !strcmp(type, "number");
    case JSON_NULL:
        return !strcmp(type, "null");
    default:
        return !strcmp(type, "boolean");
    }
}

bool schema_may_be(const json_t *types, const json_t *value)
{
    if (!types)
        return true;
    if (json_is_string(types))
        return is_type(value, json_string_value(types));
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && is_type(value, type))
            return true;
    }
    return false;
}

node_id schema_value(struct compiler *c, const json_t *value, node_id next)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!text)
        return schema_fail(c, ST_NO_MEMORY, "", "out of memory");
    const node_id n = build_text(&c->b, text, next);
    free(text);
    return n;
}

/* const and enum; nothing else is looked at, so nothing else may narrow them. */
static node_id build_values(struct compiler *c, const json_t *schema, node_id next)
{
    static const char *const beside[] = { "type", "const", "enum" };
    const json_t *values = json_object_get(schema, "enum"), *only = json_object_get(schema, "const");
    const size_t n_values = only ? 1 : json_array_size(values);
    const char *key, *keyword = only ? "const" : "enum";
    json_t *value;
    bool among = !values;
    node_id n = NODE_NONE;
    json_object_foreach((json_t *)schema, key, value)
    {
        if (!IS_ONE_OF(key, notes) && !IS_ONE_OF(key, beside))
            return schema_fail(c, ST_UNSUPPORTED, key, "not supported beside %s", keyword);
    }
    if (values && (!json_is_array(values) || !json_array_size(values)))
        return schema_fail(c, ST_INVALID, "enum", "must be a list of values");
    for (size_t i = 0; only && i < json_array_size(values); i++)
        among = among || json_equal(json_array_get(values, i), only);
    if (only && !among)
        return schema_fail(c, ST_INVALID, "const", "is not in enum");
    for (size_t i = 0; i < n_values; i++) {
        const json_t *v = only ? only : json_array_get(values, i);
        const node_id one =
            schema_may_be(json_object_get(schema, "type"), v) ? schema_value(c, v, next) : (node_id)NODE_NONE;
        if (c->b.status)
            return NODE_NONE;
        if (one != NODE_NONE)
            n = n == NODE_NONE ? one : build_split(&c->b, n, one);
    }
    return n == NODE_NONE ? schema_fail(c, ST_INVALID, keyword, only ? "is not of the type" : "no value is of the type")
                          : n;
}

/* ---- schemas ---- */

static node_id build_type(struct compiler *c, const json_t *schema, const char *type, node_id next)
{
    struct builder *b = &c->b;
    if (!strcmp(type, "object"))
        return schema_object(c, schema, next);
    if (!strcmp(type, "array"))
        return schema_array(c, schema, next);
    if (!strcmp(type, "string"))
        return schema_string(c, schema, next);
    if (!strcmp(type, "integer"))
        return schema_integer(c, schema, next);
    if (!strcmp(type, "number"))
        return schema_number(c, schema, next);
    if (!strcmp(type, "null"))
        return build_text(b, "null", next);
    if (!strcmp(type, "boolean"))
        return build_split(b, build_text(b, "true", next), build_text(b, "false", next));
    return schema_fail(c, ST_INVALID, "type", "'%.40s' is no type", type);
}

static node_id build_types(struct compiler *c, const json_t *schema, const json_t *types, node_id next)
{
    if (json_is_string(types))
        return build_type(c, schema, json_string_value(types), next);
    if (!json_is_array(types) || !json_array_size(types) || json_array_size(types) > 7)
        return schema_fail(c, ST_INVALID, "type", "must be a type or a list of types");
    node_id n = NODE_NONE;
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        const node_id one = type ? build_type(c, schema, type, next)
                                 : schema_fail(c, ST_INVALID, "type", "must be a type or a list of types");
        if (one == NODE_NONE)
            return NODE_NONE;
        n = n == NODE_NONE ? one : build_split(&c->b, n, one);
    }
    return n;
}

/* What a schema without a type can only mean to be generated as. */
static const char *implied_type(const json_t *schema)
{
    static const struct {
        const char *keyword, *type;
    } implied[] = { { "properties", "object" },
                    { "required", "object" },
                    { "additionalProperties", "object" },
                    { "items", "array" },
                    { "prefixItems", "array" },
                    { "minItems", "array" },
                    { "maxItems", "array" },
                    { "minLength", "string" },
                    { "maxLength", "string" },
                    { "pattern", "string" },
                    { "format", "string" },
                    { "minimum", "integer" },
                    { "maximum", "integer" },
                    { "exclusiveMinimum", "integer" },
                    { "exclusiveMaximum", "integer" } };
    for (size_t i = 0; i < sizeof implied / sizeof *implied; i++)
        if (json_object_get(schema, implied[i].keyword))
            return implied[i].type;
    return NULL;
}

/* "#", "#/$defs/name", ...: a JSON pointer into the schema. */
const json_t *schema_find(const struct compiler *c, const char *to)
{
    const json_t *at = c->root;
    if (*to++ != '#')
        return NULL;
    while (at && *to == '/') {
        char name[256];
        size_t n = 0;
        for (to++; *to && *to != '/'; to++) {
            if (n + 1 >= sizeof name)
                return NULL;
            const bool escape = *to == '~' && (to[1] == '0' || to[1] == '1');
            name[n++] = escape ? (to[1] == '0' ? '~' : '/') : *to;
            to += escape;
        }
        name[n] = 0;
        at = json_is_array(at) ? json_array_get(at, strtoul(name, NULL, 10)) : json_object_get(at, name);
    }
    return *to ? NULL : at;
}

static node_id build_reference(struct compiler *c, const json_t *schema, const json_t *to, node_id next)
{
    if (!json_is_string(to))
        return schema_fail(c, ST_INVALID, "$ref", "must be a string");
    if (!schema_alone(c, schema, "$ref"))
        return NODE_NONE;
    const json_t *target = schema_find(c, json_string_value(to));
    if (!target)
        return schema_fail(c, ST_INVALID, "$ref", "'%.60s' is not in this schema", json_string_value(to));
    for (const struct reference *r = c->references; r; r = r->next)
        if (r->schema == target)
            return build_call(&c->b, r->rule, next);
    struct reference *r = calloc(1, sizeof *r);
    if (!r)
        return schema_fail(c, ST_NO_MEMORY, "", "out of memory");
    *r = (struct reference){ .schema = target, .rule = build_hole(&c->b), .next = c->references };
    c->references = r;
    const node_id body = schema_build(c, target, NODE_RETURN);
    build_fill(&c->b, r->rule, body, body);
    return build_call(&c->b, r->rule, body == NODE_NONE ? NODE_NONE : next);
}

static node_id build_keywords(struct compiler *c, const json_t *schema, node_id next)
{
    const json_t *v;
    if (json_object_get(schema, "allOf"))
        return schema_all_of(c, schema, next);
    if ((v = json_object_get(schema, "$ref")))
        return build_reference(c, schema, v, next);
    if ((v = json_object_get(schema, "anyOf")))
        return schema_any_of(c, schema, "anyOf", v, next);
    if ((v = json_object_get(schema, "oneOf")))
        return schema_any_of(c, schema, "oneOf", v, next);
    if (json_object_get(schema, "const") || json_object_get(schema, "enum"))
        return build_values(c, schema, next);
    if ((v = json_object_get(schema, "type")))
        return build_types(c, schema, v, next);
    const char *type = implied_type(schema);
    return type ? build_type(c, schema, type, next) : build_json(&c->b, RULE_ANY, next);
}

node_id schema_build(struct compiler *c, const json_t *schema, node_id next)
{
    if (c->b.status || next == NODE_NONE)
        return NODE_NONE;
    if (json_is_true(schema))
        return build_json(&c->b, RULE_ANY, next);
    if (!json_is_object(schema))
        return schema_fail(c, ST_INVALID, "", "must be a schema that something fits");
    if (c->depth >= GRAMMAR_NESTING_MAX)
        return schema_fail(c, ST_TOO_LARGE, "", "nested deeper than %d", GRAMMAR_NESTING_MAX);
    if (!check_keywords(c, schema))
        return NODE_NONE;
    c->depth++;
    const node_id n = build_keywords(c, schema, next);
    c->depth--;
    return n;
}

/* ---- the face ---- */

void compiler_init(struct compiler *c, const char *field, struct error *err)
{
    *c = (struct compiler){ 0 };
    builder_init(&c->b, &c->program, err);
    snprintf(c->path, sizeof c->path, "%.100s", field);
}

enum status compiler_finish(struct compiler *c, node_id start, const char *field, struct grammar **grammar_out)
{
    enum status st = program_finish(&c->b, start, field);
    if (!st) {
        struct grammar *g = grammar_new(&c->program);
        if (g)
            *grammar_out = g;
        else
            st = error_set(c->b.err, ST_NO_MEMORY, "out of memory");
    }
    program_deinit(&c->program);
    json_decref(c->made);
    for (struct reference *r = c->references, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    return st;
}

enum status grammar_of_schema(const struct json_t *schema, const char *field, struct grammar **grammar_out,
                              struct error *err)
{
    struct compiler c;
    compiler_init(&c, field, err);
    c.root = schema;
    return compiler_finish(&c, schema_build(&c, schema, NODE_END), field, grammar_out);
}

enum status grammar_of_object(struct grammar **grammar_out, struct error *err)
{
    struct compiler c;
    compiler_init(&c, "response_format", err);
    return compiler_finish(&c, build_json(&c.b, RULE_OBJECT, NODE_END), "response_format", grammar_out);
}
