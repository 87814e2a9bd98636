#include "coordinator/tokenizer/nfc.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "coordinator/tokenizer/unicode.h"

bool nfc_quick(const uint8_t *text, size_t bytes)
{
    uint8_t most = 0;
    for (size_t i = 0; i < bytes; i++)
        most = text[i] > most ? text[i] : most;
    return most < 0xCC; /* the first byte of U+0300 */
}

struct joined {
    uint8_t *text;
    size_t n, cap;
};

static enum status join(struct joined *j, const uint8_t *text, size_t bytes)
{
    if (bytes > j->cap - j->n) {
        const size_t cap = (j->n + bytes) * 2;
        uint8_t *grown = realloc(j->text, cap);
        if (!grown)
            return ST_NO_MEMORY;
        j->text = grown;
        j->cap = cap;
    }
    memcpy(j->text + j->n, text, bytes);
    j->n += bytes;
    return ST_OK;
}

static enum status join_composed(struct joined *j, const uint8_t *text, size_t bytes)
{
    utf8proc_uint8_t *composed;
    if (bytes == 0)
        return ST_OK;
    if (nfc_quick(text, bytes))
        return join(j, text, bytes);
    const utf8proc_ssize_t n =
        utf8proc_map(text, (utf8proc_ssize_t)bytes, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return ST_NO_MEMORY; /* the text is valid: it can be nothing else */
    const enum status st = join(j, composed, (size_t)n);
    free(composed);
    return st;
}

enum status nfc_compose(const uint8_t *text, size_t bytes, uint8_t **text_out, size_t *bytes_out)
{
    struct joined j = { .text = malloc(bytes + 1), .cap = bytes + 1 };
    const uint8_t *p = text, *end = text + bytes, *from = text;
    enum status st = j.text ? ST_OK : ST_NO_MEMORY;
    while (!st && p < end) {
        uint32_t point;
        const uint32_t n = utf8_next(p, end, &point);
        if (point == UTF8_BAD) {
            st = join_composed(&j, from, (size_t)(p - from));
            st = st ? st : join(&j, p, n);
            from = p + n;
        }
        p += n;
    }
    if (!st)
        st = join_composed(&j, from, (size_t)(end - from));
    if (st) {
        free(j.text);
        return st;
    }
    *text_out = j.text;
    *bytes_out = j.n;
    return ST_OK;
}
