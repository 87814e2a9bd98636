/* Quest: bounds of blocks, scores, the best by score. Sums and choices as kernels/cpu/selector_quest.c and kernels/selector.c make them. */
#include <cuda_runtime.h>

#include "kernels/cuda/flush.cuh"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quest.h"
#include "kernels/cuda/wgmma.cuh"

enum { BLOCK = 64, LANES = 16, CHOOSE_THREADS = 1024, BINS = 2048, FEW = 512, VERY_FEW = 64, AT_ONCE = 16 };

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

/* Sketches come to shared memory, CHUNK blocks at a time of up to HEADS KV heads, one bulk copy a block; a warp keeps four queries of one head. */
enum { HEADS = 8, CHUNK = 8, STAGES = 3, SCORERS = HEADS * 32 };

template <int D> struct ring {
    static constexpr uint32_t HEAD = D * 4, STAGE = CHUNK * HEADS * HEAD, SHARED = STAGES * STAGE + 64;
};

/* What a block of threads scores: blocks first .. end - 1, `heads` KV heads from `head` on. */
struct share {
    uint32_t first, end, head, heads, rounds; /* rounds: it goes round so often, for four queries of a head each time */
};

template <int D>
static __device__ __forceinline__ void bring(const uint8_t *const *sketches, size_t at, const struct share &x,
                                             uint8_t *stages, uint64_t *full, uint64_t *empty)
{
    const uint32_t lane = threadIdx.x % 32, bytes = x.heads * ring<D>::HEAD;
    uint32_t stage = 0, parity = 0;
    for (uint32_t round = 0; round < x.rounds; round++) {
        const uint8_t *next = x.first + lane < x.end ? sketches[x.first + lane] : NULL;
        for (uint32_t base = x.first; base < x.end; base += 32) {
            const uint8_t *from = next;
            next = base + 32 + lane < x.end ? sketches[base + 32 + lane] : NULL;
            for (uint32_t chunk = 0; chunk < 32 && base + chunk < x.end; chunk += CHUNK) {
                if (lane == chunk) {
                    barrier_wait(&empty[stage], parity ^ 1);
                    barrier_expect(&full[stage], min(x.end - base - chunk, (uint32_t)CHUNK) * bytes);
                }
                __syncwarp();
                if (lane / CHUNK == chunk / CHUNK && base + lane < x.end)
                    bulk_load(stages + stage * ring<D>::STAGE + lane % CHUNK * HEADS * ring<D>::HEAD,
                              from + at + x.head * ring<D>::HEAD, bytes, &full[stage]);
                if (++stage == STAGES) {
                    stage = 0;
                    parity ^= 1;
                }
            }
        }
    }
}

/* Four queries of a half warp, lane l with the channels 16 i + l; of two channels a mask, which of their bounds are the largest. */
template <int D> struct asked {
    static constexpr int K = D / LANES;
    float q[4][K];
    uint32_t largest[4][K / 2];
};

/* The sums of the lanes' products, as a tree over the half warp, and the highest of the four; in all lanes. n: queries that are there. */
template <int D>
static __device__ __forceinline__ float highest(const struct asked<D> &a, const uint32_t (&words)[D / LANES],
                                                uint32_t n, uint32_t lane)
{
    constexpr int K = D / LANES;
    float sum[4];
#pragma unroll
    for (int g = 0; g < 4; g++) {
        sum[g] = 0;
#pragma unroll
        for (int i = 0; i < K / 2; i++) {
            const uint32_t m = a.largest[g][i], two = (words[i] & ~m) | (words[K / 2 + i] & m);
            sum[g] = add(sum[g], mul(a.q[g][2 * i], low_of(two)));
            sum[g] = add(sum[g], mul(a.q[g][2 * i + 1], high_of(two)));
        }
    }
    /* lanes that differ in bits 3 and 2 go on with other queries, so that one exchange serves two */
    const bool upper = lane & 8, odd = lane & 4;
    float x[2], y;
#pragma unroll
    for (int i = 0; i < 2; i++)
        x[i] = add(upper ? sum[2 + i] : sum[i], __shfl_xor_sync(~0u, upper ? sum[i] : sum[2 + i], 8));
    y = add(odd ? x[1] : x[0], __shfl_xor_sync(~0u, odd ? x[0] : x[1], 4));
    y = add(y, __shfl_xor_sync(~0u, y, 2));
    y = add(y, __shfl_xor_sync(~0u, y, 1));
    y = y > -INFINITY && (upper ? 2 : 0) + (odd ? 1 : 0) < (int)n ? y : -INFINITY; /* NaN is lowest */
    float other = __shfl_xor_sync(~0u, y, 4);
    y = odd ? (y > other ? y : other) : (other > y ? other : y); /* of equal ones the first */
    other = __shfl_xor_sync(~0u, y, 8);
    return upper ? (y > other ? y : other) : (other > y ? other : y);
}

