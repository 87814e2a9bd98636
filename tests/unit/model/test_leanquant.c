/* LeanQuant: the page's small examples, its order of losses on correlated inputs, an independent implementation's codes, and refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/rng.h"
#include "model/bf16.h"
#include "model/leanquant.h"

static void test_kmeans(void **state)
{
    (void)state;
    const double x[] = { -1, -.2, .1, .15, .9, 1 }, weight[] = { 1, 1, 16, 16, 1, 1 };
    const double want[] = { -1, -.2, .125, .95 };
    double centres[] = { -1, -1.0 / 3, 1.0 / 3, 1 };
    const double objective = leanquant_kmeans(x, weight, 6, centres, 4);
    for (int i = 0; i < 4; i++)
        assert_true(fabs(centres[i] - want[i]) < 1e-12);
    assert_true(fabs(objective - (32 * .025 * .025 + 2 * .05 * .05)) < 1e-12);
    /* no weight anywhere, all in one place, fewer than centres */
    const double zeros[3] = { 0 }, same[3] = { 2, 2, 2 };
    double two[2] = { 0, 1 };
    assert_true(leanquant_kmeans(same, zeros, 3, two, 2) == 0);
    const double ones[1] = { 1 }, one[1] = { 5 };
    two[0] = 5;
    two[1] = 6;
    assert_true(leanquant_kmeans(one, ones, 1, two, 2) == 0 && two[0] == 5);
}

static double normal(struct rng *rng)
{
    double x = -6;
    for (int k = 0; k < 12; k++)
        x += rng_unit(rng_next(rng));
    return x;
}

/* Inputs that are mixtures of fewer numbers, some of them large: H [n][n]. */
static double *draw_hessian(struct rng *rng, uint32_t n, uint32_t n_samples)
{
    double *mix = calloc((size_t)n * n / 2, sizeof *mix), *h = calloc((size_t)n * n, sizeof *h);
    double *x = calloc(n, sizeof *x), *z = calloc(n / 2, sizeof *z);
    for (uint32_t i = 0; i < n * n / 2; i++)
        mix[i] = normal(rng);
    for (uint32_t s = 0; s < n_samples; s++) {
        for (uint32_t k = 0; k < n / 2; k++)
            z[k] = normal(rng);
        for (uint32_t i = 0; i < n; i++) {
            x[i] = 0.3 * normal(rng);
            for (uint32_t k = 0; k < n / 2; k++)
                x[i] += mix[i * (n / 2) + k] * z[k] / sqrt(n / 2.0);
            x[i] *= i % 32 == 7 ? 10 : 1;
        }
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < n; j++)
                h[(size_t)i * n + j] += 2 * x[i] * x[j] / n_samples;
    }
    free(mix);
    free(x);
    free(z);
    return h;
}

static double *copied(const double *h, uint32_t n)
{
    double *out = malloc((size_t)n * n * sizeof *out);
    return memcpy(out, h, (size_t)n * n * sizeof *out);
}

/* (w - q) H (w - q)^T with H damped */
static double brute_loss(const double *h, uint32_t n, double damping, const float *w, const float *grid,
                         const uint8_t *codes)
{
    double mean = 0, loss = 0;
    for (uint32_t i = 0; i < n; i++)
        mean += h[(size_t)i * n + i] / n;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            loss += ((double)w[i] - (double)grid[codes[i]]) * ((double)w[j] - (double)grid[codes[j]]) *
                    (h[(size_t)i * n + j] + (i == j ? damping * mean : 0));
    return loss;
}

static double code_row(const struct leanquant *q, uint32_t n, const float *w, const float *grid, uint32_t n_grid,
                       bool spread, uint8_t *codes)
{
    const struct leanquant_rows rows = { .n = 1, .n_grid = n_grid, .w = w, .grids = grid, .spread = spread };
    double loss, *scratch = malloc(leanquant_scratch(q, 1) * sizeof *scratch);
    leanquant_code(q, &rows, scratch, codes, &loss);
    for (uint32_t i = 0; i < n; i++)
        assert_true(codes[i] < n_grid);
    free(scratch);
    return loss;
}

static void even_grid(const float *w, uint32_t n, uint32_t k, float *grid)
{
    float low = 0, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    for (uint32_t c = 0; c < k; c++)
        grid[c] = low + (high - low) * (float)c / (float)(k - 1);
}

