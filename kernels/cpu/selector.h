#ifndef LONGSPAN_KERNELS_CPU_SELECTOR_H
#define LONGSPAN_KERNELS_CPU_SELECTOR_H

/* The functions behind the rows of selector_impls (kernels/selector.c), as struct selector_impl documents them. */

#include "kernels/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SELECTOR_HEAD_DIM_MAX = 256 };

/* Channel d of the key at a position of an open block. */
static inline float selector_key(enum kv_codec open, const void *k_part, uint32_t position, uint32_t d)
{
    if (open == KV_F32)
        return ((const float *)k_part)[(size_t)d * KV_BLOCK + position];
    return bf16_to_f32(((const uint16_t *)k_part)[((size_t)(d / 2) * KV_BLOCK + position) * 2 + d % 2]);
}

/* Channel d of the value at a position of an open block. */
static inline float selector_value(enum kv_codec open, const void *v_part, uint32_t head_dim, uint32_t position,
                                   uint32_t d)
{
    if (open == KV_F32)
        return ((const float *)v_part)[(size_t)position * head_dim + d];
    return bf16_to_f32(((const uint16_t *)v_part)[((size_t)(position / 2) * head_dim + d) * 2 + position % 2]);
}

/*
 * [n_kv_heads][lowest, highest][head_dim] bf16, or f32: exact, they are keys. A score bounds q.k over the block: the sum over channels of max(q lo, q hi),
 * channel d added to lane d mod 16, lanes joined by halves.
 */
size_t selector_quest_bytes(const struct selector_shape *shape);
void selector_quest_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out);
bool selector_quest_valid(const struct selector_shape *shape, const void *sketch);
void selector_quest_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                            const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_quest_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                               const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_quest_score_avx512(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                 const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);

/*
 * double-sparsity. A KV head: channels u8 [n] ascending, padded with the last to a multiple of 4; codes u8 [n][KV_BLOCK / 2], position p in the low half of
 * byte p, p + 32 in its high half; scale f16 [KV_BLOCK], least f16 [KV_BLOCK]: a key's n channels are affine integers of 4 bits together. n =
 * selector_labels(head_dim). The channels are those that calibration says, or of the block's keys those of the greatest mean magnitude (ties to the lower).
 * The score of a position: scale (sum_i q_i code_i) + least (sum_i q_i), i ascending. Selection's own accuracy: attention reads whole keys.
 */
size_t selector_labels_bytes(const struct selector_shape *shape);
void selector_labels_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out);
bool selector_labels_valid(const struct selector_shape *shape, const void *sketch);
void selector_labels_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                             const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_labels_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_labels_score_avx512(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                  const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);

/*
 * socket. A KV head: codes u8 [SOCKET_TABLES][KV_BLOCK], then ||v|| f16 [KV_BLOCK]. Plane p of table l is W[l][p], drawn once for all heads, layers and
 * workers; bit 7 - p of a code says <W, k> >= 0, channels ascending.
 * A query: h = tanh(<W, q>) / sqrt(D); prob_l[r] = product over planes, the last four, the first four, and both, of sigmoid(+-2 h / tau): softmax over the 2^8 corners. The tables are
 * 16-bit integers, prob SOCKET_TOP / most + 1/2 cut off, most being what tanh = 1 in all planes gives: as fine as the reference's f16, and their sums have
 * no order, so that all variants have the same bits. The score of a position: ||v|| times its sum over the tables.
 * W[n][d], n = 8 l + p: the sum of the twelve 16-bit parts of rng_at(SOCKET_SEED, n, 3 d .. 3 d + 2), less 6 65535, by 65536: unit variance, exact in f32.
 */
enum { SOCKET_TABLES = 60, SOCKET_PLANES = 8, SOCKET_TOP = 65535, SOCKET_HASHES = SOCKET_TABLES * SOCKET_PLANES };
#define SOCKET_TAU  0.4f
#define SOCKET_SEED 0x534F434B4554ull
/* [SELECTOR_HEAD_DIM_MAX][SOCKET_HASHES]: W by channel; place 8 l + b is plane 7 - b, so that signs of eight places are a code. Any thread. */
const float *selector_socket_planes(void);
size_t selector_socket_bytes(const struct selector_shape *shape);
bool selector_socket_valid(const struct selector_shape *shape, const void *sketch);
void selector_socket_sketch_c(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out);
void selector_socket_score_c(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                             const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_socket_sketch_avx2(const struct selector_shape *shape, const struct selector_block *block,
                                 void *sketch_out);
void selector_socket_score_avx2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
void selector_socket_sketch_vbmi2(const struct selector_shape *shape, const struct selector_block *block,
                                  void *sketch_out);
void selector_socket_score_vbmi2(const struct selector_shape *shape, uint32_t head_begin, uint32_t head_end,
                                 const float *const *q, const void *const *sketches, uint32_t n, float *scores_out);
/* The tables of one query (of the C variant): tables_out [SOCKET_TABLES][256]. */
void selector_socket_tables(const struct selector_shape *shape, const float *q, uint16_t *tables_out);

/*
 * [query half, key half][r] f32, r = min(SELECTOR_WALK_DIM, n), n = head_dim rounded up to a power of two. A half is the block's mean vector (of positions'
 * means over heads, positions ascending), signs flipped, through the Walsh-Hadamard transform, r coordinates of it divided by sqrt(r): <query, key>
 * is an unbiased estimate of the means' product, exact for r = n.
 * Signs and coordinates are drawn once for all heads, layers and workers: sign i is the top bit of rng_at(SELECTOR_WALK_SEED, 0, i); coordinates are the first
 * r of 0 .. n-1 shuffled (place i takes what place i + rng_at(SELECTOR_WALK_SEED, 1, i) mod (n - i) has), ascending.
 */
#define SELECTOR_WALK_SEED 0x534B4554434836ull
size_t selector_walk_bytes(const struct selector_shape *shape);
void selector_walk_sketch(const struct selector_shape *shape, const struct selector_block *block, void *sketch_out);
bool selector_walk_valid(const struct selector_shape *shape, const void *sketch);
void selector_walk_logits_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                            float *logits_out);
void selector_walk_weights_c(const struct selector_shape *shape, const void *const *sketches, uint32_t block,
                             float *logits, uint16_t *w_out);
/* x [n], n a power of two: (u, v) -> (u + v, u - v) at distances 1, 2, 4, .. */
void selector_fwht(float *x, uint32_t n);
/* signs_out [n] 1 or -1, coordinates_out [r] */
void selector_walk_draw(uint32_t n, uint32_t r, float *signs_out, uint32_t *coordinates_out);

#ifdef __cplusplus
}
#endif
#endif
