#include "kernels/cpu/attn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/exp.h"

bool attn_accepts_c(const struct attn_shape *shape)
{
    return shape->codec <= KV_F32 && shape->head_dim >= 2 && shape->head_dim <= ATTN_HEAD_DIM_MAX &&
           shape->head_dim % 2 == 0 && shape->scale > 0 && isfinite(shape->scale);
}

size_t attn_part_bytes(const struct attn_shape *shape)
{
    return (size_t)KV_BLOCK * shape->head_dim * (shape->codec == KV_BF16 ? 2 : 4);
}

void attn_store(const struct attn_shape *shape, uint32_t offset, const float *k, const float *v, void *k_part,
                void *v_part)
{
    const uint32_t d = shape->head_dim;
    assert(offset < KV_BLOCK);
    if (shape->codec == KV_F32) {
        float *kf = (float *)k_part + offset;
        for (uint32_t i = 0; i < d; i++)
            kf[(size_t)i * KV_BLOCK] = k[i];
        memcpy((float *)v_part + (size_t)offset * d, v, d * sizeof *v);
        return;
    }
    uint16_t *kh = (uint16_t *)k_part + (size_t)offset * 2;
    for (uint32_t i = 0; i < d; i += 2) {
        kh[(size_t)i * KV_BLOCK] = f32_to_bf16(k[i]);
        kh[(size_t)i * KV_BLOCK + 1] = f32_to_bf16(k[i + 1]);
    }
    uint16_t *vh = (uint16_t *)v_part + (size_t)(offset / 2) * d * 2 + offset % 2;
    for (uint32_t i = 0; i < d; i++)
        vh[(size_t)i * 2] = f32_to_bf16(v[i]);
}

size_t attn_q_tile_bytes_f32(const struct attn_shape *shape)
{
    return ATTN_ROWS * (size_t)shape->head_dim * sizeof(float);
}

void attn_pack_q_f32(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile)
{
    const uint32_t d = shape->head_dim;
    float *out = q_tile;
    assert(n <= ATTN_ROWS);
    for (uint32_t i = 0; i < n; i++, out += d)
        for (uint32_t j = 0; j < d; j++)
            out[j] = shape->codec == KV_BF16 ? bf16_to_f32(f32_to_bf16(q[i][j])) : q[i][j];
    memset(out, 0, (size_t)(ATTN_ROWS - n) * d * sizeof *out);
}

/* s[position] = q.k, channels ascending */
static void scores(const struct attn_shape *shape, const float *q, const void *k_part, float s[KV_BLOCK])
{
    for (int i = 0; i < KV_BLOCK; i++)
        s[i] = 0.0f;
    if (shape->codec == KV_F32) {
        const float *k = k_part;
        for (uint32_t d = 0; d < shape->head_dim; d++, k += KV_BLOCK)
            for (int i = 0; i < KV_BLOCK; i++)
                s[i] += q[d] * k[i];
        return;
    }
    const uint16_t *k = k_part;
    for (uint32_t d = 0; d < shape->head_dim; d += 2, k += 2 * KV_BLOCK)
        for (int i = 0; i < KV_BLOCK; i++)
            s[i] = (s[i] + q[d] * bf16_to_f32(k[2 * i])) + q[d + 1] * bf16_to_f32(k[2 * i + 1]);
}

/* o[channel] = p.v, positions ascending, all of them: masked p are +0.0 */
static void outputs(const struct attn_shape *shape, const float p[KV_BLOCK], const void *v_part, float *restrict o)
{
    const uint32_t n = shape->head_dim;
    for (uint32_t d = 0; d < n; d++)
        o[d] = 0.0f;
    if (shape->codec == KV_F32) {
        const float *v = v_part;
        for (int i = 0; i < KV_BLOCK; i++, v += n)
            for (uint32_t d = 0; d < n; d++)
                o[d] += p[i] * v[d];
        return;
    }
    const uint16_t *v = v_part;
    for (int i = 0; i < KV_BLOCK; i += 2, v += 2 * (size_t)n)
        for (uint32_t d = 0; d < n; d++)
            o[d] = (o[d] + p[i] * bf16_to_f32(v[2 * d])) + p[i + 1] * bf16_to_f32(v[2 * d + 1]);
}

void attn_block_c(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                  const void *k_part, const void *v_part, const void *next_k_part, float *partial_out)
{
    const float *q = q_tile;
    float *o = partial_o(partial_out);
    (void)next_k_part;
    assert(n <= ATTN_ROWS);
    for (uint32_t r = 0; r < n; r++, q += shape->head_dim, o += shape->head_dim) {
        float s[KV_BLOCK], m = -INFINITY, l = 0.0f;
        assert(visible[r] <= KV_BLOCK);
        scores(shape, q, k_part, s);
        for (int i = 0; i < KV_BLOCK; i++)
            s[i] *= shape->scale;
        for (int i = 0; i < visible[r]; i++)
            m = s[i] > m ? s[i] : m;
        for (int i = 0; i < visible[r]; i++)
            s[i] = exp_f32(s[i] - m);
        for (int i = visible[r]; i < KV_BLOCK; i++)
            s[i] = 0.0f;
        for (int i = 0; i < KV_BLOCK; i++)
            l += s[i];
        if (shape->codec == KV_BF16)
            for (int i = 0; i < KV_BLOCK; i++)
                s[i] = bf16_to_f32(f32_to_bf16(s[i]));
        outputs(shape, s, v_part, o);
        partial_out[r] = m;
        partial_l(partial_out)[r] = l;
    }
}

void attn_merge_c(const struct attn_shape *shape, uint32_t n, float *a, const float *b)
{
    const uint32_t d = shape->head_dim;
    float *la = partial_l(a), *oa = partial_o(a);
    const float *lb = b + ATTN_ROWS, *ob = b + 2 * ATTN_ROWS;
    for (uint32_t r = 0; r < n; r++, oa += d, ob += d) {
        if (lb[r] == 0)
            continue;
        if (la[r] == 0) {
            a[r] = b[r];
            la[r] = lb[r];
            memcpy(oa, ob, d * sizeof *oa);
            continue;
        }
        const float m = a[r] > b[r] ? a[r] : b[r];
        const float wa = exp_f32(a[r] - m), wb = exp_f32(b[r] - m);
        a[r] = m;
        la[r] = la[r] * wa + lb[r] * wb;
        for (uint32_t i = 0; i < d; i++)
            oa[i] = oa[i] * wa + ob[i] * wb;
    }
}
