#include "coordinator/gateway/grpc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/grpc_generate.h"
#include "coordinator/gateway/grpc_reflection.h"
#include "coordinator/gateway/keys.h"
#include "proto/health.pb-c.h"
#include "proto/longspan.pb-c.h"
#include "proto/rpc.h"

enum {
    QUEUED_BYTES_MAX = 8 << 20, /* for a client that does not read */
    STOP_GRACE_MS = 1000,
    HEALTH_NAME_MAX = 256,
};

enum kind { KIND_GENERATE, KIND_STATUS, KIND_DRAIN, KIND_REBALANCE, KIND_CHECK, KIND_WATCH, KINDS };
enum { METHODS = KINDS + GRPC_REFLECTION_METHODS };

struct service {
    struct grpc_gateway *gateway;
    enum kind kind;
};

/* Posts to the loop may come after grpc_gateway_free, so calls hold references, and look at `closed`. */
struct grpc_gateway {
    struct grpc_config config;
    struct rpc_server *server;
    struct rpc_method *methods; /* ours, then those of others */
    struct service services[KINDS];
    atomic_uint refs;
    bool closed, ready; /* loop thread, as what follows */
    uint32_t n_open;
    struct grpc_generates generates;
    struct call *first; /* all that have begun and not gone */
};

struct call {
    struct grpc_gateway *gateway;
    struct rpc_call *rpc;
    enum kind kind;
    bool asked;                 /* gRPC's thread: the request has come */
    struct grpc_source *source; /* handed to the loop with the post, */
    struct grpc_again *again;   /* as this */
    /* loop thread */
    struct call *next, **link;
    bool begun;
    struct grpc_generate *generate; /* NULL: none, or it has ended */
    bool unknown;                   /* Watch of a service that is not ours */
};

