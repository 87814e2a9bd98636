#ifndef LONGSPAN_TESTS_UNIT_EXCHANGE_WORKER_PROCESS_H
#define LONGSPAN_TESTS_UNIT_EXCHANGE_WORKER_PROCESS_H

/* Test programs that start themselves as workers, which do what they are told over a socket pair. Included once by each. */

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/rng.h"
#include "worker/exchange/exchange.h"

#define MS 1000000ll

enum { BOSS = 1, CHANNEL_FD = 3, MESSAGE_MAX = 8 << 20 };

enum order { ORDER_PEER, ORDER_ECHO, ORDER_FLOOD, ORDER_PLAY, ORDER_BLOCK, ORDER_LANE, ORDER_DROP, ORDER_QUIT };

/* To a worker; ORDER_PEER is followed by n bytes of address. */
struct command {
    uint32_t order, n;
    uint64_t a, b;
};

/* From it, after each. */
struct reply {
    int32_t status;
    uint32_t n;
};

static const char *lanes __attribute__((unused)); /* of the test that runs */
static const struct exchange_ops *const ops = &exchange_ucx;

static inline struct exchange_key key_of(uint64_t plan, uint16_t layer, uint16_t peer)
{
    return (struct exchange_key){
        .epoch = 1, .plan = plan, .group = 1, .layer = layer, .phase = PHASE_PARTIAL, .peer = peer
    };
}

