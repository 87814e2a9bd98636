#ifndef LONGSPAN_CLIENT_CALIBRATE_COLLECT_H
#define LONGSPAN_CLIENT_CALIBRATE_COLLECT_H

/* What calibrations are learned from: keys, before RoPE or after it, and values of all layers and KV heads over some sequences and how much each of them counts, or products
 * of queries and keys by channel. */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * CALIBRATE_UNIT: channels that share a weight. CALIBRATE_STRIDE: one query of so many is looked at for weights. CALIBRATE_SEQUENCE_MIN: a query counts for keys of
 * earlier blocks only, as rows of a block's own see it before it is coded, so there must be several blocks.
 */
enum { CALIBRATE_UNIT = 4, CALIBRATE_STRIDE = 4, CALIBRATE_SEQUENCE_MIN = 256, CALIBRATE_SEQUENCE_MAX = 1 << 15 };

struct calibrate_text {
    const int32_t *ids; /* [n_sequences][length] */
    uint32_t n_sequences, length;
};

/* [0]: keys, [1]: values. n: vectors of a KV head, n_sequences times length. */
struct calibrate_samples {
    uint32_t n_layers, n_kv_heads, head_dim, n;
    uint16_t *part[2]; /* bf16 [n_layers][n_kv_heads][n][head_dim] */
    uint16_t *weight
        [2]; /* of CALIBRATE_WEIGHTS: bf16 [n_layers][n_kv_heads][head_dim / CALIBRATE_UNIT][n]; NULL: all are 1 */
    double *importance; /* of CALIBRATE_CHANNELS, which has none of the above: [n_layers][n_kv_heads][head_dim] */
};

/* Keys and values; with weights; or the importance of channels alone. */
enum calibrate_look { CALIBRATE_VECTORS, CALIBRATE_WEIGHTS, CALIBRATE_CHANNELS };
struct calibrate_kind {
    enum calibrate_look look;
    /*
     * Keys are after RoPE, as they are stored. They are turned to positions that lie evenly over the model's context, since what a codec is to code stands
     * anywhere in there; but those of a sequence's first block, among which is the token that everybody attends to, to their own.
     */
    bool turned;
};

/* Something is done: so much of all. May be NULL. stop: true ends it with ST_CANCELLED; may be NULL. */
struct calibrate_events {
    void (*progress)(void *ctx, const char *what, float fraction);
    bool (*stop)(void *ctx);
    void *ctx;
};

/*
 * Runs the model in bf16, in this process, with n_threads. CALIBRATE_WEIGHTS: weights are made of attention, with the gradient of its output taken as white: of a value
 * token t, the sum over queries q of later blocks of p_qt^2; of 4 channels of a key, that of p_qt^2 |v_t - o_q|^2 |q's channels|^2, where a channel counts
 * half of itself and half of the one that RoPE turns it with. CALIBRATE_CHANNELS: of a channel, the sum of |q_i k_i| after RoPE over the queries of the KV
 * head's group and the keys of their earlier blocks (Double Sparsity, arXiv:2408.07092). ST_NO_MEMORY, ST_INVALID, ST_CANCELLED, those of worker_new.
 */
enum status calibrate_collect(const struct model *m, const struct calibrate_text *text,
                              const struct calibrate_kind *kind, uint32_t n_threads,
                              const struct calibrate_events *events, struct calibrate_samples *samples_out,
                              struct error *err);
void calibrate_samples_free(struct calibrate_samples *s);

#ifdef __cplusplus
}
#endif
#endif
