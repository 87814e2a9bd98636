/* As test_suite.c, but what threads do to each other: many that exchange at once, a wait that another ends, sleep. */
/* ctest-labels: tsan */
/* ctest-serial */
#include "worker/exchange/exchange.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/select.h>

#include "common/rng.h"
#include "tests/unit/exchange/nodes.h"

struct player {
    struct node *node;
    uint16_t n, turns;
    uint64_t seed;
    pthread_t thread;
    unsigned failed;
};

static size_t played_bytes(uint64_t seed, uint16_t from, uint16_t to, uint16_t turn)
{
    const uint64_t r = rng_at(seed, (uint64_t)from << 16 | to, turn);
    return r % 5 ? r % 3000 : r % 60000;
}

/* Everybody to everybody, turn by turn, as the layers of a step do. */
static void *play(void *arg)
{
    struct player *p = arg;
    struct node *me = p->node;
    uint8_t *data = malloc(60000), *out = malloc(60000);
    for (uint16_t turn = 0; turn < p->turns && !p->failed; turn++) {
        for (uint16_t i = 0; i < p->n; i++) {
            const uint16_t to = (uint16_t)(10 + i);
            if (to == me->id)
                continue;
            const size_t bytes = played_bytes(p->seed, me->id, to, turn);
            memset(data, (uint8_t)(me->id + turn), bytes);
            p->failed += send_bytes(me, key_of(turn / 30u, turn, to), data, bytes) != ST_OK;
        }
        for (uint16_t i = 0; i < p->n; i++) {
            const uint16_t from = (uint16_t)(10 + i);
            if (from == me->id)
                continue;
            const size_t bytes = played_bytes(p->seed, from, me->id, turn);
            p->failed += recv_bytes(me, key_of(turn / 30u, turn, from), out, bytes, 15000) != ST_OK;
            for (size_t k = 0; k < bytes; k++)
                p->failed += out[k] != (uint8_t)(from + turn);
        }
    }
    free(data);
    free(out);
    /* the others may still need bytes that wait here */
    const int64_t until = clock_ns() + 200 * MS;
    while (clock_ns() < until)
        me->ops->sleep(me->x, -1, 5);
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    enum { N = 5 };
    struct node nodes[N];
    struct player players[N];
    nodes_open(nodes, N);
    for (int i = 0; i < N; i++) {
        players[i] = (struct player){ .node = &nodes[i], .n = N, .turns = 60, .seed = 7 };
        assert_int_equal(pthread_create(&players[i].thread, NULL, play, &players[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(players[i].thread, NULL);
        assert_int_equal(players[i].failed, 0);
    }
    for (int i = 0; i < N; i++)
        node_close(&nodes[i]);
}

struct abort_later {
    struct node *node;
    int after_ms, fd;
    uint64_t epoch;
};

static void *abort_later(void *arg)
{
    const struct abort_later *a = arg;
    usleep((useconds_t)a->after_ms * 1000);
    if (a->fd >= 0) {
        const uint64_t one = 1;
        assert_int_equal(write(a->fd, &one, 8), 8);
    } else {
        a->node->ops->abort(a->node->x, 3, a->epoch);
    }
    return NULL;
}

static void test_abort(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 1, out = 0;
    nodes_open(nodes, 2);
    struct exchange_key from = key_of(1, 0, 10), to = key_of(1, 0, 11);
    for (int after_ms = 0; after_ms <= 40; after_ms += 20) {
        pthread_t thread;
        struct abort_later a = { &nodes[1], after_ms, -1, from.epoch };
        assert_int_equal(pthread_create(&thread, NULL, abort_later, &a), 0);
        const int64_t start = clock_ns();
        assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 8000), ST_STALE);
        assert_true(clock_ns() - start < (after_ms + 80) * MS * 5);
        pthread_join(thread, NULL);
        assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 8000), ST_STALE); /* and later */
        from.epoch--;
        assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 8000), ST_STALE); /* and epochs before it */
        from.epoch += 2;
        to.epoch = from.epoch;
        assert_int_equal(send_bytes(&nodes[0], to, &byte, 1), ST_OK);
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &from));
        assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 1000), ST_OK);
    }
    /* an abort of another group ends nothing */
    struct exchange_key other = from;
    other.group = 9;
    nodes[1].ops->abort(nodes[1].x, 3, 1000);
    assert_int_equal(recv_bytes(&nodes[1], other, &out, 1, 30), ST_TIMEOUT);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_sleep(void **state)
{
    (void)state;
    struct node nodes[2];
    nodes_open(nodes, 2);
    int64_t start = clock_ns();
    while (clock_ns() - start < 30 * MS)
        nodes_progress(nodes, 2); /* whatever connecting takes */
    start = clock_ns();
    nodes[1].ops->sleep(nodes[1].x, -1, 40);
    assert_in_range(clock_ns() - start, 0, 1000 * MS);
    pthread_t thread;
    const int fd = eventfd(0, EFD_CLOEXEC);
    struct abort_later a = { &nodes[1], 20, fd, 0 };
    assert_int_equal(pthread_create(&thread, NULL, abort_later, &a), 0);
    start = clock_ns();
    uint64_t count = 0;
    for (bool readable = false; !readable && clock_ns() - start < 5000 * MS;) {
        nodes[1].ops->sleep(nodes[1].x, fd, 5000);
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        struct timeval none = { 0, 0 };
        readable = select(fd + 1, &set, NULL, NULL, &none) == 1;
    }
    assert_true(clock_ns() - start < 4000 * MS);
    assert_int_equal(read(fd, &count, 8), 8);
    pthread_join(thread, NULL);
    close(fd);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

int main(int argc, char **argv)
{
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_sleep),
    };
    return nodes_main(argv, tests, sizeof tests / sizeof *tests);
}
