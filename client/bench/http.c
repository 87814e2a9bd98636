#define _GNU_SOURCE /* SOCK_NONBLOCK */
#include "client/bench/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "common/tls.h"

enum { IDLE_MAX = 1024 };
static const uint64_t body_bytes_max = (uint64_t)1 << 28;

struct http_client {
    struct event_base *base;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    char host[300], prefix[512], auth[1100];
    SSL_CTX *tls;   /* NULL: in clear */
    char name[260]; /* that its certificate must bear */
    struct bufferevent *idle[IDLE_MAX];
    size_t n_idle;
};

struct http_call {
    struct http_client *client;
    struct bufferevent *bev;
    struct event *timeout;
    struct evbuffer *request; /* whole, for a second try */
    struct http_handlers handlers;
    void *user;
    bool reused, aborted;
    struct response response;
};

/* ---- the server's address ---- */

static enum status resolve(struct http_client *c, const char *host, const char *port, struct error *err)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
    struct addrinfo *found;
    const int fault = getaddrinfo(host, port, &hints, &found);
    if (fault)
        return error_set(err, ST_NOT_FOUND, "--url: %s: %s", host, gai_strerror(fault));
    memcpy(&c->address, found->ai_addr, found->ai_addrlen);
    c->address_bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return ST_OK;
}

static enum status bad_url(const char *url, struct error *err)
{
    return error_set(err, ST_INVALID, "--url: '%s' is not http[s]://HOST[:PORT][/PREFIX]", url);
}

static enum status parse_url(struct http_client *c, const char *url, bool *secure_out, struct error *err)
{
    char port[8];
    const bool secure = !strncasecmp(url, "https://", 8);
    if ((!secure && strncasecmp(url, "http://", 7) != 0) || strlen(url) >= sizeof c->prefix ||
        strpbrk(url, " \t\r\n\"<>"))
        return bad_url(url, err);
    const char *at = url + (secure ? 8 : 7), *slash = at + strcspn(at, "/");
    const char *colon = at[0] == '[' ? strchr(at, ']') : at;
    colon = colon ? memchr(colon, ':', (size_t)(slash - colon)) : NULL;
    const size_t host_bytes = (size_t)((colon ? colon : slash) - at);
    if (!host_bytes || host_bytes >= sizeof c->name || (colon && (slash - colon < 2 || slash - colon > 6)))
        return bad_url(url, err);
    const bool bracketed = at[0] == '[' && at[host_bytes - 1] == ']';
    snprintf(c->name, sizeof c->name, "%.*s", (int)(host_bytes - (bracketed ? 2 : 0)), at + bracketed);
    snprintf(port, sizeof port, "%s", secure ? "443" : "80");
    if (colon)
        snprintf(port, sizeof port, "%.*s", (int)(slash - colon - 1), colon + 1);
    snprintf(c->host, sizeof c->host, "%.*s", (int)(slash - at), at);
    snprintf(c->prefix, sizeof c->prefix, "%s", slash);
    for (size_t n = strlen(c->prefix); n && c->prefix[n - 1] == '/'; n--)
        c->prefix[n - 1] = 0;
    const size_t n = strlen(c->prefix);
    if (n >= 3 && !strcmp(c->prefix + n - 3, "/v1")) /* as clients of OpenAI's are given it */
        c->prefix[n - 3] = 0;
    *secure_out = secure;
    return resolve(c, c->name, port, err);
}

static enum status trust(struct http_client *c, const char *ca, struct error *err)
{
    const struct tls_files files = { .ca = ca && ca[0] ? ca : "system" };
    struct tls *tls;
    const enum status st = tls_load("tls", &files, false, &tls, err);
    if (st)
        return st;
    c->tls = tls_client_context(tls, err);
    tls_free(tls);
    return c->tls ? ST_OK : ST_INVALID;
}

enum status http_client_new(struct event_base *base, const char *url, const char *api_key, const char *ca,
                            struct http_client **out, struct error *err)
{
    bool secure = false;
    struct http_client *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(err, ST_NO_MEMORY, "no memory");
    c->base = base;
    if (api_key[0])
        snprintf(c->auth, sizeof c->auth, "Authorization: Bearer %.1024s\r\n", api_key);
    enum status st = parse_url(c, url, &secure, err);
    if (!st && !secure && ca && ca[0])
        st = error_set(err, ST_INVALID, "--tls-ca: --url is not https://");
    if (!st && secure)
        st = trust(c, ca, err);
    if (st)
        free(c);
    else
        *out = c;
    return st;
}

