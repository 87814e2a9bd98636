#include "kernels/kernels.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/cpu/exp.h"

/*
 * The tokens that may be drawn: ids ascending, NULL for all n of them. Their weights e^((x - max) / T) are there between finding the total
 * and the cut that needs them.
 */
struct choice {
    uint32_t *ids;
    float *weights;
    uint32_t n;
};

/* Everything above key takes part, and the first `ties` tokens at it. */
struct cut {
    uint32_t key, ties;
};

size_t sample_scratch_bytes(uint32_t n)
{
    return n * (2 * sizeof(float) + sizeof(uint32_t));
}

/* Orders as the numbers do; -0 and +0 are one. */
static inline uint32_t key_of(float x)
{
    uint32_t u;
    x += 0.0f;
    memcpy(&u, &x, sizeof u);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static inline uint32_t id_at(const struct choice *c, uint32_t i)
{
    return c->ids ? c->ids[i] : i;
}

/*
 * The smallest set of the largest logits that weighs at least target (each token its weight, or one if weights is NULL; all of them if they
 * weigh less), by three passes of buckets over the bits of the keys: linear time whatever the distribution.
 */
static struct cut cut_at(const float *logits, const struct choice *c, const float *weights, double target)
{
    static const struct {
        int shift, bits;
    } digits[3] = { { 21, 11 }, { 10, 11 }, { 0, 10 } };
    double mass[1 << 11], above = 0, one = 1;
    uint32_t count[1 << 11], prefix = 0, mask = 0, ties = 0;
    for (int pass = 0; pass < 3; pass++) {
        const int shift = digits[pass].shift, n_buckets = 1 << digits[pass].bits;
        memset(mass, 0, sizeof mass);
        memset(count, 0, sizeof count);
        for (uint32_t i = 0; i < c->n; i++) {
            const uint32_t key = key_of(logits[id_at(c, i)]);
            if ((key & mask) != prefix)
                continue;
            const uint32_t b = key >> shift & (uint32_t)(n_buckets - 1);
            mass[b] += weights ? (double)weights[i] : 1.0;
            count[b]++;
        }
        int found = -1;
        double at = above;
        for (int b = n_buckets - 1; b >= 0; b--) {
            if (!count[b])
                continue;
            found = b;
            at = above;
            above += mass[b];
            if (above >= target)
                break;
        }
        above = at;
        prefix |= (uint32_t)found << shift;
        mask |= (uint32_t)(n_buckets - 1) << shift;
        ties = count[found];
        one = mass[found] / count[found]; /* equal keys have equal weights: of use after the last pass */
    }
    const double want = ceil((target - above) / one);
    if (!(want < ties))
        return (struct cut){ prefix, ties };
    return (struct cut){ prefix, want > 1 ? (uint32_t)want : 1 };
}

static void cut_apply(const float *logits, struct choice *c, uint32_t *ids, struct cut cut)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const uint32_t id = id_at(c, i), key = key_of(logits[id]);
        if (key < cut.key || (key == cut.key && !cut.ties))
            continue;
        cut.ties -= key == cut.key;
        ids[n++] = id;
    }
    c->ids = ids;
    c->n = n;
}

/* Tokens so light that all of them together weigh less than 1 - top_p cannot be needed: few are left to be ordered. */
static void drop_light(struct choice *c, uint32_t *ids, double total, double top_p)
{
    const float least = (float)(0.999 * (1 - top_p) * total / c->n);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        if (c->weights[i] >= least) {
            ids[n] = id_at(c, i);
            c->weights[n++] = c->weights[i];
        }
    c->ids = ids;
    c->n = n;
}

/* (x - max) / T >= log min_p: all that are as probable as the most probable, times min_p. */
static void drop_unlikely(const float *logits, struct choice *c, uint32_t *ids, float max,
                          const struct sample_params *params)
{
    const double least = (double)max + (double)params->temperature * log((double)params->min_p);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const uint32_t id = id_at(c, i);
        if ((double)logits[id] >= least || logits[id] == max)
            ids[n++] = id;
    }
    c->ids = ids;
    c->n = n;
}

