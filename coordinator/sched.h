#ifndef LONGSPAN_COORDINATOR_SCHED_H
#define LONGSPAN_COORDINATOR_SCHED_H

/*
 * The coordinator's core: admission, step groups, plans, directory of blocks, commit, prefix sharing, shipping of leaves, cancellation,
 * and what happens when a worker is lost. All policy, no I/O, no threads, no clock of its own: events come in, messages go out through an
 * ops table, so that tests/sim can run it from one seed. All calls on one thread (the loop).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"
#include "proto/control.h"
#include "proto/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sched;
struct sched_request;

struct sched_config {
    uint32_t positions_max;      /* longest context served: prompt + generated */
    uint32_t step_rows_max;      /* token budget of a step */
    uint32_t prefill_chunk_rows; /* rows of a long prompt in a step while others are there, or were lately: at most, */
    uint32_t step_target_ms;     /* and no more than such a step has time for; 0: no such limit */
    uint32_t sequences_max;      /* running at once */
    uint32_t queue_max;          /* waiting at once; more are refused (ST_BUSY) */
    uint32_t
        queue_wait_ms; /* for its first step at most: who would wait longer is refused, who has ends (both ST_BUSY) before anything is computed for it; 0: no limit */
    uint32_t
        spread_min_tokens; /* sequences of fewer positions stay on their home: a group of one never waits for a network */
    uint32_t step_deadline_ms; /* by which a step must be done, */
    uint32_t
        waits_ms; /* members of a group that have all waited so long for messages of each other do not hear each other; 0: only the deadline ends that */
    uint32_t step_row_ms; /* and so much more for each of its rows: a long chunk takes long on a slow or busy machine */
    uint32_t plans_ahead; /* plans in flight a group: 2 pipelines */
    bool prefix_sharing;
    bool preemption; /* who comes before one that runs and finds no room takes that one's place */
    uint32_t
        recovery_share; /* of the rows that prompts get in a step that others wait for, in percent: what is computed again after a worker was lost; 0: all */
    uint32_t
        worker_wait_ms; /* for workers to come back, where those that are left cannot hold a request; then it ends */
    uint32_t replicas;  /* 0 or 1 more copies of sealed blocks at other workers, as room allows; with prefix_sharing */
    uint32_t starve_ms; /* who has waited so long comes before all that wait, whatever their class; 0: never */
    const char *tenant_weights; /* shares: "name=weight,..." (others: 1), or NULL; copied */
    struct digest
        context; /* all that decides bits beside tokens: hashed into block ids (model, precision, codec, selector; fingerprint is added) */
    uint32_t density;   /* what sparse rows read, in millionths, where a request does not say; 0: no selector */
    bool prompt_sparse; /* prompt rows are sparse too: both classes of rows have the same bits */
    bool row_classes;   /* the KV codec's classes differ in bits, with a selector or without (struct kv_codec_info) */
    uint32_t
        window; /* positions before a row's block, whole blocks, that sparse rows read beside block 0, in every layer; what a sequence has passed is given back; 0: no such selector */
    uint64_t seed; /* of free choices (ties); layouts may be drawn at random by tests through `choose` */
};

/*
 * How the scheduler reaches the world. Messages are borrowed for the call; delivery is in order for each worker. Kinds sent: plan, fence, copy, stop
 * (to a worker that has finished neither a step nor the empty plan that asked whether it lives; it counts as lost from then on). The plan sent to
 * each member of a group is the same but for drops and forgets, which are the receiver's own.
 */
struct sched_ops {
    void (*send)(void *ctx, uint16_t worker, const struct control_message *message);
    int64_t (*now_ms)(void *ctx);
    /* Tests only, may be NULL: draws what policy may decide freely (homes, owners, chunk sizes, when to ship): 0 .. n - 1. Bits must not depend on it. */
    uint32_t (*choose)(void *ctx, const char *what, uint32_t n);
    /* Blocks of the worker are committed: these are their names, for whoever asks it later. May be NULL. */
    void (*named)(void *ctx, uint16_t worker, const struct control_block *blocks, uint32_t n);
    /* The same clock in microseconds, for the figure of coordination; may be NULL. */
    int64_t (*now_us)(void *ctx);
};

enum { SCHED_TENANT_MAX = 127 };

