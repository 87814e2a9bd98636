#include "client/calibrate_collect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/solo.h"
#include "model/bf16.h"
#include "proto/plan.h"
#include "worker/team.h"

/* One sequence while it is computed, and what is made of it. */
struct run {
    const struct model_config *config;
    const struct calibrate_text *text;
    struct calibrate_samples *to;
    struct calibrate_kind kind;
    uint32_t sequence;                /* which one */
    float *q, *k, *v;                 /* [n_layers][length][heads of it][head_dim], before RoPE */
    float *cosines, *sines;           /* [length][head_dim / 2] of positions */
    float *turn_cosines, *turn_sines; /* the same of positions that keys are turned to; NULL: they are not */
    float *scratch;                   /* of each thread: scratch_floats() */
    struct solo *solo;
};

/* ---- the model ---- */

static void on_row(void *ctx, uint32_t layer, uint32_t pos, const float *q, const float *k, const float *v)
{
    struct run *r = ctx;
    const struct model_config *c = r->config;
    const size_t at = (size_t)layer * r->text->length + pos, kv = (size_t)c->n_kv_heads * c->head_dim,
                 heads = (size_t)c->n_heads * c->head_dim;
    if (r->kind.look != CALIBRATE_VECTORS)
        memcpy(r->q + at * heads, q, heads * sizeof *q);
    memcpy(r->k + at * kv, k, kv * sizeof *k);
    if (r->kind.look != CALIBRATE_CHANNELS)
        memcpy(r->v + at * kv, v, kv * sizeof *v);
}

/* ---- RoPE ---- */

/* cos, sin [head_dim / 2] of a position. */
static void angles(const struct model_config *c, uint32_t pos, float *cos_out, float *sin_out)
{
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        cos_out[i] = (float)(cos(pos * c->inv_freq[i]) * c->rope_scale);
        sin_out[i] = (float)(sin(pos * c->inv_freq[i]) * c->rope_scale);
    }
}

/* cosines, sines [half] */
static void turn(const float *cosines, const float *sines, uint32_t half, const float *x, float *out)
{
    for (uint32_t i = 0; i < half; i++) {
        const float c = cosines[i], s = sines[i];
        out[i] = x[i] * c - x[i + half] * s;
        out[i + half] = x[i + half] * c + x[i] * s;
    }
}

static void rotate(const struct run *r, uint32_t pos, const float *x, float *out)
{
    const uint32_t half = r->config->head_dim / 2;
    turn(r->cosines + (size_t)pos * half, r->sines + (size_t)pos * half, half, x, out);
}

/* ---- weights ---- */

/* Rotated keys and values as planes, a query, its scores, products with its output, the output; sums of weights. */
static size_t scratch_floats(const struct run *r)
{
    const size_t n = r->text->length, d = r->config->head_dim;
    return n * (2 * d + 2 + d / CALIBRATE_UNIT + 2) + 3 * d;
}

struct weighing {
    const float *v; /* of position t: v + t * stride */
    size_t stride;
    float *keys, *values;    /* [head_dim][n] */
    float *p, *dot, *square; /* [n]; square: |v_t|^2 */
    float *sum[2];           /* [head_dim / CALIBRATE_UNIT][n]; [n] */
    float *q, *o, *half;     /* [head_dim] */
};

static void weighing_begin(const struct run *r, struct weighing *w, float *scratch, uint32_t layer, uint32_t head)
{
    const struct model_config *c = r->config;
    const uint32_t n = r->text->length, d = c->head_dim;
    const size_t stride = (size_t)c->n_kv_heads * d, first = (size_t)layer * n * stride + (size_t)head * d;
    w->v = r->v + first;
    w->stride = stride;
    w->keys = scratch;
    w->values = w->keys + (size_t)n * d;
    w->p = w->values + (size_t)n * d;
    w->dot = w->p + n;
    w->square = w->dot + n;
    w->sum[1] = w->square + n;
    w->sum[0] = w->sum[1] + n;
    w->q = w->sum[0] + (size_t)n * d / CALIBRATE_UNIT;
    w->o = w->q + d;
    w->half = w->o + d;
    memset(w->square, 0, (2 + (size_t)d / CALIBRATE_UNIT) * n * sizeof *scratch);
    for (uint32_t t = 0; t < n; t++) {
        rotate(r, t, r->k + first + t * stride, w->q);
        for (uint32_t i = 0; i < d; i++) {
            const float x = w->v[t * stride + i];
            w->keys[(size_t)i * n + t] = w->q[i];
            w->values[(size_t)i * n + t] = x;
            w->square[t] += x * x;
        }
    }
}

