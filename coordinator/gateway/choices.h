#ifndef LONGSPAN_COORDINATOR_GATEWAY_CHOICES_H
#define LONGSPAN_COORDINATOR_GATEWAY_CHOICES_H

/*
 * One request of n choices: n generations of one prompt. The first runs alone until its first token, when its prompt's blocks are there to be hit; then the
 * others are submitted. If one fails, all end. Loop thread.
 */

#include "coordinator/gateway/generation.h"

#ifdef __cplusplus
extern "C" {
#endif

struct choices;

/* All of them together: tokens of the prompt once, those generated summed; times of the first choice. */
struct choices_done {
    const struct refusal *refusal; /* ST_OK: all ran to their ends */
    uint32_t prompt_tokens, cached_tokens, completion_tokens, recomputed_tokens;
    uint64_t kv_bytes_read, kv_bytes_dense; /* by attention: as it was, and with nothing shared or left out */
    int64_t queued_ms, prefill_ms, decode_ms, total_ms;
};

/* A callback may call choices_cancel. g->index says which choice it is. */
struct choices_events {
    void (*output)(void *user, struct generation *g);
    void (*logits)(void *user, struct generation *g, const struct result_row *row); /* may be NULL */
    /* This choice has run to its end. */
    void (*done)(void *user, struct generation *g, const struct generation_done *done);
    /* The last; the choices are gone after it. */
    void (*end)(void *user, const struct choices_done *done);
};

/* As generation_start, whose events and user are replaced by these. events: kept. */
enum status choices_start(struct generation_host *host, const struct generation_start *start,
                          const struct choices_events *events, void *user, struct choices **choices_out,
                          struct refusal *r);
/* Of the request: "chatcmpl-...". Before the first event. */
const char *choices_id(const struct choices *c);
/* Are they under way, and wanted as a stream? */
bool choices_streams(const struct choices *c);
/* No more events, and all they held is freed. */
void choices_cancel(struct choices *c);

#ifdef __cplusplus
}
#endif
#endif
