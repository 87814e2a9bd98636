/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE
#include "gateway_fixture.h"
#include "tests/unit/own_clock.h"

#include <jansson.h>
#include <math.h>

static struct fixture fix;

static int setup(void **state)
{
    (void)state;
    fixture_start(&fix, 32);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_quiet(&fix);
    fixture_stop(&fix);
    return 0;
}

static json_t *post_json(const char *path, const char *body, int code)
{
    struct answer a = client_post(fix.http, path, body);
    if (a.code != code)
        fail_msg("%s %s: %d, wanted %d: %s", path, body, a.code, code, a.body);
    json_t *j = json_loads(a.body, JSON_REJECT_DUPLICATES, NULL);
    if (!j)
        fail_msg("not JSON: %s", a.body);
    answer_free(&a);
    return j;
}

static const char *str(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static json_int_t num(const json_t *j, const char *key)
{
    return json_integer_value(json_object_get(j, key));
}

static json_t *choice(const json_t *j)
{
    return json_array_get(json_object_get(j, "choices"), 0);
}

static void test_completion(void **state)
{
    (void)state;
    json_t *j = post_json("/v1/completions",
                          "{\"model\":\"default\",\"prompt\":\"[say "
                          "Hello]\",\"temperature\":0,\"user\":\"me\",\"n\":1,\"logit_bias\":{},\"suffix\":null}",
                          200);
    assert_string_equal(str(choice(j), "text"), "Hello");
    assert_string_equal(str(choice(j), "finish_reason"), "stop");
    assert_string_equal(str(j, "object"), "text_completion");
    assert_string_equal(str(j, "model"), "tiny");
    assert_true(json_is_null(json_object_get(choice(j), "logprobs")));
    assert_int_equal(strncmp(str(j, "id"), "cmpl-", 5), 0);
    assert_int_equal(strncmp(str(j, "system_fingerprint"), "fp_", 3), 0);
    const json_t *u = json_object_get(j, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 11);
    assert_int_equal(num(u, "completion_tokens"), 5);
    assert_int_equal(num(u, "total_tokens"), 16);
    assert_int_equal(num(json_object_get(u, "prompt_tokens_details"), "cached_tokens"), 5);
    assert_int_equal(num(json_object_get(u, "kv"), "blocks_reused"), 1);
    assert_int_equal(num(json_object_get(u, "kv"), "recomputed_tokens"), 3);
    assert_int_equal(num(json_object_get(u, "kv"), "bytes_read"), 50);
    assert_true(json_number_value(json_object_get(json_object_get(u, "kv"), "density")) == 0.5);
    assert_int_equal(num(json_object_get(j, "timings"), "prefill_ms"), 2);
    json_decref(j);
    /* absent max_tokens is 16, absent temperature 1, a seed is drawn */
    j = post_json("/v1/completions", "{\"prompt\":\"x\"}", 200);
    assert_string_equal(str(choice(j), "text"), "aaaaaaaaaaaaaaaa");
    assert_string_equal(str(choice(j), "finish_reason"), "length");
    json_decref(j);
    assert_float_equal(fix.sched.last.sampling.temperature, 1, 0);
    assert_true(fix.sched.last.sampling.seed != 0);
    j = post_json("/v1/completions",
                  "{\"prompt\":[[91,115,97,121,32,79,75,93]],\"seed\":7,\"top_k\":3,\"top_p\":0.5,\"max_tokens\":1}",
                  200);
    assert_string_equal(str(choice(j), "text"), "O");
    json_decref(j);
    assert_int_equal(fix.sched.last.sampling.seed, 7);
    assert_int_equal(fix.sched.last.sampling.top_k, 3);
}

/* Several choices: texts apart, seeds in a row, the prompt counted once, generated tokens summed. */
static void test_choices(void **state)
{
    (void)state;
    json_t *j = post_json("/v1/completions", "{\"prompt\":\"[say Hello]\",\"n\":3,\"seed\":7,\"logprobs\":1}", 200);
    assert_int_equal(json_array_size(json_object_get(j, "choices")), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *c = json_array_get(json_object_get(j, "choices"), i);
        assert_int_equal(num(c, "index"), i);
        assert_string_equal(str(c, "text"), "Hello");
        assert_string_equal(str(c, "finish_reason"), "stop");
        assert_int_equal(json_array_size(json_object_get(json_object_get(c, "logprobs"), "tokens")), 5);
    }
    const json_t *u = json_object_get(j, "usage");
    assert_int_equal(num(u, "prompt_tokens"), 11);
    assert_int_equal(num(u, "completion_tokens"), 15);
    assert_int_equal(fix.sched.last.sampling.seed, 9);
    json_decref(j);
    /* stop strings are each choice's own; the first may end with its first token */
    j = post_json("/v1/completions", "{\"prompt\":\"[say abc]\",\"n\":2,\"stop\":[\"c\"],\"max_tokens\":3}", 200);
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(str(json_array_get(json_object_get(j, "choices"), i), "text"), "ab");
    json_decref(j);
    j = post_json("/v1/completions", "{\"prompt\":\"x\",\"n\":2,\"max_tokens\":1}", 200);
    assert_string_equal(str(json_array_get(json_object_get(j, "choices"), 1), "text"), "a");
    json_decref(j);
    /* one fails, all do */
    j = post_json("/v1/completions", "{\"prompt\":\"[die 3]\",\"n\":4}", 503);
    json_decref(j);
    fixture_quiet(&fix);
}

static void test_edits(void **state)
{
    (void)state;
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":4,\"presence_penalty\":0.5,\"frequency_penalty\":0.25,"
                       "\"repetition_penalty\":1.5,\"logit_bias\":{\"99\":-100,\"5\":2},\"min_p\":0.25}";
    json_decref(post_json("/v1/completions", body, 200));
    const struct sched *s = &fix.sched;
    assert_true(s->last.edits && s->last.history && s->last.sampling.min_p == 0.25f);
    /* before the last token: 5, 'a' three times, 99 */
    assert_int_equal(s->edits.n_adds, 3);
    assert_true(s->adds[0].token == 5 && s->adds[0].add == 2);
    assert_true(s->adds[1].token == 'a' && s->adds[1].add == -1.25f);
    assert_true(s->adds[2].token == 99 && s->adds[2].add == -100);
    assert_true(s->edits.repetition == 1.5f && s->repeated_a);
    /* what does not look back need not wait */
    json_decref(post_json("/v1/completions", "{\"prompt\":\"x\",\"logit_bias\":{\"7\":-1}}", 200));
    assert_true(s->last.edits && !s->last.history && s->adds[0].token == 7);
    json_decref(post_json("/v1/completions", "{\"prompt\":\"x\"}", 200));
    assert_false(s->last.edits);
    json_t *j = post_json("/v1/completions", "{\"prompt\":\"x\",\"logit_bias\":{\"99999999\":-1}}", 400);
    assert_string_equal(str(json_object_get(j, "error"), "param"), "logit_bias");
    json_decref(j);
}

/* The answer follows the grammar, ends where it must, and what the scheduler samples against it is never told. */
static void test_response_format(void **state)
{
    (void)state;
    static const char schema[] =
        "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":"
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]}}}";
    char body[1024];
    snprintf(body, sizeof body, "{\"prompt\":\"[say {\\\"a\\\": 12}xyz]\",\"max_tokens\":50,%s}", schema);
    json_t *j = post_json("/v1/completions", body, 200);
    assert_string_equal(str(choice(j), "text"), "{\"a\": 12}");
    assert_string_equal(str(choice(j), "finish_reason"), "stop");
    json_decref(j);
    assert_true(fix.sched.last.history && fix.sched.edits.allowed_bytes);
    snprintf(body, sizeof body, "{\"prompt\":\"[say {\\\"b\\\": 12}]\",\"max_tokens\":50,%s}", schema);
    json_decref(post_json("/v1/completions", body, 500));
    j = post_json("/v1/completions",
                  "{\"prompt\":\"[say {}x]\",\"max_tokens\":50,\"n\":2,\"response_format\":{\"type\":\"json_object\"}}",
                  200);
    assert_string_equal(str(choice(j), "text"), "{}");
    assert_int_equal(num(json_object_get(j, "usage"), "completion_tokens"), 4);
    json_decref(j);
    j = post_json(
        "/v1/completions",
        "{\"prompt\":\"x\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":"
        "{\"type\":\"string\",\"not\":{}}}}}",
        400);
    assert_string_equal(str(json_object_get(j, "error"), "param"), "response_format");
    assert_non_null(strstr(str(json_object_get(j, "error"), "message"), "schema.not"));
    json_decref(j);
}

