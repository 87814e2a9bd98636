#ifndef LONGSPAN_COORDINATOR_GATEWAY_REPLY_H
#define LONGSPAN_COORDINATOR_GATEWAY_REPLY_H

/*
 * Answers in OpenAI's shapes: errors, whole answers, chunks of streams.
 */

#include "coordinator/gateway/choices.h"
#include "common/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* HTTP status for a refusal: 400, 404, 429, 503 or 500. */
int reply_http_status(enum status st);
/* {"error": {"message", "type", "param", "code"}} */
void reply_error(const struct refusal *r, struct text *out);

/* One choice under way. index, chat, tokenizer, model and fingerprint are set by the caller (kept), the rest is zeroed: how far a stream has told. */
struct reply {
    uint32_t index;
    bool chat;
    const struct tokenizer *tokenizer;
    const char *model, *fingerprint;
    struct reply_tools *tools; /* calls of tools found so far; NULL: none may come, or nothing was looked at */
    bool begun, echoed;
    size_t text, tokens; /* told */
    size_t chars;        /* of the text before tokens[tokens], the echo's too */
};

/* Frees what a choice under way holds. */
void reply_deinit(struct reply *r);
/* A whole choice, and the answer around all of them, which choices has joined by commas. id: the generation's. */
void reply_choice(struct reply *r, const struct generation *g, const struct generation_done *done, struct text *out);
void reply_whole(const struct reply *r, const char *id, int64_t created_s, const struct text *choices,
                 const struct choices_done *done, struct text *out);
/* The first chunk of a chat stream, which says whose words follow. */
void reply_chunk_role(struct reply *r, const struct generation *g, struct text *out);
/* What is new, as one chunk's JSON; false, and nothing is written, if nothing is. end: no more comes. */
bool reply_chunk(struct reply *r, const struct generation *g, bool end, struct text *out);
void reply_chunk_last(struct reply *r, const struct generation *g, const struct generation_done *done,
                      struct text *out);
/* stream_options.include_usage: the chunk after the last. */
void reply_chunk_usage(const struct reply *r, const char *id, int64_t created_s, const struct choices_done *done,
                       struct text *out);

/* A token as text: its bytes, or the name of a control token. JSON, in quotes. */
void reply_token(const struct tokenizer *t, int32_t id, struct text *out);

#ifdef __cplusplus
}
#endif
#endif