void http_client_free(struct http_client *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_idle; i++)
        bufferevent_free(c->idle[i]);
    tls_context_free(c->tls);
    free(c);
}

/* ---- idle connections ---- */

static void idle_drop(struct bufferevent *bev, void *arg)
{
    struct http_client *c = arg;
    for (size_t i = 0; i < c->n_idle; i++)
        if (c->idle[i] == bev) {
            c->idle[i] = c->idle[--c->n_idle];
            break;
        }
    bufferevent_free(bev);
}

static void on_idle_event(struct bufferevent *bev, short what, void *arg)
{
    (void)what;
    idle_drop(bev, arg);
}

/* Bytes that nobody asked for end an idle connection, as its close does; so does an answer to half a request. */
static void keep(struct http_client *c, struct bufferevent *bev)
{
    if (c->n_idle == IDLE_MAX || evbuffer_get_length(bufferevent_get_input(bev)) ||
        evbuffer_get_length(bufferevent_get_output(bev))) {
        bufferevent_free(bev);
        return;
    }
    c->idle[c->n_idle++] = bev;
    bufferevent_setcb(bev, idle_drop, NULL, on_idle_event, c);
    bufferevent_enable(bev, EV_READ);
}

/* ---- calls ---- */

static void call_free(struct http_call *call)
{
    if (call->bev)
        bufferevent_free(call->bev);
    if (call->timeout)
        event_free(call->timeout);
    if (call->request)
        evbuffer_free(call->request);
    free(call);
}

static void finish(struct http_call *call, enum status st, const struct error *err)
{
    if (!st && !call->response.close) {
        keep(call->client, call->bev);
        call->bev = NULL;
    }
    if (call->timeout)
        event_del(call->timeout);
    call->handlers.on_done(call->user, &call->response, st, err);
    call_free(call);
}

static void fail(struct http_call *call, enum status st, const char *text)
{
    struct error err = { 0 };
    error_set(&err, st, "%s", text);
    finish(call, st, &err);
}

static void on_timeout(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    fail(arg, ST_TIMEOUT, "the request took longer than --timeout-s");
}

static void on_body(void *user, const char *data, size_t bytes)
{
    struct http_call *call = user;
    if (!call->aborted)
        call->handlers.on_body(call->user, &call->response, data, bytes);
}

/* -> false: the call is over and gone */
static bool take_input(struct http_call *call)
{
    struct evbuffer *input = bufferevent_get_input(call->bev);
    struct error err = { 0 };
    while (call->response.state != RESPONSE_DONE && evbuffer_get_length(input)) {
        size_t used = 0;
        const char *data = (const char *)evbuffer_pullup(input, -1);
        const enum status st =
            data ? response_feed(&call->response, data, evbuffer_get_length(input), on_body, call, &used, &err)
                 : ST_NO_MEMORY;
        if (st || call->aborted) {
            finish(call, st ? st : ST_PROTOCOL, &err);
            return false;
        }
        evbuffer_drain(input, used);
    }
    if (call->response.state != RESPONSE_DONE)
        return true;
    finish(call, ST_OK, &err);
    return false;
}

static void on_read(struct bufferevent *bev, void *arg)
{
    (void)bev;
    take_input(arg);
}

static enum status connect_and_send(struct http_call *call, bool fresh);

/* The text lasts until the next call. */
static const char *fault_of(struct bufferevent *bev)
{
    static _Thread_local char text[160];
    SSL *ssl = bufferevent_openssl_get_ssl(bev);
    const long trusted = ssl ? SSL_get_verify_result(ssl) : X509_V_OK;
    if (trusted != X509_V_OK)
        snprintf(text, sizeof text, "the server's certificate: %s", X509_verify_cert_error_string(trusted));
    else if (ssl && !SSL_is_init_finished(ssl))
        snprintf(text, sizeof text, "no TLS with the server");
    else
        snprintf(text, sizeof text, "%s", evutil_socket_error_to_string(EVUTIL_SOCKET_ERROR()));
    return text;
}

/*
 * A kept connection may have been closed by the server just when it was used again: if it said nothing at all, the request is sent once more
 * on a new one.
 */
static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct http_call *call = arg;
    struct error err = { 0 };
    (void)bev;
    if (what & BEV_EVENT_CONNECTED)
        return;
    if (!take_input(call))
        return;
    if (call->reused && !call->response.started) {
        bufferevent_free(call->bev);
        call->bev = NULL;
        if (connect_and_send(call, true))
            fail(call, ST_IO, "no connection");
        return;
    }
    if (!(what & BEV_EVENT_EOF)) {
        fail(call, ST_IO, fault_of(call->bev));
        return;
    }
    const enum status st = response_eof(&call->response, &err);
    finish(call, st, &err);
}

