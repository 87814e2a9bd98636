#ifndef LONGSPAN_COORDINATOR_TOKENIZER_TOKENIZER_H
#define LONGSPAN_COORDINATOR_TOKENIZER_TOKENIZER_H

/*
 * Text to tokens and back, and chats to text. Byte-level BPE with the model's own pre-tokenizer rule; bytes for models over bytes. Exact
 * against the `tokenizers` package.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tokenizer;

/* Builds from the model's vocabulary (borrowed until tokenizer_free). ST_UNSUPPORTED names a pre-tokenizer or normalizer that is not known. */
enum status tokenizer_new(const struct model *m, struct tokenizer **tokenizer_out, struct error *err);
void tokenizer_free(struct tokenizer *t);

/*
 * text: any bytes; parts that are not valid UTF-8 are encoded byte by byte. specials: control tokens in the text are recognised (templates); without it they
 * are plain text (users' words). ids_out: malloc'd, the caller's to free. Time is O(n log n) for any input. Thread-safe on one tokenizer.
 * ST_TOO_LARGE: more than ids_max ids (0: no limit); stops early.
 */
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool specials, size_t ids_max,
                             int32_t **ids_out, size_t *n_out);

/* Bytes of one token as text (control tokens: their name if specials, else nothing). Borrowed from the tokenizer. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool specials, size_t *bytes_out);
bool tokenizer_is_control(const struct tokenizer *t, int32_t id);
uint32_t tokenizer_n_tokens(const struct tokenizer *t);

/*
 * Streaming decode: feed ids, get whole UTF-8 characters. Bytes of a character that is not complete are held back; bytes that can never be
 * part of one come out as U+FFFD. finish: what is held comes out as U+FFFD. Output goes to a buffer owned by the decoder, valid until the next call.
 */
struct token_stream;
struct token_stream *token_stream_new(const struct tokenizer *t);
void token_stream_free(struct token_stream *s);
const char *token_stream_push(struct token_stream *s, int32_t id, size_t *bytes_out);
const char *token_stream_finish(struct token_stream *s, size_t *bytes_out);

/* ---- chat templates (coordinator/tokenizer/chat.c) ---- */

struct chat_message {
    const char *role; /* system, user, assistant */
    const char *content;
    size_t content_bytes;
};

/*
 * Renders and encodes a chat: template text is encoded with specials, users' words without, so that nobody can inject a role. ids_out as
 * above, ends with the generation prompt if asked. ST_UNSUPPORTED (named): the model's template is of no known family; ST_INVALID: a role
 * or an order that the template refuses.
 */
enum status chat_encode(const struct tokenizer *t, const struct chat_message *messages, size_t n_messages,
                        bool generation_prompt, size_t ids_max, int32_t **ids_out, size_t *n_out, struct error *err);
/* "smollm2", "llama3", "bytes": the family, or NULL if none is known (then chat_encode is refused). */
const char *chat_family(const struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
