/*
 * Templates against what Jinja makes of them in the environment of the `transformers` package (tests/golden/tokenizer/make_templates.py): the
 * families' templates over random conversations, and small ones, a construct each. An argument names another file of the same form.
 */
#define _GNU_SOURCE /* mempcpy */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

static json_t *golden;

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static struct tokenizer *build(struct tiny_vocab *v, const json_t *family)
{
    struct tokenizer *t;
    struct error err = { 0 };
    const char *bos = text_of(family, "bos"), *eos = text_of(family, "eos");
    tiny_init(v, "gpt-2", NULL);
    v->v.chat_template = text_of(family, "template");
    v->v.eos_text = eos;
    const int32_t id = bos ? tiny_token(v, bos, strlen(bos), MODEL_TOKEN_CONTROL) : -1;
    if (tokenizer_build(&v->v, id, 1, &t, &err))
        fail_msg("%s", err.text);
    if (chat_refusal(t))
        fail_msg("%s: %s", text_of(family, "name"), chat_refusal(t));
    if (tokenizer_set_date(t, text_of(golden, "date"), &err))
        fail_msg("%s", err.text);
    return t;
}

static void check_chat(const struct tokenizer *t, const char *name, size_t i, const json_t *chat)
{
    const struct chat_input in = { .messages = json_object_get(chat, "messages"),
                                   .tools = json_object_get(chat, "tools"),
                                   .kwargs = json_object_get(chat, "kwargs"),
                                   .generation_prompt = json_is_true(json_object_get(chat, "prompt")) };
    const char *want = text_of(chat, "text"), *exception = text_of(chat, "exception");
    char *text = NULL;
    size_t bytes = 0;
    struct error err = { 0 };
    const enum status st = chat_render_json(t, &in, &text, &bytes, &err);
    if (exception) {
        assert_int_equal(st, ST_INVALID);
        if (strcmp(err.text, exception) != 0)
            fail_msg("%s, chat %zu: \"%s\" instead of \"%s\"", name, i, err.text, exception);
    } else if (!want) { /* Python's own error: its words are not ours */
        if (st != ST_INVALID)
            fail_msg("%s, chat %zu: should fail; got \"%s\"", name, i, text);
    } else if (st) {
        fail_msg("%s, chat %zu: %s", name, i, err.text);
    } else if (bytes != json_string_length(json_object_get(chat, "text")) || memcmp(text, want, bytes) != 0) {
        fail_msg("%s, chat %zu:\n%s\n-- instead of --\n%s", name, i, text, want);
    }
    free(text);
}

static void families_are_as_transformers_renders_them(void **state)
{
    (void)state;
    const json_t *families = json_object_get(golden, "families");
    for (size_t f = 0; f < json_array_size(families); f++) {
        const json_t *family = json_array_get(families, f), *chats = json_object_get(family, "chats");
        struct tiny_vocab *v = malloc(sizeof *v);
        assert_non_null(v);
        struct tokenizer *t = build(v, family);
        assert_true(json_array_size(chats) > 0);
        for (size_t i = 0; i < json_array_size(chats); i++)
            check_chat(t, text_of(family, "name"), i, json_array_get(chats, i));
        tokenizer_free(t);
        free(v);
    }
    assert_true(json_array_size(families) > 0);
}

/* Wrong ones are told of, all of them; returns how many. */
static int check_snippet(const json_t *snippet)
{
    const char *template = text_of(snippet, "template"), *want = text_of(snippet, "text");
    struct jinja_template *t;
    struct jinja_output out = { 0 };
    struct error err = { 0 };
    if (jinja_template_new(template, strlen(template), &t, &err)) {
        print_error("%s: %s\n", template, err.text);
        return 1;
    }
    const struct jinja_variable variable = { .name = "v", .json = json_object_get(golden, "variable") };
    const struct jinja_input in = { .variables = &variable, .n_variables = 1, .memory_max = 1 << 20 };
    const enum status st = jinja_render(t, &in, &out, &err);
    char *text = calloc(1, out.bytes + 1), *at = text;
    assert_non_null(text);
    for (size_t i = 0; i < out.n_parts; i++)
        at = mempcpy(at, out.parts[i].text, out.parts[i].bytes);
    const bool wrong = want ? st || strcmp(text, want) != 0 : st == ST_OK;
    if (wrong)
        print_error("%s: %s\n\"%s\"\n-- instead of --\n\"%s\"\n", template, err.text, text, want ? want : "an error");
    free(text);
    jinja_output_free(&out);
    jinja_template_free(t);
    return wrong;
}

static void constructs_are_as_jinja_evaluates_them(void **state)
{
    (void)state;
    const json_t *snippets = json_object_get(golden, "snippets");
    int n_wrong = 0;
    for (size_t i = 0; i < json_array_size(snippets); i++)
        n_wrong += check_snippet(json_array_get(snippets, i));
    assert_int_equal(n_wrong, 0);
    assert_true(json_array_size(snippets) > 50);
}

int main(int argc, char **argv)
{
    json_error_t where;
    const char *path = argc > 1 ? argv[1] : LONGSPAN_SOURCE_DIR "/tests/golden/tokenizer/templates.json";
    golden = json_load_file(path, 0, &where);
    if (!golden) {
        fprintf(stderr, "%s: %s\n", path, where.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_are_as_transformers_renders_them),
        cmocka_unit_test(constructs_are_as_jinja_evaluates_them),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return rc;
}
