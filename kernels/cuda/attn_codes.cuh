#ifndef LONGSPAN_KERNELS_CUDA_ATTN_CODES_CUH
#define LONGSPAN_KERNELS_CUDA_ATTN_CODES_CUH

/* A block of codes times a warp's queries, and times its weights: the arithmetic of attn_codes.cu. */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/codes.h"
#include "kernels/cuda/partial.cuh"
#include "kernels/cuda/rotate.cuh"

enum { Q_MAX = 127 * 256, W_MAX = 32767 };

/* 4 vectors of a lane's column: of one, the channels 16 i + lane / 4 (+ 8); all lanes of a vector have its m; l and base are a lane's share until the leaf
   ends. */
template <int D> struct state {
    float m, l, base, o[D / 8];
};

static __device__ __forceinline__ float half_low(uint32_t x)
{
    return __half2float(__ushort_as_half((unsigned short)x));
}
static __device__ __forceinline__ float half_high(uint32_t x)
{
    return __half2float(__ushort_as_half((unsigned short)(x >> 16)));
}

/* Signed inputs, codes of the codec. */
template <bool FOUR>
static __device__ __forceinline__ void keys_times(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                  uint32_t b0, uint32_t b1)
{
    if (FOUR)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* Weights are not negative. */
template <bool FOUR>
static __device__ __forceinline__ void values_times(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                    uint32_t b0, uint32_t b1)
{
    if (FOUR)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t low_codes(uint32_t x)
{
    return x & 0x0F0F0F0F;
}
static __device__ __forceinline__ uint32_t high_codes(uint32_t x)
{
    return x >> 4 & 0x0F0F0F0F;
}

/* ---- queries ---- */

/* One vector, lane by lane: channels D / 32 lane ..; zeros past the end. */
template <int D>
static __device__ __forceinline__ void load_query(const uint16_t *q, uint32_t lane, uint32_t (&x)[D / 64])
{
#pragma unroll
    for (int i = 0; i < D / 64; i++)
        x[i] = q ? *((const uint32_t *)q + lane * (D / 64) + i) : 0;
}

/* Integers of one vector, turned if the codec turns, into the columns 2 column and 2 column + 1 of `to`, [D / 32][32 lanes][2 runs] words; -> scale, and
   the sum. */
template <int D, bool FOUR>
static __device__ __forceinline__ float put_query(const uint32_t (&q)[D / 64], uint32_t column, uint32_t lane,
                                                  uint8_t *to, float *sum_out)
{
    constexpr int K = D / 32;
    float top = 0, zero = 0, x[K];
    int sum = 0;
#pragma unroll
    for (int i = 0; i < K; i++)
        x[i] = __uint_as_float(i % 2 ? q[i / 2] & 0xFFFF0000 : q[i / 2] << 16);
    if (FOUR)
        rotate<D>(x, lane);
#pragma unroll
    for (int i = 0; i < K; i++) {
        top = fmaxf(top, fabsf(x[i]));
        zero += x[i] * 0.0f;
    }
#pragma unroll
    for (int half = 1; half < 32; half *= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0u, top, half));
        zero += __shfl_xor_sync(~0u, zero, half);
    }
    const float up = (float)Q_MAX / top;
    const bool some = zero == 0 && up < INFINITY;
#pragma unroll
    for (int i = 0; i < K; i++) {
        const uint32_t c = lane * K + i;
        const int v = some ? __float2int_rn(x[i] * up) : 0, low = (int8_t)v, high = (v - low) >> 8;
        uint8_t *at = to + (c / 32 * 64 + column * 16 + c % 16 / 4 * 2 + c % 32 / 16) * 4 + c % 4;
        at[0] = (uint8_t)high;
        at[32] = (uint8_t)low; /* the next column: four lanes further */
        sum += v;
    }
#pragma unroll
    for (int half = 1; half < 32; half *= 2)
        sum += __shfl_xor_sync(~0u, sum, half);
    *sum_out = (float)sum;
    return some ? top / (float)Q_MAX : zero == 0 ? 0.0f : NAN;
}

