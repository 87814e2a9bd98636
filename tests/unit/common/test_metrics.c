/* ctest-labels: tsan */
#include "common/metrics.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *text_of(struct metrics *m)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    metrics_write(m, out);
    fclose(out);
    return text;
}

static void test_text(void **state)
{
    (void)state;
    static const double bounds[] = { 0.1, 1, 10 };
    struct metrics *m = metrics_new();
    struct metric *ok = metrics_counter(m, "requests_total", "Requests.", "outcome=\"ok\"");
    struct metric *h = metrics_histogram(m, "wait_seconds", "Waits.", NULL, bounds, 3);
    struct metric *bad = metrics_counter(m, "requests_total", "Requests.", "outcome=\"bad\"");
    struct metric *g = metrics_gauge(m, "running", "Running now.", NULL);
    metric_add(ok, 3);
    metric_add(bad, 1);
    metric_set(g, 2.5);
    metric_observe(h, 0.1); /* a bound belongs to its bucket */
    metric_observe(h, 0.5);
    metric_observe_n(h, 100, 2);
    metric_observe(h, NAN);
    char *text = text_of(m);
    assert_string_equal(text, "# HELP requests_total Requests.\n# TYPE requests_total counter\n"
                              "requests_total{outcome=\"ok\"} 3\nrequests_total{outcome=\"bad\"} 1\n"
                              "# HELP wait_seconds Waits.\n# TYPE wait_seconds histogram\n"
                              "wait_seconds_bucket{le=\"0.1\"} 1\nwait_seconds_bucket{le=\"1\"} 2\n"
                              "wait_seconds_bucket{le=\"10\"} 2\nwait_seconds_bucket{le=\"+Inf\"} 4\n"
                              "wait_seconds_sum 200.59999999999999\nwait_seconds_count 4\n"
                              "# HELP running Running now.\n# TYPE running gauge\nrunning 2.5\n");
    free(text);
    assert_ptr_equal(ok, metrics_counter(m, "requests_total", "Requests.", "outcome=\"ok\""));
    assert_null(metrics_gauge(m, "requests_total", "Requests.", "outcome=\"ok\"")); /* another kind */
    assert_int_equal(metric_count(ok), 3);
    assert_int_equal(metric_count(h), 4);
    metrics_free(m);
}

static void test_label(void **state)
{
    (void)state;
    char out[32];
    assert_string_equal(metric_label(out, sizeof out, "a", "x\"y\\z\n"), "a=\"x\\\"y\\\\z\\n\"");
    char small[9];
    assert_string_equal(metric_label(small, sizeof small, "a", "123456789"), "a=\"12\"");
    assert_string_equal(metric_label(small, sizeof small, "a", "1\xC3\xA9xyz"), "a=\"1\"");
}

static void *observe(void *arg)
{
    for (int i = 0; i < 20000; i++)
        metric_observe(arg, 1);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static const double bounds[] = { 1 };
    struct metrics *m = metrics_new();
    struct metric *h = metrics_histogram(m, "h", "H.", NULL, bounds, 1);
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], NULL, observe, h);
    free(text_of(m));
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    char *text = text_of(m);
    assert_non_null(strstr(text, "h_sum 60000\nh_count 60000\n"));
    free(text);
    metrics_free(m);
}

static void test_process(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    metrics_write_process(out);
    fclose(out);
    const char *fds = strstr(text, "\nprocess_open_fds ");
    assert_non_null(fds);
    assert_in_range(atoi(fds + 18), 3, 100);
    assert_non_null(strstr(text, "\nprocess_resident_memory_bytes "));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_text), cmocka_unit_test(test_label),
                                        cmocka_unit_test(test_threads), cmocka_unit_test(test_process) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
