#ifndef LONGSPAN_MODEL_DF11_DECODE_H
#define LONGSPAN_MODEL_DF11_DECODE_H

/*
 * The decoder of df11, to be compiled for each ISA: shifts by a register and the joining of bytes gain from it, the bits are the same. Four tiles are decoded
 * side by side, for each waits for its own last code.
 */

#include <string.h>

#include "model/df11.h"

enum { DF11_AT_ONCE = 4, DF11_LOOKUPS = 5, DF11_ROUND_MAX = DF11_LOOKUPS * 4 }; /* 5 look-ups take up to 55 bits */

/* Where a tile's decoding stands. */
struct df11_at {
    uint64_t bit;
    uint8_t *out, *end;
};

/* At least 57 bits from `bit` on; zeros past the stream's end. */
static inline uint64_t df11_peek(const struct df11_group *g, uint64_t bit)
{
    const uint64_t byte = bit >> 3;
    uint64_t v = 0;
    if (g->stream_bytes >= 8 && byte <= g->stream_bytes - 8)
        memcpy(&v, g->stream + byte, sizeof v);
    else if (byte < g->stream_bytes)
        memcpy(&v, g->stream + byte, g->stream_bytes - byte);
    return v >> (bit & 7);
}

/* Five look-ups; 8 bytes are there to be read, and room for 20 exponents. */
static inline __attribute__((always_inline)) void df11_round(const uint64_t *table, const uint8_t *stream,
                                                             struct df11_at *at)
{
    uint64_t v, bit = at->bit;
    uint8_t *out = at->out;
    memcpy(&v, stream + (bit >> 3), sizeof v);
    v >>= bit & 7;
#pragma GCC unroll 5
    for (int i = 0; i < DF11_LOOKUPS; i++) {
        const uint64_t entry = table[v & (DF11_TABLE - 1)];
        const uint32_t symbols = (uint32_t)entry;
        const uint8_t bits = (uint8_t)(entry >> 40);
        memcpy(out, &symbols, sizeof symbols);
        out += (uint8_t)(entry >> 32);
        v >>= bits & 63;
        bit += bits;
    }
    at->bit = bit;
    at->out = out;
}

static inline bool df11_may_round(const struct df11_at *at, uint64_t bits_safe)
{
    return at->end - at->out >= DF11_ROUND_MAX && at->bit < bits_safe;
}

/* The rest of a tile, to its last exponent. */
static inline void df11_finish(const struct df11_group *g, struct df11_at *at, uint64_t bits_safe)
{
    while (df11_may_round(at, bits_safe))
        df11_round(g->code->table, g->stream, at);
    while (at->out < at->end) {
        const uint64_t entry = g->code->table[df11_peek(g, at->bit) & (DF11_TABLE - 1)];
        *at->out++ = (uint8_t)entry;
        at->bit += (uint8_t)(entry >> 48);
    }
}

/* Exponents of n <= 4 tiles from `tile` on, DF11_TILE apart. ends_out: the bit behind each; may be NULL. */
static inline __attribute__((always_inline)) void df11_exponents(const struct df11_group *g, uint32_t tile, uint32_t n,
                                                                 uint8_t *exponents_out, uint64_t *ends_out)
{
    /* a round reads the 8 bytes from a bit's byte on */
    const uint64_t bits_safe = g->stream_bytes >= 8 ? 8 * (g->stream_bytes - 7) : 0;
    const uint32_t n_blocks = df11_blocks(g->n_cols);
    struct df11_at at[DF11_AT_ONCE];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t first = (tile + i) * DF11_TILE_BLOCKS, left = n_blocks - first;
        at[i].bit = g->offsets[tile + i];
        at[i].out = exponents_out + (size_t)i * DF11_TILE;
        at[i].end = at[i].out + (left < DF11_TILE_BLOCKS ? left : DF11_TILE_BLOCKS) * DF11_WEIGHTS;
    }
    if (n == DF11_AT_ONCE) {
        struct df11_at a = at[0], b = at[1], c = at[2], d = at[3];
        while (df11_may_round(&a, bits_safe) && df11_may_round(&b, bits_safe) && df11_may_round(&c, bits_safe) &&
               df11_may_round(&d, bits_safe)) {
            df11_round(g->code->table, g->stream, &a);
            df11_round(g->code->table, g->stream, &b);
            df11_round(g->code->table, g->stream, &c);
            df11_round(g->code->table, g->stream, &d);
        }
        at[0] = a;
        at[1] = b;
        at[2] = c;
        at[3] = d;
    }
    for (uint32_t i = 0; i < n; i++) {
        df11_finish(g, &at[i], bits_safe);
        if (ends_out)
            ends_out[i] = at[i].bit;
    }
}

static inline __attribute__((always_inline)) void
df11_join(const uint8_t *restrict signs, const uint8_t *restrict exponents, size_t n, uint16_t *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint16_t)((signs[i] & 0x80) << 8 | exponents[i] << 7 | (signs[i] & 0x7F));
}

/* Inputs of the last block that are not there. */
static inline void df11_clear_padding(uint32_t n_cols, uint16_t *last_block)
{
    for (uint32_t k = n_cols % DF11_INS; k && k < DF11_INS; k++)
        for (uint32_t n = 0; n < DF11_OUTS; n++)
            last_block[k / 2 * DF11_INS + 2 * n + k % 2] = 0;
}

/* df11_decode */
static inline __attribute__((always_inline)) void df11_decode_inline(const struct df11_group *g, uint16_t *blocks_out)
{
    const uint32_t n_blocks = df11_blocks(g->n_cols), n_tiles = df11_tiles(g->n_cols);
    uint8_t exponents[DF11_AT_ONCE * DF11_TILE];
    for (uint32_t tile = 0; tile < n_tiles; tile += DF11_AT_ONCE) {
        const uint32_t n = n_tiles - tile < DF11_AT_ONCE ? n_tiles - tile : DF11_AT_ONCE;
        const size_t first = (size_t)tile * DF11_TILE, all = (size_t)n_blocks * DF11_WEIGHTS;
        df11_exponents(g, tile, n, exponents, NULL);
        df11_join(g->signs + first, exponents, all - first < sizeof exponents ? all - first : sizeof exponents,
                  blocks_out + first);
    }
    df11_clear_padding(g->n_cols, blocks_out + (size_t)(n_blocks - 1) * DF11_WEIGHTS);
}

#endif
