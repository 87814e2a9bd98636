#include "coordinator/tokenizer/split_match.h"

#include <stdbool.h>

#include "coordinator/tokenizer/unicode.h"

/* Classes as patterns see them: a DIGIT is neither letter nor number nor space. */
static inline enum text_class pattern_class(const uint8_t *p, const uint8_t *end, uint32_t *bytes_out)
{
    if (*p < 0x80) {
        *bytes_out = 1;
        return (enum text_class)text_class_ascii[*p];
    }
    uint32_t point;
    *bytes_out = utf8_next_slow(p, end, &point);
    const enum text_class class = text_class_slow(point);
    return class == TEXT_DIGIT ? TEXT_OTHER : class;
}

static const uint8_t *run_of(enum text_class class, const uint8_t *p, const uint8_t *end)
{
    uint32_t bytes;
    while (p < end && pattern_class(p, end, &bytes) == class)
        p += bytes;
    return p;
}

/*
 * \s+(?!\S)|\s+ at a space: the whole run at the end of the piece; else all but its last character, which may lead the next word; a single
 * one stays alone. last: the last character of the run p..run_end.
 */
static const uint8_t *spaces_end(const uint8_t *p, const uint8_t *last, const uint8_t *run_end, const uint8_t *end)
{
    return run_end == end || last == p ? run_end : last;
}

/* The end of the contraction that begins with the apostrophe at p, or NULL. */
static const uint8_t *contraction_end(const uint8_t *p, const uint8_t *end, bool any_case)
{
    const size_t left = (size_t)(end - p);
    const uint8_t fold = any_case ? 0x20 : 0;
    if (left < 2)
        return NULL;
    const uint8_t a = (uint8_t)(p[1] | (p[1] >= 'A' && p[1] <= 'Z' ? fold : 0));
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return p + 2;
    if (left < 3)
        return NULL;
    if (any_case && p[1] == 0xC5 && p[2] == 0xBF) /* U+017F, the long s, is an s in another case */
        return p + 3;
    const uint8_t b = (uint8_t)(p[2] | (p[2] >= 'A' && p[2] <= 'Z' ? fold : 0));
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l'))
        return p + 3;
    return NULL;
}

const uint8_t *split_match_gpt2(const uint8_t *p, const uint8_t *end)
{
    uint32_t bytes;
    enum text_class class = pattern_class(p, end, &bytes);
    if (*p == '\'') {
        const uint8_t *e = contraction_end(p, end, false);
        if (e)
            return e;
    }
    if (class != TEXT_SPACE)
        return run_of(class, p + bytes, end);
    if (*p == ' ' && p + 1 < end) {
        class = pattern_class(p + 1, end, &bytes);
        if (class != TEXT_SPACE)
            return run_of(class, p + 1 + bytes, end);
    }
    const uint8_t *at = p, *last = p;
    while (at < end && pattern_class(at, end, &bytes) == TEXT_SPACE) {
        last = at;
        at += bytes;
    }
    return spaces_end(p, last, at, end);
}

static bool is_line_end(uint8_t c)
{
    return c == '\r' || c == '\n';
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ */
static const uint8_t *llama3_spaces(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *at = p, *last = p, *line_end = NULL;
    uint32_t bytes;
    while (at < end && pattern_class(at, end, &bytes) == TEXT_SPACE) {
        if (is_line_end(*at))
            line_end = at + 1;
        last = at;
        at += bytes;
    }
    return line_end ? line_end : spaces_end(p, last, at, end);
}

const uint8_t *split_match_llama3(const uint8_t *p, const uint8_t *end, uint32_t digits_max)
{
    uint32_t bytes, next_bytes;
    const enum text_class class = pattern_class(p, end, &bytes);
    if (class == TEXT_LETTER)
        return run_of(TEXT_LETTER, p + bytes, end);
    if (*p == '\'') {
        const uint8_t *e = contraction_end(p, end, true);
        if (e)
            return e;
    }
    if (class == TEXT_NUMBER) {
        for (uint32_t n = 0; n < digits_max && p < end && pattern_class(p, end, &bytes) == TEXT_NUMBER; n++)
            p += bytes;
        return p;
    }
    const uint8_t *next = p + bytes;
    const enum text_class next_class = next < end ? pattern_class(next, end, &next_bytes) : TEXT_SPACE;
    if (next_class == TEXT_LETTER && !is_line_end(*p))
        return run_of(TEXT_LETTER, next + next_bytes, end);
    if (class == TEXT_OTHER || (*p == ' ' && next_class == TEXT_OTHER)) {
        p = run_of(TEXT_OTHER, next, end);
        while (p < end && is_line_end(*p))
            p++;
        return p;
    }
    return llama3_spaces(p, end);
}

const uint8_t *split_match_digits(const uint8_t *p, const uint8_t *end, int individual)
{
    const uint8_t *at = p;
    while (at < end) {
        uint32_t point;
        const uint32_t bytes = utf8_next(at, end, &point);
        const enum text_class class = text_class_of(point);
        const bool number = class == TEXT_NUMBER || class == TEXT_DIGIT;
        if (number && at == p) {
            p = at += bytes;
            if (individual)
                return p;
            while (at < end) {
                const uint32_t more = utf8_next(at, end, &point);
                const enum text_class c = text_class_of(point);
                if (c != TEXT_NUMBER && c != TEXT_DIGIT)
                    break;
                at += more;
            }
            return at;
        }
        if (number)
            return at;
        at += bytes;
    }
    return at;
}
