#ifndef LONGSPAN_COMMON_TEXT_H
#define LONGSPAN_COMMON_TEXT_H

/*
 * A growing buffer of text, and JSON written into it by hand: answers to clients are made of it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed: empty. data is not NUL-terminated. bad: memory was out, what was added since is missing. */
struct text {
    char *data;
    size_t n, room;
    bool bad;
};

void text_free(struct text *t);
void text_add(struct text *t, const void *data, size_t bytes);
void text_str(struct text *t, const char *s);
/* data with a NUL behind it, which does not count; good until the next addition. NULL if bad, or if the NUL has no room. */
const char *text_terminated(struct text *t);
void text_printf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A JSON string in quotes. Bytes that are not valid UTF-8 become U+FFFD. */
void text_json(struct text *t, const char *data, size_t bytes);
void text_json_str(struct text *t, const char *s);
/* Plain text; bytes that are not valid UTF-8 become U+FFFD. */
void text_utf8(struct text *t, const char *data, size_t bytes);
/* A number from which the float32 comes back (%.9g). JSON has no infinities: -inf is -9999, as others print it; NaN is null. */
void text_float(struct text *t, float value);

/* Bytes of the character that starts at data: 1..4, or 0 if no valid UTF-8 character does. */
size_t text_char(const char *data, size_t bytes);
bool text_valid(const char *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
