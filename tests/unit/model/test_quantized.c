/* GPTQ and AWQ in Hugging Face directories made here: layouts by hand, and every refusal by name. tests/integration/test_quantized.py has whole models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/quantized.h"

static void expect_config(const char *text, enum status want, const char *named)
{
    struct quantized_config c;
    struct error err = { 0 };
    char whole[1024];
    snprintf(whole, sizeof whole, "{\"quantization_config\":%s}", text);
    const enum status st = quantized_config_parse(whole, strlen(whole), "config.json", &c, &err);
    if (st != want || (named && !strstr(err.text, named)))
        fail_msg("%s: wanted %s naming %s, got %s: %s", text, status_text(want), named ? named : "", status_text(st),
                 err.text);
}

static void test_config(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status st;
        const char *named;
    } cases[] = {
        { "null", ST_OK, NULL },
        { "{}", ST_OK, NULL },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"desc_act\":true,\"sym\":false}", ST_OK, NULL },
        { "{\"quant_method\":\"gptq\",\"bits\":3,\"group_size\":-1,\"checkpoint_format\":\"gptq_v2\"}", ST_OK, NULL },
        { "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":true,\"version\":\"GEMM\"}", ST_OK,
          NULL },
        { "{\"quant_method\":\"awq\",\"w_bit\":4,\"q_group_size\":64}", ST_OK, NULL },
        { "7", ST_CORRUPT, "quantization_config is not an object" },
        { "{\"bits\":4}", ST_CORRUPT, "quantization_config.quant_method" },
        { "{\"quant_method\":\"bitsandbytes\"}", ST_UNSUPPORTED, "quant_method: bitsandbytes" },
        { "{\"quant_method\":\"gptq\",\"group_size\":128}", ST_CORRUPT, "quantization_config.w_bit" },
        { "{\"quant_method\":\"gptq\",\"bits\":5,\"group_size\":128}", ST_UNSUPPORTED, "bits is 5" },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0}", ST_CORRUPT, "group_size" },
        { "{\"quant_method\":\"gptq\",\"bits\":4}", ST_CORRUPT, "group_size" },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":\"128\"}", ST_CORRUPT, "group_size" },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"checkpoint_format\":\"marlin\"}", ST_UNSUPPORTED,
          "checkpoint_format: marlin" },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"pack_dtype\":\"int8\"}", ST_UNSUPPORTED,
          "pack_dtype: int8" },
        { "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"dynamic\":{\"a\":{\"bits\":8}}}", ST_UNSUPPORTED,
          "quantization_config.dynamic" },
        { "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"version\":\"gemv\"}", ST_UNSUPPORTED,
          "version: gemv" },
        { "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":false}", ST_UNSUPPORTED,
          "zero_point" },
        { "{\"quant_method\":\"awq\",\"bits\":8,\"group_size\":64}", ST_UNSUPPORTED, "bits is 8" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_config(cases[i].text, cases[i].st, cases[i].named);
}

/* ---- a matrix: attn_k of layer 0, 32 x 64, of a model of the random source's making ---- */

enum { OUT = 32, IN = 64 };

struct parts {
    uint32_t weight[IN * OUT / 4], zeros[4 * OUT], groups[IN];
    uint16_t scales[4 * OUT];
};

static struct model *empty_model(void)
{
    struct model *m = model_new(&model_source_hf);
    m->config = (struct model_config){ .n_layers = 1,
                                       .d_model = IN,
                                       .n_heads = 2,
                                       .n_kv_heads = 1,
                                       .head_dim = OUT,
                                       .d_ff = 64,
                                       .n_vocab = 64,
                                       .positions_max = 64,
                                       .tied_output = true };
    assert_int_equal(model_tensors_new(m, NULL), ST_OK);
    m->quantized = model_alloc(m, m->n_tensors, sizeof *m->quantized);
    return m;
}

static enum status enter(struct model *m, const struct quantized_config *c, enum quantized_part part, const char *dtype,
                         uint64_t rows, uint64_t cols, const void *data, size_t bytes, struct error *err)
{
    const struct safetensor t = {
        .name = "x", .dtype = dtype, .n_dims = cols ? 2 : 1, .dims = { rows, cols }, .data = data, .bytes = bytes
    };
    return quantized_enter(m, c, MODEL_ATTN_K, 0, part, &t, "file", "attn.x", err);
}

