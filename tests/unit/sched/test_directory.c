#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "coordinator/sched/directory.h"

static struct digest id(uint64_t n)
{
    struct digest d = { { 0 } };
    n = mix64(n);
    memcpy(d.byte, &n, sizeof n);
    return d;
}

static struct copy *block(struct directory *d, uint8_t slot, uint64_t n)
{
    const struct digest name = id(n);
    assert_true(directory_promise(d, slot, 1));
    struct copy *c = directory_open(d, slot, (uint32_t)n);
    directory_commit(d, c, &name, true);
    return c;
}

static struct block *known(struct directory *d, uint64_t n)
{
    const struct digest name = id(n);
    return directory_find(d, &name);
}

/* The worker has done what it was told. */
static uint32_t acknowledge(struct directory *d, uint8_t slot)
{
    const uint64_t *handles;
    const uint32_t n = outbox_send(&d->pools[slot].drops, &handles);
    directory_dropped(d, slot, n);
    return n;
}

static void test_account(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 3, 4);
    assert_false(directory_promise(&d, 3, 5));
    assert_false(directory_promise(&d, 2, 1)); /* no such pool */
    assert_true(directory_promise(&d, 3, 4));
    assert_int_equal(directory_room(&d, 3), 0);
    struct copy *c = directory_open(&d, 3, 0);
    assert_int_equal(d.pools[3].named, 1);
    assert_int_equal(d.pools[3].promised, 3);
    directory_unpromise(&d, 3, 3);
    directory_unref(&d, c); /* never full: gone */
    assert_int_equal(d.pools[3].dropping, 1);
    assert_true(directory_can_receive(&d, 3));
    assert_int_equal(acknowledge(&d, 3), 1);
    assert_int_equal(d.pools[3].dropping, 0);
    assert_int_equal(d.n_blocks, 0);
    directory_deinit(&d);
}

/* Least recently released first; of one sequence the deepest first, so what stays is a prefix. */
static void test_eviction(void **state)
{
    (void)state;
    struct directory d;
    struct copy *a[3], *b[3];
    directory_init(&d);
    directory_pool_add(&d, 0, 6);
    for (uint32_t i = 0; i < 3; i++) {
        a[i] = block(&d, 0, 10 + i);
        b[i] = block(&d, 0, 20 + i);
    }
    for (uint32_t i = 3; i-- > 0;)
        directory_unref(&d, b[i]);
    for (uint32_t i = 3; i-- > 0;)
        directory_unref(&d, a[i]);
    assert_int_equal(d.pools[0].cached, 6);
    assert_true(directory_promise(&d, 0, 2));
    assert_null(known(&d, 22));
    assert_null(known(&d, 21));
    assert_non_null(known(&d, 20));
    directory_ref(&d, b[0]);
    assert_true(directory_promise(&d, 0, 3)); /* all of a; b[0] is in use */
    assert_false(directory_promise(&d, 0, 1));
    assert_non_null(known(&d, 20));
    assert_null(known(&d, 10));
    assert_int_equal(d.pools[0].dropping, 5);
    assert_false(directory_can_receive(&d, 0));
    acknowledge(&d, 0);
    assert_true(directory_can_receive(&d, 0));
    directory_deinit(&d);
}

/* A second block of the same content stays private and goes with its sequence. */
static void test_duplicates(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 0, 10);
    struct copy *first = block(&d, 0, 1), *second = block(&d, 0, 1);
    assert_ptr_equal(known(&d, 1), first->block);
    assert_false(second->block->indexed);
    directory_unref(&d, second);
    assert_int_equal(second->state, COPY_DROPPING);
    directory_unref(&d, first);
    assert_true(first->cached);
    /* once the first is gone, another may take its place */
    directory_drop(&d, first);
    assert_null(known(&d, 1));
    assert_ptr_equal(known(&d, 1), NULL);
    struct copy *third = block(&d, 0, 1);
    assert_ptr_equal(known(&d, 1), third->block);
    directory_deinit(&d);
}

