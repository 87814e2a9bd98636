#ifndef LONGSPAN_KERNELS_CUDA_FLUSH_CUH
#define LONGSPAN_KERNELS_CUDA_FLUSH_CUH

/* Arithmetic in which denormal numbers are zeros, as on the processor's threads (cpu_thread_init): where results are the reference's bit for bit. */

static __device__ __forceinline__ float add(float x, float y)
{
    float z;
    asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
static __device__ __forceinline__ float sub(float x, float y)
{
    float z;
    asm("sub.rn.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
static __device__ __forceinline__ float mul(float x, float y)
{
    float z;
    asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
static __device__ __forceinline__ float div(float x, float y)
{
    float z;
    asm("div.rn.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

#endif