/* What a request asks for; copied. */
struct sched_want {
    const int32_t *tokens;
    uint32_t n_tokens;
    uint32_t max_tokens; /* to generate; 0 with score: only score the prompt */
    const int32_t *eos;  /* tokens that end it (none if ignore_eos) */
    uint32_t n_eos;
    struct plan_sampling sampling;
    uint32_t density; /* millionths; 0: the deployment's */
    const struct digest
        *salt;     /* it shares blocks only with requests of the same one; NULL: with those that have none */
    uint8_t n_top; /* alternatives a token */
    bool score;    /* log-probabilities of prompt tokens 1.. (then no prefix hit is taken: every row is computed) */
    bool logits;   /* whole logit rows of every computed row (tests, --dump-logits) */
    uint32_t
        logits_from; /* with logits: of rows from this position on, before which prefix hits are taken; below the number of rows */
    const int32_t *forced; /* tests and replay: generated tokens that are forced, not sampled */
    uint32_t n_forced;
    const int32_t *
        told; /* tokens that were generated and told before, by another scheduler perhaps: known, and told no more; fewer than max_tokens */
    uint32_t n_told; /* 0 with score or logits */
    bool edits;      /* events.edit says what is done to the logits of each row that samples */
    bool history;    /* edits follow from the tokens before: a row is planned when those are here, one step at a time */
    const char *
        label; /* for logs, here and at workers: the request's id; its first PLAN_LABEL_MAX bytes, those that are not printable as '?' */
    int32_t priority; /* its class: lower ones come first, whatever came before (as in vLLM); 0 is usual */
    const char *
        tenant; /* whose it is, at most SCHED_TENANT_MAX bytes: within a class those who were served least come first; NULL: "" */
    int64_t
        deadline_ms; /* on the clock of sched_ops.now_ms: what has not ended by then ends with ST_TIMEOUT; 0: none */
};

enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };

struct sched_worker_share {
    uint16_t worker;
    uint32_t blocks;                     /* sealed blocks of this request owned (read) there at its last token */
    uint64_t bytes_sent, bytes_received; /* exchanged by it during steps that had rows of this request */
};

struct sched_done {
    enum finish_reason reason;
    enum status status;  /* FINISH_ERROR: ST_PEER (a worker was lost; 503), ST_TIMEOUT, ... */
    const char *message; /* names the worker */
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    uint32_t recomputed_tokens; /* rows computed again after workers were lost */
    uint64_t kv_bytes_read, kv_bytes_dense;
    uint32_t n_shares;
    const struct sched_worker_share *shares;
    int64_t queued_ms, prefill_ms, decode_ms;
};

/* Called on the loop thread. After done the request is gone. A callback may call sched_cancel. */
struct sched_events {
    /* A prompt row's log-probabilities are here (want.score): target is tokens[position + 1]. Ascending positions, each once. */
    void (*scored)(void *user, uint32_t position, const struct result_row *row);
    /* A generated token, in order; the one that ends it (eos) too. Forced ones: token and logprob are the forced token's. */
    void (*token)(void *user, const struct result_row *row);
    /* A whole logit row (want.logits), prompt rows too. */
    void (*logits)(void *user, const struct result_row *row);
    /* Prompt positions computed so far, or found in the cache. May be NULL. */
    void (*progress)(void *user, uint32_t done, uint32_t total);
    void (*done)(void *user, const struct sched_done *done);
    /*
     * want.edits: a row is planned after which the token at `position` is sampled; its edits, which must stay until sched_run returns, or NULL for none.
     * May come again for a position. Nothing of the scheduler may be called from here.
     */
    const struct plan_edits *(*edit)(void *user, uint32_t position);
};

enum status sched_new(const struct sched_config *config, const struct sched_ops *ops, void *ctx,
                      struct sched **sched_out);
/*
 * From now on epochs, and the numbers of blocks and sequences, are higher than those of any scheduler of a lower term. Before any worker is ready, and again
 * when the term rises. term: ascends from leader to leader; its lower 32 bits count.
 */
void sched_begin(struct sched *s, uint64_t term);
/* Sealed blocks that a worker, ready since just now, holds from the time before: cache by their ids from now on. What cannot be kept it is told to drop. */
void sched_worker_holds(struct sched *s, uint16_t worker, const struct control_block *blocks, uint32_t n);
/* Blocks that a ready worker has on its disk, or (gone) has there no more; handles do not count. */
void sched_worker_disk(struct sched *s, uint16_t worker, const struct control_block *blocks, uint32_t n, bool gone);
/* Requests that still run end with FINISH_CANCELLED. */
void sched_free(struct sched *s);

/*
 * Waits in the queue, or is refused at once: ST_INVALID (no tokens), ST_TOO_LARGE (prompt + max_tokens over positions_max, or more blocks than all
 * pools hold), ST_BUSY (queue full, or queue_wait_ms), ST_PEER (no worker is ready). request_out is valid until done.
 */
enum status sched_submit(struct sched *s, const struct sched_want *want, const struct sched_events *events, void *user,
                         struct sched_request **request_out, struct error *err);
