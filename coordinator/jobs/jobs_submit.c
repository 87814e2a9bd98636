#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/hash.h"
#include "common/log.h"
#include "coordinator/jobs/blobs.h"
#include "coordinator/jobs/jobs_internal.h"

/*
 * parse, try the request's own parser, write the body as a blob (all beside the loop) -> put the record if there is none of that id -> see that this coordinator
 * leads still -> acknowledge. The id is a hash of the idempotency key, so the record itself is what makes one key one job. Whoever leads next reads all records
 * once: one that is written after that by a coordinator that does not know yet would not be seen, so it is not acknowledged.
 */
enum { VALUES_MAX_MORE = 64 << 10 };

struct submission {
    struct jobs *jobs;
    struct jobs_call *call;
    uint8_t *data;
    size_t bytes, values_max;
    struct job_record r;
    uint64_t revision; /* of its record */
    struct refusal refusal;
};

static void submission_free(struct submission *s)
{
    s->jobs->n_submitting--;
    jobs_call_unref(s->call);
    jobs_unref(s->jobs);
    free(s->data);
    free(s);
}

/* ---- beside the loop ---- */

static void id_make(const struct submit_message *m, struct job_record *r)
{
    uint8_t bits[24];
    if (getrandom(bits, sizeof bits, 0) != (ssize_t)sizeof bits) {
        fputs("no random numbers\n", stderr);
        abort();
    }
    memcpy(&r->seed, bits + 16, sizeof r->seed);
    struct digest digest;
    char text[33];
    if (m->key_bytes) {
        struct hasher *h = hasher_new();
        hasher_add_text(h, "job idempotency key");
        hasher_add(h, m->key, m->key_bytes);
        if (r->owner[0]) /* each owner's keys are its own */
            hasher_add_text(h, r->owner);
        digest = hasher_end(h);
    } else {
        digest = digest_of(bits, 16);
    }
    digest_text(&digest, text);
    snprintf(r->id, sizeof r->id, "job-%s", text);
}

/* What would fail for its own reasons fails now, not when nobody listens any more. */
static enum status try_parse(const struct submission *s, const struct submit_message *m, struct refusal *r)
{
    struct want w;
    want_init(&w);
    w.source = job_source_new(&s->r, m->body, m->body_bytes, s->values_max);
    w.source_free = job_source_free;
    const enum status st = w.source ? job_source_parse(&w, r) : refuse(r, ST_NO_MEMORY, "", "out of memory");
    want_free(&w);
    return st;
}

static void submission_keep(void *arg)
{
    struct submission *s = arg;
    struct submit_message m;
    struct error err = { 0 };
    if (submit_read(s->data, s->bytes, &m, &s->refusal))
        return;
    s->r.kind = m.kind;
    s->r.body_bytes = m.body_bytes;
    memcpy(s->r.url, m.url, sizeof s->r.url);
    memcpy(s->r.name, m.name, sizeof s->r.name);
    id_make(&m, &s->r);
    if (try_parse(s, &m, &s->refusal))
        return;
    if (blob_write(s->jobs->dir, s->r.id, m.body, m.body_bytes, s->r.body, &err)) {
        log_error("%s", err.text);
        refuse(&s->refusal, ST_IO, "", "the request could not be kept: %s", err.text);
    }
}

/* ---- loop ---- */

/* There is a job of this id: the same one, or another under the same key. */
static void answer_existing(struct submission *s, const struct job *job)
{
    const struct job_record *a = &s->r, *b = &job->r;
    const bool same =
        a->kind == b->kind && !strcmp(a->url, b->url) && !strcmp(a->body, b->body) && a->body_bytes == b->body_bytes;
    if ((!same || job_ended(job)) && strcmp(a->body, b->output) != 0)
        blob_remove(s->jobs->dir, a->id, a->body);
    if (same && job->stage != STAGE_REMOVING)
        jobs_call_answer(s->call, job);
    else if (same)
        jobs_call_fail(s->call, RPC_UNAVAILABLE, "the job of this key is being removed; try again");
    else
        jobs_call_fail(s->call, RPC_ALREADY_EXISTS, "idempotency_key: it was used for another request");
}

static const char may_be_taken[] =
    "the registry does not answer; the job may have been taken: ask again with its idempotency key";

static void submission_end(struct submission *s)
{
    struct jobs *jobs = s->jobs;
    jobs_ref(jobs);
    submission_free(s);
    if (!jobs->stopped)
        jobs_pump(jobs);
    jobs_unref(jobs);
}

