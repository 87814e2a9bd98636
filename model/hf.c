#include "model/hf.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/directory.h"
#include "model/json.h"
#include "model/quantized.h"
#include "model/safetensors.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

enum { PATH_BYTES = 4096, SMALL_FILE_MAX = 16 << 20, TOKENIZER_FILE_MAX = 256 << 20 };

static const struct {
    const char *name;
    enum model_tensor_kind kind;
} tensor_names[] = {
    { "model.embed_tokens.weight", MODEL_EMBEDDING },
    { "model.norm.weight", MODEL_OUTPUT_NORM },
    { "lm_head.weight", MODEL_OUTPUT },
    { "input_layernorm.weight", MODEL_ATTN_NORM },
    { "self_attn.q_proj.weight", MODEL_ATTN_Q },
    { "self_attn.k_proj.weight", MODEL_ATTN_K },
    { "self_attn.v_proj.weight", MODEL_ATTN_V },
    { "self_attn.o_proj.weight", MODEL_ATTN_OUT },
    { "post_attention_layernorm.weight", MODEL_FFN_NORM },
    { "mlp.gate_proj.weight", MODEL_FFN_GATE },
    { "mlp.up_proj.weight", MODEL_FFN_UP },
    { "mlp.down_proj.weight", MODEL_FFN_DOWN },
    { "self_attn.q_proj.bias", MODEL_ATTN_Q_BIAS },
    { "self_attn.k_proj.bias", MODEL_ATTN_K_BIAS },
    { "self_attn.v_proj.bias", MODEL_ATTN_V_BIAS },
    { "self_attn.q_norm.weight", MODEL_ATTN_Q_NORM },
    { "self_attn.k_norm.weight", MODEL_ATTN_K_NORM },
};

/* "model.layers.12.<rest>" -> rest, 12; other names as they are. */
static const char *layer_name(const char *name, uint32_t *layer_out, bool *layered_out)
{
    static const char head[] = "model.layers.";
    uint32_t layer = 0;
    *layered_out = strncmp(name, head, sizeof head - 1) == 0;
    if (!*layered_out)
        return name;
    const char *digits = name + sizeof head - 1, *p = digits;
    for (; *p >= '0' && *p <= '9' && layer <= MODEL_LAYERS_MAX; p++)
        layer = layer * 10 + (uint32_t)(*p - '0');
    *layer_out = layer;
    const bool has_zero = p > digits + 1 && *digits == '0';
    return p > digits && *p == '.' && !has_zero ? p + 1 : "";
}

/* qweight and its kin, in the place of ".weight". *mine_out: it is one. */
static enum status enter_quantized(struct model *m, const struct quantized_config *q, const struct safetensor *t,
                                   const char *rest, bool layered, uint32_t layer, const char *where, const char *shown,
                                   bool *mine_out, struct error *err)
{
    enum quantized_part part;
    size_t stem;
    *mine_out = quantized_part_of(rest, &stem, &part);
    if (!*mine_out)
        return ST_OK;
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        const enum model_tensor_kind kind = tensor_names[i].kind;
        const char *name = tensor_names[i].name;
        if (strncmp(rest, name, stem) != 0 || strcmp(name + stem, ".weight") != 0 ||
            model_kind_layered(kind) != layered)
            continue;
        if (!model_kind_present(&m->config, kind) || (layered && layer >= m->config.n_layers))
            break;
        return quantized_enter(m, q, kind, layer, part, t, where, shown, err);
    }
    UNSUPPORTED("%s: tensor %s: architecture %s as implemented has no such tensor", where, shown,
                m->config.architecture);
}

/* Quantizers write biases of zeros beside matrices that have none. */
static bool is_zero_bias(const struct safetensor *t)
{
    const size_t n = strlen(t->name);
    bool zero = n > 5 && strcmp(t->name + n - 5, ".bias") == 0;
    for (uint64_t i = 0; i < t->bytes && zero; i++)
        zero = t->data[i] == 0;
    return zero;
}

