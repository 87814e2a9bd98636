#include "model/gguf_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/rope.h"
#include "model/source.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

static const struct architecture {
    const char *name;
    bool qkv_bias, qk_norm;
    bool interleaved; /* rows of q and k are stored as adjacent RoPE pairs */
} architectures[] = {
    { "llama", false, false, true }, /* and Mistral */
    { "qwen2", true, false, false },
    { "qwen3", false, true, false },
};

enum { KEY_BYTES = 96 };

/* "llama.rope.freq_base": keys of the architecture are named after it. Returns name. */
static const char *key_of(char name[KEY_BYTES], const struct model_config *c, const char *rest)
{
    snprintf(name, KEY_BYTES, "%s.%s", c->architecture, rest);
    return name;
}

static enum status arch_u32(const struct gguf *g, const struct model_config *c, const char *rest, uint32_t *value_out,
                            bool *found_out, struct error *err)
{
    char name[KEY_BYTES];
    return gguf_u32(g, key_of(name, c, rest), value_out, found_out, err);
}

static enum status arch_f64(const struct gguf *g, const struct model_config *c, const char *rest, double *value_out,
                            bool *found_out, struct error *err)
{
    char name[KEY_BYTES];
    return gguf_f64(g, key_of(name, c, rest), value_out, found_out, err);
}

/* A count that some files give once and some for each layer; layers that differ are another architecture. */
static enum status uniform_u32(const struct gguf *g, const struct model_config *c, const char *rest,
                               uint32_t *value_out, bool *found_out, struct error *err)
{
    char name[KEY_BYTES];
    const struct gguf_key *k = gguf_find(g, key_of(name, c, rest));
    if (!k || k->type != GGUF_ARRAY)
        return gguf_u32(g, name, value_out, found_out, err);
    int64_t first = 0, v;
    for (uint64_t i = 0; i < k->n; i++) {
        if (!gguf_integer(k, i, &v) || v < 0 || v > UINT32_MAX)
            REFUSE("%s: key %s is not an array of integers from 0 to 2^32 - 1", g->where, name);
        if (i == 0)
            first = v;
        if (v != first)
            UNSUPPORTED("%s: key %s: layers with different values are not supported", g->where, name);
    }
    if (k->n == 0)
        REFUSE("%s: key %s is an empty array", g->where, name);
    *value_out = (uint32_t)first;
    if (found_out)
        *found_out = true;
    return ST_OK;
}

static enum status read_sizes(const struct gguf *g, struct model_config *c, struct error *err)
{
    bool has_kv, has_key, has_value, has_rope;
    uint32_t key_length, value_length, rope_dims;
    const char *arch = c->architecture;
    double eps = 0;
    enum status st;
    if ((st = arch_u32(g, c, "block_count", &c->n_layers, NULL, err)) ||
        (st = arch_u32(g, c, "context_length", &c->positions_max, NULL, err)) ||
        (st = arch_u32(g, c, "embedding_length", &c->d_model, NULL, err)) ||
        (st = uniform_u32(g, c, "feed_forward_length", &c->d_ff, NULL, err)) ||
        (st = uniform_u32(g, c, "attention.head_count", &c->n_heads, NULL, err)) ||
        (st = uniform_u32(g, c, "attention.head_count_kv", &c->n_kv_heads, &has_kv, err)) ||
        (st = arch_f64(g, c, "attention.layer_norm_rms_epsilon", &eps, NULL, err)) ||
        (st = arch_u32(g, c, "attention.key_length", &key_length, &has_key, err)) ||
        (st = arch_u32(g, c, "attention.value_length", &value_length, &has_value, err)) ||
        (st = arch_u32(g, c, "rope.dimension_count", &rope_dims, &has_rope, err)))
        return st;
    c->rms_eps = (float)eps;
    if (!has_kv)
        c->n_kv_heads = c->n_heads;
    if (c->n_heads == 0)
        REFUSE("%s: key %s.attention.head_count is 0", g->where, arch);
    if ((!has_key || !has_value) && c->d_model % c->n_heads)
        REFUSE("%s: %s.embedding_length %u is not a multiple of %s.attention.head_count %u, and "
               "%s.attention.key_length or value_length is missing",
               g->where, arch, c->d_model, arch, c->n_heads, arch);
    c->head_dim = has_key ? key_length : c->d_model / c->n_heads;
    if ((has_value ? value_length : c->d_model / c->n_heads) != c->head_dim)
        UNSUPPORTED("%s: %s.attention.key_length %u and value_length differ: not supported", g->where, arch,
                    c->head_dim);
    if (has_rope && rope_dims != c->head_dim)
        UNSUPPORTED("%s: %s.rope.dimension_count %u is not the head size %u: partial rotation is not supported",
                    g->where, arch, rope_dims, c->head_dim);
    return ST_OK;
}

