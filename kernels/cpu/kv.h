#ifndef LONGSPAN_KERNELS_CPU_KV_H
#define LONGSPAN_KERNELS_CPU_KV_H

/*
 * Coded blocks of KV: their layout, and what the codecs and the variants of attention over them share.
 *
 * A part is one KV head's keys, or values, in one layer: codes first, then planes of one f16 a position. A code is an integer c; it stands for
 * scale c (int8), or scale c + least (int4-rot). With D = head_dim:
 *   int8      keys   i8 [D/4][64 positions][4 channels]             then scale [64]
 *             values i8 [64/4][D channels][4 positions]             then scale [64]
 *   int4-rot  keys   u8 [D/8][64][4]: low half channel 4g + e, high half channel 4g + e + D/2;  then scale [64], least [64]
 *             values u8 [64/8][D][4]: low half position 4g + e, high half position 4g + e + 32; then scale [64], least [64]
 * So a part of int8 codes is the B operand of AMX's byte products as it lies, and one of int4 codes becomes two after a mask and a shift.
 *
 * Attention over them is in integers, so that the order of sums does not matter and all variants agree but for the exponential: the query (rounded
 * to bf16, rotated if the codec rotates) becomes 16-bit integers q of one scale, the weights p scale_t become 15-bit integers of one scale:
 *   s_t = q_scale (scale_t (sum_i q_i c_ti) + least_t (sum_i q_i));  o_i = w_scale (sum_t w_t c_ti) + sum_t p_t least_t
 * The error of these integers is 2^-16 of the largest, below that of bf16 weights.
 */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KV_Q_MAX = 127 * 256, /* |q|: two signed bytes, q = 256 high + low, both in -128 .. 127 */
    KV_W_MAX = 32767,     /* w: 256 high + low, high 0 .. 127, low 0 .. 255 */
};

/* Channels that rotate together: the largest power of two in head_dim. */
static inline uint32_t kv_rotation_order(uint32_t head_dim)
{
    return head_dim & (0u - head_dim);
}

static inline size_t kv_code_bytes(const struct attn_shape *shape)
{
    return (size_t)KV_BLOCK * shape->head_dim / (shape->codec == KV_INT8 ? 1 : 2);
}

/* The planes behind a part's codes. */
static inline const uint16_t *kv_scales(const struct attn_shape *shape, const void *part)
{
    return (const uint16_t *)(const void *)((const uint8_t *)part + kv_code_bytes(shape));
}
static inline const uint16_t *kv_leasts(const struct attn_shape *shape, const void *part)
{
    return kv_scales(shape, part) + KV_BLOCK;
}

/* Nearest even, for |x| < 2^22: rounds to integers by addition, so that loops vectorise. */
static inline float kv_round(float x)
{
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

/* Nearest even; beyond f16's range its largest number. Not for NaN. */
uint16_t kv_f16_of(float x);

/* x [n] times the normalised Hadamard matrix, blocks of `order` channels (a power of two) each by itself. Steps from the nearest pairs to the farthest. */
void kv_rotate(float *x, uint32_t n, uint32_t order);

/* What codes 0 .. top of numbers from low to high stand for: scale code + least. */
void kv_affine_of(float low, float high, uint32_t top, uint16_t *scale_out, uint16_t *least_out);
/*
 * x [n], n <= 256, to codes 0 .. top: x = scale code + least, scale and least f16; codes follow from these as they are stored. -> false: not finite, all
 * are 0
 */
bool kv_quantize_affine(const float *x, uint32_t n, uint32_t top, uint8_t *code_out, uint16_t *scale_out,
                        uint16_t *least_out);

/* Keys, or values, of an open bf16 part: all channels of one position. */
static inline float kv_open_key(const uint16_t *k, uint32_t position, uint32_t channel)
{
    return bf16_to_f32(k[((size_t)(channel / 2) * KV_BLOCK + position) * 2 + channel % 2]);
}
static inline float kv_open_value(const uint16_t *v, uint32_t head_dim, uint32_t position, uint32_t channel)
{
    return bf16_to_f32(v[((size_t)(position / 2) * head_dim + channel) * 2 + position % 2]);
}

/* The codecs, one file each (kv_int8.c, kv_int4_rot.c): struct attn_impl says what these are. */
bool kv_accepts_int8(const struct attn_shape *shape);
bool kv_seal_int8(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
/* Its values alone. */
bool kv_seal_int8_values(const struct attn_shape *shape, const void *v_open, void *v_part);
bool kv_accepts_int4_rot(const struct attn_shape *shape);
bool kv_seal_int4_rot(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                      void *v_part);

/* What they share (kv_attn_c.c). */
bool kv_accepts_c(const struct attn_shape *shape);
size_t kv_part_bytes(const struct attn_shape *shape);
void kv_rotate_partial(const struct attn_shape *shape, uint32_t n, float *partial);

/* A tile of the C, AVX2 and AVX-512 variants: q_scale f32 [ATTN_ROWS], sum of q f32 [ATTN_ROWS], q i16 [ATTN_ROWS][head_dim]. */
size_t kv_q_tile_bytes(const struct attn_shape *shape);
void kv_pack_q(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
static inline const int16_t *kv_tile_q(const void *q_tile)
{
    return (const int16_t *)(const void *)((const float *)q_tile + 2 * ATTN_ROWS);
}
/* One query to integers: rounds to bf16, rotates if the codec does. q_out [head_dim], |q| <= KV_Q_MAX; -> its scale: 0 for zeros, NaN if not finite. */
float kv_quantize_q(const struct attn_shape *shape, const float *q, int16_t *q_out, float *sum_out);
/* Weights p [KV_BLOCK] times scale [KV_BLOCK] (f16) to integers w 0 .. KV_W_MAX; -> w_scale */
float kv_quantize_w(const float *p, const uint16_t *scale, int16_t *w_out);

/* o [head_dim] of one vector with weights p, masked ones 0 */
void kv_outputs_c(const struct attn_shape *shape, const float p[KV_BLOCK], const void *v_part, float *o);
void kv_block_c(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);

#ifdef __cplusplus
}
#endif
#endif
