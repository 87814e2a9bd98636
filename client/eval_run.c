#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "client/eval_run.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/eval/score.h"
#include "client/eval_solo.h"
#include "client/interrupt.h"
#include "client/local.h"
#include "client/remote.h"
#include "client/terminal.h"
#include "common/clock.h"

enum { STATUS_MS = 10000, ANSWER_BYTES_MAX = 16384 };

/* What the process that runs a configuration shares with the one that waits for it. */
struct shared {
    enum status status;
    struct error err;
    struct eval_figures figures;
};

struct run {
    const struct eval_job *job;
    const struct eval_windows *windows;
    float *logits; /* [n_windows][EVAL_ROWS][n_vocab] */
    float *scores; /* [n_samples] */
    struct eval_progress progress;
    struct eval_figures figures;
    char answer[ANSWER_BYTES_MAX]; /* the text that came, as much of it as there is room for */
    size_t answer_bytes;
    /* of the request that is being made */
    uint32_t window, n_got;
    bool in_window, got[EVAL_ROWS], odd, done;
    /* sums */
    double prefill_ms, decode_ms;
    uint64_t prompt_tokens, decoded_tokens;
    uint32_t heartbeat_ms;
};

/* The row at position p predicts token p + 1: the first that is wanted stands before the last block. */
static void keep_row(struct run *r, const Longspan__V1__LogitRow *row)
{
    const struct eval_windows *w = r->windows;
    const uint32_t first = w->length - EVAL_ROWS - 1;
    if (row->position < first || row->position >= first + EVAL_ROWS || r->got[row->position - first])
        return;
    const uint32_t i = row->position - first;
    if (row->n_logits != w->n_vocab || !eval_finite(row->logits, w->n_vocab)) {
        r->odd = true;
        return;
    }
    memcpy(r->logits + ((size_t)r->window * EVAL_ROWS + i) * w->n_vocab, row->logits, w->n_vocab * sizeof(float));
    r->got[i] = true;
    r->n_got++;
}

static bool on_response(void *ctx, const Longspan__V1__GenerateResponse *response)
{
    struct run *r = ctx;
    const Longspan__V1__GenerateDone *done = response->done;
    const size_t bytes = response->text ? strlen(response->text) : 0;
    if (bytes < sizeof r->answer - r->answer_bytes) {
        memcpy(r->answer + r->answer_bytes, response->text ? response->text : "", bytes + 1);
        r->answer_bytes += bytes;
    }
    for (size_t i = 0; i < response->n_logits; i++)
        keep_row(r, response->logits[i]);
    if (!done || !done->usage || !done->timings || !done->kv)
        return true;
    r->done = true;
    r->figures.kv_bytes_per_token = done->kv->bytes_per_token;
    if (!r->in_window)
        return true;
    if (done->usage->cached_tokens == 0) { /* the first request of a window: nothing was there */
        r->prefill_ms += done->timings->prefill_ms;
        r->prompt_tokens += done->usage->prompt_tokens;
        r->decode_ms += done->timings->decode_ms;
        r->decoded_tokens += done->usage->completion_tokens ? done->usage->completion_tokens - 1 : 0;
    }
    return true;
}

static bool is_interrupted(void *ctx)
{
    (void)ctx;
    return interrupted();
}

/* Greedy, of token ids. */
static void request_init(struct run *r, Longspan__V1__GenerateRequest *q, Longspan__V1__TokenIds *ids,
                         const int32_t *tokens, uint32_t n_tokens, uint32_t max_tokens)
{
    longspan__v1__generate_request__init(q);
    longspan__v1__token_ids__init(ids);
    ids->n_ids = n_tokens;
    ids->ids = (uint32_t *)(uintptr_t)tokens;
    q->prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    q->token_ids = ids;
    q->max_tokens_set_case = LONGSPAN__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    q->max_tokens = max_tokens;
    q->temperature_set_case = LONGSPAN__V1__GENERATE_REQUEST__TEMPERATURE_SET_TEMPERATURE;
    r->done = false;
    r->n_got = 0;
    r->answer_bytes = 0;
    r->answer[0] = 0;
    memset(r->got, 0, sizeof r->got);
}

