#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/jobs/blobs.h"
#include "coordinator/jobs/jobs_internal.h"

/*
 * read body and journal -> run it behind what the journal knows -> write the output as a blob -> store the record with its end. A failure of the cluster's (a
 * lost worker, a full queue) queues it again; a failure of its own ends it. Only the last step ends it: who dies before goes on from the journal.
 */
enum { TRIES_MAX = 8, AGAIN_MS = 1000, TELL_MS = 500, BODY_VALUES_MAX = 64 << 10 };

struct job_run {
    struct jobs *jobs;
    struct job *job; /* NULL: it was stopped; what is under way only cleans up */
    char id[JOB_ID_MAX + 1], digest[JOB_DIGEST_MAX + 1];
    uint64_t bytes;
    struct choices *choices;
    struct reply reply;
    struct grpc_told told;
    struct text *whole; /* [n]: choices that have ended */
    uint32_t n;
    struct text output;
    struct keeper *journal; /* NULL: no memory for it */
    /* of the helper */
    char *data;
    enum status status;
    struct error err;
};

static void run_free(struct job_run *run)
{
    for (uint32_t i = 0; run->whole && i < run->n; i++)
        text_free(&run->whole[i]);
    free(run->whole);
    text_free(&run->output);
    keeper_close(run->journal);
    free(run->data);
    jobs_unref(run->jobs);
    free(run);
}

static void run_leave(struct job *job)
{
    struct job_run *run = job->run;
    job->run = NULL;
    if (run)
        run_free(run);
}

/* ---- the end in the registry ---- */

static void store(struct job *job);

struct storing {
    struct jobs *jobs;
    char id[JOB_ID_MAX + 1];
};

static void journal_path(const char *dir, const char *id, char path_out[KEEPER_PATH_MAX])
{
    snprintf(path_out, KEEPER_PATH_MAX, "%s/%s-journal", dir, id);
}

static void journal_remove(const char *dir, const char *id)
{
    char path[KEEPER_PATH_MAX];
    journal_path(dir, id, path);
    unlink(path);
}

static void body_remove(void *arg)
{
    const struct job_run *run = arg;
    if (run->digest[0])
        blob_remove(run->jobs->dir, run->id, run->digest);
    journal_remove(run->jobs->dir, run->id);
}

static void body_removed(void *arg)
{
    run_free(arg);
}

/* Nobody reads body and journal of a job that has ended. */
static void body_drop(struct job *job)
{
    struct job_run *run = calloc(1, sizeof *run);
    if (!run)
        return; /* swept at the next start */
    run->jobs = job->jobs;
    jobs_ref(run->jobs);
    memcpy(run->id, job->r.id, sizeof run->id);
    if (strcmp(job->r.body, job->r.output) != 0) /* one file may be both */
        memcpy(run->digest, job->r.body, sizeof run->digest);
    if (helper_run(run->jobs->helper, body_remove, body_removed, run))
        run_free(run);
}

/* What another coordinator made of it is what is known of it from now on. */
static void record_take(struct job *job, const struct registry_answer *a)
{
    struct job_record r;
    struct error err = { 0 };
    if (a->n_items != 1 || job_record_read(a->items[0].value, a->items[0].bytes, &r, &err) ||
        strcmp(r.id, job->r.id) != 0)
        return;
    job->r = r;
    job->revision = a->items[0].revision;
    job->jobs->n_queued += r.state == JOB_QUEUED && job->local;
}

static void on_stored(void *ctx, const struct registry_answer *a)
{
    struct storing *s = ctx;
    struct jobs *jobs = s->jobs;
    struct job *job = jobs->stopped ? NULL : jobs_find(jobs, s->id);
    free(s);
    if (job && job->stage == STAGE_STORING) {
        if (a->status == ST_OK) {
            job->revision = a->revision;
            job->stage = STAGE_IDLE;
            jobs->n_running--;
            body_drop(job);
            job_tell(job);
            jobs_pump(jobs);
        } else if (a->status == ST_STALE) {
            log_error("job %s: its record was changed by another; the end of this run is not kept", job->r.id);
            record_take(job, a);
            job->stage = STAGE_IDLE;
            jobs->n_running--;
            job_tell(job);
        } else { /* a disk that is full says so at once: not again and again */
            job->not_before_ms = clock_ms() + JOBS_RETRY_MS;
            jobs->n_to_store += !job->to_store;
            job->to_store = true;
        }
    }
    jobs_unref(jobs);
}

