#ifndef LONGSPAN_CLIENT_BENCH_PROMPT_H
#define LONGSPAN_CLIENT_BENCH_PROMPT_H

/*
 * Prompts of a wanted length: token ids, or text of words that are one token each. What stands at a position is a function of the seed and of the
 * block's id (traces), the position (the prefix that all share), or the request and the position.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/bench/workload.h"

#ifdef __cplusplus
extern "C" {
#endif

struct evbuffer;

enum { PROMPT_WORDS_MAX = 256 };
extern const char *const prompt_words[]; /* NULL ends them */

struct prompts {
    uint64_t seed;
    bool text;
    uint32_t prefix_tokens, block_tokens;
    uint32_t id_low, id_high;            /* token ids: id_low .. id_high */
    const char *words[PROMPT_WORDS_MAX]; /* text: [n_words] */
    uint32_t n_words, overhead;          /* tokens of an empty prompt */
};

/* The random number at a position. */
uint64_t prompt_at(const struct prompts *p, const struct load_request *r, uint32_t position);
/* Appends the prompt as JSON: a list of ids, or a string. false: out of memory. */
bool prompt_write(const struct prompts *p, const struct load_request *r, struct evbuffer *out);

#ifdef __cplusplus
}
#endif
#endif
