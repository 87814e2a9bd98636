#ifndef LONGSPAN_COORDINATOR_SCHED_DIRECTORY_H
#define LONGSPAN_COORDINATOR_SCHED_DIRECTORY_H

/*
 * Where blocks are: found by handle and by content id, with their copies, who reads these, and an exact account of each worker's pool.
 * A worker is a slot here, 0 .. SCHED_SLOTS - 1. A pool's blocks are
 *   named     copies that are there, or that a plan or a transfer in flight brings
 *   promised  reserved for blocks that do not exist yet
 *   cached    of the named ones: read by nobody, kept for a later prefix hit, evicted when room is needed, least recently used first
 *   dropping  told to go, or to be told with the next plan; gone when that plan's result is back
 * and named + promised <= n_blocks always. A block may be opened as soon as the drop that made its room is queued (the drop travels with
 * the same plan or an earlier one); a block that comes from a peer must wait until the drop has arrived: directory_can_receive.
 *
 * A worker may have blocks on a disk of its own, and says which. These are no copies and in no account: a block on a disk can be found by its id though it has no
 * copy, and a copy may come from there to the same worker's pool.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "coordinator/sched/outbox.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SCHED_SLOTS = PLAN_WORKERS_MAX };

enum copy_state {
    COPY_OPEN,     /* filling, or full and not committed */
    COPY_READY,    /* committed and sealed */
    COPY_INCOMING, /* a transfer brings it */
    COPY_DROPPING,
};

struct block;
struct transfer;

struct copy {
    struct block *block;
    struct copy *next;          /* of the same block */
    struct copy *newer, *older; /* cached ones of a pool */
    struct transfer *transfer;  /* INCOMING */
    uint32_t refs;              /* sequences that read it, and transfers that send it */
    uint32_t drops;             /* DROPPING: how often it is named in the pool's outbox */
    uint8_t slot;
    uint8_t state; /* enum copy_state */
    bool cached;
};

struct block {
    kv_handle handle;
    struct digest id;  /* once committed */
    uint32_t position; /* number in its sequence */
    bool indexed;      /* found by its id; a duplicate of an indexed block is not */
    uint64_t disks;    /* slots whose disks have it; not 0: it is indexed */
    struct copy *copies;
    struct block *next_handle, *next_id;
};

struct pool {
    bool live;
    uint32_t n_blocks, named, promised, cached, dropping;
    uint32_t on_disk; /* blocks of its disk */
    struct copy *oldest, *newest;
    struct outbox drops; /* handles */
};

struct directory {
    struct pool pools[SCHED_SLOTS];
    struct block **by_handle, **by_id; /* buckets, a power of two of each */
    uint32_t n_buckets, n_blocks;
    kv_handle next;
};

void directory_init(struct directory *d);
void directory_deinit(struct directory *d);

void directory_pool_add(struct directory *d, uint8_t slot, uint32_t n_blocks);
/* The worker is gone with all it held. Nobody refers to its copies any more, no transfer is under way from or to it. -> of how many another copy is left */
uint32_t directory_pool_remove(struct directory *d, uint8_t slot);

/* Blocks that can be promised, cached ones evicted. */
static inline uint32_t directory_room(const struct directory *d, uint8_t slot)
{
    const struct pool *p = &d->pools[slot];
    return p->n_blocks - p->named - p->promised + p->cached;
}
/* Evicts as needed. false, and nothing changes: there is no room. */
bool directory_promise(struct directory *d, uint8_t slot, uint32_t n);
void directory_unpromise(struct directory *d, uint8_t slot, uint32_t n);
/* Room for all that is named there, and for what was told to go and is perhaps still there. */
static inline bool directory_can_receive(const struct directory *d, uint8_t slot)
{
    const struct pool *p = &d->pools[slot];
    return (uint64_t)p->named + p->promised + p->dropping <= p->n_blocks;
}

/* By content id: a block with at least one ready copy, or on a disk; or NULL. */
struct block *directory_find(const struct directory *d, const struct digest *id);
struct block *directory_block(const struct directory *d, kv_handle handle);
struct copy *directory_copy_at(const struct block *b, uint8_t slot);
/* The first ready copy, or NULL. */
struct copy *directory_source(const struct block *b);

enum { DIRECTORY_DISK_MAX = 1 << 22 }; /* blocks of one disk that are known; more are not used */
/* The worker's disk has the block, or has it no more. */
void directory_disk_add(struct directory *d, uint8_t slot, uint32_t position, const struct digest *id);
void directory_disk_remove(struct directory *d, uint8_t slot, const struct digest *id);
/* The worker's disk is used no more. */
void directory_disk_lost(struct directory *d, uint8_t slot);

/* A new block, open at slot, from one promise; one reference. */
struct copy *directory_open(struct directory *d, uint8_t slot, uint32_t position);
/* A block from before this directory, ready and cached. false: there is no room, or the handle means another block, or was never given. */
bool directory_adopt(struct directory *d, uint8_t slot, kv_handle handle, uint32_t position, const struct digest *id);
/* Another copy of a block, to come by a transfer, from one promise; no reference. There is none at slot yet. */
struct copy *directory_incoming(struct directory *d, struct block *b, uint8_t slot);
/* It is full and the results of all its rows are held. share: it can be found by its id, unless another block can already. */
void directory_commit(struct directory *d, struct copy *c, const struct digest *id, bool share);
/* A transfer is done: ready, and dropped or cached at once if nobody refers to it. */
void directory_arrived(struct directory *d, struct copy *c);

void directory_ref(struct directory *d, struct copy *c);
/* The last one: cached if it can be found by its id, else dropped. What is still coming stays. */
void directory_unref(struct directory *d, struct copy *c);
/* Nobody refers to it. Tells the worker with the next plan. */
void directory_drop(struct directory *d, struct copy *c);
/* The worker has something that nobody expects any more: tells it to drop that. */
void directory_drop_stray(struct directory *d, uint8_t slot, kv_handle handle);
/* The transfer that was to bring it was never started: it just vanishes. */
void directory_forget(struct directory *d, struct copy *c);
/* n drops of the outbox have arrived. */
void directory_dropped(struct directory *d, uint8_t slot, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
