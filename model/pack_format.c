#include "model/pack_format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/df11.h"

static const char *const weights_names[PACK_WEIGHTS_KINDS] = { "bf16",        "lossless-fast", "df11", "leanquant-4",
                                                               "leanquant-3", "leanquant-2",   "as-is" };

const char *pack_weights_name(enum pack_weights weights)
{
    return weights_names[weights];
}

bool pack_weights_parse(const char *name, enum pack_weights *weights_out)
{
    for (int i = 0; i < PACK_WEIGHTS_KINDS; i++)
        if (strcmp(name, weights_names[i]) == 0) {
            *weights_out = (enum pack_weights)i;
            return true;
        }
    return false;
}

static uint64_t aligned(uint64_t at)
{
    return (at + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
}

bool pack_parts(uint32_t n_rows, uint32_t n_cols, uint32_t class_bits, uint64_t n_escapes, struct pack_parts *parts_out)
{
    /* rows and columns are below 2^25: all but the escapes is far below 2^63 */
    const uint64_t groups = lossless_groups(n_rows), blocks = groups * lossless_blocks(n_cols);
    struct pack_parts p;
    if (n_escapes > (uint64_t)1 << 60)
        return false;
    p.records = blocks * lossless_block_bytes(class_bits);
    p.starts = aligned(p.records + blocks * sizeof(uint32_t));
    p.escapes = aligned(p.starts + (groups + 1) * sizeof(uint64_t));
    p.bytes = p.escapes + n_escapes;
    *parts_out = p;
    return true;
}

bool pack_df11_parts(uint32_t n_rows, uint32_t n_cols, uint64_t stream_bytes, struct pack_df11_parts *parts_out)
{
    const uint64_t groups = df11_groups(n_rows);
    struct pack_df11_parts p = { .signs = 256 };
    if (stream_bytes > (uint64_t)1 << 60)
        return false;
    p.offsets = p.signs + groups * df11_blocks(n_cols) * DF11_WEIGHTS;
    p.starts = aligned(p.offsets + groups * df11_tiles(n_cols) * sizeof(uint32_t));
    p.stream = aligned(p.starts + (groups + 1) * sizeof(uint64_t));
    p.bytes = p.stream + stream_bytes;
    *parts_out = p;
    return true;
}

struct digest pack_header_digest(const json_t *header)
{
    struct digest d = { { 0 } };
    json_t *copy = json_copy((json_t *)(uintptr_t)header);
    char *text = NULL;
    if (copy) {
        json_object_del(copy, "checksum");
        text = json_dumps(copy, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    }
    if (text)
        d = digest_of(text, strlen(text));
    free(text);
    json_decref(copy);
    return d;
}

bool pack_digest_parse(const char *text, struct digest *digest_out)
{
    struct digest d;
    char again[33];
    if (strlen(text) != 2 * sizeof d.byte)
        return false;
    for (size_t i = 0; i < sizeof d.byte; i++) {
        unsigned v;
        if (sscanf(text + 2 * i, "%2x", &v) != 1)
            return false;
        d.byte[i] = (uint8_t)v;
    }
    digest_text(&d, again);
    if (strcmp(again, text) != 0)
        return false;
    *digest_out = d;
    return true;
}

/* ---- a model as header and vocabulary ---- */

static json_t *describe_config(const struct model_config *c)
{
    json_t *angles = json_array(), *eos = json_array();
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        json_array_append_new(angles, json_real(c->inv_freq[i]));
    for (uint32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos[i]));
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:b, s:b, s:b, s:o, s:f, s:s, s:i, s:b, s:o}",
        "architecture", c->architecture, "name", c->name, "layers", (json_int_t)c->n_layers, "d_model",
        (json_int_t)c->d_model, "heads", (json_int_t)c->n_heads, "kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
        (json_int_t)c->head_dim, "d_ff", (json_int_t)c->d_ff, "vocabulary", (json_int_t)c->n_vocab, "positions_max",
        (json_int_t)c->positions_max, "rms_eps", (double)c->rms_eps, "tied_output", c->tied_output, "qkv_bias",
        c->qkv_bias, "qk_norm", c->qk_norm, "inv_freq", angles, "rope_scale", c->rope_scale, "rope_name", c->rope_name,
        "bos", c->bos, "add_bos", c->add_bos, "eos", eos);
}

