/*
 * Attention over coded blocks in integers (mma m16n8k32, 8 bits). A warp walks alone: it has 4 N query vectors of a unit, brings a block at a time into
 * its own ring in shared memory, and waits for nobody. Codes are the operand of 16 rows, straight from a 16-byte load; the other operand has two columns a
 * vector, the high and the low byte of a 16-bit integer, so a lane gets both sums of one vector. Decode waits for memory: 4 vectors take some 500
 * instructions a block, a fifth of what an SM issues while its 8.7 KB arrive.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/attn_codes.cuh"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

template <int D, enum cuda_codec CODEC, int N>
struct walk {
    static constexpr bool FOUR = CODEC == CUDA_INT4_ROT; static constexpr int CODES = FOUR ? BLOCK * D / 2 : BLOCK * D,
                                                         PART = CODES + (FOUR ? 256 : 128),
                                                         STAGE = 2 * PART,
                                                         WARPS = STAGE > 10000 ? 6 : 8,
                                                         STAGES = STAGE > 10000 ? 2 : 3,
                                                         MINE = N == 1 ? 1024 : 512 * N,
                                                         SHARED = WARPS *(STAGES *STAGE + MINE + 64),
                                                         SAVED = D / 8 + 2,
                                                         WORDS = N == 1 ? 4 : 1;
};

/* ---- partials ---- */

template <int D> static __device__ __forceinline__ void state_clear(struct state<D> &x)
{
    x.m = -INFINITY;
    x.l = x.base = 0;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        x.o[i] = 0;
}

/* A leaf is over: shares come together. */
template <int D> static __device__ __forceinline__ void state_close(struct state<D> &x)
{
#pragma unroll
    for (int half = 4; half < 32; half *= 2) {
        x.l += __shfl_xor_sync(~0u, x.l, half);
        x.base += __shfl_xor_sync(~0u, x.base, half);
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        x.o[i] += x.base;
}

template <int D> static __device__ __forceinline__ void state_push(const struct state<D> &x, float *to)
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        __stcg(&to[i * 32], x.o[i]);
    __stcg(&to[D / 8 * 32], x.m);
    __stcg(&to[(D / 8 + 1) * 32], x.l);
}

template <int D> static __device__ __forceinline__ void state_pull(struct state<D> &x, const float *from)
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        x.o[i] = __ldcg(&from[i * 32]);
    x.m = __ldcg(&from[D / 8 * 32]);
    x.l = __ldcg(&from[(D / 8 + 1) * 32]);
}

/* x = merge(a, x) */
template <int D> static __device__ __forceinline__ void state_merge(struct state<D> &x, const struct state<D> &a)
{
    float wa, wb;
    merge_weights(a.m, a.l, x.m, x.l, &x.m, &wa, &wb);
    x.l = a.l * wa + x.l * wb;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        x.o[i] = a.o[i] * wa + x.o[i] * wb;
}

template <int D, bool FOUR>
static __device__ __forceinline__ void state_put(struct state<D> &x, float *tile, uint32_t v, bool write, uint32_t lane)
{
    const uint32_t row = lane / 4;
    if (FOUR) { /* channel 16 i + 8 j + row stands in o[2 i + j] */
#pragma unroll
        for (int half = 1; half < 8; half *= 2)
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                const float other = __shfl_xor_sync(~0u, x.o[i], 4 * half);
                x.o[i] = row & half ? other - x.o[i] : x.o[i] + other;
            }
#pragma unroll
        for (int half = 1; half < D / 8; half *= 2)
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                if (!(i & half)) {
                    const float a = x.o[i], b = x.o[i + half];
                    x.o[i] = a + b;
                    x.o[i + half] = a - b;
                }
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            x.o[i] *= 1.0f / sqrtf((float)D);
    }
    if (!write)
        return;
    if (row == 0) {
        tile[v] = x.m;
        tile[VECTORS + v] = x.l;
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        tile[2 * VECTORS + v * D + 8 * i + row] = x.o[i];
}

/* ---- blocks ---- */

/* Where a warp's stream of blocks is: work item, block of its unit. It looks at 32 WORDS blocks together, since lists are read through numbers of blocks. */
template <int WORDS> struct stream {
    uint32_t item, first, words;       /* of blocks first .., 32 words of them in `left` */
    uint32_t left[WORDS], slot[WORDS]; /* those that are to come; slot of block first + 32 i + lane */
    uint32_t number[WORDS];            /* in its sequence */
    struct cuda_unit unit;
    struct lists lists;
};

struct work {
    uint32_t n_units, step, n_items; /* n_items: units times runs of vectors, the first run of all units first */
};

