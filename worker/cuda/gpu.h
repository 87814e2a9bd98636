#ifndef LONGSPAN_WORKER_CUDA_GPU_H
#define LONGSPAN_WORKER_CUDA_GPU_H

/*
 * Inside the CUDA backend: what its files share. One GPU, the first; one stream. A step's plan (rows, angles, embeddings, units, blocks, joins) is an
 * arena that one copy takes to the device; kernels read counts from there, so that a step of the same shape is one graph, replayed.
 */

#include "kernels/cuda/codes.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/quest.h"
#include "kernels/cuda/sketch_walk.h"
#include "worker/backend.h"
#include "worker/team.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GPU_LOGIT_ROWS = CUDA_ROWS_FEW, /* logit rows computed together */
    GPU_GRAPHS = 8,                 /* steps of as many shapes are kept */
    GPU_PARTS = 66 /* fine nodes are cut for 8 to 16 units of attention for each; bits do not depend on it */
};

struct gpu_matrix {
    void *packed; /* bf16 tiles (kernels/cuda/cuda.h), or as kernels/cuda/lossless.h has them */
    uint32_t n_out, n_in;
    bool lossless;
};

struct gpu_layer {
    struct gpu_matrix matrix[MODEL_TENSOR_KINDS];
    float *vector[MODEL_TENSOR_KINDS]; /* norms, biases */
};

/* Units of attention, by the launch that takes them. Where blocks are coded, the bf16 kernel reads what is open, the rows' own blocks. */
enum gpu_units {
    UNITS_LOCAL,
    UNITS_LOCAL_WIDE,
    UNITS_REMOTE,
    UNITS_REMOTE_WIDE,
    UNITS_LOCAL_CODED,
    UNITS_REMOTE_CODED,
    UNIT_LISTS
};

/* A part of the arena: made on the host as a list; what is large for many rows is written in place, by all threads. */
enum gpu_section {
    SECTION_ROWS, /* struct cuda_row */
    SECTION_COS,  /* [rows][head_dim / 2], in place */
    SECTION_SIN,
    SECTION_EMBED, /* [rows][d_model] */
    SECTION_IN_PLACE = SECTION_COS,
    SECTION_IN_PLACE_END = SECTION_EMBED + 1,
    SECTION_WHICH = SECTION_IN_PLACE_END, /* rows of asks */
    SECTION_COUNTS,                       /* units of each list; blocks to seal */
    SECTION_UNITS,                        /* lists: enum gpu_units */
    SECTION_UNITS_END = SECTION_UNITS + UNIT_LISTS,
    SECTION_SEALS = SECTION_UNITS_END, /* struct cuda_seal */
    SECTION_SLOTS,
    SECTION_BLOCKS, /* beside slots: numbers of blocks, where the step selects */
    SECTION_MERGES,
    SECTION_JOINS, /* two lists: of local jobs, of remote ones */
    SECTION_JOINS_END = SECTION_JOINS + 2,
    SECTION_LEVELS = SECTION_JOINS_END,
    SECTION_PAIRS,
    SECTION_MAKES,    /* struct cuda_quest_sketch, or cuda_walk_sketch */
    SECTION_CHOICES,  /* struct cuda_quest_job */
    SECTION_SKETCHES, /* pointers */
    SECTION_MEANS,    /* of a walk: struct cuda_walk_row, a row */
    SECTION_WEIGHTS,  /* pointers, beside those to sketches */
    SECTION_WEIGHED,  /* struct cuda_walk_weights */
    SECTION_KEPT,     /* struct cuda_walk_kept */
    SECTIONS
};

struct gpu_list {
    uint8_t *data;
    size_t bytes, room;
    size_t offset, cap; /* in the arena */
};

struct gpu_op;
typedef int gpu_op_fn(struct backend *b, const struct gpu_op *op); /* enum status */

struct gpu_op {
    gpu_op_fn *fn;
    uint32_t layer, in, out, kind; /* what fn takes them for */
    struct backend_part parts[3];
    uint32_t n_parts;
    bool flag;
    uint32_t begin, end; /* asks */
};

/* What a step's kernels say of it. */
struct gpu_outcome {
    uint32_t failed, zero;
    unsigned long long skipped; /* parts that sparse attention did not read */
};

/* Sketches on the device: places of [sparse layers][layer_bytes]. Memory is taken in chunks, and given back at the end. */
struct gpu_places {
    void **chunks, **unused;
    uint32_t n_chunks, chunks_room, n_unused, unused_room;
    size_t bytes; /* of a place; 0: not known yet */
};

