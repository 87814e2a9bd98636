/* ctest-labels: tsan */
#include "tests/unit/coordinator/registry_suite.h"

static char dir[64];

static void suite_spec(const char *name, char spec_out[256])
{
    snprintf(spec_out, 256, "embedded:%s/%s", dir, name);
}

/* ---- what only the file does ---- */

static void test_leases_end_with_the_process(void **state)
{
    (void)state;
    struct registry *r = open_it();
    const struct reply a = grant(r, 60000);
    put_text(r, "m/a", "a", a.lease);
    put_text(r, "m/c", "c", 0);
    registry_close(r);
    r = open_it();
    assert_int_equal(put_text(r, "m/d", "d", 0).status, ST_OK);
    assert_string_equal(list(r, "m/", false).text, "m/c=c m/d=d ");
    assert_int_equal(keep(r, a.lease).status, ST_NOT_FOUND);
    assert_true(grant(r, 1000).lease > a.lease);
    registry_close(r);
}

static void test_two_openers(void **state)
{
    (void)state;
    struct registry *r = open_it(), *second = open_it();
    struct leader a = { 0 }, c = { 0 };
    struct registry_election *ea = campaign(r, "a", &a);
    await_count(&a.won, 1);
    struct registry_election *ec = campaign(second, "c", &c);
    run_ms(700);
    assert_string_equal(list(second, "election/coordinator", true).text, "election/coordinator=a "); /* may read */
    assert_int_equal(put_text(second, "k", "v", 0).status, ST_BUSY);
    /* the file passes to the other opener when the first is gone */
    registry_election_stop(ea);
    registry_close(r);
    assert_int_equal(c.won, 0);
    await_count(&c.won, 1);
    assert_true(c.token > a.token);
    assert_int_equal(put_text(second, "k", "v", 0).status, ST_OK);
    registry_election_stop(ec);
    registry_close(second);
}

static void test_bad_files(void **state)
{
    (void)state;
    struct registry *r;
    struct error err = { 0 };
    assert_int_equal(registry_open("paper:x", NULL, loop, &r, &err), ST_UNSUPPORTED);
    memset(&err, 0, sizeof err);
    assert_int_equal(registry_open("embedded:/nowhere/at/all", NULL, loop, &r, &err), ST_IO);
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    char other[160];
    snprintf(other, sizeof other, "%s/garbage", dir);
    FILE *f = fopen(other, "w");
    for (int i = 0; i < 10000; i++)
        fputc(i * 7, f);
    fclose(f);
    char bad[200];
    snprintf(bad, sizeof bad, "embedded:%s", other);
    memset(&err, 0, sizeof err);
    assert_int_equal(registry_open(bad, NULL, loop, &r, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "garbage"));
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--writer"))
        return writer_main(argv[2], atoi(argv[3]));
    snprintf(dir, sizeof dir, "/tmp/longspan-registry-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    suite_ttl_ms = 1500; /* it is kept three times in that, unless the machine stands still for a second */
    suite_late_ms = 0;
    suite_rounds = 8;
    const struct CMUnitTest tests[] = {
        SUITE_TESTS,
        cmocka_unit_test_setup_teardown(test_leases_end_with_the_process, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_openers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_files, setup, teardown),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) || failed;
}
