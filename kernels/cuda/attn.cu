/*
 * Attention over blocks of KV. A warpgroup has 64 query vectors of one KV head (of decode, four tiles of 16, most of them empty: memory is what
 * decode waits for) and walks over blocks, which one bulk copy each brings to shared memory: keys are rows along channels, values columns, both as
 * they are stored. Scores and outputs stay in registers; the same instructions serve decode and prefill, so a row has the same bits in both.
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { VECTORS = 16 /* ATTN_ROWS */, BLOCK = 64 /* KV_BLOCK */, HALF_BYTES = 8192 /* 64 positions, 64 channels */ };

template <int D, int GROUPS> struct walk {
    static constexpr int PART = BLOCK * D * 2, STAGE = 2 * PART, Q = GROUPS * 64 * D * 2,
                         STAGES = (GROUPS == 1 ? 2 : 4) * 128 / D, SHARED = Q + STAGES * STAGE + 192,
                         THREADS = (GROUPS + 1) * 128, SAVED = D / 2 + 4;
};

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ uint32_t pack2(float low, float high)
{
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

template <int D, int GROUPS>
static __device__ void produce(const struct cuda_kv &kv, uint32_t layer, const struct cuda_attend &a, uint8_t *stages,
                               uint64_t *full, uint64_t *empty)
{
    using W = walk<D, GROUPS>;
    const uint32_t lane = threadIdx.x % 32, n_units = *a.n_units;
    uint32_t stage = 0, parity = 0;
    uint64_t once; /* of decode, whose blocks are read once a step; prefill's are read by many */
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    for (uint32_t i = blockIdx.x; i < n_units; i += gridDim.x) {
        const struct cuda_unit u = a.units[i];
        const size_t head = u.head * 2 * kv.part_bytes;
        const struct lists l = lists_of(kv, a, u, u.vector, u.vector + GROUPS * 64);
        uint32_t next = lane < u.n_blocks ? a.slots[u.slot + lane] : 0, n_read = 0;
        for (uint32_t first = 0; first < u.n_blocks; first += 32) {
            const uint32_t slots = next;
            next = first + 32 + lane < u.n_blocks ? a.slots[u.slot + first + 32 + lane] : 0;
            for (uint32_t left = wanted(a, u, l, first, lane); left; left &= left - 1, n_read++) {
                const uint32_t slot = __shfl_sync(~0u, slots, __ffs(left) - 1);
                if (lane == 0) {
                    barrier_wait(&empty[stage], parity ^ 1);
                    barrier_expect(&full[stage], W::STAGE);
                    if (GROUPS == 1)
                        bulk_load_hint(stages + stage * W::STAGE, block_at(kv, slot, layer) + head, W::STAGE,
                                       &full[stage], once);
                    else
                        bulk_load(stages + stage * W::STAGE, block_at(kv, slot, layer) + head, W::STAGE, &full[stage]);
                }
                __syncwarp();
                if (++stage == W::STAGES) {
                    stage = 0;
                    parity ^= 1;
                }
            }
        }
        if (l.at && lane == 0)
            atomicAdd(a.skipped, u.n_blocks - n_read);
    }
}

/* The state of a thread: two vectors (rows t / 4 and t / 4 + 8 of its warp's tile), of each two columns in eight. */
template <int D> struct state {
    float m[2], l[2], o[D / 2];
};

template <int D> static __device__ __forceinline__ void state_clear(struct state<D> &x)
{
    x.m[0] = x.m[1] = -INFINITY;
    x.l[0] = x.l[1] = 0;
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        x.o[i] = 0;
}

/* live: which of the two are vectors at all; of decode's tiles few are. */
template <int D>
static __device__ __forceinline__ void state_push(const struct state<D> &x, const bool (&live)[2], float *to,
                                                  uint32_t stride)
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        if (live[i / 2 % 2])
            __stcg(&to[i * stride], x.o[i]);
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (live[i]) {
            __stcg(&to[(D / 2 + i) * stride], x.m[i]);
            __stcg(&to[(D / 2 + 2 + i) * stride], x.l[i]);
        }
}

