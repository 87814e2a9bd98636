#ifndef LONGSPAN_KERNELS_CPU_LINEAR_EXPAND_H
#define LONGSPAN_KERNELS_CPU_LINEAR_EXPAND_H

/*
 * Products with codecs whose groups are first made what the same weights are in BF16: a few groups at a time, in scratch that stays in the cache, which the
 * variant's own BF16 product then reads. So bits are those of BF16 in that variant, and the memory that is streamed is the codec's.
 */

#include "kernels/cpu/linear_layout.h"

/* A group's blocks in BF16's packed form: linear_n_blocks(shape) * LINEAR_BLOCK_BF16 bytes. The same bits in every variant. */
typedef void linear_expand_fn(const struct linear_shape *shape, const uint8_t *group, uint8_t *out);

/* bf16: the variant's functions for BF16. */
size_t linear_scratch_expanded(const struct linear_shape *shape, uint32_t n_rows,
                               size_t (*bf16)(const struct linear_shape *shape, uint32_t n_rows));
void linear_run_expanded(const struct linear_args *args, linear_expand_fn *expand,
                         size_t (*scratch_bf16)(const struct linear_shape *shape, uint32_t n_rows),
                         void (*run_bf16)(const struct linear_args *args));

/* Inputs of a group's last block that are not there become zeros. */
static inline void linear_clear_padding(const struct linear_shape *s, uint16_t *last_block)
{
    for (uint32_t k = s->n_in % LINEAR_BLOCK; k && k < LINEAR_BLOCK; k++)
        for (uint32_t n = 0; n < LINEAR_GROUP; n++)
            last_block[k / 2 * LINEAR_BLOCK + 2 * n + k % 2] = 0;
}

void linear_expand_c(const struct linear_shape *shape, const uint8_t *group, uint8_t *out);
void linear_expand_avx2(const struct linear_shape *shape, const uint8_t *group, uint8_t *out);
void linear_expand_avx512(const struct linear_shape *shape, const uint8_t *group, uint8_t *out);

#endif
