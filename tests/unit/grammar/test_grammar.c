/* Random schemas and texts drawn under their masks, held against a validator; single schemas, and what is refused. */
#define _GNU_SOURCE /* strptime */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "coordinator/grammar/grammar.h"
#include "kernels/kernels.h"
#include "tests/unit/grammar/schemas.h"

enum { N_TOKENS = 700, EOS = 256, TEXT_MAX = 1 << 16, TOKENS_MAX = 6000 };

static char words[N_TOKENS][24];
static size_t lengths[N_TOKENS];
static struct vocabulary *vocabulary;
static const struct row_impl *rows;

static const char *bytes_of(void *ctx, uint32_t token, size_t *n_out)
{
    (void)ctx;
    *n_out = lengths[token];
    return words[token];
}

/* All bytes, a control token, marks of JSON in company, pieces of words, characters and parts of them. */
static void words_make(void)
{
    static const char *const marks[] = { "{\"",
                                         "\":",
                                         "\", \"",
                                         "\"}",
                                         "}}",
                                         "]}",
                                         "},{",
                                         "[[",
                                         "]]",
                                         "\": \"",
                                         "true",
                                         "false",
                                         "null",
                                         "\n  ",
                                         "\n    ",
                                         "\",\"",
                                         "0.",
                                         "e+",
                                         "\\u",
                                         "\\n",
                                         "\xC3\xA9",
                                         "\xE2\x82",
                                         "\xF0\x9F\x98\x80",
                                         " \"",
                                         ", ",
                                         ": ",
                                         "\"a\"",
                                         "name",
                                         "kind",
                                         "10",
                                         "00" };
    uint32_t n = 257;
    for (uint32_t i = 0; i < 256; i++) {
        words[i][0] = (char)i;
        lengths[i] = 1;
    }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++, n++)
        lengths[n] = (size_t)snprintf(words[n], sizeof words[n], "%s", marks[i]);
    for (; n < N_TOKENS; n++) {
        lengths[n] = 2 + rng_below(&rng, 4);
        for (size_t i = 0; i < lengths[n]; i++)
            words[n][i] = "abcdeknm 0123\"},:[]{é"[rng_below(&rng, 21)];
    }
    vocabulary = vocabulary_new(N_TOKENS, bytes_of, NULL);
    assert_non_null(vocabulary);
    rows = row_find(0);
}

/* ---- drawing ---- */

/* Near enough, and cheap: it is asked for once a token of the vocabulary and step. */
static float normal(void)
{
    return (float)(2 * (rng_unit(rng_next(&rng)) + rng_unit(rng_next(&rng)) + rng_unit(rng_next(&rng)) - 1.5));
}

/* A mask says of each token what pushing it says. */
static void check_mask(struct grammar *g, const char *text, size_t n, const uint8_t *mask)
{
    for (int i = 0; i < 30; i++) {
        const uint32_t t = rng_below(&rng, N_TOKENS);
        struct matcher *m = matcher_new(g, vocabulary);
        assert_int_equal(matcher_push(m, text, n), ST_OK);
        const bool goes_on = lengths[t] && t != EOS && matcher_push(m, words[t], lengths[t]) == ST_OK;
        if (goes_on != (mask[t / 8] >> (t % 8) & 1))
            fail_msg("after %.*s, %.*s: the mask says %d", (int)n, text, (int)lengths[t], words[t], !goes_on);
        matcher_free(m);
    }
}