template <int D>
static __device__ __forceinline__ void weigh_up(const uint16_t *queries, uint32_t group, const struct share &x,
                                                const uint8_t *stages, uint64_t *full, uint64_t *empty, float *scores,
                                                uint32_t own_max)
{
    constexpr int K = D / LANES;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % LANES, half = threadIdx.x / LANES % 2,
                   warps = HEADS / x.heads /* of a head */, head = warp % x.heads, mine = warp / x.heads;
    uint32_t stage = 0, parity = 0;
    scores += (size_t)(x.head + head) * own_max;
    queries += (x.head + head) * group * D + lane;
    for (uint32_t first = 0; first < group; first += 4) {
        struct asked<D> a;
#pragma unroll
        for (int g = 0; g < 4; g++)
#pragma unroll
            for (int i = 0; i < K; i++)
                a.q[g][i] = first + g < group ? low_of(queries[(first + g) * D + i * LANES]) : 0.0f;
#pragma unroll
        for (int g = 0; g < 4; g++)
#pragma unroll
            for (int i = 0; i < K / 2; i++)
                a.largest[g][i] = (a.q[g][2 * i] >= 0 ? 0xFFFF : 0) | (a.q[g][2 * i + 1] >= 0 ? 0xFFFF0000 : 0);
        for (uint32_t base = x.first; base < x.end; base += CHUNK) {
            barrier_wait(&full[stage], parity);
            const uint8_t *from = stages + stage * ring<D>::STAGE + head * ring<D>::HEAD + lane * 4 * K;
            for (uint32_t i = 2 * mine; mine < warps && i < CHUNK;
                 i += 2 * warps) { /* what was not brought is passed over */
                const uint32_t b = base + i + half;
                uint32_t words[K];
#pragma unroll
                for (int w = 0; w < K; w += 4)
                    *(uint4 *)(words + w) = *(const uint4 *)(from + (i + half) * HEADS * ring<D>::HEAD + 4 * w);
                const float best = highest<D>(a, words, group - first, lane);
                if (lane == 0 && b < x.end)
                    scores[b] = first && scores[b] > best ? scores[b] : best;
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                barrier_arrive(&empty[stage]);
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

/* blockIdx.x: a share of the blocks; y: HEADS KV heads; z: the job. The last warp brings sketches. */
template <int D>
static __global__ void __launch_bounds__(SCORERS + 32, 2)
    score(const __grid_constant__ struct cuda_kv kv, size_t at, const __grid_constant__ struct cuda_quest c)
{
    extern __shared__ __align__(128) uint8_t stages[];
    uint64_t *full = (uint64_t *)(stages + STAGES * ring<D>::STAGE), *empty = full + STAGES;
    const uint32_t group = kv.n_heads / kv.n_kv_heads;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], HEADS);
        }
        shared_fence();
    }
    __syncthreads();
    grid_next();
    const struct cuda_quest_job job = c.jobs[blockIdx.z]; /* comes with the plan: no kernel writes it */
    grid_wait();
    if (job.budget > job.own)
        return;
    const struct share x = { (uint32_t)((uint64_t)job.own * blockIdx.x / gridDim.x),
                             (uint32_t)((uint64_t)job.own * (blockIdx.x + 1) / gridDim.x), blockIdx.y * HEADS,
                             min(kv.n_kv_heads - blockIdx.y * HEADS, (uint32_t)HEADS), (group + 3) / 4 };
    if (threadIdx.x / 32 == HEADS)
        bring<D>(c.sketches + job.sketches, at, x, stages, full, empty);
    else
        weigh_up<D>((const uint16_t *)c.q + (size_t)job.row * kv.n_heads * D, group, x, stages, full, empty,
                    c.scores + (size_t)blockIdx.z * kv.n_kv_heads * c.own_max, c.own_max);
}

