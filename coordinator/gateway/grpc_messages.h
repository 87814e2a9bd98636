#ifndef LONGSPAN_COORDINATOR_GATEWAY_GRPC_MESSAGES_H
#define LONGSPAN_COORDINATOR_GATEWAY_GRPC_MESSAGES_H

/*
 * GenerateRequest to want, generations to GenerateResponse, and the state of things to StatusResponse.
 */

#include "coordinator/gateway.h"
#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/resume.h"
#include "common/text.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A message as it came: what a generation's source is. */
struct grpc_source {
    size_t bytes;
    uint8_t data[];
};

/* generation_parse: w->source is a malloc'd struct grpc_source. Refuses unknown fields, text that is not UTF-8 or holds NUL, values out of range. */
enum status grpc_parse(struct want *w, struct refusal *r);

enum { GRPC_PLACE_MAX = 4096 };

/* What a GenerateRequest says of being taken up again. */
struct grpc_again {
    char key[RESUME_KEY_MAX + 1];  /* not looked at: resumes_name does */
    char from[GRPC_PLACE_MAX + 1]; /* "": from the beginning */
    bool abandon;                  /* it is to end */
    struct digest asked;           /* all else that it says, the map in whatever order */
};
/*
 * *again_out: malloc'd; untouched if there is no key. Any thread; anything may stand in source, and what else is wrong with it is for grpc_parse to say.
 * ST_INVALID: key or place are no texts, too long, or there is a place and no key.
 */
enum status grpc_read_again(const struct grpc_source *source, struct grpc_again **again_out, struct refusal *r);

enum rpc_code grpc_code(enum status st);

/* How much of a generation has been told. Zeroed at first. */
struct grpc_told {
    bool id, echoed;
    size_t text, tokens, scores;
    uint32_t progress;
};

/* Appends one GenerateResponse with what is new to out (empty before); false: nothing is new enough to tell. all: tell also what would wait for company. */
bool grpc_write_output(struct grpc_told *told, const struct generation *g, const struct tokenizer *t, bool all,
                       struct text *out);
void grpc_write_logits(const struct result_row *row, struct text *out);
/* Adds its place to a GenerateResponse in out. */
void grpc_write_place(const struct resume *place, const char *request, struct text *out);
void grpc_write_done(struct grpc_told *told, const struct generation *g, const struct generation_done *done,
                     const struct gateway_config *config, struct text *out);
void grpc_write_status(const struct gateway_config *config, const struct generation_host *host, bool ready,
                       struct text *out);
/* A DrainResponse with how the worker is, and a RebalanceResponse. */
void grpc_write_drain(const struct gateway_config *config, uint16_t worker, struct text *out);
void grpc_write_rebalance(const struct gateway_config *config, struct text *out);

#ifdef __cplusplus
}
#endif
#endif
