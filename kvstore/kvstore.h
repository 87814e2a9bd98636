#ifndef LONGSPAN_KVSTORE_KVSTORE_H
#define LONGSPAN_KVSTORE_KVSTORE_H

/*
 * KV blocks of one worker: a fixed pool, found by handle, and their form on the wire. And the naming half that the coordinator shares:
 * content ids, leaves, slots.
 *
 * A block is PLAN_BLOCK (64) positions of one sequence: keys and values of all layers and KV heads. Payload of a block:
 *   [n_layers][n_kv_heads][keys part_bytes, values part_bytes]
 * The pool knows nothing of codecs beyond part_bytes. One thread (the step thread) makes all calls; kv_pool_stats may be called by any.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t kv_handle; /* as in proto/plan.h */

struct kv_layout {
    uint32_t n_layers, n_kv_heads;
    size_t part_bytes; /* of one KV head's keys in one layer, a multiple of 64; values take as many */
    uint32_t version;  /* of the payload's layout: codec and format; blocks of another version are refused */
};
/* Bytes of a block's payload; false on overflow or zero fields. */
bool kv_layout_block_bytes(const struct kv_layout *layout, size_t *bytes_out);

struct kv_pool;
/* Takes n_blocks * block_bytes of memory at once (huge pages where the system offers them); touched as it is used. */
enum status kv_pool_new(const struct kv_layout *layout, uint32_t n_blocks, struct kv_pool **pool_out,
                        struct error *err);
/*
 * The same in memory that the processor does not address (a GPU's). alloc: zeroed, or NULL. read, write: done when they return; false: failed. kept.
 * Payloads and open rows are not zeroed when their place is taken again; kv_pool_part's pointers are that memory's; kv_pool_export makes a copy, which the last
 * unpin frees.
 */
struct kv_memory_ops {
    void *(*alloc)(size_t bytes);
    void (*free)(void *p);
    bool (*read)(void *to, const void *from, size_t bytes);
    bool (*write)(void *to, const void *from, size_t bytes);
};
enum status kv_pool_new_in(const struct kv_layout *layout, uint32_t n_blocks, const struct kv_memory_ops *memory,
                           struct kv_pool **pool_out, struct error *err);
void kv_pool_free(struct kv_pool *pool);

/* The slot of a handle, or UINT32_MAX. */
uint32_t kv_pool_find(const struct kv_pool *pool, kv_handle handle);
/* The same, quickly if that is still `hint`; any value is one. */
uint32_t kv_pool_find_near(const struct kv_pool *pool, kv_handle handle, uint32_t hint);
/* The same, taking a free slot (payload zeroed: unwritten positions must be finite) if the handle is not here. ST_BUSY: the pool is full. */
enum status kv_pool_open(struct kv_pool *pool, kv_handle handle, uint32_t *slot_out);
/*
 * Frees it; nothing if it is not here. A pinned block is not found any more either, but keeps its slot and bytes until the last unpin; the same
 * handle opened meanwhile takes another slot.
 */
void kv_pool_drop(struct kv_pool *pool, kv_handle handle);
/* A transfer in flight reads it. */
void kv_pool_pin(struct kv_pool *pool, uint32_t slot);
void kv_pool_unpin(struct kv_pool *pool, uint32_t slot);

/* keys at the pointer, values part_bytes behind. */
void *kv_pool_part(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head);

/*
 * Wire form: a header (magic, layout version, handle, position of its first row / 64, content id, payload bytes, checksum64 a layer, checksum64 of the
 * header itself), then the payload, then what its marked parts spill, part behind part (it counts as payload, and as its layer's).
 * kv_pool_export: header into header_out (kv_header_bytes), parts_out: header, payload in place, and what spilled (may be empty: iov_len 0); pin the slot until
 * they are sent. Checksums are computed once a sealed block and kept (until kv_pool_open names it: who opens a block may write it). ST_NOT_FOUND, ST_NO_MEMORY,
 * ST_BUSY (other parts spilled when a copy left that still travels).
 * kv_pool_import: checks everything (ST_CORRUPT names the layer), then takes a slot; ST_EXISTS (kept as it is, the bytes compare equal by checksum;
 * if they do not, ST_CORRUPT), ST_BUSY. position_out: the block's number in its sequence.
 */
enum { KV_WIRE_PARTS = 3 };
size_t kv_header_bytes(const struct kv_layout *layout);
enum status kv_pool_export(struct kv_pool *pool, kv_handle handle, uint32_t position, const struct digest *id,
                           void *header_out, struct iovec parts_out[KV_WIRE_PARTS]);
enum status kv_pool_import(struct kv_pool *pool, const uint8_t *data, size_t bytes, kv_handle *handle_out,
                           uint32_t *position_out, struct digest *id_out, struct error *err);
/*
 * A block's wire form was kept and gets another handle: data [at least kv_header_bytes] is changed in place. ST_CORRUPT: it is no sound header, or of another
 * content id.
 */