static void store(struct job *job)
{
    struct jobs *jobs = job->jobs;
    struct storing *s = calloc(1, sizeof *s);
    char *value = NULL, key[64];
    if (!s || job_record_write(&job->r, &value)) {
        fputs("out of memory in jobs\n", stderr);
        abort();
    }
    s->jobs = jobs;
    memcpy(s->id, job->r.id, sizeof s->id);
    jobs_ref(jobs);
    job->stage = STAGE_STORING;
    jobs_key(job->r.id, key);
    const struct registry_put put = {
        .key = key, .value = value, .bytes = strlen(value), .compare = REGISTRY_AT, .at = job->revision
    };
    jobs->serve.registry->ops->put(jobs->serve.registry, &put, on_stored, s);
    free(value);
}

void jobs_store_again(struct jobs *jobs)
{
    const int64_t now = clock_ms();
    for (struct job *job = jobs->oldest; job && jobs->n_to_store; job = job->newer) {
        if (!job->to_store || job->not_before_ms > now)
            continue;
        job->to_store = false;
        jobs->n_to_store--;
        store(job);
    }
}

static void job_end(struct job *job, enum job_state state)
{
    job->jobs->n_queued--;
    job->r.state = state;
    job->r.finished_ms = jobs_now_ms();
    job->r.completion_tokens = job->tokens;
    run_leave(job);
    store(job);
}

static void error_note(struct job *job, const struct refusal *r)
{
    struct text clean = { 0 };
    text_utf8(&clean, r->message, strnlen(r->message, JOB_ERROR_MAX - 8));
    snprintf(job->r.error, sizeof job->r.error, "%.*s", (int)clean.n, clean.data ? clean.data : "");
    /* replacement characters are longer than what they replace; a cut one is taken away */
    while (*job->r.error && !text_valid(job->r.error, strlen(job->r.error)))
        job->r.error[strlen(job->r.error) - 1] = 0;
    job->r.error_code = (uint32_t)grpc_code(r->status);
    text_free(&clean);
}

/* ---- output ---- */

static void again_later(struct job *job, const struct refusal *r);

static void output_write(void *arg)
{
    struct job_run *run = arg;
    run->status = blob_write(run->jobs->dir, run->id, run->output.data, run->output.n, run->digest, &run->err);
}

static void output_written(void *arg)
{
    struct job_run *run = arg;
    struct job *job = run->job;
    if (!job) {
        run_free(run);
        return;
    }
    if (run->status) {
        log_error("job %s: %s", job->r.id, run->err.text);
        struct refusal r = { .status = run->status };
        snprintf(r.message, sizeof r.message, "its output could not be kept: %s", run->err.text);
        if (run->status == ST_IO && job->tries < TRIES_MAX && !job->r.error_code && !job->cancelled) {
            again_later(job, &r); /* a disk that is full may have room again; some minutes in all */
            return;
        }
        error_note(job, &r);
        job_end(job, JOB_FAILED);
        return;
    }
    memcpy(job->r.output, run->digest, sizeof job->r.output);
    job->r.output_bytes = run->output.n;
    job_end(job, job->r.error_code ? JOB_FAILED : JOB_DONE);
}

static void output_keep(struct job *job)
{
    struct job_run *run = job->run;
    job->stage = STAGE_WRITING;
    if (run->output.bad) {
        error_note(job, &(struct refusal){ .status = ST_NO_MEMORY, .message = "out of memory" });
        job_end(job, JOB_FAILED);
    } else if (helper_run(job->jobs->helper, output_write, output_written, run)) {
        error_note(job, &(struct refusal){ .status = ST_NO_MEMORY, .message = "out of memory" });
        job_end(job, JOB_FAILED);
    }
}

/* ---- the run ---- */

