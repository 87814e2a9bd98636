/* A gateway with the fake scheduler on a loop of its own thread, and a plain HTTP client. */
#ifndef TESTS_GATEWAY_FIXTURE_H
#define TESTS_GATEWAY_FIXTURE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/gateway.h"

#include "fake_sched.h"

enum { POSITIONS_MAX = 65536, CLIENT_MS = 60000 };

struct fixture {
    struct loop *loop;
    struct sched sched;
    struct model *model;
    struct tokenizer *tokenizer;
    struct gateway *gateway;
    pthread_t thread;
    atomic_bool ready;
    uint16_t http, grpc;
};

static uint32_t fixture_workers(void *ctx, struct gateway_worker *out, uint32_t max)
{
    (void)ctx;
    (void)max;
    out[0] = (struct gateway_worker){ .id = 0,
                                      .pid = 41,
                                      .address = "127.0.0.1:4710",
                                      .state = "ready",
                                      .fingerprint = "c/1",
                                      .n_blocks = 100,
                                      .blocks = 12,
                                      .block_bytes = 6400 };
    out[1] = (struct gateway_worker){ .id = 1,
                                      .pid = 42,
                                      .address = "127.0.0.1:4711",
                                      .state = "ready",
                                      .fingerprint = "c/1",
                                      .n_blocks = 100,
                                      .block_bytes = 6400 };
    return 2;
}

static bool fixture_ready(void *ctx)
{
    return atomic_load(&((struct fixture *)ctx)->ready);
}

static void fixture_kick(void *ctx)
{
    (void)ctx;
}

static void *fixture_main(void *arg)
{
    loop_run(arg);
    return NULL;
}

/* Set by a test that wants another tokenizer than the model's. */
static struct tokenizer *fixture_tokenizer;
/* Likewise: a folder for answers that can be taken up again. */
static const char *fixture_resumes;

static inline void fixture_start(struct fixture *f, uint32_t requests_max)
{
    struct error err = { 0 };
    memset(f, 0, sizeof *f);
    log_set_level(LOG_LEVEL_ERROR);
    assert_int_equal(loop_new(&f->loop), ST_OK);
    f->sched.loop = f->loop;
    atomic_store(&f->ready, true);
    f->tokenizer = fixture_tokenizer;
    if (model_open("random:tiny", &f->model, &err) || (!f->tokenizer && tokenizer_new(f->model, &f->tokenizer, &err)))
        fail_msg("%s", err.text);
    const struct gateway_config config = { .http = "127.0.0.1:0",
                                           .grpc = "127.0.0.1:0",
                                           .body_bytes_max = 1 << 20,
                                           .requests_max = requests_max,
                                           .n_max = 1,
                                           .grace_ms = 8000,
                                           .loop = f->loop,
                                           .sched = &f->sched,
                                           .model = f->model,
                                           .tokenizer = f->tokenizer,
                                           .model_name = "tiny",
                                           .positions_max = POSITIONS_MAX,
                                           .ping_ms = 150,
                                           .resumes = fixture_resumes,
                                           .resume_grace_ms = 1500,
                                           .resume_keep_s = 600,
                                           .resume_bytes_max = 1 << 24,
                                           .workers = fixture_workers,
                                           .ready = fixture_ready,
                                           .kick = fixture_kick,
                                           .ctx = f };
    if (gateway_start(&config, &f->gateway, &err))
        fail_msg("%s", err.text);
    f->http = gateway_http_port(f->gateway);
    f->grpc = gateway_grpc_port(f->gateway);
    pthread_create(&f->thread, NULL, fixture_main, f->loop);
}

struct fixture_call {
    void (*fn)(struct fixture *f, void *arg);
    struct fixture *f;
    void *arg;
    sem_t done;
};

static void fixture_run_call(void *arg)
{
    struct fixture_call *c = arg;
    c->fn(c->f, c->arg);
    sem_post(&c->done);
}

/* Runs fn on the loop's thread and waits. */
static void fixture_do(struct fixture *f, void (*fn)(struct fixture *f, void *arg), void *arg)
{
    struct fixture_call c = { .fn = fn, .f = f, .arg = arg };
    sem_init(&c.done, 0, 0);
    loop_post(f->loop, fixture_run_call, &c);
    sem_wait(&c.done);
    sem_destroy(&c.done);
}

static void read_counts(struct fixture *f, void *arg)
{
    uint32_t *out = arg;
    out[0] = f->sched.n_running;
    out[1] = f->sched.n_cancelled;
    out[2] = gateway_idle(f->gateway);
}

/* Waits until nothing runs. -> requests cancelled so far */
static inline uint32_t fixture_quiet(struct fixture *f)
{
    uint32_t counts[3];
    for (int i = 0; i < 6000; i++) { /* half a minute: sanitizers and a busy machine */
        fixture_do(f, read_counts, counts);
        if (!counts[0] && counts[2])
            return counts[1];
        usleep(5000);
    }
    fail_msg("%u requests still run, idle %u", counts[0], counts[2]);
    return 0;
}

/* Waits until so many run. */
static inline void fixture_running(struct fixture *f, uint32_t n)
{
    uint32_t counts[3] = { 0 };
    for (int i = 0; i < 30000; i++) {
        fixture_do(f, read_counts, counts);
        if (counts[0] == n)
            return;
        usleep(1000);
    }
    fail_msg("%u requests run, not %u", counts[0], n);
}

