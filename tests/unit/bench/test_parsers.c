/* What the load generator reads from servers: HTTP responses and server-sent events, whole and byte by byte. */
#include "client/bench/response.h"
#include "client/bench/sse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char body[4096];
static size_t body_bytes;

static void on_body(void *user, const char *data, size_t bytes)
{
    (void)user;
    assert_true(body_bytes + bytes < sizeof body);
    memcpy(body + body_bytes, data, bytes);
    body_bytes += bytes;
    body[body_bytes] = 0;
}

/* Feeds text in pieces of step bytes. -> the status; left_out: bytes not taken */
static enum status feed(struct response *r, const char *text, size_t step, size_t *left_out)
{
    const size_t n = strlen(text);
    struct error err = { 0 };
    response_init(r, 1000);
    body_bytes = 0;
    body[0] = 0;
    size_t at = 0;
    while (at < n && r->state != RESPONSE_DONE) {
        size_t used = 0;
        const size_t piece = n - at < step ? n - at : step;
        const enum status st = response_feed(r, text + at, piece, on_body, NULL, &used, &err);
        if (st) {
            assert_true(err.text[0]);
            return st;
        }
        at += used;
    }
    *left_out = n - at;
    return ST_OK;
}

static void test_responses(void **state)
{
    static const struct {
        const char *text, *body;
        uint32_t status;
        bool close, events;
        size_t left;
    } cases[] = {
        { "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP", "hello", 200, false, false, 4 },
        { "HTTP/1.1 200 OK\nContent-Length:0\n\n", "", 200, false, false, 0 },
        { "HTTP/1.1 404\r\ncontent-length: 2\r\nConnection: close\r\n\r\nno", "no", 404, true, false, 0 },
        { "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nno", "no", 200, true, false, 0 },
        { "HTTP/1.1 204 none\r\n\r\n", "", 204, false, false, 0 },
        { "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x", 200, false, false, 0 },
        { "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
          "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
          "abc0123456789", 200, false, true, 0 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 200; step += step < 20 ? 1 : 60) {
            struct response r;
            size_t left = 99;
            assert_int_equal(feed(&r, cases[i].text, step, &left), ST_OK);
            assert_int_equal(r.state, RESPONSE_DONE);
            assert_int_equal(r.status, cases[i].status);
            assert_string_equal(body, cases[i].body);
            assert_int_equal(r.close, cases[i].close);
            assert_int_equal(r.event_stream, cases[i].events);
            assert_int_equal(left, cases[i].left);
        }
}

static void test_until_the_end(void **state)
{
    struct response r;
    size_t left;
    (void)state;
    assert_int_equal(feed(&r, "HTTP/1.1 200 OK\r\n\r\nabc", 4, &left), ST_OK);
    assert_int_equal(r.state, RESPONSE_UNTIL_EOF);
    assert_true(r.close);
    assert_int_equal(response_eof(&r, NULL), ST_OK);
    assert_string_equal(body, "abc");
    assert_int_equal(feed(&r, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 4, &left), ST_OK);
    assert_int_equal(response_eof(&r, NULL), ST_PROTOCOL);
    response_init(&r, 0);
    assert_int_equal(response_eof(&r, NULL), ST_PROTOCOL);
}

static void test_hostile_responses(void **state)
{
    static const struct {
        const char *text;
        enum status st;
    } cases[] = {
        { "HTTP/2 200 OK\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 2000 OK\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 20x OK\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 099 OK\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 101 Switch\r\n\r\n", ST_PROTOCOL },
        { "garbage\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", ST_TOO_LARGE },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", ST_UNSUPPORTED },
        { "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", ST_UNSUPPORTED },
        { "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", ST_PROTOCOL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", ST_TOO_LARGE },
    };
    struct response r;
    size_t left;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step < 100; step += 33)
            if (feed(&r, cases[i].text, step, &left) != cases[i].st)
                fail_msg("case %zu, pieces of %zu", i, step);
}

static void test_limits(void **state)
{
    static char text[200000];
    struct response r;
    size_t left;
    (void)state;
    size_t n = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nX: ");
    memset(text + n, 'a', RESPONSE_LINE_MAX);
    assert_int_equal(feed(&r, text, 1000, &left), ST_TOO_LARGE);
    n = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i <= RESPONSE_HEADERS_MAX; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "X: y\r\n");
    assert_int_equal(feed(&r, text, 1000, &left), ST_TOO_LARGE);
    n = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\n\r\n");
    memset(text + n, 'a', 1001);
    text[n + 1001] = 0;
    assert_int_equal(feed(&r, text, 100, &left), ST_TOO_LARGE);
}

static char events[4096];

static void on_event(void *user, const char *data, size_t bytes)
{
    (void)user;
    assert_int_equal(strlen(data), bytes);
    strcat(strcat(events, data), "|");
}

static void test_events(void **state)
{
    static const struct {
        const char *text, *events;
    } cases[] = {
        { "data: a\n\ndata:b\n\n", "a|b|" },
        { "data: a\r\n\r\ndata: b\r\n\r\n", "a|b|" },
        { "data: a\r\rdata: b\r\r", "a|b|" },
        { ": ping\n\nid: 3\nevent: x\ndata: a\nretry: 5\n\n", "a|" },
        { "data: a\ndata: b\ndata\n\n", "a\nb\n|" },
        { "data:  a \n\n", " a |" },
        { "data\n\n", "|" },
        { "database: a\n\ndata: cut", "" },
        { "\n\n\n\n", "" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step < 40; step++) {
            struct sse s = { .event_max = 100 };
            const size_t n = strlen(cases[i].text);
            events[0] = 0;
            for (size_t at = 0; at < n; at += step)
                assert_int_equal(sse_feed(&s, cases[i].text + at, n - at < step ? n - at : step, on_event, NULL, NULL),
                                 ST_OK);
            assert_string_equal(events, cases[i].events);
            sse_free(&s);
        }
}

static void test_event_limits(void **state)
{
    struct sse s = { .event_max = 10 };
    struct error err = { 0 };
    (void)state;
    assert_int_equal(sse_feed(&s, "data: 12345678", 14, on_event, NULL, &err), ST_TOO_LARGE);
    assert_non_null(strstr(err.text, "10 bytes"));
    sse_free(&s);
    assert_int_equal(sse_feed(&s, "data: 123\n", 10, on_event, NULL, NULL), ST_OK);
    assert_int_equal(sse_feed(&s, "data: 456\n", 10, on_event, NULL, NULL), ST_OK);
    assert_int_equal(sse_feed(&s, "data: 789\n", 10, on_event, NULL, NULL), ST_TOO_LARGE);
    sse_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_responses),
        cmocka_unit_test(test_until_the_end),
        cmocka_unit_test(test_hostile_responses),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_event_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
