#ifndef LONGSPAN_TESTS_KERNELS_CUDA_SCENE_H
#define LONGSPAN_TESTS_KERNELS_CUDA_SCENE_H

/* Device memory of a check: freed with cuda_scene_free, which also says what the device has to complain of. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        const int cuda_error_ = (int)(call);                                                                           \
        if (cuda_error_) {                                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString((cudaError_t)cuda_error_));          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { CUDA_SCENE_MAX = 64 };

struct cuda_scene {
    void *buffer[CUDA_SCENE_MAX];
    uint32_t n;
};

/* Filled with 0xA5 (of floats: a small negative number; of counts: far too large), so that what is never written shows. */
static inline void *cuda_scene_take(struct cuda_scene *s, size_t bytes)
{
    void *p = NULL;
    if (s->n == CUDA_SCENE_MAX)
        abort();
    CUDA(cudaMalloc(&p, bytes ? bytes : 16));
    CUDA(cudaMemset(p, 0xA5, bytes));
    s->buffer[s->n++] = p;
    return p;
}

static inline void *cuda_scene_put(struct cuda_scene *s, const void *from, size_t bytes)
{
    void *p = cuda_scene_take(s, bytes);
    CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

static inline void cuda_scene_get(void *to, const void *from, size_t bytes)
{
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static inline void cuda_scene_free(struct cuda_scene *s)
{
    CUDA(cudaDeviceSynchronize());
    while (s->n)
        CUDA(cudaFree(s->buffer[--s->n]));
}

#endif
