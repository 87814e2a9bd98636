#ifndef LONGSPAN_KERNELS_CPU_KV_NOMAD_H
#define LONGSPAN_KERNELS_CPU_KV_NOMAD_H

/*
 * nomad: keys as four bits a channel, places in a list of 16 numbers that was learned for the channel; scores by looking up, in tables that lie in vector registers,
 * what each of a channel's 16 numbers gives with the query. Values are int8's. Source: NoMAD-Attention (arXiv:2403.01273) with one channel a sub-quantizer; tables as
 * FAISS's fast scan makes them.
 *
 * A KV head's keys and values of a block are one run of bytes, D = head_dim:
 *   keys    u8 [D/4][2][16][4]: byte [g][h][j][e], low half position 32 h + j, high half position 32 h + 16 + j, of channel 4 g + e
 *   values  i8 [64/4][D][4], then scale f16 [64]: int8's part (kv.h)
 *
 * A book, of the keys of one KV head in one layer, f32: number [D][16], ascending; then bound [D][16], bound c half way between numbers c and c + 1, the last one
 * infinite. A key's code is how many bounds it is above.
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

bool kv_accepts_nomad(const struct attn_shape *shape);
/* Of keys and values together. */
size_t kv_nomad_bytes(const struct attn_shape *shape);
/* The values in a block's bytes. */
static inline const uint8_t *kv_nomad_values(const struct attn_shape *shape, const uint8_t *part)
{
    return part + (size_t)shape->head_dim * KV_BLOCK / 2;
}
/* As the int8 part that values are. */
static inline struct attn_shape kv_nomad_value_shape(const struct attn_shape *shape)
{
    struct attn_shape values = *shape;
    values.codec = KV_INT8;
    return values;
}

static inline size_t kv_nomad_book_floats(uint32_t head_dim)
{
    return (size_t)head_dim * 2 * NOMAD_NUMBERS;
}
/* numbers [head_dim][16], finite, in any order. book_out: kv_nomad_book_floats, 64-byte aligned */
void kv_nomad_book(const float *numbers, uint32_t head_dim, float *book_out);

/* Of a full open block; every byte of part_out. false: not finite, nothing may be read of it. */
bool kv_nomad_seal(const struct attn_shape *shape, const float *book, const void *k_open, const void *v_open,
                   void *part_out);
/* Keys and values as open bf16 parts: numbers, and codes times scales, rounded to bf16. Rows of prompts attend over these. */
void kv_nomad_expand(const struct attn_shape *shape, const float *book, const void *part, void *k_open, void *v_open);

/* A tile: 1 / a f32 [ATTN_ROWS], a sum of least f32 [ATTN_ROWS], then tables u8 [ATTN_ROWS][head_dim][16]. */
size_t kv_nomad_tile_bytes(const struct attn_shape *shape);
static inline const uint8_t *kv_nomad_tables(const void *q_tile)
{
    return (const uint8_t *)((const float *)q_tile + 2 * ATTN_ROWS);
}
void kv_nomad_pack_q(const struct attn_shape *shape, const float *book, const float *const *q, uint32_t n,
                     void *q_tile);

/* As `block` of struct attn_impl. next_part: the block that is read next, or NULL. */
typedef void kv_nomad_block_fn(const struct attn_shape *shape, const void *q_tile, uint32_t n, const uint8_t *visible,
                               const void *part, const void *next_part, float *partial_out);
kv_nomad_block_fn kv_nomad_block_c, kv_nomad_block_avx2, kv_nomad_block_amx;

/* Variants by name, best first, `c` last. */
struct kv_nomad_impl {
    const char *name;
    uint32_t needs;
    kv_nomad_block_fn *block;
    void (*merge)(const struct attn_shape *shape, uint32_t n, float *a, const float *b);
    float rtol; /* as in struct attn_impl */
};
extern const struct kv_nomad_impl kv_nomad_impls[];
extern const uint32_t n_kv_nomad_impls;

#ifdef __cplusplus
}
#endif
#endif
