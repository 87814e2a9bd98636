#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "coordinator/jobs/blobs.h"
#include "coordinator/jobs/jobs_internal.h"
#include "proto/longspan.pb-c.h"

enum { METHOD_SUBMIT, METHOD_GET, METHOD_WATCH, METHOD_LIST, METHOD_CANCEL };
enum { MESSAGE_MAX = 4096, LIST_MAX = 1000, QUEUED_BYTES_MAX = 8 << 20 };

/* A call under way. WATCH and CANCEL hang on their job until it has ended. */
struct jobs_call {
    struct jobs *jobs;
    struct rpc_call *rpc;
    int method;
    uint8_t *data; /* gRPC's thread until it is posted */
    size_t bytes;
    bool asked;
    uint32_t refs; /* loop thread: gRPC's end, and work that will answer */
    bool begun, ended, output;
    struct jobs_call *next, **link;         /* open calls */
    struct jobs_call *job_next, **job_link; /* of its job */
    uint64_t seen;                          /* revision that was told */
};

void jobs_call_ref(struct jobs_call *call)
{
    call->refs++;
}

void jobs_call_unref(struct jobs_call *call)
{
    if (--call->refs)
        return;
    rpc_call_unref(call->rpc);
    jobs_unref(call->jobs);
    free(call->data);
    free(call);
}

const char *jobs_call_owner(const struct jobs_call *call)
{
    const char *identity = rpc_call_identity(call->rpc);
    return identity ? identity : "";
}

/* Where keys are asked for, each sees what came with its own tenant's. */
static bool may_see(const struct jobs_call *call, const struct job *job)
{
    return !rpc_call_identity(call->rpc) || !strcmp(jobs_call_owner(call), job->r.owner);
}

static void job_leave(struct jobs_call *call)
{
    if (!call->job_link)
        return;
    *call->job_link = call->job_next;
    if (call->job_next)
        call->job_next->job_link = call->job_link;
    call->job_link = NULL;
}

static void job_join(struct jobs_call *call, struct job *job)
{
    call->job_link = &job->calls;
    call->job_next = job->calls;
    if (call->job_next)
        call->job_next->job_link = &call->job_next;
    job->calls = call;
}

void jobs_call_fail(struct jobs_call *call, enum rpc_code code, const char *message)
{
    job_leave(call);
    call->ended = true;
    rpc_call_finish(call->rpc, code, message);
}

