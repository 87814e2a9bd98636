/* Messages and addresses from peers: headers, keys, pieces of blocks, as a transport hands them to the exchange's core. */
/* fuzz-libs: longspan_exchange */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/log.h"
#include "worker/exchange/core.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { SELF = 9, STASH_BYTES = 100000, MESSAGE_BYTES = 20000 };

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

static void on_block(void *ctx, uint16_t source, const uint8_t *data, size_t bytes)
{
    uint64_t *sum = ctx;
    *sum += source + checksum64(data, bytes);
}

static void on_sent(void *ctx, enum status st)
{
    *(uint64_t *)ctx += (uint64_t)st;
}

static struct exchange_key key_read(struct reader *r)
{
    return (struct exchange_key){ .epoch = reader_u8(r) % 4u,
                                  .plan = reader_u8(r) % 2u,
                                  .group = reader_u8(r) % 3u,
                                  .layer = reader_u8(r) % 2u,
                                  .phase = reader_u8(r) % PHASES,
                                  .peer = reader_u8(r) % 6u };
}

/* A header that says what the input says, or bytes of the input as they are. */
static void message(struct exchange *x, struct reader *r)
{
    static const uint8_t zeros[512] = { 0 };
    uint8_t header[MESSAGE_HEADER_BYTES];
    const uint8_t how = reader_u8(r);
    size_t header_bytes = MESSAGE_HEADER_BYTES, payload_bytes = reader_u8(r) * 2u;
    struct message_header h = { .kind = reader_u8(r) % 5u,
                                .source = reader_u8(r) % 70u,
                                .to = x->instance,
                                .link = reader_u8(r) % 3u,
                                .payload_bytes = payload_bytes };
    const struct peer *p = exchange_peer(x, h.source);
    h.from = p && how & 1 ? p->instance : 1u + how % 3u;
    if (h.kind == MESSAGE_STEP) {
        const struct exchange_key key = key_read(r);
        h.step.epoch = key.epoch;
        h.step.plan = key.plan;
        h.step.group = key.group;
        h.step.layer = key.layer;
        h.step.phase = key.phase;
    } else if (h.kind == MESSAGE_BLOCK) {
        h.block.number = reader_u8(r) % 3u;
        h.block.total = how & 2 ? reader_u64(r) : reader_u16(r);
        h.block.offset = how & 4 ? reader_u64(r) : reader_u16(r);
    }
    if (h.kind >= MESSAGE_BYE && how & 8)
        h.payload_bytes = payload_bytes = 0;
    h.roster = how >> 6;
    h.token = token_of(x->secret, h.source, h.roster);
    h.token.byte[0] ^= (how & 48) == 48;
    h.sum = checksum64(zeros, payload_bytes) ^ ((how & 34) == 34);
    message_header_write(&h, header);
    if (how & 16) {
        const size_t n = reader_u8(r);
        const uint8_t *raw = reader_take(r, n);
        if (!raw)
            return;
        header_bytes = n;
        if (n)
            memcpy(header, raw, n < sizeof header ? n : sizeof header);
    }
    uint8_t *exact = malloc(header_bytes + 1); /* so that a sanitizer sees a read past it */
    memcpy(exact, header, header_bytes < sizeof header ? header_bytes : sizeof header);
    if (message_header_read(exact, header_bytes, payload_bytes, &h) && exchange_genuine(x, &h, zeros) &&
        exchange_admit(x, &h)) {
        if (h.kind == MESSAGE_BYE) {
            if (exchange_bye_counts(x, &h))
                exchange_peer_down(x, exchange_peer(x, h.source), "bye", true);
        } else if (h.kind != MESSAGE_HELLO) {
            exchange_arrived(x, &h, zeros);
        }
    }
    free(exact);
}

