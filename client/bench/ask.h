#ifndef LONGSPAN_CLIENT_BENCH_ASK_H
#define LONGSPAN_CLIENT_BENCH_ASK_H

/* What is asked of the server before the load: its model, and how its tokenizer sees our words. */

#include <stdbool.h>

#include "client/bench/http.h"
#include "client/bench/prompt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct asker {
    struct event_base *base;
    struct http_client *client;
    bool (*stop)(void);
};

/* The name of the first model in /v1/models; "" if the server does not say. ST_PEER, ST_IO: it cannot be reached (err). */
enum status ask_model(const struct asker *a, char *name_out, size_t bytes, struct error *err);
/*
 * Fills p->words with those that are one token each for /tokenize (vLLM's form or llama.cpp's), and p->overhead. If the server has no such
 * endpoint all words are taken; *exact_out says which. ST_PEER: the server's answers make no sense (err).
 */
enum status ask_words(const struct asker *a, struct prompts *p, bool *exact_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