/* Weights of a merge; beside an empty side the other's bits are kept. */
static __device__ __forceinline__ void merge_weights(float ma, float la, float mb, float lb, float *m, float *wa,
                                                     float *wb)
{
    *m = fmaxf(ma, mb);
    *wa = la == 0 ? 0.0f : lb == 0 ? 1.0f : exp2_fast(ma - *m);
    *wb = lb == 0 ? 0.0f : la == 0 ? 1.0f : exp2_fast(mb - *m);
}

/* x = merge(what stands at from, x) */
template <int D>
static __device__ __forceinline__ void state_merge(struct state<D> &x, const bool (&live)[2], const float *from,
                                                   uint32_t stride)
{
    float wa[2], wb[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float ma = live[i] ? __ldcg(&from[(D / 2 + i) * stride]) : 0.0f,
                    la = live[i] ? __ldcg(&from[(D / 2 + 2 + i) * stride]) : 0.0f;
        merge_weights(ma, la, x.m[i], x.l[i], &x.m[i], &wa[i], &wb[i]);
        x.l[i] = la * wa[i] + x.l[i] * wb[i];
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        const float a = live[i / 2 % 2] ? __ldcg(&from[i * stride]) : 0.0f;
        x.o[i] = a * wa[i / 2 % 2] + x.o[i] * wb[i / 2 % 2];
    }
}

/*
 * Scores of one block become weights (bf16 pairs, as the next product wants them); m, l and o follow. seen: how many of the block's positions the
 * two vectors see.
 */
template <int D>
static __device__ __forceinline__ void weigh(float (&s)[32], float c, const int (&seen)[2], struct state<D> &x,
                                             uint32_t (&p)[16])
{
    const int column = 2 * (threadIdx.x % 4);
    float old[2];
    if (seen[0] < BLOCK || seen[1] < BLOCK) {
#pragma unroll
        for (int j = 0; j < 32; j++)
            if (j / 4 * 8 + column + j % 2 >= seen[j / 2 % 2])
                s[j] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float most = s[2 * i];
#pragma unroll
        for (int j = 0; j < 8; j++)
            most = fmaxf(most, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float m = fmaxf(x.m[i], most * c), by = m == -INFINITY ? 0.0f : m;
        old[i] = exp2_fast(x.m[i] - by);
        x.m[i] = m;
        float l = x.l[i] * old[i];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float a = exp2_fast(fmaf(s[4 * j + 2 * i], c, -by)),
                        b = exp2_fast(fmaf(s[4 * j + 2 * i + 1], c, -by));
            l += a + b;
            p[j / 2 * 4 + j % 2 * 2 + i] = pack2(a, b);
        }
        x.l[i] = l;
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        x.o[i] *= old[i / 2 % 2];
}

template <int D>
static __device__ __forceinline__ void load_queries(const struct cuda_kv &kv, const struct cuda_attend &a,
                                                    const struct cuda_unit &u, uint32_t first, uint32_t group,
                                                    uint8_t *to)
{
    for (uint32_t i = threadIdx.x % 128; i < 64 * D / 8; i += 128) {
        const uint32_t r = i / (D / 8), c = i % (D / 8), v = first + r;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (v < u.n_vectors)
            x = *((const uint4 *)a.q +
                  ((size_t)(u.row + v / group) * kv.n_heads + u.head * group + v % group) * (D / 8) + c);
        *(uint4 *)(to + c / 8 * HALF_BYTES + r * 128 + ((c % 8) ^ (r & 7)) * 16) = x;
    }
}

template <int D> static __device__ __forceinline__ void put_state(const struct state<D> &x, float *tile)
{
    const uint32_t row = threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (column == 0) {
            tile[row + 8 * i] = x.m[i];
            tile[VECTORS + row + 8 * i] = x.l[i];
        }
        float *o = tile + 2 * VECTORS + (row + 8 * i) * D + column;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *(float2 *)(o + 8 * j) = make_float2(x.o[4 * j + 2 * i], x.o[4 * j + 2 * i + 1]);
    }
}

