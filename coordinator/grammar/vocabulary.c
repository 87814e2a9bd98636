#include "coordinator/grammar/vocabulary.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int by_bytes(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    const int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (order)
        return order;
    if (x->n != y->n)
        return x->n < y->n ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static uint32_t shared_bytes(const struct word *x, const struct word *y)
{
    uint32_t n = 0;
    while (n < x->n && n < y->n && x->bytes[n] == y->bytes[n])
        n++;
    return n;
}

/* Characters, if all are plain and there are not too many; else 0. */
static uint32_t plain_chars(const struct word *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n; n++) {
        const uint8_t *c = w->bytes + i;
        const uint32_t left = w->n - i;
        if (*c < 0x80) {
            if (*c < ' ' || *c == '"' || *c == '\\' || *c == 0x7F)
                return 0;
            i++;
            continue;
        }
        const uint32_t bytes = *c < 0xE0 ? 2 : *c < 0xF0 ? 3 : 4;
        if (*c < 0xC2 || *c > 0xF4 || left < bytes || (c[1] & 0xC0) != 0x80 || (bytes > 2 && (c[2] & 0xC0) != 0x80) ||
            (bytes > 3 && (c[3] & 0xC0) != 0x80))
            return 0;
        if ((*c == 0xE0 && c[1] < 0xA0) || (*c == 0xED && c[1] > 0x9F) || (*c == 0xF0 && c[1] < 0x90) ||
            (*c == 0xF4 && c[1] > 0x8F))
            return 0;
        i += bytes;
    }
    return n > VOCABULARY_PLAIN_MAX ? 0 : n;
}

static bool level_make(const struct vocabulary *v, const uint8_t *chars, struct word_level *level)
{
    const struct word *before = NULL;
    level->set = calloc(vocabulary_set_bytes(v) + 1, 1);
    level->rest = malloc((v->n_words + 1) * sizeof *level->rest);
    if (!level->set || !level->rest)
        return false;
    for (uint32_t i = 0; i < v->n_words; i++) {
        const struct word *w = &v->words[i];
        if (chars[i] && chars[i] <= level->plain) {
            level->set[w->token / 8] |= (uint8_t)(1u << (w->token % 8));
            level->n_set++;
            continue;
        }
        level->rest[level->n_rest++] = (struct word_rest){ i, before ? shared_bytes(before, w) : 0 };
        before = w;
    }
    return true;
}

static bool levels_make(struct vocabulary *v)
{
    uint8_t *chars = malloc(v->n_words + 1);
    bool ok = chars;
    for (uint32_t i = 0; ok && i < v->n_words; i++)
        chars[i] = (uint8_t)plain_chars(&v->words[i]);
    for (uint32_t i = 0; ok && i < VOCABULARY_LEVELS; i++) {
        v->levels[i].plain = VOCABULARY_PLAIN_MAX >> (VOCABULARY_LEVELS - 1 - i);
        ok = level_make(v, chars, &v->levels[i]);
    }
    free(chars);
    return ok;
}

const struct word_level *vocabulary_level(const struct vocabulary *v, uint32_t run)
{
    const struct word_level *level = NULL;
    for (uint32_t i = 0; i < VOCABULARY_LEVELS && v->levels[i].plain <= run; i++)
        level = &v->levels[i];
    return level;
}

struct vocabulary *vocabulary_new(uint32_t n_tokens, const char *(*bytes_of)(void *ctx, uint32_t token, size_t *n_out),
                                  void *ctx)
{
    struct vocabulary *v = calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->n_tokens = n_tokens;
    v->words = malloc((n_tokens + 1) * sizeof *v->words);
    if (!v->words) {
        vocabulary_free(v);
        return NULL;
    }
    for (uint32_t i = 0; i < n_tokens; i++) {
        size_t n = 0;
        const char *bytes = bytes_of(ctx, i, &n);
        if (!n || n > UINT16_MAX)
            continue;
        v->words[v->n_words++] = (struct word){ .bytes = (const uint8_t *)bytes, .n = (uint32_t)n, .token = i };
        v->longest = n > v->longest ? (uint32_t)n : v->longest;
    }
    qsort(v->words, v->n_words, sizeof *v->words, by_bytes);
    for (uint32_t i = 1; i < v->n_words; i++)
        v->words[i].shared = shared_bytes(&v->words[i - 1], &v->words[i]);
    if (levels_make(v))
        return v;
    vocabulary_free(v);
    return NULL;
}

void vocabulary_free(struct vocabulary *v)
{
    if (!v)
        return;
    for (uint32_t i = 0; i < VOCABULARY_LEVELS; i++) {
        free(v->levels[i].set);
        free(v->levels[i].rest);
    }
    free(v->words);
    free(v);
}

uint32_t vocabulary_set_bytes(const struct vocabulary *v)
{
    return (v->n_tokens + 7) / 8;
}
