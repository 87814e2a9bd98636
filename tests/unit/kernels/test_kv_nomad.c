/* nomad byte by byte, its tables, and attention over them, against an independent implementation: tests/golden/kv-codecs/make_nomad.py says what a record is. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "kernels/cpu/kv_nomad.h"
#include "kernels/kernels.h"
#include "model/calibration.h"
#include "tests/unit/kernels/golden_fixture.h"

enum { D_MAX = 64 };

struct record {
    struct attn_shape shape;
    const uint8_t *numbers, *keys, *values, *part, *query, *unit, *tables, *answer;
};

static bool record_read(struct reader *r, struct record *out)
{
    if (!reader_left(r))
        return false;
    const uint32_t d = reader_u32(r);
    assert_true(d <= D_MAX);
    out->shape = (struct attn_shape){ .head_dim = d, .codec = KV_NOMAD, .scale = 1 / sqrtf((float)d) };
    assert_true(kv_accepts_nomad(&out->shape));
    out->numbers = reader_take(r, (size_t)d * NOMAD_NUMBERS * 4);
    out->keys = reader_take(r, (size_t)KV_BLOCK * d * 2);
    out->values = reader_take(r, (size_t)KV_BLOCK * d * 2);
    out->part = reader_take(r, 2 * kv_part_bytes_nomad(&out->shape));
    out->query = reader_take(r, 2 * (size_t)d);
    out->unit = reader_take(r, 8);
    out->tables = reader_take(r, (size_t)d * NOMAD_NUMBERS);
    out->answer = reader_take(r, 4 * (2 + (size_t)d));
    assert_false(r->bad);
    return true;
}

static void check_sealed(const struct record *r)
{
    const struct attn_shape open_shape = { .head_dim = r->shape.head_dim, .codec = KV_BF16, .scale = r->shape.scale };
    const struct attn_impl *plain = attn_find(&open_shape, 0), *it = attn_find(&r->shape, 0);
    const uint32_t d = r->shape.head_dim;
    const size_t bytes = 2 * it->part_bytes(&r->shape);
    uint8_t *open = aligned_alloc(64, (size_t)KV_BLOCK * d * 4), *part = aligned_alloc(64, bytes);
    uint8_t *v_open = open + (size_t)KV_BLOCK * d * 2;
    float key[D_MAX], value[D_MAX];
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        floats_of(r->keys + 2 * (size_t)t * d, d, key);
        floats_of(r->values + 2 * (size_t)t * d, d, value);
        plain->store(&open_shape, t, key, value, open, v_open);
    }
    assert_true(it->seal(&r->shape, open, v_open, part, part + bytes / 2));
    for (size_t i = 0; i < bytes; i++)
        if (part[i] != r->part[i])
            fail_msg("head_dim %u: byte %zu of %zu is %02x, should be %02x", d, i, bytes, part[i], r->part[i]);
    free(open);
    free(part);
}

static void check_attended(const struct record *r)
{
    const uint32_t d = r->shape.head_dim;
    const uint8_t all = KV_BLOCK;
    float query[D_MAX], want[2 + D_MAX], unit[2];
    const float *queries[1] = { query };
    const size_t bytes = 2 * kv_part_bytes_nomad(&r->shape);
    float *tile = aligned_alloc(64, (kv_q_tile_bytes_nomad(&r->shape) + 63) / 64 * 64);
    float *partial = aligned_alloc(64, (attn_partial_floats(d) * sizeof(float) + 63) / 64 * 64);
    uint8_t *part = aligned_alloc(64, bytes);
    memcpy(part, r->part, bytes);
    memcpy(want, r->answer, (2 + (size_t)d) * sizeof(float));
    memcpy(unit, r->unit, sizeof unit);
    floats_of(r->query, d, query);
    kv_pack_q_nomad(&r->shape, queries, 1, tile);
    assert_true(tile[0] == unit[0] && tile[ATTN_ROWS] == unit[1]);
    assert_memory_equal(kv_nomad_tables(tile), r->tables, (size_t)d * NOMAD_NUMBERS);
    for (uint32_t v = 0; v < n_coded_impls; v++) {
        if ((coded_impls[v].needs & ~cpu_caps()) || !coded_impls[v].accepts(&r->shape))
            continue;
        coded_impls[v].block(&r->shape, tile, 1, &all, part, part + bytes / 2, NULL, partial);
        const double off = distance(partial + (size_t)2 * ATTN_ROWS, want + 2, d);
        assert_true(fabsf(partial[0] - want[0]) < 1e-4f * (1 + fabsf(want[0])));
        assert_true(fabsf(partial[ATTN_ROWS] - want[1]) < 1e-3f * want[1]);
        if (!(off < 1e-3))
            fail_msg("%s, head_dim %u: o is off by %g", coded_impls[v].name, d, off);
    }
    free(tile);
    free(partial);
    free(part);
}

static void as_in_numpy(void **state)
{
    (void)state;
    static uint8_t data[1 << 18];
    FILE *f = fopen(LONGSPAN_SOURCE_DIR "/tests/golden/kv-codecs/nomad.bin", "rb");
    assert_non_null(f);
    struct reader r = reader_of(data, fread(data, 1, sizeof data, f));
    fclose(f);
    struct record record;
    uint32_t n = 0;
    cpu_thread_init();
    for (; record_read(&r, &record); n++) {
        const uint32_t d = record.shape.head_dim;
        float numbers[D_MAX * NOMAD_NUMBERS];
        float *book = aligned_alloc(64, kv_calibrated_nomad.book_bytes(&record.shape));
        const struct kv_book books[2] = { { book, false, NULL }, { NULL, true, NULL } };
        memcpy(numbers, record.numbers, (size_t)d * NOMAD_NUMBERS * sizeof *numbers);
        for (uint32_t i = 0; i < d * NOMAD_NUMBERS; i += NOMAD_NUMBERS) { /* any order will do */
            const float first = numbers[i];
            numbers[i] = numbers[i + 9];
            numbers[i + 9] = first;
        }
        kv_nomad_book_of(numbers, d, book);
        record.shape.books = books;
        check_sealed(&record);
        check_attended(&record);
        free(book);
    }
    assert_int_equal(n, 3);
}

