#include "kernels/cpu/kv_nomad.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/attn.h"
#include "kernels/cpu/exp.h"
#include "kernels/cpu/kv_centroids.h"

bool kv_accepts_nomad(const struct attn_shape *shape)
{
    return shape->codec == KV_NOMAD && shape->head_dim >= 16 && shape->head_dim % 16 == 0 &&
           shape->head_dim <= ATTN_HEAD_DIM_MAX && shape->scale > 0 && isfinite(shape->scale);
}

size_t kv_part_bytes_nomad(const struct attn_shape *shape)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    return ((size_t)shape->head_dim * KV_BLOCK / 2 + kv_part_bytes(&values)) / 2;
}

/* ---- calibration ---- */

static enum status check(const struct attn_shape *shape, uint32_t n_layers, uint32_t n_kv_heads,
                         const struct calibration *c, struct error *err)
{
    const uint32_t dims[5] = { n_layers, n_kv_heads, shape->head_dim, NOMAD_NUMBERS, 1 };
    return kv_centroids_check(shape, c, "keys", dims, err);
}

static size_t book_bytes(const struct attn_shape *shape)
{
    return (size_t)shape->head_dim * 2 * NOMAD_NUMBERS * sizeof(float);
}

static void sort(float x[NOMAD_NUMBERS])
{
    for (int i = 1; i < NOMAD_NUMBERS; i++)
        for (int j = i; j && x[j] < x[j - 1]; j--) {
            const float swap = x[j];
            x[j] = x[j - 1];
            x[j - 1] = swap;
        }
}

void kv_nomad_book_of(const float *numbers, uint32_t head_dim, float *book_out)
{
    const size_t n = (size_t)head_dim * NOMAD_NUMBERS;
    float *bound = book_out + n;
    memcpy(book_out, numbers, n * sizeof *numbers);
    for (float *x = book_out; x < book_out + n; x += NOMAD_NUMBERS, bound += NOMAD_NUMBERS) {
        sort(x);
        for (int i = 0; i < NOMAD_NUMBERS - 1; i++)
            bound[i] = 0.5f * x[i] + 0.5f * x[i + 1];
        bound[NOMAD_NUMBERS - 1] = INFINITY;
    }
}

static void book(const struct attn_shape *shape, const struct calibration *c, uint32_t layer, uint32_t kv_head,
                 bool values, void *book_out)
{
    float numbers[ATTN_HEAD_DIM_MAX * NOMAD_NUMBERS];
    memset(book_out, 0, book_bytes(shape));
    if (values)
        return;
    const uint16_t *from = kv_centroids_of(c, "keys", layer, kv_head);
    for (uint32_t i = 0; i < shape->head_dim * NOMAD_NUMBERS; i++)
        numbers[i] = bf16_to_f32(from[i]);
    kv_nomad_book_of(numbers, shape->head_dim, book_out);
}

const struct kv_calibrated kv_calibrated_nomad = { check, book_bytes, book };

/* ---- sealing and expanding ---- */

/* Codes of a pair of channels at KV_BLOCK positions, as an open part has them. -> false: one is not finite */
static bool pair_codes(const float *bound, const uint16_t *open, uint8_t code_out[2 * KV_BLOCK])
{
    float x[2 * KV_BLOCK];
    int32_t code[2 * KV_BLOCK] = { 0 };
    int16_t most = 0; /* magnitudes of bf16 are ordered as their bits are */
    for (int i = 0; i < 2 * KV_BLOCK; i++) {
        const int16_t size = (int16_t)(open[i] & 0x7FFF);
        most = size > most ? size : most;
    }
    for (int i = 0; i < 2 * KV_BLOCK; i++)
        x[i] = bf16_to_f32(open[i]);
    for (int c = 0; c < NOMAD_NUMBERS - 1; c++) {
        const float even = bound[c], odd = bound[NOMAD_NUMBERS + c];
        for (int i = 0; i < 2 * KV_BLOCK; i += 2) {
            code[i] += x[i] > even;
            code[i + 1] += x[i + 1] > odd;
        }
    }
    for (int i = 0; i < 2 * KV_BLOCK; i++)
        code_out[i] = (uint8_t)code[i];
    return most < 0x7F80;
}

