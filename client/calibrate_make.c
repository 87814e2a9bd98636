#include "client/calibrate_make.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "client/calibrate_channels.h"
#include "kernels/codebook.h"
#include "model/bf16.h"
#include "worker/team.h"

/* Lloyd's iterations and where they end: more of them change an objective by less than 0.1 %. */
enum { ITERATIONS = 40 };
#define TOLERANCE 1e-4

/* Codecs whose books are centroids of channels that lie side by side: how many channels, how many centroids. */
static const struct learned {
    enum kv_codec codec;
    uint32_t channels, n_centroids;
    uint32_t n_parts; /* 2: keys and values, 1: keys */
    bool turned;      /* keys are coded after RoPE */
} codecs[] = { { KV_CQ_2B, 4, 256, 2, false }, { KV_CQ_1B, 8, 256, 2, false }, { KV_NOMAD, 1, 16, 1, true } };

static const char *const method_names[] = { "kmeans", "attention", "fisher" };

/* All books of a model. An item is one group of channels of one part. */
struct books {
    const struct calibrate_wanted *wanted;
    const struct calibrate_samples *samples;
    const struct learned *of;
    uint32_t n_groups;      /* of a head */
    uint16_t *centroids[2]; /* bf16 [n_layers][n_kv_heads][n_groups][n_centroids][channels]; of keys, of values */
    double *lost, *all;     /* [items] */
    float *scratch;         /* of each thread */
    kmeans_nearest_fn *nearest;
    _Atomic uint32_t next, done;
    _Atomic int status;
};

static uint32_t n_items(const struct books *b)
{
    return b->samples->n_layers * b->samples->n_kv_heads * b->of->n_parts * b->n_groups;
}

static size_t scratch_floats(const struct books *b)
{
    return ((size_t)b->samples->n + b->of->n_centroids) * b->of->channels + b->samples->n;
}

/* x [n][channels], w [n] of an item; -> the sum of weighted squares */
static double gather(const struct books *b, uint32_t head, uint32_t part, uint32_t group, float *x, float *w)
{
    const struct calibrate_samples *s = b->samples;
    const uint32_t channels = b->of->channels, units = s->head_dim / CALIBRATE_UNIT,
                   first = group * channels / CALIBRATE_UNIT,
                   n_units = channels < CALIBRATE_UNIT ? 1 : channels / CALIBRATE_UNIT;
    const uint16_t *from = s->part[part] + (size_t)head * s->n * s->head_dim + (size_t)group * channels;
    double all = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        double square = 0;
        w[i] = s->weight[part] ? 0 : 1;
        for (uint32_t u = first; s->weight[part] && u < first + n_units; u++)
            w[i] += bf16_to_float(s->weight[part][((size_t)head * units + u) * s->n + i]);
        for (uint32_t e = 0; e < channels; e++) {
            const float v = bf16_to_float(from[(size_t)i * s->head_dim + e]);
            x[(size_t)i * channels + e] = v;
            square += (double)v * (double)v;
        }
        all += (double)w[i] * square;
    }
    return all;
}

static enum status learn(struct books *b, uint32_t item, float *scratch)
{
    const struct learned *of = b->of;
    const uint32_t group = item % b->n_groups, part = item / b->n_groups % of->n_parts,
                   head = item / b->n_groups / of->n_parts;
    float *x = scratch, *w = x + (size_t)b->samples->n * of->channels, *centroids = w + b->samples->n;
    const struct kmeans_want want = { .n = b->samples->n,
                                      .n_dims = of->channels,
                                      .n_centroids = of->n_centroids,
                                      .iterations = ITERATIONS,
                                      .tolerance = TOLERANCE,
                                      .seed = rng_at(b->wanted->seed, item, 0),
                                      .nearest = b->nearest };
    struct kmeans_fit fit = { 0 };
    b->all[item] = gather(b, head, part, group, x, w);
    const enum status st = kmeans(&want, x, w, centroids, &fit);
    uint16_t *to = b->centroids[part] + ((size_t)head * b->n_groups + group) * of->n_centroids * of->channels;
    for (uint32_t i = 0; i < of->n_centroids * of->channels && !st; i++)
        to[i] = bf16_of(centroids[i]);
    b->lost[item] = fit.objective;
    return st;
}

