/*
 * nomad (kernels/cpu/kv_nomad.h): codes against the nearest of 16 numbers, attention by tables against float64, all variants against `_c`; what the
 * method's page gives by hand. check.h says how to call it.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/f16.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/kernels.h"

enum { D_MAX = 256 };

struct scene {
    struct attn_shape shape;
    uint32_t n;
    const float *numbers; /* [d][16], sorted */
    float *q;             /* [n][d] */
    uint16_t *k_open, *v_open;
    uint8_t *part;
    uint8_t visible[ATTN_ROWS];
    bool finite;
};

/* Books of these numbers [head_dim][16], in any order. */
static const struct kv_book *books_of(struct check *ck, const struct attn_shape *shape, const float *numbers)
{
    struct kv_book *books = check_buffer(ck, 2 * sizeof *books);
    float *book = check_buffer(ck, kv_calibrated_nomad.book_bytes(shape));
    kv_nomad_book_of(numbers, shape->head_dim, book);
    books[0] = (struct kv_book){ book, false, NULL };
    books[1] = (struct kv_book){ NULL, true, NULL };
    return books;
}

static bool seal(const struct attn_shape *shape, const void *k_open, const void *v_open, uint8_t *part)
{
    return kv_seal_nomad(shape, k_open, v_open, part, part + kv_part_bytes_nomad(shape));
}

static struct scene draw_scene(struct check *ck)
{
    static const uint32_t dims[] = { 16, 64, 80, 128, 256 };
    const uint32_t d = dims[check_below(ck, 5)];
    struct scene s = { .shape = { .head_dim = d, .codec = KV_NOMAD, .scale = 1.0f / sqrtf((float)d) },
                       .n = check_between(ck, 1, ATTN_ROWS) };
    float *drawn = check_buffer(ck, d * NOMAD_NUMBERS * sizeof(float));
    for (uint32_t i = 0; i < d * NOMAD_NUMBERS; i++)
        drawn[i] = check_normal(ck) * (1 + (float)(i / NOMAD_NUMBERS % 7)) + (i / NOMAD_NUMBERS % 5 == 1 ? 9 : 0);
    s.shape.books = books_of(ck, &s.shape, drawn);
    s.numbers = kv_nomad_book(&s.shape);
    s.q = check_buffer(ck, (size_t)s.n * d * sizeof(float));
    for (uint32_t i = 0; i < s.n * d; i++)
        s.q[i] = check_normal(ck) * 0.3f;
    s.k_open = check_buffer(ck, (size_t)KV_BLOCK * d * 2);
    s.v_open = check_buffer(ck, (size_t)KV_BLOCK * d * 2);
    for (uint32_t i = 0; i < KV_BLOCK * d; i++) {
        s.k_open[i] = f32_to_bf16(check_normal(ck) * 4);
        s.v_open[i] = f32_to_bf16(check_normal(ck));
    }
    s.part = check_buffer(ck, 2 * kv_part_bytes_nomad(&s.shape));
    s.finite = seal(&s.shape, s.k_open, s.v_open, s.part);
    for (uint32_t i = 0; i < ATTN_ROWS; i++)
        s.visible[i] = (uint8_t)(check_below(ck, 3) ? KV_BLOCK : check_below(ck, KV_BLOCK + 1));
    check_context(ck, "head_dim %u, n %u", d, s.n);
    return s;
}

/* By the layout that the header states. */
static uint32_t key_code(const struct scene *s, uint32_t t, uint32_t c)
{
    const uint8_t both = s->part[(c / 4) * 128 + t / 32 * 64 + t % 16 * 4 + c % 4];
    return t % 32 < 16 ? both & 15 : both >> 4;
}

static double value(const struct scene *s, uint32_t t, uint32_t c)
{
    const uint32_t d = s->shape.head_dim;
    const uint8_t *v = s->part + (size_t)32 * d;
    const uint16_t *scale = (const uint16_t *)(const void *)(v + (size_t)64 * d);
    return (double)(int8_t)v[(t / 4 * d + c) * 4 + t % 4] * (double)f16_to_f32(scale[t]);
}

