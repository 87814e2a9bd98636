#ifndef LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_REGEX_H
#define LONGSPAN_COORDINATOR_TOKENIZER_SPLIT_REGEX_H

/*
 * Patterns of tokenizer.json run by PCRE2. They are written for Oniguruma (as Ruby spells patterns); what means something else in PCRE2 is
 * translated or refused by name.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct split_regex;
struct split_regex_run;

enum status split_regex_new(const char *pattern, size_t bytes, bool literal, struct split_regex **regex_out,
                            struct error *err);
void split_regex_free(struct split_regex *r);

/* What one thread needs to match. NULL: no memory. */
struct split_regex_run *split_regex_run_new(const struct split_regex *r);
void split_regex_run_free(struct split_regex_run *run);

/*
 * The first match in valid UTF-8 at or after `from`: *start_out < *end_out. ST_NOT_FOUND: none. ST_TOO_LARGE: PCRE2's limits were reached.
 */
enum status split_regex_next(struct split_regex_run *run, const uint8_t *text, size_t bytes, size_t from,
                             size_t *start_out, size_t *end_out);

#ifdef __cplusplus
}
#endif
#endif
