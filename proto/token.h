#ifndef LONGSPAN_PROTO_TOKEN_H
#define LONGSPAN_PROTO_TOKEN_H

/*
 * What a worker shows another with every message between the two, so that nobody else can send: 128 bits for an ordered pair of workers and a roster (the
 * list of members, counted by the coordinator). The receiver draws a secret for each life of its exchange and tells it to the coordinator, which tells each
 * member its tokens; so a receiver knows a token that it sees without having been told of the sender. Both ways go over the control stream.
 */

#include <stdint.h>

#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TOKEN_SECRET_BYTES = 32 };

/* The first 128 bits of a SHA-256 over the receiver's secret and what the token is for: random to all who lack the secret. */
struct digest token_of(const uint8_t secret[TOKEN_SECRET_BYTES], uint16_t sender, uint64_t roster);

#ifdef __cplusplus
}
#endif
#endif
