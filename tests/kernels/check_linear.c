#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/kernels.h"
#include "model/df11.h"
#include "model/lossless.h"
#include "tests/kernels/check.h"

/* ||c - float64|| / ||float64||: sums of up to 32 and then of n_in / 32 terms in float32. */
static const double C_RTOL = 3e-6;

struct problem {
    struct linear_shape shape;
    uint32_t n_rows;
    size_t row_bytes, x_stride, y_stride;
    uint8_t *w; /* [n_out] stored rows */
    void *x;
    uint32_t poisoned; /* a row of x that holds NaN and infinities, or n_rows: none */
};

static uint32_t round_up(uint32_t x, uint32_t to)
{
    return (x + to - 1) / to * to;
}

static uint16_t f16_of(struct check *ck)
{
    /* 2^-12 .. 2^-5, at times zero or subnormal */
    const uint32_t draw = check_below(ck, 16);
    if (draw == 0)
        return (uint16_t)check_below(ck, 64);
    return (uint16_t)((3 + check_below(ck, 8)) << 10 | check_below(ck, 1024) | (draw & 1) << 15);
}

static bool is_k(enum weight_codec c)
{
    return weight_codec_block(c) == 256;
}

static bool has_min(enum weight_codec c)
{
    return c == WEIGHT_Q4_1 || c == WEIGHT_Q5_1 || c == WEIGHT_Q4_K || c == WEIGHT_Q5_K;
}

static void draw_grid(struct check *ck, const struct linear_shape *s, uint8_t *row)
{
    const uint32_t bits = weight_grid_bits(s->codec), n = 1u << bits;
    const size_t bytes = weight_row_bytes(s->codec, s->n_in);
    for (uint32_t i = 0; i < n; i++) {
        const uint16_t h = f32_to_bf16(check_normal(ck) * 0.1f);
        memcpy(row + 2 * i, &h, 2);
    }
    for (size_t i = 2 * n; i < bytes; i++)
        row[i] = (uint8_t)check_below(ck, 256);
}

static void draw_weights(struct check *ck, struct problem *p)
{
    const struct linear_shape *s = &p->shape;
    const size_t block = weight_codec_block_bytes(s->codec);
    for (uint32_t o = 0; o < s->n_out; o++) {
        uint8_t *row = p->w + o * p->row_bytes;
        if (weight_grid_bits(s->codec)) {
            draw_grid(ck, s, row);
            continue;
        }
        for (size_t i = 0; i < p->row_bytes; i += block) {
            const float f = check_normal(ck) * 0.1f;
            uint16_t h = f32_to_bf16(f);
            if (s->codec == WEIGHT_F32) {
                memcpy(row + i, &f, 4);
                continue;
            }
            if (weight_codec_block(s->codec) == 1) {
                h = s->codec == WEIGHT_F16 ? f16_of(ck) : h;
                if ((s->codec == WEIGHT_LOSSLESS_FAST || s->codec == WEIGHT_DF11) &&
                    check_below(ck, 64) == 0) /* far from the rest: an escape */
                    h = check_below(ck, 2) ? (uint16_t)((h & 0x807F) | check_below(ck, 130) << 7) : 0;
                memcpy(row + i, &h, 2);
                continue;
            }
            for (size_t j = 0; j < block; j++)
                row[i + j] = (uint8_t)check_below(ck, 256);
            h = f16_of(ck);
            memcpy(row + i + (s->codec == WEIGHT_Q6_K ? 208 : 0), &h, 2);
            if (s->codec == WEIGHT_Q4_Z) { /* the integers 4 .. 15, as f16 */
                const uint32_t z = check_between(ck, 4, 15), log2 = z < 8 ? 2 : 3;
                h = (uint16_t)((15 + log2) << 10 | (z << (10 - log2) & 1023));
                memcpy(row + i + 2, &h, 2);
            }
            if (has_min(s->codec)) {
                if (!is_k(s->codec))
                    h ^= 0x8000; /* is added there, taken away here */
                const int times = s->codec == WEIGHT_Q5_1 || s->codec == WEIGHT_Q5_K ? 4 : 3;
                h = (uint16_t)(h + (h & 0x7C00 && (h & 0x7C00) < 0x6000 ? times << 10 : 0)); /* 8 d or 16 d */
                memcpy(row + i + 2, &h, 2);
            }
        }
    }
}

