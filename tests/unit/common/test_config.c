/* Settings: every way in (defaults, YAML, flags), what is refused and with which words, and the way out again. */
#include "common/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct values {
    char name[8], place[32], colour[8];
    uint32_t count;
    uint64_t room;
    bool loud;
};

#define TEXT(field) offsetof(struct values, field), sizeof(((struct values *)0)->field)

static const struct config_field fields[] = {
    { "name", "bob", CONFIG_TEXT, TEXT(name), 0, 0, NULL, 1, "a name" },
    { "place", "here:1", CONFIG_ADDRESS, TEXT(place), 0, 0, NULL, 1, "a place" },
    { "colour", "red", CONFIG_CHOICE, TEXT(colour), 0, 0, "red|green|blue", 1, "a colour" },
    { "count", "3", CONFIG_U32, offsetof(struct values, count), 0, 1, 10, NULL, 3, "a count" },
    { "room", "auto", CONFIG_BYTES, offsetof(struct values, room), 0, 0, 1 << 30, NULL, 2, "room" },
    { "loud", "false", CONFIG_BOOL, offsetof(struct values, loud), 0, 0, 0, NULL, 3, "loud or not" },
    { 0 },
};

static struct values defaults(void)
{
    struct values v;
    struct error err = { 0 };
    assert_int_equal(config_defaults(fields, &v, &err), ST_OK);
    return v;
}

static void test_defaults(void **state)
{
    (void)state;
    const struct values v = defaults();
    assert_string_equal(v.name, "bob");
    assert_string_equal(v.place, "here:1");
    assert_string_equal(v.colour, "red");
    assert_int_equal(v.count, 3);
    assert_int_equal(v.room, 0);
    assert_false(v.loud);
}

static void test_values(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        bool good;
    } cases[] = {
        { "name", "", true },
        { "name", "1234567", true },
        { "name", "12345678", false },
        { "place", "", true },
        { "place", "[::1]:80", true },
        { "place", "a:65535", true },
        { "place", "a", false },
        { "place", ":1", false },
        { "place", "a:65536", false },
        { "place", "a:", false },
        { "place", "a:-1", false },
        { "colour", "green", true },
        { "colour", "blue", true },
        { "colour", "gree", false },
        { "colour", "", false },
        { "colour", "red|", false },
        { "colour", "redgreen", false },
        { "count", "1", true },
        { "count", "10", true },
        { "count", "0", false },
        { "count", "11", false },
        { "count", "-1", false },
        { "count", " 1", false },
        { "count", "1 ", false },
        { "count", "", false },
        { "count", "99999999999999999999", false },
        { "count", "0x1", false },
        { "room", "auto", true },
        { "room", "17", true },
        { "room", "1.5M", true },
        { "room", "1GiB", true },
        { "room", "2G", false },
        { "room", "1X", false },
        { "room", "-1", false },
        { "room", "1e400", false },
        { "room", "nan", false },
        { "room", "1MM", false },
        { "loud", "true", true },
        { "loud", "yes", false },
        { "loud", "", false },
        { "loudness", "true", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct values v = defaults();
        struct error err = { 0 };
        const enum status st = config_set(fields, &v, cases[i].key, cases[i].value, "there:7", &err);
        if (cases[i].good != (st == ST_OK))
            fail_msg("%s: '%s' -> %d %s", cases[i].key, cases[i].value, st, err.text);
        if (!cases[i].good) {
            assert_int_equal(st, ST_INVALID);
            assert_ptr_equal(strstr(err.text, "there:7: "), err.text);
            assert_non_null(strstr(err.text, cases[i].key));
        }
    }
    struct values v = defaults();
    struct error err = { 0 };
    assert_int_equal(config_set(fields, &v, "room", "1.5M", "", &err), ST_OK);
    assert_int_equal(v.room, 3 << 19);
}

