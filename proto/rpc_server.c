#include "proto/rpc.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc_internal.h"

enum {
    ACCEPTS = 16,              /* calls that may arrive while their forerunners are looked at */
    STREAMS_MAX = 4096,        /* a connection */
    LOOKAHEAD_BYTES = 65536,   /* what a call may receive before it is read: the back-pressure that senders feel */
    PING_INTERVAL_MIN_MS = 10, /* workers ping as often as their silence_ms asks */
};

struct rpc_server {
    struct rpc_engine engine;
    grpc_server *core;
    const struct rpc_method *methods;
    size_t n_methods;
    uint16_t port;
    struct rpc_tag on_shutdown;
    bool shut; /* engine.lock */
    const char *(*admit)(void *ctx, const char *path, const char *authorization);
    void *admit_ctx;
    struct tls *tls; /* engine.lock; NULL: in clear */
    bool tls_new;    /* gRPC has not taken it yet */
};

struct accept {
    struct rpc_tag tag;
    struct rpc_server *server;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
};

static void on_accept(struct rpc_tag *tag, bool ok);

static void accept_free(struct accept *a)
{
    grpc_call_details_destroy(&a->details);
    grpc_metadata_array_destroy(&a->metadata);
    free(a);
}

static enum status accept_start(struct rpc_server *s)
{
    struct accept *a = calloc(1, sizeof *a);
    if (!a)
        return ST_NO_MEMORY;
    a->tag.fn = on_accept;
    a->server = s;
    grpc_call_details_init(&a->details);
    grpc_metadata_array_init(&a->metadata);
    RPC_TAG_RELEASE(&a->tag);
    if (grpc_server_request_call(s->core, &a->call, &a->details, &a->metadata, s->engine.queue, s->engine.queue,
                                 &a->tag) != GRPC_CALL_OK) {
        accept_free(a);
        return ST_INTERNAL;
    }
    return ST_OK;
}

static const struct rpc_method *method_find(const struct rpc_server *s, const grpc_slice path)
{
    for (size_t i = 0; i < s->n_methods; i++)
        if (grpc_slice_str_cmp(path, s->methods[i].path) == 0)
            return &s->methods[i];
    return NULL;
}

/* The call's "authorization", to be freed, or NULL. */
static char *authorization_of(const struct accept *a)
{
    for (size_t i = 0; i < a->metadata.count; i++)
        if (!grpc_slice_str_cmp(a->metadata.metadata[i].key, "authorization"))
            return grpc_slice_to_c_string(a->metadata.metadata[i].value);
    return NULL;
}

/* Whether it may come in. */
static bool admitted(const struct rpc_server *s, const struct accept *a, struct rpc_call *call)
{
    if (!s->admit)
        return true;
    char *path = grpc_slice_to_c_string(a->details.method), *authorization = authorization_of(a);
    call->identity = s->admit(s->admit_ctx, path, authorization);
    gpr_free(path);
    gpr_free(authorization);
    return call->identity;
}

static void call_accept(struct rpc_server *s, const struct accept *a)
{
    struct rpc_call *call;
    if (rpc_call_new(&s->engine, a->call, true, &call))
        return;
    if (gpr_time_cmp(a->details.deadline, gpr_inf_future(a->details.deadline.clock_type)) != 0) {
        const gpr_timespec left = gpr_time_sub(a->details.deadline, gpr_now(a->details.deadline.clock_type));
        const int64_t left_ms = left.tv_sec * 1000 + left.tv_nsec / 1000000;
        call->deadline_at_ms = clock_ms() + (left_ms > 0 ? left_ms : 0);
    }
    char *peer = grpc_call_get_peer(a->call);
    call->peer = peer ? strdup(peer) : NULL;
    gpr_free(peer);

    rpc_call_arm(call);
    const struct rpc_method *m = method_find(s, a->details.method);
    if (!m)
        rpc_call_finish(call, RPC_UNIMPLEMENTED, "unknown method");
    else if (!admitted(s, a, call))
        rpc_call_finish(call, RPC_UNAUTHENTICATED, "no key, or one that is not known: authorization: Bearer KEY");
    else
        m->open(m->service, call, &call->handlers, &call->user);
    rpc_call_receive(call);
}

