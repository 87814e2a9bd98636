#include "client/quantile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <event2/event.h>

#include "client/bench/http.h"

enum { METRICS_BYTES_MAX = 4 << 20, METRICS_MS = 500, BUCKETS_MAX = 256 };

struct bucket {
    double bound, count; /* so many are at or below */
};

static size_t buckets_of(const char *text, const char *name, struct bucket *out)
{
    char start[160];
    size_t n = 0;
    snprintf(start, sizeof start, "%.100s_bucket{le=\"", name);
    for (const char *line = text; line && n < BUCKETS_MAX; line = strchr(line, '\n')) {
        char *end;
        line += *line == '\n';
        if (strncmp(line, start, strlen(start)) != 0)
            continue;
        const double bound = strtod(line + strlen(start), &end);
        if (strncmp(end, "\"} ", 3) != 0)
            continue;
        const double count = strtod(end + 3, NULL);
        if (!isnan(bound) && count >= 0)
            out[n++] = (struct bucket){ bound, count };
    }
    return n;
}

double quantile_of_metrics(const char *text, const char *name, double q)
{
    struct bucket b[BUCKETS_MAX];
    const size_t n = buckets_of(text, name, b);
    if (!n || !(b[n - 1].count > 0))
        return NAN;
    const double want = q * b[n - 1].count;
    size_t i = 0;
    while (i + 1 < n && b[i].count < want)
        i++;
    const double low = i ? b[i - 1].bound : 0, before = i ? b[i - 1].count : 0;
    if (isinf(b[i].bound))
        return i ? low : NAN;
    return b[i].count > before ? low + (b[i].bound - low) * (want - before) / (b[i].count - before) : b[i].bound;
}

/* ---- fetching ---- */

struct fetch {
    FILE *out;
    size_t bytes;
    bool done, ok;
};

static void on_body(void *user, const struct response *r, const char *data, size_t bytes)
{
    struct fetch *f = user;
    (void)r;
    if (f->bytes + bytes <= METRICS_BYTES_MAX)
        f->bytes += fwrite(data, 1, bytes, f->out);
}

static void on_done(void *user, const struct response *r, enum status st, const struct error *err)
{
    struct fetch *f = user;
    (void)err;
    f->ok = !st && r->status == 200;
    f->done = true;
}

/* NUL-terminated text; NULL: not there. */
static char *metrics(const char *address)
{
    static const struct http_handlers handlers = { on_body, on_done };
    char url[160], *text = NULL;
    size_t bytes = 0;
    struct http_client *client = NULL;
    struct http_call *call;
    struct fetch f = { .out = open_memstream(&text, &bytes) };
    struct event_base *base = event_base_new();
    snprintf(url, sizeof url, "http://%s", address);
    if (f.out && base && !http_client_new(base, url, "", NULL, &client, NULL) &&
        !http_call_start(client, "/metrics", NULL, METRICS_MS, &handlers, &f, &call, NULL))
        while (!f.done && event_base_loop(base, EVLOOP_ONCE) == 0) { /* METRICS_MS ends it */
        }
    http_client_free(client);
    if (base)
        event_base_free(base);
    if (f.out)
        fclose(f.out);
    if (!f.ok) {
        free(text);
        return NULL;
    }
    return text;
}

static void line(FILE *out, const char *what, const char *text, const char *name)
{
    const double p50 = quantile_of_metrics(text, name, 0.5);
    if (isnan(p50))
        return;
    fprintf(out, "%-10s p50 %.1f ms, p90 %.1f ms, p99 %.1f ms\n", what, p50 * 1000,
            quantile_of_metrics(text, name, 0.9) * 1000, quantile_of_metrics(text, name, 0.99) * 1000);
}

/* --http left as it is beside another --grpc may be another cluster's: then nothing is asked. */
void quantile_lines(const struct settings *s, FILE *out)
{
    if (!strcmp(s->http, "127.0.0.1:8080") && strcmp(s->grpc, "127.0.0.1:9090") != 0)
        return;
    char *text = metrics(s->http);
    if (!text)
        return;
    line(out, "TTFT", text, "longspan_time_to_first_token_seconds");
    line(out, "TPOT", text, "longspan_time_per_output_token_seconds");
    free(text);
}