static enum status enter_tensor(struct model *m, const struct quantized_config *q, const struct safetensor *t,
                                const char *where, struct error *err)
{
    static const enum weight_codec plain[] = { WEIGHT_F32, WEIGHT_F16, WEIGHT_BF16 };
    char shown[72];
    uint32_t layer = 0;
    bool layered;
    const char *rest = layer_name(t->name, &layer, &layered);
    model_printable(shown, sizeof shown, t->name, strlen(t->name));
    if (layered && strcmp(rest, "self_attn.rotary_emb.inv_freq") == 0) /* old files store what the configuration says */
        return ST_OK;
    if (q->method) {
        bool mine;
        const enum status st = enter_quantized(m, q, t, rest, layered, layer, where, shown, &mine, err);
        if (st || mine)
            return st;
    }
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        const enum model_tensor_kind kind = tensor_names[i].kind;
        if (strcmp(rest, tensor_names[i].name) != 0 || model_kind_layered(kind) != layered)
            continue;
        if (kind == MODEL_OUTPUT && m->config.tied_output) /* a copy of the embedding */
            return ST_OK;
        if (!model_kind_present(&m->config, kind))
            break;
        if (layered && layer >= m->config.n_layers)
            REFUSE("%s: tensor %s: config.json has num_hidden_layers %u", where, shown, m->config.n_layers);
        for (size_t c = 0; c < sizeof plain / sizeof *plain; c++)
            if (strcmp(t->dtype, weight_codec_name(plain[c])) == 0)
                return model_tensor_set(m, kind, layer, plain[c], t->dims, t->n_dims, t->data, false, where, shown,
                                        err);
        UNSUPPORTED("%s: tensor %s: dtype %s is not supported (BF16, F16, F32 are)", where, shown, t->dtype);
    }
    if (q->method && is_zero_bias(t))
        return ST_OK;
    UNSUPPORTED("%s: tensor %s: architecture %s as implemented has no such tensor", where, shown,
                m->config.architecture);
}

static enum status path_join(char path[PATH_BYTES], const char *directory, const char *name, struct error *err)
{
    if (snprintf(path, PATH_BYTES, "%s/%s", directory, name) >= PATH_BYTES)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", directory);
    return ST_OK;
}

/* map: of the index, tensor -> file name; NULL if there is one file. n_mapped counts the tensors found. */
static enum status open_shard(struct model *m, const struct quantized_config *q, const char *directory,
                              const char *name, const json_t *map, size_t *n_mapped, struct error *err)
{
    char path[PATH_BYTES], shown[72];
    struct file_map file;
    struct safetensors s = { 0 };
    enum status st;
    if ((st = path_join(path, directory, name, err)) || (st = model_map(m, path, &file, err)) ||
        (st = safetensors_parse(file.data, file.bytes, path, &s, err)))
        return st;
    for (uint32_t i = 0; !st && i < s.n_tensors; i++) {
        const char *tensor = s.tensors[i].name, *owner = json_string_value(json_object_get(map, tensor));
        if (map && (!owner || strcmp(owner, name) != 0))
            st = error_set(err, ST_CORRUPT, "%s: tensor %s: the index puts it elsewhere, or nowhere", path,
                           model_printable(shown, sizeof shown, tensor, strlen(tensor)));
        if (!st)
            st = enter_tensor(m, q, &s.tensors[i], path, err);
        ++*n_mapped;
    }
    safetensors_free(&s);
    return st;
}

/* File names come from outside: nothing but a plain name may be opened. */
static bool is_plain_name(const char *name)
{
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 256;
}

static enum status open_shards(struct model *m, const struct quantized_config *q, const char *directory,
                               const struct json_in *index, struct error *err)
{
    const json_t *map = json_find(index, "weight_map");
    const char *tensor;
    json_t *v;
    char shown[72];
    size_t n_mapped = 0;
    if (!json_is_object(map))
        REFUSE("%s: key weight_map is missing, or not an object", index->where);
    json_t *opened = json_object();
    enum status st = opened ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", index->where);
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v)
    {
        const char *name = json_string_value(v);
        if (!st && (!name || !is_plain_name(name)))
            st = error_set(err, ST_CORRUPT, "%s: key weight_map: the file of %s is not a file name", index->where,
                           model_printable(shown, sizeof shown, tensor, strlen(tensor)));
        if (st || json_object_get(opened, name))
            continue;
        st = open_shard(m, q, directory, name, map, &n_mapped, err);
        if (!st && json_object_set_new(opened, name, json_true()))
            st = error_set(err, ST_NO_MEMORY, "%s: out of memory", index->where);
    }
    json_decref(opened);
    if (!st && n_mapped != json_object_size(map))
        REFUSE("%s: key weight_map names %zu tensors, the files hold %zu", index->where, json_object_size(map),
               n_mapped);
    return st;
}

static enum status open_weights(struct model *m, const struct quantized_config *q, const char *directory,
                                struct error *err)
{
    char path[PATH_BYTES], *text = NULL;
    size_t bytes, n = 0;
    json_t *root;
    enum status st = path_join(path, directory, "model.safetensors", err);
    if (st)
        return st;
    if (file_exists(path))
        return open_shard(m, q, directory, "model.safetensors", NULL, &n, err);
    if ((st = path_join(path, directory, "model.safetensors.index.json", err)))
        return st;
    if (!file_exists(path))
        return error_set(err, ST_NOT_FOUND, "%s: neither model.safetensors nor model.safetensors.index.json",
                         directory);
    if ((st = file_read(path, TOKENIZER_FILE_MAX, &text, &bytes, err)))
        return st;
    st = json_parse_object(text, bytes, path, &root, err);
    free(text);
    if (st)
        return st;
    const struct json_in index = { root, path, "" };
    st = open_shards(m, q, directory, &index, err);
    json_decref(root);
    return st;
}

