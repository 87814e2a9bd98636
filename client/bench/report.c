#include "client/bench/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FAULTS_SHOWN = 5 };

/* In a unit in which it reads well: three digits and more. */
static void number(FILE *out, double v)
{
    if (isnan(v))
        fprintf(out, " %10s", "-");
    else
        fprintf(out, " %10.*f", v < 10 ? 3 : v < 100 ? 2 : 1, v);
}

static void latency(FILE *out, const char *what, const struct quantiles *q)
{
    fprintf(out, "%-12s", what);
    number(out, q->mean);
    number(out, q->p50);
    number(out, q->p90);
    number(out, q->p99);
    number(out, q->max);
    fprintf(out, "\n");
}

/* The first few different faults. */
static void faults(const struct record *records, size_t n, FILE *out)
{
    const char *shown[FAULTS_SHOWN];
    size_t n_shown = 0;
    for (size_t i = 0; i < n && n_shown < FAULTS_SHOWN; i++) {
        size_t k = 0;
        if (!records[i].error)
            continue;
        while (k < n_shown && strcmp(shown[k], records[i].error) != 0)
            k++;
        if (k < n_shown)
            continue;
        shown[n_shown++] = records[i].error;
        fputs("  failed: ", out);
        for (const char *c = records[i].error; *c; c++) /* a server's text: no control characters for the terminal */
            fputc((unsigned char)*c < 32 || *c == 127 ? ' ' : *c, out);
        fputc('\n', out);
    }
}

void report_table(const struct summary *s, const struct record *records, size_t n, FILE *out)
{
    fprintf(out, "%zu requests in %.2f s: %zu answered, %zu failed (%zu of them refused), %zu cancelled\n", s->n,
            s->seconds, s->n_ok, s->n_failed, s->n_refused, s->n_cancelled);
    faults(records, n, out);
    fprintf(out, "tokens: %llu in (%llu from cache), %llu out\n", (unsigned long long)s->input_tokens,
            (unsigned long long)s->cached_tokens, (unsigned long long)s->output_tokens);
    fprintf(out, "%.3f requests/s, %.1f output tok/s, %.1f tok/s in all\n", s->request_rate, s->output_rate,
            s->total_rate);
    if (s->has_goodput)
        fprintf(out, "goodput: %.3f requests/s, %.1f%% of all within the objectives\n", s->goodput,
                s->n ? 100.0 * (double)s->n_good / (double)s->n : 0);
    fprintf(out, "%-12s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99", "max");
    latency(out, "TTFT", &s->ttft);
    latency(out, "TPOT", &s->tpot);
    latency(out, "ITL", &s->itl);
    latency(out, "end to end", &s->e2e);
    if (s->late.max > 1) /* requests that went out after they were due */
        latency(out, "sent late", &s->late);
}

/* ---- JSON ---- */

static json_t *real(double v)
{
    return isnan(v) ? json_null() : json_real(v);
}

static json_t *quantiles_json(const struct quantiles *q)
{
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "n", (json_int_t)q->n, "mean", real(q->mean), "p50",
                     real(q->p50), "p90", real(q->p90), "p99", real(q->p99), "min", real(q->min), "max", real(q->max));
}

static json_t *summary_json(const struct summary *s)
{
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "requests",
        (json_int_t)s->n, "ok", (json_int_t)s->n_ok, "failed", (json_int_t)s->n_failed, "refused",
        (json_int_t)s->n_refused, "cancelled", (json_int_t)s->n_cancelled, "seconds", s->seconds, "requests_per_s",
        s->request_rate, "output_tokens_per_s", s->output_rate, "tokens_per_s", s->total_rate, "input_tokens",
        (json_int_t)s->input_tokens, "cached_tokens", (json_int_t)s->cached_tokens, "output_tokens",
        (json_int_t)s->output_tokens, "ttft_ms", quantiles_json(&s->ttft), "tpot_ms", quantiles_json(&s->tpot),
        "itl_ms", quantiles_json(&s->itl), "e2e_ms", quantiles_json(&s->e2e), "late_ms", quantiles_json(&s->late));
    if (o && s->has_goodput) {
        json_object_set_new(o, "good", json_integer((json_int_t)s->n_good));
        json_object_set_new(o, "goodput_per_s", json_real(s->goodput));
    }
    return o;
}

static json_t *record_json(const struct record *r)
{
    json_t *gaps = json_array();
    for (uint32_t i = 0; i + 1 < r->n_events; i++)
        json_array_append_new(gaps, json_real(r->gaps_us[i] / 1000.0));
    json_t *o = json_pack("{s:b, s:i, s:f, s:f, s:o, s:o, s:f, s:I, s:I, s:I, s:I, s:I, s:o}", "ok", r->ok, "status",
                          (int)r->status, "due_ms", (double)r->due_us / 1000, "sent_ms", (double)r->sent_us / 1000,
                          "ttft_ms", real(record_ttft_ms(r)), "tpot_ms", real(record_tpot_ms(r)), "e2e_ms",
                          record_e2e_ms(r), "input_tokens", (json_int_t)r->input_tokens, "prompt_tokens",
                          (json_int_t)r->prompt_tokens, "cached_tokens", (json_int_t)r->cached_tokens, "output_tokens",
                          (json_int_t)r->output_tokens, "events", (json_int_t)r->n_events, "itl_ms", gaps);
    if (o && r->cancelled)
        json_object_set_new(o, "cancelled", json_true());
    if (o && r->error) {
        json_t *text = json_string(r->error);
        json_object_set_new(o, "error", text ? text : json_string("(no valid UTF-8)"));
    }
    return o;
}

json_t *report_json(const struct summary *s, const struct record *records, size_t n, json_t *options)
{
    json_t *requests = json_array();
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(requests, record_json(&records[i]))) {
            json_decref(requests);
            return NULL;
        }
    return json_pack("{s:s, s:O, s:o, s:o}", "tool", "longspan bench", "options", options, "summary", summary_json(s),
                     "requests", requests);
}
