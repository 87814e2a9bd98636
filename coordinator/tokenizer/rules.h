#ifndef LONGSPAN_COORDINATOR_TOKENIZER_RULES_H
#define LONGSPAN_COORDINATOR_TOKENIZER_RULES_H

/*
 * What a Hugging Face tokenizer.json says beside vocabulary and merges: the chain of pre-tokenizers, and everything else that would change
 * ids or text, which is either what Longspan does anyway or refused by name.
 */

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "coordinator/tokenizer/split.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Accepted: model BPE without dropout, byte_fallback, prefixes and suffixes; normalizer null; pre_tokenizer of Digits, Split, ByteLevel (last,
 * without add_prefix_space) and Sequence; post_processor null, ByteLevel, TemplateProcessing or Sequence of them (what it adds is
 * model_config.add_bos); decoder ByteLevel; added tokens without lstrip, rstrip, single_word. ST_UNSUPPORTED names anything else,
 * ST_CORRUPT a wrong type. *unk_out: model.unk_token is set.
 */
enum status rules_from_json(const char *text, size_t bytes, struct splitter **splitter_out, bool *unk_out,
                            struct error *err);

#ifdef __cplusplus
}
#endif
#endif