static const struct quantized_config gptq4 = { QUANTIZED_GPTQ, 4, 16, true }, awq = { QUANTIZED_AWQ, 4, 16, false };

static struct model *enter_all(const struct quantized_config *c, const struct parts *p, bool groups)
{
    struct model *m = empty_model();
    struct error err = { 0 };
    const uint32_t group = c->group && c->group < IN ? c->group : IN, n = IN / group, words = OUT / 32 * c->bits;
    const bool is_awq = c->method == QUANTIZED_AWQ;
    if (enter(m, c, QUANTIZED_WEIGHT, "I32", is_awq ? IN : IN / 32 * c->bits, is_awq ? OUT / 8 : OUT, p->weight,
              sizeof p->weight, &err) ||
        enter(m, c, QUANTIZED_ZEROS, "I32", n, words, p->zeros, (size_t)4 * n * words, &err) ||
        enter(m, c, QUANTIZED_SCALES, "F16", n, OUT, p->scales, (size_t)2 * n * OUT, &err) ||
        (groups && enter(m, c, QUANTIZED_GROUPS, "I32", IN, 0, p->groups, sizeof p->groups, &err)))
        fail_msg("%s", err.text);
    return m;
}

static void row_of(struct model *m, uint32_t row, enum weight_codec want, float out[IN])
{
    struct model_tensor t;
    struct error err = { 0 };
    uint8_t scratch[256] __attribute__((aligned(64)));
    if (quantized_finish(m, "file", &err))
        fail_msg("%s", err.text);
    assert_int_equal(model_tensor(m, MODEL_ATTN_K, 0, &t), ST_OK);
    assert_int_equal(t.codec, want);
    weight_row_f32(t.codec, model_tensor_row(&t, row, scratch), IN, out);
    model_close(m);
}

/* Output 9, input i has code i % 16; its group's zero point and scale differ from others'. */
static void test_layouts(void **state)
{
    (void)state;
    static struct parts p;
    struct quantized_config c = gptq4;
    float w[IN];
    memset(&p, 0, sizeof p);
    c.group = 32;
    for (uint32_t i = 0; i < IN; i++)
        p.weight[i / 8 * OUT + 9] |= (i % 16) << i % 8 * 4;
    p.zeros[1] = 6u << 4;       /* group 0: 7 less one */
    p.zeros[4 + 1] = 15u << 4;  /* group 1: 0 less one */
    p.scales[9] = 0x3800;       /* 0.5 */
    p.scales[OUT + 9] = 0x4000; /* 2 */
    for (uint32_t i = 0; i < IN; i++)
        p.groups[i] = i / 32;
    row_of(enter_all(&c, &p, true), 9, WEIGHT_Q4_Z, w);
    for (uint32_t i = 0; i < IN; i++)
        assert_true(w[i] == (i < 32 ? 0.5f * ((float)(i % 16) - 7) : 2 * (float)(i % 16)));
    c.zeros_less_one = false;
    row_of(enter_all(&c, &p, false), 9, WEIGHT_Q4_Z, w);
    assert_true(w[0] == -3 && w[IN - 1] == 0);
    /* inputs of a group here and there: exact products in float16 */
    for (uint32_t i = 0; i < IN; i++)
        p.groups[i] = i % 2;
    row_of(enter_all(&c, &p, true), 9, WEIGHT_F16, w);
    assert_true(w[2] == 0.5f * (2 - 6) && w[3] == 2.0f * (3 - 15));
    /* awq: output 9 is the second of its eight, in nibble 4 */
    memset(p.weight, 0, sizeof p.weight);
    for (uint32_t i = 0; i < IN; i++)
        p.weight[i * (OUT / 8) + 1] = (i % 16) << 16;
    p.zeros[1] = 3u << 16;
    c = awq;
    c.group = 64;
    row_of(enter_all(&c, &p, false), 9, WEIGHT_Q4_Z, w);
    for (uint32_t i = 0; i < IN; i++)
        assert_true(w[i] == 0.5f * ((float)(i % 16) - 3));
    /* 3 bits run over the ends of words: input 10 of an output has its top bit in the next */
    memset(&p, 0, sizeof p);
    c = (struct quantized_config){ QUANTIZED_GPTQ, 3, 0, false };
    p.weight[0 * OUT + 9] = 3u << 30;
    p.weight[1 * OUT + 9] = 1;
    p.scales[9] = 0x3C00;
    row_of(enter_all(&c, &p, false), 9, WEIGHT_Q4_Z, w);
    for (uint32_t i = 0; i < IN; i++)
        assert_true(w[i] == (i == 10 ? 7 : 0));
    /* 8 bits: zero points of 128 make it Q8_0, others float16 */
    memset(&p, 0, sizeof p);
    c = (struct quantized_config){ QUANTIZED_GPTQ, 8, 0, true };
    memset(p.zeros, 127, sizeof p.zeros);
    memset(p.weight, 200, sizeof p.weight);
    p.scales[9] = 0x3C00;
    row_of(enter_all(&c, &p, false), 9, WEIGHT_Q8_0, w);
    assert_true(w[5] == 72);
    p.zeros[7] ^= 1;
    row_of(enter_all(&c, &p, false), 9, WEIGHT_F16, w);
    assert_true(w[5] == 72);
}