bool kv_seal_nomad(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const float *bound = kv_nomad_book(shape) + (size_t)shape->head_dim * NOMAD_NUMBERS;
    const uint16_t *open = k_open;
    uint8_t *part = k_part;
    bool finite = true;
    assert((uint8_t *)v_part == part + kv_part_bytes_nomad(shape));
    (void)v_part;
    for (uint32_t pair = 0; pair < shape->head_dim / 2; pair++, open += 2 * KV_BLOCK) {
        uint8_t code[2 * KV_BLOCK], *to = part + (size_t)(pair / 2) * 2 * KV_BLOCK + pair % 2 * 2;
        finite = pair_codes(bound + (size_t)pair * 2 * NOMAD_NUMBERS, open, code) && finite;
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 16; j++)
                for (int e = 0; e < 2; e++)
                    to[(h * 16 + j) * 4 + e] =
                        (uint8_t)(code[2 * (32 * h + j) + e] | code[2 * (32 * h + 16 + j) + e] << 4);
    }
    return kv_seal_int8_values(&values, v_open, part + (size_t)shape->head_dim * KV_BLOCK / 2) && finite;
}

static uint32_t code_at(const uint8_t *part, uint32_t position, uint32_t channel)
{
    const uint32_t h = position / 32, j = position % 16, high = position / 16 % 2;
    return part[(((size_t)(channel / 4) * 2 + h) * 16 + j) * 4 + channel % 4] >> (4 * high) & 15;
}

static void expand_keys(const struct attn_shape *shape, const uint8_t *part, uint16_t *open)
{
    const float *number = kv_nomad_book(shape);
    for (uint32_t c = 0; c < shape->head_dim; c++)
        for (uint32_t t = 0; t < KV_BLOCK; t++)
            open[((size_t)(c / 2) * KV_BLOCK + t) * 2 + c % 2] =
                f32_to_bf16(number[(size_t)c * NOMAD_NUMBERS + code_at(part, t, c)]);
}

static void expand_values(const struct attn_shape *shape, const uint8_t *k_part, uint16_t *open)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    const int8_t *v = (const int8_t *)kv_nomad_values(shape, k_part);
    const uint16_t *scale = kv_scales(&values, v);
    for (uint32_t t = 0; t < KV_BLOCK; t++)
        for (uint32_t c = 0; c < d; c++)
            open[((size_t)(t / 2) * d + c) * 2 + t % 2] =
                f32_to_bf16((float)v[((size_t)(t / 4) * d + c) * 4 + t % 4] * f16_to_f32(scale[t]));
}

void kv_expand_nomad(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out)
{
    (void)next_part;
    if (shape->books->values)
        expand_values(shape, (const uint8_t *)part - kv_part_bytes_nomad(shape), open_out);
    else
        expand_keys(shape, part, open_out);
}

/* ---- attention by tables ---- */

size_t kv_q_tile_bytes_nomad(const struct attn_shape *shape)
{
    return ATTN_ROWS * (2 * sizeof(float) + (size_t)shape->head_dim * NOMAD_NUMBERS);
}

static void tables_c(const struct nomad_query *q, const float *number, uint32_t d, uint8_t *table_out)
{
    for (uint32_t i = 0; i < d; i++)
        for (int c = 0; c < NOMAD_NUMBERS; c++) {
            const float u = (q->x[i] * number[(size_t)i * NOMAD_NUMBERS + c] - q->least[i]) * q->a + 0.5f;
            table_out[(size_t)i * NOMAD_NUMBERS + c] = (uint8_t)(int)(u < 255.0f ? u : 255.0f);
        }
}

