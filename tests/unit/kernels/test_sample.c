#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/rng.h"

enum { N_MAX = 4096 };

static const struct row_impl *rows;
static struct rng rng = { 20240607, 0 };

static double uniform(void)
{
    return rng_unit(rng_next(&rng));
}

static float normal(void)
{
    return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static struct sample_result sample(const float *logits, uint32_t n, struct sample_params params, uint32_t position,
                                   int32_t target, uint32_t n_top, struct sample_top *top_out)
{
    struct sample_result result;
    void *scratch = malloc(sample_scratch_bytes(n));
    assert_non_null(scratch);
    sample_row(rows, logits, n, &params, NULL, position, target, n_top, top_out, scratch, &result);
    free(scratch);
    return result;
}

static struct sample_result sample_edited(const float *logits, uint32_t n, struct sample_params params,
                                          const struct sample_edits *edits, uint32_t position)
{
    struct sample_result result;
    void *scratch = malloc(sample_scratch_bytes(n));
    assert_non_null(scratch);
    sample_row(rows, logits, n, &params, edits, position, -1, 0, NULL, scratch, &result);
    free(scratch);
    return result;
}

/* ---- the plain way: sort, filter, take the largest sum of logit and noise ---- */

static const float *sorted_by;

static int by_logit(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (sorted_by[i] != sorted_by[j])
        return sorted_by[i] > sorted_by[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* How many of the tokens in `order`, best first, take part; *margin_out: how far from one token more or less, relative. */
static uint32_t kept(const float *logits, const uint32_t *order, uint32_t n, const struct sample_params *params,
                     double *margin_out)
{
    const double max = (double)logits[order[0]];
    double total = 0, sum = 0;
    *margin_out = 1;
    for (uint32_t i = 1; i < n && params->min_p > 0; i++) {
        const double ratio = exp(((double)logits[order[i]] - max) / (double)params->temperature);
        *margin_out = fmin(*margin_out, fabs(ratio - (double)params->min_p));
        n = logits[order[i]] != logits[order[0]] && ratio < (double)params->min_p ? i : n;
    }
    const uint32_t k = params->top_k && params->top_k < n ? params->top_k : n;
    if (!(params->top_p < 1))
        return k;
    for (uint32_t i = 0; i < k; i++)
        total += exp(((double)logits[order[i]] - max) / (double)params->temperature);
    for (uint32_t i = 0; i < k; i++) {
        sum += exp(((double)logits[order[i]] - max) / (double)params->temperature) / total;
        *margin_out = fmin(*margin_out, fabs(sum - (double)params->top_p));
        if (sum >= (double)params->top_p)
            return i + 1;
    }
    return k;
}

/* banned: [n] flags, or NULL */
static uint32_t plain(const float *logits, const bool *banned, uint32_t n_all, const struct sample_params *params,
                      uint32_t position, double *margin_out)
{
    static uint32_t order[N_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_all; i++)
        if (!banned || !banned[i])
            order[n++] = i;
    sorted_by = logits;
    qsort(order, n, sizeof *order, by_logit);
    *margin_out = 1;
    if (params->temperature <= 0)
        return order[0];
    const uint32_t k = kept(logits, order, n, params, margin_out);
    const double max = (double)logits[order[0]];
    uint32_t best = 0;
    double top = -INFINITY;
    for (uint32_t i = 0; i < k; i++) {
        const double u = rng_unit(rng_at(params->seed, position, order[i]));
        const double score = ((double)logits[order[i]] - max) / (double)params->temperature - log(-log(u));
        if (score > top) {
            top = score;
            best = order[i];
        }
    }
    return best;
}

static void draw_logits(float *logits, uint32_t n)
{
    const uint32_t kind = rng_below(&rng, 4);
    const float size = kind == 0 ? 0.01f : kind == 1 ? 1.0f : 6.0f;
    for (uint32_t i = 0; i < n; i++) {
        logits[i] = normal() * size;
        if (kind == 3)
            logits[i] = rintf(logits[i] / 4); /* ties, zeros of both signs */
    }
}

static void test_against_plain(void **state)
{
    (void)state;
    static float logits[N_MAX];
    unsigned close = 0;
    for (unsigned round = 0; round < 1500; round++) {
        const uint64_t replay = rng.n;
        const uint32_t n = round % 8 ? 1 + rng_below(&rng, 300) : 1 + rng_below(&rng, N_MAX);
        draw_logits(logits, n);
        static const float temperatures[] = { 0, 0.1f, 0.7f, 1, 2, 100 },
                           top_ps[] = { 1, 1, 0.9f, 0.5f, 0.999f, 0.01f, 0 };
        const struct sample_params params = {
            .temperature = temperatures[rng_below(&rng, 6)],
            .top_p = top_ps[rng_below(&rng, 7)],
            .top_k = rng_below(&rng, 2)   ? 1 + rng_below(&rng, 50)
                     : rng_below(&rng, 2) ? 0
                                          : n + rng_below(&rng, 3),
            .seed = rng_next(&rng),
            .min_p = rng_below(&rng, 2) ? 0 : (float)uniform(),
        };
        const uint32_t position = rng_below(&rng, 1u << 20);
        double margin;
        const uint32_t want = plain(logits, NULL, n, &params, position, &margin);
        const struct sample_result got = sample(logits, n, params, position, -1, 0, NULL);
        assert_true(got.finite);
        if (got.token == want)
            continue;
        /* The border of top_p may fall to either side where the sum meets it within rounding. */
        if (margin < 1e-6) {
            close++;
            continue;
        }
        print_error("round %u (draws from %llu): n %u, T %g, top_p %g, top_k %u: token %u, should be %u (margin %g)\n",
                    round, (unsigned long long)replay, n, (double)params.temperature, (double)params.top_p,
                    params.top_k, got.token, want, margin);
        fail();
    }
    assert_true(close < 15);
}

/* One row's edits, drawn, and what they make of the logits. */
struct edited {
    struct sample_edits edits;
    struct sample_edit adds[50];
    uint8_t repeated[N_MAX / 8 + 1], allowed[N_MAX / 8 + 1];
    float logits[N_MAX];
    bool banned[N_MAX];
};

static void draw_edits(struct edited *e, const float *logits, uint32_t n)
{
    const uint32_t bytes = (n + 7) / 8, few = rng_below(&rng, 2);
    e->edits = (struct sample_edits){ .adds = e->adds, .repetition = rng_below(&rng, 2) ? 1.3f : 0.8f };
    memcpy(e->logits, logits, n * sizeof *logits);
    memset(e->banned, 0, n * sizeof *e->banned);
    for (uint32_t i = 0; i < bytes; i++) {
        e->repeated[i] = (uint8_t)rng_next(&rng);
        e->allowed[i] = (uint8_t)(rng_next(&rng) & (few ? rng_next(&rng) & rng_next(&rng) : 0xFF));
    }
    e->allowed[0] |= 1;
    if (rng_below(&rng, 2)) {
        e->edits.repeated = e->repeated;
        e->edits.repeated_bytes = rng_below(&rng, bytes + 1);
    }
    if (rng_below(&rng, 2)) {
        e->edits.allowed = e->allowed;
        e->edits.allowed_bytes = 1 + rng_below(&rng, bytes);
    }
    for (uint32_t t = rng_below(&rng, 20); t < n && e->edits.n_adds < 50; t += 1 + rng_below(&rng, 20))
        e->adds[e->edits.n_adds++] = (struct sample_edit){ t, normal() * 5 };
    for (uint32_t t = 0; t < n; t++) {
        float *x = &e->logits[t];
        if (t / 8 < e->edits.repeated_bytes && (e->repeated[t / 8] >> (t % 8) & 1))
            *x = *x > 0 ? *x / e->edits.repetition : *x * e->edits.repetition;
        e->banned[t] = e->edits.allowed && !(t / 8 < e->edits.allowed_bytes && (e->allowed[t / 8] >> (t % 8) & 1));
    }
    for (uint32_t i = 0; i < e->edits.n_adds; i++)
        e->logits[e->adds[i].token] += e->adds[i].add;
}

static void test_edits(void **state)
{
    (void)state;
    static float logits[N_MAX];
    static struct edited e;
    unsigned close = 0;
    for (unsigned round = 0; round < 1500; round++) {
        const uint32_t n = round % 8 ? 1 + rng_below(&rng, 300) : 1 + rng_below(&rng, N_MAX);
        draw_logits(logits, n);
        draw_edits(&e, logits, n);
        const struct sample_params params = { .temperature = rng_below(&rng, 4) ? 0.9f : 0,
                                              .top_p = rng_below(&rng, 2) ? 1 : 0.8f,
                                              .top_k = rng_below(&rng, 2) ? 0 : 1 + rng_below(&rng, 20),
                                              .seed = rng_next(&rng),
                                              .min_p = rng_below(&rng, 3) ? 0 : 0.1f };
        double margin;
        const uint32_t want = plain(e.logits, e.banned, n, &params, round, &margin);
        const struct sample_result got = sample_edited(logits, n, params, &e.edits, round);
        const struct sample_result bare = sample(logits, n, params, round, (int32_t)got.token, 0, NULL);
        assert_true(got.finite && !e.banned[got.token]);
        assert_float_equal(got.logprob, bare.target_logprob, 0); /* before edits */
        if (got.token != want && margin >= 1e-6)
            fail_msg("round %u: token %u, should be %u (margin %g)", round, got.token, want, margin);
        close += got.token != want;
    }
    assert_true(close < 15);
}

/* Edits beyond float32 stay inside it; where nothing is allowed there is no answer. */
static void test_edit_edges(void **state)
{
    (void)state;
    const float logits[3] = { 3e38f, -3e38f, 1 };
    const struct sample_edit adds[2] = { { 1, 1e6f }, { 2, -1e6f } };
    const uint8_t all = 7, third = 4, none = 0xF8;
    const struct sample_params hot = { .temperature = 1, .top_p = 0.9f, .seed = 1 };
    struct sample_edits e = { .n_adds = 2, .adds = adds, .repetition = 0.1f, .repeated = &all, .repeated_bytes = 1 };
    assert_int_equal(sample_edited(logits, 3, hot, &e, 0).token, 0);
    e = (struct sample_edits){ .repetition = 1, .allowed = &third, .allowed_bytes = 1 };
    assert_int_equal(sample_edited(logits, 3, hot, &e, 0).token, 2);
    e.allowed = &none;
    assert_false(sample_edited(logits, 3, hot, &e, 0).finite);
}

static void test_logprobs(void **state)
{
    (void)state;
    static float logits[N_MAX];
    static struct sample_top top[N_MAX];
    static uint32_t order[N_MAX];
    for (unsigned round = 0; round < 300; round++) {
        const uint32_t n = 1 + rng_below(&rng, round % 4 ? 300 : N_MAX), target = rng_below(&rng, n);
        const uint32_t n_top = round % 10 ? rng_below(&rng, n < 20 ? n + 1 : 21) : n;
        draw_logits(logits, n);
        double max = -INFINITY, total = 0;
        for (uint32_t i = 0; i < n; i++) {
            max = fmax(max, (double)logits[i]);
            order[i] = i;
        }
        for (uint32_t i = 0; i < n; i++)
            total += exp((double)logits[i] - max);
        const struct sample_params params = { .temperature = 3, .top_p = 0.5f, .top_k = 5, .seed = rng_next(&rng) };
        const struct sample_result got = sample(logits, n, params, round, (int32_t)target, n_top, top);
        /* before temperature and filters */
        assert_float_equal(got.logprob, (float)((double)logits[got.token] - max - log(total)), 1e-5f);
        assert_float_equal(got.target_logprob, (float)((double)logits[target] - max - log(total)), 1e-5f);
        sorted_by = logits;
        qsort(order, n, sizeof *order, by_logit);
        for (uint32_t i = 0; i < n_top; i++) {
            assert_int_equal(top[i].token, order[i]);
            assert_float_equal(top[i].logprob, (float)((double)logits[order[i]] - max - log(total)), 1e-5f);
        }
    }
}

/* Frequencies over positions and over seeds against the probabilities: chi-square with k - 1 degrees of freedom. */
static double chi_square(const float *logits, uint32_t n, struct sample_params params, const double *p, bool by_seed)
{
    enum { DRAWS = 10000 };
    uint32_t count[16] = { 0 };
    double chi = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        struct sample_params at = params;
        at.seed += by_seed ? i : 0;
        count[sample(logits, n, at, by_seed ? 7 : i, -1, 0, NULL).token]++;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (p[i] == 0) {
            assert_int_equal(count[i], 0);
            continue;
        }
        const double want = p[i] * DRAWS;
        chi += (count[i] - want) * (count[i] - want) / want;
    }
    return chi;
}

static void test_distribution(void **state)
{
    (void)state;
    /* weights 8 4 2 1 1 at temperature 1, in another order */
    const float logits[5] = { logf(2), logf(8), logf(1), logf(4), logf(1) };
    const double plain_p[5] = { 2 / 16., 8 / 16., 1 / 16., 4 / 16., 1 / 16. };
    const double hot[5] = { 1.414213562, 2.828427125, 1, 2, 1 };
    double hot_p[5];
    for (int i = 0; i < 5; i++)
        hot_p[i] = hot[i] / (1.414213562 + 2.828427125 + 1 + 2 + 1);
    const double top3[5] = { 2 / 14., 8 / 14., 0, 4 / 14., 0 };
    const double top80[5] = { 2 / 14., 8 / 14., 0, 4 / 14., 0 };      /* 8, 12, 14 of 16: 0.8 needs three */
    const double tied[5] = { 2 / 15., 8 / 15., 1 / 15., 4 / 15., 0 }; /* four of five: the lower of the two last */
    const double top_min[5] = { 0, 8 / 12., 0, 4 / 12., 0 };          /* from 0.26 of the first on */
    const struct {
        struct sample_params params;
        const double *p;
        double limit; /* chi-square at 1e-6 */
    } cases[] = {
        { { 1, 1, 0, 11, 0 }, plain_p, 33.4 },  { { 2, 1, 0, 12, 0 }, hot_p, 33.4 },
        { { 1, 1, 3, 13, 0 }, top3, 27.7 },     { { 1, 0.8f, 0, 14, 0 }, top80, 27.7 },
        { { 1, 1, 4, 15, 0 }, tied, 30.7 },     { { 1, 0.9f, 4, 16, 0 }, top3, 27.7 },
        { { 1, 0.91f, 0, 17, 0 }, tied, 30.7 }, { { 1, 1, 0, 18, 0.26f }, top_min, 23.9 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int by_seed = 0; by_seed < 2; by_seed++) {
            const double chi = chi_square(logits, 5, cases[i].params, cases[i].p, by_seed);
            if (chi > cases[i].limit)
                print_error("case %zu, by seed %d: chi-square %g\n", i, by_seed, chi);
            assert_true(chi <= cases[i].limit);
        }
}

static void test_deterministic(void **state)
{
    (void)state;
    static float logits[N_MAX];
    draw_logits(logits, N_MAX);
    const struct sample_params params = { .temperature = 1, .top_p = 0.95f, .top_k = 0, .seed = 5 };
    unsigned differ = 0;
    for (uint32_t position = 0; position < 50; position++) {
        const struct sample_result a = sample(logits, N_MAX, params, position, -1, 0, NULL);
        const struct sample_result b = sample(logits, N_MAX, params, position, 3, 0, NULL);
        assert_int_equal(a.token, b.token);
        assert_memory_equal(&a.logprob, &b.logprob, sizeof a.logprob);
        differ += a.token != sample(logits, N_MAX, params, position + 1, -1, 0, NULL).token;
    }
    assert_true(differ > 20);
}

static void test_edges(void **state)
{
    (void)state;
    const float one[1] = { -5 }, tied[4] = { 1, 3, 3, 2 }, huge[3] = { 3e38f, -3e38f, 1 };
    struct sample_top top[4];
    struct sample_result r = sample(one, 1, (struct sample_params){ 1, 0.5f, 1, 9, 0 }, 0, 0, 1, top);
    assert_true(r.finite && r.token == 0 && r.logprob == 0 && r.target_logprob == 0 && top[0].token == 0);
    r = sample(tied, 4, (struct sample_params){ 0, 1, 0, 9, 0 }, 0, -1, 4, top);
    assert_int_equal(r.token, 1);
    assert_true(top[0].token == 1 && top[1].token == 2 && top[2].token == 3 && top[3].token == 0);
    /* the smallest temperatures that a float holds, denormal ones too, act as greedy */
    static const float cold[] = { 1e-45f, 1e-38f, 2e-38f, 1e-20f };
    for (size_t i = 0; i < sizeof cold / sizeof *cold; i++) {
        r = sample(huge, 3, (struct sample_params){ cold[i], 0.9f, 2, 9, 0 }, 0, 1, 0, NULL);
        assert_true(r.finite && r.token == 0 && r.logprob == 0);
        r = sample(&tied[2], 2, (struct sample_params){ cold[i], 1, 0, 9, 0 }, 0, -1, 0, NULL);
        assert_int_equal(r.token, 0);
    }
    r = sample(tied, 4, (struct sample_params){ NAN, NAN, 0, 9, 0 }, 0, -1, 0, NULL);
    assert_int_equal(r.token, 1);
    r = sample(tied, 4, (struct sample_params){ 1, -1, 0, 9, 0 }, 0, -1, 0,
               NULL); /* less than nothing still keeps the first */
    assert_int_equal(r.token, 1);
}

static void test_not_finite(void **state)
{
    (void)state;
    static float logits[N_MAX];
    static const float poisons[] = { NAN, INFINITY, -INFINITY };
    for (uint32_t i = 0; i < 300; i++) {
        const uint32_t n = 1 + rng_below(&rng, 200);
        draw_logits(logits, n);
        logits[rng_below(&rng, n)] = poisons[i % 3];
        const float t = i % 2 ? 1.0f : 0.0f;
        assert_false(sample(logits, n, (struct sample_params){ t, 0.9f, 7, i, 0 }, i, -1, 0, NULL).finite);
    }
}

/* Every variant draws the same tokens: only log-probabilities may differ in their last bits. */
static void test_variants(void **state)
{
    (void)state;
    static float logits[N_MAX];
    for (uint32_t round = 0; round < 50; round++) {
        const struct sample_params params = { 0.8f, 0.9f, round % 2 ? 40 : 0, round, round % 3 ? 0 : 0.02f };
        draw_logits(logits, N_MAX);
        const struct sample_result want = sample(logits, N_MAX, params, round, -1, 0, NULL);
        for (uint32_t v = 0; v < n_row_impls; v++) {
            if ((row_impls[v].needs & cpu_caps()) != row_impls[v].needs)
                continue;
            const struct row_impl *before = rows;
            rows = &row_impls[v];
            const struct sample_result got = sample(logits, N_MAX, params, round, -1, 0, NULL);
            rows = before;
            assert_int_equal(got.token, want.token);
            assert_float_equal(got.logprob, want.logprob, 1e-5f);
        }
    }
}

/* No distribution makes it slow: flat, steep, all equal, ascending. Generous bounds, for sanitizers and busy machines. */
static void test_time(void **state)
{
    (void)state;
    enum { N = 128256 };
    float *logits = malloc(N * sizeof *logits);
    void *scratch = malloc(sample_scratch_bytes(N));
    assert_non_null(logits);
    assert_non_null(scratch);
    static const char *const names[] = { "model-like", "flat", "equal", "ascending" };
    for (int kind = 0; kind < 4; kind++) {
        for (uint32_t i = 0; i < N; i++)
            logits[i] = kind == 0   ? normal() * 2.5f
                        : kind == 1 ? normal() * 1e-3f
                        : kind == 2 ? 1.0f
                                    : (float)i * 1e-6f;
        static const struct sample_params all[] = {
            { 0, 1, 0, 1, 0 },  { 1, 1, 0, 1, 0 },        { 1, 0.95f, 0, 1, 0 },
            { 1, 1, 50, 1, 0 }, { 0.7f, 0.9f, 40, 1, 0 }, { 1, 1, 0, 1, 0.05f }
        };
        for (size_t p = 0; p < sizeof all / sizeof *all; p++) {
            struct sample_top top[20];
            struct sample_result r;
            int64_t least = INT64_MAX;
            for (uint32_t i = 0; i < 3; i++) {
                const int64_t t0 = clock_ns();
                sample_row(rows, logits, N, &all[p], NULL, i, -1, 20, top, scratch, &r);
                const int64_t ns = clock_ns() - t0;
                least = ns < least ? ns : least;
            }
            print_message("%s, T %g, top_p %g, top_k %u: %.3f ms\n", names[kind], (double)all[p].temperature,
                          (double)all[p].top_p, all[p].top_k, (double)least / 1e6);
            assert_true(least < 400000000);
        }
    }
    free(scratch);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain), cmocka_unit_test(test_edits),        cmocka_unit_test(test_edit_edges),
        cmocka_unit_test(test_logprobs),      cmocka_unit_test(test_distribution), cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_edges),         cmocka_unit_test(test_not_finite),   cmocka_unit_test(test_variants),
        cmocka_unit_test(test_time),
    };
    rows = row_find(cpu_caps());
    cpu_thread_init();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
