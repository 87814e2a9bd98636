#ifndef LONGSPAN_KERNELS_CPU_LINEAR_LAYOUT_H
#define LONGSPAN_KERNELS_CPU_LINEAR_LAYOUT_H

/*
 * The packed form of weights, the same for all CPU variants. A group is LINEAR_GROUP outputs; n is an output's place in it. A group is a
 * run of blocks of 32 inputs (the last padded with zeros), a block is a run of 64-byte lines of 16 dwords, dword n for output n:
 *
 *   F32   32 lines; line k: the weights of input k
 *   F16   16 lines of 2 x 16 halves; half n of half-line k: input k
 *   BF16  16 lines; line j: inputs 2j (low half of dword n) and 2j+1 (high half): AMX's B operand as it stands
 *   Q8_0   8 lines; line j: byte i of dword n is input 4j+i
 *   Q4_0, Q4_1, Q4_Z  4 lines; line j: of input 8j+2i the code is in bits 4i.., of 8j+2i+1 in bits 16+4i.. of dword n. So bits 4i..4i+3 of the 32
 *         16-bit words of a line are row 4j+i of AMX's B operand, and a shift and a table look-up of words expands them.
 *
 *   Q5_0, Q5_1, Q5_K  5 lines: the low four bits as above; then of row r of B the fifth bit in bit r of each word
 *   Q4_K  4 lines as Q4_0
 *   Q6_K  6 lines: the low four bits as above; then of row r the upper two bits in bits 2 (r % 8).. of each word of line 4 + r / 8
 *
 * Blocks of the other Q types come in pairs, so that all is 64-byte aligned: codes of both, then d [2][16] f16, then (Q4_1, Q5_1, Q4_Z)
 * m (Q4_Z: z) [2][16] f16. With an odd number of blocks the last pair's second half is zeros. Those of the K types come in eights, as stored:
 *   Q4_K, Q5_K  codes of all, d [16] f16, m [16] f16, scale [8][16] u8, min [8][16] u8
 *   Q6_K        codes of all, d [16] f16, 32 bytes of zeros, scale [16][16] i8, two a block
 */

#include "kernels/kernels.h"
#include "model/df11.h"
#include "model/lossless.h"

enum { LINEAR_BLOCK = 32, LINEAR_BLOCK_BF16 = 1024, LINEAR_CODES_Q4 = 256, LINEAR_CODES_Q8 = 512, LINEAR_SCALES = 64 };
enum { LINEAR_CODES_Q5 = 320, LINEAR_CODES_Q6 = 384, LINEAR_K_BLOCKS = 8, LINEAR_K_SCALES = 64 + 256 };

static inline size_t linear_n_blocks(const struct linear_shape *s)
{
    return ((size_t)s->n_in + LINEAR_BLOCK - 1) / LINEAR_BLOCK;
}

static inline bool linear_is_q(enum weight_codec c)
{
    return c != WEIGHT_F32 && c != WEIGHT_F16 && c != WEIGHT_BF16 && (c < WEIGHT_LOSSLESS_FAST || c == WEIGHT_Q4_Z);
}

/* Codecs whose groups become BF16's in the cache, and are multiplied as those (linear_expand.h). */
static inline bool linear_is_expanded(enum weight_codec c)
{
    return c == WEIGHT_DF11 || weight_grid_bits(c);
}

static inline bool linear_is_k(enum weight_codec c)
{
    return c == WEIGHT_Q4_K || c == WEIGHT_Q5_K || c == WEIGHT_Q6_K;
}

/* Q types with an m, or in its place a zero point, a block of 32. */
static inline bool linear_has_m(enum weight_codec c)
{
    return c == WEIGHT_Q4_1 || c == WEIGHT_Q5_1 || c == WEIGHT_Q4_Z;
}

/* Bytes of a block's codes (of LOSSLESS_FAST when they are decoded, which makes them BF16's), and of a pair of blocks with its scales (of the K types: a quarter of eight with theirs). */
static inline size_t linear_codes_bytes(enum weight_codec c)
{
    return c == WEIGHT_LOSSLESS_FAST                                  ? LINEAR_BLOCK_BF16
           : c == WEIGHT_F32                                          ? 2048
           : c == WEIGHT_F16 || c == WEIGHT_BF16                      ? LINEAR_BLOCK_BF16
           : c == WEIGHT_Q8_0                                         ? LINEAR_CODES_Q8
           : c == WEIGHT_Q6_K                                         ? LINEAR_CODES_Q6
           : c == WEIGHT_Q5_0 || c == WEIGHT_Q5_1 || c == WEIGHT_Q5_K ? LINEAR_CODES_Q5
                                                                      : LINEAR_CODES_Q4;
}

static inline size_t linear_pair_bytes(enum weight_codec c)
{
    const size_t scales = linear_is_k(c)    ? LINEAR_K_SCALES * 2 / LINEAR_K_BLOCKS
                          : linear_has_m(c) ? 2 * LINEAR_SCALES
                          : linear_is_q(c)  ? LINEAR_SCALES
                                            : 0;
    return 2 * linear_codes_bytes(c) + scales;
}

/* Rows of the K types are whole eights. */
static inline size_t linear_group_stride(enum weight_codec c, size_t n_blocks)
{
    return linear_is_q(c) ? (n_blocks + 1) / 2 * linear_pair_bytes(c) : n_blocks * linear_codes_bytes(c);
}

