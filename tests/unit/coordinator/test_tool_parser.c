/* Answers of each family, whole, byte by byte and cut at random; grammars of calls, whose texts the parser takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/rng.h"
#include "common/text.h"
#include "coordinator/gateway/tool_parser.h"
#include "coordinator/tokenizer/internal.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

static const char hermes[] = "{{ tools }}<tool_call>", mistral[] = "{{ tools }}[TOOL_CALLS]",
                  llama[] = "{{ tools }}<|start_header_id|>\"parameters\"";

/* What came, as one text: content, and calls as <name arguments>. */
struct heard {
    struct text text;
    bool open;
};

static void close_call(struct heard *h)
{
    text_str(&h->text, h->open ? ">" : "");
    h->open = false;
}

static void on_content(void *ctx, const char *data, size_t bytes)
{
    close_call(ctx);
    text_add(&((struct heard *)ctx)->text, data, bytes);
}

static void on_call(void *ctx, uint32_t index, const char *name, size_t bytes)
{
    struct heard *h = ctx;
    close_call(h);
    text_printf(&h->text, "<%u %.*s ", index, (int)bytes, name);
    h->open = true;
}

static void on_arguments(void *ctx, const char *data, size_t bytes)
{
    assert_true(((struct heard *)ctx)->open);
    text_add(&((struct heard *)ctx)->text, data, bytes);
}

static const struct tool_sink sink = { on_content, on_call, on_arguments };

