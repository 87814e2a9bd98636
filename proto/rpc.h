#ifndef LONGSPAN_PROTO_RPC_H
#define LONGSPAN_PROTO_RPC_H

/*
 * The one wrapper around gRPC's C core: byte messages over unary, server-streaming and bidirectional calls. One thread a server or channel
 * waits on its queue and makes all callbacks; callbacks must not block: they parse and post to the owner's loop.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* gRPC status codes that we use. */
enum rpc_code {
    RPC_OK = 0,
    RPC_CANCELLED = 1,
    RPC_UNKNOWN = 2,
    RPC_INVALID_ARGUMENT = 3,
    RPC_DEADLINE_EXCEEDED = 4,
    RPC_NOT_FOUND = 5,
    RPC_ALREADY_EXISTS = 6,
    RPC_PERMISSION_DENIED = 7,
    RPC_RESOURCE_EXHAUSTED = 8,
    RPC_FAILED_PRECONDITION = 9,
    RPC_ABORTED = 10,
    RPC_OUT_OF_RANGE = 11,
    RPC_UNIMPLEMENTED = 12,
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,
    RPC_UNAUTHENTICATED = 16
};

/* One call, either side. Counted: callbacks hold it for their duration; whoever keeps it takes a reference. */
struct rpc_call;
void rpc_call_ref(struct rpc_call *call);
void rpc_call_unref(struct rpc_call *call);

struct rpc_handlers {
    /* A message came; borrowed. Never called after on_done. */
    void (*on_message)(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes);
    /* The other side will send no more (server: half-close; not called on clients). May be NULL. */
    void (*on_half_close)(void *user, struct rpc_call *call);
    /* Last callback, exactly once. Client: the status. Server: RPC_OK if it was finished by rpc_call_finish and delivered, RPC_CANCELLED if the
       client went away, cancelled or its deadline passed. */
    void (*on_done)(void *user, struct rpc_call *call, enum rpc_code code, const char *message);
};

/*
 * Queues a message; copied. Any thread, in order. Returns the bytes queued and not yet taken by gRPC (this one included), so that the caller can bound
 * it; 0 if the call has ended (the message is dropped).
 */
size_t rpc_call_send(struct rpc_call *call, const uint8_t *data, size_t bytes);
/* Server: ends the call after what was queued. Client: rpc_call_half_close says that no more messages follow. Any thread; later calls do nothing. */
void rpc_call_finish(struct rpc_call *call, enum rpc_code code, const char *message);
void rpc_call_half_close(struct rpc_call *call);
/* Ends it now, both sides. on_done still comes. Any thread. */
void rpc_call_cancel(struct rpc_call *call);
/* Milliseconds until the client's deadline, or -1 if it set none. Server side. */
int64_t rpc_call_deadline_ms(const struct rpc_call *call);
/* Who calls, as rpc_server_config.admit said, or NULL. Server side. */
const char *rpc_call_identity(const struct rpc_call *call);
/* "ipv4:127.0.0.1:4242"; to be freed with free(). */
char *rpc_call_peer(struct rpc_call *call);

/* ---- server ---- */

/* A method by path ("/longspan.v1.Inference/Generate"). open: a call came; say who handles it. service is the table's own pointer. */
struct rpc_method {
    const char *path;
    void *service;
    void (*open)(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out);
};

struct rpc_server_config {
    const char *address;      /* "127.0.0.1:9090", port 0: any */
    size_t message_bytes_max; /* received; larger: RESOURCE_EXHAUSTED */
    uint32_t keepalive_ms;    /* 0: gRPC's default; else pings after so long, and time-out after as long */
    const struct tls *tls;    /* NULL: in clear. With a ca: clients must show a certificate that it signed */
    /* Who calls path with that "authorization" (or NULL): a name that lasts as long as the server, or NULL, and the call ends UNAUTHENTICATED. gRPC's
       thread. NULL: everybody may call, as nobody in particular. */
    const char *(*admit)(void *ctx, const char *path, const char *authorization);
    void *admit_ctx;
    size_t
        lookahead_bytes; /* that a call may send before it is read; 0: 64 KiB. Large messages come in so many rounds */
};
struct rpc_server;
/* methods: kept. Unknown paths get UNIMPLEMENTED. ST_IO: the address cannot be bound (no reuse of a busy port). */
enum status rpc_server_start(const struct rpc_server_config *config, const struct rpc_method *methods, size_t n_methods,
                             struct rpc_server **server_out, struct error *err);
uint16_t rpc_server_port(const struct rpc_server *server);
/* Connections from now on are made with these (copied), those that are there stay. The server was started with TLS, and with a ca if these have one. ST_NO_MEMORY. */
enum status rpc_server_tls(struct rpc_server *server, const struct tls *tls);
/* Refuses new calls, gives running ones grace_ms, cancels the rest, waits for all on_done. */
void rpc_server_stop(struct rpc_server *server, uint32_t grace_ms);

/* ---- client ---- */

struct rpc_channel;
struct rpc_channel_config {
    const char *target; /* "127.0.0.1:9090" */
    size_t message_bytes_max;
    uint32_t keepalive_ms;
    const struct tls *tls; /* NULL: in clear. Without a ca: what the host trusts */
    const char
        *key; /* shown with every call ("authorization: Bearer KEY"); NULL: none. Printable ASCII, else ST_INVALID */
};
/* Never uses a proxy. Reconnects by itself (100 ms to 1 s); keeps a connectivity watch outstanding. */
enum status rpc_channel_open(const struct rpc_channel_config *config, struct rpc_channel **channel_out,
                             struct error *err);
/* Cancels its calls and waits for their on_done, and for an attempt to connect (a second at most). Not from a callback. */
void rpc_channel_close(struct rpc_channel *channel);
/* deadline_ms 0: none. The call is returned with a reference of the caller's. handlers: copied. wait_ready: queue until connected. */
enum status rpc_call_start(struct rpc_channel *channel, const char *path, uint32_t deadline_ms, bool wait_ready,
                           const struct rpc_handlers *handlers, void *user, struct rpc_call **call_out);
/* One message there, one back, waiting; not from a callback. reply_out: malloc'd. On another status than OK: ST_PEER, the code and message in err. */
enum status rpc_call_unary(struct rpc_channel *channel, const char *path, uint32_t deadline_ms, const uint8_t *data,
                           size_t bytes, uint8_t **reply_out, size_t *reply_bytes_out, enum rpc_code *code_out,
                           struct error *err);

#ifdef __cplusplus
}
#endif
#endif