/* What is not finite makes unit NaN. -> false: tables of zeros */
static bool prepare(const struct attn_shape *shape, const float *q, struct nomad_query *out, float *unit_out,
                    float *base_out)
{
    const float *number = kv_nomad_book(shape);
    float sum = 0.0f, widest = 0.0f, spans = 0.0f;
    for (uint32_t i = 0; i < shape->head_dim;
         i++, number += NOMAD_NUMBERS) { /* they ascend, so products do or descend */
        const float x = bf16_to_f32(f32_to_bf16(q[i])), least = x * number[x < 0 ? NOMAD_NUMBERS - 1 : 0],
                    span = x * number[x < 0 ? 0 : NOMAD_NUMBERS - 1] - least;
        out->x[i] = x;
        out->least[i] = least;
        sum += least;
        spans += span;
        widest = span > widest ? span : widest;
    }
    if (!isfinite(sum) || !isfinite(spans)) {
        *unit_out = NAN;
        *base_out = 0.0f;
        return false;
    }
    const float by_widest = 255.0f / widest, by_sum = 65535.0f / spans, a = by_sum < by_widest ? by_sum : by_widest;
    const bool flat = !isfinite(a) || !isfinite(a * sum); /* or so small that it might as well be */
    *unit_out = flat ? 1.0f : 1.0f / a;
    *base_out = flat ? sum : a * sum;
    out->a = a;
    return !flat;
}

void kv_pack_q_nomad_with(kv_nomad_tables_fn *tables, const struct attn_shape *shape, const float *const *q, uint32_t n,
                          void *q_tile)
{
    const size_t bytes = (size_t)shape->head_dim * NOMAD_NUMBERS;
    float *unit = q_tile, *base = unit + ATTN_ROWS;
    uint8_t *table = (uint8_t *)(base + ATTN_ROWS);
    struct nomad_query query;
    assert(n <= ATTN_ROWS);
    memset(q_tile, 0, 2 * ATTN_ROWS * sizeof(float));
    for (uint32_t i = 0; i < n; i++, table += bytes)
        if (prepare(shape, q[i], &query, &unit[i], &base[i]))
            tables(&query, kv_nomad_book(shape), shape->head_dim, table);
        else
            memset(table, 0, bytes);
    memset(table, 0, (ATTN_ROWS - n) * bytes);
}

void kv_pack_q_nomad(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    kv_pack_q_nomad_with(tables_c, shape, q, n, q_tile);
}

void kv_block_nomad_c(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                      const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    const struct attn_shape values = kv_nomad_value_shape(shape);
    const uint32_t d = shape->head_dim;
    const float *unit = q_tile, *base = unit + ATTN_ROWS;
    (void)v_part;
    (void)next_k_part;
    assert(n <= ATTN_ROWS);
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *table = kv_nomad_tables(q_tile) + (size_t)r * d * NOMAD_NUMBERS;
        float s[KV_BLOCK], m = -INFINITY, l = 0.0f;
        for (uint32_t t = 0; t < KV_BLOCK; t++) {
            uint32_t sum = 0;
            for (uint32_t i = 0; i < d; i++)
                sum += table[(size_t)i * NOMAD_NUMBERS + code_at(k_part, t, i)];
            s[t] = ((float)sum + base[r]) * (unit[r] * shape->scale);
        }
        for (int t = 0; t < visible[r]; t++)
            m = s[t] > m ? s[t] : m;
        for (int t = 0; t < KV_BLOCK; t++) {
            s[t] = t < visible[r] ? exp_f32(s[t] - m) : 0.0f;
            l += s[t];
        }
        kv_outputs_c(&values, s, kv_nomad_values(shape, k_part), partial_o(partial_out) + (size_t)r * d);
        partial_out[r] = m;
        partial_l(partial_out)[r] = l;
    }
}