/* *text_out is NULL if the file is absent and may be. */
static enum status read_part(const char *directory, const char *name, size_t bytes_max, bool needed,
                             char path[PATH_BYTES], char **text_out, size_t *bytes_out, struct error *err)
{
    const enum status st = path_join(path, directory, name, err);
    if (st)
        return st;
    *text_out = NULL;
    if (!needed && !file_exists(path))
        return ST_OK;
    return file_read(path, bytes_max, text_out, bytes_out, err);
}

static enum status read_config(struct model *m, struct quantized_config *q, const char *directory, struct error *err)
{
    char path[PATH_BYTES], *text;
    size_t bytes;
    enum status st = read_part(directory, "config.json", SMALL_FILE_MAX, true, path, &text, &bytes, err);
    if (st)
        return st;
    st = hf_config_parse(text, bytes, path, &m->config, err);
    if (!st)
        st = quantized_config_parse(text, bytes, path, q, err);
    free(text);
    if (st || (st = read_part(directory, "generation_config.json", SMALL_FILE_MAX, false, path, &text, &bytes, err)) ||
        !text)
        return st;
    st = hf_generation_parse(text, bytes, path, &m->config, err);
    free(text);
    return st;
}

static enum status read_tokenizer(struct model *m, const char *directory, struct error *err)
{
    char path[PATH_BYTES], *text;
    size_t bytes;
    enum status st = read_part(directory, "tokenizer.json", TOKENIZER_FILE_MAX, true, path, &text, &bytes, err);
    if (st)
        return st;
    st = hf_tokenizer_parse(m, text, bytes, path, err);
    if (!st && !(m->vocab.tokenizer_json = model_copy_text(m, text, bytes)))
        st = error_set(err, ST_NO_MEMORY, "%s: out of memory", path);
    m->vocab.tokenizer_json_bytes = st ? 0 : bytes;
    free(text);
    malloc_trim(0); /* the parsed JSON of a large vocabulary took a hundred megabytes */
    return st;
}

static enum status read_template(struct model *m, const char *directory, struct error *err)
{
    char path[PATH_BYTES], *text;
    size_t bytes;
    enum status st = read_part(directory, "chat_template.jinja", SMALL_FILE_MAX, false, path, &text, &bytes, err);
    if (st)
        return st;
    if (text) {
        if (memchr(text, 0, bytes))
            st = error_set(err, ST_CORRUPT, "%s: holds a zero byte", path);
        else if (!(m->vocab.chat_template = model_copy_text(m, text, bytes)))
            st = error_set(err, ST_NO_MEMORY, "%s: out of memory", path);
        free(text);
    }
    if (st || (st = read_part(directory, "tokenizer_config.json", SMALL_FILE_MAX, false, path, &text, &bytes, err)) ||
        !text)
        return st;
    st = hf_tokenizer_config_parse(m, text, bytes, path, err);
    free(text);
    return st;
}

static bool hf_takes(const char *spec)
{
    struct model_directory d;
    return file_is_dir(spec) && model_directory_look(spec, &d, NULL) == ST_OK && d.has_config;
}

static enum status hf_open(struct model *m, const char *spec, struct error *err)
{
    struct model_directory d;
    struct quantized_config q;
    enum status st = model_directory_look(spec, &d, err);
    if (st)
        return st;
    if (d.n_gguf)
        return error_set(err, ST_INVALID, "%s: GGUF and safetensors files in this directory: name the GGUF file", spec);
    size_t end = strlen(spec), begin;
    while (end && spec[end - 1] == '/')
        end--;
    for (begin = end; begin && spec[begin - 1] != '/';)
        begin--;
    model_printable(m->config.name, sizeof m->config.name, spec + begin, end - begin);
    if ((st = read_config(m, &q, spec, err)) || (st = read_tokenizer(m, spec, err)) ||
        (st = read_template(m, spec, err)) || (st = model_tensors_new(m, err)))
        return st;
    if (q.method && !(m->quantized = model_alloc(m, m->n_tensors, sizeof *m->quantized)))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", spec);
    if ((st = open_weights(m, &q, spec, err)) || (q.method && (st = quantized_finish(m, spec, err))))
        return st;
    return model_finish(m, spec, err);
}

const struct model_source model_source_hf = { "huggingface", hf_takes, hf_open, quantized_row };
