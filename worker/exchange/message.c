#include "worker/exchange/message.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

enum {
    MESSAGE_MAGIC = 0x4d58534c /* "LSXM" */,
    MESSAGE_VERSION = 3,
    SUM_AT = MESSAGE_HEADER_BYTES - 8, /* the last field */
    ADDRESS_MAGIC = 0x4158534c /* "LSXA" */,
    ADDRESS_VERSION = 2
};

static uint8_t *put(uint8_t *at, const void *data, size_t bytes)
{
    if (bytes)
        memcpy(at, data, bytes);
    return at + bytes;
}

void message_header_write(const struct message_header *h, uint8_t out[MESSAGE_HEADER_BYTES])
{
    const uint32_t magic = MESSAGE_MAGIC;
    const uint8_t version = MESSAGE_VERSION;
    memset(out, 0, MESSAGE_HEADER_BYTES);
    uint8_t *at = put(out, &magic, 4);
    at = put(at, &version, 1);
    at = put(at, &h->kind, 1);
    at = put(at, &h->source, 2);
    at = put(at, &h->from, 8);
    at = put(at, &h->to, 8);
    at = put(at, &h->link, 4);
    at = put(at, &h->payload_bytes, 8);
    at = put(at, &h->roster, 8);
    at = put(at, h->token.byte, sizeof h->token.byte);
    if (h->kind == MESSAGE_STEP) {
        at = put(at, &h->step.epoch, 8);
        at = put(at, &h->step.plan, 8);
        at = put(at, &h->step.group, 4);
        at = put(at, &h->step.layer, 2);
        put(at, &h->step.phase, 1);
    } else if (h->kind == MESSAGE_BLOCK) {
        at = put(at, &h->block.number, 8);
        at = put(at, &h->block.total, 8);
        put(at, &h->block.offset, 8);
    }
    const uint64_t sum = h->sum ^ checksum64(out, SUM_AT);
    put(out + SUM_AT, &sum, 8);
}

bool message_header_read(const void *header, size_t bytes, size_t payload_bytes, struct message_header *h_out)
{
    if (bytes != MESSAGE_HEADER_BYTES)
        return false;
    struct reader r = reader_of(header, bytes), last = reader_of((const uint8_t *)header + SUM_AT, 8);
    struct message_header h = { 0 };
    const uint32_t magic = reader_u32(&r);
    const uint8_t version = reader_u8(&r);
    h.kind = reader_u8(&r);
    h.source = reader_u16(&r);
    h.from = reader_u64(&r);
    h.to = reader_u64(&r);
    h.link = reader_u32(&r);
    h.payload_bytes = reader_u64(&r);
    h.roster = reader_u64(&r);
    memcpy(h.token.byte, reader_take(&r, sizeof h.token.byte), sizeof h.token.byte);
    h.sum = reader_u64(&last) ^ checksum64(header, SUM_AT);
    if (magic != MESSAGE_MAGIC || version != MESSAGE_VERSION || h.payload_bytes != payload_bytes)
        return false;
    switch (h.kind) {
    case MESSAGE_STEP:
        h.step.epoch = reader_u64(&r);
        h.step.plan = reader_u64(&r);
        h.step.group = reader_u32(&r);
        h.step.layer = reader_u16(&r);
        h.step.phase = reader_u8(&r);
        if (h.step.phase >= PHASES)
            return false;
        break;
    case MESSAGE_BLOCK:
        h.block.number = reader_u64(&r);
        h.block.total = reader_u64(&r);
        h.block.offset = reader_u64(&r);
        if (!payload_bytes || h.block.offset > h.block.total || h.block.total - h.block.offset < payload_bytes)
            return false;
        break;
    case MESSAGE_BYE:
    case MESSAGE_HELLO:
        if (payload_bytes)
            return false;
        break;
    default:
        return false;
    }
    *h_out = h;
    return true;
}

struct message *message_new(size_t capacity)
{
    size_t bytes;
    if (!size_add(capacity, sizeof(struct message) + 63, &bytes))
        return NULL;
    struct message *m = aligned_alloc(64, bytes & ~(size_t)63);
    if (m) {
        m->next = NULL;
        m->owner = NULL;
        m->capacity = capacity;
    }
    return m;
}

void message_free(struct message *m)
{
    free(m);
}

const char *message_phase_text(uint8_t phase)
{
    static const char *const texts[PHASES] = { "sketch", "query", "partial", "counts", "ranges", "pairs", "cuts" };
    return phase < PHASES ? texts[phase] : "?";
}

size_t peer_address_write(const struct peer_address *a, uint8_t out[EXCHANGE_ADDRESS_MAX])
{
    const size_t fixed = 4 + 2 + 2 + 8 + 16 + 2 + 2, sum_bytes = 8;
    if (a->full_bytes > EXCHANGE_ADDRESS_MAX || a->net_bytes > EXCHANGE_ADDRESS_MAX ||
        fixed + a->full_bytes + a->net_bytes + sum_bytes > EXCHANGE_ADDRESS_MAX)
        return 0;
    const uint32_t magic = ADDRESS_MAGIC;
    const uint16_t version = ADDRESS_VERSION, full_bytes = (uint16_t)a->full_bytes, net_bytes = (uint16_t)a->net_bytes;
    uint8_t *at = put(out, &magic, 4);
    at = put(at, &version, 2);
    at = put(at, &a->id, 2);
    at = put(at, &a->instance, 8);
    at = put(at, a->host.byte, 16);
    at = put(at, &full_bytes, 2);
    at = put(at, &net_bytes, 2);
    at = put(at, a->full, a->full_bytes);
    at = put(at, a->net, a->net_bytes);
    const uint64_t sum = checksum64(out, (size_t)(at - out));
    at = put(at, &sum, 8);
    return (size_t)(at - out);
}

enum status peer_address_read(const uint8_t *data, size_t bytes, struct peer_address *a_out, struct error *err)
{
    struct peer_address a = { 0 };
    if (bytes > EXCHANGE_ADDRESS_MAX)
        return error_set(err, ST_PROTOCOL, "worker address: %zu bytes, at most %d", bytes, EXCHANGE_ADDRESS_MAX);
    struct reader r = reader_of(data, bytes);
    const uint32_t magic = reader_u32(&r);
    const uint16_t version = reader_u16(&r);
    if (r.bad || magic != ADDRESS_MAGIC)
        return error_set(err, ST_PROTOCOL, "worker address: magic %08x", magic);
    if (version != ADDRESS_VERSION)
        return error_set(err, ST_PROTOCOL, "worker address: version %u, here %d", version, ADDRESS_VERSION);
    a.id = reader_u16(&r);
    a.instance = reader_u64(&r);
    const uint8_t *host = reader_take(&r, 16);
    a.full_bytes = reader_u16(&r);
    a.net_bytes = reader_u16(&r);
    a.full = reader_take(&r, a.full_bytes);
    a.net = reader_take(&r, a.net_bytes);
    const uint64_t sum = reader_u64(&r);
    if (r.bad || reader_left(&r))
        return error_set(err, ST_PROTOCOL, "worker address: %zu bytes do not fit its lengths", bytes);
    /* what follows is handed to a library that trusts it */
    if (sum != checksum64(data, bytes - 8))
        return error_set(err, ST_PROTOCOL, "worker address: checksum");
    memcpy(a.host.byte, host, 16);
    a.full = a.full_bytes ? a.full : NULL;
    a.net = a.net_bytes ? a.net : NULL;
    *a_out = a;
    return ST_OK;
}
