/* ctest-labels: tsan */
/* ctest-serial */
/* Tools over HTTP: the prompt that is rendered, the answer as one and as a stream, and what is held to be a call. */
#define _GNU_SOURCE
#include "gateway_fixture.h"

#include <jansson.h>

#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/grammar_cache.h"
#include "coordinator/tokenizer/internal.h"

static struct fixture fix;

/* A template of our own; its prompt makes the fake scheduler say what stands between the marks in the last message. */
static const char template[] =
    "{% if tools %}T{{ tools | length }} {% endif %}{% for m in messages %}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% elif m.role == 'tool' %}"
    "R{{ m.content }} {% else %}{{ m.content }}{% endif %}{% endfor %}";

static const char tools[] = "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":"
                            "\"object\",\"properties\":{\"a\":{"
                            "\"type\":\"integer\"}},\"required\":[\"a\"],\"additionalProperties\":false}}},{\"type\":"
                            "\"function\",\"function\":{\"name\":"
                            "\"now\"}}]";

#define CALL(name, a)                                                                                                  \
    "<tool_call>\\n{\\\"name\\\": \\\"" name "\\\", \\\"arguments\\\": {\\\"a\\\":" a "}}\\n</tool_call>"

static int setup(void **state)
{
    (void)state;
    struct error err = { 0 };
    fixture_start(&fix, 32);
    if (tokenizer_set_template(fix.tokenizer, template, sizeof template - 1, &err))
        fail_msg("%s", err.text);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_quiet(&fix);
    fixture_stop(&fix);
    return 0;
}

static json_t *chat_at(uint16_t port, const char *say, const char *more, int code)
{
    char *body;
    assert_true(
        asprintf(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"[say %s]\"}],%s%s}", say, tools, more) > 0);
    struct answer a = client_post(port, "/v1/chat/completions", body);
    if (a.code != code)
        fail_msg("%s: %d, wanted %d: %s", body, a.code, code, a.body);
    json_t *j = json_loads(a.body, JSON_REJECT_DUPLICATES, NULL);
    if (!j)
        fail_msg("not JSON: %s", a.body);
    answer_free(&a);
    free(body);
    return j;
}

static json_t *chat(const char *say, const char *more, int code)
{
    return chat_at(fix.http, say, more, code);
}

static void check_call(const json_t *message, size_t i, const char *name, const char *arguments)
{
    const json_t *call = json_array_get(json_object_get(message, "tool_calls"), i);
    const json_t *function = json_object_get(call, "function");
    assert_string_equal(json_string_value(json_object_get(call, "type")), "function");
    assert_int_equal(strncmp(json_string_value(json_object_get(call, "id")), "call_", 5), 0);
    assert_int_equal(json_string_length(json_object_get(call, "id")), 21);
    assert_string_equal(json_string_value(json_object_get(function, "name")), name);
    assert_string_equal(json_string_value(json_object_get(function, "arguments")), arguments);
    assert_int_equal(json_object_size(call), 3);
}

