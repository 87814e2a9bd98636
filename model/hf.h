#ifndef LONGSPAN_MODEL_HF_H
#define LONGSPAN_MODEL_HF_H

/* The JSON files of a Hugging Face directory, from memory. Every key that would change the result and is not implemented is refused. */

#include "model/source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* config.json of LlamaForCausalLM: everything in *c but name; eos ids too. quantization_config is for quantized_config_parse. */
enum status hf_config_parse(const char *text, size_t bytes, const char *where, struct model_config *c,
                            struct error *err);
/* generation_config.json: its end-of-generation ids, if it names any, take the place of the configuration's. */
enum status hf_generation_parse(const char *text, size_t bytes, const char *where, struct model_config *c,
                                struct error *err);
/*
 * tokenizer.json: m->vocab's tokens, merges and ignore_merges, and whether prompts start with bos (config.add_bos, config.bos).
 * config.n_vocab is set. Everything is copied.
 */
enum status hf_tokenizer_parse(struct model *m, const char *text, size_t bytes, const char *where, struct error *err);
/* tokenizer_config.json: m->vocab.chat_template, if it holds one. */
enum status hf_tokenizer_config_parse(struct model *m, const char *text, size_t bytes, const char *where,
                                      struct error *err);

#ifdef __cplusplus
}
#endif
#endif
