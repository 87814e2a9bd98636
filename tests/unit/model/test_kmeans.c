/* Weighted k-means against all partitions of few points, and what must hold of any fit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "model/kmeans.h"

enum { POINTS = 9, CENTROIDS = 3, DIMS = 2, MANY = 700 };

static double objective(const float *x, const float *w, uint32_t n, uint32_t dims, const float *centroids, uint32_t k)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double least = INFINITY;
        for (uint32_t c = 0; c < k; c++) {
            double d = 0;
            for (uint32_t e = 0; e < dims; e++)
                d += pow((double)x[i * dims + e] - (double)centroids[c * dims + e], 2);
            least = d < least ? d : least;
        }
        sum += (w ? (double)w[i] : 1) * least;
    }
    return sum;
}

/* The least objective over all partitions of POINTS points into CENTROIDS sets. */
static double best_partition(const float *x, const float *w)
{
    double best = INFINITY;
    uint32_t all = 1;
    for (int i = 0; i < POINTS; i++)
        all *= CENTROIDS;
    for (uint32_t p = 0; p < all; p++) {
        double mass[CENTROIDS] = { 0 }, sum[CENTROIDS][DIMS] = { { 0 } };
        float centroids[CENTROIDS * DIMS];
        uint32_t code = p;
        for (uint32_t i = 0; i < POINTS; i++, code /= CENTROIDS) {
            mass[code % CENTROIDS] += (double)w[i];
            for (int e = 0; e < DIMS; e++)
                sum[code % CENTROIDS][e] += (double)(w[i] * x[i * DIMS + e]);
        }
        for (int c = 0; c < CENTROIDS; c++)
            for (int e = 0; e < DIMS; e++)
                centroids[c * DIMS + e] = mass[c] > 0 ? (float)(sum[c][e] / mass[c]) : 1e9f;
        const double o = objective(x, w, POINTS, DIMS, centroids, CENTROIDS);
        best = o < best ? o : best;
    }
    return best;
}

static float normal(uint64_t seed, uint64_t i)
{
    return (float)(sqrt(-2 * log(rng_unit(rng_at(seed, i, 1)))) *
                   cos(6.283185307179586 * rng_unit(rng_at(seed, i, 2))));
}

static void test_brute_force(void **state)
{
    (void)state;
    for (uint64_t trial = 0; trial < 6; trial++) {
        float x[POINTS * DIMS], w[POINTS], c[CENTROIDS * DIMS];
        double found = INFINITY;
        for (uint32_t i = 0; i < POINTS * DIMS; i++)
            x[i] = normal(trial, i);
        for (uint32_t i = 0; i < POINTS; i++)
            w[i] = (float)rng_unit(rng_at(trial, i, 3)) * (i % 4 ? 1 : 10);
        const double best = best_partition(x, w);
        for (uint64_t s = 0; s < 40; s++) {
            const struct kmeans_want want = {
                .n = POINTS, .n_dims = DIMS, .n_centroids = CENTROIDS, .iterations = 50, .seed = s
            };
            struct kmeans_fit fit;
            assert_int_equal(kmeans(&want, x, w, c, &fit), ST_OK);
            const double is = objective(x, w, POINTS, DIMS, c, CENTROIDS);
            assert_true(fabs(fit.objective - is) <= 1e-5 * is);
            assert_true(is >= best * (1 - 1e-5));
            found = is < found ? is : found;
        }
        if (found > best * (1 + 1e-5))
            fail_msg("trial %d: %.9g, of all partitions %.9g", (int)trial, found, best);
    }
}

struct falling {
    double last;
    uint32_t n;
};

static void on_iteration(void *ctx, double is)
{
    struct falling *f = ctx;
    assert_true(is <= f->last * (1 + 1e-6));
    f->last = is;
    f->n++;
}

static void test_objective_never_rises(void **state)
{
    (void)state;
    static float x[MANY * 4], w[MANY], c[64 * 4];
    for (uint32_t i = 0; i < MANY * 4; i++)
        x[i] = normal(9, i) + (float)(i / 4 % 5);
    for (uint32_t i = 0; i < MANY; i++)
        w[i] = i % 3 ? normal(8, i) * normal(8, i) : 0;
    struct falling f = { INFINITY, 0 };
    const struct kmeans_want want = {
        .n = MANY, .n_dims = 4, .n_centroids = 64, .iterations = 30, .seed = 3, .on_iteration = on_iteration, .ctx = &f
    };
    struct kmeans_fit fit;
    assert_int_equal(kmeans(&want, x, w, c, &fit), ST_OK);
    assert_int_equal(f.n, fit.iterations);
    assert_true(f.n >= 3);
    assert_true(fit.objective == f.last);
    assert_true(fabs(fit.objective - objective(x, w, MANY, 4, c, 64)) <= 1e-5 * fit.objective);
}

