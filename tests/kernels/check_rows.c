/* The row operations of every variant against `_c`, and `_c` against float64. check.h says how to call it. */

#include "tests/kernels/check.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/exp.h"
#include "kernels/kernels.h"

enum { N_MAX = 9000 };

static const struct row_impl *reference(void)
{
    return &row_impls[n_row_impls - 1];
}

static uint32_t draw_n(struct check *ck)
{
    return check_below(ck, 2)   ? check_between(ck, 1, 200)
           : check_below(ck, 2) ? 64 * check_between(ck, 1, 64)
                                : check_between(ck, 1, N_MAX);
}

static float *draw_row(struct check *ck, uint32_t n, float size)
{
    float *x = check_buffer(ck, n * sizeof *x);
    for (uint32_t i = 0; i < n; i++)
        x[i] = check_normal(ck) * size;
    return x;
}

/* The output of a row as f32, after looking at its padding. */
static const float *widened(struct check *ck, enum dtype type, const void *out, uint32_t n, uint32_t pad)
{
    if (type == DTYPE_F32) {
        for (uint32_t i = n; i < pad; i++)
            if (((const uint32_t *)out)[i])
                check_fail(ck, "padding [%u] is %08x", i, ((const uint32_t *)out)[i]);
        return out;
    }
    float *wide = check_buffer(ck, n * sizeof *wide);
    for (uint32_t i = 0; i < pad; i++)
        if (i < n)
            wide[i] = bf16_to_f32(((const uint16_t *)out)[i]);
        else if (((const uint16_t *)out)[i])
            check_fail(ck, "padding [%u] is %04x", i, ((const uint16_t *)out)[i]);
    return wide;
}

/* bf16 outputs differ where an f32 lies on the border: by 2^-8 of one element, seldom. */
static double tolerance(enum dtype type, double f32_rtol)
{
    return type == DTYPE_F32 ? f32_rtol : 1e-3;
}

static void check_rmsnorm(struct check *ck)
{
    const uint32_t n = draw_n(ck), pad = n + check_below(ck, 2) * check_below(ck, 40);
    const enum dtype type = check_below(ck, 2) ? DTYPE_BF16 : DTYPE_F32;
    const float size = check_below(ck, 4) ? 1.0f : 1e-4f;
    const float *x = draw_row(ck, n, size), *w = draw_row(ck, n, 1);
    float *want = check_buffer(ck, n * sizeof *want);
    double ss = 0;
    for (uint32_t i = 0; i < n; i++)
        ss += (double)x[i] * (double)x[i];
    for (uint32_t i = 0; i < n; i++)
        want[i] = (float)((double)x[i] / sqrt(ss / n + (double)1e-5f) * (double)w[i]);
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "rmsnorm", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "n %u, pad %u, type %d", n, pad, (int)type);
        void *out = check_buffer(ck, (pad > n ? pad : n) * dtype_bytes(type));
        row_impls[v].rmsnorm(x, w, n, 1e-5f, type, out, pad);
        check_close(ck, "out", widened(ck, type, out, n, pad), want, n, type == DTYPE_F32 ? 1e-6 : 4e-3);
        void *first = check_buffer(ck, n * dtype_bytes(type));
        reference()->rmsnorm(x, w, n, 1e-5f, type, first, n);
        check_close(ck, "out against c", widened(ck, type, out, n, n), widened(ck, type, first, n, n), n,
                    tolerance(type, 1e-6));
    }
}

/* Any alignment, and the output in place of the input: rows are cut into heads, and products into runs of outputs. */
static void check_rmsnorm_heads(struct check *ck)
{
    const uint32_t n = 2 * check_between(ck, 1, 128), at = check_below(ck, 16);
    const float *x = draw_row(ck, at + n, 1), *w = draw_row(ck, n, 1);
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "rmsnorm in place", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "n %u, at %u", n, at);
        float *out = check_buffer(ck, n * sizeof *out), *same = check_buffer(ck, (at + n) * sizeof *same);
        memcpy(same, x, (at + n) * sizeof *same);
        row_impls[v].rmsnorm(x + at, w, n, 1e-6f, DTYPE_F32, out, n);
        row_impls[v].rmsnorm(same + at, w, n, 1e-6f, DTYPE_F32, same + at, n);
        check_same(ck, "in place", same + at, out, n * sizeof *out);
        check_same(ck, "before it", same, x, at * sizeof *x);
    }
}

