/* df11: an independent implementation's tensors bit for bit, the page's code lengths, round trips of every bit pattern, and refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/rng.h"
#include "kernels/kernels.h"
#include "model/df11.h"

/* A tensor coded group by group, exactly as long as needed: what reads further is found. */
struct coded {
    struct df11_tensor t;
    struct df11_code code;
    uint8_t *signs, *stream;
    uint32_t *offsets;
    uint64_t *starts;
    uint64_t bits;
};

static void group_rows(const uint16_t *w, uint32_t n_rows, uint32_t n_cols, uint32_t g, const uint16_t *rows[DF11_OUTS])
{
    for (uint32_t i = 0; i < DF11_OUTS; i++)
        rows[i] = g * DF11_OUTS + i < n_rows ? w + (size_t)(g * DF11_OUTS + i) * n_cols : NULL;
}

static struct coded *code_tensor(const uint16_t *w, uint32_t n_rows, uint32_t n_cols)
{
    const uint32_t groups = df11_groups(n_rows), blocks = df11_blocks(n_cols);
    struct coded *c = calloc(1, sizeof *c);
    uint64_t counts[256] = { 0 };
    const uint16_t *rows[DF11_OUTS];
    uint64_t total = 0;
    df11_count(w, n_rows * n_cols, counts);
    assert_true(df11_code_best(counts, &c->code));
    for (int e = 0; e < 256; e++)
        c->bits += counts[e] * c->code.length[e];
    for (uint32_t g = 0; g < groups; g++) {
        group_rows(w, n_rows, n_cols, g, rows);
        total += df11_stream_bytes(&c->code, rows, n_cols);
    }
    c->signs = malloc((size_t)groups * blocks * DF11_WEIGHTS);
    c->offsets = malloc((size_t)groups * df11_tiles(n_cols) * sizeof *c->offsets);
    c->starts = calloc(groups + 1, sizeof *c->starts);
    c->stream = malloc(total);
    for (uint32_t g = 0; g < groups; g++) {
        group_rows(w, n_rows, n_cols, g, rows);
        c->starts[g + 1] =
            c->starts[g] + df11_encode(&c->code, rows, n_cols, c->signs + (size_t)g * blocks * DF11_WEIGHTS,
                                       c->offsets + (size_t)g * df11_tiles(n_cols), c->stream + c->starts[g]);
    }
    assert_int_equal(c->starts[groups], total);
    c->t = (struct df11_tensor){ n_rows, n_cols, &c->code, total, c->signs, c->stream, c->offsets, c->starts };
    return c;
}

static void coded_free(struct coded *c)
{
    free(c->signs);
    free(c->stream);
    free(c->offsets);
    free(c->starts);
    free(c);
}

/* Rows, and blocks in the order of B tiles, against the weights. */
static void expect_same(const struct df11_tensor *t, const uint16_t *w)
{
    const uint32_t n_blocks = df11_blocks(t->n_cols);
    uint16_t *row = malloc(t->n_cols * sizeof *row), *blocks = malloc((size_t)n_blocks * DF11_WEIGHTS * 2);
    for (uint32_t g = 0; g < df11_groups(t->n_rows); g++) {
        const struct df11_group group = df11_group_at(t, g);
        struct error err = { 0 };
        if (df11_check(&group, "here", g, &err))
            fail_msg("%s", err.text);
        df11_decode(&group, blocks);
        for (uint32_t n = 0; n < DF11_OUTS && g * DF11_OUTS + n < t->n_rows; n++) {
            const uint16_t *want = w + (size_t)(g * DF11_OUTS + n) * t->n_cols;
            df11_row(&group, n, row);
            assert_memory_equal(row, want, t->n_cols * sizeof *row);
            for (uint32_t k = 0; k < n_blocks * DF11_INS; k++) {
                const uint16_t got = blocks[k / DF11_INS * DF11_WEIGHTS + k % DF11_INS / 2 * 32 + 2 * n + k % 2];
                assert_int_equal(got, k < t->n_cols ? want[k] : 0);
            }
        }
    }
    free(row);
    free(blocks);
}

