/*
 * Products with bf16 weights. Weights are the 64-row operand of wgmma, so one instruction shape in N serves 8 rows and another 128, and an output's
 * chain of sums is the same in all of them. Few rows: the weights are a stream, cut in units of a tile of 64 outputs by a segment of inputs, which
 * blocks of threads take in turn; the last of a tile's segments joins them in order. Many rows: tiles of 128 outputs by 128 rows.
 */
#include <cuda_runtime.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { TILE_BYTES = 8192, ROW_BYTES = 128 };

extern "C" void cuda_pack_tiles(const uint16_t *const rows[64], uint32_t n_in, void *tiles_out)
{
    const size_t n = cuda_packed_bytes(64, n_in) / TILE_BYTES;
    memset(tiles_out, 0, n * TILE_BYTES);
    for (uint32_t r = 0; r < 64; r++) {
        for (uint32_t k = 0; rows[r] && k < n_in; k += 8) {
            uint8_t *tile = (uint8_t *)tiles_out + (size_t)(k / 64) * TILE_BYTES;
            const uint32_t left = n_in - k;
            memcpy(tile + r * ROW_BYTES + ((k % 64 / 8 ^ (r & 7)) * 16), rows[r] + k, (left < 8 ? left : 8) * 2);
        }
    }
}

/* ---- few rows ---- */

template <int N> struct few {
    static constexpr int X_BYTES = N * ROW_BYTES, STAGE = 2 * (TILE_BYTES + X_BYTES),
                         STAGES = N <= 8    ? 6
                                  : N <= 16 ? 5
                                  : N <= 32 ? 4
                                            : 3,
                         SHARED = STAGES * STAGE + 256;
};

