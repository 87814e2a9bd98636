#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "model/df11.h"
#include "model/json.h"
#include "model/pack_format.h"

#define REFUSE(...) return error_set(err, ST_CORRUPT, __VA_ARGS__)

enum { PATH_BYTES = 4096, HEADER_MAX = 256 << 20 };

/* ---- configuration ---- */

static enum status read_ids(const struct json_in *in, struct model_config *c, struct error *err)
{
    const json_t *eos = json_find(in, "eos"), *v;
    double bos = -1;
    size_t i;
    const enum status st = json_read_f64(in, "bos", &bos, NULL, err);
    if (st)
        return st;
    if (!(bos >= -1 && bos < c->n_vocab) || bos != floor(bos))
        REFUSE("%s: key %sbos is %g", in->where, in->prefix, bos);
    c->bos = (int32_t)bos;
    if (!json_is_array(eos) || json_array_size(eos) > MODEL_EOS_MAX)
        REFUSE("%s: key %seos is not a list of at most %d token ids", in->where, in->prefix, MODEL_EOS_MAX);
    json_array_foreach((json_t *)(uintptr_t)eos, i, v)
    {
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= c->n_vocab)
            REFUSE("%s: key %seos: entry %zu is no token id", in->where, in->prefix, i);
        c->eos[c->n_eos++] = (int32_t)json_integer_value(v);
    }
    return ST_OK;
}

static enum status read_angles(const struct json_in *in, struct model_config *c, struct error *err)
{
    const json_t *angles = json_find(in, "inv_freq"), *v;
    size_t i;
    if (c->head_dim > MODEL_HEAD_DIM_MAX || c->head_dim % 2)
        REFUSE("%s: key %shead_dim is %u (even, to %d)", in->where, in->prefix, c->head_dim, MODEL_HEAD_DIM_MAX);
    if (!json_is_array(angles) || json_array_size(angles) != c->head_dim / 2)
        REFUSE("%s: key %sinv_freq is not a list of %u numbers", in->where, in->prefix, c->head_dim / 2);
    json_array_foreach((json_t *)(uintptr_t)angles, i, v)
    {
        if (!json_is_number(v))
            REFUSE("%s: key %sinv_freq: entry %zu is no number", in->where, in->prefix, i);
        c->inv_freq[i] = json_number_value(v);
    }
    return ST_OK;
}

static enum status read_config(const json_t *o, const char *where, struct model_config *c, struct error *err)
{
    const struct json_in in = { o, where, "config." };
    double eps = 0;
    enum status st;
    const struct {
        const char *key;
        uint32_t *to;
    } numbers[] = { { "layers", &c->n_layers },    { "d_model", &c->d_model },
                    { "heads", &c->n_heads },      { "kv_heads", &c->n_kv_heads },
                    { "head_dim", &c->head_dim },  { "d_ff", &c->d_ff },
                    { "vocabulary", &c->n_vocab }, { "positions_max", &c->positions_max } };
    const struct {
        const char *key;
        bool *to;
    } flags[] = { { "tied_output", &c->tied_output },
                  { "qkv_bias", &c->qkv_bias },
                  { "qk_norm", &c->qk_norm },
                  { "add_bos", &c->add_bos } };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if ((st = json_read_u32(&in, numbers[i].key, numbers[i].to, NULL, err)))
            return st;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if ((st = json_read_bool(&in, flags[i].key, flags[i].to, NULL, err)))
            return st;
    if ((st = json_read_printable(&in, "architecture", c->architecture, sizeof c->architecture, err)) ||
        (st = json_read_printable(&in, "name", c->name, sizeof c->name, err)) ||
        (st = json_read_printable(&in, "rope_name", c->rope_name, sizeof c->rope_name, err)) ||
        (st = json_read_f64(&in, "rms_eps", &eps, NULL, err)) ||
        (st = json_read_f64(&in, "rope_scale", &c->rope_scale, NULL, err)) || (st = read_angles(&in, c, err)) ||
        (st = read_ids(&in, c, err)))
        return st;
    if (!(eps >= 0 && eps <= 1))
        REFUSE("%s: key config.rms_eps is %g (0 to 1)", where, eps);
    c->rms_eps = (float)eps;
    return model_config_check(c, where, err);
}

/* ---- vocabulary ---- */

