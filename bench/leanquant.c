/*
 * Quantizes a layer that it is given: for bench/leanquant.py, which makes layers of trained checkpoints and measures what came of them.
 *
 *   leanquant METHOD:BITS[:DAMPING[:POWER]] ... < layer > weights
 *
 * layer: u32 inputs n, u32 rows, H [n][n] f64 (2 / N sum x x^T), W [rows][n] f32. weights: for each argument W as quantized, [rows][n] f32. nearest: round to nearest
 * on a row's even grid from its least to its largest value, zero among them, as GPTQ has it; gptq: the same grids, errors spread, inputs in descending order of H's
 * diagonal, damping .01 unless given; leanquant: model/leanquant.h, damping and power those of packs unless given. Groups are rows in all of them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "model/leanquant.h"

enum { INPUTS_MAX = 1 << 15, ROWS_MAX = 1 << 18 };

struct layer {
    uint32_t n, n_rows;
    double *h;
    float *w;
};

struct method {
    bool lean, spread;
    uint32_t bits;
    struct leanquant_rule rule;
};

static void *memory(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "leanquant: no memory\n");
        exit(1);
    }
    return p;
}

static bool take(void *to, size_t size, size_t n)
{
    return fread(to, size, n, stdin) == n;
}

static bool read_layer(struct layer *l)
{
    uint32_t sizes[2];
    if (!take(sizes, sizeof *sizes, 2) || sizes[0] < 1 || sizes[0] > INPUTS_MAX || sizes[1] < 1 || sizes[1] > ROWS_MAX)
        return false;
    l->n = sizes[0];
    l->n_rows = sizes[1];
    const size_t squares = (size_t)l->n * l->n, weights = (size_t)l->n * l->n_rows;
    l->h = memory(squares * sizeof *l->h);
    l->w = memory(weights * sizeof *l->w);
    if (!take(l->h, sizeof *l->h, squares) || !take(l->w, sizeof *l->w, weights))
        return false;
    for (size_t i = 0; i < weights; i++)
        if (!isfinite(l->w[i]))
            return false;
    return true;
}

static bool parse(const char *text, struct method *out)
{
    char name[16] = "";
    unsigned bits = 0;
    double damping = -1, power = -1;
    const int n = sscanf(text, "%15[a-z]:%u:%lf:%lf", name, &bits, &damping, &power);
    *out = (struct method){ .lean = !strcmp(name, "leanquant"), .spread = strcmp(name, "nearest") != 0, .bits = bits };
    out->rule = out->lean ? leanquant_default : (struct leanquant_rule){ 0, 0.01 };
    if (n > 2)
        out->rule.damping = damping;
    if (n > 3)
        out->rule.power = power;
    return n >= 2 && bits >= 1 && bits <= 4 && out->rule.damping >= 0 && out->rule.power >= 0 &&
           (out->lean || !strcmp(name, "nearest") || !strcmp(name, "gptq"));
}

/* Zero is one of the values; a row without any other has it alone. */
static void even_grid(const float *w, uint32_t n, uint32_t bits, float *grid)
{
    const float last = (float)((1 << bits) - 1);
    float low = 0, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    const float scale = high > low ? (high - low) / last : 1, zero = roundf(-low / scale);
    for (uint32_t c = 0; c < 1u << bits; c++)
        grid[c] = ((float)c - zero) * scale;
}

static void quantize(const struct layer *l, const struct leanquant *q, const struct method *m)
{
    const uint32_t n_grid = 1u << m->bits;
    double *scratch = memory(leanquant_scratch(q, LEANQUANT_ROWS) * sizeof *scratch), losses[LEANQUANT_ROWS];
    uint8_t *codes = memory((size_t)LEANQUANT_ROWS * l->n);
    float *out = memory((size_t)l->n * sizeof *out), grids[LEANQUANT_ROWS * LEANQUANT_GRID_MAX];
    for (uint32_t first = 0; first < l->n_rows; first += LEANQUANT_ROWS) {
        const uint32_t n = l->n_rows - first < LEANQUANT_ROWS ? l->n_rows - first : LEANQUANT_ROWS;
        const float *w = l->w + (size_t)first * l->n;
        for (uint32_t r = 0; r < n; r++) {
            uint16_t stored[LEANQUANT_GRID_MAX];
            float *grid = grids + r * n_grid;
            if (!m->lean)
                even_grid(w + (size_t)r * l->n, l->n, m->bits, grid);
            else if (leanquant_grid(q, w + (size_t)r * l->n, m->bits, stored))
                exit(1);
            for (uint32_t c = 0; c < n_grid && m->lean; c++)
                grid[c] = bf16_to_f32(stored[c]);
        }
        leanquant_code(q, &(struct leanquant_rows){ n, n_grid, w, grids, m->spread }, scratch, codes, losses);
        for (uint32_t r = 0; r < n; r++) {
            for (uint32_t i = 0; i < l->n; i++)
                out[i] = grids[r * n_grid + codes[(size_t)r * l->n + i]];
            if (fwrite(out, sizeof *out, l->n, stdout) != l->n)
                exit(1);
        }
    }
    free(scratch);
    free(codes);
    free(out);
}

int main(int argc, char **argv)
{
    struct layer l;
    struct error err = { 0 };
    struct method m;
    for (int i = 1; i < argc || argc < 2; i++)
        if (argc < 2 || !parse(argv[i], &m)) {
            fprintf(stderr, "usage: leanquant METHOD:BITS[:DAMPING[:POWER]] ... < layer, METHOD nearest, gptq or "
                            "leanquant, BITS 1 to 4\n");
            return 2;
        }
    if (!read_layer(&l)) {
        fprintf(stderr, "leanquant: no layer on standard input\n");
        return 1;
    }
    double *h = memory((size_t)l.n * l.n * sizeof *h);
    struct leanquant *q = NULL;
    struct leanquant_rule rule = { 0 };
    for (int i = 1; i < argc; i++) {
        parse(argv[i], &m);
        if (!q || rule.power != m.rule.power || rule.damping != m.rule.damping) {
            leanquant_free(q);
            memcpy(h, l.h, (size_t)l.n * l.n * sizeof *h);
            if (leanquant_new(h, l.n, &m.rule, NULL, &q, &err)) {
                fprintf(stderr, "leanquant: %s\n", err.text);
                return 1;
            }
            rule = m.rule;
        }
        quantize(&l, q, &m);
    }
    leanquant_free(q);
    free(h);
    free(l.h);
    free(l.w);
    return 0;
}
