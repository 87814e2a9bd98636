/* Parts that did not fit: what spilled travels with its block, is checked as it is, and its memory goes with the block. */
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
enum { BLOCK = 3 * 2 * 2 * 128, PARTS = BLOCK / 128, SPILL = 64, MARK = 100 };
static const uint32_t marked[] = { 0, 3, 4, 11 }; /* of the block's 12 parts */
enum { MARKED = sizeof marked / sizeof *marked };

struct fixture {
    struct kv_pool *from, *to;
    uint8_t *wire;
    size_t bytes;
};

static struct kv_pool *pool_new(void)
{
    struct kv_pool *pool;
    assert_int_equal(kv_pool_new(&layout, 2, &pool, NULL), ST_OK);
    assert_int_equal(kv_pool_spill_new(pool, SPILL, MARK, NULL), ST_OK);
    return pool;
}

static uint8_t *spill_of(const struct kv_pool *pool, kv_handle handle, uint32_t part)
{
    return (uint8_t *)kv_pool_spill(pool, kv_pool_find(pool, handle), part / 4, part / 2 % 2) + part % 2 * SPILL;
}

/* A block of random bytes of which `marked` parts are spilled; others have a 0 there. */
static void block_write(struct kv_pool *pool, kv_handle handle, uint64_t seed)
{
    struct rng rng = { seed, 0 };
    uint32_t slot, at = 0;
    assert_int_equal(kv_pool_open(pool, handle, &slot), ST_OK);
    uint8_t *payload = kv_pool_part(pool, slot, 0, 0);
    for (size_t i = 0; i < BLOCK; i++)
        payload[i] = (uint8_t)rng_next(&rng);
    for (uint32_t p = 0; p < PARTS; p++) {
        const bool is = at < MARKED && marked[at] == p;
        payload[p * 128 + MARK] = is;
        at += is;
        uint8_t *to = is ? (uint8_t *)kv_pool_spill_take(pool, slot, p / 4, p / 2 % 2) + p % 2 * SPILL : NULL;
        for (uint32_t i = 0; i < SPILL && to; i++)
            to[i] = (uint8_t)rng_next(&rng);
    }
    assert_int_equal(at, MARKED);
}

static void export_to(struct kv_pool *pool, uint8_t **wire_out, size_t *bytes_out)
{
    const struct digest id = digest_of("id", 2);
    uint8_t *header = malloc(kv_header_bytes(&layout)), *to;
    struct iovec parts[KV_WIRE_PARTS];
    const uint32_t slot = kv_pool_find(pool, 77);
    assert_int_equal(kv_pool_export(pool, 77, 12, &id, header, parts), ST_OK);
    kv_pool_pin(pool, slot);
    *bytes_out = 0;
    for (int i = 0; i < KV_WIRE_PARTS; i++)
        *bytes_out += parts[i].iov_len;
    *wire_out = to = malloc(*bytes_out);
    for (int i = 0; i < KV_WIRE_PARTS; i++) {
        memcpy(to, parts[i].iov_base, parts[i].iov_len);
        to += parts[i].iov_len;
    }
    kv_pool_unpin(pool, slot);
    free(header);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->from = pool_new();
    f->to = pool_new();
    block_write(f->from, 77, 3);
    export_to(f->from, &f->wire, &f->bytes);
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

static enum status import(struct kv_pool *pool, const uint8_t *data, size_t bytes, struct error *err)
{
    kv_handle handle = 0;
    uint32_t position = 0;
    struct digest id;
    *err = (struct error){ 0 };
    uint8_t *exact = malloc(bytes + !bytes); /* so that a sanitizer sees a read past it */
    memcpy(exact, data, bytes);
    const enum status st = kv_pool_import(pool, exact, bytes, &handle, &position, &id, err);
    free(exact);
    return st;
}

static uint32_t n_spilled(const struct kv_pool *pool)
{
    struct kv_pool_stats stats;
    kv_pool_stats(pool, &stats);
    assert_true(stats.spill_bytes >= (size_t)PARTS * SPILL);
    return stats.n_spilled;
}

static void what_spilled_travels(void **state)
{
    struct fixture *f = *state;
    struct error err;
    assert_int_equal(f->bytes, kv_header_bytes(&layout) + BLOCK + MARKED * SPILL);
    assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_OK);
    assert_int_equal(n_spilled(f->to), 1);
    for (int i = 0; i < MARKED; i++)
        assert_memory_equal(spill_of(f->to, 77, marked[i]), spill_of(f->from, 77, marked[i]), SPILL);
    assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_EXISTS);
    uint8_t *again;
    size_t bytes;
    export_to(f->to, &again, &bytes);
    assert_int_equal(bytes, f->bytes);
    assert_memory_equal(again, f->wire, bytes);
    free(again);
    /* the same payload beside other bytes that spilled is another block */
    uint32_t slot;
    assert_int_equal(kv_pool_open(f->to, 77, &slot), ST_OK);
    spill_of(f->to, 77, marked[2])[5] ^= 1;
    assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "differs from the one here in layer 1"));
}

