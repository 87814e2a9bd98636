#ifndef LONGSPAN_COORDINATOR_TOKENIZER_BPE_H
#define LONGSPAN_COORDINATOR_TOKENIZER_BPE_H

/*
 * Byte-pair merges within one piece: of all adjacent pairs that have a merge, the one of lowest rank is joined, leftmost first, until none
 * is left. Exactly as the `tokenizers` package does it, its corners included: a byte without a token of its own is dropped, and a pair that
 * is listed twice has the later rank.
 */

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BPE_TOKEN_BYTES_MAX = 65536, BPE_SCORED_BYTES_MAX = 256 };

struct bpe;

/*
 * v: kind BPE or SENTENCEPIECE, borrowed for the call. seed: of the hash tables; results do not depend on it. ST_CORRUPT: a merge of or to a token that is
 * not there, a token longer than BPE_TOKEN_BYTES_MAX.
 * Merges that would make a control token are left out: words must never turn into one.
 *
 * SENTENCEPIECE: symbols are characters at first, U+2581 stands for a space; one without a token is its bytes' tokens. With scores, every pair
 * of tokens that makes a token joins, that of the highest score first; of one score, the leftmost. ST_UNSUPPORTED: not every byte has a
 * token, or, with scores, a token is longer than BPE_SCORED_BYTES_MAX.
 */
enum status bpe_new(const struct model_vocab *v, uint64_t seed, struct bpe **bpe_out, struct error *err);
void bpe_free(struct bpe *b);

/* "<0x0A>" is the byte 10; -1: it is no such name. */
int bpe_byte_of_name(const char *text, size_t bytes);
/* What a token's text stands for: the bytes behind the byte-level alphabet, or its own if a character is not of the alphabet. */
size_t bpe_token_bytes(const char *text, size_t bytes, uint8_t *out);
/* Bytes that no token stands for, which encoding drops: 0 for most models, 21 for SmolLM2 (13 of them in no valid UTF-8). */
uint32_t bpe_missing_bytes(const struct bpe *b);

/* Ids as they are made, and the room to work in. Zero-initialised with ids_max set; one thread. */
struct bpe_run {
    int32_t *ids;
    size_t n_ids, cap_ids;
    size_t ids_max; /* 0: no limit */
    void *room;     /* of long pieces */
    size_t room_symbols;
};

/* Frees what the run holds, ids included. */
void bpe_run_deinit(struct bpe_run *run);
/* Room for n ids (or ids_max, if that is less) at least. ST_NO_MEMORY. */
enum status bpe_run_reserve(struct bpe_run *run, size_t n);
/* Hands the ids out, malloc'd, never NULL; the run was reserved for. */
void bpe_run_take(struct bpe_run *run, int32_t **ids_out, size_t *n_out);
/* Appends one id. ST_TOO_LARGE: over ids_max; ST_NO_MEMORY. */
enum status bpe_run_add(struct bpe_run *run, int32_t id);

/*
 * Appends the ids of a piece of at most 2^31 - 1 bytes. Time O(n log n), memory 32 bytes a byte of the longest piece; a piece that must go
 * over ids_max (it is longer than that many of the longest tokens) is refused before.
 */
enum status bpe_encode(const struct bpe *b, struct bpe_run *run, const uint8_t *piece, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
