/*
 * Sketch&Walk as published, as references that the project's variant is measured against: P, the algorithms of arXiv:2602.07397v1, and O, those of the
 * authors' repository, with values worked out by hand. Small matrices in float64; the product has neither.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "common/rng.h"

enum { N = 24 };
typedef double matrix[N][N];

#define assert_near(a, b, by) assert_true(fabs((a) - (b)) <= (by))

/* ---- P: W = (causal row softmax of logits)^s, R_l = R_{l-1} W_l; a query block keeps the tau best of its row of R, with block 0 and itself ---- */

static void p_weights(matrix logits, int n, double s, matrix w)
{
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j <= i; j++)
            sum += exp(logits[i][j]);
        for (int j = 0; j < n; j++)
            w[i][j] = j <= i ? pow(exp(logits[i][j]) / sum, s) : 0;
    }
}

static void product(matrix a, matrix b, int n, matrix out)
{
    matrix c;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            c[i][j] = 0;
            for (int k = 0; k < n; k++)
                c[i][j] += a[i][k] * b[k][j];
        }
    }
    memcpy(out, c, sizeof c);
}

static uint32_t best(const double *row, int n, int tau, uint32_t chosen)
{
    while (__builtin_popcount(chosen) < (tau < n ? tau : n)) {
        int at = -1;
        for (int j = 0; j < n; j++)
            if (!(chosen >> j & 1) && (at < 0 || row[j] > row[at]))
                at = j;
        chosen |= 1u << at;
    }
    return chosen;
}

static uint32_t p_choose(const double *row, int block, int tau)
{
    return best(row, block + 1, tau, 1u | 1u << block);
}

static void p_values(void **state)
{
    (void)state;
    matrix a = { { 0 }, { 1, 0 }, { 0.5, 0, 1 } }, w, r;
    p_weights(a, 3, 8, w);
    assert_near(w[0][0], 1, 1e-9);
    assert_near(w[1][0], 0.08158633, 1e-8);
    assert_near(w[1][1], 2.737e-5, 1e-8);
    assert_near(w[2][0], 7.931e-5, 1e-8);
    assert_near(w[2][1], 1.45e-6, 1e-8);
    assert_near(w[2][2], 0.00433013, 1e-8);
    product(w, w, 3, r);
    assert_near(r[2][0], 7.977e-5, 1e-8);
    assert_near(r[2][1], 1e-8, 1e-8);
    assert_near(r[2][2], 1.875e-5, 1e-8);
    assert_int_equal(p_choose(r[2], 2, 3), 7);
    assert_int_equal(p_choose(r[2], 2, 2), 5); /* the first and its own */
}

/* One block more changes no row that was there: decode's state is that of prefill. And dividing a row by its maximum changes no choice. */
static void p_rows_stand(void **state)
{
    (void)state;
    struct rng rng = { 2, 0 };
    static matrix a[3], w, r, small, scaled;
    for (int n = 4; n <= N; n += 5) {
        for (int l = 0; l < 3; l++)
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N; j++)
                    a[l][i][j] = (double)rng_below(&rng, 4000) / 1000;
        for (int l = 0; l < 3; l++) {
            p_weights(a[l], N, 8, w);
            if (l == 0) {
                memcpy(r, w, sizeof r);
                memcpy(scaled, w, sizeof r);
            } else {
                product(r, w, N, r);
                for (int i = 0; i < N; i++) {
                    double most = 0;
                    for (int j = 0; j < N; j++)
                        most = fmax(most, scaled[i][j]);
                    for (int j = 0; j < N; j++)
                        scaled[i][j] /= most;
                }
                product(scaled, w, N, scaled);
            }
        }
        for (int l = 0; l < 3; l++) {
            p_weights(a[l], n, 8, w);
            if (l == 0)
                memcpy(small, w, sizeof r);
            else
                product(small, w, n, small);
        }
        for (int i = 0; i < n; i++) {
            for (int j = 0; j <= i; j++)
                assert_near(small[i][j] / r[i][j], 1, 1e-12);
            for (int tau = 2; tau <= n; tau++)
                assert_int_equal(p_choose(r[i], i, tau), p_choose(scaled[i], i, tau));
            assert_int_equal(p_choose(r[i], i, n), (1u << (i + 1)) - 1);
        }
    }
}

/* ---- O: row-stochastic A; S = (1 - beta) A + beta S A, degree times, from the layer before; above a quantile, with sinks and a window ---- */

static void o_walk(matrix a, int n, double beta, int degree, matrix s)
{
    for (int step = 0; step < degree; step++) {
        matrix sa;
        product(s, a, n, sa);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++)
                s[i][j] = (1 - beta) * a[i][j] + beta * sa[i][j];
    }
}

static uint32_t o_choose(const double *row, int block, int sinks, int window, double fraction)
{
    uint32_t chosen = 1u << block;
    for (int j = 0; j <= block; j++)
        chosen |= j < sinks || j > block - window ? 1u << j : 0;
    const int candidates = block + 1 - __builtin_popcount(chosen);
    /* by index instead of by quantile, which keeps fewer where values tie */
    return best(row, block + 1, __builtin_popcount(chosen) + (int)ceil(fraction * candidates), chosen);
}

static void o_values(void **state)
{
    (void)state;
    matrix a = { { 1 }, { 0.5, 0.5 }, { 0.2, 0.3, 0.5 } }, s;
    memcpy(s, a, sizeof s);
    o_walk(a, 3, 0.25, 3, s);
    const double want[3][3] = { { 1 }, { 0.571289, 0.428711 }, { 0.277148, 0.294141, 0.428711 } };
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            assert_near(s[i][j], want[i][j], 1e-6);
}

/* Rows stay stochastic; three steps are 0.75 A + 0.1875 A^2 + 0.046875 A^3 + 0.015625 S A^3. */
static void o_expands(void **state)
{
    (void)state;
    struct rng rng = { 4, 0 };
    static matrix a, s, power, want;
    for (int i = 0; i < N; i++) {
        double sum[2] = { 0 };
        for (int j = 0; j <= i; j++) {
            a[i][j] = 1 + rng_below(&rng, 100);
            s[i][j] = 1 + rng_below(&rng, 100);
            sum[0] += a[i][j];
            sum[1] += s[i][j];
        }
        for (int j = 0; j <= i; j++) {
            a[i][j] /= sum[0];
            s[i][j] /= sum[1];
        }
    }
    const double weight[3] = { 0.75, 0.1875, 0.046875 };
    for (int p = 0; p < 3; p++) {
        if (p == 0)
            memcpy(power, a, sizeof a);
        else
            product(power, a, N, power);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++)
                want[i][j] = (p ? want[i][j] : 0) + weight[p] * power[i][j];
    }
    product(s, power, N, power);
    o_walk(a, N, 0.25, 3, s);
    for (int i = 0; i < N; i++) {
        double sum = 0;
        for (int j = 0; j < N; j++) {
            assert_near(s[i][j], want[i][j] + 0.015625 * power[i][j], 1e-12);
            sum += s[i][j];
        }
        assert_near(sum, 1, 1e-12);
        assert_int_equal(o_choose(s[i], i, 1, 2, 1.0), (1u << (i + 1)) - 1);
        assert_int_equal(o_choose(s[i], i, 1, 2, 0.125) & (1u | 1u << i), 1u | 1u << i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(p_values),
        cmocka_unit_test(p_rows_stand),
        cmocka_unit_test(o_values),
        cmocka_unit_test(o_expands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
