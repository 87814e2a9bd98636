#include "model/source.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

enum { CHUNK_BYTES = 1 << 20, CHUNK_HEAD = 64 };

struct model_chunk {
    struct model_chunk *next;
    size_t used, room;
};

struct model *model_new(const struct model_source *source)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->source = source;
    m->config.bos = -1;
    m->config.rope_scale = 1;
    return m;
}

void *model_alloc(struct model *m, size_t n, size_t size)
{
    size_t bytes;
    static_assert(sizeof(struct model_chunk) <= CHUNK_HEAD, "the header fits");
    if (!size_mul(n, size, &bytes) || bytes > SIZE_MAX / 4)
        return NULL;
    const size_t align = bytes >= 64 ? 64 : 16;
    struct model_chunk *c = m->chunks;
    size_t at = c ? (c->used + align - 1) & ~(align - 1) : 0;
    if (!c || bytes > c->room || at > c->room - bytes) {
        const size_t room = CHUNK_HEAD + (bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES);
        c = aligned_alloc(64, (room + 63) & ~(size_t)63);
        if (!c)
            return NULL;
        *c = (struct model_chunk){ .used = CHUNK_HEAD, .room = room };
        at = CHUNK_HEAD;
        /* a big one of its own goes behind the chunk that still has room */
        if (bytes > CHUNK_BYTES / 4 && m->chunks) {
            c->next = m->chunks->next;
            m->chunks->next = c;
        } else {
            c->next = m->chunks;
            m->chunks = c;
        }
    }
    c->used = at + bytes;
    return memset((uint8_t *)c + at, 0, bytes);
}

void model_chunks_free(struct model *m)
{
    while (m->chunks) {
        struct model_chunk *next = m->chunks->next;
        free(m->chunks);
        m->chunks = next;
    }
}

char *model_copy_text(struct model *m, const char *text, size_t bytes)
{
    char *copy = bytes < SIZE_MAX ? model_alloc(m, bytes + 1, 1) : NULL;
    if (copy && bytes)
        memcpy(copy, text, bytes);
    return copy;
}

enum status model_map(struct model *m, const char *path, struct file_map *map_out, struct error *err)
{
    struct file_map *maps = realloc(m->maps, (m->n_maps + 1) * sizeof *maps);
    if (!maps)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", path);
    m->maps = maps;
    const enum status st = file_map_open(path, &maps[m->n_maps], err);
    if (!st)
        *map_out = maps[m->n_maps++];
    return st;
}

const char *model_printable(char *buffer, size_t room, const char *text, size_t bytes)
{
    size_t n = 0;
    for (; n < bytes && n + 1 < room; n++)
        buffer[n] = text[n] < 0x20 || text[n] > 0x7E ? '?' : text[n];
    buffer[n] = 0;
    return buffer;
}

#define REFUSE(...) return error_set(err, ST_CORRUPT, __VA_ARGS__)

enum status model_config_check(const struct model_config *c, const char *where, struct error *err)
{
    if (c->n_layers < 1 || c->n_layers > MODEL_LAYERS_MAX)
        REFUSE("%s: %u layers (1 to %d)", where, c->n_layers, MODEL_LAYERS_MAX);
    if (c->d_model < 1 || c->d_model > MODEL_WIDTH_MAX)
        REFUSE("%s: embedding length %u (1 to %d)", where, c->d_model, MODEL_WIDTH_MAX);
    if (c->d_ff < 1 || c->d_ff > MODEL_WIDTH_MAX)
        REFUSE("%s: feed-forward length %u (1 to %d)", where, c->d_ff, MODEL_WIDTH_MAX);
    if (c->n_vocab < 1 || c->n_vocab > MODEL_VOCAB_MAX)
        REFUSE("%s: vocabulary of %u tokens (1 to %d)", where, c->n_vocab, MODEL_VOCAB_MAX);
    if (c->head_dim < 2 || c->head_dim > MODEL_HEAD_DIM_MAX || c->head_dim % 2)
        REFUSE("%s: head size %u (even, 2 to %d)", where, c->head_dim, MODEL_HEAD_DIM_MAX);
    if (c->n_heads < 1 || c->n_heads > MODEL_WIDTH_MAX / c->head_dim)
        REFUSE("%s: %u attention heads of size %u", where, c->n_heads, c->head_dim);
    if (c->n_kv_heads < 1 || c->n_kv_heads > c->n_heads || c->n_heads % c->n_kv_heads)
        REFUSE("%s: %u attention heads are not a multiple of %u KV heads", where, c->n_heads, c->n_kv_heads);
    if (c->positions_max < 1 || c->positions_max > INT32_MAX)
        REFUSE("%s: context length %u (1 to %d)", where, c->positions_max, INT32_MAX);
    if (!isfinite(c->rms_eps) || c->rms_eps < 0 || c->rms_eps > 1)
        REFUSE("%s: RMS norm epsilon %g (0 to 1)", where, (double)c->rms_eps);
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        if (!isfinite(c->inv_freq[i]) || fabs(c->inv_freq[i]) > 1e3)
            REFUSE("%s: RoPE frequency %u is %g", where, i, c->inv_freq[i]);
    if (!(c->rope_scale > 0) || c->rope_scale > 1e2)
        REFUSE("%s: RoPE attention factor %g (above 0 to 100)", where, c->rope_scale);
    if (c->bos < -1 || c->bos >= (int32_t)c->n_vocab)
        REFUSE("%s: bos token %d is not in the vocabulary of %u", where, c->bos, c->n_vocab);
    return ST_OK;
}

