#ifndef LONGSPAN_WORKER_SKETCHES_H
#define LONGSPAN_WORKER_SKETCHES_H

/*
 * Sketches of KV blocks, by handle: of the blocks in this worker's pool, and of those before the rows that sequences have, or will have, here. A sketch stays as
 * long as its block is in the pool or a sequence names it. Beside the sketch itself an entry keeps what can be made again: the positions'
 * query means of a block that is not committed, and a walk's weights and lists.
 *
 * The step thread owns the store; a step's threads write what select.h hands them, each entry's layer by one thread.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "kernels/selector.h"
#include "kvstore/kvstore.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sketch {
    kv_handle handle;
    struct sketch *next; /* of its bucket */
    uint32_t refs;       /* sequences that name it */
    bool held;           /* its block is in the pool, or was taken from the wire */
    uint8_t *data;       /* [sparse layers][layer_bytes]; NULL: nothing is known yet */
    uint8_t *have;       /* [sparse layers]: that layer's is there */
    float
        *queries; /* [sparse layers][KV_BLOCK][head_dim]: means of the queries by position; NULL: none, or committed */
    /* A walk through the sketches up to this one: caches. */
    uint16_t **weights; /* [sparse layers]: row of this block, [position + 1], or NULL */
    uint64_t **lists;   /* [sparse layers]: for rows of the next block: a density, then the list; or NULL */
    float *walk;        /* [position + 1]: after layer walk_layer */
    uint32_t walk_layer, walk_n;
    /* The backend's own, where it is not the processor's memory: a copy of all layers, the query means, the row of a walk's weights, and
       the lists of rows of the next block. */
    void *device, *device_means, *device_weights, *device_lists;
    uint64_t device_step, weights_step, lists_step; /* of the backend: the step that makes them, or made them */
    uint32_t weights_room;
    uint32_t lists_density,
        lists_claim;                  /* density of the lists, 0: none are there yet; of those that lists_step makes */
    bool device_ready, weights_ready; /* complete: from that step's end on */
};

struct sketches {
    const struct selector_impl *impl; /* NULL: dense, nothing is kept */
    struct selector_spec spec;
    struct selector_shape shape;
    uint32_t n_layers; /* sparse ones */
    size_t layer_bytes;
    uint8_t *channels; /* [n_model_layers][n_kv_heads][selector_labels(head_dim)]: those of a calibration; NULL: none */
    struct sketch **buckets;
    uint32_t n_buckets, n;
    _Atomic uint64_t bytes; /* of all that is kept */
    bool device_queries;    /* the backend keeps the query means, in memory of its own */
    /* Takes back what of a sketch is the backend's, or the query means alone; set by the backend that gave it. */
    void (*device_free)(void *ctx, struct sketch *s, bool all);
    void *device_ctx;
};

/* impl NULL: a store that keeps nothing. ST_NO_MEMORY. */
enum status sketches_init(struct sketches *all, const struct selector_impl *impl, const struct selector_spec *spec,
                          const struct selector_shape *shape, uint32_t n_model_layers);
void sketches_deinit(struct sketches *all);

struct calibration;
/*
 * Channels that a calibration learned (array "channels", u8 [n_model_layers][n_kv_heads][selector_labels(head_dim)], each row ascending and below head_dim) are
 * kept by every sketch from now on; before the first one is made. ST_INVALID: they do not fit, err says which; ST_NOT_FOUND, ST_NO_MEMORY.
 */
enum status sketches_calibrate(struct sketches *all, const struct calibration *c, uint32_t n_model_layers,
                               struct error *err);
/* Those of a layer of the model, or NULL. */
static inline const uint8_t *sketches_channels(const struct sketches *all, uint32_t layer)
{
    return all->channels ? all->channels + (size_t)layer * all->shape.n_kv_heads * selector_labels(all->shape.head_dim)
                         : NULL;
}

/* NULL: not here. */
struct sketch *sketch_find(const struct sketches *all, kv_handle handle);
/* The same, made if it is not here: NULL: no memory. */
struct sketch *sketch_open(struct sketches *all, kv_handle handle);
/* A sequence names it, or no longer does. */
void sketch_ref(struct sketch *s);
void sketch_unref(struct sketches *all, struct sketch *s);
/* Its block is here from now on; or has left. Nothing if there is no such sketch. */
void sketch_hold(struct sketch *s);
void sketch_drop(struct sketches *all, kv_handle handle);

/* Memory for the sketch itself, for the query means. false: there is none. */
bool sketch_take(struct sketches *all, struct sketch *s);
bool sketch_take_queries(struct sketches *all, struct sketch *s);
/* Memory of caches, counted: for one thread at a time an entry. Freed with the entry. */
void *sketch_alloc(struct sketches *all, size_t bytes);
/* May some layers' sketches be scored? (bytes: a multiple of layer_bytes.) Scores of what is not finite would say nothing. */
bool sketch_valid(const struct sketches *all, const uint8_t *data, size_t bytes);
/* The query means go: its block is committed. */
void sketch_commit(struct sketches *all, struct sketch *s);
/* All layers are there. */
bool sketch_complete(const struct sketches *all, const struct sketch *s);

/* layer: of the model, not below dense_layers */
static inline uint8_t *sketch_layer(const struct sketches *all, const struct sketch *s, uint32_t layer)
{
    return s->data + (layer - all->spec.dense_layers) * all->layer_bytes;
}
static inline float *sketch_queries(const struct sketches *all, const struct sketch *s, uint32_t layer)
{
    return s->queries + (size_t)(layer - all->spec.dense_layers) * KV_BLOCK * all->shape.head_dim;
}

/*
 * Wire form, behind a block's: u32 magic, u32 layer bytes, u64 handle, u32 layers, u32 zero, u64 checksum64 of the payload and the fields before;
 * then the layers. 0 bytes where nothing is kept.
 */
size_t sketch_wire_bytes(const struct sketches *all);
/* out [sketch_wire_bytes]. ST_NOT_FOUND: it is not complete here. */
enum status sketch_export(const struct sketches *all, kv_handle handle, uint8_t *out);
/* A wire form that was kept gets another handle, in place. ST_CORRUPT: it is none. */
enum status sketch_rename(const struct sketches *all, uint8_t *data, size_t bytes, kv_handle handle, struct error *err);
/* Checks all of it. ST_CORRUPT: err says what. What is here already stays. */
enum status sketch_import(struct sketches *all, const uint8_t *data, size_t bytes, kv_handle handle, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
