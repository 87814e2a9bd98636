#ifndef LONGSPAN_KVSTORE_POOL_H
#define LONGSPAN_KVSTORE_POOL_H

/* Inside kvstore: what the pool and the wire form share. Others use kvstore.h. */

#include <stdatomic.h>

#include "kvstore/kvstore.h"

struct kv_pool_slot {
    kv_handle handle; /* 0: free, or dropped and still pinned */
    uint32_t pins;
    bool dropped; /* goes with the last unpin */
    bool dirty;   /* its memory has been written since it was mapped */
    bool summed;  /* its row of sums is that of its payload */
    bool named;   /* position and id are its name */
    bool marked;  /* kv_pool_mark */
    uint32_t position;
    struct digest id;
    uint32_t rows;     /* place of its open rows + 1; 0: none */
    uint8_t *copy;     /* for a transfer: of a payload in memory that is not the processor's; or of what spilled */
    size_t copy_bytes; /* of what spilled */
};

/* Memory that is touched as it is used, from a huge page's border on. */
struct kv_memory {
    uint8_t *at;
    void *map;
    size_t map_bytes;
};
enum status kv_memory_map(struct kv_memory *m, size_t bytes);
void kv_memory_unmap(struct kv_memory *m);

/* Places of open rows. */
struct kv_rows {
    struct kv_memory memory;
    const struct kv_memory_ops *ops; /* the pool's */
    size_t part_bytes, layer_bytes, block_bytes;
    uint32_t n, n_free;
    uint32_t *free; /* a stack */
    bool *dirty;    /* its memory has been written since it was mapped */
};

/* What spills from parts: an area as the payloads', of other parts. */
struct kv_spills {
    struct kv_memory memory;
    size_t part_bytes, layer_bytes, block_bytes; /* part_bytes 0: every part fits */
    size_t mark;
    atomic_uchar *spilled; /* [n_blocks] has any of it been written since it was mapped? */
    atomic_uint n_spilled;
};

struct kv_pool {
    struct kv_layout layout;
    const struct kv_memory_ops *ops; /* NULL: the processor's memory */
    uint8_t *layer;                  /* with ops: one layer of a payload */
    uint32_t n_blocks;
    size_t part_bytes, layer_bytes, block_bytes;
    struct kv_memory memory; /* n_blocks * block_bytes */
    struct kv_rows rows;     /* n 0: blocks are open in their sealed form */
    struct kv_spills spills;
    struct kv_pool_slot *slots;
    uint64_t *sums;  /* [n_blocks][n_layers] */
    uint32_t *table; /* handle -> slot: open addressing, slot + 1, 0 is empty */
    uint32_t table_mask;
    uint32_t *free_slots; /* a stack */
    uint32_t n_free;
    atomic_uint used, pinned; /* for kv_pool_stats from other threads */
};

/* Takes a slot for a handle that is not here, its payload whatever it was; *fresh_out: it is zero. ST_BUSY, ST_INVALID. */
enum status kv_pool_take(struct kv_pool *pool, kv_handle handle, uint32_t *slot_out, bool *fresh_out);
/* The payload of a slot, block_bytes. */
uint8_t *kv_pool_payload(const struct kv_pool *pool, uint32_t slot);
void kv_rows_deinit(struct kv_rows *rows);
/* A copy of a slot's payload on this side, made if there is none; with ops only. NULL: no memory, or it can not be read. */
uint8_t *kv_pool_copy(struct kv_pool *pool, uint32_t slot);
/* The checksums of a slot's layers, computed if they are not kept. NULL: the payload can not be read (with ops only). */
const uint64_t *kv_pool_sums(struct kv_pool *pool, uint32_t slot);

/* kvstore/spill.c */
void kv_spills_deinit(struct kv_spills *spills);
/* The slot is free: its memory is given back. */
void kv_spills_release(struct kv_pool *pool, uint32_t slot);
/* Is a part of a layer spilled? layer: layer_bytes of a payload; part: keys and values by head. */
bool kv_spills_marked(const struct kv_pool *pool, const uint8_t *layer, uint32_t part);
/* A layer's checksum, when `sum` is its payload's; and with one spilled part more. */
uint64_t kv_spills_sum(const struct kv_pool *pool, uint32_t slot, uint32_t layer, uint64_t sum);
uint64_t kv_spills_sum_next(uint64_t sum, const uint8_t *part, size_t bytes);
/* What spilled from a slot, part behind part, in the slot's copy; empty if nothing did. ST_NO_MEMORY. */
enum status kv_spills_copy(struct kv_pool *pool, uint32_t slot, struct iovec *copy_out);
/* The same back again, for a payload that is there. */
void kv_spills_put(struct kv_pool *pool, uint32_t slot, const uint8_t *spilled);

#endif