/* ---- blocks ---- */

/* Weights of one block, of 8 positions and one vector a lane, as bytes where the next product's lanes find them; m, l, base and o follow. s: scores in
   powers of two. up: to integers. -> what the integers are to be multiplied by, beside 1 / up */
template <int D, bool FOUR>
static __device__ __forceinline__ float weigh(const float (&s)[8], const uint32_t (&plane)[8], float up,
                                              struct state<D> &x, uint8_t *to, uint32_t lane)
{
    float most = s[0], l = 0, base = 0;
    uint32_t w[8];
#pragma unroll
    for (int i = 1; i < 8; i++)
        most = fmaxf(most, s[i]);
#pragma unroll
    for (int half = 4; half < 32; half *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, half));
    /* Integers are of the block's largest weight, so that a block that weighs little is as exact as another. */
    const float m = fmaxf(x.m, most), by = m == -INFINITY ? 0.0f : m, from = most == -INFINITY ? 0.0f : most,
                old = exp2_fast(x.m - by), part = exp2_fast(most - by);
    x.m = m;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float p = exp2_fast(s[i] - from);
        l += p;
        if (FOUR)
            base = fmaf(p, half_high(plane[i]), base);
        w[i] = __float_as_uint(fmaf(p, half_low(plane[i]) * up, 8388608.0f)); /* the low bits are the integer */
    }
    x.l = fmaf(x.l, old, l * part);
    x.base = fmaf(x.base, old, base * part);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        x.o[i] *= old;
    uint32_t low[2], high[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t a = __byte_perm(w[4 * i], w[4 * i + 1], 0x5140),
                       b = __byte_perm(w[4 * i + 2], w[4 * i + 3], 0x5140);
        low[i] = __byte_perm(a, b, 0x5410);
        high[i] = __byte_perm(a, b, 0x7632);
    }
    const uint32_t v = lane % 4, at = v * 128 + lane / 4 * 8;
    *(uint2 *)(to + (at ^ (v & 1) * 64)) = make_uint2(high[0], high[1]);
    *(uint2 *)(to + ((at + 64) ^ (v & 1) * 64)) = make_uint2(low[0], low[1]);
    return part;
}

/* Scores of a block's 16 (i / 2) + 8 (i % 2) + lane / 4 of all vectors of the warp. */
template <int D, bool FOUR, int N>
static __device__ __forceinline__ void score(const uint8_t *k, const uint32_t (&q)[N][D / 16], const float (&scale)[N],
                                             const float (&sum)[N], uint32_t lane, float (&s)[N][8])
{
    const uint8_t *plane = k + (FOUR ? BLOCK * D / 2 : BLOCK * D) + lane / 4 * (FOUR ? 32 : 16);
#pragma unroll
    for (int t = 0; t < 4; t++) {
        int d[N][4];
#pragma unroll
        for (int n = 0; n < N; n++)
            d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0;
#pragma unroll
        for (int step = 0; step < D / 32; step += FOUR ? 2 : 1) {
            const uint4 c = FOUR ? *(const uint4 *)(k + ((t * (D / 64) + step / 2) * 32 + lane) * 16)
                                 : *(const uint4 *)(k + ((t * (D / 32) + step) * 32 + lane) * 16);
#pragma unroll
            for (int n = 0; n < N; n++)
                if (FOUR) {
                    keys_times<true>(d[n], low_codes(c.x), high_codes(c.x), low_codes(c.y), high_codes(c.y),
                                     q[n][2 * step], q[n][2 * step + 1]);
                    keys_times<true>(d[n], low_codes(c.z), high_codes(c.z), low_codes(c.w), high_codes(c.w),
                                     q[n][2 * step + 2], q[n][2 * step + 3]);
                } else
                    keys_times<false>(d[n], c.x, c.y, c.z, c.w, q[n][2 * step], q[n][2 * step + 1]);
        }
        const uint2 both = FOUR ? *(const uint2 *)(plane + 8 * t) : make_uint2(0, 0);
        const uint32_t one = FOUR ? 0 : *(const uint32_t *)(plane + 4 * t);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float by = FOUR ? half_low(i ? both.y : both.x) : i ? half_high(one) : half_low(one);
#pragma unroll
            for (int n = 0; n < N; n++) {
                float y = by * (float)(256 * d[n][2 * i] + d[n][2 * i + 1]);
                if (FOUR)
                    y = fmaf(half_high(i ? both.y : both.x), sum[n], y);
                s[n][2 * t + i] = y * scale[n];
            }
        }
    }
}

