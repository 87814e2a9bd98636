/* The maths of eval, against values worked out by hand; and what --configs may say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/eval/configs.h"
#include "client/eval/score.h"

static void expect_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-6 * (1 + fabs(want))))
        fail_msg("%.12g, should be %.12g", got, want);
}

/* Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4; a shift of all logits changes nothing. */
static void test_by_hand(void **state)
{
    (void)state;
    const float half = 0.69314718f;
    const float base[3] = { half, 0, 0 }, other[3] = { 100, 100 + half, 100 };
    struct eval_score s = { 0 };
    struct eval_means m = eval_score_means(&s);
    assert_true(isnan(m.ppl) && isnan(m.kl) && isnan(m.top1));
    eval_score_add(&s, base, base, 3, 0);
    m = eval_score_means(&s);
    expect_near(m.ppl, 2);
    expect_near(m.kl, 0);
    expect_near(m.top1, 1);
    eval_score_add(&s, other, base, 3, 0);
    m = eval_score_means(&s);
    expect_near(m.ppl, sqrt(2.0 * 4)); /* the geometric mean */
    expect_near(m.kl, (0.5 * log(2) - 0.25 * log(2)) / 2);
    expect_near(m.top1, 0.5);
    assert_int_equal(s.n_rows, 2);
}

static void test_ends(void **state)
{
    (void)state;
    /* a token that has no probability left in float64 costs, but stays finite; ties go to the lowest token */
    const float sharp[4] = { 3000, 0, 0, 0 }, flat[4] = { 1, 1, 1, 1 };
    struct eval_score s = { 0 };
    eval_score_add(&s, flat, sharp, 4, 3);
    expect_near(s.nll, log(4));
    expect_near(s.kl, log(4));
    assert_int_equal(s.n_same, 1);
    eval_score_add(&s, sharp, flat, 4, 1);
    expect_near(s.nll, log(4) + 3000);
    expect_near(s.kl, log(4) + 0.75 * 3000 - log(4));
    const float odd[2][2] = { { 1, NAN }, { INFINITY, 1 } };
    assert_true(eval_finite(sharp, 4));
    assert_false(eval_finite(odd[0], 2));
    assert_false(eval_finite(odd[1], 2));
}

static void test_configs(void **state)
{
    (void)state;
    static struct eval_config c[EVAL_CONFIGS_MAX];
    uint32_t n;
    assert_int_equal(eval_configs_parse("bf16:dense,int8:quest@0.2,bf16:dense:lossless-fast", c, &n, NULL), ST_OK);
    assert_int_equal(n, 3);
    assert_string_equal(c[0].text, "bf16:dense");
    assert_string_equal(c[0].weights, "");
    assert_string_equal(c[1].kv_codec, "int8");
    assert_string_equal(c[1].selector, "quest@0.2");
    assert_string_equal(c[2].selector, "dense");
    assert_string_equal(c[2].weights, "lossless-fast");
    static const char *const bad[] = { "",
                                       "bf16",
                                       "bf16:",
                                       ":dense",
                                       "bf16:dense,",
                                       ",bf16:dense",
                                       "bf16:dense:",
                                       "bf16::bf16",
                                       "0123456789012345678901234567890123456789:dense" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = { 0 };
        if (eval_configs_parse(bad[i], c, &n, &err) != ST_INVALID || !strstr(err.text, "--configs"))
            fail_msg("'%s': '%s'", bad[i], err.text);
    }
    char many[65 * 11 + 1] = "";
    for (int i = 0; i < 65; i++)
        strcat(many, i ? ",bf16:dense" : "bf16:dense");
    assert_int_equal(eval_configs_parse(many, c, &n, NULL), ST_INVALID);
}

static void test_windows(void **state)
{
    (void)state;
    bool moved = false;
    for (uint32_t i = 0; i < 100; i++) {
        const uint64_t at = eval_window_at(3, i, 1000, 900);
        assert_true(at <= 100);
        assert_int_equal(at, eval_window_at(3, i, 1000, 900));
        moved = moved || at != eval_window_at(4, i, 1000, 900);
        assert_int_equal(eval_window_at(3, i, 900, 900), 0);
    }
    assert_true(moved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
