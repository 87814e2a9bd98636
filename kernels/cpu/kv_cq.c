#include "kernels/cpu/kv_cq.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/kv_centroids.h"

enum { CHANNELS_MAX = 8 };

bool kv_accepts_cq(const struct attn_shape *shape)
{
    return (shape->codec == KV_CQ_2B || shape->codec == KV_CQ_1B) && shape->head_dim <= MODEL_HEAD_DIM_MAX &&
           shape->head_dim >= 2 * cq_channels(shape) && shape->head_dim % (2 * cq_channels(shape)) == 0;
}

size_t kv_part_bytes_cq(const struct attn_shape *shape)
{
    return (size_t)shape->head_dim / cq_channels(shape) * KV_BLOCK;
}

/* ---- calibration ---- */

static const char *array_name(bool values)
{
    return values ? "values" : "keys";
}

static enum status check(const struct attn_shape *shape, uint32_t n_layers, uint32_t n_kv_heads,
                         const struct calibration *c, struct error *err)
{
    const uint32_t channels = cq_channels(shape),
                   dims[5] = { n_layers, n_kv_heads, shape->head_dim / channels, CQ_CENTROIDS, channels };
    const enum status st = kv_centroids_check(shape, c, array_name(false), dims, err);
    return st ? st : kv_centroids_check(shape, c, array_name(true), dims, err);
}

static size_t book_bytes(const struct attn_shape *shape)
{
    return (size_t)shape->head_dim * CQ_CENTROIDS * (sizeof(float) + sizeof(uint16_t));
}

static void book(const struct attn_shape *shape, const struct calibration *c, uint32_t layer, uint32_t kv_head,
                 bool values, void *book_out)
{
    const uint32_t channels = cq_channels(shape);
    const size_t n = (size_t)shape->head_dim * CQ_CENTROIDS;
    const uint16_t *from = kv_centroids_of(c, array_name(values), layer, kv_head);
    float *planes = book_out;
    for (uint32_t g = 0; g < shape->head_dim / channels; g++)
        for (uint32_t i = 0; i < CQ_CENTROIDS; i++)
            for (uint32_t e = 0; e < channels; e++)
                planes[((size_t)g * channels + e) * CQ_CENTROIDS + i] =
                    bf16_to_f32(from[((size_t)g * CQ_CENTROIDS + i) * channels + e]);
    memcpy(planes + n, from, n * sizeof *from);
}

const struct kv_calibrated kv_calibrated_cq = { check, book_bytes, book };

/* ---- sealing ---- */

/* cos and sin of one channel at all positions. */
static void angles_of(const struct kv_angles *a, uint32_t channel, float cos_out[KV_BLOCK], float sin_out[KV_BLOCK])
{
    const float c = a->first[0][channel], s = a->first[1][channel];
    const float *cos_step = a->step[0] + (size_t)channel * KV_BLOCK,
                *sin_step = a->step[1] + (size_t)channel * KV_BLOCK;
    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        cos_out[j] = c * cos_step[j] - s * sin_step[j];
        sin_out[j] = s * cos_step[j] + c * sin_step[j];
    }
}

/* One channel of an open part at all positions; false: not finite. */
static bool channel_of(const struct attn_shape *shape, const uint16_t *open, bool values, uint32_t channel,
                       float out[KV_BLOCK])
{
    bool finite = true;
    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        out[j] = values ? kv_open_value(open, shape->head_dim, j, channel) : kv_open_key(open, j, channel);
        finite = finite && isfinite(out[j]);
    }
    return finite;
}

/* Channels i and i + D/2 of keys, before RoPE. */
static bool keys_of(const struct attn_shape *shape, const uint16_t *open, const struct kv_angles *a, uint32_t i,
                    float low[KV_BLOCK], float high[KV_BLOCK])
{
    float cosines[KV_BLOCK], sines[KV_BLOCK];
    const bool finite = channel_of(shape, open, false, i, low);
    if (!channel_of(shape, open, false, i + shape->head_dim / 2, high) || !finite)
        return false;
    angles_of(a, i, cosines, sines);
    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        const float x = low[j], y = high[j];
        low[j] = a->unscale * (x * cosines[j] + y * sines[j]);
        high[j] = a->unscale * (y * cosines[j] - x * sines[j]);
    }
    return true;
}

