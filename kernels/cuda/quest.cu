/* Quest: bounds of blocks, scores, the best by score. Sums and choices as kernels/cpu/selector_quest.c and kernels/selector.c make them. */
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quest.h"

enum { BLOCK = 64, LANES = 16, CHOOSE_THREADS = 1024, BINS = 2048, GROUP_MAX = 16 };

static __device__ __forceinline__ float low_of(uint32_t x)
{
    return __uint_as_float(x << 16);
}
static __device__ __forceinline__ float high_of(uint32_t x)
{
    return __uint_as_float(x & 0xFFFF0000);
}

/* ---- sketches ---- */

/* A block of threads a block and head, a thread a channel. */
template <int D>
static __global__ void __launch_bounds__(D)
    sketch(const __grid_constant__ struct cuda_kv open, const __grid_constant__ struct cuda_sketches s, uint32_t layer,
           const uint32_t *from, const uint32_t *to)
{
    const uint32_t i = blockIdx.x, head = blockIdx.y, c = threadIdx.x;
    grid_next();
    grid_wait();
    const uint8_t *k = open.pool + from[i] * open.block_bytes + layer * open.layer_bytes + 2 * head * open.part_bytes +
                       c / 64 * 8192 + c % 8 * 2;
    float least = 0, most = 0;
    for (uint32_t p = 0; p < BLOCK; p++) {
        const float x = low_of(*(const uint16_t *)(k + p * 128 + ((c % 64 / 8) ^ (p & 7)) * 16));
        least = p == 0 || x < least ? x : least;
        most = p == 0 || x > most ? x : most;
    }
    uint16_t *out = (uint16_t *)(s.pool + to[i] * s.block_bytes + layer * s.layer_bytes) + head * 2 * D +
                    c % LANES * (D / 8) + c / LANES;
    out[0] = (uint16_t)(__float_as_uint(least) >> 16);
    out[D / LANES] = (uint16_t)(__float_as_uint(most) >> 16);
}

/* ---- scores ---- */

/* Half a warp a block: a lane has the channels 16 i + lane. blockIdx.y: the KV head. */
template <int D>
static __global__ void __launch_bounds__(256)
    score(const __grid_constant__ struct cuda_kv kv, const __grid_constant__ struct cuda_sketches s, uint32_t layer,
          const __grid_constant__ struct cuda_quest c)
{
    constexpr int K = D / LANES;
    const uint32_t lane = threadIdx.x % LANES, head = blockIdx.y, group = kv.n_heads / kv.n_kv_heads,
                   step = gridDim.x * blockDim.x / LANES;
    grid_next();
    grid_wait();
    for (uint32_t first = 0; first < group; first += 4) {
        float q[4][K];
#pragma unroll
        for (int g = 0; g < 4; g++)
#pragma unroll
            for (int i = 0; i < K; i++)
                q[g][i] = first + g < group
                              ? low_of(((const uint16_t *)c.q)[(head * group + first + g) * D + i * LANES + lane])
                              : 0.0f;
        /* both halves of a warp go round as often, for the shuffles */
        for (uint32_t b0 = blockIdx.x * blockDim.x / LANES + threadIdx.x / 32 * 2; b0 < c.own; b0 += step) {
            const uint32_t b = b0 + threadIdx.x / LANES % 2, at = b < c.own ? b : b0;
            const uint16_t *from = (const uint16_t *)(s.pool + c.slots[at] * s.block_bytes + layer * s.layer_bytes) +
                                   head * 2 * D + lane * 2 * K;
            uint32_t words[K];
#pragma unroll
            for (int i = 0; i < K; i += 4)
                *(uint4 *)(words + i) = *(const uint4 *)(from + 2 * i);
            float best = -INFINITY;
#pragma unroll
            for (int g = 0; g < 4; g++) {
                if (first + g >= group)
                    break;
                float sum = 0;
#pragma unroll
                for (int i = 0; i < K; i++) {
                    const uint32_t least = words[i / 2], most = words[K / 2 + i / 2];
                    const uint32_t bound = q[g][i] >= 0 ? most : least;
                    sum += q[g][i] * (i % 2 ? high_of(bound) : low_of(bound));
                }
#pragma unroll
                for (int half = LANES / 2; half; half /= 2)
                    sum += __shfl_down_sync(~0u, sum, half, LANES);
                if (sum > best)
                    best = sum;
            }
            if (lane == 0 && b < c.own) {
                float *out = c.scores + (size_t)head * c.own + b;
                *out = first && *out > best ? *out : best;
            }
        }
    }
}

/* ---- the best ---- */

/* Orders as scores do; NaN is lowest, and zeros are equal. */
static __device__ __forceinline__ uint32_t key_of(float score)
{
    score += 0.0f;
    const uint32_t u = __float_as_uint(score);
    return score != score ? 0 : u >> 31 ? ~u : u | 0x80000000u;
}

struct found {
    uint32_t key, mask, above;
};

/* Sums of x over the threads before and with this one. sums [32] */
static __device__ __forceinline__ uint32_t scan(uint32_t x, uint32_t *sums)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 1; k < 32; k *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, x, k);
        x += lane >= k ? other : 0;
    }
    __syncthreads();
    if (lane == 31)
        sums[warp] = x;
    __syncthreads();
    uint32_t before = lane < warp ? sums[lane] : 0;
    return x + __reduce_add_sync(~0u, before);
}

