/*
 * ucx between processes: this program starts itself as workers, which do what they are told over a socket pair. What happens to others when one is
 * killed, frozen, replaced, or sends nonsense.
 */
/* ctest-labels: tsan */
#include "worker/exchange/exchange.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <ucp/api/ucp.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "worker/exchange/message.h"

#define MS 1000000ll

enum { BOSS = 1, CHANNEL_FD = 3, MESSAGE_MAX = 8 << 20 };

enum order { ORDER_PEER, ORDER_ECHO, ORDER_FLOOD, ORDER_PLAY, ORDER_BLOCK, ORDER_QUIT };

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

static const char *lanes; /* of the test that runs */
static const struct exchange_ops *const ops = &exchange_ucx;

static struct exchange_key key_of(uint64_t plan, uint16_t layer, uint16_t peer)
{
    return (struct exchange_key){
        .epoch = 1, .plan = plan, .group = 1, .layer = layer, .phase = PHASE_PARTIAL, .peer = peer
    };
}

static bool read_all(int fd, void *data, size_t bytes)
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

static bool write_all(int fd, const void *data, size_t bytes)
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

static enum status send_to(struct exchange *x, uint64_t plan, uint16_t layer, uint16_t peer, const void *data,
                           size_t bytes)
{
    const struct exchange_key key = key_of(plan, layer, peer);
    const struct iovec part = { (void *)data, bytes };
    return ops->send(x, &key, &part, 1);
}

static enum status recv_from(struct exchange *x, uint64_t plan, uint16_t layer, uint16_t peer, void *out, size_t bytes,
                             int timeout_ms)
{
    const struct exchange_key key = key_of(plan, layer, peer);
    return ops->recv(x, &key, out, bytes, clock_ns() + timeout_ms * MS);
}

static void fill(uint8_t *data, size_t bytes, uint64_t seed)
{
    struct rng rng = { seed, 0 };
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t r = rng_next(&rng);
        memcpy(data + i, &r, bytes - i < 8 ? bytes - i : 8);
    }
}

static size_t played_bytes(uint16_t from, uint16_t to, uint32_t turn)
{
    const uint64_t r = rng_at(11, (uint64_t)from << 16 | to, turn);
    return r % 7 ? r % 2500 : r % 70000;
}

/* Turns of everybody (BOSS .. BOSS + n - 1) to everybody. */
static enum status play(struct exchange *x, uint16_t self, uint32_t n, uint32_t turns, uint8_t *buffer)
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

static void on_sent(void *ctx, enum status st)
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

static void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    struct block_log *log = ctx;
    *log = (struct block_log){ log->n + 1, source, bytes, checksum64(data, bytes) };
}

/* ---- a worker's process ---- */