struct gpu_graph {
    uint64_t key; /* 0: none */
    uint64_t used;
    void *exec; /* cudaGraphExec_t */
};

struct gpu_buffer {
    void *data;
    size_t bytes;
};

struct backend {
    const struct model *model;
    const struct model_config *config;
    struct cuda_device device;
    struct team *team;
    uint32_t n_threads, rows_max, cap; /* cap: rows_max as the kernels want it */
    const struct row_impl *rows;       /* the sampler's */
    void *stream;                      /* cudaStream_t */
    struct gpu_layer *layers;
    struct gpu_matrix output;
    float *output_norm;
    void *expanded; /* bf16 tiles of the lossless weights of one product of many rows; NULL: there are none */
    struct model_tensor embedding;
    uint64_t weight_bytes;
    enum kv_codec codec;
    size_t part_bytes, partial_floats;
    size_t open_part_bytes;  /* 0: blocks are open in place */
    uint8_t *scratch_blocks; /* open blocks of one layer; NULL: in place */
    float *x, *q, *k, *v, *gate, *up;
    void *h, *a, *f; /* tiled */
    float *partials;
    uint32_t *counters;
    float *logits;      /* [GPU_LOGIT_ROWS][n_vocab] */
    float *host_logits; /* pinned, the same */
    struct gpu_outcome *outcome, *host_outcome;
    uint8_t **scratch;    /* of each thread: for the sampler */
    uint8_t *row_scratch; /* of each thread: for a row of the embedding */
    size_t row_scratch_bytes;
    struct gpu_buffer arena, host_arena; /* the latter pinned */
    struct gpu_buffer queries;           /* [cap + remote rows][n_heads][head_dim] bf16 */
    struct gpu_buffer store, stack, wire, host_wire;
    struct gpu_links *links; /* links.h; NULL: none were asked for yet */
    struct gpu_buffer lists, host_lists,
        scores; /* of sparse attention: the step's lists, on the host where others get them */
    struct gpu_places places, means_places, lists_places, weights_places[CUDA_WALK_BLOCKS / CUDA_WALK_STEP];
    struct sketch **weighed; /* whose rows of weights the step makes */
    struct sketch **listed;  /* whose lists */
    uint32_t n_weighed, weighed_room, n_listed, listed_room;

    /* this step */
    const struct step_input *input;
    struct gpu_op *ops;
    uint32_t n_ops, ops_room;
    struct gpu_list list[SECTIONS];
    size_t arena_bytes;
    uint32_t depth, items_max, join_blocks[2];
    uint32_t coded_vectors[2]; /* no unit of local, of remote coded ones has more */
    uint32_t *job_store; /* [attend.n_jobs]: where a job's items stand; one more than it says, where blocks are coded */
    size_t job_store_room;
    uint64_t parts_read, open_read;
    struct step_answers answers;
    bool overflow;
    bool selects;         /* some row of the step is sparse */
    uint32_t own_max;     /* blocks that a score has room for */
    uint64_t select_step; /* of steps with a selector */
    struct gpu_graph graphs[GPU_GRAPHS];
    uint64_t clock;

    /* run */
    const struct exchange_ops *exchange_ops;
    struct exchange *exchange;
    int64_t deadline_ns;
    uint16_t failed_peer;
    _Atomic int bad_row; /* sampling found logits that are not finite */
    uint32_t sample_begin, sample_end;
    struct step_cost cost;
};

/* enum status of a cudaError_t; says it, but for success */
enum status gpu_status(int error, const char *what);
/* At least bytes large; what it held is lost, and with it all graphs, which know its address. pinned: host memory. */
enum status gpu_reserve(struct backend *b, struct gpu_buffer *buffer, size_t bytes, bool pinned);
void gpu_graphs_drop(struct backend *b);
enum status gpu_sync(struct backend *b, const char *what);

/* setup.c: what struct backend_ops says */
extern const struct kv_memory_ops gpu_pool_memory;
enum status gpu_open(const struct backend_config *config, const struct model *model,
                     void (*progress)(void *ctx, float fraction), void *ctx, struct backend **backend_out,
                     struct error *err);
void gpu_close(struct backend *b);
void gpu_fingerprint(const struct backend *b, char *text_out, size_t bytes);
uint64_t gpu_weight_bytes(const struct backend *b);
void gpu_kv_layout(const struct backend *b, struct kv_layout *layout_out);
size_t gpu_open_part_bytes(const struct backend *b);
/* Of sealed blocks, which are not bf16. */
static inline enum cuda_codec gpu_codec(const struct backend *b)
{
    return b->codec == KV_INT8 ? CUDA_INT8 : CUDA_INT4_ROT;
}

