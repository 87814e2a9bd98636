#ifndef LONGSPAN_CLIENT_EVAL_SCORE_H
#define LONGSPAN_CLIENT_EVAL_SCORE_H

/* How well rows of logits predict a text, and how far they are from those of a baseline. */

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sums over rows; zeroed at the start. */
struct eval_score {
    uint64_t n_rows, n_same; /* same: both rows' largest logit is the same token */
    double nll, kl;          /* natural logarithms */
};

/*
 * Adds one row. logits, baseline [n]: finite; token: what came next in the text, below n. kl is that of the baseline's distribution from this one,
 * sum p_baseline (ln p_baseline - ln p), in float64. Of equal logits the lowest token is the largest.
 */
void eval_score_add(struct eval_score *s, const float *logits, const float *baseline, uint32_t n, uint32_t token);

/* Perplexity, mean kl, and the share of rows with the same largest; of no rows NaN. */
struct eval_means {
    double ppl, kl, top1;
};
struct eval_means eval_score_means(const struct eval_score *s);

/* Whether all of a row's logits are numbers. */
bool eval_finite(const float *logits, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