/* Partials of a unit's leaves on the stack; of a leaf none of whose blocks is read there is none, but its place. */
struct stacked {
    uint64_t filled;
    uint32_t leaf, depth; /* the leaf that is walked */
    bool some;            /* something of it was read */
};

template <int D>
static __device__ __forceinline__ void leaf_close(const struct cuda_attend &a, const struct cuda_unit &u,
                                                  const bool (&live)[2], float *stack, uint32_t threads,
                                                  struct state<D> &x, struct stacked *s)
{
    using W = walk<D, 1>;
    for (int r = 0; r < 2; r++) {
        x.l[r] += __shfl_xor_sync(~0u, x.l[r], 1);
        x.l[r] += __shfl_xor_sync(~0u, x.l[r], 2);
    }
    for (uint32_t n = a.merges[u.merges + s->leaf]; n && s->depth; n--) {
        s->depth--;
        if (s->filled >> s->depth & 1)
            state_merge<D>(x, live, stack + s->depth * W::SAVED * threads, threads);
        s->some = s->some || s->filled >> s->depth & 1;
    }
    if (++s->leaf * CUDA_LEAF_BLOCKS >= u.n_blocks)
        return;
    if (s->some)
        state_push<D>(x, live, stack + s->depth * W::SAVED * threads, threads);
    s->filled = (s->filled & ~((uint64_t)1 << s->depth)) | (uint64_t)s->some << s->depth;
    s->depth++;
    state_clear<D>(x);
    s->some = false;
}

template <int D, int GROUPS>
static __device__ void consume(const struct cuda_kv &kv, const struct cuda_attend &a, uint8_t *queries,
                               const uint8_t *stages, uint64_t *full, uint64_t *empty)
{
    using W = walk<D, GROUPS>;
    constexpr uint32_t threads = GROUPS * 128;
    const uint32_t wg = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32,
                   group = kv.n_heads / kv.n_kv_heads, n_units = *a.n_units;
    const float c = a.scale * 1.44269504f;
    uint8_t *q = queries + wg * 64 * D * 2;
    uint32_t stage = 0, parity = 0, place = blockIdx.x;
    if (GROUPS > 1)
        asm("mov.u32 %0, %%smid;" : "=r"(place));
    float *stack = a.stack + (size_t)place * a.depth * W::SAVED * threads + threadIdx.x;
    struct state<D> x;
    for (uint32_t i = blockIdx.x; i < n_units; i += gridDim.x) {
        const struct cuda_unit u = a.units[i];
        const uint32_t first = u.vector + wg * 64, mine = first + warp * VECTORS;
        const bool any = mine < u.n_vectors;
        int limit[2], before[2]; /* it sees positions before the first, of blocks from the second on */
        bool live[2];
        for (int r = 0; r < 2; r++)
            live[r] = mine + lane / 4 + 8 * r < u.n_vectors;
        for (int r = 0; r < 2; r++) {
            limit[r] = seen_by(u, mine + lane / 4 + 8 * r, group);
            before[r] = u.sees == CUDA_SEES_OWN ? (limit[r] - 1) / BLOCK : 0;
        }
        named_barrier(1 + wg, 128); /* the last unit's queries are read no more */
        load_queries<D>(kv, a, u, first, group, q);
        shared_fence();
        named_barrier(1 + wg, 128);
        const struct lists l = lists_of(kv, a, u, u.vector, u.vector + GROUPS * 64);
        struct stacked s = { 0, 0, 0, false };
        state_clear<D>(x);
        for (uint32_t ahead = 0; ahead < u.n_blocks; ahead += 32) {
            for (uint32_t left = wanted(a, u, l, ahead, lane); left; left &= left - 1) {
                const uint32_t b = ahead + __ffs(left) - 1;
                const uint8_t *k = stages + stage * W::STAGE, *v = k + W::PART;
                float y[32];
                uint32_t p[16];
                while (s.leaf < b / CUDA_LEAF_BLOCKS)
                    leaf_close<D>(a, u, live, stack, threads, x, &s);
                s.some = true;
                barrier_wait(&full[stage], parity);
                wgmma_fence();
#pragma unroll
                for (int step = 0; step < D / 16; step++)
                    wgmma_shared<64>::run(y, wgmma_rows(q + step / 4 * HALF_BYTES + step % 4 * 32),
                                          wgmma_rows(k + step / 4 * HALF_BYTES + step % 4 * 32), step == 0);
                wgmma_commit();
                wgmma_wait<0>();
                int seen[2] = { (int)b < before[0] ? 0 : limit[0] - (int)(b * BLOCK),
                                (int)b < before[1] ? 0 : limit[1] - (int)(b * BLOCK) };
                if (l.n > 1)
                    for (int r = 0; r < 2; r++)
                        seen[r] = reads(a, u, l, mine + lane / 4 + 8 * r, group, b) ? seen[r] : 0;
                weigh<D>(y, c, seen, x,
                         p); /* by empty warps too: a branch here would make products wait for each other */
                wgmma_fence();
#pragma unroll
                for (int step = 0; step < 4; step++)
                    wgmma_columns_of<D>::run(x.o, p + 4 * step, wgmma_columns(v + step * 2048, HALF_BYTES));
                wgmma_commit();
                wgmma_wait<0>();
                if (lane == 0)
                    barrier_arrive(&empty[stage]);
                if (++stage == W::STAGES) {
                    stage = 0;
                    parity ^= 1;
                }
            }
        }
        while (s.leaf * CUDA_LEAF_BLOCKS < u.n_blocks)
            leaf_close<D>(a, u, live, stack, threads, x, &s);
        if (any)
            put_state<D>(x, a.store + ((size_t)u.store + wg * 4 + warp) * VECTORS * (2 + D));
    }
}