/* Round to nearest, GPTQ with min-max grids, LeanQuant without and with its weighting: in this order, at 4, 3 and 2 bits; less with each bit. */
static void test_losses(void **state)
{
    (void)state;
    enum { N = 96, ROWS = 24 };
    struct rng rng = { .seed = 5 };
    double *h = draw_hessian(&rng, N, 400), before = INFINITY;
    const struct leanquant_rule rule = leanquant_default, flat = { 0, 0.1 };
    struct leanquant *q, *p0;
    double *h1 = copied(h, N), *h2 = copied(h, N);
    assert_int_equal(leanquant_new(h1, N, &rule, NULL, &q, NULL), ST_OK);
    assert_int_equal(leanquant_new(h2, N, &flat, NULL, &p0, NULL), ST_OK);
    assert_true(leanquant_damping(q) == 0.1);
    float w[ROWS][N];
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < N; i++)
            w[r][i] = (float)(0.05 * normal(&rng));
    for (uint32_t bits = 2; bits <= 4; bits++) {
        double nearest = 0, gptq = 0, plain = 0, lean = 0;
        for (int r = 0; r < ROWS; r++) {
            uint16_t stored[LEANQUANT_GRID_MAX];
            float grid[LEANQUANT_GRID_MAX];
            uint8_t codes[N];
            even_grid(w[r], N, 1u << bits, grid);
            nearest += code_row(q, N, w[r], grid, 1u << bits, false, codes);
            gptq += code_row(q, N, w[r], grid, 1u << bits, true, codes);
            for (int k = 0; k < 2; k++) {
                assert_int_equal(leanquant_grid(k ? q : p0, w[r], bits, stored), ST_OK);
                for (uint32_t c = 0; c < 1u << bits; c++) {
                    grid[c] = bf16_to_float(stored[c]);
                    assert_true(c == 0 || grid[c] >= grid[c - 1]);
                }
                const double loss = code_row(q, N, w[r], grid, 1u << bits, true, codes);
                assert_true(fabs(2 * loss / brute_loss(h, N, 0.1, w[r], grid, codes) - 1) < 1e-6);
                *(k ? &lean : &plain) += loss;
            }
        }
        print_message("%u bits: of round to nearest, GPTQ %.3f, grids without weights %.3f, LeanQuant %.3f\n", bits,
                      gptq / nearest, plain / nearest, lean / nearest);
        assert_true(gptq < nearest && plain < gptq && lean < plain && lean < before);
        before = lean;
    }
    leanquant_free(q);
    leanquant_free(p0);
    free(h);
    free(h1);
    free(h2);
}

/* Nothing correlates: every weight takes its nearest value, and all count the same. An input that never occurs is zero. */
static void test_identity_and_dead(void **state)
{
    (void)state;
    enum { N = 40 };
    double h[N * N] = { 0 };
    struct rng rng = { .seed = 8 };
    struct leanquant *q;
    float w[N], grid[4] = { -1.5f, -0.5f, 0.5f, 1.5f };
    uint8_t codes[N];
    for (int i = 0; i < N; i++) {
        h[i * N + i] = i == 11 ? 0 : 3;
        w[i] = (float)normal(&rng);
    }
    assert_int_equal(leanquant_new(h, N, &leanquant_default, NULL, &q, NULL), ST_OK);
    w[11] = 1.4f;
    code_row(q, N, w, grid, 4, true, codes);
    for (int i = 0; i < N; i++) {
        const float x = i == 11 ? 0 : w[i];
        assert_int_equal(codes[i], x <= -1 ? 0 : x <= 0 ? 1 : x <= 1 ? 2 : 3);
    }
    leanquant_free(q);
}

struct point {
    double x, weight;
};

static int ascending(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    return (x->x > y->x) - (x->x < y->x);
}

static void expect_even_start(const float *w, const double *weight, uint32_t n, const uint16_t *want, uint32_t k)
{
    struct point points[128];
    double x[128], weights[128], centres[LEANQUANT_GRID_MAX];
    for (uint32_t i = 0; i < n; i++)
        points[i] = (struct point){ (double)w[i], weight[i] };
    qsort(points, n, sizeof *points, ascending);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = points[i].x;
        weights[i] = points[i].weight;
    }
    for (uint32_t c = 0; c < k; c++)
        centres[c] = x[0] + (x[n - 1] - x[0]) * c / (k - 1);
    leanquant_kmeans(x, weights, n, centres, k);
    for (uint32_t c = 0; c < k; c++)
        assert_int_equal(bf16_of((float)centres[c]), want[c]);
}

