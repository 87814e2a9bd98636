#ifndef LONGSPAN_COORDINATOR_TOKENIZER_UNICODE_H
#define LONGSPAN_COORDINATOR_TOKENIZER_UNICODE_H

/*
 * The little of Unicode that pre-tokenizers need: strict UTF-8 and the classes letter, number, space as the `tokenizers` package sees them.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* DIGIT: a number to the Digits step, which follows a newer Unicode, but neither letter nor number nor space to patterns. */
enum text_class { TEXT_OTHER, TEXT_LETTER, TEXT_NUMBER, TEXT_SPACE, TEXT_DIGIT };

/* What utf8_next yields for a byte that starts no valid sequence; of class TEXT_OTHER. */
#define UTF8_BAD 0xFFFFFFFFu

/*
 * The character at p < end: its bytes are returned (1 to 4), its code point goes to *point_out. Overlong forms, surrogates, numbers over
 * U+10FFFF and cut sequences are UTF8_BAD, one byte at a time.
 */
uint32_t utf8_next_slow(const uint8_t *p, const uint8_t *end, uint32_t *point_out);
static inline uint32_t utf8_next(const uint8_t *p, const uint8_t *end, uint32_t *point_out)
{
    if (*p < 0x80) {
        *point_out = *p;
        return 1;
    }
    return utf8_next_slow(p, end, point_out);
}

bool utf8_valid(const uint8_t *text, size_t bytes);
/* Writes the UTF-8 of a code point below U+110000 that is no surrogate; returns its bytes. */
uint32_t utf8_put(uint32_t point, uint8_t out[4]);

extern const uint8_t text_class_ascii[128];
enum text_class text_class_slow(uint32_t point);
static inline enum text_class text_class_of(uint32_t point)
{
    return point < 0x80 ? (enum text_class)text_class_ascii[point] : text_class_slow(point);
}

/*
 * UTF-8 one byte at a time, for text that arrives in pieces. `held` bytes begin a character that may still complete; whatever cannot
 * complete becomes one U+FFFD for each longest prefix of a character (as Unicode recommends, and as Python's errors="replace" does).
 */
struct utf8_stream {
    uint8_t held[4];
    uint8_t n_held, n_more; /* bytes held; bytes that are still missing */
    uint8_t low, high;      /* the next byte must be in low..high */
};

enum { UTF8_STREAM_OUT_MAX = 6 }; /* bytes that one byte in can bring out: U+FFFD twice */

/* Returns the bytes written to out. */
uint32_t utf8_stream_push(struct utf8_stream *s, uint8_t byte, uint8_t out[UTF8_STREAM_OUT_MAX]);
/* Ends the text: what is held comes out as one U+FFFD. The stream starts anew. */
uint32_t utf8_stream_finish(struct utf8_stream *s, uint8_t out[UTF8_STREAM_OUT_MAX]);

#ifdef __cplusplus
}
#endif
#endif
