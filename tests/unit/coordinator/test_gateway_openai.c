/* Request bodies: every field that is read, and every way to get one wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "coordinator/gateway/openai.h"

static enum status parse(enum openai_kind kind, const char *body, struct want *w, struct refusal *r)
{
    memset(r, 0, sizeof *r);
    want_init(w);
    return openai_parse(kind, body, strlen(body), 1000, w, r);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        enum openai_kind kind;
        const char *field, *body;
    } cases[] = {
        { OPENAI_COMPLETION, "prompt", "{}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":null}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":5}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[\"a\",\"b\"]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[[1],[2]]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[1,\"a\"]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[1,-1]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[1,99999999999]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":[1.5]}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":{}}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":\"a\",\"prompt\":\"b\"}" },
        { OPENAI_COMPLETION, "", "" },
        { OPENAI_COMPLETION, "", "[]" },
        { OPENAI_COMPLETION, "", "\"x\"" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":\"a\"" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":\"\xff\"}" },
        { OPENAI_COMPLETION, "prompt", "{\"prompt\":\"\\ud800\"}" },
        { OPENAI_COMPLETION, "temperature", "{\"prompt\":\"a\",\"temperature\":NaN}" },
        { OPENAI_COMPLETION, "temperature", "{\"prompt\":\"a\",\"temperature\":-0.1}" },
        { OPENAI_COMPLETION, "temperature", "{\"prompt\":\"a\",\"temperature\":2.1}" },
        { OPENAI_COMPLETION, "temperature", "{\"prompt\":\"a\",\"temperature\":1e999}" },
        { OPENAI_COMPLETION, "temperature", "{\"prompt\":\"a\",\"temperature\":\"1\"}" },
        { OPENAI_COMPLETION, "top_p", "{\"prompt\":\"a\",\"top_p\":0}" },
        { OPENAI_COMPLETION, "top_p", "{\"prompt\":\"a\",\"top_p\":1.01}" },
        { OPENAI_COMPLETION, "top_k", "{\"prompt\":\"a\",\"top_k\":-2}" },
        { OPENAI_COMPLETION, "top_k", "{\"prompt\":\"a\",\"top_k\":1.0}" },
        { OPENAI_COMPLETION, "top_k", "{\"prompt\":\"a\",\"top_k\":true}" },
        { OPENAI_COMPLETION, "max_tokens", "{\"prompt\":\"a\",\"max_tokens\":-1}" },
        { OPENAI_COMPLETION, "max_tokens", "{\"prompt\":\"a\",\"max_tokens\":0}" },
        { OPENAI_COMPLETION, "max_tokens", "{\"prompt\":\"a\",\"max_tokens\":\"5\"}" },
        { OPENAI_COMPLETION, "max_tokens", "{\"prompt\":\"a\",\"max_tokens\":99999999999999999999}" },
        { OPENAI_COMPLETION, "max_completion_tokens", "{\"prompt\":\"a\",\"max_completion_tokens\":5}" },
        { OPENAI_COMPLETION, "seed", "{\"prompt\":\"a\",\"seed\":-1}" },
        { OPENAI_COMPLETION, "seed", "{\"prompt\":\"a\",\"seed\":1.5}" },
        { OPENAI_COMPLETION, "stop", "{\"prompt\":\"a\",\"stop\":5}" },
        { OPENAI_COMPLETION, "stop", "{\"prompt\":\"a\",\"stop\":\"\"}" },
        { OPENAI_COMPLETION, "stop", "{\"prompt\":\"a\",\"stop\":[\"a\",1]}" },
        { OPENAI_COMPLETION, "stop",
          "{\"prompt\":\"a\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\","
          "\"e\",\"f\",\"g\",\"h\"]}" },
        { OPENAI_COMPLETION, "logprobs", "{\"prompt\":\"a\",\"logprobs\":true}" },
        { OPENAI_COMPLETION, "logprobs", "{\"prompt\":\"a\",\"logprobs\":21}" },
        { OPENAI_COMPLETION, "stream", "{\"prompt\":\"a\",\"stream\":1}" },
        { OPENAI_COMPLETION, "stream_options", "{\"prompt\":\"a\",\"stream_options\":{}}" },
        { OPENAI_COMPLETION, "stream_options", "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":[]}" },
        { OPENAI_COMPLETION, "stream_options.x", "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"x\":1}}" },
        { OPENAI_COMPLETION, "stream_options.include_usage",
          "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}" },
        { OPENAI_COMPLETION, "n", "{\"prompt\":\"a\",\"n\":0}" },
        { OPENAI_COMPLETION, "n", "{\"prompt\":\"a\",\"n\":129}" },
        { OPENAI_COMPLETION, "n", "{\"prompt\":\"a\",\"n\":2,\"echo\":true,\"logprobs\":0}" },
        { OPENAI_COMPLETION, "min_p", "{\"prompt\":\"a\",\"min_p\":1.5}" },
        { OPENAI_COMPLETION, "density", "{\"prompt\":\"a\",\"density\":0}" },
        { OPENAI_COMPLETION, "density", "{\"prompt\":\"a\",\"density\":1.01}" },
        { OPENAI_COMPLETION, "density", "{\"prompt\":\"a\",\"density\":\"all\"}" },
        { OPENAI_COMPLETION, "min_tokens", "{\"prompt\":\"a\",\"min_tokens\":17}" },
        { OPENAI_COMPLETION, "min_tokens", "{\"prompt\":\"a\",\"min_tokens\":-1}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":{\"5\":101}}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":{\"-5\":1}}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":{\"5\":1,\"05\":2}}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":{\"5x\":1}}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":{\"5\":\"1\"}}" },
        { OPENAI_COMPLETION, "logit_bias", "{\"prompt\":\"a\",\"logit_bias\":[5]}" },
        { OPENAI_COMPLETION, "best_of", "{\"prompt\":\"a\",\"best_of\":3}" },
        { OPENAI_COMPLETION, "suffix", "{\"prompt\":\"a\",\"suffix\":\"b\"}" },
        { OPENAI_COMPLETION, "presence_penalty", "{\"prompt\":\"a\",\"presence_penalty\":2.5}" },
        { OPENAI_COMPLETION, "frequency_penalty", "{\"prompt\":\"a\",\"frequency_penalty\":\"0\"}" },
        { OPENAI_COMPLETION, "repetition_penalty", "{\"prompt\":\"a\",\"repetition_penalty\":0}" },
        { OPENAI_COMPLETION, "response_format", "{\"prompt\":\"a\",\"response_format\":\"json_object\"}" },
        { OPENAI_COMPLETION, "response_format.type", "{\"prompt\":\"a\",\"response_format\":{\"type\":\"xml\"}}" },
        { OPENAI_COMPLETION, "response_format.schema",
          "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\",\"schema\":{}}}" },
        { OPENAI_COMPLETION, "response_format.json_schema",
          "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\"}}" },
        { OPENAI_COMPLETION, "response_format.json_schema.schema",
          "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\"}}}" },
        { OPENAI_COMPLETION, "response_format.json_schema.strict",
          "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"strict\":5}}}" },
        { OPENAI_COMPLETION, "user", "{\"prompt\":\"a\",\"user\":5}" },
        { OPENAI_COMPLETION, "metadata", "{\"prompt\":\"a\",\"metadata\":{\"a\":\"b\"}}" },
        { OPENAI_COMPLETION, "guided_json", "{\"prompt\":\"a\",\"guided_json\":{}}" },
        { OPENAI_COMPLETION, "messages", "{\"prompt\":\"a\",\"messages\":[]}" },
        { OPENAI_COMPLETION, "model", "{\"prompt\":\"a\",\"model\":7}" },
        { OPENAI_COMPLETION, "echo", "{\"prompt\":\"a\",\"echo\":\"yes\"}" },
        { OPENAI_CHAT, "messages", "{}" },
        { OPENAI_CHAT, "messages", "{\"messages\":[]}" },
        { OPENAI_CHAT, "messages", "{\"messages\":{\"role\":\"user\"}}" },
        { OPENAI_CHAT, "messages[0]", "{\"messages\":[5]}" },
        { OPENAI_CHAT, "messages[0].role", "{\"messages\":[{\"content\":\"a\"}]}" },
        { OPENAI_CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\"}]}" },
        { OPENAI_CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\",\"content\":null}]}" },
        { OPENAI_CHAT, "messages[0].content",
          "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}" },
        { OPENAI_CHAT, "messages[0].content",
          "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}" },
        { OPENAI_CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}" },
        { OPENAI_CHAT, "messages[1].tool_calls",
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"tool_"
          "calls\":[]}]}" },
        { OPENAI_CHAT, "messages[0].name", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":\"x\"}]}" },
        { OPENAI_CHAT, "prompt", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"prompt\":\"x\"}" },
        { OPENAI_CHAT, "top_logprobs", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}" },
        { OPENAI_CHAT, "logprobs", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":2}" },
        { OPENAI_CHAT, "tool_choice",
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tool_choice\":\"auto\"}" },
        { OPENAI_CHAT, "parallel_tool_calls",
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"parallel_tool_calls\":true}" },
        { OPENAI_CHAT, "store", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"store\":true}" },
        { OPENAI_CHAT, "max_tokens",
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_completion_tokens\":4,\"max_tokens\":5}" },
        { OPENAI_CHAT, "echo", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"echo\":true}" },
        { OPENAI_CHAT, "role", "{\"messages\":[{\"role\":\"user\",\"role\":\"user\",\"content\":\"a\"}]}" },
        { OPENAI_TOKENIZE, "prompt", "{\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}" },
        { OPENAI_TOKENIZE, "temperature", "{\"prompt\":\"a\",\"temperature\":1}" },
        { OPENAI_DETOKENIZE, "tokens", "{}" },
        { OPENAI_DETOKENIZE, "tokens", "{\"tokens\":[\"a\"]}" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct want w;
        struct refusal r;
        const enum status st = parse(cases[i].kind, cases[i].body, &w, &r);
        if (st == ST_OK || r.status != st || strcmp(r.field, cases[i].field) != 0 || !*r.message)
            fail_msg("%s: %d, field '%s', %s; wanted field '%s'", cases[i].body, st, r.field, r.message,
                     cases[i].field);
        if (*r.field && !strstr(r.message, r.field))
            fail_msg("%s: the message does not name %s: %s", cases[i].body, r.field, r.message);
        want_free(&w);
    }
}

static void test_accepted(void **state)
{
    (void)state;
    struct want w;
    struct refusal r;
    if (parse(OPENAI_COMPLETION,
              "{\"model\":\"m\",\"prompt\":\"a\\u0000b\",\"max_tokens\":7,\"temperature\":0,\"top_p\":1,\"top_k\":-1,"
              "\"seed\":0,"
              "\"stop\":[\"x\",\"y\\u0000\"],\"logprobs\":20,\"echo\":true,\"stream\":true,\"stream_options\":{"
              "\"include_usage\":true},"
              "\"ignore_eos\":true,\"n\":1,\"best_of\":1,\"presence_penalty\":0,\"frequency_penalty\":0.0,\"repetition_"
              "penalty\":1.0,"
              "\"logit_bias\":{},\"response_format\":{\"type\":\"text\"},\"suffix\":null,\"user\":\"u\",\"foo\":null,"
              "\"store\":false}",
              &w, &r))
        fail_msg("%s", r.message);
    assert_int_equal(w.text_bytes, 3);
    assert_memory_equal(w.text, "a\0b", 3);
    assert_int_equal(w.max_tokens, 7);
    assert_true(w.has_seed && w.seed == 0 && w.temperature == 0 && w.top_k == 0);
    assert_int_equal(w.n_stops, 2);
    assert_int_equal(w.stops[1].bytes, 2);
    assert_true(w.logprobs && w.n_top == 20 && w.echo && w.score && w.stream && w.include_usage && w.ignore_eos);
    want_free(&w);

    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":[\"only\"]}", &w, &r), ST_OK);
    assert_int_equal(w.text_bytes, 4);
    assert_int_equal(w.max_tokens, 16);
    assert_true(!w.score && !w.has_seed && w.temperature == 1 && w.top_p == 1);
    want_free(&w);

    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":[[3,4]],\"max_tokens\":0,\"echo\":true}", &w, &r), ST_OK);
    assert_int_equal(w.n_tokens, 2);
    assert_true(w.score && w.tokens[1] == 4);
    want_free(&w);

    assert_int_equal(
        parse(
            OPENAI_CHAT,
            "{\"messages\":[{\"role\":\"system\",\"content\":\"s\",\"name\":null},{\"role\":\"user\",\"content\":"
            "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"bc\"}]}],\"logprobs\":true,\"tools\":[],"
            "\"tool_choice\":\"none\",\"max_completion_tokens\":5,\"max_tokens\":5}",
            &w, &r),
        ST_OK);
    json_t *messages = json_loads("[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
                                  "\"abc\"}]",
                                  0, NULL);
    assert_true(json_equal(w.messages, messages));
    json_decref(messages);
    assert_true(w.logprobs && w.n_top == 0);
    want_free(&w);
}

/* What may be wrong with tools, and with messages of calls and their results. */
static void test_tools_refused(void **state)
{
    (void)state;
    static const char add[] = "{\"type\":\"function\",\"function\":{\"name\":\"add\"}}";
    static const struct {
        const char *field, *message, *more; /* a message after the user's; members beside messages */
    } cases[] = {
        { "tools", NULL, "\"tools\":{}" },
        { "tools[0]", NULL, "\"tools\":[5]" },
        { "tools[0].type", NULL, "\"tools\":[{}]" },
        { "tools[0].type", NULL, "\"tools\":[{\"type\":\"retrieval\",\"function\":{\"name\":\"a\"}}]" },
        { "tools[0].x", NULL, "\"tools\":[{\"x\":1}]" },
        { "tools[0].function", NULL, "\"tools\":[{\"type\":\"function\"}]" },
        { "tools[0].function.name", NULL, "\"tools\":[{\"type\":\"function\",\"function\":{}}]" },
        { "tools[0].function.name", NULL, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]" },
        { "tools[0].function.name", NULL, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\\u0000\"}}]" },
        { "tools[0].function.parameters", NULL,
          "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"parameters\":[]}}]" },
        { "tools[0].function.strict", NULL,
          "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"strict\":1}}]" },
        { "tools[0].function.description", NULL,
          "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"description\":1}}]" },
        { "tools[0].function.when", NULL,
          "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"when\":1}}]" },
        { "tools", NULL, "\"tools\":[ADD,ADD]" },
        { "tool_choice", NULL, "\"tool_choice\":\"required\"" },
        { "tool_choice", NULL, "\"tool_choice\":\"required\",\"tools\":[]" },
        { "tool_choice", NULL, "\"tool_choice\":\"any\",\"tools\":[ADD]" },
        { "tool_choice.type", NULL, "\"tool_choice\":{\"type\":\"allowed_tools\"},\"tools\":[ADD]" },
        { "tool_choice.function", NULL, "\"tool_choice\":{\"type\":\"function\"},\"tools\":[ADD]" },
        { "tool_choice.function.name", NULL,
          "\"tool_choice\":{\"type\":\"function\",\"function\":{}},\"tools\":[ADD]" },
        { "tool_choice", NULL,
          "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"sub\"}},\"tools\":[ADD]" },
        { "parallel_tool_calls", NULL, "\"parallel_tool_calls\":1,\"tools\":[ADD]" },
        { "parallel_tool_calls", NULL, "\"parallel_tool_calls\":false" },
        { "chat_template_kwargs", NULL, "\"chat_template_kwargs\":[]" },
        { "messages[1].tool_call_id", "{\"role\":\"tool\",\"content\":\"5\"}", NULL },
        { "messages[1].tool_call_id", "{\"role\":\"user\",\"content\":\"5\",\"tool_call_id\":\"x\"}", NULL },
        { "messages[1].content", "{\"role\":\"tool\",\"tool_call_id\":\"x\"}", NULL },
        { "messages[1].tool_calls", "{\"role\":\"user\",\"content\":\"a\",\"tool_calls\":[]}", NULL },
        { "messages[1].tool_calls", "{\"role\":\"assistant\",\"tool_calls\":{}}", NULL },
        { "messages[1].tool_calls[0]", "{\"role\":\"assistant\",\"tool_calls\":[1]}", NULL },
        { "messages[1].tool_calls[0].id", "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\"}]}", NULL },
        { "messages[1].tool_calls[0].function",
          "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"id\":\"x\"}]}", NULL },
        { "messages[1].tool_calls[0].function.arguments",
          "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"id\":\"x\",\"function\":{\"name\":\"f\","
          "\"arguments\":\"[1]\"}}]}",
          NULL },
        { "messages[1].tool_calls[0].function.arguments",
          "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"id\":\"x\",\"function\":{\"name\":\"f\","
          "\"arguments\":{}}}]}",
          NULL },
        { "messages[1].tool_calls[0].function.arguments",
          "{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"id\":\"x\",\"function\":{\"name\":\"f\","
          "\"arguments\":\"{\\\"a\\\":1,\"}}]}",
          NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[2048], more[1024] = "";
        size_t n = 0;
        for (const char *c = cases[i].more ? cases[i].more : ""; *c; c++) {
            const bool named = !strncmp(c, "ADD", 3);
            n += (size_t)snprintf(more + n, sizeof more - n, "%.*s", named ? (int)sizeof add : 1, named ? add : c);
            c += named ? 2 : 0;
        }
        snprintf(body, sizeof body, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}%s%s]%s%s}",
                 cases[i].message ? "," : "", cases[i].message ? cases[i].message : "", n ? "," : "", more);
        struct want w;
        struct refusal r;
        const enum status st = parse(OPENAI_CHAT, body, &w, &r);
        if (st == ST_OK || strcmp(r.field, cases[i].field) != 0 || !strstr(r.message, r.field))
            fail_msg("%s: %d, field '%s', %s; wanted field '%s'", body, st, r.field, r.message, cases[i].field);
        want_free(&w);
    }
    /* arguments count as values of the body */
    char *body = malloc(4096);
    int n = sprintf(body, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\",\"id\":\"x\","
                          "\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":[0");
    for (int i = 0; i < 1000; i++)
        n += sprintf(body + n, ",0");
    sprintf(body + n, "]}\"}}]}]}");
    struct want w;
    struct refusal r;
    assert_int_equal(parse(OPENAI_CHAT, body, &w, &r), ST_TOO_LARGE);
    want_free(&w);
    free(body);
}

/* What templates see. */
static void test_tools_accepted(void **state)
{
    (void)state;
    static const char body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"2+3?\"},{\"role\":\"assistant\",\"content\":null,\"refusal\":"
        "null,"
        "\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"index\":0,\"function\":{\"name\":\"add\",\"arguments\":"
        "\"{\\\"b\\\": 3, \\\"a\\\": 2}\"}},{\"id\":\"c2\",\"type\":\"function\",\"function\":{\"name\":\"now\","
        "\"arguments\":\"\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"name\":\"add\",\"content\":[{\"type\":"
        "\"text\","
        "\"text\":\"5\"}]}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"description\":null}}],"
        "\"tool_choice\":CHOICE,\"parallel_tool_calls\":false,\"chat_template_kwargs\":{\"x\":1}}";
    static const char seen[] =
        "[{\"role\":\"user\",\"content\":\"2+3?\"},{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"c1\",\"type\":"
        "\"function\",\"function\":{\"name\":\"add\",\"arguments\":{\"b\":3,\"a\":2}}},{\"id\":\"c2\",\"type\":"
        "\"function\","
        "\"function\":{\"name\":\"now\",\"arguments\":{}}}],\"content\":\"\"},{\"role\":\"tool\",\"tool_call_id\":"
        "\"c1\","
        "\"name\":\"add\",\"content\":\"5\"}]";
    static const struct {
        const char *choice;
        enum want_tool_choice means;
    } choices[] = { { "\"auto\"", WANT_TOOL_AUTO },
                    { "\"required\"", WANT_TOOL_REQUIRED },
                    { "{\"type\":\"function\",\"function\":{\"name\":\"add\"}}", WANT_TOOL_NAMED },
                    { "\"none\"", WANT_TOOL_AUTO } };
    for (size_t i = 0; i < 4; i++) {
        char text[2048];
        const char *at = strstr(body, "CHOICE");
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - body), body, choices[i].choice, at + 6);
        struct want w;
        struct refusal r;
        if (parse(OPENAI_CHAT, text, &w, &r))
            fail_msg("%s", r.message);
        char *messages = json_dumps(w.messages, JSON_COMPACT);
        assert_string_equal(messages, seen);
        free(messages);
        assert_int_equal(w.tool_choice, choices[i].means);
        assert_int_equal(w.tools != NULL, i != 3);
        if (w.tools) {
            char *tools = json_dumps(w.tools, JSON_COMPACT);
            assert_string_equal(tools, "[{\"type\":\"function\",\"function\":{\"name\":\"add\"}}]");
            free(tools);
        }
        assert_true(w.one_tool_call);
        assert_int_equal(json_object_size(w.template_args), 1);
        want_free(&w);
    }
}

