/* One suite for all transports: local, ucx over shared memory, ucx over tcp. Each exchange is used by one thread at a time. */
/* ctest-labels: tsan */
/* ctest-serial */
#include "worker/exchange/exchange.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/unit/exchange/nodes.h"
#include "worker/exchange/message.h"

static void on_sent(void *ctx, enum status st)
{
    struct node *n = ctx;
    n->sent++;
    n->sent_st = st;
}

static uint64_t dropped(struct node *n)
{
    struct exchange_stats stats;
    n->ops->stats(n->x, &stats);
    return stats.dropped;
}

static uint8_t *random_bytes(uint64_t seed, size_t bytes)
{
    struct rng rng = { seed, 0 };
    uint8_t *p = malloc(bytes + 8);
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t r = rng_next(&rng);
        memcpy(p + i, &r, 8);
    }
    return p;
}

static void test_sizes_and_order(void **state)
{
    (void)state;
    static const size_t sizes[] = { 0, 1, 7, 55, 1000, 8191, 8192, 8193, 8256, 16600, 65536, 262144, 1000003, 8 << 20 };
    enum { N = sizeof sizes / sizeof *sizes };
    struct node nodes[2];
    nodes_open(nodes, 2);
    /* all are sent before any is asked for, and asked for in another order */
    for (uint16_t i = 0; i < N; i++) {
        uint8_t *data = random_bytes(i, sizes[i]);
        const size_t a = sizes[i] / 3, b = sizes[i] / 2;
        const struct iovec parts[] = { { data, a }, { data + a, b - a }, { NULL, 0 }, { data + b, sizes[i] - b } };
        const struct exchange_key key = key_of(1, i, 11);
        assert_int_equal(nodes[0].ops->send(nodes[0].x, &key, parts, 4), ST_OK);
        memset(data, 0xee, sizes[i]); /* the bytes may be reused */
        free(data);
    }
    for (uint16_t k = 0; k < N; k++) {
        const uint16_t i = (uint16_t)((k * 5 + 3) % N);
        uint8_t *want = random_bytes(i, sizes[i]), *got = calloc(1, sizes[i] + 1);
        const struct exchange_key key = key_of(1, i, 10);
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &key));
        assert_int_equal(recv_bytes(&nodes[1], key, got, sizes[i], 1000), ST_OK);
        assert_memory_equal(got, want, sizes[i]);
        assert_int_equal(got[sizes[i]], 0);
        free(want);
        free(got);
    }
    struct exchange_stats sent, received;
    nodes[0].ops->stats(nodes[0].x, &sent);
    nodes[1].ops->stats(nodes[1].x, &received);
    assert_int_equal(sent.messages_sent, N);
    assert_int_equal(received.messages_received, N);
    assert_int_equal(sent.bytes_sent, received.bytes_received);
    assert_int_equal(received.dropped, 0);
    assert_string_equal(nodes[0].ops->lane(nodes[0].x, 11), kind->lane);
    assert_string_equal(nodes[1].ops->lane(nodes[1].x, 10), kind->lane);
    assert_string_equal(nodes[1].ops->lane(nodes[1].x, 99), "");
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_keys_differ(void **state)
{
    (void)state;
    struct node nodes[2];
    nodes_open(nodes, 2);
    struct exchange_key keys[8];
    for (int i = 0; i < 8; i++)
        keys[i] = key_of(1, 1, 11);
    keys[1].epoch++;
    keys[2].plan++;
    keys[3].group++;
    keys[4].layer++;
    keys[5].phase = PHASE_SKETCH;
    keys[6].phase = PHASE_PARTIAL;
    keys[7].plan += 1ull << 40;
    for (int i = 0; i < 8; i++)
        assert_int_equal(send_bytes(&nodes[0], keys[i], &i, sizeof i), ST_OK);
    for (int i = 7; i >= 0; i--) {
        int got = -1;
        keys[i].peer = 10;
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &keys[i]));
        assert_int_equal(recv_bytes(&nodes[1], keys[i], &got, sizeof got, 1000), ST_OK);
        assert_int_equal(got, i);
    }
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_refusals(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 1, out[8];
    nodes_open(nodes, 2);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 77), &byte, 1), ST_PEER);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 10), &byte, 1), ST_PEER); /* to itself */
    assert_int_equal(recv_bytes(&nodes[0], key_of(1, 0, 77), out, 1, 1000), ST_PEER);
    /* another length than the plan says, here already and not yet */
    struct exchange_key key = key_of(1, 0, 10);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 11), &byte, 1), ST_OK);
    UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &key));
    assert_int_equal(recv_bytes(&nodes[1], key, out, 2, 1000), ST_PROTOCOL);
    /* nothing comes */
    const int64_t start = clock_ns();
    assert_int_equal(recv_bytes(&nodes[1], key, out, 1, 60), ST_TIMEOUT);
    assert_in_range(clock_ns() - start, 60 * MS, 1000 * MS);
    assert_int_equal(recv_bytes(&nodes[1], key, out, 1, -5), ST_TIMEOUT);
    /* the same key twice: the first stays */
    for (byte = 5; byte < 7; byte++)
        assert_int_equal(send_bytes(&nodes[0], key_of(2, 0, 11), &byte, 1), ST_OK);
    UNTIL(nodes, 2, dropped(&nodes[1]) == 1);
    assert_int_equal(recv_bytes(&nodes[1], key_of(2, 0, 10), out, 1, 1000), ST_OK);
    assert_int_equal(out[0], 5);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_addresses(void **state)
{
    (void)state;
    struct node a, b;
    struct error err = { 0 };
    node_open(&a, 1);
    node_open(&b, 2);
    struct exchange_peer peer = { .id = 3, .address = b.address, .address_bytes = b.address_bytes };
    assert_int_equal(a.ops->peers_set(a.x, &peer, 1, &err), ST_PROTOCOL); /* another's address */
    for (size_t n = 0; n < b.address_bytes; n++) {
        uint8_t *cut = malloc(n + 1);
        memcpy(cut, b.address, n);
        peer = (struct exchange_peer){ .id = 2, .address = cut, .address_bytes = n };
        err = (struct error){ 0 };
        assert_int_equal(a.ops->peers_set(a.x, &peer, 1, &err), ST_PROTOCOL);
        assert_true(err.text[0] != 0);
        free(cut);
    }
    for (size_t bit = 0; bit < 8 * b.address_bytes; bit++) {
        b.address[bit / 8] ^= (uint8_t)(1u << bit % 8);
        peer = (struct exchange_peer){ .id = 2, .address = b.address, .address_bytes = b.address_bytes };
        assert_int_equal(a.ops->peers_set(a.x, &peer, 1, NULL), ST_PROTOCOL);
        b.address[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    uint8_t *junk = random_bytes(1, 5000);
    for (size_t n = 0; n < 5000; n += 61) {
        peer = (struct exchange_peer){ .id = 2, .address = junk, .address_bytes = n };
        assert_int_equal(a.ops->peers_set(a.x, &peer, 1, NULL), ST_PROTOCOL);
    }
    free(junk);
    node_close(&a);
    node_close(&b);
}

/* Messages of a peer that was not announced yet are kept; those of an earlier life of it go when the later one is announced. */
static void test_heard_before_told(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 9, out = 0;
    node_open(&nodes[0], 10);
    node_open(&nodes[1], 11);
    assert_int_equal(node_meets(&nodes[0], &nodes[1]), ST_OK);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 11), &byte, 1), ST_OK);
    const struct exchange_key key = key_of(1, 0, 10);
    struct exchange_stats stats = { 0 };
    UNTIL(nodes, 2, (nodes[1].ops->stats(nodes[1].x, &stats), stats.messages_received == 1));
    assert_int_equal(node_meets(&nodes[1], &nodes[0]), ST_OK);
    assert_int_equal(recv_bytes(&nodes[1], key, &out, 1, 1000), ST_OK);
    assert_int_equal(out, 9);
    assert_int_equal(send_bytes(&nodes[0], key_of(2, 0, 11), &byte, 1), ST_OK);
    UNTIL(nodes, 2, (nodes[1].ops->stats(nodes[1].x, &stats), stats.messages_received == 2));
    node_close(&nodes[0]);
    node_open(&nodes[0], 10);
    assert_int_equal(node_meets(&nodes[1], &nodes[0]), ST_OK);
    assert_int_equal(node_meets(&nodes[0], &nodes[1]), ST_OK);
    assert_int_equal(recv_bytes(&nodes[1], key_of(2, 0, 10), &out, 1, 50), ST_TIMEOUT);
    byte = 33;
    assert_int_equal(send_bytes(&nodes[0], key_of(2, 0, 11), &byte, 1), ST_OK);
    const struct exchange_key again = key_of(2, 0, 10);
    UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &again));
    assert_int_equal(recv_bytes(&nodes[1], again, &out, 1, 1000), ST_OK);
    assert_int_equal(out, 33);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_fence(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 1, out = 0;
    nodes_open(nodes, 2);
    struct exchange_key to = key_of(1, 0, 11), from = key_of(1, 0, 10);
    assert_int_equal(send_bytes(&nodes[0], to, &byte, 1), ST_OK);
    UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &from));
    nodes[1].ops->fence(nodes[1].x, 3, 5); /* below 5: epoch 5 stays */
    assert_true(nodes[1].ops->ready(nodes[1].x, &from));
    nodes[1].ops->fence(nodes[1].x, 4, 100); /* another group */
    nodes[1].ops->fence(nodes[1].x, 3, 6);
    assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 1000), ST_STALE);
    nodes[1].ops->fence(nodes[1].x, 3, 2); /* never lowers */
    assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 1000), ST_STALE);
    /* a late message of the old epoch is refused, small or large; one of the new epoch is not */
    uint8_t *large = random_bytes(1, 300000);
    to.plan = 2;
    assert_int_equal(send_bytes(&nodes[0], to, &byte, 1), ST_OK);
    to.plan = 3;
    assert_int_equal(send_bytes(&nodes[0], to, large, 300000), ST_OK);
    to.epoch = from.epoch = 6;
    assert_int_equal(send_bytes(&nodes[0], to, &byte, 1), ST_OK);
    from.plan = 3;
    UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &from) && dropped(&nodes[1]) == 2);
    assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 1000), ST_OK);
    free(large);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_stash_bound(void **state)
{
    (void)state;
    struct node nodes[2];
    stash_bytes_max = 200000;
    nodes_open(nodes, 2);
    stash_bytes_max = 0;
    uint8_t *data = random_bytes(1, 100000), *out = malloc(100000);
    for (uint16_t i = 0; i < 6; i++)
        assert_int_equal(send_bytes(&nodes[0], key_of(1, i, 11), data, 100000), ST_OK);
    const struct exchange_key first = key_of(1, 0, 10);
    UNTIL(nodes, 2, dropped(&nodes[1]) >= 5 && nodes[1].ops->ready(nodes[1].x, &first));
    assert_int_equal(recv_bytes(&nodes[1], key_of(1, 0, 10), out, 100000, 1000), ST_OK);
    assert_int_equal(recv_bytes(&nodes[1], key_of(1, 3, 10), out, 100000, 50), ST_TIMEOUT);
    /* room again, and the peer is no worse off */
    const struct exchange_key key = key_of(2, 0, 10);
    assert_int_equal(send_bytes(&nodes[0], key_of(2, 0, 11), data, 100000), ST_OK);
    UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &key));
    assert_int_equal(recv_bytes(&nodes[1], key, out, 100000, 1000), ST_OK);
    assert_memory_equal(out, data, 100000);
    free(data);
    free(out);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_blocks(void **state)
{
    (void)state;
    static const size_t sizes[] = { 1, 300, 5000, 100000, 262144, 262145, 1500000, 8 << 20 };
    enum { N = sizeof sizes / sizeof *sizes };
    struct node nodes[2];
    nodes_open(nodes, 2);
    for (size_t i = 0; i < N; i++) {
        uint8_t *data = random_bytes(i, sizes[i]);
        const size_t cut = sizes[i] > 200 ? 200 : 0;
        const struct iovec parts[2] = { { data, cut }, { data + cut, sizes[i] - cut } };
        nodes[0].sent = 0;
        assert_int_equal(nodes[0].ops->send_block(nodes[0].x, 11, parts, 2, on_sent, &nodes[0]), ST_OK);
        UNTIL(nodes, 2, nodes[1].blocks.n == i + 1 && nodes[0].sent == 1);
        assert_int_equal(nodes[0].sent_st, ST_OK);
        assert_int_equal(nodes[1].blocks.source, 10);
        assert_int_equal(nodes[1].blocks.bytes, sizes[i]);
        assert_int_equal(nodes[1].blocks.sum, checksum64(data, sizes[i]));
        free(data);
    }
    /* several at once, both ways, among messages */
    enum { MANY = 6, BYTES = 700001 };
    uint8_t *data = random_bytes(50, BYTES), *out = malloc(BYTES);
    nodes[0].sent = nodes[1].sent = nodes[0].blocks.n = nodes[1].blocks.n = 0;
    for (uint16_t i = 0; i < MANY; i++) {
        const struct iovec part = { data, BYTES };
        assert_int_equal(nodes[0].ops->send_block(nodes[0].x, 11, &part, 1, on_sent, &nodes[0]), ST_OK);
        assert_int_equal(nodes[1].ops->send_block(nodes[1].x, 10, &part, 1, on_sent, &nodes[1]), ST_OK);
        assert_int_equal(send_bytes(&nodes[0], key_of(9, i, 11), data, BYTES), ST_OK);
        assert_int_equal(send_bytes(&nodes[1], key_of(9, i, 10), data, 99), ST_OK);
    }
    for (uint16_t i = 0; i < MANY; i++) {
        const struct exchange_key a = key_of(9, i, 10), b = key_of(9, i, 11);
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &a) && nodes[0].ops->ready(nodes[0].x, &b));
        assert_int_equal(recv_bytes(&nodes[1], a, out, BYTES, 1000), ST_OK);
        assert_memory_equal(out, data, BYTES);
        assert_int_equal(recv_bytes(&nodes[0], b, out, 99, 1000), ST_OK);
    }
    UNTIL(nodes, 2,
          nodes[0].sent == MANY && nodes[1].sent == MANY && nodes[0].blocks.n == MANY && nodes[1].blocks.n == MANY);
    assert_int_equal(nodes[0].blocks.sum, checksum64(data, BYTES));
    const struct iovec part = { data, BYTES };
    assert_int_equal(nodes[0].ops->send_block(nodes[0].x, 55, &part, 1, on_sent, &nodes[0]), ST_PEER);
    assert_int_equal(nodes[0].sent, MANY);
    free(data);
    free(out);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_block_over_limit(void **state)
{
    (void)state;
    struct node nodes[2];
    message_bytes_max = 1 << 20;
    nodes_open(nodes, 2);
    message_bytes_max = 0;
    uint8_t *data = random_bytes(1, 2 << 20);
    struct iovec part = { data, 2 << 20 };
    assert_int_equal(nodes[0].ops->send_block(nodes[0].x, 11, &part, 1, on_sent, &nodes[0]), ST_OK);
    UNTIL(nodes, 2, dropped(&nodes[1]) >= 1 && nodes[0].sent == 1);
    part.iov_len = 1 << 20;
    assert_int_equal(nodes[0].ops->send_block(nodes[0].x, 11, &part, 1, on_sent, &nodes[0]), ST_OK);
    UNTIL(nodes, 2, nodes[1].blocks.n == 1 && nodes[0].sent == 2);
    assert_int_equal(nodes[1].blocks.bytes, 1 << 20);
    /* a message over the limit, too */
    const uint64_t before = dropped(&nodes[1]);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 11), data, 2 << 20), ST_OK);
    UNTIL(nodes, 2, dropped(&nodes[1]) == before + 1);
    free(data);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