static void test_answer(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        bool text;
    } cases[] = { { "", true },
                  { ",\"tool_choice\":\"auto\",\"logprobs\":true", true },
                  { ",\"tool_choice\":\"required\"", false },
                  { ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"add\"}}", false } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = chat(cases[i].text ? "So:\\n" CALL("add", "7") : CALL("add", "7"), cases[i].more, 200);
        const json_t *c = json_array_get(json_object_get(j, "choices"), 0), *m = json_object_get(c, "message");
        assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "tool_calls");
        assert_int_equal(json_array_size(json_object_get(m, "tool_calls")), 1);
        check_call(m, 0, "add", "{\"a\":7}");
        if (cases[i].text)
            assert_string_equal(json_string_value(json_object_get(m, "content")), "So:");
        else
            assert_true(json_is_null(json_object_get(m, "content")));
        if (i == 1)
            assert_true(json_array_size(json_object_get(json_object_get(c, "logprobs"), "content")) > 30);
        json_decref(j);
    }
    /* several; one where one is wanted; none where none may be */
    json_t *j = chat(CALL("add", "1") "\\n" CALL("now", "2") "!", "", 200);
    const json_t *m = json_object_get(json_array_get(json_object_get(j, "choices"), 0), "message");
    check_call(m, 0, "add", "{\"a\":1}");
    check_call(m, 1, "now", "{\"a\":2}");
    assert_string_not_equal(
        json_string_value(json_object_get(json_array_get(json_object_get(m, "tool_calls"), 0), "id")),
        json_string_value(json_object_get(json_array_get(json_object_get(m, "tool_calls"), 1), "id")));
    assert_string_equal(json_string_value(json_object_get(m, "content")), "!");
    json_decref(j);
    j = chat(CALL("add", "1") "\\n" CALL("now", "2"), ",\"parallel_tool_calls\":false", 200);
    m = json_object_get(json_array_get(json_object_get(j, "choices"), 0), "message");
    assert_int_equal(json_array_size(json_object_get(m, "tool_calls")), 1);
    json_decref(j);
    j = chat(CALL("add", "1"), ",\"tool_choice\":\"none\"", 200);
    const json_t *c = json_array_get(json_object_get(j, "choices"), 0);
    m = json_object_get(c, "message");
    assert_null(json_object_get(m, "tool_calls"));
    assert_string_equal(json_string_value(json_object_get(m, "content")),
                        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1}}\n</tool_call>");
    assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "stop");
    json_decref(j);
    /* no call */
    j = chat("2 < 3 <tool", "", 200);
    c = json_array_get(json_object_get(j, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(json_object_get(c, "message"), "content")), "2 < 3 <tool");
    assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "stop");
    json_decref(j);
    /* broken off */
    j = chat(CALL("add", "123456"), ",\"max_tokens\":51", 200);
    c = json_array_get(json_object_get(j, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "length");
    check_call(json_object_get(c, "message"), 0, "add", "{\"a\":12345");
    json_decref(j);
    /* what the grammar does not allow cannot be said, which this scheduler does not care for */
    j = chat(CALL("now", "1"), ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"add\"}}", 500);
    json_decref(j);
}

/* The deltas put together as clients do; what is content, in the order that it came. */
static void test_stream(void **state)
{
    (void)state;
    static const struct {
        const char *say, *more, *content, *calls;
    } cases[] = { { "Yes.\\n\\n" CALL("add", "12345"), "", "Yes.", "0 add {\"a\":12345};" },
                  { CALL("add", "1") CALL("now", "2") " x", ",\"n\":1", "x", "0 add {\"a\":1};1 now {\"a\":2};" },
                  { "a <tool_call> b", "", "a <tool_call> b", "" },
                  { CALL("now", "5"), ",\"tool_choice\":\"required\"", "", "0 now {\"a\":5};" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *body, content[256] = "", calls[256] = "";
        assert_true(asprintf(&body,
                             "{\"messages\":[{\"role\":\"user\",\"content\":\"[say %s]\"}],\"stream\":true,%s%s}",
                             cases[i].say, tools, cases[i].more) > 0);
        struct answer a = client_post(fix.http, "/v1/chat/completions", body);
        assert_int_equal(a.code, 200);
        const char *finish = NULL;
        unsigned deltas = 0;
        int open = -1;
        for (char *line = strtok(a.body, "\n"); line; line = strtok(NULL, "\n")) {
            if (strncmp(line, "data: {", 7) != 0)
                continue;
            json_t *j = json_loads(line + 6, 0, NULL);
            const json_t *c = json_array_get(json_object_get(j, "choices"), 0), *d = json_object_get(c, "delta");
            const char *text = json_string_value(json_object_get(d, "content"));
            strcat(content, text ? text : "");
            for (size_t k = 0; k < json_array_size(json_object_get(d, "tool_calls")); k++) {
                const json_t *call = json_array_get(json_object_get(d, "tool_calls"), k);
                const json_t *function = json_object_get(call, "function");
                const int index = (int)json_integer_value(json_object_get(call, "index"));
                if (json_object_get(call, "id")) {
                    assert_int_equal(index, open + 1);
                    snprintf(calls + strlen(calls), 200 - strlen(calls), "%s%d %s ", open < 0 ? "" : ";", index,
                             json_string_value(json_object_get(function, "name")));
                    open = index;
                }
                assert_int_equal(index, open);
                deltas++;
                strcat(calls, json_string_value(json_object_get(function, "arguments")));
            }
            if (json_is_string(json_object_get(c, "finish_reason")))
                finish = *cases[i].calls ? "tool_calls" : "stop",
                assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), finish);
            json_decref(j);
        }
        strcat(calls, open < 0 ? "" : ";");
        assert_non_null(finish);
        assert_string_equal(content, cases[i].content);
        assert_string_equal(calls, cases[i].calls);
        assert_true(!*cases[i].calls || deltas >= 1);
        answer_free(&a);
        free(body);
    }
}

