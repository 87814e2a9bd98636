#ifndef LONGSPAN_MODEL_UPPER_H
#define LONGSPAN_MODEL_UPPER_H

/*
 * Upper triangular matrices in float64: H = R R^T and U = R^-1, so that H^-1 = U^T U. All work in blocks of UPPER_BLOCK: n is a multiple of it, callers fill up
 * with ones on the diagonal. U lies in strips of UPPER_BLOCK columns, strip s [(s + 1) UPPER_BLOCK][UPPER_BLOCK] at upper_strip(s): what lies under the
 * diagonal's block is not stored. Every sum is taken in one order, without fused operations: the same bits for any number of threads and every processor.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { UPPER_BLOCK = 64 };

static inline size_t upper_padded(size_t n)
{
    return (n + UPPER_BLOCK - 1) / UPPER_BLOCK * UPPER_BLOCK;
}

/* Where strip s begins, in numbers; of s = n / UPPER_BLOCK: how many all have. */
static inline size_t upper_strip(size_t s)
{
    return s * (s + 1) / 2 * UPPER_BLOCK * UPPER_BLOCK;
}

/* Who does the work: run calls work once for each member, as team_run (worker/team.h) does. run NULL: the caller alone. */
struct upper_team {
    void (*run)(void *ctx, void (*work)(void *work_ctx, uint32_t member, uint32_t n_members), void *work_ctx);
    void *ctx;
};

/*
 * a[r][j] -= e[r][0] u[0][j], then e[r][1] u[1][j] and so on to n, for j < UPPER_BLOCK: rows of a a_stride apart, of e e_stride, of u UPPER_BLOCK. Any alignment;
 * a overlaps neither e nor u.
 */
typedef void upper_subtract_fn(double *a, size_t a_stride, size_t n_rows, const double *e, size_t e_stride,
                               const double *u, size_t n);
/* Variant i, in plain C (0) or for more of this processor; NULL: there are no more. All give the same bits. */
upper_subtract_fn *upper_subtract_variant(uint32_t i);
/* The fastest. */
upper_subtract_fn *upper_subtract_find(void);

/*
 * a [n][n]: H's upper triangle becomes R; the lower one is left alone, but that what lies there in the
 * diagonal's blocks changes. scratch: n UPPER_BLOCK numbers. false: not positive definite, or not finite.
 */
bool upper_factor(double *a, size_t n, double *scratch, const struct upper_team *team);
/* r [n][n] of upper_factor; u_out: upper_strip(n / UPPER_BLOCK) numbers, zeros under the diagonal of strips. */
void upper_invert(const double *r, size_t n, const struct upper_team *team, double *u_out);

#ifdef __cplusplus
}
#endif
#endif
