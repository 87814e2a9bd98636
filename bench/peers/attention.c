/*
 * Decode attention of llama.cpp (ggml's flash_attn_ext on the processor) over one layer of the shape that bench/kv_codecs.c measures: one row, 32 query heads, 8 KV
 * heads of 128, keys and values of one type. One thread; its processor time, the median of the rounds. bench/peers.sh attention builds and runs it.
 *
 *   attention [positions [rounds]]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

enum { HEAD_DIM = 128, HEADS = 32, KV_HEADS = 8, ROUNDS_MAX = 256 };

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Some numbers between -1 and 1, as the tensor's type. */
static void fill(struct ggml_tensor *t)
{
    const int64_t width = t->ne[0], rows = ggml_nrows(t);
    float *row = malloc((size_t)width * sizeof *row);
    char *coded = malloc(ggml_row_size(t->type, width));
    unsigned state = 1;
    for (int64_t r = 0; row && coded && r < rows; r++) {
        for (int64_t i = 0; i < width; i++) {
            state = state * 1664525u + 1013904223u;
            row[i] = (float)(int)state / 2147483648.0f;
        }
        if (t->type == GGML_TYPE_F32)
            ggml_backend_tensor_set(t, row, (size_t)r * t->nb[1], (size_t)width * sizeof *row);
        else {
            ggml_quantize_chunk(t->type, row, coded, 0, 1, width, NULL);
            ggml_backend_tensor_set(t, coded, (size_t)r * t->nb[1], ggml_row_size(t->type, width));
        }
    }
    free(row);
    free(coded);
}

static int measure(enum ggml_type type, int64_t positions, int rounds)
{
    const struct ggml_init_params params = { .mem_size = (size_t)1 << 20, .no_alloc = true };
    struct ggml_context *ctx = ggml_init(params);
    struct ggml_tensor *q = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, HEAD_DIM, 1, HEADS, 1),
                       *k = ggml_new_tensor_4d(ctx, type, HEAD_DIM, positions, KV_HEADS, 1),
                       *v = ggml_new_tensor_4d(ctx, type, HEAD_DIM, positions, KV_HEADS, 1);
    struct ggml_tensor *out = ggml_flash_attn_ext(ctx, q, k, v, NULL, 0.088388f, 0.0f, 0.0f);
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, out);
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_buffer_t memory = cpu ? ggml_backend_alloc_ctx_tensors(ctx, cpu) : NULL;
    double ms[ROUNDS_MAX];
    if (!memory) {
        fprintf(stderr, "no memory\n");
        return 1;
    }
    ggml_backend_cpu_set_n_threads(cpu, 1);
    fill(q);
    fill(k);
    fill(v);
    for (int r = -1; r < rounds; r++) {
        const double began = cpu_ms();
        if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS)
            return 1;
        if (r >= 0)
            ms[r] = cpu_ms() - began;
    }
    qsort(ms, (size_t)rounds, sizeof *ms, ascending);
    printf("%7lld positions, 1 thread: llama.cpp %-5s %7.2f ms a layer\n", (long long)positions, ggml_type_name(type),
           ms[rounds / 2]);
    ggml_backend_buffer_free(memory);
    ggml_backend_free(cpu);
    ggml_free(ctx);
    return 0;
}

int main(int argc, char **argv)
{
    const long positions = argc > 1 ? strtol(argv[1], NULL, 10) : 16384,
               rounds = argc > 2 ? strtol(argv[2], NULL, 10) : 9;
    if (positions < 256 || positions > 1 << 20 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: attention [positions [rounds]]\n");
        return 2;
    }
    return measure(GGML_TYPE_F16, positions, (int)rounds) || measure(GGML_TYPE_BF16, positions, (int)rounds) ||
           measure(GGML_TYPE_Q8_0, positions, (int)rounds) || measure(GGML_TYPE_Q4_0, positions, (int)rounds);
}
