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

struct vocabulary {
    uint32_t n_tokens, n_words, longest;
    struct word *words;
};

#ifdef __cplusplus
}
#endif
#endif
