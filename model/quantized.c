#include "model/quantized.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/f16.h"
#include "model/bf16.h"
#include "model/json.h"

#define REFUSE(...)      return error_set(err, ST_CORRUPT, __VA_ARGS__)
#define UNSUPPORTED(...) return error_set(err, ST_UNSUPPORTED, __VA_ARGS__)

static const char *const part_names[4] = { "qweight", "qzeros", "scales", "g_idx" };

/* ---- the configuration ---- */

/* Read below, or what says how the checkpoint was made, or with which kernels others run it. */
static const char *const known_keys[] = {
    "quant_method",
    "bits",
    "w_bit",
    "group_size",
    "q_group_size",
    "desc_act",
    "sym",
    "true_sequential",
    "static_groups",
    "checkpoint_format",
    "damp_percent",
    "damp_auto_increment",
    "model_name_or_path",
    "model_file_base_name",
    "dataset",
    "tokenizer",
    "meta",
    "cache_block_outputs",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "batch_size",
    "pad_token_id",
    "use_cuda_fp16",
    "use_exllama",
    "disable_exllama",
    "exllama_config",
    "max_input_length",
    "model_seqlen",
    "backend",
    "quantizer",
    "zero_point",
    "version",
    "modules_to_not_convert",
    "do_fuse",
    "modules_to_fuse",
    "fuse_max_seq_len",
    "pack_dtype",
    "modules_in_block_to_quantize",
    "mse",
    "hessian_chunk_size",
    "provider",
};

static enum status refuse_unknown(const struct json_in *in, struct error *err)
{
    const char *key;
    json_t *v;
    char name[72], shown[64];
    json_object_foreach((json_t *)(uintptr_t)in->object, key, v)
    {
        bool found = json_is_null(v) || json_is_false(v) || (json_is_object(v) && !json_object_size(v));
        for (size_t i = 0; !found && i < sizeof known_keys / sizeof *known_keys; i++)
            found = strcmp(key, known_keys[i]) == 0;
        if (!found)
            UNSUPPORTED("%s: key %s%s: %s is not supported", in->where, in->prefix,
                        model_printable(name, sizeof name, key, strlen(key)), json_show(shown, sizeof shown, v));
    }
    return ST_OK;
}

/* A text key that may have these values only, in any case; absent: the first. */
static enum status read_choice(const struct json_in *in, const char *key, const char *const *choices, uint32_t n,
                               uint32_t *chosen_out, struct error *err)
{
    const char *text = choices[0];
    char shown[40];
    const enum status st = json_read_text(in, key, &text, &(bool){ false }, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < n; i++)
        if (strcasecmp(text, choices[i]) == 0) {
            *chosen_out = i;
            return ST_OK;
        }
    UNSUPPORTED("%s: key %s%s: %s is not supported (%s%s%s)", in->where, in->prefix, key,
                model_printable(shown, sizeof shown, text, strlen(text)), choices[0], n > 1 ? ", " : "",
                n > 1 ? choices[1] : "");
}

static enum status read_group(const struct json_in *in, uint32_t *group_out, struct error *err)
{
    const json_t *v = json_find(in, "group_size");
    if (!v)
        v = json_find(in, "q_group_size");
    const json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || (n != -1 && (n < 1 || n > MODEL_WIDTH_MAX)))
        REFUSE("%s: key %sgroup_size is neither -1 nor a number of inputs", in->where, in->prefix);
    *group_out = n == -1 ? 0 : (uint32_t)n;
    return ST_OK;
}

static enum status read_gptq(const struct json_in *in, struct quantized_config *c, struct error *err)
{
    static const char *const formats[] = { "gptq", "gptq_v2" }, *const words[] = { "int32" };
    uint32_t format, word;
    enum status st;
    if ((st = read_choice(in, "checkpoint_format", formats, 2, &format, err)) ||
        (st = read_choice(in, "pack_dtype", words, 1, &word, err)))
        return st;
    c->zeros_less_one = format == 0;
    if (c->bits != 2 && c->bits != 3 && c->bits != 4 && c->bits != 8)
        UNSUPPORTED("%s: key %sbits is %u (2, 3, 4 and 8 are supported)", in->where, in->prefix, c->bits);
    return ST_OK;
}