/* Two choices, each with its calls; a conversation with calls in it. */
static void test_conversation(void **state)
{
    (void)state;
    json_t *j = chat(CALL("add", "7"), ",\"n\":2", 200);
    for (size_t i = 0; i < 2; i++)
        check_call(json_object_get(json_array_get(json_object_get(j, "choices"), i), "message"), 0, "add", "{\"a\":7}");
    json_decref(j);
    struct answer a =
        client_post(fix.http, "/tokenize",
                    "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"x\",\"type\":\"function\","
                    "\"function\":{\"name\":\"add\","
                    "\"arguments\":\"{\\\"a\\\": "
                    "1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"x\",\"content\":\"5\"}],\"tools\":[{\"type\":"
                    "\"function\",\"function\":{\"name\":\"add\"}}]}");
    assert_int_equal(a.code, 200);
    j = json_loads(a.body, 0, NULL);
    char text[256] = "";
    for (size_t i = 0; i < json_array_size(json_object_get(j, "tokens")); i++)
        text[i] = (char)json_integer_value(json_array_get(json_object_get(j, "tokens"), i));
    assert_string_equal(text, "T1 <tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>R5 ");
    json_decref(j);
    answer_free(&a);
}

static void read_made(struct fixture *f, void *arg)
{
    *(uint32_t *)arg = grammar_cache_made(gateway_host(f->gateway)->grammars);
}

/* The same again is not compiled again; what differs in anything that matters is. */
static void test_compiled_once(void **state)
{
    (void)state;
    static const char *const more[] = { ",\"tool_choice\":\"required\",\"seed\":1",
                                        ",\"tool_choice\":\"required\",\"parallel_tool_calls\":false",
                                        ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"add\"}}" };
    uint32_t before, after;
    json_decref(chat(CALL("add", "1"), ",\"tool_choice\":\"required\"", 200));
    fixture_do(&fix, read_made, &before);
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < 3; i++)
            json_decref(chat(CALL("add", "1"), more[i], 200));
    fixture_do(&fix, read_made, &after);
    assert_true(after - before <= 2); /* the first was there; the others may be, from another test */
    before = after;
    for (int i = 0; i < 20; i++) { /* more than are kept */
        char format[200];
        snprintf(
            format, sizeof format,
            ",\"tool_choice\":\"none\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\","
            "\"schema\":{\"const\":%d}}}",
            10 + i % 18);
        char say[16];
        snprintf(say, sizeof say, "%d", 10 + i % 18);
        json_decref(chat(say, format, 200));
    }
    fixture_do(&fix, read_made, &after);
    assert_int_equal(after - before, 20);
}

/*
 * A model whose mark is a control token: it leaves no text, so its place is remembered; and it ends the prompt where a call is required, as no grammar can ask
 * for it. The list's end cannot be said to the fake scheduler.
 */
