/*
 * Products whose weights are decoded into the registers that wgmma takes its 64-row operand from: two instructions a weight, a quarter of what an SM issues
 * while the bytes arrive. Units, chains and their joining are those of linear.cu, so are the bits.
 */
#include <cuda_runtime.h>
#include <string.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/lossless.h"
#include "kernels/cuda/wgmma.cuh"

enum {
    TILE = CUDA_LOSSLESS_TILE,
    ROW_BYTES = 128,
    ESCAPE = 15,
    BASE_MAX = 255 - 14,
    INLINE = CUDA_LOSSLESS_INLINE,
};

/* ---- packing ---- */

/* Where weight (row r, input k) of a warp's 16 x 64 stands among the lanes' registers: wgmma's operand A, a step of 16 inputs after the other. */
struct place {
    uint32_t lane, reg, high;
};

static struct place place_of(uint32_t r, uint32_t k)
{
    const uint32_t in = k % 16;
    return { r % 8 * 4 + in % 8 / 2, k / 16 * 4 + in / 8 * 2 + r / 8, in % 2 };
}

static uint32_t best_base(const uint16_t *const rows[16], uint32_t first, uint32_t n)
{
    uint32_t count[256 + ESCAPE] = { 0 }, sum = 0, best = 0, base = 0;
    for (uint32_t r = 0; r < 16; r++)
        for (uint32_t k = 0; rows[r] && k < n; k++)
            count[rows[r][first + k] >> 7 & 255]++;
    for (uint32_t e = 0; e < ESCAPE - 1; e++)
        sum += count[e];
    for (uint32_t b = 0; b <= BASE_MAX; b++) {
        sum += count[b + ESCAPE - 1];
        if (sum > best) {
            best = sum;
            base = b;
        }
        sum -= count[b];
    }
    return base;
}

static void put_weight(uint8_t *tile, uint32_t warp, struct place at, uint32_t c, uint16_t w)
{
    const uint32_t step = at.reg / 4, i = at.reg % 4, sign = w >> 15, mantissa = w & 127;
    uint32_t *signs = (uint32_t *)(void *)(tile + ((warp * 2 + step / 2) * 32 + at.lane) * 16) + step % 2 * 2 + i / 2;
    uint32_t *classes = (uint32_t *)(void *)(tile + CUDA_LOSSLESS_SIGNS + (warp * 32 + at.lane) * 16) + step;
    uint32_t both = (mantissa | sign << 15) << 16 * at.high;
    if (i % 2)
        both = both >> 8 | both << 24;
    *signs |= both;
    *classes |= c << (16 * at.high + 4 * i);
}

/* A warp's part of a tile, inputs first .. first + n. -> escapes added to the list */
static uint32_t pack_part(const uint16_t *const rows[16], uint32_t first, uint32_t n, uint32_t warp, uint32_t listed,
                          uint8_t *tile, uint32_t *escapes_out)
{
    const uint32_t base = best_base(rows, first, n);
    uint32_t count = 0, *record = (uint32_t *)(void *)(tile + TILE - 64 + warp * 16);
    for (uint32_t r = 0; r < 16; r++)
        for (uint32_t k = 0; rows[r] && k < n; k++) {
            const uint16_t w = rows[r][first + k];
            const uint32_t e = w >> 7 & 255;
            const struct place at = place_of(r, k);
            const bool fits = e >= base && e - base < ESCAPE;
            put_weight(tile, warp, at, fits ? e - base : (uint32_t)ESCAPE, w);
            if (!fits)
                escapes_out[count++] = at.lane | at.reg << 5 | at.high << 9 | (uint32_t)w << 16;
        }
    record[0] = base | count << 8;
    if (count <= INLINE)
        memcpy(record + 1, escapes_out, count * sizeof *escapes_out);
    else
        record[1] = listed;
    return count <= INLINE ? 0 : count;
}

extern "C" uint32_t cuda_pack_lossless(const uint16_t *const rows[64], uint32_t n_in, uint32_t first, void *tiles_out,
                                       uint32_t *escapes_out)
{
    uint8_t *tile = (uint8_t *)tiles_out;
    uint32_t n = 0;
    memset(tiles_out, 0, cuda_lossless_bytes(64, n_in));
    for (uint32_t k = 0; k < n_in; k += CUDA_TILE, tile += TILE)
        for (uint32_t warp = 0; warp < 4; warp++)
            n += pack_part(rows + 16 * warp, k, n_in - k < CUDA_TILE ? n_in - k : (uint32_t)CUDA_TILE, warp, first + n,
                           tile, escapes_out + n);
    return n;
}

