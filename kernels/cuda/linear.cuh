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

/* What an output has before the product is added. */
static __device__ __forceinline__ float had(const struct cuda_linear &l, const struct cuda_part *part, uint32_t row,
                                            uint32_t out)
{
    return l.accumulate && out < part->n_out ? part->y[(size_t)row * part->y_stride + out] : 0.0f;
}

static __device__ __forceinline__ void put(const struct cuda_linear &l, const struct cuda_part *part, uint32_t row,
                                           uint32_t out, float before, float sum)
{
    if (part->bias)
        sum += part->bias[out];
    part->y[(size_t)row * part->y_stride + out] = l.accumulate ? before + sum : sum;
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

/* Adds one to what others count as well: all that this block's threads wrote before a barrier is there for whoever
   finds the last number. */
static __device__ __forceinline__ uint32_t counted(uint32_t *counter)
{
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

template <int WIDE> static __device__ __forceinline__ void load_wide(float (&x)[WIDE], const float *from)
{
    if (WIDE == 1) {
        x[0] = __ldcg(from);
    } else {
        const float4 y = __ldcg((const float4 *)from);
        x[0] = y.x, x[1 % WIDE] = y.y, x[2 % WIDE] = y.z, x[3 % WIDE] = y.w;
    }
}

/* Of a tile, the sums of all segments in order, into y. FLY: loads in flight, as registers allow, of WIDE outputs of a
   row each: few rows have too little to give all threads unless it is one. */
template <int N, int FLY, int WIDE>
static __device__ __forceinline__ void join_tile(const struct cuda_linear &l, const struct shape &s, uint32_t tile)
{
    uint32_t at = tile;
    const struct cuda_part *part = part_of(l, &at);
    const float *partial = l.partials + (size_t)tile * s.segments * N * 64;
    for (uint32_t i = threadIdx.x; i < l.n_rows * (64 / WIDE); i += 128) {
        const uint32_t row = i / (64 / WIDE), out = at * 64 + i % (64 / WIDE) * WIDE;
        const float *from = partial + i * WIDE;
        float sum[WIDE], before[WIDE];
        load_wide<WIDE>(sum, from);
#pragma unroll
        for (uint32_t w = 0; WIDE == 1 && w < WIDE; w++)
            before[w] = had(l, part, row, out + w);
        for (uint32_t g = 1; g < s.segments; g += FLY) {
            float x[FLY][WIDE];
#pragma unroll
            for (int k = 0; k < FLY; k++)
                if (g + (uint32_t)k < s.segments)
                    load_wide<WIDE>(x[k], from + (size_t)(g + (uint32_t)k) * N * 64);
#pragma unroll
            for (int k = 0; k < FLY; k++)
#pragma unroll
                for (int w = 0; w < WIDE; w++)
                    if (g + (uint32_t)k < s.segments)
                        sum[w] += x[k][w];
        }
#pragma unroll
        for (uint32_t w = 0; w < WIDE; w++)
            if (out + w < part->n_out)
                put(l, part, row, out + w, WIDE == 1 ? before[w] : had(l, part, row, out + w), sum[w]);
    }
}

/* A unit's chains are over: whoever brings a tile's last segment joins all of them in order. */
template <int N, int FLY, int ONE>
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
    /* of more rows each thread waits for its own writes, as when 16 rows were measured at 5.97 ms of an 8B model's products;
       6.83 with the finish that 8 rows have (H100): which part of it costs that was not taken apart */
    if (N > 8)
        __threadfence();
    named_barrier(1, 128);
    if (t == 0) {
        *last = counted(&l.counters[tile]) + 1 == s.segments;
        if (*last)
            l.counters[tile] = 0;
    }
    named_barrier(1, 128);
    if (!*last)
        return;
    if constexpr (FLY > 0) {
        if (ONE == 0 || l.n_rows > 2)
            return join_tile<N, FLY, 4>(l, s, tile);
    }
    if constexpr (ONE > 0)
        join_tile<N, ONE, 1>(l, s, tile);
}

#endif
