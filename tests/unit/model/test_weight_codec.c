#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "common/f16.h"
#include "model/model.h"

static void expect_float(float got, double want, int at)
{
    if ((double)got != want && !(isnan(got) && isnan(want)))
        fail_msg("[%d] is %.9g, should be %.9g", at, (double)got, want);
}

/* All 65536 halves, against arithmetic on their fields. */
static void f16_is_exact(void **state)
{
    (void)state;
    for (int h = 0; h < 65536; h++) {
        const int exp = h >> 10 & 31, frac = h & 1023;
        const double sign = h & 0x8000 ? -1 : 1;
        const double want = exp == 31 ? (frac ? NAN : sign * INFINITY)
                            : exp     ? sign * ldexp(1024 + frac, exp - 25)
                                      : sign * ldexp(frac, -24);
        const float got = f16_to_f32((uint16_t)h);
        expect_float(got, want, h);
        if (!signbit(got) != !(h & 0x8000))
            fail_msg("%04x lost its sign", (unsigned)h);
    }
}

static void sizes(void **state)
{
    (void)state;
    static const struct {
        enum weight_codec codec;
        const char *name;
        size_t bytes_of_64;
    } rows[] = {
        { WEIGHT_F32, "F32", 256 },  { WEIGHT_F16, "F16", 128 },  { WEIGHT_BF16, "BF16", 128 },
        { WEIGHT_Q8_0, "Q8_0", 68 }, { WEIGHT_Q4_0, "Q4_0", 36 }, { WEIGHT_Q4_1, "Q4_1", 40 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_string_equal(weight_codec_name(rows[i].codec), rows[i].name);
        assert_int_equal(weight_row_bytes(rows[i].codec, 64), rows[i].bytes_of_64);
        assert_int_equal(weight_codec_block(rows[i].codec), i < 3 ? 1 : 32);
        assert_int_equal(weight_codec_block_bytes(rows[i].codec),
                         i < 3 ? rows[i].bytes_of_64 / 64 : rows[i].bytes_of_64 / 2);
        assert_int_equal(weight_row_bytes(rows[i].codec, 0), 0);
    }
}

/* d = 0.5 (0x3800), m = -2 (0xC000); byte j holds elements j (low nibble) and j + 16 */
static void blocks(void **state)
{
    (void)state;
    /* one byte off alignment, as rows in files may be */
    uint8_t bytes[41] = { 0 }, *row = bytes + 1;
    float out[32];

    row[0] = 0x00, row[1] = 0x38;
    for (int j = 0; j < 16; j++)
        row[2 + j] = (uint8_t)(j | (15 - j) << 4);
    weight_row_f32(WEIGHT_Q4_0, row, 32, out);
    for (int j = 0; j < 16; j++) {
        expect_float(out[j], (j - 8) * 0.5, j);
        expect_float(out[j + 16], (15 - j - 8) * 0.5, j + 16);
    }

    row[2] = 0x00, row[3] = 0xC0;
    for (int j = 0; j < 16; j++)
        row[4 + j] = (uint8_t)(j | (15 - j) << 4);
    weight_row_f32(WEIGHT_Q4_1, row, 32, out);
    for (int j = 0; j < 16; j++) {
        expect_float(out[j], j * 0.5 - 2, j);
        expect_float(out[j + 16], (15 - j) * 0.5 - 2, j + 16);
    }

    for (int j = 0; j < 32; j++)
        row[2 + j] = (uint8_t)(j * 8 - 128);
    weight_row_f32(WEIGHT_Q8_0, row, 32, out);
    for (int j = 0; j < 32; j++)
        expect_float(out[j], (j * 8 - 128) * 0.5, j);
}

static void several_blocks_and_floats(void **state)
{
    (void)state;
    uint8_t bytes[2 * 34 + 1] = { 0 }, *row = bytes + 1;
    float out[64];
    row[1] = 0x3C, row[34 + 1] = 0x40; /* 1 and 2 */
    for (int j = 0; j < 32; j++)
        row[2 + j] = row[34 + 2 + j] = (uint8_t)j;
    weight_row_f32(WEIGHT_Q8_0, row, 64, out);
    for (int j = 0; j < 64; j++)
        expect_float(out[j], j % 32 * (j < 32 ? 1 : 2), j);

    static const float values[3] = { 1.5f, -0.0f, 3e38f };
    memcpy(row, values, sizeof values);
    weight_row_f32(WEIGHT_F32, row, 3, out);
    assert_memory_equal(out, values, sizeof values);
    static const uint8_t bf16[6] = { 0xC0, 0x3F, 0x00, 0x80, 0x80, 0x7F },
                         f16[6] = { 0x00, 0x3E, 0x00, 0x80, 0x00, 0x7C };
    memcpy(row, bf16, sizeof bf16);
    weight_row_f32(WEIGHT_BF16, row, 3, out);
    expect_float(out[0], 1.5, 0);
    assert_true(out[1] == 0 && signbit(out[1]));
    expect_float(out[2], INFINITY, 2);
    memcpy(row, f16, sizeof f16);
    weight_row_f32(WEIGHT_F16, row, 3, out);
    expect_float(out[0], 1.5, 0);
    assert_true(out[1] == 0 && signbit(out[1]));
    expect_float(out[2], INFINITY, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_is_exact),
        cmocka_unit_test(sizes),
        cmocka_unit_test(blocks),
        cmocka_unit_test(several_blocks_and_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