/* ---- decoding ---- */

static __device__ __forceinline__ void patch(uint32_t (&a)[16], uint32_t escape, uint32_t lane)
{
    if ((escape & 31) != lane)
        return;
    const uint32_t reg = escape >> 5 & 15, select = escape >> 9 & 1 ? 0x5410 : 0x3254;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        if (reg == i)
            a[i] = __byte_perm(a[i], escape >> 16, select);
}

/* Operand A of four steps of 16 inputs. list: of the matrix. */
static __device__ __forceinline__ void decode(const uint8_t *tile, const uint32_t *list, uint32_t warp, uint32_t lane,
                                              uint32_t (&a)[16])
{
    const uint4 classes = *(const uint4 *)(tile + CUDA_LOSSLESS_SIGNS + (warp * 32 + lane) * 16),
                record = *(const uint4 *)(tile + TILE - 64 + warp * 16);
    const uint32_t base = (record.x & 255) * 0x00800080, n = record.x >> 8,
                   words[4] = { classes.x, classes.y, classes.z, classes.w };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint4 signs = *(const uint4 *)(tile + ((warp * 2 + half) * 32 + lane) * 16);
        const uint32_t dwords[4] = { signs.x, signs.y, signs.z, signs.w };
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint32_t c = words[2 * half + q / 2] >> q % 2 * 8, x = dwords[q];
            uint32_t *to = a + half * 8 + q * 2;
            to[0] = (x & 0x807F807F) | ((c & 0x000F000F) * 128 + base);
            to[1] = (__byte_perm(x, x, 0x2103) & 0x807F807F) | ((c & 0x00F000F0) * 8 + base);
        }
    }
    if (n && n <= INLINE) {
        patch(a, record.y, lane);
        if (n > 1)
            patch(a, record.z, lane);
        if (n > 2)
            patch(a, record.w, lane);
    } else if (n) {
        for (uint32_t i = 0; i < n; i++)
            patch(a, __ldg(&list[record.y + i]), lane);
    }
}

/* ---- the product: a from registers, b rows along k ---- */

template <int N> struct wgmma_of;
#define WGMMA(N, COUNT, D_LIST, A0, A1, A2, A3, B, P, ...)                                                             \
    template <> struct wgmma_of<N> {                                                                                   \
        static __device__ __forceinline__ void run(float (&d)[COUNT], const uint32_t *a, uint64_t b, bool first)       \
        {                                                                                                              \
            asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, " P ", 0;\n"                                                \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D_LIST "}, {" A0 ", " A1 ", " A2 \
                         ", " A3 "}, " B ", p, 1, 1, 0;\n}"                                                            \
                         : __VA_ARGS__                                                                                 \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)first));                       \
        }                                                                                                              \
    };
#define D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i)  D4(i), D4(i + 4)
#define LIST8  "%0, %1, %2, %3, %4, %5, %6, %7"
#define LIST16 LIST8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LIST32 LIST16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
WGMMA(8, 4, "%0, %1, %2, %3", "%4", "%5", "%6", "%7", "%8", "%9", D4(0))
WGMMA(16, 8, LIST8, "%8", "%9", "%10", "%11", "%12", "%13", D8(0))
WGMMA(32, 16, LIST16, "%16", "%17", "%18", "%19", "%20", "%21", D8(0), D8(8))
WGMMA(64, 32, LIST32, "%32", "%33", "%34", "%35", "%36", "%37", D8(0), D8(8), D8(16), D8(24))

/* ---- the stream ---- */

enum { SHARED_MAX = 226 << 10, OTHER = 1024 + 256, STAGES_MAX = 8 };

/* Inputs of all stages, then weights. BLOCKS: of three stages, that a processor has room for. */
template <int N> struct few {
    static constexpr int X_BYTES = N * ROW_BYTES, STAGE = 2 * X_BYTES + 2 * TILE,
                         BLOCKS = SHARED_MAX / (3 * STAGE + OTHER);
    static __device__ __forceinline__ uint8_t *x(uint8_t *memory, uint32_t stage)
    {
        return memory + stage * 2 * X_BYTES;
    }
    static __device__ __forceinline__ uint8_t *w(uint8_t *memory, uint32_t stages, uint32_t stage)
    {
        return memory + stages * 2 * X_BYTES + stage * 2 * TILE;
    }
};

