#ifndef LONGSPAN_CLIENT_CALIBRATE_CHANNELS_H
#define LONGSPAN_CLIENT_CALIBRATE_CHANNELS_H

/* The channels of keys that double-sparsity keeps, learned as its paper does (arXiv:2408.07092): of each layer and KV head those of the greatest mean |q_i k_i|. */

#include "client/calibrate_collect.h"
#include "model/calibration.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CALIBRATE_CHANNELS_METHOD "qk"

/* ST_UNSUPPORTED: the selector learns nothing, or there is none of that name. */
enum status calibrate_channels_check(const char *selector, const struct model_config *c, struct error *err);
/*
 * samples: of CALIBRATE_CHANNELS. array_out: "channels", u8 [n_layers][n_kv_heads][selector_labels(head_dim)], whose data is channels_out, the caller's to
 * free. held_out: the mean over layers and KV heads of these channels' share of the importance of all. ST_NO_MEMORY.
 */
enum status calibrate_channels(const struct calibrate_samples *samples, uint8_t **channels_out,
                               struct calibration_array *array_out, double *held_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