enum status kv_wire_rename(const struct kv_layout *layout, uint8_t *data, size_t bytes, const struct digest *id,
                           kv_handle handle, struct error *err);

/*
 * Open rows: where the open form of a block is not its sealed one, an open block has, beside its slot, a place of its own for it (kvstore/rows.c):
 * the same payload with other parts. kv_pool_rows_new: n places, once, before any other call. Dropping a block gives its place back.
 */
enum status kv_pool_rows_new(struct kv_pool *pool, size_t part_bytes, uint32_t n, struct error *err);
/* The place of a slot's open rows, or UINT32_MAX. */
uint32_t kv_pool_rows(const struct kv_pool *pool, uint32_t slot);
/* The same, taking a place (zeroed, in memory of the processor's) if it has none. ST_BUSY: all are taken. */
enum status kv_pool_rows_take(struct kv_pool *pool, uint32_t slot, uint32_t *place_out);
/* They are needed no more; nothing if there are none. */
void kv_pool_rows_drop(struct kv_pool *pool, uint32_t slot);
/* keys at the pointer, values part_bytes (of open rows) behind. */
void *kv_pool_rows_part(const struct kv_pool *pool, uint32_t place, uint32_t layer, uint32_t kv_head);

/*
 * Spilled parts (kvstore/spill.c): parts have one size, and where a codec can not make every part fit, the rest of those that do not lies apart, part_bytes each
 * (kernels/kv_spill.h). Memory is taken page by page where something spills, on top of the pool's, and given back with the block's slot.
 * kv_pool_spill_new: once, before any other call, in memory of the processor's only. mark: the byte of a part that is not 0 if it is spilled.
 */
enum status kv_pool_spill_new(struct kv_pool *pool, size_t part_bytes, size_t mark, struct error *err);
/* What spilled from a slot's keys, if they are marked; from the values: part_bytes behind. */
const void *kv_pool_spill(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head);
/* The same, to be written. Any thread. */
void *kv_pool_spill_take(struct kv_pool *pool, uint32_t slot, uint32_t layer, uint32_t kv_head);

struct kv_pool_stats {
    uint32_t n_blocks, used, pinned;
    size_t block_bytes;
    uint32_t n_spilled; /* blocks of which parts did not fit */
    size_t spill_bytes; /* of one, at most */
    uint32_t n_rows;    /* places for open rows */
    size_t rows_bytes;  /* of one */
};
void kv_pool_stats(const struct kv_pool *pool, struct kv_pool_stats *stats_out);
/*
 * The block is whole, sealed and will not be written again: its name is kept with it until it is dropped or opened again (kvstore/inventory.c). Nothing
 * if it is not here.
 */
void kv_pool_name(struct kv_pool *pool, kv_handle handle, uint32_t position, const struct digest *id);
struct kv_named {
    kv_handle handle;
    uint32_t position;
    struct digest id;
};
/* The name of a block that is here. false: it has none, or is not here. */
bool kv_pool_name_of(const struct kv_pool *pool, kv_handle handle, struct kv_named *named_out);
/*
 * Goes round the pool, up to n places a call: the next block from *cursor (0 at first) on that has a name and was not marked since it got it. false: there was none.
 * kv_pool_mark: it is not said any more.
 */
bool kv_pool_unmarked(const struct kv_pool *pool, uint32_t n, uint32_t *cursor, struct kv_named *named_out);
void kv_pool_mark(struct kv_pool *pool, kv_handle handle);
/* All that have a name, the deepest in their sequences first. blocks_out: malloc'd. ST_NO_MEMORY. */
enum status kv_pool_named(const struct kv_pool *pool, struct kv_named **blocks_out, uint32_t *n_out);
/* All that have none. handles_out: malloc'd. ST_NO_MEMORY. */
enum status kv_pool_nameless(const struct kv_pool *pool, kv_handle **handles_out, uint32_t *n_out);
/* Calls fn for each block here. */
void kv_pool_each(const struct kv_pool *pool, void (*fn)(void *ctx, kv_handle handle), void *ctx);

/* ---- names (kvstore/name.c), used by the coordinator too ---- */

/*
 * Content id of a block: hash(parent id, the block's token ids, context), where context is a digest of everything else that decides bits: model and
 * pack digest, codec with parameters, selector and density, sketch format, fingerprint, tenant salt; and n_prompt_rows where the row classes differ
 * in bits (else pass 0). parent NULL: the sequence's first block.
 */
struct digest kv_block_id(const struct digest *parent, const struct digest *context, const int32_t *tokens,
                          uint32_t n_prompt_rows);

/* i's bits reversed, slots a power of two */
uint32_t kv_slot_reversed(uint32_t slot, uint32_t slots);
/* Which of n_workers reads a slot: contiguous runs of bit-reversed slot numbers. -> 0 .. n_workers - 1 */
uint32_t kv_slot_owner(uint32_t slot, uint32_t slots, uint32_t n_workers);

#ifdef __cplusplus
}
#endif
#endif
