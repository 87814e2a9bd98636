/* Partials of the same rows become one, in the order of the fixed tree: levels of merges. And what of a partial goes from worker to worker. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/partial.cuh"

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