/* Every variant expands to the same. */
static void expand(struct check *ck, const struct scene *s, uint16_t *k, uint16_t *v)
{
    const size_t part = kv_part_bytes_nomad(&s->shape), bytes = (size_t)KV_BLOCK * s->shape.head_dim * 2;
    struct attn_shape shape = s->shape;
    uint16_t *again = check_buffer(ck, bytes);
    for (int values = 0; values < 2; values++) {
        const uint8_t *from = s->part + (values ? part : 0);
        uint16_t *to = values ? v : k;
        shape.books = s->shape.books + values;
        kv_expand_nomad(&shape, from, NULL, to);
        for (uint32_t i = 0; i < n_coded_impls; i++)
            if (coded_impls[i].accepts(&s->shape) &&
                check_begin(ck, "seal", coded_impls[i].name, coded_impls[i].needs)) {
                coded_impls[i].expand(&shape, from, check_below(ck, 2) ? from : NULL, again);
                check_same(ck, values ? "values" : "keys", again, to, bytes);
            }
    }
}

static void check_seal(struct check *ck)
{
    struct scene s = draw_scene(ck);
    const uint32_t d = s.shape.head_dim;
    uint16_t *k = check_buffer(ck, (size_t)KV_BLOCK * d * 2), *v = check_buffer(ck, (size_t)KV_BLOCK * d * 2);
    if (!s.finite)
        check_fail(ck, "finite keys and values are refused");
    expand(ck, &s, k, v);
    for (uint32_t t = 0; t < KV_BLOCK; t++)
        for (uint32_t c = 0; c < d; c++) {
            const float *of = s.numbers + (size_t)c * NOMAD_NUMBERS;
            const double key = (double)kv_open_key(s.k_open, t, c), was = (double)kv_open_value(s.v_open, d, t, c);
            double nearest = INFINITY, most = 0;
            for (int i = 0; i < NOMAD_NUMBERS; i++)
                nearest = fmin(nearest, fabs(key - (double)of[i]));
            for (uint32_t i = 0; i < d; i++)
                most = fmax(most, fabs((double)kv_open_value(s.v_open, d, t, i)));
            const double is = (double)of[key_code(&s, t, c)];
            if (!(fabs(key - is) <= nearest + 1e-5))
                check_fail(ck, "key %u channel %u: %g became %g, %g off; the nearest is %g off", t, c, key, is,
                           fabs(key - is), nearest);
            if (!(fabs(was - value(&s, t, c)) <= most / 127 * 0.51))
                check_fail(ck, "value %u channel %u: %g became %g", t, c, was, value(&s, t, c));
            if (kv_open_key(k, t, c) != bf16_to_f32(f32_to_bf16((float)is)) ||
                kv_open_value(v, d, t, c) != bf16_to_f32(f32_to_bf16((float)value(&s, t, c))))
                check_fail(ck, "position %u channel %u: expanded to %g, %g", t, c, (double)kv_open_key(k, t, c),
                           (double)kv_open_value(v, d, t, c));
        }
    uint16_t *const to = check_below(ck, 2) ? s.k_open : s.v_open;
    to[check_below(ck, KV_BLOCK * d)] = check_below(ck, 2) ? 0x7F80 : 0xFFC0;
    if (seal(&s.shape, s.k_open, s.v_open, s.part))
        check_fail(ck, "what is not finite is sealed");
}

static const float *run(struct check *ck, const struct attn_impl *it, const struct scene *s, const uint32_t *rows,
                        uint32_t n)
{
    const float *q[ATTN_ROWS];
    uint8_t visible[ATTN_ROWS] = { 0 };
    void *tile = check_buffer(ck, kv_q_tile_bytes_nomad(&s->shape));
    float *out = check_buffer(ck, attn_partial_floats(s->shape.head_dim) * sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        q[i] = s->q + (size_t)rows[i] * s->shape.head_dim;
        visible[i] = s->visible[rows[i]];
    }
    it->pack_q(&s->shape, q, n, tile);
    void *again = check_buffer(ck, kv_q_tile_bytes_nomad(&s->shape));
    kv_pack_q_nomad(&s->shape, q, n, again);
    check_same(ck, "tables", tile, again, kv_q_tile_bytes_nomad(&s->shape));
    it->block(&s->shape, tile, n, visible, s->part, s->part + it->part_bytes(&s->shape), s->part, out);
    return out;
}

static void row_of(const struct scene *s, const float *partial, uint32_t i, float *to)
{
    const uint32_t d = s->shape.head_dim;
    to[0] = partial[i];
    to[1] = partial[ATTN_ROWS + i];
    memcpy(to + 2, partial + 2 * ATTN_ROWS + (size_t)i * d, d * sizeof(float));
}

