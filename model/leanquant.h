#ifndef LONGSPAN_MODEL_LEANQUANT_H
#define LONGSPAN_MODEL_LEANQUANT_H

/*
 * LeanQuant (arXiv:2407.10032), non-uniform grids: a matrix's weights are fixed one input after the other, each error spread over the inputs that follow, as
 * GPTQ does; the values that a row may take are placed where errors cost most. With H = 2 / N sum x x^T over calibration inputs, damped by a share of its mean
 * diagonal, U upper with H^-1 = U^T U, and inputs in descending order of H's diagonal:
 *
 * - grid of a row: 2^bits values that minimise sum_i U_ii^-power (grid(w_i) - w_i)^2 over the row's own weights (the published code's weighting; power 4),
 *   by weighted k-means: from evenly spaced values for 2 and 3 bits, from k-means++ under a fixed seed for 4; rounded to bf16 before use
 * - inputs in order: q the nearest of the grid (of two as near the lower one), e = (w_i - q) / U_ii, w_j -= e U_ij for j > i
 *
 * An input that never occurred (H_ii = 0) counts as 1 and its weights as 0. Everything is float64; results are a function of the arguments, the same bits on every
 * processor and for any number of threads.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "model/upper.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LEANQUANT_GRID_MAX = 16 };

struct leanquant_rule {
    double power;   /* 0: all weights of a row count the same */
    double damping; /* share of the mean diagonal that is added to it */
};
/* What packs are made with. */
static const struct leanquant_rule leanquant_default = { 4, 0.1 };

struct leanquant;
/*
 * From H [n][n], symmetric; changed meanwhile. A damping that leaves it not positive definite is raised tenfold, up to three times. team: who does it; NULL: the
 * caller. The result does not depend on it. ST_INVALID: it stays so, or is not finite; ST_NO_MEMORY.
 */
enum status leanquant_new(double *hessian, uint32_t n, const struct leanquant_rule *rule, const struct upper_team *team,
                          struct leanquant **q_out, struct error *err);
void leanquant_free(struct leanquant *q);
/* What came of the damping. */
double leanquant_damping(const struct leanquant *q);

/*
 * The grid of a row w [n], finite, by the rule: grid_out [1 << bits], bf16, ascending. Any thread. ST_NO_MEMORY.
 */
enum status leanquant_grid(const struct leanquant *q, const float *w, uint32_t bits, uint16_t *grid_out);

/* Rows that are coded together. One's result does not depend on the others; LEANQUANT_ROWS are fast. */
struct leanquant_rows {
    uint32_t n, n_grid; /* n_grid <= LEANQUANT_GRID_MAX */
    const float *w;     /* [n][inputs] */
    const float *grids; /* [n][n_grid], each ascending */
    bool spread;        /* false: each weight by itself (round to nearest) */
};
enum { LEANQUANT_ROWS = 16 };
/* Numbers that coding n_rows rows takes. */
size_t leanquant_scratch(const struct leanquant *q, uint32_t n_rows);
/*
 * codes_out [n][inputs] in the inputs' own order, loss_out [n]: the row's share of the layer's loss, sum_i e_i^2 / 2: half of (w - q) H (w - q)^T with H damped.
 * Any thread.
 */
void leanquant_code(const struct leanquant *q, const struct leanquant_rows *rows, double *scratch, uint8_t *codes_out,
                    double *loss_out);

/* Weighted k-means in one dimension. x ascending, weight [n] not negative; centres [k] in: where to start, out: what was found, ascending. -> the objective */
double leanquant_kmeans(const double *x, const double *weight, uint32_t n, double *centres, uint32_t k);

#ifdef __cplusplus
}
#endif
#endif
