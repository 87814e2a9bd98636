#ifndef LONGSPAN_COORDINATOR_GATEWAY_GRAMMAR_CACHE_H
#define LONGSPAN_COORDINATOR_GATEWAY_GRAMMAR_CACHE_H

/*
 * Grammars of the last requests, with the states and masks they have met, and the vocabulary for their masks. A request that asks for the same again takes what
 * is there. One thread calls (the gateway's helper); the grammars' matchers belong to another.
 */

#include "coordinator/gateway/tools.h"
#include "coordinator/gateway/want.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GRAMMAR_CACHE_MAX = 16 };

struct grammar_cache;

/* tokenizer: kept. n_tokens: of its vocabulary that the model samples. NULL: no memory. */
struct grammar_cache *grammar_cache_new(const struct tokenizer *tokenizer, uint32_t n_tokens);
void grammar_cache_free(struct grammar_cache *c);

/* Does the answer follow a grammar? */
bool grammar_wanted(const struct want *w);
/*
 * Of a want with a grammar; tools: made of it, or NULL. *grammar_out: a reference; NULL if its tools ask for none after all. *vocabulary_out: the cache's, for its
 * life. Refuses what the schema is refused for.
 */
enum status grammar_cache_get(struct grammar_cache *c, const struct want *w, const struct tools *tools,
                              struct grammar **grammar_out, const struct vocabulary **vocabulary_out,
                              struct refusal *r);
/* Compiled so far. */
uint32_t grammar_cache_made(const struct grammar_cache *c);

#ifdef __cplusplus
}
#endif
#endif
