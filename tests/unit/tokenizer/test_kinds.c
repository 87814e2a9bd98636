/*
 * Every kind of tokenizer that model families use, small, against what the `tokenizers` and `sentencepiece` packages make of hard cases, there
 * and back (tests/golden/tokenizer/make_kinds.py).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/unicode.h"
#include "model/hf.h"
#include "model/source.h"

#define GOLDEN LONGSPAN_SOURCE_DIR "/tests/golden/tokenizer/"

static json_t *golden, *cases; /* cases: strings */

static json_t *load(const char *name)
{
    char path[1024];
    json_error_t where;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    json_t *v = json_load_file(path, JSON_ALLOW_NUL, &where);
    if (!v)
        fail_msg("%s: line %d: %s", path, where.line, where.text);
    return v;
}

/* A kind under test: its model, or its vocabulary by hand. */
struct kind {
    struct tokenizer *t;
    struct model *model;
    struct model_vocab vocab;
    char *json;
    json_t *pieces;
};

static void kind_of_file(struct kind *k, const char *name)
{
    char path[128];
    struct error err = { 0 };
    snprintf(path, sizeof path, "kinds/%s.json", name);
    json_t *file = load(path), *model = json_object_get(file, "model"), *shared = load("kinds/characters.json");
    if (!json_object_get(model, "vocab"))
        assert_int_equal(json_object_update(model, shared), 0);
    k->json = json_dumps(file, JSON_COMPACT);
    assert_non_null(k->json);
    k->model = model_new(&model_source_hf);
    assert_non_null(k->model);
    k->model->config.n_vocab = (uint32_t)(json_object_size(json_object_get(model, "vocab")) +
                                          json_array_size(json_object_get(file, "added_tokens")));
    if (hf_tokenizer_parse(k->model, k->json, strlen(k->json), name, &err))
        fail_msg("%s", err.text);
    k->model->vocab.tokenizer_json = k->json;
    k->model->vocab.tokenizer_json_bytes = strlen(k->json);
    if (tokenizer_build(&k->model->vocab, -1, 1, &k->t, &err))
        fail_msg("%s: %s", name, err.text);
    json_decref(file);
    json_decref(shared);
}

/* As a GGUF file holds SentencePiece's: pieces with scores and types, whose numbers are SentencePiece's own. */
static void kind_of_scores(struct kind *k)
{
    struct error err = { 0 };
    k->pieces = load("kinds/scores.json");
    const size_t n = json_array_size(k->pieces);
    struct model_token *tokens = calloc(n, sizeof *tokens);
    float *scores = calloc(n, sizeof *scores);
    assert_true(tokens && scores);
    for (size_t i = 0; i < n; i++) {
        const json_t *piece = json_array_get(k->pieces, i), *text = json_array_get(piece, 0);
        tokens[i] = (struct model_token){ json_string_value(text), (uint32_t)json_string_length(text),
                                          (uint8_t)json_integer_value(json_array_get(piece, 2)) };
        scores[i] = (float)json_number_value(json_array_get(piece, 1));
    }
    k->vocab = (struct model_vocab){ .kind = MODEL_VOCAB_SENTENCEPIECE,
                                     .tokens = tokens,
                                     .n_tokens = (uint32_t)n,
                                     .scores = scores,
                                     .space_prefix = true };
    if (tokenizer_build(&k->vocab, -1, 1, &k->t, &err))
        fail_msg("scores: %s", err.text);
}

static void kind_deinit(struct kind *k)
{
    tokenizer_free(k->t);
    model_close(k->model);
    free((void *)(uintptr_t)k->vocab.tokens);
    free((void *)(uintptr_t)k->vocab.scores);
    free(k->json);
    json_decref(k->pieces);
}

static uint64_t hash_add(uint64_t h, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}

static uint64_t hash_case(const struct kind *k, uint64_t h, const char *text, size_t bytes)
{
    int32_t *ids;
    const int32_t end = -1;
    size_t n, n_part;
    assert_int_equal(tokenizer_encode(k->t, text, bytes, true, 0, &ids, &n), ST_OK);
    h = hash_add(hash_add(h, ids, n * sizeof *ids), &end, sizeof end);
    struct token_stream *s = token_stream_new(k->t);
    assert_non_null(s);
    for (size_t i = 0; i < n; i++) {
        const char *part = token_stream_push(s, ids[i], &n_part);
        assert_true(utf8_valid((const uint8_t *)part, n_part));
        h = hash_add(h, part, n_part);
    }
    const char *rest = token_stream_finish(s, &n_part);
    h = hash_add(h, rest, n_part);
    token_stream_free(s);
    free(ids);
    return h;
}

/* SentencePiece itself was not given what it reads otherwise: names of control tokens, zero bytes. */
static bool left_out(const char *text, size_t bytes)
{
    return strlen(text) != bytes || strstr(text, "<unk>") || strstr(text, "<s>") || strstr(text, "</s>");
}

