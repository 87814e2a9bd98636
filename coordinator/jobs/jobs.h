#ifndef LONGSPAN_COORDINATOR_JOBS_JOBS_H
#define LONGSPAN_COORDINATOR_JOBS_JOBS_H

/*
 * Durable jobs: longspan.v1.Inference SubmitJob, GetJob, WatchJob, ListJobs, CancelJob. A job is acknowledged when its body is a synced blob in the state
 * directory and its record is in the registry; from then on it runs to its end, after a crash too, with the seed that was drawn at its
 * submission; what it has generated is journaled as it comes, and known to the next run. Few run at once, and none begins while other requests wait. Loop thread, but for what gRPC's thread parses.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "coordinator/gateway.h"
#include "coordinator/registry/registry.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct jobs;

struct jobs_config {
    struct loop *loop; /* kept */
    const char *dir;   /* where blobs and journals go; made if it is not there */
    uint32_t jobs_max; /* kept at once; when there are more, the oldest that ended goes; none has: RESOURCE_EXHAUSTED */
    uint32_t keep_hours;   /* after its end; 0: for ever */
    uint32_t running_max;  /* at once */
    size_t body_bytes_max; /* of one job */
    struct digest
        context; /* all that decides what is generated: a job whose journal was written under another begins again */
};

/* ST_IO: err names the directory. Calls are answered UNAVAILABLE until jobs_serve. */
enum status jobs_new(const struct jobs_config *config, struct jobs **jobs_out, struct error *err);
/* For the gRPC server; valid as long as the jobs. */
const struct rpc_method *jobs_methods(const struct jobs *jobs, size_t *n_out);

struct jobs_serve {
    struct registry *registry; /* kept, as all of these */
    struct gateway *gateway;
    bool (*ready)(void *ctx); /* enough workers are ready, and this coordinator leads */
    /* Asks the registry whether this coordinator leads still, and answers later, once: membership_confirm. NULL: nobody else could. ctx is confirm_ctx. */
    void (*confirm)(void *ctx, void (*done)(void *done_ctx, bool leads), void *done_ctx);
    void *confirm_ctx;
    void *ctx;
};
/* Reads the records as soon as `ready`, and runs what is queued. */
void jobs_serve(struct jobs *jobs, const struct jobs_serve *serve);
/* Stops what runs (it is queued again for the next start), ends open calls. Before the registry is closed. */
void jobs_stop(struct jobs *jobs);
/* After gateway and registry are gone. Accepts NULL. */
void jobs_free(struct jobs *jobs);

#ifdef __cplusplus
}
#endif
#endif
