#ifndef LONGSPAN_COORDINATOR_REGISTRY_ETCD_MESSAGES_H
#define LONGSPAN_COORDINATOR_REGISTRY_ETCD_MESSAGES_H

/*
 * The registry's requests as etcd's messages, and etcd's answers as the registry's. Keys of ours lie in a namespace: "NAMESPACE/KEY". Replies come from
 * outside: what is no key or value of ours (too long, NUL in the key) is left out with a warning.
 */

#include "coordinator/registry/embedded_store.h"
#include "coordinator/registry/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A packed message; freed by etcd_packed_free. data NULL: out of memory. */
struct etcd_packed {
    uint8_t *data;
    size_t bytes;
};
void etcd_packed_free(struct etcd_packed *p);

struct etcd_key {
    const char *ns;    /* "longspan/" */
    const char *key;   /* without it */
    const char *after; /* lists: begin behind this key, without namespace; NULL: at the first */
    bool exact;        /* lists and watches: the key itself, not all that begin so */
};

enum { ETCD_PAGE = 256 };

struct etcd_packed etcd_range(const struct etcd_key *key, uint64_t revision);
/* Writes, or removes (value NULL), if the key's last write is at `at` (0: it is not there); else answers with the key. */
struct etcd_packed etcd_write(const struct etcd_key *key, const struct registry_put *put, uint64_t at);
struct etcd_packed etcd_grant(uint64_t lease, uint32_t ttl_ms);
struct etcd_packed etcd_revoke(uint64_t lease);
struct etcd_packed etcd_keep(uint64_t lease);
struct etcd_packed etcd_watch(const struct etcd_key *key, uint64_t start_revision);

/* All: ST_PROTOCOL if it is malformed. */
enum status etcd_read_range(const uint8_t *data, size_t bytes, const char *ns, struct store_items *items,
                            uint64_t *revision_out, bool *more_out);
/* done: the comparison held; else items holds the key as it is. */
enum status etcd_read_write(const uint8_t *data, size_t bytes, const char *ns, bool *done_out,
                            struct store_items *items, uint64_t *revision_out);
/* gone: the lease has ended. */
enum status etcd_read_keep(const uint8_t *data, size_t bytes, bool *gone_out);

struct etcd_watched {
    bool created, cancelled, compacted;
    uint64_t revision; /* of the store */
    void (*event)(void *ctx, bool removed, const struct registry_item *item);
    void *ctx;
};
/* Calls event for each change of the message. */
enum status etcd_read_watch(const uint8_t *data, size_t bytes, const char *ns, struct etcd_watched *watched);

#ifdef __cplusplus
}
#endif
#endif