/* Waits until so many were cancelled. */
static inline void fixture_cancelled(struct fixture *f, uint32_t n)
{
    uint32_t counts[3] = { 0 };
    for (int i = 0; i < 30000; i++) {
        fixture_do(f, read_counts, counts);
        if (counts[1] >= n)
            return;
        usleep(1000);
    }
    fail_msg("%u requests were cancelled, not %u", counts[1], n);
}

static void do_free(struct fixture *f, void *arg)
{
    (void)arg;
    gateway_free(f->gateway);
}

static inline void fixture_stop(struct fixture *f)
{
    fixture_do(f, do_free, NULL);
    loop_stop(f->loop);
    pthread_join(f->thread, NULL);
    assert_int_equal(f->sched.n_running, 0);
    loop_free(f->loop);
    tokenizer_free(f->tokenizer);
    model_close(f->model);
}

/* ---- client ---- */

static inline int client_connect(uint16_t port)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in a = { .sin_family = AF_INET,
                                   .sin_port = htons(port),
                                   .sin_addr = { htonl(INADDR_LOOPBACK) } };
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static inline void client_send(int fd, const char *data, size_t n)
{
    for (size_t at = 0; at < n;) {
        const ssize_t k = send(fd, data + at, n - at, MSG_NOSIGNAL);
        if (k <= 0)
            return; /* the server may refuse before it has read all */
        at += (size_t)k;
    }
}

struct answer {
    int code; /* 0: the connection closed without one */
    char *head, *body;
    size_t n_body;
    bool closed;
};

static inline void answer_free(struct answer *a)
{
    free(a->head);
    free(a->body);
}

/* Reads until `fd` has given one whole answer, or closes. */
static inline bool answer_whole(char *data, size_t n, bool closed, bool head_only, struct answer *a, size_t *used)
{
    char *end = memmem(data, n, "\r\n\r\n", 4);
    if (!end)
        return false;
    *end = 0;
    const char *length = strcasestr(data, "\r\nContent-Length: "), *chunked = strcasestr(data, "chunked");
    char *body = end + 4;
    size_t left = n - (size_t)(body - data), out = 0;
    free(a->body);
    a->body = malloc(left + 1);
    if (head_only) {
        *used = (size_t)(body - data);
    } else if (length) {
        out = strtoul(length + 18, NULL, 10);
        *end = '\r';
        if (left < out)
            return false;
        *end = 0;
        memcpy(a->body, body, out);
        *used = (size_t)(body - data) + out;
    } else if (chunked) {
        for (;;) {
            char *line = memmem(body, left, "\r\n", 2);
            const size_t size = line ? strtoul(body, NULL, 16) : 0;
            if (!line || left < (size_t)(line - body) + 4 + size) {
                *end = '\r';
                return false;
            }
            memcpy(a->body + out, line + 2, size);
            out += size;
            left -= (size_t)(line - body) + 4 + size;
            body = line + 4 + size;
            if (!size)
                break;
        }
        *used = (size_t)(body - data);
    } else {
        *end = '\r';
        if (!closed)
            return false;
        *end = 0;
        memcpy(a->body, body, left);
        out = left;
        *used = n;
    }
    a->body[out] = 0;
    a->n_body = out;
    a->code = atoi(data + 9);
    a->head = strdup(data);
    *end = '\r';
    return true;
}

static inline struct answer client_read_one(int fd, bool head_only)
{
    struct answer a = { 0 };
    size_t n = 0, room = 1 << 16, used = 0;
    char *data = malloc(room + 1);
    const int64_t until = clock_ms() + CLIENT_MS;
    while (!(n && (data[n] = 0, answer_whole(data, n, a.closed, head_only, &a, &used))) && !a.closed) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        const int64_t left = until - clock_ms();
        if (left <= 0 || poll(&p, 1, (int)left) <= 0)
            fail_msg("no answer in time; so far: %.*s", (int)n, data);
        if (n == room)
            data = realloc(data, (room *= 2) + 1);
        /* byte by byte, so that nothing of the next answer is taken; large ones come alone */
        const ssize_t k = recv(fd, data + n, n < 8192 ? 1 : room - n, 0);
        if (k <= 0)
            a.closed = true;
        else
            n += (size_t)k;
    }
    if (!a.body)
        a.body = calloc(1, 1);
    free(data);
    return a;
}

static inline struct answer client_read(int fd)
{
    return client_read_one(fd, false);
}

static inline struct answer client_raw(uint16_t port, const char *request, size_t n)
{
    const int fd = client_connect(port);
    client_send(fd, request, n);
    const struct answer a = client_read(fd);
    close(fd);
    return a;
}

static inline char *client_request(const char *method, const char *path, const char *body, size_t n_body, size_t *n_out)
{
    char *request = malloc(n_body + 512);
    const int n = snprintf(request, 512,
                           "%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                           method, path, n_body);
    memcpy(request + n, body, n_body);
    *n_out = (size_t)n + n_body;
    return request;
}

static inline struct answer client_post_n(uint16_t port, const char *path, const char *body, size_t n_body)
{
    size_t n;
    char *request = client_request("POST", path, body, n_body, &n);
    const struct answer a = client_raw(port, request, n);
    free(request);
    return a;
}

static inline struct answer client_post(uint16_t port, const char *path, const char *body)
{
    return client_post_n(port, path, body, strlen(body));
}

static inline struct answer client_get(uint16_t port, const char *path)
{
    char request[512];
    const int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return client_raw(port, request, (size_t)n);
}

#endif