/* ---- the best ---- */

/* Orders as scores do; NaN is lowest, and zeros are equal, denormal numbers among them. */
static __device__ __forceinline__ uint32_t key_of(float score)
{
    score = add(score, 0.0f);
    const uint32_t u = __float_as_uint(score);
    return score != score ? 0 : u >> 31 ? ~u : u | 0x80000000u;
}

static __device__ __forceinline__ float score_of(uint32_t key)
{
    return __uint_as_float(key >> 31 ? key & 0x7FFFFFFF : ~key);
}

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

/* Keys of blocks: in shared memory, if there is room. */
template <bool HELD> struct keys {
    const uint32_t *held;
    const float *scores;
    __device__ __forceinline__ uint32_t of(uint32_t block) const
    {
        return HELD ? held[block] : key_of(scores[block]);
    }
};

/* fn(block, key) of each candidate, by all threads. */
template <bool HELD, typename F>
static __device__ __forceinline__ void each(const struct keys<HELD> &keys, const struct candidates &a, F fn)
{
    if (!a.leaf) {
#pragma unroll 4
        for (uint32_t b = a.first + threadIdx.x; b < a.end; b += CHOOSE_THREADS)
            fn(b, keys.of(b));
        return;
    }
    for (uint32_t i = threadIdx.x; i < a.n; i += CHOOSE_THREADS) {
        const uint32_t b = candidate(a, i);
        if (b < a.end)
            fn(b, keys.of(b));
    }
}

/* A choice: of keys least .. most, `left` are still to be found; there are no more than n of them. */
struct narrow {
    uint32_t least, most, left, n;
};

struct shared {
    uint32_t bins[BINS], sums[32], least[32], most[32], some[FEW], key[FEW], n_some;
    uint32_t digit, left, n; /* what find() found */
};

static __device__ __forceinline__ void put(uint32_t *list, uint32_t block)
{
    atomicOr(&list[block / 32], 1u << block % 32);
}

/* The least and the largest of the keys of which in(key) holds. */
template <bool HELD, typename F>
static __device__ __forceinline__ void bounds(const struct keys<HELD> &keys, const struct candidates &a, F in,
                                              struct shared *s, struct narrow *now)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t least = ~0u, most = 0;
    each(keys, a, [&](uint32_t, uint32_t key) {
        if (in(key)) {
            least = min(least, key);
            most = max(most, key);
        }
    });
    least = __reduce_min_sync(~0u, least);
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) {
        s->least[warp] = least;
        s->most[warp] = most;
    }
    __syncthreads();
    now->least = __reduce_min_sync(~0u, s->least[lane]);
    now->most = __reduce_max_sync(~0u, s->most[lane]);
}

/* The digit of the left-th highest key, how many are left of those that have it, and how many have it. digit_of: BINS if the key does not count. */
template <bool HELD, typename F>
static __device__ __forceinline__ void find(const struct keys<HELD> &keys, const struct candidates &a, F digit_of,
                                            uint32_t left, struct shared *s)
{
    each(keys, a, [&](uint32_t, uint32_t key) {
        const uint32_t digit = digit_of(key);
        if (digit < BINS)
            atomicAdd(&s->bins[digit], 1);
    });
    __syncthreads();
    /* thread t has the digits 2047 - 2t and below it, from the highest down */
    const uint32_t d = BINS - 1 - 2 * threadIdx.x, x = s->bins[d], y = s->bins[d - 1], upto = scan(x + y, s->sums),
                   before = upto - x - y;
    if (before < left && upto >= left) { /* one thread */
        const bool second = before + x < left;
        s->digit = second ? d - 1 : d;
        s->left = left - before - (second ? x : 0);
        s->n = second ? y : x;
    }
    s->bins[d] = s->bins[d - 1] = 0;
    __syncthreads();
}

