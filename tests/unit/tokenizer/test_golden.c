/*
 * The default model's vocabulary against digests that the `tokenizers` package made (tests/golden/tokenizer/make_digests.py): the generated
 * corpus, the hard cases, and the licenses of this machine that are the ones that were compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"
#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/golden/tokenizer/corpus.h"

#define GOLDEN LONGSPAN_SOURCE_DIR "/tests/golden/tokenizer/"
#define MODEL  LONGSPAN_SOURCE_DIR "/models/smollm2-135m-instruct"

/* The pattern of the rule "regex": no rule of ours knows it, PCRE2 runs it. */
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define O200K                                                                                                          \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" CONTRACTIONS           \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" CONTRACTIONS          \
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

struct text {
    char *bytes;
    size_t n;
};

struct texts {
    struct text *list;
    size_t n;
};

static struct model *model;
static struct texts corpus, hard;
static char *corpus_bytes;

/* ---- texts ---- */

static void add_text(struct texts *t, const char *bytes, size_t n)
{
    t->list = realloc(t->list, (t->n + 1) * sizeof *t->list);
    assert_non_null(t->list);
    struct text text = { malloc(n + 1), n };
    assert_non_null(text.bytes);
    memcpy(text.bytes, bytes, n);
    t->list[t->n++] = text;
}

static void load_texts(void)
{
    corpus_bytes = malloc(CORPUS_BYTES);
    assert_non_null(corpus_bytes);
    const size_t n = corpus_make(CORPUS_SEED, corpus_bytes, CORPUS_BYTES);
    for (size_t at = 0; at < n;) {
        const size_t end = corpus_chunk_end(corpus_bytes, n, at);
        add_text(&corpus, corpus_bytes + at, end - at);
        at = end;
    }
    char *lines;
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "hard_cases.jsonl", 1 << 20, &lines, &bytes, NULL), ST_OK);
    for (char *line = lines; *line;) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        json_t *v = json_loadb(line, (size_t)(end - line), JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_true(json_is_string(v));
        add_text(&hard, json_string_value(v), json_string_length(v));
        json_decref(v);
        line = end + 1;
    }
    free(lines);
}

static void free_texts(struct texts *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->list[i].bytes);
    free(t->list);
}

/* ---- rules ---- */

