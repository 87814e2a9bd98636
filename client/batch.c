#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/batch_line.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/jobs_remote.h"
#include "client/settings.h"
#include "client/terminal.h"
#include "common/file.h"
#include "common/hash.h"

/*
 * Lines become jobs under the key "BATCH:CUSTOM_ID", some ahead of the one that is awaited; answers are written in the order of the lines. Who is interrupted
 * runs it again: the jobs are there, and what has ended is only fetched. A line that cannot be run, or whose job failed, says so in its answer.
 */
enum { AHEAD_MAX = 64, FILE_BYTES_MAX = 1 << 30, KEY_ROOM = 700 };

struct entry {
    char custom_id[BATCH_ID_MAX + 1];
    char *job;   /* id; NULL: it has none, and error says why */
    char *error; /* malloc'd */
    const char *code;
};

struct batch {
    struct remote *r;
    FILE *out;
    char key[128];
    const char *at, *end; /* of the file, not yet submitted */
    struct entry ahead[AHEAD_MAX];
    size_t first, n; /* of ahead */
    size_t n_lines, n_done, n_failed, line;
    json_t *ids; /* that were seen */
};

static void entry_fail(struct entry *e, const char *code, const char *message)
{
    e->code = code;
    e->error = strdup(message);
}

/* ---- answers ---- */

static json_t *response_of(const Longspan__V1__Job *job)
{
    json_t *body = job->http ? json_loadb((const char *)job->http->body.data, job->http->body.len, 0, NULL) : NULL;
    return json_pack("{s:i, s:s, s:o}", "status_code", job->http ? (int)job->http->status : 0, "request_id", job->id,
                     "body", body ? body : json_null());
}

static enum status write_line(struct batch *b, const struct entry *e, const Longspan__V1__Job *job, struct error *err)
{
    const bool answered = job && job->http;
    const char *code = e->code ? e->code : job && !answered ? jobs_remote_state(job) : NULL;
    const char *message = e->error ? e->error : job && *job->error ? job->error : code ? code : "";
    json_t *error = code ? json_pack("{s:s, s:s}", "code", code, "message", message) : json_null();
    json_t *o = json_pack("{s:s, s:o, s:o, s:o}", "id", e->job ? e->job : "", "custom_id",
                          *e->custom_id ? json_string(e->custom_id) : json_null(), "response",
                          answered ? response_of(job) : json_null(), "error", error ? error : json_null());
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    b->n_failed += !answered || job->http->status != 200;
    const bool bad = !text || fputs(text, b->out) < 0 || fputc('\n', b->out) < 0;
    free(text);
    return bad ? error_set(err, ST_IO, "the output cannot be written") : ST_OK;
}

/* The oldest of those ahead. */
static enum status reap(struct batch *b, struct error *err)
{
    struct entry *e = &b->ahead[b->first];
    Longspan__V1__Job *job = NULL;
    enum status st = ST_OK;
    if (e->job)
        st = jobs_remote_await(b->r, e->job, NULL, interrupted, &job, err);
    if (!st)
        st = write_line(b, e, job, err);
    longspan__v1__job__free_unpacked(job, NULL);
    if (st)
        return st;
    free(e->job);
    free(e->error);
    *e = (struct entry){ 0 };
    b->first = (b->first + 1) % AHEAD_MAX;
    b->n--;
    b->n_done++;
    terminal_bar("batch", (float)b->n_done / (float)b->n_lines);
    return ST_OK;
}

/* ---- submission ---- */

static enum status submit(struct batch *b, const struct batch_line *line, struct entry *e, struct error *err)
{
    char key[KEY_ROOM], text[33], name[BATCH_ID_MAX + 1];
    struct digest digest = digest_of(line->custom_id, strlen(line->custom_id));
    digest_text(&digest, text); /* an id may be longer than a key */
    snprintf(key, sizeof key, "%s:%s", b->key, text);
    snprintf(name, sizeof name, "%s", strlen(line->custom_id) <= 128 ? line->custom_id : "");
    Longspan__V1__HttpRequest http = LONGSPAN__V1__HTTP_REQUEST__INIT;
    http.url = (char *)(uintptr_t)line->url;
    http.body.data = (uint8_t *)line->body;
    http.body.len = line->body_bytes;
    Longspan__V1__SubmitJobRequest m = LONGSPAN__V1__SUBMIT_JOB_REQUEST__INIT;
    m.work_case = LONGSPAN__V1__SUBMIT_JOB_REQUEST__WORK_HTTP;
    m.http = &http;
    m.name = name;
    m.idempotency_key = key;
    for (;;) {
        Longspan__V1__Job *job;
        struct error why = { 0 };
        enum rpc_code code = RPC_OK;
        enum status st = jobs_remote_submit(b->r, &m, interrupted, &job, &code, &why);
        if (!st) {
            e->job = strdup(job->id);
            longspan__v1__job__free_unpacked(job, NULL);
            return e->job ? ST_OK : error_set(err, ST_NO_MEMORY, "no memory");
        }
        if (code == RPC_RESOURCE_EXHAUSTED && b->n) {
            st = reap(b, err); /* as many are kept as may be: one less, then */
            if (st)
                return st;
        } else if (code == RPC_INVALID_ARGUMENT || code == RPC_ALREADY_EXISTS) {
            entry_fail(e, code == RPC_INVALID_ARGUMENT ? "invalid_request" : "key_was_used", why.text);
            return ST_OK;
        } else {
            return error_set(err, st, "%s", why.text);
        }
    }
}

