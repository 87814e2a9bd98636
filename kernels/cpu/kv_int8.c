/* int8: token-wise symmetric integers of 8 bits, one scale a position and KV head (as vLLM's per-token-head mode; scales in a plane of their own). */
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv.h"

bool kv_accepts_int8(const struct attn_shape *shape)
{
    return shape->codec == KV_INT8 && shape->head_dim >= 4 && shape->head_dim % 4 == 0;
}

/*
 * An open part is lines of pairs: a pair of channels at all positions (keys), or a pair of positions in all channels (values). Codes of two lines that follow one
 * another lie between each other, in fours.
 */
enum { LINE_MAX = 2 * 256 };

static uint16_t magnitude(uint16_t x)
{
    return x & 0x7FFF; /* ordered as the numbers are */
}

/* The scale of numbers up to `top` (bf16), rounded up to f16, so that no code passes 127; its inverse. -> false: not finite */
static bool scale_of(uint16_t top_bits, uint16_t *scale_out, float *up_out)
{
    const float top = bf16_to_f32(top_bits);
    *scale_out = 0;
    *up_out = 0.0f;
    if (top_bits >= 0x7F80)
        return false;
    *scale_out = kv_f16_of(top / 127.0f);
    if (f16_to_f32(*scale_out) * 127.0f < top && *scale_out < 0x7BFF)
        ++*scale_out;
    const float scale = f16_to_f32(*scale_out);
    *up_out = scale > 0 ? 1.0f / scale : 0.0f;
    return true;
}

enum { GREATEST = 0x4AFE /* as bf16: 127 times f16's largest number, to which a code of 127 is cut */ };

/* Codes of a line of n; up: by element. Cut before the product, as integers, so that the loop vectorises. */
static void line_codes(const uint16_t *line, const float *up, uint32_t n, int8_t *code_out)
{
    for (uint32_t i = 0; i < n; i++) {
        const int16_t size = (int16_t)magnitude(line[i]), some = size < GREATEST ? size : GREATEST;
        const float x = bf16_to_f32((uint16_t)(some | (line[i] & 0x8000)));
        code_out[i] = (int8_t)(int32_t)kv_round(x * up[i]);
    }
}

/* Two lines' codes, of n each, to fours. */
static void put_fours(const int8_t *first, const int8_t *second, uint32_t n, int8_t *out)
{
    for (uint32_t i = 0; i < n / 2; i++, out += 4) {
        out[0] = first[2 * i];
        out[1] = first[2 * i + 1];
        out[2] = second[2 * i];
        out[3] = second[2 * i + 1];
    }
}

static bool seal_keys(const struct attn_shape *shape, const uint16_t *open, int8_t *k)
{
    enum { LINE = 2 * KV_BLOCK };
    uint16_t top[LINE] = { 0 }, *scale = (uint16_t *)(uintptr_t)kv_scales(shape, k);
    float up[LINE];
    bool finite = true;
    for (uint32_t p = 0; p < shape->head_dim / 2; p++)
        for (uint32_t i = 0; i < LINE; i++) {
            const uint16_t x = magnitude(open[p * LINE + i]);
            top[i] = x > top[i] ? x : top[i];
        }
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        const uint16_t both = top[2 * t] > top[2 * t + 1] ? top[2 * t] : top[2 * t + 1];
        finite = scale_of(both, &scale[t], &up[2 * t]) && finite;
        up[2 * t + 1] = up[2 * t];
    }
    for (uint32_t p = 0; p < shape->head_dim / 2; p += 2) {
        int8_t code[2][LINE];
        line_codes(open + (size_t)p * LINE, up, LINE, code[0]);
        line_codes(open + (size_t)(p + 1) * LINE, up, LINE, code[1]);
        put_fours(code[0], code[1], LINE, k + (size_t)p * LINE);
    }
    return finite;
}

/* A pair of positions in all channels. */
static bool value_line(const uint16_t *line, uint32_t n, int8_t *code_out, uint16_t scale_out[2])
{
    enum { LANES = 8 };
    uint16_t top[LANES] = { 0 };
    float up[LINE_MAX];
    for (uint32_t i = 0; i < n; i += LANES)
        for (uint32_t j = 0; j < LANES; j++) {
            const uint16_t x = magnitude(line[i + j]);
            top[j] = x > top[j] ? x : top[j];
        }
    for (uint32_t j = 2; j < LANES; j++)
        top[j % 2] = top[j] > top[j % 2] ? top[j] : top[j % 2];
    const bool even = scale_of(top[0], &scale_out[0], &up[0]), odd = scale_of(top[1], &scale_out[1], &up[1]);
    for (uint32_t i = 2; i < n; i++)
        up[i] = up[i - 2];
    line_codes(line, up, n, code_out);
    return even && odd;
}

bool kv_seal_int8_values(const struct attn_shape *shape, const void *v_open, void *v_part)
{
    const uint32_t n = 2 * shape->head_dim;
    const uint16_t *open = v_open;
    int8_t *v = v_part;
    uint16_t *scale = (uint16_t *)(uintptr_t)kv_scales(shape, v_part);
    bool finite = true;
    for (uint32_t t = 0; t < KV_BLOCK; t += 4, open += 2 * (size_t)n, v += 2 * (size_t)n) {
        int8_t code[2][LINE_MAX];
        finite = value_line(open, n, code[0], scale + t) && finite;
        finite = value_line(open + n, n, code[1], scale + t + 2) && finite;
        put_fours(code[0], code[1], n, v);
    }
    return finite;
}

bool kv_seal_int8(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    const bool keys = seal_keys(shape, k_open, k_part);
    return kv_seal_int8_values(shape, v_open, v_part) && keys;
}
