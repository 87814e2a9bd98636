#include "model/hf.h"

#include <string.h>

#include "model/json.h"
#include "model/text.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

/* The texts of a vocabulary in one piece of the model's memory: a quarter of a million small allocations would be mostly padding. */
struct text_pool {
    char *at;
    size_t left;
};

static const char *pool_add(struct text_pool *p, const char *text, size_t bytes)
{
    char *copy = p->at;
    if (bytes > p->left) /* the sizes were summed before: our own mistake */
        return "";
    memcpy(copy, text, bytes);
    p->at += bytes;
    p->left -= bytes;
    return copy;
}

static enum status enter_token(struct model *m, int64_t id, const char *text, size_t bytes, enum model_token_type type,
                               struct model_token *tokens, struct text_pool *pool, const char *where, struct error *err)
{
    char shown[72];
    model_printable(shown, sizeof shown, text, bytes);
    if (id < 0 || id >= m->config.n_vocab)
        REFUSE("%s: token %s: id %lld is not in the vocabulary of %u", where, shown, (long long)id, m->config.n_vocab);
    if (bytes > MODEL_TOKEN_BYTES_MAX)
        REFUSE("%s: token %lld has %zu bytes (at most %d)", where, (long long)id, bytes, MODEL_TOKEN_BYTES_MAX);
    struct model_token *t = &tokens[id];
    const bool is_new = t->type == 0;
    if (!is_new && (type == MODEL_TOKEN_NORMAL || type == MODEL_TOKEN_BYTE || t->bytes != bytes ||
                    memcmp(t->text, text, bytes) != 0))
        REFUSE("%s: id %lld is given to two tokens, one of them %s", where, (long long)id, shown);
    *t = (struct model_token){ is_new ? pool_add(pool, text, bytes) : t->text, (uint32_t)bytes, (uint8_t)type };
    return ST_OK;
}

/* "<0x0A>" */
static bool is_byte_name(const char *text)
{
    return strlen(text) == 6 && memcmp(text, "<0x", 3) == 0 && strspn(text + 3, "0123456789ABCDEF") == 2 &&
           text[5] == '>';
}

static enum status read_tokens(struct model *m, const json_t *vocab, const json_t *added, const char *where,
                               struct error *err)
{
    const uint32_t n = m->config.n_vocab;
    struct model_token *tokens = model_alloc(m, n, sizeof *tokens);
    size_t sum = 1;
    const char *key;
    json_t *v;
    enum status st;
    json_object_foreach((json_t *)(uintptr_t)vocab, key, v) sum += strlen(key);
    for (size_t i = 0; i < json_array_size(added); i++)
        sum += json_string_length(json_object_get(json_array_get(added, i), "content"));
    struct text_pool pool = { model_alloc(m, sum, 1), sum };
    if (!tokens || !pool.at)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %u tokens", where, n);
    json_object_foreach((json_t *)(uintptr_t)vocab, key, v)
    {
        char shown[72];
        if (!json_is_integer(v))
            REFUSE("%s: key model.vocab: the id of %s is not an integer", where,
                   model_printable(shown, sizeof shown, key, strlen(key)));
        const enum model_token_type type =
            m->vocab.kind == MODEL_VOCAB_SENTENCEPIECE && is_byte_name(key) ? MODEL_TOKEN_BYTE : MODEL_TOKEN_NORMAL;
        if ((st = enter_token(m, json_integer_value(v), key, strlen(key), type, tokens, &pool, where, err)))
            return st;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *a = json_array_get(added, i), *id = json_object_get(a, "id"),
                     *text = json_object_get(a, "content");
        if (!json_is_integer(id) || !json_is_string(text))
            REFUSE("%s: key added_tokens[%zu] has no integer id, or no string content", where, i);
        const enum model_token_type type =
            json_is_true(json_object_get(a, "special")) ? MODEL_TOKEN_CONTROL : MODEL_TOKEN_USER;
        if ((st = enter_token(m, json_integer_value(id), json_string_value(text), json_string_length(text), type,
                              tokens, &pool, where, err)))
            return st;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!tokens[i].type)
            tokens[i] = (struct model_token){ "", 0, MODEL_TOKEN_UNUSED };
    m->vocab.tokens = tokens;
    m->vocab.n_tokens = n;
    return ST_OK;
}

