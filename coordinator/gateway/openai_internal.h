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
    bool has_prompt, has_messages, has_tokens, has_top_logprobs, has_stream_options, has_parallel;
    enum { TOOLS_UNSAID, TOOLS_OFF, TOOLS_ON } tool_choice;
    size_t values_left; /* of values_max, for texts in the body that are JSON themselves */
};

/* Refusals: `field` must be `must`; `field` is not supported, and why ("": no more to say). */
enum status openai_wrong(struct openai_parse *p, const char *field, const char *must);
enum status openai_unsupported(struct openai_parse *p, const char *field, const char *why);

enum status openai_bool(struct openai_parse *p, const char *field, const json_t *v, bool *out);
enum status openai_int(struct openai_parse *p, const char *field, const json_t *v, int64_t *out);
enum status openai_number(struct openai_parse *p, const char *field, const json_t *v, double *out);

/* At most how many values JSON text holds: each but the first comes after a mark. */
size_t openai_values(const char *text, size_t bytes);

/* All fields of a body, and what they say together (openai_fields.c). */
enum status openai_read_fields(struct openai_parse *p, const json_t *root);

/* Readers of the fields prompt, tokens (openai_prompt.c); messages, chat_template_kwargs, tools, tool_choice, parallel_tool_calls (openai_chat.c). */
enum status openai_read_prompt(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_tokens(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_messages(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_template_args(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_tools(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_tool_choice(struct openai_parse *p, const char *field, const json_t *v);
enum status openai_read_parallel_tool_calls(struct openai_parse *p, const char *field, const json_t *v);
/* What they say together, when all are read: tools is NULL if none may be called. */
enum status openai_check_tools(struct openai_parse *p);

#ifdef __cplusplus
}
#endif
#endif
