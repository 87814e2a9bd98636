#include "proto/rpc.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/support/time.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc_internal.h"

enum {
    KEY_MAX = 1024,
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 700,    /* gRPC adds up to a fifth: a server that is back is found within a second */
    CONNECT_MAX_MS = 1000,   /* for one attempt */
    LOOKAHEAD_BYTES = 65536, /* what a call may receive before it is read: the back-pressure that senders feel */
};

struct rpc_channel {
    struct rpc_engine engine;
    grpc_channel *core;
    struct rpc_tag on_watch;
    bool destroying; /* engine.lock */
};

static grpc_arg arg_int(const char *key, int value)
{
    const grpc_arg arg = { .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value };
    return arg;
}

static grpc_channel *core_new(const struct rpc_channel_config *config)
{
    grpc_arg list[20];
    size_t n = 0;
    list[n++] = arg_int(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    list[n++] = arg_int(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    /* without it, channels of one process to one target share a connection, and die together */
    list[n++] = arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    /* retries keep copies of what was sent, and count it as sent */
    list[n++] = arg_int(GRPC_ARG_ENABLE_RETRIES, 0);
    list[n++] = arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, BACKOFF_FIRST_MS);
    list[n++] = arg_int(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_MAX_MS); /* in truth an attempt's time limit */
    list[n++] = arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, BACKOFF_MAX_MS);
    list[n++] = arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)config->message_bytes_max);
    list[n++] = arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1);
    list[n++] = arg_int(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    list[n++] = arg_int(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES);
    list[n++] = arg_int(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
    if (config->keepalive_ms) {
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, (int)config->keepalive_ms);
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)config->keepalive_ms);
        /* etcd, as every server that leaves this to gRPC, cuts connections that ping without a call */
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
        list[n++] = arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
    const grpc_channel_args args = { n, list };
    grpc_channel_credentials *creds;
    if (config->tls) {
        grpc_ssl_pem_key_cert_pair pair = { config->tls->key, config->tls->cert };
        creds = grpc_ssl_credentials_create(config->tls->ca, config->tls->cert ? &pair : NULL, NULL, NULL);
    } else {
        creds = grpc_insecure_credentials_create();
    }
    grpc_channel *core = grpc_channel_create(config->target, creds, &args);
    grpc_channel_credentials_release(creds);
    return core;
}

/*
 * One watch is always outstanding: nothing in gRPC moves, reconnecting least of all, unless a thread waits on a queue that the channel is tied to.
 * Asking for the state with "try to connect" leaves idleness.
 */
static void watch_start(struct rpc_channel *c)
{
    const grpc_connectivity_state state = grpc_channel_check_connectivity_state(c->core, !c->engine.closing);
    RPC_TAG_RELEASE(&c->on_watch);
    grpc_channel_watch_connectivity_state(c->core, state, gpr_inf_future(GPR_CLOCK_MONOTONIC), c->engine.queue,
                                          &c->on_watch);
}

static void on_watch(struct rpc_tag *tag, bool ok)
{
    struct rpc_channel *c = (struct rpc_channel *)((char *)tag - offsetof(struct rpc_channel, on_watch));
    pthread_mutex_lock(&c->engine.lock);
    pthread_cond_broadcast(&c->engine.changed);
    if (ok && !c->destroying)
        watch_start(c);
    pthread_mutex_unlock(&c->engine.lock);
}

static bool key_fits(const char *key)
{
    size_t n = 0;
    while (key[n] > ' ' && key[n] < 127 && n < KEY_MAX)
        n++;
    return n && !key[n];
}

enum status rpc_channel_open(const struct rpc_channel_config *config, struct rpc_channel **channel_out,
                             struct error *err)
{
    if (config->message_bytes_max > INT32_MAX || config->keepalive_ms > INT32_MAX)
        return error_set(err, ST_INVALID, "grpc channel: message_bytes_max or keepalive_ms is over 2^31");
    char bearer[KEY_MAX + 16];
    if (config->key && !key_fits(config->key))
        return error_set(err, ST_INVALID, "the API key is empty, too long or not of printable ASCII");
    struct rpc_channel *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(err, ST_NO_MEMORY, "grpc channel: out of memory");
    c->on_watch.fn = on_watch;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    rpc_log_init();
    grpc_init();
    const enum status st = rpc_engine_start(&c->engine, "rpc-client");
    if (st == ST_OK) {
        c->core = core_new(config);
        if (config->key) {
            snprintf(bearer, sizeof bearer, "Bearer %s", config->key);
            c->engine.header.key = grpc_slice_from_static_string("authorization");
            c->engine.header.value = grpc_slice_from_copied_string(bearer);
            c->engine.n_headers = 1;
        }
        pthread_mutex_lock(&c->engine.lock);
        watch_start(c);
        pthread_mutex_unlock(&c->engine.lock);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (st) {
        rpc_channel_close(c);
        return error_set(err, st, "grpc channel: no thread");
    }
    *channel_out = c;
    return ST_OK;
}

/*
 * With the lock. gRPC 1.51 forgets a connection that comes about just as its channel is destroyed (Subchannel::OnConnectingFinishedLocked returns
 * without it): a descriptor and memory are lost. So an attempt under way is let finish, which takes CONNECT_MAX_MS at most.
 */
static void connect_await(struct rpc_channel *c)
{
    const int64_t until = clock_ns() + (int64_t)(CONNECT_MAX_MS + 100) * 1000000;
    const struct timespec at = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };
    while (grpc_channel_check_connectivity_state(c->core, 0) == GRPC_CHANNEL_CONNECTING)
        if (pthread_cond_timedwait(&c->engine.changed, &c->engine.lock, &at))
            return;
}