static enum status obey(struct exchange *x, uint16_t self, const struct command *c, uint8_t *buffer)
{
    enum status st = ST_OK;
    switch (c->order) {
    case ORDER_PEER: {
        uint8_t address[EXCHANGE_ADDRESS_MAX];
        struct error err = { 0 };
        const struct exchange_peer peer = { (uint16_t)c->a, address, c->n };
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
    default:
        return ST_INVALID;
    }
}

static int worker_main(char **argv)
{
    const uint16_t self = (uint16_t)atoi(argv[2]);
    const char *my_lanes = strcmp(argv[3], "best") ? argv[3] : NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct exchange *x;
    struct error err = { 0 };
    const struct exchange_config config = { .self = self, .bind = "127.0.0.1", .lanes = my_lanes, .spin_us = 20 };
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

static void worker_start(struct worker *w, uint16_t id)
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
        if (pair[1] == CHANNEL_FD) {
            const int other = dup(pair[1]);
            dup2(other, CHANNEL_FD);
        } else {
            dup2(pair[1], CHANNEL_FD);
        }
        execl("/proc/self/exe", "test_processes", "worker", id_text, lanes ? lanes : "best", (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    assert_true(read_all(w->fd, &w->address_bytes, sizeof w->address_bytes));
    assert_in_range(w->address_bytes, 1, EXCHANGE_ADDRESS_MAX);
    assert_true(read_all(w->fd, w->address, w->address_bytes));
}

static void worker_order(struct worker *w, enum order order, uint32_t n, uint64_t a, uint64_t b)
{
    const struct command c = { order, n, a, b };
    assert_true(write_all(w->fd, &c, sizeof c));
}

static int worker_reply(struct worker *w)
{
    struct reply r = { -999, 0 };
    assert_true(read_all(w->fd, &r, sizeof r));
    return r.status;
}

/* The boss progresses until the worker has replied. */
static int worker_reply_while(struct worker *w, struct exchange *x)
{
    const int64_t until = clock_ns() + 10000 * MS;
    struct pollfd fd = { w->fd, POLLIN, 0 };
    while (poll(&fd, 1, 0) == 0 && clock_ns() < until)
        ops->sleep(x, w->fd, 100);
    return worker_reply(w);
}

static void worker_told(struct worker *w, uint16_t id, const uint8_t *address, uint32_t bytes)
{
    worker_order(w, ORDER_PEER, bytes, id, 0);
    assert_true(write_all(w->fd, address, bytes));
    assert_int_equal(worker_reply(w), ST_OK);
}

static void worker_kill(struct worker *w)
{
    kill(w->pid, SIGKILL);
    assert_int_equal(waitpid(w->pid, NULL, 0), w->pid);
    close(w->fd);
}

static void worker_quit(struct worker *w)
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

static void boss_open(struct boss *b)
{
    struct error err = { 0 };
    const struct exchange_config config = {
        .self = BOSS, .bind = "127.0.0.1", .lanes = lanes, .spin_us = 20, .on_block = on_block, .ctx = &b->blocks
    };
    memset(b, 0, sizeof *b);
    assert_int_equal(ops->open(&config, &b->x, &err), ST_OK);
    b->address_bytes = (uint32_t)ops->address(b->x, b->address);
}

static void boss_meets(struct boss *b, struct worker *w)
{
    struct error err = { 0 };
    const struct exchange_peer peer = { w->id, w->address, w->address_bytes };
    assert_int_equal(ops->peers_set(b->x, &peer, 1, &err), ST_OK);
    worker_told(w, BOSS, b->address, b->address_bytes);
}

static void echo(struct boss *b, struct worker *w, uint64_t plan, size_t bytes, uint16_t n)
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

static void test_echo(void **state)
{
    (void)state;
    static const size_t sizes[] = { 0, 8, 1000, 8000, 9000, 65536, 700000, MESSAGE_MAX };
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        echo(&b, &w, 100 * (i + 1), sizes[i], sizes[i] > 100000 ? 3 : 30);
    assert_string_equal(ops->lane(b.x, 2), lanes && !strcmp(lanes, "tcp") ? "tcp" : "posix");
    /* blocks come while this side sleeps between steps */
    uint8_t *data = malloc(MESSAGE_MAX);
    for (size_t i = 4; i < sizeof sizes / sizeof *sizes; i++) {
        worker_order(&w, ORDER_BLOCK, 0, i, sizes[i]);
        assert_int_equal(worker_reply_while(&w, b.x), ST_OK);
        for (const int64_t until = clock_ns() + 5000 * MS; b.blocks.n < i - 3 && clock_ns() < until;)
            ops->sleep(b.x, -1, 10);
        assert_int_equal(b.blocks.n, i - 3);
        assert_int_equal(b.blocks.bytes, sizes[i]);
        fill(data, sizes[i], i);
        assert_int_equal(b.blocks.sum, checksum64(data, sizes[i]));
    }
    free(data);
    worker_quit(&w);
    /* an orderly end is told, not found out */
    uint8_t byte;
    const int64_t start = clock_ns();
    assert_int_equal(recv_from(b.x, 1, 1, 2, &byte, 1, 5000), ST_PEER);
    assert_true(clock_ns() - start < 600 * MS);
    ops->close(b.x);
}

/* kill -9 while it is waited for: found out in under 2 s; another takes its place. */
static void test_killed_idle(void **state)
{
    (void)state;
    struct boss b;
    struct worker w, bystander;
    uint8_t byte;
    boss_open(&b);
    worker_start(&w, 2);
    worker_start(&bystander, 3);
    boss_meets(&b, &w);
    boss_meets(&b, &bystander);
    for (int turn = 0; turn < 2; turn++) {
        echo(&b, &w, 10, 3000, 3);
        echo(&b, &bystander, 10, 3000, 3);
        worker_kill(&w);
        const int64_t start = clock_ns();
        assert_int_equal(recv_from(b.x, 99, 0, 2, &byte, 1, 8000), ST_PEER);
        print_message("  found out after %lld ms\n", (long long)((clock_ns() - start) / MS));
        assert_true(clock_ns() - start < 4000 * MS);
        assert_int_equal(send_to(b.x, 99, 0, 2, &byte, 1), ST_PEER);
        echo(&b, &bystander, 20 + (uint64_t)turn, 3000, 3);
        worker_start(&w, 2);
        boss_meets(&b, &w);
    }
    echo(&b, &w, 30, 30000, 3);
    worker_quit(&w);
    worker_quit(&bystander);
    ops->close(b.x);
}

/* kill -9 while it sends large messages, and while large messages and a block are on their way to it. */
static void test_killed_busy(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    uint8_t *data = calloc(1, MESSAGE_MAX), byte;
    for (int turn = 0; turn < 2; turn++) {
        boss_open(&b);
        worker_start(&w, 2);
        boss_meets(&b, &w);
        echo(&b, &w, 10, 100, 1);
        const struct iovec part = { data, MESSAGE_MAX };
        int sent = NOT_YET;
        if (turn == 0)
            worker_order(&w, ORDER_FLOOD, 0, 0, 1 << 20);
        for (uint16_t i = 0; turn == 1 && i < 20; i++)
            assert_int_equal(send_to(b.x, 50, i, 2, data, 1 << 20), ST_OK);
        assert_int_equal(ops->send_block(b.x, 2, &part, 1, on_sent, &sent), ST_OK);
        for (const int64_t until = clock_ns() + 20 * MS; clock_ns() < until;)
            ops->progress(b.x);
        worker_kill(&w);
        assert_int_equal(recv_from(b.x, 99, 0, 2, &byte, 1, 8000), ST_PEER);
        if (sent == NOT_YET) {
            for (const int64_t until = clock_ns() + 3000 * MS; sent == NOT_YET && clock_ns() < until;)
                ops->progress(b.x);
            assert_int_equal(sent, ST_PEER);
        }
        const int64_t start = clock_ns();
        ops->close(b.x);
        assert_true(clock_ns() - start < 1500 * MS);
    }
    free(data);
}

struct abort_later {
    struct exchange *x;
    int after_ms;
};

static void *abort_later(void *arg)
{
    const struct abort_later *a = arg;
    usleep((useconds_t)a->after_ms * 1000);
    ops->abort(a->x, 1, 1);
    return NULL;
}

/* A frozen peer is reported by no transport: the deadline or an abort from another thread ends the wait, sends do not block, close does not either. */
static void test_frozen(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    uint8_t *data = calloc(1, 1 << 20), byte;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    kill(w.pid, SIGSTOP);
    int64_t start = clock_ns();
    assert_int_equal(recv_from(b.x, 11, 0, 2, &byte, 1, 300), ST_TIMEOUT);
    assert_in_range(clock_ns() - start, 300 * MS, 900 * MS);
    for (uint16_t i = 0; i < 300; i++) {
        start = clock_ns();
        assert_int_equal(send_to(b.x, 12, i, 2, data, i % 3 ? 900 : 1 << 20), ST_OK);
        assert_true(clock_ns() - start < 500 * MS);
    }
    const struct iovec part = { data, 1 << 20 };
    int sent = NOT_YET;
    assert_int_equal(ops->send_block(b.x, 2, &part, 1, on_sent, &sent), ST_OK);
    struct abort_later a = { b.x, 200 };
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, abort_later, &a), 0);
    struct timespec before, after;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    start = clock_ns();
    assert_int_equal(recv_from(b.x, 11, 0, 2, &byte, 1, 8000), ST_STALE);
    assert_true(clock_ns() - start < 1500 * MS);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    const double cpu_ms = (double)(after.tv_sec - before.tv_sec) * 1e3 + (double)(after.tv_nsec - before.tv_nsec) / 1e6;
    print_message("  %.1f ms of CPU in %lld ms of waiting\n", cpu_ms, (long long)((clock_ns() - start) / MS));
    pthread_join(thread, NULL);
    assert_int_equal(sent, NOT_YET);
    ops->peer_drop(b.x, 2);
    for (const int64_t until = clock_ns() + 3000 * MS; sent == NOT_YET && clock_ns() < until;)
        ops->progress(b.x);
    assert_int_equal(sent, ST_PEER);
    struct exchange_key later = key_of(13, 0, 2);
    later.epoch = 2;
    assert_int_equal(ops->recv(b.x, &later, &byte, 1, clock_ns() + 1000 * MS), ST_PEER);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    for (const int64_t until = clock_ns() + 200 * MS; clock_ns() < until;)
        ops->sleep(b.x, -1, 200);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    print_message("  %.1f ms of CPU in 200 ms of sleeping after\n",
                  (double)(after.tv_sec - before.tv_sec) * 1e3 + (double)(after.tv_nsec - before.tv_nsec) / 1e6);
    start = clock_ns();
    ops->close(b.x);
    assert_true(clock_ns() - start < 1500 * MS);
    worker_kill(&w);
    free(data);
}

/* A frozen one that comes back to life finds itself dropped; told of each other again, both go on. */
static void test_thawed(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    kill(w.pid, SIGSTOP);
    uint8_t *data = calloc(1, 300000);
    for (uint16_t i = 0; i < 10; i++)
        assert_int_equal(send_to(b.x, 12, i, 2, data, 300000), ST_OK);
    ops->peer_drop(b.x, 2);
    for (const int64_t until = clock_ns() + 100 * MS; clock_ns() < until;)
        ops->sleep(b.x, -1, 10);
    kill(w.pid, SIGCONT);
    usleep(300000); /* it hears of the end */
    boss_meets(&b, &w);
    echo(&b, &w, 20, 3000, 5);
    echo(&b, &w, 21, 300000, 5);
    free(data);
    worker_quit(&w);
    ops->close(b.x);
}

static void test_many(void **state)
{
    (void)state;
    enum { N = 6 };
    struct boss b;
    struct worker w[N];
    uint8_t *buffer = malloc(70000);
    boss_open(&b);
    for (int i = 1; i < N; i++) {
        worker_start(&w[i], (uint16_t)(BOSS + i));
        boss_meets(&b, &w[i]);
    }
    for (int i = 1; i < N; i++) {
        for (int j = 1; j < N; j++)
            worker_told(&w[i], w[j].id, w[j].address, w[j].address_bytes);
    }
    for (int i = 1; i < N; i++)
        worker_order(&w[i], ORDER_PLAY, N, 25, 0);
    assert_int_equal(play(b.x, BOSS, N, 25, buffer), ST_OK);
    for (int i = 1; i < N; i++)
        assert_int_equal(worker_reply_while(&w[i], b.x), ST_OK);
    for (int i = 1; i < N; i++)
        worker_quit(&w[i]);
    free(buffer);
    ops->close(b.x);
}

/* ---- nonsense ---- */

struct stranger {
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h ep;
};

static void stranger_error(void *arg, ucp_ep_h ep, ucs_status_t st)
{
    (void)arg;
    (void)ep;
    (void)st;
}

static void stranger_open(struct stranger *s, const uint8_t *address)
{
    ucp_config_t *config;
    const ucp_params_t params = { .field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_AM };
    const ucp_worker_params_t worker = { 0 };
    assert_int_equal(ucp_config_read(NULL, NULL, &config), UCS_OK);
    assert_int_equal(ucp_config_modify(config, "TLS", "tcp,self"), UCS_OK);
    assert_int_equal(ucp_config_modify(config, "NET_DEVICES", "lo"), UCS_OK);
    assert_int_equal(ucp_init(&params, config, &s->context), UCS_OK);
    ucp_config_release(config);
    assert_int_equal(ucp_worker_create(s->context, &worker, &s->worker), UCS_OK);
    const ucp_ep_params_t ep = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                               UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
                                 .address = (const ucp_address_t *)address,
                                 .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                                 .err_handler = { stranger_error, NULL } };
    assert_int_equal(ucp_ep_create(s->worker, &ep, &s->ep), UCS_OK);
}

