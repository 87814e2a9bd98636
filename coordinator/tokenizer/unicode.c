#include "coordinator/tokenizer/unicode.h"

#include <string.h>

#define O TEXT_OTHER
#define L TEXT_LETTER
#define N TEXT_NUMBER
#define S TEXT_SPACE
const uint8_t text_class_ascii[128] = {
    O, O, O, O, O, O, O, O, O, S, S, S, S, S, O, O, /* 0x00 */
    O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, /* 0x10 */
    S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, /* 0x20 */
    N, N, N, N, N, N, N, N, N, N, O, O, O, O, O, O, /* 0x30 */
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, /* 0x40 */
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O, /* 0x50 */
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, /* 0x60 */
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O, /* 0x70 */
};
#undef O
#undef L
#undef N
#undef S

struct class_range {
    uint32_t first, last;
    enum text_class class;
};

static const struct class_range class_ranges[] = {
#include "coordinator/tokenizer/unicode_classes.inc"
};

enum text_class text_class_slow(uint32_t point)
{
    if (point < 0x80)
        return (enum text_class)text_class_ascii[point];
    const struct class_range *at = class_ranges;
    size_t n = sizeof class_ranges / sizeof class_ranges[0];
    while (n > 1) {
        const size_t half = n / 2;
        at += at[half].first <= point ? half : 0;
        n -= half;
    }
    return at->first <= point && point <= at->last ? at->class : TEXT_OTHER;
}

/* How a sequence goes on after its first byte (Unicode, table 3-7). n_more is 0 for bytes that start none. */
static uint8_t lead_of(uint8_t byte, uint8_t *low, uint8_t *high)
{
    *low = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    *high = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    if (byte >= 0xC2 && byte <= 0xDF)
        return 1;
    if (byte >= 0xE0 && byte <= 0xEF)
        return 2;
    if (byte >= 0xF0 && byte <= 0xF4)
        return 3;
    return 0;
}

uint32_t utf8_next_slow(const uint8_t *p, const uint8_t *end, uint32_t *point_out)
{
    if (*p < 0x80) {
        *point_out = *p;
        return 1;
    }
    uint8_t low, high;
    const uint8_t n_more = lead_of(*p, &low, &high);
    *point_out = UTF8_BAD;
    if (n_more == 0 || (size_t)(end - p) <= n_more || p[1] < low || p[1] > high)
        return 1;
    uint32_t point = *p & (0x3Fu >> n_more);
    for (uint32_t i = 1; i <= n_more; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return 1;
        point = (point << 6) | (p[i] & 0x3Fu);
    }
    *point_out = point;
    return n_more + 1u;
}

bool utf8_valid(const uint8_t *text, size_t bytes)
{
    const uint8_t *end = text + bytes;
    uint32_t point;
    while (text < end) {
        uint64_t word;
        while ((size_t)(end - text) >= sizeof word) {
            memcpy(&word, text, sizeof word);
            if (word & 0x8080808080808080u)
                break;
            text += sizeof word;
        }
        if (text == end)
            break;
        text += utf8_next(text, end, &point);
        if (point == UTF8_BAD)
            return false;
    }
    return true;
}

uint32_t utf8_put(uint32_t point, uint8_t out[4])
{
    if (point < 0x80) {
        out[0] = (uint8_t)point;
        return 1;
    }
    const uint32_t n_more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    for (uint32_t i = n_more; i > 0; i--) {
        out[i] = (uint8_t)(0x80 | (point & 0x3F));
        point >>= 6;
    }
    out[0] = (uint8_t)((0xFF80u >> n_more) | point);
    return n_more + 1;
}

static const uint8_t replacement[3] = { 0xEF, 0xBF, 0xBD };

uint32_t utf8_stream_finish(struct utf8_stream *s, uint8_t out[UTF8_STREAM_OUT_MAX])
{
    if (s->n_held == 0)
        return 0;
    s->n_held = s->n_more = 0;
    memcpy(out, replacement, sizeof replacement);
    return sizeof replacement;
}

uint32_t utf8_stream_push(struct utf8_stream *s, uint8_t byte, uint8_t out[UTF8_STREAM_OUT_MAX])
{
    uint32_t n = 0;
    if (s->n_more > 0 && byte >= s->low && byte <= s->high) {
        s->held[s->n_held++] = byte;
        s->low = 0x80;
        s->high = 0xBF;
        if (--s->n_more > 0)
            return 0;
        n = s->n_held;
        memcpy(out, s->held, n);
        s->n_held = 0;
        return n;
    }
    n = utf8_stream_finish(s, out);
    if (byte < 0x80) {
        out[n++] = byte;
        return n;
    }
    s->n_more = lead_of(byte, &s->low, &s->high);
    if (s->n_more > 0) {
        s->held[0] = byte;
        s->n_held = 1;
        return n;
    }
    memcpy(out + n, replacement, sizeof replacement);
    return n + (uint32_t)sizeof replacement;
}
