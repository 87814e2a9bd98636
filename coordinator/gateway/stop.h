#ifndef LONGSPAN_COORDINATOR_GATEWAY_STOP_H
#define LONGSPAN_COORDINATOR_GATEWAY_STOP_H

/*
 * Finds stop strings in a text that comes in pieces. The result does not depend on how it is cut into pieces: the stop string that is complete
 * first ends the text; of several that end at one byte, the longest.
 */

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { STOP_MAX = 16, STOP_BYTES_MAX = 4096 };

struct stop_string {
    const char *data;
    size_t bytes; /* 1 .. STOP_BYTES_MAX */
};

struct stop;

/* strings: copied. n of 0 gives a matcher that finds nothing. */
enum status stop_new(const struct stop_string *strings, size_t n, struct stop **stop_out);
/* The same strings, with nothing fed. NULL: out of memory. */
struct stop *stop_again(const struct stop *s);
void stop_free(struct stop *s);
/* Feeds a piece; true: a stop string is complete, and *end_out is where it begins, counted from the start of the whole text. Then feed no more. */
bool stop_push(struct stop *s, const char *data, size_t bytes, size_t *end_out);
/* Bytes at the end of what was fed that may be the beginning of a stop string: hold them back. */
size_t stop_held(const struct stop *s);

#ifdef __cplusplus
}
#endif
#endif
