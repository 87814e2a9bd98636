/* bf16-lossless: every bf16 comes back, whatever it stands for; parts with more escapes than there is room for are spilled, and no others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
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

/* What the caller keeps of spilled parts. */
static uint8_t spilled[2][N];

static bool is_spilled(int part)
{
    const struct kv_spill spill = kv_spill_of(&shape);
    assert_int_equal(spill.bytes, 32 * D);
    if (!kv_spilled(&spill, sealed[part]))
        return false;
    memcpy(spilled[part], (const uint8_t *)(open[part] + N) - spill.bytes, spill.bytes);
    return true;
}

/* By every variant; of a spilled part, what it holds and what was kept. */
static void comes_back(int part)
{
    uint32_t variants = 0;
    if (is_spilled(part)) {
        const size_t kept = sizeof again - kv_spill_of(&shape).bytes;
        memcpy(again, sealed[part], kept);
        memcpy((uint8_t *)again + kept, spilled[part], sizeof again - kept);
        assert_memory_equal(again, open[part], sizeof again);
        return;
    }
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
    for (uint32_t first = 0; first < 256; first += 15) {
        for (uint32_t i = 0; i < N; i++)
            for (int part = 0; part < 2; part++) {
                const uint32_t exponent = (first + i / 256 % 15) % 256, rest = i % 256;
                open[part][i] = (uint16_t)((rest & 0x80) << 8 | exponent << 7 | (rest & 0x7F));
            }
        assert_true(seal());
        assert_false(is_spilled(0) || is_spilled(1));
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
        assert_false(is_spilled(0) || is_spilled(1));
        comes_back(0);
        comes_back(1);
        fill(open[part], room + 1);
        assert_true(seal());
        assert_true(is_spilled(part));
        assert_false(is_spilled(1 - part));
        comes_back(0);
        comes_back(1);
    }
}

/* Infinities, NaNs with their payloads and denormals are numbers as others are. */
static void what_is_not_finite_comes_back(void **state)
{
    (void)state;
    for (int part = 0; part < 2; part++) {
        fill(open[0], 5);
        fill(open[1], 5);
        for (uint32_t i = 0; i < 112; i++)
            open[part][i * 29 % N] = (uint16_t)((i & 1) << 15 | (i & 2 ? 0x7F80 : 0) | i);
        assert_true(seal());
        comes_back(0);
        comes_back(1);
    }
}

/* From one kind of bits to bits of no kind at all: 16 random ones a number, exponents of a range that grows, or all of them equally often. */
static void random_bits_come_back(void **state)
{
    (void)state;
    struct rng rng = { 5, 0 };
    uint32_t n_spilled = 0, n_fit = 0;
    for (uint32_t turn = 0; turn < 60; turn++) {
        const uint32_t range = 1 + rng_below(&rng, turn < 34 ? 20 : 256), low = rng_below(&rng, 256);
        for (uint32_t i = 0; i < N; i++)
            for (int part = 0; part < 2; part++) {
                const uint32_t bits = (uint32_t)rng_next(&rng) & 0xFFFF, exponent = low + rng_below(&rng, range);
                open[part][i] = (uint16_t)(turn < 8 ? bits : (bits & 0x807F) | exponent % 256 << 7);
            }
        assert_true(seal());
        for (int part = 0; part < 2; part++) {
            n_spilled += is_spilled(part);
            n_fit += !is_spilled(part);
            comes_back(part);
        }
    }
    assert_true(n_spilled > 60 && n_fit > 10);
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
        cmocka_unit_test(what_is_not_finite_comes_back),
        cmocka_unit_test(random_bits_come_back),
        cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
