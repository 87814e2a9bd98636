#ifndef LONGSPAN_CLIENT_EVAL_ESTIMATE_H
#define LONGSPAN_CLIENT_EVAL_ESTIMATE_H

/* What a sample says of a mean, and how sure that is: intervals of 95 %. */

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* low, high: NaN where nothing can be said. */
struct eval_estimate {
    double value, low, high;
};

/* The mean of n values by Student's t: of one value there is no interval, of none no value. */
struct eval_estimate eval_estimate_mean(const double *values, uint32_t n);

/*
 * A share: sum of n scores from 0 to 1, by Wilson's interval. Scores between 0 and 1 vary less than it supposes: it is then too wide, never too narrow.
 */
struct eval_estimate eval_estimate_share(double sum, uint32_t n);

#ifdef __cplusplus
}
#endif
#endif