/* A tokenizer over the model's words with another pre-tokenizer. *vocab must outlive it; *json is to be freed after it. */
static struct tokenizer *with_rule(const char *rule, struct model_vocab *vocab, char **json)
{
    *vocab = *model_vocab(model);
    *json = NULL;
    vocab->pre = rule;
    vocab->ignore_merges = strcmp(rule, "llama-bpe") == 0;
    if (strcmp(rule, "regex") == 0) {
        json_t *v = json_pack("{s:{s:s},s:{s:s,s:[{s:s,s:{s:s},s:s,s:b},{s:s,s:b,s:b,s:b}]},s:{s:s}}", "model", "type",
                              "BPE", "pre_tokenizer", "type", "Sequence", "pretokenizers", "type", "Split", "pattern",
                              "Regex", O200K, "behavior", "Isolated", "invert", 0, "type", "ByteLevel",
                              "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0, "decoder", "type", "ByteLevel");
        assert_non_null(v);
        *json = json_dumps(v, 0);
        json_decref(v);
        vocab->pre = NULL;
        vocab->tokenizer_json = *json;
        vocab->tokenizer_json_bytes = strlen(*json);
    }
    struct tokenizer *t;
    struct error err = { 0 };
    if (tokenizer_build(vocab, -1, 1, &t, &err))
        fail_msg("%s: %s", rule, err.text);
    return t;
}

/* ---- digests ---- */

static void add_i32(struct hasher *h, const int32_t *ids, size_t n)
{
    hasher_add(h, ids, n * sizeof *ids);
}

static void digest_ids(const struct tokenizer *t, const struct text *texts, size_t n, bool specials, char out[17])
{
    struct hasher *h = hasher_new();
    for (size_t i = 0; i < n; i++) {
        int32_t *ids;
        size_t n_ids;
        assert_int_equal(tokenizer_encode(t, texts[i].bytes, texts[i].n, specials, 0, &ids, &n_ids), ST_OK);
        const int32_t count = (int32_t)n_ids;
        add_i32(h, &count, 1);
        add_i32(h, ids, n_ids);
        free(ids);
    }
    const struct digest d = hasher_end(h);
    char all[33];
    digest_text(&d, all);
    memcpy(out, all, 16);
    out[16] = '\0';
}

struct section {
    char texts[16], rule[16], mode[16];
    size_t group, count;
};

static void report(const struct section *s, const struct texts *texts, size_t group, const char *got, const char *want)
{
    print_error("%s %s %s: group %zu: digest %s, want %s; its texts:\n", s->texts, s->rule, s->mode, group, got, want);
    for (size_t i = group * s->group; i < texts->n && i < (group + 1) * s->group; i++) {
        json_t *v = json_stringn(texts->list[i].bytes, texts->list[i].n < 400 ? texts->list[i].n : 400);
        char *shown = v ? json_dumps(v, JSON_ENCODE_ANY) : NULL;
        print_error("  %zu: %s\n", i, shown ? shown : "(cut inside a character)");
        free(shown);
        json_decref(v);
    }
}

/* Compares a section whose digests are the lines at *line; moves it on. Returns the groups that differ. */
static size_t check_section(const struct section *s, char **line)
{
    const struct texts *texts = strcmp(s->texts, "corpus") == 0 ? &corpus : &hard;
    struct model_vocab vocab;
    char *json;
    struct tokenizer *t = with_rule(s->rule, &vocab, &json);
    size_t n_bad = 0, n_checked = 0;
    for (size_t g = 0; g < s->count; g++) {
        char *want = *line, *end = strchr(want, '\n'), got[17];
        assert_non_null(end);
        *end = '\0';
        *line = end + 1;
        if (strcmp(want, "-") == 0)
            continue;
        const size_t from = g * s->group, n = texts->n - from < s->group ? texts->n - from : s->group;
        assert_true(from < texts->n);
        digest_ids(t, texts->list + from, n, strcmp(s->mode, "specials") == 0, got);
        n_checked++;
        if (strcmp(got, want) != 0 && n_bad++ == 0)
            report(s, texts, g, got, want);
    }
    print_message("%s %s %s: %zu of %zu groups of %zu compared, %zu differ\n", s->texts, s->rule, s->mode, n_checked,
                  s->count, s->group, n_bad);
    tokenizer_free(t);
    free(json);
    return n_bad;
}

static size_t check_file(const char *path, const char *sha256, const char *want)
{
    char *bytes, all[33], got[17];
    size_t n;
    if (file_read(path, 1 << 24, &bytes, &n, NULL))
        return 0;
    const struct digest d = digest_of(bytes, n);
    digest_text(&d, all);
    size_t n_bad = 0;
    if (strncmp(all, sha256, 16) == 0) {
        struct model_vocab vocab;
        char *json;
        struct tokenizer *t = with_rule("smollm", &vocab, &json);
        digest_ids(t, &(struct text){ bytes, n }, 1, false, got);
        n_bad = strcmp(got, want) != 0;
        if (n_bad)
            print_error("%s: digest %s, want %s\n", path, got, want);
        tokenizer_free(t);
    }
    free(bytes);
    return n_bad;
}

static void ids_are_those_of_the_tokenizers_package(void **state)
{
    (void)state;
    char *lines, path[128], sha256[17], want[17];
    size_t bytes, n_bad = 0, n_sections = 0;
    assert_int_equal(file_read(GOLDEN "smollm2.digests", 1 << 20, &lines, &bytes, NULL), ST_OK);
    for (char *line = lines; *line;) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        *end = '\0';
        struct section s;
        char *next = end + 1;
        if (sscanf(line, "section %15s %15s %15s %zu %zu", s.texts, s.rule, s.mode, &s.group, &s.count) == 5) {
            n_bad += check_section(&s, &next);
            n_sections++;
        } else if (sscanf(line, "file %127s %16s %16s", path, sha256, want) == 3) {
            n_bad += check_file(path, sha256, want);
        }
        line = next;
    }
    free(lines);
    assert_int_equal(n_sections, 10);
    assert_int_equal(n_bad, 0);
}