static struct tokenizer *tokenizer_of(struct tiny_vocab *v, const char *template, const char *control)
{
    struct tokenizer *t;
    struct error err = { 0 };
    tiny_init(v, "gpt-2", NULL);
    v->v.chat_template = template;
    if (control)
        tiny_token(v, control, strlen(control), MODEL_TOKEN_CONTROL);
    if (tokenizer_build(&v->v, -1, 1, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

/* Tools f, g and h-1 of a request with these members beside. */
static json_t *tools_make(void)
{
    return json_pack("[{s:s, s:{s:s, s:{s:s, s:{s:{s:s}}, s:[s], s:b}}}, {s:s, s:{s:s}}, {s:s, s:{s:s}}]", "type",
                     "function", "function", "name", "f", "parameters", "type", "object", "properties", "a", "type",
                     "integer", "required", "a", "additionalProperties", 0, "type", "function", "function", "name", "g",
                     "type", "function", "function", "name", "h-1");
}

static struct tools *tools_of(const char *template, const char *control, const struct want *how)
{
    struct tiny_vocab v;
    struct refusal r = { 0 };
    struct tools *tools = NULL;
    struct want w = *how;
    json_t *list = tools_make();
    struct tokenizer *t = tokenizer_of(&v, template, control);
    w.tools = list;
    if (tools_new(&w, t, &tools, &r))
        fail_msg("%s", r.message);
    tokenizer_free(t);
    json_decref(list);
    return tools;
}

/* cut: 0: whole, 1: byte by byte, else at random. '\1' in the text: the control token came. -> the caller's */
static char *hear(struct tools *tools, const char *text, struct rng *rng, uint32_t cut)
{
    struct heard h = { 0 };
    struct tool_parser *p = tool_parser_new(tools, &sink, &h);
    for (size_t i = 0, n = strlen(text); i < n;) {
        const size_t run = strcspn(text + i, "\1"), some = cut == 0 ? n : cut == 1 ? 1 : 1 + rng_below(rng, 9);
        const size_t k = run < some ? run : some;
        tool_parser_push(p, text + i, k);
        i += k;
        if (text[i] == '\1' && k == run) {
            tool_parser_mark(p);
            i++;
        }
    }
    assert_true(tool_parser_finish(p));
    tool_parser_free(p);
    close_call(&h);
    char *out = strndup(h.text.data ? h.text.data : "", h.text.n);
    text_free(&h.text);
    return out;
}

static const struct {
    const char *template, *text, *heard;
} cases[] = {
    { hermes, "", "" },
    { hermes, "plain <text> \n", "plain <text> \n" },
    { hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "<0 f {\"a\": 1}>" },
    { hermes, "\n\nSo: \n<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":[{}]}}</tool_call>\n",
      "\n\nSo:<0 f {\"a\":[{}]}>" },
    { hermes,
      "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
      "\"arguments\": {\"x\": \"}\\\"\"}}\n</tool_call>",
      "<0 f {}><1 g {\"x\": \"}\\\"\"}>" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n then", "<0 f {}>then" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}} then", "<0 f {}>then" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_cat>", "<0 f {}></tool_cat>" },
    { hermes, "<tool_call>{\"arguments\":{\"b\":2},\"name\":\"g\"}</tool_call>", "<0 g {\"b\":2}>" },
    { hermes, "<tool_call>{\"name\":\"g\"}</tool_call>", "<0 g {}>" },
    { hermes, "<tool_call>{\"id\":7,\"name\":\"g\",\"parameters\":{},\"more\":[\"}\"]}</tool_call>.", "<0 g {}>." },
    /* no calls: another name, another shape, no JSON, broken off */
    { hermes, "<tool_call>{\"name\":\"who\",\"arguments\":{}}</tool_call>",
      "<tool_call>{\"name\":\"who\",\"arguments\":{}}</tool_call>" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":[]}</tool_call>x",
      "<tool_call>{\"name\":\"f\",\"arguments\":[]}</tool_call>x" },
    { hermes, "<tool_call>{\"arguments\":{},\"name\":5}", "<tool_call>{\"arguments\":{},\"name\":5}" },
    { hermes, "<tool_call> hello </tool_call>", "<tool_call> hello </tool_call>" },
    { hermes, "<tool_call>\n{\"name\": \"f\", ", "<tool_call>\n{\"name\": \"f\", " },
    { hermes, "<tool_ca", "<tool_ca" },
    { hermes, "<<tool_call>{\"name\":\"f\",\"arguments\":{}}", "<<0 f {}>" },
    { hermes, "<tool_call><tool_call>{\"name\":\"f\",\"arguments\":{}}", "<tool_call><0 f {}>" },
    { hermes, "<tool_call>{\"x\": \"<tool_call>{\"name\":\"f\",\"arguments\":{}}", "<tool_call>{\"x\": \"<0 f {}>" },
    { hermes, "{\"name\":\"f\",\"arguments\":{}}", "{\"name\":\"f\",\"arguments\":{}}" },
    /* calls that break off, and that are no JSON after all */
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": tr", "<0 f {\"a\": tr>" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": oops}}</tool_call> x", "<0 f {\"a\": >x" },
    { hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}\n</tool_call>x", "<0 f {}>x" },
    { mistral, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1]}}]", "<0 f {\"a\": [1]}>" },
    { mistral,
      "[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}, {\"name\":\"h-1\",\"arguments\":{},\"id\":\"123456789\"}] ",
      "<0 f {}><1 h-1 {}>" },
    { mistral, "[TOOL_CALLS] [{\"name\":\"f\",\"arguments\":{}}, nothing", "<0 f {}>nothing" },
    { mistral, "[TOOL_CALLS] [{\"name\":\"f\",\"arguments\":{}}] done [1]", "<0 f {}>done [1]" },
    { mistral, "a [TOOL_CALLS] {\"name\":\"f\",\"arguments\":{}}", "a [TOOL_CALLS] {\"name\":\"f\",\"arguments\":{}}" },
    { mistral, "a[1] [TOOL_", "a[1] [TOOL_" },
    { mistral, "[TOOL_CALLS] [1]", "[TOOL_CALLS] [1]" },
    { mistral, "Now.\1 [{\"name\": \"f\", \"arguments\": {}}]", "Now.<0 f {}>" },
    { mistral, "\1nothing", "nothing" },
    { mistral, "\1", "" },
    { mistral, "x \1 [\1[{\"name\": \"f\", \"arguments\": {}}]", "x  [<0 f {}>" },
    { llama, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "<0 f {\"a\": 1}>" },
    { llama, " \n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}\n", "<0 f {}>" },
    { llama, "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": \"\\u00e9\"}}", "<0 f {\"a\": \"\\u00e9\"}>" },
    { llama, "{\"name\": \"f\", \"arguments\": {}}; {\"name\": \"g\", \"parameters\": {}}", "<0 f {}><1 g {}>" },
    { llama, "{\"name\": \"f\", \"parameters\": {}} {\"name\": \"nobody\"} x", "<0 f {}>{\"name\": \"nobody\"} x" },
    { llama, "{\"name\": \"f\"}", "{\"name\": \"f\"}" },
    { llama, "{\"answer\": {\"name\": \"f\", \"parameters\": {}}}",
      "{\"answer\": {\"name\": \"f\", \"parameters\": {}}}" },
    { llama, "{ a set }", "{ a set }" },
    { llama, "I say {\"name\": \"f\", \"parameters\": {}}", "I say {\"name\": \"f\", \"parameters\": {}}" },
    { llama, "Wait <|python_tag|>print(1)", "Wait <|python_tag|>print(1)" },
    { llama, "Wait \1{\"name\": \"f\", \"parameters\": {}}", "Wait<0 f {}>" },
    { llama, "\1print(1)", "print(1)" },
    { llama, "\1{print}", "{print}" },
    { llama, "{\"name\": \"f\", \"parameters\": {\"a\"; 1}}", "<0 f {\"a\">; 1}}" },
};

