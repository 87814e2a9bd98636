#ifndef LONGSPAN_KERNELS_CUDA_LAUNCH_CUH
#define LONGSPAN_KERNELS_CUDA_LAUNCH_CUH

/*
 * Launches that overlap: a kernel starts while the one before it ends (programmatic dependent launch). So every kernel calls grid_wait() before it
 * touches what another kernel wrote or reads, in every block; until then it may only fetch weights and set itself up. That holds along a chain: who has
 * waited for the kernel before has waited for all before that.
 */

#include <cuda_runtime.h>
#include <stdint.h>

static __device__ __forceinline__ void grid_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The next kernel may start, as far as there is room. */
static __device__ __forceinline__ void grid_next(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <typename... Params, typename... Args>
static int grid_launch(void (*kernel)(Params...), dim3 grid, uint32_t threads, size_t shared, void *stream,
                       Args... args)
{
    cudaLaunchAttribute overlap[1];
    cudaLaunchConfig_t config = {};
    overlap[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = (cudaStream_t)stream;
    config.attrs = overlap;
    config.numAttrs = 1;
    if (shared > 48 << 10) {
        const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (e)
            return e;
    }
    return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

#endif