static enum status read_awq(const struct json_in *in, struct quantized_config *c, struct error *err)
{
    static const char *const versions[] = { "gemm" };
    uint32_t version;
    bool zero_point = true;
    enum status st;
    if ((st = read_choice(in, "version", versions, 1, &version, err)) ||
        (st = json_read_bool(in, "zero_point", &zero_point, &(bool){ false }, err)))
        return st;
    if (!zero_point)
        UNSUPPORTED("%s: key %szero_point: false is not supported", in->where, in->prefix);
    if (c->bits != 4)
        UNSUPPORTED("%s: key %sbits is %u (4 is supported)", in->where, in->prefix, c->bits);
    return ST_OK;
}

static enum status read_config(const struct json_in *in, struct quantized_config *c, struct error *err)
{
    const char *method;
    char shown[40];
    enum status st;
    if ((st = json_read_text(in, "quant_method", &method, NULL, err)))
        return st;
    c->method = strcmp(method, "gptq") == 0  ? QUANTIZED_GPTQ
                : strcmp(method, "awq") == 0 ? QUANTIZED_AWQ
                                             : QUANTIZED_NONE;
    if (!c->method)
        UNSUPPORTED("%s: key %squant_method: %s is not supported (gptq, awq)", in->where, in->prefix,
                    model_printable(shown, sizeof shown, method, strlen(method)));
    if ((st = refuse_unknown(in, err)) ||
        (st = json_read_u32(in, json_find(in, "bits") ? "bits" : "w_bit", &c->bits, NULL, err)) ||
        (st = read_group(in, &c->group, err)))
        return st;
    return c->method == QUANTIZED_GPTQ ? read_gptq(in, c, err) : read_awq(in, c, err);
}

enum status quantized_config_parse(const char *text, size_t bytes, const char *where, struct quantized_config *c_out,
                                   struct error *err)
{
    struct quantized_config c = { 0 };
    json_t *root;
    enum status st = json_parse_object(text, bytes, where, &root, err);
    if (st)
        return st;
    const struct json_in top = { root, where, "" };
    const json_t *o = json_find(&top, "quantization_config");
    const struct json_in in = { o, where, "quantization_config." };
    if (o && !json_is_object(o))
        st = error_set(err, ST_CORRUPT, "%s: key quantization_config is not an object", where);
    else if (o && json_object_size(o))
        st = read_config(&in, &c, err);
    json_decref(root);
    if (!st)
        *c_out = c;
    return st;
}

/* ---- tensors ---- */

bool quantized_part_of(const char *name, size_t *stem_out, enum quantized_part *part_out)
{
    const char *dot = strrchr(name, '.');
    for (int i = 0; dot && i < 4; i++)
        if (strcmp(dot + 1, part_names[i]) == 0) {
            *stem_out = (size_t)(dot - name);
            *part_out = (enum quantized_part)i;
            return true;
        }
    return false;
}

enum status quantized_enter(struct model *m, const struct quantized_config *c, enum model_tensor_kind kind,
                            uint32_t layer, enum quantized_part part, const struct safetensor *t, const char *where,
                            const char *name, struct error *err)
{
    uint32_t out, in;
    model_shape(&m->config, kind, &out, &in);
    if (kind == MODEL_EMBEDDING || out == 1)
        UNSUPPORTED("%s: tensor %s: only matrices of layers and the output may be quantized", where, name);
    if (in % 32 || out % 32)
        UNSUPPORTED("%s: tensor %s: %u x %u weights are not whole words (multiples of 32)", where, name, out, in);
    const bool awq = c->method == QUANTIZED_AWQ;
    const uint32_t group = c->group && c->group < in ? c->group : in, n_groups = (in + group - 1) / group;
    const uint64_t rows[4] = { awq ? in : in / 32 * c->bits, n_groups, n_groups, in };
    const uint64_t cols[4] = { awq ? out / 8 : out, out / 32 * c->bits, out, 0 };
    const char *dtype = part == QUANTIZED_SCALES ? "F16" : "I32";
    if (strcmp(t->dtype, dtype) != 0)
        UNSUPPORTED("%s: tensor %s: dtype %s is not supported (%s is)", where, name, t->dtype, dtype);
    if (part == QUANTIZED_GROUPS && awq)
        REFUSE("%s: tensor %s: awq has none", where, name);
    if (t->n_dims != (cols[part] ? 2 : 1) || t->dims[0] != rows[part] || (cols[part] && t->dims[1] != cols[part]))
        REFUSE("%s: tensor %s is %llu x %llu, %u bits and groups of %u of %u x %u weights ask for %llu x %llu", where,
               name, (unsigned long long)(t->n_dims ? t->dims[0] : 1),
               (unsigned long long)(t->n_dims > 1 ? t->dims[1] : 1), c->bits, group, out, in,
               (unsigned long long)rows[part], (unsigned long long)(cols[part] ? cols[part] : 1));
    struct quantized_matrix *q = &m->quantized[model_slot(kind, layer)];
    if (q->part[part])
        REFUSE("%s: tensor %s is there twice", where, name);
    q->config = *c;
    q->config.group = group;
    q->n_groups = n_groups;
    q->part[part] = t->data;
    q->part_bytes[part] = t->bytes;
    return ST_OK;
}

