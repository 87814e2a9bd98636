#ifndef LONGSPAN_TESTS_MODEL_GGUF_WRITER_H
#define LONGSPAN_TESTS_MODEL_GGUF_WRITER_H

/* Writes small GGUF files, well-formed or not, into memory. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "model/gguf.h"

struct bytes {
    uint8_t *data;
    size_t n, room;
};

static inline void put(struct bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n) + 256;
        b->data = realloc(b->data, b->room);
        if (!b->data)
            abort();
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void put_u32(struct bytes *b, uint32_t v)
{
    put(b, &v, 4);
}

static inline void put_u64(struct bytes *b, uint64_t v)
{
    put(b, &v, 8);
}

static inline void put_text(struct bytes *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

/* Keys and their values, counted. */
struct keys {
    struct bytes b;
    uint64_t n;
};

static inline void key(struct keys *k, const char *name, uint32_t type)
{
    put_text(&k->b, name);
    put_u32(&k->b, type);
    k->n++;
}

static inline void key_u32(struct keys *k, const char *name, uint32_t v)
{
    key(k, name, GGUF_U32);
    put_u32(&k->b, v);
}

static inline void key_f32(struct keys *k, const char *name, float v)
{
    key(k, name, GGUF_F32);
    put(&k->b, &v, 4);
}

static inline void key_bool(struct keys *k, const char *name, uint8_t v)
{
    key(k, name, GGUF_BOOL);
    put(&k->b, &v, 1);
}

static inline void key_text(struct keys *k, const char *name, const char *v)
{
    key(k, name, GGUF_STRING);
    put_text(&k->b, v);
}

static inline void key_array(struct keys *k, const char *name, uint32_t element, uint64_t n)
{
    key(k, name, GGUF_ARRAY);
    put_u32(&k->b, element);
    put_u64(&k->b, n);
}

/* What to write and what to get wrong. Zero is a small valid model: 2 layers, 2 heads of 16 on one KV head, 8 tokens. */
struct plan {
    const char *arch;        /* NULL: llama */
    bool bias, norms;        /* of q, k, v; of the heads of q and k */
    const char *skip_key;    /* leave this key out */
    const char *skip_tensor; /* leave this tensor out */
    void (*extra)(struct keys *k);
    const char *extra_tensor; /* one more, f32 [16] */
    bool tied, twice;         /* twice: the extra tensor is there two times */
    bool split_first, split_second;
    uint32_t version, matrix_type, alignment;
    int64_t offset_error; /* added to the third tensor's offset */
    uint32_t layers;
    uint32_t width;   /* embedding and feed-forward length, for types of long blocks; 0: W_D and W_FF */
    float rope_freqs; /* > 0: the tensor rope_freqs.weight of 8 times this */
    uint64_t seed;
};

enum { W_D = 32, W_HEADS = 2, W_HD = 16, W_FF = 64, W_VOCAB = 8 };

struct gguf_file {
    struct bytes head, data;
    uint64_t n_tensors, alignment;
    const struct plan *plan;
};

static inline size_t type_row_bytes(uint32_t type, uint64_t n)
{
    switch (type) {
    case 0:
        return n * 4;
    case 2:
        return n / 32 * 18;
    case 3:
        return n / 32 * 20;
    case 6:
        return n / 32 * 22;
    case 7:
        return n / 32 * 24;
    case 8:
        return n / 32 * 34;
    case 10:
        return n / 256 * 84;
    case 12:
        return n / 256 * 144;
    case 13:
        return n / 256 * 176;
    case 14:
        return n / 256 * 210;
    case 24:
        return n;
    default:
        return n * 2;
    }
}