/* ids: where the choice's own list is kept; it may be there already. */
static struct choice filter(const float *logits, struct choice c, uint32_t *ids, float max,
                            const struct sample_params *params)
{
    if (params->min_p > 0)
        drop_unlikely(logits, &c, ids, max, params);
    if (params->top_k && params->top_k < c.n)
        cut_apply(logits, &c, ids, cut_at(logits, &c, NULL, params->top_k));
    if (!(params->top_p < 1))
        return c;
    const float rate = 1.0f / params->temperature;
    const double top_p = params->top_p > 0 ? (double)params->top_p : 0;
    double total = 0;
    if (c.ids)
        for (uint32_t i = 0; i < c.n; i++)
            c.weights[i] = exp_f32((logits[c.ids[i]] - max) * rate);
    else
        for (uint32_t i = 0; i < c.n; i++)
            c.weights[i] = exp_f32((logits[i] - max) * rate);
    for (uint32_t i = 0; i < c.n; i++)
        total += (double)c.weights[i];
    drop_light(&c, ids, total, top_p);
    cut_apply(logits, &c, ids, cut_at(logits, &c, c.weights, top_p * total));
    return c;
}

/* A little more than e^-d, for 0 <= d <= 38, by the bits of a float: 2^f <= 1 + f in every octave. */
static inline double exp_above(double d)
{
    const uint32_t bits = (uint32_t)(int32_t)((127.0 - d * (double)EXP_LOG2E) * 0x1p23);
    float e;
    memcpy(&e, &bits, sizeof e);
    return 1.001 * (double)e;
}

/*
 * The largest (x - max) / T - log(-log(u)), u a number of the token's own. Most tokens are far from it: with d what the noise must exceed,
 * e^-d <= 1 - u <= -log(u) rules one out without logarithms, and the noise never exceeds 37.5.
 */
static uint32_t draw(const float *logits, const struct choice *c, uint32_t argmax, const struct sample_params *params,
                     uint32_t position)
{
    const double max = (double)logits[argmax], rate = 1 / (double)params->temperature;
    const uint64_t stream =
        mix64(mix64(params->seed) ^ position); /* rng_at(seed, position, id) is mix64(stream ^ id) */
    uint32_t best = argmax;
    double top = -log(-log(rng_unit(mix64(stream ^ argmax))));
    for (uint32_t i = 0; i < c->n; i++) {
        const uint32_t id = id_at(c, i);
        const double x = ((double)logits[id] - max) * rate, d = top - x;
        if (d > 38 || id == argmax)
            continue;
        const double u = rng_unit(mix64(stream ^ id));
        if (d > 0 && 1 - u > exp_above(d))
            continue;
        const double score = x - log(-log(u));
        if (score > top || (score == top && id < best)) {
            top = score;
            best = id;
        }
    }
    return best;
}

/* While the list is made, logprob holds the logit. */
static inline bool worse(const struct sample_top *a, const struct sample_top *b)
{
    return a->logprob < b->logprob || (a->logprob == b->logprob && a->token > b->token);
}

/* Puts x where item 0 of a heap of n was, the worst of them on top. */
static void sink(struct sample_top *heap, uint32_t n, struct sample_top x)
{
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child + 1 < n && worse(&heap[child + 1], &heap[child]))
            child++;
        if (child >= n || !worse(&heap[child], &x))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = x;
}

