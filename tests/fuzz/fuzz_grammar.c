/* fuzz-libs: longspan_grammar */
/*
 * A JSON schema, and after a NUL a text that is pushed through its grammar: what is compiled has masks, a byte is taken if and only if a mask says so, and where
 * no byte may come the text may end.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "coordinator/grammar/grammar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct vocabulary *vocabulary;

static const char *byte_of(void *ctx, uint32_t token, size_t *n_out)
{
    static char all[256];
    (void)ctx;
    all[token] = (char)token;
    *n_out = 1;
    return &all[token];
}

static void follow(struct grammar *g, const uint8_t *text, size_t bytes)
{
    struct matcher *m = matcher_new(g, vocabulary);
    if (!m)
        abort();
    for (size_t i = 0; i < 200; i++) {
        uint8_t mask[32] = { 0 };
        uint32_t n = 0;
        const enum status st = matcher_mask(m, mask, &n);
        if (st == ST_TOO_LARGE)
            break;
        if (st || (!n && !matcher_may_end(m)) || (n && matcher_must_end(m)))
            abort();
        if (!n)
            break;
        uint8_t byte = i < bytes ? text[i] : 0;
        const bool allowed = mask[byte / 8] >> (byte % 8) & 1;
        if ((matcher_push(m, (const char *)&byte, 1) == ST_OK) != allowed)
            abort();
        for (uint32_t at = byte; !allowed; at = (at + 1) % 256) /* the next that is allowed goes on */
            if (mask[at / 8] >> (at % 8) & 1) {
                byte = (uint8_t)at;
                if (matcher_push(m, (const char *)&byte, 1))
                    abort();
                break;
            }
    }
    matcher_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct error err = { 0 };
    struct grammar *g = NULL;
    const uint8_t *end = bytes ? memchr(data, 0, bytes) : NULL;
    const size_t n = end ? (size_t)(end - data) : bytes;
    if (!vocabulary && !(vocabulary = vocabulary_new(256, byte_of, NULL)))
        abort();
    json_t *schema = json_loadb((const char *)data, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    if (!schema)
        return 0;
    const enum status st = grammar_of_schema(schema, "schema", &g, &err);
    if (st ? !*err.text : !g)
        abort();
    if (g)
        follow(g, end ? end + 1 : NULL, end ? bytes - n - 1 : 0);
    grammar_unref(g);
    json_decref(schema);
    return 0;
}
