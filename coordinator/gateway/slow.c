#include "coordinator/gateway/slow.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "common/clock.h"
#include "common/log.h"

/*
 * One for each descriptor that a connection ever had, and kept: nothing tells when evhttp frees a connection, but the next one with its descriptor
 * begins here anew.
 */
struct connection {
    const struct slow *of;
    int fd;
    bool busy;        /* with an answer */
    bool speaking;    /* a request has begun to come */
    int64_t since_ms; /* of the above */
    uint64_t bytes;   /* of the request, so far */
};

struct slow {
    uint32_t patience_ms;
    uint16_t port;
    struct event *name; /* the fresh ones */
    struct bufferevent **fresh;
    size_t n_fresh, fresh_max;
    struct connection **at; /* by descriptor */
    size_t n_at;
    int64_t relieved_ms;
};

static struct connection *connection_at(struct slow *s, int fd)
{
    if (fd < 0)
        return NULL;
    if ((size_t)fd >= s->n_at) {
        const size_t n = (size_t)fd * 2 + 64;
        struct connection **at = realloc(s->at, n * sizeof *at);
        if (!at)
            return NULL;
        for (size_t i = s->n_at; i < n; i++)
            at[i] = NULL;
        s->at = at;
        s->n_at = n;
    }
    if (!s->at[fd]) {
        s->at[fd] = calloc(1, sizeof *s->at[fd]);
        if (s->at[fd])
            *s->at[fd] = (struct connection){ .of = s, .fd = fd };
    }
    return s->at[fd];
}

/* Not from here may it be freed: it ends as if the client had gone. */
static void end(const struct connection *c)
{
    shutdown(c->fd, SHUT_RDWR);
}

static void on_bytes(struct evbuffer *input, const struct evbuffer_cb_info *info, void *arg)
{
    (void)input;
    struct connection *c = arg;
    if (c->busy || !info->n_added)
        return;
    const int64_t now = clock_ms();
    if (!c->speaking) {
        c->speaking = true;
        c->since_ms = now;
        c->bytes = 0;
    }
    c->bytes += info->n_added;
    if (now - c->since_ms <= c->of->patience_ms + (int64_t)(c->bytes * 1000 / SLOW_BYTES_PER_S))
        return;
    log_debug("http: a request comes too slowly: %llu bytes in %lld ms; dropped", (unsigned long long)c->bytes,
              (long long)(now - c->since_ms));
    end(c);
}

/* An eighth of the descriptors is for the others: gRPC, workers, files. */
static bool is_scarce(int fd)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && (rlim_t)fd >= limit.rlim_cur - limit.rlim_cur / 8;
}

static void on_fresh(evutil_socket_t none, short what, void *arg)
{
    (void)none;
    (void)what;
    struct slow *s = arg;
    bool scarce = false;
    for (size_t i = 0; i < s->n_fresh; i++) {
        struct bufferevent *bev = s->fresh[i];
        struct connection *c = connection_at(s, bufferevent_getfd(bev));
        if (c) {
            c->busy = c->speaking = false;
            c->since_ms = clock_ms();
            evbuffer_add_cb(bufferevent_get_input(bev), on_bytes, c);
            scarce |= is_scarce(c->fd);
        }
        bufferevent_decref(bev);
    }
    s->n_fresh = 0;
    if (scarce)
        slow_relieve(s);
}

struct slow *slow_new(struct event_base *base, uint32_t patience_ms)
{
    struct slow *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->patience_ms = patience_ms;
    s->name = event_new(base, -1, 0, on_fresh, s);
    if (s->name)
        return s;
    free(s);
    return NULL;
}

void slow_free(struct slow *s)
{
    if (!s)
        return;
    event_free(s->name);
    for (size_t i = 0; i < s->n_fresh; i++)
        bufferevent_decref(s->fresh[i]);
    for (size_t i = 0; i < s->n_at; i++)
        free(s->at[i]);
    free(s->at);
    free(s->fresh);
    free(s);
}

void slow_port(struct slow *s, uint16_t port)
{
    s->port = port;
}

void slow_accepted(struct slow *s, struct bufferevent *bev)
{
    if (s->n_fresh == s->fresh_max) {
        const size_t n = s->fresh_max * 2 + 16;
        struct bufferevent **fresh = realloc(s->fresh, n * sizeof *fresh);
        if (!fresh)
            return;
        s->fresh = fresh;
        s->fresh_max = n;
    }
    bufferevent_incref(bev);
    s->fresh[s->n_fresh++] = bev;
    event_active(s->name, EV_TIMEOUT, 0);
}

void slow_asked(struct slow *s, struct bufferevent *bev)
{
    struct connection *c = connection_at(s, bufferevent_getfd(bev));
    if (c)
        c->busy = true;
}

void slow_answered(struct slow *s, struct bufferevent *bev)
{
    struct connection *c = connection_at(s, bufferevent_getfd(bev));
    if (!c)
        return;
    c->busy = c->speaking = false;
    c->since_ms = clock_ms();
}

/* The descriptor may be somebody else's by now; the port tells. */
static bool is_ours(const struct slow *s, int fd)
{
    struct sockaddr_storage a = { 0 };
    socklen_t n = sizeof a;
    int listens = 1;
    socklen_t n_listens = sizeof listens;
    if (getsockname(fd, (struct sockaddr *)&a, &n) || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &n_listens) ||
        listens)
        return false;
    const in_port_t port = a.ss_family == AF_INET6  ? ((struct sockaddr_in6 *)&a)->sin6_port
                           : a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port
                                                    : 0;
    return ntohs(port) == s->port;
}

size_t slow_relieve(struct slow *s)
{
    const int64_t now = clock_ms();
    size_t n = 0;
    if (now - s->relieved_ms < 100)
        return 0;
    s->relieved_ms = now;
    for (size_t i = 0; i < s->n_at; i++) {
        const struct connection *c = s->at[i];
        if (!c || c->busy || now - c->since_ms < SLOW_SPARED_MS || !is_ours(s, c->fd))
            continue;
        end(c);
        n++;
    }
    if (n)
        log_warn("http: few descriptors are left; ended %zu connections that had no request under way", n);
    return n;
}
