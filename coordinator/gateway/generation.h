#ifndef LONGSPAN_COORDINATOR_GATEWAY_GENERATION_H
#define LONGSPAN_COORDINATOR_GATEWAY_GENERATION_H

/*
 * One request on its way, shared by HTTP and gRPC: parse and tokenize (large ones beside the loop), submit, watch stop strings, gather text,
 * tokens and log-probabilities, measure. All on the loop's thread but the parsing.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/loop.h"
#include "common/metrics.h"
#include "coordinator/gateway/helper.h"
#include "coordinator/gateway/tools.h"
#include "coordinator/gateway/want.h"
#include "coordinator/sched.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct generation;

enum { GENERATION_MARKS_MAX = 16 };
enum { GENERATION_INLINE_BYTES_MAX = 16 << 10 }; /* a request of more is parsed and tokenized beside the loop */

/* Shared by all generations; plain data, filled by the gateway. */
struct generation_host {
    struct loop *loop;
    struct helper *helper;
    struct sched *sched;
    const struct model *model;
    const struct tokenizer *tokenizer;
    struct grammar_cache *grammars; /* the helper's */
    const char *model_name;
    uint32_t positions_max;
    bool selects;                /* there is a selector: a request may name its density, */
    bool windowed;               /* but for one that has a window instead */
    uint32_t max_tokens_default; /* of a request that names none; 0: the rest of the context */
    uint32_t requests_max;       /* open at once */
    void (*kick)(void *ctx);
    void *ctx;
    int64_t started_s;  /* wall clock */
    int64_t started_ms; /* monotonic */
    bool draining;      /* refuse new ones */
    char standby[512];  /* why, if another leads; "": this coordinator does */
    uint32_t n_open;
    size_t pending_bytes;     /* of sources that wait for the helper */
    struct generation *first; /* all that are open */
    struct generation *news;  /* those with something to tell, told by the timer */
    struct loop_timer *tell;
    struct {
        struct metric *ttft, *tpot, *itl, *duration, *prompt_tokens, *completion_tokens, *cached_tokens;
        struct metric *outcome[5]; /* enum generation_outcome */
    } metrics;
};

enum generation_outcome { OUTCOME_OK, OUTCOME_REFUSED, OUTCOME_BUSY, OUTCOME_CANCELLED, OUTCOME_FAILED };

struct generation_token {
    int32_t id;
    float logprob;
    uint8_t n_top;
    size_t top_from;  /* into generation.tops */
    size_t text_from; /* bytes of text before it */
    size_t text_to;   /* and with it; a token that ends inside a character adds none until the character is whole */
};

/* Log-probability of a prompt token, of positions 1 .. n_scored. */
struct generation_score {
    float logprob;
    uint8_t n_top;
    size_t top_from;
};

/*
 * Plain to read in callbacks. text[.. n_text] is settled: it holds no part of a stop string, and whole characters only. tokens[.. n_tokens] are those
 * whose text is in it; n_sampled counts those that came, held back or not.
 */
struct generation {
    char id[48];
    char label[64];    /* what logs call the request: what its client did, or the id of its first choice */
    uint32_t index;    /* of the choice */
    int64_t created_s; /* wall clock */
    bool running;      /* submitted: want and prompt may be looked at */
    struct want want;
    int32_t *prompt;
    size_t n_prompt;
    uint32_t max_tokens;
    uint64_t seed;
    struct generation_token *tokens;
    size_t n_tokens, n_sampled, tokens_room;
    struct result_top *tops;
    size_t n_tops, tops_room;
    char *text;
    size_t n_text, text_all, text_room;
    struct tools *tools; /* that the answer may call; NULL: none */
    size_t marks[GENERATION_MARKS_MAX],
        n_marks;                     /* places in the text where the control token came that is the mark of calls */
    struct generation_score *scores; /* [n_prompt] if want.score: of position i at i */
    size_t n_scored;
    uint32_t progress_done, progress_total;
    struct generation_private *p;
};

