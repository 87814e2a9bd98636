#ifndef LONGSPAN_MODEL_ROPE_H
#define LONGSPAN_MODEL_ROPE_H

/* Rotation frequencies of RoPE, in float64. */

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Llama 3.1's scaling: long waves are stretched by factor, short ones kept, those between are blended. */
struct rope_llama3 {
    double factor, low_freq_factor, high_freq_factor, positions_original;
};

/*
 * YaRN: waves that turn more than beta_fast times in positions_original are kept, those under beta_slow stretched by factor, those between blended
 * along the channel numbers. truncate: the borders are whole channels.
 */
struct rope_yarn {
    double factor, positions_original, beta_fast, beta_slow;
    bool truncate;
};

/* inv_freq_out [head_dim / 2]: theta^(-2i / head_dim). */
void rope_default(double theta, uint32_t head_dim, double *inv_freq_out);
/* Rescales frequencies in place. Source: the Llama 3.1 release. */
void rope_scale_llama3(const struct rope_llama3 *s, uint32_t head_dim, double *inv_freq);
/* Positions divided by factor. Source: arXiv:2306.15595. */
void rope_scale_linear(double factor, uint32_t head_dim, double *inv_freq);
/* factor >= 1, positions_original >= 1, beta_fast >= beta_slow > 0, theta > 1: that of rope_default. Source: arXiv:2309.00071. */
void rope_scale_yarn(const struct rope_yarn *s, double theta, uint32_t head_dim, double *inv_freq);
/* What YaRN multiplies cos and sin with, so that scores are scaled by its square: 1 + 0.1 weight ln factor; 1 for factors up to 1. */
double rope_yarn_attention(double factor, double weight);

struct hasher;
/* Angles of 64 positions, times scale, as this host's libm makes them: what two hosts must share to rotate alike. inv_freq [head_dim / 2] */
void rope_hash(const double *inv_freq, uint32_t head_dim, double scale, struct hasher *h);

#ifdef __cplusplus
}
#endif
#endif
