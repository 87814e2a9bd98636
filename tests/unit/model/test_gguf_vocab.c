/* SentencePiece's vocabularies in GGUF files: what is read, and what is refused by which name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "model/gguf_model.h"
#include "tests/unit/model/gguf_writer.h"

static void scores(struct keys *k, uint64_t n)
{
    key_text(k, "tokenizer.ggml.model", "llama");
    key_array(k, "tokenizer.ggml.scores", GGUF_F32, n);
    for (uint64_t i = 0; i < n; i++) {
        const float score = -(float)i;
        put(&k->b, &score, sizeof score);
    }
}

static void plain(struct keys *k)
{
    scores(k, W_VOCAB);
}

static void no_prefix(struct keys *k)
{
    scores(k, W_VOCAB);
    key_bool(k, "tokenizer.ggml.add_space_prefix", 0);
    key_bool(k, "tokenizer.ggml.add_bos_token", 0);
}

static void too_few(struct keys *k)
{
    scores(k, W_VOCAB - 1);
}

static void no_scores(struct keys *k)
{
    key_text(k, "tokenizer.ggml.model", "llama");
}

static void squeezed(struct keys *k)
{
    scores(k, W_VOCAB);
    key_bool(k, "tokenizer.ggml.remove_extra_whitespaces", 1);
}

static void other_kind(struct keys *k)
{
    key_text(k, "tokenizer.ggml.model", "t5");
}

static enum status open_with(void (*extra)(struct keys *k), struct model **m_out, uint8_t **kept_out, struct error *err)
{
    const struct plan p = { .skip_key = "tokenizer.ggml.model", .extra = extra };
    struct bytes b = write_gguf(&p);
    uint8_t *copy = malloc(b.n); /* of exactly its size, so that the sanitizer sees one byte too many */
    assert_non_null(copy);
    memcpy(copy, b.data, b.n);
    const enum status st = gguf_model_open_bytes(copy, b.n, m_out, err);
    free(b.data);
    *kept_out = copy;
    return st;
}

static void scores_are_read(void **state)
{
    (void)state;
    for (int prefix = 0; prefix < 2; prefix++) {
        struct model *m;
        struct error err = { 0 };
        uint8_t *kept;
        if (open_with(prefix ? plain : no_prefix, &m, &kept, &err))
            fail_msg("%s", err.text);
        const struct model_vocab *v = model_vocab(m);
        assert_int_equal(v->kind, MODEL_VOCAB_SENTENCEPIECE);
        assert_int_equal(v->space_prefix, prefix);
        assert_int_equal(model_config(m)->add_bos, prefix); /* the kind's default: with bos */
        assert_non_null(v->scores);
        for (uint32_t i = 0; i < v->n_tokens; i++)
            assert_true(v->scores[i] == -(float)i);
        assert_int_equal(v->n_merges, 0);
        assert_string_equal(v->eos_text, "abc");
        model_close(m);
        free(kept);
    }
}

static void digests_differ_by_the_prefix(void **state)
{
    (void)state;
    struct digest d[2];
    for (int i = 0; i < 2; i++) {
        struct model *m;
        uint8_t *kept;
        assert_int_equal(open_with(i ? plain : no_prefix, &m, &kept, NULL), ST_OK);
        d[i] = model_digest(m);
        model_close(m);
        free(kept);
    }
    assert_memory_not_equal(d[0].byte, d[1].byte, sizeof d[0].byte);
}

static void others_are_refused(void **state)
{
    (void)state;
    static const struct {
        void (*extra)(struct keys *k);
        enum status st;
        const char *named;
    } cases[] = {
        { too_few, ST_CORRUPT, "tokenizer.ggml.scores has 7 elements" },
        { no_scores, ST_CORRUPT, "tokenizer.ggml.scores" },
        { squeezed, ST_UNSUPPORTED, "tokenizer.ggml.remove_extra_whitespaces" },
        { other_kind, ST_UNSUPPORTED, "tokenizer.ggml.model: t5" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model *m = NULL;
        struct error err = { 0 };
        uint8_t *kept;
        const enum status st = open_with(cases[i].extra, &m, &kept, &err);
        if (st != cases[i].st || !strstr(err.text, cases[i].named))
            fail_msg("%zu: %s: %s", i, status_text(st), err.text);
        free(kept);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_read),
        cmocka_unit_test(digests_differ_by_the_prefix),
        cmocka_unit_test(others_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