/* Does a file have the bytes and the checksum that the header says? */
static enum status check_file(const struct json_in *in, const char *key, const void *data, size_t bytes,
                              struct error *err)
{
    const json_t *o = json_find(in, key);
    const char *text;
    double have;
    struct digest want, got;
    enum status st;
    if (!json_is_object(o))
        REFUSE("%s: key %s%s is missing, or not an object", in->where, in->prefix, key);
    const struct json_in file = { o, in->where, in->prefix };
    if ((st = json_read_f64(&file, "bytes", &have, NULL, err)) ||
        (st = json_read_text(&file, "checksum", &text, NULL, err)))
        return st;
    if (have != (double)bytes)
        REFUSE("%s: key %s%s.bytes is %.0f, the file has %zu", in->where, in->prefix, key, have, bytes);
    if (!pack_digest_parse(text, &want))
        REFUSE("%s: key %s%s.checksum is not 32 hexadecimal digits", in->where, in->prefix, key);
    got = digest_of(data, bytes);
    if (memcmp(&want, &got, sizeof want) != 0)
        REFUSE("%s: key %s%s.checksum does not fit the file", in->where, in->prefix, key);
    return ST_OK;
}

static enum status read_tokens(struct model *m, struct reader *r, uint32_t n, const char *where, struct error *err)
{
    struct model_token *tokens;
    /* each takes five bytes or more */
    if (n != m->config.n_vocab || n > reader_left(r) / 5)
        REFUSE("%s: key vocabulary.tokens is %u, config.vocabulary %u, and the file has %zu bytes", where, n,
               m->config.n_vocab, reader_left(r));
    if (!(tokens = model_alloc(m, n, sizeof *tokens)))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %u tokens", where, n);
    for (uint32_t i = 0; i < n; i++) {
        tokens[i].type = reader_u8(r);
        tokens[i].bytes = reader_u32(r);
        tokens[i].text = (const char *)reader_take(r, tokens[i].bytes);
        if (r->bad || tokens[i].type < MODEL_TOKEN_NORMAL || tokens[i].type > MODEL_TOKEN_BYTE)
            REFUSE("%s: %s: token %u is cut off, or its type is unknown", where, PACK_VOCABULARY, i);
    }
    m->vocab.tokens = tokens;
    m->vocab.n_tokens = n;
    return ST_OK;
}

static enum status read_merges(struct model *m, struct reader *r, uint32_t n, const char *where, struct error *err)
{
    struct model_merge *merges;
    if (n > reader_left(r) / 8)
        REFUSE("%s: key vocabulary.merges is %u, which the file has no room for", where, n);
    if (n && !(merges = model_alloc(m, n, sizeof *merges)))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for %u merges", where, n);
    for (uint32_t i = 0; i < n; i++) {
        merges[i].left_bytes = reader_u32(r);
        merges[i].right_bytes = reader_u32(r);
        merges[i].left = (const char *)reader_take(r, merges[i].left_bytes);
        merges[i].right = (const char *)reader_take(r, merges[i].right_bytes);
        if (r->bad)
            REFUSE("%s: %s: merge %u is cut off", where, PACK_VOCABULARY, i);
    }
    m->vocab.merges = n ? merges : NULL;
    m->vocab.n_merges = n;
    return ST_OK;
}

static enum status read_scores(struct model *m, struct reader *r, const char *where, struct error *err)
{
    const uint32_t n = m->vocab.n_tokens;
    float *scores = model_alloc(m, n, sizeof *scores);
    if (!scores)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory for scores", where);
    for (uint32_t i = 0; i < n; i++)
        scores[i] = reader_f32(r);
    for (uint32_t i = 0; i < n && !r->bad; i++)
        if (!isfinite(scores[i]))
            REFUSE("%s: %s: the score of token %u is not finite", where, PACK_VOCABULARY, i);
    m->vocab.scores = scores;
    return r->bad ? error_set(err, ST_CORRUPT, "%s: %s: scores are cut off", where, PACK_VOCABULARY) : ST_OK;
}

static enum status copy_text(struct model *m, const char *text, size_t bytes, const char **out, const char *where,
                             struct error *err)
{
    *out = model_copy_text(m, text, bytes);
    return *out ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", where);
}

