/* Encoding with vocabularies made by hand, and against merging done the slow, obvious way. */
/* ctest-labels: tsan */
/* ctest-serial */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

static struct tokenizer *build(const struct tiny_vocab *v)
{
    struct tokenizer *t;
    struct error err = { 0 };
    if (tokenizer_build(&v->v, -1, 42, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static void check_ids_n(const struct tokenizer *t, const char *text, size_t bytes, bool specials, const char *want)
{
    int32_t *ids;
    size_t n;
    char got[1024] = "";
    assert_int_equal(tokenizer_encode(t, text, bytes, specials, 0, &ids, &n), ST_OK);
    for (size_t i = 0, at = 0; i < n; i++)
        at += (size_t)snprintf(got + at, sizeof got - at, i ? " %d" : "%d", ids[i]);
    free(ids);
    assert_string_equal(got, want);
}

static void check_ids(const struct tokenizer *t, const char *text, bool specials, const char *want)
{
    check_ids_n(t, text, strlen(text), specials, want);
}

static void merges_go_by_rank_then_from_the_left(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_merge(&v, "a", "a");        /* 256 */
    tiny_merge(&v, "b", "c");        /* 257 */
    tiny_merge(&v, "a", "b");        /* 258: loses to bc */
    tiny_merge(&v, "aa", "aa");      /* 259 */
    tiny_merge(&v, "\xC4\xA0", "a"); /* 260: a space and a */
    struct tokenizer *t = build(&v);
    check_ids(t, "", false, "");
    check_ids(t, "aaa", false, "256 97");
    check_ids(t, "aaaaa", false, "259 97");
    check_ids(t, "abc", false, "97 257");
    check_ids(t, "ab", false, "258");
    check_ids(t, "aab", false, "256 98");
    check_ids(t, "b a", false, "98 260");
    check_ids(t, "b  a", false, "98 32 260");
    tokenizer_free(t);
}

static void a_pair_that_is_listed_twice_has_the_later_rank(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_merge(&v, "a", "b"); /* 256 */
    tiny_merge(&v, "b", "c"); /* 257 */
    tiny_merge(&v, "a", "b");
    struct tokenizer *t = build(&v);
    check_ids(t, "abc", false, "97 257");
    tokenizer_free(t);
}

static void bytes_without_a_token_are_dropped(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", "x"); /* bytes from 'y' on have ids one less */
    tiny_merge(&v, "a", "b");    /* 255 */
    struct tokenizer *t = build(&v);
    check_ids(t, "axb", false, "255");
    check_ids(t, "x", false, "");
    check_ids(t, "axy", false, "97 120");
    char many[600];
    memset(many, 'x', sizeof many);
    check_ids_n(t, many, sizeof many, false, "");
    many[0] = 'a';
    many[599] = 'b';
    check_ids_n(t, many, sizeof many, false, "255");
    tokenizer_free(t);
}

static void invalid_utf8_is_encoded_as_its_bytes(void **state)
{
    (void)state;
    static const char *const rules[] = { "gpt-2", "smollm", "llama-bpe" };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        struct tiny_vocab v;
        tiny_init(&v, rules[i], NULL);
        struct tokenizer *t = build(&v);
        check_ids(t, "a\xFFz", false, "97 255 122");
        check_ids(t, "\xE2\x82", false, "226 130");
        check_ids(t, "\xC0\x80\xED\xA0\x80", false, "192 128 237 160 128");
        check_ids_n(t, "a\0b", 3, false, "97 0 98");
        tokenizer_free(t);
    }
}

static void control_tokens_are_seen_only_where_the_text_is_trusted(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_token(&v, "<s>", 3, MODEL_TOKEN_CONTROL);  /* 256 */
    tiny_token(&v, "<s>>", 4, MODEL_TOKEN_CONTROL); /* 257 */
    tiny_token(&v, "[u]", 3, MODEL_TOKEN_USER);     /* 258 */
    tiny_token(&v, "  ", 2, MODEL_TOKEN_USER);      /* 259 */
    struct tokenizer *t = build(&v);
    check_ids(t, "a<s>b", true, "97 256 98");
    check_ids(t, "<s>><s>", true, "257 256");
    check_ids(t, "<<s>>>", true, "60 257 62");
    check_ids(t, "<s", true, "60 115");
    check_ids(t, "a<s>b", false, "97 60 115 62 98");
    check_ids(t, "a[u]b", false, "97 258 98");
    check_ids(t, "a   b", false, "97 259 32 98");
    assert_true(tokenizer_is_control(t, 256));
    assert_false(tokenizer_is_control(t, 258));
    assert_false(tokenizer_is_control(t, 97));
    assert_false(tokenizer_is_control(t, -1));
    assert_false(tokenizer_is_control(t, 1000));
    assert_int_equal(tokenizer_n_tokens(t), 260);
    size_t n;
    assert_memory_equal(tokenizer_token_bytes(t, 256, true, &n), "<s>", 3);
    assert_int_equal(n, 3);
    tokenizer_token_bytes(t, 256, false, &n);
    assert_int_equal(n, 0);
    assert_memory_equal(tokenizer_token_bytes(t, 258, false, &n), "[u]", 3);
    assert_int_equal(n, 3);
    assert_memory_equal(tokenizer_token_bytes(t, 0xE9, false, &n), "\xE9", 1);
    assert_int_equal(n, 1);
    tokenizer_token_bytes(t, 260, false, &n);
    assert_int_equal(n, 0);
    tokenizer_free(t);
}

static void words_never_merge_into_a_control_token(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_token(&v, "<s", 2, MODEL_TOKEN_CONTROL); /* 256 */
    tiny_merge(&v, "<", "s");
    v.v.ignore_merges = true;
    struct tokenizer *t = build(&v);
    check_ids(t, "<s", false, "60 115");
    check_ids(t, "<s", true, "256");
    tokenizer_free(t);
}

static void ignore_merges_takes_a_whole_piece_from_the_vocabulary(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "llama-bpe", NULL);
    tiny_token(&v, "xyz", 3, MODEL_TOKEN_NORMAL); /* 256: no merges lead there */
    struct tokenizer *t = build(&v);
    check_ids(t, "xyz", false, "120 121 122");
    tokenizer_free(t);
    v.v.ignore_merges = true;
    t = build(&v);
    check_ids(t, "xyz", false, "256");
    check_ids(t, "xyza", false, "120 121 122 97");
    tokenizer_free(t);
}

static void the_limit_of_ids_is_kept(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_merge(&v, "a", "a");
    struct tokenizer *t = build(&v);
    int32_t *ids = NULL;
    size_t n = 7;
    assert_int_equal(tokenizer_encode(t, "b b b", 5, false, 4, &ids, &n), ST_TOO_LARGE);
    assert_null(ids);
    assert_int_equal(n, 7);
    assert_int_equal(tokenizer_encode(t, "b b b", 5, false, 5, &ids, &n), ST_OK);
    assert_int_equal(n, 5);
    free(ids);
    char many[1000];
    memset(many, 'a', sizeof many);
    assert_int_equal(tokenizer_encode(t, many, sizeof many, false, 499, &ids, &n), ST_TOO_LARGE);
    assert_int_equal(tokenizer_encode(t, many, sizeof many, false, 500, &ids, &n), ST_OK);
    assert_int_equal(n, 500);
    free(ids);
    tokenizer_free(t);
}

/* ---- against the slow way ---- */

static size_t merge_slowly(const struct tiny_vocab *v, const char *text, size_t bytes, char parts[][128])
{
    size_t n = bytes;
    for (size_t i = 0; i < n; i++) {
        parts[i][0] = text[i];
        parts[i][1] = '\0';
    }
    for (uint32_t rank = 0; rank < v->v.n_merges; rank++) {
        const struct model_merge *m = &v->merges[rank];
        for (size_t i = 0; i + 1 < n; i++) {
            if (strlen(parts[i]) != m->left_bytes || strlen(parts[i + 1]) != m->right_bytes ||
                memcmp(parts[i], m->left, m->left_bytes) != 0 || memcmp(parts[i + 1], m->right, m->right_bytes) != 0)
                continue;
            strcat(parts[i], parts[i + 1]);
            memmove(parts[i + 1], parts[i + 2], (n - i - 2) * sizeof parts[0]);
            n--;
            rank = UINT32_MAX; /* start again from the first rank */
            break;
        }
    }
    return n;
}

static void random_merges(struct tiny_vocab *v, struct rng *r)
{
    tiny_init(v, "gpt-2", NULL);
    for (uint32_t i = 4 + rng_below(r, 40); i > 0; i--) {
        char left[64], right[64];
        for (int side = 0; side < 2; side++) { /* of letters, or of what a merge made */
            char *out = side ? right : left;
            const uint32_t made = v->v.n_tokens - 256;
            if (made > 0 && rng_below(r, 2)) {
                const struct model_token *t = &v->tokens[256 + rng_below(r, made)];
                snprintf(out, 64, "%.*s", t->bytes < 16 ? (int)t->bytes : 1, t->text);
            } else {
                snprintf(out, 64, "%c", 'a' + (char)rng_below(r, 3));
            }
        }
        tiny_merge(v, left, right);
    }
    /* a pair that is listed twice is another test's matter: keep the first only */
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->v.n_merges; i++) {
        bool twice = false;
        for (uint32_t k = 0; k < n; k++)
            twice = twice || (v->merges[k].left_bytes == v->merges[i].left_bytes &&
                              v->merges[k].right_bytes == v->merges[i].right_bytes &&
                              memcmp(v->merges[k].left, v->merges[i].left, v->merges[i].left_bytes) == 0 &&
                              memcmp(v->merges[k].right, v->merges[i].right, v->merges[i].right_bytes) == 0);
        if (!twice)
            v->merges[n++] = v->merges[i];
    }
    v->v.n_merges = n;
}

