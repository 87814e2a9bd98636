/* Tokens and checksums of messages: who may send, from when to when, and that one flipped bit is found. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/exchange/core.h"

enum { SELF = 9, BYTES = 300 };

static unsigned no_progress(struct exchange *x)
{
    (void)x;
    return 0;
}

static int64_t no_sleep(struct exchange *x)
{
    (void)x;
    return 0;
}

struct bed {
    struct waker waker;
    struct exchange x;
    uint8_t payload[BYTES];
};

static void bed_open(struct bed *b)
{
    const struct exchange_config config = { .self = SELF, .tokens = true };
    const struct transport transport = { no_progress, no_sleep, -1 };
    struct error err = { 0 };
    memset(b, 0, sizeof *b);
    assert_int_equal(waker_init(&b->waker), ST_OK);
    assert_int_equal(exchange_init(&b->x, &config, &transport, &b->waker, &err), ST_OK);
    for (int i = 0; i < BYTES; i++)
        b->payload[i] = (uint8_t)(i * 7);
}

static void bed_close(struct bed *b)
{
    exchange_deinit(&b->x);
    waker_deinit(&b->waker);
}

static void named(struct bed *b, uint16_t id)
{
    const struct exchange_peer peer = { .id = id };
    exchange_peer_named(&b->x, exchange_peer_put(&b->x, id, 100 + id), &peer);
}

/* As the coordinator would have given it to the sender. */
static struct message_header header(struct bed *b, uint16_t source, uint64_t roster)
{
    return (struct message_header){ .kind = MESSAGE_STEP,
                                    .source = source,
                                    .from = 100 + source,
                                    .to = b->x.instance,
                                    .payload_bytes = BYTES,
                                    .roster = roster,
                                    .token = token_of(exchange_secret(&b->x), source, roster),
                                    .sum = checksum64(b->payload, BYTES),
                                    .step = { .epoch = 3, .plan = 4, .group = 5, .layer = 6, .phase = PHASE_PARTIAL } };
}

static bool comes(struct bed *b, const struct message_header *h)
{
    uint8_t wire[MESSAGE_HEADER_BYTES];
    struct message_header read;
    message_header_write(h, wire);
    assert_true(message_header_read(wire, sizeof wire, BYTES, &read));
    assert_memory_equal(&read.token, &h->token, sizeof h->token);
    assert_int_equal(read.sum, h->sum);
    return exchange_genuine(&b->x, &read, b->payload);
}

