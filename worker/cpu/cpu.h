#ifndef LONGSPAN_WORKER_CPU_CPU_H
#define LONGSPAN_WORKER_CPU_CPU_H

/* Inside the CPU backend: what its files share. */

#include <stdatomic.h>

#include "worker/backend.h"
#include "worker/team.h"

enum {
    CPU_LEAF_BLOCKS = 4, /* 256 positions; part of the fingerprint */
    CPU_UNIT_TILES = 4,  /* tiles that share a pass over keys and values, */
    CPU_LEAF_TILES = 16, /* and if they are of several jobs that read a leaf together */
    CPU_STACK = 48,      /* partials a program may stack: 2 log2 of the leaves, and a leaf's blocks */
    CPU_LOGIT_ROWS = 32, /* logit rows computed together */
};

struct cpu_weight {
    struct linear_shape shape;
    const struct linear_impl *impl;
    size_t group_bytes;
    uint8_t *packed;
    struct df11_code *df11; /* of DF11: what shape's points to */
};

struct cpu_layer {
    struct cpu_weight weight[MODEL_TENSOR_KINDS];
    float *vector[MODEL_TENSOR_KINDS]; /* norms, biases */
};

struct cpu_weights {
    struct cpu_layer *layers; /* [n_layers] */
    struct cpu_weight output;
    float *output_norm;
    struct model_tensor embedding;
    uint64_t bytes;
};

struct cpu_tensor {
    uint8_t *data;
    size_t width;  /* elements of a row that mean something */
    size_t stride; /* elements a row */
    enum dtype type;
};

struct cpu_op;
typedef void cpu_op_fn(struct backend *b, struct cpu_op *op, uint32_t member, uint32_t n_members);

/* One recorded operation. */
struct cpu_op {
    cpu_op_fn *fn;
    uint32_t layer;
    uint32_t in, out, kind; /* tensors, weights, traffic: what fn takes them for */
    struct backend_part parts[3];
    uint32_t n_parts;
    bool flag;             /* accumulate, local */
    uint32_t begin, end;   /* asks */
    _Atomic uint32_t next; /* units handed out */
};

/*
 * A unit of attention: some tiles of one job and KV head against one fine node, or the own leaf (fine == UINT32_MAX); or some tiles of the vectors of
 * all users of a shared leaf (leaf != UINT32_MAX).
 */
struct cpu_unit {
    uint32_t job, head, tile, n_tiles, fine, item, leaf;
};

/* A block's keys, then values, of one KV head as an open part, of codecs that are attended so: of the unit's last block. */
struct cpu_expanded {
    const uint8_t *part; /* whose; NULL: none yet */
    uint8_t *data;
};

/* Of codecs with a calibration: books of all parts, and angles. */
struct cpu_books {
    uint8_t *data; /* [n_layers][n_kv_heads][keys, values][bytes]; NULL: the codec has none */
    size_t bytes;
    float *first; /* [n_blocks][cos, sin][head_dim / 2] of blocks' first positions */
    float *step;  /* [cos, sin][head_dim / 2][KV_BLOCK] */
    uint32_t n_blocks;
    struct digest digest; /* of the calibration */
};

/* A part: of which layer and KV head, and of which block of its sequence. */
struct cpu_part_id {
    uint32_t layer, head, block;
};

/* What struct attn_shape.books points to while a part is sealed or expanded. */
struct cpu_book {
    struct kv_book of[2];
    struct kv_angles angles;
    float first[2][MODEL_HEAD_DIM_MAX / 2]; /* of blocks beyond those that are kept */
};

struct cpu_member {
    uint8_t *linear_scratch;
    float *stack;                  /* [CPU_STACK][CPU_UNIT_TILES] partial tiles, or [..][CPU_LEAF_TILES] */
    float *queries;                /* [ATTN_ROWS][head_dim] */
    uint8_t *q_tiles;              /* [CPU_LEAF_TILES] */
    uint8_t *open_q_tiles;         /* [CPU_UNIT_TILES]; NULL: no reader needs them */
    struct cpu_expanded *expanded; /* NULL: no reader expands */
    uint8_t *sample_scratch;
    uint8_t *row_scratch; /* one stored embedding row */
    uint8_t *select;      /* select.c's */
    size_t select_room;
};

