#ifndef LONGSPAN_COORDINATOR_GATEWAY_HTTP_INTERNAL_H
#define LONGSPAN_COORDINATOR_GATEWAY_HTTP_INTERNAL_H

/* What the server (http_server.c: sockets, TLS, limits) and its exchanges (http.c: requests and answers) share. */

#include <string.h>
#include <sys/time.h>

#include "coordinator/gateway/http.h"
#include "coordinator/gateway/slow.h"

#ifdef __cplusplus
extern "C" {
#endif

struct evhttp_request;

struct http_server {
    struct http_config config;
    struct evhttp *evhttp;
    struct evconnlistener *listener;
    struct ssl_ctx_st *tls;
    struct loop_timer *accept_again;
    struct slow *slow;
    struct timeval idle;
    uint16_t port;
    struct http_exchange *first;
    uint32_t n_open;
    struct http_server *next; /* in `servers` */
};

/* Digits, one at least. */
static inline bool is_number(const char *value)
{
    return *value && strspn(value, "0123456789") == strlen(value);
}

/* A request is there; arg: its server. evhttp's general callback. */
void http_on_request(struct evhttp_request *req, void *arg);

#ifdef __cplusplus
}
#endif
#endif
