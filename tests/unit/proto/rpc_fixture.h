#ifndef LONGSPAN_TESTS_UNIT_PROTO_RPC_FIXTURE_H
#define LONGSPAN_TESTS_UNIT_PROTO_RPC_FIXTURE_H

/* A server with methods that echo, count, sleep, hold and refuse, and the client's side of a call. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <grpc/grpc.h>

#include "common/clock.h"
#include "proto/rpc.h"

enum { MESSAGE_MAX = 1 << 20, WAIT_MS = 60000 };

static void nap_ms(int ms)
{
    const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
    nanosleep(&t, NULL);
}

/* Waits for a counter or flag that another thread moves; fails the test rather than hanging. */
#define WAIT_FOR(condition)                                                                                            \
    do {                                                                                                               \
        const int64_t until_ = clock_ms() + WAIT_MS;                                                                   \
        while (!(condition)) {                                                                                         \
            if (clock_ms() > until_)                                                                                   \
                fail_msg("gave up waiting for " #condition);                                                           \
            nap_ms(1);                                                                                                 \
        }                                                                                                              \
    } while (0)

/* ---- the server under test: what each method does with a call ---- */

struct service {
    atomic_int opened, done_ok, done_cancelled, half_closed;
    atomic_int slow_ms; /* /t/Slow sleeps so long at each message */
    atomic_llong received;
    atomic_llong deadline_ms;
    _Atomic(struct rpc_call *) held; /* last call of /t/Hold, with a reference */
};

static void server_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    (void)message;
    struct service *s = user;
    if (code == RPC_OK)
        atomic_fetch_add(&s->done_ok, 1);
    else
        atomic_fetch_add(&s->done_cancelled, 1);
}

static void server_half_close(void *user, struct rpc_call *call)
{
    struct service *s = user;
    atomic_fetch_add(&s->half_closed, 1);
    rpc_call_finish(call, RPC_OK, NULL);
}

static void echo_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    struct service *s = user;
    atomic_fetch_add(&s->received, (long long)bytes);
    rpc_call_send(call, data, bytes);
}

/* The message is a number: so many messages come back, each holding its own number. */
static void count_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)user;
    uint32_t n = 0;
    if (bytes != sizeof n) {
        rpc_call_finish(call, RPC_INVALID_ARGUMENT, "four bytes \xE2\x9C\x93 100%\nplease");
        return;
    }
    memcpy(&n, data, sizeof n);
    for (uint32_t i = 0; i < n; i++)
        if (!rpc_call_send(call, (const uint8_t *)&i, sizeof i))
            return; /* cancelled meanwhile */
    rpc_call_finish(call, RPC_OK, NULL);
    rpc_call_finish(call, RPC_INTERNAL, "too late");
    assert_int_equal(rpc_call_send(call, data, bytes), 0);
}

static void slow_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    (void)data;
    struct service *s = user;
    nap_ms(atomic_load(&s->slow_ms)); /* a callback must not; that is the point */
    atomic_fetch_add(&s->received, (long long)bytes);
}

static void open_with(void *service, struct rpc_handlers *handlers_out, void **user_out,
                      void (*on_message)(void *, struct rpc_call *, const uint8_t *, size_t))
{
    struct service *s = service;
    atomic_fetch_add(&s->opened, 1);
    *handlers_out =
        (struct rpc_handlers){ .on_message = on_message, .on_half_close = server_half_close, .on_done = server_done };
    *user_out = service;
}

static void echo_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    struct service *s = service;
    atomic_store(&s->deadline_ms, rpc_call_deadline_ms(call));
    open_with(service, handlers_out, user_out, echo_message);
}

static void count_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    (void)call;
    open_with(service, handlers_out, user_out, count_message);
}

static void slow_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    (void)call;
    open_with(service, handlers_out, user_out, slow_message);
}

static void hold_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    struct service *s = service;
    rpc_call_ref(call);
    rpc_call_unref(atomic_exchange(&s->held, call));
    open_with(service, handlers_out, user_out, NULL);
    handlers_out->on_half_close = NULL; /* only its end interests it */
}