/* A block that is on its way. */
struct next {
    uint32_t item, block;
};

/* Is item the stream's, and has it blocks? Then the unit's is known. */
template <int WORDS>
static __device__ __forceinline__ bool stream_unit(const struct cuda_kv &kv, const struct cuda_attend &a,
                                                   const struct work &w, uint32_t vectors, struct stream<WORDS> *s)
{
    const uint32_t skip = s->item / w.n_units * vectors;
    s->unit = a.units[s->item % w.n_units];
    if (s->unit.vector + skip >= s->unit.n_vectors)
        return false;
    s->lists = lists_of(kv, a, s->unit, s->unit.vector + skip, s->unit.vector + skip + vectors);
    return true;
}

template <int WORDS>
static __device__ __forceinline__ void stream_look(const struct cuda_attend &a, uint32_t lane, struct stream<WORDS> *s)
{
    s->words = min((s->unit.n_blocks - s->first + 31) / 32, (uint32_t)WORDS);
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        const uint32_t b = s->first + 32 * i + lane, at = s->unit.slot + b;
        s->slot[i] = b < s->unit.n_blocks ? a.slots[at] : 0;
        s->number[i] = b < s->unit.n_blocks && s->lists.at ? a.blocks[at] : 0;
    }
}

template <int WORDS> static __device__ __forceinline__ void stream_list(uint32_t lane, struct stream<WORDS> *s)
{
    bool any[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        any[i] = s->first + 32 * i + lane < s->unit.n_blocks;
    if (s->lists.at) {
        bool in[WORDS] = {};
        for (uint32_t n = 0; n < s->lists.n; n++)
#pragma unroll
            for (int i = 0; i < WORDS; i++)
                in[i] = in[i] || listed(s->lists.at + (size_t)n * s->lists.words, s->number[i]);
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            any[i] = any[i] && in[i];
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        s->left[i] = __ballot_sync(~0u, any[i]);
}

/* To the next 32 blocks of which some are to come; item w.n_items: there are none. */
template <int WORDS>
static __device__ __forceinline__ void stream_fill(const struct cuda_kv &kv, const struct cuda_attend &a,
                                                   const struct work &w, uint32_t vectors, uint32_t lane,
                                                   struct stream<WORDS> *s)
{
    while (!s->left[0] && s->item < w.n_items) {
        s->first += 32;
        if (s->words > 1) {
            s->words--;
#pragma unroll
            for (int i = 1; i < WORDS; i++) {
                s->left[i - 1] = s->left[i];
                s->slot[i - 1] = s->slot[i];
            }
            continue;
        }
        if (s->first >= s->unit.n_blocks) {
            s->item += w.step;
            s->first = s->unit.n_blocks = s->words = 0;
            if (s->item >= w.n_items || !stream_unit(kv, a, w, vectors, s))
                continue;
        }
        stream_look(a, lane, s);
        stream_list(lane, s);
    }
}

/* Leaves of an item: as in attn.cu; a stack's lowest places are registers, where a warp has 4 vectors. */
template <int D, int N> struct stacked {
    static constexpr int HELD = N == 1 ? 3 : 0;
    uint64_t filled;
    uint32_t leaf, depth;
    uint32_t merges; /* of leaf `lane` */
    bool some;
    struct state<D> held[HELD + 1];
};

template <int D, int N>
static __device__ __forceinline__ void leaf_close(const struct cuda_attend &a, const struct cuda_unit &u, float *stack,
                                                  struct state<D> (&x)[N], struct stacked<D, N> *s)
{
    constexpr int SAVED = (D / 8 + 2) * 32, HELD = stacked<D, N>::HELD;
#pragma unroll
    for (int n = 0; n < N; n++)
        state_close<D>(x[n]);
    for (uint32_t m = s->leaf < 32 ? __shfl_sync(~0u, s->merges, s->leaf) : a.merges[u.merges + s->leaf]; m && s->depth;
         m--) {
        s->depth--;
        if (!(s->filled >> s->depth & 1))
            continue;
        s->some = true;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if ((int)s->depth == i)
                state_merge<D>(x[0], s->held[i]);
        if ((int)s->depth >= HELD)
#pragma unroll
            for (int n = 0; n < N; n++) {
                struct state<D> y;
                state_pull<D>(y, stack + (s->depth * N + n) * SAVED);
                state_merge<D>(x[n], y);
            }
    }
    if (++s->leaf * CUDA_LEAF_BLOCKS >= u.n_blocks)
        return;
    if (s->some) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if ((int)s->depth == i)
                s->held[i] = x[0];
        if ((int)s->depth >= HELD)
#pragma unroll
            for (int n = 0; n < N; n++)
                state_push<D>(x[n], stack + (s->depth * N + n) * SAVED);
    }
#pragma unroll
    for (int n = 0; n < N; n++)
        state_clear<D>(x[n]);
    s->filled = (s->filled & ~((uint64_t)1 << s->depth)) | (uint64_t)s->some << s->depth;
    s->depth++;
    s->some = false;
}

/* ---- the kernel ---- */

template <int D, enum cuda_codec CODEC, int N>
static __global__ void __launch_bounds__(walk<D, CODEC, N>::WARPS * 32, 1)
    attend_codes(const __grid_constant__ struct cuda_kv kv, uint32_t layer,
                 const __grid_constant__ struct cuda_attend a, uint32_t runs)
{
    using W = walk<D, CODEC, N>;
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = kv.n_heads / kv.n_kv_heads,
                   me = warp * gridDim.x + blockIdx.x;
    uint8_t *ring = memory + warp * W::STAGES * W::STAGE,
            *mine = memory + W::WARPS * W::STAGES * W::STAGE + warp * W::MINE;
    uint64_t *full = (uint64_t *)(memory + W::WARPS * (W::STAGES * W::STAGE + W::MINE)) + warp * 8;
    grid_next();
    /* units and places of blocks come with the plan: no kernel writes them */
    const struct work all = { *a.n_units, gridDim.x * W::WARPS, *a.n_units * runs };
    float *stack = a.stack + (size_t)me * a.depth * N * W::SAVED * 32 + lane;
    if (lane < W::STAGES)
        barrier_init(&full[lane], 1);
    shared_fence();
    __syncwarp();
    struct stream<W::WORDS> ahead = {
    };
    struct next coming[W::STAGES];
    uint32_t stage = 0, parity = 0, stage_ahead = 0;
    ahead.item = me;
    const bool begins = me < all.n_items && stream_unit(kv, a, all, 4 * N, &ahead);
    if (begins)
        stream_look(a, lane, &ahead);
    else
        ahead.unit.n_blocks = 0;
    grid_wait();
    if (begins)
        stream_list(lane, &ahead);
    stream_fill(kv, a, all, 4 * N, lane, &ahead);
    const auto fetch = [&]() -> struct next {
        if (ahead.item >= all.n_items)
            return { all.n_items, 0 };
        const uint32_t in = __ffs(ahead.left[0]) - 1, slot = __shfl_sync(~0u, ahead.slot[0], in);
        const struct next it = { ahead.item, ahead.first + in };
        if (lane == 0) {
            const uint8_t *from = block_at(kv, slot, layer) + ahead.unit.head * 2 * kv.part_bytes;
            barrier_expect(&full[stage_ahead], W::STAGE);
            bulk_load(ring + stage_ahead * W::STAGE, from, W::STAGE, &full[stage_ahead]);
        }
        stage_ahead = stage_ahead + 1 == W::STAGES ? 0 : stage_ahead + 1;
        ahead.left[0] &= ahead.left[0] - 1;
        stream_fill(kv, a, all, 4 * N, lane, &ahead);
        return it;
    };
#pragma unroll
    for (int i = 0; i < W::STAGES; i++)
        coming[i] = fetch();
    for (uint32_t item = me; item < all.n_items; item += all.step) {
        const struct cuda_unit u = a.units[item % all.n_units];
        const uint32_t first = u.vector + item / all.n_units * 4 * N;
        if (first >= u.n_vectors)
            continue;
        struct state<D> x[N];
        uint32_t q[N][D / 16];
        float scale[N], sum[N];
        int limit[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            const uint32_t v = first + 4 * n + lane % 4;
            uint32_t y[4][D / 64];
            limit[n] = seen_by(u, v, group);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint32_t w = first + 4 * n + c;
                const uint16_t *from =
                    (const uint16_t *)a.q + ((size_t)(u.row + w / group) * kv.n_heads + u.head * group + w % group) * D;
                load_query<D>(w < u.n_vectors ? from : NULL, lane, y[c]);
            }
            __syncwarp();
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float one, total;
                one = put_query<D, W::FOUR>(y[c], c, lane, mine, &total);
                if (lane % 4 == c) {
                    scale[n] = one * (a.scale * 1.44269504f);
                    sum[n] = total;
                }
            }
            __syncwarp();
#pragma unroll
            for (int step = 0; step < D / 32; step++) {
                const uint2 both = *(const uint2 *)(mine + (step * 64 + lane * 2) * 4);
                q[n][2 * step] = both.x;
                q[n][2 * step + 1] = both.y;
            }
        }
        const struct lists l = lists_of(kv, a, u, first, first + 4 * N);
        struct stacked<D, N> s;
        uint32_t n_read = 0;
        s.filled = s.leaf = s.depth = s.some = 0;
        s.merges = lane * CUDA_LEAF_BLOCKS < u.n_blocks ? a.merges[u.merges + lane] : 0;
#pragma unroll
        for (int n = 0; n < N; n++)
            state_clear<D>(x[n]);
        for (; coming[0].item == item; n_read++) {
            const uint32_t b = coming[0].block;
            int see[N];
            while (s.leaf < b / CUDA_LEAF_BLOCKS)
                leaf_close<D, N>(a, u, stack, x, &s);
            s.some = true;
#pragma unroll
            for (int n = 0; n < N; n++)
                see[n] = l.n > 1 && !reads(a, u, l, first + 4 * n + lane % 4, group, b) ? 0 : limit[n];
            barrier_wait(&full[stage], parity);
            block<D, W::FOUR, N>(ring + stage * W::STAGE, q, scale, sum, see, (int)(b * BLOCK), mine, lane, x);
            if (++stage == W::STAGES) {
                stage = 0;
                parity ^= 1;
            }
            __syncwarp(); /* all have read the stage and their weights */
#pragma unroll
            for (int i = 1; i < W::STAGES; i++)
                coming[i - 1] = coming[i];
            coming[W::STAGES - 1] = fetch();
        }
        while (s.leaf * CUDA_LEAF_BLOCKS < u.n_blocks)
            leaf_close<D, N>(a, u, stack, x, &s);
        if (l.at && lane == 0 && item < all.n_units)
            atomicAdd(a.skipped, u.n_blocks - n_read);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const uint32_t v = first + 4 * n + lane % 4, at = v - u.vector;
            state_put<D, W::FOUR>(x[n], a.store + ((size_t)u.store + at / VECTORS) * VECTORS * (2 + D), at % VECTORS,
                                  v < u.n_vectors, lane);
        }
    }
}