static void learn_share(void *ctx, uint32_t member, uint32_t n_members)
{
    struct books *b = ctx;
    const struct calibrate_events *e = &b->wanted->events;
    (void)n_members;
    for (;;) {
        const uint32_t item = atomic_fetch_add(&b->next, 1);
        if (item >= n_items(b) || atomic_load(&b->status))
            return;
        const enum status st = learn(b, item, b->scratch + member * scratch_floats(b));
        if (st)
            atomic_store(&b->status, st);
        const uint32_t done = atomic_fetch_add(&b->done, 1) + 1;
        if (member == 0 && e->progress)
            e->progress(e->ctx, "codebooks", (float)done / (float)n_items(b));
        if (member == 0 && e->stop && e->stop(e->ctx))
            atomic_store(&b->status, ST_CANCELLED);
    }
}

static enum status learn_all(struct books *b, struct error *err)
{
    const uint32_t n = n_items(b), n_threads = b->wanted->n_threads;
    const size_t bytes = (size_t)n / b->of->n_parts * b->of->n_centroids * b->of->channels * sizeof(uint16_t);
    struct team *team = NULL;
    b->nearest = codebook_nearest_find(cpu_caps());
    b->centroids[0] = malloc(bytes);
    b->centroids[1] = malloc(bytes);
    b->lost = malloc(n * sizeof *b->lost);
    b->all = malloc(n * sizeof *b->all);
    b->scratch = malloc(n_threads * scratch_floats(b) * sizeof *b->scratch);
    if (!b->centroids[0] || !b->centroids[1] || !b->lost || !b->all || !b->scratch || team_new(n_threads, &team))
        return error_set(err, ST_NO_MEMORY, "calibration: no memory for codebooks of %u tokens", b->samples->n);
    team_run(team, learn_share, b);
    team_free(team);
    const enum status st = (enum status)atomic_load(&b->status);
    return st ? error_set(err, st, "calibration: codebooks: %s", status_text(st)) : ST_OK;
}

static void books_free(struct books *b)
{
    free(b->centroids[0]);
    free(b->centroids[1]);
    free(b->lost);
    free(b->all);
    free(b->scratch);
}

/* The share of squares that is lost, of keys and of values; of what is not learned, NaN. */
static void account(const struct books *b, double lost_out[2])
{
    double lost[2] = { 0 }, all[2] = { 0 };
    for (uint32_t i = 0; i < n_items(b); i++) {
        lost[i / b->n_groups % b->of->n_parts] += b->lost[i];
        all[i / b->n_groups % b->of->n_parts] += b->all[i];
    }
    for (int part = 0; part < 2; part++)
        lost_out[part] = (uint32_t)part >= b->of->n_parts ? NAN : all[part] > 0 ? lost[part] / all[part] : 0;
}

static enum status write_arrays(const struct calibrate_wanted *w, const struct calibration_array *arrays, uint32_t n,
                                struct calibrate_made *made, struct error *err)
{
    char directory[CALIBRATION_PATH] = "";
    const bool named = w->out && w->out[0];
    const enum status st = named ? ST_OK : calibration_directory(w->model_spec, directory, err);
    return st ? st
              : calibration_write(named ? w->out : NULL, directory, &made->origin, arrays, n, &made->digest, made->path,
                                  err);
}

/* What it was learned from, so that eval can tell whether it scores the same. */
static struct calibration_array tokens_array(const struct calibrate_text *text)
{
    return (struct calibration_array){ .name = "tokens",
                                       .type = CALIBRATION_I32,
                                       .n_dims = 2,
                                       .dims = { text->n_sequences, text->length },
                                       .data = text->ids };
}

