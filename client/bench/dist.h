#ifndef LONGSPAN_CLIENT_BENCH_DIST_H
#define LONGSPAN_CLIENT_BENCH_DIST_H

/* How long prompts and answers are: a number, or a distribution to draw from. */

#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dist_kind { DIST_FIXED, DIST_UNIFORM, DIST_NORMAL, DIST_LOGNORMAL, DIST_EXPONENTIAL };

struct dist {
    enum dist_kind kind;
    double a,
        b; /* fixed: a; uniform: from a to b; normal: mean, deviation; lognormal: median, sigma; exponential: mean */
};

/* "512", "128-1024", "normal:512:100", "lognormal:512:0.8", "exponential:512". field: named in errors (ST_INVALID). */
enum status dist_parse(const char *text, const char *field, struct dist *dist_out, struct error *err);
/* A function of bits (two 64-bit draws) alone; rounded, within 1 .. 2^24. */
uint32_t dist_draw(const struct dist *d, uint64_t bits0, uint64_t bits1);

#ifdef __cplusplus
}
#endif
#endif
