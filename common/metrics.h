#ifndef LONGSPAN_COMMON_METRICS_H
#define LONGSPAN_COMMON_METRICS_H

/*
 * Counters, gauges and histograms in Prometheus' text format 0.0.4. Values may be changed from any thread, without a lock.
 */

#include <stdint.h>
#include <stdio.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { METRIC_BOUNDS_MAX = 32 };

struct metrics;
struct metric;

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m);

/*
 * Gets or makes one series. name and help: kept, so literals. labels: copied; NULL or "outcome=\"ok\"" (metric_label makes one). The same
 * name and labels give the same series; series of one name share the help of the first. Any thread. NULL: out of memory.
 */
struct metric *metrics_counter(struct metrics *m, const char *name, const char *help, const char *labels);
struct metric *metrics_gauge(struct metrics *m, const char *name, const char *help, const char *labels);
/* bounds: ascending upper bounds, without +Inf; copied; at most METRIC_BOUNDS_MAX. */
struct metric *metrics_histogram(struct metrics *m, const char *name, const char *help, const char *labels,
                                 const double *bounds, uint32_t n_bounds);

/* All accept NULL and do nothing then. */
void metric_add(struct metric *c, uint64_t n);                     /* counter */
void metric_set(struct metric *g, double value);                   /* gauge */
void metric_observe(struct metric *h, double value);               /* histogram; NaN is dropped */
void metric_observe_n(struct metric *h, double value, uint64_t n); /* n observations of one value */
/* A counter's value, or a histogram's count. */
uint64_t metric_count(const struct metric *metric);

/* All series; families in the order of their first series. */
void metrics_write(struct metrics *m, FILE *out);

/* For values that others keep and that are read when asked: a family's head, then its samples. kind: "counter" or "gauge". */
void metrics_write_family(FILE *out, const char *name, const char *kind, const char *help);
void metrics_write_sample(FILE *out, const char *name, const char *labels, double value);
/* name="value" with the value escaped; cut, at a whole character of ASCII, to fit. Returns out. */
const char *metric_label(char *out, size_t bytes, const char *name, const char *value);

/* What every process says of itself: resident bytes, open descriptors, CPU seconds. Linux's /proc; what cannot be read is left out. */
void metrics_write_process(FILE *out);

#ifdef __cplusplus
}
#endif
#endif
