#ifndef LONGSPAN_CLIENT_EVAL_REPORT_H
#define LONGSPAN_CLIENT_EVAL_REPORT_H

/* What configurations have shown: a table that grows row by row, everything as JSON, a plot. */

#include <jansson.h>
#include <stdio.h>

#include "client/eval/configs.h"
#include "client/eval/score.h"

#ifdef __cplusplus
extern "C" {
#endif

struct eval_row {
    const char *config;
    bool offered; /* false: no server has it; it was run by itself, so nothing is known of tasks, memory and speed */
    struct eval_quality quality;
    struct eval_estimate tasks[EVAL_TASKS_MAX];
    uint64_t kv_bytes_per_token, sketch_bytes_per_token, peak_bytes;
    double prefill_tps, decode_tps;
};

struct eval_report {
    const char *model, *text,
        *held_out; /* text: the file, or the corpus; held_out: what is calibrated from where calibrations lack */
    uint64_t seed;
    uint32_t length, n_windows, rows_scored, n_samples; /* samples: of each task */
    const struct eval_wanted *wanted;
    uint32_t n_wanted;
    uint32_t n_configs, n_rows;
    struct eval_row rows[EVAL_CONFIGS_MAX];
};

void eval_table_begin(const struct eval_report *r, FILE *out);
void eval_table_row(const struct eval_report *r, uint32_t i, FILE *out);

/*
 * {"model", "text", "held_out", "seed", "length", "windows", "rows_scored", "samples", "complete", "rows"}; complete: whether all configurations are there. Numbers that are none
 * are null, as are those of rows that were not served. NULL: out of memory.
 */
json_t *eval_json(const struct eval_report *r);

/*
 * Two panels over the bytes of a token (KV and sketches): perplexity against the first row's, and kl by powers of ten. Points have numbers, a list has their names; those
 * that are not offered are hollow. ST_IO: it cannot be written.
 */
enum status eval_svg(const struct eval_report *r, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
