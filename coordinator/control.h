#ifndef LONGSPAN_COORDINATOR_CONTROL_H
#define LONGSPAN_COORDINATOR_CONTROL_H

/*
 * The control server: where workers attach (proto/control.h). It admits them, tells them what to serve, watches over them, and joins
 * them to the scheduler, which it owns and drives: messages of workers become events, the scheduler's messages go out, and it runs after every event
 * and whenever it asked to. Messages are read and checked on gRPC's thread; all else happens on the loop's.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"
#include "common/loop.h"
#include "coordinator/gateway.h"
#include "coordinator/sched.h"
#include "proto/control.h"

#ifdef __cplusplus
extern "C" {
#endif

struct control;

struct control_config {
    struct loop *loop;              /* kept */
    const char *address;            /* "127.0.0.1:9091"; port 0: any */
    const struct tls *tls;          /* NULL: in clear */
    struct sched_config sched;      /* of the scheduler that is made */
    struct control_welcome welcome; /* what workers are to serve; worker_id is filled in; strings kept */
    struct digest model_digest;     /* a worker that has loaded another model is refused */
    uint64_t term;                  /* of a coordinator that leads from the start; 0: control_lead will say */
    uint32_t n_workers;             /* expected: control_is_ready waits for so many once */
    size_t queued_bytes_max;        /* to one worker; more and it is given up; 0: 64 MiB */
    /* A worker became ready, or one that was is lost (state says which). May be NULL. */
    void (*on_worker)(void *ctx, const struct gateway_worker *worker);
    /* Somebody at the door has obeyed a coordinator of a higher term, or is one. May be NULL. */
    void (*on_higher)(void *ctx, uint64_t term);
    void *ctx;
};

/* ST_IO: the address cannot be bound. Loop thread, as all that follows. */
enum status control_start(const struct control_config *config, struct control **control_out, struct error *err);
/* This coordinator leads, from now on or again: workers are admitted. term: above 0, and above those of all who led before. */
void control_lead(struct control *c, uint64_t term);
/* As rpc_server_tls. */
enum status control_tls(struct control *c, const struct tls *tls);
uint16_t control_port(const struct control *c);
struct sched *control_sched(struct control *c);

/* All who are attached, and those lost in the last 30 s; for gateway_config.workers (ctx is the control). -> number written */
uint32_t control_workers(void *control, struct gateway_worker *workers_out, uint32_t max);
/* As many workers as expected were ready once, and one is now; for gateway_config.ready. */
bool control_is_ready(void *control);
/*
 * For how long nothing has gone on although requests run or wait: no step was done, and no worker with a plan says that it computes. 0: something has
 * within the last second, or there is nothing to do. For gateway_config.stalled_ms.
 */
int64_t control_stalled_ms(void *control);
/* For gateway_config.drain and .rebalance. ST_STALE: the worker ends anyway, or no other takes new sequences. */
enum status control_drain(void *control, uint16_t worker, bool undo, struct error *err);
void control_rebalance(void *control);
/* The scheduler has something to do: it runs soon; for gateway_config.kick. */
void control_kick(void *control);

/*
 * Ends all streams (workers attach again to a coordinator that comes back) and frees the scheduler: requests that still run end as cancelled.
 * After loop_run has returned; runs what was posted to the loop.
 */
void control_stop(struct control *c);

#ifdef __cplusplus
}
#endif
#endif
