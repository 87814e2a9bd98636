#ifndef LONGSPAN_KERNELS_KV_LOSS_H
#define LONGSPAN_KERNELS_KV_LOSS_H

/*
 * What a codec loses, without its blocks: an open bf16 block becomes what would be read of it if it were sealed. To evaluate codecs in arrangements that are not served, and
 * forms of the papers that are no codec of ours.
 */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A form that nobody serves, of affine integers in min form (x = scale c + least, both f16): one of the table in kernels/cpu/kv_loss.c.
 *   int4             one group a position and head: what SAW-INT4 is compared with, and stands on
 *   saw-int4         the same with keys rotated (block-diagonal Hadamard matrix), values as they are, as it is published; ours, int4-rot, rotates both
 *   kivi4-64, kivi2-64  KIVI (arXiv:2402.02750) with one group of keys a channel and block of 64 positions, where kivi4 and kivi2 have two of 32
 */
struct kv_form;
/* NULL: there is none of this name. */
const struct kv_form *kv_form_find(const char *name);
/* The i-th one's name; NULL: there are no more. */
const char *kv_form_name(uint32_t i);
/* Does it take heads of so many channels? */
bool kv_form_accepts(const struct kv_form *form, uint32_t head_dim);
/* Bytes of a block's keys and values of one head. */
size_t kv_form_bytes(const struct kv_form *form, uint32_t head_dim);
/* k_open, v_open: bf16 parts of KV_BLOCK positions in the open form. false: a number is not finite. */
bool kv_form_lose(const struct kv_form *form, uint32_t head_dim, uint16_t *k_open, uint16_t *v_open);

/*
 * Likewise of a codec that is served, whose open form is another (bf16): impl is attn_find(shape); shape->books is, [2], what sealing wants. scratch: 2 part_bytes,
 * 64-byte aligned. Codecs that are expanded become bit for bit what attention reads; those attended in integers (int8, int4-rot) are rounded to bf16.
 */
bool kv_codec_lose(const struct attn_impl *impl, const struct attn_shape *shape, void *scratch, uint16_t *k_open,
                   uint16_t *v_open);

#ifdef __cplusplus
}
#endif
#endif