/* "a b" or ["a", "b"] -> both sides, borrowed from the JSON. */
static bool merge_sides(const json_t *v, struct model_merge *out)
{
    if (json_is_string(v))
        return text_split_merge(json_string_value(v), json_string_length(v), out);
    const json_t *left = json_array_get(v, 0), *right = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_string(left) || !json_is_string(right))
        return false;
    if (json_string_length(left) > MODEL_TOKEN_BYTES_MAX || json_string_length(right) > MODEL_TOKEN_BYTES_MAX)
        return false;
    *out = (struct model_merge){ json_string_value(left), json_string_value(right), (uint32_t)json_string_length(left),
                                 (uint32_t)json_string_length(right) };
    return out->left_bytes && out->right_bytes;
}

static enum status read_merges(struct model *m, const json_t *list, const char *where, struct error *err)
{
    const size_t n = json_array_size(list);
    if (!json_is_array(list))
        REFUSE("%s: key model.merges is missing, or not a list", where);
    if (n > MODEL_VOCAB_MAX)
        REFUSE("%s: key model.merges: %zu merges (at most %d)", where, n, MODEL_VOCAB_MAX);
    struct model_merge *merges = model_alloc(m, n, sizeof *merges);
    size_t sum = 1;
    for (size_t i = 0; merges && i < n; i++) {
        if (!merge_sides(json_array_get(list, i), &merges[i]))
            REFUSE("%s: key model.merges[%zu] is not two texts", where, i);
        sum += merges[i].left_bytes + merges[i].right_bytes;
    }
    struct text_pool pool = { model_alloc(m, sum, 1), sum };
    if (!merges || !pool.at)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %zu merges", where, n);
    for (size_t i = 0; i < n; i++) {
        merges[i].left = pool_add(&pool, merges[i].left, merges[i].left_bytes);
        merges[i].right = pool_add(&pool, merges[i].right, merges[i].right_bytes);
    }
    m->vocab.merges = merges;
    m->vocab.n_merges = (uint32_t)n;
    return ST_OK;
}

static enum status check_model(struct model *m, const struct json_in *in, struct error *err)
{
    static const char *const must_be_empty[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const char *type, *text;
    char shown[64];
    bool found, fallback = false;
    enum status st = json_read_text(in, "type", &type, NULL, err);
    if (st)
        return st;
    if (strcmp(type, "BPE") != 0)
        UNSUPPORTED("%s: key model.type: %s is not supported (BPE is)", in->where,
                    model_printable(shown, sizeof shown, type, strlen(type)));
    if ((st = json_read_bool(in, "byte_fallback", &fallback, &found, err)))
        return st;
    m->vocab.kind = fallback ? MODEL_VOCAB_SENTENCEPIECE : MODEL_VOCAB_BPE;
    const json_t *dropout = json_find(in, "dropout");
    if (dropout && !(json_is_number(dropout) && json_number_value(dropout) == 0))
        UNSUPPORTED("%s: key model.dropout: %s is not supported", in->where, json_show(shown, sizeof shown, dropout));
    for (size_t i = 0; i < sizeof must_be_empty / sizeof *must_be_empty; i++) {
        text = "";
        if ((st = json_read_text(in, must_be_empty[i], &text, &found, err)))
            return st;
        if (*text)
            UNSUPPORTED("%s: key model.%s: %s is not supported", in->where, must_be_empty[i],
                        model_printable(shown, sizeof shown, text, strlen(text)));
    }
    return ST_OK;
}

/* One TemplateProcessing: at most one special token, before the text. */
static enum status read_template(struct model *m, const json_t *processor, const char *where, struct error *err)
{
    const json_t *single = json_object_get(processor, "single");
    const json_t *first = json_object_get(json_array_get(single, 0), "SpecialToken");
    const size_t n = json_array_size(single), at = first ? 1 : 0;
    if (n != at + 1 || !json_object_get(json_array_get(single, at), "Sequence"))
        UNSUPPORTED("%s: key post_processor.single: only one special token before the text is supported", where);
    if (!first)
        return ST_OK;
    const char *name = json_string_value(json_object_get(first, "id"));
    const json_t *special = name ? json_object_get(json_object_get(processor, "special_tokens"), name) : NULL;
    const json_t *ids = json_object_get(special, "ids"), *id = json_array_get(ids, 0);
    if (json_array_size(ids) != 1 || !json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= m->config.n_vocab)
        REFUSE("%s: key post_processor.special_tokens does not give the first token one id of the vocabulary", where);
    if (m->config.add_bos)
        UNSUPPORTED("%s: key post_processor: two processors add tokens, which is not supported", where);
    m->config.bos = (int32_t)json_integer_value(id);
    m->config.add_bos = true;
    return ST_OK;
}

static enum status read_processor(struct model *m, const json_t *processor, int depth, const char *where,
                                  struct error *err)
{
    if (!processor || json_is_null(processor))
        return ST_OK;
    const char *type = json_string_value(json_object_get(processor, "type"));
    char shown[64];
    if (!type || depth > 4)
        REFUSE("%s: key post_processor has no type, or is nested too deeply", where);
    if (strcmp(type, "ByteLevel") == 0)
        return ST_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(m, processor, where, err);
    if (strcmp(type, "Sequence") != 0)
        UNSUPPORTED("%s: key post_processor.type: %s is not supported", where,
                    model_printable(shown, sizeof shown, type, strlen(type)));
    const json_t *list = json_object_get(processor, "processors");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const enum status st = read_processor(m, json_array_get(list, i), depth + 1, where, err);
        if (st)
            return st;
    }
    return ST_OK;
}