/* What a model of random weights would say; ends of things are likelier, so that they come. -> bytes; 0: too long */
static size_t draw_text(struct grammar *g, char *text)
{
    static float logits[N_TOKENS];
    static uint8_t mask[N_TOKENS / 8 + 1];
    struct matcher *m = matcher_new(g, vocabulary);
    void *scratch = malloc(sample_scratch_bytes(N_TOKENS));
    size_t n = 0;
    assert_non_null(m);
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
        uint32_t allowed = 0;
        memset(mask, 0, sizeof mask);
        assert_int_equal(matcher_mask(m, mask, &allowed), ST_OK);
        assert_int_equal(mask[EOS / 8] >> (EOS % 8) & 1, 0);
        if (rng_below(&rng, 100) == 0)
            check_mask(g, text, n, mask);
        if (matcher_may_end(m))
            mask[EOS / 8] |= 1 << (EOS % 8);
        assert_true(allowed || matcher_may_end(m));
        assert_int_equal(!allowed, matcher_must_end(m));
        for (uint32_t t = 0; t < N_TOKENS; t++)
            logits[t] = normal() * 2 + (t == EOS || t == '"' || t == '}' || t == ']' ? 5 : 0);
        const struct sample_edits edits = { .repetition = 1, .allowed = mask, .allowed_bytes = sizeof mask };
        const struct sample_params params = { .temperature = 1, .top_p = 1, .seed = rng_next(&rng) };
        struct sample_result r;
        sample_row(rows, logits, N_TOKENS, &params, &edits, i, -1, 0, NULL, scratch, &r);
        assert_true(r.finite);
        if (r.token == EOS) {
            text[n] = 0;
            free(scratch);
            matcher_free(m);
            return n;
        }
        memcpy(text + n, words[r.token], lengths[r.token]);
        n += lengths[r.token];
        assert_int_equal(matcher_push(m, words[r.token], lengths[r.token]), ST_OK);
    }
    free(scratch);
    matcher_free(m);
    return 0;
}

static void test_random_schemas(void **state)
{
    (void)state;
    static char text[TEXT_MAX];
    unsigned whole = 0, made = 0;
    size_t bytes = 0;
    for (unsigned round = 0; whole < 1000; round++) {
        json_t *schema = draw_root();
        struct grammar *g = NULL;
        struct error err = { 0 };
        const enum status st = grammar_of_schema(schema, "schema", &g, &err);
        if (st == ST_UNSUPPORTED &&
            strstr(err.text, "beside")) { /* a definition beside what stands alone is a note; nothing else is */
            fail_msg("%s", err.text);
        }
        if (st) /* minItems over what prefixItems and maxItems leave */
            assert_int_equal(st, ST_INVALID);
        for (int i = 0; g && i < 2; i++) {
            made++;
            const size_t n = draw_text(g, text);
            if (!n)
                continue;
            json_error_t e;
            json_t *v = json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
            if (!v || !fits(schema, schema, v)) {
                char *s = json_dumps(schema, 0);
                print_error("round %u: under %s\n", round, s);
                fail_msg("%s: %s (%s)", text, v ? "not what it says" : "no JSON", e.text);
            }
            json_decref(v);
            whole++;
            bytes += n;
        }
        grammar_unref(g);
        json_decref(schema);
    }
    print_message("%u texts, %zu bytes; %u were too long\n", whole, bytes, made - whole);
    assert_true(made - whole < made / 20);
}

static void test_objects(void **state)
{
    (void)state;
    static char text[TEXT_MAX];
    struct grammar *g = NULL;
    struct error err = { 0 };
    assert_int_equal(grammar_of_object(&g, &err), ST_OK);
    unsigned whole = 0;
    for (int i = 0; i < 60; i++) {
        const size_t n = draw_text(g, text);
        json_error_t e;
        json_t *v = n ? json_loadb(text, n, JSON_ALLOW_NUL, &e) : NULL;
        if (n && !json_is_object(v))
            fail_msg("%s: %s", text, e.text);
        whole += n != 0;
        json_decref(v);
    }
    assert_true(whole > 30);
    grammar_unref(g);
}

/* ---- what goes in, what does not ---- */

static struct grammar *compile(const char *text)
{
    struct error err = { 0 };
    struct grammar *g = NULL;
    json_t *schema = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(schema);
    if (grammar_of_schema(schema, "schema", &g, &err))
        fail_msg("%s: %s", text, err.text);
    json_decref(schema);
    return g;
}

static bool accepts(struct grammar *g, const char *text)
{
    struct matcher *m = matcher_new(g, vocabulary);
    assert_non_null(m);
    bool ok = true;
    for (const char *c = text; *c && ok; c++)
        ok = matcher_push(m, c, 1) == ST_OK;
    ok = ok && matcher_may_end(m);
    matcher_free(m);
    return ok;
}