/* Keys that lie beyond are chosen, or not; the k-th highest one, and as few others as can be, are between. */
template <bool HELD>
static __device__ __forceinline__ struct narrow threshold(const struct keys<HELD> &keys, const struct candidates &a,
                                                          uint32_t k, struct shared *s)
{
    struct narrow now = { 0, ~0u, k, a.n };
    if (a.n <= VERY_FEW)
        return now;
    for (uint32_t i = threadIdx.x; i < BINS; i += CHOOSE_THREADS)
        s->bins[i] = 0;
    bounds(
        keys, a, [](uint32_t) { return true; }, s, &now);
    now.n = ~0u;
    /* Scores lie evenly about, as bits of floats they stand in few bins: first digits of what they differ in, which rises with them, rounded or not. */
    const float low = score_of(now.least), by = (float)(BINS - 1) / (score_of(now.most) - low);
    if (a.n > FEW && now.least < now.most && by > 0 && by < INFINITY) {
        const auto digit_of = [&](uint32_t key) { return (uint32_t)((score_of(key) - low) * by); };
        find(keys, a, digit_of, now.left, s);
        const uint32_t digit = s->digit;
        now.left = s->left;
        now.n = s->n;
        bounds(
            keys, a, [&](uint32_t key) { return digit_of(key) == digit; }, s, &now);
    }
    /* then of their bits, as often as needed */
    while (now.n > FEW && now.least < now.most) {
        const uint32_t shift = max(21 - __clz(now.most - now.least), 0);
        find(
            keys, a,
            [&](uint32_t key) {
                return key >= now.least && key <= now.most ? (key - now.least) >> shift : (uint32_t)BINS;
            },
            now.left, s);
        now.least += s->digit << shift;
        now.most = min(now.most, now.least + (1u << shift) - 1);
        now.left = s->left;
        now.n = s->n;
    }
    return now;
}

/* The k best of the candidates, k > 0 and no more than there are. */
template <bool HELD>
static __device__ __forceinline__ void best(const struct keys<HELD> &keys, const struct candidates &a, uint32_t k,
                                            uint32_t *list, struct shared *s)
{
    __syncthreads();
    if (threadIdx.x == 0)
        s->n_some = 0;
    const struct narrow now = threshold(keys, a, k, s);
    const bool few = now.n <= FEW;
    __syncthreads();
    each(keys, a, [&](uint32_t b, uint32_t key) {
        if (key > now.most) {
            put(list, b);
        } else if (few && key >= now.least) {
            const uint32_t at = atomicAdd(&s->n_some, 1);
            s->some[at] = b;
            s->key[at] = key;
        }
    });
    __syncthreads();
    if (few) {
        const uint32_t i = threadIdx.x, n = s->n_some;
        uint32_t before = 0;
        if (i >= n)
            return;
        for (uint32_t j = 0; j < n; j++)
            before += s->key[j] > s->key[i] || (s->key[j] == s->key[i] && s->some[j] < s->some[i]);
        if (before < now.left)
            put(list, s->some[i]);
        return;
    }
    uint32_t left = now.left; /* many with one key: the lowest blocks */
    for (uint32_t from = 0; from < a.n && left; from += CHOOSE_THREADS) {
        const uint32_t b = candidate(a, from + threadIdx.x);
        const bool equal = b < a.end && keys.of(b) == now.least;
        const uint32_t upto = scan(equal, s->sums);
        if (equal && upto <= left)
            put(list, b);
        if (threadIdx.x == CHOOSE_THREADS - 1)
            s->n_some = upto;
        __syncthreads();
        left -= min(left, s->n_some);
    }
}

