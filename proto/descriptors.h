#ifndef LONGSPAN_PROTO_DESCRIPTORS_H
#define LONGSPAN_PROTO_DESCRIPTORS_H

/* What protoc says of the services for clients (longspan, health, reflection): a FileDescriptorSet, made at build time; for server reflection. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

extern const uint8_t proto_descriptors[];
extern const size_t proto_descriptors_bytes;

#ifdef __cplusplus
}
#endif
#endif