/* Values are bytes of a counter, kept finite. */
static inline void tensor(struct gguf_file *f, const char *name, uint32_t type, uint64_t rows, uint64_t cols)
{
    if (f->plan->skip_tensor && strcmp(f->plan->skip_tensor, name) == 0)
        return;
    put_text(&f->head, name);
    put_u32(&f->head, rows ? 2 : 1);
    put_u64(&f->head, cols);
    if (rows)
        put_u64(&f->head, rows);
    put_u32(&f->head, type);
    while (f->data.n % f->alignment)
        put(&f->data, "", 1);
    put_u64(&f->head, f->data.n + (f->n_tensors == 2 ? (uint64_t)f->plan->offset_error : 0));
    f->n_tensors++;
    const size_t n = type_row_bytes(type, cols) * (rows ? rows : 1);
    for (size_t i = 0; i < n; i++) {
        const uint8_t v = (uint8_t)(rng_at(f->plan->seed, f->n_tensors, i) & 0x3F);
        put(&f->data, &v, 1);
    }
}

static inline void key_skippable(struct keys *k, const struct plan *p, const char *name, uint32_t v)
{
    if (!p->skip_key || strcmp(p->skip_key, name) != 0)
        key_u32(k, name, v);
}

static inline void write_vocab(struct keys *k, const struct plan *p)
{
    static const char *const tokens[W_VOCAB] = { "<|bos|>", "<|im_end|>", "a", "b", "ab", "\xC4\xA0", "c", "abc" };
    static const int32_t types[W_VOCAB] = { 3, 3, 1, 1, 1, 1, 1, 1 };
    const bool skip = p->skip_key && strncmp(p->skip_key, "tokenizer", 9) == 0;
    if (!skip || strcmp(p->skip_key, "tokenizer.ggml.model") != 0)
        key_text(k, "tokenizer.ggml.model", "gpt2");
    if (!skip || strcmp(p->skip_key, "tokenizer.ggml.pre") != 0)
        key_text(k, "tokenizer.ggml.pre", "smollm");
    if (!skip || strcmp(p->skip_key, "tokenizer.ggml.tokens") != 0) {
        key_array(k, "tokenizer.ggml.tokens", GGUF_STRING, W_VOCAB);
        for (int i = 0; i < W_VOCAB; i++)
            put_text(&k->b, tokens[i]);
    }
    key_array(k, "tokenizer.ggml.token_type", GGUF_I32, W_VOCAB);
    put(&k->b, types, sizeof types);
    if (!skip || strcmp(p->skip_key, "tokenizer.ggml.merges") != 0) {
        key_array(k, "tokenizer.ggml.merges", GGUF_STRING, 2);
        put_text(&k->b, "a b");
        put_text(&k->b, "ab c");
    }
    key_skippable(k, p, "tokenizer.ggml.bos_token_id", 0);
    key_skippable(k, p, "tokenizer.ggml.eos_token_id", 7);
    key_text(k, "tokenizer.chat_template", "{{ messages }}");
}

/* Heads of W_HD that fill the width. */
static inline uint32_t heads_of(const struct plan *p)
{
    return p->width ? p->width / W_HD : W_HEADS;
}

static inline void write_keys(struct keys *k, const struct plan *p)
{
    const char *arch = p->arch ? p->arch : "llama";
    const struct {
        const char *name;
        uint32_t value;
    } sizes[] = {
        { "block_count", p->layers ? p->layers : 2 },      { "context_length", 128 },
        { "embedding_length", p->width ? p->width : W_D }, { "feed_forward_length", p->width ? p->width : W_FF },
        { "attention.head_count", heads_of(p) },           { "attention.head_count_kv", 1 }
    };
    char name[80];
    if (!p->skip_key || strcmp(p->skip_key, "general.architecture") != 0)
        key_text(k, "general.architecture", arch);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(name, sizeof name, "%s.%s", arch, sizes[i].name);
        key_skippable(k, p, name, sizes[i].value);
    }
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
    if (!p->skip_key || strcmp(p->skip_key, name) != 0)
        key_f32(k, name, 1e-5f);
    write_vocab(k, p);
}

