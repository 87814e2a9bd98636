/* A pool in memory that the processor may not touch: two mappings of the same pages, of which the pool's has no rights. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "kvstore/kvstore.h"

static struct area {
    uint8_t *there, *here; /* the pool's addresses, and where they can be read */
    size_t bytes;
} areas[2];
static bool broken;

static void *area_alloc(size_t bytes)
{
    struct area *a = areas[0].there ? &areas[1] : &areas[0];
    const int fd = memfd_create("pool", 0);
    if (fd < 0 || ftruncate(fd, (off_t)bytes))
        return NULL;
    a->there = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, fd, 0);
    a->here = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    a->bytes = bytes;
    close(fd);
    return a->there;
}

static struct area *area_of(const void *p)
{
    for (int i = 0; i < 2; i++)
        if (areas[i].there && (const uint8_t *)p >= areas[i].there &&
            (const uint8_t *)p < areas[i].there + areas[i].bytes)
            return &areas[i];
    fail_msg("an address that was never given out");
    return NULL;
}

static void area_free(void *p)
{
    struct area *a = area_of(p);
    munmap(a->there, a->bytes);
    munmap(a->here, a->bytes);
    *a = (struct area){ 0 };
}

static bool area_read(void *to, const void *from, size_t bytes)
{
    const struct area *a = area_of(from);
    memcpy(to, a->here + ((const uint8_t *)from - a->there), bytes);
    return !broken;
}

static bool area_write(void *to, const void *from, size_t bytes)
{
    const struct area *a = area_of(to);
    memcpy(a->here + ((uint8_t *)to - a->there), from, bytes);
    return !broken;
}

static const struct kv_memory_ops memory = { area_alloc, area_free, area_read, area_write };
static const struct kv_layout layout = { .n_layers = 3, .n_kv_heads = 2, .part_bytes = 64, .version = 7 };
enum { BLOCKS = 3, BYTES = 3 * 2 * 2 * 64 };

static void blocks_travel(void **state)
{
    (void)state;
    struct kv_pool *from, *to;
    struct error err = { 0 };
    struct digest id = { { 1, 2, 3 } }, got_id;
    uint8_t payload[BYTES], message[4096];
    struct iovec parts[KV_WIRE_PARTS];
    kv_handle handle;
    uint32_t slot, position;
    assert_int_equal(kv_pool_new_in(&layout, BLOCKS, &memory, &from, &err), ST_OK);
    assert_int_equal(kv_pool_new_in(&layout, BLOCKS, &memory, &to, &err), ST_OK);
    for (int i = 0; i < BYTES; i++)
        payload[i] = (uint8_t)(i * 7);
    assert_int_equal(kv_pool_open(from, 5, &slot), ST_OK);
    assert_true(area_write(kv_pool_part(from, slot, 0, 0), payload, BYTES));
    for (int again = 0; again < 2; again++) {
        const size_t header = kv_header_bytes(&layout);
        assert_int_equal(kv_pool_export(from, 5, 9, &id, message, parts), ST_OK);
        kv_pool_pin(from, slot);
        assert_int_equal(parts[1].iov_len, BYTES);
        assert_memory_equal(parts[1].iov_base, payload, BYTES);
        memcpy(message + header, parts[1].iov_base, BYTES);
        kv_pool_unpin(from, slot);
        assert_int_equal(kv_pool_import(to, message, header + BYTES, &handle, &position, &got_id, &err),
                         again ? ST_EXISTS : ST_OK);
    }
    uint8_t came[BYTES];
    assert_true(area_read(came, kv_pool_part(to, kv_pool_find(to, 5), 0, 0), BYTES));
    assert_memory_equal(came, payload, BYTES);
    /* what is written again is summed, and copied, again */
    payload[100] ^= 1;
    assert_int_equal(kv_pool_export(from, 5, 9, &id, message, parts), ST_OK); /* and never pinned */
    assert_int_equal(kv_pool_open(from, 5, &slot), ST_OK);
    assert_true(area_write(kv_pool_part(from, slot, 0, 0), payload, BYTES));
    assert_int_equal(kv_pool_export(from, 5, 9, &id, message, parts), ST_OK);
    assert_memory_equal(parts[1].iov_base, payload, BYTES);
    memcpy(message + kv_header_bytes(&layout), parts[1].iov_base, BYTES);
    assert_int_equal(kv_pool_import(to, message, kv_header_bytes(&layout) + BYTES, &handle, &position, &got_id, &err),
                     ST_CORRUPT);
    kv_pool_free(from);
    kv_pool_free(to);
    assert_null(areas[0].there);
    assert_null(areas[1].there);
}

static void memory_that_fails_is_said(void **state)
{
    (void)state;
    struct kv_pool *from, *to;
    struct error err = { 0 };
    struct digest id = { { 0 } }, got_id;
    uint8_t message[4096];
    struct iovec parts[KV_WIRE_PARTS];
    kv_handle handle;
    uint32_t slot, position;
    assert_int_equal(kv_pool_new_in(&layout, BLOCKS, &memory, &from, &err), ST_OK);
    assert_int_equal(kv_pool_new(&layout, BLOCKS, &to, &err), ST_OK);
    assert_int_equal(kv_pool_open(to, 8, &slot), ST_OK);
    assert_int_equal(kv_pool_export(to, 8, 0, &id, message, parts), ST_OK);
    memcpy(message + kv_header_bytes(&layout), parts[1].iov_base, BYTES);
    broken = true;
    assert_int_equal(kv_pool_import(from, message, kv_header_bytes(&layout) + BYTES, &handle, &position, &got_id, &err),
                     ST_IO);
    assert_int_equal(kv_pool_find(from, 8), UINT32_MAX);
    assert_int_equal(kv_pool_open(from, 5, &slot), ST_OK);
    assert_int_equal(kv_pool_export(from, 5, 0, &id, message, parts), ST_IO);
    broken = false;
    assert_int_equal(kv_pool_export(from, 5, 0, &id, message, parts), ST_OK);
    kv_pool_free(from);
    kv_pool_free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(blocks_travel), cmocka_unit_test(memory_that_fails_is_said) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
