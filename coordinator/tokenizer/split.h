#ifndef LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_H
#define LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_H

/*
 * The pre-tokenizer: cuts text into the pieces that merges never cross. A chain of steps, each cutting the pieces of the one before, as in
 * the `tokenizers` package. A byte that is not valid UTF-8 counts as a character that is neither letter nor number nor space (U+FFFD).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPLIT_STEPS_MAX = 8 };

struct splitter;

/* GGUF names: "smollm", "llama-bpe" (also "llama3", "llama-v3"), "gpt-2" (also "gpt2"), "qwen2". ST_UNSUPPORTED names any other. */
enum status splitter_named(const char *pre, struct splitter **splitter_out, struct error *err);
/* An empty chain: the text is one piece. Steps are then added in order. NULL: no memory. */
struct splitter *splitter_new(void);
void splitter_free(struct splitter *s);

enum status splitter_add_digits(struct splitter *s, bool individual, struct error *err);
/* The pattern of GPT-2, which the ByteLevel step of the `tokenizers` package applies. */
enum status splitter_add_gpt2(struct splitter *s, struct error *err);
/*
 * A pattern in the dialect of the `tokenizers` package (Oniguruma, UTF-8), or a literal text. keep_gaps: what the pattern does not match is
 * a piece too, otherwise it is dropped. The patterns of GPT-2, Llama 3 and Qwen 2 run as code, others by PCRE2 (then time is what the
 * pattern makes of it, within PCRE2's limits). ST_UNSUPPORTED names what cannot be translated or compiled.
 */
enum status splitter_add_pattern(struct splitter *s, const char *pattern, size_t bytes, bool literal, bool keep_gaps,
                                 struct error *err);

/* Receives one piece (bytes > 0). Anything but ST_OK ends the run and is returned by it. */
typedef enum status split_piece_fn(void *arg, const uint8_t *piece, size_t bytes);

/*
 * Cuts text; pieces come in order. Thread-safe on one splitter. Errors: what fn returns; ST_NO_MEMORY; ST_TOO_LARGE: PCRE2 gave up on the
 * text (match limit, stack).
 */
enum status splitter_run(const struct splitter *s, const uint8_t *text, size_t bytes, split_piece_fn *fn, void *arg);

#ifdef __cplusplus
}
#endif
#endif
