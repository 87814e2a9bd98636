#include "kvstore/kvstore.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void test_reversed(void **state)
{
    (void)state;
    assert_int_equal(kv_slot_reversed(0, 1), 0);
    assert_int_equal(kv_slot_reversed(1, 64), 32);
    assert_int_equal(kv_slot_reversed(6, 8), 3);
    for (uint32_t slots = 1; slots <= 256; slots *= 2) {
        for (uint32_t s = 0; s < slots; s++)
            assert_int_equal(kv_slot_reversed(kv_slot_reversed(s, slots), slots), s);
    }
}

static void test_owner(void **state)
{
    (void)state;
    /* powers of two: round robin up to the workers' order; each worker's slots are those ≡ r mod n */
    for (uint32_t s = 0; s < 64; s++) {
        assert_int_equal(kv_slot_owner(s, 64, 1), 0);
        assert_int_equal(kv_slot_owner(s, 64, 2), s % 2);
        assert_int_equal(kv_slot_owner(s, 64, 4), kv_slot_reversed(s % 4, 4));
        assert_int_equal(kv_slot_owner(s, 64, 64), kv_slot_reversed(s, 64));
    }
    /* reference/check.py: reversed_bits(s, 64) * 3 // 64 */
    static const uint8_t three[64] = {
        0, 1, 0, 2, 0, 1, 1, 2, 0, 1, 0, 2, 0, 2, 1, 2, 0, 1, 0, 2, 0, 1, 1, 2, 0, 1, 1, 2, 0, 2, 1, 2,
        0, 1, 0, 2, 0, 1, 1, 2, 0, 1, 0, 2, 0, 2, 1, 2, 0, 1, 0, 2, 0, 2, 1, 2, 0, 1, 1, 2, 0, 2, 1, 2,
    };
    for (uint32_t s = 0; s < 64; s++)
        assert_int_equal(kv_slot_owner(s, 64, 3), three[s]);
    /* runs: along the reversed numbers the owner never falls, all have a share that differs by one at most */
    for (uint32_t n = 1; n <= 64; n++) {
        uint32_t count[64] = { 0 }, last = 0;
        for (uint32_t r = 0; r < 64; r++) {
            const uint32_t owner = kv_slot_owner(kv_slot_reversed(r, 64), 64, n);
            assert_true(owner < n && owner >= last);
            last = owner;
            count[owner]++;
        }
        for (uint32_t w = 0; w < n; w++)
            assert_in_range(count[w], 64 / n, 64 / n + 1);
    }
}

static void test_block_id(void **state)
{
    (void)state;
    int32_t tokens[64];
    for (int i = 0; i < 64; i++)
        tokens[i] = i * 7;
    const struct digest context = digest_of("model", 5), other = digest_of("other", 5), zero = { { 0 } };
    struct digest ids[8];
    size_t n = 0;
    ids[n++] = kv_block_id(NULL, &context, tokens, 0);
    ids[n++] = kv_block_id(&zero, &context, tokens, 0);
    ids[n++] = kv_block_id(&ids[0], &context, tokens, 0);
    ids[n++] = kv_block_id(NULL, &other, tokens, 0);
    ids[n++] = kv_block_id(NULL, &context, tokens, 1);
    tokens[63]++;
    ids[n++] = kv_block_id(NULL, &context, tokens, 0);
    tokens[63]--;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++)
            assert_memory_not_equal(ids[i].byte, ids[j].byte, 16);
    }
    const struct digest again = kv_block_id(NULL, &context, tokens, 0);
    assert_memory_equal(again.byte, ids[0].byte, 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reversed),
        cmocka_unit_test(test_owner),
        cmocka_unit_test(test_block_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