static void test_accepts(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *good[6], *bad[8];
    } cases[] = {
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"string\"}},\"required\":"
          "[\"b\"]}",
          { "{\"a\":1,\"b\":\"x\"}", "{\"b\":\"\"}", "{\n  \"a\": -20,\n  \"b\": \"\\u00e9\\n\"\n}",
            "{\"b\":\"\xC3\xA9\"}" },
          { "{}", "{\"a\":1}", "{\"a\":01,\"b\":\"\"}", "{\"b\":\"x\",\"a\":1}", "{\"a\":1,\"b\":\"x\"",
            "{\"b\":\"\xC3\"}", "{\"b\":\"\\ud800\"}", "{\"b\":\"x\",\"c\":1}" } },
        { "{\"properties\":{\"ab\":{\"const\":1}},\"additionalProperties\":{\"type\":\"null\"}}",
          { "{}", "{\"ab\":1}", "{\"a\":null}", "{\"abc\":null,\"b\":null}", "{\"ab\":1,\"\":null}" },
          { "{\"ab\":null}", "{\"\\u0061b\":null}", "{\"c\":1}" } },
        { "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":2}",
          { "[true]", "[true,false]", "[ true, false ]" },
          { "[]", "[true,]", "[true,true,true]", "[1]" } },
        { "{\"enum\":[\"a\",1,null]}", { "\"a\"", "1", "null" }, { "\"b\"", "2", "nul" } },
        { "{\"type\":\"string\",\"minLength\":1,\"maxLength\":2}",
          { "\"a\"", "\"\xF0\x9F\x98\x80z\"", "\"\\\"\\\\\"" },
          { "\"\"", "\"abc\"", "\"a" } },
        { "{\"type\":\"number\"}",
          { "0", "-1.5e+10", "123456789012345" },
          { "1.", "1e", "--1", "1234567890123456", ".5" } },
        { "{\"$ref\":\"#/definitions/t\",\"definitions\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/"
          "definitions/t\"}}}}",
          { "[]", "[[],[[]]]" },
          { "[1]", "{}" } },
        { "{\"type\":\"integer\",\"minimum\":-12,\"exclusiveMaximum\":305}",
          { "0", "-12", "304", "99", "100", "-9" },
          { "-13", "305", "01", "-0", "1000", "-100", "1.0", "" } },
        { "{\"type\":[\"integer\",\"null\"],\"exclusiveMinimum\":1999,\"maximum\":100000.5}",
          { "2000", "99999", "100000", "null", "9999", "10000" },
          { "1999", "100001", "0", "-5", "999", "200000" } },
        { "{\"minimum\":1e21,\"maximum\":5,\"type\":\"null\"}", { "null" }, { "5" } },
        { "{\"type\":\"integer\",\"maximum\":-1000000000000000}",
          { "-1000000000000000", "-999999999999999999" },
          { "-999999999999999", "0", "-1000000000000000000" } },
        { "{\"pattern\":\"^[A-Z]{2,3}-\\\\d+(?:\\\\.x|y)?$\",\"minLength\":4}",
          { "\"AB-1\"", "\"ABC-123\"", "\"AB-0.x\"", "\"AB-0y\"" },
          { "\"A-1\"", "\"ABCD-1\"", "\"AB-\"", "\"AB-1.y\"", "\"ab-1\"", "\"AB-1 \"", "AB-1" } },
        { "{\"pattern\":\"a.c|^x$\"}",
          { "\"abc\"",
            "\"..a\xC3\xA9"
            "c!\"",
            "\"x\"", "\"a\\\"c\"", "\"a\\\\c\"" },
          { "\"ac\"", "\"xx\"", "\"\"", "\"a\"c\"", "\"a\\c\"", "\"a\nc\"" } },
        { "{\"pattern\":\"^[^a-y\\\\s\xC3\xA0-\xC3\xB6]*?\\\\W\\\\x41\\\\u00e9$\"}",
          { "\"zZ\xE2\x82\xAC\xF0\x9F\x98\x80!A\xC3\xA9\"", "\"-A\xC3\xA9\"" },
          { "\"b!A\xC3\xA9\"", "\" !A\xC3\xA9\"", "\"\xC3\xA4!A\xC3\xA9\"", "\"_A\xC3\xA9\"", "\"!A\xC3\"",
            "\"!Ae\"" } },
        { "{\"pattern\":\"^[\\\\n\\\\t\\\"]{1,2}$\"}",
          { "\"\\n\"", "\"\\t\\\"\"" },
          { "\"\"", "\"\n\"", "\"n\"", "\"\\n\\n\\n\"" } },
        { "{\"format\":\"date\"}",
          { "\"2024-02-28\"", "\"1999-12-31\"", "\"2000-04-30\"" },
          { "\"2024-02-30\"", "\"2024-04-31\"", "\"2024-13-01\"", "\"2024-1-1\"", "\"0000-01-01\"", "\"x\"" } },
        { "{\"type\":\"string\",\"format\":\"date-time\",\"maxLength\":40}",
          { "\"2024-01-01T00:00:00Z\"", "\"2024-01-01T23:59:59.5+01:00\"" },
          { "\"2024-01-01\"", "\"2024-01-01T24:00:00Z\"", "\"2024-01-01T00:00:00\"" } },
        { "{\"format\":\"ipv4\"}",
          { "\"0.10.255.249\"", "\"1.1.1.1\"" },
          { "\"256.1.1.1\"", "\"1.1.1\"", "\"01.1.1.1\"", "\"1.1.1.1.\"" } },
        { "{\"format\":\"email\"}",
          { "\"a@b.de\"", "\"first.last+tag@mail-1.example.org\"" },
          { "\"a@b\"", "\"@b.de\"", "\"a b@c.de\"", "\"a@-b.de\"", "\".a@b.de\"" } },
        { "{\"format\":\"uuid\"}",
          { "\"123e4567-e89b-12d3-a456-426614174000\"" },
          { "\"123e4567e89b12d3a456426614174000\"", "\"123e4567-e89b-12d3-a456-42661417400g\"" } },
        { "{\"format\":\"time\"}", { "\"12:00:59Z\"" }, { "\"12:00Z\"", "\"12:60:00Z\"" } },
        { "{\"discriminator\":{\"propertyName\":\"k\"},\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{"
          "\"const\":\"a\"},\"x\":{\"type\":\"integer\"}},"
          "\"required\":[\"k\",\"x\"]"
          "},{\"$ref\":\"#/$defs/"
          "b\"},{\"type\":[\"null\",\"string\"]},{\"const\":7}],\"$defs\":{\"b\":{\"type\":\"object\","
          "\"properties\":{\"k\":{\"enum\":[\"b\",\"c\"]}},\"required\":[\"k\"]}}}",
          { "{\"k\":\"a\",\"x\":1}", "{\"k\":\"c\"}", "null", "\"\"", "7" },
          { "{\"k\":\"a\"}", "{}", "8", "{\"k\":\"b\",\"x\":1}" } },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":3}},\"allOf\":[{\"$ref\":\"#/"
          "$defs/b\"},{"
          "\"properties\":{\"a\":{\"maximum\":5}}}],\"required\":[\"a\"],\"$defs\":{\"b\":{\"type\":\"object\","
          "\"properties\":{\"b\":"
          "{\"allOf\":[{\"type\":[\"string\",\"number\"]},{\"type\":\"integer\"}]}},\"required\":[\"b\"]}}}",
          { "{\"b\":1,\"a\":3}", "{\"b\":-1,\"a\":5}" },
          { "{\"b\":1,\"a\":2}", "{\"b\":1,\"a\":6}", "{\"b\":1}", "{\"a\":3}", "{\"b\":1.5,\"a\":3}" } },
        { "{\"allOf\":[{\"enum\":[1,2,\"x\"]},{\"enum\":[2.0,\"x\",4]},{\"type\":\"string\"}]}",
          { "\"x\"" },
          { "1", "2" } },
        { "{\"allOf\":[{\"minLength\":2},{\"type\":\"string\",\"maxLength\":5,\"minLength\":1},{\"maxLength\":3},true]"
          "}",
          { "\"ab\"", "\"abc\"" },
          { "\"a\"", "\"abcd\"" } },
        { "true", { "{\"a\":[1,{\"b\":null}]}", "[]", "\"\"", "3" }, { "", "{a:1}", "nul" } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grammar *g = compile(cases[i].schema);
        for (int k = 0; k < 6 && cases[i].good[k]; k++)
            if (!accepts(g, cases[i].good[k]))
                fail_msg("%s does not take %s", cases[i].schema, cases[i].good[k]);
        for (int k = 0; k < 8 && cases[i].bad[k]; k++)
            if (accepts(g, cases[i].bad[k]))
                fail_msg("%s takes %s", cases[i].schema, cases[i].bad[k]);
        grammar_unref(g);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *names;
        enum status status;
    } cases[] = {
        { "{\"properties\":{\"x\":{\"items\":{\"not\":{}}}}}", "schema.properties.x.items.not", ST_UNSUPPORTED },
        { "{\"properties\":{\"x\":{\"items\":{\"oneOf\":[]}}}}", "schema.properties.x.items.oneOf", ST_INVALID },
        { "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "schema.oneOf: schemas 0 and 1",
          ST_UNSUPPORTED },
        { "{\"oneOf\":[{\"const\":1},{\"type\":\"string\"},{\"enum\":[2,1.0]}]}", "schemas 0 and 2", ST_UNSUPPORTED },
        { "{\"oneOf\":[{\"$ref\":\"#/$defs/"
          "a\"},{\"type\":\"object\",\"properties\":{\"k\":{\"const\":1}}}],\"$defs\":{\"a\":{"
          "\"type\":\"object\",\"properties\":{\"k\":{\"const\":2}},\"required\":[\"k\"]}}}",
          "schema.oneOf", ST_UNSUPPORTED },
        { "{\"allOf\":[]}", "schema.allOf", ST_INVALID },
        { "{\"allOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "schema.type", ST_INVALID },
        { "{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"}]}", "schema.pattern", ST_UNSUPPORTED },
        { "{\"allOf\":[{\"enum\":[1]},{\"enum\":[2]}]}", "schema.enum", ST_INVALID },
        { "{\"allOf\":[{\"properties\":{\"a\":{}},\"additionalProperties\":false},{\"properties\":{\"b\":{}}}]}",
          "schema.additionalProperties", ST_UNSUPPORTED },
        { "{\"allOf\":[{\"$ref\":\"#\"}]}", "$ref: references are too deep", ST_TOO_LARGE },
        { "{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/a\"}],\"$defs\":{\"a\":{\"allOf\":[{\"$ref\":\"#/"
          "$defs/b\"},{"
          "\"$ref\":\"#/$defs/b\"}]},\"b\":{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/a\"}]}}}",
          "too deep", ST_TOO_LARGE },
        { "{\"const\":1,\"enum\":[2]}", "schema.const", ST_INVALID },
        { "{\"enum\":[\"a\"],\"minLength\":1}", "schema.minLength", ST_UNSUPPORTED },
        { "{\"type\":\"number\",\"minimum\":0}", "schema.minimum", ST_UNSUPPORTED },
        { "{\"type\":\"integer\",\"multipleOf\":5}", "schema.multipleOf", ST_UNSUPPORTED },
        { "{\"type\":\"integer\",\"minimum\":3.5,\"maximum\":3.9}", "schema.minimum", ST_INVALID },
        { "{\"type\":\"integer\",\"minimum\":1e30}", "schema.minimum", ST_INVALID },
        { "{\"type\":\"integer\",\"exclusiveMaximum\":true}", "schema.exclusiveMaximum", ST_INVALID },
        { "{\"format\":\"uri\"}", "schema.format", ST_UNSUPPORTED },
        { "{\"format\":\"date\",\"pattern\":\"a\"}", "schema.format", ST_UNSUPPORTED },
        { "{\"format\":\"date\",\"maxLength\":9}", "schema.format", ST_UNSUPPORTED },
        { "{\"pattern\":\"a+\",\"maxLength\":9}", "schema.pattern", ST_UNSUPPORTED },
        { "{\"pattern\":\"a(?=b)\"}", "look-around", ST_UNSUPPORTED },
        { "{\"pattern\":\"(?<!a)b\"}", "look-around", ST_UNSUPPORTED },
        { "{\"pattern\":\"(?<n>a)\"}", "named groups", ST_UNSUPPORTED },
        { "{\"pattern\":\"(a)\\\\1\"}", "back references", ST_UNSUPPORTED },
        { "{\"pattern\":\"\\\\bword\"}", "word boundaries", ST_UNSUPPORTED },
        { "{\"pattern\":\"\\\\p{L}\"}", "\\p", ST_UNSUPPORTED },
        { "{\"pattern\":\"a^b\"}", "ends of an alternative", ST_UNSUPPORTED },
        { "{\"pattern\":\"(a*)*\"}", "may be empty", ST_UNSUPPORTED },
        { "{\"pattern\":\"(a\"}", "group does not end", ST_INVALID },
        { "{\"pattern\":\"a)\"}", "too many", ST_INVALID },
        { "{\"pattern\":\"[a\"}", "class does not end", ST_INVALID },
        { "{\"pattern\":\"[b-a]\"}", "out of order", ST_INVALID },
        { "{\"pattern\":\"*\"}", "nothing to repeat", ST_INVALID },
        { "{\"pattern\":\"a{2,1}\"}", "count", ST_INVALID },
        { "{\"pattern\":\"a{99999}\"}", "count", ST_INVALID },
        { "{\"pattern\":\"(((a{999}){999}){999}){999}\"}", "length", ST_OK },
        { "{\"pattern\":\"\\\\\"}", "escape", ST_INVALID },
        { "{\"pattern\":\"\\\\u12\"}", "hexadecimal", ST_INVALID },
        { "{\"pattern\":\"[\\\\ud800]\"}", "surrogates", ST_UNSUPPORTED },
        { "{\"pattern\":5}", "schema.pattern", ST_INVALID },
        { "{\"anyOf\":[{\"type\":\"string\"}],\"type\":\"string\"}", "schema.type", ST_UNSUPPORTED },
        { "{\"type\":\"text\"}", "schema.type", ST_INVALID },
        { "{\"enum\":[]}", "schema.enum", ST_INVALID },
        { "{\"type\":\"string\",\"enum\":[1]}", "schema.enum", ST_INVALID },
        { "{\"$ref\":\"#/nowhere\"}", "schema.$ref", ST_INVALID },
        { "{\"$ref\":\"http://x/y\"}", "schema.$ref", ST_INVALID },
        { "{\"$ref\":\"#\"}", "no finite text", ST_INVALID },
        { "{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", "itself", ST_INVALID },
        { "{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "no finite text", ST_INVALID },
        { "{\"minLength\":3,\"maxLength\":2}", "schema.minLength", ST_INVALID },
        { "{\"minLength\":-1}", "schema.minLength", ST_INVALID },
        { "{\"maxLength\":100000}", "schema.maxLength", ST_TOO_LARGE },
        { "{\"items\":{\"items\":{\"maxLength\":10000,\"minLength\":9999}},\"minItems\":16000}", "nodes", ST_OK },
        { "{\"required\":[\"a\"],\"additionalProperties\":false}", "schema.required", ST_INVALID },
        { "{\"properties\":{\"a\":false}}", "schema.properties.a", ST_INVALID },
        { "5", "schema", ST_INVALID },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = { 0 };
        struct grammar *g = NULL;
        json_t *schema = json_loads(cases[i].schema, JSON_DECODE_ANY, NULL);
        const enum status st = grammar_of_schema(schema, "schema", &g, &err);
        if (st != cases[i].status || (st && !strstr(err.text, cases[i].names)))
            fail_msg("%s: %d, %s", cases[i].schema, st, err.text);
        grammar_unref(g);
        json_decref(schema);
    }
    /* each definition is all of the next, twice */
    json_t *defs = json_object();
    for (int i = 0; i < 30; i++) {
        char name[16], next[32];
        snprintf(name, sizeof name, "d%d", i);
        snprintf(next, sizeof next, "#/$defs/d%d", i + 1);
        json_object_set_new(defs, name, json_pack("{s:[{s:s},{s:s}]}", "allOf", "$ref", next, "$ref", next));
    }
    json_object_set_new(defs, "d30", json_object());
    json_t *doubled = json_pack("{s:[{s:s}],s:o}", "allOf", "$ref", "#/$defs/d0", "$defs", defs);
    struct error many = { 0 };
    struct grammar *none = NULL;
    assert_int_equal(grammar_of_schema(doubled, "schema", &none, &many), ST_TOO_LARGE);
    assert_non_null(strstr(many.text, "too many schemas to merge"));
    json_decref(doubled);
    /* deep, and wide */
    char deep[4096] = "";
    for (int i = 0; i < 100; i++)
        strcat(deep, "{\"items\":");
    strcat(deep, "true");
    for (int i = 0; i < 100; i++)
        strcat(deep, "}");
    json_t *schema = json_loads(deep, 0, NULL), *wide = json_array();
    struct error err = { 0 };
    struct grammar *g = NULL;
    assert_int_equal(grammar_of_schema(schema, "schema", &g, &err), ST_TOO_LARGE);
    json_decref(schema);
    for (int i = 0; i < 40; i++)
        json_array_append_new(wide,
                              json_pack("{s:s,s:i,s:i}", "type", "string", "minLength", 9000 + i, "maxLength", 9900));
    schema = json_pack("{s:o}", "anyOf", wide);
    err = (struct error){ 0 };
    assert_int_equal(grammar_of_schema(schema, "schema", &g, &err), ST_TOO_LARGE);
    assert_non_null(strstr(err.text, "nodes"));
    json_decref(schema);
}

