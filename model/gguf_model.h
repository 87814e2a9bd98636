#ifndef LONGSPAN_MODEL_GGUF_MODEL_H
#define LONGSPAN_MODEL_GGUF_MODEL_H

/* A model from GGUF files: their tensors; keys in gguf_config.h. */

#include "model/gguf.h"
#include "model/source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills an empty model from the parts of one split set (keys in the first). The parts' bytes are borrowed for the model's life. */
enum status gguf_model_fill(struct model *m, const struct gguf *parts, uint32_t n_parts, struct error *err);
/* A model from the bytes of one file, which are borrowed for the model's life. For tests. */
enum status gguf_model_open_bytes(const void *data, size_t bytes, struct model **model_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
