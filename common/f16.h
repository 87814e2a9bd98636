#ifndef LONGSPAN_COMMON_F16_H
#define LONGSPAN_COMMON_F16_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * IEEE binary16 to binary32, exactly: subnormals, infinities and NaN included. Without branches, so that loops vectorise; right under
 * flush-to-zero, since no float on the way is subnormal.
 */
static inline float f16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } small, v;
    const uint32_t mag = h & 0x7FFFu;
    const uint32_t is_small = 0u - (mag < 0x400u), is_special = 0u - (mag >= 0x7C00u);
    small.f = (float)(int32_t)mag * 0x1p-24f; /* the value, if mag is a subnormal */
    v.u = (mag << 13) + (112u << 23) + (is_special & 112u << 23);
    v.u = (small.u & is_small) | (v.u & ~is_small) | (uint32_t)(h & 0x8000u) << 16;
    return v.f;
}

#ifdef __cplusplus
}
#endif
#endif
