/* Architectures beside Llama, and RoPE scaling, from both sources: what is read, with the library's own numbers, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include "model/gguf_model.h"
#include "model/hf.h"
#include "tests/unit/model/gguf_writer.h"

#define SIZES                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_"   \
    "heads\":1,\"head_dim\":128,\"vocab_size\":8,\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-06"
#define LLAMA   "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"," SIZES
#define MISTRAL "\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\"," SIZES
#define QWEN2   "\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\"," SIZES
#define QWEN3   "\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\"," SIZES

static enum status parse(const char *inside, struct model_config *c, struct error *err)
{
    char text[4096];
    snprintf(text, sizeof text, "{%s}", inside);
    *c = (struct model_config){ 0 };
    return hf_config_parse(text, strlen(text), "config.json", c, err);
}

static void test_flags(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name;
        bool bias, norm;
    } cases[] = {
        { LLAMA, "llama", false, false },
        { MISTRAL ",\"sliding_window\":null", "mistral", false, false },
        { QWEN2 ",\"sliding_window\":4096,\"use_sliding_window\":false,\"max_window_layers\":1", "qwen2", true, false },
        { QWEN3 ",\"attention_bias\":false", "qwen3", false, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        struct error err = { 0 };
        if (parse(cases[i].text, &c, &err))
            fail_msg("%s", err.text);
        assert_string_equal(c.architecture, cases[i].name);
        assert_int_equal(c.qkv_bias, cases[i].bias);
        assert_int_equal(c.qk_norm, cases[i].norm);
        assert_int_equal(c.head_dim, 128);
        assert_true(c.rope_scale == 1);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status st;
        const char *named;
    } cases[] = {
        /* a window: absent it is 4096 in one family, and without its switch nothing in the others */
        { MISTRAL, ST_UNSUPPORTED, "sliding_window is absent" },
        { MISTRAL ",\"sliding_window\":32767", ST_UNSUPPORTED, "sliding_window" },
        { MISTRAL ",\"sliding_window\":32768", ST_OK, "" },
        { MISTRAL ",\"sliding_window\":-1", ST_CORRUPT, "sliding_window" },
        { QWEN2 ",\"use_sliding_window\":true", ST_OK, "" }, /* from layer 28 on */
        { QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1", ST_UNSUPPORTED, "sliding_window is absent" },
        { QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":100", ST_UNSUPPORTED,
          "sliding_window" },
        { QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":40000", ST_OK, "" },
        { QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":0,\"sliding_window\":100,\"layer_types\":[\"full_"
                "attention\",\"full_attention\"]",
          ST_OK, "" },
        { QWEN3 ",\"layer_types\":[\"sliding_attention\",\"full_attention\"]", ST_UNSUPPORTED, "layer_types" },
        { QWEN2 ",\"use_sliding_window\":1", ST_CORRUPT, "use_sliding_window" },
        { QWEN2 ",\"use_mrope\":true", ST_UNSUPPORTED, "use_mrope" },
        { QWEN2 ",\"sliding_window\":32768,\"use_sliding_window\":true,\"max_window_layers\":0,\"rope_scaling\":{"
                "\"type\":\"yarn\",\"factor\":2}",
          ST_UNSUPPORTED, "65536 positions" },
        { QWEN3 ",\"attention_bias\":true", ST_UNSUPPORTED, "attention_bias" },
        { QWEN3 ",\"num_experts\":128", ST_UNSUPPORTED, "num_experts" },
        /* scaling */
        { LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}", ST_CORRUPT, "rope_scaling.factor" },
        { LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", ST_CORRUPT, "rope_scaling.factor" },
        { LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e300}", ST_CORRUPT, "rope_scaling.factor" },
        { LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}", ST_CORRUPT, "rope_scaling.factor" },
        { LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", ST_UNSUPPORTED, "dynamic" },
        { LLAMA ",\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1,2]}", ST_UNSUPPORTED, "mrope" },
        { LLAMA ",\"rope_parameters\":{\"rope_type\":\"yarn\"}", ST_CORRUPT, "rope_parameters.factor" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":0}",
          ST_CORRUPT, "original_max_position_embeddings" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":1e18}",
          ST_CORRUPT, "original_max_position_embeddings" },
        { LLAMA ",\"original_max_position_embeddings\":64,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,"
                "\"original_max_position_embeddings\":32}",
          ST_UNSUPPORTED, "original_max_position_embeddings" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"beta_fast\":1,\"beta_slow\":2}", ST_CORRUPT,
          "beta_fast" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"beta_slow\":0}", ST_CORRUPT, "beta_slow" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"attention_factor\":0}", ST_CORRUPT,
          "attention_factor" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"attention_factor\":1e9}", ST_CORRUPT,
          "attention_factor" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"mscale\":-100,\"mscale_all_dim\":1}",
          ST_CORRUPT, "mscale" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"truncate\":1}", ST_CORRUPT, "truncate" },
        { LLAMA ",\"rope_theta\":1,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", ST_CORRUPT, "rope_theta" },
        { LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"extrapolation_factor\":0.5}", ST_UNSUPPORTED,
          "extrapolation_factor" },
        { LLAMA
          ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4}",
          ST_CORRUPT, "original_max_position_embeddings" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        struct error err = { 0 };
        const enum status st = parse(cases[i].text, &c, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].named))
            fail_msg("%s: wanted %s naming %s, got %s: %s", strstr(cases[i].text, "e-06"), status_text(cases[i].st),
                     cases[i].named, status_text(st), err.text);
    }
    /* sizes that the library would fill in with those of another model */
    static const struct {
        const char *text, *named;
    } missing[] = {
        { "\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":48,\"num_hidden_layers\":"
          "2,"
          "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":8,\"max_position_embeddings\":64,\"rms_"
          "norm_eps\":1e-6",
          "head_dim" },
        { "\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":48,\"num_hidden_layers\":"
          "2,"
          "\"num_attention_heads\":2,\"vocab_size\":8,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6",
          "num_key_value_heads" },
        { "\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen3\"", "model_type" },
    };
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        struct model_config c;
        struct error err = { 0 };
        if (!parse(missing[i].text, &c, &err) || !strstr(err.text, missing[i].named))
            fail_msg("%s: %s", missing[i].text, err.text);
    }
}