/* 1 / a of row i's tables, by the header's rule in float64. */
static double table_unit(const struct scene *s, uint32_t i)
{
    const uint32_t d = s->shape.head_dim;
    double widest = 0, spans = 0;
    for (uint32_t c = 0; c < d; c++) {
        const double q = (double)bf16_to_f32(f32_to_bf16(s->q[(size_t)i * d + c]));
        const float *of = s->numbers + (size_t)c * NOMAD_NUMBERS;
        const double span = fabs(q) * ((double)of[NOMAD_NUMBERS - 1] - (double)of[0]);
        widest = fmax(widest, span);
        spans += span;
    }
    return 1 / fmin(255 / widest, 65535 / spans);
}

/* Row i of the partial against exact attention over the numbers that codes stand for: scores are off by D / (2 a) at most. */
static void check_brute(struct check *ck, const struct scene *s, const float *partial, uint32_t i)
{
    const uint32_t d = s->shape.head_dim;
    const double off = table_unit(s, i) * d / 2 * (double)s->shape.scale * 1.001 + 1e-4;
    float got[2 + D_MAX];
    double score[KV_BLOCK], m = -INFINITY, l = 0;
    row_of(s, partial, i, got);
    for (uint32_t t = 0; t < s->visible[i]; t++) {
        score[t] = 0;
        for (uint32_t c = 0; c < d; c++)
            score[t] += (double)bf16_to_f32(f32_to_bf16(s->q[(size_t)i * d + c])) *
                        (double)s->numbers[(size_t)c * NOMAD_NUMBERS + key_code(s, t, c)];
        score[t] *= (double)s->shape.scale;
        m = fmax(m, score[t]);
    }
    if (!s->visible[i]) {
        if (got[0] != -INFINITY || got[1] != 0)
            check_fail(ck, "row %u sees nothing: m %g, l %g", i, (double)got[0], (double)got[1]);
        return;
    }
    if (!(fabs((double)got[0] - m) <= off))
        check_fail(ck, "row %u: m is %.9g, should be within %g of %.9g", i, (double)got[0], off, m);
    for (uint32_t t = 0; t < s->visible[i]; t++)
        l += exp(score[t] - m);
    const double grown = exp(2 * off) * 1.01; /* what all weights together may be off by */
    if (!((double)got[1] <= l * grown && (double)got[1] >= l / grown))
        check_fail(ck, "row %u: l is %g, should be within %g times %g", i, (double)got[1], grown, l);
    for (uint32_t c = 0; c < d; c++) {
        double o = 0, size = 0;
        for (uint32_t t = 0; t < s->visible[i]; t++) {
            o += exp(score[t] - m) * value(s, t, c);
            size += exp(score[t] - m) * fabs(value(s, t, c));
        }
        if (!(fabs((double)got[2 + c] - o) <= size * (grown - 1) + 1e-3 * l))
            check_fail(ck, "row %u channel %u: o is %g, should be %g", i, c, (double)got[2 + c], o);
    }
}

/* Against the integers that tables hold: exact scores, so that only the exponential and the weights' integers are left. */
static void check_tables(struct check *ck, const struct scene *s, const float *partial, uint32_t i)
{
    const uint32_t d = s->shape.head_dim;
    const float *q[1] = { s->q + (size_t)i * d };
    const float *tile = check_buffer(ck, kv_q_tile_bytes_nomad(&s->shape));
    float got[2 + D_MAX];
    double score[KV_BLOCK], m = -INFINITY, l = 0, o[D_MAX] = { 0 }, size = 0, off = 0;
    kv_pack_q_nomad(&s->shape, q, 1, (void *)(uintptr_t)tile);
    row_of(s, partial, i, got);
    for (uint32_t t = 0; t < s->visible[i]; t++) {
        uint32_t sum = 0;
        for (uint32_t c = 0; c < d; c++)
            sum += kv_nomad_tables(tile)[c * NOMAD_NUMBERS + key_code(s, t, c)];
        score[t] = ((double)sum + (double)tile[ATTN_ROWS]) * (double)tile[0] * (double)s->shape.scale;
        m = fmax(m, score[t]);
    }
    for (uint32_t t = 0; t < s->visible[i]; t++) {
        const double p = exp(score[t] - m);
        l += p;
        for (uint32_t c = 0; c < d; c++)
            o[c] += p * value(s, t, c);
    }
    if (!s->visible[i])
        return;
    for (uint32_t c = 0; c < d; c++) {
        size += o[c] * o[c];
        off += (o[c] - (double)got[2 + c]) * (o[c] - (double)got[2 + c]);
    }
    if (!(fabs((double)got[0] - m) <= 1e-4 * (1 + fabs(m))) || !(fabs((double)got[1] - l) <= 1e-3 * l) ||
        !(off <= 1e-6 * size))
        check_fail(ck, "row %u: m %g, l %g, should be %g, %g; o is off by %g of %g", i, (double)got[0], (double)got[1],
                   m, l, sqrt(off), sqrt(size));
}

