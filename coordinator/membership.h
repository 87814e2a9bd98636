#ifndef LONGSPAN_COORDINATOR_MEMBERSHIP_H
#define LONGSPAN_COORDINATOR_MEMBERSHIP_H

/*
 * What the registry is told of a running cluster: who coordinates ("election/coordinator") and which workers it has ("worker/ID"), for as long
 * as this process keeps its lease. A registry that is away stops nothing: what changed meanwhile is written when it is back. Loop thread.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "coordinator/gateway.h"

#ifdef __cplusplus
extern "C" {
#endif

struct membership;
enum membership_limits {
    MEMBERSHIP_TERM_MAX = INT32_MAX
}; /* its lower 32 bits are where numbers begin (sched_begin) */

struct membership_config {
    struct loop *loop;                         /* kept */
    const char *registry;                      /* spec for registry_open */
    const struct tls *tls;                     /* to it; NULL: in clear */
    const char *http, *grpc, *control, *model; /* what others are told */
    uint32_t ttl_ms;                           /* after which the entries of a coordinator that is gone go; 0: 5000 */
    /* This coordinator leads from now on, or goes on to under a higher term; term: above 0, and above those of all who led before. before: where the one that
       led before was reached by workers, or "". May be NULL. */
    void (*leads)(void *ctx, uint64_t term, const char *before);
    /* It has led, and another was obeyed after it: what it does nobody may rely on. May be NULL. */
    void (*outvoted)(void *ctx, const char *why);
    /* Another leads: what it told others, as JSON. Whoever has led before has lost that for good. May be NULL. */
    void (*follows)(void *ctx, const char *leader, size_t bytes);
    void *ctx;
};

/* Errors: those of registry_open. */
enum status membership_start(const struct membership_config *config, struct membership **membership_out,
                             struct error *err);
/* Whether this coordinator has led since it started: another that holds the registry keeps it waiting. */
bool membership_led(const struct membership *m);
/* For others who keep facts in it; until membership_stop. */
struct registry;
struct registry *membership_registry(struct membership *m);
/* A worker, or who leads now, says that a coordinator of this term was obeyed: either another leads, or the registry has begun anew and the term is raised. */
void membership_higher(struct membership *m, uint64_t term);
/*
 * Asks the registry whether this coordinator leads: what was written before is seen by all who lead after it. done: once, later, at the latest in
 * membership_stop.
 */
void membership_confirm(void *membership, void (*done)(void *ctx, bool leads), void *ctx);
/* A worker is ready, or (state "lost") is gone. */
void membership_worker(struct membership *m, const struct gateway_worker *worker);
/* Takes the entries away and closes the registry, whose last posts may still be on the loop (loop_drain). Accepts NULL. */
void membership_stop(struct membership *m);

#ifdef __cplusplus
}
#endif
#endif