static void test_answers(void **state)
{
    (void)state;
    struct rng rng = { .seed = 4 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tools *tools = tools_of(cases[i].template, NULL, &(struct want){ 0 });
        for (uint32_t cut = 0; cut < 12; cut++) {
            char *got = hear(tools, cases[i].text, &rng, cut);
            if (strcmp(got, cases[i].heard) != 0)
                fail_msg("'%s', cut %u:\n'%s' instead of\n'%s'", cases[i].text, cut, got, cases[i].heard);
            free(got);
        }
        tools_unref(tools);
    }
}

static void test_one_call(void **state)
{
    (void)state;
    struct rng rng = { .seed = 6 };
    struct tools *tools = tools_of(hermes, NULL, &(struct want){ .one_tool_call = true });
    for (uint32_t cut = 0; cut < 5; cut++) {
        char *got = hear(
            tools, "a <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call><tool_call>{\"name\":\"g\"}</tool_call>b",
            &rng, cut);
        assert_string_equal(got, "a<0 f {}>");
        free(got);
    }
    tools_unref(tools);
}

/* Pieces of answers in a random order: however it is cut, the same is heard; and what holds no mark is content, to the byte. */
static void test_random_cuts(void **state)
{
    (void)state;
    static const char *const templates[] = { hermes, mistral, llama };
    static const char *const pieces[] = { "<tool_call>",
                                          "</tool_call>",
                                          "[TOOL_CALLS]",
                                          "<|python_tag|>",
                                          "{\"name\": \"f\", ",
                                          "\"arguments\": {",
                                          "\"parameters\": {\"a\": 1}",
                                          "}",
                                          "}}",
                                          "[",
                                          "]",
                                          ", ",
                                          ";",
                                          " ",
                                          "\n",
                                          "text",
                                          "\"",
                                          "\\",
                                          "{",
                                          "<",
                                          "1.5e",
                                          "null",
                                          "\1" };
    enum { N = sizeof pieces / sizeof *pieces };
    struct rng rng = { .seed = 11 };
    for (int round = 0; round < 6000; round++) {
        char text[512] = "";
        const uint32_t n = 1 + rng_below(&rng, 14), of = rng_below(&rng, 3);
        bool marks = false;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t k = rng_below(&rng, N);
            marks = marks || k < 4 || k == N - 1 || (of == 2 && strchr(pieces[k], '{'));
            strcat(text, pieces[k]);
        }
        struct tools *tools = tools_of(templates[of], NULL, &(struct want){ .one_tool_call = round % 5 == 0 });
        char *whole = hear(tools, text, &rng, 0);
        for (uint32_t cut = 1; cut < 4; cut++) {
            char *got = hear(tools, text, &rng, cut);
            assert_string_equal(got, whole);
            free(got);
        }
        if (!marks)
            assert_string_equal(whole, text);
        free(whole);
        tools_unref(tools);
    }
}

