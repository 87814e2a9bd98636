#include "client/eval_solo.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/eval/score.h"
#include "client/interrupt.h"
#include "client/solo.h"
#include "model/calibration.h"

enum { ALIGNMENT = 64 };

enum status eval_variant_read(const struct eval_config *config, const struct settings *s, struct eval_variant *out,
                              struct error *err)
{
    const struct kv_form *form = kv_form_find(config->kv_codec);
    *out = (struct eval_variant){ form, config->window, config->late };
    if (!form && !strcmp(config->kv_codec, kv_codecs[KV_BF16].name))
        return error_set(err, ST_INVALID, "--configs: %s: bf16 has nothing that a window would keep", config->text);
    enum kv_codec codec;
    const enum status st = form ? ST_OK : kv_codec_find(config->kv_codec, false, &codec, err);
    if (st)
        return st;
    if (!form && kv_codecs[codec].row_classes)
        return error_set(err, ST_UNSUPPORTED, "--configs: %s: generated rows of %s do not read what it expands to",
                         config->text, config->kv_codec);
    if (config->window % KV_BLOCK)
        return error_set(err, ST_INVALID, "--configs: %s: a window is a multiple of %d positions", config->text,
                         KV_BLOCK);
    if (strcmp(config->selector, "dense") != 0)
        return error_set(err, ST_UNSUPPORTED, "--configs: %s: what is not offered is evaluated with selector dense",
                         config->text);
    if (strcmp(s->precision, "bf16") != 0)
        return error_set(err, ST_UNSUPPORTED, "--configs: %s: what is not offered is evaluated with precision bf16",
                         config->text);
    return ST_OK;
}

/* A run: the model, what codes its blocks, and where rows go. */
struct run {
    const struct settings *settings;
    const struct eval_variant *variant;
    const struct eval_windows *windows;
    const struct model *model;
    const struct model_config *config;
    struct solo *solo;
    float *logits;
    uint32_t window, n_got;
    bool odd;
    /* of a codec that is served */
    struct attn_shape shape;
    const struct attn_impl *impl;
    uint8_t *scratch;
    struct calibration *calibration;
    uint8_t *books; /* [n_layers][n_kv_heads][keys, values][book_bytes]; NULL: it has none */
    size_t book_bytes;
    float *first, *step; /* angles: [cos, sin][head_dim / 2], [cos, sin][head_dim / 2][KV_BLOCK] */
};

/* ---- codes ---- */

static void *aligned(size_t bytes)
{
    return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/* As workers have them (worker/cpu/books.c). */
static enum status books_open(struct run *r, struct error *err)
{
    const struct model_config *c = r->config;
    const struct kv_calibrated *of = kv_codecs[r->shape.codec].calibrated;
    const uint32_t half = c->head_dim / 2, n = c->n_layers * c->n_kv_heads * 2;
    const struct calibration_wanted wanted = { .model_spec = r->settings->model,
                                               .path = r->settings->calibration,
                                               .codec = r->settings->kv_codec,
                                               .model = model_digest(r->model) };
    enum status st = calibration_open_wanted(&wanted, &r->calibration, err);
    if (!st)
        st = of->check(&r->shape, c->n_layers, c->n_kv_heads, r->calibration, err);
    if (st)
        return st;
    r->book_bytes = of->book_bytes(&r->shape);
    r->books = aligned(n * r->book_bytes);
    r->first = aligned(2 * (size_t)half * sizeof(float));
    r->step = aligned(2 * (size_t)half * KV_BLOCK * sizeof(float));
    if (!r->books || !r->first || !r->step)
        return error_set(err, ST_NO_MEMORY, "no memory for %u codebooks of %zu bytes", n, r->book_bytes);
    for (uint32_t i = 0; i < n; i++)
        of->book(&r->shape, r->calibration, i / 2 / c->n_kv_heads, i / 2 % c->n_kv_heads, i % 2,
                 r->books + i * r->book_bytes);
    for (uint32_t i = 0; i < half; i++)
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            const double angle = j * c->inv_freq[i];
            r->step[i * KV_BLOCK + j] = (float)(cos(angle) * c->rope_scale);
            r->step[(half + i) * KV_BLOCK + j] = (float)(sin(angle) * c->rope_scale);
        }
    return ST_OK;
}