static void test_drop_and_return(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 1, out = 0;
    nodes_open(nodes, 2);
    uint8_t *data = random_bytes(1, 500000), *large = malloc(500000);
    for (unsigned turn = 0; turn < 3; turn++) {
        const struct exchange_key a = key_of(turn, 1, 10), b = key_of(turn, 2, 10), back = key_of(turn, 1, 10);
        assert_int_equal(send_bytes(&nodes[0], key_of(turn, 1, 11), &byte, 1), ST_OK);
        assert_int_equal(send_bytes(&nodes[0], key_of(turn, 2, 11), data, 500000), ST_OK);
        assert_int_equal(send_bytes(&nodes[1], back, data, 500000), ST_OK);
        struct exchange_key back_from = back;
        back_from.peer = 11;
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &a) && nodes[0].ops->ready(nodes[0].x, &back_from));
        nodes[1].ops->peer_drop(nodes[1].x, 10);
        nodes[1].ops->peer_drop(nodes[1].x, 10);
        nodes[1].ops->peer_drop(nodes[1].x, 1234);
        /* what it sent is gone, and so is it; and it notices itself */
        assert_int_equal(recv_bytes(&nodes[1], a, &out, 1, 1000), ST_PEER);
        assert_int_equal(recv_bytes(&nodes[1], b, large, 500000, 1000), ST_PEER);
        assert_int_equal(send_bytes(&nodes[1], back, &byte, 1), ST_PEER);
        assert_string_equal(nodes[1].ops->lane(nodes[1].x, 10), "");
        struct exchange_key later = key_of(turn, 77, 11);
        UNTIL(nodes, 2, nodes[0].ops->ready(nodes[0].x, &later));
        assert_int_equal(recv_bytes(&nodes[0], later, &out, 1, 1000), ST_PEER);
        /* what had come before is still good */
        assert_int_equal(recv_bytes(&nodes[0], back_from, large, 500000, 1000), ST_OK);
        assert_memory_equal(large, data, 500000);
        /* both are told of each other again, with the same addresses */
        assert_int_equal(node_meets(&nodes[turn % 2], &nodes[1 - turn % 2]), ST_OK);
        assert_int_equal(node_meets(&nodes[1 - turn % 2], &nodes[turn % 2]), ST_OK);
    }
    free(data);
    free(large);
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

