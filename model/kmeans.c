#include "model/kmeans.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

/* Seeds come from at most so many vectors a centroid: what is drawn from more is hardly better, and takes as long as an iteration. */
enum { SEED_VECTORS = 16 };

void kmeans_planes(const float *centroids, uint32_t n_centroids, uint32_t n_dims, float *planes_out)
{
    const uint32_t room = kmeans_room(n_centroids);
    for (uint32_t e = 0; e < n_dims; e++)
        for (uint32_t i = 0; i < room; i++)
            planes_out[e * room + i] = i < n_centroids ? centroids[(size_t)i * n_dims + e] : INFINITY;
}

void kmeans_nearest(const float *planes, uint32_t room, uint32_t n_dims, const float *x, uint32_t n, uint8_t *code_out,
                    float *distance_out)
{
    float d[KMEANS_CENTROIDS_MAX];
    for (uint32_t j = 0; j < n; j++, x += n_dims) {
        uint32_t best = 0;
        for (uint32_t i = 0; i < room; i++) {
            const float step = x[0] - planes[i];
            d[i] = step * step;
        }
        for (uint32_t e = 1; e < n_dims; e++)
            for (uint32_t i = 0; i < room; i++) {
                const float step = x[e] - planes[(size_t)e * room + i];
                d[i] += step * step;
            }
        for (uint32_t i = 1; i < room; i++)
            best = d[i] < d[best] ? i : best;
        code_out[j] = (uint8_t)best;
        if (distance_out)
            distance_out[j] = d[best];
    }
}

struct work {
    const struct kmeans_want *want;
    const float *x, *weights; /* weights: NULL: all 1 */
    float *centroids, *planes, *distance;
    double *sum, *mass; /* [n_centroids][n_dims], [n_centroids] */
    uint8_t *code;
};

static double weight(const struct work *w, uint32_t i)
{
    return w->weights ? (double)w->weights[i] : 1;
}

static float distance(const float *a, const float *b, uint32_t n_dims)
{
    float d = 0;
    for (uint32_t e = 0; e < n_dims; e++)
        d += (a[e] - b[e]) * (a[e] - b[e]);
    return d;
}

/* One of m numbers, in proportion to what it is of the sum. The last that is above 0 if rounding leaves none. */
static uint32_t draw(const double *share, uint32_t m, double sum, double at)
{
    uint32_t last = 0;
    for (uint32_t j = 0; j < m; j++) {
        if (share[j] <= 0)
            continue;
        last = j;
        at -= share[j] / sum;
        if (at < 0)
            break;
    }
    return last;
}

/* k-means++ among m vectors that are spread over all of them. */
static enum status seed(struct work *w)
{
    const struct kmeans_want *want = w->want;
    const uint32_t most = SEED_VECTORS * want->n_centroids, m = want->n < most ? want->n : most, dims = want->n_dims;
    double *share = malloc(m * sizeof *share);
    uint32_t *of = malloc(m * sizeof *of);
    enum status st = share && of ? ST_OK : ST_NO_MEMORY;
    for (uint32_t j = 0; j < m && !st; j++) {
        of[j] = (uint32_t)((j + (m < want->n ? rng_unit(rng_at(want->seed, 1, j)) : 0.5)) * want->n / m);
        of[j] = of[j] < want->n ? of[j] : want->n - 1;
    }
    for (uint32_t c = 0; c < want->n_centroids && !st; c++) {
        double sum = 0;
        for (uint32_t j = 0; j < m; j++) {
            const float *x = w->x + (size_t)of[j] * dims;
            const float d = c ? distance(x, w->centroids + (size_t)(c - 1) * dims, dims) : 1;
            w->distance[j] = c > 1 && w->distance[j] < d ? w->distance[j] : d;
            sum += share[j] = weight(w, of[j]) * (double)w->distance[j];
        }
        const uint32_t j = sum > 0 ? draw(share, m, sum, rng_unit(rng_at(want->seed, 2, c))) : 0;
        memcpy(w->centroids + (size_t)c * dims, w->x + (size_t)of[j] * dims, dims * sizeof *w->x);
    }
    free(share);
    free(of);
    return st;
}

