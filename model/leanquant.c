#include "model/leanquant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "model/bf16.h"

enum { ITERATIONS = 100, RETRIES = 3, EVEN_BITS_MAX = 3 };
static const double tolerance = 1e-6;

struct leanquant {
    uint32_t n;
    uint32_t *order; /* [n] input at each place */
    double *u;       /* [n][n] by places, upper */
    double *weight;  /* [n] by place: U_ii^-power, the largest 1 */
    bool *dead;      /* [n] by input */
    double damping;
};

/* ---- the factor ---- */

struct diagonal {
    double h;
    uint32_t input;
};

static int descending(const void *a, const void *b)
{
    const struct diagonal *x = a, *y = b;
    return x->h < y->h ? 1 : x->h > y->h ? -1 : x->input < y->input ? -1 : 1;
}

static bool sort_inputs(struct leanquant *q, const double *h)
{
    struct diagonal *d = malloc(q->n * sizeof *d);
    for (uint32_t i = 0; d && i < q->n; i++)
        d[i] = (struct diagonal){ h[(size_t)i * q->n + i], i };
    if (d)
        qsort(d, q->n, sizeof *d, descending);
    for (uint32_t i = 0; d && i < q->n; i++)
        q->order[i] = d[i].input;
    free(d);
    return d != NULL;
}