/* Pieces whose bytes take a while: begun, then something else happens, then they are there or not. */
static void slow_piece(struct exchange *x, struct reader *r)
{
    const struct peer *p = exchange_peer(x, reader_u8(r) % 6u);
    const uint8_t how = reader_u8(r);
    if (!p)
        return;
    struct message_header h = {
        .kind = MESSAGE_BLOCK, .source = p->id, .from = p->instance, .to = x->instance, .link = p->link
    };
    h.block.number = reader_u8(r) % 3u;
    h.block.total = reader_u16(r);
    h.block.offset = how & 1 ? 0 : reader_u16(r);
    h.payload_bytes = reader_u16(r);
    uint8_t header[MESSAGE_HEADER_BYTES];
    message_header_write(&h, header);
    if (!message_header_read(header, sizeof header, h.payload_bytes, &h) || !exchange_admit(x, &h))
        return;
    struct message *m = exchange_piece_begin(x, &h);
    if (how & 2)
        message(x, r);
    if (how & 4)
        exchange_peer_forget(x, exchange_peer(x, h.source));
    if (how & 8)
        exchange_peer_put(x, h.source, 1u + how % 5u);
    if (!m)
        return;
    memset(m->payload + h.block.offset, 1, h.payload_bytes);
    exchange_piece_end(x, &h, m, !(how & 16));
}

/* A new roster, of which some of the peers are. */
static void roster(struct exchange *x, struct reader *r)
{
    const uint8_t of = reader_u8(r);
    exchange_roster(x, x->roster + of % 2);
    for (uint16_t id = 0; id < 6; id++) {
        const struct exchange_peer named = { .id = id };
        struct peer *p = of >> (id + 1) & 1 ? exchange_peer(x, id) : NULL;
        if (p)
            exchange_peer_named(x, p, &named);
    }
}

static void address(const struct exchange *x, struct reader *r)
{
    const size_t n = reader_u8(r);
    const uint8_t *raw = reader_take(r, n);
    uint8_t exact[256 + 8];
    if (!raw)
        return;
    memcpy(exact, raw, n);
    const uint64_t sum = checksum64(exact, n);
    memcpy(exact + n, &sum, 8);
    struct error err = { 0 };
    struct peer_address a;
    const struct exchange_peer peer = { .id = (uint16_t)n, .address = exact, .address_bytes = n + 8 };
    if (!exchange_peer_address(x, &peer, &a, &err) && a.full_bytes + a.net_bytes > n)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint64_t sum = 0;
    struct waker waker;
    static struct exchange x;
    const struct exchange_config config = { .self = SELF,
                                            .stash_bytes_max = STASH_BYTES,
                                            .message_bytes_max = MESSAGE_BYTES,
                                            .on_block = on_block,
                                            .tokens = true,
                                            .ctx = &sum };
    const struct transport transport = { no_progress, no_sleep, -1 };
    log_set_level(LOG_LEVEL_ERROR - 1);
    memset(&x, 0, sizeof x);
    if (waker_init(&waker) || exchange_init(&x, &config, &transport, &waker, NULL))
        abort();
    exchange_peer_put(&x, 1, 1);
    exchange_peer_put(&x, 2, 2);
    struct reader r = reader_of(data, bytes);
    uint8_t out[600];
    while (reader_left(&r) && !r.bad) {
        struct exchange_key key;
        switch (reader_u8(&r) % 10) {
        case 0:
            key = key_read(&r);
            exchange_recv(&x, &key, out, reader_u8(&r) * 2u, 0);
            break;
        case 1:
            key = key_read(&r);
            exchange_fence(&x, key.group, key.epoch);
            break;
        case 2:
            key = key_read(&r);
            exchange_abort(&x, key.group, key.epoch);
            break;
        case 3:
            key = key_read(&r);
            exchange_peer_put(&x, key.peer, 1u + key.epoch);
            break;
        case 4:
            key = key_read(&r);
            if (exchange_peer(&x, key.peer))
                exchange_peer_forget(&x, exchange_peer(&x, key.peer));
            break;
        case 5:
            address(&x, &r);
            break;
        case 6:
            slow_piece(&x, &r);
            break;
        case 7:
            exchange_sent_later(&x, on_sent, &sum, ST_OK);
            exchange_progress(&x);
            break;
        case 8:
            roster(&x, &r);
            break;
        default:
            message(&x, &r);
        }
        if (x.stash.bytes > STASH_BYTES + MESSAGE_BYTES)
            abort();
    }
    exchange_deinit(&x);
    waker_deinit(&waker);
    return 0;
}