static void test_chat(void **state)
{
    (void)state;
    json_t *j =
        post_json("/v1/chat/completions",
                  "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"["
                  "say \"},{\"type\":\"text\",\"text\":\"Hi]\"}]}],\"logprobs\":true,\"top_logprobs\":2}",
                  200);
    const json_t *message = json_object_get(choice(j), "message");
    assert_string_equal(str(message, "content"), "Hi");
    assert_string_equal(str(message, "role"), "assistant");
    assert_string_equal(str(j, "object"), "chat.completion");
    const json_t *content = json_object_get(json_object_get(choice(j), "logprobs"), "content");
    assert_int_equal(json_array_size(content), 2);
    const json_t *second = json_array_get(content, 1);
    assert_string_equal(str(second, "token"), "i");
    assert_true((float)json_real_value(json_object_get(second, "logprob")) == fake_logprob(1));
    assert_int_equal(json_integer_value(json_array_get(json_object_get(second, "bytes"), 0)), 'i');
    assert_int_equal(json_array_size(json_object_get(second, "top_logprobs")), 2);
    assert_string_equal(str(json_array_get(json_object_get(second, "top_logprobs"), 1), "token"), "B");
    json_decref(j);
    /* the rest of the context, if nothing is said */
    assert_int_equal(fix.sched.last.max_tokens + fix.sched.last.n_tokens, POSITIONS_MAX);
}

static void test_logprobs_and_echo(void **state)
{
    (void)state;
    json_t *j = post_json("/v1/completions",
                          "{\"prompt\":\"a\\u00e9[say xyz]\",\"echo\":true,\"logprobs\":2,\"max_tokens\":2}", 200);
    assert_string_equal(str(choice(j), "text"), "a\xC3\xA9[say xyz]xy");
    json_t *l = json_object_get(choice(j), "logprobs");
    const json_t *tokens = json_object_get(l, "tokens"), *logprobs = json_object_get(l, "token_logprobs");
    assert_int_equal(json_array_size(tokens), 3 + 9 + 2);
    assert_int_equal(json_array_size(logprobs), 14);
    assert_int_equal(json_array_size(json_object_get(l, "top_logprobs")), 14);
    assert_true(json_is_null(json_array_get(logprobs, 0)));
    assert_true(json_is_null(json_array_get(json_object_get(l, "top_logprobs"), 0)));
    for (size_t i = 1; i < 14; i++)
        assert_true((float)json_real_value(json_array_get(logprobs, i)) ==
                    fake_logprob(i < 12 ? (uint32_t)i - 1 : (uint32_t)i - 12));
    assert_string_equal(json_string_value(json_array_get(tokens, 1)), "bytes:\\xc3");
    assert_string_equal(json_string_value(json_array_get(tokens, 13)), "y");
    static const int offsets[] = { 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    for (size_t i = 0; i < 14; i++)
        assert_int_equal(json_integer_value(json_array_get(json_object_get(l, "text_offset"), i)), offsets[i]);
    const json_t *top = json_array_get(json_object_get(l, "top_logprobs"), 13);
    assert_int_equal(json_object_size(top), 2);
    assert_true((float)json_real_value(json_object_get(top, "y")) == fake_logprob(1));
    json_decref(j);
    j = post_json("/v1/completions", "{\"prompt\":\"abc\",\"echo\":true,\"logprobs\":0,\"max_tokens\":0}", 200);
    assert_string_equal(str(choice(j), "text"), "abc");
    assert_string_equal(str(choice(j), "finish_reason"), "length");
    l = json_object_get(choice(j), "logprobs");
    assert_int_equal(json_array_size(json_object_get(l, "tokens")), 3);
    assert_int_equal(json_object_size(json_array_get(json_object_get(l, "top_logprobs"), 2)), 1); /* the token itself */
    json_decref(j);
}

static void test_stop(void **state)
{
    (void)state;
    /* across tokens (each is a byte), the earliest to end wins, text that only looked like a stop string comes out */
    json_t *j = post_json("/v1/completions",
                          "{\"prompt\":\"[say one two tx three]\",\"stop\":[\"three\",\"two t!\",\"x "
                          "th\"],\"logprobs\":0,\"max_tokens\":99}",
                          200);
    assert_string_equal(str(choice(j), "text"), "one two t");
    assert_string_equal(str(choice(j), "finish_reason"), "stop");
    assert_int_equal(json_array_size(json_object_get(json_object_get(choice(j), "logprobs"), "tokens")), 9);
    assert_int_equal(num(json_object_get(j, "usage"), "completion_tokens"), 13);
    json_decref(j);
    j = post_json("/v1/completions", "{\"prompt\":\"[say ends with par]\",\"stop\":\"part\",\"max_tokens\":99}", 200);
    assert_string_equal(str(choice(j), "text"), "ends with par");
    json_decref(j);
}

/* Collects the events of a stream: their data's content or text, in order of their ids. */
struct stream {
    char text[1024], finish[16];
    int n_events, n_pings, n_text, done, usage, error;
    json_t *last;
};

static struct stream stream_read(const char *body, bool chat)
{
    struct stream s = { 0 };
    char *copy = strdup(body), *save = NULL;
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (!strncmp(line, ": ping", 6)) {
            s.n_pings++;
        } else if (!strncmp(line, "id: ", 4)) {
            assert_int_equal(atoi(line + 4), s.n_events);
            s.n_events++;
        } else if (!strcmp(line, "data: [DONE]")) {
            s.done = 1;
        } else {
            assert_int_equal(strncmp(line, "data: ", 6), 0);
            json_t *j = json_loads(line + 6, 0, NULL);
            assert_non_null(j);
            const json_t *c = choice(j);
            const char *text = chat ? str(json_object_get(c, "delta"), "content") : str(c, "text");
            const char *finish = str(c, "finish_reason");
            if (text && *text) {
                strcat(s.text, text);
                s.n_text++;
            }
            if (finish)
                snprintf(s.finish, sizeof s.finish, "%s", finish);
            s.usage += json_is_object(json_object_get(j, "usage"));
            s.error += json_is_object(json_object_get(j, "error"));
            json_decref(s.last);
            s.last = j;
        }
    }
    free(copy);
    return s;
}

static void test_stream(void **state)
{
    (void)state;
    struct answer a = client_post(fix.http, "/v1/chat/completions",
                                  "{\"messages\":[{\"role\":\"user\",\"content\":\"[say "
                                  "h\\u00e9llo!]\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(a.code, 200);
    assert_non_null(strstr(a.head, "text/event-stream"));
    struct stream s = stream_read(a.body, true);
    assert_string_equal(s.text, "h\xC3\xA9llo!");
    assert_in_range(s.n_text, 1, 6); /* whole characters only; tokens of one turn come together */
    assert_string_equal(s.finish, "stop");
    assert_int_equal(s.done, 1);
    assert_int_equal(s.usage, 1);
    assert_int_equal(num(json_object_get(s.last, "usage"), "completion_tokens"), 7);
    assert_int_equal(json_array_size(json_object_get(s.last, "choices")), 0);
    json_decref(s.last);
    answer_free(&a);

    a = client_post(fix.http, "/v1/completions",
                    "{\"prompt\":\"[say abcdef]\",\"stream\":true,\"echo\":true,\"logprobs\":1,\"stop\":\"cx\"}");
    s = stream_read(a.body, false);
    assert_string_equal(s.text, "[say abcdef]abcdef");
    assert_int_equal(s.done, 1);
    json_decref(s.last);
    answer_free(&a);
}

static void test_ping_and_close(void **state)
{
    (void)state;
    const uint32_t before = fixture_quiet(&fix);
    size_t n;
    char *request = client_request("POST", "/v1/completions", "{\"prompt\":\"[wait]\",\"stream\":true}", 33, &n);
    int fd = client_connect(fix.http);
    client_send(fd, request, n);
    char data[4096] = "";
    size_t at = 0;
    while (!strstr(data, ": ping\n\n") || !strstr(strstr(data, ": ping\n\n") + 1, ": ping\n\n")) {
        const ssize_t k = recv(fd, data + at, sizeof data - 1 - at, 0);
        assert_true(k > 0);
        at += (size_t)k;
        data[at] = 0;
    }
    close(fd);
    assert_int_equal(fixture_quiet(&fix), before + 1);
    free(request);
    /* before any byte of the answer: streams and whole answers alike */
    request = client_request("POST", "/v1/completions", "{\"prompt\":\"[wait]\"}", 19, &n);
    fd = client_connect(fix.http);
    client_send(fd, request, n);
    fixture_running(&fix, 1);
    const int64_t start = own_clock_ms();
    close(fd);
    assert_int_equal(fixture_quiet(&fix), before + 2);
    assert_true(own_clock_ms() - start < 5000);
    free(request);
}

static void test_worker_lost(void **state)
{
    (void)state;
    json_t *j = post_json("/v1/completions", "{\"prompt\":\"[die 3]\"}", 503);
    assert_non_null(strstr(str(json_object_get(j, "error"), "message"), "worker 1"));
    assert_string_equal(str(json_object_get(j, "error"), "type"), "server_error");
    json_decref(j);
    j = post_json("/v1/completions", "{\"prompt\":\"[die 0]\",\"stream\":true}", 503); /* nothing was sent yet */
    json_decref(j);
    struct answer a = client_post(fix.http, "/v1/completions", "{\"prompt\":\"[die 3]\",\"stream\":true}");
    assert_int_equal(a.code, 200);
    struct stream s = stream_read(a.body, false);
    assert_string_equal(s.text, "aaa");
    assert_int_equal(s.error, 1);
    assert_int_equal(s.done, 0);
    json_decref(s.last);
    answer_free(&a);
}

static void test_busy(void **state)
{
    (void)state;
    struct answer a = client_post(fix.http, "/v1/completions", "{\"prompt\":\"[busy]\"}");
    assert_int_equal(a.code, 429);
    assert_non_null(strstr(a.head, "Retry-After: 1\r\n"));
    assert_non_null(strstr(a.body, "rate_limit_error"));
    answer_free(&a);
    a = client_post(fix.http, "/v1/completions", "{\"prompt\":\"[busy 7200]\",\"stream\":true}");
    assert_int_equal(a.code, 429);
    assert_non_null(strstr(a.head, "Retry-After: 8\r\n"));
    answer_free(&a);
    a = client_post(fix.http, "/v1/completions", "{\"prompt\":\"[busy 3600000]\"}");
    assert_non_null(strstr(a.head, "Retry-After: 60\r\n"));
    answer_free(&a);
}

static void test_large_prompt(void **state)
{
    (void)state;
    /* over the context, on the helper thread */
    enum { N = 600000 };
    char *body = malloc(N + 100);
    int n = sprintf(body, "{\"prompt\":\"");
    memset(body + n, 'a', N);
    sprintf(body + n + N, "\"}");
    json_t *j = post_json("/v1/completions", body, 400);
    assert_string_equal(str(json_object_get(j, "error"), "code"), "context_length_exceeded");
    json_decref(j);
    /* over the body's limit: said by evhttp */
    char *huge = malloc((2 << 20) + 1);
    memset(huge, ' ', 2 << 20);
    huge[2 << 20] = 0;
    struct answer a = client_post(fix.http, "/v1/completions", huge);
    assert_int_equal(a.code, 413);
    answer_free(&a);
    free(huge);
    /* on the helper, and served */
    sprintf(body, "{\"prompt\":\"[say big]\",\"stop\":null,\"max_tokens\":3,\"suffix\":%*s}", 20000, "null");
    j = post_json("/v1/completions", body, 200);
    assert_string_equal(str(choice(j), "text"), "big");
    json_decref(j);
    free(body);
}

static void test_many_values(void **state)
{
    (void)state;
    char *body = malloc(1 << 20);
    int n = sprintf(body, "{\"prompt\":[");
    for (int i = 0; i < 200000; i++)
        n += sprintf(body + n, "1,");
    sprintf(body + n, "1]}");
    json_t *j = post_json("/v1/completions", body, 400);
    assert_string_equal(str(json_object_get(j, "error"), "code"), "context_length_exceeded");
    json_decref(j);
    free(body);
}

/* A client that does not read is given up once 8 MiB wait for it. */
static void test_slow_reader(void **state)
{
    (void)state;
    const uint32_t before = fixture_quiet(&fix);
    size_t n;
    const char *body = "{\"messages\":[{\"role\":\"user\",\"content\":\"[flood]\"}],\"stream\":true,\"logprobs\":true,"
                       "\"top_logprobs\":20,\"max_tokens\":30000,\"ignore_eos\":true}";
    char *request = client_request("POST", "/v1/chat/completions", body, strlen(body), &n);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    const struct sockaddr_in a = { .sin_family = AF_INET,
                                   .sin_port = htons(fix.http),
                                   .sin_addr = { htonl(INADDR_LOOPBACK) } };
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    client_send(fd, request, n);
    fixture_cancelled(&fix, before + 1); /* it ends by itself */
    assert_int_equal(fixture_quiet(&fix), before + 1);
    close(fd);
    free(request);
}

static void test_tokenize(void **state)
{
    (void)state;
    json_t *j = post_json("/tokenize", "{\"prompt\":\"ab\\u0000c\"}", 200);
    assert_int_equal(num(j, "count"), 4);
    assert_int_equal(num(j, "max_model_len"), POSITIONS_MAX);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(j, "tokens"), 2)), 0);
    json_decref(j);
    j = post_json("/tokenize",
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"add_generation_prompt\":false}", 200);
    assert_true(num(j, "count") >= 5);
    json_decref(j);
    j = post_json("/detokenize", "{\"tokens\":[104,105,195,169,200]}", 200);
    assert_string_equal(str(j, "prompt"), "hi\xC3\xA9\xEF\xBF\xBD");
    json_decref(j);
    j = post_json("/detokenize", "{\"tokens\":[]}", 200);
    assert_string_equal(str(j, "prompt"), "");
    json_decref(j);
    j = post_json("/detokenize", "{\"tokens\":[99999]}", 400);
    assert_string_equal(str(json_object_get(j, "error"), "param"), "tokens");
    json_decref(j);
    j = post_json("/tokenize", "{}", 400);
    json_decref(j);
    char *body = malloc(100100);
    int n = sprintf(body, "{\"prompt\":\"");
    memset(body + n, 'z', 100000);
    sprintf(body + n + 100000, "\"}");
    j = post_json("/tokenize", body, 200); /* on the helper; longer than the context, and still counted */
    assert_int_equal(num(j, "count"), 100000);
    json_decref(j);
    free(body);
}

