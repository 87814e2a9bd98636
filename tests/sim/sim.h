#ifndef LONGSPAN_TESTS_SIM_SIM_H
#define LONGSPAN_TESTS_SIM_SIM_H

/*
 * The scheduler and fake workers in one process, in virtual time, from one seed. A fake worker keeps, for each block it holds, which tokens were
 * written at which position and a hash of all tokens up to there; a row is computed from what the plan says is visible, at the reader that
 * the plan names, so that a wrong plan shows at once. The token after a row is a hash of all tokens up to it.
 *
 * Anything wrong prints what, when and how to replay, and ends the process.
 */

#include <stdbool.h>
#include <stdint.h>

#include "common/rng.h"
#include "coordinator/sched.h"

enum { SIM_WORKERS_MAX = 16, SIM_REQUESTS_MAX = 1500, SIM_VOCAB = 50000, SIM_EOS = 7, SIM_GAP_MAX = 128 };

struct sim_options {
    uint64_t seed;
    const char *replay; /* command that replays it, for messages */
    struct sched_config config;
    uint32_t n_workers, leaf_blocks, n_blocks[SIM_WORKERS_MAX];
    uint32_t open_blocks;  /* of each worker: places for blocks that are not sealed and committed; 0: no such limit */
    bool choices;          /* draw what policy may decide freely */
    uint32_t copy_faults;  /* of 1000 copies, this many fail or vanish; of writes to disks, and reads, too */
    uint32_t disk_blocks;  /* of each worker's disk; 0: it has none */
    uint32_t delay_max_ms; /* of messages */
    uint32_t step_max_ms;  /* of a worker's part of a step; */
    uint32_t row_us;       /* and so much more for each row of the member that is home of most */
    /* Sees every message that the coordinator sends. */
    void (*spy)(void *ctx, uint16_t worker, const struct control_message *message);
    void *spy_ctx;
};

struct sim_want {
    const int32_t *tokens;
    uint32_t n_tokens, max_tokens;
    bool eos, score, logits;
    uint32_t logits_from;
    uint32_t n_forced; /* forced ones are those that would be sampled */
    int32_t priority;
    const char *tenant;
    int64_t timeout_ms; /* 0: none */
    uint32_t cancel_at; /* cancels itself in the callback of its token number cancel_at - 1 */
};

struct sim_request {
    bool used, ended, cancelled;
    int32_t *tokens; /* prompt, then what the oracle says */
    uint32_t n_prompt, max_tokens, n_forced, n_expected;
    bool eos, score, logits;
    uint32_t logits_from;
    uint32_t cancel_at;
    uint32_t n_tokens, n_scored, n_logits, cached, again; /* seen so far */
    enum finish_reason reason;
    enum status status;
    char message[256];
    int64_t submitted_ms, ended_ms, timeout_ms, first_ms, last_ms; /* of its first and last token */
    int64_t gap_ms;                                                /* the longest between two of its tokens, */
    uint32_t gaps[SIM_GAP_MAX]; /* and how many were of so many ms, those of SIM_GAP_MAX - 1 or more at the end */
    struct sched_worker_share shares[SIM_WORKERS_MAX];
    uint32_t n_shares;
    struct sched_request *handle;
    struct sim *sim;
};

struct sim_event;
struct sim_worker;

struct sim {
    struct sim_options options;
    struct rng rng;
    int64_t now; /* ms */
    struct sched *s;
    struct sim_event *events; /* a heap */
    uint32_t n_events, events_cap;
    uint64_t n_posted;
    struct sim_worker *workers[256]; /* by id */
    uint32_t n_workers;
    struct sim_request requests[SIM_REQUESTS_MAX];
    uint32_t n_requests;
    uint16_t cut[2]; /* two workers that do not reach each other, until then */
    int64_t cut_until;
    uint64_t n_steps, n_rows, n_copies, n_loads, n_shipped_rows, n_plans, n_spread_steps, n_aborts, n_vain;
};