/* A window that no position can outgrow is none. After the context length is known. */
static enum status check_window(const struct gguf *g, const struct model_config *c, struct error *err)
{
    uint32_t window = 0;
    bool found;
    const enum status st = arch_u32(g, c, "attention.sliding_window", &window, &found, err);
    if (!st && window && window < c->positions_max)
        UNSUPPORTED("%s: key %s.attention.sliding_window: a window of %u, below the %u positions of the context, is "
                    "not supported",
                    g->where, c->architecture, window, c->positions_max);
    return st;
}

/* Keys of the architecture that are read elsewhere, or do not change what is computed. */
static const char *const known_keys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
};
/* Those whose neutral value is not zero. */
static const struct {
    const char *name;
    double neutral;
} neutral_keys[] = { { "attention.causal", 1 } };

/* Numbers and bools; false for the rest. */
static bool key_number(const struct gguf_key *k, double *value_out)
{
    int64_t i;
    float f;
    if (k->type == GGUF_BOOL) {
        *value_out = k->data[0];
    } else if (k->type == GGUF_F32) {
        memcpy(&f, k->data, sizeof f);
        *value_out = f;
    } else if (k->type == GGUF_F64) {
        memcpy(value_out, k->data, sizeof *value_out);
    } else if (k->type != GGUF_ARRAY && gguf_integer(k, 0, &i)) {
        *value_out = (double)i;
    } else {
        return false;
    }
    return true;
}

/* Whatever is not known here might change the result: it passes only if it is off. */
static enum status refuse_unknown_keys(const struct gguf *g, const struct model_config *c, struct error *err)
{
    char name[72], prefix[KEY_BYTES];
    const size_t n_prefix = strlen(key_of(prefix, c, ""));
    for (uint32_t i = 0; i < g->n_keys; i++) {
        const struct gguf_key *k = &g->keys[i];
        if (k->name.bytes < n_prefix || memcmp(k->name.text, prefix, n_prefix) != 0)
            continue;
        const struct gguf_text rest = { k->name.text + n_prefix, k->name.bytes - n_prefix };
        bool known = false;
        for (size_t n = 0; n < sizeof known_keys / sizeof *known_keys; n++)
            known |= gguf_text_is(rest, known_keys[n]);
        double neutral = 0, value;
        for (size_t n = 0; n < sizeof neutral_keys / sizeof *neutral_keys; n++)
            if (gguf_text_is(rest, neutral_keys[n].name))
                neutral = neutral_keys[n].neutral;
        if (!known && (!key_number(k, &value) || value != neutral))
            UNSUPPORTED("%s: key %s: not supported, and its value is not the one that turns it off", g->where,
                        model_printable(name, sizeof name, k->name.text, k->name.bytes));
    }
    struct gguf_text layout;
    bool found;
    const enum status st = gguf_string(g, key_of(prefix, c, "tensor_data_layout"), &layout, &found, err);
    if (!st && found && !gguf_text_is(layout, "Meta AI original pth") && !gguf_text_is(layout, "reference"))
        UNSUPPORTED("%s: key %s: this layout is not supported", g->where, prefix);
    return st;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *parts, uint32_t n_parts, const char *name)
{
    for (uint32_t p = 0; p < n_parts; p++)
        for (uint32_t i = 0; i < parts[p].n_tensors; i++)
            if (gguf_text_is(parts[p].tensors[i].name, name))
                return &parts[p].tensors[i];
    return NULL;
}

/* Divisors of the frequencies: how converters write Llama 3's scaling. */
static enum status apply_freqs(const struct gguf *g, const struct gguf_tensor *t, struct model_config *c,
                               struct error *err)
{
    if (t->type != 0 || t->n_dims != 1 || t->dims[0] != c->head_dim / 2)
        REFUSE("%s: tensor rope_freqs.weight is not %u F32 numbers", g->where, c->head_dim / 2);
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        float divisor;
        memcpy(&divisor, t->data + i * sizeof divisor, sizeof divisor);
        if (!isfinite(divisor) || divisor <= 0)
            REFUSE("%s: tensor rope_freqs.weight: element %u is %g", g->where, i, (double)divisor);
        c->inv_freq[i] /= divisor;
    }
    snprintf(c->rope_name, sizeof c->rope_name, "rope_freqs");
    return ST_OK;
}

