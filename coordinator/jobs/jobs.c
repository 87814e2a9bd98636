#include "coordinator/jobs/jobs_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/log.h"
#include "coordinator/jobs/blobs.h"

enum { TICK_MS = 100, SWEEP_MS = 60000 };

void jobs_ref(struct jobs *jobs)
{
    atomic_fetch_add(&jobs->refs, 1);
}

static void table_free(struct jobs *jobs)
{
    for (struct job *job = jobs->oldest, *next; job; job = next) {
        next = job->newer;
        free(job);
    }
}

void jobs_unref(struct jobs *jobs)
{
    if (atomic_fetch_sub(&jobs->refs, 1) != 1)
        return;
    table_free(jobs);
    free(jobs);
}

uint64_t jobs_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- the table ---- */

void jobs_key(const char *id, char key_out[64])
{
    snprintf(key_out, 64, "job/%.*s", JOB_ID_MAX, id);
}

bool job_ended(const struct job *job)
{
    return job->r.state != JOB_QUEUED && job->r.state != JOB_RUNNING && job->stage != STAGE_STORING;
}

static uint32_t bucket_of(const char *id)
{
    uint32_t h = 2166136261u;
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * 16777619u;
    return h % JOBS_BUCKETS;
}

struct job *jobs_find(const struct jobs *jobs, const char *id)
{
    struct job *job = jobs->buckets[bucket_of(id)];
    while (job && strcmp(job->r.id, id) != 0)
        job = job->chain;
    return job;
}

/* New ones are the youngest, but for those that are read at the start. */
static void order_add(struct jobs *jobs, struct job *job)
{
    struct job *before = jobs->newest;
    while (before && before->r.created_ms > job->r.created_ms)
        before = before->older;
    job->older = before;
    job->newer = before ? before->newer : jobs->oldest;
    *(before ? &before->newer : &jobs->oldest) = job;
    *(job->newer ? &job->newer->older : &jobs->newest) = job;
}

struct job *jobs_add(struct jobs *jobs, const struct job_record *r, uint64_t revision)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->jobs = jobs;
    job->r = *r;
    job->revision = revision;
    job->local = !strcmp(r->home, jobs->home);
    struct job **bucket = &jobs->buckets[bucket_of(r->id)];
    job->chain = *bucket;
    *bucket = job;
    order_add(jobs, job);
    jobs->n++;
    jobs->n_queued += r->state == JOB_QUEUED && job->local;
    return job;
}

static void table_remove(struct job *job)
{
    struct jobs *jobs = job->jobs;
    struct job **link = &jobs->buckets[bucket_of(job->r.id)];
    while (*link != job)
        link = &(*link)->chain;
    *link = job->chain;
    *(job->older ? &job->older->newer : &jobs->oldest) = job->newer;
    *(job->newer ? &job->newer->older : &jobs->newest) = job->older;
    jobs->n--;
    free(job);
}

/* ---- retention ---- */

struct removal {
    struct jobs *jobs;
    char id[JOB_ID_MAX + 1], body[JOB_DIGEST_MAX + 1], output[JOB_DIGEST_MAX + 1];
};

static void blobs_remove(void *arg)
{
    const struct removal *r = arg;
    blob_remove(r->jobs->dir, r->id, r->body);
    if (r->output[0])
        blob_remove(r->jobs->dir, r->id, r->output);
}

static void blobs_removed(void *arg)
{
    struct removal *r = arg;
    jobs_unref(r->jobs);
    free(r);
}

/* The record is gone: now the blobs may go. What a crash leaves between the two is swept at the next start. */
static void on_removed(void *ctx, const struct registry_answer *a)
{
    struct removal *r = ctx;
    struct jobs *jobs = r->jobs;
    struct job *job = jobs_find(jobs, r->id);
    if (a->status && job && job->stage == STAGE_REMOVING)
        job->stage = STAGE_IDLE; /* tried again at the next sweep */
    if (!a->status && job && job->stage == STAGE_REMOVING)
        table_remove(job);
    if (a->status || jobs->stopped || helper_run(jobs->helper, blobs_remove, blobs_removed, r))
        blobs_removed(r);
}