/* One side drops the other and is told of it again; the other is told nothing. */
static void test_one_sided_drop(void **state)
{
    (void)state;
    struct node nodes[2];
    uint8_t byte = 1, out = 0;
    nodes_open(nodes, 2);
    for (uint8_t turn = 0; turn < 4; turn++) {
        const struct exchange_key there = key_of(turn, 1, 10), back = key_of(turn, 1, 11);
        struct node *dropper = &nodes[turn % 2], *other = &nodes[1 - turn % 2];
        dropper->ops->peer_drop(dropper->x, other->id);
        if (turn < 2)
            nodes_progress(nodes, 2);
        assert_int_equal(node_meets(dropper, other), ST_OK);
        /* it hears of it by and by; then both can send */
        for (const int64_t until = clock_ns() + (strcmp(kind->ops, "local") ? 300 : 10) * MS; clock_ns() < until;)
            nodes_progress(nodes, 2);
        byte = (uint8_t)(turn + 50);
        assert_int_equal(send_bytes(&nodes[1], there, &turn, 1), ST_OK);
        assert_int_equal(send_bytes(&nodes[0], back, &byte, 1), ST_OK);
        uint8_t *large = random_bytes(turn, 3 << 20), *got = malloc(3 << 20);
        const struct exchange_key large_back = key_of(turn, 2, 11), large_from = key_of(turn, 2, 10);
        assert_int_equal(send_bytes(&nodes[0], large_back, large, 3 << 20), ST_OK);
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &large_from));
        assert_int_equal(recv_bytes(&nodes[1], large_from, got, 3 << 20, 1000), ST_OK);
        assert_memory_equal(got, large, 3 << 20);
        free(large);
        free(got);
        const struct exchange_key from = key_of(turn, 1, 10);
        UNTIL(nodes, 2, nodes[1].ops->ready(nodes[1].x, &from));
        assert_int_equal(recv_bytes(&nodes[1], from, &out, 1, 1000), ST_OK);
        assert_int_equal(out, turn + 50);
    }
    node_close(&nodes[0]);
    node_close(&nodes[1]);
}