static void check_add(struct check *ck)
{
    const uint32_t n = draw_n(ck), at = check_below(ck, 16);
    const float *x = draw_row(ck, at + n, 3), *b = draw_row(ck, at + n, 3);
    float *want = check_buffer(ck, (at + n) * sizeof *want);
    for (uint32_t i = 0; i < at + n; i++)
        want[i] = i < at ? x[i] : (float)((double)x[i] + (double)b[i]);
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "add", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "n %u, at %u", n, at);
        float *got = check_buffer(ck, (at + n) * sizeof *got);
        memcpy(got, x, (at + n) * sizeof *got);
        row_impls[v].add(got + at, b + at, n);
        check_same(ck, "x", got, want, (at + n) * sizeof *got);
    }
}

static void check_rope(struct check *ck)
{
    const uint32_t head_dim = 2 * check_between(ck, 1, check_below(ck, 2) ? 128 : 20),
                   n_heads = check_between(ck, 1, 9);
    const uint32_t half = head_dim / 2, n = n_heads * head_dim;
    const float *x = draw_row(ck, n, 1);
    float *cosine = check_buffer(ck, half * sizeof(float)), *sine = check_buffer(ck, half * sizeof(float));
    float *want = check_buffer(ck, n * sizeof(float));
    for (uint32_t i = 0; i < half; i++) {
        const double angle = (double)check_uniform(ck) * 3.2;
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
        for (uint32_t h = 0; h < n_heads; h++) {
            const double a = (double)x[h * head_dim + i], b = (double)x[h * head_dim + i + half];
            want[h * head_dim + i] = (float)(a * (double)cosine[i] - b * (double)sine[i]);
            want[h * head_dim + i + half] = (float)(b * (double)cosine[i] + a * (double)sine[i]);
        }
    }
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "rope", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "head_dim %u, %u heads", head_dim, n_heads);
        float *got = check_buffer(ck, n * sizeof(float)), *alone = check_buffer(ck, head_dim * sizeof(float));
        const uint32_t one = check_below(ck, n_heads);
        memcpy(got, x, n * sizeof(float));
        memcpy(alone, x + one * head_dim, head_dim * sizeof(float));
        row_impls[v].rope(got, n_heads, head_dim, cosine, sine);
        row_impls[v].rope(alone, 1, head_dim, cosine, sine);
        check_close(ck, "x", got, want, n, 2e-7);
        check_same(ck, "a head alone", alone, got + one * head_dim, head_dim * sizeof(float));
    }
}

static void check_silu_mul(struct check *ck)
{
    const uint32_t n = draw_n(ck), pad = n + check_below(ck, 2) * check_below(ck, 40);
    const enum dtype type = check_below(ck, 2) ? DTYPE_BF16 : DTYPE_F32;
    float *gate = draw_row(ck, n, check_below(ck, 2) ? 1.0f : 30.0f), *want = check_buffer(ck, n * sizeof(float));
    const float *up = draw_row(ck, n, 1);
    static const float edges[] = { 0.0f, -0.0f, 100.0f, -100.0f, 87.0f, -87.0f, 1e-30f, -1e-30f, 1e30f, -1e30f };
    for (uint32_t i = check_below(ck, 30); i < n; i += 30)
        gate[i] = edges[check_below(ck, sizeof edges / sizeof *edges)];
    for (uint32_t i = 0; i < n; i++)
        want[i] = (float)((double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i]);
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "silu_mul", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "n %u, pad %u, type %d", n, pad, (int)type);
        void *out = check_buffer(ck, (pad > n ? pad : n) * dtype_bytes(type));
        row_impls[v].silu_mul(gate, up, n, type, out, pad);
        const float *got = widened(ck, type, out, n, pad);
        check_close(ck, "out", got, want, n, type == DTYPE_F32 ? 1e-6 : 4e-3);
        for (uint32_t i = 0; i < n; i++)
            if (fabsf(gate[i]) < 20 &&
                fabs((double)got[i] - (double)want[i]) > (type == DTYPE_F32 ? 4e-6 : 5e-3) * fabs((double)want[i]))
                check_fail(ck, "gate %g, up %g: %g, should be %g", (double)gate[i], (double)up[i], (double)got[i],
                           (double)want[i]);
    }
}

