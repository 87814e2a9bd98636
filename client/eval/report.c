#include "client/eval/report.h"

#include <math.h>

/* ---- table ---- */

void eval_table_begin(const struct eval_report *r, FILE *out)
{
    fprintf(out,
            "%s: the last %u of %u tokens, %u windows; against the first row: ppl ratio, kl, top1; in brackets: 95 %% "
            "intervals\n\n| config | ppl | kl | top1 | ppl ratio |",
            r->model, r->rows_scored / r->n_windows, r->length, r->n_windows);
    for (uint32_t t = 0; t < r->n_wanted; t++)
        fprintf(out, " %s |", r->wanted[t].text);
    fprintf(out, " KV bytes/token | sketch bytes/token | peak MiB | prefill tok/s | decode tok/s |\n"
                 "| --- | ---: | ---: | ---: | ---: |");
    for (uint32_t t = 0; t < r->n_wanted; t++)
        fprintf(out, " ---: |");
    fprintf(out, " ---: | ---: | ---: | ---: | ---: |\n");
    fflush(out);
}

static void interval(struct eval_estimate e, const char *format, FILE *out)
{
    if (isnan(e.low) || isnan(e.high) || e.low == e.high)
        return;
    fprintf(out, " [");
    fprintf(out, format, e.low);
    fprintf(out, ", ");
    fprintf(out, format, e.high);
    fprintf(out, "]");
}

void eval_table_row(const struct eval_report *r, uint32_t i, FILE *out)
{
    const struct eval_row *row = &r->rows[i];
    const struct eval_quality *q = &row->quality;
    fprintf(out, "| %s%s | %.4f | %.3g", row->config, row->offered ? "" : " (not offered)", q->ppl.value, q->kl.value);
    interval(q->kl, "%.2g", out);
    fprintf(out, " | %.4f", q->top1.value);
    if (i)
        interval(q->top1, "%.3f", out);
    fprintf(out, " | %.4f", q->ppl_ratio.value);
    interval(q->ppl_ratio, "%.4f", out);
    fprintf(out, " |");
    for (uint32_t t = 0; t < r->n_wanted; t++) {
        if (row->offered)
            fprintf(out, " %.3f", row->tasks[t].value);
        else
            fprintf(out, " –");
        interval(row->tasks[t], "%.2f", out);
        fprintf(out, " |");
    }
    if (!row->offered)
        fprintf(out, " %llu | – | – | – | – |\n", (unsigned long long)row->kv_bytes_per_token);
    else
        fprintf(out, " %llu | %llu | %.0f | %.1f | %.1f |\n", (unsigned long long)row->kv_bytes_per_token,
                (unsigned long long)row->sketch_bytes_per_token, (double)row->peak_bytes / 0x1p20, row->prefill_tps,
                row->decode_tps);
    fflush(out);
}

/* ---- JSON ---- */

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *interval_json(struct eval_estimate e)
{
    return json_pack("[o, o]", number(e.low), number(e.high));
}

static json_t *row_json(const struct eval_report *r, const struct eval_row *row)
{
    const struct eval_quality *q = &row->quality;
    json_t *tasks = json_object(), *intervals = json_object();
    for (uint32_t t = 0; t < r->n_wanted; t++) {
        json_object_set_new(tasks, r->wanted[t].text, number(row->tasks[t].value));
        json_object_set_new(intervals, r->wanted[t].text, interval_json(row->tasks[t]));
    }
    return json_pack("{s:s, s:b, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:{s:o, s:o, s:o, s:o, s:o}}",
                     "config", row->config, "offered", (int)row->offered, "ppl", number(q->ppl.value), "kl",
                     number(q->kl.value), "top1", number(q->top1.value), "ppl_ratio", number(q->ppl_ratio.value),
                     "tasks", tasks, "kv_bytes_per_token", (json_int_t)row->kv_bytes_per_token,
                     "sketch_bytes_per_token", (json_int_t)row->sketch_bytes_per_token, "peak_bytes",
                     row->offered ? json_integer((json_int_t)row->peak_bytes) : json_null(), "prefill_tps",
                     number(row->prefill_tps), "decode_tps", number(row->decode_tps), "intervals", "ppl",
                     interval_json(q->ppl), "kl", interval_json(q->kl), "top1", interval_json(q->top1), "ppl_ratio",
                     interval_json(q->ppl_ratio), "tasks", intervals);
}

json_t *eval_json(const struct eval_report *r)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < r->n_rows; i++)
        if (json_array_append_new(rows, row_json(r, &r->rows[i]))) {
            json_decref(rows);
            return NULL;
        }
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:o}", "model", r->model, "text", r->text,
                     "held_out", r->held_out, "seed", (json_int_t)r->seed, "length", (json_int_t)r->length, "windows",
                     (json_int_t)r->n_windows, "rows_scored", (json_int_t)r->rows_scored, "samples",
                     (json_int_t)r->n_samples, "complete", (int)(r->n_rows == r->n_configs), "rows", rows);
}
