/* Random models: rows are functions of seed and place, with the spread that keeps activations finite; specs are read strictly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <ctype.h>
#include <math.h>

#include "common/f16.h"
#include "model/bf16.h"
#include "model/model.h"

static struct model *open_spec(const char *spec)
{
    struct model *m = NULL;
    struct error err = { 0 };
    if (model_open(spec, &m, &err))
        fail_msg("%s", err.text);
    return m;
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        uint32_t layers, d, heads, kv, head_dim, ff, vocab, tied;
    } cases[] = {
        { "random:llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 0 },
        { "random:llama-3.1-8b:2", 2, 4096, 32, 8, 128, 14336, 128256, 0 },
        { "random:llama-3.2-1b:3:9", 3, 2048, 32, 8, 64, 8192, 128256, 1 },
        { "random:smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 1 },
        { "random:tiny", 4, 64, 4, 2, 32, 128, 256, 0 },
        { "random:layers=3,d=96,heads=6,kv=3,head_dim=16,ff=64,vocab=300,tied=1", 3, 96, 6, 3, 16, 64, 300, 1 },
        { "random:smollm2-135m,vocab=1000:1", 1, 576, 9, 3, 64, 1536, 1000, 1 },
        { "random:mistral-7b:2", 2, 4096, 32, 8, 128, 14336, 32768, 0 },
        { "random:qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, 0 },
        { "random:qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *m = open_spec(cases[i].spec);
        const struct model_config *c = model_config(m);
        const struct model_vocab *v = model_vocab(m);
        struct model_tensor t;
        assert_string_equal(c->name, cases[i].spec);
        assert_int_equal(c->n_layers, cases[i].layers);
        assert_int_equal(c->d_model, cases[i].d);
        assert_int_equal(c->n_heads, cases[i].heads);
        assert_int_equal(c->n_kv_heads, cases[i].kv);
        assert_int_equal(c->head_dim, cases[i].head_dim);
        assert_int_equal(c->d_ff, cases[i].ff);
        assert_int_equal(c->n_vocab, cases[i].vocab);
        assert_int_equal(c->tied_output, cases[i].tied);
        assert_int_equal(model_tensor(m, MODEL_OUTPUT, 0, &t), cases[i].tied ? ST_NOT_FOUND : ST_OK);
        assert_int_equal(model_tensor(m, MODEL_FFN_DOWN, cases[i].layers, &t), ST_NOT_FOUND);
        assert_int_equal(c->n_eos, 0);
        assert_int_equal(v->kind, MODEL_VOCAB_BYTES);
        assert_int_equal(v->n_tokens, cases[i].vocab);
        assert_int_equal((uint8_t)v->tokens[200].text[0], 200);
        if (cases[i].vocab > 256)
            assert_int_equal(v->tokens[256].bytes, 0);
        model_close(m);
    }
}

static void test_rows(void **state)
{
    (void)state;
    for (int c = 0; c < WEIGHT_CODECS; c++) {
        char spec[96], codec[32];
        const char *const shape = c < WEIGHT_Q4_K ? "d=320" : "d=256,heads=8,ff=256"; /* whole blocks */
        const int d = c < WEIGHT_Q4_K ? 320 : 256;
        snprintf(codec, sizeof codec, "%s", weight_codec_name((enum weight_codec)c));
        for (char *p = codec; *p; p++)
            *p = (char)tolower((unsigned char)*p);
        snprintf(spec, sizeof spec, "random:tiny,%s,codec=%s:2:5", shape, codec);
        struct model *m = open_spec(spec), *again = open_spec(spec);
        struct model_tensor t, u;
        struct digest a = model_digest(m), b = model_digest(again);
        assert_memory_equal(&a, &b, sizeof a);
        assert_int_equal(model_tensor(m, MODEL_FFN_UP, 1, &t), ST_OK);
        assert_int_equal(model_tensor(again, MODEL_FFN_UP, 1, &u), ST_OK);
        assert_null(t.data);
        assert_int_equal(t.codec, c);
        uint8_t *one = aligned_alloc(64, 2048), *two = aligned_alloc(64, 2048);
        float row[320];
        double sum = 0, squares = 0;
        for (uint32_t r = 0; r < t.n_rows; r++) {
            const void *p = model_tensor_row(&t, r, one);
            assert_memory_equal(p, model_tensor_row(&u, r, two), t.row_bytes);
            if (r)
                assert_memory_not_equal(p, model_tensor_row(&u, r - 1, two), t.row_bytes);
            weight_row_f32(t.codec, p, t.n_cols, row);
            for (int i = 0; i < d; i++) {
                assert_true(isfinite(row[i]));
                sum += row[i];
                squares += (double)row[i] * row[i];
            }
        }
        const double n = (double)d * t.n_rows, spread = sqrt(squares / n) * sqrt(d);
        if (fabs(spread - 1) > 0.05 || fabs(sum / n) * sqrt(d) > 0.15)
            fail_msg("%s: spread %g, mean %g", spec, spread, sum / n);
        /* another layer, kind or seed is another matrix */
        assert_int_equal(model_tensor(again, MODEL_FFN_UP, 0, &u), ST_OK);
        assert_memory_not_equal(model_tensor_row(&t, 0, one), model_tensor_row(&u, 0, two), t.row_bytes);
        assert_int_equal(model_tensor(again, MODEL_FFN_GATE, 1, &u), ST_OK);
        assert_memory_not_equal(model_tensor_row(&t, 0, one), model_tensor_row(&u, 0, two), t.row_bytes);
        model_close(again);
        snprintf(spec, sizeof spec, "random:tiny,%s,codec=%s:2:6", shape, codec);
        again = open_spec(spec);
        assert_int_equal(model_tensor(again, MODEL_FFN_UP, 1, &u), ST_OK);
        assert_memory_not_equal(model_tensor_row(&t, 0, one), model_tensor_row(&u, 0, two), t.row_bytes);
        b = model_digest(again);
        assert_memory_not_equal(&a, &b, sizeof a);
        assert_int_equal(model_tensor(m, MODEL_FFN_NORM, 1, &t), ST_OK);
        weight_row_f32(t.codec, model_tensor_row(&t, 0, one), t.n_cols, row);
        for (int i = 0; i < d; i++)
            assert_true(row[i] > 0.85f && row[i] < 1.15f);
        free(one);
        free(two);
        model_close(m);
        model_close(again);
    }
}