struct generation_done {
    struct refusal refusal; /* status ST_OK: it ran to its end */
    bool stopped;           /* by a stop string or an end token; else by length */
    const struct sched_done
        *sched; /* NULL if it never ran: then nothing of the generation but its id may be looked at */
    int64_t total_ms;
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
};

/* Loop thread. None comes before generation_start has returned. A callback may call generation_cancel. */
struct generation_events {
    /* More text, tokens, scores or progress since the last time. Comes a turn of the loop after the news, so that the next plans go out first. */
    void (*output)(void *user, struct generation *g);
    /* A logit row (want.logits). May be NULL. */
    void (*logits)(void *user, struct generation *g, const struct result_row *row);
    /* The last; the generation is gone after it. */
    void (*done)(void *user, struct generation *g, const struct generation_done *done);
};

/* After loop, helper and the rest are filled in. ST_NO_MEMORY. */
enum status generation_host_init(struct generation_host *host);
/* When no generation is open. Accepts a host that was not initialised. */
void generation_host_deinit(struct generation_host *host);

/* Reads the request from w->source into w (initialised). Any thread. */
typedef enum status generation_parse(struct want *w, struct refusal *r);

/* Tokens of one choice that were generated before, with all that was told of them. */
struct generation_told {
    const struct result_row *rows; /* token, logprob, top */
    size_t n;
};

struct generation_start {
    const char *id_prefix; /* "cmpl-" */
    const char *id;        /* what the request is called if it is not the first time; NULL: a new name */
    const char *label;     /* what its client calls it, for logs; NULL: nothing. Copied, if generation_label_ok */
    int64_t created_s;     /* likewise; 0: now */
    bool has_seed;         /* seed: where the request names none */
    uint64_t seed;
    /* [n_told] by choice: the answer goes on behind them, as if it had never been interrupted. They are in the first output. Kept until the last event. */
    const struct generation_told *told;
    uint32_t n_told;
    void *source; /* goes into want.source */
    void (*source_free)(void *source);
    const char *tenant;  /* by the way it came, or NULL: then what the request itself says */
    const char *owner;   /* whose key it came with, or NULL: its tenant, and its blocks are not shared with others */
    int64_t timeout_ms;  /* likewise; 0: none */
    size_t source_bytes; /* decides whether it is parsed here or beside the loop */
    generation_parse *parse;
    const struct generation_events *events; /* kept */
    void *user;
};

/*
 * ST_OK: events will say how it goes on. Else r says why: ST_BUSY (too many open, or the helper is behind), ST_CANCELLED (draining), ST_NO_MEMORY.
 * source is taken in any case.
 */
enum status generation_start(struct generation_host *host, const struct generation_start *start,
                             struct generation **generation_out, struct refusal *r);
/*
 * Another choice for the same request: its prompt, wants, events and user, seed + index; submitted at once. first: one that runs, or is in its last callback.
 * No event comes before this has returned. ST_BUSY and what the scheduler refuses with.
 */
enum status generation_again(const struct generation *first, uint32_t index, struct generation **generation_out,
                             struct refusal *r);
/* Whether a client's name for its request may stand in logs: printable ASCII without spaces, quotes and colons, 1 to 63 bytes. Accepts NULL. */
bool generation_label_ok(const char *label);
/* ST_BUSY if a request of so many bytes would have to wait behind too many others. */
enum status generation_may_wait(const struct generation_host *host, size_t source_bytes, struct refusal *r);
/* No more events, and all it held is freed. */
void generation_cancel(struct generation *g);
/* Ends all that are open with an error for the client: the process stops. */
void generation_end_all(struct generation_host *host, const char *why);
/* The same, if all that are open were named by who asked, and so can be taken up again. */
void generation_end_named(struct generation_host *host, const char *why);

/* "default", "" (or NULL) and the name of the model are the model served. */
enum status generation_model_check(const struct generation_host *host, const char *model, struct refusal *r);

#ifdef __cplusplus
}
#endif
#endif
