/* Open blocks become codes: a warp a position at a time, in the arithmetic of kernels/cpu/kv_int8.c and kv_int4_rot.c, operation for operation. */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/codes.h"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rotate.cuh"

enum { BLOCK = 64 /* KV_BLOCK */, THREADS = 256 };

/* Nearest even; past the largest number, that: kv_f16_of */
static __device__ __forceinline__ uint32_t f16_of(float x)
{
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)));
}
static __device__ __forceinline__ float f16_to(uint32_t x)
{
    return __half2float(__ushort_as_half((unsigned short)x));
}

static __device__ __forceinline__ float most_of(float x)
{
#pragma unroll
    for (int half = 1; half < 32; half *= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, half));
    return x;
}

/* Codes of one position; scale, and from the 16th bit on the least value. */
template <int D> static __device__ __forceinline__ uint32_t quantize8(const float (&x)[D / 32], uint8_t (&code)[D / 32])
{
    float top = 0;
#pragma unroll
    for (int i = 0; i < D / 32; i++)
        top = fmaxf(top, fabsf(x[i]));
    top = most_of(top);
    uint32_t scale = f16_of(top / 127.0f);
    if (f16_to(scale) * 127.0f < top && scale < 0x7BFF)
        scale++;
    const float by = f16_to(scale), up = by > 0 ? 1.0f / by : 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; i++)
        code[i] = (uint8_t)(int8_t)__float2int_rn(fminf(fmaxf(x[i] * up, -127.0f), 127.0f));
    return scale;
}

template <int D> static __device__ __forceinline__ uint32_t quantize4(const float (&x)[D / 32], uint8_t (&code)[D / 32])
{
    float low = x[0], high = x[0];
#pragma unroll
    for (int i = 1; i < D / 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    high = most_of(high);
    low = -most_of(-low);
    if (low == 0) { /* of zeros of both signs the first counts */
        float first = -low;
        bool any = false;
#pragma unroll
        for (int i = D / 32; i-- > 0;)
            if (x[i] == 0) {
                first = x[i];
                any = true;
            }
        low = __shfl_sync(~0u, first, __ffs(__ballot_sync(~0u, any)) - 1);
    }
    const uint32_t least = f16_of(low);
    const float from = f16_to(least);
    const uint32_t scale = f16_of(high > from ? (high - from) / 15.0f : 0.0f);
    const float by = f16_to(scale), up = by > 0 ? 1.0f / by : 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        const float c = (x[i] - from) * up + 0.5f;
        code[i] = (uint8_t)(c >= 15.0f ? 15 : c < 0.0f ? 0 : (int)c);
    }
    return scale | least << 16;
}

template <int D, enum cuda_codec CODEC>
static __global__ void __launch_bounds__(THREADS)
    seal(const __grid_constant__ struct cuda_kv open, const __grid_constant__ struct cuda_kv sealed, uint32_t layer,
         const __grid_constant__ struct cuda_seals s)
{
    constexpr int K = D / 32;
    constexpr uint32_t part_bytes = BLOCK * D / (CODEC == CUDA_INT8 ? 1 : 2) + (CODEC == CUDA_INT8 ? 128 : 256);
    __shared__ __align__(16) uint8_t part[part_bytes];
    __shared__ uint8_t codes[BLOCK][D + 4]; /* int4-rot: halves of a byte are of different positions, or channels */
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y / 2;
    const bool values = blockIdx.y % 2;
    grid_next();
    grid_wait();
    for (uint32_t i = blockIdx.x; i < *s.n_jobs; i += gridDim.x) {
        const struct cuda_seal job = s.jobs[i];
        const uint8_t *from = block_at(open, job.from, layer) + (2 * head + values) * open.part_bytes;
        uint8_t *to = block_at(sealed, job.to, layer) + (2 * head + values) * sealed.part_bytes;
        for (uint32_t p = warp; p < BLOCK; p += THREADS / 32) {
            const uint32_t c = lane * K;
            const uint16_t *at =
                (const uint16_t *)(from + c / 64 * 8192 + p * 128 + ((c % 64 / 8) ^ (p & 7)) * 16) + c % 8;
            float x[K], zero = 0;
            uint8_t code[K];
#pragma unroll
            for (int k = 0; k < K; k++)
                x[k] = __uint_as_float((uint32_t)at[k] << 16);
            if (CODEC == CUDA_INT4_ROT)
                rotate<D>(x, lane);
#pragma unroll
            for (int k = 0; k < K; k++)
                zero += x[k] * 0.0f;
            const bool finite = __all_sync(~0u, zero == 0);
            uint32_t scale = CODEC == CUDA_INT8 ? quantize8<D>(x, code) : quantize4<D>(x, code);
            scale = finite ? scale : 0;
#pragma unroll
            for (int k = 0; k < K; k++)
                codes[p][c + k] = finite ? code[k] : 0;
            if (lane == 0) {
                uint8_t *plane = part + cuda_code_scale_at(CODEC, D, p);
                if (CODEC == CUDA_INT8)
                    *(uint16_t *)plane = (uint16_t)scale;
                else
                    *(uint32_t *)plane = scale;
                if (!finite)
                    *s.failed = 1;
            }
        }
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < BLOCK * D; k += THREADS) { /* a thread writes whole bytes */
            const uint32_t p = values ? k / D : k % BLOCK, c = values ? k % D : k / BLOCK;
            const bool second = values ? c % 16 >= 8 : p % 16 >= 8;
            const struct cuda_code at = values ? cuda_value_at(CODEC, p, c) : cuda_key_at(CODEC, D, p, c);
            if (CODEC == CUDA_INT8)
                part[at.byte] = codes[p][c];
            else if (!second)
                part[at.byte] = codes[p][c] | (values ? codes[p][c + 8] : codes[p + 8][c]) << 4;
        }
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < part_bytes / 16; k += THREADS)
            ((uint4 *)to)[k] = ((const uint4 *)part)[k];
        __syncthreads();
    }
}

template <int D, enum cuda_codec CODEC>
static int launch(const struct cuda_kv *open, const struct cuda_kv *sealed, uint32_t layer, const struct cuda_seals *s,
                  uint32_t grid, cudaStream_t stream)
{
    return grid_launch(seal<D, CODEC>, dim3(grid, open->n_kv_heads * 2), THREADS, 0, stream, *open, *sealed, layer, *s);
}

extern "C" int cuda_seal_run(const struct cuda_kv *open, const struct cuda_kv *sealed, uint32_t layer,
                             const struct cuda_seals *s, uint32_t grid, void *stream)
{
    const cudaStream_t st = (cudaStream_t)stream;
    if (!grid)
        return 0;
    if (open->head_dim == 128)
        return s->codec == CUDA_INT8 ? launch<128, CUDA_INT8>(open, sealed, layer, s, grid, st)
                                     : launch<128, CUDA_INT4_ROT>(open, sealed, layer, s, grid, st);
    if (open->head_dim == 64)
        return s->codec == CUDA_INT8 ? launch<64, CUDA_INT8>(open, sealed, layer, s, grid, st)
                                     : launch<64, CUDA_INT4_ROT>(open, sealed, layer, s, grid, st);
    return cudaErrorInvalidValue;
}
