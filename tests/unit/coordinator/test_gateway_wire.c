/* What strange and hostile HTTP clients do. */
/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE
#include "gateway_fixture.h"

#include "common/rng.h"

static struct fixture fix;

static int setup(void **state)
{
    (void)state;
    fixture_start(&fix, 8);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_quiet(&fix);
    fixture_stop(&fix);
    return 0;
}

static int raw_code(const char *request)
{
    struct answer a = client_raw(fix.http, request, strlen(request));
    const int code = a.code;
    answer_free(&a);
    return code;
}

static void test_framing(void **state)
{
    (void)state;
    static const struct {
        int code;
        const char *request;
    } cases[] = {
        { 200, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n" },
        { 200, "GET /health HTTP/1.0\r\n\r\n" },
        { 400, "GET /health HTTP/1.1\r\n\r\n" },
        { 400, "GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" },
        { 400, "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc" },
        { 400, "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab" },
        { 400,
          "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
        { 400, "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" },
        { 400, "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
               "chunked\r\n\r\n0\r\n\r\n" },
        { 400, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}" },
        { 400, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length : 2\r\n\r\n{}" },
        { 400, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}" },
        { 405, "DELETE /health HTTP/1.1\r\nHost: x\r\n\r\n" },
        { 405, "OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n" },
        { 404, "POST http://y/z HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" },
        { 400, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" },
        { 400, "POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = raw_code(cases[i].request);
        if (code != cases[i].code)
            fail_msg("%s gave %d, wanted %d", cases[i].request, code, cases[i].code);
    }
}

static void test_faulty_framing_closes(void **state)
{
    (void)state;
    const int fd = client_connect(fix.http);
    static const char request[] = "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n"
                                  "abGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    client_send(fd, request, strlen(request));
    struct answer a = client_read(fd);
    assert_int_equal(a.code, 400);
    answer_free(&a);
    char byte;
    assert_true(recv(fd, &byte, 1, 0) <= 0); /* nothing of the rest is taken for a request */
    close(fd);
}

static void test_head(void **state)
{
    (void)state;
    const int fd = client_connect(fix.http);
    static const char request[] = "HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
    for (int i = 0; i < 2; i++) { /* the connection stays in step */
        client_send(fd, request, strlen(request));
        struct answer a = client_read_one(fd, true);
        assert_int_equal(a.code, 200);
        assert_non_null(strstr(a.head, "Content-Length: "));
        answer_free(&a);
    }
    close(fd);
}

static void test_keep_alive_and_pipelining(void **state)
{
    (void)state;
    const int fd = client_connect(fix.http);
    const char *body = "{\"prompt\":\"[say one]\"}";
    size_t n;
    char *request = client_request("POST", "/v1/completions", body, strlen(body), &n);
    for (int i = 0; i < 3; i++) {
        client_send(fd, request, n);
        struct answer a = client_read(fd);
        assert_int_equal(a.code, 200);
        answer_free(&a);
    }
    /* the second comes while the first is answered: it waits its turn */
    const char *slow = "{\"prompt\":\"[slow]\",\"max_tokens\":10}";
    size_t n_slow;
    char *first = client_request("POST", "/v1/completions", slow, strlen(slow), &n_slow);
    client_send(fd, first, n_slow);
    usleep(20000);
    client_send(fd, request, n);
    struct answer a = client_read(fd);
    assert_non_null(strstr(a.body, "aaaaaaaaaa"));
    answer_free(&a);
    a = client_read(fd);
    assert_non_null(strstr(a.body, "one"));
    answer_free(&a);
    free(first);
    free(request);
    close(fd);
}

/* A client that keeps sending while its answer is under way may not fill our memory. */
static void test_flooding_client(void **state)
{
    (void)state;
    const int fd = client_connect(fix.http);
    const char *body = "{\"prompt\":\"[wait]\"}";
    size_t n;
    char *request = client_request("POST", "/v1/completions", body, strlen(body), &n);
    client_send(fd, request, n);
    free(request);
    usleep(50000);
    static char junk[65536];
    memset(junk, 'j', sizeof junk);
    size_t sent = 0;
    for (int idle = 0; idle < 20;) {
        const ssize_t k = send(fd, junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k <= 0) {
            idle++;
            usleep(5000);
        } else {
            sent += (size_t)k;
            idle = 0;
        }
        assert_true(sent < 64 << 20);
    }
    close(fd);
    fixture_quiet(&fix);
}

static void test_http10_stream(void **state)
{
    (void)state;
    const char *body = "{\"prompt\":\"[say old]\",\"stream\":true}";
    char request[512];
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %zu\r\n\r\n%s", strlen(body),
             body);
    struct answer a = client_raw(fix.http, request, strlen(request));
    assert_int_equal(a.code, 200);
    assert_true(a.closed);
    assert_null(strcasestr(a.head, "chunked"));
    assert_non_null(strstr(a.body, "[DONE]"));
    answer_free(&a);
}

static void test_chunked_and_continue(void **state)
{
    (void)state;
    static const char chunked[] = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                                  "a\r\n{\"prompt\":\r\nc\r\n\"[say done]\"\r\n1\r\n}\r\n0\r\n\r\n";
    struct answer a = client_raw(fix.http, chunked, strlen(chunked));
    assert_int_equal(a.code, 200);
    assert_non_null(strstr(a.body, "done"));
    answer_free(&a);
    const int fd = client_connect(fix.http);
    const char *body = "{\"prompt\":\"[say done]\"}";
    char request[256];
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    client_send(fd, request, strlen(request));
    char data[64];
    const ssize_t k = recv(fd, data, sizeof data, 0);
    assert_true(k > 12 && !memcmp(data, "HTTP/1.1 100", 12));
    client_send(fd, body, strlen(body));
    a = client_read(fd);
    assert_int_equal(a.code, 200);
    answer_free(&a);
    close(fd);
}

static void test_too_many_open(void **state)
{
    (void)state;
    int fds[8];
    size_t n;
    const char *body = "{\"prompt\":\"[wait]\"}";
    char *request = client_request("POST", "/v1/completions", body, strlen(body), &n);
    for (int i = 0; i < 8; i++) {
        fds[i] = client_connect(fix.http);
        client_send(fds[i], request, n);
    }
    fixture_running(&fix, 8);
    struct answer a = client_raw(fix.http, request, n);
    assert_int_equal(a.code, 429);
    answer_free(&a);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    free(request);
    fixture_quiet(&fix);
}

/* The client leaves while its prompt is read beside the loop, or while it is still being sent. */
static void test_leaving_early(void **state)
{
    (void)state;
    enum { N = 300000 };
    char *body = malloc(N + 64);
    const int head = sprintf(body, "{\"prompt\":\"[wait]");
    memset(body + head, 'a', N);
    const int n_body = head + N + sprintf(body + head + N, "\"}");
    static const char *const paths[] = { "/v1/completions", "/tokenize" };
    for (int i = 0; i < 24; i++) {
        size_t n;
        char *request = client_request("POST", paths[i & 1], body, (size_t)n_body, &n);
        const int fd = client_connect(fix.http);
        client_send(fd, request, i % 3 ? n : n / 2);
        usleep((useconds_t)(i % 4) * 1000);
        close(fd);
        free(request);
    }
    free(body);
    fixture_quiet(&fix);
    assert_int_equal(raw_code("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
}

/* Nothing may crash, hang or leak: the fixture's end looks at what is left. */
static void test_garbage(void **state)
{
    (void)state;
    struct rng rng = { .seed = (uint64_t)clock_ns() };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    static const char *const heads[] = { "",
                                         "GET ",
                                         "POST /v1/completions HTTP/1.1\r\n",
                                         "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                                         "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n",
                                         "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" };
    for (int i = 0; i < 200; i++) {
        const int fd = client_connect(fix.http);
        const char *head = heads[rng_below(&rng, 6)];
        client_send(fd, head, strlen(head));
        char junk[400];
        const uint32_t n = rng_below(&rng, sizeof junk);
        const uint32_t ascii = rng_below(&rng, 2);
        for (uint32_t k = 0; k < n; k++)
            junk[k] = (char)(ascii ? "{}[]\":,\\u0123456789abcdefpromt\r\n tre"[rng_below(&rng, 36)]
                                   : (int)rng_below(&rng, 256));
        client_send(fd, junk, n);
        if (rng_below(&rng, 2))
            shutdown(fd, SHUT_WR);
        if (rng_below(&rng, 4) == 0) {
            struct pollfd p = { .fd = fd, .events = POLLIN };
            poll(&p, 1, 20);
        }
        close(fd);
    }
    assert_int_equal(raw_code("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
}

static void do_drain(struct fixture *f, void *arg)
{
    (void)arg;
    gateway_drain(f->gateway);
}

/* The last: the gateway takes nothing after it. */
static void test_drain(void **state)
{
    (void)state;
    const char *body = "{\"prompt\":\"[slow]\",\"stream\":true,\"max_tokens\":20}";
    size_t n;
    char *request = client_request("POST", "/v1/completions", body, strlen(body), &n);
    const int fd = client_connect(fix.http);
    client_send(fd, request, n);
    fixture_running(&fix, 1);
    fixture_do(&fix, do_drain, NULL);
    struct answer a = client_raw(fix.http, request, n);
    assert_int_equal(a.code, 503);
    answer_free(&a);
    assert_int_equal(raw_code("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"), 503);
    a = client_read(fd); /* what runs ends as it would have */
    assert_non_null(strstr(a.body, "[DONE]"));
    answer_free(&a);
    close(fd);
    free(request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_framing),
        cmocka_unit_test(test_faulty_framing_closes),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_keep_alive_and_pipelining),
        cmocka_unit_test(test_flooding_client),
        cmocka_unit_test(test_http10_stream),
        cmocka_unit_test(test_chunked_and_continue),
        cmocka_unit_test(test_too_many_open),
        cmocka_unit_test(test_leaving_early),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_drain),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