static void check_attn_finish(struct check *ck)
{
    const uint32_t n = check_between(ck, 1, 256);
    const enum dtype type = check_below(ck, 2) ? DTYPE_BF16 : DTYPE_F32;
    static const float poisons[] = { NAN, INFINITY, -INFINITY };
    float *o = draw_row(ck, n, 3);
    float l = 1.0f + fabsf(check_normal(ck)) * 50;
    const uint32_t bad = check_below(ck, 4);
    if (bad == 1)
        o[check_below(ck, n)] = poisons[check_below(ck, 3)];
    if (bad == 2)
        l = (const float[]){ NAN, INFINITY, 0.0f, -1.0f }[check_below(ck, 4)];
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "attn_finish", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "head_dim %u, type %d, bad %u", n, (int)type, bad);
        void *out = check_buffer(ck, n * dtype_bytes(type)), *want = check_buffer(ck, n * dtype_bytes(type));
        bool finite = true, was_false = false, want_finite = true;
        row_impls[v].attn_finish(o, l, n, type, out, &finite);
        row_impls[v].attn_finish(o, l, n, type, out, &was_false);
        reference()->attn_finish(o, l, n, type, want, &want_finite);
        if (finite != (bad != 1 && bad != 2) || was_false || finite != want_finite)
            check_fail(ck, "finite is %d and %d, by c %d", finite, was_false, want_finite);
        if (finite)
            check_same(ck, "out", out, want, n * dtype_bytes(type));
    }
}

static void check_logit_max_sum(struct check *ck)
{
    const uint32_t n = draw_n(ck), kind = check_below(ck, 6);
    float *x = draw_row(ck, n, check_below(ck, 2) ? 3.0f : 40.0f);
    for (uint32_t i = 0; kind == 1 && i < n; i++) /* ties */
        x[i] = rintf(x[i] / 3);
    if (kind == 2)
        x[check_below(ck, n)] = NAN;
    if (kind == 3)
        x[check_below(ck, n)] = INFINITY;
    if (kind == 4)
        x[check_below(ck, n)] = -INFINITY;
    uint32_t at = 0;
    float max = -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > max) {
            max = x[i];
            at = i;
        }
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)max);
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "logit_max_sum", row_impls[v].name, row_impls[v].needs))
            continue;
        check_context(ck, "n %u, kind %u", n, kind);
        uint32_t got_at;
        float got_max, got_sum, again;
        row_impls[v].logit_max_sum(x, n, &got_at, &got_max, &got_sum);
        if (got_at != at || !(got_max == max))
            check_fail(ck, "largest is [%u] %g, should be [%u] %g", got_at, (double)got_max, at, (double)max);
        check_close(ck, "sum", &got_sum, &(float){ (float)sum }, 1, 1e-5);
        row_impls[v].logit_max_sum(x, n, &got_at, &got_max, &again);
        check_same(ck, "sum again", &again, &got_sum, sizeof again);
    }
}

