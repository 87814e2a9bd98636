/* Schemas of schemas: one of several, all of several. */
#include <stdio.h>
#include <string.h>

#include "coordinator/grammar/schema.h"

enum { LOOK_DEEP = 6, MERGED_MAX = 1024 };

/* ---- what plainly cannot be both ---- */

/* What a chain of references leads to, or the schema itself. */
static const json_t *resolve(const struct compiler *c, const json_t *schema)
{
    for (int i = 0; i < LOOK_DEEP && json_object_get(schema, "$ref"); i++) {
        const char *to = json_string_value(json_object_get(schema, "$ref"));
        const json_t *target = to ? schema_find(c, to) : NULL;
        if (!target)
            break;
        schema = target;
    }
    return schema;
}

static size_t values_of(const json_t *schema)
{
    return json_object_get(schema, "const") ? 1 : json_array_size(json_object_get(schema, "enum"));
}

static const json_t *value_at(const json_t *schema, size_t i)
{
    const json_t *one = json_object_get(schema, "const");
    return one ? one : json_array_get(json_object_get(schema, "enum"), i);
}

/* 1 and 1.0 are one value. */
static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) >= json_number_value(b) && json_number_value(a) <= json_number_value(b);
    return json_equal(a, b);
}

static bool has_value(const json_t *schema, const json_t *value)
{
    for (size_t i = 0; i < values_of(schema); i++)
        if (same_value(value_at(schema, i), value))
            return true;
    return false;
}

/* Sets of types; integers are numbers. 0: none is said. */
static uint32_t types_of(const json_t *schema)
{
    static const char *const names[] = { "null", "boolean", "number", "string", "array", "object", "integer" };
    const json_t *types = json_object_get(schema, "type");
    uint32_t set = 0;
    for (uint32_t i = 0; i < 7; i++) {
        bool is = json_is_string(types) && !strcmp(json_string_value(types), names[i]);
        for (size_t k = 0; k < json_array_size(types); k++)
            is = is || (json_is_string(json_array_get(types, k)) &&
                        !strcmp(json_string_value(json_array_get(types, k)), names[i]));
        set |= is ? 1u << (i == 6 ? 2 : i) : 0;
    }
    return set;
}

static bool is_required(const json_t *schema, const char *name)
{
    const json_t *list = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)) && !strcmp(json_string_value(json_array_get(list, i)), name))
            return true;
    return false;
}

/* true: no value fits both, which the first look shows; false: some may. */
static bool apart(const struct compiler *c, const json_t *a, const json_t *b, int deep)
{
    a = resolve(c, a);
    b = resolve(c, b);
    const size_t n = values_of(a);
    if (!n && values_of(b))
        return apart(c, b, a, deep);
    if (n) {
        for (size_t i = 0; i < n; i++)
            if (values_of(b) ? has_value(b, value_at(a, i)) : schema_may_be(json_object_get(b, "type"), value_at(a, i)))
                return false;
        return true;
    }
    const uint32_t x = types_of(a), y = types_of(b);
    if (x && y && !(x & y))
        return true;
    if (x != 1u << 5 || y != x || !deep) /* both are objects: a member that both have tells them apart */
        return false;
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)json_object_get(a, "properties"), name, member)
    {
        const json_t *other = json_object_get(json_object_get(b, "properties"), name);
        if (other && is_required(a, name) && is_required(b, name) && apart(c, member, other, deep - 1))
            return true;
    }
    return false;
}

