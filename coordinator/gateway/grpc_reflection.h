#ifndef LONGSPAN_COORDINATOR_GATEWAY_GRPC_REFLECTION_H
#define LONGSPAN_COORDINATOR_GATEWAY_GRPC_REFLECTION_H

/* grpc.reflection.v1 and v1alpha ServerReflection over the descriptors that the build made. Answers on gRPC's thread: nothing of ours is touched. */

#include <stddef.h>
#include <stdint.h>

#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GRPC_REFLECTION_METHODS = 2 };
extern const struct rpc_method grpc_reflection_methods[GRPC_REFLECTION_METHODS];

/* The answer to one request, which may be anything: packed, malloc'd. NULL: malformed, or out of memory. */
uint8_t *grpc_reflection_answer(const uint8_t *request, size_t bytes, size_t *bytes_out);

#ifdef __cplusplus
}
#endif
#endif
