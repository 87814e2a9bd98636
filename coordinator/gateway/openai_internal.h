#ifndef LONGSPAN_COORDINATOR_GATEWAY_OPENAI_INTERNAL_H
#define LONGSPAN_COORDINATOR_GATEWAY_OPENAI_INTERNAL_H

/* What the readers of request bodies share (openai*.c). */

#include <jansson.h>

#include "coordinator/gateway/openai.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One body being read. Fields that others depend on are checked when all have been read. */
struct openai_parse {
    struct want *w;
    struct refusal *r;
    enum openai_kind kind;
    bool has_prompt, has_messages, has_tokens, has_top_logprobs, has_stream_options;
};

/* Refusals: `field` must be `must`; `field` is not supported, and why ("": no more to say). */
enum status openai_wrong(struct openai_parse *p, const char *field, const char *must);
enum status openai_unsupported(struct openai_parse *p, const char *field, const char *why);

enum status openai_bool(struct openai_parse *p, const char *field, const json_t *v, bool *out);
enum status openai_int(struct openai_parse *p, const char *field, const json_t *v, int64_t *out);
enum status openai_number(struct openai_parse *p, const char *field, const json_t *v, double *out);

/* Readers of the fields prompt, tokens and messages. */
enum status openai_read_prompt(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_tokens(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_messages(struct openai_parse *p, const char *field, const json_t *v);

#ifdef __cplusplus
}
#endif
#endif
