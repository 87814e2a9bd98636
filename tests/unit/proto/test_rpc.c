/* ctest-labels: tsan */
/* ctest-serial */
#include "proto/rpc.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <grpc/grpc.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/unit/own_clock.h"
#include "tests/unit/proto/rpc_fixture.h"

/* ---- tests ---- */

static void unary_there_and_back(void **state)
{
    struct site *site = *state;
    for (int i = 0; i < 50; i++) {
        uint8_t *reply = NULL;
        size_t bytes = 0;
        enum rpc_code code = RPC_UNKNOWN;
        struct error err = { 0 };
        const char text[] = "rows are computed anywhere";
        const size_t n = (size_t)(i % (int)sizeof text); /* empty ones too */
        assert_int_equal(
            rpc_call_unary(site->channel, "/t/Echo", 5000, (const uint8_t *)text, n, &reply, &bytes, &code, &err),
            ST_OK);
        assert_int_equal(code, RPC_OK);
        assert_int_equal(bytes, n);
        assert_memory_equal(reply, text, n);
        free(reply);
    }
    assert_in_range(atomic_load(&site->service.deadline_ms), 1, 5100); /* gRPC rounds it up */
}

static void server_stream_in_order(void **state)
{
    struct site *site = *state;
    struct client c;
    client_start(&c, site->channel, "/t/Count", 0);
    const uint32_t n = 3000;
    rpc_call_send(c.call, (const uint8_t *)&n, sizeof n);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    assert_int_equal(atomic_load(&c.messages), n);
    assert_int_equal(atomic_load(&c.in_order), n);
}

static void error_text_arrives_whole(void **state)
{
    struct site *site = *state;
    struct client c;
    client_start(&c, site->channel, "/t/Count", 0);
    rpc_call_send(c.call, (const uint8_t *)"abc", 3);
    client_end(&c, RPC_INVALID_ARGUMENT);
    assert_string_equal(c.message, "four bytes \xE2\x9C\x93 100%\nplease");
    client_start(&c, site->channel, "/t/Refuse", 0);
    client_end(&c, RPC_RESOURCE_EXHAUSTED);
    client_start(&c, site->channel, "/t/None", 0);
    rpc_call_send(c.call, (const uint8_t *)"abc", 3);
    client_end(&c, RPC_UNIMPLEMENTED);
    uint8_t *reply = NULL;
    size_t bytes = 0;
    enum rpc_code code = RPC_OK;
    struct error err = { 0 };
    assert_int_equal(rpc_call_unary(site->channel, "/t/None", 5000, NULL, 0, &reply, &bytes, &code, &err), ST_PEER);
    assert_int_equal(code, RPC_UNIMPLEMENTED);
    assert_non_null(strstr(err.text, "unknown method"));
}

struct sender {
    struct rpc_call *call;
    uint8_t fill;
};

enum { SENDERS = 3, SENDS = 300, SEND_BYTES = 700 };

static void *sender_run(void *arg)
{
    const struct sender *s = arg;
    uint8_t data[SEND_BYTES];
    memset(data, s->fill, sizeof data);
    for (int i = 0; i < SENDS; i++)
        rpc_call_send(s->call, data, sizeof data);
    return NULL;
}

static void bidi_from_many_threads(void **state)
{
    struct site *site = *state;
    struct client c;
    client_start(&c, site->channel, "/t/Echo", 0);
    pthread_t threads[SENDERS];
    struct sender senders[SENDERS];
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){ c.call, (uint8_t)(i + 1) };
        pthread_create(&threads[i], NULL, sender_run, &senders[i]);
    }
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    assert_int_equal(atomic_load(&c.messages), SENDERS * SENDS);
    assert_int_equal(atomic_load(&c.checksum), (1 + 2 + 3) * SENDS * SEND_BYTES);
    WAIT_FOR(atomic_load(&site->service.done_ok) == 1);
    assert_int_equal(atomic_load(&site->service.half_closed), 1);
}

