#include "model/df11.h"

#include <stdlib.h>

#include "model/df11_decode.h"

static uint32_t exponent_of(uint16_t w)
{
    return w >> 7 & 255;
}

void df11_count(const uint16_t *row, uint32_t n, uint64_t counts[256])
{
    for (uint32_t i = 0; i < n; i++)
        counts[exponent_of(row[i])]++;
}

struct df11_group df11_group_at(const struct df11_tensor *t, uint32_t group)
{
    uint64_t begin = t->starts[group], end = t->starts[group + 1];
    end = end < t->stream_bytes ? end : t->stream_bytes;
    begin = begin < end ? begin : end;
    return (struct df11_group){
        .code = t->code,
        .n_cols = t->n_cols,
        .signs = t->signs + (size_t)group * df11_blocks(t->n_cols) * DF11_WEIGHTS,
        .stream = t->stream + begin,
        .offsets = t->offsets + (size_t)group * df11_tiles(t->n_cols),
        .stream_bytes = (size_t)(end - begin),
    };
}

/* ---- coding ---- */

/* Weight i of a block; padding: what stands there. */
static uint16_t weight_at(const struct df11_code *code, const uint16_t *const rows[DF11_OUTS], uint32_t n_cols,
                          uint32_t block, uint32_t i)
{
    const uint32_t k = block * DF11_INS + i / DF11_INS * 2 + i % 2, n = i / 2 % DF11_OUTS;
    if (rows[n] && k < n_cols)
        return rows[n][k];
    return (uint16_t)(code->first << 7);
}

size_t df11_stream_bytes(const struct df11_code *code, const uint16_t *const rows[DF11_OUTS], uint32_t n_cols)
{
    uint64_t bits = 0;
    for (uint32_t b = 0; b < df11_blocks(n_cols); b++)
        for (uint32_t i = 0; i < DF11_WEIGHTS; i++)
            bits += code->length[exponent_of(weight_at(code, rows, n_cols, b, i))];
    return (size_t)((bits + 7) / 8);
}

size_t df11_encode(const struct df11_code *code, const uint16_t *const rows[DF11_OUTS], uint32_t n_cols,
                   uint8_t *signs_out, uint32_t *offsets_out, uint8_t *stream_out)
{
    uint64_t held = 0, bits = 0; /* held: the last bits % 8 bits, not yet written */
    for (uint32_t b = 0; b < df11_blocks(n_cols); b++, signs_out += DF11_WEIGHTS) {
        if (b % DF11_TILE_BLOCKS == 0)
            offsets_out[b / DF11_TILE_BLOCKS] = (uint32_t)bits;
        for (uint32_t i = 0; i < DF11_WEIGHTS; i++) {
            const uint16_t w = weight_at(code, rows, n_cols, b, i);
            const uint32_t e = exponent_of(w);
            signs_out[i] = (uint8_t)(w >> 15 << 7 | (w & 127));
            held |= (uint64_t)code->code[e] << bits % 8;
            for (uint64_t n = bits % 8 + code->length[e], at = bits / 8; n >= 8; n -= 8, held >>= 8)
                stream_out[at++] = (uint8_t)held;
            bits += code->length[e];
        }
    }
    if (bits % 8)
        stream_out[bits / 8] = (uint8_t)held;
    return (size_t)((bits + 7) / 8);
}

/* ---- decoding ---- */

enum status df11_check(const struct df11_group *g, const char *where, uint32_t group, struct error *err)
{
    const uint32_t n_tiles = df11_tiles(g->n_cols);
    uint8_t exponents[DF11_AT_ONCE * DF11_TILE];
    uint64_t end = 0;
    for (uint32_t tile = 0; tile < n_tiles; tile += DF11_AT_ONCE) {
        const uint32_t n = n_tiles - tile < DF11_AT_ONCE ? n_tiles - tile : DF11_AT_ONCE;
        uint64_t ends[DF11_AT_ONCE];
        df11_exponents(g, tile, n, exponents, ends);
        for (uint32_t i = 0; i < n; i++) {
            if (g->offsets[tile + i] != end)
                return error_set(err, ST_CORRUPT,
                                 "%s: group %u, tile %u: begins at bit %u, the one before ends at %llu", where, group,
                                 tile + i, g->offsets[tile + i], (unsigned long long)end);
            end = ends[i];
        }
    }
    if ((end + 7) / 8 != g->stream_bytes)
        return error_set(err, ST_CORRUPT, "%s: group %u: its tiles end at bit %llu of %zu bytes", where, group,
                         (unsigned long long)end, g->stream_bytes);
    return ST_OK;
}

void df11_decode(const struct df11_group *g, uint16_t *blocks_out)
{
    df11_decode_inline(g, blocks_out);
}

void df11_row(const struct df11_group *g, uint32_t row, uint16_t *row_out)
{
    uint8_t exponents[DF11_TILE];
    for (uint32_t tile = 0; tile < df11_tiles(g->n_cols); tile++) {
        df11_exponents(g, tile, 1, exponents, NULL);
        const uint32_t first = tile * DF11_TILE_BLOCKS * DF11_INS;
        for (uint32_t k = 0; k < DF11_TILE_BLOCKS * DF11_INS && first + k < g->n_cols; k++) {
            const uint32_t at = k / DF11_INS * DF11_WEIGHTS + k % DF11_INS / 2 * DF11_INS + 2 * row + k % 2;
            df11_join(g->signs + (size_t)tile * DF11_TILE + at, exponents + at, 1, row_out + first + k);
        }
    }
}
