#ifndef LONGSPAN_COORDINATOR_GATEWAY_GRPC_GENERATE_H
#define LONGSPAN_COORDINATOR_GATEWAY_GRPC_GENERATE_H

/*
 * Calls of Inference/Generate. One with an idempotency_key has a name: its tokens are journaled, it goes on for a while without its client, and another call takes
 * it up again (resume.h). Loop thread.
 */

#include "coordinator/gateway/grpc_messages.h"

#ifdef __cplusplus
extern "C" {
#endif

struct grpc_generate;

/* Shared by all calls; plain data, filled by the gateway. */
struct grpc_generates {
    const struct gateway_config *config;
    struct generation_host *host;
    struct resumes *resumes;     /* NULL: no answer can be taken up again */
    struct grpc_generate *named; /* those with a key */
    bool closed;                 /* none goes on without its client any more */
};

/*
 * Begins the answer to rpc (borrowed until *slot is NULL), or finishes rpc with what is wrong. source, again (NULL: no key): taken. slot: kept; holds the answer
 * while it belongs to this call, NULL once rpc is finished.
 */
void grpc_generate_begin(struct grpc_generates *all, struct rpc_call *rpc, struct grpc_source *source,
                         struct grpc_again *again, struct grpc_generate **slot);
/* The client has gone, and rpc goes: the answer ends, or goes on until somebody takes it up or nobody has for too long. */
void grpc_generate_leave(struct grpc_generate *g);
/* Ends it, for whomever it is. */
void grpc_generate_end(struct grpc_generate *g, enum rpc_code code, const char *message);

/* Sends body, and frees it. false: there was no memory for it, or the client does not read and more than queued_max bytes wait: the call has ended. */
bool grpc_generate_send(struct rpc_call *rpc, struct text *body, size_t queued_max);

#ifdef __cplusplus
}
#endif
#endif
