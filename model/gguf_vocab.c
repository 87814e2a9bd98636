#include "model/gguf_vocab.h"

#include <string.h>

#include "model/text.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

static enum status read_tokens(struct model *m, const struct gguf *g, struct error *err)
{
    const uint32_t n = m->config.n_vocab;
    const struct gguf_key *texts, *types = NULL;
    bool has_types;
    enum status st;
    if ((st = gguf_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &texts, NULL, err)) ||
        (st = gguf_array(g, "tokenizer.ggml.token_type", GGUF_I32, &types, &has_types, err)))
        return st;
    if (has_types && types->n != n)
        REFUSE("%s: key tokenizer.ggml.token_type has %llu elements, tokenizer.ggml.tokens %u", g->where,
               (unsigned long long)types->n, n);
    struct model_token *tokens = model_alloc(m, n, sizeof *tokens);
    if (!tokens)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %u tokens", g->where, n);
    const uint8_t *at = texts->data;
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_text t = gguf_next_string(&at);
        int64_t type = MODEL_TOKEN_NORMAL;
        if (t.bytes > MODEL_TOKEN_BYTES_MAX || !text_is_utf8(t.text, t.bytes))
            REFUSE("%s: key tokenizer.ggml.tokens: token %u is not UTF-8, or over %d bytes", g->where, i,
                   MODEL_TOKEN_BYTES_MAX);
        if (has_types && (!gguf_integer(types, i, &type) || type < 0 || type > MODEL_TOKEN_BYTE))
            REFUSE("%s: key tokenizer.ggml.token_type: token %u has the unknown type %lld", g->where, i,
                   (long long)type);
        tokens[i] = (struct model_token){ t.text, (uint32_t)t.bytes, (uint8_t)(type ? type : MODEL_TOKEN_NORMAL) };
    }
    m->vocab.tokens = tokens;
    m->vocab.n_tokens = n;
    return ST_OK;
}

static enum status read_scores(struct model *m, const struct gguf *g, struct error *err)
{
    const struct gguf_key *k;
    bool found, flag = true;
    enum status st = gguf_array(g, "tokenizer.ggml.scores", GGUF_F32, &k, NULL, err);
    if (st)
        return st;
    if (k->n != m->config.n_vocab)
        REFUSE("%s: key tokenizer.ggml.scores has %llu elements, tokenizer.ggml.tokens %u", g->where,
               (unsigned long long)k->n, m->config.n_vocab);
    float *scores = model_alloc(m, k->n, sizeof *scores);
    if (!scores)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", g->where);
    memcpy(scores, k->data, k->n * sizeof *scores);
    m->vocab.scores = scores;
    st = gguf_bool(g, "tokenizer.ggml.add_space_prefix", &flag, &found, err);
    m->vocab.space_prefix = flag;
    return st;
}

static enum status read_merges(struct model *m, const struct gguf *g, struct error *err)
{
    const struct gguf_key *k;
    const enum status st = gguf_array(g, "tokenizer.ggml.merges", GGUF_STRING, &k, NULL, err);
    if (st)
        return st;
    if (k->n > MODEL_VOCAB_MAX)
        REFUSE("%s: key tokenizer.ggml.merges: %llu merges (at most %d)", g->where, (unsigned long long)k->n,
               MODEL_VOCAB_MAX);
    const uint32_t n = (uint32_t)k->n;
    struct model_merge *merges = model_alloc(m, n, sizeof *merges);
    if (!merges)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %u merges", g->where, n);
    const uint8_t *at = k->data;
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_text t = gguf_next_string(&at);
        if (t.bytes > 2 * MODEL_TOKEN_BYTES_MAX || !text_is_utf8(t.text, t.bytes) ||
            !text_split_merge(t.text, t.bytes, &merges[i]))
            REFUSE("%s: key tokenizer.ggml.merges: merge %u is not two texts with a space between", g->where, i);
    }
    m->vocab.merges = merges;
    m->vocab.n_merges = n;
    return ST_OK;
}

/* The pre-tokenizers of Llama 3: whole words of the vocabulary are not merged up to, and prompts start with bos. */
static bool is_llama3(struct gguf_text pre)
{
    return gguf_text_is(pre, "llama-bpe") || gguf_text_is(pre, "llama3") || gguf_text_is(pre, "llama-v3");
}

