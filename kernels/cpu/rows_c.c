#include "kernels/cpu/rows.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/exp.h"

/* Sums run in as many lanes, joined by halves: element i is in lane i mod LANES. */
enum { LANES = 16 };

static float lanes_sum(float lane[LANES])
{
    for (int h = LANES / 2; h; h /= 2)
        for (int i = 0; i < h; i++)
            lane[i] += lane[i + h];
    return lane[0];
}

/* to out_type; the rows are made in pieces of LANES, so that the compiler may use vectors */
static inline void put(enum dtype type, void *out, uint32_t i, uint32_t n, const float *x)
{
    if (type == DTYPE_F32)
        memcpy((float *)out + i, x, n * sizeof *x);
    else
        for (uint32_t j = 0; j < n; j++)
            ((uint16_t *)out)[i + j] = f32_to_bf16(x[j]);
}

static inline uint32_t piece(uint32_t n, uint32_t i)
{
    return n - i < LANES ? n - i : LANES;
}

void row_pad(enum dtype type, void *out, uint32_t n, uint32_t pad)
{
    if (pad > n)
        memset((uint8_t *)out + n * dtype_bytes(type), 0, (pad - n) * dtype_bytes(type));
}

void rmsnorm_c(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out, uint32_t pad)
{
    float lane[LANES] = { 0 }, y[LANES];
    for (uint32_t i = 0; i < n; i += LANES)
        for (uint32_t j = 0; j < piece(n, i); j++)
            lane[j] += x[i + j] * x[i + j];
    const float r = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
    for (uint32_t i = 0; i < n; i += LANES) {
        for (uint32_t j = 0; j < piece(n, i); j++)
            y[j] = x[i + j] * r * w[i + j];
        put(out_type, out, i, piece(n, i), y);
    }
    row_pad(out_type, out, n, pad);
}

void add_c(float *x, const float *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] += b[i];
}

void rope_c(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos, const float *sin)
{
    const uint32_t half = head_dim / 2;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
        for (uint32_t i = 0; i < half; i++) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i] + a * sin[i];
        }
}

void silu_mul_c(const float *gate, const float *up, uint32_t n, enum dtype out_type, void *out, uint32_t pad)
{
    float y[LANES];
    for (uint32_t i = 0; i < n; i += LANES) {
        for (uint32_t j = 0; j < piece(n, i); j++) {
            const float g = gate[i + j], e = exp_f32(-fabsf(g));
            const float one = (float)(g >= 0), part = (float)!(g >= 0) * e; /* a choice: one of the two is zero */
            y[j] = g * (one + part) / (1.0f + e) * up[i + j];
        }
        put(out_type, out, i, piece(n, i), y);
    }
    row_pad(out_type, out, n, pad);
}

void attn_finish_c(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite)
{
    bool good = isfinite(l) && l > 0;
    float y[LANES];
    for (uint32_t i = 0; i < head_dim; i += LANES) {
        for (uint32_t j = 0; j < piece(head_dim, i); j++) {
            good &= isfinite(o[i + j]) != 0;
            y[j] = o[i + j] / l;
        }
        put(out_type, out, i, piece(head_dim, i), y);
    }
    if (!good)
        *finite = false;
}

void logit_max_sum_c(const float *x, uint32_t n, uint32_t *argmax_out, float *max_out, float *sum_out)
{
    uint32_t at = 0;
    float max = -INFINITY, lane[LANES] = { 0 };
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > max) {
            max = x[i];
            at = i;
        }
    for (uint32_t i = 0; i < n; i += LANES)
        for (uint32_t j = 0; j < piece(n, i); j++)
            lane[j] += exp_f32(x[i + j] - max);
    *argmax_out = at;
    *max_out = max;
    *sum_out = lanes_sum(lane);
}
