#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/selector.h"

static void texts(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "dense", "dense" },
        { "quest", "quest@0.2,layers=2,scope=global,prompt=dense" },
        { "quest@1", "quest@1,layers=2,scope=global,prompt=dense" },
        { "quest@1.000000", "quest@1,layers=2,scope=global,prompt=dense" },
        { "quest@0.000001,prompt=sparse", "quest@0.000001,layers=2,scope=global,prompt=sparse" },
        { "sketch-walk@0.10", "sketch-walk@0.1,layers=2,scope=global,prompt=sparse" },
        { "sketch-walk,layers=0,scope=local,prompt=dense", "sketch-walk@0.2,layers=0,scope=local,prompt=dense" },
        { "quest,scope=local,layers=7", "quest@0.2,layers=7,scope=local,prompt=dense" },
        { "socket@0.05", "socket@0.05,layers=2,scope=global,prompt=dense" },
        { "double-sparsity,prompt=sparse", "double-sparsity@0.2,layers=2,scope=global,prompt=sparse" },
        { "double-sparsity@0.05,channels=0123456789abcdef0123456789abcdef,layers=3",
          "double-sparsity@0.05,layers=3,scope=global,prompt=dense,channels=0123456789abcdef0123456789abcdef" },
        { "streaming", "streaming@1024,layers=0,scope=global,prompt=sparse" },
        { "streaming@64,layers=1,prompt=dense", "streaming@64,layers=1,scope=global,prompt=dense" },
        { "streaming@16777216", "streaming@16777216,layers=0,scope=global,prompt=sparse" },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct selector_spec spec, again;
        struct error err = { 0 };
        char text[SELECTOR_TEXT], twice[SELECTOR_TEXT];
        assert_int_equal(selector_parse(pairs[i][0], &spec, &err), ST_OK);
        selector_text(&spec, text);
        assert_string_equal(text, pairs[i][1]);
        assert_int_equal(selector_parse(text, &again, &err), ST_OK);
        selector_text(&again, twice);
        assert_string_equal(twice, text);
    }
}

static void refused(void **state)
{
    (void)state;
    static const char *const bad[] = { "",
                                       "Quest",
                                       "questing",
                                       "a-name-that-is-too-long",
                                       "dense@0.5",
                                       "dense,layers=1",
                                       "quest@",
                                       "quest@0",
                                       "quest@0.0000001",
                                       "quest@1.1",
                                       "quest@2",
                                       "quest@.5",
                                       "quest@0.",
                                       "quest@0.5x",
                                       "quest@-0.5",
                                       "quest@0.5,",
                                       "quest@0.5,layers",
                                       "quest@0.5,layers=",
                                       "quest@0.5,layers=-1",
                                       "quest@0.5,layers=4097",
                                       "quest@0.5,layers=2x",
                                       "quest@0.5,scope=here",
                                       "quest@0.5,prompt=maybe",
                                       "quest@0.5,prompt=sparsesparsesparsesparse",
                                       "quest@0.5 ,scope=local",
                                       "streaming@0.5",
                                       "streaming@0",
                                       "streaming@",
                                       "streaming@100",
                                       "streaming@16777280",
                                       "streaming@99999999999999999999999",
                                       "streaming@64,scope=local",
                                       "socket@0.1,scope=local",
                                       "double-sparsity@2",
                                       "double-sparsity,channels=",
                                       "double-sparsity,channels=0123456789abcdef0123456789abcde",
                                       "double-sparsity,channels=0123456789abcdef0123456789abcdef0",
                                       "double-sparsity,channels=0123456789ABCDEF0123456789ABCDEG",
                                       "quest,channels=0123456789abcdef0123456789abcdef",
                                       "socketed" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct selector_spec spec;
        struct error err = { 0 };
        assert_int_equal(selector_parse(bad[i], &spec, &err), ST_INVALID);
        assert_non_null(strstr(err.text, "selector"));
    }
}

static void densities(void **state)
{
    (void)state;
    uint32_t d;
    assert_true(selector_density_of(0.1, &d) && d == 100000);
    assert_true(selector_density_of(1, &d) && d == SELECTOR_DENSITY_ONE);
    assert_true(selector_density_of(1e-9, &d) && d == 1);
    const double bad[] = { 0, -0.1, 1.0001, (double)NAN, (double)INFINITY };
    for (int i = 0; i < 5; i++)
        assert_false(selector_density_of(bad[i], &d));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts),
        cmocka_unit_test(refused),
        cmocka_unit_test(densities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