/* weights.c */
enum status gpu_weights_load(struct backend *b, void (*progress)(void *ctx, float fraction), void *ctx,
                             struct error *err);
void gpu_weights_free(struct backend *b);
/* Device memory that counts as weights. */
enum status gpu_weights_alloc(struct backend *b, size_t bytes, void *out, struct error *err);
/* Rows tile * 64 .. of a tensor in bf16, NULL past its last. scratch: [64][row_room] */
void gpu_tile_rows(const struct model_tensor *t, uint32_t tile, uint8_t *scratch, size_t row_room,
                   const uint16_t *rows_out[CUDA_TILE]);

/* lossless.c */
/* Codes a matrix of lossless-fast for the GPU; out->lossless stays false where bf16 takes less. ST_CORRUPT: a pack's groups are not what they say. */
enum status gpu_lossless_load(struct backend *b, const struct model_tensor *t, struct gpu_matrix *out,
                              struct error *err);
/* Room for what products of many rows expand, once all is loaded. */
enum status gpu_lossless_room(struct backend *b, struct error *err);
/* A product with matrices of either form: l's parts but for `packed`. -> cudaError_t */
int gpu_product(struct backend *b, struct cuda_linear *l, const struct gpu_matrix *const *m);

/* arena.c: the step's plan for the device */
void *gpu_list_push(struct gpu_list *list, size_t bytes); /* NULL: no memory */
/* Makes *p, of host memory, at least bytes large; what it held is lost. */
bool gpu_host_reserve(void *p, size_t *room, size_t bytes);
enum status gpu_arena_build(struct backend *b);
/* A shape's number: steps of equal numbers are one graph. */
uint64_t gpu_arena_key(const struct backend *b);
void *gpu_at(const struct backend *b, int section); /* on the device */

/* ops.c */
struct cuda_kv gpu_kv(const struct backend *b);
/* Where blocks are open; the same if that is in place. */
struct cuda_kv gpu_open_kv(const struct backend *b);
gpu_op_fn gpu_embed, gpu_norm, gpu_norm_heads, gpu_linear, gpu_rope_store, gpu_seal, gpu_attend, gpu_attend_join,
    gpu_attend_finish, gpu_silu_mul, gpu_answer;
enum status gpu_sample(struct backend *b, uint32_t begin, uint32_t end);

/* select.c */
/* Places for the sketches that the step makes, and those that are on the host alone. ST_NOT_FOUND: one is missing. Before the arena is built. */
enum status gpu_select_begin(struct backend *b);
bool gpu_select_push(struct backend *b); /* its part of the arena */
gpu_op_fn gpu_sketch, gpu_sketch_send, gpu_sketch_receive, gpu_select;
/* The step is done: its sketches are there. */
enum status gpu_select_end(struct backend *b);
/* What is read in a layer, for units with lists. */
void gpu_select_lists(const struct backend *b, uint32_t layer, struct cuda_attend *a);
/* Bytes of choices behind the queries of a message; to the wire, the stream being idle; and from it to the device. */
size_t gpu_choices_bytes(const struct backend *b, enum attend_traffic kind, uint32_t message, uint32_t layer);
void gpu_choices_put(struct backend *b, uint32_t message, uint8_t *wire);
enum status gpu_choices_get(struct backend *b, uint32_t message, uint8_t *wire);
void *gpu_place_take(struct gpu_places *p); /* NULL: no memory */
void gpu_place_give(struct gpu_places *p, void *place);
void gpu_select_free(struct backend *b);
/* Room for n pointers; what was there is kept. */
bool gpu_pointers_grow(void *list, uint32_t *room, uint32_t n);

/* walk.c: what sketch-walk has beside that. Jobs: the local ones that are sparse. */
enum status gpu_walk_begin(struct backend *b);
bool gpu_walk_push(struct backend *b);
/* Rows of weights beside the pointers first .. n to sketches that job's sequence has; its lists' jobs. */
bool gpu_walk_push_job(struct backend *b, uint32_t job, uint32_t sketches);
int gpu_walk_sketch(struct backend *b, uint32_t layer);
int gpu_walk_select(struct backend *b, uint32_t layer); /* cudaError_t, as gpu_walk_sketch */
void gpu_walk_end(struct backend *b);

/* traffic.c */
gpu_op_fn gpu_send, gpu_receive;
/* Bytes that a step's messages have, in all layers. */
void gpu_traffic_count(const struct backend *b, struct step_cost *cost);

#ifdef __cplusplus
}
#endif
#endif
