#ifndef LONGSPAN_TESTS_UNIT_TOKENIZER_TINY_VOCAB_H
#define LONGSPAN_TESTS_UNIT_TOKENIZER_TINY_VOCAB_H

/* A vocabulary by hand: all 256 bytes, merges in order of rank ("a b", in the byte-level alphabet), added tokens. */

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/unicode.h"
#include "model/model.h"

enum { TINY_TOKENS_MAX = 512, TINY_MERGES_MAX = 64, TINY_TEXT = 16384 };

struct tiny_vocab {
    struct model_vocab v;
    struct model_token tokens[TINY_TOKENS_MAX];
    struct model_merge merges[TINY_MERGES_MAX];
    char text[TINY_TEXT];
    size_t n_text;
};

static inline const char *tiny_keep(struct tiny_vocab *t, const char *text, size_t bytes)
{
    assert(t->n_text + bytes <= TINY_TEXT);
    char *at = t->text + t->n_text;
    memcpy(at, text, bytes);
    t->n_text += bytes;
    return at;
}

static inline int32_t tiny_token(struct tiny_vocab *t, const char *text, size_t bytes, enum model_token_type type)
{
    assert(t->v.n_tokens < TINY_TOKENS_MAX);
    t->tokens[t->v.n_tokens] =
        (struct model_token){ .text = tiny_keep(t, text, bytes), .bytes = (uint32_t)bytes, .type = (uint8_t)type };
    return (int32_t)t->v.n_tokens++;
}

/* Bytes but those in `missing`, in order: without missing ones token i is byte i. */
static inline void tiny_init(struct tiny_vocab *t, const char *pre, const char *missing)
{
    memset(t, 0, sizeof *t);
    t->v.kind = MODEL_VOCAB_BPE;
    t->v.tokens = t->tokens;
    t->v.merges = t->merges;
    t->v.pre = pre;
    uint32_t others = 256;
    for (uint32_t b = 0; b < 256; b++) {
        const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        uint8_t utf8[4];
        const uint32_t n = utf8_put(shown ? b : others++, utf8);
        if (!missing || !memchr(missing, (int)b, strlen(missing)))
            tiny_token(t, (const char *)utf8, n, MODEL_TOKEN_NORMAL);
    }
}

/* Adds the merge and, if it is new, the token that it makes. */
static inline void tiny_merge(struct tiny_vocab *t, const char *left, const char *right)
{
    char joined[128];
    const int n = snprintf(joined, sizeof joined, "%s%s", left, right);
    assert(t->v.n_merges < TINY_MERGES_MAX && n > 0 && (size_t)n < sizeof joined);
    bool known = false;
    for (uint32_t i = 0; i < t->v.n_tokens; i++)
        known = known || (t->tokens[i].bytes == (uint32_t)n && memcmp(t->tokens[i].text, joined, (size_t)n) == 0);
    if (!known)
        tiny_token(t, joined, (size_t)n, MODEL_TOKEN_NORMAL);
    t->merges[t->v.n_merges++] = (struct model_merge){ .left = tiny_keep(t, left, strlen(left)),
                                                       .right = tiny_keep(t, right, strlen(right)),
                                                       .left_bytes = (uint32_t)strlen(left),
                                                       .right_bytes = (uint32_t)strlen(right) };
}

#endif