static const struct {
    const char *name;
    bool layered;
} kinds[MODEL_TENSOR_KINDS] = {
    [MODEL_EMBEDDING] = { "embedding", false },    [MODEL_OUTPUT_NORM] = { "output_norm", false },
    [MODEL_OUTPUT] = { "output", false },          [MODEL_ATTN_NORM] = { "attn_norm", true },
    [MODEL_ATTN_Q] = { "attn_q", true },           [MODEL_ATTN_K] = { "attn_k", true },
    [MODEL_ATTN_V] = { "attn_v", true },           [MODEL_ATTN_OUT] = { "attn_output", true },
    [MODEL_FFN_NORM] = { "ffn_norm", true },       [MODEL_FFN_GATE] = { "ffn_gate", true },
    [MODEL_FFN_UP] = { "ffn_up", true },           [MODEL_FFN_DOWN] = { "ffn_down", true },
    [MODEL_ATTN_Q_BIAS] = { "attn_q bias", true }, [MODEL_ATTN_K_BIAS] = { "attn_k bias", true },
    [MODEL_ATTN_V_BIAS] = { "attn_v bias", true }, [MODEL_ATTN_Q_NORM] = { "attn_q_norm", true },
    [MODEL_ATTN_K_NORM] = { "attn_k_norm", true },
};
enum { KINDS_GLOBAL = MODEL_ATTN_NORM, KINDS_LAYER = MODEL_TENSOR_KINDS - MODEL_ATTN_NORM };

const char *model_kind_name(enum model_tensor_kind kind)
{
    return kinds[kind].name;
}

bool model_kind_layered(enum model_tensor_kind kind)
{
    return kinds[kind].layered;
}

bool model_kind_present(const struct model_config *c, enum model_tensor_kind kind)
{
    switch (kind) {
    case MODEL_OUTPUT:
        return !c->tied_output;
    case MODEL_ATTN_Q_BIAS:
    case MODEL_ATTN_K_BIAS:
    case MODEL_ATTN_V_BIAS:
        return c->qkv_bias;
    case MODEL_ATTN_Q_NORM:
    case MODEL_ATTN_K_NORM:
        return c->qk_norm;
    default:
        return true;
    }
}

uint32_t model_slot(enum model_tensor_kind kind, uint32_t layer)
{
    return kinds[kind].layered ? KINDS_GLOBAL + layer * KINDS_LAYER + (kind - MODEL_ATTN_NORM) : kind;
}

void model_shape(const struct model_config *c, enum model_tensor_kind kind, uint32_t *n_rows_out, uint32_t *n_cols_out)
{
    const uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, d = c->d_model;
    const struct {
        uint32_t rows, cols;
    } shapes[MODEL_TENSOR_KINDS] = {
        [MODEL_EMBEDDING] = { c->n_vocab, d },
        [MODEL_OUTPUT_NORM] = { 1, d },
        [MODEL_OUTPUT] = { c->n_vocab, d },
        [MODEL_ATTN_NORM] = { 1, d },
        [MODEL_ATTN_Q] = { q, d },
        [MODEL_ATTN_K] = { kv, d },
        [MODEL_ATTN_V] = { kv, d },
        [MODEL_ATTN_OUT] = { d, q },
        [MODEL_FFN_NORM] = { 1, d },
        [MODEL_FFN_GATE] = { c->d_ff, d },
        [MODEL_FFN_UP] = { c->d_ff, d },
        [MODEL_FFN_DOWN] = { d, c->d_ff },
        [MODEL_ATTN_Q_BIAS] = { 1, q },
        [MODEL_ATTN_K_BIAS] = { 1, kv },
        [MODEL_ATTN_V_BIAS] = { 1, kv },
        [MODEL_ATTN_Q_NORM] = { 1, c->head_dim },
        [MODEL_ATTN_K_NORM] = { 1, c->head_dim },
    };
    *n_rows_out = shapes[kind].rows;
    *n_cols_out = shapes[kind].cols;
}

