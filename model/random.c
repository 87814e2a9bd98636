/*
 * Models of random weights, in memory: for tests and figures at any shape. Each row is a function of (seed, kind, layer, row), made when
 * it is asked for, so that an 8-billion-parameter shape costs nothing to open. Matrices are uniform with standard deviation
 * gain / sqrt(columns), which keeps activations of order one through any number of layers.
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "model/bf16.h"
#include "model/rope.h"
#include "model/source.h"

#define INVALID(...) return error_set(err, ST_INVALID, __VA_ARGS__)

enum { SPEC_BYTES_MAX = 512 };
static const char spec_head[] = "random:";

struct shape {
    const char *name;
    uint32_t layers, d, heads, kv, head_dim, ff, vocab, positions;
    double theta, llama3_factor; /* factor 0: no scaling */
    bool tied;
    enum weight_codec codec;
    bool qkv_bias, qk_norm;
};

static const struct shape shapes[] = {
    { "llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500000, 8, false, WEIGHT_BF16, false, false },
    { "llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000, 32, true, WEIGHT_BF16, false, false },
    { "smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000, 0, true, WEIGHT_BF16, false, false },
    { "mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, 32768, 1000000, 0, false, WEIGHT_BF16, false, false },
    { "qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 1000000, 0, false, WEIGHT_BF16, true, false },
    { "qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1000000, 0, false, WEIGHT_BF16, false, true },
    { "tiny", 4, 64, 4, 2, 32, 128, 256, 131072, 10000, 0, false, WEIGHT_BF16, false, false },
};

static bool parse_u64(const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    const unsigned long long v = strtoull(text, &end, 10);
    if (*end || v > max || strlen(text) > 20 || (v == UINT64_MAX && strcmp(text, "18446744073709551615") != 0))
        return false;
    *out = v;
    return true;
}

static bool parse_codec(const char *text, enum weight_codec *out)
{
    for (int c = 0; c < WEIGHT_CODECS; c++) {
        const char *name = weight_codec_name((enum weight_codec)c);
        size_t i = 0;
        while (name[i] && tolower((unsigned char)name[i]) == text[i])
            i++;
        if (name[i] || text[i])
            continue;
        *out = (enum weight_codec)c;
        return true;
    }
    return false;
}

/* One key=value of the shape. */
static enum status parse_pair(const char *spec, const char *key, const char *value, struct shape *s, struct error *err)
{
    uint64_t v;
    const struct {
        const char *key;
        uint32_t *out;
    } numbers[] = { { "layers", &s->layers },     { "d", &s->d },
                    { "heads", &s->heads },       { "kv", &s->kv },
                    { "head_dim", &s->head_dim }, { "ff", &s->ff },
                    { "vocab", &s->vocab },       { "positions", &s->positions } };
    const struct {
        const char *key;
        bool *out;
    } flags[] = { { "tied", &s->tied }, { "qkv_bias", &s->qkv_bias }, { "qk_norm", &s->qk_norm } };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].key) != 0)
            continue;
        if (!parse_u64(value, INT32_MAX, &v))
            INVALID("%s: %s=%s is not a number up to %d", spec, key, value, INT32_MAX);
        *numbers[i].out = (uint32_t)v;
        return ST_OK;
    }
    if (strcmp(key, "theta") == 0) {
        char *end;
        s->theta = strtod(value, &end);
        if (!*value || *end || !isfinite(s->theta) || s->theta < 1)
            INVALID("%s: theta=%s is not a number of at least 1", spec, value);
        return ST_OK;
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (strcmp(key, flags[i].key) != 0)
            continue;
        if (!parse_u64(value, 1, &v))
            INVALID("%s: %s=%s is neither 0 nor 1", spec, key, value);
        *flags[i].out = v;
        return ST_OK;
    }
    if (strcmp(key, "codec") == 0) {
        if (!parse_codec(value, &s->codec))
            INVALID("%s: codec=%s is unknown (f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, "
                    "lossless-fast, df11, q4_z, leanquant-4, leanquant-3, leanquant-2)",
                    spec, value);
        return ST_OK;
    }
    INVALID("%s: unknown key %s (layers, d, heads, kv, head_dim, ff, vocab, positions, theta, tied, qkv_bias, qk_norm, "
            "codec)",
            spec, key);
}

/* A name, pairs, or a name with pairs that change it. text is cut up. */
static enum status parse_shape(const char *spec, char *text, struct shape *s, struct error *err)
{
    char *rest = text;
    bool first = true;
    *s = shapes[sizeof shapes / sizeof *shapes - 1];
    for (char *part; (part = strsep(&rest, ",")); first = false) {
        char *equals = strchr(part, '=');
        bool known = false;
        if (equals) {
            *equals = 0;
            const enum status st = parse_pair(spec, part, equals + 1, s, err);
            if (st)
                return st;
            continue;
        }
        for (size_t i = 0; first && i < sizeof shapes / sizeof *shapes; i++) {
            known |= strcmp(part, shapes[i].name) == 0;
            if (strcmp(part, shapes[i].name) == 0)
                *s = shapes[i];
        }
        if (!known)
            INVALID("%s: %s is neither a shape (llama-3.1-8b, llama-3.2-1b, smollm2-135m, mistral-7b, qwen2.5-7b, "
                    "qwen3-8b, tiny) nor key=value",
                    spec, part);
    }
    return ST_OK;
}

static enum status parse_spec(const char *spec, struct shape *s, uint64_t *seed_out, struct error *err)
{
    char text[SPEC_BYTES_MAX];
    uint64_t v;
    if (strlen(spec) >= sizeof text)
        INVALID("random:...: over %d bytes", SPEC_BYTES_MAX);
    snprintf(text, sizeof text, "%s", spec + sizeof spec_head - 1);
    char *rest = text, *shape = strsep(&rest, ":"), *layers = strsep(&rest, ":"), *seed = strsep(&rest, ":");
    const enum status st = parse_shape(spec, shape, s, err);
    if (st)
        return st;
    if (layers && *layers) {
        if (!parse_u64(layers, MODEL_LAYERS_MAX, &v) || !v)
            INVALID("%s: %s layers (1 to %d)", spec, layers, MODEL_LAYERS_MAX);
        s->layers = (uint32_t)v;
    }
    *seed_out = 0;
    if (seed && !parse_u64(seed, UINT64_MAX, seed_out))
        INVALID("%s: the seed %s is not a number", spec, seed);
    if (rest)
        INVALID("%s: too many parts (random:SHAPE[:LAYERS[:SEED]])", spec);
    if (s->vocab < 256)
        INVALID("%s: vocab=%u is under 256 (the tokens are bytes)", spec, s->vocab);
    return ST_OK;
}

static bool is_norm(enum model_tensor_kind kind)
{
    return kind == MODEL_OUTPUT_NORM || kind == MODEL_ATTN_NORM || kind == MODEL_FFN_NORM ||
           kind == MODEL_ATTN_Q_NORM || kind == MODEL_ATTN_K_NORM;
}

static bool is_bias(enum model_tensor_kind kind)
{
    return kind == MODEL_ATTN_Q_BIAS || kind == MODEL_ATTN_K_BIAS || kind == MODEL_ATTN_V_BIAS;
}

static bool random_takes(const char *spec)
{
    return strncmp(spec, spec_head, sizeof spec_head - 1) == 0;
}

static enum status random_open(struct model *m, const char *spec, struct error *err)
{
    struct shape s;
    struct model_config *c = &m->config;
    enum status st = parse_spec(spec, &s, &m->seed, err);
    if (st)
        return st;
    c->n_layers = s.layers;
    c->d_model = s.d;
    c->n_heads = s.heads;
    c->n_kv_heads = s.kv;
    c->head_dim = s.head_dim;
    c->d_ff = s.ff;
    c->n_vocab = s.vocab;
    c->positions_max = s.positions;
    c->rms_eps = 1e-5f;
    c->tied_output = s.tied;
    c->qkv_bias = s.qkv_bias;
    c->qk_norm = s.qk_norm;
    snprintf(c->architecture, sizeof c->architecture, "llama");
    model_printable(c->name, sizeof c->name, spec, strlen(spec));
    snprintf(c->rope_name, sizeof c->rope_name, s.llama3_factor > 0 ? "llama3" : "default");
    if (s.head_dim <= MODEL_HEAD_DIM_MAX) {
        rope_default(s.theta, s.head_dim, c->inv_freq);
        if (s.llama3_factor > 0)
            rope_scale_llama3(&(struct rope_llama3){ s.llama3_factor, 1, 4, 8192 }, s.head_dim, c->inv_freq);
    }
    if ((st = model_config_check(c, spec, err)) || (st = model_vocab_bytes(m, err)) || (st = model_tensors_new(m, err)))
        return st;
    char recipe[64];
    snprintf(recipe, sizeof recipe, "random 1 seed %llu", (unsigned long long)m->seed);
    if (!(m->recipe = model_copy_text(m, recipe, strlen(recipe))))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", spec);
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++) {
        const enum model_tensor_kind kind = (enum model_tensor_kind)k;
        uint32_t rows, cols;
        model_shape(c, kind, &rows, &cols);
        const uint64_t dims[2] = { rows, cols };
        for (uint32_t layer = 0; layer < (model_kind_layered(kind) ? c->n_layers : 1); layer++) {
            if (!model_kind_present(c, kind))
                continue;
            st = model_tensor_set(m, kind, layer, is_norm(kind) || is_bias(kind) ? WEIGHT_F32 : s.codec, dims, 2, NULL,
                                  false, spec, model_kind_name(kind), err);
            if (st)
                return st;
        }
    }
    return model_finish(m, spec, err);
}

/* 64 random bits; their place in the row is the counter. */
static inline uint64_t bits_at(uint64_t base, uint64_t i)
{
    return mix64(base + i * 0xD1342543DE82EF95u);
}

enum { PIECE = 128 };

/* Uniform in center +- range with 16 bits, in pieces whose loops the compiler turns into vectors. */
static void plain_row(enum weight_codec codec, uint64_t base, uint32_t n, float center, float range, void *out)
{
    const float scale = range * 0x1p-15f;
    for (uint32_t at = 0; at < n; at += PIECE) {
        const uint32_t count = n - at < PIECE ? n - at : PIECE;
        uint64_t bits[PIECE / 4];
        int16_t draws[PIECE];
        float x[PIECE];
        uint16_t half[PIECE];
        for (uint32_t i = 0; i < PIECE / 4; i++)
            bits[i] = bits_at(base, at + 4 * i);
        memcpy(draws, bits, sizeof draws);
        for (uint32_t i = 0; i < PIECE; i++)
            x[i] = center + (float)draws[i] * scale;
        if (codec == WEIGHT_F32) {
            memcpy((float *)out + at, x, count * sizeof *x);
            continue;
        }
        if (codec == WEIGHT_BF16 || codec == WEIGHT_LOSSLESS_FAST || codec == WEIGHT_DF11) {
            uint32_t u[PIECE];
            memcpy(u, x, sizeof u);
            for (uint32_t i = 0; i < PIECE; i++)
                half[i] = (uint16_t)((u[i] + 0x7FFF + (u[i] >> 16 & 1)) >> 16); /* bf16_of */
        } else {
            for (uint32_t i = 0; i < PIECE; i++)
                half[i] = f16_of(x[i]);
        }
        memcpy((uint16_t *)out + at, half, count * sizeof *half);
    }
}

/* Random codes under a scale that varies by a factor of two between blocks. sd: of the row's elements. */
static void block_row(enum weight_codec codec, uint64_t base, uint32_t n, float sd, uint8_t *out)
{
    const uint16_t eight = f16_of(8);
    const float code_sd = codec == WEIGHT_Q8_0 ? 73.6f : 4.61f; /* of uniform codes */
    const uint32_t words = codec == WEIGHT_Q8_0 ? 4 : 2;
    for (uint32_t b = 0; b < n / 32; b++) {
        const float vary = 0.65f + 0.65f * (float)(uint16_t)bits_at(base, 8 * b) * 0x1p-16f;
        const uint16_t d = f16_of(vary * sd / code_sd), m = f16_of(-7.5f * vary * sd / code_sd);
        memcpy(out, &d, 2);
        out += 2;
        if (codec == WEIGHT_Q4_1 || codec == WEIGHT_Q4_Z) {
            memcpy(out, codec == WEIGHT_Q4_1 ? &m : &eight, 2);
            out += 2;
        }
        for (uint32_t w = 0; w < words; w++, out += 8) {
            const uint64_t bits = bits_at(base, 8 * b + 1 + w);
            memcpy(out, &bits, 8);
            /* encoders never write -128, and products of signed bytes may rely on it */
            for (int i = 0; codec == WEIGHT_Q8_0 && i < 8; i++)
                out[i] = out[i] == 0x80 ? 0x81 : out[i];
        }
    }
}

/* A grid over center +- range, and random codes. */
static void grid_row(enum weight_codec codec, uint64_t base, uint32_t n, float range, uint8_t *out)
{
    const uint32_t n_grid = 1u << weight_grid_bits(codec);
    const size_t bytes = weight_row_bytes(codec, n);
    plain_row(WEIGHT_BF16, base, n_grid, 0, range, out);
    for (size_t i = 2 * n_grid, k = 64; i < bytes; i += 8, k++) {
        const uint64_t bits = bits_at(base, k);
        memcpy(out + i, &bits, bytes - i < 8 ? bytes - i : 8);
    }
}

/*
 * The same for codecs whose blocks have parts: random bytes, and such d and m that elements are spread as sd says around zero. Factors:
 * of uniform codes times uniform scales, and what centres them.
 */
static void parts_row(enum weight_codec codec, uint64_t base, uint32_t n, float sd, uint8_t *out)
{
    static const struct {
        float code_sd, centre;
    } spreads[WEIGHT_CODECS] = {
        [WEIGHT_Q5_0] = { 9.24f, 0 },      [WEIGHT_Q5_1] = { 9.23f, -15.5f }, [WEIGHT_Q4_K] = { 258.3f, 7.5f },
        [WEIGHT_Q5_K] = { 527.3f, 15.5f }, [WEIGHT_Q6_K] = { 1366.0f, 0 },
    };
    const size_t bytes = weight_codec_block_bytes(codec);
    for (uint32_t b = 0; b < n / weight_codec_block(codec); b++, out += bytes) {
        const float vary = 0.65f + 0.65f * (float)(uint16_t)bits_at(base, 64 * b) * 0x1p-16f;
        const float scale = vary * sd / spreads[codec].code_sd;
        const uint16_t d = f16_of(scale), m = f16_of(scale * spreads[codec].centre);
        for (size_t i = 0; i < bytes; i += 8) {
            const uint64_t bits = bits_at(base, 64 * b + 1 + i / 8);
            memcpy(out + i, &bits, bytes - i < 8 ? bytes - i : 8);
        }
        memcpy(codec == WEIGHT_Q6_K ? out + 208 : out, &d, 2);
        if (m)
            memcpy(out + 2, &m, 2);
    }
}

static const void *random_row(const struct model_tensor *t, uint32_t row, void *scratch)
{
    const uint64_t base = rng_at(t->model->seed, (uint64_t)t->kind << 32 | t->layer, row);
    const bool ends = t->kind == MODEL_EMBEDDING || t->kind == MODEL_OUTPUT;
    const float sd = (ends ? 2.0f : 1.0f) / sqrtf((float)t->n_cols), root3 = 1.7320508f;
    if (is_norm(t->kind))
        plain_row(t->codec, base, t->n_cols, 1, 0.1f, scratch);
    else if (is_bias(t->kind))
        plain_row(t->codec, base, t->n_cols, 0, 0.5f, scratch);
    else if (weight_grid_bits(t->codec))
        grid_row(t->codec, base, t->n_cols, root3 * sd, scratch);
    else if (weight_codec_block(t->codec) == 1)
        plain_row(t->codec, base, t->n_cols, 0, root3 * sd, scratch);
    else if (t->codec >= WEIGHT_Q5_0 && t->codec <= WEIGHT_Q6_K)
        parts_row(t->codec, base, t->n_cols, sd, scratch);
    else
        block_row(t->codec, base, t->n_cols, sd, scratch);
    return scratch;
}

const struct model_source model_source_random = { "random", random_takes, random_open, random_row };