/* Room for the escapes of the group that has most. */
static void draw_lossless(struct check *ck, struct problem *p)
{
    struct linear_shape *s = &p->shape;
    s->class_bits = check_between(ck, 3, 4);
    for (uint32_t o = 0; o < s->n_out; o += LINEAR_GROUP) {
        const uint16_t *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++)
            rows[i] = o + i < s->n_out ? (const uint16_t *)(p->w + (o + i) * p->row_bytes) : NULL;
        const uint32_t room = round_up(lossless_count(rows, s->n_in, s->class_bits), 64);
        s->escape_room = room > s->escape_room ? room : s->escape_room;
    }
}

/* The code, which lives as long as the problem, and room for the longest stream. */
static void draw_df11(struct check *ck, struct problem *p)
{
    struct linear_shape *s = &p->shape;
    struct df11_code *code = check_buffer(ck, sizeof *code);
    uint64_t counts[256] = { 0 };
    for (uint32_t o = 0; o < s->n_out; o++)
        df11_count((const uint16_t *)(p->w + o * p->row_bytes), s->n_in, counts);
    if (!df11_code_best(counts, code))
        check_fail(ck, "no code");
    s->df11 = code;
    for (uint32_t o = 0; o < s->n_out; o += LINEAR_GROUP) {
        const uint16_t *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++)
            rows[i] = o + i < s->n_out ? (const uint16_t *)(p->w + (o + i) * p->row_bytes) : NULL;
        const uint32_t room = round_up((uint32_t)df11_stream_bytes(code, rows, s->n_in), 64);
        s->stream_room = room > s->stream_room ? room : s->stream_room;
    }
}

static void put_x(struct problem *p, size_t at, float v)
{
    if (p->shape.x == DTYPE_F32)
        ((float *)p->x)[at] = v;
    else
        ((uint16_t *)p->x)[at] = f32_to_bf16(v);
}

static void draw_x(struct check *ck, struct problem *p)
{
    const uint32_t padded = round_up(p->shape.n_in, 32);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        const float scale = ldexpf(1, (int)check_between(ck, 0, 20) - 10);
        const float mean = check_below(ck, 4) ? 0.0f : 4.0f * check_normal(ck); /* activations are not always centred */
        const uint32_t outlier = check_below(ck, 4) ? p->shape.n_in : check_below(ck, p->shape.n_in);
        for (uint32_t k = 0; k < (r + 1 < p->n_rows ? p->x_stride : padded); k++) {
            const float v = k < p->shape.n_in ? (check_normal(ck) + mean) * scale : k < padded ? 0.0f : NAN;
            put_x(p, r * p->x_stride + k, k == outlier ? v * 300 : v);
        }
    }
    if (p->poisoned < p->n_rows)
        for (uint32_t i = 0; i < 3; i++)
            put_x(p, p->poisoned * p->x_stride + check_below(ck, p->shape.n_in),
                  i == 0   ? NAN
                  : i == 1 ? INFINITY
                           : 3e38f);
}

static uint32_t draw_n_rows(struct check *ck)
{
    switch (check_below(ck, 8)) {
    case 0:
        return 1;
    case 1:
        return check_between(ck, 1, 17);
    case 2:
        return 16 * check_between(ck, 1, 5);
    case 3:
        return check_between(ck, 500, 560);
    default:
        return check_between(ck, 2, 70);
    }
}

