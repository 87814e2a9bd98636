#ifndef LONGSPAN_WORKER_OPEN_H
#define LONGSPAN_WORKER_OPEN_H

/*
 * Where the rows of open blocks are, if sealing changes a block's form. Open rows stay until a plan says that the block is committed, since a step that
 * is abandoned may be repeated from any row on; a block that one step begins and completes is repeated whole, so it needs no place of the pool.
 * All follows from plans, by position. A sequence's open blocks at a worker: the last of each of plans_ahead plans, and one from before.
 */

#include "kvstore/kvstore.h"
#include "worker/backend.h"
#include "worker/sequences.h"

#ifdef __cplusplus
extern "C" {
#endif

struct open_blocks {
    bool apart; /* false: blocks are open in place */
    struct open_block {
        kv_handle handle;
        uint64_t seq;
        uint32_t block;
    } * blocks; /* that have a place of the pool's open rows */
    uint32_t n, n_max;
    uint32_t n_scratch; /* of this step */
};

/* Takes n_max places of the pool; part_bytes 0: blocks are open in place. */
enum status open_blocks_init(struct open_blocks *o, struct kv_pool *pool, size_t part_bytes, uint32_t n_max,
                             struct error *err);
void open_blocks_deinit(struct open_blocks *o);
/* A new step: what is committed, or of sequences that are forgotten, gives its place back. */
void open_blocks_step(struct open_blocks *o, struct kv_pool *pool, struct sequences *all);
/*
 * Where block `block` of s, in a slot of the pool, is open in this step: open as in struct step_row. pos, end: the positions of the sequence that this step
 * computes here in one go, the block among them. ST_BUSY: more blocks are open than were offered.
 */
enum status open_blocks_take(struct open_blocks *o, struct kv_pool *pool, const struct sequence *s, uint32_t block,
                             uint32_t slot, uint32_t pos, uint32_t end, uint32_t *open_out);

#ifdef __cplusplus
}
#endif
#endif
