#include "kvstore/kvstore.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rng.h"

static const struct kv_layout small = { 2, 3, 64, 7 };

static struct kv_pool *pool_new(uint32_t n_blocks)
{
    struct kv_pool *pool = NULL;
    struct error err = { 0 };
    assert_int_equal(kv_pool_new(&small, n_blocks, &pool, &err), ST_OK);
    return pool;
}

static void test_layout(void **state)
{
    (void)state;
    size_t bytes = 1;
    assert_true(kv_layout_block_bytes(&small, &bytes));
    assert_int_equal(bytes, 2 * 3 * 2 * 64);
    const struct kv_layout bad[] = { { 0, 3, 64, 0 },
                                     { 2, 0, 64, 0 },
                                     { 2, 3, 0, 0 },
                                     { UINT32_MAX, UINT32_MAX, SIZE_MAX / 8, 0 },
                                     { 2, 3, SIZE_MAX / 4, 0 } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(kv_layout_block_bytes(&bad[i], &bytes));
        struct kv_pool *pool = NULL;
        struct error err = { 0 };
        assert_int_equal(kv_pool_new(&bad[i], 1, &pool, &err), ST_INVALID);
        assert_null(pool);
    }
    struct kv_pool *pool = NULL;
    struct error err = { 0 };
    const struct kv_layout odd = { 1, 1, 65, 0 };
    assert_int_equal(kv_pool_new(&odd, 1, &pool, &err), ST_INVALID);
    assert_non_null(strstr(err.text, "65"));
    const struct kv_layout huge = { 1 << 20, 1 << 10, 1 << 20, 0 };
    err = (struct error){ 0 };
    assert_int_equal(kv_pool_new(&huge, 1 << 20, &pool, &err), ST_NO_MEMORY);
    err = (struct error){ 0 };
    assert_int_equal(kv_pool_new(&small, 0, &pool, &err), ST_INVALID);
    kv_pool_free(NULL);
}

static void test_open_drop(void **state)
{
    (void)state;
    struct kv_pool *pool = pool_new(3);
    uint32_t slot[4];
    assert_int_equal(kv_pool_find(pool, 0), UINT32_MAX);
    assert_int_equal(kv_pool_find(pool, 1), UINT32_MAX);
    assert_int_equal(kv_pool_open(pool, 0, &slot[0]), ST_INVALID);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(kv_pool_open(pool, 100 + i, &slot[i]), ST_OK);
    assert_int_equal(kv_pool_open(pool, 999, &slot[3]), ST_BUSY);
    assert_int_equal(kv_pool_open(pool, 101, &slot[3]), ST_OK);
    assert_int_equal(slot[3], slot[1]);
    assert_int_equal(kv_pool_find(pool, 102), slot[2]);
    uint8_t *part = kv_pool_part(pool, slot[1], 1, 2);
    assert_ptr_equal(part, (uint8_t *)kv_pool_part(pool, slot[1], 0, 0) + 6 * 64 + 2 * 128);
    assert_int_equal((uintptr_t)part % 64, 0);
    memset(kv_pool_part(pool, slot[1], 0, 0), 0xff, 2 * 3 * 2 * 64);
    kv_pool_drop(pool, 101);
    kv_pool_drop(pool, 101);
    kv_pool_drop(pool, 5555);
    assert_int_equal(kv_pool_find(pool, 101), UINT32_MAX);
    assert_int_equal(kv_pool_open(pool, 200, &slot[3]), ST_OK);
    assert_int_equal(slot[3], slot[1]);
    const uint8_t *payload = kv_pool_part(pool, slot[3], 0, 0);
    for (size_t i = 0; i < 2 * 3 * 2 * 64; i++)
        assert_int_equal(payload[i], 0);
    struct kv_pool_stats stats;
    kv_pool_stats(pool, &stats);
    assert_int_equal(stats.used, 3);
    assert_int_equal(stats.n_blocks, 3);
    assert_int_equal(stats.block_bytes, 2 * 3 * 2 * 64);
    kv_pool_free(pool);
}

static void test_pins(void **state)
{
    (void)state;
    struct kv_pool *pool = pool_new(2);
    struct kv_pool_stats stats;
    uint32_t a, b, c;
    assert_int_equal(kv_pool_open(pool, 1, &a), ST_OK);
    memset(kv_pool_part(pool, a, 0, 0), 9, 64);
    kv_pool_pin(pool, a);
    kv_pool_pin(pool, a);
    kv_pool_drop(pool, 1);
    /* gone by name, yet its bytes stay, and a block that comes back under the name does not touch them */
    assert_int_equal(kv_pool_find(pool, 1), UINT32_MAX);
    assert_int_equal(kv_pool_open(pool, 1, &b), ST_OK);
    assert_int_not_equal(a, b);
    assert_int_equal(kv_pool_open(pool, 2, &c), ST_BUSY);
    assert_int_equal(*(uint8_t *)kv_pool_part(pool, a, 0, 0), 9);
    kv_pool_unpin(pool, a);
    kv_pool_stats(pool, &stats);
    assert_int_equal(stats.used, 2);
    assert_int_equal(stats.pinned, 1);
    kv_pool_unpin(pool, a);
    kv_pool_stats(pool, &stats);
    assert_int_equal(stats.used, 1);
    assert_int_equal(stats.pinned, 0);
    assert_int_equal(kv_pool_find(pool, 1), b);
    assert_int_equal(kv_pool_open(pool, 2, &c), ST_OK);
    assert_int_equal(c, a);
    /* an unpinned block stays as long as nobody drops it */
    kv_pool_pin(pool, c);
    kv_pool_unpin(pool, c);
    assert_int_equal(kv_pool_find(pool, 2), c);
    kv_pool_free(pool);
}