static void merging_is_right_for_random_merges(void **state)
{
    (void)state;
    struct rng r = { .seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 1 };
    static char parts[260][128];
    for (int round = 0; round < 60; round++) {
        struct tiny_vocab v;
        random_merges(&v, &r);
        struct tokenizer *t = build(&v);
        for (int k = 0; k < 8; k++) {
            char text[256];
            const size_t n =
                1 +
                rng_below(&r, k < 5 ? 40 : 120); /* one piece: letters only; below and above the short way's length */
            for (size_t i = 0; i < n; i++)
                text[i] = (char)('a' + (char)rng_below(&r, 3));
            const size_t n_want = merge_slowly(&v, text, n, parts);
            int32_t *ids;
            size_t n_ids;
            assert_int_equal(tokenizer_encode(t, text, n, false, 0, &ids, &n_ids), ST_OK);
            if (n_ids != n_want)
                fail_msg("round %d: %zu ids, want %zu, of %.*s (SEED=%llu)", round, n_ids, n_want, (int)n, text,
                         (unsigned long long)r.seed);
            for (size_t i = 0; i < n_ids; i++) {
                size_t bytes;
                const char *part = tokenizer_token_bytes(t, ids[i], false, &bytes);
                assert_int_equal(bytes, strlen(parts[i]));
                assert_memory_equal(part, parts[i], bytes);
            }
            free(ids);
        }
        tokenizer_free(t);
    }
}

