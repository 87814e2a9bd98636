#include "model/source.h"

#include <string.h>

/* Bytes that are hashed whole; of larger models, the ends of each tensor. A gigabyte takes half a second. */
static const uint64_t whole_bytes_max = (uint64_t)1 << 30;
enum { END_BYTES = 64 << 10, GATHER_BYTES = 1 << 16 };

/* The library's cost a call is a hundred times that of a short text, and a vocabulary has a quarter of a million of them. */
struct gather {
    struct hasher *h;
    size_t n;
    uint8_t bytes[GATHER_BYTES];
};

static void gather_flush(struct gather *g)
{
    hasher_add(g->h, g->bytes, g->n);
    g->n = 0;
}

static void gather_add(struct gather *g, const void *data, size_t bytes)
{
    if (bytes > sizeof g->bytes - g->n)
        gather_flush(g);
    if (bytes > sizeof g->bytes) {
        hasher_add(g->h, data, bytes);
        return;
    }
    if (bytes)
        memcpy(g->bytes + g->n, data, bytes);
    g->n += bytes;
}

static void add_u64(struct gather *g, uint64_t v)
{
    gather_add(g, &v, sizeof v);
}

static void add_text(struct gather *g, const char *text, size_t bytes)
{
    add_u64(g, bytes);
    gather_add(g, text, bytes);
}

static void add_optional(struct gather *g, const char *text)
{
    add_u64(g, text != NULL);
    if (text)
        add_text(g, text, strlen(text));
}

/* The name is left out: it comes from the path. */
static void add_config(struct gather *g, const struct model_config *c)
{
    const uint64_t numbers[] = { c->n_layers,      c->d_model, c->n_heads,       c->n_kv_heads,  c->head_dim,
                                 c->d_ff,          c->n_vocab, c->positions_max, c->tied_output, c->add_bos,
                                 (uint64_t)c->bos, c->n_eos,   c->qkv_bias,      c->qk_norm };
    add_text(g, c->architecture, strlen(c->architecture));
    gather_add(g, numbers, sizeof numbers);
    gather_add(g, &c->rms_eps, sizeof c->rms_eps);
    gather_add(g, c->inv_freq, c->head_dim / 2 * sizeof c->inv_freq[0]);
    gather_add(g, &c->rope_scale, sizeof c->rope_scale);
    gather_add(g, c->eos, c->n_eos * sizeof c->eos[0]);
}

static void add_vocab(struct gather *g, const struct model_vocab *v)
{
    add_u64(g, v->kind);
    add_u64(g, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        add_u64(g, v->tokens[i].type);
        add_text(g, v->tokens[i].text, v->tokens[i].bytes);
    }
    add_u64(g, v->n_merges);
    for (uint32_t i = 0; i < v->n_merges; i++) {
        add_text(g, v->merges[i].left, v->merges[i].left_bytes);
        add_text(g, v->merges[i].right, v->merges[i].right_bytes);
    }
    if (v->scores) {
        gather_add(g, v->scores, v->n_tokens * sizeof v->scores[0]);
        add_u64(g, v->space_prefix);
    }
    add_optional(g, v->pre);
    add_text(g, v->tokenizer_json, v->tokenizer_json_bytes);
    add_u64(g, v->ignore_merges);
    add_optional(g, v->chat_template);
}

static void add_tensor(struct gather *g, const struct model_tensor *t, bool whole)
{
    const uint64_t head[] = { t->kind, t->layer, t->codec, t->n_rows, t->n_cols, t->interleaved_dim, t->data != NULL };
    const uint64_t bytes = (uint64_t)t->n_rows * t->row_bytes;
    gather_add(g, head, sizeof head);
    if (t->checksum) { /* of all bytes */
        gather_add(g, t->checksum, sizeof *t->checksum);
        return;
    }
    if (!t->data)
        return;
    if (whole || bytes <= 2 * END_BYTES) {
        gather_add(g, t->data, bytes);
        return;
    }
    gather_add(g, t->data, END_BYTES);
    gather_add(g, (const uint8_t *)t->data + bytes - END_BYTES, END_BYTES);
}

struct digest model_digest_make(const struct model *m)
{
    struct gather g;
    g.h = hasher_new();
    g.n = 0;
    add_text(&g, "longspan model 2", 16);
    add_config(&g, &m->config);
    add_vocab(&g, &m->vocab);
    add_optional(&g, m->recipe);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        if (m->tensors[i].n_rows)
            add_tensor(&g, &m->tensors[i], m->weight_bytes <= whole_bytes_max);
    gather_flush(&g);
    return hasher_end(g.h);
}