static void test_golden(void **state)
{
    (void)state;
    static const char *const names[] = { "normal", "skewed", "constant", "patterns" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512], *text;
        size_t bytes;
        snprintf(path, sizeof path, LONGSPAN_SOURCE_DIR "/tests/golden/df11/%s.bin", names[i]);
        assert_int_equal(file_read(path, 1 << 20, &text, &bytes, NULL), ST_OK);
        struct reader r = reader_of(text, bytes);
        struct df11_tensor t = { .n_rows = reader_u32(&r) };
        struct df11_code code;
        t.n_cols = reader_u32(&r);
        t.stream_bytes = reader_u32(&r);
        const uint32_t bits = reader_u32(&r), groups = df11_groups(t.n_rows);
        const uint8_t *lengths = reader_take(&r, 256);
        uint16_t *w = malloc((size_t)t.n_rows * t.n_cols * 2);
        uint32_t *offsets = malloc((size_t)groups * df11_tiles(t.n_cols) * sizeof *offsets);
        uint64_t *starts = malloc((groups + 1) * sizeof *starts);
        memcpy(w, reader_take(&r, (size_t)t.n_rows * t.n_cols * 2), (size_t)t.n_rows * t.n_cols * 2);
        const size_t signs_bytes = (size_t)groups * df11_blocks(t.n_cols) * DF11_WEIGHTS;
        t.signs = reader_take(&r, signs_bytes);
        memcpy(offsets, reader_take(&r, (size_t)groups * df11_tiles(t.n_cols) * 4),
               (size_t)groups * df11_tiles(t.n_cols) * 4);
        memcpy(starts, reader_take(&r, (groups + 1) * 8), (groups + 1) * 8);
        t.stream = reader_take(&r, t.stream_bytes);
        t.offsets = offsets;
        t.starts = starts;
        t.code = &code;
        assert_false(r.bad);
        assert_int_equal(reader_left(&r), 0);
        assert_int_equal(df11_code_of(lengths, "golden", &code, NULL), ST_OK);
        expect_same(&t, w);
        /* ours: as short; and with its code the same bytes */
        struct coded *ours = code_tensor(w, t.n_rows, t.n_cols);
        uint64_t weights_bits = 0;
        for (uint32_t k = 0; k < t.n_rows * t.n_cols; k++)
            weights_bits += lengths[w[k] >> 7 & 255];
        assert_true(bits >= weights_bits);
        assert_int_equal(ours->bits, weights_bits);
        uint8_t *signs = malloc(signs_bytes), *stream = malloc(t.stream_bytes);
        uint32_t *again = malloc((size_t)groups * df11_tiles(t.n_cols) * sizeof *again);
        uint64_t at = 0;
        for (uint32_t g = 0; g < groups; g++) {
            const uint16_t *rows[DF11_OUTS];
            group_rows(w, t.n_rows, t.n_cols, g, rows);
            at += df11_encode(&code, rows, t.n_cols, signs + g * signs_bytes / groups,
                              again + (size_t)g * df11_tiles(t.n_cols), stream + at);
        }
        assert_int_equal(at, t.stream_bytes);
        assert_memory_equal(stream, t.stream, t.stream_bytes);
        assert_memory_equal(signs, t.signs, signs_bytes);
        assert_memory_equal(again, offsets, (size_t)groups * df11_tiles(t.n_cols) * 4);
        free(signs);
        free(stream);
        free(again);
        coded_free(ours);
        free(w);
        free(offsets);
        free(starts);
        free(text);
    }
}

static void expect_lengths(const uint64_t *counts, const uint8_t *want, uint32_t n)
{
    uint64_t all[256] = { 0 };
    struct df11_code code;
    memcpy(all, counts, n * sizeof *counts);
    assert_true(df11_code_best(all, &code));
    for (uint32_t s = 0; s < 256; s++)
        assert_int_equal(code.length[s], s < n ? want[s] : 0);
}

static void test_lengths(void **state)
{
    (void)state;
    expect_lengths((const uint64_t[]){ 5, 3, 1, 1 }, (const uint8_t[]){ 1, 2, 3, 3 }, 4);
    expect_lengths((const uint64_t[]){ 40, 30, 15, 10, 4, 1 }, (const uint8_t[]){ 1, 2, 3, 4, 5, 5 }, 6);
    expect_lengths((const uint64_t[]){ 7 }, (const uint8_t[]){ 1 }, 1);
    /* Fibonacci counts want 15 bits: no code is longer than 11, all are used up, and rarer exponents never have shorter ones */
    uint64_t counts[256] = { 1, 1 };
    for (int i = 2; i < 16; i++)
        counts[i] = counts[i - 1] + counts[i - 2];
    struct df11_code code;
    assert_true(df11_code_best(counts, &code));
    double kraft = 0;
    for (int i = 0; i < 16; i++) {
        assert_true(code.length[i] >= 1 && code.length[i] <= DF11_BITS);
        assert_true(i == 0 || code.length[i] <= code.length[i - 1]);
        kraft += ldexp(1, -code.length[i]);
    }
    assert_true(kraft == 1);
    /* all 256, each as often: 8 bits */
    for (int i = 0; i < 256; i++)
        counts[i] = 1000;
    assert_true(df11_code_best(counts, &code));
    for (int i = 0; i < 256; i++)
        assert_int_equal(code.length[i], 8);
}

static double normal(struct rng *rng)
{
    double x = -6;
    for (int k = 0; k < 12; k++)
        x += rng_unit(rng_next(rng));
    return x;
}

