#define _GNU_SOURCE /* memmem */
#include "coordinator/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/nfc.h"
#include "coordinator/tokenizer/rules.h"

/* Places in a piece are 32-bit numbers. */
enum { TEXT_BYTES_MAX = INT32_MAX };

/* ---- building ---- */

static bool is_hidden(uint8_t type)
{
    return type == MODEL_TOKEN_CONTROL || type == MODEL_TOKEN_UNKNOWN || type == MODEL_TOKEN_UNUSED;
}

/* U+2581 becomes the space that it stands for. */
static size_t spaces_of_signs(const char *text, size_t bytes, uint8_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        const bool sign = bytes - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = sign ? ' ' : (uint8_t)text[i];
        i += sign ? 2 : 0;
    }
    return n;
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
    const int byte = token->type == MODEL_TOKEN_BYTE ? bpe_byte_of_name(token->text, token->bytes) : -1;
    if (byte >= 0) {
        *out = (uint8_t)byte;
        return 1;
    }
    if (v->kind == MODEL_VOCAB_SENTENCEPIECE)
        return spaces_of_signs(token->text, token->bytes, out);
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

static enum status rules_init(struct tokenizer *t, struct error *err)
{
    const struct model_vocab *v = t->vocab;
    if (v->kind == MODEL_VOCAB_SENTENCEPIECE && v->scores) {
        t->rules.prefix = v->space_prefix ? PREFIX_ALWAYS : PREFIX_NONE;
        t->rules.strip_first = v->space_prefix;
        return ST_OK;
    }
    if (v->kind == MODEL_VOCAB_BPE && v->pre) {
        t->rules.nfc = strcmp(v->pre, "qwen2") == 0;
        return splitter_named(v->pre, &t->splitter, err);
    }
    if (!v->tokenizer_json)
        return error_set(err, ST_UNSUPPORTED, "tokenizer: the model names no pre-tokenizer");
    const enum status st = rules_from_json(v->tokenizer_json, v->tokenizer_json_bytes, &t->rules, err);
    if (st)
        return st;
    t->splitter = t->rules.splitter;
    if (!t->splitter == (v->kind == MODEL_VOCAB_BPE))
        return error_set(err, ST_CORRUPT, "tokenizer.json: its rules are not those of its vocabulary");
    return ST_OK;
}

static enum status words_init(struct tokenizer *t, uint64_t seed, struct error *err)
{
    enum status st = bpe_new(t->vocab, seed, &t->bpe, err);
    if (!st)
        st = rules_init(t, err);
    if (!st && t->rules.unk && bpe_missing_bytes(t->bpe) > 0)
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
    enum status st = v->kind != MODEL_VOCAB_BYTES ? words_init(t, seed, err) : ST_OK;
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

static const char space_sign[] = "\xE2\x96\x81";

static bool begins_with_space(const uint8_t *text, size_t bytes)
{
    return bytes > 0 && (text[0] == ' ' || (bytes >= 3 && memcmp(text, space_sign, 3) == 0));
}

/* Spaces become signs, with one before them all where the rules put one. */
static size_t signs_of_spaces(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool first, uint8_t *out)
{
    const enum space_prefix how = t->rules.prefix;
    size_t n = 0;
    if (how == PREFIX_ALWAYS ||
        (how != PREFIX_NONE && !begins_with_space(text, bytes) && (first || how == PREFIX_UNLESS_SPACE))) {
        memcpy(out, space_sign, 3);
        n = 3;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ') {
            memcpy(out + n, space_sign, 3);
            n += 3;
        } else {
            out[n++] = text[i];
        }
    }
    return n;
}

static enum status append_signs(const struct tokenizer *t, const uint8_t *text, size_t bytes, struct bpe_run *run)
{
    enum status st = ST_OK;
    if (!t->rules.split_spaces)
        return bpe_encode(t->bpe, run, text, bytes);
    for (size_t from = 0, to; !st && from < bytes; from = to) {
        const uint8_t *next = bytes - from > 1 ? memmem(text + from + 1, bytes - from - 1, space_sign, 3) : NULL;
        to = next ? (size_t)(next - text) : bytes;
        st = bpe_encode(t->bpe, run, text + from, to - from);
    }
    return st;
}

static enum status append_sentencepiece(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool first,
                                        struct bpe_run *run)
{
    size_t n_spaces = 1;
    for (size_t i = 0; i < bytes; i++)
        n_spaces += text[i] == ' ';
    if (bytes + 2 * n_spaces + 1 > TEXT_BYTES_MAX)
        return ST_TOO_LARGE;
    uint8_t *signs = malloc(bytes + 2 * n_spaces + 1);
    if (!signs)
        return ST_NO_MEMORY;
    const size_t n = signs_of_spaces(t, text, bytes, first, signs);
    const enum status st = append_signs(t, signs, n, run);
    free(signs);
    return st;
}

/* A segment: text without added tokens. */
static enum status append_plain(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool first,
                                struct bpe_run *run)
{
    enum status st = ST_OK;
    if (bytes == 0)
        return ST_OK;
    if (t->vocab->kind == MODEL_VOCAB_SENTENCEPIECE)
        return append_sentencepiece(t, text, bytes, first, run);
    if (t->bpe) {
        uint8_t *composed = NULL;
        if (t->rules.nfc && !nfc_quick(text, bytes)) {
            st = nfc_compose(text, bytes, &composed, &bytes);
            text = composed;
        }
        if (!st)
            st = splitter_run(t->splitter, text, bytes, on_piece, &(struct piece_arg){ t->bpe, run });
        free(composed);
        return st;
    }
    for (size_t i = 0; !st && i < bytes; i++)
        st = bpe_run_add(run, text[i]);
    return st;
}

enum status tokenizer_append(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool specials, bool first,
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
        st = append_plain(t, text, (size_t)(from - text), first, run);
        if (!st && id >= 0)
            st = bpe_run_add(run, id);
        text = to;
        first = false;
    }
    return st;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool specials, size_t ids_max,
                             int32_t **ids_out, size_t *n_out)
{
    struct bpe_run run = { .ids_max = ids_max };
    enum status st = bpe_run_reserve(&run, bytes / 4);
    if (!st)
        st = tokenizer_append(t, (const uint8_t *)text, bytes, specials, true, &run);
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

size_t tokenizer_start_dropped(const struct tokenizer *t, const char *text, size_t bytes)
{
    return t->rules.strip_first && bytes > 0 && *text == ' ';
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || (uint32_t)id >= t->vocab->n_tokens)
        return false;
    return !(t->vocab->kind == MODEL_VOCAB_BYTES && id < 256) && is_hidden(t->vocab->tokens[id].type);
}

int32_t tokenizer_control(const struct tokenizer *t, const char *name)
{
    const uint8_t *text = (const uint8_t *)name, *end = text + strlen(name), *from, *to;
    const int32_t id = added_find(t->added, text, end, true, &from, &to);
    return id >= 0 && from == text && to == end && tokenizer_is_control(t, id) ? id : -1;
}

uint32_t tokenizer_n_tokens(const struct tokenizer *t)
{
    return t->vocab->n_tokens;
}
