#include "client/remote.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/settings.h"
#include "common/file.h"
#include "proto/rpc.h"

enum { MESSAGE_BYTES_MAX = 1 << 30, WAIT_MS = 100, SERVERS_MAX = 16 };

struct remote {
    char *addresses; /* as they were given, but with NULs for commas */
    struct server {
        struct rpc_channel *channel;
        const char *address;
    } servers[SERVERS_MAX];
    uint32_t n, at; /* at: who is called */
    uint32_t retry_ms;
};

/* Of the file that is named, or the environment; *key_out: NULL: none; freed with free(). */
static enum status key_read(const struct settings *s, char **key_out, struct error *err)
{
    const char *set = getenv("LONGSPAN_API_KEY");
    size_t bytes;
    enum status st = ST_OK;
    *key_out = NULL;
    if (s->api_key_file[0])
        st = file_read(s->api_key_file, 4096, key_out, &bytes, err);
    else if (set && *set && !(*key_out = strdup(set)))
        st = error_set(err, ST_NO_MEMORY, "no memory");
    if (*key_out)
        (*key_out)[strcspn(*key_out, "\r\n")] = 0;
    return st;
}

static enum status servers_open(struct remote *r, const struct tls *tls, const char *key, struct error *err)
{
    char *rest = r->addresses;
    for (char *address; (address = strsep(&rest, ","));) {
        struct server *server = &r->servers[r->n];
        if (r->n == SERVERS_MAX)
            return error_set(err, ST_INVALID, "grpc: more than %d addresses", SERVERS_MAX);
        server->address = address;
        const struct rpc_channel_config config = {
            .target = address, .message_bytes_max = MESSAGE_BYTES_MAX, .tls = tls, .key = key
        };
        const enum status st = rpc_channel_open(&config, &server->channel, err);
        if (st)
            return st;
        r->n++;
    }
    return ST_OK;
}

enum status remote_open(const char *address, const struct settings *s, struct remote **remote_out, struct error *err)
{
    struct remote *r = calloc(1, sizeof *r);
    if (!r || !(r->addresses = strdup(address))) {
        free(r);
        return error_set(err, ST_NO_MEMORY, "no memory");
    }
    r->retry_ms = s->retry_ms;
    struct tls *tls = NULL;
    char *key = NULL;
    const struct tls_files files = { s->tls_ca, s->tls_cert, s->tls_key };
    enum status st = s->tls_ca[0] ? tls_load("tls", &files, false, &tls, err) : ST_OK;
    if (!st)
        st = key_read(s, &key, err);
    if (!st)
        st = servers_open(r, tls, key, err);
    tls_free(tls); /* gRPC has copies */
    free(key);
    if (st) {
        remote_close(r);
        return st;
    }
    *remote_out = r;
    return ST_OK;
}

void remote_close(struct remote *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->n; i++)
        rpc_channel_close(r->servers[i].channel);
    free(r->addresses);
    free(r);
}

uint32_t remote_servers(const struct remote *r)
{
    return r->n;
}

uint32_t remote_retry_ms(const struct remote *r)
{
    return r->retry_ms;
}

/* Who is not there, or does not lead, is left for the next. */
static void next_after(struct remote *r, enum rpc_code code)
{
    if (code == RPC_UNAVAILABLE)
        r->at = (r->at + 1) % r->n;
}

/* At the first that serves. */
static enum status unary(struct remote *r, const char *path, uint32_t deadline_ms, const uint8_t *request, size_t n,
                         uint8_t **reply_out, size_t *bytes_out, enum rpc_code *code_out, struct error *err)
{
    enum rpc_code code = RPC_OK;
    enum status st = ST_OK;
    for (uint32_t i = 0; i < r->n; i++) {
        st = rpc_call_unary(r->servers[r->at].channel, path, deadline_ms, request, n, reply_out, bytes_out, &code, err);
        if (!st || code != RPC_UNAVAILABLE)
            break;
        next_after(r, code);
    }
    if (code_out)
        *code_out = code;
    return st;
}

enum status remote_status(struct remote *r, uint32_t deadline_ms, Longspan__V1__StatusResponse **status_out,
                          struct error *err)
{
    uint8_t *reply;
    size_t bytes;
    const enum status st =
        unary(r, "/longspan.v1.Cluster/Status", deadline_ms, (const uint8_t *)"", 0, &reply, &bytes, NULL, err);
    if (st)
        return st;
    *status_out = longspan__v1__status_response__unpack(NULL, bytes, reply);
    free(reply);
    return *status_out ? ST_OK : error_set(err, ST_PROTOCOL, "%s: malformed status", r->servers[r->at].address);
}

