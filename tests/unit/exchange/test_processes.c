/* ucx between processes: what happens to others when one is killed, frozen or replaced. */
/* ctest-labels: tsan */
/* ctest-serial */
#define _GNU_SOURCE

#include "tests/unit/exchange/worker_process.h"
#include "tests/unit/own_clock.h"

#include <pthread.h>

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
    const int64_t start = own_clock_ms();
    assert_int_equal(recv_from(b.x, 1, 1, 2, &byte, 1, 5000), ST_PEER);
    assert_true(own_clock_ms() - start < 600);
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
        const int64_t start = clock_ns(), own = own_clock_ms();
        assert_int_equal(recv_from(b.x, 99, 0, 2, &byte, 1, 20000), ST_PEER);
        print_message("  found out after %lld ms\n", (long long)((clock_ns() - start) / MS));
        assert_true(own_clock_ms() - own < 4000);
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
        const int64_t start = own_clock_ms();
        ops->close(b.x);
        assert_true(own_clock_ms() - start < 3000);
    }
    free(data);
}

/*
 * kill -9 while both are connecting. UCX tells of it, but not always if a message that it could not write at once waits for a connection over shared memory:
 * then the deadline ends the wait, as in life the coordinator does. Others are served either way.
 */
static void test_killed_early(void **state)
{
    (void)state;
    const char *turns = getenv("EXCHANGE_TURNS");
    struct rng rng = { (uint64_t)clock_ns(), 0 };
    struct boss b;
    uint8_t byte = 1;
    boss_open(&b);
    for (int turn = 0; turn < (turns ? atoi(turns) : !strcmp(lanes, "shm") ? 2 : 8); turn++) {
        struct worker w;
        worker_start(&w, 2);
        boss_meets(&b, &w);
        for (uint16_t i = 0; i < 3; i++)
            (void)send_to(b.x, 1000 + (uint64_t)turn, i, 2, &byte, 1);
        const int64_t until = clock_ns() + rng_below(&rng, 2500) * 1000;
        while (clock_ns() < until)
            ops->progress(b.x);
        worker_kill(&w);
        const bool shm = !strcmp(lanes, "shm");
        const enum status st = recv_from(b.x, 99, (uint16_t)turn, 2, &byte, 1, shm ? 2000 : 8000);
        if (!shm || st != ST_TIMEOUT)
            assert_int_equal(st, ST_PEER);
    }
    struct worker last;
    worker_start(&last, 2);
    boss_meets(&b, &last);
    echo(&b, &last, 2000, 3000, 3);
    worker_quit(&last);
    ops->close(b.x);
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
    assert_in_range(clock_ns() - start, 300 * MS, 10000 * MS);
    for (uint16_t i = 0; i < 300; i++) {
        const int64_t own = own_clock_ms();
        assert_int_equal(send_to(b.x, 12, i, 2, data, i % 3 ? 900 : 1 << 20), ST_OK);
        assert_true(own_clock_ms() - own < 500);
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
    int64_t own = own_clock_ms();
    assert_int_equal(recv_from(b.x, 11, 0, 2, &byte, 1, 30000), ST_STALE);
    assert_true(own_clock_ms() - own < 5000);
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
    own = own_clock_ms();
    ops->close(b.x);
    assert_true(own_clock_ms() - own < 3000);
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

int main(int argc, char **argv)
{
    int status;
    if (worker_process(argc, argv, &status))
        return status;
    static const char *const all_lanes[] = { "shm", "tcp", NULL };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),         cmocka_unit_test(test_killed_idle), cmocka_unit_test(test_killed_busy),
        cmocka_unit_test(test_killed_early), cmocka_unit_test(test_frozen),      cmocka_unit_test(test_thawed),
        cmocka_unit_test(test_many),
    };
    const struct CMUnitTest best[] = { cmocka_unit_test(test_echo), cmocka_unit_test(test_many) };
    int failed = 0;
    for (size_t i = 0; i < 3; i++) {
        lanes = all_lanes[i];
        print_message("---- %s\n", lanes ? lanes : "best");
        failed += lanes ? cmocka_run_group_tests(tests, NULL, NULL) : cmocka_run_group_tests(best, NULL, NULL);
    }
    return failed != 0;
}