static void cancel_from_both_sides(void **state)
{
    struct site *site = *state;
    struct client c;
    client_start(&c, site->channel, "/t/Hold", 0);
    WAIT_FOR(atomic_load(&site->service.held));
    struct rpc_call *held = atomic_load(&site->service.held);
    char *peer = rpc_call_peer(held);
    assert_non_null(strstr(peer, "127.0.0.1:"));
    free(peer);
    assert_int_equal(rpc_call_deadline_ms(held), -1);
    const int64_t start = own_clock_ms();
    rpc_call_cancel(c.call);
    client_end(&c, RPC_CANCELLED);
    WAIT_FOR(atomic_load(&site->service.done_cancelled) == 1);
    assert_in_range(own_clock_ms() - start, 0, 5000);
    assert_int_equal(rpc_call_send(held, (const uint8_t *)"x", 1), 0);
    rpc_call_finish(held, RPC_OK, NULL); /* too late, and harmless */
    rpc_call_unref(held);
    atomic_store(&site->service.held, NULL);

    client_start(&c, site->channel, "/t/Hold", 0);
    WAIT_FOR(atomic_load(&site->service.held));
    rpc_call_cancel(atomic_load(&site->service.held));
    WAIT_FOR(atomic_load(&c.done));
    assert_int_not_equal(c.code, RPC_OK);
    rpc_call_unref(c.call);
    WAIT_FOR(atomic_load(&site->service.done_cancelled) == 2);
}

static void deadline_ends_both_sides(void **state)
{
    struct site *site = *state;
    struct client c;
    const int64_t start = clock_ms();
    client_start(&c, site->channel, "/t/Hold", 100);
    client_end(&c, RPC_DEADLINE_EXCEEDED);
    assert_in_range(clock_ms() - start, 95, 30000);
    WAIT_FOR(atomic_load(&site->service.done_cancelled) == atomic_load(&site->service.opened));
}

static void stop_with_open_calls(void **state)
{
    struct site *site = *state;
    struct client c[4];
    for (int i = 0; i < 4; i++)
        client_start(&c[i], site->channel, i % 2 ? "/t/Echo" : "/t/Slow", 0);
    WAIT_FOR(atomic_load(&site->service.opened) == 4);
    const int64_t start = clock_ms();
    rpc_server_stop(site->server, 100);
    assert_in_range(clock_ms() - start, 90, 30000);
    site->server = NULL;
    for (int i = 0; i < 4; i++)
        client_end(&c[i], RPC_UNAVAILABLE);
    assert_int_equal(atomic_load(&site->service.done_cancelled), 4);
}

static void close_with_open_calls(void **state)
{
    struct site *site = *state;
    struct rpc_channel *channel = channel_to(site->target, 0);
    struct client c[3];
    for (int i = 0; i < 3; i++)
        client_start(&c[i], channel, "/t/Echo", 0);
    const int64_t start = own_clock_ms();
    rpc_channel_close(channel);
    assert_in_range(own_clock_ms() - start, 0, 5000);
    for (int i = 0; i < 3; i++)
        client_end(&c[i], RPC_CANCELLED);
}

static void too_large_is_refused(void **state)
{
    struct site *site = *state;
    uint8_t *data = calloc(1, MESSAGE_MAX + 1);
    struct client c;
    client_start(&c, site->channel, "/t/Echo", 0);
    rpc_call_send(c.call, data, MESSAGE_MAX + 1);
    client_end(&c, RPC_RESOURCE_EXHAUSTED);
    client_start(&c, site->channel, "/t/Echo", 0);
    rpc_call_send(c.call, data, MESSAGE_MAX);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    assert_int_equal(atomic_load(&c.bytes), MESSAGE_MAX);
    free(data);
}

static void a_slow_reader_is_felt(void **state)
{
    struct site *site = *state;
    struct client c;
    uint8_t data[32768];
    memset(data, 7, sizeof data);
    atomic_store(&site->service.slow_ms, 5);
    client_start(&c, site->channel, "/t/Slow", 0);
    size_t queued = 0;
    int sent = 0;
    for (; sent < 64; sent++)
        queued = rpc_call_send(c.call, data, sizeof data);
    /* 2 MB went in; the reader took some, the windows hold little, the rest is counted here */
    assert_true(queued > (1 << 20));
    assert_true(queued <= 64 * sizeof data);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    assert_int_equal(atomic_load(&site->service.received), 64 * (long long)sizeof data);
}

enum { STRESS_THREADS = 4, STRESS_CALLS = 60 };

struct stress {
    struct site *site;
    uint64_t seed;
};

