#ifndef LONGSPAN_KERNELS_CPU_KV_EXPAND_H
#define LONGSPAN_KERNELS_CPU_KV_EXPAND_H

/*
 * Codecs whose blocks become open bf16 parts in the nearest cache and are attended there (struct attn_impl: expand). What expanding writes is the same
 * in every variant, bit for bit: products and sums in f32, each rounded once, then bf16. In the order of an open part's elements, D = head_dim:
 *   fp8          u8 [64 D]: E4M3, then the power of two they are of, f32, in 64 bytes
 *   kivi4/kivi2  runs of 64 elements, that is 32 pairs: u8 [D][32] low half element j, high half j + 32; or u8 [D][16] bits 2p and 2p + 1 element
 *                j + 16p; then scale f16 [D][2], least f16 [D][2], of a run's even and odd elements: x = scale c + least
 *   bf16-lossless  u8 [64 D]: sign << 7 | mantissa; then the exponent's class in runs of 64 elements, u8 [D][32], low half element j, high half j + 32; then
 *                u8 [16]: class c's exponent, 0 .. 14, and a zero; then escapes: the exponents of the elements of class 15, one byte each in the order of
 *                elements, zeros behind. A part with more of them than there is room for is spilled (kernels/kv_spill.h): the first 96 D bytes of the open part, zeros
 *                but for a 1 instead of the zero behind the exponents, and 32 D bytes elsewhere
 * The pairs of a run are 32 positions of two channels in keys, 32 channels of two positions in values.
 */

#include "kernels/cpu/kv.h"
#include "kernels/kv_spill.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KIVI_GROUP = 32, KIVI_RUN = 2 * KIVI_GROUP };

static inline uint32_t kivi_bits(const struct attn_shape *shape)
{
    return shape->codec == KV_KIVI4 ? 4 : 2;
}

/* Where a part's planes begin, in bytes. */
struct kivi_planes {
    size_t scale, least;
};
static inline struct kivi_planes kivi_planes(const struct attn_shape *shape)
{
    const size_t codes = (size_t)shape->head_dim * KIVI_RUN * kivi_bits(shape) / 8;
    return (struct kivi_planes){ codes, codes + (size_t)shape->head_dim * 2 * sizeof(uint16_t) };
}

bool kv_accepts_kivi(const struct attn_shape *shape);
size_t kv_part_bytes_kivi(const struct attn_shape *shape);
bool kv_seal_kivi(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
void kv_expand_kivi(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out);
void kv_expand_kivi_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out);
void kv_expand_kivi_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                           void *open_out);

enum { LOSSLESS_RUN = 64, LOSSLESS_ESCAPE = 15, LOSSLESS_TABLE = 16 };

/* Where a part's classes, table and escapes begin, in bytes, and how many escapes it has room for: a 32nd of its elements, less the table. */
struct kv_lossless_planes {
    size_t classes, table, escapes;
    uint32_t room;
};
static inline struct kv_lossless_planes kv_lossless_planes(const struct attn_shape *shape)
{
    const size_t n = (size_t)KV_BLOCK * shape->head_dim, table = n + n / 2, escapes = table + LOSSLESS_TABLE,
                 end = (table + n / 32 + 63) / 64 * 64;
    return (struct kv_lossless_planes){ n, table, escapes, (uint32_t)(end - escapes) };
}

bool kv_accepts_lossless(const struct attn_shape *shape);
size_t kv_part_bytes_lossless(const struct attn_shape *shape);
struct kv_spill kv_spill_lossless(const struct attn_shape *shape);
/* Every bf16 is itself again, whatever it stands for. Never false: a part is spilled if more elements than there is room for have none of its 15 exponents. */
bool kv_seal_lossless(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part,
                      void *v_part);
void kv_expand_lossless(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out);
void kv_expand_lossless_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                             void *open_out);
void kv_expand_lossless_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                               void *open_out);

bool kv_accepts_fp8(const struct attn_shape *shape);
size_t kv_part_bytes_fp8(const struct attn_shape *shape);
bool kv_seal_fp8(const struct attn_shape *shape, const void *k_open, const void *v_open, void *k_part, void *v_part);
void kv_expand_fp8(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out);
void kv_expand_fp8_avx2(const struct attn_shape *shape, const void *part_bytes, const void *next_part, void *open_out);
void kv_expand_fp8_avx512(const struct attn_shape *shape, const void *part_bytes, const void *next_part,
                          void *open_out);
/* E4M3 of x, nearest even, beyond 448 its largest number; not for NaN. And back. */
uint8_t kv_e4m3_of(float x);
float kv_e4m3_to_f32(uint8_t code);

#ifdef __cplusplus
}
#endif
#endif
