/* Sketch-walk: sums, exponentials and choices in the order in which kernels/cpu/selector_walk.c and kernels/selector.c make them. */
#include <cuda_runtime.h>

#include "common/rng.h"
#include "kernels/cuda/flush.cuh"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sketch_walk.h"

enum { BLOCK = 64, DIM = CUDA_WALK_DIM, THREADS = 512, LANES = 16 };

static __device__ __forceinline__ float bf16_to(uint16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}
/* Nearest even; not for NaN */
static __device__ __forceinline__ uint16_t bf16_of(float x)
{
    const uint32_t u = __float_as_uint(x);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* exp_f32 of kernels/cpu/exp.h */
static __device__ __forceinline__ float exp_of(float x)
{
    if (!(x >= -87.0f))
        return x != x ? x : 0.0f;
    const float t = mul(x, 1.44269502f);
    const int cut = __float2int_rz(t), n = cut - (t < (float)cut);
    const float f = sub(t, (float)n);
    const float p =
        add(mul(add(mul(add(mul(add(mul(add(mul(0x1.e974fcp-10f, f), 0x1.277854p-7f), f), 0x1.c91ce6p-5f), f),
                            0x1.ebdb58p-3f),
                        f),
                    0x1.62e4bap-1f),
                f),
            1.0f);
    return __uint_as_float(__float_as_uint(p) + ((uint32_t)n << 23));
}

/* Largest of all threads' x. shared [32] */
static __device__ float most_of(float x, float *shared)
{
    for (int half = 16; half; half /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, half));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (uint32_t i = 1; i < blockDim.x / 32; i++)
        x = fmaxf(x, shared[i]);
    return x;
}

static __device__ __forceinline__ size_t room_of(uint32_t block)
{
    return (block / CUDA_WALK_STEP + 1) * CUDA_WALK_STEP;
}

/* ---- sketches ---- */

/* A block of threads a row, a thread a channel. */
static __global__ void walk_means(uint32_t n_heads, uint32_t layer, const uint16_t *q, const struct cuda_walk_row *rows)
{
    const uint32_t d = threadIdx.x, dim = blockDim.x;
    grid_next();
    grid_wait();
    const struct cuda_walk_row row = rows[blockIdx.x];
    float sum = 0;
    for (uint32_t h = 0; h < n_heads; h++)
        sum = add(sum, bf16_to(q[((size_t)blockIdx.x * n_heads + h) * dim + d]));
    row.means[((size_t)layer * BLOCK + row.position) * dim + d] = div(sum, (float)n_heads);
}

/* What a sketch's transform draws. */
struct drawn {
    uint32_t negative[4]; /* bits by channel */
    uint8_t at[DIM];
};

/* A block of threads a sketch, a thread a channel. */
template <int D>
static __global__ void __launch_bounds__(D)
    walk_sketch(const __grid_constant__ struct cuda_kv open, uint32_t kv_layer, size_t at, uint32_t layer,
                const struct cuda_walk_sketch *jobs, const __grid_constant__ struct drawn drawn)
{
    __shared__ float x[2][D];
    const uint32_t c = threadIdx.x;
    grid_next();
    grid_wait();
    const struct cuda_walk_sketch job = jobs[blockIdx.x];
    const uint8_t *from = block_at(open, job.from, kv_layer) + c / 64 * 8192 + c % 8 * 2;
    const float *means = job.means + (size_t)layer * BLOCK * D + c;
    float q = 0, k = 0;
    for (uint32_t p = 0; p < BLOCK; p++) {
        float sum = 0;
        for (uint32_t j = 0; j < open.n_kv_heads; j++)
            sum = add(sum, bf16_to(*(const uint16_t *)(from + 2 * j * open.part_bytes + p * 128 +
                                                       ((c % 64 / 8) ^ (p & 7)) * 16)));
        k = add(k, div(sum, (float)open.n_kv_heads));
        q = add(q, means[p * D]);
    }
    const float sign = drawn.negative[c / 32] >> c % 32 & 1 ? -1.0f : 1.0f;
    x[0][c] = mul(sign, div(q, (float)BLOCK));
    x[1][c] = mul(sign, div(k, (float)BLOCK));
    for (uint32_t half = 1; half < D; half *= 2) {
        __syncthreads();
        const float a = x[0][c], b = x[0][c ^ half], e = x[1][c], f = x[1][c ^ half];
        __syncthreads();
        x[0][c] = c & half ? sub(b, a) : add(a, b);
        x[1][c] = c & half ? sub(f, e) : add(e, f);
    }
    __syncthreads();
    float *out = (float *)(job.to + at);
    const float scale = 1.0f / sqrtf((float)DIM);
    for (uint32_t i = c; i < 2 * DIM; i += D)
        out[i] = mul(x[i / DIM][drawn.at[i % DIM]], scale);
}

