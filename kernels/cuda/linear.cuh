#ifndef LONGSPAN_KERNELS_CUDA_LINEAR_CUH
#define LONGSPAN_KERNELS_CUDA_LINEAR_CUH

/* What products of few rows share whatever the form of their weights: the stream of a block's units, and how an output's segments are joined. */

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/wgmma.cuh"

enum { SEGMENT_TILES = CUDA_SEGMENT / CUDA_TILE };

struct shape {
    uint32_t tiles_in, segments, tiles_out, stages;
};

/* Which part a tile of outputs belongs to; tile becomes the part's. */
static __device__ __forceinline__ const struct cuda_part *part_of(const struct cuda_linear &l, uint32_t *tile)
{
    uint32_t i = 0;
    for (; i + 1 < l.n_parts; i++) {
        const uint32_t n = (l.part[i].n_out + 63) / 64;
        if (*tile < n)
            break;
        *tile -= n;
    }
    return &l.part[i];
}

static __device__ __forceinline__ void put(const struct cuda_linear &l, const struct cuda_part *part, uint32_t row,
                                           uint32_t out, float sum)
{
    if (part->bias)
        sum += part->bias[out];
    float *y = part->y + (size_t)row * part->y_stride + out;
    *y = l.accumulate ? *y + sum : sum;
}

/* Where a block's stream of stages is: pairs of tiles of its units, one unit after the other. */
struct walk {
    uint32_t unit, k, end;
    const uint8_t *w;
};

template <int TILE>
static __device__ __forceinline__ void walk_unit(const struct cuda_linear &l, const struct shape &s, struct walk *at)
{
    if (at->unit >= s.tiles_out * s.segments)
        return;
    uint32_t tile = at->unit / s.segments;
    const struct cuda_part *part = part_of(l, &tile);
    at->k = at->unit % s.segments * SEGMENT_TILES;
    at->end = min(at->k + SEGMENT_TILES, s.tiles_in);
    at->w = (const uint8_t *)part->packed + (size_t)tile * s.tiles_in * TILE;
}

template <int TILE>
static __device__ __forceinline__ void walk_next(const struct cuda_linear &l, const struct shape &s, struct walk *at)
{
    at->k += 2;
    if (at->k >= at->end) {
        at->unit += gridDim.x;
        walk_unit<TILE>(l, s, at);
    }
}

/* A unit's chains are over: whoever brings a tile's last segment joins all of them in order. FLY: loads in flight,
   as registers allow. */
template <int N, int FLY>
static __device__ __forceinline__ void finish(const struct cuda_linear &l, const struct shape &s, uint32_t unit,
                                              const float (&d)[N / 2], uint32_t *last)
{
    const uint32_t t = threadIdx.x, lane = t % 32, tile = unit / s.segments;
    float *partial = l.partials + (size_t)unit * N * 64;
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
        const uint32_t row = j / 4 * 8 + 2 * (t % 4) + j % 2, out = t / 32 * 16 + lane / 4 + j / 2 % 2 * 8;
        if (row < l.n_rows)
            __stcg(&partial[row * 64 + out], d[j]);
    }
    __threadfence();
    named_barrier(1, 128);
    if (t == 0) {
        *last = atomicAdd(&l.counters[tile], 1) + 1 == s.segments;
        if (*last)
            l.counters[tile] = 0;
        __threadfence();
    }
    named_barrier(1, 128);
    if (!*last)
        return;
    uint32_t at = tile;
    const struct cuda_part *part = part_of(l, &at);
    const float4 *from = (const float4 *)(l.partials + (size_t)tile * s.segments * N * 64);
    for (uint32_t i = t; i < l.n_rows * 16; i += 128) { /* four outputs of a row */
        const uint32_t row = i / 16, out = at * 64 + i % 16 * 4;
        float4 sum = __ldcg(&from[i]);
        for (uint32_t g = 1; g < s.segments; g += FLY) {
            float4 x[FLY];
#pragma unroll
            for (int k = 0; k < FLY; k++)
                if (g + (uint32_t)k < s.segments)
                    x[k] = __ldcg(&from[(size_t)(g + (uint32_t)k) * N * 16 + i]);
#pragma unroll
            for (int k = 0; k < FLY; k++)
                if (g + (uint32_t)k < s.segments)
                    sum = make_float4(sum.x + x[k].x, sum.y + x[k].y, sum.z + x[k].z, sum.w + x[k].w);
        }
        const float y[4] = { sum.x, sum.y, sum.z, sum.w };
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            if (out + k < part->n_out)
                put(l, part, row, out + k, y[k]);
    }
}

#endif
