/* Quantiles from Prometheus histograms, as `longspan top` shows them. */
#include "client/quantile.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void close_to(double got, double want)
{
    if (!(fabs(got - want) < 1e-9))
        fail_msg("%g is not %g", got, want);
}

static void test_quantiles(void **state)
{
    static const char text[] = "# TYPE a histogram\n"
                               "ab_bucket{le=\"9\"} 99\n"
                               "a_bucket{le=\"0.1\"} 10\n"
                               "a_bucket{le=\"0.2\"} 60\n"
                               "a_bucket{le=\"0.4\"} 60\n"
                               "a_bucket{le=\"+Inf\"} 100\n"
                               "a_sum 12\na_count 100\n";
    (void)state;
    close_to(quantile_of_metrics(text, "a", 0.05), 0.05);
    close_to(quantile_of_metrics(text, "a", 0.1), 0.1);
    close_to(quantile_of_metrics(text, "a", 0.5), 0.18);
    close_to(quantile_of_metrics(text, "a", 0.99), 0.4); /* above all finite bounds */
}

static void test_nothing(void **state)
{
    (void)state;
    assert_true(isnan(quantile_of_metrics("", "a", 0.5)));
    assert_true(isnan(quantile_of_metrics("a_bucket{le=\"1\"} 0\n", "a", 0.5)));
    assert_true(isnan(quantile_of_metrics("a_bucket{le=\"+Inf\"} 5\n", "a", 0.5)));
    assert_true(isnan(quantile_of_metrics("a_bucket{le=\"x\"} 5\na_bucket{le=\"1\"\na_bucket{le=\"", "a", 0.5)));
    assert_true(isnan(quantile_of_metrics("a_bucket{le=\"nan\"} 5\na_bucket{le=\"1\"} nan\n", "a", 0.5)));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_quantiles), cmocka_unit_test(test_nothing) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
