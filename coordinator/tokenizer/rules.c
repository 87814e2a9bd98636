#include "coordinator/tokenizer/rules.h"

#include <jansson.h>
#include <string.h>

enum { NESTING_MAX = 4 };

static bool is_absent(const json_t *v)
{
    return !v || json_is_null(v);
}

static const char *type_of(const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    return type ? type : "(no type)";
}

static enum status unsupported(struct error *err, const char *part, const json_t *v)
{
    return error_set(err, ST_UNSUPPORTED, "tokenizer.json: %s: \"%.60s\" is not supported", part, type_of(v));
}

/* ---- model ---- */

static enum status check_absent_text(const json_t *model, const char *key, struct error *err)
{
    const json_t *v = json_object_get(model, key);
    if (is_absent(v) || (json_is_string(v) && json_string_length(v) == 0))
        return ST_OK;
    return error_set(err, ST_UNSUPPORTED, "tokenizer.json: model.%s is not supported", key);
}

static enum status check_model(const json_t *root, bool *unk_out, struct error *err)
{
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(model))
        return error_set(err, ST_CORRUPT, "tokenizer.json: model is not an object");
    const json_t *type = json_object_get(model, "type");
    if (!is_absent(type) && strcmp(type_of(model), "BPE") != 0)
        return unsupported(err, "model.type", model);
    const json_t *dropout = json_object_get(model, "dropout");
    if (!is_absent(dropout) && json_number_value(dropout) != 0)
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: model.dropout is not supported");
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: model.byte_fallback is not supported");
    enum status st = check_absent_text(model, "continuing_subword_prefix", err);
    if (!st)
        st = check_absent_text(model, "end_of_word_suffix", err);
    *unk_out = !is_absent(json_object_get(model, "unk_token"));
    return st;
}

/* ---- pre_tokenizer ---- */

struct chain {
    struct splitter *s;
    bool byte_level; /* has been seen: nothing may follow */
};

static enum status add_byte_level(struct chain *c, const json_t *v, struct error *err)
{
    if (json_is_true(json_object_get(v, "add_prefix_space")))
        return error_set(err, ST_UNSUPPORTED,
                         "tokenizer.json: pre_tokenizer: ByteLevel with add_prefix_space is not supported");
    c->byte_level = true;
    return json_is_false(json_object_get(v, "use_regex")) ? ST_OK : splitter_add_gpt2(c->s, err);
}

