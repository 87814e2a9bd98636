/* What of a tokenizer.json is accepted, and what is refused by which name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/rules.h"

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
#define MODEL      "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"byte_fallback\":false}"
#define DECODER    "\"decoder\":" BYTE_LEVEL

static enum status read_rules(const char *text, bool *unk, struct error *err)
{
    struct token_rules rules = { 0 };
    *err = (struct error){ 0 };
    const enum status st = rules_from_json(text, strlen(text), &rules, err);
    assert_true(st ? rules.splitter == NULL && err->text[0] : true);
    splitter_free(rules.splitter);
    *unk = rules.unk;
    return st;
}

static void known_files_are_accepted(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{" MODEL "," DECODER ",\"pre_tokenizer\":" BYTE_LEVEL "}",
        "{" MODEL "," DECODER
        ",\"normalizer\":null,\"post_processor\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Digits\",\"individual_digits\":true}," BYTE_LEVEL "]}}",
        "{" MODEL "," DECODER ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[" BYTE_LEVEL
        ",{\"type\":\"TemplateProcessing\"}]},\"added_tokens\":[{\"content\":\"<s>\",\"lstrip\":false}],"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a+\"}"
        ","
        "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"use_regex\":false}]}}",
        "{" MODEL "," DECODER
        ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
        "{\"String\":\" \"},\"behavior\":\"Removed\",\"invert\":true}," BYTE_LEVEL "]}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct error err;
        bool unk = true;
        if (read_rules(texts[i], &unk, &err))
            fail_msg("%zu: %s", i, err.text);
        assert_false(unk);
    }
    struct error err;
    bool unk = false;
    assert_int_equal(
        read_rules("{\"model\":{\"unk_token\":\"<unk>\"}," DECODER ",\"pre_tokenizer\":" BYTE_LEVEL "}", &unk, &err),
        ST_OK);
    assert_true(unk);
}

static void others_are_refused_by_name(void **state)
{
    (void)state;
#define PRE(what) "{" MODEL "," DECODER ",\"pre_tokenizer\":" what "}"
    static const struct {
        enum status want;
        const char *text, *why;
    } cases[] = {
        { ST_CORRUPT, "{", "line 1" },
        { ST_CORRUPT, "[]", "model is not an object" },
        { ST_CORRUPT, "{\"model\":{},\"model\":{}}", "duplicate" },
        { ST_UNSUPPORTED, "{\"model\":{\"type\":\"Unigram\"}}", "\"Unigram\"" },
        { ST_UNSUPPORTED, "{\"model\":{\"byte_fallback\":true}}", "without normalizer and pre_tokenizer" },
        { ST_UNSUPPORTED, "{\"model\":{\"byte_fallback\":true,\"ignore_merges\":true}}", "model.ignore_merges" },
        { ST_UNSUPPORTED, "{\"model\":{\"byte_fallback\":true},\"normalizer\":{\"type\":\"NFKC\"}}", "\"NFKC\"" },
        { ST_UNSUPPORTED,
          "{\"model\":{\"byte_fallback\":true},\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"x\"}}",
          "\"Prepend\"" },
        { ST_UNSUPPORTED,
          "{\"model\":{\"byte_fallback\":true},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\"}}",
          "\"Metaspace\"" },
        { ST_UNSUPPORTED,
          "{\"model\":{\"byte_fallback\":true},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
          "\"\xE2\x96\x81\",\"prepend_scheme\":\"last\"}}",
          "prepend_scheme \"last\"" },
        { ST_UNSUPPORTED,
          "{\"model\":{\"byte_fallback\":true},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
          "\"\xE2\x96\x81\"},\"decoder\":{\"type\":\"Fuse\"}}",
          "decoder: byte_fallback without" },
        { ST_UNSUPPORTED, "{\"model\":{\"dropout\":0.1}}", "model.dropout" },
        { ST_UNSUPPORTED, "{\"model\":{\"continuing_subword_prefix\":\"##\"}}", "model.continuing_subword_prefix" },
        { ST_UNSUPPORTED, "{\"model\":{\"end_of_word_suffix\":\"</w>\"}}", "model.end_of_word_suffix" },
        { ST_UNSUPPORTED, "{" MODEL ",\"normalizer\":{\"type\":\"NFD\"}}", "normalizer: \"NFD\"" },
        { ST_UNSUPPORTED, "{" MODEL ",\"normalizer\":7}", "normalizer: \"(no type)\"" },
        { ST_UNSUPPORTED, "{" MODEL ",\"post_processor\":{\"type\":\"BertProcessing\"}}",
          "post_processor: \"BertProcessing\"" },
        { ST_UNSUPPORTED, "{" MODEL ",\"pre_tokenizer\":" BYTE_LEVEL "}", "decoder" },
        { ST_UNSUPPORTED, "{" MODEL ",\"decoder\":{\"type\":\"Metaspace\"}}", "decoder: \"Metaspace\"" },
        { ST_UNSUPPORTED, "{" MODEL "," DECODER ",\"added_tokens\":[{\"content\":\"<m>\",\"rstrip\":true}]}",
          "\"<m>\": rstrip" },
        { ST_UNSUPPORTED, PRE("null"), "no pre_tokenizer" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Metaspace\"}"), "\"Metaspace\"" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Digits\",\"individual_digits\":true}"), "without ByteLevel" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"), "add_prefix_space" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}"),
          "\"Digits\" after ByteLevel" },
        { ST_CORRUPT, PRE("{\"type\":\"Sequence\"}"), "Sequence" },
        { ST_CORRUPT, PRE("{\"type\":\"Split\",\"behavior\":\"Isolated\"}"), "Split without pattern" },
        { ST_CORRUPT, PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":3},\"behavior\":\"Isolated\"}"),
          "Split without pattern" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}"),
          "\"MergedWithNext\"" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"}"),
          "\"Removed\"" },
        { ST_UNSUPPORTED, PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w\"},\"behavior\":\"Isolated\"}"),
          "escape \"\\w\"" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err;
        bool unk;
        const enum status st = read_rules(cases[i].text, &unk, &err);
        if (st != cases[i].want || !strstr(err.text, cases[i].why))
            fail_msg("%s: %s, \"%s\", not \"%s\"", cases[i].text, status_text(st), err.text, cases[i].why);
    }
    char deep[4000] = "{" MODEL "," DECODER ",\"pre_tokenizer\":";
    for (int i = 0; i < 20; i++)
        strcat(deep, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 20; i++)
        strcat(deep, "]}");
    strcat(deep, "}");
    struct error err;
    bool unk;
    assert_int_equal(read_rules(deep, &unk, &err), ST_UNSUPPORTED);
}

static enum status on_piece(void *arg, const uint8_t *piece, size_t bytes)
{
    strcat(strncat(arg, (const char *)piece, bytes), "|");
    return ST_OK;
}

static void the_chain_is_the_one_described(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *want;
    } cases[] = {
        { BYTE_LEVEL, "I|'m| 12|  | x|" },
        { "{\"type\":\"ByteLevel\",\"use_regex\":false}", "I'm 12   x|" },
        { "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true}," BYTE_LEVEL "]}",
          "I|'m| |1|2|  | x|" },
        { "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":false}," BYTE_LEVEL
          "]}",
          "I|'m| |12|  | x|" },
        { "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\d\"},"
          "\"behavior\":\"Removed\","
          "\"invert\":true}," BYTE_LEVEL "]}",
          "1|2|" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char json[1024], got[128] = "";
        struct token_rules rules;
        snprintf(json, sizeof json, "{" MODEL "," DECODER ",\"pre_tokenizer\":%s}", cases[i].pre);
        assert_int_equal(rules_from_json(json, strlen(json), &rules, NULL), ST_OK);
        assert_int_equal(splitter_run(rules.splitter, (const uint8_t *)"I'm 12   x", 10, on_piece, got), ST_OK);
        assert_string_equal(got, cases[i].want);
        splitter_free(rules.splitter);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_files_are_accepted),
        cmocka_unit_test(others_are_refused_by_name),
        cmocka_unit_test(the_chain_is_the_one_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
