#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <openssl/ssl.h>

#include "common/log.h"
#include "coordinator/gateway/http_internal.h"

enum { HEADER_BYTES_MAX = 64 << 10, ACCEPT_PAUSE_MS = 100 };

/* A listener's error callback is given the evhttp it feeds; this finds its server. Of the loop's thread. */
static _Thread_local struct http_server *servers;

/* "host:port" or "[v6]:port" */
static enum status split_address(const char *address, char *host, size_t bytes, uint16_t *port_out, struct error *err)
{
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    const long port = colon ? strtol(colon + 1, &end, 10) : -1;
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (!colon || !is_number(colon + 1) || *end || port > 65535 || n == 0 || n >= bytes)
        return error_set(err, ST_INVALID, "http: '%s' is not an address and port", address);
    if (address[0] == '[' && address[n - 1] == ']') {
        address++;
        n -= 2;
    }
    memcpy(host, address, n);
    host[n] = 0;
    *port_out = (uint16_t)port;
    return ST_OK;
}

static uint16_t bound_port(evutil_socket_t fd)
{
    struct sockaddr_storage a = { 0 };
    socklen_t n = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &n) != 0)
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

/* No descriptor is left for a new connection: without a pause the loop would spin on it. */
static void on_accept_error(struct evconnlistener *listener, void *evhttp)
{
    struct http_server *s = servers;
    while (s && s->evhttp != evhttp)
        s = s->next;
    if (!s)
        return;
    log_warn("http: accept: %s", strerror(errno));
    slow_relieve(s->slow);
    evconnlistener_disable(listener);
    loop_timer_set(s->accept_again, ACCEPT_PAUSE_MS);
}

static void on_accept_again(void *arg)
{
    struct http_server *s = arg;
    evconnlistener_enable(s->listener);
}

static enum status server_listen(struct http_server *s, struct error *err)
{
    char host[128];
    uint16_t port;
    const enum status st = split_address(s->config.address, host, sizeof host, &port, err);
    if (st)
        return st;
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(s->evhttp, host, port);
    if (!bound)
        return error_set(err, ST_IO, "http: cannot listen on %s: %s", s->config.address, strerror(errno));
    s->listener = evhttp_bound_socket_get_listener(bound);
    s->port = bound_port(evhttp_bound_socket_get_fd(bound));
    slow_port(s->slow, s->port);
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    return ST_OK;
}

/* The connection's bytes, behind TLS. */
static struct bufferevent *secured(const struct http_server *s, struct event_base *base)
{
    SSL *ssl = SSL_new(s->tls);
    if (!ssl)
        return NULL;
    struct bufferevent *bev =
        bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
    if (bev)
        bufferevent_openssl_set_allow_dirty_shutdown(bev, 1); /* many clients just go */
    else
        SSL_free(ssl);
    return bev;
}

static struct bufferevent *on_accept(struct event_base *base, void *server)
{
    struct http_server *s = server;
    struct bufferevent *bev = s->tls ? secured(s, base) : bufferevent_socket_new(base, -1, 0);
    if (bev)
        slow_accepted(s->slow, bev);
    return bev;
}

enum status http_server_start(const struct http_config *config, struct http_server **server_out, struct error *err)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ST_NO_MEMORY, "http: out of memory");
    s->config = *config;
    const uint32_t idle_ms = config->idle_ms ? config->idle_ms : 60000;
    s->idle = (struct timeval){ .tv_sec = idle_ms / 1000, .tv_usec = idle_ms % 1000 * 1000 };
    s->next = servers;
    servers = s;
    s->accept_again = loop_timer_new(config->loop, on_accept_again, s);
    s->evhttp = evhttp_new(loop_base(config->loop));
    s->slow = slow_new(loop_base(config->loop), idle_ms / 3);
    if (!s->evhttp || !s->accept_again || !s->slow) {
        http_server_free(s);
        return error_set(err, ST_NO_MEMORY, "http: out of memory");
    }
    evhttp_set_max_body_size(s->evhttp, (ev_ssize_t)config->body_bytes_max);
    evhttp_set_max_headers_size(s->evhttp, HEADER_BYTES_MAX);
    evhttp_set_flags(s->evhttp, EVHTTP_SERVER_LINGERING_CLOSE); /* a client that sends too much still reads why */
    evhttp_set_timeout_tv(s->evhttp, &s->idle);
    evhttp_set_default_content_type(s->evhttp, NULL);
    evhttp_set_allowed_methods(s->evhttp, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT |
                                              EVHTTP_REQ_DELETE | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_TRACE |
                                              EVHTTP_REQ_CONNECT | EVHTTP_REQ_PATCH);
    evhttp_set_gencb(s->evhttp, http_on_request, s);
    enum status st = ST_OK;
    if (config->tls) {
        s->tls = tls_server_context(config->tls, err);
        st = s->tls ? ST_OK : ST_INVALID;
    }
    evhttp_set_bevcb(s->evhttp, on_accept, s);
    if (!st)
        st = server_listen(s, err);
    if (st) {
        http_server_free(s);
        return st;
    }
    *server_out = s;
    return ST_OK;
}

enum status http_server_tls(struct http_server *s, const struct tls *tls, struct error *err)
{
    struct ssl_ctx_st *context = tls_server_context(tls, err);
    if (!context)
        return ST_INVALID;
    tls_context_free(s->tls); /* connections hold it as long as they need it */
    s->tls = context;
    return ST_OK;
}

uint16_t http_server_port(const struct http_server *s)
{
    return s->port;
}

uint32_t http_server_open(const struct http_server *s)
{
    return s->n_open;
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    struct http_server **link = &servers;
    while (*link && *link != s)
        link = &(*link)->next;
    if (*link)
        *link = s->next;
    if (s->evhttp)
        evhttp_free(s->evhttp);
    slow_free(s->slow);
    tls_context_free(s->tls);
    loop_timer_free(s->accept_again);
    free(s);
}