/* out[t] = sum over i of x[i] planes[i][t] */
static void products(const float *planes, const float *x, uint32_t d, uint32_t n, uint32_t n_wanted, float *out)
{
    memset(out, 0, n_wanted * sizeof *out);
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t t = 0; t < n_wanted; t++)
            out[t] += x[i] * planes[(size_t)i * n + t];
}

/* p of query position pos over keys 0 .. pos, and the output of attention. */
static void attend(const struct run *r, struct weighing *w, uint32_t pos)
{
    const uint32_t d = r->config->head_dim, n = r->text->length;
    const float scale = 1 / sqrtf((float)d);
    float most = -INFINITY, all = 0;
    products(w->keys, w->q, d, n, pos + 1, w->p);
    for (uint32_t t = 0; t <= pos; t++)
        most = fmaxf(most, w->p[t]);
    for (uint32_t t = 0; t <= pos; t++)
        all += w->p[t] = expf((w->p[t] - most) * scale);
    memset(w->o, 0, d * sizeof *w->o);
    for (uint32_t t = 0; t <= pos; t++) {
        w->p[t] /= all;
        for (uint32_t i = 0; i < d; i++)
            w->o[i] += w->p[t] * w->v[t * w->stride + i];
    }
}

/* What one query adds to the weights of earlier blocks. q: before RoPE */
static void weigh_query(const struct run *r, struct weighing *w, const float *q, uint32_t pos)
{
    const uint32_t d = r->config->head_dim, n = r->text->length, before = pos / PLAN_BLOCK * PLAN_BLOCK;
    float own = 0;
    if (!before)
        return;
    rotate(r, pos, q, w->q);
    attend(r, w, pos);
    products(w->values, w->o, d, n, before, w->dot);
    for (uint32_t i = 0; i < d; i++)
        own += w->o[i] * w->o[i];
    for (uint32_t i = 0; i < d; i++)
        w->half[i] = (q[i] * q[i] + q[(i + d / 2) % d] * q[(i + d / 2) % d]) / 2;
    for (uint32_t t = 0; t < before; t++) {
        const float away = fmaxf(w->square[t] - 2 * w->dot[t] + own, 0);
        w->p[t] *= w->p[t];
        w->sum[1][t] += w->p[t];
        w->p[t] *= away;
    }
    for (uint32_t u = 0; u < d / CALIBRATE_UNIT; u++) {
        float size = 0;
        for (uint32_t e = 0; e < CALIBRATE_UNIT; e++)
            size += w->half[u * CALIBRATE_UNIT + e];
        for (uint32_t t = 0; t < before; t++)
            w->sum[0][(size_t)u * n + t] += size * w->p[t];
    }
}

static void weigh_head(const struct run *r, float *scratch, uint32_t layer, uint32_t head)
{
    const struct model_config *c = r->config;
    const uint32_t n = r->text->length, group = c->n_heads / c->n_kv_heads, units = c->head_dim / CALIBRATE_UNIT;
    const size_t stride = (size_t)c->n_heads * c->head_dim,
                 to = ((size_t)layer * c->n_kv_heads + head) * units * r->to->n + (size_t)r->sequence * n;
    struct weighing w;
    weighing_begin(r, &w, scratch, layer, head);
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t pos = (head + g) % CALIBRATE_STRIDE; pos < n; pos += CALIBRATE_STRIDE)
            weigh_query(r, &w, r->q + ((size_t)layer * n + pos) * stride + (size_t)(head * group + g) * c->head_dim,
                        pos);
    for (uint32_t u = 0; u < units; u++)
        for (uint32_t t = 0; t < n; t++) {
            r->to->weight[0][to + (size_t)u * r->to->n + t] = bf16_of(w.sum[0][(size_t)u * n + t]);
            r->to->weight[1][to + (size_t)u * r->to->n + t] = bf16_of(w.sum[1][t]);
        }
}

/* ---- channels ---- */