static void test_mark_is_a_token(void **state)
{
    (void)state;
    static const char mistral[] =
        "{% if tools %}[TOOL_CALLS]{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    static struct model_token tokens[257];
    struct fixture marked;
    struct error err = { 0 };
    tokens[256] = (struct model_token){ .text = "[TOOL_CALLS]", .bytes = 12, .type = MODEL_TOKEN_CONTROL };
    const struct model_vocab v = {
        .kind = MODEL_VOCAB_BYTES, .tokens = tokens, .n_tokens = 257, .chat_template = mistral
    };
    if (tokenizer_build(&v, -1, 1, &fixture_tokenizer, &err) ||
        tokenizer_set_template(fixture_tokenizer, mistral, sizeof mistral - 1, &err))
        fail_msg("%s", err.text);
    fixture_start(&marked, 8);
    fixture_tokenizer = NULL;
    json_t *j = chat_at(marked.http, "Now.\\u0002 [{\\\"name\\\": \\\"add\\\", \\\"arguments\\\": {}}", "", 200);
    const json_t *c = json_array_get(json_object_get(j, "choices"), 0), *m = json_object_get(c, "message");
    const json_t *call = json_array_get(json_object_get(m, "tool_calls"), 0);
    assert_string_equal(json_string_value(json_object_get(m, "content")), "Now.");
    assert_string_equal(json_string_value(json_object_get(json_object_get(call, "function"), "name")), "add");
    assert_int_equal(json_string_length(json_object_get(call, "id")), 9);
    assert_int_not_equal(marked.sched.last_token, 256);
    json_decref(j);
    j = chat_at(marked.http, " [{\\\"name\\\": \\\"add\\\", \\\"arguments\\\": {\\\"a\\\":4}}",
                ",\"tool_choice\":\"required\"", 200);
    c = json_array_get(json_object_get(j, "choices"), 0);
    call = json_array_get(json_object_get(json_object_get(c, "message"), "tool_calls"), 0);
    assert_string_equal(json_string_value(json_object_get(json_object_get(call, "function"), "arguments")),
                        "{\"a\":4}");
    assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "tool_calls");
    assert_int_equal(marked.sched.last_token, 256);
    json_decref(j);
    j = chat_at(marked.http, "a\\u0002b", "", 200); /* no call after it: nothing is shown of it */
    assert_string_equal(json_string_value(json_object_get(
                            json_object_get(json_array_get(json_object_get(j, "choices"), 0), "message"), "content")),
                        "ab");
    json_decref(j);
    fixture_quiet(&marked);
    fixture_stop(&marked);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *more, *says;
    } cases[] = {
        { ",\"tool_choice\":\"required\",\"response_format\":{\"type\":\"xml\"}", "response_format.type" },
        { ",\"tool_choice\":\"maybe\"", "tool_choice" },
        { ",\"chat_template_kwargs\":{\"messages\":1}", "chat_template_kwargs" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = chat("x", cases[i].more, 400);
        const json_t *e = json_object_get(j, "error");
        assert_string_equal(json_string_value(json_object_get(e, "param")), cases[i].says);
        json_decref(j);
    }
    struct answer a = client_post(
        fix.http, "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\",\"tools\":[{"
        "\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"not\":{}}}}]}");
    assert_int_equal(a.code, 400);
    assert_non_null(strstr(a.body, "tools[0].function.parameters.not"));
    answer_free(&a);
    /* a template that takes none */
    fixture_quiet(&fix);
    static const char other[] = "{% for m in messages %}{{ m.content }}{% endfor %}";
    assert_int_equal(tokenizer_set_template(fix.tokenizer, other, sizeof other - 1, NULL), ST_OK);
    json_t *j = chat("x", "", 400);
    assert_string_equal(json_string_value(json_object_get(json_object_get(j, "error"), "param")), "tools");
    json_decref(j);
    j = chat("x", ",\"tool_choice\":\"none\"", 200);
    json_decref(j);
    a = client_post(
        fix.http, "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"x\",\"type\":\"function\",\"function\":{"
        "\"name\":\"add\",\"arguments\":\"{}\"}}]}]}");
    assert_int_equal(a.code, 400);
    assert_non_null(strstr(a.body, "messages[0].tool_calls"));
    answer_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_answer),          cmocka_unit_test(test_stream),
                                        cmocka_unit_test(test_conversation),    cmocka_unit_test(test_compiled_once),
                                        cmocka_unit_test(test_mark_is_a_token), cmocka_unit_test(test_refused) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
