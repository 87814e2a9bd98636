#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/file.h"

static const char *in(const char *directory, const char *name)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

/* What a link points to outside of the tree stays. */
static void test_remove_tree(void **state)
{
    (void)state;
    struct error err = { 0 };
    char tree[] = "/tmp/longspan-tree-XXXXXX", outside[] = "/tmp/longspan-kept-XXXXXX";
    assert_non_null(mkdtemp(tree));
    assert_non_null(mkdtemp(outside));
    assert_int_equal(file_mkdirs(in(tree, "a/b/c"), &err), ST_OK);
    assert_int_equal(file_write_atomic(in(tree, "a/b/with 'quotes'"), "x", 1, &err), ST_OK);
    assert_int_equal(file_write_atomic(in(outside, "kept"), "x", 1, &err), ST_OK);
    assert_int_equal(symlink(outside, in(tree, "a/link")), 0);
    assert_int_equal(file_remove_tree(tree, &err), ST_OK);
    assert_false(file_exists(tree));
    assert_true(file_exists(in(outside, "kept")));
    assert_int_equal(file_remove_tree(tree, &err), ST_NOT_FOUND);
    assert_non_null(strstr(err.text, tree));
    assert_int_equal(file_remove_tree(outside, &err), ST_OK);
}

static void test_write_and_read(void **state)
{
    (void)state;
    struct error err = { 0 };
    char directory[] = "/tmp/longspan-file-XXXXXX", *text;
    size_t bytes;
    assert_non_null(mkdtemp(directory));
    assert_int_equal(file_read(in(directory, "f"), 100, &text, &bytes, &err), ST_NOT_FOUND);
    assert_int_equal(file_write_atomic(in(directory, "f"), "first", 5, &err), ST_OK);
    assert_int_equal(file_write_atomic(in(directory, "f"), "second", 6, &err), ST_OK);
    assert_int_equal(file_read(in(directory, "f"), 100, &text, &bytes, &err), ST_OK);
    assert_int_equal(bytes, 6);
    assert_string_equal(text, "second");
    free(text);
    assert_int_not_equal(file_read(in(directory, "f"), 5, &text, &bytes, &err), ST_OK);
    assert_int_equal(file_write_atomic(in(directory, "missing/f"), "x", 1, &err), ST_NOT_FOUND);
    assert_int_equal(file_remove_tree(directory, &err), ST_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_remove_tree), cmocka_unit_test(test_write_and_read) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
