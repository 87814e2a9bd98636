#ifndef LONGSPAN_COORDINATOR_GATEWAY_JSON_SCAN_H
#define LONGSPAN_COORDINATOR_GATEWAY_JSON_SCAN_H

/*
 * Says of text that comes byte by byte whether it goes on as one JSON object (RFC 8259), and where in it one is. Characters beyond ASCII are taken as they
 * are. Plain data; zeroed is a new one.
 */

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { JSON_SCAN_DEPTH_MAX = 128 };

/* What comes next. */
enum json_scan_at {
    JSON_AT_START, /* '{' */
    JSON_AT_FIRST_KEY,
    JSON_AT_KEY,
    JSON_AT_COLON,
    JSON_AT_VALUE,
    JSON_AT_FIRST_ITEM,
    JSON_AT_COMMA, /* or the end of the list or object */
    JSON_AT_NAME,  /* in a key */
    JSON_AT_STRING,
    JSON_AT_WORD,    /* in true, false, null */
    JSON_AT_MINUS,   /* after '-' */
    JSON_AT_ZERO,    /* after a first 0 */
    JSON_AT_INTEGER, /* in digits */
    JSON_AT_POINT,
    JSON_AT_FRACTION,
    JSON_AT_E,
    JSON_AT_SIGN,
    JSON_AT_EXPONENT,
    JSON_AT_END, /* nothing: the object is whole */
};

struct json_scan {
    enum json_scan_at at;
    uint32_t depth;                         /* open lists and objects */
    uint8_t lists[JSON_SCAN_DEPTH_MAX / 8]; /* bit d: the one at depth d + 1 is a list */
    uint8_t escape;   /* in a string: 1 after a backslash, 2 .. 5: hexadecimal digits to come, plus 1 */
    const char *word; /* what is left of it */
};

/* false: the byte does not go on with it, and nothing has changed. */
bool json_scan_push(struct json_scan *s, char byte);

#ifdef __cplusplus
}
#endif
#endif
