#ifndef LONGSPAN_BENCH_CUDA_TIME_H
#define LONGSPAN_BENCH_CUDA_TIME_H

/* What the figures of the GPU's kernels share: memory, and the time of what stands in a replayed graph. One thread, one stream. */

#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        const int e_ = (int)(call);                                                                                    \
        if (e_) {                                                                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString((cudaError_t)e_));                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static cudaStream_t stream;
static int repeats = 50;

static inline void *take(size_t bytes)
{
    void *p = NULL;
    CUDA(cudaMalloc(&p, bytes));
    return p;
}

static inline void *put(const void *from, size_t bytes)
{
    void *p = take(bytes);
    CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

static inline int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of one call of fn, n to a graph. */
static inline double time_ms(void (*fn)(void *ctx, int i), void *ctx, int n)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, b;
    float ms[256];
    fn(ctx, 0);
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++)
        fn(ctx, i);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&b));
    for (int i = -3; i < repeats; i++) {
        CUDA(cudaEventRecord(a, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(b, stream));
        CUDA(cudaEventSynchronize(b));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], a, b));
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(a));
    CUDA(cudaEventDestroy(b));
    qsort(ms, (size_t)repeats, sizeof *ms, by_value);
    return (double)ms[repeats / 2] / n;
}

#endif
