/*
 * A hand-made model over bytes that copies what followed a matching key, at any distance: where the last eight bytes occurred before, it
 * says the byte that came after them. Four Llama layers: 0 and 1 pass through, 2 holds previous-token heads, 3 an induction head.
 *
 * The residual stream, 128 wide, with r(l) the reciprocal root mean square that RMSNorm multiplies by in layer l:
 *   CONST   1   1
 *   KEY     6   key code of the byte at this position: an integer vector of squared length 4
 *   TEXT    16  text code of the byte at this position: +1 and -1
 *   PREV  8 x 6 key code of the byte 1 .. 8 positions ago, written by layer 2
 *   NEXT    16  text code of the byte to say, written by layer 3
 * All parts have the same length for every byte, so r is a constant of the layer: 128 / r^2 is 21 up to layer 2, 53 in layer 3 and 69 at
 * the end. Every activation is one of a few magnitudes, so that rounding activations to bf16 moves all of a kind by the same factor, and
 * scores keep their order exactly.
 *
 * Layer 2. Head h looks h + 1 positions back. Eight of the 32 rotation pairs turn, 24 do not. In those eight the key is the constant
 * (A, 0) and the query (B cos wd, -B sin wd), so after RoPE their product at distance x is A B cos(w (x - d)): the score is
 * S k(x - d), k(x) the mean of cos(w x) over the eight frequencies, S = 8 A B r^2 / sqrt(64) = 780. The frequencies were searched for:
 * k is at most 0.918 for every x from 1 to 131,080 and 0.939 to 4,194,312, which leaves a margin of 64 (47) nats, where
 * ln(positions) is 12 (15); rounding q and k to bf16 moves a score by at most 2^-8 S = 3. (Before position d there is no such byte; the
 * head then writes some mixture of the bytes that there are.)
 *
 * Layer 3. Query: this byte and the seven before it. Key: the eight bytes before a position. Both lie in the 24 pairs that do not turn, six
 * dimensions a byte, so distance does not matter. Two different key codes have inner products of at most 3 (against 4), so each byte
 * that differs costs at least one unit of U = W^2 r^2 / sqrt(64) = 19.3 nats, and 131,072 positions which all differ in a single byte hold
 * 131072 e^-19.3 = 5e-4 of the mass. With bf16 the activations +-1, +-2 times r round to +-a, +-2a: the units stay whole. All eight
 * query heads do the same and write an eighth each, so that a group's mean is the head itself.
 * Value: the text code of the byte at the position. It is a Nordstrom-Robinson code: 256 words of 16 signs, any two with an inner
 * product of at most 4, so the output's logits are C r {16, <= 4}: 14.3 nats apart, and the right byte has probability 1 - 7e-5.
 *
 * Where no key matches, the nearest ones (by number of equal bytes) share the weight: some bytes, and finite numbers.
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/bf16.h"
#include "model/source.h"

#define PI 3.14159265358979323846

enum {
    LAYERS = 4,
    WIDTH = 128,
    HEADS = 8,
    HEAD_DIM = 64,
    FF = 64,
    BYTES = 256,
    TURNING = 8, /* rotation pairs */
    KEY_BYTES = 8,
    KEY_DIMS = 6,
    TEXT_DIMS = 16,
    AT_CONST = 0,
    AT_KEY = 1,
    AT_TEXT = AT_KEY + KEY_DIMS,
    AT_PREV = AT_TEXT + TEXT_DIMS,
    AT_NEXT = AT_PREV + KEY_BYTES * KEY_DIMS,
    POSITIONS_DEFAULT = 131072,
    POSITIONS_MAX = 4194304,
};
static const float score_query = 16, score_key = 8; /* B, A */
static const float match_weight = 8;                /* W */
static const float logit_gain = 0.875f;             /* C */

static const char spec_head[] = "constructed:";

/* Turns a position, of 2^32: frequencies whose mean cosine has no high side peaks. */
static const uint32_t turns[TURNING] = { 0x079B79DD, 0x4715C9CA, 0x3C2C70A4, 0x0633CB22,
                                         0x7A90F234, 0x7BEB5939, 0x49198EC3, 0x755042E3 };

/*
 * Key codes: of the integer vectors of squared length 4 in six dimensions, the 240 with four entries of +-1 and the 12 with one of +-2.
 * Four bytes that no UTF-8 text holds get (+-1)^6 sqrt(2/3). out [256][6].
 */
static void make_key_codes(float out[BYTES][KEY_DIMS])
{
    uint32_t n = 0;
    memset(out, 0, BYTES * KEY_DIMS * sizeof out[0][0]);
    for (uint32_t a = 0; a < KEY_DIMS; a++)
        for (uint32_t b = a + 1; b < KEY_DIMS; b++)
            for (uint32_t signs = 0; signs < 16; signs++) {
                /* 89 is prime to 252: neighbours in the alphabet lie far apart */
                float *code = out[n++ * 89 % 252];
                for (uint32_t i = 0, k = 0; i < KEY_DIMS; i++)
                    if (i != a && i != b)
                        code[i] = signs >> k++ & 1 ? -1.0f : 1.0f;
            }
    for (uint32_t i = 0; i < 2 * KEY_DIMS; i++)
        out[n++ * 89 % 252][i / 2] = i % 2 ? -2.0f : 2.0f;
    for (; n < BYTES; n++)
        for (uint32_t i = 0; i < KEY_DIMS; i++)
            out[n][i] = (n & 1 && i < 3) || (n & 2 && i >= 3) ? -0.81640625f : 0.81640625f;
}

