#ifndef LONGSPAN_CLIENT_BENCH_REPORT_H
#define LONGSPAN_CLIENT_BENCH_REPORT_H

/* What a load has shown: a table for a person, everything as JSON, a plot. */

#include <jansson.h>
#include <stdio.h>

#include "client/bench/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

void report_table(const struct summary *s, const struct record *records, size_t n, FILE *out);
/* {"tool", "options", "summary", "requests"}; options: borrowed. NULL: out of memory. */
json_t *report_json(const struct summary *s, const struct record *records, size_t n, json_t *options);
/* Two plots: the share of requests within a latency, and the requests over time. ST_NO_MEMORY; ST_IO: it cannot be written. */
enum status report_svg(const struct summary *s, const struct record *records, size_t n, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
