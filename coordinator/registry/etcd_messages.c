#include "coordinator/registry/etcd_messages.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "proto/etcd.pb-c.h"

enum { TARGET_MOD = 2, NAME_MAX_BYTES = 1024 };

void etcd_packed_free(struct etcd_packed *p)
{
    free(p->data);
    *p = (struct etcd_packed){ 0 };
}

static struct etcd_packed pack(const ProtobufCMessage *m)
{
    struct etcd_packed p = { .bytes = protobuf_c_message_get_packed_size(m) };
    p.data = malloc(p.bytes + 1);
    if (p.data)
        protobuf_c_message_pack(m, p.data);
    return p;
}

/* ---- keys ---- */

struct full_key {
    uint8_t data[NAME_MAX_BYTES], end[NAME_MAX_BYTES];
};

/* The namespace is bounded when the registry is opened, the key when it is asked for. */
static ProtobufCBinaryData join(const char *ns, const char *key, uint8_t out[NAME_MAX_BYTES])
{
    const size_t n_ns = strlen(ns), n = strlen(key);
    memcpy(out, ns, n_ns);
    memcpy(out + n_ns, key, n);
    return (ProtobufCBinaryData){ n_ns + n, out };
}

/* The first key behind all that begin with `from`: its last byte that can be, one higher. The namespace ends in '/', so there is one. */
static ProtobufCBinaryData prefix_end(ProtobufCBinaryData from, uint8_t out[NAME_MAX_BYTES])
{
    memcpy(out, from.data, from.len);
    size_t n = from.len;
    while (out[n - 1] == 0xff)
        n--;
    out[n - 1]++;
    return (ProtobufCBinaryData){ n, out };
}

/* ---- requests ---- */

struct etcd_packed etcd_range(const struct etcd_key *key, uint64_t revision)
{
    struct full_key full;
    Etcdserverpb__RangeRequest m = ETCDSERVERPB__RANGE_REQUEST__INIT;
    m.key = join(key->ns, key->key, full.data);
    if (!key->exact)
        m.range_end = prefix_end(m.key, full.end);
    if (key->after) {
        m.key = join(key->ns, key->after, full.data);
        full.data[m.key.len++] = 0;
    }
    m.limit = ETCD_PAGE;
    m.revision = (int64_t)revision;
    return pack(&m.base);
}

struct etcd_packed etcd_write(const struct etcd_key *key, const struct registry_put *put, uint64_t at)
{
    struct full_key full;
    const ProtobufCBinaryData name = join(key->ns, key->key, full.data);
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT;
    compare.target = TARGET_MOD;
    compare.key = name;
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
    compare.mod_revision = (int64_t)at;
    Etcdserverpb__PutRequest write = ETCDSERVERPB__PUT_REQUEST__INIT;
    Etcdserverpb__DeleteRangeRequest remove = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    Etcdserverpb__RangeRequest range = ETCDSERVERPB__RANGE_REQUEST__INIT;
    Etcdserverpb__RequestOp yes = ETCDSERVERPB__REQUEST_OP__INIT, no = ETCDSERVERPB__REQUEST_OP__INIT;
    if (put->value) {
        write.key = name;
        write.value = (ProtobufCBinaryData){ put->bytes, (uint8_t *)(uintptr_t)put->value };
        write.lease = (int64_t)put->lease;
        yes.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        yes.request_put = &write;
    } else {
        remove.key = name;
        yes.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        yes.request_delete_range = &remove;
    }
    range.key = name;
    no.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    no.request_range = &range;
    Etcdserverpb__Compare *compares[] = { &compare };
    Etcdserverpb__RequestOp *success[] = { &yes }, *failure[] = { &no };
    Etcdserverpb__TxnRequest m = ETCDSERVERPB__TXN_REQUEST__INIT;
    m.n_compare = m.n_success = m.n_failure = 1;
    m.compare = compares;
    m.success = success;
    m.failure = failure;
    return pack(&m.base);
}

struct etcd_packed etcd_grant(uint64_t lease, uint32_t ttl_ms)
{
    Etcdserverpb__LeaseGrantRequest m = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    m.id = (int64_t)lease;
    m.ttl = ((int64_t)ttl_ms + 999) / 1000;
    return pack(&m.base);
}

struct etcd_packed etcd_revoke(uint64_t lease)
{
    Etcdserverpb__LeaseRevokeRequest m = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    m.id = (int64_t)lease;
    return pack(&m.base);
}

struct etcd_packed etcd_keep(uint64_t lease)
{
    Etcdserverpb__LeaseKeepAliveRequest m = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    m.id = (int64_t)lease;
    return pack(&m.base);
}

struct etcd_packed etcd_watch(const struct etcd_key *key, uint64_t start_revision)
{
    struct full_key full;
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    create.key = join(key->ns, key->key, full.data);
    create.range_end = prefix_end(create.key, full.end);
    create.start_revision = (int64_t)start_revision;
    create.progress_notify = 1; /* a quiet watch goes on from a late revision, not from one long compacted */
    Etcdserverpb__WatchRequest m = ETCDSERVERPB__WATCH_REQUEST__INIT;
    m.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    m.create_request = &create;
    return pack(&m.base);
}

