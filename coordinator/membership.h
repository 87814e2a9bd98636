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

struct membership_config {
    struct loop *loop;                         /* kept */
    const char *registry;                      /* spec for registry_open */
    const struct tls *tls;                     /* to it; NULL: in clear */
    const char *http, *grpc, *control, *model; /* what others are told */
    uint32_t ttl_ms;                           /* after which the entries of a coordinator that is gone go; 0: 5000 */
    /* This coordinator leads from now on; token: above 0, and above those of all who led before. May be NULL. */
    void (*leads)(void *ctx, uint64_t token);
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
/* A worker is ready, or (state "lost") is gone. */
void membership_worker(struct membership *m, const struct gateway_worker *worker);
/* Takes the entries away and closes the registry, whose last posts may still be on the loop (loop_drain). Accepts NULL. */
void membership_stop(struct membership *m);

#ifdef __cplusplus
}
#endif
#endif