/* ---- logits and weights ---- */

/* <query half of a block, key half of another> / sqrt(head_dim): coordinate i goes to lane i mod 16, lanes join by halves. */
static __device__ __forceinline__ float logit(const float *q, const float *k, float scale)
{
    float lane[LANES];
#pragma unroll
    for (int l = 0; l < LANES; l++)
        lane[l] = 0;
#pragma unroll
    for (int i = 0; i < DIM; i += 4) {
        const float4 y = *(const float4 *)(k + i);
        lane[i % LANES] = add(lane[i % LANES], mul(q[i], y.x));
        lane[i % LANES + 1] = add(lane[i % LANES + 1], mul(q[i + 1], y.y));
        lane[i % LANES + 2] = add(lane[i % LANES + 2], mul(q[i + 2], y.z));
        lane[i % LANES + 3] = add(lane[i % LANES + 3], mul(q[i + 3], y.w));
    }
#pragma unroll
    for (int half = LANES / 2; half; half /= 2)
#pragma unroll
        for (int l = 0; l < half; l++)
            lane[l] = add(lane[l], lane[l + half]);
    return mul(lane[0], scale);
}

/* Logits of `block` to shared memory; -> the largest, in all threads. q [DIM], shared [32] */
static __device__ float logits(const uint8_t *const *sketches, size_t at, uint32_t block, float scale, float *q,
                               float *to, float *shared)
{
    if (threadIdx.x < DIM)
        q[threadIdx.x] = ((const float *)(sketches[block] + at))[threadIdx.x];
    __syncthreads();
    float most = -INFINITY;
    for (uint32_t j = threadIdx.x; j <= block; j += THREADS) {
        to[j] = logit(q, (const float *)(sketches[j] + at) + DIM, scale);
        most = to[j] > most ? to[j] : most;
    }
    return most_of(most, shared);
}

/* A block of threads a row. */
static __global__ void __launch_bounds__(THREADS) walk_weights(float scale, const uint8_t *const *sketches, size_t at,
                                                               uint32_t layer, const struct cuda_walk_weights *jobs)
{
    __shared__ __align__(16) float a[CUDA_WALK_BLOCKS], e[CUDA_WALK_BLOCKS];
    __shared__ float q[DIM], shared[32], power;
    grid_next();
    grid_wait();
    const struct cuda_walk_weights job = jobs[blockIdx.x];
    const float most = logits(sketches + job.sketches, at, job.block, scale, q, a, shared);
    for (uint32_t j = threadIdx.x; j < CUDA_WALK_BLOCKS; j += THREADS)
        e[j] = j <= job.block ? exp_of(sub(a[j], most)) : 0.0f; /* adds nothing */
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (uint32_t j = 0; j <= job.block; j += 4) {
            const float4 x = *(const float4 *)(e + j);
            sum = add(add(add(add(sum, x.x), x.y), x.z), x.w);
        }
        float part = div(1.0f, sum);
        part = mul(part, part);
        part = mul(part, part);
        power = mul(part, part);
    }
    __syncthreads();
    for (uint32_t j = threadIdx.x; j <= job.block; j += THREADS)
        job.to[room_of(job.block) * layer + j] = bf16_of(mul(exp_of(mul(8.0f, sub(a[j], most))), power));
}