/* An odd number of columns: the last piece of a row is short, and nothing is written past it. */
static void test_odd_columns(void **state)
{
    (void)state;
    struct model *m = open_spec("random:tiny,d=131,ff=77,codec=bf16");
    struct model_tensor t;
    assert_int_equal(model_tensor(m, MODEL_FFN_UP, 0, &t), ST_OK);
    assert_int_equal(t.row_bytes, 262);
    uint8_t *exact = malloc(t.row_bytes);
    for (uint32_t r = 0; r < t.n_rows; r++)
        model_tensor_row(&t, r, exact);
    free(exact);
    model_close(m);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        enum status st;
        const char *named;
    } cases[] = {
        { "random:", ST_INVALID, "neither a shape" },
        { "random:huge", ST_INVALID, "huge" },
        { "random:tiny,", ST_INVALID, "neither a shape" },
        { "random:d=64,tiny", ST_INVALID, "tiny" },
        { "random:tiny:0", ST_INVALID, "layers" },
        { "random:tiny:-1", ST_INVALID, "layers" },
        { "random:tiny:99999", ST_INVALID, "layers" },
        { "random:tiny:2:x", ST_INVALID, "seed" },
        { "random:tiny:2:99999999999999999999999", ST_INVALID, "seed" },
        { "random:tiny:2:3:4", ST_INVALID, "too many parts" },
        { "random:tiny,d=", ST_INVALID, "d=" },
        { "random:tiny,d=0", ST_CORRUPT, "embedding length" },
        { "random:tiny,d=9999999", ST_CORRUPT, "embedding length" },
        { "random:tiny,heads=3", ST_CORRUPT, "KV heads" },
        { "random:tiny,head_dim=512", ST_CORRUPT, "head size" },
        { "random:tiny,vocab=100", ST_INVALID, "vocab=100" },
        { "random:tiny,codec=q3_k", ST_INVALID, "q3_k" },
        { "random:tiny,theta=nan", ST_INVALID, "theta" },
        { "random:tiny,qkv_bias=2", ST_INVALID, "qkv_bias=2" },
        { "random:tiny,qk_norm=yes", ST_INVALID, "qk_norm=yes" },
        { "random:tiny,colour=red", ST_INVALID, "colour" },
        { "random:tiny,codec=q4_0,ff=100", ST_CORRUPT, "whole Q4_0 blocks" },
        { "random:tiny,codec=q4_k,d=320", ST_CORRUPT, "whole Q4_K blocks" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *m = NULL;
        struct error err = { 0 };
        const enum status st = model_open(cases[i].spec, &m, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].named))
            fail_msg("%s: %s: %s", cases[i].spec, status_text(st), err.text);
    }
    char *long_spec = malloc(100000);
    memset(long_spec, 'x', 99999);
    memcpy(long_spec, "random:", 7);
    long_spec[99999] = 0;
    struct model *m = NULL;
    assert_int_equal(model_open(long_spec, &m, NULL), ST_INVALID);
    free(long_spec);
}

