/* GGUF files made here: read right, refused by name, and never read out of bounds however they are damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/gguf_model.h"
#include "tests/unit/model/gguf_writer.h"

/* In a block of exactly its size, so that the sanitizer sees one byte too many. */
static uint8_t *exact(const void *data, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    return copy;
}

static void touch(const struct model *m)
{
    uint8_t scratch[4096];
    float row[1024];
    struct model_tensor t;
    size_t sum = 0;
    for (int k = 0; k < MODEL_TENSOR_KINDS; k++)
        for (uint32_t l = 0; l < model_config(m)->n_layers; l++)
            if (model_tensor(m, (enum model_tensor_kind)k, l, &t) == ST_OK)
                for (uint32_t r = 0; r < t.n_rows && t.n_cols <= 1024; r++)
                    weight_row_f32(t.codec, model_tensor_row(&t, r, scratch), t.n_cols, row);
    const struct model_vocab *v = model_vocab(m);
    for (uint32_t i = 0; i < v->n_tokens; i++)
        for (uint32_t j = 0; j < v->tokens[i].bytes; j++)
            sum += (uint8_t)v->tokens[i].text[j];
    for (uint32_t i = 0; i < v->n_merges; i++)
        sum += (uint8_t)v->merges[i].left[0] + (uint8_t)v->merges[i].right[v->merges[i].right_bytes - 1];
    assert_true(sum > 0);
}

static enum status open_plan(const struct plan *p, struct model **m_out, uint8_t **kept_out, struct error *err)
{
    struct bytes b = write_gguf(p);
    *kept_out = exact(b.data, b.n);
    const enum status st = gguf_model_open_bytes(*kept_out, b.n, m_out, err);
    free(b.data);
    return st;
}

static void refused(const struct plan *p, enum status want, const char *named)
{
    struct model *m = NULL;
    struct error err = { 0 };
    uint8_t *kept;
    const enum status st = open_plan(p, &m, &kept, &err);
    if (st != want || !strstr(err.text, named))
        print_message("wanted %s naming %s, got: %s: %s\n", status_text(want), named, status_text(st), err.text);
    assert_int_equal(st, want);
    assert_int_equal(err.status, want);
    assert_non_null(strstr(err.text, named));
    assert_null(m);
    free(kept);
}

static void test_valid(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        enum weight_codec codec;
    } types[] = { { 0, WEIGHT_F32 },   { 1, WEIGHT_F16 },   { 30, WEIGHT_BF16 }, { 8, WEIGHT_Q8_0 },
                  { 2, WEIGHT_Q4_0 },  { 3, WEIGHT_Q4_1 },  { 6, WEIGHT_Q5_0 },  { 7, WEIGHT_Q5_1 },
                  { 12, WEIGHT_Q4_K }, { 13, WEIGHT_Q5_K }, { 14, WEIGHT_Q6_K } };
    enum { N_TYPES = sizeof types / sizeof *types };
    assert_int_equal(N_TYPES, WEIGHT_LOSSLESS_FAST); /* and those after it no GGUF file holds */
    struct digest seen[2 * N_TYPES];
    for (size_t i = 0; i < 2 * N_TYPES; i++) {
        const struct plan p = { .matrix_type = types[i / 2].type,
                                .width = types[i / 2].type >= 12 && types[i / 2].type < 16 ? 256 : 0,
                                .tied = i % 2,
                                .version = i % 3 ? 3 : 2,
                                .alignment = i % 4 ? 0 : 64 };
        struct model *m = NULL;
        struct error err = { 0 };
        struct model_tensor t;
        uint8_t *kept;
        if (open_plan(&p, &m, &kept, &err))
            fail_msg("%s", err.text);
        const struct model_config *c = model_config(m);
        assert_string_equal(c->architecture, "llama");
        assert_int_equal(c->n_layers, 2);
        assert_int_equal(c->head_dim, W_HD);
        assert_int_equal(c->n_vocab, W_VOCAB);
        assert_int_equal(c->positions_max, 128);
        assert_int_equal(c->bos, 0);
        assert_false(c->add_bos);
        assert_int_equal(c->n_eos, 2); /* the key's, and the chat token */
        assert_int_equal(c->eos[0], 7);
        assert_int_equal(c->eos[1], 1);
        assert_true(fabs(c->inv_freq[1] - pow(10000, -2.0 / W_HD)) < 1e-12);
        assert_string_equal(model_vocab(m)->chat_template, "{{ messages }}");
        assert_int_equal(model_vocab(m)->n_merges, 2);
        assert_memory_equal(model_vocab(m)->merges[1].left, "ab", 2);
        assert_int_equal(model_tensor(m, MODEL_OUTPUT, 0, &t), i % 2 ? ST_NOT_FOUND : ST_OK);
        assert_int_equal(model_tensor(m, MODEL_FFN_DOWN, 1, &t), ST_OK);
        assert_int_equal(t.codec, types[i / 2].codec);
        assert_int_equal(t.n_rows, p.width ? p.width : W_D);
        assert_int_equal(t.n_cols, p.width ? p.width : W_FF);
        touch(m);
        seen[i] = model_digest(m);
        for (size_t j = 0; j < i; j++)
            assert_memory_not_equal(&seen[i], &seen[j], sizeof seen[i]);
        model_close(m);
        free(kept);
    }
}