struct inventory {
    uint64_t sum;
    uint32_t n;
};

static void inventory_add(void *ctx, kv_handle handle)
{
    struct inventory *inv = ctx;
    inv->sum += mix64(handle);
    inv->n++;
}

/* Against a plain list: random opens, drops, pins, with handles that collide in the table. */
static void test_random(void **state)
{
    (void)state;
    enum { BLOCKS = 37, HANDLES = 90, TURNS = 60000 };
    const char *given = getenv("LONGSPAN_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)(uintptr_t)&state ^ 0x51ed;
    print_message("replay: LONGSPAN_SEED=%llu\n", (unsigned long long)seed);
    struct rng rng = { seed, 0 };
    struct kv_pool *pool = pool_new(BLOCKS);
    uint32_t slot_of[HANDLES], pins[BLOCKS] = { 0 }, used = 0;
    bool here[HANDLES] = { 0 }, doomed[BLOCKS] = { 0 };
    for (int turn = 0; turn < TURNS; turn++) {
        const uint32_t h = rng_below(&rng, HANDLES), s = rng_below(&rng, BLOCKS);
        const kv_handle handle = ((uint64_t)h + 1) << (h % 50);
        bool same = false;
        for (uint32_t k = 0; k < HANDLES; k++)
            same |= k != h && ((uint64_t)k + 1) << (k % 50) == handle;
        if (same)
            continue;
        bool named = false;
        uint32_t slot;
        switch (rng_below(&rng, 4)) {
        case 0:
            slot = UINT32_MAX;
            const enum status st = kv_pool_open(pool, handle, &slot);
            if (!here[h] && used == BLOCKS) {
                assert_int_equal(st, ST_BUSY);
                break;
            }
            assert_int_equal(st, ST_OK);
            if (here[h]) {
                assert_int_equal(slot, slot_of[h]);
                assert_memory_equal(kv_pool_part(pool, slot, 1, 1), &handle, 8);
            } else {
                uint8_t zero[64] = { 0 };
                assert_memory_equal(kv_pool_part(pool, slot, 1, 1), zero, 64);
                memcpy(kv_pool_part(pool, slot, 1, 1), &handle, 8);
                here[h] = true;
                slot_of[h] = slot;
                used++;
            }
            break;
        case 1:
            kv_pool_drop(pool, handle);
            if (here[h] && pins[slot_of[h]])
                doomed[slot_of[h]] = true;
            else
                used -= here[h];
            here[h] = false;
            break;
        case 2:
            for (uint32_t k = 0; k < HANDLES; k++)
                named |= here[k] && slot_of[k] == s;
            if (named) {
                kv_pool_pin(pool, s);
                pins[s]++;
            }
            break;
        default:
            if (!pins[s])
                break;
            kv_pool_unpin(pool, s);
            if (--pins[s] == 0 && doomed[s]) {
                doomed[s] = false;
                used--;
            }
        }
        assert_int_equal(kv_pool_find(pool, handle), here[h] ? slot_of[h] : UINT32_MAX);
        /* where it stood, where another one does, and nowhere */
        assert_int_equal(kv_pool_find_near(pool, handle, slot_of[h]), here[h] ? slot_of[h] : UINT32_MAX);
        assert_int_equal(kv_pool_find_near(pool, handle, s), here[h] ? slot_of[h] : UINT32_MAX);
        assert_int_equal(kv_pool_find_near(pool, handle, UINT32_MAX), here[h] ? slot_of[h] : UINT32_MAX);
        struct kv_pool_stats stats;
        kv_pool_stats(pool, &stats);
        assert_int_equal(stats.used, used);
        if (turn % 100)
            continue;
        struct inventory inv = { 0, 0 }, want = { 0, 0 };
        kv_pool_each(pool, inventory_add, &inv);
        for (uint32_t k = 0; k < HANDLES; k++) {
            if (here[k])
                inventory_add(&want, ((uint64_t)k + 1) << (k % 50));
        }
        assert_int_equal(inv.n, want.n);
        assert_int_equal(inv.sum, want.sum);
    }
    kv_pool_free(pool);
}

/* Places of open rows: zeroed, kept while the block is there, back with it or before. */
static void test_rows(void **state)
{
    (void)state;
    struct kv_pool *pool = pool_new(3);
    struct error err = { 0 };
    uint32_t slot[3], place[3], other;
    assert_int_equal(kv_pool_rows_new(pool, 65, 2, &err), ST_INVALID);
    assert_int_equal(kv_pool_rows_new(pool, 128, 0, &err), ST_INVALID);
    assert_int_equal(kv_pool_rows_new(pool, (size_t)1 << 62, 2, &err), ST_INVALID);
    assert_int_equal(kv_pool_rows_new(pool, 128, 2, &err), ST_OK);
    struct kv_pool_stats stats;
    kv_pool_stats(pool, &stats);
    assert_int_equal(stats.n_rows, 2);
    assert_int_equal(stats.rows_bytes, 2 * 3 * 2 * 128);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(kv_pool_open(pool, 7 + i, &slot[i]), ST_OK);
        assert_int_equal(kv_pool_rows(pool, slot[i]), UINT32_MAX);
        assert_int_equal(kv_pool_rows_take(pool, slot[i], &place[i]), i < 2 ? ST_OK : ST_BUSY);
    }
    assert_int_not_equal(place[0], place[1]);
    assert_int_equal(kv_pool_rows_take(pool, slot[1], &other), ST_OK); /* it has one */
    assert_int_equal(other, place[1]);
    assert_int_equal(kv_pool_rows(pool, slot[1]), place[1]);
    uint8_t *first = kv_pool_rows_part(pool, place[1], 0, 0), *last = kv_pool_rows_part(pool, place[1], 1, 2);
    assert_int_equal(last - first, 5 * 2 * 128);
    assert_int_equal((uintptr_t)first % 64, 0);
    memset(first, 0xff, stats.rows_bytes);
    kv_pool_rows_drop(pool, slot[2]); /* it has none */
    kv_pool_drop(pool, 8);            /* with the block */
    assert_int_equal(kv_pool_rows_take(pool, slot[2], &other), ST_OK);
    assert_int_equal(other, place[1]);
    for (size_t i = 0; i < stats.rows_bytes; i++)
        assert_int_equal(first[i], 0);
    kv_pool_rows_drop(pool, slot[0]); /* the block stays */
    assert_int_equal(kv_pool_rows(pool, slot[0]), UINT32_MAX);
    assert_int_equal(kv_pool_find(pool, 7), slot[0]);
    kv_pool_free(pool);
}