enum status model_tensors_new(struct model *m, struct error *err)
{
    m->n_tensors = KINDS_GLOBAL + m->config.n_layers * KINDS_LAYER;
    m->tensors = model_alloc(m, m->n_tensors, sizeof *m->tensors);
    return m->tensors ? ST_OK : error_set(err, ST_NO_MEMORY, "out of memory for %u tensors", m->n_tensors);
}

enum status model_tensor_set(struct model *m, enum model_tensor_kind kind, uint32_t layer, enum weight_codec codec,
                             const uint64_t *dims, uint32_t n_dims, const void *data, bool interleaved,
                             const char *where, const char *name, struct error *err)
{
    uint32_t rows, cols;
    model_shape(&m->config, kind, &rows, &cols);
    uint64_t have_cols = n_dims ? dims[n_dims - 1] : 0, have_rows = n_dims > 1 ? dims[n_dims - 2] : 1;
    for (uint32_t i = 0; i + 2 < n_dims; i++)
        if (dims[i] != 1)
            REFUSE("%s: tensor %s has more than two dimensions", where, name);
    if (have_rows != rows || have_cols != cols)
        REFUSE("%s: tensor %s is %llu x %llu, the configuration asks for %u x %u", where, name,
               (unsigned long long)have_rows, (unsigned long long)have_cols, rows, cols);
    if (cols % weight_codec_block(codec))
        REFUSE("%s: tensor %s: rows of %u elements are not whole %s blocks", where, name, cols,
               weight_codec_name(codec));
    struct model_tensor *t = &m->tensors[model_slot(kind, layer)];
    if (t->n_rows)
        REFUSE("%s: tensor %s is there twice", where, name);
    *t = (struct model_tensor){
        .codec = codec,
        .n_rows = rows,
        .n_cols = cols,
        .model = m,
        .kind = kind,
        .layer = layer,
        .data = data,
        .row_bytes = weight_row_bytes(codec, cols),
        .interleaved_dim = interleaved ? m->config.head_dim : 0,
        .stored_bytes = (uint64_t)rows * weight_row_bytes(codec, cols),
    };
    return ST_OK;
}

enum status model_finish(struct model *m, const char *where, struct error *err)
{
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++) {
        const enum model_tensor_kind kind = (enum model_tensor_kind)k;
        for (uint32_t layer = 0; layer < (kinds[k].layered ? m->config.n_layers : 1); layer++) {
            const struct model_tensor *t = &m->tensors[model_slot(kind, layer)];
            if (t->n_rows)
                m->weight_bytes += t->stored_bytes;
            else if (!model_kind_present(&m->config, kind))
                continue;
            else if (kinds[k].layered)
                REFUSE("%s: tensor %s of layer %u is missing", where, kinds[k].name, layer);
            else
                REFUSE("%s: tensor %s is missing", where, kinds[k].name);
        }
    }
    m->digest = model_digest_make(m);
    return ST_OK;
}

enum status model_vocab_bytes(struct model *m, struct error *err)
{
    const uint32_t n = m->config.n_vocab;
    struct model_token *tokens = model_alloc(m, n, sizeof *tokens);
    char *text = model_alloc(m, 256, 1);
    if (!tokens || !text)
        return error_set(err, ST_NO_MEMORY, "out of memory for a vocabulary of %u tokens", n);
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = (struct model_token){ .text = text, .bytes = 0, .type = MODEL_TOKEN_UNUSED };
        if (i < 256) {
            text[i] = (char)i;
            tokens[i] = (struct model_token){ .text = text + i, .bytes = 1, .type = MODEL_TOKEN_BYTE };
        }
    }
    m->vocab = (struct model_vocab){ .kind = MODEL_VOCAB_BYTES, .tokens = tokens, .n_tokens = n };
    return ST_OK;
}

void model_eos_add(struct model_config *c, int64_t id)
{
    if (id < 0 || id >= c->n_vocab || c->n_eos == MODEL_EOS_MAX)
        return;
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id)
            return;
    c->eos[c->n_eos++] = (int32_t)id;
}

void model_eos_add_chat(struct model *m)
{
    static const char *const ends[] = { "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>" };
    if (!m->vocab.chat_template)
        return;
    for (uint32_t i = 0; i < m->vocab.n_tokens; i++) {
        const struct model_token *t = &m->vocab.tokens[i];
        for (size_t e = 0; t->type == MODEL_TOKEN_CONTROL && e < sizeof ends / sizeof *ends; e++)
            if (t->bytes == strlen(ends[e]) && memcmp(t->text, ends[e], t->bytes) == 0)
                model_eos_add(&m->config, i);
    }
}