static void decoding_gives_the_text_back(void **state)
{
    (void)state;
    struct tokenizer *t;
    assert_int_equal(tokenizer_new(model, &t, NULL), ST_OK);
    struct token_stream *s = token_stream_new(t);
    for (size_t i = 0; i < corpus.n; i += 7) {
        int32_t *ids;
        size_t n_ids, at = 0, n;
        const struct text *text = &corpus.list[i];
        /* the bytes that SmolLM2 has no token for are dropped, as the package drops them */
        char *want = malloc(text->n + 1);
        size_t n_want = 0;
        for (size_t k = 0; k < text->n; k++) {
            const unsigned char c = (unsigned char)text->bytes[k];
            if (c && strchr("\x04\x06\x13\x14\x16\x1d\xf1\xf2", c))
                continue;
            want[n_want++] = text->bytes[k];
        }
        assert_int_equal(tokenizer_encode(t, text->bytes, text->n, false, 0, &ids, &n_ids), ST_OK);
        for (size_t k = 0; k < n_ids; k++) {
            const char *bytes = tokenizer_token_bytes(t, ids[k], false, &n);
            assert_true(n <= n_want - at);
            assert_memory_equal(bytes, want + at, n);
            at += n;
            token_stream_push(s, ids[k], &n);
        }
        assert_int_equal(at, n_want);
        token_stream_finish(s, &n);
        free(ids);
        free(want);
    }
    token_stream_free(s);
    tokenizer_free(t);
}

static void speed_is_shown(void **state)
{
    (void)state;
    char *bytes;
    size_t n;
    if (file_read("/usr/share/common-licenses/GPL-3", 1 << 20, &bytes, &n, NULL))
        skip();
    struct tokenizer *t;
    int64_t at = clock_ns();
    assert_int_equal(tokenizer_new(model, &t, NULL), ST_OK);
    print_message("built in %.1f ms\n", (double)(clock_ns() - at) / 1e6);
    const struct text texts[] = { { bytes, n }, { corpus_bytes, 5 * 1000 * 100 } };
    static const char *const names[] = { "GPL-3", "corpus" };
    for (int k = 0; k < 2; k++) {
        size_t total = 0, n_ids = 0;
        at = clock_ns();
        while (total < 2 * 1000 * 1000) {
            int32_t *ids;
            assert_int_equal(tokenizer_encode(t, texts[k].bytes, texts[k].n, false, 0, &ids, &n_ids), ST_OK);
            total += texts[k].n;
            free(ids);
        }
        const double s = (double)(clock_ns() - at) / 1e9;
        print_message("%s: %.1f MB/s, %.2f bytes a token\n", names[k], (double)total / s / 1e6,
                      (double)texts[k].n / (double)n_ids);
    }
    free(bytes);
    tokenizer_free(t);
}

int main(void)
{
    if (!file_is_dir(MODEL) && !file_exists(MODEL)) {
        const char *ci = getenv("CI");
        fprintf(stderr, "no model at %s: run make model\n", MODEL);
        return ci && strcmp(ci, "true") == 0 ? 1 : 77;
    }
    struct error err = { 0 };
    if (model_open(MODEL, &model, &err)) {
        fprintf(stderr, "%s: %s\n", MODEL, err.text);
        return 1;
    }
    load_texts();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_tokenizers_package),
        cmocka_unit_test(decoding_gives_the_text_back),
        cmocka_unit_test(speed_is_shown),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free_texts(&corpus);
    free_texts(&hard);
    free(corpus_bytes);
    model_close(model);
    return rc;
}