/* Rows in the file's order are a half-split original's, permuted as converters do: new 2i = old i, 2i + 1 = old i + D/2. */
static void test_permutation(void **state)
{
    (void)state;
    const struct plan p = { .matrix_type = 0 };
    struct model *m = NULL;
    struct model_tensor t;
    uint8_t *kept;
    assert_int_equal(open_plan(&p, &m, &kept, NULL), ST_OK);
    for (int kind = MODEL_ATTN_Q; kind <= MODEL_ATTN_V; kind++) {
        assert_int_equal(model_tensor(m, (enum model_tensor_kind)kind, 1, &t), ST_OK);
        const uint8_t *stored = t.data;
        for (uint32_t head = 0; head < t.n_rows / W_HD; head++)
            for (uint32_t old = 0; old < W_HD; old++) {
                uint32_t at = old;
                if (kind != MODEL_ATTN_V)
                    at = old < W_HD / 2 ? 2 * old : 2 * (old - W_HD / 2) + 1;
                assert_ptr_equal(model_tensor_row(&t, head * W_HD + old, NULL),
                                 stored + (head * W_HD + at) * t.row_bytes);
            }
    }
    model_close(m);
    free(kept);
}

static void test_rope_freqs(void **state)
{
    (void)state;
    const struct plan p = { .rope_freqs = 4, .tied = true };
    struct model *m = NULL;
    struct error err = { 0 };
    uint8_t *kept;
    if (open_plan(&p, &m, &kept, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < W_HD / 2; i++)
        assert_true(fabs(model_config(m)->inv_freq[i] - pow(10000, -2.0 * i / W_HD) / 4) < 1e-12);
    model_close(m);
    free(kept);
    refused(&(struct plan){ .rope_freqs = INFINITY }, ST_CORRUPT, "rope_freqs.weight");
}

#define EXTRA(name, ...)                                                                                               \
    static void name(struct keys *k)                                                                                   \
    {                                                                                                                  \
        __VA_ARGS__;                                                                                                   \
    }
EXTRA(rope_longrope, key_text(k, "llama.rope.scaling.type", "longrope"))
EXTRA(rope_factor, key_f32(k, "llama.rope.scaling.factor", 0.5f))
EXTRA(rope_attn, key_f32(k, "llama.rope.scaling.attn_factor", -1))
EXTRA(rope_partial, key_u32(k, "llama.rope.dimension_count", 8))
EXTRA(rope_theta, key_f32(k, "llama.rope.freq_base", NAN))
EXTRA(window, key_u32(k, "llama.attention.sliding_window", 127))
EXTRA(experts, key_u32(k, "llama.expert_count", 8))
EXTRA(softcap, key_f32(k, "llama.attn_logit_softcapping", 30))
EXTRA(logit_scale, key_f32(k, "llama.logit_scale", 0.5f))
EXTRA(bidirectional, key_bool(k, "llama.attention.causal", 0))
EXTRA(value_length, key_u32(k, "llama.attention.value_length", 32))
EXTRA(key_length, key_u32(k, "llama.attention.key_length", 32))
EXTRA(unknown_text, key_text(k, "llama.something", "new"))
EXTRA(twice_key, key_u32(k, "llama.block_count", 2))
EXTRA(bad_bool, key_bool(k, "llama.flag", 2))
EXTRA(bad_type, key(k, "general.odd", 13); put_u32(&k->b, 0))
EXTRA(vocab_size, key_u32(k, "llama.vocab_size", 9))
EXTRA(add_eos, key_bool(k, "tokenizer.ggml.add_eos_token", 1))
EXTRA(eot_outside, key_u32(k, "tokenizer.ggml.eot_token_id", 8))
EXTRA(quant_version, key_u32(k, "general.quantization_version", 3))
EXTRA(adapter, key_text(k, "general.type", "adapter"))
EXTRA(layout, key_text(k, "llama.tensor_data_layout", "spiral"))
EXTRA(huge_array, key_array(k, "general.odd", GGUF_U64, UINT64_MAX / 4))
EXTRA(huge_strings, key_array(k, "general.odd", GGUF_STRING, 1 << 30))
EXTRA(
    nested, for (int i = 0; i < 6; i++) if (i == 0) key_array(k, "general.odd", GGUF_ARRAY, 1); else {
        put_u32(&k->b, GGUF_ARRAY);
        put_u64(&k->b, 1);
    })
EXTRA(alignment_3, key_u32(k, "general.alignment", 48))
EXTRA(alignment_0, key_u32(k, "general.alignment", 0))
EXTRA(wrong_type, key_text(k, "llama.rope.freq_base", "many"))
EXTRA(negative, key(k, "llama.vocab_size", GGUF_I32); put_u32(&k->b, (uint32_t)-8))
EXTRA(harmless, key_u32(k, "llama.attention.sliding_window", 0); key_u32(k, "llama.expert_count", 0);
      key_text(k, "llama.rope.scaling.type", "none"); key_f32(k, "llama.rope.scaling.factor", 8);
      key_bool(k, "llama.attention.causal", 1); key_u32(k, "llama.rope.dimension_count", W_HD);
      key_u32(k, "llama.attention.key_length", W_HD); key_text(k, "general.name", "x");
      key_f32(k, "tokenizer.other", 1); key_bool(k, "tokenizer.ggml.add_bos_token", 1);
      key(k, "llama.vocab_size", GGUF_U64); put_u64(&k->b, W_VOCAB))

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        void (*extra)(struct keys *k);
        enum status st;
        const char *named;
    } keys[] = {
        { rope_longrope, ST_UNSUPPORTED, "llama.rope.scaling.type: longrope" },
        { rope_factor, ST_CORRUPT, "llama.rope.scaling.factor" },
        { rope_attn, ST_CORRUPT, "attention factor" },
        { rope_partial, ST_UNSUPPORTED, "llama.rope.dimension_count" },
        { rope_theta, ST_CORRUPT, "llama.rope.freq_base" },
        { window, ST_UNSUPPORTED, "llama.attention.sliding_window" },
        { experts, ST_UNSUPPORTED, "llama.expert_count" },
        { softcap, ST_UNSUPPORTED, "llama.attn_logit_softcapping" },
        { logit_scale, ST_UNSUPPORTED, "llama.logit_scale" },
        { bidirectional, ST_UNSUPPORTED, "llama.attention.causal" },
        { value_length, ST_UNSUPPORTED, "value_length" },
        { key_length, ST_UNSUPPORTED, "key_length" },
        { unknown_text, ST_UNSUPPORTED, "llama.something" },
        { twice_key, ST_CORRUPT, "llama.block_count is there twice" },
        { bad_bool, ST_CORRUPT, "llama.flag" },
        { bad_type, ST_CORRUPT, "general.odd" },
        { vocab_size, ST_CORRUPT, "llama.vocab_size" },
        { add_eos, ST_UNSUPPORTED, "tokenizer.ggml.add_eos_token" },
        { eot_outside, ST_CORRUPT, "tokenizer.ggml.eot_token_id" },
        { quant_version, ST_UNSUPPORTED, "general.quantization_version" },
        { adapter, ST_UNSUPPORTED, "general.type: adapter" },
        { layout, ST_UNSUPPORTED, "llama.tensor_data_layout" },
        { huge_array, ST_CORRUPT, "general.odd" },
        { huge_strings, ST_CORRUPT, "general.odd" },
        { nested, ST_CORRUPT, "general.odd" },
        { alignment_3, ST_CORRUPT, "general.alignment" },
        { alignment_0, ST_CORRUPT, "general.alignment" },
        { wrong_type, ST_CORRUPT, "llama.rope.freq_base" },
        { negative, ST_CORRUPT, "llama.vocab_size" },
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        refused(&(struct plan){ .extra = keys[i].extra }, keys[i].st, keys[i].named);

    static const char *const needed[] = {
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    };
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        refused(&(struct plan){ .skip_key = needed[i] }, ST_CORRUPT, needed[i]);

    refused(&(struct plan){ .version = 1 }, ST_UNSUPPORTED, "version 1");
    refused(&(struct plan){ .version = 0x03000000 }, ST_UNSUPPORTED, "big-endian");
    refused(&(struct plan){ .matrix_type = 12 }, ST_CORRUPT,
            "token_embd.weight: rows of 32 elements are not whole Q4_K");
    refused(&(struct plan){ .matrix_type = 13, .width = 320 }, ST_CORRUPT, "rows of 320 elements are not whole Q5_K");
    refused(&(struct plan){ .matrix_type = 14, .width = 240 }, ST_CORRUPT, "rows of 240 elements are not whole Q6_K");
    refused(&(struct plan){ .matrix_type = 6, .width = 48 }, ST_CORRUPT, "rows of 48 elements are not whole Q5_0");
    refused(&(struct plan){ .matrix_type = 10, .width = 256 }, ST_UNSUPPORTED, "token_embd.weight: type Q2_K");
    refused(&(struct plan){ .matrix_type = 20 }, ST_UNSUPPORTED, "IQ4_NL");
    refused(&(struct plan){ .matrix_type = 24 }, ST_UNSUPPORTED, "type I8");
    refused(&(struct plan){ .matrix_type = 77 }, ST_UNSUPPORTED, "type 77");
    refused(&(struct plan){ .offset_error = 32 }, ST_CORRUPT, "output.weight: offset");
    refused(&(struct plan){ .offset_error = -32 }, ST_CORRUPT, "output.weight: offset");
    refused(&(struct plan){ .extra_tensor = "blk.0.attn_q.bias" }, ST_UNSUPPORTED, "blk.0.attn_q.bias");
    refused(&(struct plan){ .extra_tensor = "rope_factors_long.weight" }, ST_UNSUPPORTED, "rope_factors_long.weight");
    refused(&(struct plan){ .extra_tensor = "blk.2.attn_norm.weight" }, ST_CORRUPT, "llama.block_count is 2");
    refused(&(struct plan){ .extra_tensor = "blk.01.attn_norm.weight" }, ST_UNSUPPORTED, "blk.01");
    refused(&(struct plan){ .extra_tensor = "blk.99999999999999999999.attn_norm.weight" }, ST_UNSUPPORTED, "blk.999");
    refused(&(struct plan){ .extra_tensor = "odd", .twice = true }, ST_CORRUPT, "odd is there twice");
    refused(&(struct plan){ .extra_tensor = "output_norm.weight", .skip_tensor = NULL }, ST_CORRUPT,
            "output_norm.weight is there twice");
    refused(&(struct plan){ .skip_tensor = "blk.1.ffn_up.weight" }, ST_CORRUPT, "ffn_up of layer 1 is missing");
    refused(&(struct plan){ .skip_tensor = "token_embd.weight" }, ST_CORRUPT, "embedding is missing");
    refused(&(struct plan){ .extra_tensor = "a-tensor-name-that-is-far-too-long-for-the-format-to-hold-in-64-bytes" },
            ST_CORRUPT, "bytes");

    struct model *m = NULL;
    struct error err = { 0 };
    uint8_t *kept;
    if (open_plan(&(struct plan){ .extra = harmless }, &m, &kept, &err))
        fail_msg("%s", err.text);
    assert_true(model_config(m)->add_bos);
    model_close(m);
    free(kept);
}

