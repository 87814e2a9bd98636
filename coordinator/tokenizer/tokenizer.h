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
struct json_t;

/* Builds from the model's vocabulary (borrowed until tokenizer_free). ST_UNSUPPORTED names a pre-tokenizer or normalizer that is not known. */
enum status tokenizer_new(const struct model *m, struct tokenizer **tokenizer_out, struct error *err);
void tokenizer_free(struct tokenizer *t);

/*
 * text: any bytes. A byte that is not valid UTF-8 counts as a character that is neither letter nor number nor space, and is encoded as the
 * byte that it is. A byte for which the vocabulary has no token is dropped, as the `tokenizers` package does; SmolLM2 lacks six control
 * characters and two lead bytes of planes that nothing is assigned in.
 * specials: control tokens in the text are recognised (templates); without it they are plain text (users' words). User-defined tokens are
 * recognised always. No bos is added: see model_config.add_bos.
 * ids_out: malloc'd, never NULL, the caller's to free. Time is O(n log n) for any input (with a pattern that is not GPT-2's, Llama 3's or
 * Qwen 2's: what PCRE2 makes of it); memory 32 bytes a byte of the longest piece. Thread-safe on one tokenizer.
 * ST_TOO_LARGE: more than ids_max ids (0: no limit), found out early; over 2 GiB; a pattern over PCRE2's limits.
 */
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool specials, size_t ids_max,
                             int32_t **ids_out, size_t *n_out);

/*
 * Bytes of one token as text (control tokens: their name if specials, else nothing). Borrowed from the tokenizer; never NULL; no bytes for
 * an id that is none.
 */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool specials, size_t *bytes_out);
bool tokenizer_is_control(const struct tokenizer *t, int32_t id);
uint32_t tokenizer_n_tokens(const struct tokenizer *t);

/*
 * Streaming decode: feed ids, get whole UTF-8 characters. Bytes of a character that is not complete are held back; bytes that can never be
 * part of one come out as U+FFFD. finish: what is held comes out as U+FFFD, and the stream starts anew. Control tokens leave no trace.
 * Output goes to a buffer owned by the decoder, ended by a NUL that is not counted, valid until the next call. new: NULL is no memory;
 * push and finish cannot fail.
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
 * Renders and encodes a chat: control tokens come from the template alone, so that nobody can inject a role; everything else is encoded as
 * the rendered text would be. ids_out as above, ends with the generation prompt if asked. The family is told by the model's template, which
 * is compared with known ones, whatever its layout:
 *   smollm2  ChatML; a system message of SmolLM's own if the first message is none
 *   llama3   bos, headers, trimmed contents; from 3.1 on a system block with the cutting knowledge date and, pinned, "26 Jul 2024"
 *   bytes    byte vocabularies: the contents with a line end between two; no roles, no generation prompt
 * ST_UNSUPPORTED (named): the model's template is of no known family; ST_INVALID: no message, or a role other than system, user and
 * assistant; ST_TOO_LARGE: over ids_max.
 */
enum status chat_encode(const struct tokenizer *t, const struct chat_message *messages, size_t n_messages,
                        bool generation_prompt, size_t ids_max, int32_t **ids_out, size_t *n_out, struct error *err);

/*
 * The same for a chat as JSON (jansson's json_t), as the OpenAI API spells it. What a template does with any of it is the template's affair:
 * members of a message beside role and content (tool_calls, tool_call_id, name, reasoning_content ...) are passed on as they are.
 */
struct chat_input {
    const struct json_t
        *messages; /* array of objects; role: system, developer, user, assistant, tool, function or ipython */
    const struct json_t *tools;  /* array of objects ({"type": "function", "function": {...}}), or NULL: none */
    const struct json_t *kwargs; /* object: further variables of the template (chat_template_kwargs), or NULL */
    bool generation_prompt;
};

/*
 * in: borrowed for the call; not changed, so one tree may serve several threads. A string of it never becomes a control token. Errors as
 * chat_encode; also ST_INVALID with the template's own words (raise_exception), with the field that is of a wrong type, with a variable of
 * kwargs that may not be set (messages, tools, add_generation_prompt, bos_token, eos_token); ST_UNSUPPORTED: tools for a template that
 * takes none.
 */
enum status chat_encode_json(const struct tokenizer *t, const struct chat_input *in, size_t ids_max, int32_t **ids_out,
                             size_t *n_out, struct error *err);
/* The template reads the variable of this name ("tools", "enable_thinking"). */
bool chat_reads(const struct tokenizer *t, const char *variable);

/* "smollm2", "llama3", "bytes": the family, or NULL if none is known (then chat_encode is refused). */
const char *chat_family(const struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