static enum status codec_open(struct run *r, struct error *err)
{
    const uint32_t head_dim = r->config->head_dim;
    enum kv_codec codec;
    if (r->variant->form)
        return kv_form_accepts(r->variant->form, head_dim)
                   ? ST_OK
                   : error_set(err, ST_UNSUPPORTED, "this form takes no heads of %u channels", head_dim);
    enum status st = kv_codec_find(r->settings->kv_codec, false, &codec, err);
    if (st)
        return st;
    r->shape = (struct attn_shape){ head_dim, codec, 1 / sqrtf((float)head_dim), NULL };
    r->impl = attn_find(&r->shape, cpu_caps());
    if (!r->impl)
        return error_set(err, ST_UNSUPPORTED, "kv-codec %s takes no heads of %u channels", r->settings->kv_codec,
                         head_dim);
    r->scratch = aligned(2 * r->impl->part_bytes(&r->shape));
    if (!r->scratch)
        return error_set(err, ST_NO_MEMORY, "no memory");
    return kv_codecs[codec].calibrated ? books_open(r, err) : ST_OK;
}

/* A block of the sequence becomes what its codes stand for. */
static enum status code_block(struct run *r, uint32_t block, struct error *err)
{
    const struct model_config *c = r->config;
    const uint32_t half = c->head_dim / 2;
    struct kv_angles angles = { .unscale = (float)(1 / (c->rope_scale * c->rope_scale)) };
    for (uint32_t i = 0; i < half && r->books; i++) {
        const double angle = (double)block * KV_BLOCK * c->inv_freq[i];
        r->first[i] = (float)cos(angle);
        r->first[half + i] = (float)sin(angle);
    }
    for (uint32_t i = 0; i < 2 && r->books; i++) {
        angles.first[i] = r->first + (size_t)i * half;
        angles.step[i] = r->step + (size_t)i * half * KV_BLOCK;
    }
    for (uint32_t at = 0; at < c->n_layers * c->n_kv_heads; at++) {
        uint16_t *k = solo_part(r->solo, block, at / c->n_kv_heads, at % c->n_kv_heads);
        const uint8_t *book = r->books + (size_t)at * 2 * r->book_bytes;
        const struct kv_book books[2] = { { book, false, &angles }, { book + r->book_bytes, true, &angles } };
        struct attn_shape shape = r->shape;
        shape.books = r->books ? books : NULL;
        uint16_t *v = k ? k + (size_t)KV_BLOCK * c->head_dim : NULL;
        if (!k || !(r->variant->form ? kv_form_lose(r->variant->form, c->head_dim, k, v)
                                     : kv_codec_lose(r->impl, &shape, r->scratch, k, v)))
            return error_set(err, ST_CORRUPT, "block %u cannot be coded", block);
    }
    return ST_OK;
}

/* ---- rows ---- */

static void on_logits(void *ctx, uint32_t pos, const float *row, uint32_t n_vocab)
{
    struct run *r = ctx;
    const struct eval_windows *w = r->windows;
    const uint32_t first = w->length - EVAL_ROWS - 1;
    if (pos < first || pos >= first + EVAL_ROWS)
        return;
    if (n_vocab != w->n_vocab || !eval_finite(row, n_vocab)) {
        r->odd = true;
        return;
    }
    memcpy(r->logits + ((size_t)r->window * EVAL_ROWS + (pos - first)) * n_vocab, row, n_vocab * sizeof(float));
    r->n_got++;
}