/*
 * Text codes: 8 cosets of the first-order Reed-Muller code of length 16. Byte: 1 bit sign, 4 bits linear form, 3 bits quadratic form; the
 * eight forms are a Kerdock set (the difference of any two is bent). Bits of a form: x0x1 x0x2 x0x3 x1x2 x1x3 x2x3.
 */
static void make_text_codes(float out[BYTES][TEXT_DIMS])
{
    static const uint8_t forms[8] = { 0x00, 0x0C, 0x16, 0x1B, 0x27, 0x29, 0x35, 0x3A };
    for (uint32_t byte = 0; byte < BYTES; byte++)
        for (uint32_t x = 0; x < TEXT_DIMS; x++) {
            uint32_t bit = (byte & 1) ^ ((uint32_t)__builtin_popcount(byte >> 1 & 15 & x) & 1);
            for (uint32_t i = 0, term = 0; i < 4; i++)
                for (uint32_t j = i + 1; j < 4; j++, term++)
                    bit ^= forms[byte >> 5] >> term & x >> i & x >> j & 1;
            out[byte][x] = bit ? -1.0f : 1.0f;
        }
}

/* The 48 dimensions of a head that do not turn: pairs TURNING .. 31 are dimensions p and p + 32. */
static uint32_t still_dim(uint32_t i)
{
    const uint32_t half = HEAD_DIM / 2 - TURNING;
    return i < half ? TURNING + i : HEAD_DIM / 2 + TURNING + (i - half);
}

struct matrix {
    uint16_t *w; /* bf16 [rows][cols] */
    uint32_t cols;
};

static void set(struct matrix m, uint32_t row, uint32_t col, float value)
{
    m.w[(size_t)row * m.cols + col] = bf16_of(value);
}

static float reciprocal_rms(float squares)
{
    return sqrtf(WIDTH / squares);
}

static enum status add_matrix(struct model *m, enum model_tensor_kind kind, uint32_t layer, struct matrix *matrix_out,
                              struct error *err)
{
    uint32_t rows, cols;
    model_shape(&m->config, kind, &rows, &cols);
    const uint64_t dims[2] = { rows, cols };
    uint16_t *w = model_alloc(m, (size_t)rows * cols, sizeof *w);
    if (!w)
        return error_set(err, ST_NO_MEMORY, "constructed:copy: out of memory");
    *matrix_out = (struct matrix){ w, cols };
    return model_tensor_set(m, kind, layer, WEIGHT_BF16, dims, 2, w, false, "constructed:copy", model_kind_name(kind),
                            err);
}

/* Queries and keys of layers 0 to 2: positions only. Layers 0 and 1 do the same work and drop it, so that no block is empty. */
static void fill_previous(struct matrix q, struct matrix k, struct matrix v, struct matrix out, bool write)
{
    const float back = 1 / reciprocal_rms(1 + 4 + TEXT_DIMS);
    for (uint32_t p = 0; p < TURNING; p++) {
        const double w = 2 * PI * turns[p] * 0x1p-32;
        for (uint32_t h = 0; h < HEADS; h++) {
            set(q, h * HEAD_DIM + p, AT_CONST, score_query * (float)cos(w * (h + 1)));
            set(q, h * HEAD_DIM + HEAD_DIM / 2 + p, AT_CONST, -score_query * (float)sin(w * (h + 1)));
        }
        set(k, p, AT_CONST, score_key);
    }
    for (uint32_t i = 0; i < KEY_DIMS; i++) {
        set(v, i, AT_KEY + i, 1);
        for (uint32_t h = 0; write && h < HEADS; h++)
            set(out, AT_PREV + h * KEY_DIMS + i, h * HEAD_DIM + i, back);
    }
}

static void fill_induction(struct matrix q, struct matrix k, struct matrix v, struct matrix out)
{
    const float back = 1 / reciprocal_rms(1 + 4 + TEXT_DIMS + 4 * KEY_BYTES);
    for (uint32_t b = 0; b < KEY_BYTES; b++)
        for (uint32_t i = 0; i < KEY_DIMS; i++) {
            const uint32_t dim = still_dim(b * KEY_DIMS + i);
            const uint32_t here = b ? AT_PREV + (b - 1) * KEY_DIMS + i : AT_KEY + i;
            for (uint32_t h = 0; h < HEADS; h++)
                set(q, h * HEAD_DIM + dim, here, match_weight);
            set(k, dim, AT_PREV + b * KEY_DIMS + i, match_weight);
        }
    for (uint32_t i = 0; i < TEXT_DIMS; i++) {
        set(v, i, AT_TEXT + i, 1);
        for (uint32_t h = 0; h < HEADS; h++)
            set(out, AT_NEXT + i, h * HEAD_DIM + i, back / HEADS);
    }
}

