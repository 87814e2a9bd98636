/* Triangular factors: every variant of the product gives the same bits; R R^T is H and U R is one, for one member and for several; what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "model/upper.h"

enum { B = UPPER_BLOCK };

static double *draw(struct rng *rng, size_t n)
{
    double *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_unit(rng_next(rng)) * 2 - 1;
    return x;
}

static void test_subtract(void **state)
{
    (void)state;
    enum { ROWS = 7, N = 45 };
    struct rng rng = { .seed = 3 };
    double *a = draw(&rng, ROWS * (B + 3)), *e = draw(&rng, ROWS * (N + 1)), *u = draw(&rng, N * B);
    for (size_t n_rows = 1; n_rows <= ROWS; n_rows++) {
        double want[ROWS * (B + 3)];
        memcpy(want, a, sizeof want);
        for (size_t r = 0; r < n_rows; r++)
            for (size_t j = 0; j < B; j++)
                for (size_t i = 0; i < N; i++)
                    want[r * (B + 3) + j] -= e[r * (N + 1) + i] * u[i * B + j];
        for (uint32_t v = 0; upper_subtract_variant(v); v++) {
            double got[ROWS * (B + 3)];
            memcpy(got, a, sizeof got);
            upper_subtract_variant(v)(got, B + 3, n_rows, e, N + 1, u, N);
            assert_memory_equal(got, want, sizeof got);
        }
    }
    assert_non_null(upper_subtract_find());
    free(a);
    free(e);
    free(u);
}

/* Members one after the other, the last one first. */
static void serve(void *ctx, void (*work)(void *work_ctx, uint32_t member, uint32_t n_members), void *work_ctx)
{
    const uint32_t n = *(const uint32_t *)ctx;
    for (uint32_t i = n; i-- > 0;)
        work(work_ctx, i, n);
}

static double *make_h(struct rng *rng, size_t n)
{
    double *x = draw(rng, n * n), *h = calloc(n * n, sizeof *h);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < n; k++)
                h[i * n + j] += x[i * n + k] * x[j * n + k] / (double)n + (i == j && k == 0 ? 0.2 : 0);
    free(x);
    return h;
}

static double at(const double *u, size_t i, size_t j)
{
    return i / B > j / B ? 0 : u[upper_strip(j / B) + i * B + j % B];
}

static void test_factor(void **state)
{
    (void)state;
    enum { N = 3 * B };
    struct rng rng = { .seed = 9 };
    double *h = make_h(&rng, N), *scratch = malloc((size_t)N * B * sizeof *scratch), *first[2] = { NULL };
    for (uint32_t members = 1; members <= 4; members++) {
        const struct upper_team team = { serve, &members };
        double *r = malloc((size_t)N * N * sizeof *r), *u = malloc(upper_strip(3) * sizeof *u);
        memcpy(r, h, (size_t)N * N * sizeof *r);
        assert_true(upper_factor(r, N, scratch, members > 1 ? &team : NULL));
        upper_invert(r, N, members > 1 ? &team : NULL, u);
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < i; j++)
                r[i * N + j] = 0;
        if (members > 1) {
            assert_memory_equal(r, first[0], (size_t)N * N * sizeof *r);
            assert_memory_equal(u, first[1], upper_strip(3) * sizeof *u);
            free(r);
            free(u);
            continue;
        }
        for (size_t i = 0; i < N; i++)
            for (size_t j = i; j < N; j++) {
                double product = 0, one = 0;
                for (size_t k = j; k < N; k++)
                    product += r[i * N + k] * r[j * N + k];
                for (size_t k = i; k <= j; k++)
                    one += r[i * N + k] * at(u, k, j);
                assert_true(fabs(product - h[i * N + j]) < 1e-12);
                assert_true(fabs(one - (i == j)) < 1e-12);
            }
        for (size_t i = 1; i < N; i++)
            assert_true(at(u, i, i - 1) == 0);
        first[0] = r;
        first[1] = u;
    }
    free(first[0]);
    free(first[1]);
    free(scratch);
    free(h);
}

static void test_refuses(void **state)
{
    (void)state;
    enum { N = 2 * B };
    static const double wrong[] = { 0, -1, NAN, INFINITY };
    double *a = malloc((size_t)N * N * sizeof *a), *scratch = malloc((size_t)N * B * sizeof *scratch);
    for (size_t place = 0; place < 2; place++)
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
            memset(a, 0, (size_t)N * N * sizeof *a);
            for (size_t i = 0; i < N; i++)
                a[i * N + i] = 1;
            a[(5 + place * B) * (N + 1)] = wrong[k];
            assert_false(upper_factor(a, N, scratch, NULL));
        }
    free(a);
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_subtract),
        cmocka_unit_test(test_factor),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