static double dot(const double *a, const double *b, size_t n)
{
    double s[8] = { 0 };
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            s[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        s[0] += a[i] * b[i];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/*
 * H = R R^T with R upper is the Cholesky factor of H read from the last input on, and U = R^-1. In reversed order both are lower: L of the reversed H, row by
 * row, and then its inverse, column by column as rows of the transpose.
 */
static bool factor(const struct leanquant *q, const double *h, double damping, double *l)
{
    const size_t n = q->n;
    for (size_t i = 0; i < n; i++) {
        double *row = l + i * n;
        const size_t at = q->order[n - 1 - i];
        for (size_t j = 0; j <= i; j++) {
            const double a = h[at * n + q->order[n - 1 - j]] + (i == j ? damping : 0);
            const double rest = a - dot(row, l + j * n, j);
            if (i == j && !(rest > 0 && isfinite(rest)))
                return false;
            row[j] = i == j ? sqrt(rest) : rest / l[j * n + j];
        }
    }
    return true;
}

/* u: U by places. Column c of L^-1, reversed, is U's column n-1-c; its rows are filled by substitution over whole rows. */
static void invert(const double *l, size_t n, double *u)
{
    memset(u, 0, n * n * sizeof *u);
    /* inverse of L row by row: m_i = (e_i - sum_{j<i} l_ij m_j) / l_ii; kept in u, reversed both ways */
    for (size_t i = 0; i < n; i++) {
        double *to = u + (n - 1 - i) * n;
        for (size_t j = 0; j < i; j++) {
            const double f = l[i * n + j], *from = u + (n - 1 - j) * n;
            for (size_t c = n - 1 - j; c < n; c++) /* m_j reaches its diagonal, which lies at n-1-j */
                to[c] -= f * from[c];
        }
        to[n - 1 - i] = 1;
        const double scale = 1 / l[i * n + i];
        for (size_t c = n - 1 - i; c < n; c++)
            to[c] *= scale;
    }
}

static void weigh(struct leanquant *q, double power)
{
    double smallest = INFINITY;
    for (size_t i = 0; i < q->n; i++)
        smallest = fmin(smallest, q->u[i * q->n + i]);
    for (size_t i = 0; i < q->n; i++)
        q->weight[i] = pow(q->u[i * q->n + i] / smallest, -power);
}

enum status leanquant_new(double *hessian, uint32_t n, const struct leanquant_rule *rule, struct leanquant **q_out,
                          struct error *err)
{
    struct leanquant *q = calloc(1, sizeof *q);
    double *l = calloc((size_t)n * n, sizeof *l), mean = 0;
    enum status st = ST_NO_MEMORY;
    if (!q || !l)
        goto end;
    q->n = n;
    q->order = calloc(n, sizeof *q->order);
    q->u = malloc((size_t)n * n * sizeof *q->u);
    q->weight = malloc(n * sizeof *q->weight);
    q->dead = calloc(n, sizeof *q->dead);
    if (!q->order || !q->u || !q->weight || !q->dead)
        goto end;
    for (size_t i = 0; i < n; i++) {
        q->dead[i] = hessian[i * n + i] == 0;
        if (q->dead[i])
            hessian[i * n + i] = 1;
        mean += hessian[i * n + i] / n;
    }
    if (!sort_inputs(q, hessian))
        goto end;
    st = ST_OK;
    q->damping = rule->damping;
    for (int tries = 0; !factor(q, hessian, q->damping * mean, l);
         tries++, q->damping = q->damping > 0 ? 10 * q->damping : 0.01)
        if (tries == RETRIES) {
            st = error_set(err, ST_INVALID,
                           "the calibration's matrix of %u inputs is not positive definite, damped by %g", n,
                           q->damping);
            goto end;
        }
    invert(l, n, q->u);
    weigh(q, rule->power);
end:
    free(l);
    if (st == ST_NO_MEMORY)
        error_set(err, st, "no memory to quantize rows of %u weights", n);
    if (st)
        leanquant_free(q);
    else
        *q_out = q;
    return st;
}

void leanquant_free(struct leanquant *q)
{
    if (!q)
        return;
    free(q->order);
    free(q->u);
    free(q->weight);
    free(q->dead);
    free(q);
}

double leanquant_damping(const struct leanquant *q)
{
    return q->damping;
}

/* ---- the grid ---- */

/* The first of n ascending x that is nearer to b than to a, which is below b; one in the middle is a's. */
static uint32_t border(const double *x, uint32_t n, double a, double b)
{
    const double middle = (a + b) / 2;
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t at = low + (high - low) / 2;
        if (x[at] <= middle)
            low = at + 1;
        else
            high = at;
    }
    return low;
}

/* sums [3][n + 1]: of weight, weight x, weight x^2 over the first i */
static double lloyd(const double *x, uint32_t n, const double *sums, double *centres, uint32_t k)
{
    const double *w0 = sums, *w1 = sums + n + 1, *w2 = w1 + n + 1;
    double objective = 0;
    for (uint32_t c = 0, begin = 0; c < k; c++) {
        const uint32_t end = c + 1 < k ? border(x, n, centres[c], centres[c + 1]) : n;
        const double w = w0[end] - w0[begin], m = w1[end] - w1[begin];
        if (end > begin && w > 0) {
            const double mean = m / w;
            objective += fmax(0, w2[end] - w2[begin] - mean * m);
            centres[c] = fmin(fmax(mean, x[begin]), x[end - 1]);
        }
        begin = end > begin ? end : begin;
    }
    return objective;
}

static double kmeans_sums(const double *x, uint32_t n, const double *sums, double *centres, uint32_t k)
{
    double before = INFINITY;
    for (int i = 0; i < ITERATIONS; i++) {
        double old[LEANQUANT_GRID_MAX];
        memcpy(old, centres, k * sizeof *old);
        const double now = lloyd(x, n, sums, centres, k);
        if (memcmp(old, centres, k * sizeof *old) == 0 || before - now <= tolerance * now)
            return now;
        before = now;
    }
    return before;
}

static double *make_sums(const double *x, const double *weight, uint32_t n, double *sums)
{
    sums[0] = sums[n + 1] = sums[2 * (n + 1)] = 0;
    for (uint32_t i = 0; i < n; i++) {
        sums[i + 1] = sums[i] + weight[i];
        sums[n + 1 + i + 1] = sums[n + 1 + i] + weight[i] * x[i];
        sums[2 * (n + 1) + i + 1] = sums[2 * (n + 1) + i] + weight[i] * x[i] * x[i];
    }
    return sums;
}

double leanquant_kmeans(const double *x, const double *weight, uint32_t n, double *centres, uint32_t k)
{
    double *sums = malloc(3 * ((size_t)n + 1) * sizeof *sums);
    const double objective = sums ? kmeans_sums(x, n, make_sums(x, weight, n, sums), centres, k) : INFINITY;
    free(sums);
    return objective;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* k-means++: each next one of the weights, drawn by weight times squared distance to the nearest there is. distance [n]: scratch */
static void seed_centres(const double *x, const double *weight, uint32_t n, double *distance, double *centres,
                         uint32_t k)
{
    struct rng rng = { .seed = 1 };
    for (uint32_t i = 0; i < n; i++)
        distance[i] = 1;
    for (uint32_t c = 0; c < k; c++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += weight[i] * distance[i];
        double left = rng_unit(rng_next(&rng)) * sum;
        uint32_t at = 0;
        while (at + 1 < n && (left -= weight[at] * distance[at]) >= 0)
            at++;
        centres[c] = x[at];
        for (uint32_t i = 0; i < n; i++) {
            const double d = (x[i] - x[at]) * (x[i] - x[at]);
            distance[i] = c == 0 || d < distance[i] ? d : distance[i];
        }
    }
    qsort(centres, k, sizeof *centres, ascending);
}

struct pair {
    double x, weight;
};

void leanquant_grid(const struct leanquant *q, const float *w, uint32_t bits, uint16_t *grid_out)
{
    const uint32_t n = q->n, k = 1u << bits;
    double centres[LEANQUANT_GRID_MAX] = { 0 };
    struct pair *pairs = malloc(n * sizeof *pairs);
    double *room = malloc((6 * (size_t)n + 3) * sizeof *room), *x = room, *weight = room + n, *distance = room + 2 * n;
    double *sums = room + 3 * n;
    if (pairs && room) {
        for (uint32_t i = 0; i < n; i++)
            pairs[i] = (struct pair){ q->dead[q->order[i]] ? 0 : (double)w[q->order[i]], q->weight[i] };
        qsort(pairs, n, sizeof *pairs, ascending);
        for (uint32_t i = 0; i < n; i++) {
            x[i] = pairs[i].x;
            weight[i] = pairs[i].weight;
        }
        make_sums(x, weight, n, sums);
        for (uint32_t c = 0; c < k; c++)
            centres[c] = x[0] + (x[n - 1] - x[0]) * c / (k - 1);
        if (bits > EVEN_BITS_MAX)
            seed_centres(x, weight, n, distance, centres, k);
        kmeans_sums(x, n, sums, centres, k);
        qsort(centres, k, sizeof *centres, ascending);
    }
    for (uint32_t c = 0; c < k; c++)
        grid_out[c] = bf16_of((float)centres[c]);
    free(pairs);
    free(room);
}

/* ---- coding ---- */

static uint32_t nearest(const float *grid, uint32_t n, double x)
{
    uint32_t at = 0;
    for (uint32_t c = 1; c < n; c++)
        at = fabs((double)grid[c] - x) < fabs((double)grid[at] - x) ? c : at;
    return at;
}

double leanquant_code(const struct leanquant *q, const float *w, const float *grid, uint32_t n_grid, bool spread,
                      double *scratch, uint8_t *codes_out)
{
    const size_t n = q->n;
    double loss = 0;
    for (size_t i = 0; i < n; i++)
        scratch[i] = q->dead[q->order[i]] ? 0 : (double)w[q->order[i]];
    if (!spread) { /* the whole form, by U's own: |R^T d|^2 / 2 with R = U^-1 is solved forwards */
        for (size_t i = 0; i < n; i++) {
            const uint32_t c = nearest(grid, n_grid, scratch[i]);
            codes_out[q->order[i]] = (uint8_t)c;
            scratch[i] -= (double)grid[c];
        }
        for (size_t i = 0; i < n; i++) {
            const double e = scratch[i] / q->u[i * n + i];
            for (size_t j = i + 1; j < n; j++)
                scratch[j] -= e * q->u[i * n + j];
            loss += e * e / 2;
        }
        return loss;
    }
    for (size_t i = 0; i < n; i++) {
        const double *u = q->u + i * n;
        const uint32_t c = nearest(grid, n_grid, scratch[i]);
        const double e = (scratch[i] - (double)grid[c]) / u[i];
        codes_out[q->order[i]] = (uint8_t)c;
        for (size_t j = i + 1; j < n; j++)
            scratch[j] -= e * u[j];
        loss += e * e / 2;
    }
    return loss;
}
