#ifndef LONGSPAN_WORKER_ATTEND_H
#define LONGSPAN_WORKER_ATTEND_H

/*
 * The attention of one step on one worker, as plain data that every layer reuses: for each run of rows, here or at another home, which
 * blocks are read here, in which order their partials join, and what is sent to whom. Made from the plan alone; backends only execute it.
 *
 * Partials are kept in tiles of ATTN_ROWS vectors. A run's vectors are its rows times the query heads of one KV head: vector v of KV head j is
 * row v / group, query head j * group + v % group. An item is one partial a (KV head, tile): a fine node, the own leaf, or a node that came from
 * another reader. Item i of a job lies at store tile  job.store + (i * n_kv_heads + head) * n_tiles + tile.
 *
 * A leaf that several jobs of few rows read is a fine node of its own in each of them and is read once for all: attend.leaves.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/plan.h"
#include "worker/share.h"
#include "worker/tree.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One run's part here. Programs are ranges of attend.code: pool slots, or item numbers, and TREE_MERGE. */
struct attend_job {
    uint32_t run; /* index into plan.runs */
    uint16_t home;
    bool local;           /* its rows are here: the own leaf is read too, and the tree finished */
    uint8_t cls;          /* enum row_class */
    uint32_t n_rows, pos; /* of the run */
    uint32_t row;         /* first row: in this worker's rows if local, else in the received query window */
    uint32_t n_tiles;     /* tiles a KV head */
    uint32_t n_items;     /* fine nodes, then own leaf (local), then received nodes (local) */
    uint32_t n_fine;
    uint32_t store;                  /* first tile in the store */
    uint32_t fine;                   /* first of its fine nodes in attend.fines */
    uint32_t own_begin, own_end;     /* local: program over slots of the own leaf, one slot a block, in order */
    uint32_t final_begin, final_end; /* local: program over items that ends with the own leaf */
    uint32_t node, n_nodes;          /* remote: its maximal nodes in attend.nodes, that are sent home, in tree order */
};

/* Jobs of more tiles a KV head share no reads: their own tiles share passes, and finer nodes would cost them too much memory. */
enum { ATTEND_SHARE_TILES = 4, ATTEND_SHARE_STORE = 8192 /* tiles of the store for items of shared leaves, about */ };

/* A program over pool slots: whole leaves, every position visible. Empty: a leaf that is read with other jobs. */
struct attend_fine {
    uint32_t begin, end;
};

/* A leaf that several jobs read, all of them local or none, and of one class where classes differ. Its vectors of a KV head are those of its users, one user after the other. */
struct attend_leaf {
    uint32_t begin, end;    /* program over pool slots */
    uint32_t user, n_users; /* in attend.users */
    uint32_t n_vectors;
    uint8_t cls; /* enum row_class; any, where both classes read alike */
};
struct attend_user {
    uint32_t job, item;
    uint32_t vector; /* its first among the leaf's */
};

/* A maximal node of a remote job: a program over its items. */
struct attend_node {
    uint32_t begin, end;
};

/* A message of the step, the same in each layer. */
struct attend_message {
    uint16_t peer;
    size_t bytes;
    uint32_t job_begin, job_end; /* of attend.refs */
};

/* Part of a message: queries of a local job (to a reader), of a remote job (from its home), nodes of a remote job (to its home) or items of a local
   job (from a reader): items item .. item + n_items - 1. */
struct attend_ref {
    uint32_t job;
    uint32_t item, n_items;
    size_t offset; /* bytes into the message */
};

enum attend_traffic { SEND_QUERIES, RECEIVE_QUERIES, SEND_NODES, RECEIVE_NODES, ATTEND_TRAFFICS };

struct attend {
    struct attend_job *jobs;
    uint32_t n_jobs, n_local; /* local jobs first */
    struct attend_fine *fines;
    uint32_t n_fines;
    struct attend_node *nodes;
    uint32_t n_nodes;
    struct attend_leaf *leaves; /* shared ones; those of local jobs first */
    uint32_t n_leaves, n_local_leaves;
    struct attend_user *users;
    uint32_t n_users;
    struct u32_list code, blocks; /* blocks: of each slot in code, its block's number in the sequence */
    struct attend_message *messages[ATTEND_TRAFFICS]; /* ascending peers */
    uint32_t n_messages[ATTEND_TRAFFICS];
    struct attend_ref *refs;
    uint32_t n_refs;
    uint32_t n_store;       /* tiles in the store */
    uint32_t n_remote_rows; /* rows in the query window */
    /* buffers */
    struct tree_plan tree;
    struct share share;
    struct u32_list ids;  /* for each run that may share: the leaves before its own, as indices of share.leaves */
    struct u32_list from; /* for each run: where its ids begin, or SHARE_NONE */
    struct u32_list apart;
    uint32_t jobs_room, fines_room, nodes_room, refs_room, messages_room[ATTEND_TRAFFICS], leaves_room, users_room;
};

/* Heads and sizes that shape tiles and messages. */
struct attend_shape {
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t n_threads;
    size_t query_bytes; /* of one element of a query on the wire: 2 or 4 */
    bool reads_apart;   /* no leaf is shared */
    bool
        row_classes; /* rows of prompts and generated ones read differently, so they share none (struct kv_codec_info) */
};

/* Where the blocks of a sequence are: looks up what the plan's tables say. */
struct attend_lookup {
    /* slots of blocks c .. c + n - 1 of plan sequence s in this worker's pool, UINT32_MAX of those that are not here; NULL: its table ends before */
    const uint32_t *(*slots)(void *ctx, uint32_t s, uint32_t c, uint32_t n);
    /* readers of leaves 0.. of plan sequence s; at least n of them, or NULL */
    const uint16_t *(*readers)(void *ctx, uint32_t s, uint32_t n);
    /* Is block c before the window of all rows of the run? It need not be here: no list has it. NULL: never. */
    bool (*passed)(void *ctx, const struct plan_run *run, uint32_t c);
    void *ctx;
};

/*
 * Builds the step's attention for worker self. Buffers of an earlier build are reused. ST_PROTOCOL: the plan names a block that is not here, or its
 * readers do not cover a row (err says which); ST_NO_MEMORY.
 */
enum status attend_build(struct attend *a, const struct plan *plan, uint16_t self, const struct attend_shape *shape,
                         const struct attend_lookup *at, struct error *err);
void attend_free(struct attend *a);
/* Bytes of the longest of its messages; 0: none. */
size_t attend_message_max(const struct attend *a);

#ifdef __cplusplus
}
#endif
#endif
