#ifndef LONGSPAN_CLIENT_EVAL_SCORE_H
#define LONGSPAN_CLIENT_EVAL_SCORE_H

/* How well rows of logits predict a text, and how far they are from those of a baseline. */

#include <stdbool.h>
#include <stdint.h>

#include "client/eval/estimate.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sums over rows; zeroed at the start. */
struct eval_score {
    uint64_t n_rows, n_same;      /* same: both rows' largest logit is the same token */
    double nll, nll_baseline, kl; /* natural logarithms */
};

/*
 * Adds one row. logits, baseline [n]: finite; token: what came next in the text, below n. kl is that of the baseline's distribution from this one,
 * sum p_baseline (ln p_baseline - ln p), in float64. Of equal logits the lowest token is the largest.
 */
void eval_score_add(struct eval_score *s, const float *logits, const float *baseline, uint32_t n, uint32_t token);

/* Perplexity; perplexity over the baseline's; mean kl; share of rows with the same largest. */
struct eval_quality {
    struct eval_estimate ppl, ppl_ratio, kl, top1;
};

enum { EVAL_BATCHES_MAX = 1024 };
/*
 * Of rows in n batches, 1 to EVAL_BATCHES_MAX, as many rows in each. Neighbouring rows are alike, so an interval is made of the batches' means, each of which counts
 * once; that of top1 is made of rows.
 */
struct eval_quality eval_quality(const struct eval_score *batches, uint32_t n);

/* Whether all of a row's logits are numbers. */
bool eval_finite(const float *logits, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