/* Cut at every length: an error each time, up to where only the padding after the last tensor is gone. */
static void test_truncated(void **state)
{
    (void)state;
    const struct plan p = { .matrix_type = 2, .layers = 1 };
    struct bytes b = write_gguf(&p);
    for (size_t n = 0; n < b.n; n++) {
        uint8_t *cut = exact(b.data, n);
        struct model *m = NULL;
        struct error err = { 0 };
        const enum status st = gguf_model_open_bytes(cut, n, &m, &err);
        if (st != ST_CORRUPT || !err.text[0])
            fail_msg("cut to %zu of %zu bytes: %s %s", n, b.n, status_text(st), err.text);
        free(cut);
    }
    free(b.data);
}

/* Every bit before the tensors' bytes, one at a time, and pairs anywhere: a named error, or a model that can be read. */
static void flip(const struct plan *p)
{
    struct bytes b = write_gguf(p);
    struct rng r = { 1, 0 };
    size_t opened = 0, tries = 0;
    const size_t head = b.n * 8 < 24000 ? b.n * 8 : 24000;
    for (size_t i = 0; i < head + 4000; i++, tries++) {
        uint8_t *data = exact(b.data, b.n);
        if (i < head) {
            data[i / 8] ^= (uint8_t)(1 << i % 8);
        } else {
            for (int k = 0; k < 2; k++)
                data[rng_below(&r, (uint32_t)(b.n < 2500 ? b.n : 2500))] ^= (uint8_t)(1 << rng_below(&r, 8));
        }
        struct model *m = NULL;
        struct error err = { 0 };
        const enum status st = gguf_model_open_bytes(data, b.n, &m, &err);
        if (st) {
            assert_true(err.status == st && err.text[0]);
        } else {
            touch(m);
            opened++;
        }
        model_close(st ? NULL : m);
        free(data);
    }
    print_message("%zu of %zu damaged files were models still\n", opened, tries);
    assert_true(opened < tries);
    free(b.data);
}

