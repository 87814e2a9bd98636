#ifndef LONGSPAN_WORKER_INTERNAL_H
#define LONGSPAN_WORKER_INTERNAL_H

/* What worker.c (life, messages, blocks between workers), disk.c (blocks to and from the disk) and run.c (a plan's step) share; nobody else includes it. */

#include <pthread.h>
#include <stdatomic.h>

#include "worker/open.h"
#include "worker/sequences.h"
#include "worker/step.h"
#include "worker/worker.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mail;

/* Epochs below which a group's plans are refused. Groups come and go; the oldest entry gives way, its epochs being long past. */
enum { FENCES = 256 };

struct worker {
    struct worker_config config;
    const struct model *model;
    const struct backend_ops *ops;
    struct backend *backend;
    struct kv_layout layout;
    struct kv_pool *pool;
    struct exchange *exchange;
    struct sequences *sequences;
    struct digest digest;
    char fingerprint[128];
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    size_t address_bytes;

    /* the step thread's */
    struct attend attend;
    struct open_blocks open;
    struct select select;
    struct kv_disk *disk; /* NULL: there is no disk tier */
    uint32_t disk_cursor;
    struct step_row *rows;
    struct step_seal *seals; /* at most one a row */
    struct step_ask *asks;
    uint32_t asks_room;
    struct sequence **plan_sequences; /* of the plan that runs, by its seq index */
    uint32_t plan_sequences_room;
    struct {
        uint32_t group;
        uint64_t epoch;
    } fence[FENCES];
    uint32_t n_fences;
    uint64_t epoch;  /* the highest of a plan */
    bool spill_said; /* that parts of blocks did not fit */

    pthread_t thread;
    bool started;
    int wake;
    pthread_mutex_t lock;
    struct mail *first, **last; /* under the lock */
    bool quit;
    _Atomic bool disk_told;
    _Atomic uint32_t running_group; /* of the plan that runs: worker_free ends its waits */
    _Atomic uint64_t plans_done, ops_done, bytes_sent, bytes_received, dropped;
    _Atomic uint32_t blocks_used;
    _Atomic int64_t waits_since_ms; /* for a message of a peer; 0: it does not */
};

/* run.c; on the step thread. Plans of the group below the epoch are refused from now on, and messages of its steps dropped. */
void worker_fence(struct worker *w, uint32_t group, uint64_t epoch);
/* Takes over what a plan says: drops, forgets, sequences. */
enum status worker_take(struct worker *w, const struct plan *plan, struct error *err);
/* Runs a plan's step and says what came of it, by on_result or on_abort. */
void worker_run(struct worker *w, const struct plan *plan);

/* disk.c; on the step thread, but for open and close. Nothing where there is no tier. */
enum status worker_disk_open(struct worker *w, struct error *err);
/* What has a name is written first, for a while. */
void worker_disk_close(struct worker *w);
/* The block is about to go: it is written, unless it has no name or is there already. wait_ms: for others to be written first. */
void worker_disk_keep(struct worker *w, kv_handle handle, int32_t wait_ms);
/* A copy whose destination is the worker itself: on_copied says when it has come from the disk. */
void worker_disk_load(struct worker *w, const struct control_copy *copy);
/* Takes what the disk has to say, and gives it what will leave memory next. */
void worker_disk_run(struct worker *w);
/* The coordinator is gone, and with it all that was asked for. */
void worker_disk_pause(struct worker *w);

#ifdef __cplusplus
}
#endif
#endif
