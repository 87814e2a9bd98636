#ifndef LONGSPAN_CLIENT_EVAL_RUN_H
#define LONGSPAN_CLIENT_EVAL_RUN_H

/* One configuration of eval: a cluster made for it, asked for the rows of every window, and the questions of tasks. */

#include "client/eval/tasks.h"
#include "client/settings.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions at the end of each window that are scored: one block. */
enum { EVAL_ROWS = 64 };

struct eval_windows {
    uint32_t n_windows, length, n_vocab; /* length: above EVAL_ROWS */
    const int32_t *tokens;               /* [n_windows][length] */
};

/* A question as the model's tokens. */
struct eval_sample {
    struct eval_question question;
    int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    uint32_t task; /* whose: the caller's number */
};

/* How far all of eval is, in tokens; for the bar on standard error. */
struct eval_progress {
    double done, all;
    int64_t begun_ms; /* clock_ms() */
};

struct eval_variant;

/* What a cluster is asked. */
struct eval_job {
    const struct eval_windows *windows; /* NULL: none */
    const struct eval_sample *samples;
    uint32_t n_samples;
    struct eval_progress progress;      /* before it */
    const struct eval_variant *variant; /* NULL: as it is served; else windows only (eval_solo.h) */
};

/* What a job adds to the progress. */
double eval_job_tokens(const struct eval_job *job);

struct eval_figures {
    uint64_t kv_bytes_per_token, peak_bytes; /* peak: resident memory of all workers, each at its highest */
    uint64_t sketch_bytes_per_token;         /* after the windows, over all tokens that are in the cache */
    double prefill_tps, decode_tps;
};

/*
 * Starts a cluster as settings say, has each window's last EVAL_ROWS tokens generated as forced ones, and fetches the rows that predict them:
 * logits_out [n_windows][EVAL_ROWS][n_vocab]; then has the samples answered: scores_out [n_samples], from 0 to 1. In a process of its own, since it forks and
 * then has threads.
 */
enum status eval_run(const struct settings *s, const struct eval_job *job, float *logits_out, float *scores_out,
                     struct eval_figures *figures_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
