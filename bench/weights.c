/*
 * Products with lossless-fast and df11 weights beside the same with bf16, in turns, so that what else runs on the machine disturbs both; and a plain read of the
 * bytes of lossless-fast, which is the floor of what is memory-bound. One thread. Usage: weights [ROWS ...]. Processor time; the best of all turns, and the median of
 * the turns' ratios.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/rng.h"
#include "kernels/kernels.h"
#include "model/df11.h"
#include "model/lossless.h"

enum { STREAM_BYTES = 256 << 20, TURNS_MAX = 40, SPEND_NS = 1000000000 };

static volatile uint64_t sink;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *memory(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, (size_t)2 << 20, bytes))
        exit(1);
    madvise(p, bytes, MADV_HUGEPAGE);
    return memset(p, 0, bytes);
}

static void read_all(const uint8_t *data, size_t bytes)
{
    uint64_t sum[8] = { 0 };
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(data + i + 2048);
        for (size_t j = 0; j < 8; j++) {
            uint64_t v;
            memcpy(&v, data + i + j * 8, 8);
            sum[j] += v;
        }
    }
    sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- one matrix in one codec ---- */

enum { SIDES = 3 }; /* bf16, lossless-fast, df11 */

struct side {
    struct linear_shape shape;
    struct df11_code code;
    const struct linear_impl *impl;
    uint8_t *packed;
    size_t bytes;
    void *scratch;
    double best;
};

/* Rows of a normal distribution, as trained weights are nearly. */
static void draw_group(uint16_t *w, uint32_t n_in, uint64_t seed)
{
    struct rng rng = { .seed = seed };
    for (size_t i = 0; i < (size_t)LINEAR_GROUP * n_in; i++) {
        double x = -6;
        for (int k = 0; k < 12; k++)
            x += rng_unit(rng_next(&rng));
        w[i] = f32_to_bf16((float)(x / sqrt(n_in)));
    }
}

enum { DRAWN = 16 }; /* different groups; they repeat */

static void side_make(struct side *s, enum weight_codec codec, uint32_t n_in, uint32_t n_out, const uint16_t *drawn)
{
    const void *rows[DRAWN][LINEAR_GROUP];
    s->shape = (struct linear_shape){ .n_out = n_out, .n_in = n_in, .codec = codec, .x = DTYPE_BF16 };
    for (uint32_t g = 0; g < DRAWN; g++)
        for (uint32_t i = 0; i < LINEAR_GROUP; i++)
            rows[g][i] = drawn + ((size_t)g * LINEAR_GROUP + i) * n_in;
    if (codec == WEIGHT_LOSSLESS_FAST) {
        s->shape.class_bits = getenv("CLASS_BITS") && !strcmp(getenv("CLASS_BITS"), "4") ? 4 : 3;
        for (uint32_t g = 0; g < DRAWN; g++) {
            const uint16_t *halves[LINEAR_GROUP];
            for (uint32_t i = 0; i < LINEAR_GROUP; i++)
                halves[i] = rows[g][i];
            const uint32_t room = (lossless_count(halves, n_in, s->shape.class_bits) + 63) / 64 * 64;
            s->shape.escape_room = room > s->shape.escape_room ? room : s->shape.escape_room;
        }
    }
    if (codec == WEIGHT_DF11) {
        uint64_t counts[256] = { 0 };
        df11_count(drawn, DRAWN * LINEAR_GROUP * n_in, counts);
        if (!df11_code_best(counts, &s->code))
            exit(1);
        s->shape.df11 = &s->code;
        for (uint32_t g = 0; g < DRAWN; g++) {
            const uint16_t *halves[LINEAR_GROUP];
            for (uint32_t i = 0; i < LINEAR_GROUP; i++)
                halves[i] = rows[g][i];
            const uint32_t room = (uint32_t)(df11_stream_bytes(&s->code, halves, n_in) + 63) / 64 * 64;
            s->shape.stream_room = room > s->shape.stream_room ? room : s->shape.stream_room;
        }
    }
    s->impl = linear_find(&s->shape, cpu_caps());
    s->bytes = linear_packed_bytes(s->impl, &s->shape);
    s->packed = memory(s->bytes);
    const size_t group = s->impl->group_bytes(&s->shape);
    for (uint32_t g = 0; g < n_out / LINEAR_GROUP; g++)
        if (g < DRAWN)
            s->impl->pack(&s->shape, rows[g], s->packed + g * group);
        else
            memcpy(s->packed + g * group, s->packed + g % DRAWN * group, group);
}

static double side_run(struct side *s, const uint16_t *x, uint32_t n_rows, float *y)
{
    const int64_t start = now_ns();
    s->impl->run(&(struct linear_args){ .shape = &s->shape,
                                        .packed = s->packed,
                                        .x = x,
                                        .x_stride = s->shape.n_in,
                                        .n_rows = n_rows,
                                        .out_end = s->shape.n_out,
                                        .y = y,
                                        .y_stride = s->shape.n_out,
                                        .scratch = s->scratch });
    const double t = (double)(now_ns() - start) * 1e-9;
    s->best = s->best > 0 && s->best < t ? s->best : t;
    return t;
}