static void on_accept(struct rpc_tag *tag, bool ok)
{
    struct accept *a = (struct accept *)tag; /* its first member */
    struct rpc_server *s = a->server;
    if (ok) {
        pthread_mutex_lock(&s->engine.lock);
        const bool closing = s->engine.closing;
        pthread_mutex_unlock(&s->engine.lock);
        /* re-armed first: gRPC queues what finds no taker, but only so many */
        if (!closing && accept_start(s))
            log_error("grpc server on port %u takes fewer calls at once: out of memory", s->port);
        call_accept(s, a);
    }
    accept_free(a);
}

static void on_shutdown(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc_server *s = (struct rpc_server *)((char *)tag - offsetof(struct rpc_server, on_shutdown));
    pthread_mutex_lock(&s->engine.lock);
    s->shut = true;
    pthread_cond_broadcast(&s->engine.changed);
    pthread_mutex_unlock(&s->engine.lock);
}

static grpc_arg arg_int(const char *key, int value)
{
    const grpc_arg arg = { .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value };
    return arg;
}

static grpc_server *core_new(const struct rpc_server_config *config)
{
    grpc_arg list[16];
    size_t n = 0;
    list[n++] = arg_int(GRPC_ARG_ALLOW_REUSEPORT, 0);
    list[n++] = arg_int(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX);
    list[n++] = arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)config->message_bytes_max);
    list[n++] = arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1);
    list[n++] = arg_int(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    list[n++] = arg_int(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                        config->lookahead_bytes ? (int)config->lookahead_bytes : LOOKAHEAD_BYTES);
    list[n++] = arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, PING_INTERVAL_MIN_MS);
    list[n++] = arg_int(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    /* a compressed message of 1 MB may grow to 1 GB before its length is looked at: identity only */
    list[n++] = arg_int(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
    if (config->keepalive_ms) {
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, (int)config->keepalive_ms);
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)config->keepalive_ms);
        list[n++] = arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
        list[n++] = arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
    const grpc_channel_args args = { n, list };
    return grpc_server_create(&args, NULL);
}

/* Asked before every handshake, on gRPC's threads. */
static grpc_ssl_certificate_config_reload_status on_handshake(void *server,
                                                              grpc_ssl_server_certificate_config **config_out)
{
    struct rpc_server *s = server;
    grpc_ssl_certificate_config_reload_status status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    pthread_mutex_lock(&s->engine.lock);
    if (s->tls_new) {
        const grpc_ssl_pem_key_cert_pair pair = { s->tls->key, s->tls->cert };
        /* it insists on roots, which nobody asks where clients show no certificates */
        const char *roots = s->tls->ca ? s->tls->ca : s->tls->cert;
        *config_out = grpc_ssl_server_certificate_config_create(roots, &pair, 1); /* copies */
        status = *config_out ? GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW : GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
        s->tls_new = !*config_out;
    }
    pthread_mutex_unlock(&s->engine.lock);
    return status;
}

static grpc_server_credentials *credentials(struct rpc_server *s, const struct tls *tls)
{
    if (!tls)
        return grpc_insecure_server_credentials_create();
    if (rpc_server_tls(s, tls))
        return NULL;
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            tls->ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                    : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            on_handshake, s));
}

enum status rpc_server_tls(struct rpc_server *server, const struct tls *tls)
{
    struct tls *copy = tls_copy(tls);
    if (!copy)
        return ST_NO_MEMORY;
    pthread_mutex_lock(&server->engine.lock);
    struct tls *old = server->tls;
    server->tls = copy;
    server->tls_new = true;
    pthread_mutex_unlock(&server->engine.lock);
    tls_free(old);
    return ST_OK;
}

