/* lossless-fast: round trips of every bit pattern, sizes, and refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "model/lossless.h"
#include "model/pack_format.h"

/* A tensor coded group by group. */
struct coded {
    uint32_t n_rows, n_cols, class_bits;
    uint8_t *planes, *escapes;
    uint32_t *records;
    uint64_t *starts;
    struct lossless_tensor t;
};

static void group_rows(const uint16_t *w, uint32_t n_rows, uint32_t n_cols, uint32_t g,
                       const uint16_t *rows[LOSSLESS_OUTS])
{
    for (uint32_t i = 0; i < LOSSLESS_OUTS; i++)
        rows[i] = g * LOSSLESS_OUTS + i < n_rows ? w + (size_t)(g * LOSSLESS_OUTS + i) * n_cols : NULL;
}

static struct coded code(const uint16_t *w, uint32_t n_rows, uint32_t n_cols, uint32_t class_bits)
{
    const uint32_t groups = lossless_groups(n_rows), blocks = lossless_blocks(n_cols);
    struct coded c = { n_rows, n_cols, class_bits, NULL, NULL, NULL, NULL, { 0 } };
    const uint16_t *rows[LOSSLESS_OUTS];
    uint64_t total = 0;
    for (uint32_t g = 0; g < groups; g++) {
        group_rows(w, n_rows, n_cols, g, rows);
        total += lossless_count(rows, n_cols, class_bits);
    }
    /* exactly as long as needed: what reads further is found */
    c.planes = malloc(groups * blocks * lossless_block_bytes(class_bits));
    c.records = malloc((size_t)groups * blocks * sizeof *c.records);
    c.starts = calloc(groups + 1, sizeof *c.starts);
    c.escapes = malloc(total ? total : 1);
    for (uint32_t g = 0; g < groups; g++) {
        group_rows(w, n_rows, n_cols, g, rows);
        c.starts[g + 1] =
            c.starts[g] + lossless_encode(rows, n_cols, class_bits,
                                          c.planes + (size_t)g * blocks * lossless_block_bytes(class_bits),
                                          c.records + (size_t)g * blocks, c.escapes + c.starts[g]);
    }
    assert_int_equal(c.starts[groups], total);
    c.t = (struct lossless_tensor){ n_rows, n_cols, class_bits, total, c.planes, c.escapes, c.records, c.starts };
    return c;
}

static void coded_free(struct coded *c)
{
    free(c->planes);
    free(c->escapes);
    free(c->records);
    free(c->starts);
}

/* Rows, and blocks in the order of B tiles, against the weights. */
static void expect_same(const struct coded *c, const uint16_t *w)
{
    uint16_t *row = malloc(c->n_cols * sizeof *row), block[LOSSLESS_WEIGHTS];
    for (uint32_t g = 0; g < lossless_groups(c->n_rows); g++) {
        const struct lossless_group group = lossless_group_at(&c->t, g);
        assert_int_equal(lossless_check(&group, "here", g, NULL), ST_OK);
        for (uint32_t n = 0; n < LOSSLESS_OUTS && g * LOSSLESS_OUTS + n < c->n_rows; n++) {
            lossless_row(&group, n, c->n_cols, row);
            assert_memory_equal(row, w + (size_t)(g * LOSSLESS_OUTS + n) * c->n_cols, c->n_cols * sizeof *row);
        }
        for (uint32_t k = 0; k < c->n_cols; k++) {
            if (k % LOSSLESS_INS == 0)
                lossless_decode(&group, k / LOSSLESS_INS, block);
            for (uint32_t n = 0; n < LOSSLESS_OUTS && g * LOSSLESS_OUTS + n < c->n_rows; n++)
                assert_int_equal(block[(k % LOSSLESS_INS / 2 * LOSSLESS_OUTS + n) * 2 + k % 2],
                                 w[(size_t)(g * LOSSLESS_OUTS + n) * c->n_cols + k]);
        }
    }
    free(row);
}

static void test_every_pattern(void **state)
{
    (void)state;
    static const uint32_t widths[] = { 512, 32, 4096 };
    uint16_t *w = malloc(65536 * sizeof *w);
    for (uint32_t bits = 3; bits <= 4; bits++)
        for (size_t i = 0; i < 3; i++)
            for (uint32_t turn = 0; turn < 2; turn++) {
                /* in order, so that exponents come in runs; and scattered */
                for (uint32_t v = 0; v < 65536; v++)
                    w[v] = (uint16_t)(turn ? v * 40503u : v);
                struct coded c = code(w, 65536 / widths[i], widths[i], bits);
                expect_same(&c, w);
                coded_free(&c);
            }
    free(w);
}

