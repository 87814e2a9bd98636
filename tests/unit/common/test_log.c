/* Lines of the log, as text and as JSON, whatever is in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/log.h"

static char line[20000];

/* What is written of a message. */
static void say(const char *message)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    const int old = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    log_warn("%s", message);
    dup2(old, STDERR_FILENO);
    close(old);
    rewind(file);
    line[fread(line, 1, sizeof line - 1, file)] = 0;
    fclose(file);
    assert_int_equal(line[strlen(line) - 1], '\n');
}

static void says(const char *message, const char *inside)
{
    static char want[20000];
    int year, month, day, hour, minute, end = 0;
    float second;
    say(message);
    assert_int_equal(
        sscanf(line, "{\"time\":\"%4d-%2d-%2dT%2d:%2d:%6fZ\",%n", &year, &month, &day, &hour, &minute, &second, &end),
        6);
    assert_int_equal(end, strlen("{\"time\":\"2026-01-01T00:00:00.000Z\","));
    snprintf(want, sizeof want, "\"level\":\"warn\",\"process\":\"tester\",\"pid\":%d,\"message\":\"%s\"}\n",
             (int)getpid(), inside);
    assert_string_equal(line + end, want);
}

static void test_request(void **state)
{
    (void)state;
    char longest[200], want[600];
    log_set_json(1);
    say("request cmpl-1 sequence 4: after 5 positions");
    assert_non_null(
        strstr(line, ",\"request\":\"cmpl-1\",\"message\":\"request cmpl-1 sequence 4: after 5 positions\"}\n"));
    say("request a\"b: \\");
    assert_non_null(strstr(line, ",\"request\":\"a\\\"b\",\"message\":\"request a\\\"b: \\\\\"}\n"));
    static const char *const none[] = { "request ", "request : x", "request", "a request x", "requests x y" };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        say(none[i]);
        assert_null(strstr(line, "\"request\":"));
    }
    memset(longest, 'r', sizeof longest);
    memcpy(longest, "request ", 8);
    longest[8 + 64] = 0;
    say(longest);
    snprintf(want, sizeof want, ",\"request\":\"%s\",", longest + 8);
    assert_non_null(strstr(line, want));
    longest[8 + 64] = 'r';
    longest[8 + 65] = 0;
    say(longest);
    assert_null(strstr(line, "\"request\":"));
    log_set_json(0);
}

static void test_json(void **state)
{
    (void)state;
    log_set_json(1);
    says("worker 3 is lost", "worker 3 is lost");
    says("\"quoted\" \\ and\ttab\nline\x01\x7f", "\\\"quoted\\\" \\\\ and\\u0009tab\\u000aline\\u0001\\u007f");
    says("gr\xc3\xbc\xc3\x9f \xf0\x9f\x99\x82", "gr\xc3\xbc\xc3\x9f \xf0\x9f\x99\x82");
    says("\xff \xc3 \xe2\x82 \xed\xa0\x80 \xc0\x80 \xf5\x80\x80\x80 \xc3", "? ? ?"
                                                                           "? ?"
                                                                           "?"
                                                                           "? ?"
                                                                           "? ?"
                                                                           "?"
                                                                           "?"
                                                                           "? ?");
    char longest[5000];
    static char inside[20000];
    memset(longest, '\x01', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    for (int i = 0; i < 1999; i++)
        memcpy(inside + 6 * (ptrdiff_t)i, "\\u0001", 7);
    says(longest, inside);
    memset(longest, 'x', 1998); /* cut inside a character */
    memcpy(longest + 1998, "\xc3\xbc", 3);
    memcpy(inside, longest, 1998);
    memcpy(inside + 1998, "?", 2);
    says(longest, inside);
    log_set_json(0);
}

static void test_text(void **state)
{
    (void)state;
    say("worker 3 is lost");
    const char *at = strstr(line, " warn  tester: worker 3 is lost\n");
    assert_ptr_equal(at, line + strlen("00:00:00.000"));
    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    say(longest);
    assert_in_range(strlen(line), 1999, 2050);
}

int main(void)
{
    log_set_name("tester");
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_text), cmocka_unit_test(test_json),
                                        cmocka_unit_test(test_request) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