/* The cluster's fault or the moment's, not the request's. */
static bool passes(enum status st)
{
    return st == ST_PEER || st == ST_TIMEOUT || st == ST_BUSY || st == ST_AGAIN || st == ST_CANCELLED || st == ST_STALE;
}

static void again_later(struct job *job, const struct refusal *r)
{
    job->tries += r->status == ST_PEER || r->status == ST_TIMEOUT || r->status == ST_IO;
    job->stage = STAGE_IDLE;
    job->tokens = 0;
    job->not_before_ms = clock_ms() + (r->status == ST_IO ? AGAIN_MS << job->tries : AGAIN_MS);
    job->jobs->n_running--;
    run_leave(job);
    log_info("job %s runs again: %s", job->r.id, r->message);
    job_tell(job);
}

static bool run_has_journal(const struct job_run *run)
{
    uint32_t n = 0;
    return run->journal && keeper_told(run->journal, &n) && n;
}

static void fail(struct job *job, const struct refusal *r)
{
    if (job->cancelled) {
        job_end(job, JOB_CANCELLED);
        return;
    }
    if (r->status == ST_CORRUPT && run_has_journal(job->run)) { /* it cannot have come so: without it, then */
        job->tries++;
        journal_remove(job->jobs->dir, job->r.id);
        again_later(job, r);
        return;
    }
    if (passes(r->status) && job->tries < TRIES_MAX) {
        again_later(job, r);
        return;
    }
    error_note(job, r);
    if (job->r.kind == JOB_HTTP) {
        job->r.http_status = (uint32_t)reply_http_status(r->status);
        reply_error(r, &job->run->output);
        output_keep(job);
        return;
    }
    job_end(job, JOB_FAILED);
}

static void on_output(void *user, struct generation *g)
{
    struct job_run *run = user;
    struct job *job = run->job;
    job->r.prompt_tokens = (uint32_t)g->n_prompt;
    if (!g->index)
        job->tokens = (uint32_t)g->n_sampled;
    if (run->journal)
        keeper_note(run->journal, job->jobs->helper, g);
    if (clock_ms() - job->told_ms < TELL_MS)
        return;
    job->told_ms = clock_ms();
    job_tell(job);
}

static void on_choice(void *user, struct generation *g, const struct generation_done *done)
{
    struct job_run *run = user;
    struct job *job = run->job;
    if (job->r.kind == JOB_GENERATE) {
        snprintf(g->id, sizeof g->id, "%s", job->r.id);
        grpc_write_done(&run->told, g, done, gateway_config_of(job->jobs->serve.gateway), &run->output);
        return;
    }
    if (!run->whole) {
        run->whole = calloc(g->want.n, sizeof *run->whole);
        run->n = g->want.n;
    }
    struct reply reply = run->reply;
    reply.index = g->index;
    if (run->whole)
        reply_choice(&reply, g, done, &run->whole[g->index]);
    else
        run->output.bad = true;
    reply_deinit(&reply);
}

static void on_end(void *user, const struct choices_done *done)
{
    struct job_run *run = user;
    struct job *job = run->job;
    run->choices = NULL;
    if (done->refusal->status) {
        fail(job, done->refusal);
        return;
    }
    job->tokens = done->completion_tokens;
    job->r.prompt_tokens = done->prompt_tokens;
    if (job->r.kind == JOB_HTTP) {
        struct text all = { 0 };
        char id[JOB_ID_MAX + 16];
        for (uint32_t i = 0; i < run->n; i++) {
            text_str(&all, i ? "," : "");
            text_add(&all, run->whole[i].data, run->whole[i].n);
            all.bad = all.bad || run->whole[i].bad;
        }
        snprintf(id, sizeof id, "%s-%s", run->reply.chat ? "chatcmpl" : "cmpl", job->r.id);
        reply_whole(&run->reply, id, (int64_t)(job->r.created_ms / 1000), &all, done, &run->output);
        run->output.bad = run->output.bad || !run->n;
        text_free(&all);
        job->r.http_status = 200;
    }
    output_keep(job);
}

static const struct choices_events events = { .output = on_output, .done = on_choice, .end = on_end };