static double read_side(const struct side *s)
{
    const int64_t start = now_ns();
    read_all(s->packed, s->bytes);
    return (double)(now_ns() - start) * 1e-9;
}

/* ---- one line ---- */

static void compare_rows(struct side side[SIDES], uint32_t n_rows)
{
    const uint32_t n_in = side[0].shape.n_in, n_out = side[0].shape.n_out;
    const size_t y_bytes = (size_t)n_rows * n_out * sizeof(float);
    uint16_t *x = memory((size_t)n_rows * n_in * sizeof *x);
    float *y[SIDES];
    double ratio[SIDES][TURNS_MAX], floor_s = 0;
    size_t n = 0;
    struct rng rng = { .seed = n_rows };
    for (size_t i = 0; i < (size_t)n_rows * n_in; i++)
        x[i] = f32_to_bf16((float)rng_unit(rng_next(&rng)) - 0.5f);
    for (int i = 0; i < SIDES; i++) {
        y[i] = memory(y_bytes);
        side[i].scratch = memory(side[i].impl->scratch_bytes(&side[i].shape, n_rows) + 64);
        side[i].best = 0;
        side_run(&side[i], x, n_rows, y[i]);
        if (memcmp(y[0], y[i], y_bytes) != 0) {
            fprintf(stderr, "weights: the products of %s differ\n", weight_codec_name(side[i].shape.codec));
            exit(1);
        }
    }
    for (int64_t begin = now_ns(); n < TURNS_MAX && (n < 5 || now_ns() - begin < SPEND_NS); n++) {
        const double plain = side_run(&side[0], x, n_rows, y[0]);
        for (int i = 1; i < SIDES; i++)
            ratio[i][n] = plain / side_run(&side[i], x, n_rows, y[i]);
        const double read = read_side(&side[1]);
        floor_s = floor_s > 0 && floor_s < read ? floor_s : read;
    }
    printf("| %5u x %5u | %4u | %8.3f |", n_in, n_out, n_rows, side[0].best * 1e3);
    for (int i = 1; i < SIDES; i++) {
        qsort(ratio[i], n, sizeof *ratio[i], compare);
        printf(" %8.3f | %5.2f | %5.2f |", side[i].best * 1e3, side[0].best / side[i].best, ratio[i][n / 2]);
    }
    printf(" %8.3f |\n", floor_s * 1e3);
    fflush(stdout);
    for (int i = 0; i < SIDES; i++) {
        free(side[i].scratch);
        free(y[i]);
    }
    free(x);
}

int main(int argc, char **argv)
{
    static const uint32_t rows_default[] = { 1, 4, 16, 64, 128, 512 }, widths[] = { 576, 4096, 14336 };
    cpu_thread_init();
    printf("isa %s; class bits %s. ms of processor time; ratios: bf16 over it, of the best and the median\n\n",
           cpu_caps_name(cpu_caps()), getenv("CLASS_BITS") ? getenv("CLASS_BITS") : "3");
    printf("| in x out | rows | bf16 | lossless-fast | ratio | median | df11 | ratio | median | floor |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++) {
        uint16_t *drawn = memory((size_t)DRAWN * LINEAR_GROUP * widths[k] * sizeof *drawn);
        for (uint64_t g = 0; g < DRAWN; g++)
            draw_group(drawn + g * LINEAR_GROUP * widths[k], widths[k], g + 1);
        for (size_t i = 0; i < (argc > 1 ? (size_t)argc - 1 : sizeof rows_default / sizeof *rows_default); i++) {
            const uint32_t n_rows = argc > 1 ? (uint32_t)strtoul(argv[1 + i], NULL, 10) : rows_default[i];
            if (n_rows < 1 || n_rows > 4096) {
                fprintf(stderr, "usage: weights [ROWS ...], each 1 to 4096\n");
                return 2;
            }
            /* few rows: more than a cache holds; many: what a layer has */
            const uint32_t stream = (uint32_t)(STREAM_BYTES / (2 * (size_t)widths[k])) / LINEAR_GROUP * LINEAR_GROUP;
            const uint32_t n_out = n_rows <= 16 ? stream : widths[k] == 4096 ? 14336 : widths[k] == 576 ? 1536 : 4096;
            static struct side side[SIDES];
            memset(side, 0, sizeof side);
            side_make(&side[0], WEIGHT_BF16, widths[k], n_out, drawn);
            side_make(&side[1], WEIGHT_LOSSLESS_FAST, widths[k], n_out, drawn);
            side_make(&side[2], WEIGHT_DF11, widths[k], n_out, drawn);
            compare_rows(side, n_rows);
            free(side[0].packed);
            free(side[1].packed);
            free(side[2].packed);
        }
        free(drawn);
    }
    return 0;
}
