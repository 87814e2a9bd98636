#include "client/bench/report.h"

#include <math.h>
#include <stdlib.h>

enum {
    WIDTH = 960,
    LEFT = 70,
    RIGHT = 20,
    CDF_TOP = 50,
    CDF_HEIGHT = 300,
    LINE_TOP = 430,
    LINE_HEIGHT = 300,
    HEIGHT = 790
};
enum { POINTS_MAX = 500, BARS_MAX = 600 };

struct curve {
    const char *name, *colour;
    double *values; /* sorted, ms */
    size_t n;
};

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void text(FILE *out, double x, double y, const char *anchor, const char *what)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, what);
}

static void line(FILE *out, double x0, double y0, double x1, double y1, const char *colour)
{
    fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x0, y0, x1, y1, colour);
}

static size_t gather(const struct record *records, size_t n, double (*value)(const struct record *), double *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const double v = records[i].ok ? value(&records[i]) : NAN;
        if (!isnan(v))
            out[k++] = v;
    }
    return k;
}

static size_t gather_gaps(const struct record *records, size_t n, double *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = 0; records[i].ok && e + 1 < records[i].n_events; e++)
            out[k++] = records[i].gaps_us[e] / 1000.0;
    return k;
}

/* Powers of ten around all values; below a hundredth of a millisecond nothing is to be seen. */
static void range(const struct curve *curves, int n, double *low, double *high)
{
    double least = 1e9, most = 0.01;
    for (int i = 0; i < n; i++)
        if (curves[i].n) {
            least = fmin(least, curves[i].values[0]);
            most = fmax(most, curves[i].values[curves[i].n - 1]);
        }
    *low = floor(log10(fmax(fmin(least, most), 0.01)));
    *high = fmax(ceil(log10(most)), *low + 1);
}

static double cdf_x(double ms, double low, double high)
{
    return LEFT + (log10(fmax(ms, pow(10, low))) - low) / (high - low) * (WIDTH - LEFT - RIGHT);
}

static void cdf_axes(FILE *out, double low, double high)
{
    char label[32];
    text(out, LEFT, CDF_TOP - 26, "start", "Share of requests (of gaps, for ITL) within a latency");
    for (int i = 0; i <= 4; i++) {
        const double y = CDF_TOP + CDF_HEIGHT * (1 - i / 4.0);
        snprintf(label, sizeof label, "%d%%", i * 25);
        text(out, LEFT - 8, y + 4, "end", label);
        line(out, LEFT, y, WIDTH - RIGHT, y, "#ddd");
    }
    for (double e = low; e <= high; e++) {
        const double x = cdf_x(pow(10, e), low, high);
        snprintf(label, sizeof label, "%g ms", pow(10, e));
        text(out, x, CDF_TOP + CDF_HEIGHT + 18, "middle", label);
        line(out, x, CDF_TOP, x, CDF_TOP + CDF_HEIGHT, "#ddd");
    }
}

/* Steps, thinned to POINTS_MAX. */
static void cdf_curve(FILE *out, const struct curve *c, double low, double high)
{
    const size_t step = c->n / POINTS_MAX + 1;
    if (!c->n)
        return;
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", c->colour);
    for (size_t i = 0; i < c->n; i += step)
        fprintf(out, "%.1f,%.1f ", cdf_x(c->values[i], low, high),
                CDF_TOP + CDF_HEIGHT * (1 - (double)(i + 1) / (double)c->n));
    fprintf(out, "%.1f,%.1f\"/>\n", cdf_x(c->values[c->n - 1], low, high), (double)CDF_TOP);
}

static void legend(FILE *out, double x, double y, const char *colour, const char *name)
{
    fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", x, y - 10, colour);
    text(out, x + 17, y, "start", name);
}

