#ifndef LONGSPAN_KERNELS_CUDA_SKETCH_WALK_H
#define LONGSPAN_KERNELS_CUDA_SKETCH_WALK_H

/*
 * Sketch-walk on the GPU: the sketches, weights, walks and choices of kernels/selector.h bit for bit, denormal numbers being zeros as there. A sketch is
 * [query half, key half][64] f32. head_dim 64 or 128.
 */

#include "kernels/cuda/quest.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_WALK_BLOCKS = 4096, /* SELECTOR_WALK_BLOCKS */
    CUDA_WALK_DIM = 64,      /* SELECTOR_WALK_DIM */
    CUDA_WALK_BYTES = 2 * CUDA_WALK_DIM * 4,
    CUDA_WALK_STEP = 256
};

/* Floats of a block's query means in all layers: [layers][64 positions][head_dim] */
static inline size_t cuda_walk_means_floats(uint32_t n_layers, uint32_t head_dim)
{
    return (size_t)n_layers * 64 * head_dim;
}

struct cuda_walk_row {
    float *means; /* of the row's block */
    uint32_t position, zero;
};
/* The mean over heads of each row's queries: selector_q_mean. q [n_rows][n_heads][head_dim] bf16 */
int cuda_walk_means(const struct cuda_kv *kv, uint32_t layer, const void *q, const struct cuda_walk_row *rows,
                    uint32_t n_rows, void *stream);

struct cuda_walk_sketch {
    uint32_t from, zero; /* slot of the open pool: a complete block */
    const float *means;
    uint8_t *to; /* as in struct cuda_quest_sketch */
};
int cuda_walk_sketch(const struct cuda_kv *open, uint32_t kv_layer, size_t layer_bytes, uint32_t layer,
                     const struct cuda_walk_sketch *jobs, uint32_t n, void *stream);

/* Room of row `block` of the walk's weights in each layer: [block + 1] bf16, and some. */
static inline uint32_t cuda_walk_room(uint32_t block)
{
    return (block / CUDA_WALK_STEP + 1) * CUDA_WALK_STEP;
}
/* That row; of a layer at to + cuda_walk_room(block) layer. */
struct cuda_walk_weights {
    uint32_t block, sketches; /* of `sketches`: block 0's */
    uint16_t *to;
};
int cuda_walk_weights(const struct cuda_kv *kv, const uint8_t *const *sketches, size_t layer_bytes, uint32_t layer,
                      const struct cuda_walk_weights *jobs, uint32_t n, void *stream);

struct cuda_walk {
    struct cuda_quest choose;       /* jobs' rows, and q, mean nothing; scores [n_jobs][own_max]; a list a job */
    const uint16_t *const *weights; /* beside choose.sketches: rows of weights, in layer 0 */
    float *walk;                    /* [2][n_jobs][own_max]: where the walks are; kept from layer to layer */
};
/* Layers in turn, from 0 on: lists of each job from the walk of the block before its own. */
int cuda_walk_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_walk *w, void *stream);

/* A list that is kept for later steps: of a layer at kept + CUDA_WALK_BLOCKS / 64 layer, n words, of `words` in the step's lists. */
struct cuda_walk_kept {
    uint64_t *kept;
    uint32_t list, words, n;
    uint32_t made; /* to `kept`, else from there, and zeros behind */
};
int cuda_walk_keep(uint32_t layer, uint64_t *lists, const struct cuda_walk_kept *jobs, uint32_t n, void *stream);

#ifdef __cplusplus
}
#endif
#endif