/* Weights come as soon as there is room; inputs when the kernel before has written them. */
template <int N>
static __device__ void few_produce(const struct cuda_linear &l, const struct shape &s, uint8_t *memory, uint64_t *full,
                                   uint64_t *empty)
{
    using F = few<N>;
    const uint32_t n_units = s.tiles_out * s.segments;
    uint32_t stage = 0, parity = 0, early = 0;
    uint64_t once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    struct walk at = { blockIdx.x, 0, 0, NULL }, behind;
    walk_unit<TILE_BYTES>(l, s, &at);
    behind = at;
    for (; early < F::STAGES && at.unit < n_units; early++, walk_next<TILE_BYTES>(l, s, &at)) {
        barrier_expect(&full[early], F::STAGE);
        bulk_load_hint(memory + early * F::STAGE, at.w + (size_t)at.k * TILE_BYTES, 2 * TILE_BYTES, &full[early], once);
    }
    grid_wait();
    for (uint32_t n = 0; behind.unit < n_units; n++, walk_next<TILE_BYTES>(l, s, &behind)) {
        uint8_t *to = memory + stage * F::STAGE;
        if (n >= early) {
            barrier_wait(&empty[stage], parity ^ 1);
            barrier_expect(&full[stage], F::STAGE);
            bulk_load_hint(to, behind.w + (size_t)behind.k * TILE_BYTES, 2 * TILE_BYTES, &full[stage], once);
        }
        for (uint32_t i = 0; i < 2; i++)
            bulk_load(to + 2 * TILE_BYTES + i * F::X_BYTES,
                      (const uint8_t *)l.x + (size_t)(behind.k + i) * l.cap * ROW_BYTES, F::X_BYTES, &full[stage]);
        if (++stage == F::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
}

template <int N>
static __device__ void few_consume(const struct cuda_linear &l, const struct shape &s, const uint8_t *memory,
                                   uint64_t *full, uint64_t *empty, uint32_t *last)
{
    using F = few<N>;
    const uint32_t t = threadIdx.x, lane = t % 32;
    uint32_t stage = 0, parity = 0;
    for (uint32_t u = blockIdx.x; u < s.tiles_out * s.segments; u += gridDim.x) {
        const uint32_t begin = u % s.segments * SEGMENT_TILES, end = min(begin + SEGMENT_TILES, s.tiles_in);
        float d[N / 2];
        uint32_t held = UINT32_MAX;
        for (uint32_t k = begin; k < end; k += 2) {
            const uint8_t *at = memory + stage * F::STAGE;
            barrier_wait(&full[stage], parity);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < 8; step++)
                wgmma_shared<N>::run(d, wgmma_rows(at + step / 4 * TILE_BYTES + step % 4 * 32),
                                     wgmma_rows(at + 2 * TILE_BYTES + step / 4 * F::X_BYTES + step % 4 * 32),
                                     k == begin && step == 0);
            wgmma_commit();
            if (held != UINT32_MAX) {
                wgmma_wait<1>();
                if (lane == 0)
                    barrier_arrive(&empty[held]);
            }
            held = stage;
            if (++stage == F::STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        wgmma_wait<0>();
        if (lane == 0)
            barrier_arrive(&empty[held]);
        finish<N, 8, N <= 8 ? 15 : 0>(l, s, u, d, last);
    }
}

template <int N>
static __global__ void __launch_bounds__(160)
    linear_few(const __grid_constant__ struct cuda_linear l, const __grid_constant__ struct shape s)
{
    using F = few<N>;
    extern __shared__ __align__(1024) uint8_t memory[];
    uint64_t *full = (uint64_t *)(memory + F::STAGES * F::STAGE), *empty = full + F::STAGES;
    uint32_t *last = (uint32_t *)(empty + F::STAGES);
    if (threadIdx.x == 0) {
        for (int i = 0; i < F::STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 4);
        }
        shared_fence();
    }
    __syncthreads();
    grid_next();
    if (threadIdx.x < 128) {
        grid_wait();
        few_consume<N>(l, s, memory, full, empty, last);
    } else if (threadIdx.x == 128)
        few_produce<N>(l, s, memory, full, empty);
}

/* ---- many rows ---- */

enum { MANY_ROWS = 128, MANY_STAGES = 6, MANY_X = MANY_ROWS * ROW_BYTES, MANY_STAGE = 2 * TILE_BYTES + MANY_X };

static __device__ void many_produce(const struct cuda_linear &l, const struct shape &s, uint32_t tile, uint32_t row,
                                    uint8_t *memory, uint64_t *full, uint64_t *empty)
{
    const uint8_t *w[2];
    uint32_t stage = 0, parity = 0;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t at = min(tile + i, s.tiles_out - 1);
        const struct cuda_part *part = part_of(l, &at);
        w[i] = (const uint8_t *)part->packed + (size_t)at * s.tiles_in * TILE_BYTES;
    }
    for (uint32_t k = 0; k < s.tiles_in; k++) {
        uint8_t *to = memory + stage * MANY_STAGE;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_expect(&full[stage], MANY_STAGE);
        for (uint32_t i = 0; i < 2; i++)
            bulk_load(to + i * TILE_BYTES, w[i] + (size_t)k * TILE_BYTES, TILE_BYTES, &full[stage]);
        bulk_load(to + 2 * TILE_BYTES, (const uint8_t *)l.x + ((size_t)k * l.cap + row) * ROW_BYTES, MANY_X,
                  &full[stage]);
        if (++stage == MANY_STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
}

static __device__ void many_consume(const struct cuda_linear &l, const struct shape &s, uint32_t tile, uint32_t row,
                                    const uint8_t *memory, uint64_t *full, uint64_t *empty)
{
    const uint32_t group = threadIdx.x / 128, t = threadIdx.x % 128, lane = t % 32;
    uint32_t stage = 0, parity = 0;
    float d[64], sum[64];
    for (uint32_t begin = 0; begin < s.tiles_in; begin += SEGMENT_TILES) {
        const uint32_t end = min(begin + SEGMENT_TILES, s.tiles_in);
        uint32_t held = UINT32_MAX;
        for (uint32_t k = begin; k < end; k++) {
            const uint8_t *at = memory + stage * MANY_STAGE;
            barrier_wait(&full[stage], parity);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < 4; step++)
                wgmma_shared<128>::run(d, wgmma_rows(at + group * TILE_BYTES + step * 32),
                                       wgmma_rows(at + 2 * TILE_BYTES + step * 32), k == begin && step == 0);
            wgmma_commit();
            if (held != UINT32_MAX) {
                wgmma_wait<1>();
                if (lane == 0)
                    barrier_arrive(&empty[held]);
            }
            held = stage;
            if (++stage == MANY_STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        wgmma_wait<0>();
        if (lane == 0)
            barrier_arrive(&empty[held]);
#pragma unroll
        for (int j = 0; j < 64; j++)
            sum[j] = begin ? sum[j] + d[j] : d[j];
    }
    if (tile + group >= s.tiles_out)
        return;
    uint32_t at = tile + group;
    const struct cuda_part *part = part_of(l, &at);
#pragma unroll
    for (int j = 0; j < 64; j++) {
        const uint32_t r = row + j / 4 * 8 + 2 * (t % 4) + j % 2,
                       out = at * 64 + t / 32 * 16 + lane / 4 + j / 2 % 2 * 8;
        if (r < l.n_rows && out < part->n_out)
            put(l, part, r, out, had(l, part, r, out), sum[j]);
    }
}

static __global__ void __launch_bounds__(288, 1) linear_many(const __grid_constant__ struct cuda_linear l,
                                                             const __grid_constant__ struct shape s, uint32_t row_tiles)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    uint64_t *full = (uint64_t *)(memory + MANY_STAGES * MANY_STAGE), *empty = full + MANY_STAGES;
    const uint32_t row = blockIdx.x % row_tiles * MANY_ROWS, tile = blockIdx.x / row_tiles * 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < MANY_STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8);
        }
        shared_fence();
    }
    __syncthreads();
    grid_next();
    grid_wait();
    if (threadIdx.x < 256)
        many_consume(l, s, tile, row, memory, full, empty);
    else if (threadIdx.x == 256)
        many_produce(l, s, tile, row, memory, full, empty);
}

