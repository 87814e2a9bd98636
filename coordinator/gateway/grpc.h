#ifndef LONGSPAN_COORDINATOR_GATEWAY_GRPC_H
#define LONGSPAN_COORDINATOR_GATEWAY_GRPC_H

/*
 * The gRPC services: longspan.v1.Inference, longspan.v1.Cluster, grpc.health.v1.Health. Calls come on gRPC's thread and are posted to the
 * loop, which owns everything here.
 */

#include "coordinator/gateway.h"
#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/resume.h"

#ifdef __cplusplus
extern "C" {
#endif

struct grpc_config {
    const struct gateway_config *config; /* kept */
    struct generation_host *host;        /* kept */
    struct resumes *resumes;             /* answers that can be taken up again; NULL: none can; kept */
    bool (*ready)(void *ctx);
    void *ctx;
};

struct grpc_gateway;
enum status grpc_gateway_start(const struct grpc_config *config, struct grpc_gateway **gateway_out, struct error *err);
/* As rpc_server_tls. */
enum status grpc_gateway_tls(struct grpc_gateway *g, const struct tls *tls);
uint16_t grpc_gateway_port(const struct grpc_gateway *g);
/* Calls of Generate and Status not yet ended. */
uint32_t grpc_gateway_open(const struct grpc_gateway *g);
/* Tells those who watch our health, if it changed. */
void grpc_gateway_ready(struct grpc_gateway *g, bool ready);
/* Ends what is open and waits until gRPC is done with it. Accepts NULL. */
void grpc_gateway_free(struct grpc_gateway *g);

#ifdef __cplusplus
}
#endif
#endif
