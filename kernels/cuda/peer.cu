/* Messages through peer memory: a block of threads a chunk, a thread a few words. */
#include <cuda_runtime.h>
#include <string.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer.h"

enum { THREADS = 512, LINES = PEER_CHUNK / 8, EACH = LINES / THREADS, STRIDE = LINES + 2 };

static_assert(sizeof(cudaIpcMemHandle_t) == PEER_HANDLE_BYTES, "a handle's size");

/* 8 bytes of the message, and its number twice: each half is written at once. */
struct line {
    uint32_t a, number_a, b, number_b;
};

static __device__ __forceinline__ void put(struct line *to, uint32_t a, uint32_t b, uint32_t number)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(a), "r"(number), "r"(b) : "memory");
}

static __device__ __forceinline__ struct line get(const struct line *from)
{
    struct line l;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(l.a), "=r"(l.number_a), "=r"(l.b), "=r"(l.number_b)
                 : "l"(from)
                 : "memory");
    return l;
}

static __device__ __forceinline__ uint64_t now_ns()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

/* Every bit of step and place counts. */
static __device__ uint64_t key_of(const struct peer_key &key)
{
    uint64_t x = (key.step ? *key.step : 0) + (key.which + 1ull) * 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93ull;
    return x ^ x >> 32;
}

/* Of a block's threads, for thread 0. */
static __device__ uint32_t block_sum(uint32_t x)
{
    __shared__ uint32_t part[THREADS / 32];
    x = __reduce_add_sync(~0u, x);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    return threadIdx.x < 32 ? __reduce_add_sync(~0u, threadIdx.x < THREADS / 32 ? part[threadIdx.x] : 0) : 0;
}

static __device__ __forceinline__ uint32_t weighed(uint32_t line, uint32_t a, uint32_t b)
{
    return (4 * line + 1) * a + (4 * line + 3) * b;
}

static __device__ __forceinline__ struct line *chunk_lines(void *window, uint32_t n_chunks, uint32_t number)
{
    return (struct line *)window + ((size_t)(number & 1) * n_chunks + blockIdx.x) * STRIDE;
}

static __device__ __forceinline__ uint32_t chunk_bytes(size_t bytes)
{
    const size_t first = (size_t)blockIdx.x * PEER_CHUNK;
    return (uint32_t)(bytes - first < PEER_CHUNK ? bytes - first : PEER_CHUNK);
}

/* A number is never that of an empty window. */
static __device__ __forceinline__ uint32_t next_number(const uint32_t *count)
{
    return *count + 1 ? *count + 1 : 2;
}

static __global__ void __launch_bounds__(THREADS)
    send(void *window, uint32_t *counts, uint32_t n_chunks, struct peer_key key, const uint2 *data, size_t bytes,
         const uint32_t *failed)
{
    grid_next();
    grid_wait();
    if (*(const volatile uint32_t *)failed)
        return;
    const uint32_t number = next_number(&counts[blockIdx.x]), n = chunk_bytes(bytes), n_lines = n / 8;
    struct line *to = chunk_lines(window, n_chunks, number);
    data += (size_t)blockIdx.x * LINES;
    uint2 v[EACH];
    uint32_t sum = 0;
    for (int i = 0; i < EACH; i++)
        if (threadIdx.x + i * THREADS < n_lines)
            v[i] = data[threadIdx.x + i * THREADS];
    for (int i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x + i * THREADS;
        if (at < n_lines) {
            put(to + at, v[i].x, v[i].y, number);
            sum += weighed(at, v[i].x, v[i].y);
        }
    }
    sum = block_sum(sum);
    if (!threadIdx.x) {
        const uint64_t k = key_of(key);
        put(to + LINES, n, sum, number);
        put(to + LINES + 1, (uint32_t)k, (uint32_t)(k >> 32), number);
        counts[blockIdx.x] = number;
    }
}

static __device__ void fail(const struct peer_wait &wait, uint32_t why)
{
    atomicCAS(wait.failed, PEER_FAILED_NOT, why | wait.who << 8);
}

