/* Hugging Face directories made here: read right, every refusal by name; hostile safetensors headers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>
#include <unistd.h>

#include "common/file.h"
#include "common/rng.h"
#include "model/hf.h"
#include "model/safetensors.h"

#define CONFIG_HEAD                                                                                                    \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":32,\"intermediate_size\":48,"  \
    "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":8,"                    \
    "\"max_position_embeddings\":256,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"bos_token_id\":0,\"eos_token_"   \
    "id\":7"

static void config_refused(const char *tail, enum status want, const char *named)
{
    char text[4096];
    struct model_config c = { 0 };
    struct error err = { 0 };
    snprintf(text, sizeof text, "%s%s}", CONFIG_HEAD, tail);
    const enum status st = hf_config_parse(text, strlen(text), "config.json", &c, &err);
    if (st != want || (named && !strstr(err.text, named)))
        fail_msg("%s: wanted %s naming %s, got %s: %s", tail, status_text(want), named ? named : "", status_text(st),
                 err.text);
}

static void test_config(void **state)
{
    (void)state;
    struct model_config c = { 0 };
    struct error err = { 0 };
    const char text[] =
        CONFIG_HEAD ",\"tie_word_embeddings\":true,\"rope_theta\":500000.0,\"head_dim\":64,\"rope_scaling\":{"
                    "\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                    "\"original_max_position_embeddings\":8192}}";
    if (hf_config_parse(text, sizeof text - 1, "config.json", &c, &err))
        fail_msg("%s", err.text);
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.d_model, 32);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.n_kv_heads, 1);
    assert_int_equal(c.d_ff, 48);
    assert_true(c.tied_output);
    assert_true(c.rms_eps == 1e-5f);
    assert_int_equal(c.bos, 0);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 7);
    assert_string_equal(c.rope_name, "llama3");
    /* float64 values from the formula of the Llama 3.1 release: kept, blended, stretched */
    assert_true(fabs(c.inv_freq[0] - 1) < 1e-15);
    assert_true(fabs(c.inv_freq[16] / 5.248461609929547e-04 - 1) < 1e-9);
    assert_true(fabs(c.inv_freq[31] / (pow(500000, -62.0 / 64) / 8) - 1) < 1e-12);

    const char generation[] = "{\"eos_token_id\":[5,6],\"temperature\":0.6}";
    assert_int_equal(hf_generation_parse(generation, sizeof generation - 1, "generation_config.json", &c, &err), ST_OK);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[0], 5);
    const char silent[] = "{\"temperature\":0.6}";
    assert_int_equal(hf_generation_parse(silent, sizeof silent - 1, "generation_config.json", &c, &err), ST_OK);
    assert_int_equal(c.n_eos, 2);
    const char wrong[] = "{\"eos_token_id\":[5,8]}";
    assert_int_equal(hf_generation_parse(wrong, sizeof wrong - 1, "generation_config.json", &c, &err), ST_CORRUPT);
    assert_non_null(strstr(err.text, "eos_token_id"));
}