/* Of a query q and the keys before its block, sum |q_i k_i| is |q_i| times sum |k_i|. */
static void channels_head(const struct run *r, float *scratch, uint32_t layer, uint32_t head)
{
    const struct model_config *c = r->config;
    const uint32_t n = r->text->length, d = c->head_dim, group = c->n_heads / c->n_kv_heads;
    const size_t kv = (size_t)c->n_kv_heads * d, heads = (size_t)c->n_heads * d, first = (size_t)layer * n;
    double *to = r->to->importance + ((size_t)layer * c->n_kv_heads + head) * d;
    float *keys = scratch, *open = keys + d, *x = open + d; /* sums of |k_i|: of earlier blocks, of this one */
    memset(keys, 0, 2 * (size_t)d * sizeof *keys);
    for (uint32_t pos = 0; pos < n; pos++) {
        for (uint32_t i = 0; i < d && pos % PLAN_BLOCK == 0; i++) {
            keys[i] += open[i];
            open[i] = 0;
        }
        rotate(r, pos, r->k + (first + pos) * kv + (size_t)head * d, x);
        for (uint32_t i = 0; i < d; i++)
            open[i] += fabsf(x[i]);
        for (uint32_t g = 0; g < group; g++) {
            rotate(r, pos, r->q + (first + pos) * heads + ((size_t)head * group + g) * d, x);
            for (uint32_t i = 0; i < d; i++)
                to[i] += (double)fabsf(x[i]) * (double)keys[i];
        }
    }
}

/* ---- all of it ---- */

/* Where token t of the sequence stands for those who look at keys after RoPE. */
static uint32_t turned_to(const struct run *r, uint32_t t)
{
    const uint64_t i = (uint64_t)r->sequence * r->text->length + t;
    return t < PLAN_BLOCK ? t : (uint32_t)(i * r->config->positions_max / r->to->n);
}

static void turns_make(struct run *r)
{
    const uint32_t half = r->config->head_dim / 2;
    for (uint32_t t = 0; t < r->text->length; t++)
        angles(r->config, turned_to(r, t), r->turn_cosines + (size_t)t * half, r->turn_sines + (size_t)t * half);
}

static void keep_head(const struct run *r, uint32_t layer, uint32_t head)
{
    const struct model_config *c = r->config;
    const uint32_t n = r->text->length, d = c->head_dim;
    const size_t stride = (size_t)c->n_kv_heads * d, first = (size_t)layer * n * stride + (size_t)head * d,
                 to = (((size_t)layer * c->n_kv_heads + head) * r->to->n + (size_t)r->sequence * n) * d;
    for (uint32_t t = 0; t < n; t++) {
        const size_t at = (size_t)t * (d / 2);
        float turned[MODEL_HEAD_DIM_MAX];
        const float *k = r->k + first + t * stride;
        if (r->kind.turned) {
            turn(r->turn_cosines + at, r->turn_sines + at, d / 2, k, turned);
            k = turned;
        }
        for (uint32_t i = 0; i < d; i++) {
            r->to->part[0][to + (size_t)t * d + i] = bf16_of(k[i]);
            r->to->part[1][to + (size_t)t * d + i] = bf16_of(r->v[first + t * stride + i]);
        }
    }
}

static void keep_share(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct run *r = ctx;
    const uint32_t heads = r->config->n_kv_heads;
    for (uint32_t i = member; i < r->config->n_layers * heads; i += n_members) {
        if (r->kind.look == CALIBRATE_CHANNELS) {
            channels_head(r, r->scratch + member * scratch_floats(r), i / heads, i % heads);
            continue;
        }
        keep_head(r, i / heads, i % heads);
        if (r->kind.look == CALIBRATE_WEIGHTS)
            weigh_head(r, r->scratch + member * scratch_floats(r), i / heads, i % heads);
    }
}

