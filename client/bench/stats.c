#include "client/bench/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool record_event(struct record *r, int64_t at_us)
{
    if (!r->n_events) {
        r->first_us = r->last_us = at_us;
        r->n_events = 1;
        return true;
    }
    if (r->n_events > r->gaps_room) {
        const size_t room = r->gaps_room ? r->gaps_room * 2 : 64;
        uint32_t *bigger = realloc(r->gaps_us, room * sizeof *bigger);
        if (!bigger)
            return false;
        r->gaps_us = bigger;
        r->gaps_room = room;
    }
    const int64_t gap = at_us - r->last_us;
    r->gaps_us[r->n_events - 1] = gap < 0 ? 0 : gap > UINT32_MAX ? UINT32_MAX : (uint32_t)gap;
    r->n_events++;
    r->last_us = at_us;
    return true;
}

void record_free(struct record *r)
{
    free(r->gaps_us);
    free(r->error);
}

double record_ttft_ms(const struct record *r)
{
    return r->n_events ? (double)(r->first_us - r->due_us) / 1000 : NAN;
}

double record_tpot_ms(const struct record *r)
{
    return r->n_events >= 2 && r->output_tokens >= 2
               ? (double)(r->last_us - r->first_us) / 1000 / (r->output_tokens - 1)
               : NAN;
}

double record_e2e_ms(const struct record *r)
{
    return (double)(r->end_us - r->due_us) / 1000;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double quantile(const double *sorted, size_t n, double q)
{
    if (!n)
        return NAN;
    const double at = q * (double)(n - 1);
    const size_t low = (size_t)at;
    return low + 1 < n ? sorted[low] + (at - (double)low) * (sorted[low + 1] - sorted[low]) : sorted[n - 1];
}

struct quantiles quantiles_of(double *values, size_t n)
{
    if (!n)
        return (struct quantiles){ 0, NAN, NAN, NAN, NAN, NAN, NAN };
    double sum = 0;
    qsort(values, n, sizeof *values, by_value);
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return (struct quantiles){ .n = n,
                               .mean = sum / (double)n,
                               .p50 = quantile(values, n, 0.5),
                               .p90 = quantile(values, n, 0.9),
                               .p99 = quantile(values, n, 0.99),
                               .min = values[0],
                               .max = values[n - 1] };
}

static double late_ms(const struct record *r)
{
    return (double)(r->sent_us - r->due_us) / 1000;
}

/* values: room for n */
static struct quantiles of_requests(const struct record *records, size_t n, double (*value)(const struct record *),
                                    double *values)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const double v = records[i].ok ? value(&records[i]) : NAN;
        if (!isnan(v))
            values[k++] = v;
    }
    return quantiles_of(values, k);
}

static struct quantiles of_gaps(const struct record *records, size_t n, double *values)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = 0; records[i].ok && e + 1 < records[i].n_events; e++)
            values[k++] = records[i].gaps_us[e] / 1000.0;
    return quantiles_of(values, k);
}

/* A limit that is not set, or a TPOT that does not exist (one token), is kept. */
static bool is_good(const struct record *r, double slo_ttft_ms, double slo_tpot_ms)
{
    const double ttft = record_ttft_ms(r), tpot = record_tpot_ms(r);
    return r->ok && (slo_ttft_ms <= 0 || ttft <= slo_ttft_ms) &&
           (slo_tpot_ms <= 0 || isnan(tpot) || tpot <= slo_tpot_ms);
}

static void count(const struct record *records, size_t n, struct summary *s)
{
    int64_t start = INT64_MAX, end = 0;
    for (size_t i = 0; i < n; i++) {
        const struct record *r = &records[i];
        s->n++;
        s->n_cancelled += r->cancelled;
        s->n_failed += !r->ok && !r->cancelled;
        s->n_refused += !r->ok && r->status == 429;
        start = r->due_us < start ? r->due_us : start;
        end = r->end_us > end ? r->end_us : end;
        if (!r->ok)
            continue;
        s->n_ok++;
        s->input_tokens += r->prompt_tokens ? r->prompt_tokens : r->input_tokens;
        s->cached_tokens += r->cached_tokens;
        s->output_tokens += r->output_tokens;
    }
    s->seconds = n && end > start ? (double)(end - start) / 1e6 : 0;
}

enum status summary_make(const struct record *records, size_t n, double slo_ttft_ms, double slo_tpot_ms,
                         struct summary *summary_out)
{
    struct summary s = { .has_goodput = slo_ttft_ms > 0 || slo_tpot_ms > 0 };
    size_t room = n + 1;
    for (size_t i = 0; i < n; i++)
        room += records[i].n_events;
    double *values = malloc(room * sizeof *values);
    if (!values)
        return ST_NO_MEMORY;
    count(records, n, &s);
    s.ttft = of_requests(records, n, record_ttft_ms, values);
    s.tpot = of_requests(records, n, record_tpot_ms, values);
    s.e2e = of_requests(records, n, record_e2e_ms, values);
    s.late = of_requests(records, n, late_ms, values);
    s.itl = of_gaps(records, n, values);
    free(values);
    for (size_t i = 0; i < n; i++)
        s.n_good += is_good(&records[i], slo_ttft_ms, slo_tpot_ms);
    if (s.seconds > 0) {
        s.request_rate = (double)s.n_ok / s.seconds;
        s.output_rate = (double)s.output_tokens / s.seconds;
        s.total_rate = (double)(s.output_tokens + s.input_tokens) / s.seconds;
        s.goodput = (double)s.n_good / s.seconds;
    }
    *summary_out = s;
    return ST_OK;
}