static void test_copies(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 0, 4);
    directory_pool_add(&d, 1, 4);
    struct copy *a = block(&d, 0, 1);
    assert_true(directory_promise(&d, 1, 1));
    struct copy *c = directory_incoming(&d, a->block, 1);
    assert_ptr_equal(directory_copy_at(a->block, 1), c);
    assert_ptr_equal(directory_source(a->block), a);
    directory_arrived(&d, c); /* nobody waits: cached */
    assert_true(c->cached);
    directory_unref(&d, a);
    /* one copy goes, the block is still found by the other */
    directory_drop(&d, a);
    assert_non_null(known(&d, 1));
    assert_ptr_equal(directory_source(known(&d, 1)), c);
    directory_drop(&d, c);
    assert_null(known(&d, 1));
    assert_int_equal(acknowledge(&d, 0), 1);
    assert_int_equal(acknowledge(&d, 1), 1);
    assert_int_equal(d.n_blocks, 0);
    /* called off before it was sent */
    a = block(&d, 0, 2);
    assert_true(directory_promise(&d, 1, 1));
    c = directory_incoming(&d, a->block, 1);
    directory_forget(&d, c);
    assert_int_equal(d.pools[1].named, 0);
    assert_null(directory_copy_at(a->block, 1));
    directory_deinit(&d);
}

/* What comes after it was given up is told to go, and nothing brings it back until it has. */
static void test_strays(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 0, 4);
    directory_pool_add(&d, 1, 4);
    struct copy *a = block(&d, 0, 1);
    directory_drop_stray(&d, 1, a->block->handle);
    struct copy *c = directory_copy_at(a->block, 1);
    assert_non_null(c);
    assert_int_equal(c->state, COPY_DROPPING);
    directory_drop_stray(&d, 1, a->block->handle); /* again */
    assert_int_equal(d.pools[1].dropping, 1);
    assert_int_equal(acknowledge(&d, 1), 2);
    assert_null(directory_copy_at(a->block, 1));
    assert_int_equal(d.pools[1].dropping, 0);
    directory_drop_stray(&d, 1, 12345); /* a block that nobody knows any more */
    assert_int_equal(acknowledge(&d, 1), 1);
    directory_drop_stray(&d, 0, a->block->handle); /* it is expected there: stays */
    assert_int_equal(a->state, COPY_READY);
    directory_deinit(&d);
}

static void test_pool_lost(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 0, 5000);
    directory_pool_add(&d, 1, 5000);
    for (uint32_t i = 0; i < 3000; i++) { /* more than the first table has buckets */
        struct copy *a = block(&d, 0, i);
        directory_unref(&d, a);
        if (i % 3 == 0) {
            assert_true(directory_promise(&d, 1, 1));
            directory_arrived(&d, directory_incoming(&d, a->block, 1));
        }
    }
    directory_pool_remove(&d, 0);
    assert_int_equal(d.n_blocks, 1000);
    for (uint32_t i = 0; i < 3000; i++)
        assert_int_equal(known(&d, i) != NULL, i % 3 == 0);
    directory_pool_add(&d, 0, 10);
    assert_int_equal(directory_room(&d, 0), 10);
    assert_int_equal(directory_room(&d, 1), 5000);
    directory_deinit(&d);
}

/* Blocks of before: cache, by id and handle, unless what they say cannot be. */
static void test_adopted(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    d.next = 1000;
    directory_pool_add(&d, 0, 4);
    directory_pool_add(&d, 1, 4);
    const struct digest a = id(1), b = id(2);
    assert_false(directory_adopt(&d, 0, 1000, 0, &a)); /* never given */
    assert_true(directory_adopt(&d, 0, 7, 0, &a));
    assert_false(directory_adopt(&d, 0, 7, 0, &a)); /* twice */
    assert_false(directory_adopt(&d, 1, 7, 1, &a)); /* another place */
    assert_false(directory_adopt(&d, 1, 7, 0, &b)); /* another block */
    assert_true(directory_adopt(&d, 1, 7, 0, &a));  /* a second copy of it */
    assert_int_equal(directory_block(&d, 7) == known(&d, 1), 1);
    assert_int_equal(d.pools[0].cached + d.pools[1].cached, 2);
    assert_true(directory_adopt(&d, 1, 8, 0, &a)); /* the same content under another handle: one of them goes */
    assert_int_equal(d.pools[1].dropping, 1);
    assert_int_equal(acknowledge(&d, 1), 1);
    assert_null(directory_block(&d, 8));
    assert_ptr_equal(known(&d, 1), directory_block(&d, 7));
    assert_true(directory_promise(&d, 0, 3));
    assert_false(directory_adopt(&d, 0, 9, 0, &b)); /* no room */
    assert_true(directory_promise(&d, 0, 1));       /* it is evicted as any other */
    assert_int_equal(d.pools[0].cached, 0);
    directory_unpromise(&d, 0, 4);
    acknowledge(&d, 0);
    struct copy *c = block(&d, 0, 5);
    assert_int_equal(c->block->handle, 1000);
    directory_unref(&d, c);
    directory_pool_remove(&d, 1);
    assert_null(known(&d, 1));
    directory_deinit(&d);
}

