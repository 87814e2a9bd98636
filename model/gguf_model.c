#include "model/gguf_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/directory.h"
#include "model/gguf_vocab.h"
#include "model/rope.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

enum { PARTS_MAX = 1024 };

/* A count that some files give once and some for each layer; layers that differ are another architecture. */
static enum status uniform_u32(const struct gguf *g, const char *name, uint32_t *value_out, bool *found_out,
                               struct error *err)
{
    const struct gguf_key *k = gguf_find(g, name);
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
    double eps = 0;
    enum status st;
    if ((st = gguf_u32(g, "llama.block_count", &c->n_layers, NULL, err)) ||
        (st = gguf_u32(g, "llama.context_length", &c->positions_max, NULL, err)) ||
        (st = gguf_u32(g, "llama.embedding_length", &c->d_model, NULL, err)) ||
        (st = uniform_u32(g, "llama.feed_forward_length", &c->d_ff, NULL, err)) ||
        (st = uniform_u32(g, "llama.attention.head_count", &c->n_heads, NULL, err)) ||
        (st = uniform_u32(g, "llama.attention.head_count_kv", &c->n_kv_heads, &has_kv, err)) ||
        (st = gguf_f64(g, "llama.attention.layer_norm_rms_epsilon", &eps, NULL, err)) ||
        (st = gguf_u32(g, "llama.attention.key_length", &key_length, &has_key, err)) ||
        (st = gguf_u32(g, "llama.attention.value_length", &value_length, &has_value, err)) ||
        (st = gguf_u32(g, "llama.rope.dimension_count", &rope_dims, &has_rope, err)))
        return st;
    c->rms_eps = (float)eps;
    if (!has_kv)
        c->n_kv_heads = c->n_heads;
    if (c->n_heads == 0)
        REFUSE("%s: key llama.attention.head_count is 0", g->where);
    if ((!has_key || !has_value) && c->d_model % c->n_heads)
        REFUSE("%s: llama.embedding_length %u is not a multiple of llama.attention.head_count %u, and "
               "llama.attention.key_length or "
               "value_length is missing",
               g->where, c->d_model, c->n_heads);
    c->head_dim = has_key ? key_length : c->d_model / c->n_heads;
    if ((has_value ? value_length : c->d_model / c->n_heads) != c->head_dim)
        UNSUPPORTED("%s: llama.attention.key_length %u and value_length differ: not supported", g->where, c->head_dim);
    if (has_rope && rope_dims != c->head_dim)
        UNSUPPORTED("%s: llama.rope.dimension_count %u is not the head size %u: partial rotation is not supported",
                    g->where, rope_dims, c->head_dim);
    return ST_OK;
}

/* Keys under "llama." that are read elsewhere, or do not change what is computed. */
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
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
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
} neutral_keys[] = { { "rope.scale_linear", 1 }, { "rope.scaling.attn_factor", 1 }, { "attention.causal", 1 } };

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
static enum status refuse_unknown_keys(const struct gguf *g, struct error *err)
{
    for (uint32_t i = 0; i < g->n_keys; i++) {
        const struct gguf_key *k = &g->keys[i];
        if (k->name.bytes < 6 || memcmp(k->name.text, "llama.", 6) != 0)
            continue;
        const struct gguf_text rest = { k->name.text + 6, k->name.bytes - 6 };
        bool known = false;
        for (size_t n = 0; n < sizeof known_keys / sizeof *known_keys; n++)
            known |= gguf_text_is(rest, known_keys[n]);
        double neutral = 0, value;
        for (size_t n = 0; n < sizeof neutral_keys / sizeof *neutral_keys; n++)
            if (gguf_text_is(rest, neutral_keys[n].name))
                neutral = neutral_keys[n].neutral;
        char name[72];
        if (!known && (!key_number(k, &value) || value != neutral))
            UNSUPPORTED("%s: key %s: not supported, and its value is not the one that turns it off", g->where,
                        model_printable(name, sizeof name, k->name.text, k->name.bytes));
    }
    struct gguf_text layout;
    bool found;
    const enum status st = gguf_string(g, "llama.tensor_data_layout", &layout, &found, err);
    if (!st && found && !gguf_text_is(layout, "Meta AI original pth") && !gguf_text_is(layout, "reference"))
        UNSUPPORTED("%s: key llama.tensor_data_layout: this layout is not supported", g->where);
    return st;
}