/* Of the Q types: how many blocks lie together, and the first line of those that block b is one of. */
static inline size_t linear_run_blocks(enum weight_codec c)
{
    return linear_is_k(c) ? LINEAR_K_BLOCKS : 2;
}

static inline const uint8_t *linear_run_at(enum weight_codec c, const uint8_t *group, size_t b)
{
    return group + b / linear_run_blocks(c) * (linear_run_blocks(c) / 2 * linear_pair_bytes(c));
}

/* Where block b of a group has its codes, and of the Q types its d [16] and m [16]; d and m of the K types are for eight blocks. */
static inline const uint8_t *linear_codes(enum weight_codec c, const uint8_t *group, size_t b)
{
    if (!linear_is_q(c))
        return group + b * linear_codes_bytes(c);
    return linear_run_at(c, group, b) + b % linear_run_blocks(c) * linear_codes_bytes(c);
}

static inline const uint16_t *linear_d(enum weight_codec c, const uint8_t *group, size_t b)
{
    const uint8_t *d = linear_run_at(c, group, b) + linear_run_blocks(c) * linear_codes_bytes(c);
    return (const uint16_t *)d + (linear_is_k(c) ? 0 : b % 2 * LINEAR_GROUP);
}

static inline const uint16_t *linear_m(enum weight_codec c, const uint8_t *group, size_t b)
{
    return linear_d(c, group, b) + (linear_is_k(c) ? 1 : 2) * LINEAR_GROUP;
}

/* Of the K types: block b's scale [16], of Q6_K [2][16] for its halves; of Q4_K and Q5_K its min [16]. */
static inline const int8_t *linear_scale(enum weight_codec c, const uint8_t *group, size_t b)
{
    const int8_t *scales = (const int8_t *)(linear_d(c, group, b) + 2 * LINEAR_GROUP);
    return scales + b % LINEAR_K_BLOCKS * (c == WEIGHT_Q6_K ? 2 * LINEAR_GROUP : LINEAR_GROUP);
}

static inline const uint8_t *linear_min(enum weight_codec c, const uint8_t *group, size_t b)
{
    return (const uint8_t *)linear_scale(c, group, b) + LINEAR_K_BLOCKS * LINEAR_GROUP;
}

/* Of LOSSLESS_FAST: a group is records, padded to whole lines, planes, and room for escapes; the parts of the group at `packed`. */
static inline size_t linear_lossless_records(const struct linear_shape *s)
{
    return (linear_n_blocks(s) * sizeof(uint32_t) + 63) / 64 * 64;
}

static inline size_t linear_lossless_stride(const struct linear_shape *s)
{
    return linear_lossless_records(s) + linear_n_blocks(s) * lossless_block_bytes(s->class_bits) + s->escape_room;
}

static inline struct lossless_group linear_lossless_group(const struct linear_shape *s, const uint8_t *packed)
{
    const uint8_t *planes = packed + linear_lossless_records(s);
    const size_t n_blocks = linear_n_blocks(s);
    return (struct lossless_group){ .class_bits = s->class_bits,
                                    .n_blocks = (uint32_t)n_blocks,
                                    .n_escapes = s->escape_room,
                                    .planes = planes,
                                    .escapes = planes + n_blocks * lossless_block_bytes(s->class_bits),
                                    .records = (const uint32_t *)packed };
}

/*
 * Of LEANQUANT_n: a group is the grids [16][16] bf16, zeros past 2^n, and blocks. A block is 16 vectors of 32 words, v = 4 R + Q for rows 4R .. 4R+3 of B and
 * outputs 4Q .. 4Q+3: word w is of row 4R + w / 8, output 4Q + w % 8 / 2, input w % 2 of the row's two, so that a look-up in the grids of four outputs makes
 * a vector. A word's codes lie in lines of 32 words: 4 bits of vector v in bits 4 (v % 4).. of line v / 4; 2 bits in bits 2 (v % 8).. of line v / 8; of 3 bits
 * the lower two so, the third in bit v of line 2.
 */
enum { LINEAR_GRIDS = 512 };

static inline size_t linear_grid_block(enum weight_codec c)
{
    return 64 * (size_t)weight_grid_bits(c);
}

/* Of DF11: a group is offsets of tiles, padded to whole lines, signs, and room for the stream; the parts of the group at `packed`. */
static inline size_t linear_df11_offsets(const struct linear_shape *s)
{
    return (df11_tiles(s->n_in) * sizeof(uint32_t) + 63) / 64 * 64;
}

static inline size_t linear_df11_stride(const struct linear_shape *s)
{
    return linear_df11_offsets(s) + linear_n_blocks(s) * DF11_WEIGHTS + s->stream_room;
}

static inline struct df11_group linear_df11_group(const struct linear_shape *s, const uint8_t *packed)
{
    const uint8_t *signs = packed + linear_df11_offsets(s);
    return (struct df11_group){ .code = s->df11,
                                .n_cols = s->n_in,
                                .signs = signs,
                                .stream = signs + linear_n_blocks(s) * DF11_WEIGHTS,
                                .offsets = (const uint32_t *)packed,
                                .stream_bytes = s->stream_room };
}

/* linear_impl.group_bytes and .pack of every CPU variant */
size_t linear_group_bytes(const struct linear_shape *shape);
void linear_pack(const struct linear_shape *shape, const void *const rows[LINEAR_GROUP], void *group_out);

#endif