/* Biases and head norms are there when asked for, and then only. */
static void test_attention_vectors(void **state)
{
    (void)state;
    for (int flags = 0; flags < 4; flags++) {
        char spec[64];
        snprintf(spec, sizeof spec, "random:tiny,qkv_bias=%d,qk_norm=%d", flags & 1, flags >> 1);
        struct model *m = open_spec(spec);
        struct model_tensor t;
        float scratch[128], row[128];
        for (int kind = MODEL_ATTN_Q_BIAS; kind <= MODEL_ATTN_K_NORM; kind++) {
            const bool norm = kind >= MODEL_ATTN_Q_NORM, there = norm ? flags >> 1 : flags & 1;
            assert_int_equal(model_tensor(m, (enum model_tensor_kind)kind, 1, &t), there ? ST_OK : ST_NOT_FOUND);
            if (!there)
                continue;
            assert_int_equal(t.n_rows, 1);
            assert_int_equal(t.n_cols, norm ? 32 : kind == MODEL_ATTN_Q_BIAS ? 128 : 64);
            weight_row_f32(t.codec, model_tensor_row(&t, 0, scratch), t.n_cols, row);
            for (uint32_t i = 0; i < t.n_cols; i++)
                assert_true(norm ? row[i] > 0.85f && row[i] < 1.15f : row[i] > -0.55f && row[i] < 0.55f);
        }
        model_close(m);
    }
}

/* Every half-precision number is its own rounding; between two, the nearer, and the even one of a tie. */
static void test_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7BFF; h++) {
        const float lo = f16_to_f32((uint16_t)h), hi = f16_to_f32((uint16_t)(h + 1)), middle = (lo + hi) / 2;
        assert_int_equal(f16_of(lo), h);
        assert_int_equal(f16_of(-lo), h | 0x8000);
        assert_int_equal(f16_of(middle), h + (h & 1));
        assert_int_equal(f16_of(nextafterf(middle, 0)), h);
        assert_int_equal(f16_of(nextafterf(middle, INFINITY)), h + 1);
    }
    for (uint32_t h = 0; h < 0x7F7F; h++) {
        const float lo = bf16_to_float((uint16_t)h), hi = bf16_to_float((uint16_t)(h + 1)), middle = lo / 2 + hi / 2;
        assert_int_equal(bf16_of(lo), h);
        if (h >= 0x0100)
            assert_int_equal(bf16_of(middle), h + (h & 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),      cmocka_unit_test(test_rows),     cmocka_unit_test(test_attention_vectors),
        cmocka_unit_test(test_odd_columns), cmocka_unit_test(test_refusals), cmocka_unit_test(test_half)
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
