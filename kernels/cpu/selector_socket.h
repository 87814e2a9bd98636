#ifndef LONGSPAN_KERNELS_CPU_SELECTOR_SOCKET_H
#define LONGSPAN_KERNELS_CPU_SELECTOR_SOCKET_H

/*
 * socket: what its variants share, as loops of which compilers make vectors. Each variant is built from it for its ISA: every number is made by the same
 * operations in the same order, so the bits are the same.
 */

#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/exp.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SOCKET_CORNERS = 1 << SOCKET_PLANES,
    SOCKET_CODES = SOCKET_TABLES * KV_BLOCK,         /* bytes of a KV head's codes */
    SOCKET_HEAD_BYTES = SOCKET_CODES + 2 * KV_BLOCK, /* and its norms */
};

static inline const uint16_t *socket_norms(const uint8_t *head)
{
    return (const uint16_t *)(const void *)(head + SOCKET_CODES);
}

/* keys_out [KV_BLOCK][head_dim] */
static inline void socket_keys(const struct selector_shape *shape, const void *k_part, float *keys_out)
{
    for (uint32_t p = 0; p < KV_BLOCK; p++)
        for (uint32_t d = 0; d < shape->head_dim; d++)
            keys_out[(size_t)p * shape->head_dim + d] = selector_key(shape->open, k_part, p, d);
}

static inline void socket_norms_make(const struct selector_shape *shape, const void *v_part, uint8_t *head)
{
    float sum[KV_BLOCK] = { 0 };
    uint16_t norm[KV_BLOCK];
    for (uint32_t d = 0; d < shape->head_dim; d++) {
        for (uint32_t p = 0; p < KV_BLOCK; p++) {
            const float v = selector_value(shape->open, v_part, shape->head_dim, p, d);
            sum[p] += v * v;
        }
    }
    for (uint32_t p = 0; p < KV_BLOCK; p++)
        norm[p] = kv_f16_of(sum[p] == sum[p] ? sqrtf(sum[p]) : 0);
    memcpy(head + SOCKET_CODES, norm, sizeof norm);
}

/* Codes of a head's keys. Two channels at a time: products are added one after the other, as they are one by one. */
static inline void socket_codes(const float *planes, const float *keys, uint32_t dim, uint8_t *codes)
{
    for (uint32_t p = 0; p < KV_BLOCK; p++) {
        const float *key = keys + (size_t)p * dim;
        float z[SOCKET_HASHES] = { 0 };
        for (uint32_t d = 0; d < dim; d += 2) {
            const float *w = planes + (size_t)d * SOCKET_HASHES, *next = w + SOCKET_HASHES, a = key[d], b = key[d + 1];
            for (uint32_t n = 0; n < SOCKET_HASHES; n++) {
                const float sum = z[n] + w[n] * a;
                z[n] = sum + next[n] * b;
            }
        }
        for (uint32_t l = 0; l < SOCKET_TABLES; l++) {
            uint32_t bits = 0;
            for (uint32_t b = 0; b < SOCKET_PLANES; b++)
                bits |= (uint32_t)(z[l * SOCKET_PLANES + b] >= 0) << b;
            codes[l * KV_BLOCK + p] = (uint8_t)bits;
        }
    }
}

static inline void socket_sketch(const struct selector_shape *shape, const struct selector_block *block,
                                 void (*codes)(const float *planes, const float *keys, uint32_t dim, uint8_t *codes),
                                 void *sketch_out)
{
    const float *planes = selector_socket_planes();
    float keys[KV_BLOCK * SELECTOR_HEAD_DIM_MAX];
    for (uint32_t j = 0; j < shape->n_kv_heads; j++) {
        uint8_t *head = (uint8_t *)sketch_out + (size_t)j * SOCKET_HEAD_BYTES;
        socket_keys(shape, block->k_parts[j], keys);
        codes(planes, keys, shape->head_dim, head);
        socket_norms_make(shape, block->v_parts[j], head);
    }
}

enum { SOCKET_HALF = 1 << SOCKET_PLANES / 2 };

/* Products over half of a table's places: entry i has one[b] where bit b of i is set, else zero[b]; the first place first. */
static inline void socket_half(const float *one, const float *zero, float half_out[SOCKET_HALF])
{
    half_out[0] = 1;
    for (uint32_t b = 0; b < SOCKET_PLANES / 2; b++) {
        for (uint32_t i = 0; i < 1u << b; i++) {
            half_out[(1u << b) + i] = half_out[i] * one[b];
            half_out[i] *= zero[b];
        }
    }
}