template <int D, int GROUPS>
static __global__ void __launch_bounds__(walk<D, GROUPS>::THREADS, GROUPS == 1 ? 2 : 1)
    attend(const __grid_constant__ struct cuda_kv kv, uint32_t layer, const __grid_constant__ struct cuda_attend a)
{
    using W = walk<D, GROUPS>;
    extern __shared__ __align__(1024) uint8_t memory[];
    uint8_t *stages = memory + W::Q;
    uint64_t *full = (uint64_t *)(stages + W::STAGES * W::STAGE), *empty = full + W::STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < W::STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], GROUPS * 4);
        }
        shared_fence();
    }
    __syncthreads();
    grid_next();
    if (blockIdx.x < *a.n_units) { /* what comes with the plan, and no kernel writes, is brought near meanwhile */
        const struct cuda_unit u = a.units[blockIdx.x];
        if (threadIdx.x < u.n_blocks)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(a.slots + u.slot + threadIdx.x));
    }
    grid_wait();
    if (threadIdx.x < GROUPS * 128) { /* registers go to those who need them */
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(GROUPS == 1 ? 208 : 232));
        consume<D, GROUPS>(kv, a, memory, stages, full, empty);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(40));
        if (threadIdx.x / 32 == GROUPS * 4)
            produce<D, GROUPS>(kv, layer, a, stages, full, empty);
    }
}

/* ---- joining ---- */

/* One vector of a partial: m and l, and lane's part of o. */
static __device__ __forceinline__ void join_vector(float *ma, float *mb, float *la, float *lb, float *a, const float *b,
                                                   int n, uint32_t lane)
{
    const float m0 = *ma, l0 = *la, m1 = *mb, l1 = *lb;
    float m, wa, wb;
    __syncwarp();
    merge_weights(m0, l0, m1, l1, &m, &wa, &wb);
#pragma unroll 4
    for (int i = 0; i < n; i++)
        a[i] = a[i] * wa + b[i] * wb;
    if (lane == 0) {
        *ma = m;
        *la = l0 * wa + l1 * wb;
    }
}