static enum status add_split(struct chain *c, const json_t *v, struct error *err)
{
    const json_t *pattern = json_object_get(v, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
    const json_t *text = regex ? regex : literal;
    const char *behavior = json_string_value(json_object_get(v, "behavior"));
    const bool invert = json_is_true(json_object_get(v, "invert"));
    if (!json_is_string(text) || !behavior)
        return error_set(err, ST_CORRUPT, "tokenizer.json: pre_tokenizer: Split without pattern or behavior");
    const bool isolated = strcmp(behavior, "Isolated") == 0, removed = strcmp(behavior, "Removed") == 0;
    if (!isolated && !(removed && invert))
        return error_set(err, ST_UNSUPPORTED,
                         "tokenizer.json: pre_tokenizer: Split with behavior \"%.40s\"%s is not supported", behavior,
                         invert ? ", inverted," : "");
    return splitter_add_pattern(c->s, json_string_value(text), json_string_length(text), !regex, isolated, err);
}

static enum status add_step(struct chain *c, const json_t *v, int depth, struct error *err)
{
    const char *type = type_of(v);
    if (strcmp(type, "Sequence") == 0 && depth < NESTING_MAX) {
        const json_t *list = json_object_get(v, "pretokenizers");
        if (!json_is_array(list))
            return error_set(err, ST_CORRUPT, "tokenizer.json: pre_tokenizer: Sequence without pretokenizers");
        enum status st = ST_OK;
        for (size_t i = 0; !st && i < json_array_size(list); i++)
            st = add_step(c, json_array_get(list, i), depth + 1, err);
        return st;
    }
    if (c->byte_level)
        return error_set(err, ST_UNSUPPORTED,
                         "tokenizer.json: pre_tokenizer: \"%.60s\" after ByteLevel is not supported", type);
    if (strcmp(type, "ByteLevel") == 0)
        return add_byte_level(c, v, err);
    if (strcmp(type, "Digits") == 0)
        return splitter_add_digits(c->s, json_is_true(json_object_get(v, "individual_digits")), err);
    if (strcmp(type, "Split") == 0)
        return add_split(c, v, err);
    return unsupported(err, "pre_tokenizer", v);
}

static enum status read_chain(const json_t *root, struct chain *c, struct error *err)
{
    const json_t *v = json_object_get(root, "pre_tokenizer");
    if (is_absent(v))
        return error_set(err, ST_UNSUPPORTED,
                         "tokenizer.json: no pre_tokenizer: only byte-level vocabularies are supported");
    const enum status st = add_step(c, v, 0, err);
    if (!st && !c->byte_level)
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: pre_tokenizer without ByteLevel is not supported");
    return st;
}

/* ---- the rest ---- */

/* Each of the types in `known`, or a Sequence (its list under `list`) of them. */
static enum status check_types(const json_t *v, const char *part, const char *list, const char *const known[2],
                               int depth, struct error *err)
{
    for (int i = 0; i < 2 && known[i]; i++) {
        if (strcmp(type_of(v), known[i]) == 0)
            return ST_OK;
    }
    const json_t *steps = json_object_get(v, list);
    if (strcmp(type_of(v), "Sequence") != 0 || depth >= NESTING_MAX || json_array_size(steps) == 0)
        return unsupported(err, part, v);
    enum status st = ST_OK;
    for (size_t i = 0; !st && i < json_array_size(steps); i++)
        st = check_types(json_array_get(steps, i), part, list, known, depth + 1, err);
    return st;
}

static enum status check_added(const json_t *root, struct error *err)
{
    static const char *const flags[] = { "lstrip", "rstrip", "single_word" };
    const json_t *list = json_object_get(root, "added_tokens");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *token = json_array_get(list, i);
        const char *content = json_string_value(json_object_get(token, "content"));
        for (size_t f = 0; f < sizeof flags / sizeof flags[0]; f++) {
            if (json_is_true(json_object_get(token, flags[f])))
                return error_set(err, ST_UNSUPPORTED, "tokenizer.json: added_tokens: \"%.60s\": %s is not supported",
                                 content ? content : "", flags[f]);
        }
    }
    return ST_OK;
}

static enum status check_rest(const json_t *root, struct error *err)
{
    static const char *const post[2] = { "ByteLevel", "TemplateProcessing" };
    static const char *const decode[2] = { "ByteLevel", NULL };
    const json_t *normalizer = json_object_get(root, "normalizer"),
                 *processor = json_object_get(root, "post_processor");
    if (!is_absent(normalizer))
        return unsupported(err, "normalizer", normalizer);
    enum status st =
        is_absent(processor) ? ST_OK : check_types(processor, "post_processor", "processors", post, 0, err);
    if (!st)
        st = check_types(json_object_get(root, "decoder"), "decoder", "decoders", decode, 0, err);
    if (!st)
        st = check_added(root, err);
    return st;
}

enum status rules_from_json(const char *text, size_t bytes, struct splitter **splitter_out, bool *unk_out,
                            struct error *err)
{
    json_error_t where;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!root)
        return error_set(err, ST_CORRUPT, "tokenizer.json: line %d: %s", where.line, where.text);
    struct chain c = { .s = splitter_new() };
    bool unk = false;
    enum status st = c.s ? check_model(root, &unk, err) : ST_NO_MEMORY;
    if (!st)
        st = check_rest(root, err);
    if (!st)
        st = read_chain(root, &c, err);
    json_decref(root);
    if (st) {
        splitter_free(c.s);
        return st;
    }
    *splitter_out = c.s;
    *unk_out = unk;
    return ST_OK;
}
