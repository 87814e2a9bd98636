/* UTF-8 in both directions, and decoding a token at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "coordinator/tokenizer/internal.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

#define FFFD "\xEF\xBF\xBD"

static void every_character_goes_there_and_back(void **state)
{
    (void)state;
    for (uint32_t point = 0; point < 0x110000; point++) {
        if (point >= 0xD800 && point < 0xE000)
            continue;
        uint8_t text[4];
        uint32_t back;
        const uint32_t n = utf8_put(point, text);
        assert_int_equal(utf8_next(text, text + n, &back), n);
        assert_int_equal(back, point);
        assert_true(utf8_valid(text, n));
        for (uint32_t cut = 1; cut < n; cut++) {
            assert_int_equal(utf8_next(text, text + cut, &back), 1);
            assert_int_equal(back, UTF8_BAD);
        }
    }
}

static void what_is_no_utf8_is_bad(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\x80",         "\xBF",         "\xC0\x80",         "\xC1\xBF",         "\xE0\x80\x80",     "\xE0\x9F\xBF",
        "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
        "\xFE",         "\xFF",         "\xC3\x41",         "\xE2\x82\x41",     "\xF0\x9F\x98\x41", "12345678\xFF",
        "1234567\xC3"
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(utf8_valid((const uint8_t *)bad[i], strlen(bad[i])));
    assert_true(utf8_valid((const uint8_t *)"", 0));
    assert_true(utf8_valid((const uint8_t *)"12345678\xC3\xA9 abcdefgh", 19));
}

static void classes_are_those_of_the_package(void **state)
{
    (void)state;
    static const struct {
        uint32_t point;
        enum text_class class;
    } cases[] = { { 'a', TEXT_LETTER },     { '5', TEXT_NUMBER },     { ' ', TEXT_SPACE },     { 0x1C, TEXT_OTHER },
                  { 0x7F, TEXT_OTHER },     { 0x80, TEXT_OTHER },     { 0x85, TEXT_SPACE },    { 0xAA, TEXT_LETTER },
                  { 0xB2, TEXT_NUMBER },    { 0x301, TEXT_OTHER },    { 0x180E, TEXT_OTHER },  { 0x200B, TEXT_OTHER },
                  { 0x3000, TEXT_SPACE },   { 0x4E00, TEXT_LETTER },  { 0x2167, TEXT_NUMBER }, { 0x11DE1, TEXT_DIGIT },
                  { 0x1F600, TEXT_OTHER },  { 0x10FFFF, TEXT_OTHER }, { 0xD800, TEXT_OTHER },  { UTF8_BAD, TEXT_OTHER },
                  { 0x323AF, TEXT_LETTER }, { 0x1FBF9, TEXT_NUMBER }, { 0x1FBFA, TEXT_OTHER } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (text_class_of(cases[i].point) != cases[i].class)
            fail_msg("U+%04X: class %d", cases[i].point, text_class_of(cases[i].point));
    }
}

static struct tokenizer *byte_tokenizer(struct tiny_vocab *v)
{
    struct tokenizer *t;
    tiny_init(v, NULL, NULL);
    v->v.kind = MODEL_VOCAB_BYTES;
    tiny_token(v, "<eot>", 5, MODEL_TOKEN_CONTROL);
    assert_int_equal(tokenizer_build(&v->v, -1, 1, &t, NULL), ST_OK);
    return t;
}

/* What comes out after each byte, joined by '|', and what the end brings. */
static void check_stream(const struct tokenizer *t, const char *bytes, const char *want)
{
    char got[256] = "";
    size_t n;
    struct token_stream *s = token_stream_new(t);
    assert_non_null(s);
    for (size_t i = 0; bytes[i]; i++) {
        const char *out = token_stream_push(s, (unsigned char)bytes[i], &n);
        assert_int_equal(n, strlen(out));
        strcat(strcat(got, out), "|");
    }
    strcat(got, token_stream_finish(s, &n));
    assert_string_equal(got, want);
    token_stream_finish(s, &n);
    assert_int_equal(n, 0);
    token_stream_free(s);
}