static void run_begin(struct job *job)
{
    struct job_run *run = job->run;
    struct jobs *jobs = job->jobs;
    struct generation_host *host = gateway_host(jobs->serve.gateway);
    struct refusal r = { 0 };
    struct job_source *source =
        job_source_new(&job->r, (const uint8_t *)run->data, run->bytes, (size_t)host->positions_max + BODY_VALUES_MAX);
    free(run->data);
    run->data = NULL;
    run->reply = (struct reply){ .chat = !strcmp(job->r.url, "/v1/chat/completions"),
                                 .tokenizer = host->tokenizer,
                                 .model = host->model_name,
                                 .fingerprint = gateway_fingerprint(jobs->serve.gateway) };
    job->stage = STAGE_RUNNING;
    uint32_t n_told = 0;
    const struct generation_told *told = run->journal ? keeper_told(run->journal, &n_told) : NULL;
    const struct generation_start start = { .id_prefix = "job-",
                                            .told = told,
                                            .n_told = n_told,
                                            .source = source,
                                            .source_free = job_source_free,
                                            .owner = job->r.owner[0] ? job->r.owner : NULL,
                                            .source_bytes = run->bytes,
                                            .parse = job_source_parse };
    if (!source)
        fail(job, &(struct refusal){ .status = ST_BUSY, .message = "out of memory" });
    else if (choices_start(host, &start, &events, run, &run->choices, &r))
        fail(job, &r);
    else
        job_tell(job);
}

/* ---- body ---- */

static void body_read(void *arg)
{
    struct job_run *run = arg;
    run->status = blob_read(run->jobs->dir, run->id, run->digest, run->bytes, &run->data, &run->err);
    char path[KEEPER_PATH_MAX];
    journal_path(run->jobs->dir, run->id, path);
    if (!run->status)
        run->journal = keeper_open(path, &run->jobs->config.context);
}

static void body_was_read(void *arg)
{
    struct job_run *run = arg;
    struct job *job = run->job;
    if (!job) {
        run_free(run);
    } else if (job->cancelled) {
        job_end(job, JOB_CANCELLED);
    } else if (run->status) {
        log_error("job %s: %s", job->r.id, run->err.text);
        struct refusal r = { .status = ST_CORRUPT };
        snprintf(r.message, sizeof r.message, "its request cannot be read: %s", run->err.text);
        error_note(job, &r);
        job_end(job, JOB_FAILED);
    } else {
        run_begin(job);
    }
}

void job_begin(struct job *job)
{
    struct jobs *jobs = job->jobs;
    struct job_run *run = calloc(1, sizeof *run);
    job->not_before_ms = clock_ms() + AGAIN_MS;
    if (!run)
        return;
    run->jobs = jobs;
    jobs_ref(jobs);
    run->job = job;
    memcpy(run->id, job->r.id, sizeof run->id);
    memcpy(run->digest, job->r.body, sizeof run->digest);
    run->bytes = job->r.body_bytes;
    if (helper_run(jobs->helper, body_read, body_was_read, run)) {
        run_free(run);
        return;
    }
    job->run = run;
    job->stage = STAGE_READING;
    jobs->n_running++;
}

/* ---- from outside ---- */

void job_cancel(struct job *job)
{
    if (job->r.state != JOB_QUEUED || job->cancelled)
        return;
    job->cancelled = true;
    if (job->stage == STAGE_IDLE) {
        job->jobs->n_running++; /* given back when it is stored */
        job_end(job, JOB_CANCELLED);
    } else if (job->stage == STAGE_RUNNING) {
        struct choices *choices = job->run->choices;
        job->run->choices = NULL;
        if (choices)
            choices_cancel(choices);
        job_end(job, JOB_CANCELLED);
    }
}

void job_stop(struct job *job)
{
    struct job_run *run = job->run;
    if (!run)
        return;
    const bool helped = job->stage == STAGE_READING || job->stage == STAGE_WRITING;
    job->run = NULL;
    run->job = NULL;
    if (run->choices)
        choices_cancel(run->choices);
    job->stage = STAGE_IDLE;
    if (!helped)
        run_free(run);
}