/* Weights come as soon as there is room; inputs when the kernel before has written them. */
template <int N>
static __device__ void produce(const struct cuda_linear &l, const struct shape &s, uint8_t *memory, uint64_t *full,
                               uint64_t *empty)
{
    using F = few<N>;
    const uint32_t n_units = s.tiles_out * s.segments;
    uint32_t stage = 0, parity = 0, early = 0;
    uint64_t once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    struct walk at = { blockIdx.x, 0, 0, NULL }, behind;
    walk_unit<TILE>(l, s, &at);
    behind = at;
    for (; early < s.stages && at.unit < n_units; early++, walk_next<TILE>(l, s, &at)) {
        barrier_expect(&full[early], F::STAGE);
        bulk_load_hint(F::w(memory, s.stages, early), at.w + (size_t)at.k * TILE, 2 * TILE, &full[early], once);
    }
    grid_wait();
    for (uint32_t n = 0; behind.unit < n_units; n++, walk_next<TILE>(l, s, &behind)) {
        if (n >= early) {
            barrier_wait(&empty[stage], parity ^ 1);
            barrier_expect(&full[stage], F::STAGE);
            bulk_load_hint(F::w(memory, s.stages, stage), behind.w + (size_t)behind.k * TILE, 2 * TILE, &full[stage],
                           once);
        }
        for (uint32_t i = 0; i < 2; i++)
            bulk_load(F::x(memory, stage) + i * F::X_BYTES,
                      (const uint8_t *)l.x + (size_t)(behind.k + i) * l.cap * ROW_BYTES, F::X_BYTES, &full[stage]);
        if (++stage == s.stages) {
            stage = 0;
            parity ^= 1;
        }
    }
}

template <int N>
static __device__ __forceinline__ void times(float (&d)[N / 2], const uint32_t (&a)[16], const uint8_t *x, bool first)
{
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++)
        wgmma_of<N>::run(d, a + 4 * step, wgmma_rows(x + step * 32), first && step == 0);
    wgmma_commit();
}

/*
 * A stage goes back when a warp's lanes have all read it: they do before __syncwarp(), one of them arrives after it, the producer waits for four warps'
 * arrivals. racecheck does not see that chain and reports the refill of a stage beside its reads; where every lane arrives for itself (128 arrivals
 * a stage, otherwise the same code) it reports none, which was tried.
 */
