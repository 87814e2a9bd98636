#ifndef LONGSPAN_CLIENT_BENCH_RESPONSE_H
#define LONGSPAN_CLIENT_BENCH_RESPONSE_H

/*
 * An HTTP/1.1 response, read as it comes: status line, headers, and a body of known length, in chunks, or up to the end of the connection. Servers
 * are not trusted: lines, headers and the body have limits, and framing that could be read in two ways is refused.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RESPONSE_LINE_MAX = 8192, RESPONSE_HEADERS_MAX = 128 };

enum response_state {
    RESPONSE_STATUS,
    RESPONSE_HEADER,
    RESPONSE_LENGTH,    /* body of known length */
    RESPONSE_UNTIL_EOF, /* body up to the end of the connection */
    RESPONSE_CHUNK_SIZE,
    RESPONSE_CHUNK,
    RESPONSE_CHUNK_END,
    RESPONSE_TRAILER,
    RESPONSE_DONE,
};

/* body_max: 0 is no limit. Zeroed but for it: at the start of a response. */
struct response {
    uint64_t body_max;
    enum response_state state;
    uint32_t status; /* 200 ..; known from the end of the headers on */
    bool head_done, close, chunked, event_stream;
    bool started; /* a byte has come */
    bool has_length;
    uint64_t left, body_bytes;
    uint32_t n_headers;
    size_t line_bytes;
    char line[RESPONSE_LINE_MAX];
};

typedef void response_body_fn(void *user, const char *data, size_t bytes);

void response_init(struct response *r, uint64_t body_max);
/*
 * Takes bytes from the connection; on_body is given what belongs to the body. Stops at RESPONSE_DONE: used_out says how many bytes were taken.
 * ST_PROTOCOL, ST_TOO_LARGE: err says what is wrong; the response is of no further use.
 */
enum status response_feed(struct response *r, const char *data, size_t bytes, response_body_fn *on_body, void *user,
                          size_t *used_out, struct error *err);
/* The connection has ended. ST_OK: the response is whole; ST_PROTOCOL: it broke off. */
enum status response_eof(struct response *r, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
