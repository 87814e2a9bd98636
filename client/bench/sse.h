#ifndef LONGSPAN_CLIENT_BENCH_SSE_H
#define LONGSPAN_CLIENT_BENCH_SSE_H

/* Server-sent events, as WHATWG's HTML standard has them (section 9.2): only the data fields matter here. */

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "common/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed but for event_max: at the start. */
struct sse {
    size_t event_max; /* bytes of one event's data, and of one line */
    struct text line, data;
    bool after_cr, has_data;
};

/* data: NUL-terminated (not counted), of one event. */
typedef void sse_event_fn(void *user, const char *data, size_t bytes);

/* ST_TOO_LARGE: a line or an event is over event_max; ST_NO_MEMORY. */
enum status sse_feed(struct sse *s, const char *data, size_t bytes, sse_event_fn *on_event, void *user,
                     struct error *err);
void sse_free(struct sse *s); /* s may be used again */

#ifdef __cplusplus
}
#endif
#endif
