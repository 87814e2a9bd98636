#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/gateway/keys.h"

#define TEST_DIGEST  "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" /* sha256("test") */
#define HELLO_DIGEST "2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824" /* sha256("hello") */

static enum status read(const char *text, struct keys **keys, struct error *err)
{
    *err = (struct error){ 0 };
    return keys_read("keys", text, strlen(text), keys, err);
}

static void test_tenants(void **state)
{
    (void)state;
    struct keys *k;
    struct error err;
    assert_int_equal(read("# ours\n\n team-a  " TEST_DIGEST " # laptop\r\nteam-b\t" HELLO_DIGEST, &k, &err), ST_OK);
    assert_string_equal(keys_tenant(k, "Bearer test"), "team-a");
    assert_string_equal(keys_tenant(k, "bearer  hello"), "team-b");
    static const char *const strangers[] = { "",           "Bearer",     "Bearer ", "Bearer test ",
                                             "Bearer tes", "Basic test", "test",    "Bearer " TEST_DIGEST };
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        assert_null(keys_tenant(k, strangers[i]));
    assert_null(keys_tenant(k, NULL));
    keys_free(k);
}

static void test_faults(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        { "", "no key" },
        { "# nothing\n", "no key" },
        { "a " TEST_DIGEST "\nb\n", "line 2" },
        { "a " TEST_DIGEST "0\n", "64 hexadecimal" },
        { "a 9g86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n", "64 hexadecimal" },
        { "a " TEST_DIGEST " b\n", "there is more" },
    };
    struct keys *k;
    struct error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(read(cases[i].text, &k, &err), ST_INVALID);
        assert_non_null(strstr(err.text, cases[i].says));
    }
    char long_name[400];
    memset(long_name, 'x', 200);
    strcpy(long_name + 200, " " TEST_DIGEST);
    assert_int_equal(read(long_name, &k, &err), ST_INVALID);
    assert_int_equal(keys_read("keys", "a\0b", 3, &k, &err), ST_INVALID);
    assert_int_equal(keys_load("/nowhere/keys", &k, &err), ST_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_tenants), cmocka_unit_test(test_faults) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