static struct problem draw_problem(struct check *ck, enum weight_codec codec, enum dtype x)
{
    struct problem p = { .shape = { .codec = codec, .x = x } };
    p.n_rows = draw_n_rows(ck);
    const bool many = p.n_rows > 80;
    p.shape.n_out = many ? check_between(ck, 1, 40) : check_between(ck, 1, check_below(ck, 4) ? 150 : 700);
    const uint32_t n_in_max = many ? check_below(ck, 2) ? 200 : 1200 : p.shape.n_out > 150 ? 700 : 2500;
    p.shape.n_in = check_between(ck, 1, n_in_max);
    if (weight_codec_block(codec) >= 32 || check_below(ck, 3) == 0)
        p.shape.n_in = round_up(p.shape.n_in, is_k(codec) ? 256 : 32);
    p.row_bytes = weight_row_bytes(codec, p.shape.n_in);
    p.x_stride = round_up(p.shape.n_in, 32) + 32 * check_below(ck, 3);
    if (check_below(ck, 4) == 0)
        p.x_stride = round_up((uint32_t)p.x_stride, 1024); /* where cache sets collide: AMX copies x */
    p.y_stride = p.shape.n_out + check_below(ck, 40);
    p.w = check_buffer(ck, p.row_bytes * p.shape.n_out);
    const size_t x_elements = (p.n_rows - 1) * p.x_stride + round_up(p.shape.n_in, 32);
    p.x = check_buffer(ck, x_elements * dtype_bytes(x));
    p.poisoned = check_below(ck, 4) ? p.n_rows : check_below(ck, p.n_rows);
    draw_weights(ck, &p);
    if (codec == WEIGHT_LOSSLESS_FAST)
        draw_lossless(ck, &p);
    if (codec == WEIGHT_DF11)
        draw_df11(ck, &p);
    draw_x(ck, &p);
    check_context(ck, "%s n_in %u n_out %u rows %u x %s x_stride %zu y_stride %zu", weight_codec_name(codec),
                  p.shape.n_in, p.shape.n_out, p.n_rows, x == DTYPE_F32 ? "f32" : "bf16", p.x_stride, p.y_stride);
    return p;
}

static void *pack(struct check *ck, const struct linear_impl *it, const struct problem *p)
{
    const struct linear_shape *s = &p->shape;
    const size_t group = it->group_bytes(s);
    uint8_t *packed = check_buffer(ck, linear_packed_bytes(it, s));
    if (group % 64)
        check_fail(ck, "a group has %zu bytes, not a multiple of 64", group);
    for (uint32_t o = 0; o < s->n_out; o += LINEAR_GROUP) {
        const void *rows[LINEAR_GROUP];
        for (uint32_t i = 0; i < LINEAR_GROUP; i++)
            rows[i] = o + i < s->n_out ? p->w + (o + i) * p->row_bytes : NULL;
        it->pack(s, rows, packed + o / LINEAR_GROUP * group);
    }
    return packed;
}

static size_t y_floats(const struct problem *p, uint32_t n_rows)
{
    return (n_rows - 1) * p->y_stride + p->shape.n_out;
}

/* Rows r0 .. r0+n_rows-1 into a new y, filled with fill first if that is not NULL. */
static float *run(struct check *ck, const struct linear_impl *it, const struct problem *p, const void *packed,
                  uint32_t r0, uint32_t n_rows, uint32_t out_begin, uint32_t out_end, const float *fill)
{
    float *y = check_buffer(ck, y_floats(p, n_rows) * sizeof(float));
    const size_t scratch_bytes = it->scratch_bytes(&p->shape, n_rows);
    void *scratch = scratch_bytes ? check_buffer(ck, scratch_bytes) : NULL;
    if (fill)
        memcpy(y, fill, y_floats(p, n_rows) * sizeof(float));
    it->run(&(struct linear_args){ .shape = &p->shape,
                                   .packed = packed,
                                   .x = (const uint8_t *)p->x + r0 * p->x_stride * dtype_bytes(p->shape.x),
                                   .x_stride = p->x_stride,
                                   .n_rows = n_rows,
                                   .out_begin = out_begin,
                                   .out_end = out_end,
                                   .y = y,
                                   .y_stride = p->y_stride,
                                   .accumulate = fill != NULL,
                                   .scratch = scratch });
    /* which of two NaNs an instruction passes on depends on the order of its operands, which is the compiler's */
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t o = out_begin; o < out_end; o++)
            if (isnan(y[r * p->y_stride + o]))
                y[r * p->y_stride + o] = NAN;
    return y;
}

static float *brute_force(struct check *ck, const struct problem *p)
{
    const struct linear_shape *s = &p->shape;
    float *y = check_buffer(ck, y_floats(p, p->n_rows) * sizeof(float));
    float *w = check_buffer(ck, s->n_in * sizeof(float)), *x = check_buffer(ck, s->n_in * sizeof(float));
    for (uint32_t o = 0; o < s->n_out; o++) {
        weight_row_f32(s->codec, p->w + o * p->row_bytes, s->n_in, w);
        for (uint32_t r = 0; r < p->n_rows; r++) {
            double sum = 0;
            weight_row_f32(s->x == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16,
                           (const uint8_t *)p->x + r * p->x_stride * dtype_bytes(s->x), s->n_in, x);
            for (uint32_t k = 0; k < s->n_in; k++)
                sum += (double)w[k] * (double)x[k];
            y[r * p->y_stride + o] = (float)sum;
        }
    }
    return y;
}