template <int N>
static __device__ void consume(const struct cuda_linear &l, const struct shape &s, uint8_t *memory, uint64_t *full,
                               uint64_t *empty, uint32_t *last)
{
    using F = few<N>;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t stage = 0, parity = 0;
    for (uint32_t u = blockIdx.x; u < s.tiles_out * s.segments; u += gridDim.x) {
        uint32_t tile = u / s.segments, held = UINT32_MAX;
        const uint32_t begin = u % s.segments * SEGMENT_TILES, end = min(begin + SEGMENT_TILES, s.tiles_in);
        const struct cuda_part *part = part_of(l, &tile);
        const uint32_t *list =
            (const uint32_t *)((const uint8_t *)part->packed + (size_t)((part->n_out + 63) / 64) * s.tiles_in * TILE);
        float d[N / 2];
        uint32_t a[16], b[16];
        for (uint32_t k = begin; k < end; k += 2) {
            const uint8_t *at = F::w(memory, s.stages, stage), *x = F::x(memory, stage);
            barrier_wait(&full[stage], parity);
            wgmma_wait<1>(); /* a is free */
            decode(at, list, warp, lane, a);
            times<N>(d, a, x, k == begin);
            wgmma_wait<1>(); /* b is, and the stage before */
            __syncwarp();
            if (held != UINT32_MAX && lane == 0)
                barrier_arrive(&empty[held]);
            decode(at + TILE, list, warp, lane, b);
            times<N>(d, b, x + F::X_BYTES, false);
            held = stage;
            if (++stage == s.stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        wgmma_wait<0>();
        __syncwarp();
        if (lane == 0)
            barrier_arrive(&empty[held]);
        finish<N, N <= 8 ? 0 : N <= 32 ? 4 : 8, N <= 8 ? 7 : 0>(l, s, u, d, last);
    }
}

template <int N>
static __global__ void __launch_bounds__(160, few<N>::BLOCKS)
    linear_lossless(const __grid_constant__ struct cuda_linear l, const __grid_constant__ struct shape s)
{
    using F = few<N>;
    extern __shared__ __align__(1024) uint8_t memory[];
    uint64_t *full = (uint64_t *)(memory + s.stages * F::STAGE), *empty = full + s.stages;
    uint32_t *last = (uint32_t *)(empty + s.stages);
    if (threadIdx.x == 0) {
        for (int i = 0; i < (int)s.stages; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 4);
        }
        shared_fence();
    }
    __syncthreads();
    grid_next();
    if (threadIdx.x < 128) {
        grid_wait();
        consume<N>(l, s, memory, full, empty, last);
    } else if (threadIdx.x == 128) {
        produce<N>(l, s, memory, full, empty);
    }
}

/* ---- as bf16 tiles ---- */

/* A tile is put together in shared memory, so that it leaves in lines; meanwhile the next one's bytes are on their way to the cache. */
static __global__ void __launch_bounds__(128)
    expand(const uint8_t *packed, uint32_t n_tiles, const uint32_t *list, uint8_t *tiles)
{
    __shared__ __align__(128) uint8_t whole[8192];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    grid_next();
    grid_wait();
    for (uint32_t t = blockIdx.x; t < n_tiles; t += gridDim.x) {
        uint32_t a[16];
        const uint8_t *from = packed + (size_t)t * TILE, *next = from + (size_t)gridDim.x * TILE;
        if (t + gridDim.x < n_tiles && threadIdx.x * 128 < TILE)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(next + threadIdx.x * 128));
        decode(from, list, warp, lane, a);
        __syncthreads(); /* the last tile has left */
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t row = warp * 16 + lane / 4 + i % 2 * 8, chunk = i / 4 * 2 + i / 2 % 2;
            *(uint32_t *)(whole + row * ROW_BYTES + (chunk ^ (row & 7)) * 16 + lane % 4 * 4) = a[i];
        }
        __syncthreads();
        uint4 *to = (uint4 *)(tiles + (size_t)t * 8192);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            to[i * 128 + threadIdx.x] = *(const uint4 *)(whole + (i * 128 + threadIdx.x) * 16);
    }
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

/* As many blocks a processor as there are units for, of three stages or more: decoding waits for registers and products, so it wants company. */
template <int N> static int launch(const struct cuda_linear *l, const struct shape *s, cudaStream_t stream)
{
    using F = few<N>;
    const uint32_t units = s->tiles_out * s->segments, n = (uint32_t)processors(), each = (units + n - 1) / n,
                   most = F::BLOCKS, blocks = each < most ? each : most;
    struct shape with = *s;
    with.stages = (SHARED_MAX / blocks - OTHER) / F::STAGE;
    with.stages = with.stages < STAGES_MAX ? with.stages : (uint32_t)STAGES_MAX;
    return grid_launch(linear_lossless<N>, dim3(units < blocks * n ? units : blocks * n), 160,
                       with.stages * F::STAGE + 256, stream, *l, with);
}

extern "C" int cuda_linear_lossless_run(const struct cuda_linear *l, void *stream)
{
    const cudaStream_t st = (cudaStream_t)stream;
    struct shape s = { (l->n_in + 127) / 128 * 2, (l->n_in + CUDA_SEGMENT - 1) / CUDA_SEGMENT, 0, 0 };
    for (uint32_t i = 0; i < l->n_parts; i++)
        s.tiles_out += (l->part[i].n_out + 63) / 64;
    if (!l->n_rows || !s.tiles_out)
        return 0;
    return l->n_rows <= 8               ? launch<8>(l, &s, st)
           : l->n_rows <= 16            ? launch<16>(l, &s, st)
           : l->n_rows <= 32            ? launch<32>(l, &s, st)
           : l->n_rows <= CUDA_ROWS_FEW ? launch<64>(l, &s, st)
                                        : cudaErrorInvalidValue;
}

extern "C" int cuda_lossless_expand(const void *packed, uint32_t n_out, uint32_t n_in, void *tiles_out, void *stream)
{
    const uint32_t n = (n_out + 63) / 64 * ((n_in + 127) / 128 * 2), most = 12 * (uint32_t)processors();
    const uint8_t *from = (const uint8_t *)packed;
    return n ? grid_launch(expand, dim3(n < most ? n : most), 128, 0, stream, from, n,
                           (const uint32_t *)(from + (size_t)n * TILE), (uint8_t *)tiles_out)
             : 0;
}
