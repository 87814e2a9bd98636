/* One threshold for several owners' keys: what sorting all of them gives, for any way of dealing them out. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/selector.h"

enum { OWNERS = 6, KEYS = 3000, COUNTS = 8 + 2 * 256 };

struct owner {
    uint32_t keys[KEYS], blocks[KEYS], n;
    uint8_t counts[COUNTS];
};

static int by_order(const void *a, const void *b)
{
    const struct selector_pair *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->block < y->block ? -1 : 1;
}

static uint32_t key_draw(struct rng *r, uint32_t shape)
{
    switch (shape) {
    case 0: /* any */
        return (uint32_t)rng_next(r);
    case 1: /* many ties */
        return 0x80000000u + rng_below(r, 7);
    case 2: /* scores as they are */
        return selector_order(100 + (float)rng_below(r, 100000) / 50000);
    case 3: /* the ends */
        return rng_below(r, 2) ? UINT32_MAX - rng_below(r, 2) : rng_below(r, 2);
    default: /* one */
        return 77;
    }
}

static void the_kth_of_all(void **state)
{
    (void)state;
    static struct owner owner[OWNERS];
    static struct selector_pair all[KEYS], pairs[KEYS];
    struct rng r = { 1, 0 };
    uint64_t asked = 0, had = 0;
    for (int round = 0; round < 400; round++) {
        const uint32_t n = 1 + rng_below(&r, round % 4 ? 300 : KEYS - 1), shape = rng_below(&r, 5),
                       k = 1 + rng_below(&r, n);
        const uint8_t *counts[OWNERS];
        uint32_t ns[OWNERS], n_owners = 0, above = 0, n_pairs = 0;
        for (int i = 0; i < OWNERS; i++)
            owner[i].n = 0;
        for (uint32_t b = 0; b < n; b++) {
            struct owner *o = &owner[rng_below(&r, 1 + round % OWNERS)];
            o->keys[o->n] = key_draw(&r, shape);
            o->blocks[o->n] = b;
            all[b] = (struct selector_pair){ o->keys[o->n++], b };
        }
        for (int i = 0; i < OWNERS; i++) {
            if (!owner[i].n)
                continue;
            selector_counts(owner[i].keys, owner[i].n, owner[i].counts);
            assert_true(selector_counts_valid(owner[i].counts, owner[i].n));
            counts[n_owners] = owner[i].counts;
            ns[n_owners++] = owner[i].n;
        }
        const struct selector_range range = selector_range_of(counts, ns, n_owners, k);
        for (int i = 0; i < OWNERS; i++) {
            uint32_t more;
            if (!owner[i].n)
                continue;
            const uint32_t some = selector_range_count(owner[i].counts, owner[i].n, range, &more);
            above += more;
            assert_int_equal(some,
                             selector_range_take(owner[i].counts, owner[i].keys, owner[i].n, range, pairs + n_pairs));
            for (uint32_t p = n_pairs; p < n_pairs + some; p++)
                pairs[p].block = owner[i].blocks[pairs[p].block];
            assert_true(selector_pairs_valid(owner[i].counts, owner[i].n, range, pairs + n_pairs, some));
            n_pairs += some;
        }
        assert_true(above < k && above + n_pairs >= k);
        const struct selector_pair cut = selector_cut(pairs, n_pairs, k - above);
        qsort(all, n, sizeof *all, by_order);
        assert_int_equal(cut.key, all[k - 1].key);
        assert_int_equal(cut.block, all[k - 1].block);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(selector_chosen(cut, all[i].key, all[i].block), i < k);
        if (shape == 2 && n > 1000) {
            asked += n_pairs;
            had += n;
        }
    }
    print_message("of scores, %.1f %% of the keys are sent\n", 100 * (double)asked / (double)had);
    assert_true(had > 0 && asked < had / 10);
}

/* The list of one worker, which has all keys. */
static void as_one_worker_chooses(void **state)
{
    (void)state;
    struct rng r = { 2, 0 };
    for (int round = 0; round < 100; round++) {
        const struct selector_choice choice = { .own = 20 + rng_below(&r, 200), .density = 300000 };
        const uint32_t n = choice.own - 3, k = selector_budget(choice.own, choice.density) - SELECTOR_FORCED;
        float scores[220];
        uint32_t keys[220], blocks[220], scratch[440], above;
        uint8_t counts[COUNTS];
        const uint8_t *of[] = { counts };
        struct selector_pair pairs[220];
        uint64_t list[4];
        for (uint32_t b = 0; b < choice.own; b++)
            scores[b] = rng_below(&r, 20) ? (float)rng_below(&r, 50) - 25 : NAN;
        for (uint32_t i = 0; i < n; i++) {
            keys[i] = selector_order(scores[i + 1]);
            blocks[i] = i + 1;
        }
        selector_choose(&choice, scores, scratch, list);
        selector_counts(keys, n, counts);
        const struct selector_range range = selector_range_of(of, &n, 1, k);
        const uint32_t some = selector_range_count(counts, n, range, &above);
        selector_range_take(counts, keys, n, range, pairs);
        for (uint32_t p = 0; p < some; p++)
            pairs[p].block = blocks[pairs[p].block];
        const struct selector_pair cut = selector_cut(pairs, some, k - above);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(selector_chosen(cut, keys[i], blocks[i]), selector_has(list, blocks[i]));
    }
}

static void refused(void **state)
{
    (void)state;
    const uint32_t keys[] = { 5, 9, 7 }, low = 10;
    uint8_t counts[COUNTS];
    selector_counts(keys, 3, counts);
    assert_int_equal(selector_counts_bytes(3), 8 + 2 * 16);
    assert_int_equal(selector_counts_bytes(0), 0);
    assert_int_equal(selector_counts_bytes(65535), COUNTS);
    assert_false(selector_counts_valid(counts, 4));
    const struct selector_range all = { 0, UINT32_MAX }, some = { 9, 9 };
    const struct selector_pair good[] = { { 9, 1 } }, bad[] = { { 10, 1 } }, other[] = { { 5, 1 } };
    assert_true(selector_pairs_valid(counts, 3, all, good, 1));
    assert_false(selector_pairs_valid(counts, 3, all, bad, 1));
    assert_false(selector_pairs_valid(counts, 3, some, other, 1));
    memcpy(counts, &low, 4);
    assert_false(selector_counts_valid(counts, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_kth_of_all),
        cmocka_unit_test(as_one_worker_chooses),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