/* Each vector to its nearest centroid; -> the objective */
static double assign(struct work *w)
{
    const struct kmeans_want *want = w->want;
    kmeans_nearest_fn *nearest = want->nearest ? want->nearest : kmeans_nearest;
    double objective = 0;
    kmeans_planes(w->centroids, want->n_centroids, want->n_dims, w->planes);
    nearest(w->planes, kmeans_room(want->n_centroids), want->n_dims, w->x, want->n, w->code, w->distance);
    for (uint32_t i = 0; i < want->n; i++)
        objective += weight(w, i) * (double)w->distance[i];
    return objective;
}

/* The vector that costs most, which then costs nothing; want->n: none costs anything. */
static uint32_t costliest(struct work *w)
{
    uint32_t at = w->want->n;
    double most = 0;
    for (uint32_t i = 0; i < w->want->n; i++) {
        const double cost = weight(w, i) * (double)w->distance[i];
        if (cost > most) {
            most = cost;
            at = i;
        }
    }
    if (at < w->want->n)
        w->distance[at] = 0;
    return at;
}

/* Centroids to the means of their vectors. */
static void update(struct work *w)
{
    const uint32_t dims = w->want->n_dims, k = w->want->n_centroids;
    memset(w->sum, 0, (size_t)k * dims * sizeof *w->sum);
    memset(w->mass, 0, k * sizeof *w->mass);
    for (uint32_t i = 0; i < w->want->n; i++) {
        const double mass = weight(w, i);
        w->mass[w->code[i]] += mass;
        for (uint32_t e = 0; e < dims; e++)
            w->sum[(size_t)w->code[i] * dims + e] += mass * (double)w->x[(size_t)i * dims + e];
    }
    for (uint32_t c = 0; c < k; c++) {
        float *to = w->centroids + (size_t)c * dims;
        uint32_t from;
        if (w->mass[c] > 0)
            for (uint32_t e = 0; e < dims; e++)
                to[e] = (float)(w->sum[(size_t)c * dims + e] / w->mass[c]);
        else if ((from = costliest(w)) < w->want->n)
            memcpy(to, w->x + (size_t)from * dims, dims * sizeof *to);
    }
}

static void iterate(struct work *w, struct kmeans_fit *fit)
{
    const struct kmeans_want *want = w->want;
    fit->objective = assign(w);
    for (fit->iterations = 0; fit->iterations < want->iterations && fit->objective > 0;) {
        const double before = fit->objective;
        update(w);
        fit->objective = assign(w);
        fit->iterations++;
        if (want->on_iteration)
            want->on_iteration(want->ctx, fit->objective);
        if (before - fit->objective <= want->tolerance * before)
            break;
    }
}

enum status kmeans(const struct kmeans_want *want, const float *x, const float *weights, float *centroids_out,
                   struct kmeans_fit *fit_out)
{
    if (!want->n || !want->n_dims || want->n_dims > KMEANS_DIMS_MAX || !want->n_centroids ||
        want->n_centroids > KMEANS_CENTROIDS_MAX)
        return ST_INVALID;
    const uint32_t dims = want->n_dims, k = want->n_centroids;
    double all = 0;
    for (uint32_t i = 0; weights && i < want->n; i++)
        all += (double)weights[i];
    struct work w = { .want = want, .x = x, .weights = all > 0 ? weights : NULL, .centroids = centroids_out };
    struct kmeans_fit fit = { 0 };
    enum status st = ST_NO_MEMORY;
    w.planes = aligned_alloc(64, (size_t)dims * kmeans_room(k) * sizeof *w.planes);
    w.distance = malloc(want->n * sizeof *w.distance);
    w.code = malloc(want->n);
    w.sum = malloc((size_t)k * dims * sizeof *w.sum);
    w.mass = malloc(k * sizeof *w.mass);
    if (w.planes && w.distance && w.code && w.sum && w.mass)
        st = seed(&w);
    if (!st)
        iterate(&w, &fit);
    if (!st && fit_out)
        *fit_out = fit;
    free(w.planes);
    free(w.distance);
    free(w.code);
    free(w.sum);
    free(w.mass);
    return st;
}
