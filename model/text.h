#ifndef LONGSPAN_MODEL_TEXT_H
#define LONGSPAN_MODEL_TEXT_H

/* Small checks on vocabulary texts. */

#include <stdbool.h>
#include <stddef.h>

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_TOKEN_BYTES_MAX = 1 << 16 };

/* Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool text_is_utf8(const char *text, size_t bytes);
/* "a b" -> a, b at the first space that is not the first byte; both sides must be there. The merge points into text. */
bool text_split_merge(const char *text, size_t bytes, struct model_merge *merge_out);

#ifdef __cplusplus
}
#endif
#endif