static void expect_entry(const struct quantized_config *c, enum quantized_part part, const char *dtype, uint64_t rows,
                         uint64_t cols, enum status want, const char *named)
{
    static const uint8_t data[4096];
    struct model *m = empty_model();
    struct error err = { 0 };
    const enum status st = enter(m, c, part, dtype, rows, cols, data, sizeof data, &err);
    if (st != want || !strstr(err.text, named))
        fail_msg("wanted %s naming %s, got %s: %s", status_text(want), named, status_text(st), err.text);
    model_close(m);
}

static void test_refusals(void **state)
{
    (void)state;
    static struct parts p;
    struct quantized_config c = gptq4;
    struct error err = { 0 };
    expect_entry(&c, QUANTIZED_WEIGHT, "I32", 8, OUT, ST_OK, "");
    expect_entry(&c, QUANTIZED_WEIGHT, "I32", 7, OUT, ST_CORRUPT, "attn.x is 7 x 32");
    expect_entry(&c, QUANTIZED_WEIGHT, "I32", 8, OUT + 1, ST_CORRUPT, "attn.x");
    expect_entry(&c, QUANTIZED_WEIGHT, "I64", 8, OUT, ST_UNSUPPORTED, "dtype I64");
    expect_entry(&c, QUANTIZED_ZEROS, "I32", 3, 4, ST_CORRUPT, "groups of 16");
    expect_entry(&c, QUANTIZED_SCALES, "BF16", 4, OUT, ST_UNSUPPORTED, "dtype BF16");
    expect_entry(&c, QUANTIZED_GROUPS, "I32", IN - 1, 0, ST_CORRUPT, "attn.x");
    expect_entry(&awq, QUANTIZED_GROUPS, "I32", IN, 0, ST_CORRUPT, "awq has none");
    expect_entry(&awq, QUANTIZED_WEIGHT, "I32", 8, OUT, ST_CORRUPT, "attn.x");
    /* a part twice, one that is missing, a group that is none */
    struct model *m = enter_all(&c, &p, false);
    assert_int_equal(enter(m, &c, QUANTIZED_ZEROS, "I32", 4, 4, p.zeros, 64, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "twice"));
    model_close(m);
    m = empty_model();
    err = (struct error){ 0 };
    assert_int_equal(enter(m, &c, QUANTIZED_WEIGHT, "I32", 8, OUT, p.weight, 4 * 8 * OUT, &err), ST_OK);
    assert_int_equal(quantized_finish(m, "file", &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "attn_k of layer 0 has no qzeros"));
    model_close(m);
    p.groups[63] = 4;
    m = enter_all(&c, &p, true);
    err = (struct error){ 0 };
    assert_int_equal(quantized_finish(m, "file", &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "g_idx: element 63 is 4"));
    model_close(m);
    /* what decides numbers is in the digest's recipe */
    char recipe[2][40];
    for (int i = 0; i < 2; i++) {
        p.groups[63] = 3;
        p.zeros[0] = (uint32_t)i;
        m = enter_all(&c, &p, true);
        assert_int_equal(quantized_finish(m, "file", NULL), ST_OK);
        snprintf(recipe[i], sizeof recipe[i], "%s", m->recipe);
        model_close(m);
    }
    assert_string_not_equal(recipe[0], recipe[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_config), cmocka_unit_test(test_layouts),
                                        cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