/* All of one block. limit: positions that the lane's vectors see. */
template <int D, bool FOUR, int N>
static __device__ __forceinline__ void block(const uint8_t *k, const uint32_t (&q)[N][D / 16], const float (&scale)[N],
                                             const float (&sum)[N], const int (&limit)[N], int first, uint8_t *mine,
                                             uint32_t lane, struct state<D> (&x)[N])
{
    constexpr int CODES = FOUR ? BLOCK * D / 2 : BLOCK * D, PART = CODES + (FOUR ? 256 : 128);
    const uint8_t *v = k + PART;
    float s[N][8], by[N];
    uint32_t plane[8], most = 0;
    score<D, FOUR, N>(k, q, scale, sum, lane, s);
#pragma unroll
    for (int n = 0; n < N; n++)
        if (first + BLOCK > limit[n]) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (first + 8 * i + (int)(lane / 4) >= limit[n])
                    s[n][i] = -INFINITY;
        }
    if (FOUR) {
        const uint4 a = *(const uint4 *)(v + CODES + lane / 4 * 32),
                    b = *(const uint4 *)(v + CODES + lane / 4 * 32 + 16);
        const uint32_t all[8] = { a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w };
#pragma unroll
        for (int i = 0; i < 8; i++)
            plane[i] = all[i];
    } else {
        const uint4 a = *(const uint4 *)(v + CODES + lane / 4 * 16);
        const uint32_t all[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
        for (int i = 0; i < 8; i++)
            plane[i] = all[i / 2] >> i % 2 * 16;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        most = max(most, plane[i] & 0xFFFF); /* scales are not negative: they compare as integers */
    most = __reduce_max_sync(~0u, most);
    const float largest = half_low(most), up = most ? (float)W_MAX / largest : 0.0f, down = largest * (1.0f / W_MAX);
#pragma unroll
    for (int n = 0; n < N; n++)
        by[n] = down * weigh<D, FOUR>(s[n], plane, up, x[n], mine + n * 512, lane);
    __syncwarp();
    uint4 w[N];
#pragma unroll
    for (int n = 0; n < N; n++)
        w[n] = *(const uint4 *)(mine + n * 512 + (lane * 16 ^ (lane / 8 & 1) * 64));
#pragma unroll
    for (int t = 0; t < D / 16; t++) {
        const uint4 c = *(const uint4 *)(v + ((FOUR ? t : 2 * t) * 32 + lane) * 16),
                    c2 = FOUR ? c : *(const uint4 *)(v + ((2 * t + 1) * 32 + lane) * 16);
#pragma unroll
        for (int n = 0; n < N; n++) {
            int d[4] = { 0, 0, 0, 0 };
            if (FOUR) {
                values_times<true>(d, low_codes(c.x), high_codes(c.x), low_codes(c.y), high_codes(c.y), w[n].x, w[n].y);
                values_times<true>(d, low_codes(c.z), high_codes(c.z), low_codes(c.w), high_codes(c.w), w[n].z, w[n].w);
            } else {
                values_times<false>(d, c.x, c.y, c.z, c.w, w[n].x, w[n].y);
                values_times<false>(d, c2.x, c2.y, c2.z, c2.w, w[n].z, w[n].w);
            }
            x[n].o[2 * t] = fmaf((float)(256 * d[0] + d[1]), by[n], x[n].o[2 * t]);
            x[n].o[2 * t + 1] = fmaf((float)(256 * d[2] + d[3]), by[n], x[n].o[2 * t + 1]);
        }
    }
}

#endif