/* One window: with logits the rows, without them the time it takes. */
static enum status ask(struct run *r, struct remote *remote, bool logits, struct error *err)
{
    const struct eval_windows *w = r->windows;
    const int32_t *tokens = w->tokens + (size_t)r->window * w->length;
    Longspan__V1__GenerateRequest q;
    Longspan__V1__TokenIds ids;
    const struct remote_events events = { on_response, is_interrupted, r };
    request_init(r, &q, &ids, tokens, w->length - EVAL_ROWS, EVAL_ROWS);
    r->in_window = true;
    q.ignore_eos = true;
    q.logits = logits;
    q.logits_from = logits ? w->length - EVAL_ROWS - 1 : 0;
    q.n_forced_token_ids = EVAL_ROWS;
    q.forced_token_ids = ids.ids + ids.n_ids;
    const enum status st = remote_generate(remote, &q, &events, err);
    if (st)
        return st;
    if (r->odd)
        return error_set(err, ST_PROTOCOL, "a row of logits is not %u finite numbers", w->n_vocab);
    if (!r->done || (logits && r->n_got != EVAL_ROWS))
        return error_set(err, ST_PROTOCOL, "window %u: %u of %d rows came", r->window, r->n_got, EVAL_ROWS);
    return ST_OK;
}

/* ---- how far it is ---- */

static double window_tokens(const struct eval_job *job)
{
    return job->windows ? job->windows->length + 4 * EVAL_ROWS : 0;
}

static double sample_tokens(const struct eval_sample *s)
{
    return s->n_tokens + 2.0 * s->question.max_new;
}

double eval_job_tokens(const struct eval_job *job)
{
    double all = job->windows ? window_tokens(job) * job->windows->n_windows : 0;
    for (uint32_t i = 0; i < job->n_samples; i++)
        all += sample_tokens(&job->samples[i]);
    return all;
}

static void show_progress(struct run *r, double tokens)
{
    struct eval_progress *p = &r->progress;
    char label[32];
    p->done += tokens;
    const double fraction = p->done / p->all, left_s = (double)(clock_ms() - p->begun_ms) * (1 / fraction - 1) / 1000;
    snprintf(label, sizeof label, "eval, %.0f:%02.0f left", floor(left_s / 60), floor(fmod(left_s, 60)));
    terminal_bar(label, (float)fraction);
}

/* ---- the cluster ---- */

