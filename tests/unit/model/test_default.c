/* The default model, where it has been brought (make model); exit status 77, skipped, where not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include "common/clock.h"
#include "common/file.h"
#include "model/model.h"

static const char directory[] = LONGSPAN_SOURCE_DIR "/models/smollm2-135m-instruct";
static struct model *m;

static void test_config(void **state)
{
    (void)state;
    const struct model_config *c = model_config(m);
    assert_string_equal(c->architecture, "llama");
    assert_string_equal(c->name, "SmolLM2-135M-Instruct.Q4_1");
    assert_int_equal(c->n_layers, 30);
    assert_int_equal(c->d_model, 576);
    assert_int_equal(c->n_heads, 9);
    assert_int_equal(c->n_kv_heads, 3);
    assert_int_equal(c->head_dim, 64);
    assert_int_equal(c->d_ff, 1536);
    assert_int_equal(c->n_vocab, 49152);
    assert_int_equal(c->positions_max, 8192);
    assert_true(c->tied_output);
    assert_true(c->rms_eps == 1e-5f);
    assert_int_equal(c->bos, 1);
    assert_false(c->add_bos);
    assert_int_equal(c->n_eos, 2); /* <|im_end|> and, ending a chat too, <|endoftext|> */
    assert_int_equal(c->eos[0], 2);
    assert_int_equal(c->eos[1], 0);
    assert_true(fabs(c->inv_freq[1] - pow(100000, -2.0 / 64)) < 1e-12);
}

static void test_vocab(void **state)
{
    (void)state;
    const struct model_vocab *v = model_vocab(m);
    assert_int_equal(v->kind, MODEL_VOCAB_BPE);
    assert_int_equal(v->n_tokens, 49152);
    assert_int_equal(v->n_merges, 48900);
    assert_string_equal(v->pre, "smollm");
    assert_false(v->ignore_merges);
    assert_non_null(strstr(v->chat_template, "You are a helpful AI assistant named SmolLM"));
    assert_int_equal(v->tokens[1].bytes, 12);
    assert_memory_equal(v->tokens[1].text, "<|im_start|>", 12);
    assert_int_equal(v->tokens[1].type, MODEL_TOKEN_CONTROL);
    assert_memory_equal(v->tokens[17].text, "!", 1);
    assert_int_equal(v->tokens[17].type, MODEL_TOKEN_NORMAL);
    assert_int_equal(v->merges[0].left_bytes, 2);
    assert_memory_equal(v->merges[0].left, "\xC4\xA0", 2);
    assert_memory_equal(v->merges[0].right, "t", 1);
}

static void test_tensors(void **state)
{
    (void)state;
    struct model_tensor t;
    assert_int_equal(model_tensor(m, MODEL_OUTPUT, 0, &t), ST_NOT_FOUND);
    assert_int_equal(model_tensor(m, MODEL_ATTN_Q, 30, &t), ST_NOT_FOUND);
    assert_int_equal(model_tensor(m, MODEL_EMBEDDING, 0, &t), ST_OK);
    assert_int_equal(t.codec, WEIGHT_Q8_0);
    assert_int_equal(t.n_rows, 49152);
    assert_int_equal(t.n_cols, 576);
    assert_int_equal(model_tensor(m, MODEL_ATTN_K, 29, &t), ST_OK);
    assert_int_equal(t.codec, WEIGHT_Q4_1);
    assert_int_equal(t.interleaved_dim, 64);
    /* half-split row 1 of head 1 is stored in place 2 of that head; row 33 in place 3 */
    const uint8_t *data = t.data;
    assert_ptr_equal(model_tensor_row(&t, 64 + 1, NULL), data + 66 * t.row_bytes);
    assert_ptr_equal(model_tensor_row(&t, 64 + 33, NULL), data + 67 * t.row_bytes);
    assert_int_equal(model_tensor(m, MODEL_FFN_NORM, 3, &t), ST_OK);
    float norm[576];
    weight_row_f32(t.codec, model_tensor_row(&t, 0, NULL), 576, norm);
    for (int i = 0; i < 576; i++)
        assert_true(isfinite(norm[i]) && fabsf(norm[i]) < 100);
    assert_int_equal(model_weight_bytes(m), 98362432 - 1785664 - (98362432 - 1785664 - (96574464 + 2304)));
}

static long resident_kb(void)
{
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &pages, &resident), 2);
    fclose(f);
    return resident * 4;
}

static void test_drop_pages(void **state)
{
    (void)state;
    struct model_tensor t;
    uint8_t first;
    long sum = 0;
    assert_int_equal(model_tensor(m, MODEL_EMBEDDING, 0, &t), ST_OK);
    first = *(const uint8_t *)model_tensor_row(&t, 77, NULL);
    for (uint32_t r = 0; r < t.n_rows; r++)
        sum += *(const uint8_t *)model_tensor_row(&t, r, NULL);
    const long before = resident_kb();
    model_drop_pages(m);
    const long after = resident_kb();
    assert_true(sum > 0);
    if (before - after < 20000) /* 30 MB were read */
        fail_msg("resident %ld KB before, %ld KB after", before, after);
    assert_int_equal(first, *(const uint8_t *)model_tensor_row(&t, 77, NULL));
}

static void test_digest_again(void **state)
{
    (void)state;
    struct model *again = NULL;
    struct error err = { 0 };
    const int64_t start = clock_ms();
    assert_int_equal(model_open(directory, &again, &err), ST_OK);
    print_message("opened in %lld ms\n", (long long)(clock_ms() - start));
    const struct digest a = model_digest(m), b = model_digest(again);
    assert_memory_equal(&a, &b, sizeof a);
    model_close(again);
}

int main(void)
{
    struct error err = { 0 };
    if (!file_is_dir(directory))
        return 77;
    if (model_open(directory, &m, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_config), cmocka_unit_test(test_vocab),
                                        cmocka_unit_test(test_tensors), cmocka_unit_test(test_drop_pages),
                                        cmocka_unit_test(test_digest_again) };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    model_close(m);
    return failed;
}
