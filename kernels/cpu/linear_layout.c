#include "kernels/cpu/linear_layout.h"

#include <string.h>

size_t linear_group_bytes(const struct linear_shape *shape)
{
    if (shape->codec == WEIGHT_LOSSLESS_FAST)
        return linear_lossless_stride(shape);
    if (shape->codec == WEIGHT_DF11)
        return linear_df11_stride(shape);
    if (weight_grid_bits(shape->codec))
        return LINEAR_GRIDS + linear_n_blocks(shape) * linear_grid_block(shape->codec);
    return linear_group_stride(shape->codec, linear_n_blocks(shape));
}

/* Plain arrays: element k of a row goes to place(k, n), in elements of size bytes. */
static void pack_floats(const struct linear_shape *s, const uint8_t *row, uint32_t n, uint8_t *out)
{
    for (size_t k = 0; k < s->n_in; k++) {
        if (s->codec == WEIGHT_F32)
            memcpy(out + (k * LINEAR_GROUP + n) * 4, row + k * 4, 4);
        else if (s->codec == WEIGHT_F16)
            memcpy(out + (k * LINEAR_GROUP + n) * 2, row + k * 2, 2);
        else
            memcpy(out + (k / 2 * LINEAR_GROUP + n) * 4 + k % 2 * 2, row + k * 2, 2);
    }
}

static void pack_q8(const uint8_t *block, uint32_t n, uint8_t *codes)
{
    for (size_t j = 0; j < 8; j++)
        memcpy(codes + j * 64 + n * 4, block + 2 + j * 4, 4);
}

static void pack_q4(const uint8_t *nibbles, uint32_t n, uint8_t *codes)
{
    for (size_t j = 0; j < 4; j++) {
        uint32_t word = 0;
        for (size_t i = 0; i < 8; i++) {
            const size_t k = j * 8 + i; /* byte k: low nibble is input k, high is k + 16 */
            const uint32_t q = k < 16 ? nibbles[k] & 15u : nibbles[k - 16] >> 4;
            word |= q << (i / 2 * 4 + i % 2 * 16);
        }
        memcpy(codes + j * 64 + n * 4, &word, 4);
    }
}

/* Codes of 5 and 6 bits, and of 4 where they are not nibbles in order. */
static void pack_code(enum weight_codec c, const uint8_t code[LINEAR_BLOCK], uint32_t n, uint8_t *codes)
{
    uint32_t word[6] = { 0 };
    for (uint32_t k = 0; k < LINEAR_BLOCK; k++) {
        const uint32_t row = k / 2, high = code[k] >> 4u, half = k % 2 * 16;
        word[row / 4] |= (code[k] & 15u) << (row % 4 * 4 + half);
        if (c == WEIGHT_Q6_K)
            word[4 + row / 8] |= high << (row % 8 * 2 + half);
        else if (c != WEIGHT_Q4_K)
            word[4] |= high << (row + half);
    }
    for (size_t j = 0; j < linear_codes_bytes(c) / 64; j++)
        memcpy(codes + j * 64 + n * 4, &word[j], 4);
}

static void pack_parts(const struct linear_shape *s, const uint8_t *row, uint32_t n, uint8_t *out)
{
    const enum weight_codec c = s->codec;
    const size_t run = weight_codec_block(c) / LINEAR_BLOCK;
    struct weight_parts w;
    for (size_t b = 0; b < s->n_in / LINEAR_BLOCK; b++) {
        if (b % run == 0) {
            weight_block_parts(c, row + b / run * weight_codec_block_bytes(c), &w);
            memcpy(out + ((const uint8_t *)linear_d(c, out, b) - out) + n * 2, &w.d, 2);
            if (c != WEIGHT_Q5_0 && c != WEIGHT_Q6_K)
                memcpy(out + ((const uint8_t *)linear_m(c, out, b) - out) + n * 2, &w.m, 2);
        }
        pack_code(c, w.code + b % run * LINEAR_BLOCK, n, out + (linear_codes(c, out, b) - out));
        if (run == 1)
            continue;
        uint8_t *scale = out + ((const uint8_t *)linear_scale(c, out, b) - out);
        if (c == WEIGHT_Q6_K) {
            scale[n] = (uint8_t)w.scale[b % run * 2];
            scale[LINEAR_GROUP + n] = (uint8_t)w.scale[b % run * 2 + 1];
        } else {
            scale[n] = (uint8_t)w.scale[b % run];
            out[(linear_min(c, out, b) - out) + n] = w.min[b % run];
        }
    }
}

static void pack_blocks(const struct linear_shape *s, const uint8_t *row, uint32_t n, uint8_t *out)
{
    const size_t stored = weight_codec_block_bytes(s->codec);
    for (size_t b = 0; b < s->n_in / LINEAR_BLOCK; b++, row += stored) {
        uint8_t *codes = out + (linear_codes(s->codec, out, b) - out);
        uint8_t *scales = out + ((const uint8_t *)linear_d(s->codec, out, b) - out);
        memcpy(scales + n * 2, row, 2);
        if (linear_has_m(s->codec))
            memcpy(scales + LINEAR_SCALES + n * 2, row + 2, 2);
        if (s->codec == WEIGHT_Q8_0)
            pack_q8(row, n, codes);
        else
            pack_q4(row + (linear_has_m(s->codec) ? 4 : 2), n, codes);
    }
}