static enum status parse(struct model *m, const json_t *root, const char *where, struct error *err)
{
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const struct json_in in = { model, where, "model." };
    bool found;
    enum status st;
    if (!json_is_object(model) || !json_is_object(json_object_get(model, "vocab")))
        REFUSE("%s: key model.vocab is missing, or not an object", where);
    if (added && !json_is_null(added) && !json_is_array(added))
        REFUSE("%s: key added_tokens is not a list", where);
    if ((st = check_model(m, &in, err)) ||
        (st = json_read_bool(&in, "ignore_merges", &m->vocab.ignore_merges, &found, err)) ||
        (st = read_tokens(m, json_object_get(model, "vocab"), added, where, err)) ||
        (st = read_merges(m, json_object_get(model, "merges"), where, err)))
        return st;
    return read_processor(m, json_object_get(root, "post_processor"), 0, where, err);
}

enum status hf_tokenizer_parse(struct model *m, const char *text, size_t bytes, const char *where, struct error *err)
{
    json_t *root;
    enum status st = json_parse_object(text, bytes, where, &root, err);
    if (st)
        return st;
    st = parse(m, root, where, err);
    json_decref(root);
    return st;
}

/* A template is a string, or a list of named ones of which "default" counts. */
static const json_t *find_template(const json_t *v)
{
    if (json_is_string(v))
        return v;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *entry = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, "default") == 0 && json_is_string(json_object_get(entry, "template")))
            return json_object_get(entry, "template");
    }
    return NULL;
}

/* A token is a string, or an object with it as content. */
static enum status read_eos_text(struct model *m, const json_t *v, const char *where, struct error *err)
{
    const json_t *text = json_is_object(v) ? json_object_get(v, "content") : v;
    if (!text || json_is_null(text))
        return ST_OK;
    if (!json_is_string(text) || strlen(json_string_value(text)) != json_string_length(text))
        REFUSE("%s: key eos_token is neither a string nor an object with one", where);
    m->vocab.eos_text = model_copy_text(m, json_string_value(text), json_string_length(text));
    return m->vocab.eos_text ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", where);
}

enum status hf_tokenizer_config_parse(struct model *m, const char *text, size_t bytes, const char *where,
                                      struct error *err)
{
    json_t *root;
    enum status st = json_parse_object(text, bytes, where, &root, err);
    if (st)
        return st;
    const json_t *v = json_object_get(root, "chat_template"), *t = find_template(v);
    st = read_eos_text(m, json_object_get(root, "eos_token"), where, err);
    if (st || m->vocab.chat_template) { /* a template in a file of its own comes first */
        json_decref(root);
        return st;
    }
    if (t && !(m->vocab.chat_template = model_copy_text(m, json_string_value(t), json_string_length(t))))
        st = error_set(err, ST_NO_MEMORY, "%s: out of memory", where);
    else if (v && !t && !json_is_null(v) && !json_is_array(v))
        st = error_set(err, ST_CORRUPT, "%s: key chat_template is neither a string nor a list", where);
    json_decref(root);
    return st;
}