static void rise(struct sample_top *heap, uint32_t i, struct sample_top x)
{
    for (; i && worse(&x, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static void top_list(const float *logits, uint32_t n, double log_total, uint32_t n_top, struct sample_top *out)
{
    for (uint32_t i = 0; i < n_top; i++)
        rise(out, i, (struct sample_top){ i, logits[i] });
    for (uint32_t i = n_top; i < n; i++)
        if (logits[i] > out[0].logprob)
            sink(out, n_top, (struct sample_top){ i, logits[i] });
    for (uint32_t left = n_top; left > 1; left--) {
        const struct sample_top worst = out[0];
        sink(out, left - 1, out[left - 1]);
        out[left - 1] = worst;
    }
    for (uint32_t i = 0; i < n_top; i++)
        out[i].logprob = (float)((double)out[i].logprob - log_total);
}

static bool all_finite(const float *x, uint32_t n)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < n; i++)
        bad |= !(fabsf(x[i]) <= FLT_MAX);
    return !bad;
}

static inline bool in_set(const uint8_t *set, uint32_t bytes, uint32_t token)
{
    return token / 8 < bytes && (set[token / 8] >> (token % 8) & 1);
}

static inline float clamped(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* The logits as the choice is to see them. */
static void edit_logits(float *x, uint32_t n, const struct sample_edits *edits)
{
    for (uint32_t i = 0; i < edits->repeated_bytes * 8 && i < n; i++)
        if (in_set(edits->repeated, edits->repeated_bytes, i))
            x[i] = clamped(x[i] > 0 ? x[i] / edits->repetition : x[i] * edits->repetition);
    for (uint32_t i = 0; i < edits->n_adds; i++)
        if (edits->adds[i].token < n)
            x[edits->adds[i].token] = clamped(x[edits->adds[i].token] + edits->adds[i].add);
}

static void keep_allowed(struct choice *c, uint32_t *ids, const struct sample_edits *edits)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        if (in_set(edits->allowed, edits->allowed_bytes, i))
            ids[n++] = i;
    c->ids = ids;
    c->n = n;
}

/* The largest, the lowest of equals. */
static uint32_t argmax_of(const float *logits, const struct choice *c)
{
    uint32_t best = id_at(c, 0);
    for (uint32_t i = 1; i < c->n; i++)
        if (logits[id_at(c, i)] > logits[best])
            best = id_at(c, i);
    return best;
}

/* argmax: of the logits as they are. scratch holds weights, edited logits, ids. -> n: nothing is allowed */
static uint32_t choose(const float *logits, uint32_t n, uint32_t argmax, const struct sample_params *params,
                       const struct sample_edits *edits, uint32_t position, void *scratch)
{
    struct choice c = { NULL, scratch, n };
    float *edited = (float *)scratch + n;
    uint32_t *ids = (uint32_t *)(edited + n);
    if (edits) {
        memcpy(edited, logits, n * sizeof *edited);
        edit_logits(edited, n, edits);
        logits = edited;
        if (edits->allowed)
            keep_allowed(&c, ids, edits);
        if (!c.n)
            return n;
        argmax = argmax_of(logits, &c);
    }
    if (params->temperature < FLT_MIN || params->temperature != params->temperature)
        return argmax;
    c = filter(logits, c, ids, logits[argmax], params);
    return draw(logits, &c, argmax, params, position);
}

void sample_row(const struct row_impl *rows, const float *logits, uint32_t n, const struct sample_params *params,
                const struct sample_edits *edits, uint32_t position, int32_t target, uint32_t n_top,
                struct sample_top *top_out, void *scratch, struct sample_result *result_out)
{
    uint32_t token;
    float max, sum;
    assert(n > 0 && n_top <= n && target < (int64_t)n);
    *result_out = (struct sample_result){ 0 };
    if (!all_finite(logits, n))
        return;
    rows->logit_max_sum(logits, n, &token, &max, &sum);
    const double log_total = (double)max + log((double)sum);
    token = choose(logits, n, token, params, edits, position, scratch);
    if (token >= n)
        return;
    result_out->finite = true;
    result_out->token = token;
    result_out->logprob = (float)((double)logits[token] - log_total);
    if (target >= 0)
        result_out->target_logprob = (float)((double)logits[target] - log_total);
    if (n_top)
        top_list(logits, n, log_total, n_top, top_out);
}