/* false: there is none any more. Empty lines count as lines and have no answer. */
static bool line_next(struct batch *b, const char **line_out, size_t *bytes_out)
{
    while (b->at < b->end) {
        const char *newline = memchr(b->at, '\n', (size_t)(b->end - b->at));
        const char *stop = newline ? newline : b->end;
        *line_out = b->at;
        *bytes_out = (size_t)(stop - b->at);
        b->at = newline ? newline + 1 : b->end;
        b->line++;
        if (*bytes_out && strspn(*line_out, " \t\r") < *bytes_out)
            return true;
    }
    return false;
}

static enum status advance(struct batch *b, const char *data, size_t bytes, struct error *err)
{
    struct entry e = { 0 };
    struct batch_line line;
    struct error why = { 0 };
    enum status st = ST_OK;
    if (batch_line_read(data, bytes, &line, &why)) {
        char text[640];
        snprintf(text, sizeof text, "line %zu: %s", b->line, why.text);
        entry_fail(&e, "invalid_line", text);
    } else if (json_object_get(b->ids, line.custom_id)) {
        entry_fail(&e, "invalid_line", "custom_id: it was used on an earlier line");
    } else {
        json_object_set_new(b->ids, line.custom_id, json_true());
        st = submit(b, &line, &e, err);
    }
    memcpy(e.custom_id, line.custom_id, sizeof e.custom_id);
    batch_line_free(&line);
    if (st) {
        free(e.job);
        free(e.error);
        return st;
    }
    b->ahead[(b->first + b->n++) % AHEAD_MAX] = e;
    return ST_OK;
}

static enum status run(struct batch *b, const char *text, size_t bytes, struct error *err)
{
    const char *line;
    size_t n;
    enum status st = ST_OK;
    b->at = text;
    b->end = text + bytes;
    while (line_next(b, &line, &n))
        b->n_lines++;
    b->at = text;
    b->line = 0;
    terminal_bar("batch", 0);
    while (!st && line_next(b, &line, &n)) {
        if (b->n == AHEAD_MAX)
            st = reap(b, err);
        if (!st)
            st = interrupted() ? error_set(err, ST_CANCELLED, "interrupted") : advance(b, line, n, err);
    }
    while (!st && b->n)
        st = reap(b, err);
    terminal_bar_end();
    return st;
}

static enum status batch(const struct settings *s, const char *file, struct error *err)
{
    char path[1100], part[1200], digest[33], *text = NULL;
    size_t bytes = 0;
    struct batch b = { 0 };
    enum status st = file_read(file, FILE_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    const struct digest d = digest_of(text, bytes);
    digest_text(&d, digest);
    snprintf(b.key, sizeof b.key, "batch %.100s", s->key[0] ? s->key : digest);
    snprintf(path, sizeof path, "%s%s", s->output[0] ? s->output : file, s->output[0] ? "" : ".out.jsonl");
    snprintf(part, sizeof part, "%s.part", path);
    b.ids = json_object();
    b.out = fopen(part, "we");
    if (!b.out || !b.ids)
        st = error_set(err, ST_IO, "%s cannot be written", part);
    if (!st)
        st = remote_open(s->grpc, s, &b.r, err);
    if (!st)
        st = run(&b, text, bytes, err);
    if (b.out && fclose(b.out) && !st)
        st = error_set(err, ST_IO, "%s cannot be written", part);
    if (!st && rename(part, path))
        st = error_set(err, ST_IO, "%s cannot be made of %s", path, part);
    if (!st)
        fprintf(stderr, "%zu answers in %s, %zu of them errors\n", b.n_done, path, b.n_failed);
    for (; b.n; b.n--, b.first = (b.first + 1) % AHEAD_MAX) {
        free(b.ahead[b.first].job);
        free(b.ahead[b.first].error);
    }
    remote_close(b.r);
    json_decref(b.ids);
    free(text);
    return st;
}

int command_batch(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *file;
    if (!settings_read(&s, SCOPE_BATCH, "usage: longspan batch FILE [--output FILE] [--grpc HOST:PORT] [--key KEY]",
                       argc, argv, &prompt, &file))
        return 2;
    if (!file) {
        fprintf(stderr, "longspan: batch takes a file\n");
        return 2;
    }
    interrupt_catch();
    const enum status st = batch(&s, file, &err);
    if (st)
        fprintf(stderr, "longspan: %s%s\n", err.text[0] ? err.text : status_text(st),
                st == ST_CANCELLED || st == ST_PEER ? "; the same command goes on where it was" : "");
    return st ? 1 : 0;
}
