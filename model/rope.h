#ifndef LONGSPAN_MODEL_ROPE_H
#define LONGSPAN_MODEL_ROPE_H

/* Rotation frequencies of RoPE, in float64. */

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Llama 3.1's scaling: long waves are stretched by factor, short ones kept, those between are blended. */
struct rope_llama3 {
    double factor, low_freq_factor, high_freq_factor, positions_original;
};

/* inv_freq_out [head_dim / 2]: theta^(-2i / head_dim). */
void rope_default(double theta, uint32_t head_dim, double *inv_freq_out);
/* Rescales frequencies in place. Source: the Llama 3.1 release. */
void rope_scale_llama3(const struct rope_llama3 *s, uint32_t head_dim, double *inv_freq);

#ifdef __cplusplus
}
#endif
#endif
