#ifndef LONGSPAN_MODEL_GGUF_VOCAB_H
#define LONGSPAN_MODEL_GGUF_VOCAB_H

/* The vocabulary in a GGUF file's tokenizer keys: byte-level BPE. */

#include "model/gguf.h"
#include "model/source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills m->vocab (texts point into the file), bos, add_bos and eos. config.n_vocab is the number of tokens. */
enum status gguf_vocab_fill(struct model *m, const struct gguf *g, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
