/*
 * Any bytes through every rule, there and back. The first byte chooses the tokenizer and whether control tokens are looked for; some inputs
 * are tokenizer.json or patterns instead.
 */
/* fuzz-libs: longspan_tokenizer */
#define _GNU_SOURCE /* memmem */
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/rules.h"
#include "coordinator/tokenizer/unicode.h"
#include "tests/unit/tokenizer/tiny_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            abort();                                                                                                   \
    } while (0)

enum { QWEN2 = 5, SPACES, SPACES_PREFIX, RULES };
static struct tiny_vocab vocabs[RULES];
static struct tokenizer *tokenizers[RULES];

/* Characters and what joins of them, with scores; every byte has a token. Added tokens only where no space is put before segments. */
static void set_up_spaces(struct tiny_vocab *v, bool prefix)
{
    static const char *const pieces[] = { "\xE2\x96\x81",
                                          "t",
                                          "h",
                                          "e",
                                          "a",
                                          "\xC3\xA9",
                                          "th",
                                          "he",
                                          "the",
                                          "\xE2\x96\x81t",
                                          "\xE2\x96\x81the",
                                          "aa",
                                          "aaa",
                                          "\xE2\x96\x81\xE2\x96\x81" };
    static float scores[TINY_TOKENS_MAX];
    tiny_init(v, NULL, NULL);
    v->v.n_tokens = 0;
    v->v.kind = MODEL_VOCAB_SENTENCEPIECE;
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        tiny_token(v, name, 6, MODEL_TOKEN_BYTE);
    }
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        const int32_t id = tiny_token(v, pieces[i], strlen(pieces[i]), MODEL_TOKEN_NORMAL);
        scores[id] = (float)-(int)(i / 2); /* some are equal */
    }
    if (!prefix) {
        tiny_token(v, "<|im_start|>", 12, MODEL_TOKEN_CONTROL);
        tiny_token(v, "<|", 2, MODEL_TOKEN_USER);
    }
    v->v.scores = scores;
    v->v.space_prefix = prefix;
}

static void set_up(void)
{
    static const char *const names[RULES] = { "smollm", "gpt-2", "llama-bpe", NULL, NULL, "qwen2" };
    static const char json[] = "{\"model\":{},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
                               "\"Sequence\",\"pretokenizers\":["
                               "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[^\\\\r\\\\n\\\\p{L}]?[\\\\p{Lu}\\\\p{M}]*"
                               "[\\\\p{Ll}\\\\p{M}]+|\\\\s+(?!\\\\S)\"},"
                               "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false}]}}";
    for (int i = 0; i < RULES; i++) {
        struct tiny_vocab *v = &vocabs[i];
        if (i == SPACES || i == SPACES_PREFIX) {
            set_up_spaces(v, i == SPACES_PREFIX);
            CHECK(tokenizer_build(&v->v, -1, 1, &tokenizers[i], NULL) == ST_OK);
            continue;
        }
        tiny_init(v, names[i], NULL);
        static const char *const merges[][2] = { { "t", "h" },
                                                 { "th", "e" },
                                                 { "a", "a" },
                                                 { "aa", "aa" },
                                                 { "\xC4\xA0", "\xC4\xA0" },
                                                 { "\xC4\xA0", "t" },
                                                 { "\xC4\xA0t", "he" },
                                                 { "h", "e" },
                                                 { "\xC3\x83", "\xC2\xA9" },
                                                 { "i", "n" },
                                                 { "in", "g" },
                                                 { "'", "s" } };
        for (size_t k = 0; k < sizeof merges / sizeof merges[0]; k++)
            tiny_merge(v, merges[k][0], merges[k][1]);
        tiny_token(v, "<|im_start|>", 12, MODEL_TOKEN_CONTROL);
        tiny_token(v, "<|im_end|>", 10, MODEL_TOKEN_CONTROL);
        tiny_token(v, "<|", 2, MODEL_TOKEN_USER);
        v->v.ignore_merges = i == 2;
        if (i == 3) {
            v->v.tokenizer_json = json;
            v->v.tokenizer_json_bytes = sizeof json - 1;
        }
        if (i == 4)
            v->v.kind = MODEL_VOCAB_BYTES;
        CHECK(tokenizer_build(&v->v, -1, 1, &tokenizers[i], NULL) == ST_OK);
    }
}

/* What comes back is the text: but composed by Qwen's rules, and with a space for each sign of one. */
static bool comes_back(const struct tokenizer *t, const char *text, size_t bytes)
{
    return t != tokenizers[QWEN2] && (!t->vocab->scores || !memmem(text, bytes, "\xE2\x96\x81", 3));
}

static void there_and_back(const struct tokenizer *t, const char *text, size_t bytes, bool specials)
{
    int32_t *ids;
    size_t n_ids, at = 0, n;
    CHECK(tokenizer_encode(t, text, bytes, specials, 0, &ids, &n_ids) == ST_OK);
    const size_t room = 4 * bytes + 8; /* a composition may be longer than its text */
    const bool same = comes_back(t, text, bytes);
    char *back = malloc(room), *streamed = malloc(3 * room);
    size_t n_streamed = 0;
    struct token_stream *s = token_stream_new(t);
    CHECK(back && streamed && s);
    bool controls = false;
    for (size_t i = 0; i < n_ids; i++) {
        const char *part = tokenizer_token_bytes(t, ids[i], true, &n);
        CHECK(n <= room - at);
        memcpy(back + at, part, n);
        at += n;
        controls = controls || tokenizer_is_control(t, ids[i]);
        part = token_stream_push(s, ids[i], &n);
        CHECK(utf8_valid((const uint8_t *)part, n));
        memcpy(streamed + n_streamed, part, n);
        n_streamed += n;
    }
    const size_t prefix = t == tokenizers[SPACES_PREFIX] && bytes > 0;
    CHECK(!same || (at == bytes + prefix && memcmp(back + prefix, text, bytes) == 0));
    const char *part = token_stream_finish(s, &n);
    memcpy(streamed + n_streamed, part, n);
    n_streamed += n;
    CHECK(specials || !controls);
    if (same && !controls && utf8_valid((const uint8_t *)text, bytes))
        CHECK(n_streamed == bytes && memcmp(streamed, text, bytes) == 0);
    token_stream_free(s);
    /* with one id less than it takes, it is refused */
    int32_t *few = NULL;
    if (n_ids > 1)
        CHECK(tokenizer_encode(t, text, bytes, specials, n_ids - 1, &few, &n) == ST_TOO_LARGE && !few);
    free(ids);
    free(back);
    free(streamed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!tokenizers[0])
        set_up();
    if (size == 0)
        return 0;
    const uint8_t what = data[0];
    char *text = malloc(size); /* its own block, so that a read past the end is seen */
    CHECK(text);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (what < 240) {
        char *exact = malloc(size > 1 ? size - 1 : 1);
        CHECK(exact);
        memcpy(exact, data + 1, size - 1);
        there_and_back(tokenizers[what % RULES], exact, size - 1, what & 0x80);
        free(exact);
    } else if (what < 245) {
        struct token_rules rules;
        if (!rules_from_json(text, size - 1, &rules, NULL))
            splitter_free(rules.splitter);
    } else {
        struct splitter *s = splitter_new();
        CHECK(s);
        splitter_add_pattern(s, text, size - 1 < 256 ? size - 1 : 256, what & 1, true,
                             NULL); /* compiled, not run: any time is a pattern's right */
        splitter_free(s);
    }
    free(text);
    return 0;
}
