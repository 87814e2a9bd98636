#ifndef LONGSPAN_CLIENT_REMOTE_H
#define LONGSPAN_CLIENT_REMOTE_H

/* Calls to a cluster over gRPC, waiting for their answers: what the commands of the program are made of. */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "proto/longspan.pb-c.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct remote;
struct settings;
/* address: HOST:PORT, or several with commas, of whom the first that serves is called, until it does not. s: its tls-ca, tls-cert, tls-key, api-key-file, retry-ms */
enum status remote_open(const char *address, const struct settings *s, struct remote **remote_out, struct error *err);
void remote_close(struct remote *r);
/* How many addresses it has; for how long a lost answer is asked for again. */
uint32_t remote_servers(const struct remote *r);
uint32_t remote_retry_ms(const struct remote *r);

/* The answer is freed by longspan__v1__status_response__free_unpacked(., NULL). */
enum status remote_status(struct remote *r, uint32_t deadline_ms, Longspan__V1__StatusResponse **status_out,
                          struct error *err);

/*
 * Generates. on_response: each message, on the calling thread, in order; false: cancel. interrupted: looked at every 100 ms; true: cancel.
 * ST_CANCELLED, ST_PEER (the code and message in err). Where the connection is lost or another coordinator is to lead, the answer is asked for again for retry-ms, and goes on
 * behind the last message; but with logits, or at a server that keeps no answers, it ends.
 */
struct remote_events {
    bool (*on_response)(void *ctx, const Longspan__V1__GenerateResponse *response);
    bool (*interrupted)(void *ctx);
    void *ctx;
};
enum status remote_generate(struct remote *r, const Longspan__V1__GenerateRequest *request,
                            const struct remote_events *events, struct error *err);

/* Any unary method: request there, reply back (malloc'd). code_out: the gRPC status, also of what failed (ST_PEER); may be NULL. */
enum status remote_unary(struct remote *r, const char *path, uint32_t deadline_ms, const ProtobufCMessage *request,
                         uint8_t **reply_out, size_t *bytes_out, enum rpc_code *code_out, struct error *err);
/* Any method that streams: as remote_generate. */
struct remote_stream {
    bool (*on_message)(void *ctx, const uint8_t *data, size_t bytes);
    bool (*interrupted)(void *ctx);
    void *ctx;
};
enum status remote_stream(struct remote *r, const char *path, const ProtobufCMessage *request,
                          const struct remote_stream *events, enum rpc_code *code_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
