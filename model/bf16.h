#ifndef LONGSPAN_MODEL_BF16_H
#define LONGSPAN_MODEL_BF16_H

/* Conversions for weights that are made here: finite values, round to nearest even. */

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline uint16_t bf16_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static inline float bf16_to_float(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* |x| below 65520. */
static inline uint16_t f16_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const uint32_t sign = u >> 16 & 0x8000, mag = u & 0x7FFFFFFF;
    if (mag < 0x38800000) { /* below 2^-14: units of 2^-24, rounded by the addition */
        float m;
        memcpy(&m, &mag, sizeof m);
        m += 0.5f;
        memcpy(&u, &m, sizeof u);
        return (uint16_t)(sign | (u - 0x3F000000));
    }
    return (uint16_t)(sign | ((mag - 0x38000000 + 0xFFF + (mag >> 13 & 1)) >> 13));
}

#ifdef __cplusplus
}
#endif
#endif
