/* Chats against what Jinja and the `tokenizers` package make of them (tests/golden/tokenizer/make_chats.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "coordinator/tokenizer/internal.h"
#include "tests/unit/tokenizer/chat_list.h"
#include "coordinator/tokenizer/tokenizer.h"

#define GOLDEN LONGSPAN_SOURCE_DIR "/tests/golden/tokenizer/chats.json"
#define MODEL  LONGSPAN_SOURCE_DIR "/models/smollm2-135m-instruct"

enum { MESSAGES_MAX = 16, TEMPLATES_MAX = 16 };

static struct model *model;
static json_t *golden;

struct variant {
    struct model_vocab vocab;
    struct model_token *tokens;
    struct tokenizer *t;
};

/* The model's vocabulary with one of the templates; for Llama's, some control tokens bear other names. */
static void variant_init(struct variant *v, const char *name, const char *template)
{
    const json_t *names = json_object_get(golden, "llama_names");
    struct error err = { 0 };
    v->vocab = *model_vocab(model);
    v->tokens = malloc(v->vocab.n_tokens * sizeof *v->tokens);
    assert_non_null(v->tokens);
    memcpy(v->tokens, v->vocab.tokens, v->vocab.n_tokens * sizeof *v->tokens);
    v->vocab.tokens = v->tokens;
    v->vocab.chat_template = template;
    int32_t bos = -1;
    for (uint32_t i = 0; strcmp(name, "smollm2") != 0 && i < v->vocab.n_tokens; i++) {
        const json_t *other = json_object_getn(names, v->tokens[i].text, v->tokens[i].bytes);
        if (!other)
            continue;
        v->tokens[i].text = json_string_value(other);
        v->tokens[i].bytes = (uint32_t)json_string_length(other);
        bos = strcmp(v->tokens[i].text, "<|begin_of_text|>") == 0 ? (int32_t)i : bos;
    }
    if (tokenizer_build(&v->vocab, bos, 1, &v->t, &err))
        fail_msg("%s: %s", name, err.text);
    assert_null(chat_refusal(v->t));
}

static void check_chat(const struct variant *v, const json_t *chat)
{
    const json_t *list = json_object_get(chat, "messages"), *want = json_object_get(chat, "ids");
    struct chat_message m[MESSAGES_MAX];
    const size_t n = json_array_size(list);
    assert_true(n <= MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(list, i), *content = json_array_get(pair, 1);
        m[i] = (struct chat_message){ json_string_value(json_array_get(pair, 0)), json_string_value(content),
                                      json_string_length(content) };
    }
    int32_t *ids;
    size_t n_ids;
    struct error err = { 0 };
    if (chat_encode(v->t, m, n, json_is_true(json_object_get(chat, "prompt")), 0, &ids, &n_ids, &err))
        fail_msg("%s", err.text);
    size_t at = 0;
    const char *text = json_string_value(json_object_get(chat, "text"));
    for (size_t i = 0; i < n_ids; i++) {
        size_t bytes;
        const char *part = tokenizer_token_bytes(v->t, ids[i], true, &bytes);
        if (strncmp(text + at, part, bytes) != 0)
            fail_msg("token %zu (\"%.*s\") of: %s", i, (int)bytes, part, text);
        at += bytes;
    }
    assert_int_equal(at, strlen(text));
    assert_int_equal(n_ids, json_array_size(want));
    for (size_t i = 0; i < n_ids; i++)
        assert_int_equal(ids[i], json_integer_value(json_array_get(want, i)));
    free(ids);
}

static void chats_are_as_jinja_renders_them(void **state)
{
    (void)state;
    const char *name;
    json_t *template, *chat;
    size_t i, n = 0;
    json_object_foreach(json_object_get(golden, "templates"), name, template)
    {
        struct variant v;
        variant_init(&v, name, json_string_value(template));
        json_array_foreach(json_object_get(golden, "chats"), i, chat)
        {
            if (strcmp(json_string_value(json_object_get(chat, "template")), name) != 0)
                continue;
            check_chat(&v, chat);
            n++;
        }
        tokenizer_free(v.t);
        free(v.tokens);
    }
    assert_int_equal(n, json_array_size(json_object_get(golden, "chats")));
    assert_true(n >= 100);
}

static void the_model_has_its_own_template(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_int_equal(tokenizer_new(model, &t, NULL), ST_OK);
    assert_null(chat_refusal(t));
    assert_string_equal(model_vocab(model)->chat_template,
                        json_string_value(json_object_get(json_object_get(golden, "templates"), "smollm2")));
    tokenizer_free(t);
}

int main(void)
{
    if (!file_exists(MODEL)) {
        const char *ci = getenv("CI");
        fprintf(stderr, "no model at %s: run make model\n", MODEL);
        return ci && strcmp(ci, "true") == 0 ? 1 : 77;
    }
    struct error err = { 0 };
    json_error_t where;
    golden = json_load_file(GOLDEN, 0, &where);
    if (!golden || model_open(MODEL, &model, &err)) {
        fprintf(stderr, "%s%s\n", golden ? MODEL ": " : GOLDEN ": ", golden ? err.text : where.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chats_are_as_jinja_renders_them),
        cmocka_unit_test(the_model_has_its_own_template),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    model_close(model);
    return rc;
}
