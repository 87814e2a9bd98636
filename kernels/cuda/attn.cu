/*
 * Attention over blocks of KV. A warpgroup has 64 query vectors of one KV head (of decode, four tiles of 16, most of them empty: memory is what
 * decode waits for) and walks over blocks, which one bulk copy each brings to shared memory: keys are rows along channels, values columns, both as
 * they are stored. Scores and outputs stay in registers; the same instructions serve decode and prefill, so a row has the same bits in both.
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/partial.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { HALF_BYTES = 8192 /* 64 positions, 64 channels */ };

template <int D, int GROUPS> struct walk {
    static constexpr int PART = BLOCK * D * 2, STAGE = 2 * PART, Q = GROUPS * 64 * D * 2,
                         STAGES = (GROUPS == 1 ? 2 : 4) * 128 / D, SHARED = Q + STAGES * STAGE + 192,
                         THREADS = (GROUPS + 1) * 128, SAVED = D / 2 + 4;
};

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