/* Of each vector of a unit's tiles: the blocks that it reads, or NULL: all. */
struct cpu_lists {
    const uint64_t *of[CPU_LEAF_TILES][ATTN_ROWS];
};

/* How rows of a class read sealed blocks. */
struct cpu_reader {
    const struct attn_impl *attn;
    struct attn_shape shape; /* its */
    size_t q_tile_bytes;
    bool expands; /* attn reads what they expand to */
};

struct backend {
    const struct model *model;
    const struct model_config *config;
    struct team *team;
    _Atomic uint64_t *ops_done;
    const struct backend_tap *tap;
    uint32_t caps, n_threads, rows_max;
    bool float32;
    enum kv_codec codec;
    const struct row_impl *rows;
    const struct attn_impl *coded; /* what seals, and expands */
    const struct attn_impl *open;  /* what attends open blocks */
    struct cpu_reader reader[2];   /* by enum row_class; equal unless the codec's row classes differ */
    struct attn_shape coded_shape, open_shape;
    bool in_place; /* blocks are open in place */
    struct kv_spill spill;
    size_t part_bytes, partial_floats;
    size_t open_part_bytes, open_q_tile_bytes;
    uint8_t *scratch; /* open blocks of one layer: [rows_max / KV_BLOCK][n_kv_heads][keys, values]; NULL: none */
    struct cpu_weights weights;
    struct cpu_books books;
    struct cpu_tensor tensor[TENSORS];
    float *cos, *sin;    /* [rows_max][head_dim / 2] of this step's rows */
    float *logits;       /* [CPU_LOGIT_ROWS][n_vocab] */
    uint8_t *logit_rows; /* [CPU_LOGIT_ROWS][stride of H]: normed rows whose logits are wanted */
    struct cpu_member *members;

    /* this step */
    const struct step_input *input;
    struct cpu_op *ops;
    uint32_t n_ops, ops_room;
    struct cpu_unit *units;
    uint32_t n_units, n_local_units, units_room;
    bool selects;    /* some row of the step is sparse */
    uint64_t *lists; /* of one layer: struct select says where */
    size_t lists_room;
    struct cpu_owners *owners;        /* owners.c's, or NULL */
    _Atomic uint64_t parts_skipped;   /* of parts_read in one layer: in all layers together */
    uint64_t open_read;               /* the same of open blocks that are not open in place */
    uint64_t parts_read, parts_dense; /* pairs of a block's keys and values of one KV head, in one layer */
    float *store;                     /* partial tiles of attend's items */
    size_t store_room;
    uint8_t *window; /* queries of other homes' rows, wire type */
    size_t window_room;
    uint8_t *wire; /* one message */
    size_t wire_room;
    struct step_answers answers;
    bool overflow; /* recording ran out of memory: run says so */

    /* run */
    const struct exchange_ops *exchange_ops;
    struct exchange *exchange;
    int64_t deadline_ns;
    _Atomic int failed;       /* enum status of the first failure */
    _Atomic uint32_t stop_at; /* the operation after which the list ends early */
    uint16_t failed_peer;
    struct step_cost cost;
};

/* 64-byte aligned, NULL if there is no memory; free() it. */
void *cpu_alloc(size_t bytes);
/* Makes *p at least bytes large; its old content is lost. */
bool cpu_reserve(void *p, size_t *room, size_t bytes);
void cpu_fail(struct backend *b, enum status st, uint16_t peer);

/* weights.c */
enum status cpu_weights_load(struct backend *b, void (*progress)(void *ctx, float fraction), void *ctx,
                             struct error *err);
void cpu_weights_free(struct backend *b);

/* rows.c: ops on rows */
cpu_op_fn cpu_embed, cpu_norm, cpu_norm_heads, cpu_linear, cpu_rope_store, cpu_silu_mul, cpu_answer_norm,
    cpu_answer_logits, cpu_answer_sample;

