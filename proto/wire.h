#ifndef LONGSPAN_PROTO_WIRE_H
#define LONGSPAN_PROTO_WIRE_H

/*
 * What plans, results and control messages share, and nobody else sees: memory for one pass of encoding or decoding, and the two halves of putting a decoded
 * message into one allocation: its size, then its parts.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "common/error.h"
#include "proto/control.pb-c.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Bump allocator: nothing is freed but all at once. The first WIRE_FIRST bytes lie in the struct itself (on the stack), more comes in chunks. It gives
 * at most `left` bytes, so that a short hostile message cannot ask for much memory.
 */
enum { WIRE_FIRST = 24 * 1024 };
struct wire_chunk;
struct wire_arena {
    struct wire_chunk *chunks;
    uint8_t *at, *end;
    size_t left;
    ProtobufCAllocator allocator; /* for unpacking */
    uint8_t first[WIRE_FIRST] __attribute__((aligned(16)));
};
void wire_arena_init(struct wire_arena *a, size_t bytes_max);
void wire_arena_deinit(struct wire_arena *a);
/* 16-byte aligned, not zeroed; NULL: no memory, or over the limit. bytes may be 0. */
void *wire_take(struct wire_arena *a, size_t bytes);
/* What unpacking n bytes may take: packed numbers of one byte become eight. */
size_t wire_unpack_max(size_t n);

/* The size of an allocation with aligned parts, then the parts in the same order. */
struct wire_size {
    size_t bytes;
    bool bad; /* overflow */
};
void wire_size_add(struct wire_size *s, size_t n, size_t item);
struct wire_room {
    uint8_t *at;
};
void *wire_room_take(struct wire_room *r, size_t n, size_t item);

/* Valid UTF-8 of at most bytes_max bytes; refuses with the field's name. */
enum status wire_text(const char *text, size_t bytes_max, const char *field, struct error *err);

/* Packs into malloc'd memory. */
enum status wire_pack(const ProtobufCMessage *message, uint8_t **bytes_out, size_t *n_out);

/* Plans and results, which are messages too. to_wire: the columns live in the arena. check before size, size before fill. */
enum status plan_to_wire(const struct plan *plan, struct wire_arena *arena, Longspan__V1__ControlPlan *wire_out);
enum status plan_wire_check(const Longspan__V1__ControlPlan *wire, struct wire_arena *arena, struct error *err);
void plan_wire_size(const Longspan__V1__ControlPlan *wire, struct wire_size *size);
struct plan *plan_wire_fill(const Longspan__V1__ControlPlan *wire, struct wire_room *room);
enum status result_to_wire(const struct result *result, struct wire_arena *arena,
                           Longspan__V1__ControlResult *wire_out);
enum status result_wire_check(const Longspan__V1__ControlResult *wire, struct error *err);
void result_wire_size(const Longspan__V1__ControlResult *wire, struct wire_size *size);
struct result *result_wire_fill(const Longspan__V1__ControlResult *wire, struct wire_room *room);

/* Messages: what control_decode promises, plans and results included. */
enum { WIRE_REASON_MAX = 1023 }; /* bytes of an abort's reason */
enum status control_wire_check(const Longspan__V1__ControlMessage *wire, struct wire_arena *arena, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