/* When one that was refused with ST_BUSY may come again, as things go; 0: now, or nothing is known. */
uint32_t sched_retry_ms(const struct sched *s);
/* Ends it (FINISH_CANCELLED, or reason if the gateway found a stop string: FINISH_STOP); done is called before this returns. Frees everything it held,
   as soon as no plan in flight names it. */
void sched_cancel(struct sched *s, struct sched_request *r, enum finish_reason reason);

/*
 * Workers. ready: its record is copied. lost: requests that have blocks or rows there are placed again and go on with the same tokens (sched/recover.c);
 * they end with ST_PEER naming it only if those that are left cannot hold them for worker_wait_ms, or if they lose workers again and again without
 * getting further.
 */
enum status sched_worker_ready(struct sched *s, uint16_t worker, const struct control_ready *ready, struct error *err);
void sched_worker_lost(struct sched *s, uint16_t worker, const char *why);
/* No new sequences; those running finish. */
void sched_worker_drain(struct sched *s, uint16_t worker);
/*
 * The same, and those running go to other workers, as far as these have room (sched/drain.c). With prefix_sharing; else they finish. false: it did so already, or there is
 * no such worker.
 */
bool sched_worker_empty(struct sched *s, uint16_t worker);
/* It is as others again. */
void sched_worker_resume(struct sched *s, uint16_t worker);
/* Leaves of spread sequences, and sequences of one worker, go from who has most to who has least, until they are even. */
void sched_rebalance(struct sched *s);

/* How long a worker's step has waited for one message of another, as it says now; 0: it does not wait. */
void sched_worker_waits(struct sched *s, uint16_t worker, uint32_t waits_ms);

/* Messages from workers. Anything that does not fit what was sent is refused: ST_PROTOCOL (the caller drops the worker). */
enum status sched_result(struct sched *s, uint16_t worker, const struct result *result, struct error *err);
enum status sched_copied(struct sched *s, uint16_t worker, const struct control_copied *copied);
enum status sched_abort(struct sched *s, uint16_t worker, const struct control_abort *abort);

/* Makes and sends plans where there is room, checks deadlines. Call after events and at least every 20 ms; returns ms until it must be called again. */
int64_t sched_run(struct sched *s);

struct sched_worker_stats {
    uint16_t id;
    bool ready, draining;
    uint32_t n_blocks, blocks_used; /* by the coordinator's exact account: named blocks and open ones */
    uint32_t blocks_cached;         /* of these, kept only as prefix cache */
    uint32_t sequences;             /* that have it as home, */
    uint32_t ties;                  /* that have or will have blocks or rows there */
    uint64_t leaves;                /* begun ones of running requests that it reads */
    uint32_t group;                 /* of its step group: */
    uint64_t epoch;
    uint32_t in_flight; /* plans */
    int64_t step_ms;    /* when its last result came, on the clock of sched_ops.now_ms; 0: none yet */
};
struct sched_stats {
    uint32_t waiting, running, groups;
    uint32_t replicas_due; /* sealed blocks of running requests whose second copy is on its way or to be started */
    uint64_t steps, prompt_rows, decode_rows, prefix_hit_tokens, prompt_tokens, completion_tokens, requests_done,
        requests_failed, requests_cancelled, preemptions;
    uint64_t requests_shed;              /* ended after queue_wait_ms in vain */
    uint64_t leaves_moved;               /* to workers that joined */
    uint64_t sequences_moved;            /* from workers that drain, or to idler ones */
    uint64_t blocks_passed;              /* given back by sequences whose window had left them */
    uint64_t recoveries, recovered_rows; /* requests placed again after a worker was lost; rows computed again */
    uint64_t replicas,
        recovered_copies; /* copies made for the case of a loss; blocks of lost workers of which one was left */
    uint64_t recovery_ms, recovered; /* from the loss until a request was where it had been: sum, and how many */
    uint64_t coordination_us; /* sum over steps of (interval of the step - slowest worker's busy and wait time) */
    uint64_t kv_bytes_read, kv_bytes_dense; /* sums of proto/plan.h's struct result */
    int64_t waiting_ms;                     /* since when the one that waits longest does; 0: none waits */
    int64_t
        progress_ms; /* when work last went on: a step was done, a copy arrived, or a request came while there was none */
};
void sched_stats(const struct sched *s, struct sched_stats *stats_out);
/* -> number written, at most max */
uint32_t sched_worker_stats(const struct sched *s, struct sched_worker_stats *stats_out, uint32_t max);
/* The longest context that the ready workers can hold together (those of one fingerprint), at most positions_max. */
uint64_t sched_positions_fit(const struct sched *s);

#ifdef __cplusplus
}
#endif
#endif