/* ---- walks ---- */

enum { WALKERS = 128, ROWS = 1024, AHEAD = 32 };

/* One layer on, WALKERS blocks: r_out[j] = sum over i >= j, ascending, of (r[i] / max r) w[i][j]; in the first layer, the last row of weights. */
static __global__ void __launch_bounds__(WALKERS) walk(uint32_t layer, const __grid_constant__ struct cuda_walk w)
{
    __shared__ const uint16_t *row[ROWS];
    __shared__ float x[ROWS], shared[32];
    grid_next();
    grid_wait();
    const struct cuda_quest_job job = w.choose.jobs[blockIdx.y];
    const uint32_t n = job.own, first = blockIdx.x * WALKERS, j = first + threadIdx.x;
    const size_t half = (size_t)w.choose.n_jobs * w.choose.own_max, mine = (size_t)blockIdx.y * w.choose.own_max;
    const float *r = w.walk + layer % 2 * half + mine;
    float *out = w.walk + (layer + 1) % 2 * half + mine;
    const uint16_t *const *weights = w.weights + job.sketches;
    if (job.budget > job.own || first >= n)
        return;
    if (layer == 0) {
        if (j < n)
            out[j] = bf16_to(weights[n - 1][j]);
        return;
    }
    float most = 0;
    for (uint32_t i = threadIdx.x; i < n; i += WALKERS)
        most = fmaxf(most, r[i]);
    most = most_of(most, shared);
    float sum = 0;
    for (uint32_t from = first; from < n; from += ROWS) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < ROWS; i += WALKERS) { /* past the last: nothing, of a row that is there */
            const uint32_t at = min(from + i, n - 1);
            row[i] = weights[at] + layer * room_of(at);
            x[i] = from + i < n && most > 0 ? div(r[at], most) : 0.0f;
        }
        __syncthreads();
        const uint32_t end = min(n - from, (uint32_t)ROWS);
        for (uint32_t i = 0; i < end; i += AHEAD) {
            uint16_t y[AHEAD]; /* many loads at once: sums are one after the other, memory need not be */
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                y[k] = from + i + k >= j && i + k < end ? row[i + k][j] : 0;
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                sum = add(sum, mul(x[i + k], bf16_to(y[k]))); /* zeros change no sum, none is below zero */
        }
    }
    if (j < n)
        out[j] = sum;
}

/* A block of threads a job. */
static __global__ void __launch_bounds__(THREADS)
    walk_scores(float scale, size_t at, uint32_t layer, const __grid_constant__ struct cuda_walk w)
{
    __shared__ float a[CUDA_WALK_BLOCKS], q[DIM], shared[32];
    grid_next();
    grid_wait();
    const struct cuda_quest_job job = w.choose.jobs[blockIdx.x];
    const size_t half = (size_t)w.choose.n_jobs * w.choose.own_max, mine = (size_t)blockIdx.x * w.choose.own_max;
    const float *r = w.walk + (layer + 1) % 2 * half + mine;
    if (job.budget > job.own)
        return;
    const float most = logits(w.choose.sketches + job.sketches, at, job.own - 1, scale, q, a, shared);
    for (uint32_t j = threadIdx.x; j < job.own; j += THREADS)
        w.choose.scores[mine + j] = r[j] > 0 ? r[j] : sub(sub(a[j], most), 1.0f);
}

/* ---- what is kept ---- */

/* A block of threads a list. */
static __global__ void walk_keep(uint32_t layer, uint64_t *lists, const struct cuda_walk_kept *jobs)
{
    grid_next();
    grid_wait();
    const struct cuda_walk_kept job = jobs[blockIdx.x];
    uint64_t *kept = job.kept + layer * (CUDA_WALK_BLOCKS / 64);
    for (uint32_t i = threadIdx.x; i < job.words; i += blockDim.x)
        if (!job.made)
            lists[job.list + i] = i < job.n ? kept[i] : 0;
        else if (i < job.n)
            kept[i] = lists[job.list + i];
}