static void no_half_character_comes_out(void **state)
{
    (void)state;
    struct tiny_vocab v;
    struct tokenizer *t = byte_tokenizer(&v);
    check_stream(t, "ab", "a|b|");
    check_stream(t,
                 "\xC3\xA9"
                 "a",
                 "|\xC3\xA9|a|");
    check_stream(t, "\xE2\x82\xAC", "||\xE2\x82\xAC|");
    check_stream(t, "\xF0\x9F\x98\x80", "|||\xF0\x9F\x98\x80|");
    check_stream(t, "\xE2\x82", "||" FFFD);
    check_stream(t, "\xFF", FFFD "|");
    check_stream(t,
                 "\xE2\x82"
                 "a",
                 "||" FFFD "a|");
    check_stream(t, "\xE2\xE2\x82\xAC", "|" FFFD "||\xE2\x82\xAC|");
    check_stream(t, "\xE2\xFF", "|" FFFD FFFD "|");
    check_stream(t, "\xC0\x80", FFFD "|" FFFD "|");
    check_stream(t, "\xED\xA0\x80", "|" FFFD FFFD "|" FFFD "|");
    check_stream(t, "\xF4\x90", "|" FFFD FFFD "|");
    tokenizer_free(t);
}

static void control_tokens_leave_no_trace(void **state)
{
    (void)state;
    struct tiny_vocab v;
    struct tokenizer *t = byte_tokenizer(&v);
    struct token_stream *s = token_stream_new(t);
    size_t n;
    token_stream_push(s, 0xC3, &n);
    assert_int_equal(n, 0);
    token_stream_push(s, 256, &n);
    assert_int_equal(n, 0);
    token_stream_push(s, -5, &n);
    assert_int_equal(n, 0);
    assert_string_equal(token_stream_push(s, 0xA9, &n), "\xC3\xA9");
    token_stream_free(s);
    token_stream_free(NULL);
    tokenizer_free(t);
}

/* However bytes are shared out to tokens, the whole text is the same, and every part of it is valid. */
static void parts_join_to_the_same_text(void **state)
{
    (void)state;
    struct rng r = { .seed = 5 };
    struct tiny_vocab v;
    for (int round = 0; round < 300; round++) {
        uint8_t bytes[60];
        tiny_init(&v, "gpt-2", NULL);
        for (size_t i = 0; i < sizeof bytes; i++) {
            static const uint8_t likely[] = { 'a', 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xFF };
            bytes[i] = likely[rng_below(&r, sizeof likely)];
        }
        int32_t ids[60];
        size_t n_ids = 0;
        for (size_t at = 0; at < sizeof bytes;) { /* user-defined tokens stand for any bytes */
            size_t n = 1 + rng_below(&r, 5);
            n = n < sizeof bytes - at ? n : sizeof bytes - at;
            ids[n_ids++] = tiny_token(&v, (const char *)bytes + at, n, MODEL_TOKEN_USER);
            at += n;
        }
        struct tokenizer *t;
        assert_int_equal(tokenizer_build(&v.v, -1, 1, &t, NULL), ST_OK);
        struct token_stream *a = token_stream_new(t);
        char text[400] = "", whole[400];
        size_t n, n_whole = 0;
        for (size_t i = 0; i < n_ids; i++) {
            const char *out = token_stream_push(a, ids[i], &n);
            assert_true(utf8_valid((const uint8_t *)out, n));
            strcat(text, out);
        }
        strcat(text, token_stream_finish(a, &n));
        struct utf8_stream u = { 0 };
        for (size_t i = 0; i < sizeof bytes; i++)
            n_whole += utf8_stream_push(&u, bytes[i], (uint8_t *)whole + n_whole);
        n_whole += utf8_stream_finish(&u, (uint8_t *)whole + n_whole);
        whole[n_whole] = '\0';
        assert_string_equal(text, whole);
        token_stream_free(a);
        tokenizer_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_character_goes_there_and_back), cmocka_unit_test(what_is_no_utf8_is_bad),
        cmocka_unit_test(classes_are_those_of_the_package),    cmocka_unit_test(no_half_character_comes_out),
        cmocka_unit_test(control_tokens_leave_no_trace),       cmocka_unit_test(parts_join_to_the_same_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