static enum status write_books(const struct books *b, const struct calibrate_text *text, struct calibrate_made *made,
                               struct error *err)
{
    const struct calibrate_samples *s = b->samples;
    struct calibration_array arrays[3];
    for (int part = 0; part < 2; part++)
        arrays[part] = (struct calibration_array){ .type = CALIBRATION_BF16,
                                                   .n_dims = 5,
                                                   .dims = { s->n_layers, s->n_kv_heads, b->n_groups,
                                                             b->of->n_centroids, b->of->channels },
                                                   .data = b->centroids[part] };
    snprintf(arrays[0].name, sizeof arrays[0].name, "keys");
    snprintf(arrays[1].name, sizeof arrays[1].name, "values");
    arrays[b->of->n_parts] = tokens_array(text);
    return write_arrays(b->wanted, arrays, b->of->n_parts + 1, made, err);
}

/* ---- weights of a file ---- */

/* Which tokens it is of; and its weights, in the form that the samples have. c: stays open while text is used */
static enum status read_weights(const struct calibration *c, const struct model *m, struct calibrate_text *text_out,
                                struct error *err)
{
    const struct digest model = model_digest(m);
    const uint32_t any[2] = { 0 };
    uint32_t dims[2];
    const void *ids;
    char digest[33];
    digest_text(&model, digest);
    if (strcmp(calibration_origin(c)->model, digest) != 0)
        return error_set(err, ST_INVALID, "--weights: those of model %s, this one is %s", calibration_origin(c)->model,
                         digest);
    const enum status st = calibration_array(c, "tokens", CALIBRATION_I32, 2, any, dims, &ids, err);
    if (st)
        return st;
    for (uint64_t i = 0; i < (uint64_t)dims[0] * dims[1]; i++)
        if (((const int32_t *)ids)[i] < 0 || (uint32_t)((const int32_t *)ids)[i] >= model_config(m)->n_vocab)
            return error_set(err, ST_INVALID, "--weights: token %llu is none of the model's", (unsigned long long)i);
    *text_out = (struct calibrate_text){ ids, dims[0], dims[1] };
    return ST_OK;
}

static enum status take_weights(const struct calibration *c, struct calibrate_samples *s, struct error *err)
{
    static const char *const names[] = { "keys", "values" };
    const uint32_t dims[4] = { s->n_layers, s->n_kv_heads, s->head_dim / CALIBRATE_UNIT, s->n };
    const size_t n = (size_t)dims[0] * dims[1] * dims[2] * dims[3];
    for (int part = 0; part < 2; part++) {
        const void *data;
        const enum status st = calibration_array(c, names[part], CALIBRATION_BF16, 4, dims, NULL, &data, err);
        if (st)
            return st;
        for (size_t i = 0; i < n; i++)
            if (((const uint16_t *)data)[i] >> 15 && ((const uint16_t *)data)[i] != 0x8000)
                return error_set(err, ST_INVALID, "--weights: array %s: element %zu is below 0", names[part], i);
        if (!(s->weight[part] = malloc(n * sizeof(uint16_t))))
            return error_set(err, ST_NO_MEMORY, "no memory for %zu weights", n);
        memcpy(s->weight[part], data, n * sizeof(uint16_t));
    }
    return ST_OK;
}

/* ---- all of it ---- */

static bool for_selector(const struct calibrate_wanted *w)
{
    return w->selector && w->selector[0];
}

static void describe(const struct calibrate_wanted *w, const struct model *m, const struct calibrate_text *text,
                     const struct calibration *weights, struct calibration_origin *o)
{
    const struct digest model = model_digest(m),
                        ids = digest_of(text->ids, (size_t)text->n_sequences * text->length * sizeof *text->ids);
    snprintf(o->codec, sizeof o->codec, "%s", for_selector(w) ? w->selector : w->kv_codec);
    snprintf(o->method, sizeof o->method, "%s", for_selector(w) ? CALIBRATE_CHANNELS_METHOD : method_names[w->method]);
    digest_text(&model, o->model);
    digest_text(&ids, o->text);
    if (weights)
        digest_text(calibration_digest(weights), o->weights);
    o->tokens = (uint64_t)text->n_sequences * text->length;
    o->sequence = text->length;
    o->seed = w->seed;
}

