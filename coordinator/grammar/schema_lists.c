/* Lists and objects of a schema: what may stand between brackets, and between braces. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/schema.h"

enum { NAME_BYTES_MAX = 256, MEMBERS_MAX = 4096 };

/* ---- lists ---- */

static node_id build_comma(struct compiler *c, node_id next)
{
    return build_range(&c->b, ',', ',', build_json(&c->b, RULE_SPACE, next));
}

/* prefixItems in their order, then items; the list may end once there are `min`. */
node_id schema_array(struct compiler *c, const json_t *schema, node_id next)
{
    struct builder *b = &c->b;
    const json_t *items = json_object_get(schema, "items"), *prefix = json_object_get(schema, "prefixItems");
    uint32_t min = 0, max = UINT32_MAX;
    if (!schema_count(c, schema, "minItems", &min) || !schema_count(c, schema, "maxItems", &max))
        return NODE_NONE;
    if (prefix && (!json_is_array(prefix) || !json_array_size(prefix)))
        return schema_fail(c, ST_INVALID, "prefixItems", "must be a list of schemas");
    const uint32_t n_prefix = (uint32_t)json_array_size(prefix);
    if (json_is_false(items))
        max = max < n_prefix ? max : n_prefix;
    if (min > max)
        return schema_fail(c, ST_INVALID, "minItems", "is more than there may be");
    const node_id close = build_json(b, RULE_SPACE, build_range(b, ']', ']', next));
    const node_id comma = build_comma(c, NODE_RETURN);
    const uint32_t rest_min = min > n_prefix ? min - n_prefix : 0;
    const uint32_t rest_max = max == UINT32_MAX ? max : max > n_prefix ? max - n_prefix : 0;
    node_id list = close; /* what follows all of the prefix */
    if (rest_max) {
        const node_id item =
            items && !json_is_true(items) ? schema_within(c, "items", "", items, NODE_RETURN) : json_rule(b, RULE_ANY);
        if (!n_prefix) {
            const node_id some =
                build_json(b, RULE_SPACE, build_repeat(b, item, comma, rest_min ? rest_min : 1, rest_max, close));
            list = rest_min ? some : build_split(b, close, some);
        } else {
            list =
                build_repeat(b, build_comma(c, build_call(b, item, NODE_RETURN)), NODE_NONE, rest_min, rest_max, close);
        }
    }
    for (uint32_t i = n_prefix < max ? n_prefix : max; i-- > 0;) {
        char name[16];
        snprintf(name, sizeof name, "%u", i);
        node_id at = schema_within(c, "prefixItems", name, json_array_get(prefix, i), list);
        at = i ? build_comma(c, at) : build_json(b, RULE_SPACE, at);
        list = i >= min ? build_split(b, close, at) : at;
    }
    return build_range(b, '[', '[', list);
}

/* ---- objects ---- */

static bool is_required(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *r = json_string_value(json_array_get(required, i));
        if (r && !strcmp(r, name))
            return true;
    }
    return false;
}

/* A rule: "name": value */
static node_id build_member(struct compiler *c, const char *name, const json_t *schema)
{
    struct builder *b = &c->b;
    node_id value =
        schema ? schema_within(c, "properties", name, schema, NODE_RETURN) : build_json(b, RULE_ANY, NODE_RETURN);
    value = build_range(b, ':', ':', build_json(b, RULE_GAP, value));
    json_t *key = json_string(name);
    const node_id n = key ? schema_value(c, key, value) : schema_fail(c, ST_NO_MEMORY, "", "out of memory");
    json_decref(key);
    return n;
}

/*
 * The rest of a key, from `at` bytes that all of names[0 .. n - 1] begin with on, that ends as none of them: no escapes until it differs, and no character of
 * several bytes where one of them has one.
 */
static node_id build_other_key(struct compiler *c, const char *const *names, size_t n, size_t at, node_id end)
{
    struct builder *b = &c->b;
    char heads[130];
    size_t n_heads = 0;
    bool wide = false, ends = false;
    for (size_t i = 0; i < n; i++) {
        const unsigned char head = (unsigned char)names[i][at];
        ends = ends || !head;
        wide = wide || head >= 0x80;
        if (head && head < 0x80 && !memchr(heads, head, n_heads))
            heads[n_heads++] = (char)head;
    }
    heads[n_heads] = 0;
    /* characters that differ lead to any rest */
    const node_id rest = build_hole(b);
    const node_id any = build_call(b, json_rule(b, RULE_CHAR), rest);
    build_fill(b, rest, end, any);
    node_id node = NODE_NONE;
    if (wide) {
        for (int ch = ' '; ch < 0x7F; ch++)
            if (ch != '"' && ch != '\\' && !strchr(heads, ch)) {
                const node_id one = build_range(b, (uint8_t)ch, (uint8_t)ch, rest);
                node = node == NODE_NONE ? one : build_split(b, node, one);
            }
    } else {
        node = build_plain_char(b, heads, rest);
    }
    if (!ends)
        node = build_split(b, node, end);
    for (size_t h = 0; h < n_heads && !b->status; h++) {
        const char **same = malloc(n * sizeof *same);
        size_t n_same = 0;
        if (!same)
            return schema_fail(c, ST_NO_MEMORY, "", "out of memory");
        for (size_t i = 0; i < n; i++)
            if (names[i][at] == heads[h])
                same[n_same++] = names[i];
        if (heads[h] != '"' && heads[h] != '\\' && heads[h] >= ' ')
            node = build_split(
                b, node,
                build_range(b, (uint8_t)heads[h], (uint8_t)heads[h], build_other_key(c, same, n_same, at + 1, end)));
        free(same);
    }
    return node;
}