/* What a block of threads joins: one (job, head, tile), of it the vectors y, y + gridDim.y .. */
struct joined {
    struct cuda_join job;
    uint32_t head, tile, n;
    float *base; /* item 0's tile */
    size_t item; /* floats from an item's tile to the next's */
};

static __device__ __forceinline__ bool joined_find(const struct cuda_kv &kv, const struct cuda_joins &j, uint32_t d,
                                                   struct joined *x)
{
    uint32_t low = 0, high = j.n_joins;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (j.joins[middle].first <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    x->job = j.joins[low];
    const uint32_t at = blockIdx.x - x->job.first;
    const size_t size = VECTORS * (2 + d);
    x->head = at / x->job.n_tiles;
    x->tile = at % x->job.n_tiles;
    x->n = min(x->job.n_vectors - x->tile * VECTORS, (uint32_t)VECTORS);
    x->base = j.store + ((size_t)x->job.store + x->head * x->job.n_tiles + x->tile) * size;
    x->item = (size_t)kv.n_kv_heads * x->job.n_tiles * size;
    return blockIdx.y < x->n;
}

/* Byte of input k of a tiled row. */
static __device__ __forceinline__ size_t tiled_at(uint32_t cap, uint32_t row, uint32_t k)
{
    return ((size_t)(k / 64) * cap + row) * 128 + ((k % 64 / 8) ^ (row & 7)) * 16 + k % 8 * 2;
}

/* o / l of vector v, by one warp */
template <int D>
static __device__ __forceinline__ void finish_vector(const struct cuda_kv &kv, const struct cuda_joins &j,
                                                     const struct joined &x, uint32_t v, float l, const float *o,
                                                     uint32_t lane)
{
    const uint32_t group = kv.n_heads / kv.n_kv_heads, all = x.tile * VECTORS + v, row = x.job.row + all / group,
                   k = (x.head * group + all % group) * D + lane * (D / 32);
    bool good = l > 0 && l < INFINITY;
    uint8_t *to = (uint8_t *)j.out + tiled_at(j.cap, row, k);
#pragma unroll
    for (int d = 0; d < D / 32; d += 2) {
        good = good && fabsf(o[d]) < INFINITY && fabsf(o[d + 1]) < INFINITY;
        *(uint32_t *)(to + 2 * d) = pack2(o[d] / l, o[d + 1] / l);
    }
    if (!good)
        *j.failed = 1;
}

/* Few items: in place. */
template <int D>
static __global__ void __launch_bounds__(128)
    join_few(const __grid_constant__ struct cuda_kv kv, const __grid_constant__ struct cuda_joins j)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    struct joined x;
    grid_next();
    const bool some = joined_find(kv, j, D, &x); /* programs come with the plan: no kernel writes them */
    grid_wait();
    if (!some)
        return;
    const uint32_t mine = (x.n - blockIdx.y + gridDim.y - 1) / gridDim.y;
    for (uint32_t level = 0; level < x.job.n_levels; level++) {
        const uint32_t begin = j.levels[x.job.level + level], end = j.levels[x.job.level + level + 1];
        for (uint32_t task = warp; task < (end - begin) * mine; task += blockDim.x / 32) {
            const uint32_t pair = begin + task / mine, v = blockIdx.y + task % mine * gridDim.y,
                           at = 2 * VECTORS + v * D + lane * (D / 32);
            float *a = x.base + j.pairs[2 * pair] * x.item, *b = x.base + j.pairs[2 * pair + 1] * x.item;
            join_vector(a + v, b + v, a + VECTORS + v, b + VECTORS + v, a + at, b + at, D / 32, lane);
        }
        __syncthreads();
    }
    for (uint32_t i = warp; j.out && i < mine; i += blockDim.x / 32) {
        const uint32_t v = blockIdx.y + i * gridDim.y;
        const float *from = x.base + x.job.item * x.item;
        finish_vector<D>(kv, j, x, v, from[VECTORS + v], from + 2 * VECTORS + v * D + lane * (D / 32), lane);
    }
}