/* VmHWM of a process, in bytes. */
static uint64_t peak_of(uint32_t pid)
{
    char path[64], line[256];
    unsigned long long kib = 0;
    snprintf(path, sizeof path, "/proc/%u/status", pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

static enum status look_at_workers(struct run *r, struct remote *remote, struct error *err)
{
    Longspan__V1__StatusResponse *status;
    uint64_t tokens = 0, sketch_bytes = 0;
    usleep((2 * r->heartbeat_ms + 100) * 1000); /* what the coordinator knows of workers is as old as a heartbeat */
    const enum status st = remote_status(remote, STATUS_MS, &status, err);
    if (st)
        return st;
    for (size_t i = 0; i < status->n_workers; i++) {
        r->figures.peak_bytes += peak_of(status->workers[i]->pid);
        tokens += (uint64_t)status->workers[i]->blocks * EVAL_ROWS;
        sketch_bytes += status->workers[i]->sketch_bytes;
    }
    longspan__v1__status_response__free_unpacked(status, NULL);
    r->figures.sketch_bytes_per_token = tokens ? (sketch_bytes + tokens - 1) / tokens : 0;
    return ST_OK;
}

static enum status answer(struct run *r, struct remote *remote, uint32_t i, struct error *err)
{
    const struct eval_sample *s = &r->job->samples[i];
    Longspan__V1__GenerateRequest q;
    Longspan__V1__TokenIds ids;
    const struct remote_events events = { on_response, is_interrupted, r };
    request_init(r, &q, &ids, s->tokens, s->n_tokens, s->question.max_new);
    r->in_window = false;
    const enum status st = remote_generate(remote, &q, &events, err);
    if (!st && !r->done)
        return error_set(err, ST_PROTOCOL, "sample %u: its answer did not end", i);
    if (!st)
        r->scores[i] = (float)eval_answer_score(&s->question, r->answer);
    return st;
}

static enum status with_cluster(const char *address, const struct settings *s, const void *arg, struct error *err)
{
    struct run *r = *(struct run *const *)arg;
    struct remote *remote;
    enum status st = remote_open(address, s, &remote, err);
    if (st)
        return st;
    for (r->window = 0; r->windows && r->window < r->windows->n_windows && !st; r->window++) {
        /* the second finds the first one's blocks: logits are wanted of rows behind them only */
        st = ask(r, remote, false, err);
        if (!st)
            st = ask(r, remote, true, err);
        show_progress(r, window_tokens(r->job));
    }
    if (!st)
        st = look_at_workers(r, remote, err);
    for (uint32_t i = 0; i < r->job->n_samples && !st; i++) {
        st = answer(r, remote, i, err);
        show_progress(r, sample_tokens(&r->job->samples[i]));
    }
    terminal_bar_end();
    remote_close(remote);
    r->figures.prefill_tps = r->prefill_ms > 0 ? (double)r->prompt_tokens / r->prefill_ms * 1e3 : 0;
    r->figures.decode_tps = r->decode_ms > 0 ? (double)r->decoded_tokens / r->decode_ms * 1e3 : 0;
    return st;
}

static void run_here(const struct settings *settings, const struct eval_job *job, float *logits, float *scores,
                     struct shared *to)
{
    struct settings s = *settings;
    static struct run run;
    struct run *arg = &run;
    run = (struct run){ .job = job,
                        .windows = job->windows,
                        .logits = logits,
                        .scores = scores,
                        .progress = job->progress,
                        .heartbeat_ms = settings->heartbeat_ms };
    struct error err = { 0 };
    interrupt_catch();
    if (job->variant)
        to->status = eval_solo_run(&s, job->variant, job->windows, logits, &run.figures, &err);
    else
        to->status = local_run(&s, true, with_cluster, &arg, &err);
    to->err = err;
    to->figures = run.figures;
}

/* A SIGTERM is passed on; a SIGINT from a terminal has reached both. */
static bool await(pid_t pid, int *how)
{
    pid_t ended;
    while ((ended = waitpid(pid, how, 0)) < 0 && errno == EINTR)
        if (terminated())
            kill(pid, SIGTERM);
    return ended == pid;
}

enum status eval_run(const struct settings *s, const struct eval_job *job, float *logits_out, float *scores_out,
                     struct eval_figures *figures_out, struct error *err)
{
    const struct eval_windows *w = job->windows;
    const size_t bytes = w ? (size_t)w->n_windows * EVAL_ROWS * w->n_vocab * sizeof(float) : 0,
                 scores = job->n_samples * sizeof(float), whole = sizeof(struct shared) + bytes + scores;
    uint8_t *memory = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int how = 0;
    if (memory == MAP_FAILED)
        return error_set(err, ST_NO_MEMORY, "no memory for %zu bytes of logits", bytes);
    struct shared *shared = (struct shared *)(void *)memory;
    float *logits = (float *)(void *)(memory + sizeof *shared), *answers = logits + bytes / sizeof *logits;
    shared->status = ST_INTERNAL;
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        run_here(s, job, logits, answers, shared);
        _exit(0);
    }
    const bool ended = pid > 0 && await(pid, &how) && WIFEXITED(how);
    enum status st = ended ? shared->status : ST_INTERNAL;
    if (st)
        error_set(err, st, "%s", ended && shared->err.text[0] ? shared->err.text : status_text(st));
    if (!st) {
        if (bytes)
            memcpy(logits_out, logits, bytes);
        if (scores)
            memcpy(scores_out, answers, scores);
        *figures_out = shared->figures;
    }
    munmap(memory, whole);
    return st;
}
