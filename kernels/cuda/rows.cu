/* Operations on rows: a block of threads a row; sums in an order that follows from the width. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdio.h>

#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"

enum { THREADS = 512 };

static __device__ __forceinline__ uint8_t *tiled(void *out, uint32_t cap, uint32_t row, uint32_t k)
{
    return (uint8_t *)out + ((size_t)(k / 64) * cap + row) * 128 + ((k % 64 / 8) ^ (row & 7)) * 16 + k % 8 * 2;
}

/* Of a block's threads; the result is all threads'. */
static __device__ float block_sum(float x, float *shared)
{
    for (int lanes = 16; lanes; lanes /= 2)
        x += __shfl_xor_sync(~0u, x, lanes);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (uint32_t i = 0; i < blockDim.x / 32; i++)
        sum += shared[i];
    return sum;
}

enum { NORM_HELD = 8 };

/*
 * A row is read once, as far as NORM_HELD pairs a thread reach. As many weights are asked for before the row is there:
 * they come from memory, where the next product's first weights queue by then.
 */
static __global__ void __launch_bounds__(THREADS)
    norm(const float *x, const uint32_t *which, const float *w, uint32_t n, float eps, void *out, uint32_t cap)
{
    __shared__ float shared[THREADS / 32];
    const uint32_t row = blockIdx.x;
    float2 f[NORM_HELD], v[NORM_HELD];
    grid_next();
#pragma unroll
    for (uint32_t j = 0; j < NORM_HELD; j++) {
        const uint32_t i = 2 * (threadIdx.x + j * THREADS);
        f[j] = i + 1 < n ? *(const float2 *)(w + i) : make_float2(0, 0);
    }
    grid_wait();
    const float *in = x + (size_t)(which ? which[row] : row) * n;
#pragma unroll
    for (uint32_t j = 0; j < NORM_HELD; j++) {
        const uint32_t i = 2 * (threadIdx.x + j * THREADS);
        v[j] = i + 1 < n ? *(const float2 *)(in + i) : make_float2(0, 0);
    }
    float sum = 0;
#pragma unroll
    for (uint32_t j = 0; j < NORM_HELD; j++)
        if (2 * (threadIdx.x + j * THREADS) + 1 < n)
            sum += v[j].x * v[j].x + v[j].y * v[j].y;
    for (uint32_t i = 2 * (threadIdx.x + NORM_HELD * THREADS); i + 1 < n; i += 2 * THREADS) {
        const float2 y = *(const float2 *)(in + i);
        sum += y.x * y.x + y.y * y.y;
    }
    const float r = 1.0f / sqrtf(block_sum(sum, shared) / (float)n + eps);
#pragma unroll
    for (uint32_t j = 0; j < NORM_HELD; j++) {
        const uint32_t i = 2 * (threadIdx.x + j * THREADS);
        if (i + 1 < n)
            *(__nv_bfloat162 *)tiled(out, cap, row, i) =
                __floats2bfloat162_rn(v[j].x * r * f[j].x, v[j].y * r * f[j].y);
    }
    for (uint32_t i = 2 * (threadIdx.x + NORM_HELD * THREADS); i + 1 < n; i += 2 * THREADS) {
        const float2 y = *(const float2 *)(in + i), g = *(const float2 *)(w + i);
        *(__nv_bfloat162 *)tiled(out, cap, row, i) = __floats2bfloat162_rn(y.x * r * g.x, y.y * r * g.y);
    }
}

/* A warp a head. */
static __global__ void norm_heads(float *x, const float *w, uint32_t n, uint32_t head_dim, float eps)
{
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    grid_next();
    grid_wait();
    if (i >= n)
        return;
    float *v = x + (size_t)i * head_dim, sum = 0;
    for (uint32_t k = lane; k < head_dim; k += 32)
        sum += v[k] * v[k];
    for (int lanes = 16; lanes; lanes /= 2)
        sum += __shfl_xor_sync(~0u, sum, lanes);
    const float r = 1.0f / sqrtf(sum / (float)head_dim + eps);
    for (uint32_t k = lane; k < head_dim; k += 32)
        v[k] = v[k] * r * w[k];
}

static __device__ __forceinline__ float silu(float g)
{
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-fabsf(g) * 1.44269504f));
    return g * (g >= 0 ? 1.0f : e) / (1.0f + e);
}

static __global__ void silu_mul(const float *gate, const float *up, uint32_t n, void *out, uint32_t cap)
{
    const uint32_t row = blockIdx.y, i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    grid_next();
    grid_wait();
    if (i >= n)
        return;
    const size_t at = (size_t)row * n + i;
    const float4 g = *(const float4 *)(gate + at), u = *(const float4 *)(up + at);
    const __nv_bfloat162 y[2] = { __floats2bfloat162_rn(silu(g.x) * u.x, silu(g.y) * u.y),
                                  __floats2bfloat162_rn(silu(g.z) * u.z, silu(g.w) * u.w) };
    *(uint2 *)tiled(out, cap, row, i) = *(const uint2 *)y;
}

