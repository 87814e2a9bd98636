#ifndef LONGSPAN_CLIENT_SOLO_H
#define LONGSPAN_CLIENT_SOLO_H

/*
 * A model that is run in this process: one worker without a coordinator, which is told what a coordinator would tell it. For what is learned from a model's insides,
 * or tried on them: KV is bf16, and lies open between calls. One sequence at a time.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h"
#include "worker/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions of a leaf: rows of one call of solo_run are of one leaf. */
enum { SOLO_LEAF = 256, SOLO_POSITIONS_MAX = 1 << 17 };

struct solo_config {
    uint32_t n_threads, positions_max; /* positions_max: at most SOLO_POSITIONS_MAX */
    const struct backend_tap *tap;     /* kept; NULL */
    /* Whole rows of logits [n_vocab], of solo_run with logits; called before it returns, on another thread. May be NULL */
    void (*logits)(void *ctx, uint32_t pos, const float *row, uint32_t n_vocab);
    void *ctx;
};

struct solo;
/* model: kept. ST_INVALID (positions_max), ST_NO_MEMORY, those of worker_new. */
enum status solo_new(const struct solo_config *config, const struct model *model, struct solo **solo_out,
                     struct error *err);
void solo_free(struct solo *s);

/* Computes n positions from pos on, which lie in one leaf: pos 0 begins another sequence, else pos is where the last call ended. tokens [n]. */
enum status solo_run(struct solo *s, uint32_t pos, uint32_t n, const int32_t *tokens, bool logits, struct error *err);

/*
 * Keys of a KV head in a block of the sequence, bf16 in the open form, and values so many bytes behind as a part has (kernels/kernels.h). May be written to: later rows
 * read what stands there. NULL: no such block yet.
 */
void *solo_part(struct solo *s, uint32_t block, uint32_t layer, uint32_t kv_head);

#ifdef __cplusplus
}
#endif
#endif
