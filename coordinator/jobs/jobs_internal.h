#ifndef LONGSPAN_COORDINATOR_JOBS_JOBS_INTERNAL_H
#define LONGSPAN_COORDINATOR_JOBS_JOBS_INTERNAL_H

/*
 * What the files of this folder share: jobs.c keeps the table, jobs_submit.c takes new ones, jobs_run.c runs and stores one, jobs_calls.c talks to clients,
 * jobs_messages.c reads and writes their messages.
 */

#include <stdatomic.h>

#include "coordinator/gateway/choices.h"
#include "coordinator/gateway/grpc_messages.h"
#include "coordinator/gateway/helper.h"
#include "coordinator/gateway/keeper.h"
#include "coordinator/gateway/reply.h"
#include "common/text.h"
#include "coordinator/jobs/jobs.h"
#include "coordinator/jobs/record.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { JOBS_BUCKETS = 4096, JOBS_METHODS = 5, JOBS_RETRY_MS = 500, JOBS_DIR_MAX = 1200 };

/* What is done with a job just now; one thing at a time. */
enum job_stage {
    STAGE_IDLE,
    STAGE_READING, /* its body, beside the loop */
    STAGE_RUNNING,
    STAGE_WRITING, /* its output, beside the loop */
    STAGE_STORING, /* its end, in the registry */
    STAGE_REMOVING,
};

struct job {
    struct jobs *jobs;
    struct job *chain;         /* of its bucket */
    struct job *newer, *older; /* all, by time of creation */
    struct job_record r;
    uint64_t revision;
    enum job_stage stage;
    bool to_store;  /* STAGE_STORING, and the registry failed: to be tried again at not_before_ms */
    bool cancelled; /* asked for; done as soon as the stage allows */
    bool local;     /* its blobs are in this state directory */
    uint32_t tries; /* that failed for reasons of the cluster's */
    int64_t not_before_ms;
    struct job_run *run; /* STAGE_RUNNING, STAGE_WRITING */
    uint32_t tokens;     /* generated in this run */
    int64_t told_ms;     /* when watchers were last told of tokens */
    struct jobs_call *calls;
};

struct jobs_service {
    struct jobs *jobs;
    int method;
};

struct jobs {
    struct jobs_config config;
    char dir[JOBS_DIR_MAX], home[JOB_DIGEST_MAX + 1];
    struct rpc_method methods[JOBS_METHODS];
    struct jobs_service services[JOBS_METHODS];
    atomic_uint refs; /* the owner, calls, what the registry has still to answer */
    struct jobs_serve serve;
    struct helper *helper; /* for the disk */
    struct loop_timer *timer;
    bool serving, loading, loaded, stopped;
    struct job *buckets[JOBS_BUCKETS];
    struct job *oldest, *newest;
    uint32_t n, n_queued, n_running, n_submitting, n_to_store;
    int64_t swept_ms;             /* when retention was last looked after */
    struct jobs_call *open_calls; /* all that have begun and not gone */
};

void jobs_ref(struct jobs *jobs);
void jobs_unref(struct jobs *jobs);
uint64_t jobs_now_ms(void); /* since 1970 */

/* ---- jobs.c ---- */

struct job *jobs_find(const struct jobs *jobs, const char *id);
/* NULL: out of memory. */
struct job *jobs_add(struct jobs *jobs, const struct job_record *r, uint64_t revision);
/* Room for one more, perhaps by removing the oldest that has ended. */
bool jobs_room(struct jobs *jobs);
/* Begins what may begin. */
void jobs_pump(struct jobs *jobs);
void jobs_key(const char *id, char key_out[64]);
/* It has ended, and that is durable. */
bool job_ended(const struct job *job);

/* ---- jobs_run.c ---- */

void job_begin(struct job *job);
/* Tries to store the ends that the registry did not take, when it is time. */
void jobs_store_again(struct jobs *jobs);
/* Asks for its end; it may have ended meanwhile. */
void job_cancel(struct job *job);
/* The process stops: no trace is left of the run. */
void job_stop(struct job *job);

/* ---- jobs_submit.c ---- */

struct jobs_call;
/* Answers the call, later. */
void jobs_submit(struct jobs *jobs, struct jobs_call *call, const uint8_t *data, size_t bytes);

/* ---- jobs_calls.c ---- */

void jobs_calls_open(void *service, struct rpc_call *rpc, struct rpc_handlers *handlers_out, void **user_out);
void jobs_call_ref(struct jobs_call *call);
void jobs_call_unref(struct jobs_call *call);
/* The tenant whose key it came with, or "". */
const char *jobs_call_owner(const struct jobs_call *call);
void jobs_call_fail(struct jobs_call *call, enum rpc_code code, const char *message);
/* Answers with the job and ends the call. */
void jobs_call_answer(struct jobs_call *call, const struct job *job);
/* It changed: watchers are told, and the calls that waited for its end are answered. */
void job_tell(struct job *job);
void jobs_calls_end(struct jobs *jobs, const char *why);

/* ---- jobs_messages.c ---- */

/* A SubmitJobRequest, in place: all point into its message. */
struct submit_message {
    enum job_kind kind;
    const uint8_t *body; /* GenerateRequest, or the body of HttpRequest */
    size_t body_bytes;
    char url[JOB_URL_MAX + 1], name[JOB_NAME_MAX + 1];
    const uint8_t *key;
    size_t key_bytes; /* 0: none */
};
/* ST_INVALID: r names the field. */
enum status submit_read(const uint8_t *data, size_t bytes, struct submit_message *m_out, struct refusal *r);
/* A Job, with its output (NULL: without) as it lies in the blob. */
void job_write(const struct job *job, const char *output, size_t output_bytes, struct text *out);
/* ListJobsResponse.jobs, one more. */
void job_write_listed(const struct job *job, struct text *out);

/* What a job's parser reads: made from a body, given to choices_start or tried at the submission. NULL: out of memory. */
struct job_source;
struct job_source *job_source_new(const struct job_record *r, const uint8_t *body, size_t bytes, size_t values_max);
void job_source_free(void *source);
generation_parse job_source_parse;

#ifdef __cplusplus
}
#endif
#endif
