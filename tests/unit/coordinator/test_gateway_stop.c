#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/rng.h"
#include "coordinator/gateway/stop.h"
#include "common/text.h"

/* By the definition: the first place where a stop string ends, the longest of those that end there; what is held is the longest suffix that begins one. */
static bool slow_find(const char *text, size_t n, const struct stop_string *stops, size_t n_stops, size_t *end_out)
{
    for (size_t end = 1; end <= n; end++) {
        size_t best = 0;
        for (size_t k = 0; k < n_stops; k++)
            if (stops[k].bytes <= end && !memcmp(text + end - stops[k].bytes, stops[k].data, stops[k].bytes) &&
                stops[k].bytes > best)
                best = stops[k].bytes;
        if (best) {
            *end_out = end - best;
            return true;
        }
    }
    return false;
}

static size_t slow_held(const char *text, size_t n, const struct stop_string *stops, size_t n_stops)
{
    for (size_t held = n; held; held--)
        for (size_t k = 0; k < n_stops; k++)
            if (held < stops[k].bytes && !memcmp(text + n - held, stops[k].data, held))
                return held;
    return 0;
}

static void test_against_definition(void **state)
{
    (void)state;
    struct rng rng = { .seed = (uint64_t)time(NULL) };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    for (int round = 0; round < 3000; round++) {
        char text[64], data[4][8];
        struct stop_string stops[4];
        const size_t n = rng_below(&rng, sizeof text), n_stops = rng_below(&rng, 5);
        for (size_t i = 0; i < n; i++)
            text[i] = (char)('a' + (int)rng_below(&rng, 2));
        for (size_t k = 0; k < n_stops; k++) {
            stops[k] = (struct stop_string){ data[k], 1 + rng_below(&rng, 7) };
            for (size_t i = 0; i < stops[k].bytes; i++)
                data[k][i] = (char)('a' + (int)rng_below(&rng, 2));
        }
        struct stop *s;
        assert_int_equal(stop_new(stops, n_stops, &s), ST_OK);
        size_t want = 0, got = 0, at = 0;
        const bool wanted = slow_find(text, n, stops, n_stops, &want);
        bool found = false;
        while (!found && at < n) {
            const size_t piece = 1 + rng_below(&rng, (uint32_t)(n - at));
            found = stop_push(s, text + at, piece, &got);
            at += piece;
            if (!found && stop_held(s) != slow_held(text, at, stops, n_stops))
                fail_msg("held %zu after %.*s", stop_held(s), (int)at, text);
        }
        assert_int_equal(found, wanted);
        if (found)
            assert_int_equal(got, want);
        stop_free(s);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct stop *s = NULL;
    const struct stop_string empty = { "", 0 };
    assert_int_equal(stop_new(&empty, 1, &s), ST_INVALID);
    char *longest = malloc(STOP_BYTES_MAX + 1);
    memset(longest, 'a', STOP_BYTES_MAX + 1);
    const struct stop_string over = { longest, STOP_BYTES_MAX + 1 }, full = { longest, STOP_BYTES_MAX };
    assert_int_equal(stop_new(&over, 1, &s), ST_INVALID);
    assert_int_equal(stop_new(&full, 1, &s), ST_OK);
    size_t end;
    assert_false(stop_push(s, longest, STOP_BYTES_MAX - 1, &end));
    assert_int_equal(stop_held(s), STOP_BYTES_MAX - 1);
    assert_true(stop_push(s, "a", 1, &end));
    assert_int_equal(end, 0);
    stop_free(s);
    stop_free(NULL);
    free(longest);
}

static void json_is(const char *data, size_t n, const char *want)
{
    struct text t = { 0 };
    text_json(&t, data, n);
    const size_t bytes = t.n;
    assert_string_equal(text_terminated(&t), want);
    assert_int_equal(t.n, bytes);
    text_free(&t);
}

static void test_text(void **state)
{
    (void)state;
    json_is("a\"b\\\n\x01\x7f", 7, "\"a\\\"b\\\\\\n\\u0001\\u007f\"");
    json_is("\0", 1, "\"\\u0000\"");
    json_is("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 9, "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
    json_is("\xC3(\xED\xA0\x80\xC0\x80", 7,
            "\"\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");
    struct text empty = { 0 };
    assert_string_equal(text_terminated(&empty), "");
    empty.bad = true;
    assert_null(text_terminated(&empty));
    text_free(&empty);
    static const float values[] = { -1, -0.1f, -1e-30f, -123456.789f, -1e20f, 0, -3.4028235e38f };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        struct text t = { 0 };
        text_float(&t, values[i]);
        assert_true(strtof(text_terminated(&t), NULL) == values[i]);
        text_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_against_definition), cmocka_unit_test(test_limits),
                                        cmocka_unit_test(test_text) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
