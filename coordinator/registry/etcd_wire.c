#define _GNU_SOURCE
#include "coordinator/registry/etcd_wire.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"

enum {
    MESSAGE_BYTES_MAX = 64 << 20, /* a page of a list: PAGE keys with values of REGISTRY_VALUE_MAX */
    KEEPALIVE_MS = 10000,         /* etcd refuses pings more often than every 5 s */
    ADDRESS_MAX = 256,
};

/* What gRPC's thread leaves for the loop's. */
struct arrival {
    struct arrival *next;
    struct etcd_call *call;
    bool end;
    enum rpc_code code;
    size_t bytes;
    uint8_t data[]; /* a message, or the text of the end */
};

struct member {
    char address[ADDRESS_MAX];
    struct rpc_channel *channel;
};

struct etcd_net {
    struct loop *loop;
    void (*moved)(void *ctx);
    void *ctx;
    struct member members[ETCD_MEMBERS_MAX];
    uint32_t n_members, current;
    bool closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct arrival *first, **last; /* under the lock, as is refs: the owner's and one for each post */
    uint32_t refs;
};

/* Lives until its end was taken from the queue. */
struct etcd_call {
    struct etcd_net *net;
    uint32_t member;
    struct rpc_call *rpc;
    bool stream;       /* without a deadline: it would not end by itself */
    etcd_reply_fn *fn; /* NULL: dropped */
    void *ctx;
};

static void net_unref(struct etcd_net *net)
{
    pthread_mutex_lock(&net->lock);
    const uint32_t refs = --net->refs;
    pthread_mutex_unlock(&net->lock);
    if (refs)
        return;
    pthread_cond_destroy(&net->changed);
    pthread_mutex_destroy(&net->lock);
    free(net);
}

/* ---- loop thread ---- */

static void arrival_tell(const struct arrival *a)
{
    struct etcd_call *call = a->call;
    if (call->fn) {
        const struct etcd_reply reply = { .data = a->end ? NULL : a->data,
                                          .bytes = a->end ? 0 : a->bytes,
                                          .code = a->code,
                                          .text = a->end ? (const char *)a->data : "" };
        call->fn(call->ctx, &reply);
    }
    if (a->end) {
        rpc_call_unref(call->rpc);
        free(call);
    }
}

static void arrivals_tell(struct etcd_net *net)
{
    for (;;) {
        pthread_mutex_lock(&net->lock);
        struct arrival *a = net->first;
        if (a && !(net->first = a->next))
            net->last = &net->first;
        pthread_mutex_unlock(&net->lock);
        if (!a)
            return;
        arrival_tell(a);
        free(a);
    }
}

/* May come after close, and then finds nothing. */
static void on_arrivals(void *arg)
{
    struct etcd_net *net = arg;
    arrivals_tell(net);
    net_unref(net);
}

bool etcd_net_wait(struct etcd_net *net, int64_t until_ms)
{
    const struct timespec at = { .tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000 };
    bool in_time = true;
    pthread_mutex_lock(&net->lock);
    while (!net->first && in_time)
        in_time = pthread_cond_timedwait(&net->changed, &net->lock, &at) != ETIMEDOUT;
    pthread_mutex_unlock(&net->lock);
    arrivals_tell(net);
    return in_time;
}

/* ---- gRPC's threads ---- */

static void arrive(struct etcd_call *call, bool end, enum rpc_code code, const void *data, size_t bytes)
{
    struct etcd_net *net = call->net;
    struct arrival *a = malloc(sizeof *a + bytes + 1);
    if (!a) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    a->next = NULL;
    a->call = call;
    a->end = end;
    a->code = code;
    a->bytes = bytes;
    if (bytes)
        memcpy(a->data, data, bytes);
    a->data[bytes] = 0;
    pthread_mutex_lock(&net->lock);
    *net->last = a;
    net->last = &a->next;
    net->refs++;
    pthread_cond_signal(&net->changed);
    pthread_mutex_unlock(&net->lock);
    loop_post(net->loop, on_arrivals, net);
}

static void on_message(void *user, struct rpc_call *rpc, const uint8_t *data, size_t bytes)
{
    (void)rpc;
    arrive(user, false, RPC_OK, data, bytes);
}

static void on_done(void *user, struct rpc_call *rpc, enum rpc_code code, const char *message)
{
    (void)rpc;
    arrive(user, true, code, message, strlen(message));
}

/* ---- calls ---- */

