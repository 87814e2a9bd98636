#ifndef LONGSPAN_MODEL_GGUF_CONFIG_H
#define LONGSPAN_MODEL_GGUF_CONFIG_H

/* What a model is, from a GGUF file's keys. */

#include <stdbool.h>
#include <stdint.h>

#include "model/gguf.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* By name, in any part of a split set; NULL: there is none. */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *parts, uint32_t n_parts, const char *name);

/*
 * Fills and checks all of config but its name and what the tokenizer's keys say. interleaved_out: rows of q and k are stored as adjacent RoPE
 * pairs. Whatever would change the result and is not implemented is refused, naming the key.
 */
enum status gguf_config_read(const struct gguf *parts, uint32_t n_parts, struct model_config *config_out,
                             bool *interleaved_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
