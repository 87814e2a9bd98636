/* The program's table of settings, and how commands read it. */
#include "client/settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct settings s;
static const char *prompt, *positional;

/* words: separated by spaces, the command's name first */
static bool reads(uint32_t scope, const char *words)
{
    static char text[512];
    char *argv[32];
    int argc = 0;
    snprintf(text, sizeof text, "%s", words);
    for (char *save = NULL, *word = strtok_r(text, " ", &save); word && argc < 32; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    return settings_read(&s, scope, "usage", argc, argv, &prompt, &positional);
}

static void test_table(void **state)
{
    (void)state;
    struct error err = { 0 };
    if (config_defaults(settings_fields, &s, &err))
        fail_msg("%s", err.text);
    for (const struct config_field *f = settings_fields; f->key; f++) {
        assert_ptr_equal(config_find(settings_fields, f->key), f); /* no key twice */
        assert_true(f->scope & SCOPE_ALL);
        assert_non_null(f->help);
    }
}

static void test_order(void **state)
{
    (void)state;
    assert_true(reads(SCOPE_MODEL, "model --json random:x"));
    assert_true(s.json);
    assert_string_equal(positional, "random:x");
    assert_true(reads(SCOPE_MODEL, "model random:x --json --log-level error"));
    assert_true(s.json);
    assert_string_equal(positional, "random:x");
    assert_true(reads(SCOPE_MODEL, "model -- --json"));
    assert_false(s.json);
    assert_string_equal(positional, "--json");
    assert_true(reads(SCOPE_MODEL, "model"));
    assert_null(positional);
    assert_false(reads(SCOPE_MODEL, "model a b"));
    assert_false(reads(SCOPE_MODEL, "model a --json b"));
    assert_false(reads(SCOPE_MODEL, "model a --workers 3"));
}

static void test_prompt(void **state)
{
    (void)state;
    assert_true(reads(SCOPE_GENERATE, "generate --raw --prompt --odd --max-tokens 5"));
    assert_string_equal(prompt, "--odd");
    assert_int_equal(s.max_tokens, 5);
    assert_true(s.raw);
    assert_true(reads(SCOPE_GENERATE, "generate --prompt= --json"));
    assert_string_equal(prompt, "");
    assert_true(reads(SCOPE_GENERATE, "generate --prompt-file f"));
    assert_null(prompt);
    assert_string_equal(s.prompt_file, "f");
    assert_false(reads(SCOPE_GENERATE, "generate --prompt"));
    assert_false(reads(SCOPE_STATUS, "status --prompt x"));
}

/* Flags win over the file, wherever they stand. */
static void test_file(void **state)
{
    (void)state;
    char path[] = "/tmp/longspan-settings-XXXXXX", line[128];
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_true(dprintf(fd, "workers: 5\nthreads: 2\n") > 0);
    close(fd);
    snprintf(line, sizeof line, "up --workers 7 --config %s", path);
    assert_true(reads(SCOPE_UP, line));
    assert_int_equal(s.workers, 7);
    assert_int_equal(s.threads, 2);
    unlink(path);
    assert_false(reads(SCOPE_UP, line));
}

static void test_state(void **state)
{
    (void)state;
    setenv("XDG_STATE_HOME", "/x", 1);
    assert_true(reads(SCOPE_UP, "up --http 0.0.0.0:81"));
    settings_state_default(&s);
    assert_string_equal(s.state, "/x/longspan/81");
    setenv("XDG_STATE_HOME", "relative", 1); /* to be ignored, says its specification */
    setenv("HOME", "/home/me", 1);
    assert_true(reads(SCOPE_UP, "up"));
    settings_state_default(&s);
    assert_string_equal(s.state, "/home/me/.local/state/longspan/8080");
    assert_true(reads(SCOPE_UP, "up --state /there"));
    settings_state_default(&s);
    assert_string_equal(s.state, "/there");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table), cmocka_unit_test(test_order), cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_file),  cmocka_unit_test(test_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
