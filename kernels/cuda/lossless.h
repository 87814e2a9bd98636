#ifndef LONGSPAN_KERNELS_CUDA_LOSSLESS_H
#define LONGSPAN_KERNELS_CUDA_LOSSLESS_H

/*
 * Products with weights of the codec lossless-fast: the bits of cuda_linear_run over the same weights in bf16, from three quarters of the bytes. The form
 * is the GPU's own, made at load from bf16 rows (as model/lossless.h decodes them):
 *   [ceil(n_out / 64)][2 ceil(n_in / 128)] tiles of 64 outputs by 64 inputs, then the list of escapes. A tile is
 *     signs and mantissas  [4 warps][2][32 lanes][16 bytes]: of two steps of 16 inputs, 2 x 4 registers of wgmma's operand A, two dwords a step;
 *                          dword q has of register 2q sign and mantissa in place, and rotated left by 8 those of register 2q + 1
 *     classes              [4][32][16 bytes]: a word a step; of register i its low weight in bits 4i, its high one in bits 16 + 4i
 *     [4][16 bytes]        per warp: base | escapes << 8, then up to three escapes; if there are more, the first's index in the list
 * Class c is exponent base + c, 15 an escape: lane | register << 5 | high << 9 | weight << 16, register 0 .. 15 of the tile.
 */

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_LOSSLESS_SIGNS = 4096,
    CUDA_LOSSLESS_CLASSES = 2048,
    CUDA_LOSSLESS_INLINE = 3, /* escapes of a warp that stand beside its tile */
    CUDA_LOSSLESS_TILE = CUDA_LOSSLESS_SIGNS + CUDA_LOSSLESS_CLASSES + 64
};

/* Bytes of a matrix's tiles; the list of escapes, 4 bytes each, stands right behind them. */
static inline size_t cuda_lossless_bytes(uint32_t n_out, uint32_t n_in)
{
    return ((size_t)n_out + 63) / 64 * (((size_t)n_in + 127) / 128 * 2) * CUDA_LOSSLESS_TILE;
}
/*
 * On the host: 64 rows as cuda_pack_tiles takes them. first: escapes listed before; escapes_out has room for 64 n_in. -> how many were listed. Whoever
 * packs compares tiles and list with bf16 and keeps what is smaller.
 */
uint32_t cuda_pack_lossless(const uint16_t *const rows[64], uint32_t n_in, uint32_t first, void *tiles_out,
                            uint32_t *escapes_out);

/* As cuda_linear_run, cuda_part.packed in this form; at most CUDA_ROWS_FEW rows. */
int cuda_linear_lossless_run(const struct cuda_linear *l, void *stream);
/* The same matrix as bf16 tiles, cuda_packed_bytes, for products of more rows. */
int cuda_lossless_expand(const void *packed, uint32_t n_out, uint32_t n_in, void *tiles_out, void *stream);

#ifdef __cplusplus
}
#endif
#endif