/* ---- size and threads ---- */

static int64_t time_of(const struct tokenizer *t, const char *text, size_t bytes)
{
    int32_t *ids;
    size_t n;
    const int64_t at = clock_ms();
    assert_int_equal(tokenizer_encode(t, text, bytes, false, 0, &ids, &n), ST_OK);
    free(ids);
    return clock_ms() - at;
}

static void a_million_characters_take_no_quadratic_time(void **state)
{
    (void)state;
    enum { N = 1000 * 1000 };
    static const char *const rules[] = { "smollm", "llama-bpe" };
    static const char *const units[] = { "a", " ", "\n", "ab", "'", "0", "\xFF", "\xE2\x80\x83", " \n", "<" };
    char *text = malloc(N + 8);
    assert_non_null(text);
    for (size_t i = 0; i < 2 * sizeof units / sizeof units[0]; i++) {
        struct tiny_vocab v;
        tiny_init(&v, rules[i % 2], NULL);
        tiny_merge(&v, "a", "a");
        tiny_merge(&v, "aa", "aa");
        tiny_merge(&v, "a", "b");
        tiny_merge(&v, "b", "a");
        tiny_merge(&v, "\xC4\xA0", "\xC4\xA0");
        tiny_token(&v, "<<<<<<<<|", 9, MODEL_TOKEN_USER);
        struct tokenizer *t = build(&v);
        const char *unit = units[i / 2];
        size_t n = 0;
        while (n < N) {
            memcpy(text + n, unit, strlen(unit));
            n += strlen(unit);
        }
        const int64_t ms = time_of(t, text, n);
        if (ms > 6000) /* linearithmic takes 0.2 s at most; quadratic takes minutes */
            fail_msg("%s: a million times \"%s\": %lld ms", rules[i % 2], unit, (long long)ms);
        tokenizer_free(t);
    }
    free(text);
}

