#ifndef LONGSPAN_WORKER_SHARE_H
#define LONGSPAN_WORKER_SHARE_H

/*
 * Which leaves rows of several sequences read in one step, found by their blocks: Hydragen's idea (arXiv:2402.05099) for a store of blocks. A leaf is
 * known by its pool slots; the order in which partials join does not change, so bits do not either.
 */

#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SHARE_NONE = UINT32_MAX };

struct share_leaf {
    uint32_t readers; /* how often it was added */
    uint32_t next;    /* of its bucket */
    uint32_t leaf;    /* the caller's: SHARE_NONE at first */
    uint32_t kind;
};

/* Zeroed is empty. Buffers are reused by share_reset. */
struct share {
    uint32_t leaf_blocks;
    struct share_leaf *leaves; /* [n] */
    uint32_t *slots;           /* [n][leaf_blocks] */
    uint32_t *buckets;         /* [n_buckets]: index of the first leaf, or SHARE_NONE */
    uint32_t n, room, slots_room, n_buckets;
};

void share_reset(struct share *s, uint32_t leaf_blocks);
/* Where to write the slots of the leaf that share_add takes next, [leaf_blocks]; NULL: no memory. */
uint32_t *share_next(struct share *s);
/* The leaf whose slots were written to share_next: its index, the same for equal slots and kind (the caller's); SHARE_NONE: no memory. */
uint32_t share_add(struct share *s, uint32_t kind);
void share_free(struct share *s);

#ifdef __cplusplus
}
#endif
#endif