static void test_config_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *tail;
        enum status st;
        const char *named;
    } cases[] = {
        { "", ST_OK, NULL },
        { ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000.0},\"dtype\":\"bfloat16\"", ST_OK,
          NULL },
        { ",\"attention_bias\":false,\"mlp_bias\":false,\"pretraining_tp\":1,\"sliding_window\":null,\"use_cache\":"
          "true",
          ST_OK, NULL },
        { ",\"partial_rotary_factor\":1.0,\"rope_interleaved\":false,\"is_llama_config\":true,\"new_thing\":null",
          ST_OK, NULL },
        { ",\"layer_types\":[\"full_attention\",\"full_attention\"],\"quantization_config\":null", ST_OK, NULL },
        { ",\"attention_bias\":true", ST_UNSUPPORTED, "attention_bias" },
        { ",\"mlp_bias\":true", ST_UNSUPPORTED, "mlp_bias" },
        { ",\"sliding_window\":255", ST_UNSUPPORTED, "sliding_window" },
        { ",\"sliding_window\":256", ST_OK, NULL },
        { ",\"sliding_window\":256,\"use_sliding_window\":true", ST_UNSUPPORTED, "use_sliding_window" },
        { ",\"layer_types\":[\"sliding_attention\"]", ST_UNSUPPORTED, "layer_types" },
        { ",\"pretraining_tp\":2", ST_UNSUPPORTED, "pretraining_tp" },
        { ",\"partial_rotary_factor\":0.5", ST_UNSUPPORTED, "partial_rotary_factor" },
        { ",\"num_experts\":8", ST_UNSUPPORTED, "num_experts" },
        { ",\"attn_logit_softcapping\":50.0", ST_UNSUPPORTED, "attn_logit_softcapping" },
        { ",\"embedding_multiplier\":12", ST_UNSUPPORTED, "embedding_multiplier" },
        { ",\"never_heard_of\":\"yes\"", ST_UNSUPPORTED, "never_heard_of" },
        { ",\"rope_interleaved\":true", ST_UNSUPPORTED, "rope_interleaved" },
        { ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}", ST_UNSUPPORTED,
          "rope_scaling.rope_type: dynamic" },
        { ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":2.0}", ST_UNSUPPORTED, "longrope" },
        { ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2.0}", ST_CORRUPT, "rope_scaling.low_freq_factor" },
        { ",\"rope_scaling\":{\"rope_type\":\"default\",\"mystery\":2.0}", ST_UNSUPPORTED, "rope_scaling.mystery" },
        { ",\"rope_scaling\":7", ST_CORRUPT, "rope_scaling" },
        { ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", ST_UNSUPPORTED,
          "rope_parameters.full_attention" },
        { ",\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}", ST_UNSUPPORTED,
          "rope_parameters.partial_rotary_factor" },
        { ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
          "\"original_max_position_embeddings\":8192}",
          ST_CORRUPT, "high_freq_factor" },
        { ",\"rope_theta\":\"many\"", ST_CORRUPT, "rope_theta" },
        { ",\"rope_theta\":0", ST_CORRUPT, "rope_theta" },
        { ",\"head_dim\":15", ST_CORRUPT, "head_dim" },
        { ",\"head_dim\":1024", ST_CORRUPT, "head_dim" },
        { ",\"head_dim\":-2", ST_CORRUPT, "head_dim" },
        { ",\"head_dim\":1.5", ST_CORRUPT, "head_dim" },
        { ",\"tie_word_embeddings\":1", ST_CORRUPT, "tie_word_embeddings" },
        { ",\"hidden_size\":32", ST_CORRUPT, "duplicate" },
        { ",", ST_CORRUPT, "config.json: line 1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        config_refused(cases[i].tail, cases[i].st, cases[i].named);

    /* one key of the head changed or taken away */
    static const struct {
        const char *from, *to, *named;
        enum status st;
    } changes[] = {
        { "\"LlamaForCausalLM\"", "\"Qwen2MoeForCausalLM\"", "Qwen2MoeForCausalLM", ST_UNSUPPORTED },
        { "\"model_type\":\"llama\"", "\"model_type\":\"granite\"", "granite", ST_UNSUPPORTED },
        { "\"silu\"", "\"gelu\"", "hidden_act", ST_UNSUPPORTED },
        { "\"hidden_size\":32,", "", "hidden_size", ST_CORRUPT },
        { "\"num_hidden_layers\":2", "\"num_hidden_layers\":0", "0 layers", ST_CORRUPT },
        { "\"num_hidden_layers\":2", "\"num_hidden_layers\":99999999999", "num_hidden_layers", ST_CORRUPT },
        { "\"num_attention_heads\":2", "\"num_attention_heads\":3", "num_attention_heads", ST_CORRUPT },
        { "\"num_key_value_heads\":1", "\"num_key_value_heads\":0", "KV heads", ST_CORRUPT },
        { "\"vocab_size\":8", "\"vocab_size\":4294967295", "vocabulary", ST_CORRUPT },
        { "\"eos_token_id\":7", "\"eos_token_id\":[]", "", ST_OK },
        { "\"eos_token_id\":7", "\"eos_token_id\":\"7\"", "eos_token_id", ST_CORRUPT },
        { "\"bos_token_id\":0", "\"bos_token_id\":8", "bos_token_id", ST_CORRUPT },
        { "\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":-1", "epsilon", ST_CORRUPT },
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const char head[] = CONFIG_HEAD "}", *at = strstr(head, changes[i].from);
        char text[2048];
        struct model_config c = { 0 };
        struct error err = { 0 };
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - head), head, changes[i].to, at + strlen(changes[i].from));
        const enum status st = hf_config_parse(text, strlen(text), "config.json", &c, &err);
        if (st != changes[i].st || !strstr(err.text, changes[i].named))
            fail_msg("%s: %s: %s", changes[i].to, status_text(st), err.text);
    }
}

