#ifndef LONGSPAN_COORDINATOR_GATEWAY_PAGE_H
#define LONGSPAN_COORDINATOR_GATEWAY_PAGE_H

/*
 * The live page at / (page/: plain files, built into the program) and what it shows: /status.
 */

#include "coordinator/gateway.h"
#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/http.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Handlers of routes: "/", "/live.css", "/live.js"; ctx is not used. */
void page_index(void *ctx, struct http_exchange *x);
void page_style(void *ctx, struct http_exchange *x);
void page_script(void *ctx, struct http_exchange *x);

/* The cluster as JSON, with the names of `longspan status --json`. Loop thread. */
void page_status(const struct gateway_config *config, const struct generation_host *host, bool ready, struct text *out);

#ifdef __cplusplus
}
#endif
#endif