static void encode(kmeans_nearest_fn *nearest, const struct attn_shape *shape, const float *planes, uint32_t group,
                   float x[CHANNELS_MAX][KV_BLOCK], uint8_t *part)
{
    const uint32_t channels = cq_channels(shape);
    float vectors[KV_BLOCK * CHANNELS_MAX];
    for (uint32_t j = 0; j < KV_BLOCK; j++)
        for (uint32_t e = 0; e < channels; e++)
            vectors[j * channels + e] = x[e][j];
    nearest(planes + (size_t)group * channels * CQ_CENTROIDS, CQ_CENTROIDS, channels, vectors, KV_BLOCK,
            part + (size_t)group * KV_BLOCK, NULL);
}

static bool seal_keys(kmeans_nearest_fn *nearest, const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t channels = cq_channels(shape), half = shape->head_dim / 2;
    float low[CHANNELS_MAX][KV_BLOCK], high[CHANNELS_MAX][KV_BLOCK];
    const struct kv_book *b = &shape->books[0];
    for (uint32_t g = 0; g < half / channels; g++) {
        for (uint32_t e = 0; e < channels; e++)
            if (!keys_of(shape, open, b->angles, g * channels + e, low[e], high[e]))
                return false;
        encode(nearest, shape, b->data, g, low, part);
        encode(nearest, shape, b->data, g + half / channels, high, part);
    }
    return true;
}

static bool seal_values(kmeans_nearest_fn *nearest, const struct attn_shape *shape, const uint16_t *open, uint8_t *part)
{
    const uint32_t channels = cq_channels(shape);
    float x[CHANNELS_MAX][KV_BLOCK];
    for (uint32_t g = 0; g < shape->head_dim / channels; g++) {
        for (uint32_t e = 0; e < channels; e++)
            if (!channel_of(shape, open, true, g * channels + e, x[e]))
                return false;
        encode(nearest, shape, shape->books[1].data, g, x, part);
    }
    return true;
}

bool kv_seal_cq_with(kmeans_nearest_fn *nearest, const struct attn_shape *shape, const void *k_open, const void *v_open,
                     void *k_part, void *v_part)
{
    const bool finite = seal_keys(nearest, shape, k_open, k_part) && seal_values(nearest, shape, v_open, v_part);
    if (!finite) {
        memset(k_part, 0, kv_part_bytes_cq(shape));
        memset(v_part, 0, kv_part_bytes_cq(shape));
    }
    return finite;
}

bool kv_seal_cq(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    return kv_seal_cq_with(kmeans_nearest, shape, k_open, v_open, k_part, v_part);
}

/* ---- expanding ---- */

static void expand_values(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const uint32_t channels = cq_channels(shape), d = shape->head_dim;
    const uint16_t *centroids = cq_centroids(shape, shape->books->data);
    for (uint32_t i = 0; i < d; i++) {
        const uint16_t *group = centroids + (size_t)(i / channels) * CQ_CENTROIDS * channels + i % channels;
        const uint8_t *code = part + (size_t)(i / channels) * KV_BLOCK;
        for (uint32_t j = 0; j < KV_BLOCK; j++)
            open[((size_t)(j / 2) * d + i) * 2 + j % 2] = group[(size_t)code[j] * channels];
    }
}

static void expand_keys(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const uint32_t channels = cq_channels(shape), half = shape->head_dim / 2;
    const size_t group_size = (size_t)CQ_CENTROIDS * channels;
    const uint16_t *centroids = cq_centroids(shape, shape->books->data);
    for (uint32_t i = 0; i < half; i++) {
        const uint16_t *low = centroids + i / channels * group_size + i % channels,
                       *high = low + half / channels * group_size;
        const uint8_t *low_code = part + (size_t)(i / channels) * KV_BLOCK,
                      *high_code = low_code + (size_t)half / channels * KV_BLOCK;
        float cosines[KV_BLOCK], sines[KV_BLOCK];
        angles_of(shape->books->angles, i, cosines, sines);
        for (uint32_t j = 0; j < KV_BLOCK; j++) {
            const float x = bf16_to_f32(low[(size_t)low_code[j] * channels]),
                        y = bf16_to_f32(high[(size_t)high_code[j] * channels]);
            const size_t to = ((size_t)(i / 2) * KV_BLOCK + j) * 2 + i % 2;
            open[to] = f32_to_bf16(x * cosines[j] - y * sines[j]);
            open[to + (size_t)half * KV_BLOCK] = f32_to_bf16(y * cosines[j] + x * sines[j]);
        }
    }
}

void kv_expand_cq(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out)
{
    (void)next_part;
    if (shape->books->values)
        expand_values(shape, part, open_out);
    else
        expand_keys(shape, part, open_out);
}
