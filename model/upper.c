#include "model/upper.h"

#include <math.h>
#include <string.h>

/* ---- products ---- */

enum { ROWS = 4, LANES = 8, BLOCK = UPPER_BLOCK };

/* Lowered to what a function's target has; each lane is rounded by itself, so targets agree. */
typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double))));

static inline __attribute__((always_inline)) void
subtract_rows(double *a, size_t a_stride, size_t n_rows, const double *e, size_t e_stride, const double *u, size_t n)
{
    size_t r = 0;
    for (; r + ROWS <= n_rows; r += ROWS)
        for (size_t j = 0; j < BLOCK; j += LANES) {
            double *to = a + r * a_stride + j;
            const double *by = e + r * e_stride;
            lanes s0 = *(lanes *)to, s1 = *(lanes *)(to + a_stride), s2 = *(lanes *)(to + 2 * a_stride),
                  s3 = *(lanes *)(to + 3 * a_stride);
            for (size_t i = 0; i < n; i++) {
                const lanes v = *(const lanes *)(u + i * BLOCK + j);
                s0 -= by[i] * v;
                s1 -= by[e_stride + i] * v;
                s2 -= by[2 * e_stride + i] * v;
                s3 -= by[3 * e_stride + i] * v;
            }
            *(lanes *)to = s0;
            *(lanes *)(to + a_stride) = s1;
            *(lanes *)(to + 2 * a_stride) = s2;
            *(lanes *)(to + 3 * a_stride) = s3;
        }
    for (; r < n_rows; r++)
        for (size_t j = 0; j < BLOCK; j += LANES) {
            lanes s = *(lanes *)(a + r * a_stride + j);
            for (size_t i = 0; i < n; i++)
                s -= e[r * e_stride + i] * *(const lanes *)(u + i * BLOCK + j);
            *(lanes *)(a + r * a_stride + j) = s;
        }
}

static void subtract_c(double *a, size_t a_stride, size_t n_rows, const double *e, size_t e_stride, const double *u,
                       size_t n)
{
    subtract_rows(a, a_stride, n_rows, e, e_stride, u, n);
}

#ifdef __x86_64__
static __attribute__((target("avx2"))) void subtract_avx2(double *a, size_t a_stride, size_t n_rows, const double *e,
                                                          size_t e_stride, const double *u, size_t n)
{
    subtract_rows(a, a_stride, n_rows, e, e_stride, u, n);
}

static __attribute__((target("avx512f"))) void
subtract_avx512(double *a, size_t a_stride, size_t n_rows, const double *e, size_t e_stride, const double *u, size_t n)
{
    subtract_rows(a, a_stride, n_rows, e, e_stride, u, n);
}
#endif

