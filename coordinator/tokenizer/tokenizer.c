#include "coordinator/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/rules.h"

/* Places in a piece are 32-bit numbers. */
enum { TEXT_BYTES_MAX = INT32_MAX };

/* ---- building ---- */

static bool is_hidden(uint8_t type)
{
    return type == MODEL_TOKEN_CONTROL || type == MODEL_TOKEN_UNKNOWN || type == MODEL_TOKEN_UNUSED;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0x0A>" is the byte 10. */
static bool byte_of_name(const struct model_token *token, uint8_t *out)
{
    const char *s = token->text;
    if (token->bytes != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || hex_digit(s[3]) < 0 || hex_digit(s[4]) < 0)
        return false;
    *out = (uint8_t)(hex_digit(s[3]) << 4 | hex_digit(s[4]));
    return true;
}

static size_t text_of_token(const struct model_vocab *v, uint32_t id, uint8_t *out)
{
    const struct model_token *token = &v->tokens[id];
    if (v->kind == MODEL_VOCAB_BYTES && id < 256) {
        *out = (uint8_t)id;
        return 1;
    }
    if (is_hidden(token->type))
        return 0;
    if (token->type == MODEL_TOKEN_BYTE && byte_of_name(token, out))
        return 1;
    if (token->type == MODEL_TOKEN_NORMAL && v->kind == MODEL_VOCAB_BPE)
        return bpe_token_bytes(token->text, token->bytes, out);
    memcpy(out, token->text, token->bytes);
    return token->bytes;
}

static enum status texts_init(struct tokenizer *t)
{
    const struct model_vocab *v = t->vocab;
    size_t total = 256;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        total += v->tokens[i].bytes;
    t->texts = calloc(v->n_tokens ? v->n_tokens : 1, sizeof *t->texts);
    t->text_bytes = malloc(total);
    if (!t->texts || !t->text_bytes)
        return ST_NO_MEMORY;
    uint8_t *at = t->text_bytes;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const size_t n = text_of_token(v, i, at);
        t->texts[i] = (struct token_text){ .bytes = at, .n = (uint32_t)n };
        t->token_bytes_max = n > t->token_bytes_max ? n : t->token_bytes_max;
        at += n;
    }
    return ST_OK;
}

static enum status words_init(struct tokenizer *t, uint64_t seed, struct error *err)
{
    const struct model_vocab *v = t->vocab;
    bool unk = false;
    enum status st = bpe_new(v, seed, &t->bpe, err);
    if (st)
        return st;
    if (v->pre)
        st = splitter_named(v->pre, &t->splitter, err);
    else if (v->tokenizer_json)
        st = rules_from_json(v->tokenizer_json, v->tokenizer_json_bytes, &t->splitter, &unk, err);
    else
        st = error_set(err, ST_UNSUPPORTED, "tokenizer: the model names no pre-tokenizer");
    if (!st && unk && bpe_missing_bytes(t->bpe) > 0)
        st = error_set(err, ST_UNSUPPORTED,
                       "tokenizer.json: model.unk_token with a vocabulary that lacks %u bytes is not supported",
                       bpe_missing_bytes(t->bpe));
    return st;
}

enum status tokenizer_build(const struct model_vocab *v, int32_t bos, uint64_t seed, struct tokenizer **tokenizer_out,
                            struct error *err)
{
    if (v->kind == MODEL_VOCAB_BYTES && v->n_tokens < 256)
        return error_set(err, ST_CORRUPT, "vocabulary: %u tokens, too few for bytes", v->n_tokens);
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return ST_NO_MEMORY;
    t->vocab = v;
    t->bos = bos >= 0 && (uint32_t)bos < v->n_tokens ? bos : -1;
    enum status st = v->kind == MODEL_VOCAB_BPE ? words_init(t, seed, err) : ST_OK;
    if (!st)
        st = texts_init(t);
    if (!st)
        st = added_new(v, &t->added);
    if (!st)
        st = chat_init(t);
    if (st) {
        tokenizer_free(t);
        return st;
    }
    *tokenizer_out = t;
    return ST_OK;
}

enum status tokenizer_new(const struct model *m, struct tokenizer **tokenizer_out, struct error *err)
{
    const struct digest d = model_digest(m);
    uint64_t seed;
    memcpy(&seed, d.byte, sizeof seed);
    return tokenizer_build(model_vocab(m), model_config(m)->bos, seed, tokenizer_out, err);
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    chat_deinit(t);
    bpe_free(t->bpe);
    splitter_free(t->splitter);
    added_free(t->added);
    free(t->texts);
    free(t->text_bytes);
    free(t);
}

/* ---- text to ids ---- */

struct piece_arg {
    const struct bpe *bpe;
    struct bpe_run *run;
};

static enum status on_piece(void *arg, const uint8_t *piece, size_t bytes)
{
    const struct piece_arg *a = arg;
    return bpe_encode(a->bpe, a->run, piece, bytes);
}

static enum status append_plain(const struct tokenizer *t, const uint8_t *text, size_t bytes, struct bpe_run *run)
{
    if (t->bpe)
        return splitter_run(t->splitter, text, bytes, on_piece, &(struct piece_arg){ t->bpe, run });
    enum status st = ST_OK;
    for (size_t i = 0; !st && i < bytes; i++)
        st = bpe_run_add(run, text[i]);
    return st;
}

enum status tokenizer_append(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool specials,
                             struct bpe_run *run)
{
    if (bytes > TEXT_BYTES_MAX)
        return ST_TOO_LARGE;
    if (bytes == 0)
        return ST_OK;
    const uint8_t *end = text + bytes;
    enum status st = ST_OK;
    while (!st && text < end) {
        const uint8_t *from = end, *to = end;
        const int32_t id = added_find(t->added, text, end, specials, &from, &to);
        st = append_plain(t, text, (size_t)(from - text), run);
        if (!st && id >= 0)
            st = bpe_run_add(run, id);
        text = to;
    }
    return st;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool specials, size_t ids_max,
                             int32_t **ids_out, size_t *n_out)
{
    struct bpe_run run = { .ids_max = ids_max };
    enum status st = bpe_run_reserve(&run, bytes / 4);
    if (!st)
        st = tokenizer_append(t, (const uint8_t *)text, bytes, specials, &run);
    if (!st)
        bpe_run_take(&run, ids_out, n_out);
    bpe_run_deinit(&run);
    return st;
}

/* ---- ids to text ---- */

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool specials, size_t *bytes_out)
{
    *bytes_out = 0;
    if (id < 0 || (uint32_t)id >= t->vocab->n_tokens)
        return "";
    const struct model_token *token = &t->vocab->tokens[id];
    if (specials && tokenizer_is_control(t, id)) {
        *bytes_out = token->bytes;
        return token->text;
    }
    *bytes_out = t->texts[id].n;
    return (const char *)t->texts[id].bytes;
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || (uint32_t)id >= t->vocab->n_tokens)
        return false;
    return !(t->vocab->kind == MODEL_VOCAB_BYTES && id < 256) && is_hidden(t->vocab->tokens[id].type);
}

uint32_t tokenizer_n_tokens(const struct tokenizer *t)
{
    return t->vocab->n_tokens;
}
