#ifndef LONGSPAN_TESTS_UNIT_EXCHANGE_NODES_H
#define LONGSPAN_TESTS_UNIT_EXCHANGE_NODES_H

/* Exchanges of one process that meet each other, over every transport in turn: local, ucx over shared memory, ucx over tcp. Included once by a test program. */

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
#include "common/log.h"
#include "worker/exchange/exchange.h"

#define MS 1000000ll

struct kind {
    const char *name, *ops, *lanes, *lane;
};
static const struct kind kinds[] = {
    { "local", "local", NULL, "local" },
    { "ucx shm", "ucx", "shm", "posix" },
    { "ucx tcp", "ucx", "tcp", "tcp" },
    { "ucx best", "ucx", NULL, "posix" },
};
static const struct kind *kind;

struct block_log {
    unsigned n;
    uint16_t source;
    size_t bytes;
    uint64_t sum;
};

struct node {
    const struct exchange_ops *ops;
    struct exchange *x;
    uint16_t id;
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    size_t address_bytes;
    struct block_log blocks;
    unsigned sent;
    enum status sent_st;
};

static struct exchange_hub *hub;
static size_t stash_bytes_max, message_bytes_max;

static void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    struct node *n = ctx;
    n->blocks = (struct block_log){ n->blocks.n + 1, source, bytes, checksum64(data, bytes) };
}

static void node_open(struct node *n, uint16_t id)
{
    struct error err = { 0 };
    const struct exchange_config config = { .self = id,
                                            .bind = "127.0.0.1",
                                            .lanes = kind->lanes,
                                            .spin_us = 20,
                                            .stash_bytes_max = stash_bytes_max,
                                            .message_bytes_max = message_bytes_max,
                                            .on_block = on_block,
                                            .ctx = n,
                                            .hub = hub };
    *n = (struct node){ .ops = exchange_find(kind->ops), .id = id };
    assert_non_null(n->ops);
    const enum status st = n->ops->open(&config, &n->x, &err);
    if (st)
        print_message("%s\n", err.text);
    assert_int_equal(st, ST_OK);
    n->address_bytes = n->ops->address(n->x, n->address);
    assert_in_range(n->address_bytes, 1, EXCHANGE_ADDRESS_MAX);
}

static void node_close(struct node *n)
{
    n->ops->close(n->x);
    n->x = NULL;
}

static enum status node_meets(struct node *n, const struct node *other)
{
    struct error err = { 0 };
    const struct exchange_peer peer = { .id = other->id,
                                        .address = other->address,
                                        .address_bytes = other->address_bytes };
    return n->ops->peers_set(n->x, &peer, 1, &err);
}

enum { NODES_MAX = 12 };

static void nodes_open(struct node *nodes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        node_open(&nodes[i], (uint16_t)(10 + i));
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            assert_int_equal(node_meets(&nodes[i], &nodes[j]), ST_OK);
    }
}

/* All of them are this thread's, so all must progress while one waits. */
static void nodes_progress(struct node *nodes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (nodes[i].x)
            nodes[i].ops->progress(nodes[i].x);
    }
}

#define UNTIL(nodes, n, condition)                                                                                     \
    do {                                                                                                               \
        const int64_t until_ = clock_ns() + 8000 * MS;                                                                 \
        while (!(condition) && clock_ns() < until_)                                                                    \
            nodes_progress(nodes, n);                                                                                  \
        assert_true(condition);                                                                                        \
    } while (0)

static struct exchange_key key_of(uint64_t plan, uint16_t layer, uint16_t peer)
{
    return (struct exchange_key){
        .epoch = 5, .plan = plan, .group = 3, .layer = layer, .phase = PHASE_QUERY, .peer = peer
    };
}

static enum status send_bytes(struct node *n, struct exchange_key key, const void *data, size_t bytes)
{
    const struct iovec part = { (void *)data, bytes };
    return n->ops->send(n->x, &key, &part, 1);
}

static enum status recv_bytes(struct node *n, struct exchange_key key, void *out, size_t bytes, int timeout_ms)
{
    return n->ops->recv(n->x, &key, out, bytes, clock_ns() + timeout_ms * MS);
}

static int choose(void **state)
{
    (void)state;
    hub = exchange_hub_new();
    return hub ? 0 : -1;
}

static int leave(void **state)
{
    (void)state;
    exchange_hub_free(hub);
    return 0;
}

/* The tests, once over each kind (EXCHANGE_KIND: only that; EXCHANGE_TEST: only those) -> what main returns */
static int nodes_main(char **argv, const struct CMUnitTest *tests, size_t n_tests)
{
    /* UCX's allocation hooks crash at the exit of a thread under TSan; it reads this when it is loaded */
    if (!getenv("UCX_MEM_EVENTS")) {
        setenv("UCX_MEM_EVENTS", "n", 1);
        execv("/proc/self/exe", argv);
    }
    log_set_level(getenv("EXCHANGE_LOG") ? LOG_LEVEL_TRACE : LOG_LEVEL_ERROR);
    int failed = 0;
    const char *only = getenv("EXCHANGE_KIND"), *test = getenv("EXCHANGE_TEST");
    if (test)
        cmocka_set_test_filter(test);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        kind = &kinds[i];
        if (only && strcmp(only, kind->name))
            continue;
        print_message("---- %s\n", kind->name);
        failed += _cmocka_run_group_tests(kind->name, tests, n_tests, choose, leave);
    }
    return failed != 0;
}

#endif
