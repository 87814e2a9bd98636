#ifndef LONGSPAN_KERNELS_CUDA_QUEST_H
#define LONGSPAN_KERNELS_CUDA_QUEST_H

/*
 * Quest on the GPU: scores of a row's blocks and the best of them, the choices of kernels/selector.h bit for bit. A sketch is the bf16 bounds of a block's
 * keys in one layer, in a layout of its own: [n_kv_heads][16 lanes][2][head_dim / 16], of lane l least and largest of the channels 16 i + l, since lane
 * sums run along those. head_dim 64 or 128.
 */

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_QUEST_FORCED = 4 /* SELECTOR_FORCED */ };

static inline size_t cuda_quest_bytes(uint32_t n_kv_heads, uint32_t head_dim)
{
    return (size_t)n_kv_heads * head_dim * 4;
}

/* Sketches by the pool's slots: those of a slot and layer at sketches + slot block_bytes + layer layer_bytes. */
struct cuda_sketches {
    uint8_t *pool;
    size_t block_bytes, layer_bytes;
};
/* Of n complete open blocks, by slot, one layer. from, to [n]: slots of the open pool, of the sketches. */
int cuda_quest_sketch(const struct cuda_kv *open, const struct cuda_sketches *sketches, uint32_t layer,
                      const uint32_t *from, const uint32_t *to, uint32_t n, void *stream);

struct cuda_quest {
    const void *q;         /* [n_heads][head_dim] bf16: the row's */
    const uint32_t *slots; /* [own + 1]: where block b is, its sketch and its keys and values */
    uint32_t own;          /* the row's block */
    uint32_t budget;       /* blocks to read, forced ones included (selector_budget); CUDA_QUEST_FORCED .. own */
    float *scores;         /* [n_kv_heads][own] */
    uint32_t *list;        /* [n_kv_heads][budget]: blocks, ascending; NULL: not wanted */
    uint32_t *slots_out;   /* [n_kv_heads][budget]: their slots: what units of cuda_attend may name */
};
/* Block 0, the two before the own one, the own one, and the best budget - 4 of the rest by score, ties to the lower block. */
int cuda_quest_run(const struct cuda_kv *kv, const struct cuda_sketches *sketches, uint32_t layer,
                   const struct cuda_quest *c, void *stream);

#ifdef __cplusplus
}
#endif
#endif
