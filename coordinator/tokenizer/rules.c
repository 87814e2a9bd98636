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

static enum status check_model(const json_t *root, struct token_rules *rules, bool *fallback_out, struct error *err)
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
    *fallback_out = json_is_true(json_object_get(model, "byte_fallback"));
    if (*fallback_out && json_is_true(json_object_get(model, "ignore_merges")))
        return error_set(err, ST_UNSUPPORTED,
                         "tokenizer.json: model.ignore_merges with byte_fallback is not supported");
    enum status st = check_absent_text(model, "continuing_subword_prefix", err);
    if (!st)
        st = check_absent_text(model, "end_of_word_suffix", err);
    rules->unk = !is_absent(json_object_get(model, "unk_token"));
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

/* ---- SentencePiece: spaces are U+2581 ---- */

#define SPACE_SIGN "\xE2\x96\x81"

static bool text_is(const json_t *object, const char *key, const char *text)
{
    const char *v = json_string_value(json_object_get(object, key));
    return v && strcmp(v, text) == 0;
}

/* Each of a Sequence's steps, or the one that stands alone. NULL: no more */
static const json_t *step_of(const json_t *v, const char *list, size_t i)
{
    if (strcmp(type_of(v), "Sequence") == 0)
        return json_array_get(json_object_get(v, list), i);
    return i == 0 ? v : NULL;
}

static bool is_space_replace(const json_t *step, const char *from, const char *to)
{
    return strcmp(type_of(step), "Replace") == 0 && text_is(json_object_get(step, "pattern"), "String", from) &&
           text_is(step, "content", to);
}

static enum status read_space_normalizer(const json_t *normalizer, struct token_rules *rules, struct error *err)
{
    const json_t *step;
    bool replaced = false;
    for (size_t i = 0; (step = step_of(normalizer, "normalizers", i)); i++) {
        if (strcmp(type_of(step), "Prepend") == 0 && text_is(step, "prepend", SPACE_SIGN) &&
            rules->prefix == PREFIX_NONE)
            rules->prefix = PREFIX_ALWAYS;
        else if (is_space_replace(step, " ", SPACE_SIGN))
            replaced = true;
        else
            return unsupported(err, "normalizer", step);
    }
    return replaced ? ST_OK
                    : error_set(err, ST_UNSUPPORTED,
                                "tokenizer.json: normalizer: byte_fallback without Replace of spaces is not supported");
}

static enum status read_metaspace(const json_t *v, struct token_rules *rules, struct error *err)
{
    const char *scheme = json_string_value(json_object_get(v, "prepend_scheme"));
    const json_t *add = json_object_get(v, "add_prefix_space"), *split = json_object_get(v, "split");
    if (strcmp(type_of(v), "Metaspace") != 0 || !text_is(v, "replacement", SPACE_SIGN))
        return unsupported(err, "pre_tokenizer", v);
    if (!scheme) /* files of old */
        scheme = json_is_false(add) ? "never" : "always";
    if (strcmp(scheme, "always") == 0)
        rules->prefix = PREFIX_UNLESS_SPACE;
    else if (strcmp(scheme, "first") == 0)
        rules->prefix = PREFIX_FIRST_UNLESS_SPACE;
    else if (strcmp(scheme, "never") != 0)
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: pre_tokenizer: Metaspace with prepend_scheme \"%.40s\"",
                         scheme);
    rules->split_spaces = !json_is_false(split);
    return ST_OK;
}

static enum status read_space_decoder(const json_t *decoder, struct token_rules *rules, struct error *err)
{
    const json_t *step;
    bool replaced = false, bytes = false;
    for (size_t i = 0; (step = step_of(decoder, "decoders", i)); i++) {
        if (is_space_replace(step, SPACE_SIGN, " "))
            replaced = true;
        else if (strcmp(type_of(step), "ByteFallback") == 0)
            bytes = true;
        else if (strcmp(type_of(step), "Strip") == 0 && text_is(step, "content", " ") &&
                 json_integer_value(json_object_get(step, "start")) == 1 &&
                 json_integer_value(json_object_get(step, "stop")) == 0)
            rules->strip_first = true;
        else if (strcmp(type_of(step), "Fuse") != 0)
            return unsupported(err, "decoder", step);
    }
    return replaced && bytes ? ST_OK
                             : error_set(err, ST_UNSUPPORTED,
                                         "tokenizer.json: decoder: byte_fallback without Replace and ByteFallback");
}

static enum status read_spaces(const json_t *root, struct token_rules *rules, struct error *err)
{
    const json_t *normalizer = json_object_get(root, "normalizer"), *pre = json_object_get(root, "pre_tokenizer");
    enum status st;
    if (is_absent(normalizer) && is_absent(pre))
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: byte_fallback without normalizer and pre_tokenizer");
    if (!is_absent(normalizer) && !is_absent(pre))
        return error_set(err, ST_UNSUPPORTED, "tokenizer.json: byte_fallback with normalizer and pre_tokenizer");
    st = is_absent(pre) ? read_space_normalizer(normalizer, rules, err) : read_metaspace(pre, rules, err);
    return st ? st : read_space_decoder(json_object_get(root, "decoder"), rules, err);
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

static enum status check_processor(const json_t *root, struct error *err)
{
    static const char *const post[2] = { "ByteLevel", "TemplateProcessing" };
    const json_t *processor = json_object_get(root, "post_processor");
    const enum status st =
        is_absent(processor) ? ST_OK : check_types(processor, "post_processor", "processors", post, 0, err);
    return st ? st : check_added(root, err);
}

static enum status read_byte_level(const json_t *root, struct token_rules *rules, struct error *err)
{
    static const char *const decode[2] = { "ByteLevel", NULL };
    const json_t *normalizer = json_object_get(root, "normalizer");
    struct chain c = { .s = splitter_new() };
    if (!c.s)
        return ST_NO_MEMORY;
    enum status st = ST_OK;
    rules->nfc = strcmp(type_of(normalizer), "NFC") == 0;
    if (!is_absent(normalizer) && !rules->nfc)
        st = unsupported(err, "normalizer", normalizer);
    if (!st)
        st = check_types(json_object_get(root, "decoder"), "decoder", "decoders", decode, 0, err);
    if (!st)
        st = read_chain(root, &c, err);
    if (st)
        splitter_free(c.s);
    else
        rules->splitter = c.s;
    return st;
}

enum status rules_from_json(const char *text, size_t bytes, struct token_rules *rules_out, struct error *err)
{
    json_error_t where;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!root)
        return error_set(err, ST_CORRUPT, "tokenizer.json: line %d: %s", where.line, where.text);
    struct token_rules rules = { 0 };
    bool fallback = false;
    enum status st = check_model(root, &rules, &fallback, err);
    if (!st)
        st = check_processor(root, err);
    if (!st)
        st = fallback ? read_spaces(root, &rules, err) : read_byte_level(root, &rules, err);
    json_decref(root);
    if (!st)
        *rules_out = rules;
    return st;
}