static json_t *describe_file(const void *data, size_t bytes)
{
    const struct digest d = digest_of(data, bytes);
    char text[33];
    digest_text(&d, text);
    return json_pack("{s:I, s:s}", "bytes", (json_int_t)bytes, "checksum", text);
}

/* -> the bytes, or 0 with out NULL: how many there are */
static size_t put(uint8_t *out, size_t at, const void *data, size_t bytes)
{
    if (out && bytes)
        memcpy(out + at, data, bytes);
    return at + bytes;
}

static size_t put_u32(uint8_t *out, size_t at, uint32_t v)
{
    return put(out, at, &v, sizeof v);
}

/* tokens: type u8, bytes u32, text; merges: left bytes u32, right bytes u32, left, right; scores f32 */
static size_t put_vocabulary(const struct model_vocab *v, uint8_t *out)
{
    size_t at = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        at = put(out, at, &v->tokens[i].type, 1);
        at = put_u32(out, at, v->tokens[i].bytes);
        at = put(out, at, v->tokens[i].text, v->tokens[i].bytes);
    }
    for (uint32_t i = 0; i < v->n_merges; i++) {
        const struct model_merge *m = &v->merges[i];
        at = put_u32(out, at, m->left_bytes);
        at = put_u32(out, at, m->right_bytes);
        at = put(out, at, m->left, m->left_bytes);
        at = put(out, at, m->right, m->right_bytes);
    }
    return put(out, at, v->scores, v->scores ? v->n_tokens * sizeof *v->scores : 0);
}

static json_t *describe_vocabulary(const struct model_vocab *v, const uint8_t *data, size_t bytes)
{
    static const char *const kinds[] = {
        [MODEL_VOCAB_BYTES] = "bytes", [MODEL_VOCAB_BPE] = "bpe", [MODEL_VOCAB_SENTENCEPIECE] = "sentencepiece"
    };
    json_t *o =
        json_pack("{s:s, s:I, s:I, s:b, s:b, s:b, s:o}", "kind", kinds[v->kind], "tokens", (json_int_t)v->n_tokens,
                  "merges", (json_int_t)v->n_merges, "scores", v->scores != NULL, "space_prefix", v->space_prefix,
                  "ignore_merges", v->ignore_merges, "file", describe_file(data, bytes));
    if (o && v->pre)
        json_object_set_new(o, "pre", json_string(v->pre));
    if (o && v->eos_text)
        json_object_set_new(o, "eos_text", json_string(v->eos_text));
    if (o && v->tokenizer_json)
        json_object_set_new(o, "tokenizer", describe_file(v->tokenizer_json, v->tokenizer_json_bytes));
    if (o && v->chat_template)
        json_object_set_new(o, "chat_template", describe_file(v->chat_template, strlen(v->chat_template)));
    return o;
}

json_t *pack_describe(const struct model *m, enum pack_weights weights, uint8_t **vocabulary_out,
                      size_t *vocabulary_bytes_out)
{
    const struct digest d = model_digest(m);
    const size_t bytes = put_vocabulary(&m->vocab, NULL);
    uint8_t *vocabulary = malloc(bytes ? bytes : 1);
    char digest[33];
    if (!vocabulary)
        return NULL;
    put_vocabulary(&m->vocab, vocabulary);
    digest_text(&d, digest);
    json_t *o =
        json_pack("{s:s, s:i, s:s, s:s, s:s, s:o, s:o}", "format", "longspan pack", "version", PACK_VERSION, "weights",
                  pack_weights_name(weights), "source", m->config.name, "source_digest", digest, "config",
                  describe_config(&m->config), "vocabulary", describe_vocabulary(&m->vocab, vocabulary, bytes));
    if (!o) {
        free(vocabulary);
        return NULL;
    }
    *vocabulary_out = vocabulary;
    *vocabulary_bytes_out = bytes;
    return o;
}
