#ifndef LONGSPAN_COORDINATOR_GRAMMAR_VOCABULARY_H
#define LONGSPAN_COORDINATOR_GRAMMAR_VOCABULARY_H

#include "coordinator/grammar/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A token with bytes; sorted by them. */
struct word {
    const uint8_t *bytes;
    uint32_t n, token;
    uint32_t shared; /* bytes in common with the word before */
};

enum { VOCABULARY_PLAIN_MAX = 16, VOCABULARY_LEVELS = 4 };

/*
 * Words of at most `plain` characters, all plain, as a set; and the rest, in the order of words. Plain: those that stand for themselves in a JSON string, from
 * ' ' on, but '"', '\\' and U+007F; whole, in valid UTF-8.
 */
struct word_level {
    uint32_t plain;
    uint8_t *set;
    uint32_t n_set, n_rest;
    struct word_rest {
        uint32_t word, shared; /* bytes in common with the rest's word before */
    } * rest;
};

struct vocabulary {
    uint32_t n_tokens, n_words, longest;
    struct word *words;
    struct word_level levels[VOCABULARY_LEVELS]; /* ascending */
};

/* The level for where any `run` plain characters may come; NULL: too few for any. */
const struct word_level *vocabulary_level(const struct vocabulary *v, uint32_t run);

#ifdef __cplusplus
}
#endif
#endif
