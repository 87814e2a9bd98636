#include "common/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rng.h"

/* The definition in hash.h, word by word. */
static uint64_t checksum_plain(const uint8_t *p, size_t bytes)
{
    uint64_t sum = 0;
    const size_t words = (bytes + 3) / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t w = 0;
        for (size_t k = 0; k < 4 && 4 * i + k < bytes; k++)
            w |= (uint32_t)p[4 * i + k] << (8 * k);
        sum += ((uint64_t)w + 1) * (mix64(i) | 1);
    }
    /* the tail word is there even when it is empty */
    if (bytes % 4 == 0)
        sum += mix64(words) | 1;
    return sum + ((uint64_t)bytes + 1) * (mix64(bytes / 4 + 1) | 1);
}

static void test_checksum_equals_definition(void **state)
{
    (void)state;
    struct rng rng = { 1, 0 };
    enum { MAX = 4096 };
    uint8_t *data = malloc(MAX + 64);
    for (size_t i = 0; i < MAX + 64; i++)
        data[i] = i % 7 ? (uint8_t)rng_next(&rng) : 0xff;
    for (size_t bytes = 0; bytes < 300; bytes++)
        assert_int_equal(checksum64(data, bytes), checksum_plain(data, bytes));
    for (int i = 0; i < 500; i++) {
        const size_t from = rng_below(&rng, 64), bytes = rng_below(&rng, MAX);
        assert_int_equal(checksum64(data + from, bytes), checksum_plain(data + from, bytes));
    }
    free(data);
}

static void test_checksum_sees_flips(void **state)
{
    (void)state;
    uint8_t data[257] = { 0 };
    const uint64_t zero = checksum64(data, sizeof data);
    for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_true(checksum64(data, sizeof data) != zero);
        data[bit / 8] = 0;
    }
    for (size_t n = 0; n < sizeof data; n++)
        assert_true(checksum64(data, n) != checksum64(data, n + 1));
}

static void test_digest(void **state)
{
    (void)state;
    char text[33];
    const struct digest d = digest_of("abc", 3);
    digest_text(&d, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223");
    struct hasher *a = hasher_new(), *b = hasher_new();
    hasher_add_text(a, "ab");
    hasher_add_text(a, "c");
    hasher_add_text(b, "a");
    hasher_add_text(b, "bc");
    const struct digest da = hasher_end(a), db = hasher_end(b);
    assert_memory_not_equal(da.byte, db.byte, sizeof da.byte);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksum_equals_definition),
        cmocka_unit_test(test_checksum_sees_flips),
        cmocka_unit_test(test_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
