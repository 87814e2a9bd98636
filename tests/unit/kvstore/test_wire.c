#include "kvstore/kvstore.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rng.h"

static const struct kv_layout layout = { 3, 2, 128, 5 };

struct fixture {
    struct kv_pool *from, *to;
    uint8_t *wire;
    size_t bytes;
    struct digest id;
};

static void export_to(struct kv_pool *pool, kv_handle handle, uint32_t position, const struct digest *id,
                      uint8_t **wire_out, size_t *bytes_out)
{
    uint8_t *header = malloc(kv_header_bytes(&layout));
    struct iovec parts[KV_WIRE_PARTS];
    assert_int_equal(kv_pool_export(pool, handle, position, id, header, parts), ST_OK);
    *bytes_out = parts[0].iov_len + parts[1].iov_len;
    *wire_out = malloc(*bytes_out);
    memcpy(*wire_out, parts[0].iov_base, parts[0].iov_len);
    memcpy(*wire_out + parts[0].iov_len, parts[1].iov_base, parts[1].iov_len);
    free(header);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct rng rng = { 3, 0 };
    uint32_t slot;
    size_t bytes;
    assert_int_equal(kv_pool_new(&layout, 4, &f->from, NULL), ST_OK);
    assert_int_equal(kv_pool_new(&layout, 2, &f->to, NULL), ST_OK);
    assert_int_equal(kv_pool_open(f->from, 77, &slot), ST_OK);
    assert_true(kv_layout_block_bytes(&layout, &bytes));
    uint8_t *payload = kv_pool_part(f->from, slot, 0, 0);
    for (size_t i = 0; i < bytes; i++)
        payload[i] = (uint8_t)rng_next(&rng);
    f->id = digest_of("id", 2);
    export_to(f->from, 77, 12, &f->id, &f->wire, &f->bytes);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    kv_pool_free(f->from);
    kv_pool_free(f->to);
    free(f->wire);
    free(f);
    return 0;
}

static enum status import(struct fixture *f, const uint8_t *data, size_t bytes, struct error *err)
{
    kv_handle handle = 0;
    uint32_t position = 0;
    struct digest id;
    *err = (struct error){ 0 };
    const enum status st = kv_pool_import(f->to, data, bytes, &handle, &position, &id, err);
    if (st == ST_OK || st == ST_EXISTS) {
        assert_int_equal(handle, 77);
        assert_int_equal(position, 12);
        assert_memory_equal(id.byte, f->id.byte, 16);
    }
    return st;
}

static void test_round_trip(void **state)
{
    struct fixture *f = *state;
    struct error err;
    assert_int_equal(f->bytes, kv_header_bytes(&layout) + 3 * 2 * 2 * 128);
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_OK);
    const uint32_t a = kv_pool_find(f->from, 77), b = kv_pool_find(f->to, 77);
    assert_memory_equal(kv_pool_part(f->from, a, 0, 0), kv_pool_part(f->to, b, 0, 0), 3 * 2 * 2 * 128);
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_EXISTS);
    /* what was imported is exported with the checksums that came */
    uint8_t *again;
    size_t bytes;
    export_to(f->to, 77, 12, &f->id, &again, &bytes);
    assert_int_equal(bytes, f->bytes);
    assert_memory_equal(again, f->wire, bytes);
    free(again);
    struct iovec parts[KV_WIRE_PARTS];
    uint8_t header[256];
    assert_int_equal(kv_pool_export(f->to, 78, 0, &f->id, header, parts), ST_NOT_FOUND);
}

static void test_full_and_different(void **state)
{
    struct fixture *f = *state;
    struct error err;
    uint32_t slot;
    assert_int_equal(kv_pool_open(f->to, 1, &slot), ST_OK);
    assert_int_equal(kv_pool_open(f->to, 2, &slot), ST_OK);
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_BUSY);
    kv_pool_drop(f->to, 2);
    /* a block under this name with other bytes is never taken for the same */
    assert_int_equal(kv_pool_open(f->to, 77, &slot), ST_OK);
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "differs"));
    memcpy(kv_pool_part(f->to, slot, 0, 0), f->wire + kv_header_bytes(&layout), 3 * 2 * 2 * 128);
    /* opened for writing: sums are made anew */
    assert_int_equal(kv_pool_open(f->to, 77, &slot), ST_OK);
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_EXISTS);
}

static void test_corrupt(void **state)
{
    struct fixture *f = *state;
    struct error err;
    struct kv_pool_stats stats;
    for (size_t n = 0; n < f->bytes; n++) {
        uint8_t *cut = malloc(n + 1); /* exactly as long as claimed, so that a sanitizer sees a read past it */
        memcpy(cut, f->wire, n);
        assert_int_equal(import(f, cut, n, &err), ST_CORRUPT);
        free(cut);
    }
    for (size_t bit = 0; bit < 8 * f->bytes; bit++) {
        f->wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(import(f, f->wire, f->bytes, &err), ST_CORRUPT);
        assert_true(err.text[0] != 0);
        f->wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    const size_t in_layer_2 = kv_header_bytes(&layout) + 2 * 2 * 2 * 128 + 5;
    f->wire[in_layer_2] ^= 1;
    assert_int_equal(import(f, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "layer 2"));
    kv_pool_stats(f->to, &stats);
    assert_int_equal(stats.used, 0);
}

static void test_other_layout(void **state)
{
    struct fixture *f = *state;
    struct error err = { 0 };
    const struct kv_layout others[] = {
        { 3, 2, 128, 6 }, { 2, 2, 128, 5 }, { 4, 2, 128, 5 }, { 3, 2, 64, 5 }, { 3, 4, 128, 5 }
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        struct kv_pool *pool;
        kv_handle handle;
        uint32_t position;
        struct digest id;
        assert_int_equal(kv_pool_new(&others[i], 2, &pool, NULL), ST_OK);
        assert_int_equal(kv_pool_import(pool, f->wire, f->bytes, &handle, &position, &id, &err), ST_CORRUPT);
        kv_pool_free(pool);
    }
}

/* What was kept comes back under another handle; only as the block that it is. */
static void test_renamed(void **state)
{
    struct fixture *f = *state;
    struct digest id, other = digest_of("other", 5);
    kv_handle handle;
    uint32_t position;
    assert_int_equal(kv_wire_rename(&layout, f->wire, kv_header_bytes(&layout) - 1, &f->id, 5, NULL), ST_CORRUPT);
    assert_int_equal(kv_wire_rename(&layout, f->wire, f->bytes, &other, 5, NULL), ST_CORRUPT);
    f->wire[16] ^= 1;
    assert_int_equal(kv_wire_rename(&layout, f->wire, f->bytes, &f->id, 5, NULL), ST_CORRUPT);
    f->wire[16] ^= 1;
    assert_int_equal(kv_wire_rename(&layout, f->wire, f->bytes, &f->id, 5, NULL), ST_OK);
    assert_int_equal(kv_pool_import(f->to, f->wire, f->bytes, &handle, &position, &id, NULL), ST_OK);
    assert_int_equal(handle, 5);
    assert_int_equal(position, 12);
    assert_memory_equal(&id, &f->id, sizeof id);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_renamed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_and_different, setup, teardown),
        cmocka_unit_test_setup_teardown(test_corrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_layout, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
