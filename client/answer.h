#ifndef LONGSPAN_CLIENT_ANSWER_H
#define LONGSPAN_CLIENT_ANSWER_H

/* One generation, shown to a person or gathered for --json. */

#include <stdbool.h>

#include "client/settings.h"
#include "common/error.h"
#include "proto/longspan.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Are temperature, top_p and seed what they must be? ST_INVALID; err names the flag. */
enum status answer_check(const struct settings *s, struct error *err);

/* Fills in what settings say of sampling, lengths and progress. Errors as answer_check's. */
enum status answer_sampling(const struct settings *s, Longspan__V1__GenerateRequest *q, struct error *err);

/*
 * Asks the cluster at address for an answer to prompt, as settings say (raw, max_tokens, score, json ...), and prints it on standard output: text as it comes, or
 * one JSON object at the end. stop: looked at often; true cancels. ST_INVALID: a setting (err).
 */
enum status answer_print(const char *address, const struct settings *s, const char *prompt, bool (*stop)(void),
                         struct error *err);

#ifdef __cplusplus
}
#endif
#endif
