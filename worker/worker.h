#ifndef LONGSPAN_WORKER_WORKER_H
#define LONGSPAN_WORKER_WORKER_H

/*
 * A worker without its wires: model, backend, pool and exchange, and one thread that runs plans. It holds no policy: what it knows of a sequence
 * came with plans and is a function of position. The control stream (worker/control.c) and tests drive it.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "kvstore/disk.h"
#include "kvstore/kvstore.h"
#include "model/model.h"
#include "proto/control.h"
#include "worker/backend.h"
#include "worker/exchange/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

struct worker;

struct worker_config {
    const char *device; /* "cpu" */
    bool float32;
    enum kv_codec kv_codec;                /* of sealed blocks; KV_BF16 */
    const struct calibration *calibration; /* of that codec and model; NULL: it needs none. For worker_new only */
    const struct calibration *
        channels; /* of that selector, model and digest (selector_spec.channels); NULL: it names none. For worker_new only */
    const struct backend_tap *tap; /* kept; NULL */
    const char *selector;          /* as selector_parse() takes it; NULL: "dense" */
    bool reads_apart;              /* every sequence reads its blocks by itself: shows what sharing saves */
    uint32_t n_threads;
    uint32_t step_rows_max, positions_max;
    uint64_t kv_bytes; /* pool; 0: n_blocks says it */
    uint32_t n_blocks;
    uint32_t open_blocks; /* with n_blocks: places for open blocks, where the codec has another form for them */
    const struct exchange_ops *exchange_ops;
    struct exchange_config exchange; /* self, bind, lanes, hub; on_block and ctx are the worker's */
    /* Called on the step thread. Borrowed. */
    void (*on_result)(void *ctx, const struct result *result);
    void (*on_abort)(void *ctx, const struct control_abort *abort);
    void (*on_copied)(void *ctx, const struct control_copied *copied);
    void (*on_progress)(void *ctx, float fraction);
    void (*on_disk)(void *ctx, const struct control_blocks *blocks,
                    bool gone); /* of the disk tier, as CONTROL_STORED */
    void *ctx;
    const char *disk_dir; /* of the disk tier, for worker_new only; NULL or "": there is none */
    uint64_t disk_bytes;  /* what it may take */
};

/*
 * How many open blocks of so many bytes get a place of their own in kv_bytes (0 bytes: none do): an eighth of it, but enough for some sequences
 * even where that is little, and no more than a worker's sequences have.
 */
uint64_t worker_open_blocks(uint64_t kv_bytes, uint64_t open_bytes);

/* Loads the weights (on the calling thread), takes the pool, starts the step thread. model: kept until worker_free. */
enum status worker_new(const struct worker_config *config, const struct model *model, struct worker **worker_out,
                       struct error *err);
void worker_free(struct worker *w);

/* What it offers; strings and address are the worker's. */
void worker_ready(const struct worker *w, struct control_ready *ready_out);

/*
 * Messages from the coordinator; any thread. They run in order on the step thread. message is taken (free() by the worker), but not when an error
 * is returned. Fences act at once, too: a step that waits on an older epoch ends.
 */
enum status worker_post(struct worker *w, struct control_message *message);

/*
 * Its coordinator is gone. pause: what runs is abandoned, messages that wait are dropped, and all that was said is forgotten, but for sealed blocks that have a
 * name (kv_pool_name) and their sketches. resume: serves another coordinator, as worker `self` at another address, calling back with ctx. A worker that
 * could not do either is only good for worker_free.
 */
enum status worker_pause(struct worker *w, struct error *err);
enum status worker_resume(struct worker *w, uint16_t self, void *ctx, struct error *err);
/* While it is paused, or nothing was posted to it since: what it holds, as kv_pool_named; epoch_out: no plan of a higher one has come. */
enum status worker_inventory(const struct worker *w, struct kv_named **blocks_out, uint32_t *n_out,
                             uint64_t *epoch_out);

/*
 * What its disk tier holds: kv_disk_list; n_out 0 where there is none. After worker_disk_told, once all of it was told, what changes is told by on_disk, until the
 * worker is paused.
 */
enum status worker_disk_list(struct worker *w, struct kv_disk_block **blocks_out, uint32_t *n_out);
void worker_disk_told(struct worker *w);

/*
 * Keys of a KV head in a layer of a block that is here, and values a part's bytes behind: where it is sealed, or open if both forms are one. NULL: it is not here, or not in
 * this processor's memory. For who runs a worker in its own process and waits for the result of each plan: between plans it may be written to.
 */
void *worker_part(struct worker *w, kv_handle handle, uint32_t layer, uint32_t kv_head);

struct worker_stats {
    uint64_t plans_done, bytes_sent, bytes_received;
    uint32_t blocks_used;
    uint64_t sketch_bytes;     /* of all sketches here, with what is kept to choose by them */
    uint64_t work;             /* grows while a step computes, not while it waits for a peer */
    uint64_t dropped;          /* messages of peers that were refused */
    uint32_t waits_ms;         /* for how long its step has waited for one message of a peer; 0: it does not */
    struct kv_disk_stats disk; /* zeros: there is none */
};
void worker_stats(const struct worker *w, struct worker_stats *stats_out); /* any thread */

#ifdef __cplusplus
}
#endif
#endif
