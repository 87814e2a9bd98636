#ifndef LONGSPAN_KERNELS_KV_SPILL_H
#define LONGSPAN_KERNELS_KV_SPILL_H

/*
 * Codecs that lose nothing have parts of one size all the same, and some keys and values do not fit. Such a part is spilled: it is the beginning of its open
 * form as it is, its byte `mark` is not 0, and the last `bytes` of the open form are kept by the caller of seal, elsewhere. expand makes some numbers of such a
 * part, as of any bytes.
 */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kv_spill {
    size_t bytes; /* a multiple of 64; 0: every part fits */
    size_t mark;  /* behind what a spilled part keeps of its open form; 0 in parts that fit */
};
/* kernels/kv.c */
struct kv_spill kv_spill_of(const struct attn_shape *shape);

static inline bool kv_spilled(const struct kv_spill *spill, const void *part)
{
    return spill->bytes && ((const uint8_t *)part)[spill->mark];
}

#ifdef __cplusplus
}
#endif
#endif