static const struct gguf_tensor *find_tensor(const struct gguf *parts, uint32_t n_parts, const char *name)
{
    for (uint32_t p = 0; p < n_parts; p++)
        for (uint32_t i = 0; i < parts[p].n_tensors; i++)
            if (gguf_text_is(parts[p].tensors[i].name, name))
                return &parts[p].tensors[i];
    return NULL;
}

static enum status read_rope(const struct gguf *parts, uint32_t n_parts, struct model_config *c, struct error *err)
{
    const struct gguf *g = &parts[0];
    double theta = 10000, factor = 1;
    bool found, has_type;
    struct gguf_text type;
    char name[32];
    enum status st;
    if ((st = gguf_f64(g, "llama.rope.freq_base", &theta, &found, err)) ||
        (st = gguf_string(g, "llama.rope.scaling.type", &type, &has_type, err)) ||
        (st = gguf_f64(g, "llama.rope.scaling.factor", &factor, &found, err)))
        return st;
    if (!isfinite(theta) || theta < 1)
        REFUSE("%s: key llama.rope.freq_base is %g (at least 1)", g->where, theta);
    if (has_type && !gguf_text_is(type, "none") && !gguf_text_is(type, "linear"))
        UNSUPPORTED("%s: key llama.rope.scaling.type: %s is not supported", g->where,
                    model_printable(name, sizeof name, type.text, type.bytes));
    if (!(has_type && gguf_text_is(type, "none")) && factor != 1 && factor != 0)
        UNSUPPORTED("%s: key llama.rope.scaling.factor: linear scaling by %g is not supported", g->where, factor);
    rope_default(theta, c->head_dim, c->inv_freq);
    snprintf(c->rope_name, sizeof c->rope_name, "default");
    const struct gguf_tensor *t = find_tensor(parts, n_parts, "rope_freqs.weight");
    if (!t)
        return ST_OK;
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

static const struct {
    const char *name;
    enum model_tensor_kind kind;
} tensor_names[] = {
    { "token_embd.weight", MODEL_EMBEDDING }, { "output_norm.weight", MODEL_OUTPUT_NORM },
    { "output.weight", MODEL_OUTPUT },        { "attn_norm.weight", MODEL_ATTN_NORM },
    { "attn_q.weight", MODEL_ATTN_Q },        { "attn_k.weight", MODEL_ATTN_K },
    { "attn_v.weight", MODEL_ATTN_V },        { "attn_output.weight", MODEL_ATTN_OUT },
    { "ffn_norm.weight", MODEL_FFN_NORM },    { "ffn_gate.weight", MODEL_FFN_GATE },
    { "ffn_up.weight", MODEL_FFN_UP },        { "ffn_down.weight", MODEL_FFN_DOWN },
};

/* "blk.12.attn_q.weight" -> kind, 12. false: no name of ours. */
static bool tensor_place(struct gguf_text name, enum model_tensor_kind *kind_out, uint32_t *layer_out)
{
    uint32_t layer = 0;
    const bool layered = name.bytes > 4 && memcmp(name.text, "blk.", 4) == 0;
    if (layered) {
        size_t i = 4;
        for (; i < name.bytes && name.text[i] >= '0' && name.text[i] <= '9' && layer <= MODEL_LAYERS_MAX; i++)
            layer = layer * 10 + (uint32_t)(name.text[i] - '0');
        const bool has_zero = i > 5 && name.text[4] == '0'; /* blk.01 would be a second name of blk.1 */
        if (i == 4 || has_zero || i == name.bytes || name.text[i] != '.')
            return false;
        name = (struct gguf_text){ name.text + i + 1, name.bytes - i - 1 };
    }
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        if (!gguf_text_is(name, tensor_names[i].name) || model_kind_layered(tensor_names[i].kind) != layered)
            continue;
        *kind_out = tensor_names[i].kind;
        *layer_out = layer;
        return true;
    }
    return false;
}

static bool codec_of(uint32_t type, enum weight_codec *codec_out)
{
    static const struct {
        uint32_t type;
        enum weight_codec codec;
    } codecs[] = { { 0, WEIGHT_F32 },   { 1, WEIGHT_F16 },   { 30, WEIGHT_BF16 }, { 8, WEIGHT_Q8_0 },
                   { 2, WEIGHT_Q4_0 },  { 3, WEIGHT_Q4_1 },  { 6, WEIGHT_Q5_0 },  { 7, WEIGHT_Q5_1 },
                   { 12, WEIGHT_Q4_K }, { 13, WEIGHT_Q5_K }, { 14, WEIGHT_Q6_K } };
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++)
        if (codecs[i].type == type) {
            *codec_out = codecs[i].codec;
            return true;
        }
    return false;
}

