#include "model/gguf_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/directory.h"
#include "model/gguf_config.h"
#include "model/gguf_vocab.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

enum { PARTS_MAX = 1024 };

static const struct {
    const char *name;
    enum model_tensor_kind kind;
} tensor_names[] = {
    { "token_embd.weight", MODEL_EMBEDDING },    { "output_norm.weight", MODEL_OUTPUT_NORM },
    { "output.weight", MODEL_OUTPUT },           { "attn_norm.weight", MODEL_ATTN_NORM },
    { "attn_q.weight", MODEL_ATTN_Q },           { "attn_k.weight", MODEL_ATTN_K },
    { "attn_v.weight", MODEL_ATTN_V },           { "attn_output.weight", MODEL_ATTN_OUT },
    { "ffn_norm.weight", MODEL_FFN_NORM },       { "ffn_gate.weight", MODEL_FFN_GATE },
    { "ffn_up.weight", MODEL_FFN_UP },           { "ffn_down.weight", MODEL_FFN_DOWN },
    { "attn_q.bias", MODEL_ATTN_Q_BIAS },        { "attn_k.bias", MODEL_ATTN_K_BIAS },
    { "attn_v.bias", MODEL_ATTN_V_BIAS },        { "attn_q_norm.weight", MODEL_ATTN_Q_NORM },
    { "attn_k_norm.weight", MODEL_ATTN_K_NORM },
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

static enum status enter_tensor(struct model *m, const struct gguf *g, const struct gguf_tensor *t, bool interleaved,
                                struct error *err)
{
    char name[72];
    enum model_tensor_kind kind;
    enum weight_codec codec;
    uint32_t layer;
    model_printable(name, sizeof name, t->name.text, t->name.bytes);
    if (gguf_text_is(t->name, "rope_freqs.weight"))
        return ST_OK;
    if (!tensor_place(t->name, &kind, &layer) || !model_kind_present(&m->config, kind))
        UNSUPPORTED("%s: tensor %s: architecture %s as implemented has no such tensor", g->where, name,
                    m->config.architecture);
    if (model_kind_layered(kind) && layer >= m->config.n_layers)
        REFUSE("%s: tensor %s: %s.block_count is %u", g->where, name, m->config.architecture, m->config.n_layers);
    if (!codec_of(t->type, &codec))
        UNSUPPORTED(
            "%s: tensor %s: type %s is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, "
            "Q6_K are)",
            g->where, name, gguf_tensor_type_name(t->type));
    interleaved = interleaved && (kind == MODEL_ATTN_Q || kind == MODEL_ATTN_K);
    return model_tensor_set(m, kind, layer, codec, t->dims, t->n_dims, t->data, interleaved, g->where, name, err);
}

enum status gguf_model_fill(struct model *m, const struct gguf *parts, uint32_t n_parts, struct error *err)
{
    bool interleaved;
    enum status st;
    if ((st = gguf_config_read(parts, n_parts, &m->config, &interleaved, err)) ||
        (st = gguf_vocab_fill(m, &parts[0], err)) || (st = model_tensors_new(m, err)))
        return st;
    for (uint32_t p = 0; p < n_parts; p++)
        for (uint32_t i = 0; i < parts[p].n_tensors; i++)
            if ((st = enter_tensor(m, &parts[p], &parts[p].tensors[i], interleaved, err)))
                return st;
    return model_finish(m, parts[0].where, err);
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
