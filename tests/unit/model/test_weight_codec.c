#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
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
        size_t bytes_of_256;
        uint32_t block;
    } rows[] = {
        { WEIGHT_F32, "F32", 1024, 1 },
        { WEIGHT_F16, "F16", 512, 1 },
        { WEIGHT_BF16, "BF16", 512, 1 },
        { WEIGHT_Q8_0, "Q8_0", 272, 32 },
        { WEIGHT_Q4_0, "Q4_0", 144, 32 },
        { WEIGHT_Q4_1, "Q4_1", 160, 32 },
        { WEIGHT_Q5_0, "Q5_0", 176, 32 },
        { WEIGHT_Q5_1, "Q5_1", 192, 32 },
        { WEIGHT_Q4_K, "Q4_K", 144, 256 },
        { WEIGHT_Q5_K, "Q5_K", 176, 256 },
        { WEIGHT_Q6_K, "Q6_K", 210, 256 },
        { WEIGHT_LOSSLESS_FAST, "lossless-fast", 512, 1 },
        { WEIGHT_DF11, "df11", 512, 1 },
        { WEIGHT_Q4_Z, "Q4_Z", 160, 32 },
        { WEIGHT_LEANQUANT_4, "leanquant-4", 32 + 128, 1 },
        { WEIGHT_LEANQUANT_3, "leanquant-3", 16 + 96, 1 },
        { WEIGHT_LEANQUANT_2, "leanquant-2", 8 + 64, 1 },
    };
    assert_int_equal(sizeof rows / sizeof *rows, WEIGHT_CODECS);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_string_equal(weight_codec_name(rows[i].codec), rows[i].name);
        assert_int_equal(weight_row_bytes(rows[i].codec, 256), rows[i].bytes_of_256);
        assert_int_equal(weight_codec_block(rows[i].codec), rows[i].block);
        const uint32_t bits = weight_grid_bits(rows[i].codec);
        assert_int_equal(weight_row_bytes(rows[i].codec, 0), bits ? 2 << bits : 0);
        if (!bits)
            assert_int_equal(weight_codec_block_bytes(rows[i].codec), rows[i].bytes_of_256 * rows[i].block / 256);
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

/*
 * One bit of one code, high bit or scale at a time, by the layouts of ggml: where it goes, and nowhere else. Without it, zeros: Q4_K and
 * Q5_K with all scales and mins 1 and d = m = 1 are q - 1; Q6_K with all scales 1 is q - 32.
 */
static void places(void **state)
{
    (void)state;
    static const struct {
        enum weight_codec codec;
        uint32_t byte;
        uint8_t mask;
        int first, last; /* elements that change */
        float to;
    } bits[] = {
        { WEIGHT_Q5_0, 2, 0x01, 0, 0, 0 },        { WEIGHT_Q5_0, 5, 0x80, 31, 31, 0 },
        { WEIGHT_Q5_0, 6, 0x02, 0, 0, -14 },      { WEIGHT_Q5_0, 21, 0x10, 31, 31, -15 },
        { WEIGHT_Q5_1, 5, 0x02, 9, 9, 17 },       { WEIGHT_Q5_1, 8, 0x40, 16, 16, 5 },
        { WEIGHT_Q4_K, 16, 0x02, 0, 0, 1 },       { WEIGHT_Q4_K, 16, 0x80, 32, 32, 7 },
        { WEIGHT_Q4_K, 143, 0x80, 255, 255, 7 },  { WEIGHT_Q4_K, 79, 0x04, 95, 95, 3 },
        { WEIGHT_Q4_K, 8, 0x02, 0, 31, -3 },      { WEIGHT_Q4_K, 12, 0x20, 128, 159, -3 },
        { WEIGHT_Q4_K, 11, 0xC0, 224, 255, -49 }, { WEIGHT_Q5_K, 16, 0x04, 64, 64, 15 },
        { WEIGHT_Q5_K, 47, 0x80, 255, 255, 15 },  { WEIGHT_Q5_K, 48, 0x01, 0, 0, 0 },
        { WEIGHT_Q6_K, 0, 0x10, 64, 64, -31 },    { WEIGHT_Q6_K, 63, 0x80, 127, 127, -24 },
        { WEIGHT_Q6_K, 64, 0x01, 128, 128, -31 }, { WEIGHT_Q6_K, 128, 0x0C, 32, 32, 16 },
        { WEIGHT_Q6_K, 191, 0xC0, 255, 255, 16 }, { WEIGHT_Q6_K, 192, 0x03, 0, 15, -64 },
        { WEIGHT_Q6_K, 207, 0xFE, 240, 255, 32 },
    };
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        const enum weight_codec c = bits[i].codec;
        uint8_t row[210] = { 0 };
        float before[256], out[256];
        row[c == WEIGHT_Q6_K ? 209 : 1] = 0x3C; /* 1 */
        row[3] = c == WEIGHT_Q5_1 ? 0x3C : row[3];
        if (c == WEIGHT_Q4_K || c == WEIGHT_Q5_K) {
            row[3] = 0x3C;
            memset(row + 4, 1, 8);
            memset(row + 12, 0x11, 4);
        }
        if (c == WEIGHT_Q6_K)
            memset(row + 192, 1, 16);
        const uint32_t n = weight_codec_block(c);
        weight_row_f32(c, row, n, before);
        row[bits[i].byte] ^= bits[i].mask;
        weight_row_f32(c, row, n, out);
        for (int k = 0; k < (int)n; k++)
            expect_float(out[k], (double)(k >= bits[i].first && k <= bits[i].last ? bits[i].to : before[k]),
                         (int)i * 1000 + k);
    }
}

