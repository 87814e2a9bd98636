#ifndef LONGSPAN_TESTS_SELECTOR_FIXTURE_H
#define LONGSPAN_TESTS_SELECTOR_FIXTURE_H

/* The golden data's keys, values and queries, as tests/golden/selectors draws them; and what its lists are. */

#include "common/rng.h"
#include "kernels/cpu/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

struct golden_list {
    uint32_t layer, own, head; /* layer: or the row */
    uint64_t blocks;
};

static inline float unit(uint64_t kind, uint32_t layer, uint32_t block, uint64_t i)
{
    return (float)(rng_at(kind, (uint64_t)layer * 4096 + block, i) >> 40) / 16777216.0f - 0.5f;
}

/* kind 1: keys, 2: queries, 3: values */
static inline float drawn(uint64_t kind, uint32_t layer, uint32_t block, uint32_t head, uint32_t p, uint32_t d,
                          uint32_t dim)
{
    const float shift = unit(kind + 100, layer, block, d) * 4;
    return bf16_to_f32(f32_to_bf16(shift + unit(kind, layer, block, ((uint64_t)head * KV_BLOCK + p) * dim + d) * 2));
}

#ifdef __cplusplus
}
#endif
#endif