#define TOKENIZER_HEAD                                                                                                 \
    "{\"added_tokens\":[{\"id\":0,\"content\":\"<|bos|>\",\"special\":true},{\"id\":6,\"content\":\"<tool>\","         \
    "\"special\":false}]"
#define TOKENIZER_MODEL                                                                                                \
    "\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{\"a\":1,\"b\":2,\"ab\":3,\"\xC4\xA0\":4,\"<|bos|>"  \
    "\":0},"
#define BOS_PROCESSOR                                                                                                  \
    "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"                    \
    "\"TemplateProcessing\","                                                                                          \
    "\"single\":[{\"SpecialToken\":{\"id\":\"<|bos|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"  \
    "\"special_tokens\":{\"<|bos|>\":{\"id\":\"<|bos|>\",\"ids\":[0],\"tokens\":[\"<|bos|>\"]}}}]}"

static enum status parse_tokenizer(const char *text, struct model **m_out, struct error *err)
{
    struct model *m = model_new(&model_source_hf);
    assert_non_null(m);
    m->config.n_vocab = 8;
    *m_out = m;
    return hf_tokenizer_parse(m, text, strlen(text), "tokenizer.json", err);
}

static void test_tokenizer(void **state)
{
    (void)state;
    static const char *const texts[] = {
        TOKENIZER_HEAD "," TOKENIZER_MODEL "\"merges\":[\"a b\"]}," BOS_PROCESSOR "}",
        TOKENIZER_HEAD "," TOKENIZER_MODEL "\"merges\":[[\"a\",\"b\"]]}," BOS_PROCESSOR "}",
    };
    for (int i = 0; i < 2; i++) {
        struct model *m;
        struct error err = { 0 };
        if (parse_tokenizer(texts[i], &m, &err))
            fail_msg("%s", err.text);
        const struct model_vocab *v = model_vocab(m);
        assert_int_equal(v->kind, MODEL_VOCAB_BPE);
        assert_int_equal(v->n_tokens, 8);
        assert_true(v->ignore_merges);
        assert_null(v->pre);
        assert_int_equal(v->tokens[0].type, MODEL_TOKEN_CONTROL);
        assert_memory_equal(v->tokens[0].text, "<|bos|>", 7);
        assert_int_equal(v->tokens[3].type, MODEL_TOKEN_NORMAL);
        assert_int_equal(v->tokens[3].bytes, 2);
        assert_memory_equal(v->tokens[3].text, "ab", 2);
        assert_int_equal(v->tokens[6].type, MODEL_TOKEN_USER);
        assert_int_equal(v->tokens[7].type, MODEL_TOKEN_UNUSED);
        assert_int_equal(v->tokens[7].bytes, 0);
        assert_int_equal(v->n_merges, 1);
        assert_memory_equal(v->merges[0].left, "a", 1);
        assert_memory_equal(v->merges[0].right, "b", 1);
        assert_true(m->config.add_bos);
        assert_int_equal(m->config.bos, 0);
        model_close(m);
    }
    static const struct {
        const char *text;
        enum status st;
        const char *named;
    } bad[] = {
        { "{}", ST_CORRUPT, "model.vocab" },
        { "{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", ST_UNSUPPORTED, "WordPiece" },
        { "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":7,\"vocab\":{}}}", ST_CORRUPT, "byte_fallback" },
        { "{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{}}}", ST_UNSUPPORTED, "dropout" },
        { "{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{}}}", ST_UNSUPPORTED,
          "end_of_word_suffix" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", ST_CORRUPT, "model.merges" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":8},\"merges\":[]}}", ST_CORRUPT, "token a: id 8" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", ST_CORRUPT, "token a: id -1" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", ST_CORRUPT,
          "id 1 is given to two" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"1\"},\"merges\":[]}}", ST_CORRUPT, "id of a" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"ab\"]}}", ST_CORRUPT, "merges[0]" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a b\",[\"a\"]]}}", ST_CORRUPT, "merges[1]" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[]},\"added_tokens\":[{\"id\":1,\"content\":"
          "\"b\"}]}",
          ST_CORRUPT, "id 1 is given to two" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[]},\"added_tokens\":[7]}", ST_CORRUPT,
          "added_tokens[0]" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[]},\"post_processor\":{\"type\":"
          "\"BertProcessing\"}}",
          ST_UNSUPPORTED, "BertProcessing" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[]},\"post_processor\":{\"type\":"
          "\"TemplateProcessing\",\"single\":"
          "[{\"Sequence\":{}},{\"SpecialToken\":{\"id\":\"x\"}}]}}",
          ST_UNSUPPORTED, "post_processor.single" },
        { "[1]", ST_CORRUPT, "not an object" },
        { "{\"a\":1}{", ST_CORRUPT, "tokenizer.json: line 1" },
        { "{\"\xFF\":1}", ST_CORRUPT, "tokenizer.json" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct model *m;
        struct error err = { 0 };
        const enum status st = parse_tokenizer(bad[i].text, &m, &err);
        if (st != bad[i].st || !strstr(err.text, bad[i].named))
            fail_msg("%s: %s: %s", bad[i].text, status_text(st), err.text);
        model_close(m);
    }
}

