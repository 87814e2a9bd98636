#include "common/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rng.h"

/* The definition in hash.h, byte by byte. */
static uint64_t checksum_plain(const uint8_t *p, size_t bytes)
{
    uint64_t a[8], sum = bytes;
    for (uint64_t k = 0; k < 8; k++)
        a[k] = mix64(k);
    for (size_t s = 0; 64 * s < bytes; s++) {
        for (size_t k = 0; k < 8; k++) {
            uint64_t w = 0;
            for (size_t at = 64 * s + 8 * k, i = 0; i < 8 && at + i < bytes; i++)
                w |= (uint64_t)p[at + i] << (8 * i);
            const uint64_t z = w ^ mix64(s % 16 + k);
            a[k] += (z & 0xffffffff) * (z >> 32);
            a[k ^ 1] += w;
        }
        for (size_t k = 0; k < 8 && s % 16 == 15 && 64 * (s + 1) <= bytes; k++)
            a[k] = (a[k] ^ a[k] >> 47 ^ mix64(16 + k)) * 0x9E3779B1u;
    }
    for (size_t k = 0; k < 8; k++)
        sum += mix64(a[k] ^ mix64(8 + k));
    return mix64(sum);
}

/* By all ways that there are; how many. */
static int check(const uint8_t *p, size_t bytes)
{
    const uint64_t want = checksum_plain(p, bytes);
    uint64_t sum;
    int n = 0;
    assert_int_equal(checksum64(p, bytes), want);
    for (; checksum64_variant(n, p, bytes, &sum); n++)
        assert_int_equal(sum, want);
    return n;
}

enum { MAX = 5000 };

static uint8_t *data_new(void)
{
    struct rng rng = { 1, 0 };
    uint8_t *data = malloc(MAX + 64);
    for (size_t i = 0; i < MAX + 64; i++)
        data[i] = i % 7 ? (uint8_t)rng_next(&rng) : 0xff;
    return data;
}

static void test_checksum_equals_definition(void **state)
{
    (void)state;
    struct rng rng = { 2, 0 };
    uint8_t *data = data_new();
    for (size_t bytes = 0; bytes < 300; bytes++)
        assert_true(check(data, bytes) > 0);
    for (size_t blocks = 1; blocks <= 4; blocks++) {
        for (size_t bytes = 1024 * blocks - 70; bytes <= 1024 * blocks + 70; bytes++)
            check(data, bytes);
    }
    for (int i = 0; i < 500; i++) {
        const size_t from = rng_below(&rng, 64);
        check(data + from, rng_below(&rng, MAX));
    }
    memset(data, 0, MAX);
    check(data, MAX);
    memset(data, 0xff, MAX);
    check(data, MAX);
    /* what other machines must have, too */
    assert_int_equal(checksum64("longspan", 8), 0x440F185D66CB2E9Fu);
    assert_int_equal(checksum64(data, 3000), 0xF226F3171132852Au);
    free(data);
}

static void flip(uint8_t *data, size_t bit)
{
    data[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void test_checksum_sees_flips(void **state)
{
    (void)state;
    uint8_t *data = data_new();
    for (int zero = 0; zero < 2; zero++) {
        if (zero)
            memset(data, 0, MAX);
        const uint64_t right = checksum64(data, MAX);
        for (size_t bit = 0; bit < (size_t)8 * MAX; bit++) {
            flip(data, bit);
            assert_true(checksum64(data, MAX) != right);
            flip(data, bit);
        }
        const uint64_t some = checksum64(data, 97);
        for (size_t one = 0; one < 8 * 97; one++) {
            flip(data, one);
            for (size_t two = 0; two < one; two++) {
                flip(data, two);
                assert_true(checksum64(data, 97) != some);
                flip(data, two);
            }
            flip(data, one);
        }
    }
    free(data);
}

/* Words of small numbers, of one float format or random, in other places. */
static void test_checksum_sees_places(void **state)
{
    (void)state;
    struct rng rng = { 3, 0 };
    enum { BYTES = 3000 };
    uint8_t data[BYTES], other[BYTES];
    for (int kind = 0; kind < 3; kind++) {
        for (uint32_t i = 0; i < BYTES / 4; i++) {
            const uint32_t small = i % 50, f = (i << 16) | 0x3f80u, any = (uint32_t)rng_next(&rng);
            memcpy(data + (size_t)4 * i, kind == 0 ? &small : kind == 1 ? &f : &any, 4);
        }
        const uint64_t right = checksum64(data, BYTES);
        for (size_t unit = 1; unit <= 1024; unit *= 2) {
            for (int turn = 0; turn < 300; turn++) {
                const size_t a = unit * rng_below(&rng, (uint32_t)(BYTES / unit)),
                             b = unit * rng_below(&rng, (uint32_t)(BYTES / unit));
                memcpy(other, data, BYTES);
                memcpy(other + a, data + b, unit);
                memcpy(other + b, data + a, unit);
                assert_int_equal(checksum64(other, BYTES) != right, memcmp(other, data, BYTES) != 0);
                memcpy(other, data, BYTES); /* one lost, the rest moved up; and one that came twice */
                memmove(other + a, data + a + unit, BYTES - unit - a);
                assert_int_equal(checksum64(other, BYTES) != right, memcmp(other, data, BYTES) != 0);
                memcpy(other, data, BYTES);
                memmove(other + a + unit, data + a, BYTES - unit - a);
                assert_int_equal(checksum64(other, BYTES) != right, memcmp(other, data, BYTES) != 0);
            }
        }
    }
}

static void test_checksum_sees_lengths(void **state)
{
    (void)state;
    uint8_t *data = data_new();
    for (int zero = 0; zero < 2; zero++) {
        for (size_t n = 0; n < 300; n++) {
            for (size_t m = 0; m < n; m++)
                assert_true(checksum64(data, n) != checksum64(data, m));
        }
        memset(data, 0, MAX);
    }
    free(data);
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
        cmocka_unit_test(test_checksum_sees_places),
        cmocka_unit_test(test_checksum_sees_lengths),
        cmocka_unit_test(test_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