static enum status fill_layer(struct model *m, uint32_t layer, struct error *err)
{
    struct matrix q, k, v, out, rest;
    enum status st;
    if ((st = add_matrix(m, MODEL_ATTN_Q, layer, &q, err)) || (st = add_matrix(m, MODEL_ATTN_K, layer, &k, err)) ||
        (st = add_matrix(m, MODEL_ATTN_V, layer, &v, err)) || (st = add_matrix(m, MODEL_ATTN_OUT, layer, &out, err)) ||
        (st = add_matrix(m, MODEL_FFN_GATE, layer, &rest, err)) ||
        (st = add_matrix(m, MODEL_FFN_UP, layer, &rest, err)) ||
        (st = add_matrix(m, MODEL_FFN_DOWN, layer, &rest, err)))
        return st;
    if (layer < LAYERS - 1)
        fill_previous(q, k, v, out, layer == LAYERS - 2);
    else
        fill_induction(q, k, v, out);
    return ST_OK;
}

static enum status fill_norm(struct model *m, enum model_tensor_kind kind, uint32_t layer, struct error *err)
{
    struct matrix norm;
    const enum status st = add_matrix(m, kind, layer, &norm, err);
    for (uint32_t i = 0; !st && i < WIDTH; i++)
        set(norm, 0, i, 1);
    return st;
}

static enum status fill_ends(struct model *m, struct error *err)
{
    float keys[BYTES][KEY_DIMS], texts[BYTES][TEXT_DIMS];
    struct matrix in, out;
    enum status st;
    if ((st = add_matrix(m, MODEL_EMBEDDING, 0, &in, err)) || (st = add_matrix(m, MODEL_OUTPUT, 0, &out, err)))
        return st;
    make_key_codes(keys);
    make_text_codes(texts);
    for (uint32_t byte = 0; byte < BYTES; byte++) {
        set(in, byte, AT_CONST, 1);
        for (uint32_t i = 0; i < KEY_DIMS; i++)
            set(in, byte, AT_KEY + i, keys[byte][i]);
        for (uint32_t i = 0; i < TEXT_DIMS; i++) {
            set(in, byte, AT_TEXT + i, texts[byte][i]);
            set(out, byte, AT_NEXT + i, logit_gain * texts[byte][i]);
        }
    }
    return fill_norm(m, MODEL_OUTPUT_NORM, 0, err);
}

static void set_config(struct model_config *c, uint32_t positions)
{
    *c = (struct model_config){
        .architecture = "llama",
        .name = "constructed:copy",
        .n_layers = LAYERS,
        .d_model = WIDTH,
        .n_heads = HEADS,
        .n_kv_heads = 1,
        .head_dim = HEAD_DIM,
        .d_ff = FF,
        .n_vocab = BYTES,
        .positions_max = positions,
        .rms_eps = 1e-6f,
        .rope_scale = 1,
        .rope_name = "constructed",
        .bos = -1,
    };
    for (uint32_t p = 0; p < TURNING; p++)
        c->inv_freq[p] = 2 * PI * turns[p] * 0x1p-32;
}

static bool copy_takes(const char *spec)
{
    return strncmp(spec, spec_head, sizeof spec_head - 1) == 0;
}

/* "copy" or "copy:POSITIONS" */
static enum status parse_spec(const char *spec, uint32_t *positions_out, struct error *err)
{
    const char *text = spec + sizeof spec_head - 1;
    *positions_out = POSITIONS_DEFAULT;
    if (strcmp(text, "copy") == 0)
        return ST_OK;
    if (strncmp(text, "copy:", 5) != 0)
        return error_set(err, ST_NOT_FOUND, "%s: unknown constructed model (constructed:copy[:POSITIONS] is known)",
                         spec);
    char *end;
    const unsigned long v = strtoul(text + 5, &end, 10);
    if (!isdigit((unsigned char)text[5]) || *end || v < 1 || v > POSITIONS_MAX)
        return error_set(err, ST_INVALID, "%s: %s positions (1 to %d)", spec, text + 5, POSITIONS_MAX);
    *positions_out = (uint32_t)v;
    return ST_OK;
}

static enum status copy_open(struct model *m, const char *spec, struct error *err)
{
    uint32_t positions;
    enum status st = parse_spec(spec, &positions, err);
    if (st)
        return st;
    set_config(&m->config, positions);
    if ((st = model_config_check(&m->config, spec, err)) || (st = model_vocab_bytes(m, err)) ||
        (st = model_tensors_new(m, err)) || (st = fill_ends(m, err)))
        return st;
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        if ((st = fill_norm(m, MODEL_ATTN_NORM, layer, err)) || (st = fill_norm(m, MODEL_FFN_NORM, layer, err)) ||
            (st = fill_layer(m, layer, err)))
            return st;
    return model_finish(m, spec, err);
}

const struct model_source model_source_copy = { "constructed", copy_takes, copy_open, NULL };