static void test_who_may_send(void **state)
{
    (void)state;
    struct bed b;
    bed_open(&b);
    exchange_roster(&b.x, 5);
    named(&b, 1);
    named(&b, 2);
    struct message_header h = header(&b, 1, 5);
    assert_true(comes(&b, &h));
    assert_true(comes(&b, &h)); /* by the token that was seen */
    h = header(&b, 1, 4);       /* it has not heard of the list of now */
    assert_true(comes(&b, &h));
    h = header(&b, 1, 5);
    for (int bit = 0; bit < 128; bit++) {
        h.token.byte[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(comes(&b, &h));
        h.token.byte[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    h.source = 2; /* of another sender, of another list, of another receiver */
    assert_false(comes(&b, &h));
    h = header(&b, 1, 5);
    h.roster = 6;
    assert_false(comes(&b, &h));
    h = header(&b, 1, 5);
    h.token = token_of(b.payload, 1, 5);
    assert_false(comes(&b, &h));
    h.token = (struct digest){ 0 };
    assert_false(comes(&b, &h));
    assert_int_equal(b.x.stats.forged, 132);
    assert_int_equal(b.x.stats.dropped, 132);
    assert_int_equal(exchange_peer(&b.x, 1)->dropped, 0); /* it was not the one */
    bed_close(&b);
}

static void test_rosters(void **state)
{
    (void)state;
    struct bed b;
    bed_open(&b);
    struct message_header h = header(&b, 7, 1); /* nothing was told here yet */
    assert_true(comes(&b, &h));
    assert_true(exchange_admit(&b.x, &h));
    stash_release(&b.x.stash, BYTES);
    exchange_roster(&b.x, 5);
    named(&b, 1);
    assert_false(comes(&b, &h)); /* it was of a list once, not of this one */
    h = header(&b, 3, 5);
    assert_false(comes(&b, &h)); /* a token of this list, but it is not on it */
    h = header(&b, 3, 6);
    assert_true(comes(&b, &h)); /* of the next list, which is on its way */
    assert_true(exchange_admit(&b.x, &h));
    stash_release(&b.x.stash, BYTES);
    assert_true(comes(&b, &h));
    exchange_roster(&b.x, 6);
    named(&b, 3);
    h = header(&b, 1, 5);
    assert_false(comes(&b, &h)); /* off the list: fenced, whatever it goes on sending */
    h = header(&b, 3, 6);
    assert_true(comes(&b, &h));
    exchange_roster(&b.x, 7);
    named(&b, 3);
    assert_true(comes(&b, &h)); /* on both lists, and has not heard of the new one */
    bed_close(&b);
}

static void test_flipped_bits(void **state)
{
    (void)state;
    struct bed b;
    bed_open(&b);
    exchange_roster(&b.x, 1);
    named(&b, 1);
    const struct message_header h = header(&b, 1, 1);
    uint8_t wire[MESSAGE_HEADER_BYTES];
    struct message_header read;
    message_header_write(&h, wire);
    for (int bit = 0; bit < 8 * MESSAGE_HEADER_BYTES; bit++) {
        wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(message_header_read(wire, sizeof wire, BYTES, &read) && exchange_genuine(&b.x, &read, b.payload));
        wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(message_header_read(wire, sizeof wire, BYTES, &read) && exchange_genuine(&b.x, &read, b.payload));
    for (int bit = 0; bit < 8 * BYTES; bit++) {
        b.payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(exchange_genuine(&b.x, &read, b.payload));
        b.payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_false(message_header_read(wire, sizeof wire, BYTES - 1, &read));
    bed_close(&b);
}

/* ---- over ucx ---- */

static void pair_open(struct exchange *x[2])
{
    struct error err = { 0 };
    for (uint16_t i = 0; i < 2; i++) {
        const struct exchange_config config = { .self = i, .bind = "127.0.0.1", .lanes = "tcp", .tokens = true };
        assert_int_equal(exchange_ucx.open(&config, &x[i], &err), ST_OK);
    }
}

/* x[i] is told of the other, and of a token that is right or not. */
static void pair_meet(struct exchange *x[2], int i, uint64_t roster, bool right)
{
    struct error err = { 0 };
    uint8_t address[EXCHANGE_ADDRESS_MAX];
    const size_t bytes = exchange_ucx.address(x[1 - i], address);
    struct exchange_peer peer = { .id = (uint16_t)(1 - i), .address = address, .address_bytes = bytes };
    peer.token = token_of(exchange_secret(x[1 - i]), (uint16_t)i, roster);
    peer.token.byte[15] ^= !right;
    exchange_roster(x[i], roster);
    if (exchange_ucx.peers_set(x[i], &peer, 1, &err))
        fail_msg("%s", err.text);
}

enum { LARGE = 70000 };

/* A message from x[0] to x[1]. -> it came, and was not dropped */
static bool pair_send(struct exchange *x[2], uint64_t plan)
{
    static uint8_t out[LARGE];
    const struct iovec part = { out, sizeof out };
    const struct exchange_key key = { .epoch = 1, .plan = plan, .group = 1, .phase = PHASE_QUERY, .peer = 1 };
    struct exchange_stats before, now;
    memset(out, (int)plan, sizeof out);
    exchange_ucx.stats(x[1], &before);
    if (exchange_ucx.send(x[0], &key, &part, 1))
        fail_msg("message %d was not sent", (int)plan);
    for (const int64_t until = clock_ns() + (int64_t)5000000000; clock_ns() < until;) {
        exchange_ucx.progress(x[0]);
        exchange_ucx.progress(x[1]);
        exchange_ucx.stats(x[1], &now);
        if (now.dropped != before.dropped)
            return false;
        if (now.messages_received != before.messages_received)
            return true;
    }
    fail_msg("message %d neither came nor was dropped", (int)plan);
    return false;
}

static void pair_read(struct exchange *x[2], uint64_t plan)
{
    static uint8_t in[LARGE], want[LARGE];
    const struct exchange_key key = { .epoch = 1, .plan = plan, .group = 1, .phase = PHASE_QUERY };
    assert_int_equal(exchange_ucx.recv(x[1], &key, in, sizeof in, clock_ns() + 1000000000), ST_OK);
    memset(want, (int)plan, sizeof want);
    assert_memory_equal(in, want, sizeof in);
}

static void test_ucx(void **state)
{
    (void)state;
    struct exchange *x[2];
    struct exchange_stats stats;
    pair_open(x);
    pair_meet(x, 0, 1, true);
    assert_true(pair_send(x, 1)); /* the receiver has not heard of it yet */
    pair_meet(x, 1, 1, true);
    pair_read(x, 1);
    assert_true(pair_send(x, 2));
    pair_read(x, 2);
    pair_meet(x, 0, 2, false);
    assert_false(pair_send(x, 3));
    pair_meet(x, 0, 2, true);
    assert_true(pair_send(x, 4));
    pair_read(x, 4);
    exchange_roster(x[1], 3); /* without the sender */
    assert_false(pair_send(x, 5));
    pair_meet(x, 0, 4, true); /* it is counted in again */
    assert_true(pair_send(x, 6));
    exchange_ucx.stats(x[1], &stats);
    assert_int_equal(stats.forged, 2);
    exchange_ucx.close(x[0]);
    exchange_ucx.close(x[1]);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_may_send),
        cmocka_unit_test(test_rosters),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_ucx),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
