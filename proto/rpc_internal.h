#ifndef LONGSPAN_PROTO_RPC_INTERNAL_H
#define LONGSPAN_PROTO_RPC_INTERNAL_H

/*
 * What rpc.c, rpc_server.c and rpc_client.c share, and nobody else sees. An engine is one completion queue and the thread that waits on it:
 * all tags of a server or channel come back there, so callbacks of one engine never overlap. Every call into gRPC that hands over a tag goes
 * through here: for ThreadSanitizer, which does not see inside gRPC, the tag carries the happens-before edge.
 */

#include <pthread.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>

#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rpc_tag {
    void (*fn)(struct rpc_tag *tag, bool ok);
};

#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define RPC_TAG_RELEASE(tag) __tsan_release(tag)
#define RPC_TAG_ACQUIRE(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_RELEASE(tag) (void)(tag)
#define RPC_TAG_ACQUIRE(tag) (void)(tag)
#endif

struct rpc_engine {
    grpc_completion_queue *queue;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;   /* calls, n_calls, closing and the owner's own flags */
    pthread_cond_t changed; /* monotonic clock */
    struct rpc_call *calls;
    size_t n_calls;
    bool closing;
    grpc_metadata header; /* sent with each of its calls, if n_headers is 1 */
    size_t n_headers;
};

enum status rpc_engine_start(struct rpc_engine *e, const char *name); /* grpc_init first */
void rpc_engine_stop(
    struct rpc_engine *e); /* all calls are done, no tag is to come but by itself; then grpc_shutdown */

struct rpc_out {
    struct rpc_out *next;
    size_t bytes;
    grpc_slice slice;
};

struct rpc_call {
    unsigned refs; /* __atomic */
    struct rpc_engine *engine;
    struct rpc_call *prev, *next; /* engine->calls, under its lock */
    bool server, wait_ready;
    struct rpc_handlers handlers;
    void *user;
    int64_t deadline_at_ms; /* clock_ms(), or -1 */
    char *peer;             /* server: kept, as the call may be over when it is asked for */
    const char *identity;   /* server: who calls */

    pthread_mutex_t lock; /* all below, but what a batch in flight owns */
    grpc_call *call;      /* NULL: over */
    unsigned pending;     /* tags in flight */
    struct rpc_out *out_first, *out_last, *out_sending;
    size_t out_bytes;
    bool sending, initial_sent, end_wanted, end_sent, closed, received_all, done;
    enum rpc_code end_code;
    char *end_message;

    struct rpc_tag on_open, on_received, on_sent, on_closed;
    /* owned by batches in flight */
    grpc_byte_buffer *incoming;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice status_details;
    int cancelled;
};

/* call_out holds one reference, the engine's own, dropped after on_done. Takes core (one reference). ST_CANCELLED: the engine is closing. */
enum status rpc_call_new(struct rpc_engine *e, grpc_call *core, bool server, struct rpc_call **call_out);
/* Starts the batch that ends a call (status or close), and for clients the opening one. Before anything else. */
void rpc_call_arm(struct rpc_call *call);
/* Starts receiving; handlers are set. */
void rpc_call_receive(struct rpc_call *call);

/* Routes gRPC's own log to ours; once a process. */
void rpc_log_init(void);

#ifdef __cplusplus
}
#endif
#endif