static void test_chat_template(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
        enum status st;
    } cases[] = {
        { "{\"chat_template\":\"hello\"}", "hello", ST_OK },
        { "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"},{\"name\":\"default\",\"template\":\"y\"}]}",
          "y", ST_OK },
        { "{\"chat_template\":null}", NULL, ST_OK },
        { "{}", NULL, ST_OK },
        { "{\"chat_template\":3}", NULL, ST_CORRUPT },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *m = model_new(&model_source_hf);
        struct error err = { 0 };
        assert_int_equal(hf_tokenizer_config_parse(m, cases[i].text, strlen(cases[i].text), "t", &err), cases[i].st);
        if (cases[i].want)
            assert_string_equal(m->vocab.chat_template, cases[i].want);
        else
            assert_null(m->vocab.chat_template);
        model_close(m);
    }
}

/* header and data in a block of exactly their size */
static uint8_t *safetensors_of(const char *header, size_t data, size_t *n_out)
{
    const uint64_t n = strlen(header);
    uint8_t *b = calloc(1, 8 + n + data);
    assert_non_null(b);
    memcpy(b, &n, 8);
    memcpy(b + 8, header, n);
    *n_out = 8 + n + data;
    return b;
}

static void test_safetensors(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        enum status st;
        const char *named;
    } cases[] = {
        { "{}", 0, ST_OK, "" },
        { "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}   ", 8,
          ST_OK, "" },
        { "{\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[4,6]},\"b\":{\"dtype\":\"U8\",\"shape\":[2,2],"
          "\"data_offsets\":[0,4]}}",
          6, ST_OK, "" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"b\":{\"dtype\":\"F4\",\"shape\":[4],\"data_"
          "offsets\":[0,2]}}",
          2, ST_OK, "" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, ST_CORRUPT, "9 bytes of data" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, ST_CORRUPT, "tensor a" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}", 9, ST_CORRUPT, "begin at 1" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, ST_CORRUPT, "span 4" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, ST_CORRUPT, "ascending" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, ST_CORRUPT, "dimension 0" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,8]}}", 8,
          ST_CORRUPT, "overflows" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, ST_CORRUPT,
          "overflows" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, ST_CORRUPT,
          "dimensions" },
        { "{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, ST_UNSUPPORTED, "F33" },
        { "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, ST_CORRUPT, "whole bytes" },
        { "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, ST_CORRUPT, "tensor a" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, ST_CORRUPT, "member" },
        { "{\"a\":7}", 0, ST_CORRUPT, "tensor a" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_"
          "offsets\":[1,3]}}",
          3, ST_CORRUPT, "tensor b" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_"
          "offsets\":[2,4]}}",
          4, ST_CORRUPT, "duplicate" },
        { "{\"__metadata__\":{\"x\":3}}", 0, ST_CORRUPT, "__metadata__" },
        { "[]", 0, ST_CORRUPT, "begin with {" },
        { "{", 0, ST_CORRUPT, "line 1" },
        { "{} x", 0, ST_CORRUPT, "line 1" },
        { "{\"\xC3\x28\":1}", 0, ST_CORRUPT, "decode" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n;
        uint8_t *b = safetensors_of(cases[i].header, cases[i].data, &n);
        struct safetensors s = { 0 };
        struct error err = { 0 };
        const enum status st = safetensors_parse(b, n, "x.safetensors", &s, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].named))
            fail_msg("%s: %s: %s", cases[i].header, status_text(st), err.text);
        safetensors_free(&s);
        free(b);
    }
    /* every length of header that the first eight bytes may claim */
    const char header[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    for (uint64_t claim = 0; claim < 200; claim++) {
        size_t n;
        struct safetensors s;
        uint8_t *b = safetensors_of(header, 8, &n);
        const uint64_t value = claim < 100 ? claim : claim < 150 ? UINT64_MAX - claim : (uint64_t)1 << (claim - 150);
        memcpy(b, &value, 8);
        if (safetensors_parse(b, n, "x", &s, NULL) == ST_OK) {
            assert_int_equal(value, sizeof header - 1);
            safetensors_free(&s);
        }
        free(b);
    }
    for (size_t cut = 0; cut < 8 + sizeof header - 1 + 8; cut++) {
        size_t n;
        uint8_t *b = safetensors_of(header, 8, &n), *copy = malloc(cut + !cut);
        struct safetensors s;
        memcpy(copy, b, cut);
        assert_int_equal(safetensors_parse(copy, cut, "x", &s, NULL), ST_CORRUPT);
        free(copy);
        free(b);
    }
}

/* ---- whole directories ---- */

static const char *dir;

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_text(const char *name, const char *text)
{
    assert_int_equal(file_write_atomic(path_of(name), text, strlen(text), NULL), ST_OK);
}

/* Layers first .. last - 1 and, with ends, the tensors outside layers; the bytes are a function of the tensor's name. pad: spaces after
   the header, so that data may lie at odd addresses. dtype: of matrices. */
static void write_weights(const char *name, int first, int last, bool ends, const char *dtype, int pad,
                          const char *skip, const char *extra)
{
    static const struct {
        const char *name;
        int rows, cols;
    } list[] = { { "input_layernorm", 0, 32 },   { "self_attn.q_proj", 32, 32 }, { "self_attn.k_proj", 16, 32 },
                 { "self_attn.v_proj", 16, 32 }, { "self_attn.o_proj", 32, 32 }, { "post_attention_layernorm", 0, 32 },
                 { "mlp.gate_proj", 48, 32 },    { "mlp.up_proj", 48, 32 },      { "mlp.down_proj", 32, 48 } };
    char *header = malloc(65536), tensor[96];
    uint8_t *data = malloc(1 << 20);
    size_t n = 1, at = 0;
    header[0] = '{';
    for (int l = ends ? first - 1 : first; l < last; l++)
        for (size_t i = 0; i < (l < first ? 3 + (extra != NULL) : 9); i++) {
            const int rows = l >= first ? list[i].rows : i == 1 ? 0 : 8, cols = l >= first ? list[i].cols : 32;
            if (l >= first)
                snprintf(tensor, sizeof tensor, "model.layers.%d.%s.weight", l, list[i].name);
            else
                snprintf(tensor, sizeof tensor, "%s",
                         i == 0   ? "model.embed_tokens.weight"
                         : i == 1 ? "model.norm.weight"
                         : i == 2 ? "lm_head.weight"
                                  : extra);
            if (skip && strcmp(skip, tensor) == 0)
                continue;
            const size_t size = strcmp(dtype, "F32") == 0 ? 4 : 2,
                         bytes = (size_t)(rows ? rows : 1) * (size_t)cols * size;
            n += (size_t)snprintf(header + n, 65536 - n,
                                  "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%.*s%s%d],\"data_offsets\":[%zu,%zu]}",
                                  n > 1 ? "," : "", tensor, dtype, rows ? 8 : 0,
                                  rows == 48   ? "48"
                                  : rows == 32 ? "32"
                                  : rows == 16 ? "16"
                                               : "8",
                                  rows ? "," : "", cols, at, at + bytes);
            struct digest d = digest_of(tensor, strlen(tensor));
            for (size_t k = 0; k < bytes; k++)
                data[at + k] = (uint8_t)(mix64(k + d.byte[0] * 65536u + d.byte[1]) & 0x3F);
            at += bytes;
        }
    n += (size_t)snprintf(header + n, 65536 - n, "}");
    while (pad--)
        header[n++] = ' ';
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    const uint64_t length = n;
    fwrite(&length, 8, 1, f);
    fwrite(header, 1, n, f);
    fwrite(data, 1, at, f);
    assert_int_equal(fclose(f), 0);
    free(header);
    free(data);
}

static void expect(enum status want, const char *named)
{
    struct model *m = NULL;
    struct error err = { 0 };
    const enum status st = model_open(dir, &m, &err);
    if (st != want || !strstr(err.text, named))
        fail_msg("wanted %s naming %s, got %s: %s", status_text(want), named, status_text(st), err.text);
    model_close(m);
}

static void expect_rows(enum weight_codec codec)
{
    struct model *m = NULL;
    struct error err = { 0 };
    struct model_tensor t;
    uint8_t scratch[256];
    if (model_open(dir, &m, &err))
        fail_msg("%s", err.text);
    assert_int_equal(model_tensor(m, MODEL_ATTN_K, 1, &t), ST_OK);
    assert_int_equal(t.codec, codec);
    assert_int_equal(t.interleaved_dim, 0);
    const char name[] = "model.layers.1.self_attn.k_proj.weight";
    const struct digest d = digest_of(name, sizeof name - 1);
    for (uint32_t r = 0; r < t.n_rows; r++) {
        const uint8_t *row = model_tensor_row(&t, r, scratch);
        assert_int_equal((uintptr_t)row % (codec == WEIGHT_F32 ? 4 : 2), 0);
        for (size_t k = 0; k < t.row_bytes; k++)
            assert_int_equal(row[k], mix64(r * t.row_bytes + k + d.byte[0] * 65536u + d.byte[1]) & 0x3F);
    }
    assert_int_equal(model_weight_bytes(m) % 2, 0);
    assert_non_null(model_vocab(m)->tokenizer_json);
    model_close(m);
}

static void test_directory(void **state)
{
    (void)state;
    char template[] = "/tmp/longspan-hf-XXXXXX";
    dir = mkdtemp(template);
    assert_non_null(dir);
    write_text("config.json", CONFIG_HEAD ",\"tie_word_embeddings\":false}");
    write_text("tokenizer.json", TOKENIZER_HEAD "," TOKENIZER_MODEL "\"merges\":[\"a b\"]}}");
    write_text("tokenizer_config.json", "{\"chat_template\":\"old\"}");
    expect(ST_NOT_FOUND, "model.safetensors");
    for (int pad = 0; pad < 4; pad++) {
        write_weights("model.safetensors", 0, 2, true, "BF16", pad, NULL, NULL);
        expect_rows(WEIGHT_BF16);
        write_weights("model.safetensors", 0, 2, true, "F32", pad, NULL, NULL);
        expect_rows(WEIGHT_F32);
    }
    write_weights("model.safetensors", 0, 2, true, "F16", 0, NULL, NULL);
    expect_rows(WEIGHT_F16);
    write_text("chat_template.jinja", "new");
    struct model *m = NULL;
    assert_int_equal(model_open(dir, &m, NULL), ST_OK);
    assert_string_equal(model_vocab(m)->chat_template, "new");
    assert_string_equal(model_config(m)->name, strrchr(dir, '/') + 1);
    model_close(m);

    write_weights("model.safetensors", 0, 2, true, "I16", 0, NULL, NULL);
    expect(ST_UNSUPPORTED, "dtype I16");
    write_weights("model.safetensors", 0, 2, true, "BF16", 0, "lm_head.weight", NULL);
    expect(ST_CORRUPT, "tensor output is missing");
    write_text("config.json", CONFIG_HEAD ",\"tie_word_embeddings\":true}");
    expect(ST_OK, "");
    write_weights("model.safetensors", 0, 2, true, "BF16", 0, "model.layers.0.mlp.up_proj.weight", NULL);
    expect(ST_CORRUPT, "ffn_up of layer 0 is missing");
    write_weights("model.safetensors", 0, 2, true, "BF16", 0, NULL, "model.layers.0.self_attn.q_proj.bias");
    expect(ST_UNSUPPORTED, "q_proj.bias");
    write_weights("model.safetensors", 0, 3, true, "BF16", 0, NULL, NULL);
    expect(ST_CORRUPT, "model.layers.2");

    /* two files and an index */
    unlink(path_of("model.safetensors"));
    write_weights("model-00001-of-00002.safetensors", 0, 1, true, "BF16", 0, NULL, NULL);
    write_weights("model-00002-of-00002.safetensors", 1, 2, false, "BF16", 1, NULL, NULL);
    char *index = malloc(16384);
    size_t n = (size_t)snprintf(index, 16384, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    static const char *const parts[] = { "input_layernorm",  "self_attn.q_proj", "self_attn.k_proj",
                                         "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm",
                                         "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj" };
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < 9; i++)
            n += (size_t)snprintf(index + n, 16384 - n,
                                  "\"model.layers.%d.%s.weight\":\"model-0000%d-of-00002.safetensors\",", l, parts[i],
                                  l + 1);
    const size_t common = n;
    static const char ends[] =
        "\"model.embed_tokens.weight\":\"model-00001-of-00002.safetensors\",\"model.norm.weight\":\"model-00001-of-"
        "00002.safetensors\",\"lm_head.weight\":\"model-00001-of-00002.safetensors\"";
    snprintf(index + n, 16384 - n, "%s}}", ends);
    write_text("model.safetensors.index.json", index);
    expect_rows(WEIGHT_BF16);
    snprintf(index + common, 16384 - common, "%s,\"model.extra\":\"model-00002-of-00002.safetensors\"}}", ends);
    write_text("model.safetensors.index.json", index);
    expect(ST_CORRUPT, "names 22 tensors, the files hold 21");
    snprintf(index + common, 16384 - common, "%.*s}}", (int)(strstr(ends, ",\"lm_head") - ends), ends);
    write_text("model.safetensors.index.json", index);
    expect(ST_CORRUPT, "lm_head.weight: the index puts it elsewhere");
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"x\":\"../../etc/passwd\"}}");
    expect(ST_CORRUPT, "not a file name");
    write_text("model.safetensors.index.json", "{\"weight_map\":[]}");
    expect(ST_CORRUPT, "weight_map");
    free(index);

    /* a GGUF file beside them: which one is meant? */
    write_text("x.gguf", "GGUF");
    expect(ST_INVALID, "name the GGUF file");
    static const char *const names[] = { "config.json",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "chat_template.jinja",
                                         "x.gguf",
                                         "model-00001-of-00002.safetensors",
                                         "model-00002-of-00002.safetensors",
                                         "model.safetensors.index.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),        cmocka_unit_test(test_config_refusals), cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_chat_template), cmocka_unit_test(test_safetensors),     cmocka_unit_test(test_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
