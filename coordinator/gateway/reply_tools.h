#ifndef LONGSPAN_COORDINATOR_GATEWAY_REPLY_TOOLS_H
#define LONGSPAN_COORDINATOR_GATEWAY_REPLY_TOOLS_H

/*
 * Content and calls of a choice whose answer may call tools, in OpenAI's shapes.
 */

#include "coordinator/gateway/generation.h"
#include "common/text.h"

#ifdef __cplusplus
extern "C" {
#endif

struct reply_tools;

/* deltas: of a stream; else the message is made as one. NULL: no memory. */
struct reply_tools *reply_tools_new(struct tools *tools, bool deltas);
void reply_tools_free(struct reply_tools *t);
/* Looks at what of the text is new; end: no more comes. -> there is something to write */
bool reply_tools_feed(struct reply_tools *t, const struct generation *g, bool end);
/* "content": ..., "tool_calls": [...], what there is of them since the last time. */
void reply_tools_write(struct reply_tools *t, struct text *out);
uint32_t reply_tools_calls(const struct reply_tools *t);

#ifdef __cplusplus
}
#endif
#endif
