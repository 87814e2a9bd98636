#include "coordinator/gateway/http_internal.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

#include "common/log.h"
#include "coordinator/gateway/reply.h"

enum { INPUT_BYTES_MAX = 256 << 10 }; /* sent while an answer is under way */

struct http_exchange {
    struct http_server *server;
    struct http_exchange *next, **link;
    struct evhttp_request *req;
    const char *identity;
    struct evhttp_connection *connection;
    struct bufferevent *bev;
    struct evbuffer *chunk;
    struct event *drop;              /* ends it from a place where that is safe */
    struct evbuffer_cb_entry *input; /* watches what is sent meanwhile */
    void (*on_close)(void *user);
    void *user;
    bool answered;
};

static void exchange_free(struct http_exchange *x)
{
    *x->link = x->next;
    if (x->next)
        x->next->link = x->link;
    x->server->n_open--;
    if (x->input)
        evbuffer_remove_cb_entry(bufferevent_get_input(x->bev), x->input);
    if (x->drop)
        event_free(x->drop);
    if (x->chunk)
        evbuffer_free(x->chunk);
    free(x);
}

/*
 * The connection is going down. If the client closed it while we had not answered, evhttp has taken the request off the connection and leaves it to
 * us; otherwise the connection frees it.
 */
static void on_connection_close(struct evhttp_connection *connection, void *arg)
{
    (void)connection;
    struct http_exchange *x = arg;
    struct evhttp_request *orphan = evhttp_request_get_connection(x->req) ? NULL : x->req;
    void (*fn)(void *) = x->answered ? NULL : x->on_close;
    void *user = x->user;
    exchange_free(x);
    if (orphan)
        evhttp_request_free(orphan);
    if (fn)
        fn(user);
}

/* The answer is written: the connection may carry the next request. */
static void on_complete(struct evhttp_request *req, void *arg)
{
    (void)req;
    struct http_exchange *x = arg;
    evhttp_connection_set_closecb(x->connection, NULL, NULL);
    bufferevent_set_timeouts(x->bev, &x->server->idle, &x->server->idle);
    slow_answered(x->server->slow, x->bev);
    exchange_free(x);
}

static void on_drop(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct http_exchange *x = arg;
    log_warn("http: a client sends on and on while it is answered; dropped");
    evhttp_connection_free(x->connection); /* calls on_connection_close */
}

/* Inside bufferevent's reading: the connection may not be freed here. */
static void on_input(struct evbuffer *input, const struct evbuffer_cb_info *info, void *arg)
{
    (void)info;
    const struct http_exchange *x = arg;
    if (evbuffer_get_length(input) > INPUT_BYTES_MAX)
        event_active(x->drop, EV_TIMEOUT, 0);
}

/*
 * evhttp stops reading while a request is handled, and so does not see the client leave before the first byte of the answer; from then on it reads
 * without a bound. So reading goes on here at once, with no read callback (evhttp's own would end the process in this state). What comes
 * is kept for the next request, within a bound; pausing at the bound would hide the hang-up behind what was not read. No read time-out: the client has
 * said all it has to.
 */
static bool watch_for_close(struct http_exchange *x)
{
    bufferevent_data_cb write_cb;
    bufferevent_event_cb event_cb;
    void *arg;
    x->drop = evtimer_new(loop_base(x->server->config.loop), on_drop, x);
    x->input = x->drop ? evbuffer_add_cb(bufferevent_get_input(x->bev), on_input, x) : NULL;
    if (!x->input)
        return false;
    bufferevent_getcb(x->bev, NULL, &write_cb, &event_cb, &arg);
    bufferevent_setcb(x->bev, NULL, write_cb, event_cb, arg);
    bufferevent_set_timeouts(x->bev, NULL, &x->server->idle);
    return bufferevent_enable(x->bev, EV_READ) == 0;
}