static uint32_t load_word(const uint8_t *words, size_t i)
{
    uint32_t v;
    memcpy(&v, words + 4 * i, sizeof v);
    return v;
}

/* Value i of those that are packed `bits` bits each, lowest first, in words that are `stride` apart. */
static uint32_t packed_value(const uint8_t *words, size_t first, size_t stride, uint32_t bits, size_t i)
{
    const size_t bit = i * bits, word = bit / 32, at = bit % 32;
    uint64_t v = load_word(words, first + word * stride);
    if (at + bits > 32)
        v |= (uint64_t)load_word(words, first + (word + 1) * stride) << 32;
    return (uint32_t)(v >> at) & ((1u << bits) - 1);
}

/* Of AWQ: output n of eight is in this nibble. */
static const uint8_t awq_nibble[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };

static uint32_t code_at(const struct quantized_matrix *q, uint32_t n_out, uint32_t out, uint32_t in)
{
    if (q->config.method == QUANTIZED_AWQ)
        return load_word(q->part[QUANTIZED_WEIGHT], (size_t)in * (n_out / 8) + out / 8) >> 4 * awq_nibble[out % 8] & 15;
    return packed_value(q->part[QUANTIZED_WEIGHT], out, n_out, q->config.bits, in);
}

static uint32_t zero_at(const struct quantized_matrix *q, uint32_t n_out, uint32_t out, uint32_t group)
{
    const uint32_t bits = q->config.bits;
    const size_t row = (size_t)group * (n_out / 32 * bits);
    if (q->config.method == QUANTIZED_AWQ)
        return load_word(q->part[QUANTIZED_ZEROS], row + out / 8) >> 4 * awq_nibble[out % 8] & 15;
    const uint32_t z = packed_value(q->part[QUANTIZED_ZEROS], row, 1, bits, out);
    return q->config.zeros_less_one ? (z + 1) & ((1u << bits) - 1) : z; /* a zero point of 0 was stored as -1 */
}

static uint16_t scale_at(const struct quantized_matrix *q, uint32_t n_out, uint32_t out, uint32_t group)
{
    uint16_t s;
    memcpy(&s, q->part[QUANTIZED_SCALES] + 2 * ((size_t)group * n_out + out), sizeof s);
    return s;
}

static uint32_t group_at(const struct quantized_matrix *q, uint32_t in)
{
    return q->part[QUANTIZED_GROUPS] ? load_word(q->part[QUANTIZED_GROUPS], in) : in / q->config.group;
}

/* ---- rows ---- */

static uint16_t f16_of_integer(uint32_t z)
{
    return f16_of((float)z);
}

static void row_q4(const struct quantized_matrix *q, uint32_t n_out, uint32_t n_in, uint32_t out, uint8_t *block)
{
    for (uint32_t b = 0; b < n_in / 32; b++, block += 20) {
        const uint32_t group = group_at(q, 32 * b);
        const uint16_t d = scale_at(q, n_out, out, group), z = f16_of_integer(zero_at(q, n_out, out, group));
        memcpy(block, &d, 2);
        memcpy(block + 2, &z, 2);
        for (uint32_t i = 0; i < 16; i++)
            block[4 + i] = (uint8_t)(code_at(q, n_out, out, 32 * b + i) | code_at(q, n_out, out, 32 * b + 16 + i) << 4);
    }
}

static void row_q8(const struct quantized_matrix *q, uint32_t n_out, uint32_t n_in, uint32_t out, uint8_t *block)
{
    for (uint32_t b = 0; b < n_in / 32; b++, block += 34) {
        const uint16_t d = scale_at(q, n_out, out, group_at(q, 32 * b));
        memcpy(block, &d, 2);
        for (uint32_t i = 0; i < 32; i++)
            block[2 + i] = (uint8_t)(code_at(q, n_out, out, 32 * b + i) - 128);
    }
}

