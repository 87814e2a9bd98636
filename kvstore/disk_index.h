#ifndef LONGSPAN_KVSTORE_DISK_INDEX_H
#define LONGSPAN_KVSTORE_DISK_INDEX_H

/* Inside kvstore: which blocks the disk tier has, and in which order they were used. One thread at a time. Others use disk.h. */

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A block that is there, or waits to be written (not ready). */
struct kv_index_entry {
    struct digest id;
    uint32_t position;
    bool ready;
    uint64_t bytes;                       /* as they count against the bound */
    struct kv_index_entry *next;          /* of its bucket */
    struct kv_index_entry *newer, *older; /* ready ones */
};

struct kv_index {
    struct kv_index_entry **buckets;
    uint32_t n_buckets;
    struct kv_index_entry *oldest, *newest;
    uint64_t bytes; /* of ready ones */
    uint64_t n_ready, n_entries;
};

/* false: no memory */
bool kv_index_init(struct kv_index *x);
void kv_index_deinit(struct kv_index *x);
/* NULL: it is not there. */
struct kv_index_entry *kv_index_find(const struct kv_index *x, const struct digest *id);
/* One that is not there, not ready; bytes: of its file. NULL: no memory. */
struct kv_index_entry *kv_index_add(struct kv_index *x, const struct digest *id, uint32_t position, uint64_t bytes);
/* It counts, as used last. */
void kv_index_ready(struct kv_index *x, struct kv_index_entry *e);
/* It was used now; nothing if it is not ready. */
void kv_index_used(struct kv_index *x, struct kv_index_entry *e);
/* Frees it. */
void kv_index_remove(struct kv_index *x, struct kv_index_entry *e);

#ifdef __cplusplus
}
#endif
#endif