/* Against the `gguf` package, bit for bit. */
static void golden(void **state)
{
    (void)state;
    enum { N = 768 };
    FILE *in = fopen(LONGSPAN_SOURCE_DIR "/tests/golden/weights/blocks.bin", "rb");
    assert_non_null(in);
    for (int c = WEIGHT_Q8_0; c <= WEIGHT_Q6_K; c++) {
        uint8_t row[N * 2];
        float want[N], got[N];
        const size_t bytes = weight_row_bytes((enum weight_codec)c, N);
        assert_int_equal(fread(row, 1, bytes, in), bytes);
        assert_int_equal(fread(want, sizeof *want, N, in), N);
        weight_row_f32((enum weight_codec)c, row, N, got);
        for (int i = 0; i < N; i++)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("%s[%d] is %.9g, should be %.9g", weight_codec_name((enum weight_codec)c), i, (double)got[i],
                         (double)want[i]);
    }
    assert_int_equal(fgetc(in), EOF);
    fclose(in);
}

/* Codes of 2, 3 and 4 bits side by side in a row with its grid; zero points. */
static void test_grids(void **state)
{
    (void)state;
    for (int c = WEIGHT_LEANQUANT_4; c <= WEIGHT_LEANQUANT_2; c++) {
        const uint32_t bits = weight_grid_bits((enum weight_codec)c);
        enum { N = 37 };
        uint8_t row[64] = { 0 };
        float out[N];
        assert_int_equal(bits, 4 - (c - WEIGHT_LEANQUANT_4));
        assert_int_equal(weight_row_bytes((enum weight_codec)c, N), (2u << bits) + (N * bits + 7) / 8);
        for (uint32_t i = 0; i < 1u << bits; i++) {
            const uint16_t h = (uint16_t)(0x3F80 + 8 * i); /* 1 + i / 16 */
            memcpy(row + 2 * i, &h, 2);
        }
        for (uint32_t i = 0; i < N; i++)
            weight_grid_put(bits, row, i, i * 7 % (1u << bits));
        weight_row_f32((enum weight_codec)c, row, N, out);
        for (uint32_t i = 0; i < N; i++) {
            assert_int_equal(weight_grid_code(bits, row, i), i * 7 % (1u << bits));
            assert_true(out[i] == 1 + (float)(i * 7 % (1u << bits)) / 16);
        }
        assert_int_equal(weight_grid_bits((enum weight_codec)(c - 3)), 0);
    }
    uint8_t block[20] = { 0, 0x38, 0, 0x47 }; /* 0.5, 7 */
    float out[32];
    for (int i = 0; i < 16; i++)
        block[4 + i] = (uint8_t)(i | (15 - i) << 4);
    weight_row_f32(WEIGHT_Q4_Z, block, 32, out);
    for (int i = 0; i < 16; i++) {
        assert_true(out[i] == 0.5f * (float)(i - 7));
        assert_true(out[i + 16] == 0.5f * (float)(8 - i));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_is_exact), cmocka_unit_test(sizes),
        cmocka_unit_test(blocks),       cmocka_unit_test(several_blocks_and_floats),
        cmocka_unit_test(places),       cmocka_unit_test(golden),
        cmocka_unit_test(test_grids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
