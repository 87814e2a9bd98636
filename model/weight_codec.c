#include "model/model.h"

#include <assert.h>
#include <string.h>

#include "common/f16.h"

static const struct {
    const char *name;
    uint32_t block;
    size_t block_bytes;
} codecs[WEIGHT_CODECS] = {
    [WEIGHT_F32] = { "F32", 1, 4 },
    [WEIGHT_F16] = { "F16", 1, 2 },
    [WEIGHT_BF16] = { "BF16", 1, 2 },
    [WEIGHT_Q8_0] = { "Q8_0", 32, 34 },
    [WEIGHT_Q4_0] = { "Q4_0", 32, 18 },
    [WEIGHT_Q4_1] = { "Q4_1", 32, 20 },
    [WEIGHT_Q5_0] = { "Q5_0", 32, 22 },
    [WEIGHT_Q5_1] = { "Q5_1", 32, 24 },
    [WEIGHT_Q4_K] = { "Q4_K", 256, 144 },
    [WEIGHT_Q5_K] = { "Q5_K", 256, 176 },
    [WEIGHT_Q6_K] = { "Q6_K", 256, 210 },
    [WEIGHT_LOSSLESS_FAST] = { "lossless-fast", 1, 2 },
    [WEIGHT_DF11] = { "df11", 1, 2 },
    [WEIGHT_Q4_Z] = { "Q4_Z", 32, 20 },
    [WEIGHT_LEANQUANT_4] = { "leanquant-4", 1, 0 },
    [WEIGHT_LEANQUANT_3] = { "leanquant-3", 1, 0 },
    [WEIGHT_LEANQUANT_2] = { "leanquant-2", 1, 0 },
};

const char *weight_codec_name(enum weight_codec codec)
{
    assert((unsigned)codec < WEIGHT_CODECS);
    return codecs[codec].name;
}

uint32_t weight_codec_block(enum weight_codec codec)
{
    assert((unsigned)codec < WEIGHT_CODECS);
    return codecs[codec].block;
}

size_t weight_codec_block_bytes(enum weight_codec codec)
{
    assert((unsigned)codec < WEIGHT_CODECS);
    return codecs[codec].block_bytes;
}

size_t weight_row_bytes(enum weight_codec codec, uint32_t n_cols)
{
    const uint32_t bits = weight_grid_bits(codec);
    if (bits)
        return ((size_t)2 << bits) + ((size_t)n_cols * bits + 7) / 8;
    assert(n_cols % weight_codec_block(codec) == 0);
    return (size_t)(n_cols / weight_codec_block(codec)) * weight_codec_block_bytes(codec);
}

/* Rows lie in files at any alignment. */
static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* ---- Q5_0, Q5_1: nibbles, then a fifth bit of each from 32 bits in a row ---- */

static void parts_q5(enum weight_codec codec, const uint8_t *p, struct weight_parts *out)
{
    const uint8_t *high = p + (codec == WEIGHT_Q5_1 ? 4 : 2), *q = high + 4;
    out->m = codec == WEIGHT_Q5_1 ? load_u16(p + 2) : 0;
    for (int i = 0; i < 16; i++) {
        out->code[i] = (uint8_t)((q[i] & 15) | (high[i / 8] >> i % 8 & 1) << 4);
        out->code[i + 16] = (uint8_t)(q[i] >> 4 | (high[2 + i / 8] >> i % 8 & 1) << 4);
    }
}

/* ---- Q4_K, Q5_K: d, m, 8 scales and 8 mins of 6 bits in 12 bytes, (Q5_K) 32 bytes of fifth bits, nibbles ---- */

static void parts_k(enum weight_codec codec, const uint8_t *p, struct weight_parts *out)
{
    const uint8_t *s = p + 4, *high = p + 16, *q = codec == WEIGHT_Q5_K ? high + 32 : high;
    out->m = load_u16(p + 2);
    for (int i = 0; i < 4; i++) {
        out->scale[i] = (int8_t)(s[i] & 63);
        out->min[i] = s[i + 4] & 63;
        out->scale[i + 4] = (int8_t)((s[i + 8] & 15) | s[i] >> 6 << 4);
        out->min[i + 4] = (uint8_t)(s[i + 8] >> 4 | s[i + 4] >> 6 << 4);
    }
    for (int run = 0; run < 8; run++)
        for (int i = 0; i < 32; i++) {
            const int low = q[run / 2 * 32 + i] >> run % 2 * 4 & 15;
            out->code[run * 32 + i] = (uint8_t)(low | (codec == WEIGHT_Q5_K ? (high[i] >> run & 1) << 4 : 0));
        }
}

/* ---- Q6_K: 128 bytes of low nibbles, 64 of upper pairs of bits, 16 signed scales, d; in two halves of 128 elements ---- */

