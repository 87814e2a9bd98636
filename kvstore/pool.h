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
    uint32_t position;
    struct digest id;
    uint32_t rows; /* place of its open rows + 1; 0: none */
    uint8_t *copy; /* of its payload, for a transfer from memory that is not the processor's */
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

struct kv_pool {
    struct kv_layout layout;
    const struct kv_memory_ops *ops; /* NULL: the processor's memory */
    uint8_t *layer;                  /* with ops: one layer of a payload */
    uint32_t n_blocks;
    size_t part_bytes, layer_bytes, block_bytes;
    struct kv_memory memory; /* n_blocks * block_bytes */
    struct kv_rows rows;     /* n 0: blocks are open in their sealed form */
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

#endif
