/* Quest: bounds of blocks, scores, the best by score. Sums and choices as kernels/cpu/selector_quest.c and kernels/selector.c make them. */
#include <cuda_runtime.h>

#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quest.h"

enum { BLOCK = 64, LANES = 16, CHOOSE_THREADS = 1024, BINS = 2048, HELD = 16 };

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
static __global__ void __launch_bounds__(D) sketch(const __grid_constant__ struct cuda_kv open, uint32_t kv_layer,
                                                   size_t at, const struct cuda_quest_sketch *jobs)
{
    const uint32_t head = blockIdx.y, c = threadIdx.x;
    grid_next();
    grid_wait();
    const struct cuda_quest_sketch job = jobs[blockIdx.x];
    const uint8_t *k = block_at(open, job.from, kv_layer) + 2 * head * open.part_bytes + c / 64 * 8192 + c % 8 * 2;
    float least = 0, most = 0;
    for (uint32_t p = 0; p < BLOCK; p++) {
        const float x = low_of(*(const uint16_t *)(k + p * 128 + ((c % 64 / 8) ^ (p & 7)) * 16));
        least = p == 0 || x < least ? x : least;
        most = p == 0 || x > most ? x : most;
    }
    uint16_t *out = (uint16_t *)(job.to + at) + head * 2 * D + c % LANES * (D / 8) + c / LANES;
    out[0] = (uint16_t)(__float_as_uint(least) >> 16);
    out[D / LANES] = (uint16_t)(__float_as_uint(most) >> 16);
}

/* ---- scores ---- */