static enum status check(const struct calibrate_wanted *w, const struct model_config *c, const struct learned **of_out,
                         struct error *err)
{
    enum kv_codec codec;
    if (for_selector(w))
        return calibrate_channels_check(w->selector, c, err);
    const enum status st = kv_codec_find(w->kv_codec, false, &codec, err);
    if (st)
        return st;
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++)
        if (codecs[i].codec == codec) {
            const struct attn_shape shape = { c->head_dim, codec, 1, NULL };
            *of_out = &codecs[i];
            return attn_find(&shape, 0) ? ST_OK
                                        : error_set(err, ST_UNSUPPORTED, "kv-codec %s takes no heads of %u channels",
                                                    w->kv_codec, c->head_dim);
        }
    return error_set(err, ST_UNSUPPORTED, "kv-codec %s needs no calibration", w->kv_codec);
}

static enum status make(const struct calibrate_wanted *w, const struct model *m, const struct calibration *weights,
                        const struct calibrate_text *text, const struct learned *of, struct calibrate_made *made,
                        struct error *err)
{
    struct calibrate_samples samples = { 0 };
    struct books books = {
        .wanted = w, .samples = &samples, .of = of, .n_groups = model_config(m)->head_dim / of->channels
    };
    const struct calibrate_kind kind = { w->method == CALIBRATE_ATTENTION ? CALIBRATE_WEIGHTS : CALIBRATE_VECTORS,
                                         of->turned };
    enum status st = calibrate_collect(m, text, &kind, w->n_threads, &w->events, &samples, err);
    if (!st && weights)
        st = take_weights(weights, &samples, err);
    if (!st)
        st = learn_all(&books, err);
    describe(w, m, text, weights, &made->origin);
    if (!st)
        st = write_books(&books, text, made, err);
    if (!st)
        account(&books, made->lost);
    books_free(&books);
    calibrate_samples_free(&samples);
    return st;
}

static enum status make_channels(const struct calibrate_wanted *w, const struct model *m, struct calibrate_made *made,
                                 struct error *err)
{
    struct calibrate_samples samples = { 0 };
    struct calibration_array arrays[2] = { [1] = tokens_array(&w->text) };
    uint8_t *channels = NULL;
    const struct calibrate_kind kind = { .look = CALIBRATE_CHANNELS };
    enum status st = calibrate_collect(m, &w->text, &kind, w->n_threads, &w->events, &samples, err);
    if (!st)
        st = calibrate_channels(&samples, &channels, &arrays[0], &made->held, err);
    describe(w, m, &w->text, NULL, &made->origin);
    if (!st)
        st = write_arrays(w, arrays, 2, made, err);
    free(channels);
    calibrate_samples_free(&samples);
    return st;
}

enum status calibrate_make(const struct calibrate_wanted *w, struct calibrate_made *made_out, struct error *err)
{
    struct model *m;
    struct calibration *weights = NULL;
    struct calibrate_text text = w->text;
    struct calibrate_made made = { .path = "" };
    const struct learned *of = NULL;
    enum status st = model_open(w->model_spec, &m, err);
    if (st)
        return st;
    st = check(w, model_config(m), &of, err);
    if (!st && !for_selector(w) && w->method == CALIBRATE_FISHER) {
        st = calibration_open(w->weights, &weights, err);
        if (!st)
            st = read_weights(weights, m, &text, err);
    }
    if (!st)
        st = for_selector(w) ? make_channels(w, m, &made, err) : make(w, m, weights, &text, of, &made, err);
    calibration_close(weights);
    model_close(m);
    if (!st)
        *made_out = made;
    return st;
}