/* Deep nesting and many values end in an error, not in the stack or in gigabytes. */
static void test_depth_and_count(void **state)
{
    (void)state;
    enum { N = 200000 };
    char *body = malloc(N + 16);
    memset(body, '[', N);
    body[N] = 0;
    struct want w;
    struct refusal r;
    assert_int_equal(parse(OPENAI_COMPLETION, body, &w, &r), ST_TOO_LARGE);
    want_free(&w);
    body[900] = 0;
    assert_int_equal(parse(OPENAI_COMPLETION, body, &w, &r), ST_INVALID);
    want_free(&w);
    memset(body, ',', N); /* in a string they are no values */
    memcpy(body, "{\"prompt\":\"\\\"", 13);
    memcpy(body + N, "\"}", 3);
    assert_int_equal(parse(OPENAI_COMPLETION, body, &w, &r), ST_OK);
    want_free(&w);
    free(body);
}

/* Who comes first: class, tenant, time. */
static void test_order(void **state)
{
    (void)state;
    static const struct {
        const char *field, *body;
    } wrong[] = {
        { "priority", "{\"prompt\": \"a\", \"priority\": 2147483648}" },
        { "priority", "{\"prompt\": \"a\", \"priority\": 0.5}" },
        { "timeout", "{\"prompt\": \"a\", \"timeout\": 0}" },
        { "timeout", "{\"prompt\": \"a\", \"timeout\": 1e9}" },
        { "timeout", "{\"prompt\": \"a\", \"timeout\": \"1\"}" },
        { "user", "{\"prompt\": \"a\", \"user\": 1}" },
    };
    struct want w;
    struct refusal r;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(parse(OPENAI_COMPLETION, wrong[i].body, &w, &r), ST_INVALID);
        assert_string_equal(r.field, wrong[i].field);
        want_free(&w);
    }
    const char *body = "{\"prompt\": \"a\", \"priority\": -7, \"timeout\": 1.5, \"user\": \"alice\"}";
    assert_int_equal(parse(OPENAI_COMPLETION, body, &w, &r), ST_OK);
    assert_int_equal(w.priority, -7);
    assert_int_equal(w.timeout_ms, 1500);
    assert_string_equal(w.tenant, "alice");
    want_set_tenant(&w, "bob", 3); /* who was known first stays */
    assert_string_equal(w.tenant, "alice");
    want_free(&w);
    char name[300];
    memset(name, 'x', sizeof name);
    want_init(&w);
    want_set_tenant(&w, name, sizeof name);
    assert_true(w.tenant[0] == '#' && strlen(w.tenant) == 33);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_refused),         cmocka_unit_test(test_accepted),
                                        cmocka_unit_test(test_depth_and_count), cmocka_unit_test(test_order),
                                        cmocka_unit_test(test_tools_refused),   cmocka_unit_test(test_tools_accepted) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