static void test_names(void **state)
{
    (void)state;
    struct kv_pool *pool = pool_new(4);
    struct kv_named *named;
    kv_handle *nameless;
    uint32_t slot, n;
    for (kv_handle h = 1; h <= 4; h++) {
        const struct digest id = { { (uint8_t)h } };
        assert_int_equal(kv_pool_open(pool, h, &slot), ST_OK);
        kv_pool_name(pool, h, (uint32_t)h % 3, &id);
    }
    kv_pool_name(pool, 99, 0, &(struct digest){ { 0 } });  /* not here */
    assert_int_equal(kv_pool_open(pool, 3, &slot), ST_OK); /* it may be written again */
    assert_int_equal(kv_pool_named(pool, &named, &n), ST_OK);
    assert_int_equal(n, 3);
    const kv_handle deepest_first[] = { 2, 1, 4 };
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(named[i].handle, deepest_first[i]);
        assert_int_equal(named[i].position, deepest_first[i] % 3);
        assert_int_equal(named[i].id.byte[0], deepest_first[i]);
    }
    free(named);
    assert_int_equal(kv_pool_nameless(pool, &nameless, &n), ST_OK);
    assert_int_equal(n, 1);
    assert_int_equal(nameless[0], 3);
    free(nameless);
    kv_pool_drop(pool, 2);
    assert_int_equal(kv_pool_open(pool, 2, &slot), ST_OK); /* another block of that handle */
    assert_int_equal(kv_pool_nameless(pool, &nameless, &n), ST_OK);
    assert_int_equal(n, 2);
    free(nameless);
    struct kv_named next;
    uint32_t cursor = 0;
    assert_false(kv_pool_name_of(pool, 3, &next)); /* blocks 1 and 4 have names */
    assert_false(kv_pool_name_of(pool, 99, &next));
    assert_true(kv_pool_name_of(pool, 4, &next));
    assert_int_equal(next.id.byte[0], 4);
    for (int round = 0; round < 3; round++) { /* again and again until it is marked */
        assert_true(kv_pool_unmarked(pool, 4, &cursor, &next));
        assert_int_equal(next.handle, 1);
    }
    kv_pool_mark(pool, 1);
    assert_false(kv_pool_unmarked(pool, 1, &cursor, &next)); /* no further than it may look */
    assert_true(kv_pool_unmarked(pool, 4, &cursor, &next));
    assert_int_equal(next.handle, 4);
    kv_pool_mark(pool, 4);
    kv_pool_mark(pool, 99);
    assert_false(kv_pool_unmarked(pool, 100, &cursor, &next));
    assert_int_equal(kv_pool_open(pool, 1, &slot), ST_OK);
    kv_pool_name(pool, 1, 1, &next.id); /* it was another, and is one again */
    assert_true(kv_pool_unmarked(pool, 100, &cursor, &next));
    assert_int_equal(next.handle, 1);
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows), cmocka_unit_test(test_layout), cmocka_unit_test(test_open_drop),
        cmocka_unit_test(test_pins), cmocka_unit_test(test_random), cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