/* out: freed. last: the call ends with it. */
static void call_send(struct jobs_call *call, struct text *out, bool last)
{
    if (out->bad) {
        jobs_call_fail(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
    } else if (rpc_call_send(call->rpc, (const uint8_t *)out->data, out->n) > QUEUED_BYTES_MAX && !last) {
        log_warn("jobs: a client that watches does not read; dropped");
        job_leave(call);
        call->ended = true;
        rpc_call_cancel(call->rpc);
    } else if (last) {
        jobs_call_fail(call, RPC_OK, "");
    }
    text_free(out);
}

void jobs_call_answer(struct jobs_call *call, const struct job *job)
{
    struct text out = { 0 };
    job_write(job, NULL, 0, &out);
    call_send(call, &out, true);
}

/* ---- output: read beside the loop ---- */

struct fetch {
    struct jobs_call *call;
    char id[JOB_ID_MAX + 1], digest[JOB_DIGEST_MAX + 1];
    uint64_t bytes;
    char *data;
    enum status status;
    struct error err;
};

static void fetch_read(void *arg)
{
    struct fetch *f = arg;
    f->status = blob_read(f->call->jobs->dir, f->id, f->digest, f->bytes, &f->data, &f->err);
}

static void fetch_answer(void *arg)
{
    struct fetch *f = arg;
    struct jobs_call *call = f->call;
    const struct job *job = jobs_find(call->jobs, f->id);
    if (call->ended) {
        /* nobody waits */
    } else if (!job) {
        jobs_call_fail(call, RPC_NOT_FOUND, "the job was removed meanwhile");
    } else if (f->status || !f->data) {
        jobs_call_fail(call, f->status ? RPC_INTERNAL : RPC_UNAVAILABLE,
                       f->status ? f->err.text : "the server is shutting down");
    } else {
        struct text out = { 0 };
        job_write(job, f->data, f->bytes, &out);
        call_send(call, &out, true);
    }
    jobs_call_unref(call);
    free(f->data);
    free(f);
}

static void answer_with_output(struct jobs_call *call, const struct job *job)
{
    if (!call->output || !job->r.output[0] || !job_ended(job)) {
        jobs_call_answer(call, job);
        return;
    }
    if (!job->local) {
        jobs_call_fail(call, RPC_FAILED_PRECONDITION, "the job's output is in another coordinator's state directory");
        return;
    }
    job_leave(call);
    struct fetch *f = calloc(1, sizeof *f);
    if (f) {
        f->call = call;
        f->bytes = job->r.output_bytes;
        memcpy(f->id, job->r.id, sizeof f->id);
        memcpy(f->digest, job->r.output, sizeof f->digest);
        jobs_call_ref(call);
        if (!helper_run(call->jobs->helper, fetch_read, fetch_answer, f))
            return;
        jobs_call_unref(call);
        free(f);
    }
    jobs_call_fail(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
}

void job_tell(struct job *job)
{
    for (struct jobs_call *call = job->calls, *next; call; call = next) {
        next = call->job_next;
        if (job_ended(job)) {
            answer_with_output(call, job);
        } else if (call->method == METHOD_WATCH) {
            struct text out = { 0 };
            call->seen = job->revision;
            job_write(job, NULL, 0, &out);
            call_send(call, &out, false);
        }
    }
}

/* ---- methods ---- */

/* NULL: the call has ended with NOT_FOUND. id: of the message. */
static struct job *job_of(struct jobs_call *call, const char *id)
{
    struct job *job = jobs_find(call->jobs, id);
    if (!job || job->stage == STAGE_REMOVING || !may_see(call, job)) {
        jobs_call_fail(call, RPC_NOT_FOUND, "no such job");
        return NULL;
    }
    return job;
}

static void begin_get(struct jobs_call *call)
{
    Longspan__V1__GetJobRequest *m = longspan__v1__get_job_request__unpack(NULL, call->bytes, call->data);
    if (!m) {
        jobs_call_fail(call, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    struct job *job = job_of(call, m->id);
    call->output = m->output;
    if (job)
        answer_with_output(call, job);
    longspan__v1__get_job_request__free_unpacked(m, NULL);
}

static void begin_watch(struct jobs_call *call)
{
    Longspan__V1__WatchJobRequest *m = longspan__v1__watch_job_request__unpack(NULL, call->bytes, call->data);
    if (!m) {
        jobs_call_fail(call, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    struct job *job = job_of(call, m->id);
    call->output = m->output;
    if (job && job_ended(job)) {
        answer_with_output(call, job);
    } else if (job) {
        job_join(call, job);
        if (job->revision > m->after_revision || job->stage != STAGE_IDLE) {
            struct text out = { 0 };
            job_write(job, NULL, 0, &out);
            call_send(call, &out, false);
        }
    }
    longspan__v1__watch_job_request__free_unpacked(m, NULL);
}

static void begin_cancel(struct jobs_call *call)
{
    Longspan__V1__CancelJobRequest *m = longspan__v1__cancel_job_request__unpack(NULL, call->bytes, call->data);
    if (!m) {
        jobs_call_fail(call, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    struct job *job = job_of(call, m->id);
    longspan__v1__cancel_job_request__free_unpacked(m, NULL);
    if (!job)
        return;
    if (job_ended(job)) {
        jobs_call_answer(call, job);
    } else if (!job->local) {
        jobs_call_fail(call, RPC_FAILED_PRECONDITION, "the job is another coordinator's");
    } else {
        job_join(call, job);
        job_cancel(job);
    }
}

static bool listed(const struct job *job, Longspan__V1__JobState state)
{
    static const Longspan__V1__JobState ends[] = { [JOB_DONE] = LONGSPAN__V1__JOB_STATE__JOB_STATE_DONE,
                                                   [JOB_FAILED] = LONGSPAN__V1__JOB_STATE__JOB_STATE_FAILED,
                                                   [JOB_CANCELLED] = LONGSPAN__V1__JOB_STATE__JOB_STATE_CANCELLED };
    if (job->stage == STAGE_REMOVING)
        return false;
    switch (state) {
    case LONGSPAN__V1__JOB_STATE__JOB_STATE_UNSPECIFIED:
        return true;
    case LONGSPAN__V1__JOB_STATE__JOB_STATE_QUEUED:
        return !job_ended(job) && (job->stage == STAGE_IDLE || job->stage == STAGE_READING);
    case LONGSPAN__V1__JOB_STATE__JOB_STATE_RUNNING:
        return !job_ended(job) && job->stage != STAGE_IDLE && job->stage != STAGE_READING;
    default:
        return job_ended(job) && ends[job->r.state] == state;
    }
}

static void begin_list(struct jobs_call *call)
{
    Longspan__V1__ListJobsRequest *m = longspan__v1__list_jobs_request__unpack(NULL, call->bytes, call->data);
    if (!m) {
        jobs_call_fail(call, RPC_INVALID_ARGUMENT, "the message is malformed");
        return;
    }
    const uint32_t limit = m->limit && m->limit < LIST_MAX ? m->limit : LIST_MAX;
    const struct job *after = m->after_id[0] ? jobs_find(call->jobs, m->after_id) : NULL;
    const Longspan__V1__JobState state = m->state;
    const bool lost = m->after_id[0] && (!after || !may_see(call, after));
    longspan__v1__list_jobs_request__free_unpacked(m, NULL);
    if (lost) {
        jobs_call_fail(call, RPC_NOT_FOUND, "after_id: no such job");
        return;
    }
    struct text out = { 0 };
    uint32_t n = 0;
    const struct job *job = after ? after->newer : call->jobs->oldest;
    for (; job && n < limit; job = job->newer) {
        if (!listed(job, state) || !may_see(call, job))
            continue;
        job_write_listed(job, &out);
        n++;
    }
    if (job)
        text_add(&out, "\x10\x01", 2); /* more */
    call_send(call, &out, true);
}

static void call_begin(void *arg)
{
    struct jobs_call *call = arg;
    struct jobs *jobs = call->jobs;
    call->begun = true;
    call->link = &jobs->open_calls;
    call->next = jobs->open_calls;
    if (call->next)
        call->next->link = &call->next;
    jobs->open_calls = call;
    if (jobs->stopped || !jobs->loaded) {
        jobs_call_fail(call, RPC_UNAVAILABLE,
                       jobs->stopped ? "the server is shutting down" : "jobs are not read yet; try again");
        return;
    }
    switch (call->method) {
    case METHOD_SUBMIT:
        jobs_submit(jobs, call, call->data, call->bytes);
        return;
    case METHOD_GET:
        begin_get(call);
        return;
    case METHOD_WATCH:
        begin_watch(call);
        return;
    case METHOD_LIST:
        begin_list(call);
        return;
    default:
        begin_cancel(call);
    }
}

/* The last post of a call. */
static void call_gone(void *arg)
{
    struct jobs_call *call = arg;
    job_leave(call);
    call->ended = true;
    if (call->begun) {
        *call->link = call->next;
        if (call->next)
            call->next->link = call->link;
    }
    jobs_call_unref(call);
}

void jobs_calls_end(struct jobs *jobs, const char *why)
{
    for (struct jobs_call *call = jobs->open_calls; call; call = call->next)
        if (!call->ended)
            jobs_call_fail(call, RPC_UNAVAILABLE, why);
}

/* ---- gRPC's thread ---- */

static void on_message(void *user, struct rpc_call *rpc, const uint8_t *data, size_t bytes)
{
    struct jobs_call *call = user;
    const size_t most = call->method == METHOD_SUBMIT ? call->jobs->config.body_bytes_max : MESSAGE_MAX;
    if (call->asked || bytes > most) {
        rpc_call_finish(rpc, RPC_INVALID_ARGUMENT,
                        call->asked ? "this method takes one message" : "the message is too large");
        return;
    }
    call->asked = true;
    call->data = malloc(bytes + 1);
    if (!call->data) {
        rpc_call_finish(rpc, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    call->bytes = bytes;
    if (bytes)
        memcpy(call->data, data, bytes);
    loop_post(call->jobs->config.loop, call_begin, call);
}

static void on_half_close(void *user, struct rpc_call *rpc)
{
    const struct jobs_call *call = user;
    if (!call->asked)
        rpc_call_finish(rpc, RPC_INVALID_ARGUMENT, "the request is missing");
}

static void on_done(void *user, struct rpc_call *rpc, enum rpc_code code, const char *message)
{
    (void)rpc;
    (void)code;
    (void)message;
    struct jobs_call *call = user;
    loop_post(call->jobs->config.loop, call_gone, call);
}

void jobs_calls_open(void *service, struct rpc_call *rpc, struct rpc_handlers *handlers_out, void **user_out)
{
    const struct jobs_service *s = service;
    struct jobs_call *call = calloc(1, sizeof *call);
    if (!call) {
        rpc_call_finish(rpc, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    call->jobs = s->jobs;
    call->method = s->method;
    call->rpc = rpc;
    call->refs = 1;
    rpc_call_ref(rpc);
    jobs_ref(s->jobs);
    *handlers_out =
        (struct rpc_handlers){ .on_message = on_message, .on_half_close = on_half_close, .on_done = on_done };
    *user_out = call;
}
