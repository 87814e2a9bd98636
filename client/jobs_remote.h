#ifndef LONGSPAN_CLIENT_JOBS_REMOTE_H
#define LONGSPAN_CLIENT_JOBS_REMOTE_H

/* Jobs of a cluster, by calls that wait and are made again while the coordinator is away. */

#include <stdbool.h>

#include "client/remote.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { JOBS_AWAY_MS = 120000 }; /* how long a cluster may be away before a call gives up */

/* All answers are freed by longspan__v1__job__free_unpacked(., NULL). ST_PEER: refused (code_out, if not NULL, says how); ST_CANCELLED: stop said so. */
typedef bool jobs_stop_fn(void);

enum status jobs_remote_submit(struct remote *r, const Longspan__V1__SubmitJobRequest *request, jobs_stop_fn *stop,
                               Longspan__V1__Job **job_out, enum rpc_code *code_out, struct error *err);
enum status jobs_remote_get(struct remote *r, const char *id, bool output, jobs_stop_fn *stop,
                            Longspan__V1__Job **job_out, struct error *err);
enum status jobs_remote_cancel(struct remote *r, const char *id, jobs_stop_fn *stop, Longspan__V1__Job **job_out,
                               struct error *err);
/* Until the job has ended: with its output. changed: told each time it changes; may be NULL. */
enum status jobs_remote_await(struct remote *r, const char *id, void (*changed)(const Longspan__V1__Job *job),
                              jobs_stop_fn *stop, Longspan__V1__Job **job_out, struct error *err);

bool jobs_remote_ended(const Longspan__V1__Job *job);
/* "queued", ... */
const char *jobs_remote_state(const Longspan__V1__Job *job);

#ifdef __cplusplus
}
#endif
#endif
