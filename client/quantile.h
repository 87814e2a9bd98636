#ifndef LONGSPAN_CLIENT_QUANTILE_H
#define LONGSPAN_CLIENT_QUANTILE_H

/* Quantiles of a cluster's latencies, from the histograms of its /metrics. */

#include <stdio.h>

#include "client/settings.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The q-quantile of histogram `name` in Prometheus text: linear inside a bucket, as histogram_quantile() has it. NAN: no such histogram, or it is empty; the
 * last finite bound if the quantile is above it.
 */
double quantile_of_metrics(const char *text, const char *name, double q);
/* A line for TTFT and one for TPOT, since the start of the coordinator; nothing if /metrics cannot be had from --http. */
void quantile_lines(const struct settings *s, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