static bool buffers(struct run *r, uint32_t n_threads)
{
    const struct model_config *c = r->config;
    const uint32_t n = r->text->length, half = c->head_dim / 2;
    const size_t rows = (size_t)c->n_layers * n, all = (size_t)c->n_layers * c->n_kv_heads * r->to->n;
    r->k = malloc(rows * c->n_kv_heads * c->head_dim * sizeof *r->k);
    const bool queries = r->kind.look != CALIBRATE_VECTORS, vectors = r->kind.look != CALIBRATE_CHANNELS,
               weights = r->kind.look == CALIBRATE_WEIGHTS;
    r->v = vectors ? malloc(rows * c->n_kv_heads * c->head_dim * sizeof *r->v) : NULL;
    r->q = queries ? malloc(rows * c->n_heads * c->head_dim * sizeof *r->q) : NULL;
    r->scratch = queries ? malloc(n_threads * scratch_floats(r) * sizeof *r->scratch) : NULL;
    r->to->importance = vectors ? NULL : calloc((size_t)c->n_layers * c->n_kv_heads * c->head_dim, sizeof(double));
    r->cosines = malloc((size_t)n * half * sizeof *r->cosines);
    r->sines = malloc((size_t)n * half * sizeof *r->sines);
    r->turn_cosines = r->kind.turned ? malloc((size_t)n * half * sizeof *r->turn_cosines) : NULL;
    r->turn_sines = r->kind.turned ? malloc((size_t)n * half * sizeof *r->turn_sines) : NULL;
    bool ok = r->k && (!queries || (r->q && r->scratch)) && r->cosines && r->sines &&
              (!r->kind.turned || (r->turn_cosines && r->turn_sines)) &&
              (vectors ? r->v != NULL : r->to->importance != NULL);
    for (int i = 0; i < 2 && vectors; i++) {
        r->to->part[i] = malloc(all * c->head_dim * sizeof(uint16_t));
        r->to->weight[i] = weights ? malloc(all * (c->head_dim / CALIBRATE_UNIT) * sizeof(uint16_t)) : NULL;
        ok = ok && r->to->part[i] && (!weights || r->to->weight[i]);
    }
    for (uint32_t t = 0; t < n && ok; t++)
        angles(c, t, r->cosines + (size_t)t * half, r->sines + (size_t)t * half);
    return ok;
}

static enum status run_sequences(struct run *r, struct team *team, const struct calibrate_events *events,
                                 struct error *err)
{
    const struct calibrate_text *t = r->text;
    enum status st = ST_OK;
    for (r->sequence = 0; r->sequence < t->n_sequences && !st; r->sequence++) {
        const int32_t *ids = t->ids + (size_t)r->sequence * t->length;
        for (uint32_t pos = 0; pos < t->length && !st; pos += SOLO_LEAF) {
            const uint32_t left = t->length - pos;
            st = solo_run(r->solo, pos, left < SOLO_LEAF ? left : SOLO_LEAF, ids + pos, false, err);
        }
        if (!st && r->kind.turned)
            turns_make(r);
        if (!st)
            team_run(team, keep_share, r);
        if (!st && events->progress)
            events->progress(events->ctx, "sequences", (float)(r->sequence + 1) / (float)t->n_sequences);
        if (!st && events->stop && events->stop(events->ctx))
            st = error_set(err, ST_CANCELLED, "calibration: stopped");
    }
    return st;
}

enum status calibrate_collect(const struct model *m, const struct calibrate_text *text,
                              const struct calibrate_kind *kind, uint32_t n_threads,
                              const struct calibrate_events *events, struct calibrate_samples *samples_out,
                              struct error *err)
{
    const struct model_config *c = model_config(m);
    struct calibrate_samples samples = { .n_layers = c->n_layers,
                                         .n_kv_heads = c->n_kv_heads,
                                         .head_dim = c->head_dim,
                                         .n = text->n_sequences * text->length };
    struct run r = { .config = c, .text = text, .to = &samples, .kind = *kind };
    const struct backend_tap tap = { on_row, &r };
    struct team *team = NULL;
    const struct solo_config solo = { .n_threads = n_threads, .positions_max = text->length, .tap = &tap };
    enum status st = ST_OK;
    if (text->length < CALIBRATE_SEQUENCE_MIN || text->length > CALIBRATE_SEQUENCE_MAX || c->head_dim % CALIBRATE_UNIT)
        st = error_set(err, ST_INVALID, "calibration: sequences of %u tokens (%d to %d), heads of %u channels",
                       text->length, CALIBRATE_SEQUENCE_MIN, CALIBRATE_SEQUENCE_MAX, c->head_dim);
    if (!st && (team_new(n_threads, &team) || !buffers(&r, n_threads)))
        st = error_set(err, ST_NO_MEMORY, "calibration: no memory for %u tokens", samples.n);
    if (!st)
        st = solo_new(&solo, m, &r.solo, err);
    if (!st)
        st = run_sequences(&r, team, events, err);
    solo_free(r.solo);
    team_free(team);
    float *all[] = { r.q, r.k, r.v, r.cosines, r.sines, r.turn_cosines, r.turn_sines, r.scratch };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    if (st)
        calibrate_samples_free(&samples);
    else
        *samples_out = samples;
    return st;
}

void calibrate_samples_free(struct calibrate_samples *s)
{
    for (int i = 0; i < 2; i++) {
        free(s->part[i]);
        free(s->weight[i]);
        s->part[i] = s->weight[i] = NULL;
    }
    free(s->importance);
    s->importance = NULL;
}