/* NULL: out of memory; the connection is gone then. */
static struct http_exchange *exchange_new(struct http_server *s, struct evhttp_request *req)
{
    struct evhttp_connection *connection = evhttp_request_get_connection(req);
    struct http_exchange *x = calloc(1, sizeof *x);
    if (!x) {
        evhttp_connection_free(connection);
        return NULL;
    }
    x->server = s;
    x->req = req;
    x->connection = connection;
    x->bev = evhttp_connection_get_bufferevent(connection);
    x->link = &s->first;
    x->next = s->first;
    if (x->next)
        x->next->link = &x->next;
    s->first = x;
    s->n_open++;
    x->chunk = evbuffer_new();
    if (!x->chunk || !watch_for_close(x)) {
        exchange_free(x);
        evhttp_connection_free(connection);
        return NULL;
    }
    slow_asked(s->slow, x->bev);
    const int on = 1; /* tokens are small writes: none may wait for the acknowledgement of the one before */
    setsockopt(bufferevent_getfd(x->bev), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    evhttp_connection_set_closecb(connection, on_connection_close, x);
    evhttp_request_set_on_complete_cb(req, on_complete, x);
    return x;
}

/* ---- requests that may be served ---- */

static bool is_token(const char *name)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    const char *p = name;
    for (; *p; p++)
        if (!((*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || strchr(others, *p)))
            return false;
    return p > name;
}

/*
 * What evhttp lets through and a proxy before us might read otherwise: where the two disagree on where a request ends, the next one can be forged.
 * NULL: well framed.
 */
static const char *framing_fault(struct evhttp_request *req)
{
    int hosts = 0, lengths = 0, encodings = 0;
    const struct evkeyval *h;
    TAILQ_FOREACH(h, evhttp_request_get_input_headers(req), next)
    {
        if (!is_token(h->key))
            return "a header's name is malformed";
        hosts += !strcasecmp(h->key, "host");
        if (!strcasecmp(h->key, "content-length")) {
            lengths++;
            if (!is_number(h->value))
                return "Content-Length is not a number";
        } else if (!strcasecmp(h->key, "transfer-encoding")) {
            encodings++;
            if (strcasecmp(h->value, "chunked") != 0)
                return "Transfer-Encoding is not 'chunked'";
        }
    }
    if (hosts > 1 || (!hosts && req->major == 1 && req->minor >= 1))
        return hosts ? "more than one Host" : "Host is missing";
    if (lengths + encodings > 1)
        return "more than one Content-Length or Transfer-Encoding";
    const enum evhttp_cmd_type type = evhttp_request_get_command(req);
    if (encodings && (type == EVHTTP_REQ_HEAD || type == EVHTTP_REQ_TRACE))
        return "this method takes no body";
    if (lengths && (type == EVHTTP_REQ_HEAD || type == EVHTTP_REQ_TRACE) &&
        strcmp(evhttp_find_header(evhttp_request_get_input_headers(req), "Content-Length"), "0") != 0)
        return "this method takes no body";
    return NULL;
}

static void close_after(struct http_exchange *x)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(x->req);
    if (!evhttp_find_header(headers, "Connection"))
        evhttp_add_header(headers, "Connection", "close");
}

static void reply_message(struct http_exchange *x, int code, const char *message)
{
    struct text body = { 0 };
    text_str(&body, "{\"error\":{\"message\":");
    text_json_str(&body, message);
    text_str(&body, ",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}");
    http_reply_json(x, code, &body);
}

static void reply_unknown(struct http_exchange *x)
{
    struct text body = { 0 };
    text_str(&body,
             "{\"error\":{\"message\":\"no API key, or one that is not known: Authorization: Bearer KEY\",\"type\":"
             "\"invalid_request_error\",\"param\":null,\"code\":\"invalid_api_key\"}}");
    evhttp_add_header(evhttp_request_get_output_headers(x->req), "WWW-Authenticate", "Bearer");
    http_reply_json(x, 401, &body);
}

static bool path_matches(const struct http_route *route, const char *path)
{
    const size_t n = strlen(route->path);
    return n > 1 && route->path[n - 1] == '/' ? !strncmp(path, route->path, n) && path[n] : !strcmp(path, route->path);
}

static void dispatch(struct http_exchange *x)
{
    const struct http_config *config = &x->server->config;
    const char *path = http_path(x);
    const enum evhttp_cmd_type type = evhttp_request_get_command(x->req);
    const struct http_route *other = NULL;
    for (size_t i = 0; i < config->n_routes; i++) {
        const struct http_route *route = &config->routes[i];
        if (!path_matches(route, path))
            continue;
        other = route;
        if (config->admit && !x->identity) {
            x->identity = config->admit(config->ctx, path, http_asked_header(x, "Authorization"));
            if (!x->identity) {
                reply_unknown(x);
                return;
            }
        }
        if (route->method == HTTP_METHOD_POST ? type == EVHTTP_REQ_POST
                                              : type == EVHTTP_REQ_GET || type == EVHTTP_REQ_HEAD) {
            route->handle(config->ctx, x);
            return;
        }
    }
    if (!other) {
        reply_message(x, 404, "no such path");
        return;
    }
    const char *allow = other->method == HTTP_METHOD_POST ? "POST" : "GET, HEAD";
    evhttp_add_header(evhttp_request_get_output_headers(x->req), "Allow", allow);
    reply_message(x, 405, other->method == HTTP_METHOD_POST ? "this path takes POST" : "this path takes GET");
}