static void stranger_wait(struct stranger *s, void *request, struct boss *b)
{
    const int64_t until = clock_ns() + 2000 * MS;
    while (UCS_PTR_IS_PTR(request) && ucp_request_check_status(request) == UCS_INPROGRESS && clock_ns() < until) {
        ucp_worker_progress(s->worker);
        ops->progress(b->x);
    }
    if (UCS_PTR_IS_PTR(request))
        ucp_request_free(request);
}

static void stranger_close(struct stranger *s, struct boss *b)
{
    const ucp_request_param_t param = { .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE };
    stranger_wait(s, ucp_ep_close_nbx(s->ep, &param), b);
    ucp_worker_destroy(s->worker);
    ucp_cleanup(s->context);
}

/* Somebody who found the port and speaks UCX: random headers, near misses of valid ones, under all message numbers, small and large. */
static void test_stranger(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    struct peer_address a;
    struct error err = { 0 };
    assert_int_equal(peer_address_read(b.address, b.address_bytes, &a, &err), ST_OK);
    _Alignas(16) uint8_t address[EXCHANGE_ADDRESS_MAX];
    memcpy(address, a.net, a.net_bytes);
    struct stranger s;
    stranger_open(&s, address);
    const char *given = getenv("LONGSPAN_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)clock_ns();
    print_message("  replay: LONGSPAN_SEED=%llu\n", (unsigned long long)seed);
    struct rng rng = { seed, 0 };
    uint8_t *payload = calloc(1, 300000);
    for (int i = 0; i < 400; i++) {
        uint8_t header[256];
        size_t header_bytes = rng_below(&rng, 100),
               bytes = rng_below(&rng, 10) ? rng_below(&rng, 3000) : rng_below(&rng, 300000);
        fill(header, sizeof header, rng_next(&rng));
        const unsigned id = rng_below(&rng, 4) ? 0 : rng_below(&rng, 2) ? rng_below(&rng, 20) : rng_below(&rng, 65536);
        if (rng_below(&rng, 3)) {
            struct message_header h = { .kind = (uint8_t)rng_below(&rng, 3),
                                        .source = (uint16_t)rng_below(&rng, 5),
                                        .from = rng_next(&rng),
                                        .to = rng_below(&rng, 2) ? a.instance : rng_next(&rng),
                                        .payload_bytes = bytes };
            if (h.kind == MESSAGE_BLOCK) {
                h.block.number = rng_below(&rng, 3);
                h.block.total = bytes + rng_below(&rng, 2) * 1000;
                h.block.offset = rng_below(&rng, 2) * rng_below(&rng, 1000);
            }
            if (h.kind == MESSAGE_BYE)
                bytes = h.payload_bytes = 0;
            message_header_write(&h, header);
            header_bytes = MESSAGE_HEADER_BYTES;
            if (!rng_below(&rng, 3))
                header[rng_below(&rng, MESSAGE_HEADER_BYTES)] ^= (uint8_t)(1u << rng_below(&rng, 8));
        }
        const ucp_request_param_t param = { 0 };
        stranger_wait(&s, ucp_am_send_nbx(s.ep, id, header, header_bytes, payload, bytes, &param), &b);
        for (int k = 0; k < 3; k++)
            ops->progress(b.x);
    }
    free(payload);
    struct exchange_stats stats;
    ops->stats(b.x, &stats);
    assert_true(stats.dropped > 50);
    /* somebody who claimed to be worker 2 is told from worker 2 */
    echo(&b, &w, 20, 3000, 5);
    echo(&b, &w, 21, 300000, 5);
    stranger_close(&s, &b);
    echo(&b, &w, 22, 3000, 5);
    worker_quit(&w);
    ops->close(b.x);
}

/* Ports that this process listens on, by inode. */
static size_t listening(uint16_t ports[], size_t max)
{
    size_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir)) && n < max;) {
        struct sockaddr_storage at;
        socklen_t bytes = sizeof at;
        int accepts = 0;
        socklen_t accepts_bytes = sizeof accepts;
        const int fd = atoi(e->d_name);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &accepts_bytes) || !accepts)
            continue;
        if (!getsockname(fd, (struct sockaddr *)&at, &bytes) && at.ss_family == AF_INET)
            ports[n++] = ntohs(((const struct sockaddr_in *)&at)->sin_port);
    }
    closedir(dir);
    return n;
}