static enum status enter_tensor(struct model *m, const struct gguf *g, const struct gguf_tensor *t, struct error *err)
{
    char name[72];
    enum model_tensor_kind kind;
    enum weight_codec codec;
    uint32_t layer;
    model_printable(name, sizeof name, t->name.text, t->name.bytes);
    if (gguf_text_is(t->name, "rope_freqs.weight"))
        return ST_OK;
    if (!tensor_place(t->name, &kind, &layer))
        UNSUPPORTED("%s: tensor %s: architecture llama as implemented has no such tensor", g->where, name);
    if (model_kind_layered(kind) && layer >= m->config.n_layers)
        REFUSE("%s: tensor %s: llama.block_count is %u", g->where, name, m->config.n_layers);
    if (!codec_of(t->type, &codec))
        UNSUPPORTED(
            "%s: tensor %s: type %s is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, "
            "Q6_K are)",
            g->where, name, gguf_tensor_type_name(t->type));
    const bool interleaved = kind == MODEL_ATTN_Q || kind == MODEL_ATTN_K;
    return model_tensor_set(m, kind, layer, codec, t->dims, t->n_dims, t->data, interleaved, g->where, name, err);
}

static enum status check_general(const struct gguf *g, struct error *err)
{
    struct gguf_text text;
    char shown[40];
    bool found;
    uint32_t version;
    enum status st = gguf_string(g, "general.architecture", &text, NULL, err);
    if (st)
        return st;
    if (!gguf_text_is(text, "llama"))
        UNSUPPORTED("%s: key general.architecture: %s is not supported (llama is)", g->where,
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

enum status gguf_model_fill(struct model *m, const struct gguf *parts, uint32_t n_parts, struct error *err)
{
    struct model_config *c = &m->config;
    const struct gguf *g = &parts[0];
    const struct gguf_key *tokens;
    uint32_t vocab_size;
    bool found;
    enum status st;
    if ((st = check_general(g, err)) || (st = read_sizes(g, c, err)) || (st = refuse_unknown_keys(g, err)) ||
        (st = gguf_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, NULL, err)) ||
        (st = gguf_u32(g, "llama.vocab_size", &vocab_size, &found, err)))
        return st;
    if (tokens->n > MODEL_VOCAB_MAX || (found && vocab_size != tokens->n))
        REFUSE("%s: key tokenizer.ggml.tokens holds %llu tokens, llama.vocab_size is %u", g->where,
               (unsigned long long)tokens->n, found ? vocab_size : MODEL_VOCAB_MAX);
    c->n_vocab = (uint32_t)tokens->n;
    c->tied_output = !find_tensor(parts, n_parts, "output.weight");
    snprintf(c->architecture, sizeof c->architecture, "llama");
    if (c->head_dim < 2 || c->head_dim > MODEL_HEAD_DIM_MAX)
        REFUSE("%s: head size %u (2 to %d)", g->where, c->head_dim, MODEL_HEAD_DIM_MAX);
    if ((st = read_rope(parts, n_parts, c, err)) || (st = model_config_check(c, g->where, err)) ||
        (st = gguf_vocab_fill(m, g, err)) || (st = model_tensors_new(m, err)))
        return st;
    for (uint32_t p = 0; p < n_parts; p++)
        for (uint32_t i = 0; i < parts[p].n_tensors; i++)
            if ((st = enter_tensor(m, &parts[p], &parts[p].tensors[i], err)))
                return st;
    return model_finish(m, g->where, err);
}

enum status gguf_model_open_bytes(const void *data, size_t bytes, struct model **model_out, struct error *err)
{
    struct gguf g = { 0 };
    struct model *m = model_new(&model_source_gguf);
    enum status st = m ? ST_OK : error_set(err, ST_NO_MEMORY, "out of memory");
    if (!st)
        st = gguf_parse(data, bytes, "memory", &g, err);
    if (!st)
        st = gguf_model_fill(m, &g, 1, err);
    gguf_free(&g);
    if (st)
        model_close(m);
    else
        *model_out = m;
    return st;
}

/* Checks what one part says of itself against the set. */
static enum status check_part(const struct gguf *g, uint32_t index, uint32_t count, struct error *err)
{
    uint32_t no = 0, of = 1;
    bool found;
    enum status st;
    if ((st = gguf_u32(g, "split.no", &no, &found, err)) || (st = gguf_u32(g, "split.count", &of, &found, err)))
        return st;
    if (of == 0)
        of = 1;
    if (of != count)
        REFUSE("%s: key split.count is %u, the file's name says %u", g->where, of, count);
    if (no != index)
        REFUSE("%s: key split.no is %u, the file's name says %u", g->where, no, index);
    return ST_OK;
}

/* The same tensor in two parts would be entered twice, which model_tensor_set refuses; here the sum is checked. */
static enum status check_sum(const struct gguf *parts, uint32_t n_parts, struct error *err)
{
    uint32_t want;
    uint64_t have = 0;
    bool found;
    const enum status st = gguf_u32(&parts[0], "split.tensors.count", &want, &found, err);
    for (uint32_t i = 0; i < n_parts; i++)
        have += parts[i].n_tensors;
    if (!st && found && n_parts > 1 && have != want)
        REFUSE("%s: key split.tensors.count is %u, the %u files hold %llu tensors", parts[0].where, want, n_parts,
               (unsigned long long)have);
    return st;
}

static enum status open_parts(struct model *m, char **paths, uint32_t n_parts, struct error *err)
{
    struct gguf *parts = calloc(n_parts, sizeof *parts);
    struct file_map map;
    enum status st = parts ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", paths[0]);
    for (uint32_t i = 0; !st && i < n_parts; i++) {
        st = model_map(m, paths[i], &map, err);
        if (!st)
            st = gguf_parse(map.data, map.bytes, paths[i], &parts[i], err);
        if (!st)
            st = check_part(&parts[i], i, n_parts, err);
    }
    if (!st)
        st = check_sum(parts, n_parts, err);
    if (!st)
        st = gguf_model_fill(m, parts, n_parts, err);
    for (uint32_t i = 0; parts && i < n_parts; i++)
        gguf_free(&parts[i]);
    free(parts);
    return st;
}

/* A path that ends in -00001-of-00003.gguf: its number and count. */
static bool part_name(const char *path, uint32_t *no_out, uint32_t *count_out)
{
    const size_t n = strlen(path), tail = strlen("-00001-of-00003.gguf");
    unsigned no, count;
    int used = 0;
    if (n < tail || sscanf(path + n - tail, "-%5u-of-%5u.gguf%n", &no, &count, &used) != 2 || (size_t)used != tail ||
        no < 1 || no > count || count > PARTS_MAX)
        return false;
    *no_out = no;
    *count_out = count;
    return true;
}

static void set_name(struct model_config *c, const char *path, size_t bytes)
{
    size_t base = bytes;
    while (base && path[base - 1] != '/')
        base--;
    model_printable(c->name, sizeof c->name, path + base, bytes - base);
}

static enum status open_file(struct model *m, const char *path, struct error *err)
{
    uint32_t no = 1, count = 1;
    const size_t n = strlen(path), tail = strlen("-00001-of-00003.gguf");
    const bool split = part_name(path, &no, &count);
    enum status st = ST_OK;
    char **paths = model_alloc(m, count, sizeof *paths);
    for (uint32_t i = 0; paths && i < count; i++) {
        paths[i] = model_copy_text(m, path, n);
        if (!paths[i])
            paths = NULL;
        else if (split)
            snprintf(paths[i] + n - tail, tail + 1, "-%05u-of-%05u.gguf", (i + 1) % 100000, count % 100000);
    }
    if (!paths)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", path);
    if (no != 1)
        return error_set(err, ST_INVALID, "%s: name the first file of the set, %s", path, paths[0]);
    st = open_parts(m, paths, count, err);
    const bool suffix = n > 5 && strcmp(path + n - 5, ".gguf") == 0;
    set_name(&m->config, path, split ? n - tail : suffix ? n - 5 : n);
    return st;
}

static bool gguf_takes(const char *spec)
{
    struct model_directory d;
    if (!file_is_dir(spec))
        return file_exists(spec);
    return model_directory_look(spec, &d, NULL) == ST_OK && d.n_gguf && !d.n_safetensors;
}

static enum status gguf_open(struct model *m, const char *spec, struct error *err)
{
    struct model_directory d;
    if (!file_is_dir(spec))
        return open_file(m, spec, err);
    enum status st = model_directory_look(spec, &d, err);
    if (st)
        return st;
    uint32_t no, count;
    const bool split = part_name(d.gguf, &no, &count);
    if (d.n_gguf > (split ? count : 1)) /* too few: open_file names the missing one */
        return error_set(err, ST_INVALID, "%s: %u GGUF files in this directory: name one", spec, d.n_gguf);
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", spec, d.gguf) >= (int)sizeof path)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", spec);
    return open_file(m, path, err);
}

const struct model_source model_source_gguf = { "gguf", gguf_takes, gguf_open, NULL };