/* Probabilities that the query's places are 1, and that they are 0. -> the greatest product of a table's places there can be */
static inline float socket_places(const struct selector_shape *shape, const float *q, float one[SOCKET_HASHES],
                                  float zero[SOCKET_HASHES])
{
    const float *planes = selector_socket_planes();
    const float steep = 2.0f / (SOCKET_TAU * sqrtf((float)shape->head_dim)), most = 1.0f / (1.0f + exp_f32(-steep));
    const float half = most * most * most * most;
    float z[SOCKET_HASHES] = { 0 };
    for (uint32_t d = 0; d < shape->head_dim; d++)
        for (uint32_t n = 0; n < SOCKET_HASHES; n++)
            z[n] += planes[(size_t)d * SOCKET_HASHES + n] * q[d];
    for (uint32_t n = 0; n < SOCKET_HASHES; n++)
        one[n] = exp_f32(-2.0f * fabsf(z[n]));
    for (uint32_t n = 0; n < SOCKET_HASHES; n++)
        zero[n] = -((1.0f - one[n]) / (1.0f + one[n]) * steep); /* -2 |tanh| / (tau sqrt(D)) */
    for (uint32_t n = 0; n < SOCKET_HASHES; n++)
        one[n] = exp_f32(zero[n]);
    for (uint32_t n = 0; n < SOCKET_HASHES; n++) {
        const float high = 1.0f / (1.0f + one[n]), low = one[n] / (1.0f + one[n]);
        one[n] = z[n] >= 0 ? high : low;
        zero[n] = z[n] >= 0 ? low : high;
    }
    return half * half;
}

/* tables_out [SOCKET_TABLES][SOCKET_CORNERS] */
static inline void socket_tables(const struct selector_shape *shape, const float *q, uint16_t *tables_out)
{
    float one[SOCKET_HASHES], zero[SOCKET_HASHES];
    const float scale = SOCKET_TOP / socket_places(shape, q, one, zero);
    for (uint32_t l = 0; l < SOCKET_TABLES; l++) {
        const uint32_t first = l * SOCKET_PLANES, middle = first + SOCKET_PLANES / 2;
        float low[SOCKET_HALF], high[SOCKET_HALF];
        socket_half(one + first, zero + first, low);
        socket_half(one + middle, zero + middle, high);
        for (uint32_t i = 0; i < SOCKET_HALF; i++) {
            uint16_t *out = tables_out + l * SOCKET_CORNERS + i * SOCKET_HALF;
            for (uint32_t k = 0; k < SOCKET_HALF; k++) {
                const float n = high[i] * low[k] * scale + 0.5f; /* NaN, of a query that is, becomes the top */
                out[k] = (uint16_t)(int32_t)(n < SOCKET_TOP ? n : SOCKET_TOP);
            }
        }
    }
}

static inline float socket_best(const uint8_t *head, const uint32_t *sum)
{
    const uint16_t *norms = socket_norms(head);
    float best[KV_BLOCK];
    for (uint32_t p = 0; p < KV_BLOCK; p++)
        best[p] = f16_to_f32(norms[p]) * (float)(int32_t)sum[p];
    for (uint32_t half = KV_BLOCK / 2; half; half /= 2)
        for (uint32_t p = 0; p < half; p++)
            best[p] = best[p + half] > best[p] ? best[p + half] : best[p];
    return best[0];
}

static inline void socket_score(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out)
{
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    uint16_t tables[SOCKET_TABLES * SOCKET_CORNERS];
    memset(scores_out, 0, (size_t)(head_end - head_begin) * n * sizeof *scores_out); /* the least there is */
    for (uint32_t i = 0; i < (head_end - head_begin) * group; i++) {
        float *scores = scores_out + (size_t)(i / group) * n;
        socket_tables(shape, q[i], tables);
        for (uint32_t b = 0; b < n; b++) {
            const uint8_t *head = (const uint8_t *)sketches[b] + (size_t)(head_begin + i / group) * SOCKET_HEAD_BYTES;
            uint32_t sum[KV_BLOCK];
            for (uint32_t p = 0; p < KV_BLOCK; p += 2) {
                uint32_t first = 0, second = 0;
                for (uint32_t l = 0; l < SOCKET_TABLES; l++) {
                    first += tables[l * SOCKET_CORNERS + head[l * KV_BLOCK + p]];
                    second += tables[l * SOCKET_CORNERS + head[l * KV_BLOCK + p + 1]];
                }
                sum[p] = first;
                sum[p + 1] = second;
            }
            const float best = socket_best(head, sum);
            scores[b] = best > scores[b] ? best : scores[b];
        }
    }
}

#ifdef __cplusplus
}
#endif
#endif