struct job {
    const struct tokenizer *t;
    const char *text;
    size_t n, n_ids;
};

static void *encode_job(void *arg)
{
    struct job *j = arg;
    for (int i = 0; i < 20; i++) {
        int32_t *ids;
        if (tokenizer_encode(j->t, j->text, j->n, true, 0, &ids, &j->n_ids))
            return NULL;
        free(ids);
    }
    return j;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "smollm", NULL);
    tiny_merge(&v, "t", "h");
    tiny_merge(&v, "th", "e");
    struct tokenizer *t = build(&v);
    char text[2000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "the 12 other's "[i % 15];
    pthread_t threads[4];
    struct job jobs[4];
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){ .t = t, .text = text, .n = sizeof text };
        assert_int_equal(pthread_create(&threads[i], NULL, encode_job, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *done;
        pthread_join(threads[i], &done);
        assert_non_null(done);
        assert_int_equal(jobs[i].n_ids, jobs[0].n_ids);
    }
    tokenizer_free(t);
}

/* ---- what is refused ---- */

static void refuse(const struct model_vocab *v, enum status want, const char *why)
{
    struct tokenizer *t;
    struct error err = { 0 };
    assert_int_equal(tokenizer_build(v, -1, 1, &t, &err), want);
    if (!strstr(err.text, why))
        fail_msg("\"%s\" does not say \"%s\"", err.text, why);
}

static void what_cannot_be_done_is_refused_by_name(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "deepseek-llm", NULL);
    refuse(&v.v, ST_UNSUPPORTED, "\"deepseek-llm\"");
    v.v.pre = NULL;
    refuse(&v.v, ST_UNSUPPORTED, "no pre-tokenizer");
    tiny_init(&v, "gpt-2", NULL);
    tiny_merge(&v, "a", "b");
    v.v.n_tokens--;
    refuse(&v.v, ST_CORRUPT, "what it makes is not in the vocabulary");
    tiny_init(&v, "gpt-2", "q");
    tiny_merge(&v, "q", "b");
    refuse(&v.v, ST_CORRUPT, "the left is not");
    tiny_init(&v, "gpt-2", "q");
    tiny_merge(&v, "b", "q");
    refuse(&v.v, ST_CORRUPT, "the right is not");
    tiny_init(&v, "gpt-2", NULL);
    char *huge = malloc(BPE_TOKEN_BYTES_MAX + 1);
    memset(huge, 'a', BPE_TOKEN_BYTES_MAX + 1);
    v.tokens[3] = (struct model_token){ .text = huge, .bytes = BPE_TOKEN_BYTES_MAX + 1, .type = MODEL_TOKEN_NORMAL };
    refuse(&v.v, ST_CORRUPT, "token 3 has 65537 bytes");
    free(huge);
    tiny_init(&v, NULL, NULL);
    v.v.kind = MODEL_VOCAB_BYTES;
    v.v.n_tokens = 255;
    refuse(&v.v, ST_CORRUPT, "too few for bytes");
}