/* A rule that calls itself is first asked for when there are no nodes left, or nearly none. */
static void test_limit_met_anywhere(void **state)
{
    (void)state;
    for (int n = 0; n < 400; n++) {
        json_t *list = json_array();
        for (int i = 0; i < 8; i++)
            json_array_append_new(list, json_pack("{s:s,s:i}", "type", "string", "minLength", 16250 + n));
        json_array_append_new(list, json_object());
        json_t *schema = json_pack("{s:o}", "prefixItems", list);
        struct error err = { 0 };
        struct grammar *g = NULL;
        const enum status st = grammar_of_schema(schema, "schema", &g, &err);
        assert_true(st == ST_OK || st == ST_TOO_LARGE);
        grammar_unref(g);
        json_decref(schema);
        n += st == ST_TOO_LARGE ? 20 : 3;
    }
}

/* More states than are kept: they are made anew, and matchers in the middle of a text go on. */
static void test_renewed(void **state)
{
    (void)state;
    struct grammar *g =
        compile("{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":16000},\"minItems\":2}");
    struct matcher *waits = matcher_new(g, vocabulary), *runs = matcher_new(g, vocabulary);
    assert_int_equal(matcher_push(waits, "[\"abc", 5), ST_OK);
    assert_int_equal(matcher_push(runs, "[", 1), ST_OK);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(matcher_push(runs, k ? ",\"" : "\"", k ? 2 : 1), ST_OK);
        for (int i = 0; i < 15990; i++)
            assert_int_equal(matcher_push(runs, "xy" + i % 2, 1), ST_OK);
        assert_int_equal(matcher_push(runs, "\"", 1), ST_OK);
    }
    assert_false(matcher_may_end(waits));
    assert_int_equal(matcher_push(waits, "]", 1), ST_OK); /* a character of the string */
    assert_int_equal(matcher_push(waits, "\",\"\"]", 5), ST_OK);
    assert_true(matcher_must_end(waits));
    assert_int_equal(matcher_push(waits, "x", 1), ST_INVALID);
    assert_int_equal(matcher_push(runs, "]", 1), ST_OK);
    assert_true(matcher_must_end(runs));
    matcher_free(waits);
    matcher_free(runs);
    grammar_unref(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_renewed),        cmocka_unit_test(test_limit_met_anywhere),
        cmocka_unit_test(test_random_schemas), cmocka_unit_test(test_objects),
    };
    setlocale(LC_ALL, "C.UTF-8"); /* regexec's characters */
    words_make();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    vocabulary_free(vocabulary);
    return failed;
}