static void test_flipped(void **state)
{
    (void)state;
    flip(&(struct plan){ .matrix_type = 2, .layers = 1 });
}

/* Blocks of 256: any bytes are weights; a cut anywhere in or before them is refused. */
static void test_long_blocks(void **state)
{
    (void)state;
    for (uint32_t type = 12; type <= 14; type++) {
        const struct plan p = { .matrix_type = type, .width = 256, .layers = 1, .seed = type };
        struct bytes b = write_gguf(&p);
        struct rng r = { type, 0 };
        for (int i = 0; i < 40; i++) {
            const size_t n = rng_below(&r, (uint32_t)b.n);
            uint8_t *data = exact(b.data, n);
            struct model *m = NULL;
            struct error err = { 0 };
            if (gguf_model_open_bytes(data, n, &m, &err) != ST_CORRUPT || !err.text[0])
                fail_msg("type %u cut to %zu of %zu bytes: %s", type, n, b.n, err.text);
            free(data);
        }
        for (size_t i = 0; i < 4000; i++) /* scales and codes, infinite ones too */
            b.data[b.n - 1 - rng_below(&r, 60000)] = (uint8_t)rng_below(&r, 256);
        uint8_t *data = exact(b.data, b.n);
        struct model *m = NULL;
        struct error err = { 0 };
        if (gguf_model_open_bytes(data, b.n, &m, &err))
            fail_msg("%s", err.text);
        touch(m);
        model_close(m);
        free(data);
        free(b.data);
    }
}

