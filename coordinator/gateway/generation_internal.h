#ifndef LONGSPAN_COORDINATOR_GATEWAY_GENERATION_INTERNAL_H
#define LONGSPAN_COORDINATOR_GATEWAY_GENERATION_INTERNAL_H

/*
 * Shared by generation_begin.c (parse, tokenize, submit) and generation.c (what the scheduler says, and the end).
 */

#include "coordinator/gateway/edits.h"
#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/grammar_cache.h"

enum stage { STAGE_PREPARING, STAGE_RUNNING, STAGE_ENDED };

struct generation_private {
    struct generation_host *host;
    struct generation *next, **link;           /* in host->first while open */
    struct generation *news_next, **news_link; /* in host->news; the link is NULL if it is not there */
    const struct generation_events *events;
    void *user;
    generation_parse *parse;
    struct refusal refusal;
    struct {
        struct refusal refusal;
        int32_t *prompt;
        size_t n_prompt;
        struct grammar *grammar; /* NULL: none */
        const struct vocabulary *vocabulary;
        struct tools *tools; /* NULL: none */
    } prepared;              /* as want: the helper's own until it is done */
    enum stage stage;
    bool held;     /* a post or the helper still has it */
    bool silent;   /* cancelled: no more events */
    uint32_t busy; /* callbacks on the stack: freed by the outermost */
    bool gone;     /* to be freed */
    bool named;    /* whoever asked can take it up again */
    size_t source_bytes;
    bool has_seed;
    uint64_t seed;
    const struct generation_told *told; /* [n_told] by choice */
    uint32_t n_told;
    int32_t *told_ids; /* while it is submitted */
    struct token_stream *stream;
    struct stop *stop;
    bool stop_found, complete; /* complete: the grammar's text is whole */
    struct edits *edits;       /* of logits; NULL: none */
    struct sched_request *request;
    int64_t start_us, first_us, last_us;
};

extern const struct sched_events generation_sched_events;

enum generation_outcome generation_outcome_of(const struct refusal *r);
/* Around everything that may call back: the outermost exit frees what has ended. */
void generation_enter(struct generation *g);
void generation_exit(struct generation *g);
/* Tells the user that it is over, and leaves the host's list. sched: NULL if it never ran. */
void generation_finish(struct generation *g, const struct sched_done *sched, bool stopped);
/* Takes over what was told before of this choice; nothing was generated yet. ST_CORRUPT: these tokens cannot have come so. */
enum status generation_replay(struct generation *g, const struct result_row *rows, size_t n, struct refusal *r);
/* There is something to tell of one that runs. */
/* When one that found no room may come again, in seconds. */
uint32_t generation_retry_s(const struct generation_host *host);
void generation_tell(struct generation *g);
/* Accepts half-built ones. Otherwise by generation_exit only. */
void generation_free(struct generation *g);

#endif