/* Half a warp a block: a lane has the channels 16 i + lane. blockIdx.y: the KV head; z: the job. */
template <int D>
static __global__ void __launch_bounds__(256)
    score(const __grid_constant__ struct cuda_kv kv, size_t at, const __grid_constant__ struct cuda_quest c)
{
    constexpr int K = D / LANES;
    const uint32_t lane = threadIdx.x % LANES, head = blockIdx.y, group = kv.n_heads / kv.n_kv_heads,
                   step = gridDim.x * blockDim.x / LANES;
    grid_next();
    grid_wait();
    const struct cuda_quest_job job = c.jobs[blockIdx.z];
    const uint16_t *queries = (const uint16_t *)c.q + (size_t)job.row * kv.n_heads * D;
    const uint8_t *const *sketches = c.sketches + job.sketches;
    float *scores = c.scores + ((size_t)blockIdx.z * kv.n_kv_heads + head) * c.own_max;
    if (job.budget > job.own)
        return;
    for (uint32_t first = 0; first < group; first += 4) {
        float q[4][K];
#pragma unroll
        for (int g = 0; g < 4; g++)
#pragma unroll
            for (int i = 0; i < K; i++)
                q[g][i] = first + g < group ? low_of(queries[(head * group + first + g) * D + i * LANES + lane]) : 0.0f;
        /* both halves of a warp go round as often, for the shuffles */
        for (uint32_t b0 = blockIdx.x * blockDim.x / LANES + threadIdx.x / 32 * 2; b0 < job.own; b0 += step) {
            const uint32_t b = b0 + threadIdx.x / LANES % 2, from_block = b < job.own ? b : b0;
            const uint16_t *from = (const uint16_t *)(sketches[from_block] + at) + head * 2 * D + lane * 2 * K;
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
            if (lane == 0 && b < job.own)
                scores[b] = first && scores[b] > best ? scores[b] : best;
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

/* Blocks to choose from, in ascending order: all, or those of a slot. */
struct candidates {
    uint32_t first, end, n; /* of blocks first .. end - 1; numbers 0 .. n - 1 are some of them, each at most once */
    uint32_t slot, leaf;    /* leaf 0: all */
};

/* The block of number i; end: none */
static __device__ __forceinline__ uint32_t candidate(const struct candidates &a, uint32_t i)
{
    const uint32_t b = a.leaf ? (i / a.leaf * CUDA_QUEST_SLOTS + a.slot) * a.leaf + i % a.leaf : a.first + i;
    return i < a.n && b >= a.first && b < a.end ? b : a.end;
}

/* A thread's run of candidates, so that ties go to the lower; their keys, where there are few enough to be kept. */
struct run {
    uint32_t first, n, there, key[HELD]; /* there: bits, which of them are candidates */
    bool held;
};

/* fn(number, key, is it a candidate?) of each; as often in all threads. */
template <typename F>
static __device__ __forceinline__ void each(const float *scores, const struct candidates &a, const struct run &r, F fn)
{
    if (r.held) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (i >= (int)r.n)
                break;
            fn(r.first + i, r.key[i], r.there >> i & 1);
        }
        return;
    }
    for (uint32_t i = 0; i < r.n; i++) {
        const uint32_t b = candidate(a, r.first + i);
        fn(r.first + i, b < a.end ? key_of(scores[b]) : 0, b < a.end);
    }
}

/* The k-th highest key, digit by digit. */
static __device__ __forceinline__ void threshold(const float *scores, const struct candidates &a, const struct run &r,
                                                 uint32_t k, uint32_t *bins, uint32_t *sums, struct found *f)
{
    const uint32_t lane = threadIdx.x % 32;
    for (int pass = 0; pass < 3; pass++) {
        const uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, digits = pass < 2 ? 2047 : 1023;
        for (uint32_t i = threadIdx.x; i < BINS; i += CHOOSE_THREADS)
            bins[i] = 0;
        __syncthreads();
        const struct found now = *f;
        each(scores, a, r, [&](uint32_t, uint32_t key, bool there) {
            const uint32_t digit = there && (key & now.mask) == now.key ? key >> shift & digits : BINS;
            /* first digits are often the same: lanes that agree with the first of them add together */
            const uint32_t some = __ballot_sync(~0u, digit < BINS);
            if (!some)
                return;
            const uint32_t lead = __ffs(some) - 1, popular = __shfl_sync(~0u, digit, lead),
                           same = __ballot_sync(~0u, digit == popular);
            if (lane == lead)
                atomicAdd(&bins[popular], __popc(same));
            else if (digit < BINS && digit != popular)
                atomicAdd(&bins[digit], 1);
        });
        __syncthreads();
        /* thread t has the digits 2047 - 2t and below it, from the highest down */
        const uint32_t d = BINS - 1 - 2 * threadIdx.x, x = bins[d], y = bins[d - 1],
                       upto = now.above + scan(x + y, sums), before = upto - x - y;
        if (before < k && upto >= k) { /* one thread */
            const bool second = before + x < k;
            f->key = now.key | (second ? d - 1 : d) << shift;
            f->mask = now.mask | digits << shift;
            f->above = second ? before + x : before;
        }
        __syncthreads();
    }
}

static __device__ __forceinline__ void put(uint32_t *list, uint32_t block)
{
    atomicOr(&list[block / 32], 1u << block % 32);
}

/* The k best of the candidates, k > 0 and no more than there are. */
static __device__ __forceinline__ void best(const float *scores, const struct candidates &a, uint32_t k, uint32_t *list,
                                            uint32_t *bins, uint32_t *sums, struct found *f)
{
    const uint32_t n = (a.n + CHOOSE_THREADS - 1) / CHOOSE_THREADS;
    struct run r = { 0, n, 0, {}, n <= HELD };
    r.first = threadIdx.x * n;
    if (r.held) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t b = i < (int)n ? candidate(a, r.first + i) : a.end;
            r.key[i] = b < a.end ? key_of(scores[b]) : 0;
            r.there |= (uint32_t)(b < a.end) << i;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *f = { 0, 0, 0 };
    __syncthreads();
    threshold(scores, a, r, k, bins, sums, f);
    const struct found found = *f;
    uint32_t equal = 0;
    each(scores, a, r, [&](uint32_t i, uint32_t key, bool there) {
        if (there && key > found.key)
            put(list, candidate(a, i));
        equal += there && key == found.key;
    });
    const uint32_t ties = k - found.above, before = scan(equal, sums) - equal;
    uint32_t left = before >= ties ? 0 : min(equal, ties - before);
    if (left)
        each(scores, a, r, [&](uint32_t i, uint32_t key, bool there) {
            if (!left || !there || key != found.key)
                return;
            put(list, candidate(a, i));
            left--;
        });
}

/* A block of threads a KV head and job. */
static __global__ void __launch_bounds__(CHOOSE_THREADS)
    choose(uint32_t n_kv_heads, const __grid_constant__ struct cuda_quest c)
{
    __shared__ uint32_t bins[BINS], sums[32];
    __shared__ struct found f;
    const uint32_t head = blockIdx.x;
    grid_next();
    grid_wait();
    const struct cuda_quest_job job = c.jobs[blockIdx.y];
    const float *scores = c.scores + ((size_t)blockIdx.y * n_kv_heads + head) * c.own_max;
    uint32_t *list = (uint32_t *)(c.lists + job.list + (size_t)head * job.words);
    const bool all = job.budget > job.own;
    for (uint32_t i = threadIdx.x; i < 2 * job.words; i += CHOOSE_THREADS)
        list[i] = !all || i * 32 > job.own ? 0 : (i + 1) * 32 <= job.own + 1 ? ~0u : (1u << (job.own + 1) % 32) - 1;
    __syncthreads();
    if (all)
        return;
    if (threadIdx.x < CUDA_QUEST_FORCED)
        put(list, threadIdx.x ? job.own - 3 + threadIdx.x : 0);
    const uint32_t budget = job.budget - CUDA_QUEST_FORCED;
    struct candidates a = { 1, job.own - 2, job.own - 3, 0, 0 };
    if (!c.leaf_blocks) {
        if (budget)
            best(scores, a, budget, list, bins, sums, &f);
        return;
    }
    /* each slot has what the budget, dealt evenly over the blocks in the order of slots, gives to its own */
    const uint32_t slot_leaf = c.leaf_blocks, every = slot_leaf * CUDA_QUEST_SLOTS, of_all = a.end - a.first;
    uint64_t before = 0, given = 0;
    a.leaf = slot_leaf;
    for (a.slot = 0; a.slot < CUDA_QUEST_SLOTS; a.slot++) {
        const uint32_t from = a.slot * slot_leaf, rest = a.end % every;
        a.n = a.end / every * slot_leaf + (rest > from ? min(rest - from, slot_leaf) : 0);
        before += a.n - (a.slot == 0 && a.n ? 1 : 0); /* block 0 is no candidate */
        const uint64_t share = before * budget / of_all;
        if (share > given)
            best(scores, a, (uint32_t)(share - given), list, bins, sums, &f);
        given = share;
    }
}

/* ---- launchers ---- */

extern "C" int cuda_quest_sketch(const struct cuda_kv *open, uint32_t kv_layer, size_t layer_bytes, uint32_t layer,
                                 const struct cuda_quest_sketch *jobs, uint32_t n, void *stream)
{
    const dim3 grid(n, open->n_kv_heads);
    const size_t at = layer * layer_bytes;
    if (!n)
        return 0;
    return open->head_dim == 128  ? grid_launch(sketch<128>, grid, 128, 0, stream, *open, kv_layer, at, jobs)
           : open->head_dim == 64 ? grid_launch(sketch<64>, grid, 64, 0, stream, *open, kv_layer, at, jobs)
                                  : (int)cudaErrorInvalidValue;
}

extern "C" int cuda_quest_choose(uint32_t n_lists, const struct cuda_quest *c, void *stream)
{
    return c->n_jobs ? grid_launch(choose, dim3(n_lists, c->n_jobs), CHOOSE_THREADS, 0, stream, n_lists, *c) : 0;
}

extern "C" int cuda_quest_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream)
{
    if (kv->head_dim != 128 && kv->head_dim != 64)
        return cudaErrorInvalidValue;
    if (!c->n_jobs)
        return 0;
    const uint32_t want = (c->own_max + 63) / 64, most = 264 / c->n_jobs; /* four times round, where there is enough */
    const dim3 grid(want < 1 ? 1 : want < most ? want : most ? most : 1, kv->n_kv_heads, c->n_jobs);
    const size_t at = layer * c->layer_bytes;
    const int e = kv->head_dim == 128 ? grid_launch(score<128>, grid, 256, 0, stream, *kv, at, *c)
                                      : grid_launch(score<64>, grid, 256, 0, stream, *kv, at, *c);
    return e ? e : cuda_quest_choose(kv->n_kv_heads, c, stream);
}