static void test_file(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says; /* NULL: it is good */
    } cases[] = {
        { "", NULL },
        { "# nothing\n", NULL },
        { "---\n", NULL },
        { "count: 5\nloud: true\n", NULL },
        { "\"name\": 'it''s'\n", NULL },
        { "count: 5\n\nfrobnicate: 1\n", "f:3: unknown key 'frobnicate'" },
        { "count: 50\n", "f:1: count: '50'" },
        { "count:\n", "f:1: count: ''" },
        { "name: a\ncount: [1]\n", "f:2: count: a plain value" },
        { "count: {a: 1}\n", "f:1: count: a plain value" },
        { "count: 1\ncount: 2\n", "f:2: 'count' is set twice" },
        { "- count\n", "f:1: a key is expected" },
        { "just words\n", "f:1: keys and values" },
        { "[1]: 2\n", "f:1: a key is expected" },
        { "count: &a 1\nname: *a\n", "f:2: name: a plain value" },
        { "count: 1\n bad: 2\n", "f:" },
        { "name: \"a\\0b\"\n", "f:1: a NUL" },
        { "count: \"1\n", "f:" },
        { "count: 1\n---\ncount: 2\n", "f:" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct values v = defaults();
        struct error err = { 0 };
        const enum status st = config_text(fields, &v, cases[i].text, strlen(cases[i].text), "f", &err);
        if (!cases[i].says ? st != ST_OK : st != ST_INVALID || strstr(err.text, cases[i].says) != err.text)
            fail_msg("%s-> %d %s", cases[i].text, st, err.text);
    }
}

static enum status read_flags(struct values *v, const char *line, int *index_out, struct error *err)
{
    static char text[256];
    static char *argv[16];
    int argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *save = NULL, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    *index_out = 0;
    return config_flags(fields, v, 1, argc, argv, index_out, err);
}

static void test_flags(void **state)
{
    (void)state;
    struct values v = defaults();
    struct error err = { 0 };
    int index;
    assert_int_equal(read_flags(&v, "--name a --count=7 --loud --place b:2 rest --name c", &index, &err), ST_OK);
    assert_int_equal(index, 6);
    assert_string_equal(v.name, "a");
    assert_string_equal(v.place, "b:2");
    assert_int_equal(v.count, 7);
    assert_true(v.loud);
    assert_int_equal(read_flags(&v, "--loud=false --name= -- --count 1", &index, &err), ST_OK);
    assert_int_equal(index, 3);
    assert_false(v.loud);
    assert_string_equal(v.name, "");
    static const struct {
        const char *line, *says;
    } bad[] = { { "--room 5", "--room" }, /* not of this scope */
                { "--nothing 5", "--nothing" },
                { "--count", "--count: a value is missing" },
                { "--count x", "--count: count: 'x'" },
                { "--loud=maybe", "--loud: loud: 'maybe'" },
                { "--=5", "--" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = (struct error){ 0 };
        assert_int_equal(read_flags(&v, bad[i].line, &index, &err), ST_INVALID);
        assert_ptr_equal(strstr(err.text, bad[i].says), err.text);
    }
}

/* What is printed can be read again, and is the same. */
static void test_round_trip(void **state)
{
    (void)state;
    struct values v = defaults(), again = defaults();
    struct error err = { 0 };
    snprintf(v.name, sizeof v.name, "a: 'b#");
    snprintf(v.colour, sizeof v.colour, "blue");
    v.count = 9;
    v.room = 12345;
    v.loud = true;
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        size_t n = 0;
        FILE *out = open_memstream(&text, &n);
        config_print(fields, i ? &again : &v, out);
        assert_int_equal(fclose(out), 0);
        if (config_text(fields, &again, text, n, "f", &err))
            fail_msg("%s\n%s", err.text, text);
        assert_string_equal(again.name, v.name);
        assert_string_equal(again.colour, v.colour);
        assert_int_equal(again.count, v.count);
        assert_int_equal(again.room, v.room);
        assert_int_equal(again.loud, v.loud);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_values),     cmocka_unit_test(test_file),
        cmocka_unit_test(test_flags),    cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
