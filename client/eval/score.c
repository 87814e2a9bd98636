#include "client/eval/score.h"

#include <math.h>

struct row {
    double log_sum; /* ln sum exp(logit) */
    uint32_t largest;
};

static struct row look(const float *logits, uint32_t n)
{
    struct row r = { 0 };
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[r.largest])
            r.largest = i;
    const double max = (double)logits[r.largest];
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    r.log_sum = max + log(sum);
    return r;
}

void eval_score_add(struct eval_score *s, const float *logits, const float *baseline, uint32_t n, uint32_t token)
{
    const struct row a = look(logits, n), b = look(baseline, n);
    double kl = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double log_p = (double)baseline[i] - b.log_sum, log_q = (double)logits[i] - a.log_sum;
        kl += exp(log_p) * (log_p - log_q);
    }
    s->n_rows++;
    s->n_same += a.largest == b.largest;
    s->nll += a.log_sum - (double)logits[token];
    s->kl += kl > 0 ? kl : 0; /* rounding may leave less than nothing */
}

struct eval_means eval_score_means(const struct eval_score *s)
{
    const double n = (double)s->n_rows;
    if (!s->n_rows)
        return (struct eval_means){ NAN, NAN, NAN };
    return (struct eval_means){ exp(s->nll / n), s->kl / n, (double)s->n_same / n };
}

bool eval_finite(const float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            return false;
    return true;
}
