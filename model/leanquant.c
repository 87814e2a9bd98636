#include "model/leanquant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "model/bf16.h"

enum { ITERATIONS = 100, RETRIES = 3, EVEN_BITS_MAX = 3, ALIGN = 64 };
static const double tolerance = 1e-6;

struct leanquant {
    uint32_t n;
    size_t n_padded;
    uint32_t *order; /* [n] input at each place */
    double *u;       /* [n_padded][n_padded] by places, in strips (model/upper.h) */
    double *weight;  /* [n] by place: U_ii^-power, the largest 1 */
    bool *dead;      /* [n] by input */
    double damping;
    upper_subtract_fn *subtract;
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

/* H by places, damped, its upper triangle; places past n are alone with a one. */
static void arrange(const struct leanquant *q, const double *h, double damping, double *a)
{
    memset(a, 0, q->n_padded * q->n_padded * sizeof *a);
    for (size_t i = 0; i < q->n_padded; i++) {
        const double *from = i < q->n ? h + (size_t)q->order[i] * q->n : NULL;
        double *row = a + i * q->n_padded;
        for (size_t j = i; j < q->n; j++)
            row[j] = from[q->order[j]];
        row[i] = i < q->n ? row[i] + damping : 1;
    }
}

static double u_at(const struct leanquant *q, size_t row, size_t column)
{
    return q->u[upper_strip(column / UPPER_BLOCK) + row * UPPER_BLOCK + column % UPPER_BLOCK];
}

static void weigh(struct leanquant *q, double power)
{
    double smallest = INFINITY;
    for (size_t i = 0; i < q->n; i++)
        smallest = fmin(smallest, u_at(q, i, i));
    for (size_t i = 0; i < q->n; i++)
        q->weight[i] = pow(u_at(q, i, i) / smallest, -power);
}

static void *numbers(size_t n)
{
    return n > SIZE_MAX / sizeof(double) - ALIGN
               ? NULL
               : aligned_alloc(ALIGN, (n * sizeof(double) + ALIGN - 1) / ALIGN * ALIGN);
}

/* a: what h is arranged in */
static enum status take_hessian(struct leanquant *q, double *h, const struct leanquant_rule *rule,
                                const struct upper_team *team, double *a, double *scratch, struct error *err)
{
    const size_t n = q->n;
    double mean = 0;
    for (size_t i = 0; i < n; i++) {
        q->dead[i] = h[i * n + i] == 0;
        if (q->dead[i])
            h[i * n + i] = 1;
        mean += h[i * n + i] / (double)n;
    }
    if (!sort_inputs(q, h))
        return ST_NO_MEMORY;
    q->damping = rule->damping;
    for (int tries = 0;; tries++, q->damping = q->damping > 0 ? 10 * q->damping : 0.01) {
        arrange(q, h, q->damping * mean, a);
        if (upper_factor(a, q->n_padded, scratch, team))
            break;
        if (tries == RETRIES)
            return error_set(err, ST_INVALID,
                             "the calibration's matrix of %u inputs is not positive definite, damped by %g", q->n,
                             q->damping);
    }
    upper_invert(a, q->n_padded, team, q->u);
    weigh(q, rule->power);
    return ST_OK;
}

enum status leanquant_new(double *hessian, uint32_t n, const struct leanquant_rule *rule, const struct upper_team *team,
                          struct leanquant **q_out, struct error *err)
{
    const size_t padded = upper_padded(n);
    struct leanquant *q = calloc(1, sizeof *q);
    double *a = numbers(padded * padded), *scratch = numbers(padded * UPPER_BLOCK);
    enum status st = ST_NO_MEMORY;
    if (q) {
        q->n = n;
        q->n_padded = padded;
        q->order = calloc(n, sizeof *q->order);
        q->u = numbers(upper_strip(padded / UPPER_BLOCK));
        q->weight = malloc(n * sizeof *q->weight);
        q->dead = calloc(n, sizeof *q->dead);
        q->subtract = upper_subtract_find();
        if (a && scratch && q->order && q->u && q->weight && q->dead)
            st = take_hessian(q, hessian, rule, team, a, scratch, err);
    }
    free(a);
    free(scratch);
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

/* A weight and its place, by a key that ascends as the weights do. */
struct item {
    uint32_t key, place;
};

static struct item item_of(float w, uint32_t place)
{
    uint32_t u;
    memcpy(&u, &w, sizeof u);
    return (struct item){ u >> 31 ? ~u : u | 1u << 31, place };
}

/* By key, byte by byte; of equal ones the earlier first. other [n]: scratch */
static void sort_items(struct item *items, uint32_t n, struct item *other)
{
    for (int shift = 0; shift < 32; shift += 8) {
        uint32_t at[257] = { 0 };
        for (uint32_t i = 0; i < n; i++)
            at[(items[i].key >> shift & 255) + 1]++;
        for (int k = 0; k < 255; k++)
            at[k + 1] += at[k];
        for (uint32_t i = 0; i < n; i++)
            other[at[items[i].key >> shift & 255]++] = items[i];
        memcpy(items, other, n * sizeof *items);
    }
}

enum status leanquant_grid(const struct leanquant *q, const float *w, uint32_t bits, uint16_t *grid_out)
{
    const uint32_t n = q->n, k = 1u << bits;
    double centres[LEANQUANT_GRID_MAX];
    struct item *items = malloc(2 * (size_t)n * sizeof *items);
    double *room = numbers(6 * (size_t)n + 3);
    if (!items || !room) {
        free(items);
        free(room);
        return ST_NO_MEMORY;
    }
    double *x = room, *weight = room + n, *distance = room + 2 * n, *sums = room + 3 * n;
    for (uint32_t i = 0; i < n; i++)
        items[i] = item_of(q->dead[q->order[i]] ? 0 : w[q->order[i]], i);
    sort_items(items, n, items + n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t input = q->order[items[i].place];
        x[i] = q->dead[input] ? 0 : (double)w[input];
        weight[i] = q->weight[items[i].place];
    }
    make_sums(x, weight, n, sums);
    for (uint32_t c = 0; c < k; c++)
        centres[c] = x[0] + (x[n - 1] - x[0]) * c / (k - 1);
    if (bits > EVEN_BITS_MAX)
        seed_centres(x, weight, n, distance, centres, k);
    kmeans_sums(x, n, sums, centres, k);
    qsort(centres, k, sizeof *centres, ascending);
    for (uint32_t c = 0; c < k; c++)
        grid_out[c] = bf16_of((float)centres[c]);
    free(items);
    free(room);
    return ST_OK;
}

/* ---- coding ---- */

static uint32_t nearest(const float *grid, uint32_t n, double x)
{
    uint32_t at = 0;
    for (uint32_t c = 1; c < n; c++)
        at = fabs((double)grid[c] - x) < fabs((double)grid[at] - x) ? c : at;
    return at;
}

size_t leanquant_scratch(const struct leanquant *q, uint32_t n_rows)
{
    return n_rows * (q->n_padded + UPPER_BLOCK);
}

/* What is to be coded, or if errors are not spread the errors of all, by places; zeros past n. */
static void take_rows(const struct leanquant *q, const struct leanquant_rows *rows, double *left, uint8_t *codes_out)
{
    for (uint32_t r = 0; r < rows->n; r++) {
        const float *w = rows->w + (size_t)r * q->n, *grid = rows->grids + (size_t)r * rows->n_grid;
        double *to = left + r * q->n_padded;
        for (size_t i = 0; i < q->n_padded; i++) {
            const uint32_t input = i < q->n ? q->order[i] : 0;
            to[i] = i >= q->n || q->dead[input] ? 0 : (double)w[input];
            if (rows->spread || i >= q->n)
                continue;
            const uint32_t c = nearest(grid, rows->n_grid, to[i]);
            codes_out[(size_t)r * q->n + input] = (uint8_t)c;
            to[i] -= (double)grid[c];
        }
    }
}

/*
 * Errors of a block of places, e [rows][UPPER_BLOCK], spread within it. Without spreading the same sums solve for |R^T d|^2 / 2, R = U^-1, the loss of errors d
 * that stay as they are.
 */
static void code_block(const struct leanquant *q, const struct leanquant_rows *rows, size_t block, double *left,
                       double *e, uint8_t *codes_out, double *loss_out)
{
    const size_t begin = block * UPPER_BLOCK;
    const size_t n = begin + UPPER_BLOCK <= q->n ? UPPER_BLOCK : q->n - begin;
    memset(e, 0, rows->n * UPPER_BLOCK * sizeof *e);
    for (size_t i = 0; i < n; i++) {
        const double *u = q->u + upper_strip(block) + (begin + i) * UPPER_BLOCK;
        for (uint32_t r = 0; r < rows->n; r++) {
            double *row = left + r * q->n_padded + begin, value = 0;
            if (rows->spread) {
                const float *grid = rows->grids + (size_t)r * rows->n_grid;
                const uint32_t c = nearest(grid, rows->n_grid, row[i]);
                codes_out[(size_t)r * q->n + q->order[begin + i]] = (uint8_t)c;
                value = (double)grid[c];
            }
            const double by = e[r * UPPER_BLOCK + i] = (row[i] - value) / u[i];
            for (size_t j = i + 1; j < UPPER_BLOCK; j++)
                row[j] -= by * u[j];
            loss_out[r] += by * by / 2;
        }
    }
}

void leanquant_code(const struct leanquant *q, const struct leanquant_rows *rows, double *scratch, uint8_t *codes_out,
                    double *loss_out)
{
    double *left = scratch, *e = scratch + rows->n * q->n_padded;
    memset(loss_out, 0, rows->n * sizeof *loss_out);
    take_rows(q, rows, left, codes_out);
    for (size_t b = 0; b < q->n_padded / UPPER_BLOCK; b++) {
        code_block(q, rows, b, left, e, codes_out, loss_out);
        for (size_t strip = b + 1; strip < q->n_padded / UPPER_BLOCK; strip++)
            q->subtract(left + strip * UPPER_BLOCK, q->n_padded, rows->n, e, UPPER_BLOCK,
                        q->u + upper_strip(strip) + b * UPPER_BLOCK * UPPER_BLOCK, UPPER_BLOCK);
    }
}
