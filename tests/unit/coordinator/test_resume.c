#include "coordinator/gateway/resume.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void ids_go_there_and_back(void **state)
{
    (void)state;
    struct resume r = { .n = WANT_CHOICES_MAX, .usage = true }, back;
    for (uint32_t i = 0; i < r.n; i++)
        if (i % 3)
            r.places[i] = (struct resume_place){ i, 7 * i, i % 5, true, i % 2 };
    for (uint32_t n = 1; n <= WANT_CHOICES_MAX; n++) {
        struct text id = { 0 };
        r.n = n;
        r.usage = n % 2;
        resume_write(&r, "cmpl-7", &id);
        assert_int_equal(resume_read(text_terminated(&id), "cmpl-7", &back), ST_OK);
        assert_int_equal(back.n, n);
        assert_int_equal(back.usage, r.usage);
        assert_memory_equal(back.places, r.places, n * sizeof *r.places);
        assert_int_equal(resume_read(id.data, "cmpl-8", &back), ST_INVALID);
        text_free(&id);
    }
}

static void what_is_no_id_is_refused(void **state)
{
    (void)state;
    struct resume r;
    char many[1200] = "a/", longer[6000];
    for (int i = 0; i <= WANT_CHOICES_MAX; i++)
        strcat(many, i ? ",-" : "-");
    memset(longer, '1', sizeof longer);
    memcpy(longer, "a/", 2);
    longer[sizeof longer - 1] = 0;
    const char *const bad[] = { "",
                                "a",
                                "a/",
                                "b/1.1",
                                "a/1",
                                "a/1.",
                                "a/.1",
                                "a/1.1x",
                                "a/1.1,",
                                "a/,",
                                "a/-e",
                                "a/-s",
                                "a/-s0",
                                "a/-s1e",
                                "a/1.1s",
                                "a/1.1es1",
                                "a/1.1s-1",
                                "a/1.1s1s1",
                                "a/1.1s2000000000",
                                "a/1.1ee",
                                "a/1.1uu",
                                "a/1.-1",
                                "a/+1.1",
                                "a/ 1.1",
                                "a/1.1e ,-",
                                "a/u",
                                "a//1.1",
                                "a/1.1/",
                                "a/99999999999.1",
                                "a/1.2000000000",
                                many,
                                longer };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (resume_read(bad[i], "a", &r) != ST_INVALID)
            fail_msg("\"%.40s\" was taken", bad[i]);
    assert_int_equal(resume_read("a/-", "a", &r), ST_OK);
    assert_int_equal(resume_read("a/-u", "a", &r), ST_OK);
    assert_int_equal(resume_read("a/-s12,1.2s3e", "a", &r), ST_OK);
    assert_true(!r.places[0].begun && r.places[0].scores == 12 && r.places[1].scores == 3 && r.places[1].ended);
    assert_int_equal(resume_read("a/1000000000.0e,-,0.0", "a", &r), ST_OK);
    assert_int_equal(r.n, 3);
    assert_true(r.places[0].ended && !r.places[1].begun && r.places[2].begun && !r.places[2].ended);
}

/* Key, sender, path and body name a request; each of them does. */
static void names(void **state)
{
    (void)state;
    const char *const asked[][4] = {
        { "k", "alice", "/v1/completions", "{}" },      { "k2", "alice", "/v1/completions", "{}" },
        { "k", "bob", "/v1/completions", "{}" },        { "k", NULL, "/v1/completions", "{}" },
        { "k", "alice", "/v1/chat/completions", "{}" }, { "k", "alice", "/v1/completions", "{ }" }
    };
    char name[6][RESUME_NAME_BYTES + 1], again[RESUME_NAME_BYTES + 1];
    uint64_t seed[6], same;
    for (int i = 0; i < 6; i++) {
        assert_int_equal(
            resumes_name(asked[i][0], asked[i][1], asked[i][2], asked[i][3], strlen(asked[i][3]), name[i], &seed[i]),
            ST_OK);
        assert_int_equal(strspn(name[i], "0123456789abcdef"), RESUME_NAME_BYTES);
        for (int j = 0; j < i; j++)
            assert_true(strcmp(name[i], name[j]) != 0 && seed[i] != seed[j]);
    }
    assert_int_equal(resumes_name("k", "alice", "/v1/completions", "{}", 2, again, &same), ST_OK);
    assert_string_equal(again, name[0]);
    assert_int_equal(same, seed[0]);
    char long_key[RESUME_KEY_MAX + 2];
    memset(long_key, 'k', sizeof long_key - 1);
    long_key[sizeof long_key - 1] = 0;
    assert_int_equal(resumes_name("", NULL, "/", "", 0, again, &same), ST_INVALID);
    assert_int_equal(resumes_name("a\nb", NULL, "/", "", 0, again, &same), ST_INVALID);
    assert_int_equal(resumes_name("\xC3\xA4", NULL, "/", "", 0, again, &same), ST_INVALID);
    assert_int_equal(resumes_name(long_key, NULL, "/", "", 0, again, &same), ST_INVALID);
    assert_int_equal(resumes_name(long_key + 1, NULL, "/", "", 0, again, &same), ST_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(ids_go_there_and_back),
                                        cmocka_unit_test(what_is_no_id_is_refused), cmocka_unit_test(names) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