static void refuse_open(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    open_with(service, handlers_out, user_out, NULL);
    rpc_call_finish(call, RPC_RESOURCE_EXHAUSTED, "full");
}

struct site {
    struct service service;
    struct rpc_method methods[5];
    struct rpc_server *server;
    struct rpc_channel *channel;
    char target[64];
};

static void site_serve(struct site *site, const char *address, uint32_t keepalive_ms)
{
    const struct rpc_method methods[] = {
        { "/t/Echo", &site->service, echo_open },     { "/t/Count", &site->service, count_open },
        { "/t/Slow", &site->service, slow_open },     { "/t/Hold", &site->service, hold_open },
        { "/t/Refuse", &site->service, refuse_open },
    };
    memcpy(site->methods, methods, sizeof methods);
    struct error err = { 0 };
    const struct rpc_server_config config = { address, MESSAGE_MAX, keepalive_ms, NULL, NULL, NULL, 0 };
    if (rpc_server_start(&config, site->methods, 5, &site->server, &err))
        fail_msg("%s", err.text);
    snprintf(site->target, sizeof site->target, "127.0.0.1:%u", rpc_server_port(site->server));
}

static struct rpc_channel *channel_to(const char *target, uint32_t keepalive_ms)
{
    struct rpc_channel *channel;
    struct error err = { 0 };
    const struct rpc_channel_config config = { target, MESSAGE_MAX, keepalive_ms, NULL, NULL };
    if (rpc_channel_open(&config, &channel, &err))
        fail_msg("%s", err.text);
    return channel;
}

static int site_setup(void **state)
{
    struct site *site = calloc(1, sizeof *site);
    site_serve(site, "127.0.0.1:0", 0);
    site->channel = channel_to(site->target, 0);
    *state = site;
    return 0;
}

static int site_teardown(void **state)
{
    struct site *site = *state;
    rpc_channel_close(site->channel);
    rpc_server_stop(site->server, 100);
    rpc_call_unref(atomic_load(&site->service.held)); /* kept past the end of all of gRPC */
    const int opened = atomic_load(&site->service.opened);
    const int ended = atomic_load(&site->service.done_ok) + atomic_load(&site->service.done_cancelled);
    free(site);
    assert_int_equal(opened, ended);
    WAIT_FOR(!grpc_is_initialized()); /* nothing of it is left: no call, channel or server was forgotten */
    return 0;
}

/* ---- the client's side of a call ---- */

struct client {
    struct rpc_call *call;
    atomic_int messages, done;
    atomic_llong bytes, checksum;
    atomic_int in_order; /* messages of four bytes that held their own number */
    enum rpc_code code;
    char message[128];
};

static void client_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    struct client *c = user;
    assert_int_equal(atomic_load(&c->done), 0);
    uint32_t number = 0;
    if (bytes == sizeof number) {
        memcpy(&number, data, sizeof number);
        if (number == (uint32_t)atomic_load(&c->messages))
            atomic_fetch_add(&c->in_order, 1);
    }
    long long sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += data[i];
    atomic_fetch_add(&c->checksum, sum);
    atomic_fetch_add(&c->bytes, (long long)bytes);
    atomic_fetch_add(&c->messages, 1);
}

static void client_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    struct client *c = user;
    c->code = code;
    snprintf(c->message, sizeof c->message, "%s", message);
    atomic_fetch_add(&c->done, 1);
}

static void client_start(struct client *c, struct rpc_channel *channel, const char *path, uint32_t deadline_ms)
{
    static const struct rpc_handlers handlers = { .on_message = client_message, .on_done = client_done };
    memset(c, 0, sizeof *c);
    assert_int_equal(rpc_call_start(channel, path, deadline_ms, true, &handlers, c, &c->call), ST_OK);
}

static void client_end(struct client *c, enum rpc_code want)
{
    WAIT_FOR(atomic_load(&c->done));
    if (c->code != want)
        fail_msg("code %d (%s), not %d", (int)c->code, c->message, (int)want);
    assert_int_equal(rpc_call_send(c->call, (const uint8_t *)"late", 4), 0);
    rpc_call_cancel(c->call);
    rpc_call_unref(c->call);
}

#endif