/* 64 bytes a key of 128 channels, 130 a value: what the page says. */
static void sizes(void **state)
{
    (void)state;
    const struct attn_shape shape = { .head_dim = 128, .codec = KV_NOMAD, .scale = 1 },
                            odd = { .head_dim = 40, .codec = KV_NOMAD, .scale = 1 };
    assert_int_equal(2 * attn_find(&shape, 0)->part_bytes(&shape), KV_BLOCK * (64 + 130));
    assert_int_equal(attn_find(&shape, 0)->part_bytes(&shape) % 64, 0);
    assert_null(attn_find(&odd, 0));
}

/* A codec has two classes of rows if its blocks are read in both ways, and in all variants. */
static void classes(void **state)
{
    (void)state;
    for (int codec = 0; codec < KV_CODECS; codec++) {
        const struct attn_shape shape = { .head_dim = 64, .codec = (enum kv_codec)codec, .scale = 1 };
        for (uint32_t v = 0; v < n_coded_impls; v++)
            if (coded_impls[v].accepts(&shape))
                assert_int_equal(coded_impls[v].expand && coded_impls[v].block, kv_codecs[codec].row_classes);
    }
    assert_true(kv_codecs[KV_NOMAD].row_classes);
}

static struct calibration *calibration_of(const uint32_t dims[5], const char *name, const uint16_t *numbers)
{
    char path[] = "/tmp/longspan-nomad-XXXXXX";
    const struct calibration_origin origin = { .codec = "nomad", .method = "kmeans" };
    struct calibration_array array = { .type = CALIBRATION_BF16, .n_dims = 5, .data = numbers };
    struct calibration *c = NULL;
    struct error err = { 0 };
    memcpy(array.dims, dims, 5 * sizeof *dims);
    snprintf(array.name, sizeof array.name, "%s", name);
    close(mkstemp(path));
    if (calibration_write(path, NULL, &origin, &array, 1, NULL, NULL, &err) || calibration_open(path, &c, &err))
        fail_msg("%s", err.text);
    unlink(path);
    return c;
}

/* The book of a KV head has its own numbers of the file, ascending; what does not fit is refused by name. */
static void calibrated(void **state)
{
    (void)state;
    enum { LAYERS = 2, HEADS = 3, DIM = 16, N = LAYERS * HEADS * DIM * NOMAD_NUMBERS };
    static uint16_t numbers[N];
    const struct attn_shape shape = { .head_dim = DIM, .codec = KV_NOMAD, .scale = 1 };
    const struct kv_calibrated *of = kv_codecs[KV_NOMAD].calibrated;
    uint32_t dims[5] = { LAYERS, HEADS, DIM, NOMAD_NUMBERS, 1 };
    struct error err = { 0 };
    float *book = aligned_alloc(64, of->book_bytes(&shape));
    for (uint32_t i = 0; i < N; i++)
        numbers[i] = f32_to_bf16((float)(i / NOMAD_NUMBERS) + (float)(i * 5 % NOMAD_NUMBERS) / 32);
    struct calibration *c = calibration_of(dims, "keys", numbers);
    assert_int_equal(of->check(&shape, LAYERS, HEADS, c, &err), ST_OK);
    assert_int_equal(of->check(&shape, LAYERS, HEADS + 1, c, &err), ST_INVALID);
    of->book(&shape, c, 1, 2, false, book);
    for (uint32_t i = 0; i < DIM * NOMAD_NUMBERS; i++) {
        const uint32_t channel = (HEADS + 2) * DIM + i / NOMAD_NUMBERS, place = i % NOMAD_NUMBERS;
        const float *bound = book + DIM * NOMAD_NUMBERS;
        assert_true(book[i] == bf16_to_f32(f32_to_bf16((float)channel + (float)place / 32)));
        assert_true(place == NOMAD_NUMBERS - 1 ? isinf(bound[i]) : bound[i] == (book[i] + book[i + 1]) / 2);
    }
    calibration_close(c);
    numbers[N - 1] = f32_to_bf16(0x1p61f);
    err = (struct error){ 0 };
    c = calibration_of(dims, "keys", numbers);
    assert_int_equal(of->check(&shape, LAYERS, HEADS, c, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "calibration of nomad: array keys: element 1535"));
    calibration_close(c);
    c = calibration_of(dims, "values", numbers);
    assert_int_equal(of->check(&shape, LAYERS, HEADS, c, &err), ST_NOT_FOUND);
    calibration_close(c);
    free(book);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(as_in_numpy), cmocka_unit_test(sizes),
                                        cmocka_unit_test(classes), cmocka_unit_test(calibrated) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