/* tests/golden/leanquant/make.py: H, weights, and for 4, 3, 2 bits the grids and codes of an implementation in numpy. */
static void test_golden(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    assert_int_equal(file_read(LONGSPAN_SOURCE_DIR "/tests/golden/leanquant/layer.bin", 1 << 20, &text, &bytes, NULL),
                     ST_OK);
    struct reader r = reader_of(text, bytes);
    const uint32_t n = reader_u32(&r), n_rows = reader_u32(&r);
    double *h = malloc((size_t)n * n * sizeof *h);
    double *weight = malloc(n * sizeof *weight), losses[2] = { 0 };
    float *w = malloc((size_t)n * n_rows * sizeof *w);
    uint8_t *codes = malloc(n);
    struct leanquant *q;
    memcpy(h, reader_take(&r, (size_t)n * n * sizeof *h), (size_t)n * n * sizeof *h);
    memcpy(weight, reader_take(&r, n * sizeof *weight), n * sizeof *weight);
    memcpy(w, reader_take(&r, (size_t)n * n_rows * sizeof *w), (size_t)n * n_rows * sizeof *w);
    assert_int_equal(leanquant_new(h, n, &leanquant_default, NULL, &q, NULL), ST_OK);
    for (uint32_t bits = 4; bits >= 2; bits--)
        for (uint32_t row = 0; row < n_rows; row++) {
            double loss;
            uint16_t want[LEANQUANT_GRID_MAX], got[LEANQUANT_GRID_MAX];
            float grid[LEANQUANT_GRID_MAX];
            memcpy(want, reader_take(&r, sizeof *want << bits), sizeof *want << bits);
            const uint8_t *want_codes = reader_take(&r, n);
            memcpy(&loss, reader_take(&r, sizeof loss), sizeof loss);
            expect_even_start(w + (size_t)row * n, weight, n, want, 1u << bits);
            assert_int_equal(leanquant_grid(q, w + (size_t)row * n, bits, got), ST_OK);
            if (bits < 4)
                assert_memory_equal(got, want, sizeof *want << bits);
            for (uint32_t c = 0; c < 1u << bits; c++)
                grid[c] = bf16_to_float(got[c]);
            losses[0] += code_row(q, n, w + (size_t)row * n, grid, 1u << bits, true, codes);
            losses[1] += loss;
            for (uint32_t c = 0; c < 1u << bits; c++)
                grid[c] = bf16_to_float(want[c]);
            const double ours = code_row(q, n, w + (size_t)row * n, grid, 1u << bits, true, codes);
            assert_memory_equal(codes, want_codes, n);
            assert_true(fabs(ours / loss - 1) < 1e-9);
        }
    assert_false(r.bad);
    assert_int_equal(reader_left(&r), 0);
    print_message("losses, four bits from k-means++ over all from even starts: %.3f\n", losses[0] / losses[1]);
    assert_true(losses[0] < 1.1 * losses[1]);
    leanquant_free(q);
    free(h);
    free(weight);
    free(w);
    free(codes);
    free(text);
}

/* The factor by another number of members, and rows by themselves: the same bits. More inputs than a block, not a multiple of it. */
static void serve(void *ctx, void (*work)(void *work_ctx, uint32_t member, uint32_t n_members), void *work_ctx)
{
    const uint32_t n = *(const uint32_t *)ctx;
    for (uint32_t i = n; i-- > 0;)
        work(work_ctx, i, n);
}

static void test_together(void **state)
{
    (void)state;
    enum { N = 150, ROWS = 7 };
    struct rng rng = { .seed = 21 };
    double *h = draw_hessian(&rng, N, 200), *again = copied(h, N), want[ROWS], loss[ROWS];
    uint32_t three = 3;
    const struct upper_team team = { serve, &three };
    struct leanquant *q, *other;
    float w[ROWS * N], grids[ROWS * 8];
    uint8_t codes[ROWS * N], alone[ROWS * N];
    for (int i = 0; i < ROWS * N; i++)
        w[i] = (float)normal(&rng);
    assert_int_equal(leanquant_new(h, N, &leanquant_default, NULL, &q, NULL), ST_OK);
    assert_int_equal(leanquant_new(again, N, &leanquant_default, &team, &other, NULL), ST_OK);
    for (int r = 0; r < ROWS; r++) {
        uint16_t grid[8], grid2[8];
        assert_int_equal(leanquant_grid(q, w + (size_t)r * N, 3, grid), ST_OK);
        assert_int_equal(leanquant_grid(other, w + (size_t)r * N, 3, grid2), ST_OK);
        assert_memory_equal(grid, grid2, sizeof grid);
        for (int c = 0; c < 8; c++)
            grids[r * 8 + c] = bf16_to_float(grid[c]);
    }
    for (int spread = 0; spread < 2; spread++) {
        for (int r = 0; r < ROWS; r++)
            want[r] = code_row(q, N, w + (size_t)r * N, grids + (size_t)r * 8, 8, spread, alone + (size_t)r * N);
        const struct leanquant_rows rows = { .n = ROWS, .n_grid = 8, .w = w, .grids = grids, .spread = spread };
        double *scratch = malloc(leanquant_scratch(other, ROWS) * sizeof *scratch);
        leanquant_code(other, &rows, scratch, codes, loss);
        assert_memory_equal(codes, alone, sizeof codes);
        assert_memory_equal(loss, want, sizeof loss);
        free(scratch);
    }
    leanquant_free(q);
    leanquant_free(other);
    free(h);
    free(again);
}

static void test_refuses(void **state)
{
    (void)state;
    double singular[4] = { 1, 1, 1, 1 }, wrong[4] = { 1, 5, 5, 1 }, nan[4] = { 1, NAN, NAN, 1 };
    struct leanquant_rule bare = { 4, 0 };
    struct error err = { 0 };
    struct leanquant *q = NULL;
    /* no damping: some is found */
    assert_int_equal(leanquant_new(singular, 2, &bare, NULL, &q, &err), ST_OK);
    assert_true(leanquant_damping(q) > 0);
    leanquant_free(q);
    bare.damping = 0.001;
    assert_int_equal(leanquant_new(wrong, 2, &bare, NULL, &q, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "not positive definite"));
    assert_int_equal(leanquant_new(nan, 2, &bare, NULL, &q, NULL), ST_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kmeans), cmocka_unit_test(test_losses),   cmocka_unit_test(test_identity_and_dead),
        cmocka_unit_test(test_golden), cmocka_unit_test(test_together), cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