/* Row by row each against its own norm, so that small rows count; rows of few outputs may cancel and are left out. */
static void check_rows_close(struct check *ck, const struct problem *p, const float *got, const float *want,
                             double rtol)
{
    for (uint32_t r = 0; r < p->n_rows && !ck->failures && p->shape.n_out >= 16; r++)
        if (r != p->poisoned)
            check_close(ck, "y", got + r * p->y_stride, want + r * p->y_stride, p->shape.n_out, rtol);
}

static void check_rows_same(struct check *ck, const struct problem *p, const char *what, const float *got,
                            const float *want, uint32_t n_rows, uint32_t out_begin, uint32_t out_end)
{
    for (uint32_t r = 0; r < n_rows && !ck->failures; r++)
        check_same(ck, what, got + r * p->y_stride + out_begin, want + r * p->y_stride + out_begin,
                   (out_end - out_begin) * sizeof(float));
}

/* Everything around the written outputs still holds what check_buffer put there. */
static void check_untouched(struct check *ck, const struct problem *p, const float *y, uint32_t n_rows,
                            uint32_t out_begin, uint32_t out_end)
{
    for (uint32_t r = 0; r < n_rows; r++)
        for (size_t o = 0; o < (r + 1 < n_rows ? p->y_stride : p->shape.n_out); o++) {
            uint32_t u;
            memcpy(&u, y + r * p->y_stride + o, 4);
            if ((o < out_begin || o >= out_end) && u != 0xA5A5A5A5u) {
                check_fail(ck, "y[%u][%zu] was written, outside of outputs %u..%u", r, o, out_begin, out_end);
                return;
            }
        }
}

static void check_identity(struct check *ck, const struct linear_impl *it, const struct problem *p, const void *packed,
                           const float *y)
{
    const uint32_t n_out = p->shape.n_out, n_groups = (n_out + LINEAR_GROUP - 1) / LINEAR_GROUP;
    for (int i = 0; i < 3; i++) {
        const uint32_t r = check_below(ck, p->n_rows);
        check_rows_same(ck, p, "a row alone", run(ck, it, p, packed, r, 1, 0, n_out, NULL), y + r * p->y_stride, 1, 0,
                        n_out);
    }
    for (int i = 0; i < 2; i++) {
        const uint32_t r = check_below(ck, p->n_rows), n = check_between(ck, 1, p->n_rows - r);
        check_rows_same(ck, p, "some rows", run(ck, it, p, packed, r, n, 0, n_out, NULL), y + r * p->y_stride, n, 0,
                        n_out);
    }
    for (int i = 0; i < 3; i++) {
        const uint32_t r = check_below(ck, p->n_rows), n = check_between(ck, 1, p->n_rows - r);
        const uint32_t g = check_below(ck, n_groups), n_here = check_between(ck, 1, n_groups - g);
        const uint32_t begin = g * LINEAR_GROUP, end = g + n_here == n_groups ? n_out : (g + n_here) * LINEAR_GROUP;
        float *part = run(ck, it, p, packed, r, n, begin, end, NULL);
        check_rows_same(ck, p, "some outputs", part, y + r * p->y_stride, n, begin, end);
        check_untouched(ck, p, part, n, begin, end);
    }
    it->run(&(struct linear_args){
        .shape = &p->shape, .packed = packed, .out_end = n_out }); /* no rows: nothing to touch */
    float *before = check_buffer(ck, y_floats(p, p->n_rows) * sizeof(float));
    for (size_t i = 0; i < y_floats(p, p->n_rows); i++)
        before[i] = check_normal(ck);
    float *sum = run(ck, it, p, packed, 0, p->n_rows, 0, n_out, before);
    for (uint32_t r = 0; r < p->n_rows; r++)
        for (uint32_t o = 0; o < n_out; o++)
            before[r * p->y_stride + o] += y[r * p->y_stride + o];
    for (uint32_t r = 0; r < p->n_rows; r++)
        if (r != p->poisoned)
            check_rows_same(ck, p, "accumulated", sum + r * p->y_stride, before + r * p->y_stride, 1, 0, n_out);
}