/* ---- streams: messages cross from gRPC's thread to the caller's in a queue ---- */

struct received {
    struct received *next;
    size_t bytes;
    uint8_t data[];
};

struct stream {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct received *first, **last;
    bool done;
    enum rpc_code code;
    char message[400];
    const char *address;
};

static void on_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    struct stream *s = user;
    struct received *m = malloc(sizeof *m + bytes);
    if (!m) {
        rpc_call_cancel(call);
        return;
    }
    m->next = NULL;
    m->bytes = bytes;
    memcpy(m->data, data, bytes);
    pthread_mutex_lock(&s->lock);
    *s->last = m;
    s->last = &m->next;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void on_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    struct stream *s = user;
    (void)call;
    pthread_mutex_lock(&s->lock);
    s->done = true;
    s->code = code;
    snprintf(s->message, sizeof s->message, "%s", message ? message : "");
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* The next message, or NULL after WAIT_MS or at the end. */
static struct received *take(struct stream *s, bool *ended)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)WAIT_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->lock);
    if (!s->first && !s->done)
        pthread_cond_timedwait(&s->changed, &s->lock, &until);
    struct received *m = s->first;
    if (m) {
        s->first = m->next;
        if (!s->first)
            s->last = &s->first;
    }
    *ended = !m && s->done;
    pthread_mutex_unlock(&s->lock);
    return m;
}

static enum status follow(struct stream *s, struct rpc_call *call, const struct remote_stream *events,
                          struct error *err)
{
    bool ended = false, cancelled = false;
    while (!ended) {
        struct received *m = take(s, &ended);
        if (m && !cancelled) {
            cancelled = !events->on_message(events->ctx, m->data, m->bytes);
            if (cancelled)
                rpc_call_cancel(call);
        }
        free(m);
        if (!cancelled && events->interrupted && events->interrupted(events->ctx)) {
            cancelled = true;
            rpc_call_cancel(call);
        }
    }
    if (cancelled)
        return error_set(err, ST_CANCELLED, "cancelled");
    return s->code == RPC_OK ? ST_OK
                             : error_set(err, ST_PEER, "%s: %s (gRPC status %d)", s->address, s->message, (int)s->code);
}

static uint8_t *pack(const ProtobufCMessage *m, size_t *bytes_out)
{
    *bytes_out = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = malloc(*bytes_out + 1);
    if (packed)
        protobuf_c_message_pack(m, packed);
    return packed;
}

enum status remote_stream(struct remote *r, const char *path, const ProtobufCMessage *request,
                          const struct remote_stream *events, enum rpc_code *code_out, struct error *err)
{
    size_t bytes;
    uint8_t *packed = pack(request, &bytes);
    const struct server *server = &r->servers[r->at];
    struct stream s = { .lock = PTHREAD_MUTEX_INITIALIZER,
                        .changed = PTHREAD_COND_INITIALIZER,
                        .address = server->address };
    const struct rpc_handlers handlers = { .on_message = on_message, .on_done = on_done };
    struct rpc_call *call;
    s.last = &s.first;
    if (!packed)
        return error_set(err, ST_NO_MEMORY, "no memory");
    enum status st = rpc_call_start(server->channel, path, 0, false, &handlers, &s, &call);
    if (st) {
        free(packed);
        return error_set(err, st, "%s: %s", server->address, status_text(st));
    }
    rpc_call_send(call, packed, bytes);
    free(packed);
    rpc_call_half_close(call);
    st = follow(&s, call, events, err);
    next_after(r, st == ST_PEER ? s.code : RPC_OK);
    if (code_out)
        *code_out = s.code;
    rpc_call_unref(call);
    return st;
}

enum status remote_unary(struct remote *r, const char *path, uint32_t deadline_ms, const ProtobufCMessage *request,
                         uint8_t **reply_out, size_t *bytes_out, enum rpc_code *code_out, struct error *err)
{
    size_t bytes;
    uint8_t *packed = pack(request, &bytes);
    if (!packed)
        return error_set(err, ST_NO_MEMORY, "no memory");
    const enum status st = unary(r, path, deadline_ms, packed, bytes, reply_out, bytes_out, code_out, err);
    free(packed);
    return st;
}
