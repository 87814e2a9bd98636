#ifndef LONGSPAN_CLIENT_EVAL_RUN_H
#define LONGSPAN_CLIENT_EVAL_RUN_H

/* One configuration of eval: a cluster made for it, asked for the rows of every window. */

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

struct eval_figures {
    uint64_t kv_bytes_per_token, peak_bytes; /* peak: resident memory of all workers, each at its highest */
    double prefill_tps, decode_tps;
};

/*
 * Starts a cluster as settings say, has each window's last EVAL_ROWS tokens generated as forced ones, and fetches the rows that predict them:
 * logits_out [n_windows][EVAL_ROWS][n_vocab]. In a process of its own, since it forks and then has threads.
 */
enum status eval_run(const struct settings *s, const struct eval_windows *w, float *logits_out,
                     struct eval_figures *figures_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