static enum status read_texts(struct model *m, const struct json_in *in, const struct pack_bytes *b, struct error *err)
{
    struct model_vocab *v = &m->vocab;
    const char *text;
    bool found;
    enum status st = json_read_text(in, "pre", &text, &found, err);
    if (!st && found)
        st = copy_text(m, text, strlen(text), &v->pre, in->where, err);
    if (st || (st = json_read_text(in, "eos_text", &text, &found, err)))
        return st;
    if (found && (st = copy_text(m, text, strlen(text), &v->eos_text, in->where, err)))
        return st;
    if (json_find(in, "tokenizer")) {
        if ((st = check_file(in, "tokenizer", b->tokenizer, b->tokenizer_bytes, err)) ||
            (st = copy_text(m, b->tokenizer, b->tokenizer_bytes, &v->tokenizer_json, in->where, err)))
            return st;
        v->tokenizer_json_bytes = b->tokenizer_bytes;
    }
    if (!json_find(in, "chat_template"))
        return ST_OK;
    if ((st = check_file(in, "chat_template", b->chat_template, b->chat_template_bytes, err)))
        return st;
    if (b->chat_template_bytes && memchr(b->chat_template, 0, b->chat_template_bytes))
        REFUSE("%s: %s holds a zero byte", in->where, PACK_TEMPLATE);
    return copy_text(m, b->chat_template, b->chat_template_bytes, &v->chat_template, in->where, err);
}

static enum status read_vocabulary(struct model *m, const json_t *o, const struct pack_bytes *b, const char *where,
                                   struct error *err)
{
    static const char *const kinds[] = {
        [MODEL_VOCAB_BYTES] = "bytes", [MODEL_VOCAB_BPE] = "bpe", [MODEL_VOCAB_SENTENCEPIECE] = "sentencepiece"
    };
    const struct json_in in = { o, where, "vocabulary." };
    struct reader r = reader_of(b->vocabulary, b->vocabulary_bytes);
    const char *kind;
    uint32_t n_tokens, n_merges;
    bool scores;
    enum status st;
    size_t k = 0;
    if ((st = json_read_text(&in, "kind", &kind, NULL, err)) ||
        (st = json_read_u32(&in, "tokens", &n_tokens, NULL, err)) ||
        (st = json_read_u32(&in, "merges", &n_merges, NULL, err)) ||
        (st = json_read_bool(&in, "scores", &scores, NULL, err)) ||
        (st = json_read_bool(&in, "space_prefix", &m->vocab.space_prefix, NULL, err)) ||
        (st = json_read_bool(&in, "ignore_merges", &m->vocab.ignore_merges, NULL, err)) ||
        (st = check_file(&in, "file", b->vocabulary, b->vocabulary_bytes, err)))
        return st;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k], kind) != 0)
        k++;
    if (k == sizeof kinds / sizeof *kinds)
        REFUSE("%s: key vocabulary.kind is none of bytes, bpe, sentencepiece", where);
    m->vocab.kind = (enum model_vocab_kind)k;
    if ((st = read_tokens(m, &r, n_tokens, where, err)) || (st = read_merges(m, &r, n_merges, where, err)) ||
        (scores && (st = read_scores(m, &r, where, err))))
        return st;
    if (reader_left(&r))
        REFUSE("%s: %s: %zu bytes too many", where, PACK_VOCABULARY, reader_left(&r));
    return read_texts(m, &in, b, err);
}

/* ---- tensors ---- */