static inline void write_tensors(struct gguf_file *f)
{
    const struct plan *p = f->plan;
    const uint32_t type = p->matrix_type, layers = p->layers ? p->layers : 2;
    const uint32_t d = p->width ? p->width : W_D, ff = p->width ? p->width : W_FF, q = heads_of(p) * W_HD;
    char name[64];
    if (!p->split_second) {
        tensor(f, "token_embd.weight", type, W_VOCAB, d);
        tensor(f, "output_norm.weight", 0, 0, d);
        if (!p->tied)
            tensor(f, "output.weight", type, W_VOCAB, d);
        if (p->rope_freqs > 0)
            tensor(f, "rope_freqs.weight", 0, 0, W_HD / 2);
    }
    for (uint32_t l = p->split_second ? 1 : 0; l < (p->split_first ? 1 : layers); l++) {
        const struct {
            const char *name;
            uint64_t rows, cols;
            bool there;
        } list[] = { { "attn_norm.weight", 0, d, true },          { "attn_q.weight", q, d, true },
                     { "attn_k.weight", W_HD, d, true },          { "attn_v.weight", W_HD, d, true },
                     { "attn_output.weight", d, q, true },        { "ffn_norm.weight", 0, d, true },
                     { "ffn_gate.weight", ff, d, true },          { "ffn_up.weight", ff, d, true },
                     { "ffn_down.weight", d, ff, true },          { "attn_q.bias", 0, q, p->bias },
                     { "attn_k.bias", 0, W_HD, p->bias },         { "attn_v.bias", 0, W_HD, p->bias },
                     { "attn_q_norm.weight", 0, W_HD, p->norms }, { "attn_k_norm.weight", 0, W_HD, p->norms } };
        for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
            snprintf(name, sizeof name, "blk.%u.%s", l, list[i].name);
            if (list[i].there)
                tensor(f, name, list[i].rows ? type : 0, list[i].rows, list[i].cols);
        }
    }
    for (int i = 0; p->extra_tensor && i < 1 + p->twice; i++)
        tensor(f, p->extra_tensor, 0, 0, 16);
}

static inline struct bytes write_gguf(const struct plan *p)
{
    struct keys k = { { NULL, 0, 0 }, 0 };
    struct gguf_file f = { .alignment = p->alignment ? p->alignment : 32, .plan = p };
    struct bytes out = { NULL, 0, 0 };
    if (!p->split_second)
        write_keys(&k, p);
    if (p->alignment)
        key_u32(&k, "general.alignment", p->alignment);
    if (p->split_first || p->split_second) {
        key_u32(&k, "split.no", p->split_second ? 1 : 0);
        key_u32(&k, "split.count", 2);
        key_u32(&k, "split.tensors.count", 21);
    }
    if (p->extra)
        p->extra(&k);
    write_tensors(&f);
    if (p->rope_freqs > 0) {
        /* the fourth tensor, or the third if tied; it was written last before the layers */
        size_t at = 0;
        for (size_t i = 0; i + 17 <= f.head.n; i++)
            if (memcmp(f.head.data + i, "rope_freqs.weight", 17) == 0)
                memcpy(&at, f.head.data + i + 17 + 4 + 8 + 4, 8);
        for (int i = 0; i < W_HD / 2; i++)
            memcpy(f.data.data + at + 4 * (size_t)i, &p->rope_freqs, 4);
    }
    put(&out, "GGUF", 4);
    put_u32(&out, p->version ? p->version : 3);
    put_u64(&out, f.n_tensors);
    put_u64(&out, k.n);
    put(&out, k.b.data, k.b.n);
    put(&out, f.head.data, f.head.n);
    while (out.n % f.alignment)
        put(&out, "", 1);
    put(&out, f.data.data, f.data.n);
    free(k.b.data);
    free(f.head.data);
    free(f.data.data);
    return out;
}

#endif