/* The exponential itself: edges exactly, the rest against libm's in double. Through silu_mul and logit_max_sum for the vector forms. */
static void check_exp(struct check *ck)
{
    if (!check_begin(ck, "exp", "c", 0))
        return;
    if (exp_f32(0.0f) != 1.0f || exp_f32(-0.0f) != 1.0f || exp_f32(-87.01f) != 0.0f || signbit(exp_f32(-INFINITY)) ||
        exp_f32(-INFINITY) != 0.0f || exp_f32(-FLT_MAX) != 0.0f || !isnan(exp_f32(NAN)) || exp_f32(-87.0f) < FLT_MIN)
        check_fail(ck, "edges: %g %g %g %g", (double)exp_f32(0.0f), (double)exp_f32(-87.01f),
                   (double)exp_f32(-INFINITY), (double)exp_f32(-87.0f));
    for (int i = 0; i < 20000; i++) {
        const float x = -fabsf(check_uniform(ck)) * (i % 2 ? 87.0f : 1.0f);
        const double want = exp((double)x), got = (double)exp_f32(x);
        ck->n_checks++;
        if (!(fabs(got - want) <= (2e-7 - 1e-7 * (double)x) * want))
            check_fail(ck, "exp(%.9g) is %.9g, should be %.9g", (double)x, got, want);
    }
    /* One element beside the largest: the sum is 1 + exp(x). */
    for (uint32_t v = 0; v < n_row_impls; v++) {
        if (!check_begin(ck, "exp", row_impls[v].name, row_impls[v].needs))
            continue;
        for (int i = 0; i < 2000; i++) {
            float x[2] = { 0.0f, -fabsf(check_uniform(ck)) * 20.0f }, max, sum;
            uint32_t at;
            row_impls[v].logit_max_sum(x, 2, &at, &max, &sum);
            const double want = 1 + exp((double)x[1]);
            ck->n_checks++;
            if (!(fabs((double)sum - want) <= 3e-7 * want))
                check_fail(ck, "1 + exp(%.9g) is %.9g, should be %.9g", (double)x[1], (double)sum, want);
        }
    }
}

static void bench(struct check *ck)
{
    enum { HIDDEN = 4096, MLP = 14336, VOCAB = 128256, HEADS = 32, HEAD_DIM = 128 };
    float *x = draw_row(ck, VOCAB, 3), *w = draw_row(ck, VOCAB, 1);
    void *out = check_buffer(ck, VOCAB * sizeof(float));
    for (uint32_t v = 0; v < n_row_impls; v++) {
        const struct row_impl *it = &row_impls[v];
        if (!check_begin(ck, "bench", it->name, it->needs))
            continue;
        double norm, rope, silu, finish, logits;
        uint32_t at;
        float max, sum;
        bool finite = true;
        CHECK_TIME(norm, it->rmsnorm(x, w, HIDDEN, 1e-5f, DTYPE_BF16, out, HIDDEN));
        CHECK_TIME(silu, it->silu_mul(x, w, MLP, DTYPE_BF16, out, MLP));
        CHECK_TIME(finish, it->attn_finish(x, 3.0f, HEAD_DIM, DTYPE_BF16, out, &finite));
        CHECK_TIME(logits, it->logit_max_sum(x, VOCAB, &at, &max, &sum));
        float *heads = draw_row(ck, HEADS * HEAD_DIM, 1), *turn = draw_row(ck, HEAD_DIM, 0.1f);
        CHECK_TIME(rope, it->rope(heads, HEADS, HEAD_DIM, turn, turn));
        printf("rows %-6s rmsnorm %d: %.2f us; rope %d x %d: %.2f us; silu_mul %d: %.2f us; attn_finish %d: %.3f us; "
               "logit_max_sum %d: %.1f us\n",
               it->name, HIDDEN, norm * 1e6, HEADS, HEAD_DIM, rope * 1e6, MLP, silu * 1e6, HEAD_DIM, finish * 1e6,
               VOCAB, logits * 1e6);
    }
}

CHECK_UNLESS_BENCH(exp)
CHECK_UNLESS_BENCH(rmsnorm)
CHECK_UNLESS_BENCH(rmsnorm_heads)
CHECK_UNLESS_BENCH(add)
CHECK_UNLESS_BENCH(rope)
CHECK_UNLESS_BENCH(silu_mul)
CHECK_UNLESS_BENCH(attn_finish)
CHECK_UNLESS_BENCH(logit_max_sum)

static void run_bench(struct check *ck)
{
    if (ck->bench)
        bench(ck);
}

int main(int argc, char **argv)
{
    static const struct check_op ops[] = {
        { "exp", run_exp, 5 },
        { "rmsnorm", run_rmsnorm, 200 },
        { "rmsnorm_heads", run_rmsnorm_heads, 200 },
        { "add", run_add, 200 },
        { "rope", run_rope, 200 },
        { "silu_mul", run_silu_mul, 200 },
        { "attn_finish", run_attn_finish, 400 },
        { "logit_max_sum", run_logit_max_sum, 300 },
        { "bench", run_bench, 1 },
    };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
