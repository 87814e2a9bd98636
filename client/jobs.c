#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/answer.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/jobs_remote.h"
#include "client/settings.h"
#include "client/terminal.h"
#include "common/file.h"

enum { PROMPT_BYTES_MAX = 1 << 28, CALL_MS = 30000 };

static json_t *job_json(const Longspan__V1__Job *j)
{
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:i, s:s, s:s}", "id", j->id, "state", jobs_remote_state(j),
                  "name", j->name, "revision", (json_int_t)j->revision, "created_ms", (json_int_t)j->created_ms,
                  "finished_ms", (json_int_t)j->finished_ms, "prompt_tokens", (int)j->prompt_tokens,
                  "completion_tokens", (int)j->completion_tokens, "url", j->url, "error", j->error);
    if (o && j->http)
        json_object_set_new(o, "body", json_loadb((const char *)j->http->body.data, j->http->body.len, 0, NULL));
    if (o && j->http)
        json_object_set_new(o, "status", json_integer((json_int_t)j->http->status));
    if (o && j->generate)
        json_object_set_new(o, "text", json_string(j->generate->text));
    return o;
}

static void print_json(json_t *o)
{
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    puts(text ? text : "{}");
    free(text);
    json_decref(o);
}

/* The first choice's words. */
static void print_answer(const Longspan__V1__Job *j)
{
    if (j->generate)
        puts(j->generate->text);
    if (!j->http)
        return;
    json_t *o = json_loadb((const char *)j->http->body.data, j->http->body.len, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(o, "choices"), 0);
    const char *text = json_string_value(json_object_get(choice, "text"));
    if (!text)
        text = json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
    if (text)
        puts(text);
    json_decref(o);
}

static int show(const struct settings *s, const Longspan__V1__Job *j, bool answer)
{
    if (s->json) {
        print_json(job_json(j));
        return 0;
    }
    fprintf(answer ? stderr : stdout, "%s %s%s%s%s%s\n", j->id, jobs_remote_state(j), *j->name ? " " : "", j->name,
            *j->error ? ": " : "", j->error);
    if (answer)
        print_answer(j);
    return 0;
}

/* ---- submit ---- */