/* lossless-fast, df11 and grids of bf16 have the bits of the same variant's bf16. */
static void check_lossless(struct check *ck, const struct linear_impl *it, const struct problem *p, const float *y)
{
    struct problem plain = *p;
    plain.shape.codec = WEIGHT_BF16;
    if (weight_grid_bits(p->shape.codec)) { /* whose values are bf16 */
        plain.row_bytes = 2 * (size_t)p->shape.n_in;
        plain.w = check_buffer(ck, plain.row_bytes * p->shape.n_out);
        for (uint32_t o = 0; o < p->shape.n_out; o++)
            for (uint32_t k = 0; k < p->shape.n_in; k++) {
                const uint8_t *row = p->w + o * p->row_bytes;
                memcpy(plain.w + o * plain.row_bytes + 2 * k,
                       row + 2 * weight_grid_code(weight_grid_bits(p->shape.codec), row, k), 2);
            }
    }
    for (uint32_t i = 0; i < n_linear_impls; i++) {
        const struct linear_impl *same = &linear_impls[i];
        if (strcmp(same->name, it->name) || !same->accepts(&plain.shape))
            continue;
        const float *want = run(ck, same, &plain, pack(ck, same, &plain), 0, p->n_rows, 0, p->shape.n_out, NULL);
        for (uint32_t r = 0; r < p->n_rows; r++)
            if (r != p->poisoned)
                check_rows_same(ck, p, "bf16", y + r * p->y_stride, want + r * p->y_stride, 1, 0, p->shape.n_out);
        return;
    }
    check_fail(ck, "no bf16 beside it");
}

static void check_shape(struct check *ck, enum weight_codec codec, enum dtype x)
{
    struct problem p = { 0 };
    const float *want = NULL;
    const struct linear_impl *ref = &linear_impls[n_linear_impls - 1];
    for (uint32_t i = n_linear_impls; i-- > 0;) { /* the reference first */
        const struct linear_impl *it = &linear_impls[i];
        const struct linear_shape probe = { .n_out = 16, .n_in = 256, .codec = codec, .x = x, .class_bits = 3 };
        if (it != ref && (!it->accepts(&probe) || !check_begin(ck, "linear", it->name, it->needs)))
            continue;
        ck->variant = it->name;
        if (!want) {
            p = draw_problem(ck, codec, x);
            want = run(ck, ref, &p, pack(ck, ref, &p), 0, p.n_rows, 0, p.shape.n_out, NULL);
            if (p.n_rows < 100)
                check_rows_close(ck, &p, want, brute_force(ck, &p), C_RTOL);
        }
        void *packed = pack(ck, it, &p);
        const float *y = run(ck, it, &p, packed, 0, p.n_rows, 0, p.shape.n_out, NULL);
        check_rows_close(ck, &p, y, want, (double)it->rtol);
        if (codec == WEIGHT_LOSSLESS_FAST || codec == WEIGHT_DF11 || weight_grid_bits(codec))
            check_lossless(ck, it, &p, y);
        if (!ck->failures)
            check_identity(ck, it, &p, packed, y);
    }
}

/* linear_find: the first row whose needs are met, for every set of capabilities. */
static void check_find(struct check *ck)
{
    ck->variant = "find";
    for (uint32_t caps = 0; caps < 16; caps++)
        for (int codec = 0; codec < WEIGHT_CODECS; codec++)
            for (int x = 0; x < 2; x++) {
                const struct linear_shape s = {
                    .n_out = 16, .n_in = 256, .codec = (enum weight_codec)codec, .x = (enum dtype)x, .class_bits = 3
                };
                uint32_t i = 0;
                while ((linear_impls[i].needs & ~caps) || !linear_impls[i].accepts(&s))
                    i++;
                if (linear_find(&s, caps) != &linear_impls[i])
                    check_fail(ck, "caps %u codec %s: not the first that fits", caps, weight_codec_name(s.codec));
            }
    if (strcmp(linear_impls[n_linear_impls - 1].name, "c") || linear_impls[n_linear_impls - 1].needs)
        check_fail(ck, "the last row is not c");
}

/* ---- --bench ---- */

static const size_t STREAM_BYTES = (size_t)512 << 20;

static volatile uint64_t sink;

/* What reading memory costs by itself: a sum over it, asked for ahead. */
static void read_all(const uint8_t *data, size_t bytes)
{
    uint64_t sum[8] = { 0 };
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(data + i + 2048);
        for (int j = 0; j < 8; j++) {
            uint64_t v;
            memcpy(&v, data + i + (size_t)j * 8, 8);
            sum[j] += v;
        }
    }
    sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