/*
 * As ggml reads these keys: the attention factor is that of the scaling factor (and yarn_log_multiplier, a model's mscale_all_dim beside an mscale of
 * 1). yarn_attn_factor is a Hugging Face attention_factor to those who write it and of no effect to those who read it: it passes where both agree.
 */
static enum status scale_yarn(const struct gguf *g, double theta, double factor, struct model_config *c,
                              struct error *err)
{
    struct rope_yarn s = { factor, 0, 32, 1, true };
    double extrapolation = 1, weight_all = 0, given = 1;
    uint32_t original = c->positions_max;
    bool found;
    enum status st;
    if ((st = arch_u32(g, c, "rope.scaling.original_context_length", &original, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.yarn_beta_fast", &s.beta_fast, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.yarn_beta_slow", &s.beta_slow, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.yarn_ext_factor", &extrapolation, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.yarn_log_multiplier", &weight_all, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.yarn_attn_factor", &given, &found, err)))
        return st;
    s.positions_original = original;
    if (original < 1 || original > INT32_MAX)
        REFUSE("%s: key %s.rope.scaling.original_context_length is %u (1 to %d)", g->where, c->architecture, original,
               INT32_MAX);
    if (!(s.beta_slow > 0) || !(s.beta_fast >= s.beta_slow) || !isfinite(s.beta_fast))
        REFUSE("%s: keys %s.rope.scaling.yarn_beta_fast %g and yarn_beta_slow %g do not make sense", g->where,
               c->architecture, s.beta_fast, s.beta_slow);
    if (extrapolation != 1)
        UNSUPPORTED("%s: key %s.rope.scaling.yarn_ext_factor: %g is not supported (1 is)", g->where, c->architecture,
                    extrapolation);
    if (!(theta > 1))
        REFUSE("%s: key %s.rope.freq_base is %g (above 1 with YaRN)", g->where, c->architecture, theta);
    c->rope_scale = rope_yarn_attention(factor, 1);
    if (given != 1 && !(fabs(given - c->rope_scale) < 1e-5))
        UNSUPPORTED("%s: key %s.rope.scaling.yarn_attn_factor: %g is not supported (1 and %g, which follows from the "
                    "factor, are)",
                    g->where, c->architecture, given, c->rope_scale);
    if (weight_all != 0)
        c->rope_scale /= rope_yarn_attention(factor, weight_all);
    rope_scale_yarn(&s, theta, c->head_dim, c->inv_freq);
    const double positions = fmin(floor(factor * s.positions_original), INT32_MAX);
    if (positions > c->positions_max)
        c->positions_max = (uint32_t)positions;
    return ST_OK;
}

static enum status apply_scaling(const struct gguf *g, double theta, struct model_config *c, struct error *err)
{
    static const char *const types[] = { "none", "linear", "yarn" };
    struct gguf_text type = { types[1], 6 };
    double factor = 0, attention = 1;
    bool has_factor, found;
    char key[KEY_BYTES], shown[32];
    enum status st;
    if ((st = gguf_string(g, key_of(key, c, "rope.scaling.type"), &type, &found, err)) ||
        (st = arch_f64(g, c, "rope.scaling.factor", &factor, &has_factor, err)) ||
        (!has_factor && (st = arch_f64(g, c, "rope.scale_linear", &factor, &found, err))) ||
        (st = arch_f64(g, c, "rope.scaling.attn_factor", &attention, &found, err)))
        return st;
    const char *name = NULL;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        name = gguf_text_is(type, types[i]) ? types[i] : name;
    if (!name)
        UNSUPPORTED("%s: key %s: %s is not supported (none, linear and yarn are)", g->where, key,
                    model_printable(shown, sizeof shown, type.text, type.bytes));
    if (factor == 0 || strcmp(name, "none") == 0)
        factor = 1;
    if (!(factor >= 1 && factor <= 1e9))
        REFUSE("%s: key %s.rope.scaling.factor is %g (at least 1)", g->where, c->architecture, factor);
    if (strcmp(name, "yarn") == 0) {
        st = scale_yarn(g, theta, factor, c, err);
    } else if (factor != 1) {
        rope_scale_linear(factor, c->head_dim, c->inv_freq);
    } else {
        name = "default";
    }
    c->rope_scale *= attention;
    snprintf(c->rope_name, sizeof c->rope_name, "%s", name);
    return st;
}

static enum status read_rope(const struct gguf *parts, uint32_t n_parts, struct model_config *c, struct error *err)
{
    const struct gguf *g = &parts[0];
    double theta = 10000;
    bool found;
    enum status st = arch_f64(g, c, "rope.freq_base", &theta, &found, err);
    if (st)
        return st;
    if (!isfinite(theta) || theta < 1)
        REFUSE("%s: key %s.rope.freq_base is %g (at least 1)", g->where, c->architecture, theta);
    rope_default(theta, c->head_dim, c->inv_freq);
    if ((st = apply_scaling(g, theta, c, err)))
        return st;
    const struct gguf_tensor *t = gguf_find_tensor(parts, n_parts, "rope_freqs.weight");
    if (t && strcmp(c->rope_name, "default") != 0)
        UNSUPPORTED("%s: tensor rope_freqs.weight: beside key %s.rope.scaling.type it is not supported", g->where,
                    c->architecture);
    return t ? apply_freqs(g, t, c, err) : ST_OK;
}

static enum status check_general(const struct gguf *g, const struct architecture **found_out, struct error *err)
{
    struct gguf_text text;
    char shown[40];
    bool found;
    uint32_t version;
    enum status st = gguf_string(g, "general.architecture", &text, NULL, err);
    if (st)
        return st;
    *found_out = NULL;
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (gguf_text_is(text, architectures[i].name))
            *found_out = &architectures[i];
    if (!*found_out)
        UNSUPPORTED("%s: key general.architecture: %s is not supported (llama, qwen2 and qwen3 are)", g->where,
                    model_printable(shown, sizeof shown, text.text, text.bytes));
    if ((st = gguf_string(g, "general.type", &text, &found, err)))
        return st;
    if (found && !gguf_text_is(text, "model"))
        UNSUPPORTED("%s: key general.type: %s is not supported (model is)", g->where,
                    model_printable(shown, sizeof shown, text.text, text.bytes));
    if ((st = gguf_u32(g, "general.quantization_version", &version, &found, err)))
        return st;
    if (found && version != 2)
        UNSUPPORTED("%s: key general.quantization_version: %u is not supported (2 is)", g->where, version);
    return ST_OK;
}

enum status gguf_config_read(const struct gguf *parts, uint32_t n_parts, struct model_config *c, bool *interleaved_out,
                             struct error *err)
{
    const struct gguf *g = &parts[0];
    const struct architecture *a;
    const struct gguf_key *tokens;
    uint32_t vocab_size;
    bool found;
    enum status st = check_general(g, &a, err);
    if (st)
        return st;
    snprintf(c->architecture, sizeof c->architecture, "%s", a->name);
    c->qkv_bias = a->qkv_bias;
    c->qk_norm = a->qk_norm;
    *interleaved_out = a->interleaved;
    if ((st = read_sizes(g, c, err)) || (st = refuse_unknown_keys(g, c, err)) ||
        (st = gguf_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, NULL, err)) ||
        (st = arch_u32(g, c, "vocab_size", &vocab_size, &found, err)))
        return st;
    if (tokens->n > MODEL_VOCAB_MAX || (found && vocab_size != tokens->n))
        REFUSE("%s: key tokenizer.ggml.tokens holds %llu tokens, %s.vocab_size is %u", g->where,
               (unsigned long long)tokens->n, a->name, found ? vocab_size : MODEL_VOCAB_MAX);
    c->n_vocab = (uint32_t)tokens->n;
    c->tied_output = !gguf_find_tensor(parts, n_parts, "output.weight");
    if (c->head_dim < 2 || c->head_dim > MODEL_HEAD_DIM_MAX)
        REFUSE("%s: head size %u (2 to %d)", g->where, c->head_dim, MODEL_HEAD_DIM_MAX);
    if ((st = read_rope(parts, n_parts, c, err)) || (st = check_window(g, c, err)))
        return st;
    return model_config_check(c, g->where, err);
}