static void write_file(const char *path, const struct plan *p)
{
    struct bytes b = write_gguf(p);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(b.data, 1, b.n, f), b.n);
    assert_int_equal(fclose(f), 0);
    free(b.data);
}

static void open_refused(const char *spec, enum status want, const char *named)
{
    struct model *m = NULL;
    struct error err = { 0 };
    const enum status st = model_open(spec, &m, &err);
    if (st != want || !strstr(err.text, named))
        fail_msg("%s: wanted %s naming %s, got %s: %s", spec, status_text(want), named, status_text(st), err.text);
}

static void test_files(void **state)
{
    (void)state;
    char dir[] = "/tmp/longspan-gguf-XXXXXX", one[64], first[80], second[80];
    struct model *m = NULL, *whole = NULL;
    struct error err = { 0 };
    assert_non_null(mkdtemp(dir));
    snprintf(one, sizeof one, "%s/small.gguf", dir);
    snprintf(first, sizeof first, "%s/part-00001-of-00002.gguf", dir);
    snprintf(second, sizeof second, "%s/part-00002-of-00002.gguf", dir);
    open_refused(dir, ST_NOT_FOUND, "neither a GGUF file");
    open_refused(one, ST_NOT_FOUND, "no such file");
    write_file(one, &(struct plan){ 0 });
    if (model_open(dir, &whole, &err))
        fail_msg("%s", err.text);
    assert_string_equal(model_config(whole)->name, "small");
    touch(whole);
    model_close(whole);
    open_refused("", ST_NOT_FOUND, "");

    write_file(first, &(struct plan){ .split_first = true });
    unlink(one);
    open_refused(dir, ST_NOT_FOUND, "part-00002-of-00002.gguf");
    open_refused(first, ST_NOT_FOUND, "part-00002-of-00002.gguf");
    write_file(second, &(struct plan){ .split_second = true });
    write_file(one, &(struct plan){ 0 });
    open_refused(dir, ST_INVALID, "3 GGUF files");
    unlink(one);
    if (model_open(dir, &m, &err))
        fail_msg("%s", err.text);
    assert_string_equal(model_config(m)->name, "part");
    assert_int_equal(model_config(m)->n_layers, 2);
    touch(m);
    model_close(m);
    open_refused(second, ST_INVALID, "name the first file");
    write_file(second, &(struct plan){ .split_first = true });
    open_refused(dir, ST_CORRUPT, "split.no");
    write_file(second, &(struct plan){ .split_second = true, .skip_tensor = "blk.1.attn_q.weight" });
    open_refused(dir, ST_CORRUPT, "split.tensors.count");
    write_file(second, &(struct plan){ 0 });
    open_refused(dir, ST_CORRUPT, "split.count");
    unlink(first);
    unlink(second);
    FILE *f = fopen(one, "wb");
    assert_non_null(f);
    fclose(f);
    open_refused(one, ST_CORRUPT, "empty");
    unlink(one);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),       cmocka_unit_test(test_permutation), cmocka_unit_test(test_rope_freqs),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_truncated),   cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_long_blocks), cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
