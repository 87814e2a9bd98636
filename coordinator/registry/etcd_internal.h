#ifndef LONGSPAN_COORDINATOR_REGISTRY_ETCD_INTERNAL_H
#define LONGSPAN_COORDINATOR_REGISTRY_ETCD_INTERNAL_H

/* What etcd.c (operations) and etcd_watch.c share. All on the loop's thread. */

#include "coordinator/registry/etcd_messages.h"
#include "coordinator/registry/etcd_wire.h"
#include "coordinator/registry/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ETCD_BACKOFF_MS = 100, ETCD_NAMESPACE_MAX = 128 };

struct etcd_op;
struct etcd_watcher;

struct etcd {
    struct registry base;
    char ns[ETCD_NAMESPACE_MAX + 2]; /* "longspan/" */
    struct etcd_net *net;
    uint64_t revision;             /* the latest heard of */
    bool closing;                  /* no more waiting between tries */
    bool over;                     /* no more calls */
    struct etcd_op *first, **last; /* asked and not yet answered, in the order of asking */
    struct etcd_watcher *watchers;
    uint64_t last_watch;
    uint32_t telling;
};

void etcd_revision_seen(struct etcd *e, uint64_t revision);
void etcd_no_memory(void) __attribute__((noreturn));

uint64_t etcd_watch_start(struct registry *r, const char *prefix, registry_watch_fn *fn, void *ctx);
void etcd_watch_stop(struct registry *r, uint64_t watch);
/* Another member is current: streams from a member that may be cut off are opened anew there. */
void etcd_watches_move(struct etcd *e);
/* For close: when no operation is left. */
void etcd_watches_free(struct etcd *e);

#ifdef __cplusplus
}
#endif
#endif