node_id schema_any_of(struct compiler *c, const json_t *schema, const char *keyword, const json_t *list, node_id next)
{
    const size_t n_list = json_array_size(list);
    if (!json_is_array(list) || !n_list)
        return schema_fail(c, ST_INVALID, keyword, "must be a list of schemas");
    if (!schema_alone(c, schema, keyword))
        return NODE_NONE;
    if (!strcmp(keyword, "oneOf") && n_list > 256)
        return schema_fail(c, ST_TOO_LARGE, keyword, "at most 256");
    for (size_t i = 0; !strcmp(keyword, "oneOf") && i < n_list; i++)
        for (size_t k = 0; k < i; k++)
            if (!apart(c, json_array_get(list, k), json_array_get(list, i), LOOK_DEEP))
                return schema_fail(c, ST_UNSUPPORTED, keyword,
                                   "schemas %zu and %zu are not plainly apart by a type, a const or an enum", k, i);
    node_id n = NODE_NONE;
    for (size_t i = 0; i < n_list; i++) {
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        const node_id one = schema_within(c, keyword, name, json_array_get(list, i), next);
        if (one == NODE_NONE)
            return NODE_NONE;
        n = n == NODE_NONE ? one : build_split(&c->b, n, one);
    }
    return n;
}

/* ---- several at once ---- */

static bool merge(struct compiler *c, json_t *into, const json_t *from);

static bool failed(struct compiler *c, enum status st, const char *keyword, const char *why)
{
    schema_fail(c, st, keyword, "%s", why);
    return false;
}

static bool put(struct compiler *c, json_t *object, const char *key, json_t *value)
{
    return !json_object_set_new(object, key, value) || failed(c, ST_NO_MEMORY, "", "out of memory");
}

/* Both schemas, as one that has them in allOf. */
static json_t *both(json_t *a, json_t *b)
{
    return json_pack("{s:[O,O]}", "allOf", a, b);
}

/* A limit on the number of schemas, and on what other schemas allow, is of those alone that it stands beside. */
static bool merge_properties(struct compiler *c, json_t *into, json_t *properties)
{
    json_t *own = json_object_get(into, "properties");
    const char *name;
    json_t *value;
    if (!json_is_object(own) || !json_is_object(properties))
        return failed(c, ST_INVALID, "properties", "must be an object");
    json_object_foreach(properties, name, value)
    {
        json_t *old = json_object_get(own, name);
        if (!put(c, own, name, old ? both(old, value) : json_incref(value)))
            return false;
    }
    return true;
}

/* Types that both say; "integer" is the narrower of it and "number". */
static json_t *common_types(json_t *a, json_t *b)
{
    json_t *types = json_array(), *x = json_is_array(a) ? json_incref(a) : json_pack("[O]", a);
    for (size_t i = 0; i < json_array_size(x); i++) {
        const char *name = json_string_value(json_array_get(x, i));
        for (size_t k = 0; name && k < (json_is_array(b) ? json_array_size(b) : 1); k++) {
            const char *other = json_string_value(json_is_array(b) ? json_array_get(b, k) : b);
            const bool narrow = other && ((!strcmp(name, "integer") && !strcmp(other, "number")) ||
                                          (!strcmp(name, "number") && !strcmp(other, "integer")));
            if (narrow || (other && !strcmp(name, other))) {
                json_array_append_new(types, json_string(narrow ? "integer" : name));
                break;
            }
        }
    }
    json_decref(x);
    return types;
}

static json_t *common_values(json_t *a, json_t *b)
{
    json_t *values = json_array();
    for (size_t i = 0; i < json_array_size(a); i++)
        for (size_t k = 0; k < json_array_size(b); k++)
            if (same_value(json_array_get(a, i), json_array_get(b, k))) {
                json_array_append(values, json_array_get(a, i));
                break;
            }
    return values;
}

static bool is_one_of(const char *word, const char *const *words)
{
    while (*words && strcmp(*words, word) != 0)
        words++;
    return *words;
}