upper_subtract_fn *upper_subtract_variant(uint32_t i)
{
#ifdef __x86_64__
    if (i == 1 && __builtin_cpu_supports("avx2"))
        return subtract_avx2;
    if (i == 2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f"))
        return subtract_avx512;
#endif
    return i == 0 ? subtract_c : NULL;
}

upper_subtract_fn *upper_subtract_find(void)
{
    upper_subtract_fn *best = subtract_c;
    for (uint32_t i = 1; upper_subtract_variant(i); i++)
        best = upper_subtract_variant(i);
    return best;
}

static void run(const struct upper_team *team, void (*work)(void *ctx, uint32_t member, uint32_t n_members), void *ctx)
{
    if (team && team->run)
        team->run(team->ctx, work, ctx);
    else
        work(ctx, 0, 1);
}

/* ---- H = R R^T: from the last block of columns to the first ---- */

struct factoring {
    double *a;
    size_t n, block; /* the block of columns that is being finished */
    double (
        *turned)[BLOCK]; /* [n][BLOCK]: that block of R, block by block of rows turned: [rows' block][column][row] */
    double diagonal[BLOCK][BLOCK]; /* [j][i]: R_ij of the block's own rows */
    upper_subtract_fn *subtract;
};

/* The block on the diagonal. */
static bool factor_diagonal(struct factoring *f)
{
    const size_t at = f->block * BLOCK;
    memset(f->diagonal, 0, sizeof f->diagonal);
    for (size_t j = BLOCK; j-- > 0;) {
        double *column = f->diagonal[j];
        for (size_t i = 0; i <= j; i++)
            column[i] = f->a[(at + i) * f->n + at + j];
        for (size_t k = j + 1; k < BLOCK; k++)
            for (size_t i = 0; i <= j; i++)
                column[i] -= f->diagonal[k][i] * f->diagonal[k][j];
        if (!(column[j] > 0 && isfinite(column[j])))
            return false;
        const double root = sqrt(column[j]);
        for (size_t i = 0; i < j; i++)
            column[i] /= root;
        column[j] = root;
    }
    for (size_t i = 0; i < BLOCK; i++)
        for (size_t j = i; j < BLOCK; j++)
            f->a[(at + i) * f->n + at + j] = f->diagonal[j][i];
    return true;
}

/* Rows above the diagonal's block: X R_bb^T = A, a row at a time. */
static void factor_panel(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct factoring *f = ctx;
    const size_t at = f->block * BLOCK;
    for (size_t b = member; b < f->block; b += n_members)
        for (size_t r = 0; r < BLOCK; r++) {
            double *row = f->a + (b * BLOCK + r) * f->n + at;
            for (size_t j = BLOCK; j-- > 0;) {
                const double *column = f->diagonal[j];
                const double x = row[j] / column[j];
                for (size_t i = 0; i < j; i++)
                    row[i] -= x * column[i];
                row[j] = f->turned[b * BLOCK + j][r] = x;
            }
        }
}

/* What is left of H: A -= X X^T, blocks of its upper triangle dealt out by their rows. */
static void factor_rest(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct factoring *f = ctx;
    for (size_t b = member; b < f->block; b += n_members) {
        double *rows = f->a + b * BLOCK * f->n;
        for (size_t c = b; c < f->block; c++)
            f->subtract(rows + c * BLOCK, f->n, BLOCK, rows + f->block * BLOCK, f->n, f->turned[c * BLOCK], BLOCK);
    }
}

bool upper_factor(double *a, size_t n, double *scratch, const struct upper_team *team)
{
    struct factoring f = { .a = a, .n = n, .turned = (double(*)[BLOCK])scratch, .subtract = upper_subtract_find() };
    for (f.block = n / BLOCK; f.block-- > 0;) {
        if (!factor_diagonal(&f))
            return false;
        run(team, factor_panel, &f);
        run(team, factor_rest, &f);
    }
    return true;
}

/* ---- U = R^-1: strips of columns by themselves, from the diagonal's block upwards ---- */

struct inverting {
    const double *r;
    double *u;
    size_t n;
    upper_subtract_fn *subtract;
};

static void invert_strip(const struct inverting *v, size_t strip)
{
    double *u = v->u + upper_strip(strip);
    memset(u, 0, (strip + 1) * BLOCK * BLOCK * sizeof *u);
    for (size_t i = 0; i < BLOCK; i++)
        u[(strip * BLOCK + i) * BLOCK + i] = 1;
    for (size_t b = strip + 1; b-- > 0;) {
        const double *r = v->r + b * BLOCK * v->n;
        const size_t after = (b + 1) * BLOCK;
        v->subtract(u + b * BLOCK * BLOCK, BLOCK, BLOCK, r + after, v->n, u + after * BLOCK, (strip - b) * BLOCK);
        for (size_t i = BLOCK; i-- > 0;) {
            const double *row = r + i * v->n + b * BLOCK;
            double *to = u + (b * BLOCK + i) * BLOCK;
            v->subtract(to, BLOCK, 1, row + i + 1, v->n, to + BLOCK, BLOCK - 1 - i);
            for (size_t j = 0; j < BLOCK; j++)
                to[j] /= row[i];
        }
    }
}

static void invert_strips(void *ctx, uint32_t member, uint32_t n_members)
{
    const struct inverting *v = ctx;
    for (size_t strip = member; strip < v->n / BLOCK; strip += n_members)
        invert_strip(v, strip);
}

void upper_invert(const double *r, size_t n, const struct upper_team *team, double *u_out)
{
    run(team, invert_strips, &(struct inverting){ r, u_out, n, upper_subtract_find() });
}