static enum status read_ids(struct model *m, const struct gguf *g, bool add_bos_default, struct error *err)
{
    static const char *const ends[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    struct model_config *c = &m->config;
    uint32_t id;
    bool found, flag = false;
    enum status st = gguf_u32(g, "tokenizer.ggml.bos_token_id", &id, &found, err);
    if (st)
        return st;
    if (found && id >= c->n_vocab)
        REFUSE("%s: key tokenizer.ggml.bos_token_id: %u is not in the vocabulary of %u", g->where, id, c->n_vocab);
    c->bos = found ? (int32_t)id : -1;
    c->add_bos = add_bos_default && found;
    if ((st = gguf_bool(g, "tokenizer.ggml.add_bos_token", &flag, &found, err)))
        return st;
    if (found && flag && c->bos < 0)
        REFUSE("%s: key tokenizer.ggml.bos_token_id is missing, and add_bos_token is true", g->where);
    if (found)
        c->add_bos = flag;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if ((st = gguf_u32(g, ends[i], &id, &found, err)))
            return st;
        if (found && id >= c->n_vocab)
            REFUSE("%s: key %s: %u is not in the vocabulary of %u", g->where, ends[i], id, c->n_vocab);
        if (found)
            model_eos_add(c, id);
        if (found && i == 0 &&
            !(m->vocab.eos_text = model_copy_text(m, m->vocab.tokens[id].text, m->vocab.tokens[id].bytes)))
            return error_set(err, ST_NO_MEMORY, "%s: out of memory", g->where);
    }
    return ST_OK;
}

static enum status refuse_true(const struct gguf *g, const char *name, struct error *err)
{
    bool flag = false, found;
    const enum status st = gguf_bool(g, name, &flag, &found, err);
    if (!st && flag)
        UNSUPPORTED("%s: key %s: true is not supported", g->where, name);
    return st;
}

enum status gguf_vocab_fill(struct model *m, const struct gguf *g, struct error *err)
{
    struct gguf_text model, pre, text;
    char shown[40];
    bool found;
    enum status st;
    if ((st = gguf_string(g, "tokenizer.ggml.model", &model, NULL, err)))
        return st;
    const bool scored = gguf_text_is(model, "llama");
    if (!scored && !gguf_text_is(model, "gpt2"))
        UNSUPPORTED("%s: key tokenizer.ggml.model: %s is not supported (gpt2 and llama are)", g->where,
                    model_printable(shown, sizeof shown, model.text, model.bytes));
    bool has_pre = true;
    if ((st = gguf_string(g, "tokenizer.ggml.pre", &pre, scored ? &has_pre : NULL, err)) ||
        (st = refuse_true(g, "tokenizer.ggml.add_eos_token", err)) ||
        (st = refuse_true(g, "tokenizer.ggml.add_sep_token", err)) ||
        (st = refuse_true(g, "tokenizer.ggml.remove_extra_whitespaces", err)))
        return st;
    if (!has_pre || scored) /* one table of pieces, whatever it is called */
        pre = (struct gguf_text){ "default", 7 };
    m->vocab.kind = scored ? MODEL_VOCAB_SENTENCEPIECE : MODEL_VOCAB_BPE;
    if ((st = read_tokens(m, g, err)) || (st = scored ? read_scores(m, g, err) : read_merges(m, g, err)) ||
        (st = read_ids(m, g, scored || is_llama3(pre), err)) ||
        (st = gguf_string(g, "tokenizer.chat_template", &text, &found, err)))
        return st;
    if (memchr(pre.text, 0, pre.bytes) || (found && memchr(text.text, 0, text.bytes)))
        REFUSE("%s: key tokenizer.ggml.pre or tokenizer.chat_template holds a zero byte", g->where);
    if (found && text.bytes > TEMPLATE_BYTES_MAX)
        REFUSE("%s: key tokenizer.chat_template has %zu bytes (at most %d)", g->where, text.bytes, TEMPLATE_BYTES_MAX);
    m->vocab.pre = model_copy_text(m, pre.text, pre.bytes);
    m->vocab.chat_template = found ? model_copy_text(m, text.text, text.bytes) : NULL;
    if (!m->vocab.pre || (found && !m->vocab.chat_template))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", g->where);
    m->vocab.ignore_merges = is_llama3(pre);
    model_eos_add_chat(m);
    return ST_OK;
}
