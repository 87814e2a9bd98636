#include <math.h>

#include "client/eval/report.h"

enum {
    WIDTH = 960,
    LEFT = 90,
    RIGHT = 30,
    TOP = 60,
    PANEL = 300,
    GAP = 90,
    HEIGHT = TOP + 2 * PANEL + GAP + 60,
    TICKS = 5
};

static const char *const colours[] = { "#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad",
                                       "#d68910", "#16a085", "#7f8c8d", "#34495e" };
enum { COLOURS = sizeof colours / sizeof *colours };

struct axis {
    double low, high;
};

struct panel {
    const char *title;
    double top;
    struct axis x, y;
    struct eval_estimate (*value)(const struct eval_row *row);
};

static struct eval_estimate more_perplexity(const struct eval_row *row)
{
    const struct eval_estimate e = row->quality.ppl_ratio;
    return (struct eval_estimate){ 100 * (e.value - 1), 100 * (e.low - 1), 100 * (e.high - 1) };
}

static struct eval_estimate divergence(const struct eval_row *row)
{
    return row->quality.kl;
}

static double bytes_of(const struct eval_row *row)
{
    return (double)(row->kv_bytes_per_token + row->sketch_bytes_per_token);
}

static void widen(struct axis *a, double v)
{
    if (!isfinite(v))
        return;
    a->low = fmin(a->low, v);
    a->high = fmax(a->high, v);
}

/* With the interval where there is one, zero always, and a tenth of room above. */
static void scale(const struct eval_report *r, struct panel *p)
{
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const struct eval_estimate e = p->value(&r->rows[i]);
        widen(&p->x, bytes_of(&r->rows[i]));
        widen(&p->y, e.value);
        widen(&p->y, e.low);
        widen(&p->y, e.high);
    }
    p->x.high = (p->x.high > 0 ? p->x.high : 1) * 1.15;
    const double room = (p->y.high - p->y.low) * 0.1;
    p->y.high += room > 0 ? room : 1;
    p->y.low -= p->y.low < 0 ? room : 0;
}

static double at_x(const struct panel *p, double v)
{
    return LEFT + (v - p->x.low) / (p->x.high - p->x.low) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const struct panel *p, double v)
{
    return p->top + PANEL * (1 - (v - p->y.low) / (p->y.high - p->y.low));
}

static void text(FILE *out, double x, double y, const char *anchor, const char *what)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, what);
}

static void line(FILE *out, double x0, double y0, double x1, double y1, const char *colour)
{
    fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x0, y0, x1, y1, colour);
}

/* 1, 2 or 5 times a power of ten: about TICKS of them make the axis. */
static double tick(const struct axis *a)
{
    const double rough = (a->high - a->low) / TICKS, power = pow(10, floor(log10(rough))), lead = rough / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

static void axes(FILE *out, const struct panel *p)
{
    char label[48];
    const double by_x = tick(&p->x), by_y = tick(&p->y);
    text(out, LEFT, p->top - 14, "start", p->title);
    for (double i = ceil(p->x.low / by_x); i * by_x <= p->x.high; i++) {
        snprintf(label, sizeof label, "%g", i * by_x);
        line(out, at_x(p, i * by_x), p->top, at_x(p, i * by_x), p->top + PANEL, "#ddd");
        text(out, at_x(p, i * by_x), p->top + PANEL + 18, "middle", label);
    }
    for (double i = ceil(p->y.low / by_y); i * by_y <= p->y.high; i++) {
        snprintf(label, sizeof label, "%g", i * by_y);
        line(out, LEFT, at_y(p, i * by_y), WIDTH - RIGHT, at_y(p, i * by_y), i == 0 ? "#888" : "#ddd");
        text(out, LEFT - 8, at_y(p, i * by_y) + 4, "end", label);
    }
    text(out, (WIDTH + LEFT - RIGHT) / 2.0, p->top + PANEL + 36, "middle", "bytes a token, KV and sketches");
}

static void points(FILE *out, const struct eval_report *r, const struct panel *p)
{
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const struct eval_estimate e = p->value(&r->rows[i]);
        const double x = at_x(p, bytes_of(&r->rows[i]));
        const char *colour = colours[i % COLOURS];
        if (!isfinite(e.value))
            continue;
        if (isfinite(e.low) && isfinite(e.high))
            line(out, x, at_y(p, e.low), x, at_y(p, e.high), colour);
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"%s\"/>\n", x, at_y(p, e.value), colour);
        /* names of points near the right edge stand on their left */
        const bool left = x > WIDTH - 260;
        text(out, left ? x - 9 : x + 9, at_y(p, e.value) - 6, left ? "end" : "start", r->rows[i].config);
    }
}

enum status eval_svg(const struct eval_report *r, FILE *out)
{
    struct panel panels[] = {
        { .title = "Perplexity over the first configuration's, % more, with 95 % intervals",
          .top = TOP,
          .value = more_perplexity },
        { .title = "KL divergence from the first configuration, nats, with 95 % intervals",
          .top = TOP + PANEL + GAP,
          .value = divergence },
    };
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    for (size_t i = 0; i < sizeof panels / sizeof *panels; i++) {
        scale(r, &panels[i]);
        axes(out, &panels[i]);
        points(out, r, &panels[i]);
    }
    fprintf(out, "</svg>\n");
    return ferror(out) ? ST_IO : ST_OK;
}