static uint16_t normal(struct rng *rng, float sd)
{
    float x = -6;
    uint32_t u;
    for (int i = 0; i < 12; i++)
        x += (float)(rng_next(rng) >> 40) * 0x1p-24f;
    x *= sd;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* Shapes whose last block and group are not whole; rows of very different size, zeros, infinities. */
static void test_shapes(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = { { 1, 1 }, { 16, 32 }, { 17, 33 }, { 37, 70 }, { 3, 131 }, { 50, 96 } };
    struct rng rng = { .seed = 7 };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint32_t bits = 3; bits <= 4; bits++) {
            const uint32_t rows = shapes[i][0], cols = shapes[i][1];
            uint16_t *w = malloc((size_t)rows * cols * sizeof *w);
            for (uint32_t k = 0; k < rows * cols; k++) {
                w[k] = normal(&rng, ldexpf(1, -(int)(k / cols % 7)));
                if (rng_next(&rng) % 20 == 0)
                    w[k] = (uint16_t)(k % 3 == 0 ? 0 : k % 3 == 1 ? 0xFF80 : rng_next(&rng));
            }
            struct coded c = code(w, rows, cols, bits);
            expect_same(&c, w);
            coded_free(&c);
            free(w);
        }
}

/* All that is stored, against sign, mantissa, class and escapes of the best window of the whole tensor. */
static void test_size(void **state)
{
    (void)state;
    enum { ROWS = 256, COLS = 576 };
    struct rng rng = { .seed = 11 };
    uint16_t *w = malloc(sizeof *w * ROWS * COLS);
    uint64_t count[256] = { 0 }, best = 0;
    for (uint32_t i = 0; i < ROWS * COLS; i++) {
        w[i] = normal(&rng, 0.05f);
        count[w[i] >> 7 & 255]++;
    }
    for (uint32_t base = 1; base + 7 <= 255; base++) {
        uint64_t sum = 0;
        for (uint32_t e = base; e < base + 7; e++)
            sum += count[e];
        best = sum > best ? sum : best;
    }
    struct coded c = code(w, ROWS, COLS, 3);
    struct pack_parts parts;
    assert_true(pack_parts(ROWS, COLS, 3, c.t.n_escapes, &parts));
    const double n = ROWS * COLS, bound = 11 + 8 * (n - (double)best) / n, have = 8 * (double)parts.bytes / n;
    if (have > bound + 0.2 || have > 11.5)
        fail_msg("%.3f bits a weight, the bound is %.3f", have, bound);
    assert_int_equal(lossless_choose(ROWS * COLS, c.t.n_escapes, c.t.n_escapes / 10), 3);
    coded_free(&c);
    free(w);
}

static void test_choice(void **state)
{
    (void)state;
    assert_int_equal(lossless_choose(1000, 30, 0), 3);
    assert_int_equal(lossless_choose(1000, 200, 10), 4);
    assert_int_equal(lossless_choose(1000, 125, 0), 3); /* as large: the one with fewer bits */
    assert_int_equal(lossless_choose(1000, 900, 800), 0);
    assert_int_equal(lossless_choose(1000, 625, 500), 0); /* no smaller than bf16 */
}

static void expect_refused(const struct coded *c, const char *named)
{
    const struct lossless_group g = lossless_group_at(&c->t, 0);
    struct error err = { 0 };
    uint16_t block[LOSSLESS_WEIGHTS], row[64];
    assert_int_equal(lossless_check(&g, "file", 0, &err), ST_CORRUPT);
    if (!strstr(err.text, named) || !strstr(err.text, "file: group 0"))
        fail_msg("'%s' does not name %s", err.text, named);
    /* and who decodes it all the same reads nothing that is not there */
    for (uint32_t b = 0; b < g.n_blocks; b++)
        lossless_decode(&g, b, block);
    for (uint32_t n = 0; n < LOSSLESS_OUTS; n++)
        lossless_row(&g, n, 64, row);
}

static void test_refusals(void **state)
{
    (void)state;
    for (uint32_t bits = 3; bits <= 4; bits++) {
        struct rng rng = { .seed = 3 };
        uint16_t w[16 * 64];
        for (uint32_t i = 0; i < 16 * 64; i++)
            w[i] = i % 9 ? normal(&rng, 1) : 0;
        struct coded c = code(w, 16, 64, bits);
        const uint32_t kept = c.records[1];
        c.records[1] = kept & ~255u;
        expect_refused(&c, "block 1: base 0");
        c.records[1] = kept | 255; /* classes past 255 */
        expect_refused(&c, "block 1: base 255");
        c.records[1] = (kept & ~255u) | (lossless_base_max(bits) + 1);
        expect_refused(&c, "base");
        c.records[1] = kept + 256;
        expect_refused(&c, "block 1: escapes before it");
        c.records[1] = 0xFFFFFF00u | (kept & 255);
        expect_refused(&c, "block 1: escapes before it");
        c.records[1] = kept;
        c.starts[1]--; /* fewer are listed than the classes ask for */
        expect_refused(&c, "escapes are listed");
        c.starts[1] = UINT64_MAX;
        c.t.n_escapes -= 2;
        expect_refused(&c, "escapes are listed");
        c.starts[0] = UINT64_MAX;
        expect_refused(&c, "escapes are listed");
        c.starts[0] = 0;
        c.starts[1] = c.t.n_escapes += 2;
        memset(c.planes + LOSSLESS_SIGNS_BYTES, 0xFF, bits * 64); /* a block of escapes */
        expect_refused(&c, "escapes before it");
        coded_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_pattern), cmocka_unit_test(test_shapes),   cmocka_unit_test(test_size),
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
