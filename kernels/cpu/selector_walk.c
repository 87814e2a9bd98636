#include "kernels/cpu/selector.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/cpu/exp.h"

enum { LANES = 16 };

static uint32_t padded(uint32_t head_dim)
{
    uint32_t n = 1;
    while (n < head_dim)
        n *= 2;
    return n;
}

static uint32_t coordinates(uint32_t n)
{
    return n < SELECTOR_WALK_DIM ? n : SELECTOR_WALK_DIM;
}

size_t selector_walk_bytes(const struct selector_shape *shape)
{
    return 2 * (size_t)coordinates(padded(shape->head_dim)) * sizeof(float);
}

void selector_fwht(float *x, uint32_t n)
{
    for (uint32_t h = 1; h < n; h *= 2) {
        for (uint32_t i = 0; i < n; i += 2 * h) {
            for (uint32_t j = i; j < i + h; j++) {
                const float u = x[j], v = x[j + h];
                x[j] = u + v;
                x[j + h] = u - v;
            }
        }
    }
}

void selector_walk_draw(uint32_t n, uint32_t r, float *signs_out, uint32_t *coordinates_out)
{
    uint32_t place[SELECTOR_HEAD_DIM_MAX];
    bool taken[SELECTOR_HEAD_DIM_MAX] = { false };
    assert(n <= SELECTOR_HEAD_DIM_MAX);
    for (uint32_t i = 0; i < n; i++) {
        place[i] = i;
        signs_out[i] = rng_at(SELECTOR_WALK_SEED, 0, i) >> 63 ? -1.0f : 1.0f;
    }
    for (uint32_t i = 0; i < r; i++) {
        const uint32_t other = i + (uint32_t)(rng_at(SELECTOR_WALK_SEED, 1, i) % (n - i)), swap = place[i];
        place[i] = place[other];
        place[other] = swap;
        taken[place[i]] = true;
    }
    for (uint32_t i = 0, at = 0; i < n; i++)
        if (taken[i])
            coordinates_out[at++] = i;
}

/* mean [head_dim] -> r coordinates of its randomised transform */
static void srht(uint32_t head_dim, const float *mean, float *out)
{
    const uint32_t n = padded(head_dim), r = coordinates(n);
    float signs[SELECTOR_HEAD_DIM_MAX], x[SELECTOR_HEAD_DIM_MAX] = { 0 };
    uint32_t at[SELECTOR_WALK_DIM];
    selector_walk_draw(n, r, signs, at);
    for (uint32_t i = 0; i < head_dim; i++)
        x[i] = signs[i] * mean[i];
    selector_fwht(x, n);
    const float scale = 1.0f / sqrtf((float)r);
    for (uint32_t i = 0; i < r; i++)
        out[i] = x[at[i]] * scale;
}

bool selector_walk_valid(const struct selector_shape *shape, const void *sketch)
{
    const size_t n = selector_walk_bytes(shape) / sizeof(uint32_t);
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (((const uint32_t *)sketch)[i] & 0x7F800000u) == 0x7F800000u;
    return !bad;
}

void selector_walk_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out)
{
    const uint32_t dim = shape->head_dim;
    const float heads = (float)shape->n_kv_heads;
    float *out = sketch_out, q[SELECTOR_HEAD_DIM_MAX] = { 0 }, k[SELECTOR_HEAD_DIM_MAX] = { 0 };
    for (uint32_t p = 0; p < KV_BLOCK; p++) {
        for (uint32_t d = 0; d < dim; d++) {
            float sum = 0;
            for (uint32_t j = 0; j < shape->n_kv_heads; j++)
                sum += selector_key(shape->open, block->k_parts[j], p, d);
            k[d] += sum / heads;
            q[d] += block->q_means[(size_t)p * dim + d];
        }
    }
    for (uint32_t d = 0; d < dim; d++) {
        q[d] /= KV_BLOCK;
        k[d] /= KV_BLOCK;
    }
    srht(dim, q, out);
    srht(dim, k, out + coordinates(padded(dim)));
}

/* Coordinate i is added to lane i mod 16; lanes join by halves. */
static float dot(const float *a, const float *b, uint32_t r)
{
    float lane[LANES] = { 0 };
    for (uint32_t i = 0; i < r; i += LANES)
        for (uint32_t j = 0; j < LANES && i + j < r; j++)
            lane[j] += a[i + j] * b[i + j];
    for (uint32_t half = LANES / 2; half; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

void selector_walk_logits_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                            float *logits_out)
{
    const uint32_t r = coordinates(padded(shape->head_dim));
    const float *q = sketches[block], scale = 1.0f / sqrtf((float)shape->head_dim);
    for (uint32_t j = 0; j <= block; j++)
        logits_out[j] = dot(q, (const float *)sketches[j] + r, r) * scale;
}

void selector_walk_weights_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                             float *logits, uint16_t *w_out)
{
    float most = -INFINITY, sum = 0;
    selector_walk_logits_c(shape, sketches, block, logits);
    for (uint32_t j = 0; j <= block; j++)
        most = logits[j] > most ? logits[j] : most;
    for (uint32_t j = 0; j <= block; j++)
        sum += exp_f32(logits[j] - most);
    /* softmax^8 = e^(8 (a - most)) / sum^8: the sum is at most 4096, so its power is in reach of f32, and one exponential is rounded instead of eight factors */
    float part = 1.0f / sum;
    part *= part;
    part *= part;
    part *= part;
    for (uint32_t j = 0; j <= block; j++)
        w_out[j] = f32_to_bf16(exp_f32(8.0f * (logits[j] - most)) * part);
}
