/* The written-out patterns against the same patterns run by PCRE2, and the translation of foreign patterns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/split_match.h"

struct pieces {
    char text[8192];
    size_t n;
};

static enum status on_piece(void *arg, const uint8_t *piece, size_t bytes)
{
    struct pieces *p = arg;
    assert_true(bytes > 0 && p->n + bytes + 1 < sizeof p->text);
    memcpy(p->text + p->n, piece, bytes);
    p->n += bytes;
    p->text[p->n++] = '|';
    p->text[p->n] = '\0';
    return ST_OK;
}

static void run(const struct splitter *s, const char *text, size_t bytes, struct pieces *out)
{
    out->n = 0;
    out->text[0] = '\0';
    assert_int_equal(splitter_run(s, (const uint8_t *)text, bytes, on_piece, out), ST_OK);
}

static struct splitter *of_pattern(const char *pattern, bool literal, bool keep_gaps)
{
    struct splitter *s = splitter_new();
    struct error err = { 0 };
    assert_non_null(s);
    if (splitter_add_pattern(s, pattern, strlen(pattern), literal, keep_gaps, &err))
        fail_msg("%s: %s", pattern, err.text);
    return s;
}

static struct splitter *of_name(const char *name)
{
    struct splitter *s;
    assert_int_equal(splitter_named(name, &s, NULL), ST_OK);
    return s;
}

static void check(const struct splitter *s, const char *text, const char *want)
{
    struct pieces got;
    run(s, text, strlen(text), &got);
    assert_string_equal(got.text, want);
}

static void pieces_of_known_rules(void **state)
{
    (void)state;
    struct splitter *s = of_name("smollm");
    check(s, "Hello world 12", "Hello| world| |1|2|");
    check(s, "a  b", "a| | b|");
    check(s, "I'm IT'S", "I|'m| IT|'|S|");
    check(s, "a \n\n b!", "a| \n\n| b|!|");
    check(s, "x\xC2\xB2+", "x|\xC2\xB2|+|");
    check(s, "  ", "  |");
    splitter_free(s);
    s = of_name("gpt-2");
    check(s, "a 123 b", "a| 123| b|");
    splitter_free(s);
    s = of_name("llama-bpe");
    check(s, "It's IT'S 12345 (foo) !!\n\n x", "It|'s| IT|'S| |123|45| (|foo|)| !!\n\n| x|");
    check(s, "\tif\n  x", "\tif|\n| | x|");
    check(s, "'\xC5\xBF", "'\xC5\xBF|");
    splitter_free(s);
}

/* The alphabet of all that the patterns tell apart, and bytes that are not UTF-8. */
static const char *const atoms[] = {
    "a",
    "s",
    "S",
    "t",
    "l",
    "L",
    "r",
    "e",
    "v",
    "d",
    "m",
    "'",
    "'",
    " ",
    " ",
    "\n",
    "\r",
    "\t",
    "\v",
    "1",
    "2",
    "!",
    "(",
    "\xC3\xA9",
    "\xC5\xBF",
    "\xC2\xA0",
    "\xC2\xB2",
    "\xC2\x85",
    "\xCC\x81",
    "\xE3\x80\x80",
    "\xFF",
    "\x80",
    "\xE2\x82",
    "\xF0\x9F",
    "\xE6\xBC\xA2",
    "\xE1\xA0\x8E",
    "\x1C",
    "\xD9\xA3",
    "_",
    "\xF0\x9F\x98\x80",
};

static void written_out_patterns_are_the_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *known, *wrapped; /* wrapped: the same, but not known by its text */
    } pairs[] = {
        { SPLIT_PATTERN_GPT2, "(?:" SPLIT_PATTERN_GPT2 ")" },
        { SPLIT_PATTERN_LLAMA3, "(?:" SPLIT_PATTERN_LLAMA3 ")" },
        { SPLIT_PATTERN_QWEN2, "(?:" SPLIT_PATTERN_QWEN2 ")" },
    };
    struct rng r = { .seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 3 };
    for (size_t k = 0; k < sizeof pairs / sizeof pairs[0]; k++) {
        struct splitter *a = of_pattern(pairs[k].known, false, true), *b = of_pattern(pairs[k].wrapped, false, true);
        for (int round = 0; round < 6000; round++) {
            char text[256];
            size_t n = 0;
            for (uint32_t i = 1 + rng_below(&r, 24); i > 0; i--) {
                const char *atom = atoms[rng_below(&r, sizeof atoms / sizeof atoms[0])];
                memcpy(text + n, atom, strlen(atom));
                n += strlen(atom);
            }
            struct pieces pa, pb;
            run(a, text, n, &pa);
            run(b, text, n, &pb);
            if (pa.n != pb.n || memcmp(pa.text, pb.text, pa.n) != 0)
                fail_msg("pattern %zu, round %d (SEED=%llu):\n%s\n%s", k, round, (unsigned long long)r.seed, pa.text,
                         pb.text);
        }
        splitter_free(a);
        splitter_free(b);
    }
}