/* ---- launchers ---- */

static int processors(void)
{
    static int n;
    int device = 0;
    if (!n && (cudaGetDevice(&device) || cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device)))
        n = 1;
    return n;
}

template <int N> static int few_launch(const struct cuda_linear *l, const struct shape *s, cudaStream_t stream)
{
    using F = few<N>;
    const uint32_t units = s->tiles_out * s->segments, most = 2 * processors();
    return grid_launch(linear_few<N>, dim3(units < most ? units : most), 160, F::SHARED, stream, *l, *s);
}

extern "C" int cuda_linear_run(const struct cuda_linear *l, void *stream)
{
    const cudaStream_t st = (cudaStream_t)stream;
    struct shape s = { (l->n_in + 127) / 128 * 2, (l->n_in + CUDA_SEGMENT - 1) / CUDA_SEGMENT, 0, 0 };
    for (uint32_t i = 0; i < l->n_parts; i++)
        s.tiles_out += (l->part[i].n_out + 63) / 64;
    if (!l->n_rows || !s.tiles_out)
        return 0;
    if (l->n_rows <= 8)
        return few_launch<8>(l, &s, st);
    if (l->n_rows <= 16)
        return few_launch<16>(l, &s, st);
    if (l->n_rows <= 32)
        return few_launch<32>(l, &s, st);
    if (l->n_rows <= CUDA_ROWS_FEW)
        return few_launch<64>(l, &s, st);
    const uint32_t row_tiles = (l->n_rows + MANY_ROWS - 1) / MANY_ROWS;
    return grid_launch(linear_many, dim3(row_tiles * ((s.tiles_out + 1) / 2)), 288, MANY_STAGES * MANY_STAGE + 256, st,
                       *l, s, row_tiles);
}
