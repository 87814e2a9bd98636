/* Clients that hold connections: requests that come byte by byte, and more connections than there are descriptors for. */
/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "gateway_fixture.h"

#include "coordinator/gateway/http.h"

enum { IDLE_MS = 6000, PATIENCE_MS = IDLE_MS / 3, HELD = 24 };

static struct loop *loop;
static struct http_server *server;
static pthread_t thread;
static uint16_t port;

static void handle(void *ctx, struct http_exchange *x)
{
    (void)ctx;
    struct text body = { 0 };
    text_str(&body, "{}");
    http_reply_json(x, 200, &body);
}

static void *thread_main(void *arg)
{
    loop_run(arg);
    return NULL;
}

static int setup(void **state)
{
    (void)state;
    static const struct http_route routes[] = { { HTTP_METHOD_GET, "/x", handle }, { HTTP_METHOD_POST, "/y", handle } };
    struct error err = { 0 };
    log_set_level(LOG_LEVEL_ERROR);
    assert_int_equal(loop_new(&loop), ST_OK);
    const struct http_config config = { .loop = loop,
                                        .address = "127.0.0.1:0",
                                        .body_bytes_max = 1 << 20,
                                        .idle_ms = IDLE_MS,
                                        .routes = routes,
                                        .n_routes = 2 };
    if (http_server_start(&config, &server, &err))
        fail_msg("%s", err.text);
    port = http_server_port(server);
    return pthread_create(&thread, NULL, thread_main, loop);
}

static void do_server_free(void *arg)
{
    http_server_free(arg);
}

static int teardown(void **state)
{
    (void)state;
    loop_post(loop, do_server_free, server);
    loop_stop(loop);
    pthread_join(thread, NULL);
    loop_free(loop);
    return 0;
}

/* Has the server closed it, within so many ms? What comes before that is thrown away. */
static bool closes(int fd, int within_ms)
{
    char data[1024];
    const int64_t until = clock_ms() + within_ms;
    for (;;) {
        const int64_t left = until - clock_ms();
        struct pollfd p = { .fd = fd, .events = POLLIN };
        if (poll(&p, 1, left > 0 ? (int)left : 0) <= 0)
            return false;
        if (recv(fd, data, sizeof data, 0) <= 0)
            return true;
    }
}

/* Sends a byte each every_ms until the server closes. -> ms it took, or -1 if all of data was taken */
static int64_t drip(const char *head, const char *data, size_t n, int every_ms)
{
    const int fd = client_connect(port);
    const int64_t start = clock_ms();
    int64_t took = -1;
    client_send(fd, head, strlen(head));
    for (size_t i = 0; i < n && took < 0; i++) {
        client_send(fd, data + i, 1);
        if (closes(fd, every_ms))
            took = clock_ms() - start;
    }
    close(fd);
    return took;
}

static void test_dripping(void **state)
{
    (void)state;
    char filler[1000];
    memset(filler, 'a', sizeof filler);
    /* each byte alone comes in time: only all of it does not */
    static const char *const heads[] = { "", "GET /x HTTP/1.1\r\nHost: x\r\nX: ",
                                         "POST /y HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n",
                                         "POST /y HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const int64_t took = drip(heads[i], filler, sizeof filler, 50);
        if (took < PATIENCE_MS || took >= IDLE_MS)
            fail_msg("case %zu ended after %lld ms", i, (long long)took);
    }
}

/* What takes longer than the patience, but comes at a sound rate, is served. */
static void test_slow_but_steady(void **state)
{
    (void)state;
    char filler[200];
    memset(filler, ' ', sizeof filler);
    const int fd = client_connect(port);
    char head[100];
    const int n =
        snprintf(head, sizeof head, "POST /y HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", 60 * sizeof filler);
    client_send(fd, head, (size_t)n);
    for (int i = 0; i < 60; i++) {
        usleep(45000);
        client_send(fd, filler, sizeof filler);
    }
    struct answer a = client_read(fd);
    assert_int_equal(a.code, 200);
    answer_free(&a);
    /* on the same connection, after a pause that is longer than the patience: time counts from a request's first byte */
    usleep((PATIENCE_MS + 300) * 1000);
    client_send(fd, "GET /x", 6);
    usleep(100000);
    client_send(fd, " HTTP/1.1\r\nHost: x\r\n\r\n", 22);
    a = client_read(fd);
    assert_int_equal(a.code, 200);
    answer_free(&a);
    close(fd);
}

/* Few descriptors, most of them held by connections that say nothing: these go, and who asks is answered. */
static void test_descriptors(void **state)
{
    (void)state;
    struct rlimit was;
    int held[HELD];
    const int lowest = dup(0);
    assert_true(lowest > 0);
    close(lowest);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
    /* both ends of each connection are ours */
    const struct rlimit few = { (rlim_t)lowest + 2 * HELD + 8, was.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    size_t n = 0;
    for (; n < HELD; n++)
        held[n] = client_connect(port);
    usleep(1200000); /* as old as must be to go */
    /* these have descriptors of the last eighth; they are young, and stay */
    const int late = client_connect(port), later = client_connect(port);
    size_t closed = 0;
    for (size_t i = 0; i < HELD; i++)
        closed += closes(held[i], 3000);
    assert_int_equal(closed, HELD);
    client_send(late, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n", 28);
    struct answer a = client_read(late);
    assert_int_equal(a.code, 200);
    answer_free(&a);
    close(late);
    close(later);
    while (n)
        close(held[--n]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dripping),
        cmocka_unit_test(test_slow_but_steady),
        cmocka_unit_test(test_descriptors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