/* What tests of single cases begin with: leaves of two blocks, quick workers of n_blocks each; replay: the program. */
struct sim_options sim_usual(const char *replay, uint32_t n_workers, uint32_t n_blocks);
struct sim *sim_new(const struct sim_options *options);
void sim_free(struct sim *sim);
void sim_wrong(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

/* -> its number, or -1: refused with *st_out */
int sim_submit(struct sim *sim, const struct sim_want *want, enum status *st_out);
/* -> its number; wrong if it is refused. */
uint32_t sim_accepted(struct sim *sim, struct sim_want want);
void sim_cancel(struct sim *sim, uint32_t request);
/* A worker joins (at once). -> its id */
uint16_t sim_join(struct sim *sim, uint32_t n_blocks);
uint16_t sim_join_as(struct sim *sim, uint32_t n_blocks, const char *fingerprint);
/* It dies; the coordinator hears of it after notice_ms. */
void sim_crash(struct sim *sim, uint16_t worker, uint32_t notice_ms);
/* It does nothing for so long (INT64_MAX: for ever), but its heart beats. */
void sim_hang(struct sim *sim, uint16_t worker, int64_t ms);
/* The two do not reach each other for so long; both still reach the coordinator. */
void sim_cut(struct sim *sim, uint16_t a, uint16_t b, int64_t ms);
bool sim_alive(const struct sim *sim, uint16_t worker);

/* Goes on until `ms` later, or nothing is left to run of requests. */
void sim_advance(struct sim *sim, int64_t ms);
/* Until all requests have ended; wrong if that takes longer than limit_ms. */
void sim_finish(struct sim *sim, int64_t limit_ms);
/* Nothing runs: the accounts of the coordinator and what workers hold must agree, and be nothing once the cache is evicted. */
void sim_check_empty(struct sim *sim);
/* All requests end, nothing is left; frees it. */
void sim_end(struct sim *sim);
/* Two texts of n tokens that have nothing in common. */
void sim_texts(int32_t *text_out, int32_t *other_out, uint32_t n);
/* The token after these. */
int32_t sim_oracle(const int32_t *tokens, uint32_t n);

/* ---- between sim.c, sim_worker.c and sim_disk.c ---- */

enum sim_event_kind { SIM_TO_WORKER, SIM_TO_COORDINATOR, SIM_WAKE, SIM_COPY, SIM_LOST, SIM_RUN };

struct sim_event {
    int64_t at;
    uint64_t order;
    enum sim_event_kind kind;
    uint16_t worker;
    void *data;
};
void sim_post(struct sim *sim, int64_t at, enum sim_event_kind kind, uint16_t worker, void *data);
/* From the worker to the coordinator, in order, after a delay. Taken. */
void sim_up(struct sim *sim, struct sim_worker *w, void *message);
uint32_t sim_draw(struct sim *sim, uint32_t n);

struct sim_worker *sim_worker_new(struct sim *sim, uint16_t id, uint32_t n_blocks);
void sim_worker_free(struct sim_worker *w);
void sim_worker_receive(struct sim *sim, struct sim_worker *w, void *message);
void sim_worker_wake(struct sim *sim, struct sim_worker *w);
void sim_worker_copy(struct sim *sim, struct sim_worker *w, void *block);
/* The coordinator says what a block of it is. */
void sim_worker_named(struct sim_worker *w, const struct control_block *block);
void sim_worker_die(struct sim *sim, struct sim_worker *w);
uint32_t sim_worker_blocks(const struct sim_worker *w);
uint32_t sim_worker_stored(const struct sim_worker *w); /* on its disk */
uint32_t sim_worker_sequences(const struct sim_worker *w);
/* A worker's disk: blocks by content id, used longest ago first. It tells the coordinator what it has, and what it has no more. */
struct sim_disk {
    struct sim_stored {
        struct digest id;
        uint32_t position;
        void *contents;
    } * items;
    uint32_t n, cap;
};
void sim_disk_put(struct sim *sim, struct sim_worker *w, struct sim_disk *d, const struct digest *id, uint32_t position,
                  const void *contents, size_t bytes);
/* NULL: it is not there. Borrowed until the next call. */
const void *sim_disk_get(struct sim_disk *d, const struct digest *id);
void sim_disk_lose(struct sim *sim, struct sim_worker *w, struct sim_disk *d, const struct digest *id);
void sim_disk_free(struct sim_disk *d);
struct sim_link {
    int64_t down, up;  /* when the last message of each direction arrives */
    bool alive, known; /* known: the coordinator has not heard that it is lost */
    int64_t hung_until;
};
struct sim_link *sim_worker_link(struct sim_worker *w);
/* As it comes out of the wire; free(). */
void *sim_message_copy(struct sim *sim, const struct control_message *m);
uint64_t sim_hash(uint64_t before, int32_t token);
int32_t sim_token(uint64_t hash);
float sim_logprob(uint64_t hash, int32_t token);

#endif