/* Calls of all kinds, ended in all ways, at any moment. Each must end, once. */
static void *stress_run(void *arg)
{
    static const char *const paths[] = { "/t/Echo", "/t/Count", "/t/Slow", "/t/Hold", "/t/Refuse", "/t/None" };
    const struct stress *stress = arg;
    struct rng rng = { .seed = stress->seed };
    static const struct rpc_handlers handlers = { .on_message = client_message, .on_done = client_done };
    for (int i = 0; i < STRESS_CALLS; i++) {
        const uint32_t kind = rng_below(&rng, 6), n = rng_below(&rng, 50);
        const bool half_close = rng_below(&rng, 2), hold = kind == 3;
        struct client *c = calloc(1, sizeof *c);
        const uint32_t deadline_ms = rng_below(&rng, 3) ? 0 : 1 + rng_below(&rng, 20);
        if (rpc_call_start(stress->site->channel, paths[kind], deadline_ms, true, &handlers, c, &c->call))
            abort();
        for (uint32_t k = rng_below(&rng, 4); k; k--)
            rpc_call_send(c->call, (const uint8_t *)&n, sizeof n);
        if (half_close)
            rpc_call_half_close(c->call);
        if (rng_below(&rng, 2))
            nap_ms((int)rng_below(&rng, 4));
        if (hold || !half_close || rng_below(&rng, 3) == 0)
            rpc_call_cancel(c->call);
        while (!atomic_load(&c->done))
            nap_ms(1);
        rpc_call_unref(c->call);
        if (atomic_load(&c->done) != 1)
            abort();
        free(c);
    }
    return NULL;
}

/* Hold's service keeps one call; here each replaces the one before. */
static void held_drop(struct service *s)
{
    rpc_call_unref(atomic_exchange(&s->held, NULL));
}

static void calls_end_however_they_are_treated(void **state)
{
    struct site *site = *state;
    const uint64_t seed = (uint64_t)clock_ns();
    print_message("seed %llu\n", (unsigned long long)seed);
    pthread_t threads[STRESS_THREADS];
    struct stress stress[STRESS_THREADS];
    for (int i = 0; i < STRESS_THREADS; i++) {
        stress[i] = (struct stress){ site, seed + (uint64_t)i };
        pthread_create(&threads[i], NULL, stress_run, &stress[i]);
    }
    for (int i = 0; i < STRESS_THREADS; i++)
        pthread_join(threads[i], NULL);
    struct service *s = &site->service;
    WAIT_FOR(atomic_load(&s->opened) == atomic_load(&s->done_ok) + atomic_load(&s->done_cancelled));
    held_drop(s);
}

static void a_busy_port_is_refused(void **state)
{
    struct site *site = *state;
    struct rpc_server *second = NULL;
    struct error err = { 0 };
    const struct rpc_server_config config = { site->target, MESSAGE_MAX, 0, NULL, NULL, NULL, 0 };
    assert_int_equal(rpc_server_start(&config, site->methods, 5, &second, &err), ST_IO);
    assert_non_null(strstr(err.text, site->target));
    const struct rpc_server_config silly = { "nowhere:port", MESSAGE_MAX, 0, NULL, NULL, NULL, 0 };
    err.status = ST_OK;
    assert_int_equal(rpc_server_start(&silly, site->methods, 5, &second, &err), ST_IO);
}

static void no_proxy_is_used(void **state)
{
    struct site *site = *state;
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    struct rpc_channel *channel = channel_to(site->target, 0);
    unsetenv("http_proxy");
    struct client c;
    client_start(&c, channel, "/t/Echo", 5000);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    rpc_channel_close(channel);
}

static int raw_connect(uint16_t port)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons(port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void garbage_does_no_harm(void **state)
{
    struct site *site = *state;
    struct rng rng = { .seed = (uint64_t)clock_ns() };
    print_message("seed %llu\n", (unsigned long long)rng.seed);
    for (int round = 0; round < 30; round++) {
        const int fd = raw_connect(rpc_server_port(site->server));
        static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        uint8_t data[512];
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)rng_next(&rng);
        if (round % 3 == 1)
            send(fd, preface, sizeof preface - 1, MSG_NOSIGNAL);
        if (round % 3 == 2)
            send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL);
        send(fd, data, 1 + rng_below(&rng, sizeof data), MSG_NOSIGNAL);
        close(fd);
    }
    uint8_t *reply = NULL;
    size_t bytes = 0;
    assert_int_equal(
        rpc_call_unary(site->channel, "/t/Echo", 5000, (const uint8_t *)"ok", 2, &reply, &bytes, NULL, NULL), ST_OK);
    free(reply);
}