template <int D, enum cuda_codec CODEC, int N>
static int launch(const struct cuda_kv *kv, uint32_t layer, const struct cuda_attend *a, uint32_t n_vectors,
                  uint32_t n_warps, cudaStream_t stream)
{
    using W = walk<D, CODEC, N>;
    int device = 0, processors = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (!e)
        e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (e)
        return e;
    const uint32_t most = (uint32_t)processors, want = (n_warps + W::WARPS - 1) / W::WARPS,
                   grid = want && want < most ? want : most;
    return grid_launch(attend_codes<D, CODEC, N>, dim3(grid), W::WARPS * 32, W::SHARED, stream, *kv, layer, *a,
                       (n_vectors + 4 * N - 1) / (4 * N));
}

/* Runs of vectors: 4 are all that decode has of most models, and cheapest there; 16 share the decoding of a block. */
template <int D, enum cuda_codec CODEC>
static int launch_runs(const struct cuda_kv *kv, uint32_t layer, const struct cuda_attend *a, uint32_t n_vectors,
                       uint32_t n_warps, cudaStream_t stream)
{
    return n_vectors <= 4   ? launch<D, CODEC, 1>(kv, layer, a, n_vectors, n_warps, stream)
           : n_vectors <= 8 ? launch<D, CODEC, 2>(kv, layer, a, n_vectors, n_warps, stream)
                            : launch<D, CODEC, 4>(kv, layer, a, n_vectors, n_warps, stream);
}

extern "C" int cuda_attend_codes_run(const struct cuda_kv *kv, uint32_t layer, enum cuda_codec codec,
                                     const struct cuda_attend *a, uint32_t n_vectors, uint32_t n_warps, void *stream)
{
    const cudaStream_t st = (cudaStream_t)stream;
    if (!n_vectors)
        return 0;
    if (kv->head_dim == 128)
        return codec == CUDA_INT8 ? launch_runs<128, CUDA_INT8>(kv, layer, a, n_vectors, n_warps, st)
                                  : launch_runs<128, CUDA_INT4_ROT>(kv, layer, a, n_vectors, n_warps, st);
    if (kv->head_dim == 64)
        return codec == CUDA_INT8 ? launch_runs<64, CUDA_INT8>(kv, layer, a, n_vectors, n_warps, st)
                                  : launch_runs<64, CUDA_INT4_ROT>(kv, layer, a, n_vectors, n_warps, st);
    return cudaErrorInvalidValue;
}