/* ---- replies ---- */

/* key_out: REGISTRY_KEY_MAX + 1 bytes, which the item points to. false: none of ours. */
static bool item_of(const Etcdserverpb__KeyValue *kv, const char *ns, char *key_out, struct registry_item *item_out)
{
    const size_t n = strlen(ns);
    if (kv->key.len < n || memcmp(kv->key.data, ns, n) != 0)
        return false;
    const size_t bytes = kv->key.len - n;
    if (!bytes || bytes > REGISTRY_KEY_MAX || memchr(kv->key.data + n, 0, bytes) || kv->mod_revision < 0) {
        log_warn("registry: etcd holds a key of %zu bytes in our namespace that is none of ours", bytes);
        return false;
    }
    memcpy(key_out, kv->key.data + n, bytes);
    key_out[bytes] = 0;
    if (kv->value.len > REGISTRY_VALUE_MAX) {
        log_warn("registry: the value of '%s' in etcd has %zu bytes, over the limit of %d", key_out, kv->value.len,
                 REGISTRY_VALUE_MAX);
        return false;
    }
    *item_out = (struct registry_item){ .key = key_out,
                                        .value = kv->value.data,
                                        .bytes = kv->value.len,
                                        .revision = (uint64_t)kv->mod_revision,
                                        .lease = (uint64_t)kv->lease };
    return true;
}

static enum status items_of(Etcdserverpb__KeyValue **kvs, size_t n, const char *ns, struct store_items *items)
{
    char key[REGISTRY_KEY_MAX + 1];
    struct registry_item item;
    for (size_t i = 0; i < n; i++)
        if (item_of(kvs[i], ns, key, &item) && !store_items_add(items, &item))
            return ST_NO_MEMORY;
    return ST_OK;
}

static uint64_t revision_of(const Etcdserverpb__ResponseHeader *header)
{
    return header && header->revision > 0 ? (uint64_t)header->revision : 0;
}

enum status etcd_read_range(const uint8_t *data, size_t bytes, const char *ns, struct store_items *items,
                            uint64_t *revision_out, bool *more_out)
{
    Etcdserverpb__RangeResponse *m = etcdserverpb__range_response__unpack(NULL, bytes, data);
    if (!m)
        return ST_PROTOCOL;
    const enum status st = items_of(m->kvs, m->n_kvs, ns, items);
    *revision_out = revision_of(m->header);
    *more_out = m->more && m->n_kvs;
    etcdserverpb__range_response__free_unpacked(m, NULL);
    return st;
}

enum status etcd_read_write(const uint8_t *data, size_t bytes, const char *ns, bool *done_out,
                            struct store_items *items, uint64_t *revision_out)
{
    Etcdserverpb__TxnResponse *m = etcdserverpb__txn_response__unpack(NULL, bytes, data);
    if (!m)
        return ST_PROTOCOL;
    enum status st = ST_OK;
    *done_out = m->succeeded;
    *revision_out = revision_of(m->header);
    if (!m->succeeded) {
        const Etcdserverpb__ResponseOp *op = m->n_responses == 1 ? m->responses[0] : NULL;
        if (op && op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
            st = items_of(op->response_range->kvs, op->response_range->n_kvs, ns, items);
        else
            st = ST_PROTOCOL;
    }
    etcdserverpb__txn_response__free_unpacked(m, NULL);
    return st;
}

enum status etcd_read_keep(const uint8_t *data, size_t bytes, bool *gone_out)
{
    Etcdserverpb__LeaseKeepAliveResponse *m = etcdserverpb__lease_keep_alive_response__unpack(NULL, bytes, data);
    if (!m)
        return ST_PROTOCOL;
    *gone_out = m->ttl <= 0;
    etcdserverpb__lease_keep_alive_response__free_unpacked(m, NULL);
    return ST_OK;
}

enum status etcd_read_watch(const uint8_t *data, size_t bytes, const char *ns, struct etcd_watched *w)
{
    Etcdserverpb__WatchResponse *m = etcdserverpb__watch_response__unpack(NULL, bytes, data);
    if (!m)
        return ST_PROTOCOL;
    w->created = m->created;
    w->cancelled = m->canceled;
    w->compacted = m->compact_revision > 0;
    w->revision = revision_of(m->header);
    char key[REGISTRY_KEY_MAX + 1];
    struct registry_item item;
    for (size_t i = 0; i < m->n_events; i++)
        if (m->events[i]->kv && item_of(m->events[i]->kv, ns, key, &item))
            w->event(w->ctx, m->events[i]->type == 1, &item);
    etcdserverpb__watch_response__free_unpacked(m, NULL);
    return ST_OK;
}