/* The k-th highest key, digit by digit. */
static __device__ void threshold(const float *scores, uint32_t first, uint32_t end, uint32_t k, uint32_t *bins,
                                 uint32_t *sums, struct found *f)
{
    for (int pass = 0; pass < 3; pass++) {
        const uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, digits = pass < 2 ? 2047 : 1023;
        for (uint32_t i = threadIdx.x; i < BINS; i += CHOOSE_THREADS)
            bins[i] = 0;
        __syncthreads();
        const struct found now = *f;
        for (uint32_t i = first + threadIdx.x; i < end; i += CHOOSE_THREADS) {
            const uint32_t key = key_of(scores[i]);
            if ((key & now.mask) == now.key)
                atomicAdd(&bins[key >> shift & digits], 1);
        }
        __syncthreads();
        /* thread t has the digits 2047 - 2t and below it, from the highest down */
        const uint32_t d = BINS - 1 - 2 * threadIdx.x, a = bins[d], b = bins[d - 1],
                       upto = now.above + scan(a + b, sums), before = upto - a - b;
        if (before < k && upto >= k) { /* one thread */
            const bool second = before + a < k;
            f->key = now.key | (second ? d - 1 : d) << shift;
            f->mask = now.mask | digits << shift;
            f->above = second ? before + a : before;
        }
        __syncthreads();
    }
}

/* A block of threads a KV head. */
static __global__ void __launch_bounds__(CHOOSE_THREADS) choose(const __grid_constant__ struct cuda_quest c)
{
    __shared__ uint32_t bins[BINS], sums[32];
    __shared__ struct found f;
    const uint32_t head = blockIdx.x, k = c.budget - CUDA_QUEST_FORCED, first = 1, end = c.own - 2;
    const float *scores = c.scores + (size_t)head * c.own;
    uint32_t *list = c.list ? c.list + (size_t)head * c.budget : NULL, *slots = c.slots_out + (size_t)head * c.budget;
    grid_next();
    grid_wait();
    const auto put = [&](uint32_t at, uint32_t b) {
        if (list)
            list[at] = b;
        slots[at] = c.slots[b];
    };
    if (threadIdx.x == 0)
        f = { 0, 0, 0 };
    if (threadIdx.x < CUDA_QUEST_FORCED)
        put(threadIdx.x ? c.budget - CUDA_QUEST_FORCED + threadIdx.x : 0, threadIdx.x ? c.own - 3 + threadIdx.x : 0);
    __syncthreads();
    if (!k)
        return;
    threshold(scores, first, end, k, bins, sums, &f);
    /* a thread has a run of blocks, so that the list ascends and ties go to the lower */
    const uint32_t run = (end - first + CHOOSE_THREADS - 1) / CHOOSE_THREADS, begin = first + threadIdx.x * run,
                   stop = min(begin + run, end);
    uint32_t above = 0, equal = 0;
    for (uint32_t b = begin; b < stop; b++) {
        const uint32_t key = key_of(scores[b]);
        above += key > f.key;
        equal += key == f.key;
    }
    const uint32_t ties = k - f.above, ties_before = scan(equal, sums) - equal,
                   mine = above + (ties_before >= ties ? 0 : min(equal, ties - ties_before));
    uint32_t at = 1 + scan(mine, sums) - mine, left = ties_before >= ties ? 0 : ties - ties_before;
    for (uint32_t b = begin; b < stop; b++) {
        const uint32_t key = key_of(scores[b]);
        if (key < f.key || (key == f.key && !left))
            continue;
        left -= key == f.key;
        put(at++, b);
    }
}

/* ---- launchers ---- */

extern "C" int cuda_quest_sketch(const struct cuda_kv *open, const struct cuda_sketches *sketches, uint32_t layer,
                                 const uint32_t *from, const uint32_t *to, uint32_t n, void *stream)
{
    const dim3 grid(n, open->n_kv_heads);
    if (!n)
        return 0;
    return open->head_dim == 128  ? grid_launch(sketch<128>, grid, 128, 0, stream, *open, *sketches, layer, from, to)
           : open->head_dim == 64 ? grid_launch(sketch<64>, grid, 64, 0, stream, *open, *sketches, layer, from, to)
                                  : (int)cudaErrorInvalidValue;
}

extern "C" int cuda_quest_run(const struct cuda_kv *kv, const struct cuda_sketches *sketches, uint32_t layer,
                              const struct cuda_quest *c, void *stream)
{
    if (c->budget < CUDA_QUEST_FORCED || c->budget > c->own || (kv->head_dim != 128 && kv->head_dim != 64))
        return cudaErrorInvalidValue;
    const uint32_t want = (c->own + 63) / 64; /* four times round, where there is enough */
    const dim3 grid(want < 264 ? want : 264, kv->n_kv_heads);
    const int e = kv->head_dim == 128 ? grid_launch(score<128>, grid, 256, 0, stream, *kv, *sketches, layer, *c)
                                      : grid_launch(score<64>, grid, 256, 0, stream, *kv, *sketches, layer, *c);
    return e ? e : grid_launch(choose, dim3(kv->n_kv_heads), CHOOSE_THREADS, 0, stream, *c);
}