void rpc_channel_close(struct rpc_channel *channel)
{
    if (!channel)
        return;
    struct rpc_engine *e = &channel->engine;
    if (channel->core) {
        pthread_mutex_lock(&e->lock);
        e->closing = true;
        for (struct rpc_call *call = e->calls; call; call = call->next)
            rpc_call_cancel(call);
        while (e->n_calls)
            pthread_cond_wait(&e->changed, &e->lock);
        connect_await(channel);
        channel->destroying = true;
        pthread_mutex_unlock(&e->lock);
        grpc_channel_destroy(channel->core); /* ends the watch */
    }
    rpc_engine_stop(e);
    if (e->n_headers)
        grpc_slice_unref(e->header.value);
    grpc_shutdown();
    free(channel);
}

enum status rpc_call_start(struct rpc_channel *channel, const char *path, uint32_t deadline_ms, bool wait_ready,
                           const struct rpc_handlers *handlers, void *user, struct rpc_call **call_out)
{
    const gpr_timespec deadline =
        deadline_ms ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(deadline_ms, GPR_TIMESPAN))
                    : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    const grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *core = grpc_channel_create_call(channel->core, NULL, GRPC_PROPAGATE_DEFAULTS, channel->engine.queue,
                                               method, NULL, deadline, NULL);
    grpc_slice_unref(method);
    if (!core)
        return ST_INTERNAL;
    struct rpc_call *call;
    const enum status st = rpc_call_new(&channel->engine, core, false, &call);
    if (st)
        return st;
    call->handlers = *handlers;
    call->user = user;
    call->wait_ready = wait_ready;
    rpc_call_ref(call); /* the caller's */
    rpc_call_arm(call);
    rpc_call_receive(call);
    *call_out = call;
    return ST_OK;
}

/* ---- unary ---- */

struct unary {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, no_memory;
    uint8_t *reply;
    size_t reply_bytes;
    enum rpc_code code;
    char message[256];
};

static void unary_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    struct unary *u = user;
    if (u->reply)
        return; /* a second message is not unary; the first stands */
    u->reply = malloc(bytes ? bytes : 1);
    if (!u->reply) {
        u->no_memory = true;
        return;
    }
    if (bytes)
        memcpy(u->reply, data, bytes);
    u->reply_bytes = bytes;
}

static void unary_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    struct unary *u = user;
    pthread_mutex_lock(&u->lock);
    u->code = code;
    strncpy(u->message, message, sizeof u->message - 1);
    u->done = true;
    pthread_cond_signal(&u->changed);
    pthread_mutex_unlock(&u->lock);
}

enum status rpc_call_unary(struct rpc_channel *channel, const char *path, uint32_t deadline_ms, const uint8_t *data,
                           size_t bytes, uint8_t **reply_out, size_t *reply_bytes_out, enum rpc_code *code_out,
                           struct error *err)
{
    static const struct rpc_handlers handlers = { .on_message = unary_message, .on_done = unary_done };
    struct unary u = { .code = RPC_UNKNOWN };
    struct rpc_call *call;
    pthread_mutex_init(&u.lock, NULL);
    pthread_cond_init(&u.changed, NULL);
    enum status st = rpc_call_start(channel, path, deadline_ms, false, &handlers, &u, &call);
    if (st) {
        error_set(err, st, "%s: %s", path, status_text(st));
    } else {
        rpc_call_send(call, data, bytes);
        rpc_call_half_close(call);
        pthread_mutex_lock(&u.lock);
        while (!u.done)
            pthread_cond_wait(&u.changed, &u.lock);
        pthread_mutex_unlock(&u.lock);
        rpc_call_unref(call);
        if (code_out)
            *code_out = u.code;
        if (u.code != RPC_OK)
            st = error_set(err, ST_PEER, "%s: code %d: %s", path, (int)u.code, u.message);
        else if (u.no_memory)
            st = error_set(err, ST_NO_MEMORY, "%s: no memory for the reply", path);
        else if (!u.reply)
            st = error_set(err, ST_PROTOCOL, "%s: no reply", path);
    }
    pthread_cond_destroy(&u.changed);
    pthread_mutex_destroy(&u.lock);
    if (st) {
        free(u.reply);
        return st;
    }
    *reply_out = u.reply;
    *reply_bytes_out = u.reply_bytes;
    return ST_OK;
}