void http_on_request(struct evhttp_request *req, void *arg)
{
    struct http_server *s = arg;
    struct http_exchange *x = exchange_new(s, req);
    if (!x) {
        log_error("http: out of memory for a request");
        return;
    }
    const char *fault = framing_fault(req);
    if (fault) {
        log_debug("http: refused: %s", fault);
        close_after(x);
        reply_message(x, 400, fault);
        return;
    }
    dispatch(x);
}

/* ---- exchanges ---- */

void http_on_close(struct http_exchange *x, void (*fn)(void *user), void *user)
{
    x->on_close = fn;
    x->user = user;
}

const char *http_identity(const struct http_exchange *x)
{
    return x->identity;
}

const char *http_path(const struct http_exchange *x)
{
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(x->req);
    const char *path = uri ? evhttp_uri_get_path(uri) : NULL;
    return path ? path : "";
}

size_t http_body_bytes(const struct http_exchange *x)
{
    return evbuffer_get_length(evhttp_request_get_input_buffer(x->req));
}

const char *http_asked_header(const struct http_exchange *x, const char *name)
{
    return evhttp_find_header(evhttp_request_get_input_headers(x->req), name);
}

struct openai_body *http_body_take(struct http_exchange *x, size_t values_max)
{
    struct evbuffer *input = evhttp_request_get_input_buffer(x->req);
    const size_t n = evbuffer_get_length(input);
    struct openai_body *body = openai_body_new(n, values_max);
    if (body && n && evbuffer_remove(input, body->data, n) != (int)n) {
        openai_body_free(body);
        return NULL;
    }
    return body;
}

static bool is_head(const struct http_exchange *x)
{
    return evhttp_request_get_command(x->req) == EVHTTP_REQ_HEAD;
}

void http_reply(struct http_exchange *x, int code, const char *type, struct text *body)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(x->req);
    char length[32];
    if (body->bad) {
        log_error("http: out of memory for an answer");
        body->n = 0;
        code = 500;
    }
    snprintf(length, sizeof length, "%zu", body->n);
    evhttp_add_header(headers, "Content-Type", type);
    evhttp_add_header(headers, "Content-Length", length);
    /* evhttp would send a body for HEAD too */
    if (!is_head(x))
        evbuffer_add(x->chunk, body->data, body->n);
    text_free(body);
    x->answered = true;
    /* it is in the hands of evhttp now, and gone once it is written; the chunk goes with it */
    evhttp_send_reply(x->req, code, NULL, x->chunk);
}

void http_header(struct http_exchange *x, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(x->req), name, value);
}

void http_reply_json(struct http_exchange *x, int code, struct text *body)
{
    http_reply(x, code, "application/json", body);
}

void http_reply_refusal(struct http_exchange *x, const struct refusal *r)
{
    const int code = reply_http_status(r->status);
    struct text body = { 0 };
    reply_error(r, &body);
    if (code == 429 || code == 503) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%u", r->retry_s ? r->retry_s : 1);
        http_header(x, "Retry-After", seconds);
    }
    http_reply_json(x, code, &body);
}

void http_stream_begin(struct http_exchange *x)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(x->req);
    evhttp_add_header(headers, "Content-Type", "text/event-stream; charset=utf-8");
    evhttp_add_header(headers, "Cache-Control", "no-cache");
    evhttp_add_header(headers, "X-Accel-Buffering", "no");
    /* to HTTP/1.0 the end of the stream is the end of the connection, whatever the client hopes for */
    if (x->req->minor == 0)
        evhttp_remove_header(evhttp_request_get_input_headers(x->req), "Connection");
    evhttp_send_reply_start(x->req, 200, NULL);
}

bool http_stream_send(struct http_exchange *x, const void *data, size_t bytes)
{
    evbuffer_add(x->chunk, data, bytes);
    evhttp_send_reply_chunk(x->req, x->chunk);
    if (evbuffer_get_length(bufferevent_get_output(x->bev)) <= HTTP_OUTPUT_BYTES_MAX)
        return true;
    log_warn("http: a client reads too slowly: %d bytes wait for it; dropped", HTTP_OUTPUT_BYTES_MAX);
    struct evhttp_connection *connection = x->connection;
    evhttp_connection_set_closecb(connection, NULL, NULL);
    exchange_free(x);
    evhttp_connection_free(connection); /* and the request with it */
    return false;
}

void http_stream_end(struct http_exchange *x, bool close)
{
    x->answered = true;
    /* evhttp looks at the answer's headers only now: they were sent long ago */
    if (close)
        close_after(x);
    evhttp_send_reply_end(x->req);
}