static void check_block(struct check *ck)
{
    const struct scene s = draw_scene(ck);
    const size_t bytes = (2 + (size_t)s.shape.head_dim) * sizeof(float);
    uint32_t rows[ATTN_ROWS], shuffled[ATTN_ROWS];
    const uint32_t one = check_below(ck, s.n), few = check_between(ck, 1, s.n);
    for (uint32_t i = 0; i < ATTN_ROWS; i++) {
        rows[i] = i;
        shuffled[i] = (i * 5 + one) % s.n;
    }
    const float *want = run(ck, attn_find(&s.shape, 0), &s, rows, s.n);
    for (uint32_t v = 0; v < n_coded_impls; v++) {
        const struct attn_impl *it = &coded_impls[v];
        if (!it->accepts(&s.shape) || !check_begin(ck, "block", it->name, it->needs))
            continue;
        const float *got = run(ck, it, &s, rows, s.n), *mixed = run(ck, it, &s, shuffled, s.n),
                    *some = run(ck, it, &s, shuffled, few), *alone = run(ck, it, &s, &one, 1);
        float a[2 + D_MAX], w[2 + D_MAX];
        for (uint32_t i = 0; i < s.n; i++) {
            check_brute(ck, &s, got, i);
            check_tables(ck, &s, got, i);
            row_of(&s, got, i, a);
            row_of(&s, want, i, w);
            check_close(ck, "o", a + 2, w + 2, s.shape.head_dim, it->rtol);
            row_of(&s, got, shuffled[i], w);
            row_of(&s, i < few ? some : mixed, i, a);
            check_same(ck, "a vector elsewhere, among few", a, w, bytes);
            row_of(&s, mixed, i, a);
            check_same(ck, "a vector elsewhere in the tile", a, w, bytes);
        }
        row_of(&s, got, one, w);
        row_of(&s, alone, 0, a);
        check_same(ck, "a vector alone", a, w, bytes);
    }
}

/* Three channels by hand, the others 0: tables of the method's page. And queries of zeros, too large, not finite. */
static void check_by_hand(struct check *ck)
{
    static const float rows[3][4] = { { -1, 0, 1, 2 }, { 0, 0.5f, 1, 1.5f }, { -3, -1, 0, 1 } };
    static const uint8_t want[3][4] = { { 0, 64, 128, 191 }, { 0, 32, 64, 96 }, { 0, 128, 191, 255 } };
    struct attn_shape shape = { .head_dim = 16, .codec = KV_NOMAD, .scale = 1 };
    float numbers[16 * NOMAD_NUMBERS] = { 0 }, q[16] = { 1, 1, 1 };
    const float *of[1] = { q };
    float *tile = check_buffer(ck, kv_q_tile_bytes_nomad(&shape));
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < NOMAD_NUMBERS; i++)
            numbers[c * NOMAD_NUMBERS + i] = rows[c][i % 4];
    shape.books = books_of(ck, &shape, numbers);
    kv_pack_q_nomad(&shape, of, 1, tile);
    if (fabs((double)tile[0] * 63.75 - 1) > 1e-6 || fabs((double)tile[ATTN_ROWS] + 4 * 63.75) > 1e-4)
        check_fail(ck, "1 / a is %g, a b is %g", (double)tile[0], (double)tile[ATTN_ROWS]);
    for (int c = 0; c < 16; c++)
        for (int i = 0; i < NOMAD_NUMBERS; i++) { /* sorted: each number four times */
            const uint8_t u = kv_nomad_tables(tile)[c * NOMAD_NUMBERS + i];
            if (u != (c < 3 ? want[c][i / 4] : 0))
                check_fail(ck, "channel %d: u of number %d is %u", c, i, u);
        }
    const double score = (191 + 32 + 191 + (double)tile[ATTN_ROWS]) * (double)tile[0];
    if (fabs(score - 2.494118) > 1e-5)
        check_fail(ck, "the score of codes 3, 1, 2 is %g", score);
    memset(q, 0, sizeof q);
    kv_pack_q_nomad(&shape, of, 1, tile);
    if (tile[0] != 1 || tile[ATTN_ROWS] != 0)
        check_fail(ck, "a query of zeros: 1 / a is %g, a b is %g", (double)tile[0], (double)tile[ATTN_ROWS]);
    q[1] = check_below(ck, 2) ? NAN : INFINITY;
    kv_pack_q_nomad(&shape, of, 1, tile);
    if (!isnan(tile[0]))
        check_fail(ck, "a query that is not finite has the unit %g", (double)tile[0]);
}

