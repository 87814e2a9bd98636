#ifndef LONGSPAN_MODEL_DF11_H
#define LONGSPAN_MODEL_DF11_H

/*
 * DFloat11 (arXiv:2504.11651): bf16 weights with their exponents in a Huffman code, signs and mantissas as they are; every bit pattern kept. The paper's code,
 * with a layout for processors that decode a tile at a time:
 *
 * - One code a tensor, no longer than 11 bits (optimal under that limit, by package-merge), canonical: shorter codes first, then smaller exponents. A pack
 *   stores its 256 lengths, 0 for exponents that do not occur.
 * - A group is 16 outputs, a block of it 32 inputs, as linear's products take them: weight i of a block is input 2r + i % 2 of output i / 2 % 16 of row
 *   r = i / 32, which is AMX's B operand. A tile is four blocks (the last of a group: what is left).
 * - signs: a byte a weight, sign << 7 | mantissa. stream: the exponents' codes of a group, tile after tile, first bit lowest in a byte, a code's first bit first;
 *   offsets: of each tile the bit in the group's stream at which it begins, so that tiles are decoded apart. Groups begin at whole bytes.
 * - Weights that only pad the last block or group have sign and mantissa 0 and the exponent with the first code; decoded, padding inputs are zeros.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DF11_OUTS = 16,
    DF11_INS = 32,
    DF11_WEIGHTS = DF11_OUTS * DF11_INS,
    DF11_TILE_BLOCKS = 4,
    DF11_TILE = DF11_TILE_BLOCKS * DF11_WEIGHTS,
    DF11_BITS = 11, /* of the longest code */
    DF11_TABLE = 1 << DF11_BITS,
};

/*
 * A code and what decodes it. table, by the next 11 bits: up to four exponents that they hold, a byte each from the lowest; how many << 32, their bits << 40,
 * bits of the first << 48.
 */
struct df11_code {
    uint8_t length[256];
    uint16_t code[256]; /* first bit lowest */
    uint8_t first;      /* the exponent with the first code */
    uint64_t table[DF11_TABLE];
};

static inline uint32_t df11_blocks(uint32_t n_cols)
{
    return (n_cols + DF11_INS - 1) / DF11_INS;
}

static inline uint32_t df11_tiles(uint32_t n_cols)
{
    return (df11_blocks(n_cols) + DF11_TILE_BLOCKS - 1) / DF11_TILE_BLOCKS;
}

static inline uint32_t df11_groups(uint32_t n_rows)
{
    return (n_rows + DF11_OUTS - 1) / DF11_OUTS;
}

/* The best code for exponents that occur so often, at least one of them. false: no memory. */
bool df11_code_best(const uint64_t counts[256], struct df11_code *code_out);
/* The code with these lengths; ST_CORRUPT, naming what: they are too long, or no complete code. */
enum status df11_code_of(const uint8_t length[256], const char *where, struct df11_code *code_out, struct error *err);

/* Adds up the exponents of n weights. */
void df11_count(const uint16_t *row, uint32_t n, uint64_t counts[256]);

/* One group. Borrowed memory: signs [n_blocks][DF11_WEIGHTS], offsets [tiles], stream [stream_bytes] */
struct df11_group {
    const struct df11_code *code;
    uint32_t n_cols;
    const uint8_t *signs, *stream;
    const uint32_t *offsets;
    size_t stream_bytes;
};

/* A stored tensor [n_rows][n_cols]; the stream of group g is bytes starts[g] .. starts[g + 1] - 1. */
struct df11_tensor {
    uint32_t n_rows, n_cols;
    const struct df11_code *code;
    uint64_t stream_bytes;
    const uint8_t *signs, *stream;
    const uint32_t *offsets; /* [n_groups][tiles] */
    const uint64_t *starts;  /* [n_groups + 1] */
};

/* Never reads outside the tensor, whatever starts holds. */
struct df11_group df11_group_at(const struct df11_tensor *t, uint32_t group);

/* Bytes of a group's stream. rows[i]: bf16 [n_cols], NULL past the last row. */
size_t df11_stream_bytes(const struct df11_code *code, const uint16_t *const rows[DF11_OUTS], uint32_t n_cols);
/* Codes a group: everything is written in full, stream_out [df11_stream_bytes]. -> bytes of the stream */
size_t df11_encode(const struct df11_code *code, const uint16_t *const rows[DF11_OUTS], uint32_t n_cols,
                   uint8_t *signs_out, uint32_t *offsets_out, uint8_t *stream_out);
/* Refuses (ST_CORRUPT, naming what) a group whose tiles are not one after the other as its offsets say, or do not end with the stream. */
enum status df11_check(const struct df11_group *g, const char *where, uint32_t group, struct error *err);
/*
 * A whole group: blocks [n_blocks][DF11_WEIGHTS] as AMX's B operand in bf16. Reads nothing outside the group, whatever its offsets and its stream are (zeros
 * instead), so a group that was not checked is no danger.
 */
void df11_decode(const struct df11_group *g, uint16_t *blocks_out);
/* Row `row` of the group, bf16 [n_cols]. Likewise. */
void df11_row(const struct df11_group *g, uint32_t row, uint16_t *row_out);

#ifdef __cplusplus
}
#endif
#endif