/* A peer that closes: waits for it end, what it sent before counts; one that takes its place is met. */
static void test_close_and_replace(void **state)
{
    (void)state;
    struct node nodes[3];
    uint8_t byte = 4, out = 0;
    nodes_open(nodes, 3);
    const struct exchange_key a = key_of(1, 0, 10);
    assert_int_equal(send_bytes(&nodes[0], key_of(1, 0, 11), &byte, 1), ST_OK);
    UNTIL(nodes, 3, nodes[1].ops->ready(nodes[1].x, &a));
    node_close(&nodes[0]);
    assert_int_equal(recv_bytes(&nodes[1], a, &out, 1, 1000), ST_OK);
    assert_int_equal(recv_bytes(&nodes[1], key_of(2, 0, 10), &out, 1, 5000), ST_PEER);
    assert_int_equal(recv_bytes(&nodes[2], key_of(2, 0, 10), &out, 1, 5000), ST_PEER);
    assert_int_equal(send_bytes(&nodes[1], key_of(2, 0, 10), &byte, 1), ST_PEER);
    node_open(&nodes[0], 10);
    for (int i = 1; i < 3; i++) {
        assert_int_equal(node_meets(&nodes[i], &nodes[0]), ST_OK);
        assert_int_equal(node_meets(&nodes[0], &nodes[i]), ST_OK);
    }
    for (uint16_t i = 1; i < 3; i++) {
        byte = (uint8_t)(i + 60);
        const struct exchange_key key = key_of(3, 0, 10);
        assert_int_equal(send_bytes(&nodes[0], key_of(3, 0, (uint16_t)(10 + i)), &byte, 1), ST_OK);
        UNTIL(nodes, 3, nodes[i].ops->ready(nodes[i].x, &key));
        assert_int_equal(recv_bytes(&nodes[i], key, &out, 1, 1000), ST_OK);
        assert_int_equal(out, i + 60);
    }
    for (int i = 0; i < 3; i++)
        node_close(&nodes[i]);
}

/* Links between GPUs are asked for by name; with them or without, messages through hosts are the same. */
static void test_table(void **state)
{
    (void)state;
    static const char *const names[] = { "local", "ucx", "peer", "nccl" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct exchange_ops *ops = exchange_find(names[i]);
        assert_non_null(ops);
        assert_string_equal(ops->name, names[i]);
        assert_int_equal(ops->gpu != NULL, i > 0); /* exchanges of one process have no GPUs apart */
        assert_true(i < 2 || ops->send == exchange_ucx.send);
    }
    assert_null(exchange_find("tcp"));
}

int main(int argc, char **argv)
{
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_sizes_and_order),
        cmocka_unit_test(test_keys_differ),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_heard_before_told),
        cmocka_unit_test(test_fence),
        cmocka_unit_test(test_stash_bound),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_block_over_limit),
        cmocka_unit_test(test_drop_and_return),
        cmocka_unit_test(test_one_sided_drop),
        cmocka_unit_test(test_close_and_replace),
    };
    return nodes_main(argv, tests, sizeof tests / sizeof *tests);
}
