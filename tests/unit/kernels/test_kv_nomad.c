/* nomad byte by byte, its tables, and attention over them, against an independent implementation: tests/golden/kv-codecs/make_nomad.py says what a record is. */
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
#include "kernels/cpu/kv_nomad.h"
#include "kernels/kernels.h"
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
    out->shape = (struct attn_shape){ .head_dim = d, .codec = KV_BF16, .scale = 1 / sqrtf((float)d) };
    assert_true(kv_accepts_nomad(&out->shape));
    out->numbers = reader_take(r, (size_t)d * NOMAD_NUMBERS * 4);
    out->keys = reader_take(r, (size_t)KV_BLOCK * d * 2);
    out->values = reader_take(r, (size_t)KV_BLOCK * d * 2);
    out->part = reader_take(r, kv_nomad_bytes(&out->shape));
    out->query = reader_take(r, 2 * (size_t)d);
    out->unit = reader_take(r, 8);
    out->tables = reader_take(r, (size_t)d * NOMAD_NUMBERS);
    out->answer = reader_take(r, 4 * (2 + (size_t)d));
    assert_false(r->bad);
    return true;
}

static void check_sealed(const struct record *r, const float *book)
{
    const struct attn_impl *plain = attn_find(&r->shape, 0);
    const uint32_t d = r->shape.head_dim;
    const size_t bytes = kv_nomad_bytes(&r->shape);
    uint8_t *open = aligned_alloc(64, (size_t)KV_BLOCK * d * 4), *part = aligned_alloc(64, bytes);
    uint8_t *v_open = open + (size_t)KV_BLOCK * d * 2;
    float key[D_MAX], value[D_MAX];
    for (uint32_t t = 0; t < KV_BLOCK; t++) {
        floats_of(r->keys + 2 * (size_t)t * d, d, key);
        floats_of(r->values + 2 * (size_t)t * d, d, value);
        plain->store(&r->shape, t, key, value, open, v_open);
    }
    assert_true(kv_nomad_seal(&r->shape, book, open, v_open, part));
    for (size_t i = 0; i < bytes; i++)
        if (part[i] != r->part[i])
            fail_msg("head_dim %u: byte %zu of %zu is %02x, should be %02x", d, i, bytes, part[i], r->part[i]);
    free(open);
    free(part);
}

static void check_attended(const struct record *r, const float *book)
{
    const uint32_t d = r->shape.head_dim;
    const uint8_t all = KV_BLOCK;
    float query[D_MAX], want[2 + D_MAX], unit[2];
    const float *queries[1] = { query };
    float *tile = aligned_alloc(64, (kv_nomad_tile_bytes(&r->shape) + 63) / 64 * 64);
    float *partial = aligned_alloc(64, (attn_partial_floats(d) * sizeof(float) + 63) / 64 * 64);
    uint8_t *part = aligned_alloc(64, kv_nomad_bytes(&r->shape));
    memcpy(part, r->part, kv_nomad_bytes(&r->shape));
    memcpy(want, r->answer, (2 + (size_t)d) * sizeof(float));
    memcpy(unit, r->unit, sizeof unit);
    floats_of(r->query, d, query);
    kv_nomad_pack_q(&r->shape, book, queries, 1, tile);
    assert_true(tile[0] == unit[0] && tile[ATTN_ROWS] == unit[1]);
    assert_memory_equal(kv_nomad_tables(tile), r->tables, (size_t)d * NOMAD_NUMBERS);
    for (uint32_t v = 0; v < n_kv_nomad_impls; v++) {
        if (kv_nomad_impls[v].needs & ~cpu_caps())
            continue;
        kv_nomad_impls[v].block(&r->shape, tile, 1, &all, part, NULL, partial);
        const double off = distance(partial + (size_t)2 * ATTN_ROWS, want + 2, d);
        assert_true(fabsf(partial[0] - want[0]) < 1e-4f * (1 + fabsf(want[0])));
        assert_true(fabsf(partial[ATTN_ROWS] - want[1]) < 1e-3f * want[1]);
        if (!(off < 1e-3))
            fail_msg("%s, head_dim %u: o is off by %g", kv_nomad_impls[v].name, d, off);
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
        float *book = aligned_alloc(64, kv_nomad_book_floats(d) * sizeof *book);
        memcpy(numbers, record.numbers, (size_t)d * NOMAD_NUMBERS * sizeof *numbers);
        for (uint32_t i = 0; i < d * NOMAD_NUMBERS; i += NOMAD_NUMBERS) { /* any order will do */
            const float first = numbers[i];
            numbers[i] = numbers[i + 9];
            numbers[i + 9] = first;
        }
        kv_nomad_book(numbers, d, book);
        check_sealed(&record, book);
        check_attended(&record, book);
        free(book);
    }
    assert_int_equal(n, 3);
}

/* 64 bytes a key of 128 channels, 130 a value: what the page says. */
static void sizes(void **state)
{
    (void)state;
    const struct attn_shape shape = { .head_dim = 128, .codec = KV_BF16, .scale = 1 };
    assert_int_equal(kv_nomad_bytes(&shape), KV_BLOCK * (64 + 130));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(as_in_numpy), cmocka_unit_test(sizes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