static json_t *body_of(const struct settings *s, const char *prompt)
{
    json_t *o = json_pack("{s:i, s:f, s:f}", "max_tokens", (int)s->max_tokens, "temperature",
                          strtod(s->temperature, NULL), "top_p", strtod(s->top_p, NULL));
    if (o && s->seed[0])
        json_object_set_new(o, "seed", json_integer((json_int_t)strtoull(s->seed, NULL, 10)));
    json_t *text = s->raw ? json_string(prompt) : json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    if (!o || !text || json_object_set_new(o, s->raw ? "prompt" : "messages", text)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static enum status submit(struct remote *r, const struct settings *s, const char *prompt, Longspan__V1__Job **job_out,
                          struct error *err)
{
    json_t *o = body_of(s, prompt);
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (!body)
        return error_set(err, ST_INVALID, "the prompt is not UTF-8");
    Longspan__V1__HttpRequest http = LONGSPAN__V1__HTTP_REQUEST__INIT;
    http.url = s->raw ? "/v1/completions" : "/v1/chat/completions";
    http.body.data = (uint8_t *)body;
    http.body.len = strlen(body);
    Longspan__V1__SubmitJobRequest m = LONGSPAN__V1__SUBMIT_JOB_REQUEST__INIT;
    m.work_case = LONGSPAN__V1__SUBMIT_JOB_REQUEST__WORK_HTTP;
    m.http = &http;
    m.name = (char *)(uintptr_t)s->name;
    m.idempotency_key = (char *)(uintptr_t)s->key;
    const enum status st = jobs_remote_submit(r, &m, interrupted, job_out, NULL, err);
    free(body);
    return st;
}

static enum status run_submit(struct remote *r, const struct settings *s, const char *prompt, struct error *err)
{
    char *text = NULL;
    size_t bytes;
    Longspan__V1__Job *job;
    enum status st = answer_check(s, err);
    if (!st && !prompt == !s->prompt_file[0])
        st = error_set(err, ST_INVALID, "jobs submit takes --prompt TEXT or --prompt-file FILE");
    if (!st && !prompt)
        st = file_read(strcmp(s->prompt_file, "-") ? s->prompt_file : "/dev/stdin", PROMPT_BYTES_MAX, &text, &bytes,
                       err);
    if (!st)
        st = submit(r, s, prompt ? prompt : text, &job, err);
    free(text);
    if (st)
        return st;
    if (s->json)
        print_json(job_json(job));
    else
        puts(job->id);
    longspan__v1__job__free_unpacked(job, NULL);
    return ST_OK;
}

/* ---- list ---- */

static enum status list_page(struct remote *r, char *after, Longspan__V1__ListJobsResponse **page_out,
                             struct error *err)
{
    Longspan__V1__ListJobsRequest m = LONGSPAN__V1__LIST_JOBS_REQUEST__INIT;
    uint8_t *reply;
    size_t bytes;
    m.after_id = after;
    const enum status st =
        remote_unary(r, "/longspan.v1.Inference/ListJobs", CALL_MS, &m.base, &reply, &bytes, NULL, err);
    if (st)
        return st;
    *page_out = longspan__v1__list_jobs_response__unpack(NULL, bytes, reply);
    free(reply);
    return *page_out ? ST_OK : error_set(err, ST_PROTOCOL, "malformed answer");
}

static void print_row(const Longspan__V1__Job *j)
{
    printf("%-36s %-10s %8u %8u  %s%s%s\n", j->id, jobs_remote_state(j), j->prompt_tokens, j->completion_tokens,
           j->name, *j->error ? ": " : "", j->error);
}

static enum status run_list(struct remote *r, const struct settings *s, struct error *err)
{
    char after[64] = "";
    json_t *all = json_array();
    enum status st = ST_OK;
    if (!s->json)
        printf("%-36s %-10s %8s %8s  %s\n", "id", "state", "prompt", "answer", "name");
    for (bool more = true; more && !st;) {
        Longspan__V1__ListJobsResponse *page;
        st = list_page(r, after, &page, err);
        if (st)
            break;
        for (size_t i = 0; i < page->n_jobs; i++) {
            if (s->json)
                json_array_append_new(all, job_json(page->jobs[i]));
            else
                print_row(page->jobs[i]);
            snprintf(after, sizeof after, "%s", page->jobs[i]->id);
        }
        more = page->more && page->n_jobs;
        longspan__v1__list_jobs_response__free_unpacked(page, NULL);
    }
    if (s->json && !st)
        print_json(json_incref(all));
    json_decref(all);
    return st;
}

/* ---- one job ---- */

static void on_change(const Longspan__V1__Job *job)
{
    char what[32];
    snprintf(what, sizeof what, "%s %u", jobs_remote_state(job), job->completion_tokens);
    terminal_bar(what, jobs_remote_ended(job) ? 1 : 0);
}

static enum status run_one(struct remote *r, const struct settings *s, const char *what, const char *id,
                           struct error *err)
{
    Longspan__V1__Job *job;
    enum status st;
    if (!strcmp(what, "cancel"))
        st = jobs_remote_cancel(r, id, interrupted, &job, err);
    else if (!strcmp(what, "get"))
        st = jobs_remote_get(r, id, true, interrupted, &job, err);
    else
        st = jobs_remote_await(r, id, s->json ? NULL : on_change, interrupted, &job, err);
    terminal_bar_end();
    if (st)
        return st;
    show(s, job, strcmp(what, "cancel") != 0);
    longspan__v1__job__free_unpacked(job, NULL);
    return ST_OK;
}

int command_jobs(int argc, char **argv)
{
    static const char usage[] =
        "usage: longspan jobs submit (--prompt TEXT | --prompt-file FILE) [flags] | list | get ID | "
        "watch ID | cancel ID";
    static const char *const with_id[] = { "get", "watch", "cancel" };
    struct settings s;
    struct error err = { 0 };
    struct remote *r;
    const char *prompt, *id, *what = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
    const int skip = *what ? 1 : 0;
    if (!settings_read(&s, SCOPE_JOBS, usage, argc - skip, argv + skip, &prompt, &id))
        return 2;
    bool one = false;
    for (size_t i = 0; i < sizeof with_id / sizeof *with_id; i++)
        one = one || !strcmp(what, with_id[i]);
    if ((!one && strcmp(what, "submit") != 0 && strcmp(what, "list") != 0) || one != (id != NULL)) {
        fprintf(stderr, "%s\n", usage);
        return 2;
    }
    interrupt_catch();
    enum status st = remote_open(s.grpc, &s, &r, &err);
    if (!st) {
        st = one                       ? run_one(r, &s, what, id, &err)
             : !strcmp(what, "submit") ? run_submit(r, &s, prompt, &err)
                                       : run_list(r, &s, &err);
        remote_close(r);
    }
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