/* Somebody who found the port and does not speak UCX. */
static void test_port_garbage(void **state)
{
    (void)state;
    struct boss b;
    struct worker w;
    boss_open(&b);
    worker_start(&w, 2);
    boss_meets(&b, &w);
    echo(&b, &w, 10, 3000, 3);
    uint16_t ports[8];
    const size_t n = listening(ports, 8);
    assert_true(n >= 1);
    struct rng rng = { 5, 0 };
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (int i = 0; i < 40; i++) {
        uint8_t junk[4096];
        const struct sockaddr_in to = { .sin_family = AF_INET,
                                        .sin_port = htons(ports[(size_t)i % n]),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
        fill(junk, sizeof junk, rng_next(&rng));
        const size_t bytes = i % 4 ? rng_below(&rng, sizeof junk) : sizeof http - 1;
        (void)write_all(fd, i % 4 ? (const void *)junk : http, bytes);
        for (int k = 0; k < 20; k++)
            ops->progress(b.x);
        if (i % 5 == 0)
            (void)shutdown(fd, SHUT_WR); /* it may be closed already */
        close(fd);
        if (i % 10 == 0)
            echo(&b, &w, 100 + (uint64_t)i, 3000, 3);
    }
    echo(&b, &w, 22, 300000, 5);
    worker_quit(&w);
    ops->close(b.x);
}

static void test_ports(void **state)
{
    (void)state;
    struct exchange *x[3];
    struct error err = { 0 };
    for (uint16_t i = 0; i < 2; i++) {
        const struct exchange_config config = {
            .self = i, .bind = "127.0.0.1", .lanes = "tcp", .port_first = 23470, .port_last = 23489
        };
        assert_int_equal(ops->open(&config, &x[i], &err), ST_OK);
    }
    uint16_t ports[8];
    const size_t n = listening(ports, 8);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_in_range(ports[i], 23470, 23489);
    ops->close(x[0]);
    ops->close(x[1]);
    const struct exchange_config bad[] = { { .bind = "203.0.113.9" },
                                           { .bind = "no such host." },
                                           { .lanes = "ib" },
                                           { .port_first = 9, .port_last = 8, .lanes = "tcp" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = (struct error){ 0 };
        assert_int_equal(ops->open(&bad[i], &x[0], &err), ST_INVALID);
        assert_true(err.text[0] != 0);
    }
}

int main(int argc, char **argv)
{
    /* UCX's allocation hooks crash at the exit of a thread under TSan; it reads this when it is loaded */
    if (!getenv("UCX_MEM_EVENTS")) {
        setenv("UCX_MEM_EVENTS", "n", 1);
        execv("/proc/self/exe", argv);
    }
    log_set_level(getenv("EXCHANGE_LOG") ? LOG_LEVEL_TRACE : LOG_LEVEL_ERROR);
    if (argc == 4 && !strcmp(argv[1], "worker")) {
        log_set_name(argv[2]);
        return worker_main(argv);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    static const char *const all_lanes[] = { "shm", "tcp", NULL };
    const char *test = getenv("EXCHANGE_TEST");
    if (test)
        cmocka_set_test_filter(test);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),   cmocka_unit_test(test_killed_idle), cmocka_unit_test(test_killed_busy),
        cmocka_unit_test(test_frozen), cmocka_unit_test(test_thawed),      cmocka_unit_test(test_many),
    };
    const struct CMUnitTest once[] = {
        cmocka_unit_test(test_stranger),
        cmocka_unit_test(test_port_garbage),
        cmocka_unit_test(test_ports),
    };
    const struct CMUnitTest best[] = { cmocka_unit_test(test_echo), cmocka_unit_test(test_many) };
    int failed = 0;
    for (size_t i = 0; i < 3; i++) {
        lanes = all_lanes[i];
        print_message("---- %s\n", lanes ? lanes : "best");
        failed += lanes ? cmocka_run_group_tests(tests, NULL, NULL) : cmocka_run_group_tests(best, NULL, NULL);
    }
    lanes = "tcp";
    return failed + cmocka_run_group_tests(once, NULL, NULL) != 0;
}
