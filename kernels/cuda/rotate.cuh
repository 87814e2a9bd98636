#ifndef LONGSPAN_KERNELS_CUDA_ROTATE_CUH
#define LONGSPAN_KERNELS_CUDA_ROTATE_CUH

#include <stdint.h>

/* x times the normalised Hadamard matrix of D channels, K = D / 32 neighbours a lane: kv_rotate */
template <int D> static __device__ __forceinline__ void rotate(float (&x)[D / 32], uint32_t lane)
{
    constexpr int K = D / 32;
#pragma unroll
    for (int half = 1; half < K; half *= 2)
#pragma unroll
        for (int i = 0; i < K; i++)
            if (!(i & half)) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
#pragma unroll
    for (int half = 1; half < 32; half *= 2)
#pragma unroll
        for (int i = 0; i < K; i++) {
            const float other = __shfl_xor_sync(~0u, x[i], half);
            x[i] = lane & half ? other - x[i] : x[i] + other;
        }
#pragma unroll
    for (int i = 0; i < K; i++)
        x[i] *= 1.0f / sqrtf((float)D);
}

#endif
