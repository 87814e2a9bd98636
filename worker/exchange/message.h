#ifndef LONGSPAN_WORKER_EXCHANGE_MESSAGE_H
#define LONGSPAN_WORKER_EXCHANGE_MESSAGE_H

/* What travels between exchanges, whatever the transport: a fixed header before each payload, and the address a peer is reached by. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/hash.h"
#include "worker/exchange/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

enum message_kind {
    MESSAGE_STEP,  /* asked for by its key */
    MESSAGE_BLOCK, /* a piece of a block, unasked; pieces of one block come in order */
    MESSAGE_BYE,   /* the sender has dropped the receiver; no payload */
    MESSAGE_HELLO, /* the sender has connected to the receiver again; no payload */
    MESSAGE_KINDS
};

/*
 * from and to are the random numbers of both exchanges' addresses: a message of an earlier life of a worker, or of somebody who was never
 * given the receiver's address, is told by them.
 */
struct message_header {
    uint8_t kind;    /* enum message_kind */
    uint16_t source; /* worker id */
    uint64_t from, to;
    uint32_t link; /* grows when a side connects anew */
    uint64_t payload_bytes;
    uint64_t roster;     /* of the token: */
    struct digest token; /* see proto/token.h */
    uint64_t
        sum; /* checksum64 of the payload; on the wire with the header's own, so that one finds flipped bits of both */
    union {
        struct {
            uint64_t epoch, plan;
            uint32_t group;
            uint16_t layer;
            uint8_t phase;
        } step;
        struct {
            uint64_t number, total, offset; /* number ascends by 1 from block to block */
        } block;
    };
};

enum { MESSAGE_HEADER_BYTES = 96 };

void message_header_write(const struct message_header *h, uint8_t out[MESSAGE_HEADER_BYTES]);
/*
 * header is bytes long, its payload payload_bytes: false unless all of it makes sense (magic, version, kind, phase, lengths, a piece within its
 * block).
 */
bool message_header_read(const void *header, size_t bytes, size_t payload_bytes, struct message_header *h_out);

/* A message with its payload, in memory of its own. */
struct message {
    struct message *next;
    struct message_header header; /* of a block that comes in pieces: payload_bytes is that of the whole */
    size_t capacity;
    /* for transports, while it is on its way: */
    struct message **back;
    void *owner;
    size_t slot;
    uint8_t wire[MESSAGE_HEADER_BYTES];
    _Alignas(64) uint8_t payload[];
};

/* Room for capacity bytes of payload; NULL: no memory. */
struct message *message_new(size_t capacity);
void message_free(struct message *m);
const char *message_phase_text(uint8_t phase);

/* ---- addresses ---- */

struct peer_address {
    uint16_t id;
    uint64_t instance;
    struct digest host;        /* equal: both can share memory */
    const uint8_t *full, *net; /* ucx: worker address with all lanes, with those between hosts only; NULL if none */
    size_t full_bytes, net_bytes;
};

/* 0: longer than EXCHANGE_ADDRESS_MAX */
size_t peer_address_write(const struct peer_address *a, uint8_t out[EXCHANGE_ADDRESS_MAX]);
/* a_out points into data. ST_PROTOCOL names what is wrong. */
enum status peer_address_read(const uint8_t *data, size_t bytes, struct peer_address *a_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