/*
 * Many items, as a long sequence's one row has: all items' m, l and 32 channels of a vector come to shared memory at once, and the program before them,
 * since levels one after the other from memory take the time of so many round trips. blockIdx.z: the channels.
 */
enum { JOIN_THREADS = 1024, JOIN_CHANNELS = 32, JOIN_PITCH = JOIN_CHANNELS + 4 };

struct join_room { /* words of shared memory */
    uint32_t pairs, levels, all;
};

static __host__ __device__ __forceinline__ struct join_room join_room_of(uint32_t n_items)
{
    const uint32_t pairs = n_items * JOIN_PITCH, levels = pairs + 2 * n_items;
    return { pairs, levels, levels + n_items + 1 };
}

template <int D>
static __global__ void __launch_bounds__(JOIN_THREADS)
    join_many(const __grid_constant__ struct cuda_kv kv, const __grid_constant__ struct cuda_joins j)
{
    extern __shared__ __align__(16) float held[]; /* [n_items][JOIN_PITCH]: o, then m, l; pairs; levels */
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = blockIdx.z * JOIN_CHANNELS,
                   group = kv.n_heads / kv.n_kv_heads;
    struct joined x;
    grid_next();
    /* programs come with the plan: no kernel writes them */
    const bool some = joined_find(kv, j, D, &x);
    const struct join_room room = join_room_of(x.job.n_items);
    uint32_t *pairs = (uint32_t *)held + room.pairs, *levels = (uint32_t *)held + room.levels;
    const uint32_t begin = j.levels[x.job.level], n_pairs = j.levels[x.job.level + x.job.n_levels] - begin;
    for (uint32_t i = threadIdx.x; i <= x.job.n_levels; i += JOIN_THREADS)
        levels[i] = j.levels[x.job.level + i] - begin;
    for (uint32_t i = threadIdx.x; i < 2 * n_pairs; i += JOIN_THREADS)
        pairs[i] = j.pairs[2 * begin + i] * JOIN_PITCH;
    grid_wait();
    if (!some)
        return;
    for (uint32_t v = blockIdx.y; v < x.n; v += gridDim.y) {
        for (uint32_t i = threadIdx.x; i < x.job.n_items * (JOIN_CHANNELS / 4); i += JOIN_THREADS) {
            const uint32_t item = i / (JOIN_CHANNELS / 4), c = i % (JOIN_CHANNELS / 4);
            const float *from = x.base + item * x.item;
            *(float4 *)(held + item * JOIN_PITCH + 4 * c) =
                __ldcg((const float4 *)(from + 2 * VECTORS + v * D + channel + 4 * c));
            if (c < 2)
                held[item * JOIN_PITCH + JOIN_CHANNELS + c] = __ldcg(from + c * VECTORS + v);
        }
        __syncthreads();
        for (uint32_t level = 0; level < x.job.n_levels; level++) {
            for (uint32_t pair = levels[level] + warp; pair < levels[level + 1]; pair += JOIN_THREADS / 32) {
                float *a = held + pairs[2 * pair], *b = held + pairs[2 * pair + 1], *ma = a + JOIN_CHANNELS,
                      *mb = b + JOIN_CHANNELS;
                join_vector(ma, mb, ma + 1, mb + 1, a + lane, b + lane, 1, lane);
            }
            __syncthreads();
        }
        if (warp == 0) {
            const float *result = held + x.job.item * JOIN_PITCH, l = result[JOIN_CHANNELS + 1];
            const uint32_t all = x.tile * VECTORS + v, row = x.job.row + all / group,
                           k = (x.head * group + all % group) * D + channel + lane;
            const float o = result[lane], other = __shfl_down_sync(~0u, o, 1);
            if (!(l > 0 && l < INFINITY && fabsf(o) < INFINITY))
                *j.failed = 1;
            if (lane % 2 == 0)
                *(uint32_t *)((uint8_t *)j.out + tiled_at(j.cap, row, k)) = pack2(o / l, other / l);
        }
        __syncthreads();
    }
}

/* ---- the wire form of a node ---- */

