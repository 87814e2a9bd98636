#include "client/eval/estimate.h"

#include <math.h>

/* The 97.5 % point of Student's t with so many degrees of freedom, rounded up. */
static double student(uint32_t freedom)
{
    static const double points[] = { 12.7063, 4.3027, 3.1825, 2.7765, 2.5706, 2.4470, 2.3647, 2.3061, 2.2622, 2.2282,
                                     2.2010,  2.1789, 2.1604, 2.1448, 2.1315, 2.1200, 2.1099, 2.1010, 2.0931, 2.0860,
                                     2.0797,  2.0739, 2.0687, 2.0639, 2.0596, 2.0556, 2.0519, 2.0485, 2.0453, 2.0423 };
    const uint32_t n = sizeof points / sizeof *points;
    return freedom <= n ? points[freedom - 1] : 2.0423;
}

struct eval_estimate eval_estimate_mean(const double *values, uint32_t n)
{
    double sum = 0, squares = 0;
    if (!n)
        return (struct eval_estimate){ NAN, NAN, NAN };
    for (uint32_t i = 0; i < n; i++)
        sum += values[i];
    const double mean = sum / n;
    if (n < 2)
        return (struct eval_estimate){ mean, NAN, NAN };
    for (uint32_t i = 0; i < n; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    const double by = student(n - 1) * sqrt(squares / (n - 1) / n);
    return (struct eval_estimate){ mean, mean - by, mean + by };
}

struct eval_estimate eval_estimate_share(double sum, uint32_t n)
{
    const double z = 1.959964;
    if (!n)
        return (struct eval_estimate){ NAN, NAN, NAN };
    const double p = sum / n, d = 1 + z * z / n, centre = (p + z * z / (2 * n)) / d,
                 by = z / d * sqrt(p * (1 - p) / n + z * z / (4.0 * n * n));
    /* the ends of none and of all are 0 and 1; rounding would miss them */
    return (struct eval_estimate){ p, sum > 0 ? fmax(0, centre - by) : 0, sum < n ? fmin(1, centre + by) : 1 };
}