struct etcd_call *etcd_call_start(struct etcd_net *net, const char *path, uint32_t deadline_ms, const uint8_t *data,
                                  size_t bytes, etcd_reply_fn *fn, void *ctx)
{
    static const struct rpc_handlers handlers = { .on_message = on_message, .on_done = on_done };
    struct etcd_call *call = net->closing ? NULL : calloc(1, sizeof *call);
    if (!call)
        return NULL;
    *call = (struct etcd_call){ .net = net, .member = net->current, .stream = !deadline_ms, .fn = fn, .ctx = ctx };
    /* call->rpc is written here and read on this thread only */
    if (rpc_call_start(net->members[net->current].channel, path, deadline_ms, false, &handlers, call, &call->rpc)) {
        free(call);
        return NULL;
    }
    rpc_call_send(call->rpc, data, bytes);
    if (deadline_ms)
        rpc_call_half_close(call->rpc);
    return call;
}

void etcd_call_drop(struct etcd_call *call)
{
    if (!call)
        return;
    call->fn = NULL;
    if (call->stream)
        rpc_call_cancel(call->rpc);
}

void etcd_call_blame(struct etcd_call *call, const char *why)
{
    struct etcd_net *net = call->net;
    if (net->closing || net->n_members < 2 || call->member != net->current)
        return;
    net->current = (net->current + 1) % net->n_members;
    log_info("registry: etcd %s: %s; asking %s", net->members[call->member].address, why,
             net->members[net->current].address);
    net->moved(net->ctx);
}

bool etcd_code_passes(enum rpc_code code)
{
    return code == RPC_UNAVAILABLE || code == RPC_DEADLINE_EXCEEDED || code == RPC_RESOURCE_EXHAUSTED ||
           code == RPC_CANCELLED || code == RPC_INTERNAL || code == RPC_UNKNOWN;
}

/* ---- the net ---- */

static enum status member_add(struct etcd_net *net, const char *address, size_t n, const struct tls *tls,
                              struct error *err)
{
    struct member *m = &net->members[net->n_members];
    char *end;
    if (net->n_members == ETCD_MEMBERS_MAX)
        return error_set(err, ST_INVALID, "registry etcd: more than %d addresses", ETCD_MEMBERS_MAX);
    if (n < ADDRESS_MAX)
        memcpy(m->address, address, n);
    const char *colon = n < ADDRESS_MAX ? strrchr(m->address, ':') : NULL;
    const bool digits = colon && colon[1] >= '0' && colon[1] <= '9';
    const long port = digits ? strtol(colon + 1, &end, 10) : 0;
    if (port < 1 || port > 65535 || *end || colon == m->address)
        return error_set(err, ST_INVALID, "registry etcd: '%.*s' is no HOST:PORT", (int)(n < 200 ? n : 200), address);
    const struct rpc_channel_config config = {
        .target = m->address, .message_bytes_max = MESSAGE_BYTES_MAX, .keepalive_ms = KEEPALIVE_MS, .tls = tls
    };
    const enum status st = rpc_channel_open(&config, &m->channel, err);
    if (!st)
        net->n_members++;
    return st;
}

enum status etcd_net_open(const char *addresses, const struct tls *tls, struct loop *loop, void (*moved)(void *ctx),
                          void *ctx, struct etcd_net **net_out, struct error *err)
{
    struct etcd_net *net = calloc(1, sizeof *net);
    if (!net)
        return error_set(err, ST_NO_MEMORY, "registry: out of memory");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&net->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&net->lock, NULL);
    net->loop = loop;
    net->moved = moved;
    net->ctx = ctx;
    net->last = &net->first;
    net->refs = 1;
    enum status st = ST_OK;
    for (const char *at = addresses, *end; !st; at = end + 1) {
        end = strchrnul(at, ',');
        st = member_add(net, at, (size_t)(end - at), tls, err);
        if (!*end)
            break;
    }
    if (st) {
        etcd_net_close(net);
        return st;
    }
    *net_out = net;
    return ST_OK;
}

void etcd_net_close(struct etcd_net *net)
{
    if (!net)
        return;
    net->closing = true;
    for (uint32_t i = 0; i < net->n_members; i++)
        rpc_channel_close(net->members[i].channel); /* the ends of its calls are in the queue then */
    for (struct arrival *a = net->first; a; a = a->next)
        a->call->fn = NULL;
    arrivals_tell(net);
    net_unref(net);
}