/* The server must show a certificate for the name (or address) of the URL. */
static struct bufferevent *secured(struct http_client *c, int fd, int options)
{
    unsigned char address[16];
    SSL *ssl = SSL_new(c->tls);
    if (!ssl)
        return NULL;
    const bool by_address = inet_pton(AF_INET, c->name, address) == 1 || inet_pton(AF_INET6, c->name, address) == 1;
    const bool named = by_address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), c->name) == 1
                                  : SSL_set1_host(ssl, c->name) == 1 && SSL_set_tlsext_host_name(ssl, c->name) == 1;
    struct bufferevent *bev =
        named ? bufferevent_openssl_socket_new(c->base, fd, ssl, BUFFEREVENT_SSL_CONNECTING, options) : NULL;
    if (bev)
        bufferevent_openssl_set_allow_dirty_shutdown(bev,
                                                     1); /* many servers just close; what is whole is told by HTTP */
    else
        SSL_free(ssl);
    return bev;
}

static struct bufferevent *connect_new(struct http_client *c)
{
    const int on = 1, fd = socket(c->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return NULL;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const int options = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS;
    struct bufferevent *bev = c->tls ? secured(c, fd, options) : bufferevent_socket_new(c->base, fd, options);
    if (!bev) {
        evutil_closesocket(fd);
        return NULL;
    }
    if (bufferevent_socket_connect(bev, (struct sockaddr *)&c->address, (int)c->address_bytes) < 0) {
        bufferevent_free(bev);
        return NULL;
    }
    return bev;
}

static enum status connect_and_send(struct http_call *call, bool fresh)
{
    struct http_client *c = call->client;
    call->reused = !fresh && c->n_idle > 0;
    call->bev = call->reused ? c->idle[--c->n_idle] : connect_new(c);
    if (!call->bev)
        return ST_IO;
    bufferevent_setcb(call->bev, on_read, NULL, on_event, call);
    if (evbuffer_add_buffer_reference(bufferevent_get_output(call->bev), call->request) < 0 ||
        bufferevent_enable(call->bev, EV_READ | EV_WRITE) < 0)
        return ST_NO_MEMORY;
    return ST_OK;
}

static bool make_request(struct http_call *call, const char *path, struct evbuffer *body)
{
    const struct http_client *c = call->client;
    call->request = evbuffer_new();
    if (!call->request)
        return false;
    if (!body)
        return evbuffer_add_printf(call->request, "GET %s%s HTTP/1.1\r\nHost: %s\r\n%s\r\n", c->prefix, path, c->host,
                                   c->auth) >= 0;
    return evbuffer_add_printf(call->request,
                               "POST %s%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: "
                               "text/event-stream, application/json\r\nContent-Length: %zu\r\n%s\r\n",
                               c->prefix, path, c->host, evbuffer_get_length(body), c->auth) >= 0 &&
           evbuffer_add_buffer(call->request, body) == 0;
}

enum status http_call_start(struct http_client *c, const char *path, struct evbuffer *body, uint32_t timeout_ms,
                            const struct http_handlers *handlers, void *user, struct http_call **call_out,
                            struct error *err)
{
    const struct timeval after = { timeout_ms / 1000, (timeout_ms % 1000) * 1000 };
    enum status st = ST_NO_MEMORY;
    struct http_call *call = calloc(1, sizeof *call);
    if (!call)
        goto fail;
    call->client = c;
    call->handlers = *handlers;
    call->user = user;
    response_init(&call->response, body_bytes_max);
    call->timeout = evtimer_new(c->base, on_timeout, call);
    if (!call->timeout || !make_request(call, path, body) || evtimer_add(call->timeout, &after) < 0)
        goto fail;
    st = connect_and_send(call, false);
    if (st)
        goto fail;
    if (body)
        evbuffer_free(body);
    *call_out = call;
    return ST_OK;
fail:
    if (body)
        evbuffer_free(body);
    if (call)
        call_free(call);
    return error_set(err, st, st == ST_IO ? "no connection: %s" : "no memory", strerror(errno));
}

void http_call_abort(struct http_call *call)
{
    call->aborted = true;
}

void http_call_cancel(struct http_call *call)
{
    call_free(call);
}
