#include "coordinator/grammar/vocabulary.h"

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
    return v;
}

void vocabulary_free(struct vocabulary *v)
{
    if (!v)
        return;
    free(v->words);
    free(v);
}

uint32_t vocabulary_set_bytes(const struct vocabulary *v)
{
    return (v->n_tokens + 7) / 8;
}
