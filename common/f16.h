#ifndef LONGSPAN_COMMON_F16_H
#define LONGSPAN_COMMON_F16_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* IEEE binary16 to binary32, exactly: subnormals, infinities and NaN included. Integer arithmetic, so flush modes do not matter. */
static inline float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exp = (h >> 10) & 0x1Fu;
    uint32_t frac = h & 0x3FFu;
    union {
        uint32_t u;
        float f;
    } v;
    if (exp == 31) {
        v.u = sign | 0x7F800000u | (frac << 13);
    } else if (exp) {
        v.u = sign | ((exp + 112) << 23) | (frac << 13);
    } else if (frac) {
        const uint32_t up = (uint32_t)__builtin_clz(frac) - 21; /* places until the leading one is bit 10 */
        frac = (frac << up) & 0x3FFu;
        v.u = sign | ((113 - up) << 23) | (frac << 13);
    } else {
        v.u = sign;
    }
    return v.f;
}

#ifdef __cplusplus
}
#endif
#endif