#if defined(__x86_64__)
/* n tile products with everything in registers: what AMX can do at this moment. */
__attribute__((target("amx-tile,amx-bf16"))) static void tile_products(size_t n)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
    for (size_t i = 0; i < n; i += 4) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#else
static void tile_products(size_t n)
{
    (void)n;
}
#endif

/* Times the kernel and a yardstick in turn, so that what else runs on the machine disturbs both; the best of each, and the kernel's median.
   Yardstick: read_all, or, with bytes 0, n_products tile products (none: 0). */
struct timing {
    double kernel, yardstick, kernel_median;
};

static struct timing time_in_turn(const struct linear_impl *it, const struct linear_args *args, const uint8_t *data,
                                  size_t bytes, size_t n_products)
{
    enum { TIMES_MAX = 400 };
    double kernel[TIMES_MAX], yardstick[TIMES_MAX];
    size_t n = 0;
    it->run(args);
    for (int64_t spent = 0; n < TIMES_MAX && (n < 5 || spent < 700000000); n++) {
        const int64_t t0 = check_cpu_ns();
        it->run(args);
        const int64_t t1 = check_cpu_ns();
        if (bytes)
            read_all(data, bytes);
        else if (n_products)
            tile_products(n_products);
        const int64_t t2 = check_cpu_ns();
        kernel[n] = (double)(t1 - t0) * 1e-9;
        yardstick[n] = (double)(t2 - t1) * 1e-9;
        spent += t2 - t0;
    }
    const double median = check_median(kernel, n);
    check_median(yardstick, n);
    return (struct timing){ kernel[0], yardstick[0], median };
}

/* The same random group over and over: values do not matter to time, memory does. */
static uint8_t *bench_pack(struct check *ck, const struct linear_impl *it, const struct problem *p)
{
    const struct linear_shape *s = &p->shape;
    const size_t group = it->group_bytes(s), bytes = linear_packed_bytes(it, s);
    uint8_t *packed = check_buffer(ck, bytes);
    const void *rows[LINEAR_GROUP];
    for (uint32_t i = 0; i < LINEAR_GROUP; i++)
        rows[i] = p->w;
    it->pack(s, rows, packed);
    for (size_t at = group; at < bytes; at += group)
        memcpy(packed + at, packed, group);
    return packed;
}

/* As bench_pack has it: sixteen times the same row. */
static void bench_lossless(struct check *ck, struct problem *p)
{
    const uint16_t *rows[LINEAR_GROUP];
    for (uint32_t i = 0; i < LINEAR_GROUP; i++)
        rows[i] = (const uint16_t *)p->w;
    if (p->shape.codec == WEIGHT_DF11) {
        struct df11_code *code = check_buffer(ck, sizeof *code);
        uint64_t counts[256] = { 0 };
        df11_count(rows[0], p->shape.n_in, counts);
        if (!df11_code_best(counts, code))
            check_fail(ck, "no code");
        p->shape.df11 = code;
        p->shape.stream_room = round_up((uint32_t)df11_stream_bytes(code, rows, p->shape.n_in), 64);
    }
    if (p->shape.codec != WEIGHT_LOSSLESS_FAST)
        return;
    p->shape.class_bits = getenv("CHECK_BITS") ? (uint32_t)atoi(getenv("CHECK_BITS")) : 3;
    p->shape.escape_room = round_up(lossless_count(rows, p->shape.n_in, p->shape.class_bits), 64);
}

