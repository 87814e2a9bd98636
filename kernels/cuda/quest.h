#ifndef LONGSPAN_KERNELS_CUDA_QUEST_H
#define LONGSPAN_KERNELS_CUDA_QUEST_H

/*
 * Quest on the GPU: scores of a row's blocks and the best of them, the choices of kernels/selector.h bit for bit, denormal numbers being zeros as there.
 * A sketch is the bf16 bounds of a block's keys in one layer, in a layout of its own: [n_kv_heads][16 lanes][2][head_dim / 16], of lane l least and largest
 * of the channels 16 i + l, since lane sums run along those. head_dim 64 or 128.
 */

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_QUEST_FORCED = 4 /* SELECTOR_FORCED */, CUDA_QUEST_SLOTS = 64 /* SELECTOR_SLOTS */ };

static inline size_t cuda_quest_bytes(uint32_t n_kv_heads, uint32_t head_dim)
{
    return (size_t)n_kv_heads * head_dim * 4;
}

struct cuda_quest_sketch {
    uint32_t from; /* slot of the open pool: a complete block */
    uint32_t zero;
    uint8_t *to; /* its sketches: those of a layer at to + layer_bytes layer */
};
/* Of n complete open blocks, one layer: of the pool the layer kv_layer, of the sketches the layer `layer`. layer_bytes: cuda_quest_bytes or more. */
int cuda_quest_sketch(const struct cuda_kv *open, uint32_t kv_layer, size_t layer_bytes, uint32_t layer,
                      const struct cuda_quest_sketch *jobs, uint32_t n, void *stream);

/* One row. */
struct cuda_quest_job {
    uint32_t row; /* of q */
    uint32_t own,
        budget; /* the row's block; blocks to read, forced ones included (selector_budget), at most own + 1: everything */
    uint32_t sketches; /* of cuda_quest.sketches: block 0's */
    uint32_t list,
        words; /* KV head h's list is from word list + h words on, and as long: bits of blocks, the rest zeros */
};
struct cuda_quest {
    const struct cuda_quest_job *jobs; /* [n_jobs] */
    uint32_t n_jobs;
    uint32_t own_max;               /* no job's own block is beyond; the launch depends on it, bits do not */
    const uint8_t *const *sketches; /* of block after block; layer_bytes as above */
    size_t layer_bytes;
    const void *q; /* [rows][n_heads][head_dim] bf16 */
    float *scores; /* [n_jobs][n_kv_heads][own_max] */
    uint64_t *lists;
    uint32_t leaf_blocks; /* 0: the best of all blocks. Else the best of each slot, selector_choice.by_slot */
};
/* Block 0, the two before the own one, the own one, and the best budget - 4 of the rest by score, ties to the lower block: selector_choose. */
int cuda_quest_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream);
/* Its halves: the scores of rows that do not read everything; and the choice, where scores [n_jobs][n_lists][own_max] are there. */
int cuda_quest_score(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream);
int cuda_quest_choose(uint32_t n_lists, const struct cuda_quest *c, void *stream);

#ifdef __cplusplus
}
#endif
#endif
