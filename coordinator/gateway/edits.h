#ifndef LONGSPAN_COORDINATOR_GATEWAY_EDITS_H
#define LONGSPAN_COORDINATOR_GATEWAY_EDITS_H

/*
 * What a request does to the logits of its next row: logit_bias, presence, frequency and repetition penalties, min_tokens, and a grammar's mask. Made from
 * the tokens that have come, so workers keep none of it. Penalties: presence and frequency count generated tokens, as OpenAI defines them (logit -
 * presence - frequency * count); repetition also those of the prompt, as in CTRL (arXiv:1909.05858).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "coordinator/grammar/grammar.h"
#include "coordinator/gateway/want.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

struct edits;

struct edits_start {
    const struct want *want; /* bias, penalties, min_tokens */
    const int32_t *prompt;
    size_t n_prompt;
    const int32_t *eos; /* what min_tokens holds back */
    size_t n_eos;
    uint32_t n_vocab;
    struct grammar
        *grammar; /* that the answer follows, and the vocabulary, for its masks; NULL: none. A reference is taken */
    const struct vocabulary *vocabulary;
    const struct tokenizer *tokenizer;
};

/* *edits_out is NULL if nothing is edited. Refuses tokens that the vocabulary lacks, naming logit_bias. */
enum status edits_new(const struct edits_start *start, struct edits **edits_out, struct refusal *r);
/* For another choice of the same prompt, before its first token. NULL: out of memory. */
struct edits *edits_again(const struct edits *e);
void edits_free(struct edits *e);
/* Do they follow from generated tokens? */
bool edits_history(const struct edits *e);
/* A token was generated, which does not end the answer. Refuses for want of memory, or if the grammar does not go on, or costs too much. */
enum status edits_push(struct edits *e, int32_t token, struct refusal *r);
/* The grammar's text is whole and nothing can follow. */
bool edits_ended(const struct edits *e);
/* For generated token number n (from 0); valid until the next call. NULL: none. */
const struct plan_edits *edits_at(struct edits *e, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