static enum status read_u64(const struct json_in *in, const char *key, uint64_t *out, struct error *err)
{
    const json_t *v = json_find(in, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        REFUSE("%s: key %s%s is missing, or no number of bytes", in->where, in->prefix, key);
    *out = (uint64_t)json_integer_value(v);
    return ST_OK;
}

struct place {
    enum model_tensor_kind kind;
    enum weight_codec codec;
    uint32_t layer;
    uint64_t dims[2], offset, bytes;
    const uint8_t *data;
};

static enum status read_place(const struct model *m, const struct json_in *in, const struct pack_bytes *b,
                              struct place *p, struct error *err)
{
    const char *kind, *codec;
    uint32_t rows, cols;
    enum status st;
    int k = 0, c = 0;
    if ((st = json_read_text(in, "kind", &kind, NULL, err)) ||
        (st = json_read_u32(in, "layer", &p->layer, NULL, err)) ||
        (st = json_read_text(in, "codec", &codec, NULL, err)) || (st = json_read_u32(in, "rows", &rows, NULL, err)) ||
        (st = json_read_u32(in, "cols", &cols, NULL, err)) || (st = read_u64(in, "offset", &p->offset, err)) ||
        (st = read_u64(in, "bytes", &p->bytes, err)))
        return st;
    while (k < MODEL_TENSOR_KINDS && strcmp(model_kind_name((enum model_tensor_kind)k), kind) != 0)
        k++;
    while (c < WEIGHT_CODECS && strcmp(weight_codec_name((enum weight_codec)c), codec) != 0)
        c++;
    p->kind = (enum model_tensor_kind)k;
    p->codec = (enum weight_codec)c;
    if (k == MODEL_TENSOR_KINDS || !model_kind_present(&m->config, p->kind))
        REFUSE("%s: key %skind is no tensor of this model", in->where, in->prefix);
    if (p->layer >= (model_kind_layered(p->kind) ? m->config.n_layers : 1))
        REFUSE("%s: key %slayer is %u", in->where, in->prefix, p->layer);
    if (c == WEIGHT_CODECS)
        REFUSE("%s: key %scodec is unknown", in->where, in->prefix);
    if (p->offset % PACK_ALIGN || p->offset > b->weights_bytes || p->bytes > b->weights_bytes - p->offset)
        REFUSE("%s: key %soffset: %llu and %llu bytes from there are not in %s (%zu bytes), or not at a multiple of %d",
               in->where, in->prefix, (unsigned long long)p->offset, (unsigned long long)p->bytes, PACK_WEIGHTS,
               b->weights_bytes, PACK_ALIGN);
    p->dims[0] = rows;
    p->dims[1] = cols;
    p->data = (const uint8_t *)b->weights + p->offset;
    return ST_OK;
}

static enum status read_lossless(struct model *m, struct model_tensor *t, const struct json_in *in,
                                 const struct place *p, struct error *err)
{
    uint32_t layout, bits;
    uint64_t n_escapes;
    struct pack_parts parts;
    struct lossless_tensor *l;
    enum status st;
    if ((st = json_read_u32(in, "layout", &layout, NULL, err)) ||
        (st = json_read_u32(in, "class_bits", &bits, NULL, err)) || (st = read_u64(in, "escapes", &n_escapes, err)))
        return st;
    if (layout != LOSSLESS_LAYOUT_CPU)
        return error_set(err, ST_UNSUPPORTED, "%s: key %slayout is %u (%d is known)", in->where, in->prefix, layout,
                         LOSSLESS_LAYOUT_CPU);
    if (bits != 3 && bits != 4)
        REFUSE("%s: key %sclass_bits is %u (3 or 4)", in->where, in->prefix, bits);
    if (!pack_parts(t->n_rows, t->n_cols, bits, n_escapes, &parts) || parts.bytes != p->bytes)
        REFUSE("%s: key %sescapes is %llu, which does not fit its %llu bytes", in->where, in->prefix,
               (unsigned long long)n_escapes, (unsigned long long)p->bytes);
    if (!(l = model_alloc(m, 1, sizeof *l)))
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", in->where);
    *l = (struct lossless_tensor){ .n_rows = t->n_rows,
                                   .n_cols = t->n_cols,
                                   .class_bits = bits,
                                   .n_escapes = n_escapes,
                                   .planes = p->data,
                                   .records = (const uint32_t *)(const void *)(p->data + parts.records),
                                   .starts = (const uint64_t *)(const void *)(p->data + parts.starts),
                                   .escapes = p->data + parts.escapes };
    t->lossless = l;
    return ST_OK;
}

static enum status read_df11(struct model *m, struct model_tensor *t, const struct json_in *in, const struct place *p,
                             struct error *err)
{
    uint64_t stream_bytes;
    struct pack_df11_parts parts;
    enum status st;
    char where[320];
    if ((st = read_u64(in, "stream", &stream_bytes, err)))
        return st;
    if (!pack_df11_parts(t->n_rows, t->n_cols, stream_bytes, &parts) || parts.bytes != p->bytes)
        REFUSE("%s: key %sstream is %llu, which does not fit its %llu bytes", in->where, in->prefix,
               (unsigned long long)stream_bytes, (unsigned long long)p->bytes);
    struct df11_tensor *d = model_alloc(m, 1, sizeof *d);
    struct df11_code *code = model_alloc(m, 1, sizeof *code);
    if (!d || !code)
        return error_set(err, ST_NO_MEMORY, "%s: out of memory", in->where);
    snprintf(where, sizeof where, "%.200s: %.40sdata", in->where, in->prefix);
    if ((st = df11_code_of(p->data, where, code, err)))
        return st;
    *d = (struct df11_tensor){ .n_rows = t->n_rows,
                               .n_cols = t->n_cols,
                               .code = code,
                               .stream_bytes = stream_bytes,
                               .signs = p->data + parts.signs,
                               .offsets = (const uint32_t *)(const void *)(p->data + parts.offsets),
                               .starts = (const uint64_t *)(const void *)(p->data + parts.starts),
                               .stream = p->data + parts.stream };
    t->df11 = d;
    return ST_OK;
}

static enum status read_tensor(struct model *m, const struct json_in *in, const struct pack_bytes *b, struct error *err)
{
    struct place p;
    const char *text;
    struct digest *checksum = model_alloc(m, 1, sizeof *checksum);
    enum status st = checksum ? ST_OK : error_set(err, ST_NO_MEMORY, "%s: out of memory", in->where);
    if (st || (st = read_place(m, in, b, &p, err)) || (st = json_read_text(in, "checksum", &text, NULL, err)))
        return st;
    if (!pack_digest_parse(text, checksum))
        REFUSE("%s: key %schecksum is not 32 hexadecimal digits", in->where, in->prefix);
    const bool coded = p.codec == WEIGHT_LOSSLESS_FAST || p.codec == WEIGHT_DF11;
    if ((st = model_tensor_set(m, p.kind, p.layer, p.codec, p.dims, 2, coded ? NULL : p.data, false, in->where,
                               model_kind_name(p.kind), err)))
        return st;
    struct model_tensor *t = &m->tensors[model_slot(p.kind, p.layer)];
    if (p.codec == WEIGHT_LOSSLESS_FAST && (st = read_lossless(m, t, in, &p, err)))
        return st;
    if (p.codec == WEIGHT_DF11 && (st = read_df11(m, t, in, &p, err)))
        return st;
    if (!coded && p.bytes != t->stored_bytes)
        REFUSE("%s: key %sbytes is %llu, %u rows of %zu bytes are %llu", in->where, in->prefix,
               (unsigned long long)p.bytes, t->n_rows, t->row_bytes, (unsigned long long)t->stored_bytes);
    t->stored_bytes = p.bytes;
    t->stored = p.data;
    t->checksum = checksum;
    return ST_OK;
}

static enum status read_tensors(struct model *m, const json_t *list, const struct pack_bytes *b, const char *where,
                                struct error *err)
{
    const json_t *o;
    size_t i;
    if (!json_is_array(list))
        REFUSE("%s: key tensors is missing, or not a list", where);
    json_array_foreach((json_t *)(uintptr_t)list, i, o)
    {
        char prefix[40];
        snprintf(prefix, sizeof prefix, "tensors[%zu].", i);
        const struct json_in in = { o, where, prefix };
        if (!json_is_object(o))
            REFUSE("%s: key tensors[%zu] is not an object", where, i);
        const enum status st = read_tensor(m, &in, b, err);
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- the whole ---- */

static enum status check_header(const struct json_in *in, struct error *err)
{
    const char *text;
    uint32_t version;
    struct digest want, got;
    enum status st;
    if ((st = json_read_text(in, "format", &text, NULL, err)))
        return st;
    if (strcmp(text, "longspan pack") != 0)
        REFUSE("%s: key format is not \"longspan pack\"", in->where);
    if ((st = json_read_u32(in, "version", &version, NULL, err)))
        return st;
    if (version != PACK_VERSION)
        return error_set(err, ST_UNSUPPORTED, "%s: key version is %u (%d is known)", in->where, version, PACK_VERSION);
    if ((st = json_read_text(in, "checksum", &text, NULL, err)))
        return st;
    got = pack_header_digest(in->object);
    if (!pack_digest_parse(text, &want) || memcmp(&want, &got, sizeof want) != 0)
        REFUSE("%s: key checksum does not fit the file", in->where);
    return ST_OK;
}

enum status pack_fill(struct model *m, const struct pack_bytes *b, const char *where, struct error *err)
{
    json_t *root;
    enum status st = json_parse_object(b->header, b->header_bytes, where, &root, err);
    if (st)
        return st;
    const struct json_in in = { root, where, "" };
    const json_t *config = json_find(&in, "config"), *vocabulary = json_find(&in, "vocabulary");
    st = check_header(&in, err);
    if (!st && (!json_is_object(config) || !json_is_object(vocabulary)))
        st = error_set(err, ST_CORRUPT, "%s: key config or vocabulary is missing, or not an object", where);
    if (!st)
        st = read_config(config, where, &m->config, err);
    if (!st)
        st = read_vocabulary(m, vocabulary, b, where, err);
    if (!st)
        st = model_tensors_new(m, err);
    if (!st)
        st = read_tensors(m, json_find(&in, "tensors"), b, where, err);
    json_decref(root);
    return st ? st : model_finish(m, where, err);
}

enum status pack_open_bytes(const struct pack_bytes *bytes, struct model **model_out, struct error *err)
{
    struct model *m = model_new(&model_source_pack);
    const enum status st =
        m ? pack_fill(m, bytes, "memory", err) : error_set(err, ST_NO_MEMORY, "memory: out of memory");
    if (st)
        model_close(m);
    else
        *model_out = m;
    return st;
}

/* Maps a file of the directory; absent: NULL and 0 bytes, if it may be. */
static enum status map_part(struct model *m, const char *directory, const char *name, bool needed, const void **data,
                            size_t *bytes, struct error *err)
{
    char path[PATH_BYTES];
    struct file_map map;
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", directory);
    if (!needed && !file_exists(path))
        return ST_OK;
    const enum status st = model_map(m, path, &map, err);
    if (st)
        return st;
    *data = map.data;
    *bytes = map.bytes;
    return ST_OK;
}

static bool pack_takes(const char *spec)
{
    char path[PATH_BYTES];
    return file_is_dir(spec) && snprintf(path, sizeof path, "%s/" PACK_HEADER, spec) < (int)sizeof path &&
           file_exists(path);
}

static enum status pack_open(struct model *m, const char *spec, struct error *err)
{
    char path[PATH_BYTES], *header;
    struct pack_bytes b = { 0 };
    enum status st;
    snprintf(path, sizeof path, "%s/" PACK_HEADER, spec);
    if ((st = file_read(path, HEADER_MAX, &header, &b.header_bytes, err)))
        return st;
    b.header = header;
    if (!(st = map_part(m, spec, PACK_WEIGHTS, true, &b.weights, &b.weights_bytes, err)) &&
        !(st = map_part(m, spec, PACK_VOCABULARY, true, &b.vocabulary, &b.vocabulary_bytes, err)) &&
        !(st = map_part(m, spec, PACK_TOKENIZER, false, &b.tokenizer, &b.tokenizer_bytes, err)) &&
        !(st = map_part(m, spec, PACK_TEMPLATE, false, &b.chat_template, &b.chat_template_bytes, err)))
        st = pack_fill(m, &b, path, err);
    free(header);
    return st;
}

static const void *pack_row(const struct model_tensor *t, uint32_t row, void *scratch)
{
    if (t->df11) {
        const struct df11_group coded = df11_group_at(t->df11, row / DF11_OUTS);
        df11_row(&coded, row % DF11_OUTS, scratch);
        return scratch;
    }
    const struct lossless_group g = lossless_group_at(t->lossless, row / LOSSLESS_OUTS);
    lossless_row(&g, row % LOSSLESS_OUTS, t->n_cols, scratch);
    return scratch;
}

const struct model_source model_source_pack = { "pack", pack_takes, pack_open, pack_row };

enum status pack_identify(const char *directory, char *source_out, char *weights_out, struct error *err)
{
    char path[PATH_BYTES], *text;
    size_t bytes;
    json_t *root;
    enum status st;
    if (snprintf(path, sizeof path, "%s/" PACK_HEADER, directory) >= (int)sizeof path)
        return error_set(err, ST_TOO_LARGE, "%s: path too long", directory);
    if ((st = file_read(path, HEADER_MAX, &text, &bytes, err)))
        return st;
    st = json_parse_object(text, bytes, path, &root, err);
    free(text);
    if (st)
        return st;
    const struct json_in in = { root, path, "" };
    if (!(st = check_header(&in, err)) && !(st = json_read_printable(&in, "source", source_out, 128, err)))
        st = json_read_printable(&in, "weights", weights_out, 128, err);
    json_decref(root);
    return st;
}
