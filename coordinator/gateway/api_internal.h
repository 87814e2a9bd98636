#ifndef LONGSPAN_COORDINATOR_GATEWAY_API_INTERNAL_H
#define LONGSPAN_COORDINATOR_GATEWAY_API_INTERNAL_H

#include "coordinator/gateway/api.h"

struct api {
    struct api_config config;
    struct http_server *server;
    struct completion *named; /* under way, with a name: api_generate.c */
    bool closing;
};

/* Values that a body may have: every token of the longest prompt, and room for the rest. */
static inline size_t api_values_max(const struct api *a)
{
    return (size_t)a->config.host->positions_max + (64 << 10);
}

/* api_generate.c: handlers of /v1/completions and /v1/chat/completions */
void api_completions(void *ctx, struct http_exchange *x);
void api_chat(void *ctx, struct http_exchange *x);
/* Ends those with a name, with or without a client. */
void api_named_end(struct api *a);
/* api_tokens.c: handlers of /tokenize and /detokenize */
void api_tokenize(void *ctx, struct http_exchange *x);
void api_detokenize(void *ctx, struct http_exchange *x);

#endif
