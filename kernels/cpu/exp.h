#ifndef LONGSPAN_KERNELS_CPU_EXP_H
#define LONGSPAN_KERNELS_CPU_EXP_H

/*
 * The one exponential of the kernels, for x <= 0: libm's is chosen by the processor it runs on, so its bits may not decide anything.
 * e^x = 2^t with t = x log2(e) rounded once; 2^t = 2^floor(t) p(t - floor(t)), p of degree 5 with p(0) = 1 and a relative error below
 * 9e-8 on [0, 1] (minimax, coefficients rounded to f32 one after the other, each time refitting the rest).
 * exp(0) is exactly 1; below -87 the result is +0, so that no denormal appears; NaN stays NaN. Relative error in f32: 2e-7 + 1e-7 |x|.
 * The vector forms (x86/vec_*.h) use these constants, with fused multiply-adds.
 */

#include <stdint.h>
#include <string.h>

#define EXP_LOG2E    1.44269502f
#define EXP_LN2      0.693147182f
#define EXP_MIN      (-87.0f)
#define EXP_MIN_BITS 0xC2AE0000u
/* EXP_MIN in powers of two */
#define EXP2_MIN (-125.514473f)
#define EXP_C1   0x1.62e4bap-1f
#define EXP_C2   0x1.ebdb58p-3f
#define EXP_C3   0x1.c91ce6p-5f
#define EXP_C4   0x1.277854p-7f
#define EXP_C5   0x1.e974fcp-10f

#ifdef __cplusplus
extern "C" {
#endif

/* Without branches, so that compilers make vectors of it. */
static inline float exp_f32(float x)
{
    const uint32_t keep = 0u - (uint32_t)(x >= EXP_MIN), nan = 0u - (uint32_t)(x != x);
    uint32_t bits, low;
    float y, e;
    /* What is cut off, NaN too, goes as EXP_MIN: the conversion to an integer must be defined. */
    memcpy(&bits, &x, sizeof bits);
    low = (bits & keep) | (EXP_MIN_BITS & ~keep);
    memcpy(&y, &low, sizeof y);
    const float t = y * EXP_LOG2E;
    const int32_t cut = (int32_t)t;
    const int32_t n = cut - (t < (float)cut);
    const float f = t - (float)n;
    const float p = ((((EXP_C5 * f + EXP_C4) * f + EXP_C3) * f + EXP_C2) * f + EXP_C1) * f + 1.0f;
    memcpy(&low, &p, sizeof low);
    bits = ((low + ((uint32_t)n << 23)) & keep) | (bits & nan);
    memcpy(&e, &bits, sizeof e);
    return e;
}

#ifdef __cplusplus
}
#endif
#endif