static void gaps_are_kept_or_dropped(void **state)
{
    (void)state;
    struct splitter *s = of_pattern("\\d+", false, true);
    check(s, "ab12c3", "ab|12|c|3|");
    check(s, "abc", "abc|");
    splitter_free(s);
    s = of_pattern("\\d+", false, false);
    check(s, "ab12c3", "12|3|");
    splitter_free(s);
    s = of_pattern("a.b", true, true);
    check(s, "xa.baxba.b", "x|a.b|axb|a.b|");
    splitter_free(s);
}

static void steps_cut_what_the_step_before_left(void **state)
{
    (void)state;
    struct splitter *s = splitter_new();
    struct error err = { 0 };
    assert_int_equal(splitter_add_pattern(s, "-", 1, true, true, &err), ST_OK);
    assert_int_equal(splitter_add_digits(s, false, &err), ST_OK);
    check(s, "ab12-34c", "ab|12|-|34|c|");
    for (int i = 2; i < SPLIT_STEPS_MAX; i++)
        assert_int_equal(splitter_add_gpt2(s, &err), ST_OK);
    assert_int_equal(splitter_add_gpt2(s, &err), ST_UNSUPPORTED);
    splitter_free(s);
}

static void foreign_patterns_mean_what_they_meant(void **state)
{
    (void)state;
    struct splitter *s = of_pattern("[\\s]+|\\S+", false, true); /* U+180E is no space there, but is one to PCRE2 */
    check(s,
          "a\xE1\xA0\x8E"
          "b \xE3\x80\x80"
          "c",
          "a\xE1\xA0\x8E"
          "b| \xE3\x80\x80|c|");
    splitter_free(s);
    s = of_pattern("\\p{Han}+|\\p{^L}+", false, true); /* U+3001 is of the script extensions of Han, not of Han */
    check(s,
          "\xE6\xBC\xA2\xE3\x80\x81"
          "a1",
          "\xE6\xBC\xA2|\xE3\x80\x81|a|1|");
    splitter_free(s);
    s = of_pattern("\\u4e00+|\\x{4e8c}", false, true);
    check(s, "\xE4\xB8\x80\xE4\xB8\x80\xE4\xBA\x8C", "\xE4\xB8\x80\xE4\xB8\x80|\xE4\xBA\x8C|");
    splitter_free(s);
}

static void foreign_patterns_that_differ_are_refused(void **state)
{
    (void)state;
    static const char *const patterns[] = { "\\w+",
                                            "\\bx",
                                            "\\h",
                                            "[\\S]",
                                            "[a&&b]",
                                            "[a[b]]",
                                            "[]a]",
                                            "(?m:x)",
                                            "(?<n>x)",
                                            "(?i)x",
                                            "x{,3}",
                                            "x{1,2}+",
                                            "\\1",
                                            "\\x41",
                                            "x*",
                                            "(*ACCEPT)x",
                                            "\\p{Alpha}",
                                            "\\pL",
                                            "\\p{}",
                                            "x\\",
                                            "(x",
                                            "\\p{L",
                                            "[a",
                                            "\\Gx",
                                            "\\R",
                                            "\\u12",
                                            "\\p{no_such}",
                                            "{x",
                                            "\\N{a}",
                                            "(?x: a )",
                                            "\\p{L}\\C\\p{L}",
                                            "x|",
                                            "" };
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        struct splitter *s = splitter_new();
        struct error err = { 0 };
        const enum status st = splitter_add_pattern(s, patterns[i], strlen(patterns[i]), false, true, &err);
        if (st != ST_UNSUPPORTED || !strstr(err.text, "pattern"))
            fail_msg("\"%s\": %s, \"%s\"", patterns[i], status_text(st), err.text);
        splitter_free(s);
    }
}

static enum status stop(void *arg, const uint8_t *piece, size_t bytes)
{
    (void)piece;
    (void)bytes;
    return ++*(int *)arg == 2 ? ST_CANCELLED : ST_OK;
}

static void a_run_can_be_ended(void **state)
{
    (void)state;
    struct splitter *all[] = { of_name("smollm"), of_name("llama-bpe"), of_pattern("[a-z]", false, true) };
    for (size_t i = 0; i < 3; i++) {
        int n = 0;
        assert_int_equal(splitter_run(all[i], (const uint8_t *)"a 1 b c", 7, stop, &n), ST_CANCELLED);
        assert_int_equal(n, 2);
        splitter_free(all[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_of_known_rules),
        cmocka_unit_test(written_out_patterns_are_the_patterns),
        cmocka_unit_test(gaps_are_kept_or_dropped),
        cmocka_unit_test(steps_cut_what_the_step_before_left),
        cmocka_unit_test(foreign_patterns_mean_what_they_meant),
        cmocka_unit_test(foreign_patterns_that_differ_are_refused),
        cmocka_unit_test(a_run_can_be_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
