#ifndef LONGSPAN_COORDINATOR_GATEWAY_TOOL_PARSER_H
#define LONGSPAN_COORDINATOR_GATEWAY_TOOL_PARSER_H

/*
 * Finds calls of tools in an answer that comes in pieces; the result does not depend on how it is cut. What is no call of a tool that there is, is content,
 * as it was written. White space around calls, and their marks, are neither.
 *
 * A call is one from where its arguments begin, if its name was before them; else once its object is whole. What follows in arguments that break off is told
 * as far as it was JSON.
 */

#include "coordinator/gateway/tools.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Calls count from 0; each is named before its arguments, and those of one come before the next. */
struct tool_sink {
    void (*content)(void *ctx, const char *data, size_t bytes);
    void (*call)(void *ctx, uint32_t index, const char *name, size_t bytes);
    void (*arguments)(void *ctx, const char *data, size_t bytes);
};

struct tool_parser;
/* tools: a reference is taken. sink: kept. NULL: no memory. */
struct tool_parser *tool_parser_new(struct tools *tools, const struct tool_sink *sink, void *ctx);
void tool_parser_free(struct tool_parser *p);
void tool_parser_push(struct tool_parser *p, const char *data, size_t bytes);
/* The control token that is the mark came here. */
void tool_parser_mark(struct tool_parser *p);
/* The text ends. false: memory ran out on the way, and what was told lacks something. */
bool tool_parser_finish(struct tool_parser *p);
uint32_t tool_parser_calls(const struct tool_parser *p);

#ifdef __cplusplus
}
#endif
#endif
