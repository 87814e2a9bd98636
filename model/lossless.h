#ifndef LONGSPAN_MODEL_LOSSLESS_H
#define LONGSPAN_MODEL_LOSSLESS_H

/*
 * bf16 weights in fewer bits, every bit pattern kept: sign and mantissa as they are, exponents as classes of 3 or 4 bits relative to a base,
 * what is far from the base as a list of bytes in order. Fixed places, so that any block starts without reading the one before. After ZipServ
 * (arXiv:2603.17435); the format is our own.
 *
 * The unit is a block: 16 outputs (a group) by 32 inputs, in the order in which the CPU's products consume them (layout LOSSLESS_LAYOUT_CPU).
 * With p = 0 .. 7, output n and i = 0 .. 3, input k = 4 p + i of output n is code byte j = 4 n + (i & 1) * 2 + i / 2 of step p.
 *
 *   8 lines of 64 bytes, line p: dword n holds signs s and mantissas m of inputs 4p .. 4p+3:
 *     byte 0: m0 | s2 << 7   byte 1: m3 | s0 << 7   byte 2: m1 | s3 << 7   byte 3: m2 | s1 << 7
 *   so that the dword as it stands has s0, m0, s1, m1 where two bf16 have them, and rotated left by 8 s2, m2, s3, m3.
 *   3 lines A, B, C of 3-bit classes; byte j has of step p:   p = 0, 1: A bits 0.., 3..   2, 3: B   4, 5: C
 *     6: A bits 6, 7 and C bit 6   7: B bits 6, 7 and C bit 7   (lowest bit first)
 *   or 4 lines of 4-bit classes: line p / 2, lower or upper half of byte j
 *
 * Class c is exponent base + c; the highest class is an escape: the next byte of the group's list, by p and j, is the exponent.
 * A block's record: escapes of the group before it << 8 | base. Inputs and outputs that pad the last block or group have class 0.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOSSLESS_OUTS = 16,
    LOSSLESS_INS = 32,
    LOSSLESS_WEIGHTS = LOSSLESS_OUTS * LOSSLESS_INS,
    LOSSLESS_LAYOUT_CPU = 1,
    LOSSLESS_SIGNS_BYTES = 512,
};

static inline uint32_t lossless_blocks(uint32_t n_cols)
{
    return (n_cols + LOSSLESS_INS - 1) / LOSSLESS_INS;
}

static inline uint32_t lossless_groups(uint32_t n_rows)
{
    return (n_rows + LOSSLESS_OUTS - 1) / LOSSLESS_OUTS;
}

/* Bytes of a block without its escapes. class_bits: 3 or 4 */
static inline size_t lossless_block_bytes(uint32_t class_bits)
{
    return LOSSLESS_SIGNS_BYTES + class_bits * 64;
}

static inline uint32_t lossless_base(uint32_t record)
{
    return record & 255;
}

static inline uint32_t lossless_escapes_before(uint32_t record)
{
    return record >> 8;
}

/* The largest base whose classes are exponents. */
static inline uint32_t lossless_base_max(uint32_t class_bits)
{
    return 255 - ((1u << class_bits) - 2);
}

/* One group. Borrowed memory: planes [n_blocks][lossless_block_bytes], records [n_blocks], escapes [n_escapes] */
struct lossless_group {
    uint32_t class_bits, n_blocks, n_escapes;
    const uint8_t *planes, *escapes;
    const uint32_t *records;
};

/* A stored tensor [n_rows][n_cols], groups one after the other; escapes of group g are starts[g] .. starts[g + 1] - 1 of the list. */
struct lossless_tensor {
    uint32_t n_rows, n_cols, class_bits;
    uint64_t n_escapes;
    const uint8_t *planes, *escapes;
    const uint32_t *records; /* [n_groups][n_blocks] */
    const uint64_t *starts;  /* [n_groups + 1] */
};

/* Never reads outside the tensor, whatever starts holds. */
struct lossless_group lossless_group_at(const struct lossless_tensor *t, uint32_t group);

/* Bits that a tensor takes, escapes included; class_bits 0: as bf16. */
static inline double lossless_bits(uint64_t n_weights, uint32_t class_bits, uint64_t n_escapes)
{
    return class_bits ? (8.0 + class_bits) * (double)n_weights + 8.0 * (double)n_escapes : 16.0 * (double)n_weights;
}

/* What is smallest for a tensor with so many escapes at 3 and at 4 bits: 3, 4, or 0, which is bf16. */
uint32_t lossless_choose(uint64_t n_weights, uint64_t escapes_3, uint64_t escapes_4);

/* Escapes that the blocks of a group need. rows[i]: bf16 [n_cols], NULL past the last row. */
uint32_t lossless_count(const uint16_t *const rows[LOSSLESS_OUTS], uint32_t n_cols, uint32_t class_bits);
/* Codes a group: planes, records and escapes are written in full; escapes_out has room for lossless_count. -> number of escapes */
uint32_t lossless_encode(const uint16_t *const rows[LOSSLESS_OUTS], uint32_t n_cols, uint32_t class_bits,
                         uint8_t *planes_out, uint32_t *records_out, uint8_t *escapes_out);
/*
 * Refuses (ST_CORRUPT, naming what) a group whose records do not fit its classes and its list: what has passed is decoded without looking.
 * where, group: for the error.
 */
enum status lossless_check(const struct lossless_group *g, const char *where, uint32_t group, struct error *err);
/*
 * One block as AMX's B operand in bf16: [16][16][2], row r, output n, inputs 2r and 2r+1. Reads no escape past the group's list (zero
 * instead), so a group that was not checked is no danger.
 */
void lossless_decode(const struct lossless_group *g, uint32_t block, uint16_t *block_out);
/* Row `row` of the group, bf16 [n_cols]. Likewise. */
void lossless_row(const struct lossless_group *g, uint32_t row, uint32_t n_cols, uint16_t *row_out);

#ifdef __cplusplus
}
#endif
#endif