/* Weights that are all alike change no bit; a whole weight is as many copies of the vector. */
static void test_weights(void **state)
{
    (void)state;
    static float x[MANY], w[MANY], some[16], others[16];
    for (uint32_t i = 0; i < MANY; i++) {
        x[i] = normal(5, i);
        w[i] = 0.25f;
    }
    const struct kmeans_want want = { .n = MANY, .n_dims = 1, .n_centroids = 16, .iterations = 20, .seed = 1 };
    assert_int_equal(kmeans(&want, x, NULL, some, NULL), ST_OK);
    assert_int_equal(kmeans(&want, x, w, others, NULL), ST_OK);
    assert_memory_equal(some, others, sizeof some);
    memset(w, 0, sizeof w);
    assert_int_equal(kmeans(&want, x, w, others, NULL), ST_OK);
    assert_memory_equal(some, others, sizeof some);

    const float points[3] = { 0, 1, 5 }, weights[3] = { 3, 1, 1 };
    float two[2];
    const struct kmeans_want few = { .n = 3, .n_dims = 1, .n_centroids = 2, .iterations = 20, .seed = 2 };
    assert_int_equal(kmeans(&few, points, weights, two, NULL), ST_OK);
    const float low = fminf(two[0], two[1]), high = fmaxf(two[0], two[1]);
    assert_true(fabsf(low - 0.25f) < 1e-6f && high == 5);
}

static void test_few_distinct(void **state)
{
    (void)state;
    static float x[90 * 8], c[32 * 8];
    for (uint32_t i = 0; i < 90; i++)
        for (uint32_t e = 0; e < 8; e++)
            x[i * 8 + e] = normal(4, (i * 7 % 30) * 8 + e);
    const struct kmeans_want want = { .n = 90, .n_dims = 8, .n_centroids = 32, .iterations = 100, .seed = 1 };
    struct kmeans_fit fit;
    assert_int_equal(kmeans(&want, x, NULL, c, &fit), ST_OK);
    assert_true(fit.objective == 0);
}

static void test_nearest(void **state)
{
    (void)state;
    enum { K = 37, D = 5, N = 200 };
    float c[K * D], x[N * D], distance[N];
    _Alignas(64) float planes[48 * D];
    uint8_t code[N];
    for (uint32_t i = 0; i < K * D; i++)
        c[i] = normal(1, i);
    memcpy(c + 30 * D, c + 4 * D, D * sizeof *c); /* a tie: the lower one */
    for (uint32_t i = 0; i < N * D; i++)
        x[i] = i < K * D ? c[i] : normal(2, i);
    kmeans_planes(c, K, D, planes);
    kmeans_nearest(planes, kmeans_room(K), D, x, N, code, distance);
    for (uint32_t j = 0; j < N; j++) {
        double least = INFINITY, at = 0;
        for (uint32_t i = 0; i < K; i++) {
            double d = 0;
            for (uint32_t e = 0; e < D; e++)
                d += pow((double)x[j * D + e] - (double)c[i * D + e], 2);
            at = i == code[j] ? d : at;
            least = d < least ? d : least;
        }
        assert_true(at <= least * (1 + 1e-5));
        assert_true(fabs((double)distance[j] - least) <= 1e-5 * least);
        if (j < K)
            assert_int_equal(code[j], j == 30 ? 4 : j);
    }
}

static void test_refuses(void **state)
{
    (void)state;
    float x[4] = { 0 }, c[4];
    struct kmeans_want want = { .n = 1, .n_dims = 1, .n_centroids = 1 };
    assert_int_equal(kmeans(&want, x, NULL, c, NULL), ST_OK);
    want.n_dims = KMEANS_DIMS_MAX + 1;
    assert_int_equal(kmeans(&want, x, NULL, c, NULL), ST_INVALID);
    want.n_dims = 1;
    want.n_centroids = KMEANS_CENTROIDS_MAX + 1;
    assert_int_equal(kmeans(&want, x, NULL, c, NULL), ST_INVALID);
    want.n_centroids = 0;
    assert_int_equal(kmeans(&want, x, NULL, c, NULL), ST_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force), cmocka_unit_test(test_objective_never_rises),
        cmocka_unit_test(test_weights),     cmocka_unit_test(test_few_distinct),
        cmocka_unit_test(test_nearest),     cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