/* A block a row, of few rows so many that none has a second turn; a thread has the pair (i, i + half) of a head. */
static __global__ void rope_store(const struct cuda_kv kv, uint32_t layer, const float *q, const float *k,
                                  const float *v, const float *cosines, const float *sines, const struct cuda_row *rows,
                                  __nv_bfloat16 *q_out)
{
    const uint32_t r = blockIdx.x, d = kv.head_dim, half = d / 2;
    grid_next();
    grid_wait();
    const struct cuda_row row = rows[r];
    uint8_t *block = block_at(kv, row.slot, layer);
    for (uint32_t t = threadIdx.x + blockIdx.y * blockDim.x; t < (kv.n_heads + kv.n_kv_heads) * half;
         t += blockDim.x * gridDim.y) {
        const uint32_t h = t / half, i = t % half;
        const bool key = h >= kv.n_heads;
        const float *x =
            key ? k + ((size_t)r * kv.n_kv_heads + h - kv.n_heads) * d : q + ((size_t)r * kv.n_heads + h) * d;
        const float c = cosines[(size_t)r * half + i], s = sines[(size_t)r * half + i], a = x[i], b = x[i + half];
        const __nv_bfloat16 y[2] = { __float2bfloat16_rn(a * c - b * s), __float2bfloat16_rn(b * c + a * s) };
        for (uint32_t side = 0; side < 2; side++) {
            const uint32_t at = i + side * half;
            if (!key) {
                q_out[((size_t)r * kv.n_heads + h) * d + at] = y[side];
                continue;
            }
            const float value = v[((size_t)r * kv.n_kv_heads + h - kv.n_heads) * d + at];
            uint8_t *part = block + (h - kv.n_heads) * 2 * kv.part_bytes + at / 64 * 8192 + row.offset * 128 +
                            ((at % 64 / 8) ^ (row.offset & 7)) * 16 + at % 8 * 2;
            *(__nv_bfloat16 *)part = y[side];
            *(__nv_bfloat16 *)(part + kv.part_bytes) = __float2bfloat16_rn(value);
        }
    }
}

extern "C" int cuda_norm(const float *x, const uint32_t *which, const float *w, uint32_t n_rows, uint32_t n, float eps,
                         void *out, uint32_t cap, void *stream)
{
    return n_rows ? grid_launch(norm, dim3(n_rows), THREADS, 0, stream, x, which, w, n, eps, out, cap) : 0;
}

extern "C" int cuda_norm_heads(float *x, const float *w, uint32_t n_rows, uint32_t n_heads, uint32_t head_dim,
                               float eps, void *stream)
{
    const uint32_t n = n_rows * n_heads;
    return n ? grid_launch(norm_heads, dim3((n + 7) / 8), 256, 0, stream, x, w, n, head_dim, eps) : 0;
}

extern "C" int cuda_silu_mul(const float *gate, const float *up, uint32_t n_rows, uint32_t n, void *out, uint32_t cap,
                             void *stream)
{
    return n_rows ? grid_launch(silu_mul, dim3((n / 4 + 127) / 128, n_rows), 128, 0, stream, gate, up, n, out, cap) : 0;
}

extern "C" int cuda_rope_store(const struct cuda_kv *kv, uint32_t layer, const float *q, const float *k, const float *v,
                               const float *cosines, const float *sines, const struct cuda_row *rows, uint32_t n_rows,
                               void *q_out, void *stream)
{
    const uint32_t pairs = (kv->n_heads + kv->n_kv_heads) * kv->head_dim / 2;
    return n_rows ? grid_launch(rope_store, dim3(n_rows, n_rows < 64 ? (pairs + 255) / 256 : 1), 256, 0, stream, *kv,
                                layer, q, k, v, cosines, sines, rows, (__nv_bfloat16 *)q_out)
                  : 0;
}

extern "C" int cuda_device_find(struct cuda_device *device_out, char *text_out, size_t bytes)
{
    struct cudaDeviceProp p;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (!e && n)
        e = cudaGetDeviceProperties(&p, 0);
    if (e || !n) {
        snprintf(text_out, bytes, "%s", e ? cudaGetErrorString(e) : "no GPU");
        return -1;
    }
    if (p.major != 9 || p.minor != 0) {
        snprintf(text_out, bytes, "%s has compute capability %d.%d, the kernels need 9.0", p.name, p.major, p.minor);
        return -1;
    }
    snprintf(device_out->name, sizeof device_out->name, "%s", p.name);
    device_out->major = p.major;
    device_out->minor = p.minor;
    device_out->processors = p.multiProcessorCount;
    device_out->memory = p.totalGlobalMem;
    return 0;
}