static bool job_remove(struct job *job)
{
    struct jobs *jobs = job->jobs;
    char key[64];
    struct removal *r = calloc(1, sizeof *r);
    if (!r)
        return false;
    r->jobs = jobs;
    memcpy(r->id, job->r.id, sizeof r->id);
    memcpy(r->body, job->r.body, sizeof r->body);
    memcpy(r->output, job->r.output, sizeof r->output);
    jobs_ref(jobs);
    job->stage = STAGE_REMOVING;
    jobs_key(job->r.id, key);
    jobs->serve.registry->ops->remove(jobs->serve.registry, key, REGISTRY_AT, job->revision, on_removed, r);
    return true;
}

static bool removable(const struct job *job)
{
    return job_ended(job) && job->stage == STAGE_IDLE && !job->calls && job->local;
}

bool jobs_room(struct jobs *jobs)
{
    uint32_t leaving = 0;
    for (const struct job *job = jobs->oldest; job; job = job->newer)
        leaving += job->stage == STAGE_REMOVING;
    if (jobs->n - leaving + jobs->n_submitting <=
        jobs->config.jobs_max) /* the one that asks is among those submitting */
        return true;
    for (struct job *job = jobs->oldest; job; job = job->newer)
        if (removable(job))
            return job_remove(job);
    return false;
}

static void retention_sweep(struct jobs *jobs)
{
    const uint64_t keep_ms = (uint64_t)jobs->config.keep_hours * 3600000, now = jobs_now_ms();
    if (!keep_ms || clock_ms() - jobs->swept_ms < SWEEP_MS)
        return;
    jobs->swept_ms = clock_ms();
    for (struct job *job = jobs->oldest; job; job = job->newer)
        if (removable(job) && job->r.finished_ms + keep_ms < now)
            job_remove(job);
}

/* ---- running ---- */

/* Those who wait for an answer come first: none begins while a request is queued. */
static bool may_begin(const struct jobs *jobs)
{
    struct sched_stats stats;
    if (!jobs->loaded || jobs->stopped || !jobs->n_queued || jobs->n_running >= jobs->config.running_max ||
        !jobs->serve.ready(jobs->serve.ctx))
        return false;
    sched_stats(gateway_host(jobs->serve.gateway)->sched, &stats);
    return !stats.waiting;
}

void jobs_pump(struct jobs *jobs)
{
    const int64_t now = clock_ms();
    while (may_begin(jobs)) {
        struct job *job = jobs->oldest;
        while (job &&
               (job->r.state != JOB_QUEUED || job->stage != STAGE_IDLE || !job->local || job->not_before_ms > now))
            job = job->newer;
        if (!job)
            return;
        job_begin(job);
    }
}

/* ---- the beginning ---- */

static bool name_wanted(void *ctx, const char *name)
{
    const struct jobs *jobs = ctx;
    char id[JOB_ID_MAX + 1], full[128];
    const char *dash = strrchr(name, '-');
    if (!strcmp(name, "home"))
        return true;
    if (!dash || dash - name > JOB_ID_MAX)
        return false;
    memcpy(id, name, (size_t)(dash - name));
    id[dash - name] = 0;
    const struct job *job = jobs_find(jobs, id);
    if (!job)
        return false;
    if (!strcmp(dash, "-journal"))
        return !job_ended(job);
    blob_name(id, job->r.body, full);
    if (!strcmp(full, name) && !job_ended(job))
        return true;
    blob_name(id, job->r.output, full);
    return job->r.output[0] && !strcmp(full, name);
}

static void on_listed(void *ctx, const struct registry_answer *a)
{
    struct jobs *jobs = ctx;
    jobs->loading = false;
    for (size_t i = 0; i < a->n_items && !a->status && !jobs->stopped; i++) {
        struct job_record r;
        struct error err = { 0 };
        if (job_record_read(a->items[i].value, a->items[i].bytes, &r, &err) || strcmp(a->items[i].key + 4, r.id) != 0)
            log_error("registry: %s: %s", a->items[i].key, err.text[0] ? err.text : "it holds another job");
        else if (!jobs_find(jobs, r.id) && !jobs_add(jobs, &r, a->items[i].revision))
            log_error("jobs: out of memory");
    }
    if (!a->status && !jobs->stopped) {
        const size_t orphans = blobs_sweep(jobs->dir, name_wanted, jobs);
        log_info("jobs: %u kept, %u to run; %zu files without a job removed", jobs->n, jobs->n_queued, orphans);
        jobs->loaded = true;
        jobs_pump(jobs);
    }
    jobs_unref(jobs);
}