static void test_small_paths(void **state)
{
    (void)state;
    struct answer a = client_get(fix.http, "/health");
    assert_int_equal(a.code, 200);
    answer_free(&a);
    a = client_get(fix.http, "/ready");
    assert_int_equal(a.code, 200);
    answer_free(&a);
    atomic_store(&fix.ready, false);
    a = client_get(fix.http, "/ready?x=1");
    assert_int_equal(a.code, 503);
    answer_free(&a);
    atomic_store(&fix.ready, true);
    a = client_get(fix.http, "/v1/models");
    assert_non_null(strstr(a.body, "\"id\":\"tiny\""));
    answer_free(&a);
    a = client_get(fix.http, "/v1/models/ti%6ey");
    assert_int_equal(a.code, 200);
    answer_free(&a);
    a = client_get(fix.http, "/v1/models/other");
    assert_int_equal(a.code, 404);
    assert_non_null(strstr(a.body, "model_not_found"));
    answer_free(&a);
    a = client_get(fix.http, "/nowhere");
    assert_int_equal(a.code, 404);
    answer_free(&a);
    a = client_get(fix.http, "/v1/completions");
    assert_int_equal(a.code, 405);
    assert_non_null(strstr(a.head, "Allow: POST"));
    answer_free(&a);
    a = client_get(fix.http, "/metrics");
    assert_int_equal(a.code, 200);
    assert_non_null(strstr(a.body, "longspan_time_to_first_token_seconds_count "));
    assert_non_null(strstr(a.body, "longspan_requests_total{outcome=\"ok\"} "));
    assert_non_null(strstr(a.body, "longspan_kv_blocks_used{worker=\"0\"} 12\n"));
    assert_non_null(strstr(a.body, "\nprocess_open_fds "));
    answer_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completion),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_response_format),
        cmocka_unit_test(test_edits),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_logprobs_and_echo),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_ping_and_close),
        cmocka_unit_test(test_worker_lost),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_large_prompt),
        cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_small_paths),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
