/* bf16-lossless: every finite bf16 comes back, to the last escape that there is room for; what does not fit is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/kv_expand.h"
#include "kernels/kernels.h"

enum { D = 64, N = KV_BLOCK * D };

static const struct attn_shape shape = { D, KV_BF16_LOSSLESS, 1, NULL };
static uint16_t open[2][N] __attribute__((aligned(64))), again[N] __attribute__((aligned(64)));
static uint8_t sealed[2][2 * N] __attribute__((aligned(64)));

static bool seal(void)
{
    memset(sealed, 0xA5, sizeof sealed); /* every byte is written */
    return attn_find(&shape, 0)->seal(&shape, open[0], open[1], sealed[0], sealed[1]);
}

/* By every variant. */
static void comes_back(int part)
{
    uint32_t variants = 0;
    for (uint32_t i = 0; i < n_coded_impls; i++)
        if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&shape)) {
            memset(again, 0, sizeof again);
            coded_impls[i].expand(&shape, sealed[part], sealed[1 - part], again);
            assert_memory_equal(again, open[part], sizeof again);
            variants++;
        }
    assert_true(variants > 0);
}

/* All signs and mantissas of 15 exponents at a time, 16 numbers of each exponent. */
static void every_pattern(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 255; first += 15) {
        for (uint32_t i = 0; i < N; i++)
            for (int part = 0; part < 2; part++) {
                const uint32_t exponent = first + i / 256 % 15, rest = i % 256;
                open[part][i] = (uint16_t)((rest & 0x80) << 8 | exponent << 7 | (rest & 0x7F));
            }
        assert_true(seal());
        comes_back(0);
        comes_back(1);
    }
}

/* 15 exponents, and so many numbers of others, scattered. */
static void fill(uint16_t *x, uint32_t n_others)
{
    for (uint32_t i = 0; i < N; i++)
        x[i] = (uint16_t)((100 + i % 15) << 7 | (i * 7 & 0x7F));
    for (uint32_t i = 0; i < n_others; i++)
        x[i * 31 % N] = (uint16_t)(0x8000 | (i % 64) << 7 | (i & 0x7F));
}

static void as_many_escapes_as_there_is_room_for(void **state)
{
    (void)state;
    const uint32_t room = kv_lossless_planes(&shape).room;
    assert_int_equal(room, 112);
    for (int part = 0; part < 2; part++) {
        fill(open[part], room);
        fill(open[1 - part], 0);
        assert_true(seal());
        comes_back(0);
        comes_back(1);
        fill(open[part], room + 1);
        assert_false(seal());
    }
}

static void what_is_not_finite_is_refused(void **state)
{
    (void)state;
    for (int part = 0; part < 2; part++) {
        fill(open[0], 5);
        fill(open[1], 5);
        assert_true(seal());
        open[part][1234] = 0x7F80;
        assert_false(seal());
        open[part][1234] = 0xFFC1;
        assert_false(seal());
    }
}

/* Any bytes: all variants agree, and read no escape past the list. */
static void any_bytes(void **state)
{
    (void)state;
    uint16_t want[N] __attribute__((aligned(64)));
    const size_t bytes = attn_find(&shape, 0)->part_bytes(&shape);
    assert_int_equal(bytes, 98 * D);
    for (uint32_t fill_with = 0; fill_with < 3; fill_with++) {
        uint8_t *part = aligned_alloc(64, bytes);
        for (size_t i = 0; i < bytes; i++)
            part[i] = (uint8_t)(fill_with == 0 ? 0xFF : fill_with == 1 ? i * 37 >> 3 : i % 3 ? 0xF3 : 0x3F);
        attn_find(&shape, 0)->expand(&shape, part, NULL, want);
        for (uint32_t i = 0; i < n_coded_impls; i++)
            if (!(coded_impls[i].needs & ~cpu_caps()) && coded_impls[i].accepts(&shape)) {
                coded_impls[i].expand(&shape, part, NULL, again);
                assert_memory_equal(again, want, sizeof again);
            }
        free(part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pattern),
        cmocka_unit_test(as_many_escapes_as_there_is_room_for),
        cmocka_unit_test(what_is_not_finite_is_refused),
        cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
