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

static inline void put(enum dtype type, void *out, uint32_t i, float x)
{
    if (type == DTYPE_F32)
        ((float *)out)[i] = x;
    else
        ((uint16_t *)out)[i] = f32_to_bf16(x);
}

void row_pad(enum dtype type, void *out, uint32_t n, uint32_t pad)
{
    if (pad > n)
        memset((uint8_t *)out + n * dtype_bytes(type), 0, (pad - n) * dtype_bytes(type));
}

void rmsnorm_c(const float *x, const float *w, uint32_t n, float eps, enum dtype out_type, void *out, uint32_t pad)
{
    float lane[LANES] = { 0 };
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] += x[i] * x[i];
    const float r = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        put(out_type, out, i, x[i] * r * w[i]);
    row_pad(out_type, out, n, pad);
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
    for (uint32_t i = 0; i < n; i++) {
        const float g = gate[i], e = exp_f32(-fabsf(g));
        put(out_type, out, i, g * (g >= 0 ? 1.0f : e) / (1.0f + e) * up[i]);
    }
    row_pad(out_type, out, n, pad);
}

void attn_finish_c(const float *o, float l, uint32_t head_dim, enum dtype out_type, void *out, bool *finite)
{
    bool good = isfinite(l) && l > 0;
    for (uint32_t i = 0; i < head_dim; i++) {
        good = good && isfinite(o[i]);
        put(out_type, out, i, o[i] / l);
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
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] += exp_f32(x[i] - max);
    *argmax_out = at;
    *max_out = max;
    *sum_out = lanes_sum(lane);
}
