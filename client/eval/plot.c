#include <math.h>

#include "client/eval/report.h"

/* Points have numbers, whose names stand on the right: names beside them would cover each other. */
enum {
    LEFT = 90,
    PLOT = 720,
    RIGHT = 30,
    LEGEND = 380,
    WIDTH = LEFT + PLOT + RIGHT + LEGEND,
    TOP = 60,
    PANEL = 300,
    GAP = 90,
    HEIGHT = TOP + 2 * PANEL + GAP + 60,
    LINE_MAX = 18, /* of the legend: as high as all of them have room for */
    TICKS = 5
};
#define LOG_MIN 1e-6 /* what a logarithmic axis shows of 0 */

static const char *const colours[] = { "#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad",
                                       "#d68910", "#16a085", "#7f8c8d", "#34495e" };
enum { COLOURS = sizeof colours / sizeof *colours };

struct axis {
    double low, high;
};

struct panel {
    const char *title;
    double top;
    bool by_powers; /* y is logarithmic; x, y: then of y's logarithm to base 10 */
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

static double along_y(const struct panel *p, double v)
{
    return p->by_powers ? log10(fmax(v, LOG_MIN)) : v;
}

/* From the power of ten below the least that is above 0. */
static void begin_powers(const struct eval_report *r, struct panel *p)
{
    double least = INFINITY;
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const double v = p->value(&r->rows[i]).value;
        if (v > 0 && v < least)
            least = v;
    }
    p->y.low = p->y.high = isfinite(least) ? floor(along_y(p, least)) : log10(LOG_MIN);
}

/* With the interval where there is one, zero always (but by powers), and a tenth of room above. */
static void scale(const struct eval_report *r, struct panel *p)
{
    if (p->by_powers)
        begin_powers(r, p);
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const struct eval_estimate e = p->value(&r->rows[i]);
        widen(&p->x, bytes_of(&r->rows[i]));
        if (p->by_powers) {
            widen(&p->y, fmax(along_y(p, fmax(e.value, e.high)), p->y.low));
            continue;
        }
        widen(&p->y, e.value);
        widen(&p->y, e.low);
        widen(&p->y, e.high);
    }
    p->x.high = (p->x.high > 0 ? p->x.high : 1) * 1.05;
    const double room = (p->y.high - p->y.low) * 0.1;
    p->y.high += room > 0 ? room : 1;
    p->y.low -= p->y.low < 0 && !p->by_powers ? room : 0;
}

static double at_x(const struct panel *p, double v)
{
    return LEFT + (v - p->x.low) / (p->x.high - p->x.low) * PLOT;
}

/* What lies below the axis stands on it. */
static double at_y(const struct panel *p, double v)
{
    const double share = (along_y(p, v) - p->y.low) / (p->y.high - p->y.low);
    return p->top + PANEL * (1 - fmax(share, 0));
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
    const double step = p->by_powers ? ceil(by_y) : by_y;
    for (double i = ceil(p->y.low / step); i * step <= p->y.high; i++) {
        const double v = p->by_powers ? pow(10, i * step) : i * step, y = at_y(p, v);
        snprintf(label, sizeof label, "%g", v);
        line(out, LEFT, y, LEFT + PLOT, y, v == 0 ? "#888" : "#ddd");
        text(out, LEFT - 8, y + 4, "end", label);
    }
    text(out, LEFT + PLOT / 2.0, p->top + PANEL + 36, "middle", "bytes a token, KV and sketches");
}

struct place {
    double x, y;
};

/* Beside a point, or above or below that where another number stands. taken [n] */
static struct place number_place(const struct place *taken, uint32_t n, double x, double y)
{
    enum { TRIES = 24, WIDE = 18, HIGH = 12 };
    struct place at = { x + 8, y + 4 };
    for (int i = 0; i < TRIES; i++) {
        bool free = true;
        at.y = y + 4 + (i % 2 ? -1 : 1) * ((i + 1) / 2) * HIGH;
        for (uint32_t k = 0; k < n && free; k++)
            free = fabs(taken[k].x - at.x) >= WIDE || fabs(taken[k].y - at.y) >= HIGH;
        if (free && at.y > 0)
            break;
    }
    return at;
}

static void points(FILE *out, const struct eval_report *r, const struct panel *p)
{
    struct place taken[EVAL_CONFIGS_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const struct eval_estimate e = p->value(&r->rows[i]);
        const double x = at_x(p, bytes_of(&r->rows[i])), y = at_y(p, e.value);
        const char *colour = colours[i % COLOURS];
        char number[16];
        if (!isfinite(e.value))
            continue;
        if (isfinite(e.low) && isfinite(e.high))
            line(out, x, at_y(p, e.low), x, at_y(p, e.high), colour);
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" stroke=\"%s\" fill=\"%s\"/>\n", x, y, colour,
                r->rows[i].offered ? colour : "white");
        taken[n] = number_place(taken, n, x, y);
        snprintf(number, sizeof number, "%u", i + 1);
        text(out, taken[n].x, taken[n].y, "start", number);
        n++;
    }
}

static void legend(FILE *out, const struct eval_report *r)
{
    const double room = (HEIGHT - 2.0 * TOP) / (r->n_rows ? r->n_rows : 1), high = fmin(room, LINE_MAX);
    for (uint32_t i = 0; i < r->n_rows; i++)
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" font-size=\"%.1f\" fill=\"%s\">%u  %s%s</text>\n", LEFT + PLOT + RIGHT,
                TOP + (i + 0.7) * high, fmin(12, high), colours[i % COLOURS], i + 1, r->rows[i].config,
                r->rows[i].offered ? "" : " (not offered)");
}

enum status eval_svg(const struct eval_report *r, FILE *out)
{
    struct panel panels[] = {
        { .title = "Perplexity over the first configuration's, % more, with 95 % intervals",
          .top = TOP,
          .value = more_perplexity },
        { .title =
              "KL divergence from the first configuration, nats, with 95 % intervals; what is less stands on the axis",
          .top = TOP + PANEL + GAP,
          .by_powers = true,
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
    legend(out, r);
    fprintf(out, "</svg>\n");
    return ferror(out) ? ST_IO : ST_OK;
}
