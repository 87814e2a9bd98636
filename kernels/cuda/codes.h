#ifndef LONGSPAN_KERNELS_CUDA_CODES_H
#define LONGSPAN_KERNELS_CUDA_CODES_H

/*
 * Coded blocks of KV on the GPU: sealing, and attention over them. Codes, scales and least values are those of kernels/cpu/kv.h bit for bit; where
 * they stand is this header's own, chosen so that a 16-byte load of a lane is what its integer products (mma m16n8k32) take as the operand of 16 rows:
 *   keys    rows are positions, the product runs along channels;   codes [64 / 16][.][32 lanes][16 bytes]
 *   values  rows are channels, the product runs along positions;   codes [D / 16][.][32 lanes][16 bytes]
 *   int8: a byte is a code; int4-rot: its low half is one of row r < 8 of the 16, its high half the same of row r + 8.
 * Behind the codes of a part stand, at cuda_code_scale_at() of a position: int8 the scale (f16); int4-rot scale and least value (two f16).
 * A part's values stand right behind its keys. head_dim 64 or 128.
 */

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define CUDA_BOTH static __host__ __device__ __forceinline__
#else
#define CUDA_BOTH static inline
#endif

enum cuda_codec { CUDA_INT8, CUDA_INT4_ROT };

CUDA_BOTH uint32_t cuda_code_bytes(enum cuda_codec codec, uint32_t head_dim)
{
    return 64 * head_dim / (codec == CUDA_INT8 ? 1 : 2);
}
/* Bytes of a part: cuda_kv.part_bytes of a pool of coded blocks. */
CUDA_BOTH uint32_t cuda_code_part_bytes(enum cuda_codec codec, uint32_t head_dim)
{
    return cuda_code_bytes(codec, head_dim) + (codec == CUDA_INT8 ? 128 : 256);
}

struct cuda_code {
    uint32_t byte, shift; /* of its part; 0 or 4 */
};
/* Row r of 16, element k of 32 of product `step` of `steps`: the place inside rows 16 group .. */
CUDA_BOTH struct cuda_code cuda_code_at(enum cuda_codec codec, uint32_t steps, uint32_t group, uint32_t r,
                                        uint32_t step, uint32_t k)
{
    const uint32_t lane = r % 8 * 4 + k % 16 / 4, high = r / 8, run = k / 16;
    struct cuda_code at = { 0, 0 };
    if (codec == CUDA_INT8) {
        at.byte = ((group * steps + step) * 32 + lane) * 16 + (high + 2 * run) * 4 + k % 4;
    } else {
        const uint32_t word = 2 * step + run;
        at.byte = ((group * (steps / 2) + word / 4) * 32 + lane) * 16 + word % 4 * 4 + k % 4;
        at.shift = 4 * high;
    }
    return at;
}
CUDA_BOTH struct cuda_code cuda_key_at(enum cuda_codec codec, uint32_t head_dim, uint32_t position, uint32_t channel)
{
    return cuda_code_at(codec, head_dim / 32, position / 16, position % 16, channel / 32, channel % 32);
}
/* Positions run along a product in the order in which a lane's weights come out of the product before. */
CUDA_BOTH struct cuda_code cuda_value_at(enum cuda_codec codec, uint32_t position, uint32_t channel)
{
    const uint32_t lane = position % 8, i = position / 8; /* its i-th of eight weights */
    return cuda_code_at(codec, 2, channel / 16, channel % 16, lane % 2, i / 4 * 16 + lane / 2 * 4 + i % 4);
}
/* Byte of a part where the position's scale stands. */
CUDA_BOTH uint32_t cuda_code_scale_at(enum cuda_codec codec, uint32_t head_dim, uint32_t position)
{
    const uint32_t i = position % 8 * 8 + position / 8;
    return cuda_code_bytes(codec, head_dim) + i * (codec == CUDA_INT8 ? 2 : 4);
}

struct cuda_seal {
    uint32_t from, to; /* slots: of the open pool, of the sealed one */
};
struct cuda_seals {
    const struct cuda_seal *jobs;
    const uint32_t *n_jobs; /* on the device */
    enum cuda_codec codec;
    uint32_t *failed; /* set to 1 if a value is not finite: its position then has codes and scales 0 */
};
/* Whole blocks of one layer, bf16 as struct cuda_kv has them, to codes. grid: jobs at a time. */
int cuda_seal_run(const struct cuda_kv *open, const struct cuda_kv *sealed, uint32_t layer, const struct cuda_seals *s,
                  uint32_t grid, void *stream);

/*
 * As cuda_attend_run, over coded blocks: the same units, programs and tiles (of which only vectors that exist are written), the result in the
 * coordinates of q: what the codec rotated is turned back. n_vectors: no unit has more, from its first on; the launch depends on it, bits do not. n_warps:
 * warps to launch, each of which takes units by itself; 0: as many as the GPU holds. Integers as in kernels/cpu/kv.h, of the largest possible weight
 * of a block: sums do not depend on their order, but for a leaf's blocks, which come one after the other.
 */
int cuda_attend_codes_run(const struct cuda_kv *kv, uint32_t layer, enum cuda_codec codec, const struct cuda_attend *a,
                          uint32_t n_vectors, uint32_t n_warps, void *stream);

#ifdef __cplusplus
}
#endif
#endif
