/*
 * Figures of products with lossless-fast weights beside bf16 weights of the same run, as one JSON object: Llama-3.1-8B's shapes, weights drawn as normal
 * numbers. Medians of replayed graphs; several copies of a matrix take turns, so that nothing stays in the cache.
 *
 *   cuda_lossless [--quick]
 */
#include <string.h>

#include "bench/cuda_time.h"
#include "common/rng.h"
#include "kernels/cuda/lossless.h"

enum { COPIES_MAX = 8, PARTS_MAX = 3, IN_MAX = 14336 };

static struct cuda_device device;

struct product {
    struct cuda_linear l[COPIES_MAX];
    int n;
    bool lossless;
};

static void product_run(void *ctx, int i)
{
    const struct product *p = ctx;
    CUDA(p->lossless ? cuda_linear_lossless_run(&p->l[i % p->n], stream) : cuda_linear_run(&p->l[i % p->n], stream));
}

static uint16_t draw(uint64_t i)
{
    float x = 0;
    for (uint32_t k = 0; k < 12; k++)
        x += (float)(mix64(12 * i + k) >> 40) * 0x1p-24f - 0.5f;
    x *= 0.02f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* 64 rows drawn once stand for all: their tiles in both forms, and the list. */
struct rows {
    uint32_t n_in, listed;
    uint8_t *bf16, *lossless;
    uint32_t *list;
};

static struct rows rows_new(uint32_t n_in)
{
    static uint16_t w[64][IN_MAX];
    const uint16_t *rows[64];
    struct rows r = { .n_in = n_in,
                      .bf16 = malloc(cuda_packed_bytes(64, n_in)),
                      .lossless = malloc(cuda_lossless_bytes(64, n_in)),
                      .list = malloc((size_t)64 * n_in * 4) };
    for (uint32_t i = 0; i < 64; i++) {
        rows[i] = w[i];
        for (uint32_t k = 0; k < n_in; k++)
            w[i][k] = draw((uint64_t)i * n_in + k);
    }
    cuda_pack_tiles(rows, n_in, r.bf16);
    r.listed = cuda_pack_lossless(rows, n_in, 0, r.lossless, r.list);
    return r;
}

static void *matrix(const struct rows *r, uint32_t n_out, bool lossless)
{
    const size_t each = lossless ? cuda_lossless_bytes(64, r->n_in) : cuda_packed_bytes(64, r->n_in), n = n_out / 64;
    uint8_t *p = take(n * each + (size_t)r->listed * 4);
    for (size_t t = 0; t < n; t++)
        CUDA(cudaMemcpy(p + t * each, lossless ? r->lossless : r->bf16, each, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(p + n * each, r->list, (size_t)r->listed * 4, cudaMemcpyHostToDevice));
    return p;
}

/* Adds a layer's times, of both forms, to sums. */
static void bench_product(const char *name, const struct rows *r, const uint32_t *outs, uint32_t n_parts,
                          uint32_t n_rows, double times, double *sums)
{
    struct product p = { .n = 1 };
    uint32_t n_out = 0;
    double ms[2];
    for (uint32_t i = 0; i < n_parts; i++)
        n_out += outs[i];
    const double weights = (double)n_out * r->n_in;
    p.n = weights < 6e7 ? 8 : 2;
    uint8_t *x = take(cuda_tiled_bytes(128, r->n_in));
    for (size_t at = 0; at < cuda_tiled_bytes(128, r->n_in); at += 8192) /* some bf16 numbers */
        CUDA(cudaMemcpy(x + at, r->bf16, 8192, cudaMemcpyHostToDevice));
    float *y = take((size_t)n_rows * n_out * 4), *partials = take(cuda_linear_partials(n_out, r->n_in) * 4);
    uint32_t *counters = take(n_out / 64 * 4);
    CUDA(cudaMemset(counters, 0, n_out / 64 * 4));
    for (int form = 0; form < 2; form++) {
        p.lossless = form;
        for (int k = 0; k < p.n; k++) {
            p.l[k] = (struct cuda_linear){ .x = x,
                                           .cap = 128,
                                           .n_rows = n_rows,
                                           .n_in = r->n_in,
                                           .n_parts = n_parts,
                                           .partials = partials,
                                           .counters = counters };
            for (uint32_t i = 0; i < n_parts; i++)
                p.l[k].part[i] = (struct cuda_part){
                    .packed = matrix(r, outs[i], form), .y = y, .n_out = outs[i], .y_stride = n_out
                };
        }
        ms[form] = time_ms(product_run, &p, 8);
        sums[form] += times * ms[form];
        for (int k = 0; k < p.n; k++)
            for (uint32_t i = 0; i < n_parts; i++)
                CUDA(cudaFree((void *)(uintptr_t)p.l[k].part[i].packed));
    }
    printf(
        "  \"linear_%s_%u_bf16_us\": %.2f, \"linear_%s_%u_lossless_us\": %.2f, \"linear_%s_%u_lossless_TBps\": %.3f, "
        "\"linear_%s_%u_lossless_over_bf16_time\": %.3f,\n",
        name, n_rows, ms[0] * 1e3, name, n_rows, ms[1] * 1e3, name, n_rows,
        weights / 4096 * CUDA_LOSSLESS_TILE / ms[1] / 1e9, name, n_rows, ms[1] / ms[0]);
    fflush(stdout);
    CUDA(cudaFree(x));
    CUDA(cudaFree(y));
    CUDA(cudaFree(partials));
    CUDA(cudaFree(counters));
}

int main(int argc, char **argv)
{
    static const uint32_t qkv[] = { 4096, 1024, 1024 }, out[] = { 4096 }, up[] = { 14336, 14336 }, head[] = { 128256 },
                          few[] = { 1, 8, 16, 64 };
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    char text[256];
    if (cuda_device_find(&device, text, sizeof text)) {
        fprintf(stderr, "cuda_lossless: %s\n", text);
        return 1;
    }
    repeats = quick ? 10 : 50;
    CUDA(cudaStreamCreate(&stream));
    const struct rows small = rows_new(4096), large = rows_new(14336);
    printf("{\n  \"gpu\": \"%s\",\n  \"lossless_bits_per_weight\": %.3f,\n", device.name,
           8.0 * (CUDA_LOSSLESS_TILE / 4096.0 + 4.0 * small.listed / (64.0 * 4096)));
    for (size_t i = 0; i < (quick ? 1 : sizeof few / sizeof *few); i++) {
        double sums[2] = { 0 };
        bench_product("qkv", &small, qkv, 3, few[i], 32, sums);
        bench_product("out", &small, out, 1, few[i], 32, sums);
        bench_product("up", &small, up, 2, few[i], 32, sums);
        bench_product("down", &large, out, 1, few[i], 32, sums);
        bench_product("head", &small, head, 1, few[i], 1, sums);
        printf("  \"linear_8b_%u_bf16_ms\": %.3f, \"linear_8b_%u_lossless_ms\": %.3f, "
               "\"linear_8b_%u_lossless_over_bf16\": "
               "%.3f,\n",
               few[i], sums[0], few[i], sums[1], few[i], sums[1] / sums[0]);
    }
    printf("  \"repeats\": %d\n}\n", repeats);
    return 0;
}