/* books.c. calibration NULL: the codec must need none. */
enum status cpu_books_open(struct backend *b, const struct calibration *calibration, struct error *err);
void cpu_books_free(struct backend *b);
/* Of keys and values, [2]; NULL: the codec has none. */
const struct kv_book *cpu_book_of(const struct backend *b, const struct cpu_part_id *id, struct cpu_book *book);

/* seal.c */
cpu_op_fn cpu_seal;
/* Keys of an open block's KV head; values open_part_bytes behind. slot, open: as in struct step_row. */
uint8_t *cpu_open_part(const struct backend *b, uint32_t slot, uint32_t open, uint32_t layer, uint32_t head);

/* select.c */
bool cpu_select_reserve(struct backend *b);
cpu_op_fn cpu_sketch_queries, cpu_sketch_make, cpu_sketch_send, cpu_sketch_receive, cpu_select_weights, cpu_select;
/* Bytes of choices behind the queries of message i of a kind. */
size_t cpu_choices_bytes(const struct backend *b, uint32_t kind, uint32_t message, uint32_t layer);
void cpu_choices_put(struct backend *b, uint32_t message, uint8_t *wire);
void cpu_choices_get(struct backend *b, uint32_t message, uint8_t *wire);

/* owners.c: lists of what several owners score */
bool cpu_owners_reserve(struct backend *b);
void cpu_owners_free(struct backend *b);
cpu_op_fn cpu_owners_score, cpu_owners_choose, cpu_owners_lists;
/* A thread's scratch for scores (select.c): pointers to sketches, queries, scores [n_kv_heads][blocks]. */
void cpu_select_scratch(const struct backend *b, uint32_t member, const void ***pointers_out, const float ***q_out,
                        float **queries_out, float **scores_out);

/* attend_sparse.c */
/* The lists of the unit's vectors in a layer; false: they read everything. */
bool cpu_unit_lists(const struct backend *b, const struct cpu_unit *u, uint32_t layer, struct cpu_lists *lists);
/* As attend_whole(), where some of the vectors have lists. */
void cpu_attend_whole_sparse(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                             uint32_t begin, uint32_t end, const struct cpu_lists *lists);
/* visible [n] of tile t becomes 0 where the list lacks the block. false: none of them sees any of it. */
bool cpu_lists_filter(const struct cpu_lists *lists, uint32_t t, uint32_t n, uint32_t block, uint8_t *visible);

/* attend.c: partials */
/* A query: of a local job's rows, or of those received, which are turned into `to` [head_dim] if they are bf16. */
const float *cpu_query_vector(const struct backend *b, const struct attend_job *job, uint32_t head, uint32_t v,
                              float *to);
uint32_t cpu_unit_vectors(const struct backend *b, const struct cpu_unit *u, uint32_t t);
const struct cpu_reader *cpu_unit_reader(const struct backend *b, const struct cpu_unit *u);
float *cpu_stack_tile(const struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t depth,
                      uint32_t t);
void cpu_attend_block(struct backend *b, const struct cpu_member *m, const struct cpu_unit *u, uint32_t layer,
                      uint32_t at, uint32_t next, uint32_t depth, uint32_t t, const uint8_t *visible);
void cpu_partial_clear(const struct backend *b, float *tile);
bool cpu_units_build(struct backend *b);
cpu_op_fn cpu_attend, cpu_attend_join, cpu_attend_finish;

/* traffic.c: exchanges */
cpu_op_fn cpu_send, cpu_receive;

/* A partial tile of the store. */
static inline float *cpu_store_tile(const struct backend *b, const struct attend_job *job, uint32_t item, uint32_t head,
                                    uint32_t tile)
{
    const size_t index = job->store + ((size_t)item * b->config->n_kv_heads + head) * job->n_tiles + tile;
    return b->store + index * b->partial_floats;
}

/* Vectors in a tile of a job: all but the last are full. */
static inline uint32_t cpu_tile_vectors(const struct backend *b, const struct attend_job *job, uint32_t tile)
{
    const uint32_t n = job->n_rows * (b->config->n_heads / b->config->n_kv_heads), first = tile * ATTN_ROWS;
    return n - first < ATTN_ROWS ? n - first : ATTN_ROWS;
}

#endif