static void test_families(void **state)
{
    (void)state;
    static const struct {
        const char *file, *family;
    } golden[] = { { "qwen2.5", "Hermes and Qwen" },
                   { "qwen3", "Hermes and Qwen" },
                   { "mistral-v0.3", "Mistral" },
                   { "llama3.1", "Llama 3" },
                   { "llama3", NULL },
                   { "llama2", NULL },
                   { "qwen2", NULL } };
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        char path[512];
        static char text[1 << 16];
        snprintf(path, sizeof path, "%s/tests/golden/tokenizer/templates/%s.jinja", LONGSPAN_SOURCE_DIR,
                 golden[i].file);
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        text[fread(text, 1, sizeof text - 1, f)] = 0;
        fclose(f);
        const struct tool_family *family = tool_family_find(text);
        if (!family != !golden[i].family || (family && strcmp(family->name, golden[i].family) != 0))
            fail_msg("%s: %s", golden[i].file, family ? family->name : "none");
    }
    assert_null(tool_family_find("<tool_call>\n<function=f>"));
    assert_null(tool_family_find("[TOOL_CALLS]f[ARGS]{}"));
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *template, *control;
        bool strict, object;
        const char *says;
    } bad[] = { { "{{ messages }}<tool_call>", NULL, false, false, "takes none" },
                { "{{ tools }}", NULL, false, false, "form that is not known" },
                { mistral, "[TOOL_CALLS]", true, false, "control token" },
                { mistral, "[TOOL_CALLS]", false, true, "control token" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tiny_vocab v;
        struct refusal r = { 0 };
        struct tools *tools = NULL;
        json_t *list = tools_make();
        struct tokenizer *t = tokenizer_of(&v, bad[i].template, bad[i].control);
        json_object_set_new(json_object_get(json_array_get(list, 1), "function"), "strict",
                            json_boolean(bad[i].strict));
        const struct want w = { .tools = list, .json_object = bad[i].object };
        assert_int_equal(tools_new(&w, t, &tools, &r), ST_UNSUPPORTED);
        assert_string_equal(r.field, "tools");
        assert_non_null(strstr(r.message, bad[i].says));
        tokenizer_free(t);
        json_decref(list);
    }
}

/* ---- grammars ---- */

static const char *byte_of(void *ctx, uint32_t token, size_t *n_out)
{
    static char all[256];
    (void)ctx;
    all[token] = (char)token;
    *n_out = 1;
    return &all[token];
}

static bool accepts(struct grammar *g, const struct vocabulary *v, const char *text)
{
    struct matcher *m = matcher_new(g, v);
    const bool ok = matcher_push(m, text, strlen(text)) == ST_OK && matcher_may_end(m);
    matcher_free(m);
    return ok;
}