/* ---- launchers ---- */

/* selector_walk_draw */
static struct drawn draw(uint32_t n)
{
    const uint64_t seed = 0x534B4554434836ull; /* SELECTOR_WALK_SEED */
    struct drawn out = {};
    uint8_t place[128];
    bool taken[128] = {};
    for (uint32_t i = 0; i < n; i++) {
        place[i] = (uint8_t)i;
        out.negative[i / 32] |= (uint32_t)(rng_at(seed, 0, i) >> 63) << i % 32;
    }
    for (uint32_t i = 0; i < DIM; i++) {
        const uint32_t other = i + (uint32_t)(rng_at(seed, 1, i) % (n - i));
        const uint8_t swap = place[i];
        place[i] = place[other];
        place[other] = swap;
        taken[place[i]] = true;
    }
    for (uint32_t i = 0, at = 0; i < n; i++)
        if (taken[i])
            out.at[at++] = (uint8_t)i;
    return out;
}

static bool has(uint32_t head_dim)
{
    return head_dim == 64 || head_dim == 128;
}

extern "C" int cuda_walk_means(const struct cuda_kv *kv, uint32_t layer, const void *q,
                               const struct cuda_walk_row *rows, uint32_t n_rows, void *stream)
{
    if (!has(kv->head_dim))
        return cudaErrorInvalidValue;
    return n_rows ? grid_launch(walk_means, dim3(n_rows), kv->head_dim, 0, stream, kv->n_heads, layer,
                                (const uint16_t *)q, rows)
                  : 0;
}

extern "C" int cuda_walk_sketch(const struct cuda_kv *open, uint32_t kv_layer, size_t layer_bytes, uint32_t layer,
                                const struct cuda_walk_sketch *jobs, uint32_t n, void *stream)
{
    const size_t at = layer * layer_bytes;
    if (!has(open->head_dim))
        return cudaErrorInvalidValue;
    if (!n)
        return 0;
    return open->head_dim == 128
               ? grid_launch(walk_sketch<128>, dim3(n), 128, 0, stream, *open, kv_layer, at, layer, jobs, draw(128))
               : grid_launch(walk_sketch<64>, dim3(n), 64, 0, stream, *open, kv_layer, at, layer, jobs, draw(64));
}

extern "C" int cuda_walk_weights(const struct cuda_kv *kv, const uint8_t *const *sketches, size_t layer_bytes,
                                 uint32_t layer, const struct cuda_walk_weights *jobs, uint32_t n, void *stream)
{
    if (!has(kv->head_dim))
        return cudaErrorInvalidValue;
    return n ? grid_launch(walk_weights, dim3(n), THREADS, 0, stream, 1.0f / sqrtf((float)kv->head_dim), sketches,
                           layer * layer_bytes, layer, jobs)
             : 0;
}

extern "C" int cuda_walk_keep(uint32_t layer, uint64_t *lists, const struct cuda_walk_kept *jobs, uint32_t n,
                              void *stream)
{
    return n ? grid_launch(walk_keep, dim3(n), 64, 0, stream, layer, lists, jobs) : 0;
}

extern "C" int cuda_walk_run(const struct cuda_kv *kv, uint32_t layer, const struct cuda_walk *w, void *stream)
{
    const uint32_t n = w->choose.n_jobs;
    if (!has(kv->head_dim) || w->choose.own_max > CUDA_WALK_BLOCKS)
        return cudaErrorInvalidValue;
    if (!n)
        return 0;
    int e = grid_launch(walk, dim3((w->choose.own_max + WALKERS - 1) / WALKERS, n), WALKERS, 0, stream, layer, *w);
    if (!e)
        e = grid_launch(walk_scores, dim3(n), THREADS, 0, stream, 1.0f / sqrtf((float)kv->head_dim),
                        layer * w->choose.layer_bytes, layer, *w);
    return e ? e : cuda_quest_choose(1, &w->choose, stream);
}
