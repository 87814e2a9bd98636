#ifndef LONGSPAN_KERNELS_CPU_KV_NOMAD_H
#define LONGSPAN_KERNELS_CPU_KV_NOMAD_H

/*
 * nomad: keys as four bits a channel, places in a list of 16 numbers that was learned for the channel; values are int8's. Generated rows score keys by looking
 * up, in tables that lie in vector registers, what each of a channel's 16 numbers gives with the query; rows of prompts, whose many queries would each need
 * tables of their own, attend what expanding gives, in bf16. Source: NoMAD-Attention (arXiv:2403.01273) with one channel a sub-quantizer; tables as FAISS's fast
 * scan makes them.
 *
 * A KV head's keys and values of a block are one run of bytes, D = head_dim, cut into two parts of 48 D + 64 that lie side by side:
 *   keys    u8 [D/4][2][16][4]: byte [g][h][j][e], low half position 32 h + j, high half position 32 h + 16 + j, of channel 4 g + e
 *   values  i8 [64/4][D][4], then scale f16 [64]: int8's part (kv.h)
 *
 * A book, of the keys of one KV head in one layer, f32: number [D][16], ascending; then bound [D][16], bound c half way between numbers c and c + 1, the last one
 * infinite. A key's code is how many bounds it is above. Keys are those that are stored, after RoPE; values have no book. The calibration's array is keys, bf16
 * [n_layers][n_kv_heads][D][16][1], in any order.
 *
 * Scores: table_i[c] = q_i number_i[c], q rounded to bf16; least_i = min_c table_i[c]; a = min(255 / the largest span, 65535 / the sum of spans), 1 if all spans are
 * 0; u_i[c] = floor((table_i[c] - least_i) a + 1/2), 0 .. 255. Then with sums of integers, in any order,
 *   s_t = (sum_i u_i[code_i(t)] + a sum_i least_i) / a
 * which is off by D / (2 a) at most from the products with the numbers.
 */

#include "kernels/cpu/kv.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { NOMAD_NUMBERS = 16 };

extern const struct kv_calibrated kv_calibrated_nomad;
/* A book of keys, from numbers [head_dim][16], finite, in any order. book_out: kv_calibrated_nomad.book_bytes, 64-byte aligned */
void kv_nomad_book_of(const float *numbers, uint32_t head_dim, float *book_out);

bool kv_accepts_nomad(const struct attn_shape *shape);
/* Half of keys and values. */
size_t kv_part_bytes_nomad(const struct attn_shape *shape);
/* The values, where the first part begins at k_part. */
static inline const uint8_t *kv_nomad_values(const struct attn_shape *shape, const void *k_part)
{
    return (const uint8_t *)k_part + (size_t)shape->head_dim * KV_BLOCK / 2;
}
/* As the int8 part that values are. */
static inline struct attn_shape kv_nomad_value_shape(const struct attn_shape *shape)
{
    struct attn_shape values = *shape;
    values.codec = KV_INT8;
    return values;
}
/* Of shape->books, those of keys. */
static inline const float *kv_nomad_book(const struct attn_shape *shape)
{
    return (const float *)shape->books[0].data;
}

/* v_part: kv_part_bytes_nomad behind k_part. */
bool kv_seal_nomad(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
/* Numbers, or codes times scales, rounded to bf16. Of values, what part is cut from begins a part before. */
void kv_expand_nomad(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);
void kv_expand_nomad_avx2(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);
void kv_expand_nomad_avx512(const struct attn_shape *shape, const void *part, const void *next_part, void *open_out);

/* A tile: 1 / a f32 [ATTN_ROWS], a sum of least f32 [ATTN_ROWS], then tables u8 [ATTN_ROWS][head_dim][16]. */
size_t kv_q_tile_bytes_nomad(const struct attn_shape *shape);
static inline const uint8_t *kv_nomad_tables(const void *q_tile)
{
    return (const uint8_t *)((const float *)q_tile + 2 * ATTN_ROWS);
}
/* pack_q: all variants write the same. */
void kv_pack_q_nomad(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void kv_pack_q_nomad_avx2(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
void kv_pack_q_nomad_avx512(const struct attn_shape *shape, const float *const *q, uint32_t n, void *q_tile);
/* What they are made of: u_i[c] = floor((x_i number_i[c] - least_i) a + 1/2), 255 at most, number as in a book. */
struct nomad_query {
    float x[MODEL_HEAD_DIM_MAX], least[MODEL_HEAD_DIM_MAX], a;
};
typedef void kv_nomad_tables_fn(const struct nomad_query *q, const float *number, uint32_t head_dim,
                                uint8_t *table_out);
void kv_pack_q_nomad_with(kv_nomad_tables_fn *tables, const struct attn_shape *shape, const float *const *q, uint32_t n,
                          void *q_tile);

/* `block` of struct attn_impl. */
typedef void kv_nomad_block_fn(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                               const void *k_part, const void *v_part, const void *next_k_part, float *partial_out);
kv_nomad_block_fn kv_block_nomad_c, kv_block_nomad_avx2, kv_block_nomad_amx;

#ifdef __cplusplus
}
#endif
#endif
