#ifndef LONGSPAN_COORDINATOR_REGISTRY_REGISTRY_H
#define LONGSPAN_COORDINATOR_REGISTRY_REGISTRY_H

/*
 * Small facts that outlive a process: membership with leases, leader election with fencing tokens, job metadata. Keys with values, each written
 * at a revision that only ascends. Every call returns at once and answers on the loop's thread, so that the loop never waits for a disk or a network.
 * Implementations: embedded (one crash-safe file, one machine), etcd.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "common/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    REGISTRY_KEY_MAX = 512,
    REGISTRY_VALUE_MAX = 64 << 10,
    REGISTRY_TTL_MIN_MS = 100,
    REGISTRY_TTL_MAX_MS = 86400000
};

struct registry;

struct registry_item {
    const char *key;
    const uint8_t *value;
    size_t bytes;
    uint64_t revision; /* of its last write */
    uint64_t lease;    /* 0: none */
};

/*
 * status: ST_OK; ST_INVALID (key, value or time out of range); ST_NOT_FOUND (no such lease); ST_STALE (the comparison failed; items holds the
 * key as it is, if it is there); ST_BUSY (embedded: another process holds the file); ST_IO, ST_CORRUPT, ST_TIMEOUT, ST_PEER: the store failed, and a write may have
 * been made or not: repeat with a comparison. All is borrowed for the call.
 */
struct registry_answer {
    enum status status;
    const char *message; /* "" if ok */
    uint64_t revision;   /* of the write; of the store for a list */
    uint64_t lease;      /* lease_grant */
    size_t n_items;      /* list: ascending by key */
    const struct registry_item *items;
};
typedef void registry_done(void *ctx, const struct registry_answer *answer);

enum registry_compare {
    REGISTRY_ANY,
    REGISTRY_ABSENT,
    REGISTRY_AT
}; /* write in any case; only if it is not there; only if its revision is `at` */

/* Copied. */
struct registry_put {
    const char *key; /* 1 .. REGISTRY_KEY_MAX bytes */
    const void *value;
    size_t bytes;   /* 0 .. REGISTRY_VALUE_MAX */
    uint64_t lease; /* the key goes when the lease ends; 0: it stays */
    enum registry_compare compare;
    uint64_t at;
};

/* REGISTRY_SYNCED: what was there before has been told (item is NULL); changes follow. Changes that undo each other may be told as their outcome. */
enum registry_change { REGISTRY_PUT, REGISTRY_REMOVED, REGISTRY_SYNCED };
/* Of a removed key only the key and the revision of its removal are given. */
typedef void registry_watch_fn(void *ctx, enum registry_change change, const struct registry_item *item);

/*
 * What an implementation does. done may be NULL; it is called once, not inside the call itself, and at the latest by close. Calls that are under
 * way together may take effect in any order: what must come after another waits for its answer.
 */
struct registry_ops {
    void (*put)(struct registry *r, const struct registry_put *put, registry_done *done, void *ctx);
    /* at: REGISTRY_ANY or REGISTRY_AT. A key that is not there is removed already (ST_OK), unless REGISTRY_AT asks for it (ST_STALE). */
    void (*remove)(struct registry *r, const char *key, enum registry_compare compare, uint64_t at, registry_done *done,
                   void *ctx);
    /* exact: the key itself, at most one item; else all keys that begin so ("" is all). */
    void (*list)(struct registry *r, const char *prefix, bool exact, registry_done *done, void *ctx);
    /* A lease ends unless it is kept every ttl_ms; its keys go with it. Time is monotonic and runs while the store does. */
    void (*lease_grant)(struct registry *r, uint32_t ttl_ms, registry_done *done, void *ctx);
    void (*lease_keep)(struct registry *r, uint64_t lease, registry_done *done, void *ctx);
    void (*lease_revoke)(struct registry *r, uint64_t lease, registry_done *done, void *ctx);
    /* First what is there, then SYNCED, then every change, in order of revisions. Returns a number for unwatch. */
    uint64_t (*watch)(struct registry *r, const char *prefix, registry_watch_fn *fn, void *ctx);
    void (*unwatch)(struct registry *r, uint64_t watch);
    void (*close)(struct registry *r);
};

/* The first member of every implementation. */
struct registry {
    const struct registry_ops *ops;
    struct loop *loop;
};

/*
 * spec: "embedded:FILE" or "etcd:HOST:PORT[,HOST:PORT...][/NAMESPACE]". Loop thread, as all that follows. ST_UNSUPPORTED: no such kind; ST_IO,
 * ST_CORRUPT: err names the file; ST_INVALID: err names the address. tls: of the way to etcd, NULL: in clear. An etcd that is away is no error here: what is asked of it fails until it is there.
 */
enum status registry_open(const char *spec, const struct tls *tls, struct loop *loop, struct registry **registry_out,
                          struct error *err);
/* What was asked for is finished and answered first. Not from a callback. Accepts NULL. */
void registry_close(struct registry *r);

/* registry/embedded.c: leases end with the process that holds the file; a second process may read, and writes once the first is gone. */
enum status registry_embedded_open(const char *path, const struct tls *tls, struct loop *loop,
                                   struct registry **registry_out, struct error *err);

/*
 * registry/etcd.c: over etcd's v3 API. Keys lie in etcd under "NAMESPACE/" ("longspan/"). Every call is answered within 4 s. A lease lasts at least as long as
 * asked (etcd counts in seconds, and from 1.5 of its election timeouts on) and is told nothing of the time that etcd itself was away. Writers who
 * contend for a key must write values or leases that differ: that is how a repeated write knows its own.
 */
enum status registry_etcd_open(const char *spec, const struct tls *tls, struct loop *loop,
                               struct registry **registry_out, struct error *err);

/* ---- leader election: one key, a lease, the revision of its writing as token (registry/election.c) ---- */

struct registry_election;

struct registry_election_config {
    const char *name;  /* the key is "election/NAME" */
    const char *value; /* who we are: for those who lose; no two the same: a key with our own value is ours to take */
    uint32_t ttl_ms;   /* a leader that is gone is replaced after so long */
    /* We lead from now on. Whoever obeys leaders refuses those with a lower token than one seen before. */
    void (*won)(void *ctx, uint64_t token);
    /* Another leads: its key. Once for each that does, or more often. May be NULL. */
    void (*follows)(void *ctx, const struct registry_item *leader);
    /* We lead no more; the election goes on. */
    void (*lost)(void *ctx, const char *why);
    void *ctx;
};

/* config: copied. Takes part until registry_election_stop. */
enum status registry_election_start(struct registry *r, const struct registry_election_config *config,
                                    struct registry_election **election_out);
bool registry_election_leads(const struct registry_election *e);
/* Steps down: the next may lead at once. No callback comes any more. Before registry_close. Accepts NULL. */
void registry_election_stop(struct registry_election *e);

#ifdef __cplusplus
}
#endif
#endif
