#include "model/model.h"

#include <assert.h>
#include <string.h>

#include "common/f16.h"

static const struct {
    const char *name;
    uint32_t block;
    size_t block_bytes;
} codecs[WEIGHT_CODECS] = {
    [WEIGHT_F32] = { "F32", 1, 4 },     [WEIGHT_F16] = { "F16", 1, 2 },     [WEIGHT_BF16] = { "BF16", 1, 2 },
    [WEIGHT_Q8_0] = { "Q8_0", 32, 34 }, [WEIGHT_Q4_0] = { "Q4_0", 32, 18 }, [WEIGHT_Q4_1] = { "Q4_1", 32, 20 },
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
    assert(n_cols % weight_codec_block(codec) == 0);
    return (size_t)(n_cols / weight_codec_block(codec)) * weight_codec_block_bytes(codec);
}

/* Rows lie in files at any alignment. */
static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void block_f32(enum weight_codec codec, const uint8_t *p, float *out)
{
    const float d = f16_to_f32(load_u16(p));
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
        for (uint32_t i = 0; i < n_cols; i++) {
            const uint32_t u = (uint32_t)load_u16(p + 2 * (size_t)i) << 16;
            memcpy(out + i, &u, 4);
        }
        return;
    default:
        for (uint32_t i = 0; i < n_cols / 32; i++)
            block_f32(codec, p + i * weight_codec_block_bytes(codec), out + (size_t)i * 32);
        return;
    }
}
