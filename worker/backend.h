#ifndef LONGSPAN_WORKER_BACKEND_H
#define LONGSPAN_WORKER_BACKEND_H

/*
 * One table of operations on opaque tensors; cpu and cuda implement it, the step program never asks which. Between begin and run, calls only
 * record: nothing is computed, returned or waited for. run executes the list, exchanges included, and leaves the step's results in one
 * buffer on the host.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"
#include "kernels/kernels.h"
#include "kernels/kv_spill.h"
#include "kvstore/kvstore.h"
#include "model/model.h"
#include "proto/plan.h"
#include "worker/attend.h"
#include "worker/exchange/exchange.h"
#include "worker/select.h"

#ifdef __cplusplus
extern "C" {
#endif

struct backend;

/* Activations of the step: [rows][width]. X is the residual stream in float32; H, A, F are inputs of products (bf16, or float32). */
enum tensor { TENSOR_X, TENSOR_H, TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_A, TENSOR_GATE, TENSOR_UP, TENSOR_F, TENSORS };

/*
 * Who looks at what attention is made of, while it is computed: q [n_heads][head_dim], k, v [n_kv_heads][head_dim] of one row at home, before RoPE. Any of the
 * backend's threads, rows and layers in any order. CPU only.
 */
struct backend_tap {
    void (*row)(void *ctx, uint32_t layer, uint32_t pos, const float *q, const float *k, const float *v);
    void *ctx;
};

struct backend_config {
    uint32_t n_threads;
    uint32_t step_rows_max;                /* rows at home in one step */
    bool float32;                          /* --precision float32: activations and KV in float32, reference kernels */
    enum kv_codec kv_codec;                /* of sealed blocks */
    const struct calibration *calibration; /* of that codec and model, borrowed; NULL: it needs none */
    const struct backend_tap *tap;         /* NULL: nobody looks */
    _Atomic uint64_t
        *ops_done; /* counted up with every operation, by backends that have them one by one; may be NULL */
};

/* A product's outputs: weight matrix of a kind and layer, into a tensor. bias: a vector that is added to them (MODEL_EMBEDDING, which is 0: none). */
struct backend_part {
    enum model_tensor_kind weight;
    enum tensor out;
    enum model_tensor_kind bias;
};

/* A row at home. */
struct step_row {
    int32_t token;
    uint32_t pos;
    uint32_t slot; /* pool slot of its own block */
    uint32_t open; /* where that block is open: a place of the pool's open rows, STEP_SCRATCH + n, or STEP_IN_PLACE */
};

/*
 * Where an open block is if not at a place of the pool. In place: in its slot, the codec's open form being its sealed one. Scratch: all its rows are of
 * this step, so that nobody asks for them after it, and the backend keeps them for one layer at a time.
 */
enum { STEP_SCRATCH = 1 << 30 };
#define STEP_IN_PLACE UINT32_MAX

/* A block at home whose last position is of this step. */
struct step_seal {
    uint32_t slot, open; /* as in step_row */
    uint32_t block;      /* its number in its sequence */
};

/* A row whose logits are wanted. */
struct step_ask {
    uint32_t row; /* at home */
    uint32_t pos;
    bool sample;
    int32_t target; /* -1: none */
    uint32_t n_top;
    bool logits; /* the whole row */
    struct sample_params sampling;
    bool edited; /* edits are there */
    struct sample_edits edits;
};

/* What the host reads at the end, one an ask; in the backend's memory until the next begin. */
struct step_answer {
    struct sample_result result;
    const struct sample_top *top; /* [n_top] */
    const float *logits;          /* [n_vocab], if asked */
};

/* All that begin is told; borrowed until run returns. */
struct step_input {
    uint32_t n_rows, n_asks;
    const struct step_row *rows;
    const struct step_ask *asks;
    const struct step_seal *seals;
    uint32_t n_seals;
    const struct attend *attend;
    struct select *select; /* NULL, or not active: everything is read */
    struct kv_pool *pool;
    struct exchange_key key; /* epoch, plan, group of the step's messages */
};

/* Room for answers and what they point into, which lives until the next begin. Zeroed at first. */
struct step_answers {
    struct step_answer *list;
    struct sample_top *tops;
    float *logits;
    size_t list_room, tops_room, logits_room; /* bytes */
};
/* An answer for each ask of the input, with room for its alternatives and logits. false: no memory. */
bool step_answers_reserve(struct step_answers *a, const struct step_input *input, uint32_t n_vocab);
void step_answers_free(struct step_answers *a);

