#include "client/bench/dist.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

enum { TOKENS_MAX = 1 << 24 };

static const struct {
    const char *name;
    enum dist_kind kind;
    int n; /* numbers */
} kinds[] = {
    { "normal:", DIST_NORMAL, 2 },
    { "lognormal:", DIST_LOGNORMAL, 2 },
    { "exponential:", DIST_EXPONENTIAL, 1 },
};

/* A plain decimal number and what must follow it. */
static bool number(const char **at, char follows, double *out)
{
    char *end;
    if ((**at < '0' || **at > '9') && **at != '.')
        return false;
    *out = strtod(*at, &end);
    if (end == *at || *end != follows || !(*out >= 0 && *out <= TOKENS_MAX))
        return false;
    *at = end + (follows != 0);
    return true;
}

static bool whole(double v)
{
    return v >= 1 && v == floor(v);
}

static bool parse(const char *text, struct dist *d)
{
    const char *at = text;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strncmp(text, kinds[i].name, strlen(kinds[i].name))) {
            at += strlen(kinds[i].name);
            *d = (struct dist){ .kind = kinds[i].kind };
            return number(&at, kinds[i].n == 2 ? ':' : 0, &d->a) && (kinds[i].n < 2 || number(&at, 0, &d->b)) &&
                   d->a >= 1;
        }
    *d = (struct dist){ .kind = strchr(text, '-') ? DIST_UNIFORM : DIST_FIXED };
    if (d->kind == DIST_FIXED)
        return number(&at, 0, &d->a) && whole(d->a);
    return number(&at, '-', &d->a) && number(&at, 0, &d->b) && whole(d->a) && whole(d->b) && d->a <= d->b;
}

enum status dist_parse(const char *text, const char *field, struct dist *dist_out, struct error *err)
{
    struct dist d;
    if (!parse(text, &d))
        return error_set(err, ST_INVALID,
                         "%s: '%s' is not N, LOW-HIGH, normal:MEAN:DEVIATION, lognormal:MEDIAN:SIGMA or "
                         "exponential:MEAN (tokens, from 1 to %d)",
                         field, text, TOKENS_MAX);
    *dist_out = d;
    return ST_OK;
}

/* Box and Muller's. */
static double normal(uint64_t bits0, uint64_t bits1)
{
    return sqrt(-2 * log(rng_unit(bits0))) * cos(2 * M_PI * rng_unit(bits1));
}

uint32_t dist_draw(const struct dist *d, uint64_t bits0, uint64_t bits1)
{
    double v = d->a;
    switch (d->kind) {
    case DIST_FIXED:
        break;
    case DIST_UNIFORM:
        v = d->a + floor(rng_unit(bits0) * (d->b - d->a + 1));
        break;
    case DIST_NORMAL:
        v = d->a + d->b * normal(bits0, bits1);
        break;
    case DIST_LOGNORMAL:
        v = d->a * exp(fmin(d->b * normal(bits0, bits1), 50));
        break;
    case DIST_EXPONENTIAL:
        v = -d->a * log(rng_unit(bits0));
        break;
    }
    return (uint32_t)lround(fmin(fmax(v, 1), TOKENS_MAX));
}