static void parts_q6(const uint8_t *p, struct weight_parts *out)
{
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = p + half * 64, *high = p + 128 + half * 32;
        for (int quarter = 0; quarter < 4; quarter++)
            for (int i = 0; i < 32; i++)
                out->code[half * 128 + quarter * 32 + i] =
                    (uint8_t)((low[quarter % 2 * 32 + i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4);
    }
    memcpy(out->scale, p + 192, 16);
}

void weight_block_parts(enum weight_codec codec, const void *block, struct weight_parts *parts_out)
{
    const uint8_t *p = block;
    assert(codec >= WEIGHT_Q5_0 && codec <= WEIGHT_Q6_K);
    parts_out->d = load_u16(codec == WEIGHT_Q6_K ? p + 208 : p);
    parts_out->m = 0;
    if (codec == WEIGHT_Q6_K)
        parts_q6(p, parts_out);
    else if (codec == WEIGHT_Q4_K || codec == WEIGHT_Q5_K)
        parts_k(codec, p, parts_out);
    else
        parts_q5(codec, p, parts_out);
}

static void parts_f32(enum weight_codec codec, const uint8_t *p, float *out)
{
    struct weight_parts w;
    weight_block_parts(codec, p, &w);
    const float d = f16_to_f32(w.d), m = f16_to_f32(w.m);
    const int n = (int)weight_codec_block(codec);
    for (int i = 0; i < n; i++) {
        if (codec == WEIGHT_Q5_0)
            out[i] = (float)(w.code[i] - 16) * d;
        else if (codec == WEIGHT_Q5_1)
            out[i] = (float)w.code[i] * d + m;
        else if (codec == WEIGHT_Q6_K)
            out[i] = (float)(w.code[i] - 32) * (d * (float)w.scale[i / 16]);
        else
            out[i] = (float)w.code[i] * (d * (float)w.scale[i / 32]) - m * (float)w.min[i / 32];
    }
}

static void row_grid(enum weight_codec codec, const uint8_t *row, uint32_t n_cols, float *out)
{
    const uint32_t bits = weight_grid_bits(codec);
    for (uint32_t i = 0; i < n_cols; i++) {
        const uint32_t u = (uint32_t)load_u16(row + 2 * (size_t)weight_grid_code(bits, row, i)) << 16;
        memcpy(out + i, &u, 4);
    }
}

static void block_f32(enum weight_codec codec, const uint8_t *p, float *out)
{
    const float d = f16_to_f32(load_u16(p));
    if (codec == WEIGHT_Q4_Z) {
        const float z = f16_to_f32(load_u16(p + 2));
        for (int i = 0; i < 16; i++) {
            out[i] = ((float)(p[4 + i] & 15) - z) * d;
            out[i + 16] = ((float)(p[4 + i] >> 4) - z) * d;
        }
        return;
    }
    if (codec == WEIGHT_Q8_0) {
        for (int i = 0; i < 32; i++)
            out[i] = (float)(int8_t)p[2 + i] * d;
        return;
    }
    const bool has_min = codec == WEIGHT_Q4_1;
    const float m = has_min ? f16_to_f32(load_u16(p + 2)) : 0.0f;
    const uint8_t *q = p + (has_min ? 4 : 2);
    const int bias = has_min ? 0 : 8;
    for (int i = 0; i < 16; i++) {
        const float lo = (float)((q[i] & 15) - bias) * d, hi = (float)((q[i] >> 4) - bias) * d;
        out[i] = has_min ? lo + m : lo;
        out[i + 16] = has_min ? hi + m : hi;
    }
}

void weight_row_f32(enum weight_codec codec, const void *row, uint32_t n_cols, float *out)
{
    const uint8_t *p = row;
    switch (codec) {
    case WEIGHT_F32:
        memcpy(out, p, (size_t)n_cols * 4);
        return;
    case WEIGHT_F16:
        for (uint32_t i = 0; i < n_cols; i++)
            out[i] = f16_to_f32(load_u16(p + 2 * (size_t)i));
        return;
    case WEIGHT_BF16:
    case WEIGHT_LOSSLESS_FAST:
    case WEIGHT_DF11:
        for (uint32_t i = 0; i < n_cols; i++) {
            const uint32_t u = (uint32_t)load_u16(p + 2 * (size_t)i) << 16;
            memcpy(out + i, &u, 4);
        }
        return;
    case WEIGHT_Q5_0:
    case WEIGHT_Q5_1:
    case WEIGHT_Q4_K:
    case WEIGHT_Q5_K:
    case WEIGHT_Q6_K:
        for (uint32_t i = 0, block = weight_codec_block(codec); i < n_cols / block; i++)
            parts_f32(codec, p + i * weight_codec_block_bytes(codec), out + (size_t)i * block);
        return;
    case WEIGHT_LEANQUANT_4:
    case WEIGHT_LEANQUANT_3:
    case WEIGHT_LEANQUANT_2:
        row_grid(codec, p, n_cols, out);
        return;
    default:
        for (uint32_t i = 0; i < n_cols / 32; i++)
            block_f32(codec, p + i * weight_codec_block_bytes(codec), out + (size_t)i * 32);
        return;
    }
}
