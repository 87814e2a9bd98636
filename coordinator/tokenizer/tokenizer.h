#ifndef LONGSPAN_COORDINATOR_TOKENIZER_TOKENIZER_H
#define LONGSPAN_COORDINATOR_TOKENIZER_TOKENIZER_H

/*
 * Text to tokens and back, and chats to text. Byte-level BPE with the model's own pre-tokenizer rule, SentencePiece's BPE with its spaces and
 * byte fallback; bytes for models over bytes. Exact against the `tokenizers` package.
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
/* How much of a whole text, joined of its tokens' bytes, decoding drops at its start: 1 of SentencePiece's that begins with a space, else 0. */
size_t tokenizer_start_dropped(const struct tokenizer *t, const char *text, size_t bytes);
bool tokenizer_is_control(const struct tokenizer *t, int32_t id);
/* The control token of this name; -1: there is none. */
int32_t tokenizer_control(const struct tokenizer *t, const char *name);
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
/*
 * The text that is streamed goes on after these ids. SentencePiece's vocabularies put a space before a text, which decoding drops: from the
 * whole text's start, so not from that of an answer to a prompt. Before the first push.
 */
void token_stream_follow(struct token_stream *s, const int32_t *ids, size_t n);
const char *token_stream_push(struct token_stream *s, int32_t id, size_t *bytes_out);
const char *token_stream_finish(struct token_stream *s, size_t *bytes_out);

/* ---- chat templates (coordinator/tokenizer/chat.c) ---- */

/*
 * What the model's template may call strftime_now for. "start": the moment of this call, in UTC, for as long as the tokenizer lives, so that
 * a new day does not change the first tokens of every chat and empty the prefix cache; "YYYY-MM-DD": midnight of that day; "none": there
 * is no strftime_now, and templates fall back to a date of their own. The default is "none". Before the tokenizer is shared. ST_INVALID.
 */
enum status tokenizer_set_date(struct tokenizer *t, const char *date, struct error *err);

enum { CHAT_TEMPLATE_BYTES_MAX = 1 << 20 };
/* The template to render chats with instead of the model's own. Before the tokenizer is shared. Errors as jinja_template_new's, naming chat-template. */
enum status tokenizer_set_template(struct tokenizer *t, const char *text, size_t bytes, struct error *err);
/* The text of the template that chats are rendered with, NUL-terminated; NULL: none. */
const char *chat_template(const struct tokenizer *t);

/* NULL: chats can be rendered. Else why not, in words: the model has no template, or it holds what is not supported (named, with its line). */
const char *chat_refusal(const struct tokenizer *t);
/* The template reads the variable of this name ("tools", "enable_thinking"). */
bool chat_reads(const struct tokenizer *t, const char *variable);

/*
 * A chat as JSON (jansson's json_t), as the OpenAI API spells it. What a template does with any of it is the template's affair: members of
 * a message beside role and content (tool_calls, tool_call_id, name, reasoning_content ...) are passed on as they are.
 */
struct chat_input {
    const struct json_t
        *messages; /* array of objects; role: system, developer, user, assistant, tool, function or ipython */
    const struct json_t *tools;  /* array of objects ({"type": "function", "function": {...}}), or NULL: none */
    const struct json_t *kwargs; /* object: further variables of the template (chat_template_kwargs), or NULL */
    bool generation_prompt;
};

/*
 * Renders a chat with the model's own template (coordinator/tokenizer/jinja) and encodes it. Control tokens come from the template's own
 * words, bos_token and eos_token alone: no string of the input, however it is cut or joined, becomes one, so nobody can inject a role.
 * Everything else is encoded as the rendered text would be. For vocabularies of bytes: the contents with a line end between two.
 *
 * in: borrowed for the call; not changed, so one tree may serve several threads. ids_out as tokenizer_encode.
 * ST_UNSUPPORTED: chat_refusal, or tools for a template that reads none; ST_INVALID: the template's own words (raise_exception), what the
 * template cannot do with this input, no message, a field of a wrong type, a role that is not known, a variable in kwargs that may not be
 * set (messages, tools, documents, add_generation_prompt, bos_token, eos_token); ST_TOO_LARGE: over ids_max.
 */
enum status chat_encode_json(const struct tokenizer *t, const struct chat_input *in, size_t ids_max, int32_t **ids_out,
                             size_t *n_out, struct error *err);

/* The rendered text alone: malloc'd, with a NUL after it. */
enum status chat_render_json(const struct tokenizer *t, const struct chat_input *in, char **text_out, size_t *bytes_out,
                             struct error *err);

#ifdef __cplusplus
}
#endif
#endif
