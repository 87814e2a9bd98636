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
    s->nll_baseline += b.log_sum - (double)baseline[token];
    s->kl += kl > 0 ? kl : 0; /* rounding may leave less than nothing */
}

static struct eval_estimate exponential(struct eval_estimate e)
{
    return (struct eval_estimate){ exp(e.value), exp(e.low), exp(e.high) };
}

struct eval_quality eval_quality(const struct eval_score *batches, uint32_t n)
{
    double nll[EVAL_BATCHES_MAX], more[EVAL_BATCHES_MAX], kl[EVAL_BATCHES_MAX];
    uint64_t n_same = 0, n_rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct eval_score *s = &batches[i];
        const double rows = (double)s->n_rows;
        nll[i] = s->nll / rows;
        more[i] = (s->nll - s->nll_baseline) / rows;
        kl[i] = s->kl / rows;
        n_same += s->n_same;
        n_rows += s->n_rows;
    }
    struct eval_quality q = { exponential(eval_estimate_mean(nll, n)), exponential(eval_estimate_mean(more, n)),
                              eval_estimate_mean(kl, n), eval_estimate_share((double)n_same, (uint32_t)n_rows) };
    if (q.kl.low < 0)
        q.kl.low = 0;
    return q;
}

bool eval_finite(const float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            return false;
    return true;
}