/* f16 of a product whose size is bounded by nothing: beyond the largest it is infinite, as others have it. */
static uint16_t f16_product(int32_t n, uint16_t s)
{
    const float x = (float)n * f16_to_f32(s);
    if (x >= 65520 || x <= -65520)
        return (uint16_t)(x > 0 ? 0x7C00 : 0xFC00);
    return x == x ? f16_of(x) : 0x7E00;
}

static void row_f16(const struct quantized_matrix *q, uint32_t n_out, uint32_t n_in, uint32_t out, uint8_t *row)
{
    for (uint32_t i = 0; i < n_in; i++) {
        const uint32_t group = group_at(q, i);
        const int32_t n = (int32_t)code_at(q, n_out, out, i) - (int32_t)zero_at(q, n_out, out, group);
        const uint16_t w = f16_product(n, scale_at(q, n_out, out, group));
        memcpy(row + 2 * i, &w, 2);
    }
}

const void *quantized_row(const struct model_tensor *t, uint32_t row, void *scratch)
{
    const struct quantized_matrix *q = &t->model->quantized[model_slot(t->kind, t->layer)];
    if (t->codec == WEIGHT_Q4_Z)
        row_q4(q, t->n_rows, t->n_cols, row, scratch);
    else if (t->codec == WEIGHT_Q8_0)
        row_q8(q, t->n_rows, t->n_cols, row, scratch);
    else
        row_f16(q, t->n_rows, t->n_cols, row, scratch);
    return scratch;
}

/* ---- the end of it ---- */

static bool zeros_are_128(const struct quantized_matrix *q, uint32_t n_out)
{
    for (uint32_t g = 0; g < q->n_groups; g++)
        for (uint32_t o = 0; o < n_out; o++)
            if (zero_at(q, n_out, o, g) != 128)
                return false;
    return true;
}

static enum status check_groups(struct quantized_matrix *q, uint32_t n_in, const char *where, const char *name,
                                struct error *err)
{
    q->sorted = true;
    for (uint32_t i = 0; i < n_in; i++) {
        if (group_at(q, i) >= q->n_groups)
            REFUSE("%s: tensor %s.g_idx: element %u is %u, there are %u groups", where, name, i, group_at(q, i),
                   q->n_groups);
        q->sorted = q->sorted && group_at(q, i) == group_at(q, i / 32 * 32);
    }
    return ST_OK;
}

static enum status finish_matrix(struct model *m, struct quantized_matrix *q, enum model_tensor_kind kind,
                                 uint32_t layer, const char *where, struct error *err)
{
    uint32_t out, in;
    char name[48];
    enum status st;
    snprintf(name, sizeof name, "%s of layer %u", model_kind_name(kind), layer);
    model_shape(&m->config, kind, &out, &in);
    for (int p = 0; p <= QUANTIZED_SCALES; p++)
        if (!q->part[p])
            REFUSE("%s: %s has no %s", where, name, part_names[p]);
    if ((st = check_groups(q, in, where, name, err)))
        return st;
    enum weight_codec codec = WEIGHT_F16;
    if (q->sorted && q->config.bits <= 4)
        codec = WEIGHT_Q4_Z;
    else if (q->sorted && zeros_are_128(q, out))
        codec = WEIGHT_Q8_0;
    return model_tensor_set(m, kind, layer, codec, (const uint64_t[]){ out, in }, 2, NULL, false, where, name, err);
}

enum status quantized_finish(struct model *m, const char *where, struct error *err)
{
    struct hasher *h = hasher_new();
    char text[33];
    enum status st = ST_OK;
    for (int k = 0; k < MODEL_TENSOR_KINDS && !st; k++) {
        const enum model_tensor_kind kind = (enum model_tensor_kind)k;
        for (uint32_t layer = 0; layer < (model_kind_layered(kind) ? m->config.n_layers : 1) && !st; layer++) {
            struct quantized_matrix *q = &m->quantized[model_slot(kind, layer)];
            if (!q->part[0] && !q->part[1] && !q->part[2] && !q->part[3])
                continue;
            st = finish_matrix(m, q, kind, layer, where, err);
            for (int p = 0; p < 4 && !st; p++)
                hasher_add(h, q->part[p], q->part_bytes[p]);
        }
    }
    const struct digest d = hasher_end(h);
    digest_text(&d, text);
    if (!st && !(m->recipe = model_copy_text(m, text, 32)))
        st = error_set(err, ST_NO_MEMORY, "%s: out of memory", where);
    return st;
}