/* How far a step from pos on goes: to the end of the block (late: of the leaf), or to where logits begin, or end. */
static uint32_t step_end(const struct run *r, uint32_t pos, uint32_t prompt)
{
    const uint32_t unit = r->variant->late && pos < prompt ? SOLO_LEAF : KV_BLOCK,
                   first = r->windows->length - EVAL_ROWS - 1;
    uint32_t end = (pos / unit + 1) * unit;
    if (pos < first && end > first)
        end = first;
    if (pos < prompt && end > prompt)
        end = prompt;
    return end < r->windows->length - 1 ? end : r->windows->length - 1;
}

static enum status run_window(struct run *r, struct error *err)
{
    const struct eval_windows *w = r->windows;
    const int32_t *tokens = w->tokens + (size_t)r->window * w->length;
    const uint32_t prompt = w->length - EVAL_ROWS, first = prompt - 1, kept = r->variant->window / KV_BLOCK;
    uint32_t n_coded = 0;
    enum status st = ST_OK;
    r->n_got = 0;
    for (uint32_t pos = 0; pos < w->length - 1 && !st;) {
        const uint32_t end = step_end(r, pos, prompt);
        st = solo_run(r->solo, pos, end - pos, tokens + pos, pos >= first, err);
        pos = end;
        const bool may = !r->variant->late || pos >= prompt;
        for (; !st && may && n_coded + kept < pos / KV_BLOCK; n_coded++)
            st = code_block(r, n_coded, err);
        if (!st && interrupted())
            st = error_set(err, ST_CANCELLED, "interrupted");
    }
    if (!st && (r->odd || r->n_got != EVAL_ROWS))
        st = error_set(err, ST_INTERNAL, "window %u: %u of %d rows of finite numbers came", r->window, r->n_got,
                       EVAL_ROWS);
    return st;
}

/* Of all tokens before a row's own block, those of the window in bf16. */
static uint64_t bytes_per_token(const struct run *r)
{
    const struct model_config *c = r->config;
    const uint64_t heads = (uint64_t)c->n_layers * c->n_kv_heads, plain = heads * 2 * KV_BLOCK * c->head_dim * 2,
                   coded = heads * (r->variant->form ? kv_form_bytes(r->variant->form, c->head_dim)
                                                     : 2 * r->impl->part_bytes(&r->shape)),
                   blocks = (r->windows->length - 1) / KV_BLOCK, window = r->variant->window / KV_BLOCK,
                   open = window < blocks ? window : blocks;
    return (coded * (blocks - open) + plain * open + blocks * KV_BLOCK - 1) / (blocks * KV_BLOCK);
}

static enum status run_all(struct run *r, struct error *err)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const struct solo_config solo = { .n_threads = r->settings->threads ? r->settings->threads
                                                   : cores > 1          ? (uint32_t)cores
                                                                        : 1,
                                      .positions_max = r->windows->length,
                                      .logits = on_logits,
                                      .ctx = r };
    enum status st = codec_open(r, err);
    if (!st)
        st = solo_new(&solo, r->model, &r->solo, err);
    for (r->window = 0; r->window < r->windows->n_windows && !st; r->window++)
        st = run_window(r, err);
    solo_free(r->solo);
    return st;
}

enum status eval_solo_run(const struct settings *s, const struct eval_variant *variant,
                          const struct eval_windows *windows, float *logits_out, struct eval_figures *figures_out,
                          struct error *err)
{
    struct model *m;
    enum status st = model_open(s->model, &m, err);
    if (st)
        return st;
    struct run r = { .settings = s,
                     .variant = variant,
                     .windows = windows,
                     .model = m,
                     .config = model_config(m),
                     .logits = logits_out };
    st = run_all(&r, err);
    if (!st)
        *figures_out =
            (struct eval_figures){ .kv_bytes_per_token = bytes_per_token(&r), .prefill_tps = NAN, .decode_tps = NAN };
    free(r.scratch);
    free(r.books);
    free(r.first);
    free(r.step);
    calibration_close(r.calibration);
    model_close(m);
    return st;
}
