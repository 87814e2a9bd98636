#ifndef LONGSPAN_COORDINATOR_TOKENIZER_NFC_H
#define LONGSPAN_COORDINATOR_TOKENIZER_NFC_H

/* Unicode's normalization form C, which Qwen's tokenizers apply to texts. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* true: the text is in the form as it is (no character of it is U+0300 or higher). false: it may not be. */
bool nfc_quick(const uint8_t *text, size_t bytes);
/* Bytes that are not valid UTF-8 stay as they are, and nothing composes across them. text_out: malloc'd. ST_NO_MEMORY. */
enum status nfc_compose(const uint8_t *text, size_t bytes, uint8_t **text_out, size_t *bytes_out);

#ifdef __cplusplus
}
#endif
#endif