static void bench_one(struct check *ck, const struct linear_impl *it, enum weight_codec codec, enum dtype x,
                      uint32_t n_rows, uint32_t n_in, uint32_t n_out)
{
    struct problem p = { .shape = { .n_out = n_out, .n_in = n_in, .codec = codec, .x = x },
                         .n_rows = n_rows,
                         .poisoned = n_rows };
    p.row_bytes = weight_row_bytes(codec, n_in);
    p.x_stride = n_in;
    p.y_stride = n_out;
    p.w = check_buffer(ck, p.row_bytes);
    p.x = check_buffer(ck, n_rows * p.x_stride * dtype_bytes(x));
    p.shape.n_out = 1;
    draw_weights(ck, &p);
    p.shape.n_out = n_out;
    bench_lossless(ck, &p);
    draw_x(ck, &p);
    uint8_t *packed = bench_pack(ck, it, &p);
    const size_t bytes = linear_packed_bytes(it, &p.shape), scratch_bytes = it->scratch_bytes(&p.shape, n_rows);
    struct linear_args args = { &p.shape,
                                packed,
                                p.x,
                                p.x_stride,
                                n_rows,
                                0,
                                n_out,
                                check_buffer(ck, (size_t)n_rows * n_out * 4),
                                n_out,
                                false,
                                scratch_bytes ? check_buffer(ck, scratch_bytes) : NULL };
    const double products = (it->needs & CPU_AMX) && n_rows >= 16 ? (double)n_rows * n_in * n_out / (16 * 16 * 32) : 0;
    const struct timing t = time_in_turn(it, &args, packed, n_rows == 1 ? bytes : 0, (size_t)products);
    printf("%-7s %-5s x %-4s rows %4u in %5u out %6u: %9.3f ms (median %.3f) %6.2f GB/s of weights %7.1f GFLOP/s",
           it->name, weight_codec_name(codec), x == DTYPE_F32 ? "f32" : "bf16", n_rows, n_in, n_out, t.kernel * 1e3,
           t.kernel_median * 1e3, (double)bytes / t.kernel / 1e9, 2.0 * n_rows * n_in * n_out / t.kernel / 1e9);
    if (n_rows == 1)
        printf("  (%.0f%% of a plain read, %.2f GB/s)", 100 * t.yardstick / t.kernel,
               (double)bytes / t.yardstick / 1e9);
    else if (products > 0)
        printf("  (%.0f%% of tile products alone, %.0f GFLOP/s)", 100 * t.yardstick / t.kernel,
               2.0 * n_rows * n_in * n_out / t.yardstick / 1e9);
    printf("\n");
    fflush(stdout);
    check_buffers_free(ck);
}

static void bench(struct check *ck)
{
    static const uint32_t shapes[][2] = { { 576, 1536 }, { 1536, 576 }, { 4096, 14336 }, { 14336, 4096 } };
    for (uint32_t i = 0; i < n_linear_impls; i++) {
        const struct linear_impl *it = &linear_impls[i];
        const bool slow = !(it->needs & CPU_AMX), slowest = !it->needs;
        if (!check_begin(ck, "linear", it->name, it->needs))
            continue;
        for (int c = 0; c < WEIGHT_CODECS; c++)
            for (int x = DTYPE_BF16; x >= DTYPE_F32; x--) {
                const enum weight_codec codec = (enum weight_codec)c;
                const struct linear_shape probe = {
                    .n_out = 16, .n_in = 4096, .codec = codec, .x = (enum dtype)x, .class_bits = 3, .escape_room = 2048
                };
                if (!it->accepts(&probe) ||
                    (getenv("CHECK_CODEC") && strcmp(getenv("CHECK_CODEC"), weight_codec_name(codec))))
                    continue;
                const size_t stream = slowest ? STREAM_BYTES / 16 : STREAM_BYTES;
                const uint32_t n_out = (uint32_t)(stream / it->group_bytes(&probe)) * LINEAR_GROUP;
                bench_one(ck, it, codec, probe.x, 1, 4096, n_out);
                bench_one(ck, it, codec, probe.x, 16, 4096, n_out);
                if (x == DTYPE_F32 && !slowest)
                    continue;
                for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
                    if (shapes[k][0] % weight_codec_block(codec))
                        continue;
                    const uint32_t narrow = shapes[k][1] / (slowest ? 16 : slow ? 4 : 1) / 16 * 16;
                    bench_one(ck, it, codec, probe.x, 256, shapes[k][0], narrow);
                    if (!slow)
                        bench_one(ck, it, codec, probe.x, 2048, shapes[k][0], narrow);
                }
            }
    }
}

static void check_linear(struct check *ck)
{
    if (ck->bench) {
        bench(ck);
        return;
    }
    check_find(ck);
    check_shape(ck, (enum weight_codec)(ck->round % WEIGHT_CODECS), check_below(ck, 4) ? DTYPE_BF16 : DTYPE_F32);
}

int main(int argc, char **argv)
{
    /* with --bench, CHECK_CODEC=Q4_1 (say) in the environment limits it to one codec; CHECK_BITS=4: classes of lossless-fast */
    static const struct check_op ops[] = { { "linear", check_linear, 144 } };
    return check_main(argc, argv, ops, 1);
}