static inline bool read_all(int fd, void *data, size_t bytes)
{
    uint8_t *at = data;
    while (bytes) {
        const ssize_t n = read(fd, at, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

static inline bool write_all(int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    while (bytes) {
        const ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

static inline enum status send_to(struct exchange *x, uint64_t plan, uint16_t layer, uint16_t peer, const void *data,
                                  size_t bytes)
{
    const struct exchange_key key = key_of(plan, layer, peer);
    const struct iovec part = { (void *)data, bytes };
    return ops->send(x, &key, &part, 1);
}

static inline enum status recv_from(struct exchange *x, uint64_t plan, uint16_t layer, uint16_t peer, void *out,
                                    size_t bytes, int timeout_ms)
{
    const struct exchange_key key = key_of(plan, layer, peer);
    return ops->recv(x, &key, out, bytes, clock_ns() + timeout_ms * MS);
}

static inline void fill(uint8_t *data, size_t bytes, uint64_t seed)
{
    struct rng rng = { seed, 0 };
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t r = rng_next(&rng);
        memcpy(data + i, &r, bytes - i < 8 ? bytes - i : 8);
    }
}

static inline size_t played_bytes(uint16_t from, uint16_t to, uint32_t turn)
{
    const uint64_t r = rng_at(11, (uint64_t)from << 16 | to, turn);
    return r % 7 ? r % 2500 : r % 70000;
}

/* Turns of everybody (BOSS .. BOSS + n - 1) to everybody. */
static inline enum status play(struct exchange *x, uint16_t self, uint32_t n, uint32_t turns, uint8_t *buffer)
{
    for (uint32_t turn = 0; turn < turns; turn++) {
        for (uint16_t to = BOSS; to < BOSS + n; to++) {
            const size_t bytes = played_bytes(self, to, turn);
            memset(buffer, (int)(self + turn), bytes);
            const enum status st = to == self ? ST_OK : send_to(x, 1000 + turn, 0, to, buffer, bytes);
            if (st)
                return st;
        }
        for (uint16_t from = BOSS; from < BOSS + n; from++) {
            const size_t bytes = played_bytes(from, self, turn);
            if (from == self)
                continue;
            const enum status st = recv_from(x, 1000 + turn, 0, from, buffer, bytes, 10000);
            if (st)
                return st;
            for (size_t k = 0; k < bytes; k++) {
                if (buffer[k] != (uint8_t)(from + turn))
                    return ST_CORRUPT;
            }
        }
    }
    return ST_OK;
}

static inline void on_sent(void *ctx, enum status st)
{
    *(int *)ctx = st;
}

enum { NOT_YET = 12345 };

struct block_log {
    unsigned n;
    uint16_t source;
    size_t bytes;
    uint64_t sum;
};

static inline void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    struct block_log *log = ctx;
    *log = (struct block_log){ log->n + 1, source, bytes, checksum64(data, bytes) };
}

/* ---- a worker's process ---- */

static inline enum status obey(struct exchange *x, uint16_t self, const struct command *c, uint8_t *buffer)
{
    enum status st = ST_OK;
    switch (c->order) {
    case ORDER_PEER: {
        uint8_t address[EXCHANGE_ADDRESS_MAX];
        struct error err = { 0 };
        const struct exchange_peer peer = { .id = (uint16_t)c->a, .address = address, .address_bytes = c->n };
        if (c->n > sizeof address || !read_all(CHANNEL_FD, address, c->n))
            exit(3);
        return ops->peers_set(x, &peer, 1, &err);
    }
    case ORDER_ECHO: /* n messages of b bytes of plan a, there and back */
        for (uint16_t i = 0; !st && i < c->n; i++) {
            st = recv_from(x, c->a, i, BOSS, buffer, c->b, 10000);
            if (!st)
                st = send_to(x, c->a, i, BOSS, buffer, c->b);
        }
        return st;
    case ORDER_FLOOD: /* large messages until it dies */
        for (uint32_t i = 0;; i++) {
            st = send_to(x, 1 << 20 | i, 0, BOSS, buffer, c->b);
            ops->progress(x);
            if (st || i > 200)
                ops->sleep(x, -1, 5);
        }
    case ORDER_PLAY:
        return play(x, self, c->n, (uint32_t)c->a, buffer);
    case ORDER_BLOCK: {
        const struct iovec part = { buffer, c->b };
        int sent = NOT_YET;
        fill(buffer, c->b, c->a);
        st = ops->send_block(x, BOSS, &part, 1, on_sent, &sent);
        for (const int64_t until = clock_ns() + 10000 * MS; !st && sent == NOT_YET && clock_ns() < until;)
            ops->sleep(x, -1, 10);
        return st ? st : (enum status)sent;
    }
    case ORDER_LANE: /* to peer n: is it the one whose name begins with the letter a? */
        return ops->lane(x, (uint16_t)c->n)[0] == (char)c->a ? ST_OK : ST_NOT_FOUND;
    case ORDER_DROP:
        ops->peer_drop(x, (uint16_t)c->n);
        return ST_OK;
    default:
        return ST_INVALID;
    }
}

/* argv: program, "worker", id, lanes, bind */
static inline int worker_main(char **argv)
{
    const uint16_t self = (uint16_t)atoi(argv[2]);
    const char *my_lanes = strcmp(argv[3], "best") ? argv[3] : NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct exchange *x;
    struct error err = { 0 };
    const struct exchange_config config = { .self = self, .bind = argv[4], .lanes = my_lanes, .spin_us = 20 };
    if (ops->open(&config, &x, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    uint8_t address[EXCHANGE_ADDRESS_MAX], *buffer = calloc(1, MESSAGE_MAX);
    const uint32_t n = (uint32_t)ops->address(x, address);
    write_all(CHANNEL_FD, &n, sizeof n);
    write_all(CHANNEL_FD, address, n);
    for (;;) {
        struct pollfd fd = { CHANNEL_FD, POLLIN, 0 };
        struct command c;
        ops->sleep(x, CHANNEL_FD, 1000);
        if (poll(&fd, 1, 0) < 1)
            continue;
        if (!read_all(CHANNEL_FD, &c, sizeof c) || c.order == ORDER_QUIT)
            break;
        const struct reply r = { obey(x, self, &c, buffer), c.n };
        if (!write_all(CHANNEL_FD, &r, sizeof r))
            break;
    }
    ops->close(x);
    free(buffer);
    return 0;
}

/* ---- the test's side ---- */

struct worker {
    uint16_t id;
    pid_t pid;
    int fd;
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    uint32_t address_bytes;
};

/* As ip netns exec does: /sys shows the network namespace that it was mounted in, and UCX looks for interfaces there. */
static inline bool namespace_enter(void)
{
    return !unshare(CLONE_NEWNET | CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
           !mount("sysfs", "/sys", "sysfs", 0, NULL);
}

/* namespace_bind: in a network namespace of its own, which has that address before worker_go; NULL: here. */
static inline void worker_fork(struct worker *w, uint16_t id, const char *namespace_bind)
{
    int pair[2];
    char id_text[8];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    snprintf(id_text, sizeof id_text, "%u", id);
    w->id = id;
    w->fd = pair[0];
    w->pid = fork();
    assert_true(w->pid >= 0);
    if (!w->pid) {
        char ready = 1;
        if (namespace_bind && (!namespace_enter() || !write_all(pair[1], &ready, 1) || !read_all(pair[1], &ready, 1)))
            _exit(126);
        if (pair[1] == CHANNEL_FD) {
            const int other = dup(pair[1]);
            dup2(other, CHANNEL_FD);
        } else {
            dup2(pair[1], CHANNEL_FD);
        }
        execl("/proc/self/exe", "worker", "worker", id_text, lanes ? lanes : "best",
              namespace_bind ? namespace_bind : "127.0.0.1", (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    char ready;
    if (namespace_bind)
        assert_true(read_all(w->fd, &ready, 1));
}

static inline void worker_go(struct worker *w, bool in_namespace)
{
    const char ready = 1;
    if (in_namespace)
        assert_true(write_all(w->fd, &ready, 1));
    assert_true(read_all(w->fd, &w->address_bytes, sizeof w->address_bytes));
    assert_in_range(w->address_bytes, 1, EXCHANGE_ADDRESS_MAX);
    assert_true(read_all(w->fd, w->address, w->address_bytes));
}

static inline void worker_start(struct worker *w, uint16_t id)
{
    worker_fork(w, id, NULL);
    worker_go(w, false);
}

static inline void worker_order(struct worker *w, enum order order, uint32_t n, uint64_t a, uint64_t b)
{
    const struct command c = { order, n, a, b };
    assert_true(write_all(w->fd, &c, sizeof c));
}

static inline int worker_reply(struct worker *w)
{
    struct reply r = { -999, 0 };
    assert_true(read_all(w->fd, &r, sizeof r));
    return r.status;
}

/* The boss progresses until the worker has replied. */
static inline int worker_reply_while(struct worker *w, struct exchange *x)
{
    const int64_t until = clock_ns() + 10000 * MS;
    struct pollfd fd = { w->fd, POLLIN, 0 };
    while (poll(&fd, 1, 0) == 0 && clock_ns() < until)
        ops->sleep(x, w->fd, 100);
    return worker_reply(w);
}

static inline void worker_told(struct worker *w, uint16_t id, const uint8_t *address, uint32_t bytes)
{
    worker_order(w, ORDER_PEER, bytes, id, 0);
    assert_true(write_all(w->fd, address, bytes));
    assert_int_equal(worker_reply(w), ST_OK);
}

static inline void worker_kill(struct worker *w)
{
    kill(w->pid, SIGKILL);
    assert_int_equal(waitpid(w->pid, NULL, 0), w->pid);
    close(w->fd);
}

static inline void worker_quit(struct worker *w)
{
    int status = -1;
    worker_order(w, ORDER_QUIT, 0, 0, 0);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    assert_int_equal(status, 0);
    close(w->fd);
}

struct boss {
    struct exchange *x;
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    uint32_t address_bytes;
    struct block_log blocks;
};

static inline void boss_open(struct boss *b)
{
    struct error err = { 0 };
    const struct exchange_config config = {
        .self = BOSS, .bind = "127.0.0.1", .lanes = lanes, .spin_us = 20, .on_block = on_block, .ctx = &b->blocks
    };
    memset(b, 0, sizeof *b);
    assert_int_equal(ops->open(&config, &b->x, &err), ST_OK);
    b->address_bytes = (uint32_t)ops->address(b->x, b->address);
}

static inline void boss_meets(struct boss *b, struct worker *w)
{
    struct error err = { 0 };
    const struct exchange_peer peer = { .id = w->id, .address = w->address, .address_bytes = w->address_bytes };
    assert_int_equal(ops->peers_set(b->x, &peer, 1, &err), ST_OK);
    worker_told(w, BOSS, b->address, b->address_bytes);
}

static inline void echo(struct boss *b, struct worker *w, uint64_t plan, size_t bytes, uint16_t n)
{
    uint8_t *data = malloc(bytes + 1), *out = malloc(bytes + 1);
    worker_order(w, ORDER_ECHO, n, plan, bytes);
    for (uint16_t i = 0; i < n; i++) {
        fill(data, bytes, plan + i);
        assert_int_equal(send_to(b->x, plan, i, w->id, data, bytes), ST_OK);
        assert_int_equal(recv_from(b->x, plan, i, w->id, out, bytes, 10000), ST_OK);
        assert_memory_equal(data, out, bytes);
    }
    assert_int_equal(worker_reply(w), ST_OK);
    free(data);
    free(out);
}

/* What main does first: true if this process is a worker and is done, with *status_out. */
static inline bool worker_process(int argc, char **argv, int *status_out)
{
    /* UCX's allocation hooks crash at the exit of a thread under TSan; it reads this when it is loaded */
    if (!getenv("UCX_MEM_EVENTS")) {
        setenv("UCX_MEM_EVENTS", "n", 1);
        execv("/proc/self/exe", argv);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    log_set_level(getenv("EXCHANGE_LOG") ? LOG_LEVEL_TRACE : LOG_LEVEL_ERROR);
    const char *test = getenv("EXCHANGE_TEST");
    if (test)
        cmocka_set_test_filter(test);
    if (argc != 5 || strcmp(argv[1], "worker"))
        return false;
    log_set_name(argv[2]);
    *status_out = worker_main(argv);
    return true;
}

#endif