static enum status server_build(struct rpc_server *s, const struct rpc_server_config *config, struct error *err)
{
    enum status st = rpc_engine_start(&s->engine, "rpc-server");
    if (st)
        return error_set(err, st, "grpc server: no thread");
    s->core = core_new(config);
    grpc_server_register_completion_queue(s->core, s->engine.queue, NULL);
    grpc_server_credentials *creds = credentials(s, config->tls);
    if (!creds)
        return error_set(err, ST_INVALID, "grpc server: the certificate is not taken");
    const int port = grpc_server_add_http2_port(s->core, config->address, creds);
    grpc_server_credentials_release(creds);
    if (port <= 0)
        return error_set(err, ST_IO, "cannot listen on %s (is it in use?)", config->address);
    s->port = (uint16_t)port;
    grpc_server_start(s->core);
    for (int i = 0; i < ACCEPTS; i++) {
        st = accept_start(s);
        if (st)
            return error_set(err, st, "grpc server: cannot take calls");
    }
    return ST_OK;
}

enum status rpc_server_start(const struct rpc_server_config *config, const struct rpc_method *methods, size_t n_methods,
                             struct rpc_server **server_out, struct error *err)
{
    if (config->message_bytes_max > INT32_MAX || config->keepalive_ms > INT32_MAX ||
        config->lookahead_bytes > INT32_MAX)
        return error_set(err, ST_INVALID,
                         "grpc server: message_bytes_max, lookahead_bytes or keepalive_ms is over 2^31");
    if (config->tls && !config->tls->cert)
        return error_set(err, ST_INVALID, "grpc server: TLS without a certificate");
    struct rpc_server *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ST_NO_MEMORY, "grpc server: out of memory");
    s->methods = methods;
    s->n_methods = n_methods;
    s->admit = config->admit;
    s->admit_ctx = config->admit_ctx;
    s->on_shutdown.fn = on_shutdown;
    /* gRPC's threads inherit the mask: signals are for the process's own threads */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    rpc_log_init();
    grpc_init();
    const enum status st = server_build(s, config, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (st) {
        rpc_server_stop(s, 0);
        return st;
    }
    *server_out = s;
    return ST_OK;
}

const char *rpc_call_identity(const struct rpc_call *call)
{
    return call->identity;
}

uint16_t rpc_server_port(const struct rpc_server *server)
{
    return server->port;
}

static bool server_quiet(const struct rpc_server *s)
{
    return s->shut && s->engine.n_calls == 0;
}

/* -> whether it is quiet */
static bool server_wait(struct rpc_server *s, int64_t wait_ms)
{
    const int64_t until = clock_ns() + wait_ms * 1000000;
    const struct timespec at = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };
    pthread_mutex_lock(&s->engine.lock);
    while (!server_quiet(s))
        if (wait_ms < 0)
            pthread_cond_wait(&s->engine.changed, &s->engine.lock);
        else if (pthread_cond_timedwait(&s->engine.changed, &s->engine.lock, &at))
            break;
    const bool quiet = server_quiet(s);
    pthread_mutex_unlock(&s->engine.lock);
    return quiet;
}

void rpc_server_stop(struct rpc_server *server, uint32_t grace_ms)
{
    if (!server)
        return;
    if (server->core) {
        pthread_mutex_lock(&server->engine.lock);
        server->engine.closing = true;
        pthread_mutex_unlock(&server->engine.lock);
        RPC_TAG_RELEASE(&server->on_shutdown);
        grpc_server_shutdown_and_notify(server->core, server->engine.queue, &server->on_shutdown);
        if (!grace_ms || !server_wait(server, grace_ms))
            grpc_server_cancel_all_calls(server->core);
        server_wait(server, -1);
        grpc_server_destroy(server->core);
    }
    rpc_engine_stop(&server->engine);
    grpc_shutdown();
    tls_free(server->tls);
    free(server);
}
