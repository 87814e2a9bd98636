#ifndef LONGSPAN_COORDINATOR_TOKENIZER_BPE_INTERNAL_H
#define LONGSPAN_COORDINATOR_TOKENIZER_BPE_INTERNAL_H

/* What a vocabulary is made to (bpe_build.c), for pieces to be encoded by (bpe.c). */

#include <stdbool.h>

#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/text_map.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BPE_NO_RANK UINT32_MAX

struct merge_slot {
    uint32_t left, right, rank, made;
};

struct bpe {
    struct merge_slot *merges; /* by pair, open addressing; rank BPE_NO_RANK: free */
    size_t merges_mask;
    uint64_t seed;
    bool characters;       /* SENTENCEPIECE: symbols are characters at first */
    int32_t byte_id[256];  /* -1: no token */
    struct text_map chars; /* of one character, if `characters` */
    struct text_map whole; /* pieces that are one token in the end, by their bytes */
    uint8_t *whole_bytes;  /* what the maps' texts point into */
    size_t token_bytes_max;
};

static inline size_t pair_hash(const struct bpe *b, uint32_t left, uint32_t right)
{
    const uint64_t h = (((uint64_t)left << 32 | right) ^ b->seed) * 0x9E3779B97F4A7C15u;
    return (size_t)(h ^ h >> 32);
}

/* The pair's slot, or the free one that it would have. */
static inline struct merge_slot *merge_slot_of(const struct bpe *b, uint32_t left, uint32_t right)
{
    for (size_t i = pair_hash(b, left, right) & b->merges_mask;; i = (i + 1) & b->merges_mask) {
        struct merge_slot *s = &b->merges[i];
        if (s->rank == BPE_NO_RANK || (s->left == left && s->right == right))
            return s;
    }
}

#ifdef __cplusplus
}
#endif
#endif