static void gateway_unref(struct grpc_gateway *g)
{
    if (atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    free(g->methods);
    free(g);
}

/* ---- loop thread ---- */

static void call_end(struct call *c, enum rpc_code code, const char *message)
{
    rpc_call_finish(c->rpc, code, message);
}

static void status_begin(struct call *c)
{
    const struct grpc_config *config = &c->gateway->config;
    struct text body = { 0 };
    grpc_write_status(config->config, config->host, config->ready(config->ctx), &body);
    if (grpc_generate_send(c->rpc, &body, QUEUED_BYTES_MAX))
        call_end(c, RPC_OK, "");
}

/* What changes the cluster is the operator's where callers are told apart. false: it was refused. */
static bool operator_may(struct call *c, bool offered)
{
    const struct gateway_config *config = c->gateway->config.config;
    const char *tenant = rpc_call_identity(c->rpc);
    if (config->keys && (!tenant || strcmp(tenant, GATEWAY_OPERATOR) != 0)) {
        call_end(c, RPC_PERMISSION_DENIED, "this takes an API key of the tenant \"" GATEWAY_OPERATOR "\"");
        return false;
    }
    if (!offered)
        call_end(c, RPC_UNIMPLEMENTED, "this server has no workers to move leaves between");
    return offered;
}

static void drain_begin(struct call *c)
{
    const struct gateway_config *config = c->gateway->config.config;
    struct text body = { 0 };
    struct error err = { 0 };
    if (!operator_may(c, config->drain != NULL))
        return;
    Longspan__V1__DrainRequest *m = longspan__v1__drain_request__unpack(NULL, c->source->bytes, c->source->data);
    if (!m) {
        call_end(c, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    const uint32_t worker = m->worker;
    const bool undo = m->undo;
    longspan__v1__drain_request__free_unpacked(m, NULL);
    const enum status st = worker > UINT16_MAX
                               ? error_set(&err, ST_NOT_FOUND, "worker: %u is no worker's number", worker)
                               : config->drain(config->ctx, (uint16_t)worker, undo, &err);
    if (st) {
        call_end(c, st == ST_STALE ? RPC_FAILED_PRECONDITION : grpc_code(st), err.text);
        return;
    }
    grpc_write_drain(config, (uint16_t)worker, &body);
    if (grpc_generate_send(c->rpc, &body, QUEUED_BYTES_MAX))
        call_end(c, RPC_OK, "");
}

static void rebalance_begin(struct call *c)
{
    const struct gateway_config *config = c->gateway->config.config;
    struct text body = { 0 };
    if (!operator_may(c, config->rebalance != NULL))
        return;
    config->rebalance(config->ctx);
    grpc_write_rebalance(config, &body);
    if (grpc_generate_send(c->rpc, &body, QUEUED_BYTES_MAX))
        call_end(c, RPC_OK, "");
}

static bool health_send(struct call *c)
{
    Grpc__Health__V1__HealthCheckResponse m;
    grpc__health__v1__health_check_response__init(&m);
    m.status = c->unknown          ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN
               : c->gateway->ready ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                                   : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    uint8_t bytes[16];
    struct text body = { 0 };
    text_add(&body, bytes, grpc__health__v1__health_check_response__pack(&m, bytes));
    return grpc_generate_send(c->rpc, &body, QUEUED_BYTES_MAX);
}

/* "" is the server as a whole. */
static bool is_ours(const char *service)
{
    static const char *const ours[] = { "", "longspan.v1.Inference", "longspan.v1.Cluster" };
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!strcmp(service, ours[i]))
            return true;
    return false;
}

static void health_begin(struct call *c)
{
    Grpc__Health__V1__HealthCheckRequest *m =
        c->source->bytes <= HEALTH_NAME_MAX
            ? grpc__health__v1__health_check_request__unpack(NULL, c->source->bytes, c->source->data)
            : NULL;
    if (!m) {
        call_end(c, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    c->unknown = !is_ours(m->service);
    grpc__health__v1__health_check_request__free_unpacked(m, NULL);
    c->gateway->ready = c->gateway->config.ready(c->gateway->config.ctx);
    if (c->unknown && c->kind == KIND_CHECK)
        call_end(c, RPC_NOT_FOUND, "no such service");
    else if (health_send(c) && c->kind == KIND_CHECK)
        call_end(c, RPC_OK, "");
}

static void call_begin(void *arg)
{
    struct call *c = arg;
    struct grpc_gateway *g = c->gateway;
    if (g->closed) {
        call_end(c, RPC_UNAVAILABLE, "the server is shutting down");
        return;
    }
    c->begun = true;
    c->link = &g->first;
    c->next = g->first;
    if (c->next)
        c->next->link = &c->next;
    g->first = c;
    g->n_open += c->kind != KIND_WATCH;
    switch (c->kind) {
    case KIND_GENERATE:
        grpc_generate_begin(&g->generates, c->rpc, c->source, c->again, &c->generate);
        c->source = NULL;
        c->again = NULL;
        break;
    case KIND_STATUS:
        status_begin(c);
        break;
    case KIND_DRAIN:
        drain_begin(c);
        break;
    case KIND_REBALANCE:
        rebalance_begin(c);
        break;
    default:
        health_begin(c);
        break;
    }
}

/* The last post of a call. */
static void call_gone(void *arg)
{
    struct call *c = arg;
    if (c->begun) {
        if (c->generate)
            grpc_generate_leave(c->generate);
        *c->link = c->next;
        if (c->next)
            c->next->link = c->link;
        c->gateway->n_open -= c->kind != KIND_WATCH;
    }
    free(c->source);
    free(c->again);
    rpc_call_unref(c->rpc);
    gateway_unref(c->gateway);
    free(c);
}

/* ---- gRPC's thread ---- */

static void on_message(void *user, struct rpc_call *rpc, const uint8_t *data, size_t bytes)
{
    struct call *c = user;
    if (c->asked) {
        rpc_call_finish(rpc, RPC_INVALID_ARGUMENT, "this method takes one message");
        return;
    }
    c->asked = true;
    c->source = malloc(sizeof *c->source + bytes);
    if (!c->source) {
        rpc_call_finish(rpc, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    c->source->bytes = bytes;
    if (bytes)
        memcpy(c->source->data, data, bytes);
    struct refusal r = { 0 };
    if (c->kind == KIND_GENERATE && grpc_read_again(c->source, &c->again, &r)) {
        rpc_call_finish(rpc, grpc_code(r.status), r.message);
        return;
    }
    loop_post(c->gateway->config.host->loop, call_begin, c);
}

static void on_half_close(void *user, struct rpc_call *rpc)
{
    const struct call *c = user;
    if (!c->asked)
        rpc_call_finish(rpc, RPC_INVALID_ARGUMENT, "the request is missing");
}

static void on_done(void *user, struct rpc_call *rpc, enum rpc_code code, const char *message)
{
    (void)rpc;
    (void)code;
    (void)message;
    struct call *c = user;
    loop_post(c->gateway->config.host->loop, call_gone, c);
}

static void on_open(void *service, struct rpc_call *rpc, struct rpc_handlers *handlers_out, void **user_out)
{
    struct service *s = service;
    struct call *c = calloc(1, sizeof *c);
    if (!c) {
        rpc_call_finish(rpc, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    c->gateway = s->gateway;
    c->kind = s->kind;
    c->rpc = rpc;
    rpc_call_ref(rpc);
    atomic_fetch_add(&s->gateway->refs, 1);
    *handlers_out =
        (struct rpc_handlers){ .on_message = on_message, .on_half_close = on_half_close, .on_done = on_done };
    *user_out = c;
}

/* ---- the face ---- */

/* Health is asked for by whoever runs the cluster; reflection tells what anybody may read. */
static const char *admit(void *ctx, const char *path, const char *authorization)
{
    static const char *const open[] = { "/grpc.health.", "/grpc.reflection." };
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (!strncmp(path, open[i], strlen(open[i])))
            return "";
    return keys_tenant(ctx, authorization);
}

enum status grpc_gateway_start(const struct grpc_config *config, struct grpc_gateway **gateway_out, struct error *err)
{
    static const char *const paths[KINDS] = {
        [KIND_GENERATE] = "/longspan.v1.Inference/Generate", [KIND_STATUS] = "/longspan.v1.Cluster/Status",
        [KIND_DRAIN] = "/longspan.v1.Cluster/Drain",         [KIND_REBALANCE] = "/longspan.v1.Cluster/Rebalance",
        [KIND_CHECK] = "/grpc.health.v1.Health/Check",       [KIND_WATCH] = "/grpc.health.v1.Health/Watch"
    };
    const size_t n_more = config->config->n_methods;
    struct grpc_gateway *g = calloc(1, sizeof *g);
    if (g)
        g->methods = calloc(METHODS + n_more, sizeof *g->methods);
    if (!g || !g->methods) {
        free(g);
        return error_set(err, ST_NO_MEMORY, "grpc: out of memory");
    }
    g->config = *config;
    g->generates =
        (struct grpc_generates){ .config = config->config, .host = config->host, .resumes = config->resumes };
    atomic_init(&g->refs, 1);
    for (int i = 0; i < KINDS; i++) {
        g->services[i] = (struct service){ g, (enum kind)i };
        g->methods[i] = (struct rpc_method){ paths[i], &g->services[i], on_open };
    }
    memcpy(g->methods + KINDS, grpc_reflection_methods, sizeof grpc_reflection_methods);
    if (n_more)
        memcpy(g->methods + METHODS, config->config->methods, n_more * sizeof *g->methods);
    const size_t body = config->config->body_bytes_max;
    const struct rpc_server_config server = { .address = config->config->grpc,
                                              .message_bytes_max = body ? body : 64 << 20,
                                              .tls = config->config->tls,
                                              .admit = config->config->keys ? admit : NULL,
                                              .admit_ctx = (void *)(uintptr_t)config->config->keys };
    const enum status st = rpc_server_start(&server, g->methods, METHODS + n_more, &g->server, err);
    if (st) {
        gateway_unref(g);
        return st;
    }
    *gateway_out = g;
    return ST_OK;
}

enum status grpc_gateway_tls(struct grpc_gateway *g, const struct tls *tls)
{
    return rpc_server_tls(g->server, tls);
}

uint16_t grpc_gateway_port(const struct grpc_gateway *g)
{
    return rpc_server_port(g->server);
}

uint32_t grpc_gateway_open(const struct grpc_gateway *g)
{
    return g->n_open;
}

void grpc_gateway_ready(struct grpc_gateway *g, bool ready)
{
    if (g->ready == ready)
        return;
    g->ready = ready;
    for (struct call *c = g->first, *next; c; c = next) {
        next = c->next;
        if (c->kind == KIND_WATCH && !c->unknown)
            health_send(c);
    }
}

void grpc_gateway_free(struct grpc_gateway *g)
{
    if (!g)
        return;
    g->closed = g->generates.closed = true;
    while (g->generates.named)
        grpc_generate_end(g->generates.named, RPC_UNAVAILABLE, "the server is shutting down");
    for (struct call *c = g->first, *next; c; c = next) {
        next = c->next;
        if (c->generate)
            grpc_generate_end(c->generate, RPC_UNAVAILABLE, "the server is shutting down");
        call_end(c, RPC_UNAVAILABLE, "the server is shutting down"); /* nothing, if it has ended */
    }
    rpc_server_stop(g->server, STOP_GRACE_MS);
    g->server = NULL;
    gateway_unref(g);
}