static void test_grammars(void **state)
{
    (void)state;
    static const struct {
        const char *template, *control;
        struct want how;
        bool strict;
        const char *good[5], *bad[9];
    } held[] = {
        { hermes,
          NULL,
          { .tool_choice = WANT_TOOL_REQUIRED },
          false,
          { "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"h-1\", "
            "\"arguments\": {\"x\": [1]}}\n</tool_call>" },
          { "", "no", "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
            "{\"name\": \"g\", \"arguments\": {}}", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}",
            "<tool_call>\n{\"name\": \"i\", \"arguments\": {}}\n</tool_call>" } },
        { hermes,
          NULL,
          { .tool_choice = WANT_TOOL_REQUIRED, .one_tool_call = true },
          false,
          { "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>" },
          { "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
            "\"arguments\": {}}\n</tool_call>" } },
        { hermes,
          NULL,
          { .tool_choice = WANT_TOOL_NAMED, .tool_name = "f" },
          false,
          { "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": -5}}\n</tool_call>" },
          { "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":1}}\n</tool_call>" } },
        { hermes,
          NULL,
          { 0 },
          true,
          { "", "any text < <tool", "x\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>",
            "<<tool_call>\n{\"name\": \"g\", \"arguments\": {\"q\": null}}\n</tool_call>" },
          { "x<tool_call>", "x<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":1}}\n</tool_call>", "<tool_call>{}",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>x" } },
        { hermes,
          NULL,
          { .json_object = true },
          false,
          { "{}", "{\"a\":1}", "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>" },
          { "", "text", "[]" } },
        { mistral,
          NULL,
          { .tool_choice = WANT_TOOL_REQUIRED },
          false,
          { "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\":1}}]",
            "[TOOL_CALLS] [{\"name\": \"g\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]" },
          { " [{\"name\": \"g\", \"arguments\": {}}]" } },
        { mistral,
          "[TOOL_CALLS]",
          { .tool_choice = WANT_TOOL_REQUIRED },
          false,
          { " [{\"name\": \"g\", \"arguments\": {}}]" },
          { "[TOOL_CALLS] [{\"name\": \"g\", \"arguments\": {}}]" } },
        { llama,
          NULL,
          { .tool_choice = WANT_TOOL_REQUIRED },
          false,
          { "{\"name\": \"f\", \"parameters\": {\"a\":1}}" },
          { "{\"name\": \"f\", \"parameters\": {}}",
            "{\"name\": \"g\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
            "<|python_tag|>{\"name\": \"g\", \"parameters\": {}}" } },
        { llama,
          "<|python_tag|>",
          { 0 },
          true,
          { "{\"name\": \"f\", \"parameters\": {\"a\":1}}", "", " \ntext {\"name\": \"f\"}", "<|python", "\n" },
          { "{\"name\": \"f\", \"parameters\": {\"b\":1}}", "{}", " {", "x <|python_tag|>", "<|python_tag|>" } },
    };
    struct vocabulary *v = vocabulary_new(256, byte_of, NULL);
    struct rng rng = { .seed = 2 };
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
        struct tiny_vocab vocab;
        struct refusal r = { 0 };
        struct error err = { 0 };
        struct tools *tools = NULL;
        struct grammar *g = NULL;
        struct want w = held[i].how;
        json_t *list = tools_make();
        struct tokenizer *t = tokenizer_of(&vocab, held[i].template, held[i].control);
        w.tools = list;
        json_object_set_new(json_object_get(json_array_get(list, 0), "function"), "strict",
                            json_boolean(held[i].strict));
        if (tools_new(&w, t, &tools, &r) || !tools_held(tools) || tools_grammar(tools, &w, &g, &err))
            fail_msg("case %zu: %s %s", i, r.message, err.text);
        for (int k = 0; k < 5 && held[i].good[k]; k++) {
            if (!accepts(g, v, held[i].good[k]))
                fail_msg("case %zu does not take %s", i, held[i].good[k]);
            char *heard = hear(tools, held[i].good[k], &rng, 1);
            if (w.tool_choice != WANT_TOOL_AUTO && *heard != '<')
                fail_msg("case %zu: %s is heard as %s", i, held[i].good[k], heard);
            free(heard);
        }
        for (int k = 0; k < 9 && held[i].bad[k]; k++)
            if (accepts(g, v, held[i].bad[k]))
                fail_msg("case %zu takes %s", i, held[i].bad[k]);
        grammar_unref(g);
        tools_unref(tools);
        tokenizer_free(t);
        json_decref(list);
    }
    vocabulary_free(v);
}

static void test_grammar_refused(void **state)
{
    (void)state;
    static const char *const schemas[][2] = {
        { "{\"type\":\"array\"}", "tools[1].function.parameters.type" },
        { "{\"properties\":{\"x\":{\"not\":{}}}}", "tools[1].function.parameters.properties.x.not" },
        { "{\"title\":\"t\",\"$ref\":\"#/x\"}", "tools[1].function.parameters.type" },
    };
    for (size_t i = 0; i < sizeof schemas / sizeof *schemas; i++) {
        struct tiny_vocab v;
        struct refusal r = { 0 };
        struct error err = { 0 };
        struct tools *tools = NULL;
        struct grammar *g = NULL;
        json_t *list = tools_make();
        struct tokenizer *t = tokenizer_of(&v, hermes, NULL);
        const struct want w = { .tools = list, .tool_choice = WANT_TOOL_REQUIRED };
        json_object_set_new(json_object_get(json_array_get(list, 1), "function"), "parameters",
                            json_loads(schemas[i][0], 0, NULL));
        assert_int_equal(tools_new(&w, t, &tools, &r), ST_OK);
        assert_int_not_equal(tools_grammar(tools, &w, &g, &err), ST_OK);
        if (!strstr(err.text, schemas[i][1]))
            fail_msg("%s: %s", schemas[i][0], err.text);
        tools_unref(tools);
        tokenizer_free(t);
        json_decref(list);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_answers),        cmocka_unit_test(test_one_call),
                                        cmocka_unit_test(test_random_cuts),    cmocka_unit_test(test_families),
                                        cmocka_unit_test(test_refused),        cmocka_unit_test(test_grammars),
                                        cmocka_unit_test(test_grammar_refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
