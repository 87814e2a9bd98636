#ifndef LONGSPAN_COORDINATOR_TOKENIZER_ADDED_H
#define LONGSPAN_COORDINATOR_TOKENIZER_ADDED_H

/*
 * Added tokens: those that are recognised in raw text before anything else, the longest at the leftmost place. Control tokens only where
 * the caller trusts the text; user-defined ones (runs of spaces, markup) always.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct added;

/* v is borrowed for the call. ST_NO_MEMORY. */
enum status added_new(const struct model_vocab *v, struct added **added_out);
void added_free(struct added *a);

/* The first added token at or after p: its id and where it begins and ends; -1: none. Time O(n) times the longest added token. */
int32_t added_find(const struct added *a, const uint8_t *p, const uint8_t *end, bool controls,
                   const uint8_t **start_out, const uint8_t **end_out);

#ifdef __cplusplus
}
#endif
#endif
