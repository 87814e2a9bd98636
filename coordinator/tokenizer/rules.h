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

/* Where a space is put before a segment: what is between two added tokens. */
enum space_prefix {
    PREFIX_NONE,
    PREFIX_ALWAYS,
    PREFIX_UNLESS_SPACE,      /* but before one that begins with a space */
    PREFIX_FIRST_UNLESS_SPACE /* likewise, and only at the text's very start */
};

struct token_rules {
    struct splitter *splitter; /* byte-level BPE; NULL: the fields of SentencePiece count */
    bool nfc;                  /* segments are normalised to NFC first */
    bool unk;                  /* model.unk_token is set */
    /* of SentencePiece: spaces become U+2581 */
    enum space_prefix prefix;
    bool split_spaces; /* pieces begin at spaces */
    bool strip_first;  /* decoding drops a space at the text's start */
};

/*
 * Accepted: model BPE without dropout, prefixes and suffixes; post_processor null, ByteLevel, TemplateProcessing or Sequence of them (what it
 * adds is model_config.add_bos); added tokens without lstrip, rstrip, single_word. Added tokens are looked for as they stand, also where
 * the file says `normalized`.
 * - byte-level: normalizer null or NFC; pre_tokenizer of Digits, Split, ByteLevel (last, without add_prefix_space) and Sequence; decoder
 *   ByteLevel.
 * - model.byte_fallback (SentencePiece's BPE): normalizer of Prepend (of U+2581) and Replace (of " " by U+2581) and no pre_tokenizer, or no
 *   normalizer and Metaspace; decoder of Replace, ByteFallback, Fuse, Strip (of one space at the start).
 * ST_UNSUPPORTED names anything else, ST_CORRUPT a wrong type. rules_out->splitter is the caller's.
 */
enum status rules_from_json(const char *text, size_t bytes, struct token_rules *rules_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
