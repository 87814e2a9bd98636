#include "model/rope.h"

#include <math.h>

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
