#ifndef LONGSPAN_CLIENT_CLUSTER_H
#define LONGSPAN_CLIENT_CLUSTER_H

/*
 * A cluster of processes on this machine: one coordinator, some workers, watched over: who dies is started again. What `up` and
 * `generate --local` are made of.
 */

#include <stdbool.h>
#include <stdint.h>

#include "client/settings.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cluster;

/*
 * Starts the processes; the coordinator's addresses are bound when it returns. settings: http, grpc, state etc. as wanted; threads and kv_bytes 0 are
 * replaced by a fair share of this machine. Not from a program with threads (it forks).
 */
enum status cluster_start(const struct settings *settings, struct cluster **cluster_out, struct error *err);
/* Where it listens. */
const char *cluster_http(const struct cluster *c);
const char *cluster_grpc(const struct cluster *c);

/* Reaps children that ended and starts them again, with growing pauses; kills workers that hang. Call at least every 200 ms. ST_PEER: it gives up (err says why). */
enum status cluster_tend(struct cluster *c, struct error *err);
/* Waits until all workers are ready. A progress bar on a terminal, unless quiet. stop: looked at often; true ends it with ST_CANCELLED. */
enum status cluster_await(struct cluster *c, bool quiet, bool (*stop)(void), struct error *err);
/* SIGTERM to all, SIGKILL to who is still there after 10 s; waits for them. */
void cluster_stop(struct cluster *c);

#ifdef __cplusplus
}
#endif
#endif