/* A keyword that both have. */
static bool merge_keyword(struct compiler *c, json_t *into, const char *key, json_t *old, json_t *value)
{
    static const char *const lower[] = { "minimum", "exclusiveMinimum", "minLength", "minItems", NULL };
    static const char *const upper[] = { "maximum", "exclusiveMaximum", "maxLength", "maxItems", NULL };
    if (json_equal(old, value))
        return true;
    if (is_one_of(key, lower) || is_one_of(key, upper)) {
        if (!json_is_number(old) || !json_is_number(value))
            return failed(c, ST_INVALID, key, "must be a number");
        const bool greater = json_number_value(value) > json_number_value(old);
        return greater != is_one_of(key, lower) || put(c, into, key, json_incref(value));
    }
    if (!strcmp(key, "properties"))
        return merge_properties(c, into, value);
    if (!strcmp(key, "items"))
        return put(c, into, key, both(old, value));
    if (!strcmp(key, "required")) {
        json_t *all = json_copy(old);
        const bool ok = json_is_array(old) && json_is_array(value) && !json_array_extend(all, value);
        if (!ok)
            json_decref(all);
        return ok ? put(c, into, key, all) : failed(c, ST_INVALID, key, "must be a list of names");
    }
    if (strcmp(key, "type") != 0 && strcmp(key, "enum") != 0)
        return failed(c, ST_UNSUPPORTED, key, "two of them in allOf cannot be merged");
    json_t *common = !strcmp(key, "type") ? common_types(old, value) : common_values(old, value);
    if (json_array_size(common))
        return put(c, into, key, common);
    json_decref(common);
    return failed(c, ST_INVALID, key, "nothing fits two of them in allOf");
}

/* Members that one schema does not know are forbidden by it, whatever the others say of them. */
static bool check_closed(struct compiler *c, const json_t *closed, const json_t *other)
{
    const json_t *more = json_object_get(closed, "additionalProperties");
    const char *name;
    json_t *value;
    if (!more || json_is_true(more))
        return true;
    json_object_foreach((json_t *)json_object_get(other, "properties"), name, value)
    {
        if (!json_object_get(json_object_get(closed, "properties"), name))
            return failed(c, ST_UNSUPPORTED, "additionalProperties",
                          "not supported in allOf beside schemas of other properties");
    }
    return true;
}

static bool merge_members(struct compiler *c, json_t *into, const json_t *from)
{
    const char *key;
    json_t *value;
    if (!check_closed(c, into, from) || !check_closed(c, from, into))
        return false;
    json_object_foreach((json_t *)from, key, value)
    {
        json_t *old = json_object_get(into, key);
        if (schema_is_note(key) || !strcmp(key, "allOf") || !strcmp(key, "$ref"))
            continue;
        /* what is made goes on to be merged: it may not be the request's own */
        const bool ok = old                          ? merge_keyword(c, into, key, old, value)
                        : !strcmp(key, "properties") ? put(c, into, key, json_copy(value))
                                                     : put(c, into, key, json_incref(value));
        if (!ok)
            return false;
    }
    return true;
}

static bool merge(struct compiler *c, json_t *into, const json_t *from)
{
    const json_t *list = json_object_get(from, "allOf"), *to = json_object_get(from, "$ref");
    if (json_is_true(from))
        return true;
    if (!json_is_object(from))
        return failed(c, ST_INVALID, "allOf", "must be a list of schemas");
    if (++c->n_merged > MERGED_MAX)
        return failed(c, ST_TOO_LARGE, "allOf", "too many schemas to merge");
    if (list && (!json_is_array(list) || !json_array_size(list)))
        return failed(c, ST_INVALID, "allOf", "must be a list of schemas");
    if (to) {
        const json_t *target = json_is_string(to) ? schema_find(c, json_string_value(to)) : NULL;
        if (!target)
            return failed(c, ST_INVALID, "$ref", "is not in this schema");
        if (++c->depth > GRAMMAR_NESTING_MAX)
            return failed(c, ST_TOO_LARGE, "$ref", "references are too deep");
        const bool ok = merge(c, into, target);
        c->depth--;
        if (!ok)
            return false;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!merge(c, into, json_array_get(list, i)))
            return false;
    return merge_members(c, into, from);
}

node_id schema_all_of(struct compiler *c, const json_t *schema, node_id next)
{
    json_t *merged = json_object();
    if (!c->made)
        c->made = json_array();
    if (!c->made || json_array_append_new(c->made, merged))
        return schema_fail(c, ST_NO_MEMORY, "", "out of memory");
    if (!merge(c, merged, schema))
        return NODE_NONE;
    return schema_build(c, merged, next);
}