/* A block and the next, from the nearest cache, beside bf16. */
static void check_bench(struct check *ck)
{
    for (uint32_t v = 0; v < n_coded_impls && ck->bench; v++)
        for (uint32_t d = 64; d <= 128; d *= 2) {
            const struct attn_impl *it = &coded_impls[v];
            const struct attn_shape open_shape = { .head_dim = d, .codec = KV_BF16, .scale = 0.1f };
            struct attn_shape shape = { .head_dim = d, .codec = KV_NOMAD, .scale = 0.1f };
            if (!it->accepts(&shape) || !check_begin(ck, "bench", it->name, it->needs))
                continue;
            const struct attn_impl *open = attn_find(&open_shape, it->needs);
            float *q = check_buffer(ck, d * sizeof *q), *out = check_buffer(ck, attn_partial_floats(d) * sizeof *out),
                  *numbers = check_buffer(ck, d * NOMAD_NUMBERS * sizeof *numbers);
            uint16_t *wide = check_buffer(ck, (size_t)KV_BLOCK * d * 4),
                     *again = check_buffer(ck, (size_t)KV_BLOCK * d * 4);
            const size_t bytes = kv_part_bytes_nomad(&shape);
            uint8_t *part = check_buffer(ck, 2 * bytes), all[ATTN_ROWS];
            uint8_t *tile = check_buffer(ck, kv_q_tile_bytes_nomad(&shape)),
                    *open_tile = check_buffer(ck, open->q_tile_bytes(&shape));
            const float *rows[4] = { q, q, q, q };
            double sealing, plain, coded, pack, keys, values;
            memset(all, KV_BLOCK, sizeof all);
            for (uint32_t i = 0; i < d; i++)
                q[i] = check_normal(ck);
            for (uint32_t i = 0; i < d * NOMAD_NUMBERS; i++)
                numbers[i] = check_normal(ck);
            for (uint32_t i = 0; i < 2 * KV_BLOCK * d; i++)
                wide[i] = f32_to_bf16(check_normal(ck));
            shape.books = books_of(ck, &shape, numbers);
            CHECK_TIME(sealing, seal(&shape, wide, wide + (size_t)KV_BLOCK * d, part));
            CHECK_TIME(pack, it->pack_q(&shape, rows, 4, tile));
            open->pack_q(&open_shape, rows, 4, open_tile);
            CHECK_TIME(coded, it->block(&shape, tile, 4, all, part, part + bytes, NULL, out));
            CHECK_TIME(keys, it->expand(&shape, part, NULL, again));
            shape.books++;
            CHECK_TIME(values, it->expand(&shape, part + bytes, NULL, again));
            CHECK_TIME(plain,
                       open->block(&open_shape, open_tile, 4, all, wide, wide + (size_t)KV_BLOCK * d, NULL, out));
            printf("nomad  %-6s head_dim %3u n 4: %5.0f ns a block in cache, bf16 %5.0f; sealing %6.0f; packing %6.0f; "
                   "expanding keys %5.0f, values %5.0f; bytes %.3f\n",
                   it->name, d, coded * 1e9, plain * 1e9, sealing * 1e9, pack * 1e9, keys * 1e9, values * 1e9,
                   (double)bytes / (KV_BLOCK * d * 2.0));
            check_buffers_free(ck);
        }
}

CHECK_UNLESS_BENCH(seal)
CHECK_UNLESS_BENCH(block)
CHECK_UNLESS_BENCH(by_hand)

int main(int argc, char **argv)
{
    static const struct check_op ops[] = { { "seal", run_seal, 50 },
                                           { "block", run_block, 100 },
                                           { "by-hand", run_by_hand, 4 },
                                           { "bench", check_bench, 1 } };
    return check_main(argc, argv, ops, sizeof ops / sizeof *ops);
}