/* Numbers of transformers' own functions, in float32. */
static void test_scaling(void **state)
{
    (void)state;
    enum { CHANNELS = 7 };
    static const int channel[CHANNELS] = { 0, 20, 24, 30, 33, 40, 63 };
    static const struct {
        const char *text;
        double freq[CHANNELS], attention;
        uint32_t positions;
    } cases[] = {
        { QWEN2 ",\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_"
                "embeddings\":32768}",
          { 1, 0.0133352149, 0.00537532149, 0.00106436096, 0.000450323569, 4.44569851e-05, 3.10234441e-07 },
          1.13862943611,
          131072 },
        /* without the original's length it is the model's */
        { QWEN2 ",\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"yarn\",\"factor\":4.0}",
          { 1, 0.0133352149, 0.00537532149, 0.00106436096, 0.000450323569, 4.44569851e-05, 3.10234441e-07 },
          1.13862943611,
          131072 },
        { LLAMA
          ",\"original_max_position_embeddings\":4096,\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":"
          "\"yarn\",\"factor\":8,\"beta_fast\":16,\"beta_slow\":2,\"truncate\":false,\"mscale\":0.7,\"mscale_all_"
          "dim\":1.5}",
          { 1, 0.00991207827, 0.00213670055, 0.000192490814, 0.000100730278, 2.22284925e-05, 1.5511722e-07 },
          0.873196687889,
          32768 },
        { LLAMA
          ",\"rope_theta\":1000000.0,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":1,\"original_max_position_"
          "embeddings\":64,\"attention_factor\":1.25}",
          { 1, 0.0133352149, 0.00562341325, 0.00153992651, 0.000805842225, 0.00017782794, 1.24093776e-06 },
          1.25,
          32768 },
        { LLAMA ",\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}",
          { 0.5, 0.0133352149 / 2, 0.00562341325 / 2, 0.00153992651 / 2, 0.000805842225 / 2, 0.00017782794 / 2,
            1.24093776e-06 / 2 },
          1,
          32768 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        struct error err = { 0 };
        if (parse(cases[i].text, &c, &err))
            fail_msg("%s", err.text);
        for (int k = 0; k < CHANNELS; k++)
            if (!(fabs(c.inv_freq[channel[k]] / cases[i].freq[k] - 1) < 1e-5))
                fail_msg("case %zu, channel %d: %.9g, should be %.9g", i, channel[k], c.inv_freq[channel[k]],
                         cases[i].freq[k]);
        if (!(fabs(c.rope_scale / cases[i].attention - 1) < 1e-9))
            fail_msg("case %zu: attention factor %.12g, should be %.12g", i, c.rope_scale, cases[i].attention);
        assert_int_equal(c.positions_max, cases[i].positions);
    }
}

/* ---- GGUF ---- */

static enum status open_plan(const struct plan *p, struct model **m_out, uint8_t **kept_out, struct error *err)
{
    struct bytes b = write_gguf(p);
    *m_out = NULL;
    *kept_out = b.data;
    return gguf_model_open_bytes(b.data, b.n, m_out, err);
}

static void gguf_refused(const struct plan *p, enum status want, const char *named)
{
    struct model *m;
    struct error err = { 0 };
    uint8_t *kept;
    const enum status st = open_plan(p, &m, &kept, &err);
    if (st != want || !strstr(err.text, named))
        fail_msg("wanted %s naming %s, got %s: %s", status_text(want), named, status_text(st), err.text);
    model_close(m);
    free(kept);
}

static void test_gguf_architectures(void **state)
{
    (void)state;
    static const struct plan plans[] = { { .arch = "qwen2", .bias = true, .tied = true },
                                         { .arch = "qwen3", .norms = true } };
    struct digest seen[2];
    for (int i = 0; i < 2; i++) {
        struct model *m;
        struct error err = { 0 };
        struct model_tensor t;
        uint8_t *kept;
        if (open_plan(&plans[i], &m, &kept, &err))
            fail_msg("%s", err.text);
        assert_string_equal(model_config(m)->architecture, plans[i].arch);
        assert_int_equal(model_config(m)->qkv_bias, plans[i].bias);
        assert_int_equal(model_config(m)->qk_norm, plans[i].norms);
        for (int kind = MODEL_ATTN_Q_BIAS; kind <= MODEL_ATTN_K_NORM; kind++)
            assert_int_equal(model_tensor(m, (enum model_tensor_kind)kind, 1, &t),
                             (kind < MODEL_ATTN_Q_NORM) == plans[i].bias ? ST_OK : ST_NOT_FOUND);
        /* rows stand as they are computed */
        assert_int_equal(model_tensor(m, MODEL_ATTN_Q, 1, &t), ST_OK);
        for (uint32_t row = 0; row < t.n_rows; row++)
            assert_ptr_equal(model_tensor_row(&t, row, NULL), (const uint8_t *)t.data + row * t.row_bytes);
        seen[i] = model_digest(m);
        model_close(m);
        free(kept);
    }
    assert_memory_not_equal(&seen[0], &seen[1], sizeof *seen);

    gguf_refused(&(struct plan){ .arch = "qwen2moe" }, ST_UNSUPPORTED, "general.architecture: qwen2moe");
    gguf_refused(&(struct plan){ .arch = "llama", .bias = true }, ST_UNSUPPORTED, "blk.0.attn_q.bias");
    gguf_refused(&(struct plan){ .arch = "llama", .norms = true }, ST_UNSUPPORTED, "blk.0.attn_q_norm.weight");
    gguf_refused(&(struct plan){ .arch = "qwen2" }, ST_CORRUPT, "attn_q bias of layer 0 is missing");
    gguf_refused(&(struct plan){ .arch = "qwen2", .bias = true, .norms = true }, ST_UNSUPPORTED, "attn_q_norm");
    gguf_refused(&(struct plan){ .arch = "qwen2", .bias = true, .skip_tensor = "blk.1.attn_v.bias" }, ST_CORRUPT,
                 "attn_v bias of layer 1 is missing");
    gguf_refused(&(struct plan){ .arch = "qwen2", .extra_tensor = "blk.0.attn_q.bias" }, ST_CORRUPT,
                 "blk.0.attn_q.bias is 1 x 16");
    gguf_refused(&(struct plan){ .arch = "qwen3", .norms = true, .skip_tensor = "blk.0.attn_k_norm.weight" },
                 ST_CORRUPT, "attn_k_norm of layer 0 is missing");
    gguf_refused(&(struct plan){ .arch = "qwen3", .norms = true, .skip_key = "qwen3.context_length" }, ST_CORRUPT,
                 "qwen3.context_length");
}

#define EXTRA(name, ...)                                                                                               \
    static void name(struct keys *k)                                                                                   \
    {                                                                                                                  \
        __VA_ARGS__;                                                                                                   \
    }
#define YARN(arch, factor)                                                                                             \
    key_text(k, arch ".rope.scaling.type", "yarn");                                                                    \
    key_f32(k, arch ".rope.scaling.factor", factor)
EXTRA(none, key_text(k, "llama.rope.scaling.type", "none"); key_f32(k, "llama.rope.scaling.factor", 4))
EXTRA(linear, key_text(k, "llama.rope.scaling.type", "linear"); key_f32(k, "llama.rope.scaling.factor", 4))
EXTRA(linear_implied, key_f32(k, "llama.rope.scaling.factor", 4))
EXTRA(linear_old, key_f32(k, "llama.rope.scale_linear", 4))
EXTRA(yarn, YARN("llama", 4); key_u32(k, "llama.rope.scaling.original_context_length", 64);
      key_f32(k, "llama.rope.scaling.yarn_beta_fast", 4); key_f32(k, "llama.rope.scaling.yarn_beta_slow", 0.5f);
      key_f32(k, "llama.rope.scaling.yarn_attn_factor", 1.1386294f); key_f32(k, "llama.rope.scaling.attn_factor", 0.5f);
      key_f32(k, "llama.rope.scaling.yarn_ext_factor", 1); key_bool(k, "llama.rope.scaling.finetuned", 1))
EXTRA(yarn_log, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_log_multiplier", 0.5f))
EXTRA(yarn_qwen, YARN("qwen2", 4); key_f32(k, "qwen2.rope.freq_base", 1e6f))
EXTRA(yarn_given, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_attn_factor", 1.25f))
EXTRA(yarn_ext, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_ext_factor", 0))
EXTRA(yarn_original, YARN("llama", 4); key_u32(k, "llama.rope.scaling.original_context_length", 0))
EXTRA(yarn_beta, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_beta_fast", INFINITY))
EXTRA(yarn_slow, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_beta_slow", -1))
EXTRA(yarn_theta, YARN("llama", 4); key_f32(k, "llama.rope.freq_base", 1))
EXTRA(yarn_log_nan, YARN("llama", 4); key_f32(k, "llama.rope.scaling.yarn_log_multiplier", NAN))
EXTRA(factor_nan, key_f32(k, "llama.rope.scaling.factor", NAN))
EXTRA(factor_huge, key_f32(k, "llama.rope.scaling.factor", 1e30f))
EXTRA(attn_nan, key_f32(k, "llama.rope.scaling.attn_factor", NAN))
EXTRA(window, key_u32(k, "qwen2.attention.sliding_window", 100))
EXTRA(window_wide, key_u32(k, "qwen2.attention.sliding_window", 128))
EXTRA(experts, key_u32(k, "qwen2.expert_count", 8))

static void test_gguf_scaling(void **state)
{
    (void)state;
    const double natural = 1 + 0.1 * log(4);
    /* 8 channels. Those between which YaRN blends, from 16 ln(original / (2 pi turns)) / (2 ln theta): 0 and 3; 0 and 3; 0 and 2. */
    const struct {
        void (*extra)(struct keys *k);
        const char *arch;
        double theta, divisor[3], attention; /* of channels 0, 1, 5 */
        uint32_t positions;
        const char *name;
    } cases[] = {
        { none, "llama", 1e4, { 1, 1, 1 }, 1, 128, "default" },
        { linear, "llama", 1e4, { 4, 4, 4 }, 1, 128, "linear" },
        { linear_implied, "llama", 1e4, { 4, 4, 4 }, 1, 128, "linear" },
        { linear_old, "llama", 1e4, { 4, 4, 4 }, 1, 128, "linear" },
        { yarn, "llama", 1e4, { 1, 1 / (1.0 / 3 / 4 + 2.0 / 3), 4 }, natural / 2, 256, "yarn" },
        { yarn_log, "llama", 1e4, { 1, 1 / (1.0 / 3 / 4 + 2.0 / 3), 4 }, natural / (1 + 0.05 * log(4)), 512, "yarn" },
        { yarn_qwen, "qwen2", 1e6, { 1, 4 / 2.5, 4 }, natural, 512, "yarn" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const int channel[3] = { 0, 1, 5 };
        const bool qwen = strcmp(cases[i].arch, "qwen2") == 0;
        struct model *m;
        struct error err = { 0 };
        uint8_t *kept;
        if (open_plan(&(struct plan){ .arch = cases[i].arch, .bias = qwen, .extra = cases[i].extra }, &m, &kept, &err))
            fail_msg("%s", err.text);
        const struct model_config *c = model_config(m);
        for (int k = 0; k < 3; k++) {
            const double want = pow(cases[i].theta, -2.0 * channel[k] / W_HD) / cases[i].divisor[k];
            if (!(fabs(c->inv_freq[channel[k]] / want - 1) < 1e-9))
                fail_msg("case %zu, channel %d: %.9g, should be %.9g", i, channel[k], c->inv_freq[channel[k]], want);
        }
        if (!(fabs(c->rope_scale / cases[i].attention - 1) < 1e-9))
            fail_msg("case %zu: attention factor %.12g, should be %.12g", i, c->rope_scale, cases[i].attention);
        assert_int_equal(c->positions_max, cases[i].positions);
        assert_string_equal(c->rope_name, cases[i].name);
        model_close(m);
        free(kept);
    }

    static const struct {
        void (*extra)(struct keys *k);
        enum status st;
        const char *named;
    } bad[] = {
        { yarn_given, ST_UNSUPPORTED, "llama.rope.scaling.yarn_attn_factor" },
        { yarn_ext, ST_UNSUPPORTED, "llama.rope.scaling.yarn_ext_factor" },
        { yarn_original, ST_CORRUPT, "llama.rope.scaling.original_context_length" },
        { yarn_beta, ST_CORRUPT, "yarn_beta_fast" },
        { yarn_slow, ST_CORRUPT, "yarn_beta_slow" },
        { yarn_theta, ST_CORRUPT, "llama.rope.freq_base" },
        { yarn_log_nan, ST_CORRUPT, "attention factor" },
        { factor_nan, ST_CORRUPT, "llama.rope.scaling.factor" },
        { factor_huge, ST_CORRUPT, "llama.rope.scaling.factor" },
        { attn_nan, ST_CORRUPT, "attention factor" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        gguf_refused(&(struct plan){ .extra = bad[i].extra }, bad[i].st, bad[i].named);
    gguf_refused(&(struct plan){ .extra = linear, .rope_freqs = 2 }, ST_UNSUPPORTED, "rope_freqs.weight");
    gguf_refused(&(struct plan){ .arch = "qwen2", .bias = true, .extra = window }, ST_UNSUPPORTED,
                 "qwen2.attention.sliding_window");
    gguf_refused(&(struct plan){ .arch = "qwen2", .bias = true, .extra = experts }, ST_UNSUPPORTED,
                 "qwen2.expert_count");
    gguf_refused(&(struct plan){ .arch = "qwen2", .bias = true, .extra = window_wide }, ST_OK, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_flags), cmocka_unit_test(test_refusals),
                                        cmocka_unit_test(test_scaling), cmocka_unit_test(test_gguf_architectures),
                                        cmocka_unit_test(test_gguf_scaling) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