static void cdf(FILE *out, struct curve *curves, int n)
{
    double low, high;
    for (int i = 0; i < n; i++)
        qsort(curves[i].values, curves[i].n, sizeof(double), by_value);
    range(curves, n, &low, &high);
    cdf_axes(out, low, high);
    for (int i = 0; i < n; i++) {
        cdf_curve(out, &curves[i], low, high);
        legend(out, LEFT + i * 120, CDF_TOP - 8, curves[i].colour, curves[i].name);
    }
}

static void bar(FILE *out, double x0, double x1, double y, double height, const char *colour)
{
    fprintf(out, "<rect x=\"%.1f\" y=\"%.2f\" width=\"%.1f\" height=\"%.2f\" fill=\"%s\"/>\n", x0, y,
            fmax(x1 - x0, 0.2), height, colour);
}

/* A bar a request: until its first token, and after; BARS_MAX of them at even distances. */
static void time_line(FILE *out, const struct record *records, size_t n, double seconds)
{
    char label[64];
    const size_t step = n / BARS_MAX + 1, shown = n ? (n - 1) / step + 1 : 0;
    const double height = shown ? (double)LINE_HEIGHT / (double)shown : 0, span = fmax(seconds, 1e-3);
    int64_t start = INT64_MAX;
    for (size_t i = 0; i < n; i++)
        start = records[i].due_us < start ? records[i].due_us : start;
    snprintf(label, sizeof label, step > 1 ? "Requests over time, one in %zu shown" : "Requests over time", step);
    text(out, LEFT, LINE_TOP - 26, "start", label);
    legend(out, LEFT, LINE_TOP - 8, "#e8a33d", "until the first token");
    legend(out, LEFT + 180, LINE_TOP - 8, "#3d7fe8", "tokens");
    legend(out, LEFT + 280, LINE_TOP - 8, "#c22", "failed or cancelled");
    for (int i = 0; i <= 5; i++) {
        const double x = LEFT + (WIDTH - LEFT - RIGHT) * i / 5.0;
        snprintf(label, sizeof label, "%.3g s", span * i / 5);
        text(out, x, LINE_TOP + LINE_HEIGHT + 18, "middle", label);
        line(out, x, LINE_TOP, x, LINE_TOP + LINE_HEIGHT, "#ddd");
    }
    for (size_t i = 0, k = 0; i < n; i += step, k++) {
        const struct record *r = &records[i];
        const double scale = (WIDTH - LEFT - RIGHT) / span / 1e6, y = LINE_TOP + (double)k * height;
        const double due = LEFT + (double)(r->due_us - start) * scale, end = LEFT + (double)(r->end_us - start) * scale;
        const double first = r->n_events ? LEFT + (double)(r->first_us - start) * scale : end;
        bar(out, due, first, y, height, r->ok ? "#e8a33d" : "#c22");
        bar(out, first, end, y, height, r->ok ? "#3d7fe8" : "#c22");
    }
}

enum status report_svg(const struct summary *s, const struct record *records, size_t n, FILE *out)
{
    size_t n_gaps = 1;
    for (size_t i = 0; i < n; i++)
        n_gaps += records[i].n_events;
    double *values = malloc((3 * n + n_gaps) * sizeof *values);
    if (!values)
        return ST_NO_MEMORY;
    struct curve curves[] = { { "TTFT", "#e8a33d", values, 0 },
                              { "TPOT", "#3d7fe8", values + n, 0 },
                              { "ITL", "#4a9e58", values + 3 * n, 0 },
                              { "end to end", "#8a4fbf", values + 2 * n, 0 } };
    curves[0].n = gather(records, n, record_ttft_ms, curves[0].values);
    curves[1].n = gather(records, n, record_tpot_ms, curves[1].values);
    curves[2].n = gather_gaps(records, n, curves[2].values);
    curves[3].n = gather(records, n, record_e2e_ms, curves[3].values);
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
            "font-size=\"13\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            WIDTH, HEIGHT);
    cdf(out, curves, 4);
    time_line(out, records, n, s->seconds);
    fprintf(out, "</svg>\n");
    free(values);
    return ferror(out) ? ST_IO : ST_OK;
}