static void on_tick(void *arg)
{
    struct jobs *jobs = arg;
    loop_timer_set(jobs->timer, TICK_MS);
    if (!jobs->loaded && !jobs->loading && jobs->serve.ready(jobs->serve.ctx)) {
        jobs->loading = true;
        jobs_ref(jobs);
        jobs->serve.registry->ops->list(jobs->serve.registry, "job/", false, on_listed, jobs);
    }
    if (!jobs->loaded)
        return;
    retention_sweep(jobs);
    if (jobs->n_to_store)
        jobs_store_again(jobs);
    jobs_pump(jobs);
}

/* The directory's own name, by which records say where their blobs are. */
static enum status home_read(struct jobs *jobs, struct error *err)
{
    char path[JOBS_DIR_MAX + 8];
    char *text = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/home", jobs->dir);
    if (!file_exists(path)) {
        uint8_t bits[16];
        if (getrandom(bits, sizeof bits, 0) != (ssize_t)sizeof bits)
            return error_set(err, ST_IO, "%s: no random numbers", path);
        const struct digest digest = digest_of(bits, sizeof bits);
        digest_text(&digest, jobs->home);
        return file_write_atomic(path, jobs->home, JOB_DIGEST_MAX, err);
    }
    const enum status st = file_read(path, 64, &text, &n, err);
    if (st)
        return st;
    const bool good = n == JOB_DIGEST_MAX && strspn(text, "0123456789abcdef") == n;
    if (good)
        memcpy(jobs->home, text, n + 1);
    free(text);
    return good ? ST_OK : error_set(err, ST_CORRUPT, "%s: not 32 hex digits", path);
}

enum status jobs_new(const struct jobs_config *config, struct jobs **jobs_out, struct error *err)
{
    static const char *const paths[JOBS_METHODS] = { "/longspan.v1.Inference/SubmitJob",
                                                     "/longspan.v1.Inference/GetJob", "/longspan.v1.Inference/WatchJob",
                                                     "/longspan.v1.Inference/ListJobs",
                                                     "/longspan.v1.Inference/CancelJob" };
    struct jobs *jobs = calloc(1, sizeof *jobs);
    if (!jobs)
        return error_set(err, ST_NO_MEMORY, "jobs: out of memory");
    atomic_init(&jobs->refs, 1);
    jobs->config = *config;
    for (int i = 0; i < JOBS_METHODS; i++) {
        jobs->services[i] = (struct jobs_service){ jobs, i };
        jobs->methods[i] = (struct rpc_method){ paths[i], &jobs->services[i], jobs_calls_open };
    }
    enum status st = ST_OK;
    if (snprintf(jobs->dir, sizeof jobs->dir, "%s", config->dir) >= (int)sizeof jobs->dir)
        st = error_set(err, ST_TOO_LARGE, "jobs: %s: path too long", config->dir);
    if (!st)
        st = file_mkdirs(jobs->dir, err);
    if (!st)
        st = home_read(jobs, err);
    jobs->timer = loop_timer_new(config->loop, on_tick, jobs);
    if (!st && (!jobs->timer || helper_new(config->loop, &jobs->helper)))
        st = error_set(err, ST_NO_MEMORY, "jobs: out of memory");
    if (st) {
        loop_timer_free(jobs->timer);
        free(jobs);
        return st;
    }
    *jobs_out = jobs;
    return ST_OK;
}

const struct rpc_method *jobs_methods(const struct jobs *jobs, size_t *n_out)
{
    *n_out = JOBS_METHODS;
    return jobs->methods;
}

void jobs_serve(struct jobs *jobs, const struct jobs_serve *serve)
{
    jobs->serve = *serve;
    jobs->serving = true;
    loop_timer_set(jobs->timer, 0);
}

void jobs_stop(struct jobs *jobs)
{
    if (!jobs || jobs->stopped)
        return;
    jobs->stopped = true;
    loop_timer_free(jobs->timer);
    jobs->timer = NULL;
    for (struct job *job = jobs->oldest; job; job = job->newer)
        job_stop(job);
    jobs_calls_end(jobs, "the server is shutting down");
    helper_free(jobs->helper);
    jobs->helper = NULL;
}

void jobs_free(struct jobs *jobs)
{
    if (!jobs)
        return;
    jobs_stop(jobs);
    jobs_unref(jobs);
}