/* A block of threads a KV head and job. HELD: there is room in shared memory for the keys of own_max blocks. */
template <bool HELD>
static __global__ void __launch_bounds__(CHOOSE_THREADS, 1)
    choose(uint32_t n_kv_heads, const __grid_constant__ struct cuda_quest c)
{
    extern __shared__ struct shared s[]; /* behind it the keys */
    uint32_t *held = (uint32_t *)(s + 1);
    const uint32_t head = blockIdx.x;
    grid_next();
    const struct cuda_quest_job job = c.jobs[blockIdx.y]; /* comes with the plan: no kernel writes it */
    grid_wait();
    const float *scores = c.scores + ((size_t)blockIdx.y * n_kv_heads + head) * c.own_max;
    uint32_t *list = (uint32_t *)(c.lists + job.list + (size_t)head * job.words);
    const bool all = job.budget > job.own;
    for (uint32_t i = threadIdx.x; i < 2 * job.words; i += CHOOSE_THREADS)
        list[i] = !all || i * 32 > job.own ? 0 : (i + 1) * 32 <= job.own + 1 ? ~0u : (1u << (job.own + 1) % 32) - 1;
    if (all)
        return;
    const struct keys<HELD> keys = {
        held, scores
    };
    for (uint32_t from = threadIdx.x; HELD && from < job.own; from += AT_ONCE * CHOOSE_THREADS) {
        float x[AT_ONCE]; /* one round trip for all of them */
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            x[i] = from + i * CHOOSE_THREADS < job.own ? scores[from + i * CHOOSE_THREADS] : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            if (from + i * CHOOSE_THREADS < job.own)
                held[from + i * CHOOSE_THREADS] = key_of(x[i]);
    }
    __syncthreads();
    if (threadIdx.x < CUDA_QUEST_FORCED)
        put(list, threadIdx.x ? job.own - 3 + threadIdx.x : 0);
    const uint32_t budget = job.budget - CUDA_QUEST_FORCED;
    struct candidates a = { 1, job.own - 2, job.own - 3, 0, 0 };
    if (!c.leaf_blocks) {
        if (budget)
            best(keys, a, budget, list, s);
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
            best(keys, a, (uint32_t)(share - given), list, s);
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
    const bool held = c->own_max <= 48 << 10; /* shared memory is 227 KB */
    const size_t shared = sizeof(struct shared) + (held ? c->own_max * sizeof(uint32_t) : 0);
    return c->n_jobs ? grid_launch(held ? choose<true> : choose<false>, dim3(n_lists, c->n_jobs), CHOOSE_THREADS,
                                   shared, stream, n_lists, *c)
                     : 0;
}

template <int D>
static int score_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream)
{
    const uint32_t groups = (kv->n_kv_heads + HEADS - 1) / HEADS, want = (c->own_max + CHUNK - 1) / CHUNK,
                   most = 264 / (c->n_jobs * groups); /* two blocks of threads a multiprocessor */
    const dim3 grid(want < 1 ? 1 : want < most ? want : most ? most : 1, groups, c->n_jobs);
    return grid_launch(score<D>, grid, SCORERS + 32, ring<D>::SHARED, stream, *kv, layer * c->layer_bytes, *c);
}

extern "C" int cuda_quest_score(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream)
{
    if (kv->head_dim != 128 && kv->head_dim != 64)
        return cudaErrorInvalidValue;
    if (!c->n_jobs)
        return 0;
    return kv->head_dim == 128 ? score_run<128>(kv, layer, c, stream) : score_run<64>(kv, layer, c, stream);
}

extern "C" int cuda_quest_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_quest *c, void *stream)
{
    const int e = cuda_quest_score(kv, layer, c, stream);
    return e ? e : cuda_quest_choose(kv->n_kv_heads, c, stream);
}