static void put_bits(uint8_t *line, uint32_t word, uint32_t code, uint32_t at)
{
    uint16_t v;
    memcpy(&v, line + 2 * word, 2);
    v = (uint16_t)(v | code << at);
    memcpy(line + 2 * word, &v, 2);
}

static void pack_grid(const struct linear_shape *s, const uint8_t *row, uint32_t n, uint8_t *out)
{
    const uint32_t bits = weight_grid_bits(s->codec);
    memcpy(out + n * 32, row, (size_t)2 << bits);
    for (uint32_t k = 0; k < s->n_in; k++) {
        uint8_t *block = out + LINEAR_GRIDS + k / LINEAR_BLOCK * linear_grid_block(s->codec);
        const uint32_t code = weight_grid_code(bits, row, k), r = k % LINEAR_BLOCK / 2;
        const uint32_t v = r / 4 * 4 + n / 4, word = r % 4 * 8 + n % 4 * 2 + k % 2;
        if (bits == 4)
            put_bits(block + v / 4 * 64, word, code, v % 4 * 4);
        else
            put_bits(block + v / 8 * 64, word, code & 3, v % 8 * 2);
        if (bits == 3)
            put_bits(block + 2 * 64, word, code >> 2, v);
    }
}

static void encode_lossless(const struct linear_shape *s, const void *const rows[LINEAR_GROUP], uint8_t *out)
{
    const uint16_t *halves[LINEAR_GROUP];
    for (uint32_t n = 0; n < LINEAR_GROUP; n++)
        halves[n] = rows[n];
    uint8_t *planes = out + linear_lossless_records(s),
            *escapes = planes + linear_n_blocks(s) * lossless_block_bytes(s->class_bits);
    lossless_encode(halves, s->n_in, s->class_bits, planes, (uint32_t *)(void *)out, escapes);
}

void linear_pack_lossless(const struct linear_shape *shape, const struct lossless_group *group, void *group_out)
{
    const size_t planes = group->n_blocks * lossless_block_bytes(group->class_bits);
    uint8_t *out = group_out;
    memset(out, 0, linear_lossless_records(shape));
    memcpy(out, group->records, group->n_blocks * sizeof *group->records);
    out += linear_lossless_records(shape);
    memcpy(out, group->planes, planes);
    memcpy(out + planes, group->escapes, group->n_escapes);
    memset(out + planes + group->n_escapes, 0, shape->escape_room - group->n_escapes);
}

static void encode_df11(const struct linear_shape *s, const void *const rows[LINEAR_GROUP], uint8_t *out)
{
    const uint16_t *halves[LINEAR_GROUP];
    for (uint32_t n = 0; n < LINEAR_GROUP; n++)
        halves[n] = rows[n];
    uint8_t *signs = out + linear_df11_offsets(s);
    df11_encode(s->df11, halves, s->n_in, signs, (uint32_t *)(void *)out, signs + linear_n_blocks(s) * DF11_WEIGHTS);
}

void linear_pack_df11(const struct linear_shape *shape, const struct df11_group *group, void *group_out)
{
    const size_t signs = linear_n_blocks(shape) * DF11_WEIGHTS;
    uint8_t *out = group_out;
    memset(out, 0, linear_df11_offsets(shape));
    memcpy(out, group->offsets, df11_tiles(shape->n_in) * sizeof *group->offsets);
    out += linear_df11_offsets(shape);
    memcpy(out, group->signs, signs);
    memcpy(out + signs, group->stream, group->stream_bytes);
    memset(out + signs + group->stream_bytes, 0, shape->stream_room - group->stream_bytes);
}

void linear_pack(const struct linear_shape *shape, const void *const rows[LINEAR_GROUP], void *group_out)
{
    memset(group_out, 0, linear_group_bytes(shape));
    if (shape->codec == WEIGHT_LOSSLESS_FAST) {
        encode_lossless(shape, rows, group_out);
        return;
    }
    if (shape->codec == WEIGHT_DF11) {
        encode_df11(shape, rows, group_out);
        return;
    }
    for (uint32_t n = 0; n < LINEAR_GROUP; n++) {
        if (!rows[n])
            continue;
        if (weight_grid_bits(shape->codec))
            pack_grid(shape, rows[n], n, group_out);
        else if (shape->codec >= WEIGHT_Q5_0 && shape->codec <= WEIGHT_Q6_K)
            pack_parts(shape, rows[n], n, group_out);
        else if (linear_is_q(shape->codec))
            pack_blocks(shape, rows[n], n, group_out);
        else
            pack_floats(shape, rows[n], n, group_out);
    }
}