struct step_cost {
    int64_t busy_ns, wait_ns;
    uint64_t bytes_sent, bytes_received;
    uint64_t kv_bytes_read;  /* by attention: keys and values, once a pass */
    uint64_t kv_bytes_dense; /* what the same jobs would have read each by itself, with nothing left out */
};

struct backend_ops {
    const char *name;
    enum status (*open)(const struct backend_config *config, const struct model *model,
                        void (*progress)(void *ctx, float fraction), void *ctx, struct backend **backend_out,
                        struct error *err);
    void (*close)(struct backend *b);
    /* What decides bits here: ISA or SM, chosen variants, build constants. */
    void (*fingerprint)(const struct backend *b, char *text_out, size_t bytes);
    uint64_t (*weight_bytes)(const struct backend *b);
    /* Payload of a block, in this backend's codec. */
    void (*kv_layout)(const struct backend *b, struct kv_layout *layout_out);
    /* What its parts may lack; NULL: nothing. */
    struct kv_spill (*kv_spill)(const struct backend *b);
    /* Bytes of a part of an open block; 0: blocks are open in place. */
    size_t (*open_part_bytes)(const struct backend *b);
    const struct kv_memory_ops *kv_memory; /* where the pool's payloads lie; NULL: where the processor has them */
    uint32_t leaf_blocks;
    uint32_t
        n_parts; /* attention is cut for so many that work at once; 0: the worker's threads. Bits do not depend on it */
    bool reads_apart;             /* it can not read a leaf for several sequences at once */
    const char *const *selectors; /* those that it has, beside dense, then NULL; NULL: all */

    enum status (*begin)(struct backend *b, const struct step_input *input);
    void (*embed)(struct backend *b);
    void (*norm)(struct backend *b, enum tensor in, enum model_tensor_kind weight, uint32_t layer, enum tensor out);
    /* Each part's product with the same input. accumulate: added to what out holds. */
    void (*linear)(struct backend *b, enum tensor in, uint32_t layer, const struct backend_part *parts,
                   uint32_t n_parts, bool accumulate);
    /* Each head of a tensor (Q or K) through an RMS norm, in place. */
    void (*norm_heads)(struct backend *b, enum tensor tensor, enum model_tensor_kind weight, uint32_t layer);
    /* Rotates Q and K; K and V enter the rows' own blocks. */
    void (*rope_store)(struct backend *b, uint32_t layer);
    /* The step's complete blocks enter their sealed form: rows after them read that, in this step too. */
    void (*seal)(struct backend *b, uint32_t layer);
    /* Sketches of the step's complete blocks, of their open form, to the sequences' casts. */
    void (*sketch)(struct backend *b, uint32_t layer);
    /* Those that others make. */
    void (*sketch_receive)(struct backend *b, uint32_t layer);
    /* The lists of blocks that sparse rows here read. */
    void (*select)(struct backend *b, uint32_t layer);
    void (*send)(struct backend *b, uint32_t layer, enum attend_traffic what);
    void (*receive)(struct backend *b, uint32_t layer, enum attend_traffic what);
    /* Partials of local jobs (own leaf, fine nodes read here), or of other homes' jobs. */
    void (*attend)(struct backend *b, uint32_t layer, bool local);
    /* Finishes the tree of local jobs; the result is TENSOR_A. */
    void (*attend_finish)(struct backend *b);
    void (*silu_mul)(struct backend *b); /* GATE, UP -> F */
    /* Output norm, logits, sampling and scores of the asked rows. */
    void (*answer)(struct backend *b);
    /* Executes what was recorded. ST_PEER, ST_TIMEOUT, ST_STALE, ST_PROTOCOL from the exchange (peer_out: whom it waited for, or UINT16_MAX);
       ST_CORRUPT: a partial, key, value or sketch that is not finite; ST_NOT_FOUND: a sketch is missing. answers_out [n_asks]. */
    enum status (*run)(struct backend *b, const struct exchange_ops *exchange_ops, struct exchange *exchange,
                       int64_t deadline_ns, const struct step_answer **answers_out, struct step_cost *cost_out,
                       uint16_t *peer_out);
};

extern const struct backend_ops backend_cpu;
extern const struct backend_ops backend_cuda; /* in builds with CUDA */
/* "cpu" or "cuda", or NULL if this build has none of that name */
const struct backend_ops *backend_find(const char *device);

#ifdef __cplusplus
}
#endif
#endif