static __global__ void node_copy(const struct cuda_kv kv, float *store, uint32_t first_tile, uint32_t n_tiles,
                                 uint32_t n_rows, float *wire, bool to_wire, uint32_t *failed)
{
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, group = kv.n_heads / kv.n_kv_heads,
                   d = kv.head_dim, h = i % kv.n_heads, row = i / kv.n_heads, head = h / group,
                   v = row * group + h % group, lane = threadIdx.x % 32;
    grid_next();
    grid_wait();
    if (row >= n_rows)
        return;
    float *tile = store + ((size_t)first_tile + head * n_tiles + v / VECTORS) * VECTORS * (2 + d),
          *ml = tile + v % VECTORS, *o = tile + 2 * VECTORS + v % VECTORS * d, *w = wire + (size_t)i * (d + 2);
    bool good = true;
    for (uint32_t k = lane; k < d + 2; k += 32) {
        float *in = k < 2 ? ml + k * VECTORS : o + k - 2;
        if (to_wire) {
            w[k] = *in;
            continue;
        }
        const float x = w[k];
        *in = x;
        good = good && (k == 0   ? x < INFINITY && (x == -INFINITY) == (w[1] == 0) /* false of NaN */
                        : k == 1 ? x >= 0 && x < INFINITY
                                 : fabsf(x) < INFINITY);
    }
    if (failed && !good)
        *failed = 1;
}

/* ---- launchers ---- */

template <int D, int GROUPS>
static int launch(const struct cuda_kv *kv, uint32_t layer, const struct cuda_attend *a, uint32_t grid,
                  cudaStream_t stream)
{
    using W = walk<D, GROUPS>;
    return grid_launch(attend<D, GROUPS>, dim3(grid), W::THREADS, W::SHARED, stream, *kv, layer, *a);
}

extern "C" int cuda_attend_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_attend *a, bool wide,
                               uint32_t grid, void *stream)
{
    const cudaStream_t st = (cudaStream_t)stream;
    if (!grid)
        return 0;
    if (kv->head_dim == 128)
        return wide ? launch<128, 2>(kv, layer, a, grid, st) : launch<128, 1>(kv, layer, a, grid, st);
    if (kv->head_dim == 64)
        return wide ? launch<64, 2>(kv, layer, a, grid, st) : launch<64, 1>(kv, layer, a, grid, st);
    return cudaErrorInvalidValue;
}

extern "C" size_t cuda_stack_floats(uint32_t head_dim, uint32_t depth, uint32_t n_processors)
{
    return (size_t)2 * n_processors * depth * (head_dim / 2 + 4) * 256;
}

template <int D> static int join_launch(const struct cuda_kv *kv, const struct cuda_joins *j, void *stream)
{
    const size_t shared = (size_t)join_room_of(j->items_max).all * sizeof(float);
    if (j->items_max <= CUDA_JOIN_FEW || !j->out || shared > 200 << 10)
        return grid_launch(join_few<D>, dim3(j->n_blocks, 4), 128, 0, stream, *kv, *j);
    return grid_launch(join_many<D>, dim3(j->n_blocks, 4, D / JOIN_CHANNELS), JOIN_THREADS, shared, stream, *kv, *j);
}

extern "C" int cuda_join_run(const struct cuda_kv *kv, const struct cuda_joins *j, void *stream)
{
    if (!j->n_blocks)
        return 0;
    return kv->head_dim == 128 ? join_launch<128>(kv, j, stream) : join_launch<64>(kv, j, stream);
}

extern "C" int cuda_node_copy(const struct cuda_kv *kv, float *store, uint32_t first_tile, uint32_t n_tiles,
                              uint32_t n_rows, float *wire, bool to_wire, uint32_t *failed, void *stream)
{
    const uint32_t n = n_rows * kv->n_heads;
    return n ? grid_launch(node_copy, dim3((n + 7) / 8), 256, 0, stream, *kv, store, first_tile, n_tiles, n_rows, wire,
                           to_wire, failed)
             : 0;
}