static void an_odd_vocabulary_does_no_harm(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, "gpt-2", NULL);
    tiny_token(&v, "", 0, MODEL_TOKEN_NORMAL);
    tiny_token(&v, "", 0, MODEL_TOKEN_CONTROL);
    tiny_token(&v, "a", 1, MODEL_TOKEN_CONTROL); /* 258: as the byte's own, but trusted text only */
    tiny_token(&v, "\xFF\xFE", 2, MODEL_TOKEN_NORMAL);
    tiny_token(&v, "plain words", 11, MODEL_TOKEN_NORMAL);
    tiny_token(&v, "<0x41>", 6, MODEL_TOKEN_BYTE);
    tiny_token(&v, "[PAD]", 5, MODEL_TOKEN_UNUSED);
    tiny_token(&v, "odd", 3, (enum model_token_type)77);
    struct tokenizer *t = build(&v);
    size_t n;
    check_ids(t, "a", false, "97");
    check_ids(t, "a", true, "258");
    assert_memory_equal(tokenizer_token_bytes(t, 260, false, &n), "plain words", 11);
    assert_memory_equal(tokenizer_token_bytes(t, 261, false, &n), "A", 1);
    tokenizer_token_bytes(t, 262, false, &n);
    assert_int_equal(n, 0);
    tokenizer_free(t);
    memset(&v.v, 0, sizeof v.v); /* nothing at all */
    v.v.kind = MODEL_VOCAB_BPE;
    v.v.pre = "gpt-2";
    t = build(&v);
    check_ids(t, "words", true, "");
    tokenizer_free(t);
}

static void bytes_are_themselves(void **state)
{
    (void)state;
    struct tiny_vocab v;
    tiny_init(&v, NULL, NULL);
    v.v.kind = MODEL_VOCAB_BYTES;
    tiny_token(&v, "<eot>", 5, MODEL_TOKEN_CONTROL);
    struct tokenizer *t = build(&v);
    check_ids_n(t, "\0\xFFz<eot>", 8, false, "0 255 122 60 101 111 116 62");
    check_ids_n(t, "\0\xFFz<eot>", 8, true, "0 255 122 256");
    size_t n;
    assert_memory_equal(tokenizer_token_bytes(t, 0xFF, false, &n), "\xFF", 1);
    assert_int_equal(n, 1);
    int32_t *ids;
    assert_int_equal(tokenizer_encode(t, "abc", 3, false, 2, &ids, &n), ST_TOO_LARGE);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_by_rank_then_from_the_left),
        cmocka_unit_test(a_pair_that_is_listed_twice_has_the_later_rank),
        cmocka_unit_test(bytes_without_a_token_are_dropped),
        cmocka_unit_test(invalid_utf8_is_encoded_as_its_bytes),
        cmocka_unit_test(control_tokens_are_seen_only_where_the_text_is_trusted),
        cmocka_unit_test(words_never_merge_into_a_control_token),
        cmocka_unit_test(ignore_merges_takes_a_whole_piece_from_the_vocabulary),
        cmocka_unit_test(the_limit_of_ids_is_kept),
        cmocka_unit_test(merging_is_right_for_random_merges),
        cmocka_unit_test(a_million_characters_take_no_quadratic_time),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(what_cannot_be_done_is_refused_by_name),
        cmocka_unit_test(an_odd_vocabulary_does_no_harm),
        cmocka_unit_test(bytes_are_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
