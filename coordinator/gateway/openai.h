#ifndef LONGSPAN_COORDINATOR_GATEWAY_OPENAI_H
#define LONGSPAN_COORDINATOR_GATEWAY_OPENAI_H

/*
 * Request bodies of the OpenAI-compatible API. What is not known or cannot be honoured is refused, and the field is named; null counts
 * as absent; values that ask for what happens anyway (n: 1, presence_penalty: 0) are accepted.
 */

#include "coordinator/gateway/want.h"

#ifdef __cplusplus
extern "C" {
#endif

enum openai_kind { OPENAI_COMPLETION, OPENAI_CHAT, OPENAI_TOKENIZE, OPENAI_DETOKENIZE };

/*
 * body: any bytes; parsed into w, whose source becomes the parsed tree (the old source stays the caller's). Refusals: ST_INVALID, ST_UNSUPPORTED.
 * DETOKENIZE: the ids are w->tokens. values_max: bodies with more numbers, strings, lists and objects are refused before a tree is made of them, which
 * takes some 40 to 130 bytes a value: more than the positions served can never be of use.
 */
enum status openai_parse(enum openai_kind kind, const char *body, size_t bytes, size_t values_max, struct want *w,
                         struct refusal *r);

/* A body on its way to a generation: what generation_start's source is; the parsers free it. */
struct openai_body {
    char *data;
    size_t bytes, values_max;
};
struct openai_body *openai_body_new(size_t bytes, size_t values_max); /* NULL: out of memory */
void openai_body_free(void *body);
/* generation_parse functions: w->source is a struct openai_body. */
enum status openai_parse_completion(struct want *w, struct refusal *r);
enum status openai_parse_chat(struct want *w, struct refusal *r);
enum status openai_parse_tokenize(struct want *w, struct refusal *r);
enum status openai_parse_detokenize(struct want *w, struct refusal *r);

#ifdef __cplusplus
}
#endif
#endif