/* Until the line has the number, or the wait ends; false: it ended. */
static __device__ bool await(const struct line *from, uint32_t number, struct line *l, const struct peer_wait &wait)
{
    uint64_t start = 0;
    for (uint32_t tries = 0;; tries++) {
        *l = get(from);
        if (l->number_a == number && l->number_b == number)
            return true;
        if (tries % 1024 < 1023) /* the abort word is far away */
            continue;
        if (*(volatile uint32_t *)wait.failed)
            return false;
        if (*wait.abort_word) {
            fail(wait, PEER_FAILED_ABORT);
            return false;
        }
        if (!start)
            start = now_ns();
        else if (now_ns() - start > wait.timeout_ns) {
            fail(wait, PEER_FAILED_TIME);
            return false;
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
    receive(void *window, uint32_t *counts, uint32_t n_chunks, struct peer_key key, uint2 *out, size_t bytes,
            struct peer_wait wait)
{
    grid_next();
    grid_wait();
    if (*(volatile uint32_t *)wait.failed)
        return;
    const uint32_t number = next_number(&counts[blockIdx.x]), n = chunk_bytes(bytes), n_lines = n / 8;
    const struct line *from = chunk_lines(window, n_chunks, number);
    out += (size_t)blockIdx.x * LINES;
    struct line l[EACH];
    uint32_t sum = 0;
    bool ok = true;
    for (int i = 0; i < EACH; i++)
        if (threadIdx.x + i * THREADS < n_lines)
            l[i] = get(from + threadIdx.x + i * THREADS);
    for (int i = 0; i < EACH && ok; i++) {
        const uint32_t at = threadIdx.x + i * THREADS;
        if (at >= n_lines)
            break;
        if (l[i].number_a != number || l[i].number_b != number)
            ok = await(from + at, number, &l[i], wait);
        out[at] = make_uint2(l[i].a, l[i].b);
        sum += weighed(at, l[i].a, l[i].b);
    }
    sum = block_sum(sum);
    if (threadIdx.x || !ok || !await(from + LINES, number, &l[0], wait) ||
        !await(from + LINES + 1, number, &l[1], wait))
        return;
    const uint64_t k = key_of(key);
    if (l[1].a != (uint32_t)k || l[1].b != (uint32_t)(k >> 32))
        fail(wait, PEER_FAILED_KEY);
    else if (l[0].a != n)
        fail(wait, PEER_FAILED_LENGTH);
    else if (l[0].b != sum)
        fail(wait, PEER_FAILED_CHECKSUM);
    counts[blockIdx.x] = number;
}

static bool fits(const struct peer_lane *lane, const void *data, size_t bytes)
{
    return bytes % 8 == 0 && bytes <= lane->capacity && (uintptr_t)data % 16 == 0;
}

static const struct peer_key no_key = { NULL, 0 };

int peer_send(const struct peer_lane *lane, const struct peer_key *key, const void *data, size_t bytes,
              const struct peer_wait *wait, void *stream)
{
    if (!fits(lane, data, bytes))
        return cudaErrorInvalidValue;
    return grid_launch(send, dim3((unsigned)peer_chunks(bytes)), THREADS, 0, stream, lane->window, lane->counts,
                       (uint32_t)peer_chunks(lane->capacity), key ? *key : no_key, (const uint2 *)data, bytes,
                       wait->failed);
}

int peer_receive(const struct peer_lane *lane, const struct peer_key *key, void *data_out, size_t bytes,
                 const struct peer_wait *wait, void *stream)
{
    if (!fits(lane, data_out, bytes))
        return cudaErrorInvalidValue;
    return grid_launch(receive, dim3((unsigned)peer_chunks(bytes)), THREADS, 0, stream, lane->window, lane->counts,
                       (uint32_t)peer_chunks(lane->capacity), key ? *key : no_key, (uint2 *)data_out, bytes, *wait);
}

int peer_window_new(size_t capacity, void **window_out, uint8_t handle_out[PEER_HANDLE_BYTES])
{
    cudaIpcMemHandle_t handle;
    cudaError_t st = cudaMalloc(window_out, peer_window_bytes(capacity));
    if (st)
        return st;
    st = cudaMemset(*window_out, 0, peer_window_bytes(capacity));
    if (!st)
        st = cudaDeviceSynchronize();
    if (!st)
        st = cudaIpcGetMemHandle(&handle, *window_out);
    if (st)
        cudaFree(*window_out);
    else
        memcpy(handle_out, &handle, sizeof handle);
    return st;
}

void peer_window_free(void *window)
{
    cudaFree(window);
}

int peer_window_open(const uint8_t handle[PEER_HANDLE_BYTES], void **window_out)
{
    cudaIpcMemHandle_t h;
    memcpy(&h, handle, sizeof h);
    return cudaIpcOpenMemHandle(window_out, h, cudaIpcMemLazyEnablePeerAccess);
}

void peer_window_close(void *window)
{
    cudaIpcCloseMemHandle(window);
}