static int check_kind(const struct kind *k, const json_t *digests, bool scores)
{
    const size_t group = (size_t)json_integer_value(json_object_get(golden, "group")), n = json_array_size(cases);
    int n_wrong = 0;
    assert_int_equal(json_array_size(digests), (n + group - 1) / group);
    for (size_t g = 0; g < json_array_size(digests); g++) {
        uint64_t h = 0xCBF29CE484222325u;
        char shown[24];
        for (size_t i = g * group; i < n && i < (g + 1) * group; i++) {
            const char *text = json_string_value(json_array_get(cases, i));
            const size_t bytes = json_string_length(json_array_get(cases, i));
            const bool out = scores && left_out(text, bytes);
            h = hash_case(k, h, text, out ? 0 : bytes);
        }
        snprintf(shown, sizeof shown, "%016llx", (unsigned long long)h);
        if (strcmp(shown, json_string_value(json_array_get(digests, g))) != 0 && n_wrong++ < 5)
            print_error("group %zu, from \"%.60s\": other ids or other text\n", g,
                        json_string_value(json_array_get(cases, g * group)));
    }
    return n_wrong;
}

static void kinds_are_exact(void **state)
{
    (void)state;
    const json_t *kinds = json_object_get(golden, "kinds");
    int n_wrong = 0;
    assert_true(json_array_size(kinds) >= 6);
    for (size_t i = 0; i < json_array_size(kinds); i++) {
        const json_t *one = json_array_get(kinds, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        const bool scores = strcmp(name, "scores") == 0;
        struct kind k = { 0 };
        if (scores)
            kind_of_scores(&k);
        else
            kind_of_file(&k, name);
        const int wrong = check_kind(&k, json_object_get(one, "digests"), scores);
        if (wrong)
            print_error("%s: %d groups are wrong\n", name, wrong);
        n_wrong += wrong;
        kind_deinit(&k);
    }
    assert_int_equal(n_wrong, 0);
}

/* An answer goes on after its prompt: its first space is said, unless nothing was said before. */
static void a_space_is_dropped_at_the_start_alone(void **state)
{
    (void)state;
    struct kind k = { 0 };
    int32_t *ids;
    size_t n, bytes;
    kind_of_scores(&k);
    struct token_stream *s = token_stream_new(k.t);
    assert_int_equal(tokenizer_encode(k.t, "the", 3, false, 0, &ids, &n), ST_OK);
    const int32_t control = 1; /* <s> */
    assert_true(tokenizer_is_control(k.t, control));
    token_stream_follow(s, &control, 1);
    assert_string_not_equal(token_stream_push(s, ids[0], &bytes), " ");
    token_stream_finish(s, &bytes);
    const char *part = token_stream_push(s, ids[0], &bytes);
    assert_true(bytes == 0 || *part != ' ');
    part = token_stream_push(s, ids[0], &bytes);
    assert_true(*part == ' ');
    token_stream_finish(s, &bytes);
    token_stream_follow(s, ids, n);
    part = token_stream_push(s, ids[0], &bytes);
    assert_true(*part == ' ');
    assert_int_equal(tokenizer_start_dropped(k.t, " a", 2), 1);
    assert_int_equal(tokenizer_start_dropped(k.t, "a ", 2), 0);
    assert_int_equal(tokenizer_start_dropped(k.t, "", 0), 0);
    token_stream_free(s);
    free(ids);
    kind_deinit(&k);
}

static void vocabularies_without_bytes_are_refused(void **state)
{
    (void)state;
    static const struct model_token tokens[] = { { "a", 1, MODEL_TOKEN_NORMAL }, { "<0x61>", 6, MODEL_TOKEN_BYTE } };
    static const float scores[] = { 0, -1 };
    const struct model_vocab v = {
        .kind = MODEL_VOCAB_SENTENCEPIECE, .tokens = tokens, .n_tokens = 2, .scores = scores
    };
    struct tokenizer *t;
    struct error err = { 0 };
    assert_int_equal(tokenizer_build(&v, -1, 1, &t, &err), ST_UNSUPPORTED);
    assert_non_null(strstr(err.text, "255 bytes have no token"));
}

/* Lines of JSON. */
static void cases_load(void)
{
    FILE *f = fopen(GOLDEN "hard_cases.jsonl", "r");
    char line[65536];
    assert_non_null(f);
    cases = json_copy(json_object_get(golden, "extra"));
    while (fgets(line, sizeof line, f)) {
        json_t *v = json_loads(line, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(v);
        json_array_append_new(cases, v);
    }
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_are_exact),
        cmocka_unit_test(a_space_is_dropped_at_the_start_alone),
        cmocka_unit_test(vocabularies_without_bytes_are_refused),
    };
    golden = json_load_file(GOLDEN "kinds/kinds.json", JSON_ALLOW_NUL, NULL);
    if (!golden) {
        fprintf(stderr, "no " GOLDEN "kinds/kinds.json\n");
        return 1;
    }
    cases_load();
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    json_decref(cases);
    return rc;
}
