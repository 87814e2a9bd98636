#ifndef LONGSPAN_CLIENT_BENCH_STATS_H
#define LONGSPAN_CLIENT_BENCH_STATS_H

/* What was measured, request by request, and its summary. The definitions are in docs/benchmarking.md. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One request. Times in microseconds of the monotonic clock, after the start of the measurement. */
struct record {
    int64_t due_us, sent_us, first_us, last_us, end_us; /* first_us, last_us: of the tokens; -1: none came */
    uint32_t input_tokens;                              /* asked for */
    uint32_t prompt_tokens, cached_tokens;              /* as the server says; 0: it does not */
    uint32_t output_tokens;                             /* as the server says, else n_events */
    uint32_t n_events;                                  /* with text */
    uint32_t *gaps_us;                                  /* [n_events - 1] */
    size_t gaps_room;
    uint32_t status; /* of HTTP; 0: none came */
    bool ok, cancelled;
    char *error; /* NULL: none; owned */
};

/* Another event with text has come. false: out of memory. */
bool record_event(struct record *r, int64_t at_us);
void record_free(struct record *r); /* what it owns */
double record_ttft_ms(const struct record *r);
/* NAN: fewer than two tokens. */
double record_tpot_ms(const struct record *r);
double record_e2e_ms(const struct record *r);

struct quantiles {
    size_t n;
    double mean, p50, p90, p99, min, max; /* NAN if n is 0 */
};
/* Sorts values. Quantiles between two values are interpolated. */
struct quantiles quantiles_of(double *values, size_t n);
double quantile(const double *sorted, size_t n, double q);

struct summary {
    size_t n, n_ok, n_failed, n_refused, n_cancelled; /* refused: of the failed, those with 429 */
    double seconds;                                   /* from the first request due to the last end */
    double request_rate, output_rate, total_rate;
    uint64_t input_tokens, cached_tokens, output_tokens; /* of requests that are ok */
    struct quantiles ttft, tpot, itl, e2e, late;         /* ms */
    bool has_goodput;
    size_t n_good;
    double goodput; /* requests per second within the objectives */
};

/* slo_*_ms: 0 is none. ST_NO_MEMORY. */
enum status summary_make(const struct record *records, size_t n, double slo_ttft_ms, double slo_tpot_ms,
                         struct summary *summary_out);

#ifdef __cplusplus
}
#endif
#endif