static void memory_goes_with_the_block(void **state)
{
    struct fixture *f = *state;
    uint32_t slot = kv_pool_find(f->from, 77);
    const uint8_t *at = spill_of(f->from, 77, marked[1]);
    static const uint8_t zeros[SPILL];
    assert_int_equal(n_spilled(f->from), 1);
    kv_pool_pin(f->from, slot);
    kv_pool_drop(f->from, 77);
    assert_int_equal(n_spilled(f->from), 1); /* a transfer still reads it */
    assert_memory_not_equal(at, zeros, SPILL);
    kv_pool_unpin(f->from, slot);
    assert_int_equal(n_spilled(f->from), 0);
    assert_memory_equal(at, zeros, SPILL);
    /* what comes next in this place has nothing of it */
    block_write(f->from, 78, 4);
    assert_int_equal(kv_pool_find(f->from, 78), slot);
    assert_int_equal(n_spilled(f->from), 1);
}

/* Cut, longer, any bit changed, too few or too many parts marked, or a pool whose codec spills nothing: nothing is taken. */
static void what_does_not_fit_is_refused(void **state)
{
    struct fixture *f = *state;
    struct error err;
    for (size_t n = 0; n < f->bytes; n++)
        assert_int_equal(import(f->to, f->wire, n, &err), ST_CORRUPT);
    for (size_t bit = 0; bit < 8 * f->bytes; bit++) {
        f->wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_CORRUPT);
        assert_true(err.text[0] != 0);
        f->wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    struct kv_pool *plain;
    assert_int_equal(kv_pool_new(&layout, 2, &plain, NULL), ST_OK);
    assert_int_equal(import(plain, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "payload of"));
    kv_pool_free(plain);
    assert_int_equal(n_spilled(f->to), 0);
}

/* A peer that lies about marks, its header's checksum right. */
static void marks_that_lie_are_refused(void **state)
{
    struct fixture *f = *state;
    struct error err;
    const size_t header = kv_header_bytes(&layout), last = header + (size_t)11 * 128 + MARK;
    f->wire[last] = 0; /* the last part: 64 bytes are nobody's */
    uint8_t *payload = f->wire + header;
    uint64_t sum = checksum64(payload + 2 * 512, 512);
    memcpy(f->wire + 48 + 16, &sum, 8);
    sum = checksum64(f->wire, header - 8);
    memcpy(f->wire + header - 8, &sum, 8);
    assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "64 bytes behind its last part"));
    f->wire[last] = f->wire[last - 128] = 1; /* one more than came */
    assert_int_equal(import(f->to, f->wire, f->bytes, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "more parts of layer 2 are spilled than came"));
}

static void sizes_that_can_not_be_are_refused(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct error err = { 0 };
    assert_int_equal(kv_pool_new(&layout, 2, &pool, NULL), ST_OK);
    assert_int_equal(kv_pool_spill_new(pool, 60, MARK, &err), ST_INVALID);
    assert_int_equal(kv_pool_spill_new(pool, 64, 128, &err), ST_INVALID);
    assert_int_equal(kv_pool_spill_new(pool, (size_t)1 << 62, MARK, &err), ST_INVALID);
    assert_int_equal(kv_pool_spill_new(pool, (size_t)1 << 50, MARK, &err), ST_NO_MEMORY);
    assert_int_equal(kv_pool_spill_new(pool, SPILL, MARK, &err), ST_OK);
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_spilled_travels, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_goes_with_the_block, setup, teardown),
        cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(marks_that_lie_are_refused, setup, teardown),
        cmocka_unit_test(sizes_that_can_not_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
