#include "client/jobs_remote.h"

#include <stdlib.h>
#include <unistd.h>

#include "common/clock.h"

enum { CALL_MS = 30000, AGAIN_US = 200000 };

bool jobs_remote_ended(const Longspan__V1__Job *job)
{
    return job->state == LONGSPAN__V1__JOB_STATE__JOB_STATE_DONE ||
           job->state == LONGSPAN__V1__JOB_STATE__JOB_STATE_FAILED ||
           job->state == LONGSPAN__V1__JOB_STATE__JOB_STATE_CANCELLED;
}

const char *jobs_remote_state(const Longspan__V1__Job *job)
{
    static const char *const names[] = { "unspecified", "queued", "running", "done", "failed", "cancelled" };
    const size_t n = (size_t)job->state;
    return names[n < sizeof names / sizeof *names ? n : 0];
}

/* false: it is refused for good, or has been away for too long. */
static bool again(enum rpc_code code, int64_t since_ms)
{
    if (code != RPC_UNAVAILABLE && code != RPC_DEADLINE_EXCEEDED && code != RPC_CANCELLED)
        return false;
    if (clock_ms() - since_ms > JOBS_AWAY_MS)
        return false;
    usleep(AGAIN_US);
    return true;
}

static enum status call(struct remote *r, const char *path, const ProtobufCMessage *request, jobs_stop_fn *stop,
                        Longspan__V1__Job **job_out, enum rpc_code *code_out, struct error *err)
{
    const int64_t since = clock_ms();
    for (;;) {
        uint8_t *reply;
        size_t bytes;
        enum rpc_code code = RPC_UNKNOWN;
        struct error why = { 0 };
        enum status st = remote_unary(r, path, CALL_MS, request, &reply, &bytes, &code, &why);
        if (!st) {
            *job_out = longspan__v1__job__unpack(NULL, bytes, reply);
            free(reply);
            return *job_out ? ST_OK : error_set(err, ST_PROTOCOL, "%s: malformed answer", path);
        }
        if (code_out)
            *code_out = code;
        if (stop && stop())
            return error_set(err, ST_CANCELLED, "interrupted");
        if (!again(code, since))
            return error_set(err, st, "%s", why.text);
    }
}

enum status jobs_remote_submit(struct remote *r, const Longspan__V1__SubmitJobRequest *request, jobs_stop_fn *stop,
                               Longspan__V1__Job **job_out, enum rpc_code *code_out, struct error *err)
{
    return call(r, "/longspan.v1.Inference/SubmitJob", &request->base, stop, job_out, code_out, err);
}

enum status jobs_remote_get(struct remote *r, const char *id, bool output, jobs_stop_fn *stop,
                            Longspan__V1__Job **job_out, struct error *err)
{
    Longspan__V1__GetJobRequest m = LONGSPAN__V1__GET_JOB_REQUEST__INIT;
    m.id = (char *)(uintptr_t)id;
    m.output = output;
    return call(r, "/longspan.v1.Inference/GetJob", &m.base, stop, job_out, NULL, err);
}

enum status jobs_remote_cancel(struct remote *r, const char *id, jobs_stop_fn *stop, Longspan__V1__Job **job_out,
                               struct error *err)
{
    Longspan__V1__CancelJobRequest m = LONGSPAN__V1__CANCEL_JOB_REQUEST__INIT;
    m.id = (char *)(uintptr_t)id;
    return call(r, "/longspan.v1.Inference/CancelJob", &m.base, stop, job_out, NULL, err);
}

struct await {
    Longspan__V1__Job *last;
    void (*changed)(const Longspan__V1__Job *job);
    jobs_stop_fn *stop;
};

static bool on_message(void *ctx, const uint8_t *data, size_t bytes)
{
    struct await *a = ctx;
    Longspan__V1__Job *job = longspan__v1__job__unpack(NULL, bytes, data);
    if (!job)
        return false;
    longspan__v1__job__free_unpacked(a->last, NULL);
    a->last = job;
    if (a->changed)
        a->changed(job);
    return true;
}

static bool interrupted(void *ctx)
{
    const struct await *a = ctx;
    return a->stop && a->stop();
}

enum status jobs_remote_await(struct remote *r, const char *id, void (*changed)(const Longspan__V1__Job *job),
                              jobs_stop_fn *stop, Longspan__V1__Job **job_out, struct error *err)
{
    struct await a = { .changed = changed, .stop = stop };
    const struct remote_stream events = { .on_message = on_message, .interrupted = interrupted, .ctx = &a };
    Longspan__V1__WatchJobRequest m = LONGSPAN__V1__WATCH_JOB_REQUEST__INIT;
    m.id = (char *)(uintptr_t)id;
    m.output = 1;
    for (int64_t since = clock_ms();;) {
        enum rpc_code code = RPC_UNKNOWN;
        struct error why = { 0 };
        const enum status st = remote_stream(r, "/longspan.v1.Inference/WatchJob", &m.base, &events, &code, &why);
        if (!st && a.last && jobs_remote_ended(a.last)) {
            *job_out = a.last;
            return ST_OK;
        }
        if (a.last && a.last->revision > m.after_revision) {
            m.after_revision = a.last->revision;
            since = clock_ms();
        }
        const bool over = st == ST_CANCELLED || (stop && stop());
        if (over || (st && !again(code, since))) {
            longspan__v1__job__free_unpacked(a.last, NULL);
            return error_set(err, over ? ST_CANCELLED : st, "%s", why.text[0] ? why.text : "interrupted");
        }
    }
}
