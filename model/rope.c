#include "model/rope.h"

#include <math.h>

#include "common/hash.h"

#define PI 3.14159265358979323846

void rope_default(double theta, uint32_t head_dim, double *inv_freq_out)
{
    for (uint32_t i = 0; i < head_dim / 2; i++)
        inv_freq_out[i] = pow(theta, -2.0 * i / head_dim);
}

void rope_scale_llama3(const struct rope_llama3 *s, uint32_t head_dim, double *inv_freq)
{
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        const double wave = 2 * PI / inv_freq[i];
        if (wave < s->positions_original / s->high_freq_factor)
            continue;
        if (wave > s->positions_original / s->low_freq_factor) {
            inv_freq[i] /= s->factor;
            continue;
        }
        const double keep =
            (s->positions_original / wave - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
        inv_freq[i] = (1 - keep) * inv_freq[i] / s->factor + keep * inv_freq[i];
    }
}

void rope_scale_linear(double factor, uint32_t head_dim, double *inv_freq)
{
    for (uint32_t i = 0; i < head_dim / 2; i++)
        inv_freq[i] /= factor;
}

/* The channel, not a whole number, whose wave turns so often in the original context. */
static double yarn_channel(const struct rope_yarn *s, double turns, double theta, uint32_t head_dim)
{
    return head_dim * log(s->positions_original / (turns * 2 * PI)) / (2 * log(theta));
}

void rope_scale_yarn(const struct rope_yarn *s, double theta, uint32_t head_dim, double *inv_freq)
{
    double low = yarn_channel(s, s->beta_fast, theta, head_dim), high = yarn_channel(s, s->beta_slow, theta, head_dim);
    if (s->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, head_dim - 1);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        const double stretch = fmin(fmax((i - low) / (high - low), 0), 1);
        inv_freq[i] = inv_freq[i] / s->factor * stretch + inv_freq[i] * (1 - stretch);
    }
}

double rope_yarn_attention(double factor, double weight)
{
    return factor > 1 ? 1 + 0.1 * weight * log(factor) : 1;
}

void rope_hash(const double *inv_freq, uint32_t head_dim, double scale, struct hasher *h)
{
    for (uint32_t i = 0; i < 64; i++) {
        const double angle = (double)(i * 9973 % 131072) * inv_freq[i % (head_dim / 2)];
        const float pair[2] = { (float)(cos(angle) * scale), (float)(sin(angle) * scale) };
        hasher_add(h, pair, sizeof pair);
    }
}