/* Gaussian weights: the page has an entropy of 2.545 and 2.591 bits; with offsets and the limit 10.8 bits a weight are left at most. */
static void test_gaussian_size(void **state)
{
    (void)state;
    enum { ROWS = 64, COLS = 1024 };
    uint16_t *w = malloc(ROWS * COLS * sizeof *w);
    struct rng rng = { .seed = 3 };
    uint64_t counts[256] = { 0 };
    double entropy = 0;
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = f32_to_bf16((float)(normal(&rng) * 0.02));
    df11_count(w, ROWS * COLS, counts);
    for (int e = 0; e < 256; e++)
        if (counts[e])
            entropy -= (double)counts[e] / (ROWS * COLS) * log2((double)counts[e] / (ROWS * COLS));
    struct coded *c = code_tensor(w, ROWS, COLS);
    const double mean = (double)c->bits / (ROWS * COLS);
    assert_true(mean >= entropy && mean < entropy + 0.1);
    const double bits = 8 + 8.0 * (double)c->t.stream_bytes / (ROWS * COLS) + 32.0 / DF11_TILE;
    assert_true(bits > 10.4 && bits < 10.9);
    expect_same(&c->t, w);
    coded_free(c);
    free(w);
}

static void test_every_pattern(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = { { 256, 256 }, { 1, 1 },    { 1, 7 },   { 17, 31 }, { 15, 33 },
                                          { 33, 127 },  { 16, 128 }, { 2, 129 }, { 20, 700 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const uint32_t n = shapes[i][0] * shapes[i][1];
        uint16_t *w = malloc(n * sizeof *w);
        for (int kind = 0; kind < 3; kind++) {
            struct rng rng = { .seed = i };
            for (uint32_t k = 0; k < n; k++) /* all patterns; normal numbers; one value, NaN at last */
                w[k] = kind == 0 ? (uint16_t)(k * 40503u) : kind == 1 ? f32_to_bf16((float)normal(&rng)) : 0x7FC1;
            struct coded *c = code_tensor(w, shapes[i][0], shapes[i][1]);
            expect_same(&c->t, w);
            coded_free(c);
        }
        free(w);
    }
}

static void expect_refused(const struct df11_group *g, const char *what)
{
    struct error err = { 0 };
    uint16_t *blocks = malloc((size_t)df11_blocks(g->n_cols) * DF11_WEIGHTS * 2), row[400];
    assert_int_equal(df11_check(g, "here", 5, &err), ST_CORRUPT);
    if (!strstr(err.text, what) || !strstr(err.text, "group 5"))
        fail_msg("%s: expected %s", err.text, what);
    df11_decode(g, blocks); /* wrong, but within bounds: the sanitizer would tell */
    df11_row(g, 3, row);
    free(blocks);
}

static void test_refuses(void **state)
{
    (void)state;
    enum { COLS = 300 };
    uint16_t w[16 * COLS];
    struct rng rng = { .seed = 9 };
    struct error err = { 0 };
    uint8_t length[256];
    for (int i = 0; i < 16 * COLS; i++)
        w[i] = f32_to_bf16((float)normal(&rng));
    struct coded *c = code_tensor(w, 16, COLS);
    struct df11_group g = df11_group_at(&c->t, 0);
    c->offsets[1]++;
    expect_refused(&g, "tile 1: begins at bit");
    c->offsets[1] = UINT32_MAX;
    expect_refused(&g, "tile 1: begins at bit");
    c->offsets[1] = 0;
    expect_refused(&g, "tile 1: begins at bit 0");
    coded_free(c);
    c = code_tensor(w, 16, COLS);
    g = df11_group_at(&c->t, 0);
    g.stream_bytes--; /* its end is cut off: zeros instead */
    expect_refused(&g, "its tiles end at bit");
    g.stream_bytes = 0;
    assert_int_equal(df11_check(&g, "here", 5, &err), ST_CORRUPT);
    /* codes */
    err = (struct error){ 0 };
    memcpy(length, c->code.length, 256);
    length[200] = 12;
    assert_int_equal(df11_code_of(length, "here", &c->code, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "here: the code of exponent 200 has 12 bits"));
    length[200] = 11; /* one too many */
    err = (struct error){ 0 };
    assert_int_equal(df11_code_of(length, "here", &c->code, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "no complete code"));
    memset(length, 0, 256);
    assert_int_equal(df11_code_of(length, "here", &c->code, &err), ST_CORRUPT);
    length[7] = 2;
    assert_int_equal(df11_code_of(length, "here", &c->code, &err), ST_CORRUPT);
    length[7] = 1; /* alone: good */
    assert_int_equal(df11_code_of(length, "here", &c->code, &err), ST_OK);
    coded_free(c);
    /* starts that lie */
    c = code_tensor(w, 16, COLS);
    c->starts[0] = 40;
    c->starts[1] = UINT64_MAX;
    g = df11_group_at(&c->t, 0);
    expect_refused(&g, "here");
    c->starts[0] = UINT64_MAX;
    c->starts[1] = 3;
    g = df11_group_at(&c->t, 0);
    assert_int_equal(g.stream_bytes, 0);
    coded_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_lengths), cmocka_unit_test(test_gaussian_size),
        cmocka_unit_test(test_every_pattern), cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
