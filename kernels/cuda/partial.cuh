#ifndef LONGSPAN_KERNELS_CUDA_PARTIAL_CUH
#define LONGSPAN_KERNELS_CUDA_PARTIAL_CUH

/*
 * What makers and joiners of partials share. A tile of a partial: m of 16 vectors in powers of two, their l, their o.
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

enum { VECTORS = 16 /* ATTN_ROWS */, BLOCK = 64 /* KV_BLOCK */ };

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ uint32_t pack2(float low, float high)
{
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

/* Weights of a merge; beside an empty side the other's bits are kept. */
static __device__ __forceinline__ void merge_weights(float ma, float la, float mb, float lb, float *m, float *wa,
                                                     float *wb)
{
    *m = fmaxf(ma, mb);
    *wa = la == 0 ? 0.0f : lb == 0 ? 1.0f : exp2_fast(ma - *m);
    *wb = lb == 0 ? 0.0f : la == 0 ? 1.0f : exp2_fast(mb - *m);
}

#endif