/* ---- another process: killed, frozen, restarted ---- */

static const char *self_path;

static pid_t child_start(const char *address, uint16_t *port_out)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        char fd_text[16];
        snprintf(fd_text, sizeof fd_text, "%d", fds[1]);
        close(fds[0]);
        execl(self_path, self_path, "--serve", address, fd_text, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    char text[16] = { 0 };
    if (read(fds[0], text, sizeof text - 1) <= 0)
        fail_msg("the child did not start on %s", address);
    close(fds[0]);
    *port_out = (uint16_t)atoi(text);
    return pid;
}

static int child_main(const char *address, int fd)
{
    struct site site = { 0 };
    site_serve(&site, address, 0);
    if (dprintf(fd, "%u", rpc_server_port(site.server)) < 0)
        return 1;
    close(fd);
    for (;;)
        pause();
}

static void child_end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void a_killed_server_is_noticed_and_found_again(void **state)
{
    (void)state;
    uint16_t port = 0;
    pid_t pid = child_start("127.0.0.1:0", &port);
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%u", port);
    struct rpc_channel *channel = channel_to(target, 0);
    struct client c;
    client_start(&c, channel, "/t/Echo", 0);
    rpc_call_send(c.call, (const uint8_t *)"hi", 2);
    WAIT_FOR(atomic_load(&c.messages) == 1);
    int64_t start = own_clock_ms();
    child_end(pid);
    client_end(&c, RPC_UNAVAILABLE);
    assert_in_range(own_clock_ms() - start, 0, 5000);

    nap_ms(1500); /* so that the back-off has grown */
    pid = child_start(target, &port);
    start = own_clock_ms();
    client_start(&c, channel, "/t/Echo", 60000);
    rpc_call_send(c.call, (const uint8_t *)"hi", 2);
    WAIT_FOR(atomic_load(&c.messages) == 1);
    const int64_t took = own_clock_ms() - start;
    print_message("back after %lld ms\n", (long long)took);
    assert_in_range(took, 0, 1000);
    rpc_call_half_close(c.call);
    client_end(&c, RPC_OK);
    rpc_channel_close(channel);
    child_end(pid);
    WAIT_FOR(!grpc_is_initialized());
}

static void a_frozen_server_is_noticed(void **state)
{
    (void)state;
    uint16_t port = 0;
    const pid_t pid = child_start("127.0.0.1:0", &port);
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%u", port);
    struct rpc_channel *channel = channel_to(target, 300);
    struct client c;
    client_start(&c, channel, "/t/Echo", 0);
    rpc_call_send(c.call, (const uint8_t *)"hi", 2);
    WAIT_FOR(atomic_load(&c.messages) == 1);
    const int64_t start = own_clock_ms();
    kill(pid, SIGSTOP);
    client_end(&c, RPC_UNAVAILABLE);
    const int64_t took = own_clock_ms() - start;
    print_message("noticed after %lld ms\n", (long long)took);
    assert_in_range(took, 0, 2500);
    rpc_channel_close(channel);
    child_end(pid);
    WAIT_FOR(!grpc_is_initialized());
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--serve"))
        return child_main(argv[2], atoi(argv[3]));
    self_path = "/proc/self/exe";
    signal(SIGPIPE, SIG_IGN);
#define ON_SITE(test) cmocka_unit_test_setup_teardown(test, site_setup, site_teardown)
    const struct CMUnitTest tests[] = {
        ON_SITE(unary_there_and_back),
        ON_SITE(server_stream_in_order),
        ON_SITE(error_text_arrives_whole),
        ON_SITE(bidi_from_many_threads),
        ON_SITE(cancel_from_both_sides),
        ON_SITE(deadline_ends_both_sides),
        ON_SITE(stop_with_open_calls),
        ON_SITE(close_with_open_calls),
        ON_SITE(too_large_is_refused),
        ON_SITE(a_slow_reader_is_felt),
        ON_SITE(calls_end_however_they_are_treated),
        ON_SITE(a_busy_port_is_refused),
        ON_SITE(no_proxy_is_used),
        ON_SITE(garbage_does_no_harm),
        cmocka_unit_test(a_killed_server_is_noticed_and_found_again),
        cmocka_unit_test(a_frozen_server_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
