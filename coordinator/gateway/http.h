#ifndef LONGSPAN_COORDINATOR_GATEWAY_HTTP_H
#define LONGSPAN_COORDINATOR_GATEWAY_HTTP_H

/*
 * An HTTP/1.1 server on the loop: evhttp, with its traps covered. Requests come whole; answers go whole or as server-sent events. All on
 * the loop's thread.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "common/tls.h"
#include "coordinator/gateway/openai.h"
#include "common/text.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HTTP_OUTPUT_BYTES_MAX = 8 << 20 }; /* queued for a reader that does not read; more and the stream is dropped */

struct http_server;
/* One request and its answer. Gone once it was answered (http_reply, http_stream_end) or the client went away. */
struct http_exchange;

enum http_method { HTTP_METHOD_GET, HTTP_METHOD_POST }; /* HEAD is answered as GET, without the body */

/* path: exact, or a prefix if it ends in '/' ("/" is exact). The handler answers, now or later. */
struct http_route {
    enum http_method method;
    const char *path;
    void (*handle)(void *ctx, struct http_exchange *x);
};

struct http_config {
    struct loop *loop;
    const char *address;   /* "127.0.0.1:8080", "[::1]:0" */
    const struct tls *tls; /* NULL: in clear */
    /* Who asks for path with that Authorization header (or NULL): a name that lasts as long as the server, or NULL, and the answer is 401. NULL:
       everybody may ask. */
    const char *(*admit)(void *ctx, const char *path, const char *authorization);
    size_t body_bytes_max;
    uint32_t
        idle_ms; /* a connection on which neither a request comes nor an answer goes for so long is closed; 0: 60 s. A
                    request may take a third of it, and what its bytes take (slow.h) */
    const struct http_route *routes; /* kept */
    size_t n_routes;
    void *ctx;
};

enum status http_server_start(const struct http_config *config, struct http_server **server_out, struct error *err);
/* Connections from now on are made with these; the server was started with TLS. ST_INVALID: err says why, and all is as before. */
enum status http_server_tls(struct http_server *s, const struct tls *tls, struct error *err);
uint16_t http_server_port(const struct http_server *s);
/* Exchanges not yet answered and delivered. */
uint32_t http_server_open(const struct http_server *s);
/* Closes all connections; on_close is called for what is open. */
void http_server_free(struct http_server *s);

/* fn(user) when the client goes away before the answer is complete; the exchange is gone then. */
void http_on_close(struct http_exchange *x, void (*fn)(void *user), void *user);
/* Who asks, as http_config.admit said, or NULL. */
const char *http_identity(const struct http_exchange *x);
/* The path, without query; percent-encoding as it came. */
const char *http_path(const struct http_exchange *x);
size_t http_body_bytes(const struct http_exchange *x);
/* Of the request, or NULL. */
const char *http_asked_header(const struct http_exchange *x, const char *name);
/* Moves the body out. NULL: out of memory. */
struct openai_body *http_body_take(struct http_exchange *x, size_t values_max);

/* A header of the answer, before it begins. name, value: our own words; copied. */
void http_header(struct http_exchange *x, const char *name, const char *value);
/* type: "application/json". body: freed. */
void http_reply(struct http_exchange *x, int code, const char *type, struct text *body);
void http_reply_json(struct http_exchange *x, int code, struct text *body);
void http_reply_refusal(struct http_exchange *x, const struct refusal *r);

/* Headers of an event stream. */
void http_stream_begin(struct http_exchange *x);
/* false: the reader was too slow and was dropped; the exchange is gone, on_close is not called. */
bool http_stream_send(struct http_exchange *x, const void *data, size_t bytes);
/* close: the connection too, as after an error. */
void http_stream_end(struct http_exchange *x, bool close);

#ifdef __cplusplus
}
#endif
#endif