/* What is on disks is found though no worker has it in memory, and goes with the last disk. */
static void test_disks(void **state)
{
    (void)state;
    struct directory d;
    directory_init(&d);
    directory_pool_add(&d, 0, 4);
    directory_pool_add(&d, 1, 4);
    const struct digest a = id(1), b = id(2), c = id(3);
    directory_disk_add(&d, 0, 7, &a);
    directory_disk_add(&d, 1, 7, &a);
    directory_disk_add(&d, 1, 7, &a); /* twice */
    directory_disk_add(&d, 0, 8, &b);
    assert_int_equal(d.pools[0].on_disk, 2);
    assert_int_equal(d.pools[1].on_disk, 1);
    struct block *on_disk = known(&d, 1);
    assert_int_equal(on_disk->disks, 3);
    assert_int_equal(on_disk->position, 7);
    assert_null(directory_source(on_disk));
    directory_disk_remove(&d, 1, &b); /* it has it not */
    directory_disk_remove(&d, 1, &c); /* nobody has */
    assert_int_equal(d.pools[1].on_disk, 1);

    /* It comes to memory, and goes from there again. */
    assert_true(directory_promise(&d, 0, 1));
    struct copy *copy = directory_incoming(&d, on_disk, 0);
    directory_arrived(&d, copy);
    assert_ptr_equal(directory_source(on_disk), copy);
    assert_int_equal(d.pools[0].cached, 1);
    assert_true(directory_promise(&d, 0, 4));
    assert_int_equal(copy->state, COPY_DROPPING);
    assert_ptr_equal(known(&d, 1), on_disk);
    acknowledge(&d, 0);
    assert_ptr_equal(known(&d, 1), on_disk);
    assert_null(on_disk->copies);
    directory_unpromise(&d, 0, 4);

    /* Who computes it again has it in memory: what is on disks is the same block's. */
    struct copy *again = block(&d, 1, 1);
    assert_ptr_equal(known(&d, 1), again->block);
    assert_int_equal(again->block->disks, 3);
    assert_int_equal(d.n_blocks, 2);
    directory_unref(&d, again);
    assert_int_equal(d.pools[1].cached, 1);
    directory_disk_remove(&d, 0, &a);
    directory_disk_remove(&d, 1, &a);
    assert_ptr_equal(known(&d, 1), again->block);
    assert_int_equal(again->block->disks, 0);
    directory_disk_lost(&d, 0);
    assert_null(known(&d, 2));
    assert_int_equal(d.pools[0].on_disk, 0);
    directory_disk_add(&d, 0, 9, &c);
    directory_pool_remove(&d, 0); /* with its disk */
    assert_null(known(&d, 3));
    assert_int_equal(d.n_blocks, 1);
    directory_deinit(&d);
}

static void test_outbox(void **state)
{
    (void)state;
    struct outbox box = { 0 };
    const uint64_t *items;
    uint64_t in = 0, out = 0;
    for (uint32_t round = 0; round < 200; round++) {
        for (uint32_t i = 0; i < round % 7; i++)
            outbox_push(&box, in++);
        const uint64_t first = out + box.sent;
        const uint32_t n = outbox_send(&box, &items);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(items[i], first + i);
        if (round % 11 == 0) {
            outbox_rewind(&box);
            assert_int_equal(outbox_waits(&box), box.n > 0);
            outbox_send(&box, &items);
        }
        for (uint32_t i = 0; i < round % 5 && box.n; i++)
            assert_int_equal(outbox_pop(&box), out++);
    }
    outbox_deinit(&box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_account), cmocka_unit_test(test_eviction), cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_copies),  cmocka_unit_test(test_strays),   cmocka_unit_test(test_pool_lost),
        cmocka_unit_test(test_disks),   cmocka_unit_test(test_outbox),   cmocka_unit_test(test_adopted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