static void on_confirmed(void *ctx, bool leads)
{
    struct submission *s = ctx;
    struct job *job = jobs_find(s->jobs, s->r.id);
    if (!leads)
        jobs_call_fail(s->call, RPC_UNAVAILABLE, may_be_taken);
    else if (job || (job = jobs_add(s->jobs, &s->r, s->revision)))
        jobs_call_answer(s->call, job);
    else
        jobs_call_fail(s->call, RPC_RESOURCE_EXHAUSTED, "out of memory");
    submission_end(s);
}

static void on_put(void *ctx, const struct registry_answer *a)
{
    struct submission *s = ctx;
    struct jobs *jobs = s->jobs;
    struct job_record r = s->r;
    struct error err = { 0 };
    struct job *job = jobs_find(jobs, s->r.id);
    if (!job && a->status == ST_STALE && a->n_items == 1 &&
        !job_record_read(a->items[0].value, a->items[0].bytes, &r, &err) && !strcmp(r.id, s->r.id))
        job = jobs_add(jobs, &r, a->items[0].revision); /* another coordinator's */
    if (a->status == ST_OK && !job) {
        s->revision = a->revision;
        if (jobs->serve.confirm && !jobs->stopped)
            jobs->serve.confirm(jobs->serve.confirm_ctx, on_confirmed, s);
        else
            on_confirmed(s, true);
        return;
    }
    if (a->status == ST_STALE && job) {
        answer_existing(s, job);
    } else {
        /* it may be there, or not: the blob stays until the next start says */
        jobs_call_fail(s->call, RPC_UNAVAILABLE, may_be_taken);
    }
    submission_end(s);
}

static void submission_put(struct submission *s)
{
    struct jobs *jobs = s->jobs;
    char key[64], *value;
    if (job_record_write(&s->r, &value)) {
        jobs_call_fail(s->call, RPC_RESOURCE_EXHAUSTED, "out of memory");
        submission_free(s);
        return;
    }
    jobs_key(s->r.id, key);
    const struct registry_put put = { .key = key, .value = value, .bytes = strlen(value), .compare = REGISTRY_ABSENT };
    jobs->serve.registry->ops->put(jobs->serve.registry, &put, on_put, s);
    free(value);
}

static void submission_kept(void *arg)
{
    struct submission *s = arg;
    struct jobs *jobs = s->jobs;
    const struct job *job = jobs_find(jobs, s->r.id);
    if (s->refusal.status) {
        jobs_call_fail(s->call, grpc_code(s->refusal.status), s->refusal.message);
    } else if (jobs->stopped || !s->r.body[0]) {
        jobs_call_fail(s->call, RPC_UNAVAILABLE, "the server is shutting down");
    } else if (job) {
        answer_existing(s, job);
    } else if (!jobs_room(jobs)) {
        char text[128];
        snprintf(text, sizeof text, "%u jobs are kept, which is the limit, and none has ended", jobs->config.jobs_max);
        blob_remove(jobs->dir, s->r.id, s->r.body);
        jobs_call_fail(s->call, RPC_RESOURCE_EXHAUSTED, text);
    } else {
        submission_put(s);
        return;
    }
    submission_free(s);
}

void jobs_submit(struct jobs *jobs, struct jobs_call *call, const uint8_t *data, size_t bytes)
{
    struct submission *s = calloc(1, sizeof *s);
    uint8_t *copy = malloc(bytes + 1);
    if (!s || !copy) {
        free(s);
        free(copy);
        jobs_call_fail(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    if (bytes)
        memcpy(copy, data, bytes);
    s->jobs = jobs;
    s->call = call;
    s->data = copy;
    s->bytes = bytes;
    s->values_max = (size_t)gateway_host(jobs->serve.gateway)->positions_max + VALUES_MAX_MORE;
    s->r.created_ms = jobs_now_ms();
    memcpy(s->r.home, jobs->home, sizeof s->r.home);
    snprintf(s->r.owner, sizeof s->r.owner, "%s", jobs_call_owner(call));
    jobs_ref(jobs);
    jobs_call_ref(call);
    jobs->n_submitting++;
    if (helper_run(jobs->helper, submission_keep, submission_kept, s)) {
        jobs_call_fail(call, RPC_RESOURCE_EXHAUSTED, "out of memory");
        submission_free(s);
    }
}