struct members {
    const char **names;
    node_id *rules; /* "name": value */
    bool *required;
    size_t n;
    node_id other; /* a rule for a member of another name, or NODE_NONE */
};

static bool add_member(struct compiler *c, struct members *m, const char *name, const json_t *schema, bool required)
{
    if (strlen(name) > NAME_BYTES_MAX)
        return schema_fail(c, ST_TOO_LARGE, "properties", "a name of more than %d bytes", NAME_BYTES_MAX) != NODE_NONE;
    m->names[m->n] = name;
    m->required[m->n] = required;
    m->rules[m->n] = build_member(c, name, schema);
    return m->rules[m->n++] != NODE_NONE;
}

static bool read_members(struct compiler *c, const json_t *schema, struct members *m)
{
    const json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required");
    const char *name;
    json_t *value;
    if (properties && !json_is_object(properties))
        return schema_fail(c, ST_INVALID, "properties", "must be an object") != NODE_NONE;
    if (required && !json_is_array(required))
        return schema_fail(c, ST_INVALID, "required", "must be a list of names") != NODE_NONE;
    if (json_object_size(properties) > MEMBERS_MAX || json_array_size(required) > MEMBERS_MAX)
        return schema_fail(c, ST_TOO_LARGE, "properties", "at most %d", MEMBERS_MAX) != NODE_NONE;
    const size_t room = json_object_size(properties) + json_array_size(required) + 1;
    m->names = calloc(room, sizeof *m->names);
    m->rules = calloc(room, sizeof *m->rules);
    m->required = calloc(room, sizeof *m->required);
    if (!m->names || !m->rules || !m->required)
        return schema_fail(c, ST_NO_MEMORY, "", "out of memory") != NODE_NONE;
    json_object_foreach((json_t *)properties, name, value)
    {
        if (!add_member(c, m, name, value, is_required(required, name)))
            return false;
    }
    for (size_t i = 0; i < json_array_size(required); i++) {
        name = json_string_value(json_array_get(required, i));
        if (!name)
            return schema_fail(c, ST_INVALID, "required", "must be a list of names") != NODE_NONE;
        if (json_object_get(properties, name))
            continue;
        if (json_is_false(json_object_get(schema, "additionalProperties")))
            return schema_fail(c, ST_INVALID, "required", "'%.40s' is not in properties", name) != NODE_NONE;
        const json_t *other = json_object_get(schema, "additionalProperties");
        bool twice = false;
        for (size_t k = 0; k < m->n; k++)
            twice = twice || !strcmp(m->names[k], name);
        if (!twice && !add_member(c, m, name, json_is_object(other) ? other : NULL, true))
            return false;
    }
    return true;
}

/* Members whose names are not among properties: only where they are asked for, or nothing is said of any. */
static bool read_other(struct compiler *c, const json_t *schema, struct members *m)
{
    struct builder *b = &c->b;
    const json_t *other = json_object_get(schema, "additionalProperties");
    m->other = NODE_NONE;
    if (json_is_false(other) || (!other && m->n))
        return true;
    if (other && !json_is_true(other) && !json_is_object(other))
        return schema_fail(c, ST_INVALID, "additionalProperties", "must be a schema") != NODE_NONE;
    const node_id value = json_is_object(other) ? schema_within(c, "additionalProperties", "", other, NODE_RETURN)
                                                : build_json(b, RULE_ANY, NODE_RETURN);
    const node_id end = build_range(b, '"', '"', build_range(b, ':', ':', build_json(b, RULE_GAP, value)));
    m->other = build_range(b, '"', '"', build_other_key(c, m->names, m->n, 0, end));
    return m->other != NODE_NONE;
}

static node_id build_members(struct compiler *c, const struct members *m, node_id next)
{
    struct builder *b = &c->b;
    const node_id close = build_json(b, RULE_SPACE, build_range(b, '}', '}', next));
    node_id none = close, some = close; /* nothing, or something, stands before */
    if (m->other != NODE_NONE) {
        const node_id comma = build_comma(c, NODE_RETURN);
        const node_id others = build_repeat(b, m->other, comma, 1, UINT32_MAX, close);
        some = build_split(b, close, build_comma(c, others));
        none = build_split(b, close, build_json(b, RULE_SPACE, others));
    }
    for (size_t i = m->n; i-- > 0;) {
        const node_id here = build_call(b, m->rules[i], some);
        const node_id first = build_json(b, RULE_SPACE, here), later = build_comma(c, here);
        none = m->required[i] ? first : build_split(b, first, none);
        some = m->required[i] ? later : build_split(b, later, some);
    }
    return build_range(b, '{', '{', none);
}

node_id schema_object(struct compiler *c, const json_t *schema, node_id next)
{
    struct members m = { 0 };
    const bool ok = read_members(c, schema, &m) && read_other(c, schema, &m);
    const node_id n = ok ? build_members(c, &m, next) : NODE_NONE;
    free(m.names);
    free(m.rules);
    free(m.required);
    return n;
}
