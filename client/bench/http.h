#ifndef LONGSPAN_CLIENT_BENCH_HTTP_H
#define LONGSPAN_CLIENT_BENCH_HTTP_H

/*
 * HTTP requests to one server from one event loop, hundreds at once; connections are kept and used again. In clear, or over TLS. All on the thread of the
 * base.
 */

#include <stdint.h>

#include "client/bench/response.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct event_base;
struct evbuffer;
struct http_client;
struct http_call;

/*
 * url: http[s]://HOST[:PORT][/PREFIX]; resolved here, once. api_key: sent as a bearer token; "" is none. ca: file (PEM) with who signed the
 * server's certificate, for https; "" or NULL: those that the host trusts. ST_INVALID: the URL, the file; ST_NOT_FOUND: the host, the file. base: kept.
 */
enum status http_client_new(struct event_base *base, const char *url, const char *api_key, const char *ca,
                            struct http_client **out, struct error *err);
/* No call may be open. */
void http_client_free(struct http_client *c);

struct http_handlers {
    /* Bytes of the body, as they come; r has the status and headers. May call http_call_abort. */
    void (*on_body)(void *user, const struct response *r, const char *data, size_t bytes);
    /* Once, unless it is cancelled: the call is over and will be freed on return. r->head_done: there is a status. st: ST_OK, or what went wrong (err). */
    void (*on_done)(void *user, const struct response *r, enum status st, const struct error *err);
};

/* Sends a request. body: JSON, taken, on failure too; NULL: a GET. user: kept until on_done. ST_NO_MEMORY, ST_IO. */
enum status http_call_start(struct http_client *c, const char *path, struct evbuffer *body, uint32_t timeout_ms,
                            const struct http_handlers *handlers, void *user, struct http_call **call_out,
                            struct error *err);
/* Inside on_body: ends the call when on_body has returned; on_done gets ST_PROTOCOL. */
void http_call_abort(struct http_call *call);
/* Outside handlers: ends and frees it; no handler is called again. */
void http_call_cancel(struct http_call *call);

#ifdef __cplusplus
}
#endif
#endif
