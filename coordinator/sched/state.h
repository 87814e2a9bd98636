#ifndef LONGSPAN_COORDINATOR_SCHED_STATE_H
#define LONGSPAN_COORDINATOR_SCHED_STATE_H

/*
 * What the files of the scheduler share; nobody else includes it. One request is one sequence. A worker is a slot (0 .. SCHED_SLOTS - 1, free
 * again when it is lost) in masks and arrays, an id in messages.
 *
 *   sched.c     the face: submit, cancel, workers, run, figures
 *   request.c   a request's memory, its end, what it gives back
 *   place.c     where a request's blocks would live, and whether there is room
 *   queue.c     who waits, tenants, who comes next
 *   wait.c      how long they wait; who would wait too long
 *   admit.c     from the queue to the running; takes references and promises
 *   preempt.c   room for who comes before one that runs
 *   recover.c   what a lost worker held: its sequences are placed again and compute what nobody has
 *   transfer.c  copies of sealed blocks between workers
 *   ship.c      a complete growing leaf goes to its owner
 *   retain.c    what a window has left is given back
 *   replicate.c second copies of sealed blocks
 *   rebalance.c leaves for workers that join
 *   drain.c     sequences leave a worker that an operator wants empty, and busy ones for idle ones
 *   group.c     step groups: forming, epochs, what happens when a step fails
 *   planner.c   the next plan of a group
 *   flight.c    plans in flight: results, commit, tokens
 *   directory.c blocks, copies, pools
 *   figures.c   what is shown of all that
 *   names.c     what outlives this scheduler: terms, names of blocks at their workers
 */

#include "coordinator/sched.h"
#include "coordinator/sched/directory.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SCHED_PLANS_MAX = 8,      /* in flight a group */
    SCHED_TRANSFERS_MAX = 16, /* under way from one worker, or to one */
    SCHED_LOADS_MAX = 32,     /* under way from a worker's disk, */
    SCHED_LOAD_MS = 10000,    /* and so long at most: what is on a disk that hangs is used no more */
    SCHED_SHIPS_MAX = 3,      /* attempts to move a leaf to its owner */
    SCHED_SHIP_PAUSE_MS = 250,
    SCHED_ABORT_GRACE_MS = 200, /* for the other members to say whom they blame */
    SCHED_IDS_A_RUN = 1024,     /* content ids computed for an admission before others have their turn: 1.5 ms */
    SCHED_PROBE_MS = 500,       /* for an answer to a plan without rows */
    SCHED_RUN_MS = 1000,        /* sched_run is wanted again at the latest */
    SCHED_COMPANY_MS = 5000,    /* after others were there a long prompt leaves room for others to come */
    SCHED_HEAVY_ROWS = 128,     /* prompt rows of a step behind which none is planned ahead, */
    SCHED_HEAVY_US = 20000,     /* or fewer, if they take so long */
    SCHED_LOGIT_ROWS =
        16, /* of a run whose logit rows are wanted whole: a result of megabytes, behind which heartbeats wait */
    SCHED_COST_GENERATED = 2,  /* of a generated token, where one of a prompt costs 1 */
    SCHED_VAIN_MAX = 3,        /* recoveries of a request that bring it no further */
    SCHED_VAIN_APART_MS = 250, /* workers that are lost together are one reason for them */
};
#define SCHED_NO_SLOT   UINT8_MAX
#define SCHED_BIT(slot) ((uint64_t)1 << (slot))

/* for each slot of a mask */
#define SCHED_EACH(slot, mask)                                                                                         \
    for (uint64_t left_##slot = (mask); left_##slot; left_##slot &= left_##slot - 1)                                   \
        for (uint8_t slot = (uint8_t)__builtin_ctzll(left_##slot), once_##slot = 1; once_##slot; once_##slot = 0)

enum request_state {
    REQUEST_WAITING, /* in the queue */
    REQUEST_RUNNING, /* admitted; may still wait for copies or for its group */
    REQUEST_ENDED,   /* done was called; plans in flight may still name it */
    REQUEST_FREED,   /* holds nothing; its memory goes at the next safe moment */
};

/* A copy that this sequence read until plan `number` of its group. */
struct deferred {
    uint64_t number;
    struct copy *copy;
    bool window; /* gives a block of the home's window back */
};

enum ship_state { SHIP_IDLE, SHIP_UNDER_WAY };

struct share {
    uint64_t sent, received;
};

struct sched_request {
    enum request_state state;
    uint64_t id;                /* of the sequence; never used again. A new one at every admission */
    struct sched_request *next; /* queue, or the freed */
    struct sched_events events;
    void *user;
    char label[64];
    int32_t priority;
    struct tenant *tenant;
    uint64_t arrival;             /* ascends; stays when it waits again */
    int64_t deadline_ms;          /* 0: none */
    int64_t queued_ms, waited_ms; /* since when it waits; and before that */
    bool urgent;                  /* has waited too long */
    bool awaits;                  /* another computes blocks that it will find: not admitted in this round */
    uint32_t overtaken;           /* by those that share a prefix with what runs */

    /* what was asked for */
    int32_t *tokens; /* [tokens_cap]: prompt, forced or sampled ones so far, then -1 */
    uint32_t tokens_cap, n_prompt, n_known;
    uint32_t n_forced, max_tokens, n_rows; /* n_rows: positions to compute in all */
    int32_t *eos;
    uint32_t n_eos;
    struct plan_sampling sampling;
    uint8_t n_top;
    uint32_t density;   /* of its sparse rows, millionths; 0: no selector */
    struct digest salt; /* zeros: none */
    bool score, logits;
    uint32_t logits_from; /* rows before it are silent; 0 without logits */
    bool edits, history;  /* of logits */
    struct digest *ids;   /* [n_ids] of the prompt's blocks that a hit may cover, for ids_context; n_ids_known so far */
    struct digest ids_context;
    uint32_t n_ids, n_ids_known;
    bool alone; /* a copy for it has failed: take no more */

    /* where it lives, from admission on */
    uint8_t home;
    struct digest context;                         /* of its blocks' ids */
    uint32_t leaf_blocks, n_blocks, n_leaves, hit; /* blocks in all; leaves in all; blocks that hits brought */
    bool *brought; /* [n_blocks] by a hit: its rows are not computed. Within a leaf those come first */
    uint64_t ties; /* workers that have or will have its blocks or rows */
    kv_handle *table;
    struct copy **copies; /* [n_blocks]: the one that is read, or written; NULL: not yet */
    uint32_t n_table;     /* all before this one are there; behind it only what hits brought */
    uint8_t *at, *owner;  /* [n_leaves]: who has the leaf's rows while it fills and reads it after; where it will end */
    uint16_t *readers;    /* [n_leaves]: worker ids of `at` */
    uint32_t promise[SCHED_SLOTS];
    uint32_t window, window_open,
        window_left;       /* blocks at home for leaves that will go to others: promised, there, to come */
    uint32_t bound;        /* blocks that it holds at once at most, at its one worker; 0: all */
    uint32_t passed;       /* blocks 1 .. passed - 1 are given back: its window has left them. At least 1 */
    uint32_t unopened;     /* blocks to open yet */
    uint32_t pending;      /* copies awaited before the first plan */
    struct digest last_id; /* of block n_committed - 1 */
    uint32_t n_committed, n_replicated; /* blocks; looked at for a second copy */

    /* preemption */
    bool preempting, chosen; /* gives way as soon as no plan in flight names it; while victims are looked for */
    uint32_t n_preempted;
    uint32_t told; /* positions before this were computed before it gave way: their rows are computed in silence */
    uint32_t first_hit;

    /* recovery */
    uint32_t n_recovered, n_vain; /* of these, in a row without a position more */
    int64_t vain_ms;              /* when the last of them was counted */
    bool near;                    /* its workers did not reach each other: one worker holds it if it can */
    int64_t give_up_ms;           /* the workers that are left cannot hold it: when it ends; 0: they can */
    uint32_t n_again;             /* rows computed again */
    int64_t lost_ms;              /* when it lost a worker, until it is where it was; 0: it is */

    /* leaving a worker, by command */
    bool leaves;                           /* its blocks are copied to where it will be, */
    uint8_t haven;                         /* to this one; SCHED_NO_SLOT: to several */
    uint8_t n_leveled;                     /* since the last command to even out */
    uint32_t leave_left;                   /* blocks to copy yet, */
    int64_t leave_seen_ms, leave_after_ms; /* since when so many; not before this */

    /* progress: positions */
    uint32_t done, ahead; /* done: results are held, or a hit brought them; ahead: and in flight */
    uint32_t in_flight;   /* plans that name it */
    bool started;         /* a plan has named it */
    struct group *group;  /* NULL until its workers are one group */

    /* what the group's workers know of it */
    uint64_t known; /* workers that have a table of it */
    bool fresh;
    uint32_t sent_table, sent_readers, readers_changed;
    uint64_t plan_stamp; /* the plan being made has it, as this one of its seqs */
    uint32_t plan_index;

    /* shipping */
    enum ship_state ship;
    uint32_t ship_leaf, ship_pending, ship_tries; /* next leaf that may go */
    bool ship_failed, moving;                     /* moving: what is under way is a leaf for a worker that joined */
    uint32_t way_leaf;                            /* under way, */
    uint8_t way_to;                               /* to this one */
    int64_t ship_after_ms;
    struct copy **ship_copies; /* [leaf_blocks] */
    struct deferred *deferred;
    uint32_t n_deferred, deferred_cap;

    /* figures */
    uint32_t n_generated;
    int64_t submitted_ms, admitted_ms, first_token_ms;
    uint64_t kv_read, kv_dense;
    struct share shares[SCHED_SLOTS];
};

/* Those who ask, by name. */
struct tenant {
    struct tenant *next;
    char name[SCHED_TENANT_MAX + 1];
    uint32_t n_open, n_queued;
    struct sched_request *queue, *last; /* by urgency, class, arrival */
    double served, weight;              /* tokens computed or generated for it, by its weight */
};
struct tenant_weight {
    char name[SCHED_TENANT_MAX + 1];
    double weight;
};

struct worker {
    bool ready, draining;
    bool empties; /* draining, and what runs is to go elsewhere */
    bool suspect; /* blamed for a step that failed; nothing new until it finishes another */
    bool pinged;  /* a plan was sent to find out */
    uint16_t id;
    struct digest context; /* of its blocks: the config's, and all that must be equal within a group */
    uint32_t leaf_blocks;
    uint64_t block_bytes;
    uint32_t n_homes, sending, receiving, loading;
    int64_t step_ms; /* its last result; 0: none yet */
    int64_t
        waits_from_ms; /* that it says its step waits for one message of a peer; 0: it does not, or has not said so for long enough */
    uint32_t n_ties,
        ties_max; /* sequences that have or will have blocks here; as many as it has places for open blocks of */
    struct group *group;
    struct outbox forgets; /* sequences */
};

struct flight_run {
    struct sched_request *r;
    uint32_t pos, n_rows, n_scored; /* the first n_scored rows have a target */
    uint32_t first, n_results;      /* results at rows[first ..]: one a row, or one for the last row */
    uint8_t home, want, n_top;
};

/* A plan that was sent. */
struct flight {
    uint64_t number;
    int64_t sent_ms, sent_us;
    uint32_t deadline_ms; /* of its step alone: from when it was sent or the one before was done */
    uint64_t pending;     /* members whose result is not here */
    struct flight_run *runs;
    struct sched_request **requests;
    struct result_row *rows; /* seq 0: not here yet */
    uint32_t n_runs, runs_cap, n_requests, requests_cap, n_rows, rows_cap, n_prefill_rows;
    bool prompts_wait;        /* when it was made there were prompts to compute */
    void *blobs[SCHED_SLOTS]; /* what rows point into */
    uint32_t n_drops[SCHED_SLOTS], n_forgets[SCHED_SLOTS];
    struct share shares[SCHED_SLOTS];
    uint64_t slowest_us, kv_read, kv_dense;
};

struct group {
    uint32_t id;
    uint64_t members, epoch, number; /* number of the plan sent last */
    uint32_t leaf_blocks, n_members;
    uint8_t slots[SCHED_SLOTS]; /* by ascending id */
    uint16_t ids[SCHED_SLOTS];
    struct flight *flights[SCHED_PLANS_MAX]; /* oldest first */
    uint32_t n_flights;
    int64_t company_ms;              /* when it last had more than one request, or one of them left */
    uint64_t row_us;                 /* what a prompt's row took lately, its share of the step; 0: unknown */
    bool passed_over;                /* the last plan left a long prompt out */
    int64_t done_ms, done_us;        /* when the last plan retired */
    bool hold;                       /* no more plans: it is to change */
    struct sched_request **requests; /* by admission */
    uint32_t n_requests, requests_cap, turn;
    struct {
        bool active;
        int64_t until_ms;
        uint64_t spoke, blamed;      /* gave up; blamed by one of them */
        uint8_t first;               /* who gave up first, as far as we heard */
        uint8_t blame[SCHED_SLOTS];  /* of those who gave up; SCHED_NO_SLOT: nobody, the fault is its own */
        uint32_t order[SCHED_SLOTS]; /* in which they did */
        char reason[160];
    } abort;
    bool probing;  /* the plan in flight has no rows: it shows who of `late` still answers */
    uint64_t late; /* had not finished a step in time */
    uint32_t late_ms;
    bool deaf; /* they were late because they do not hear each other */
};

struct transfer {
    struct copy *src, *dst; /* src NULL: from the disk of the worker that dst is at */
    struct transfer *next;
    struct waiter *waiters;
    bool sent, replica, second; /* beside the steps; and for the case of a loss */
    bool disk;
    int64_t sent_ms;
};

/* A source that may still be sending to one that is gone: dropped now, its room would not be free yet. */
struct lingering {
    struct copy *src; /* held */
    int64_t until_ms;
};

enum waiter_kind { WAITS_TO_START, WAITS_TO_SHIP };
struct waiter {
    struct waiter *next;
    struct sched_request *r;
    enum waiter_kind kind;
};

/* Where a request might live: place.c. */
struct place {
    uint32_t n_prompt, n_rows, leaf_blocks; /* asked */
    uint32_t bound;                         /* blocks that it holds at once, if it is at one worker; 0: all */
    bool may_copy;
    struct block **hits; /* [n_hits]; NULL: not known */
    uint64_t sound;      /* workers whose copies are read */
    uint32_t n_hits, hits_cap;
    int64_t room[SCHED_SLOTS];
    /* answered */
    uint8_t home;
    bool spread;         /* leaves may be at several workers */
    uint8_t *at, *owner; /* [n_leaves] */
    bool *brought;       /* [n_blocks] */
    uint32_t leaves_cap, owner_cap, brought_cap;
    uint32_t n_blocks, n_leaves, hit, window, window_left;
    uint32_t need[SCHED_SLOTS]; /* promises; copies that a hit needs come on top */
    uint64_t ties;
};

/* n of something in so many microseconds; of missed_pace, n rows to compute in prompts of so many tokens. */
struct pace {
    double n, us;
};

struct sched {
    struct sched_config config;
    struct sched_ops ops;
    void *ctx;
    struct directory dir;
    struct worker workers[SCHED_SLOTS];
    uint64_t ready; /* slots */
    struct group *groups[SCHED_SLOTS];
    uint32_t n_groups;
    struct tenant *tenants;
    struct tenant_weight *weights;
    uint32_t n_weights, weights_cap;
    double served_last; /* of the tenant whose queue was the last to become empty */
    uint32_t n_queued;
    uint64_t arrivals;
    struct pace prompts_pace, taken_pace,
        missed_pace;  /* rows of prompts of a group; requests taken from the queue; misses */
    int64_t queue_us; /* since when the queue has somebody, or when one was taken last */
    int64_t over_ms;  /* nobody will have waited too long before */
    int64_t promote_ms,
        deadline_ms; /* when to look who has waited long; no deadline is before (INT64_MAX: there is none) */
    uint32_t n_preempting, n_awaiting;
    uint32_t n_stranded;             /* perhaps: requests that wait for workers to come back */
    char stranded[256];              /* why */
    int64_t extra_room[SCHED_SLOTS]; /* if the chosen gave way */
    uint32_t extra_ties[SCHED_SLOTS];
    struct sched_request **running; /* admitted, by admission; also ended ones that plans in flight name */
    uint32_t n_running, running_cap, n_live;
    struct sched_request *freed;
    struct transfer *transfers; /* in order of need */
    struct transfer **transfers_end;
    uint32_t n_transfers;
    uint32_t transfers_waiting, n_replicas; /* not sent; that are replicas */
    struct lingering *lingering;            /* sources of transfers that were given up */
    uint32_t n_lingering, lingering_cap;
    struct flight *spares[SCHED_PLANS_MAX * 4];
    uint32_t n_spares;
    struct place place;
    uint64_t epochs, next_seq, stamp;
    uint32_t depth;     /* of calls into the face */
    bool admit_changed; /* something was freed or came: try the queue again */
    bool groups_changed;
    bool rebalance;           /* a worker has joined: leaves may move */
    bool leveling;            /* sequences of one worker too */
    struct sched_stats stats; /* waiting, running, groups and waiting_ms are filled in when asked for */

    /* committed since names were last told: by slot */
    struct control_block *names[SCHED_SLOTS];
    uint32_t n_names[SCHED_SLOTS], names_cap[SCHED_SLOTS];

    /* the plan being made */
    struct plan_seq *seqs;
    struct plan_run *runs;
    uint32_t n_seqs, n_runs, seqs_cap, runs_cap;
    struct sched_request **order;
    uint32_t order_cap;
};

static inline int64_t sched_now_ms(const struct sched *s)
{
    return s->ops.now_ms(s->ctx);
}
static inline int64_t sched_now_us(const struct sched *s)
{
    return s->ops.now_us ? s->ops.now_us(s->ctx) : s->ops.now_ms(s->ctx) * 1000;
}
/* A free choice among n: the tests' draw, or -1: policy decides. */
static inline int64_t sched_choose(const struct sched *s, const char *what, uint32_t n)
{
    return s->ops.choose && n ? (int64_t)s->ops.choose(s->ctx, what, n) : -1;
}
static inline uint32_t request_leaf_rows(const struct sched_request *r)
{
    return r->leaf_blocks * PLAN_BLOCK;
}
/* Does the leaf fill at the home? It does unless the prompt covers it whole. */
static inline bool request_grows(const struct sched_request *r, uint32_t leaf)
{
    return (uint64_t)(leaf + 1) * request_leaf_rows(r) > r->n_prompt;
}
/* Does it fill at home, to live elsewhere? */
static inline bool request_foreign(const struct sched_request *r, uint32_t leaf)
{
    return request_grows(r, leaf) && r->owner[leaf] != r->home;
}
/* SCHED_NO_SLOT: unknown */
uint8_t sched_slot(const struct sched *s, uint16_t worker);
/* Entering and leaving the face: memory of what has ended goes when nobody is inside. */
void sched_enter(struct sched *s);
void sched_leave(struct sched *s);
/* worker ids of a mask, for messages: "worker 3", "workers 1, 4" */
const char *sched_names(const struct sched *s, uint64_t mask, char *text_out, size_t n);

/* names.c */
/* The copy was committed. */
void names_note(struct sched *s, const struct copy *c);
/* Tells all that were noted. */
void names_tell(struct sched *s);
void names_deinit(struct sched *s);

/* request.c */
/* The context of its blocks' ids: the workers', and what the request itself says that decides bits. */
struct digest request_context(const struct sched_request *r, const struct digest *worker);
/* Prompt rows of its block c, where they and generated rows differ in bits; else 0. */
uint32_t request_prompt_rows(const struct sched *s, const struct sched_request *r, uint32_t c);
/* Positions to compute. */
uint32_t request_rows(const struct sched_want *want);
enum status request_new(struct sched *s, const struct sched_want *want, struct sched_request **r_out);
void request_free(struct sched_request *r);
enum status request_token(struct sched_request *r, uint32_t position, int32_t token);
/* done is called; gives everything back when no plan in flight names it. */
void request_end(struct sched *s, struct sched_request *r, enum finish_reason reason, enum status status,
                 const char *message);
/* Positions from *pos on that hits brought. */
void request_skip(const struct sched_request *r, uint32_t *pos);
/* Nothing of it is under way any more. */
void request_unship(struct sched *s, struct sched_request *r);
/* Gives back references, promises, waits; its workers forget it. */
void request_release(struct sched *s, struct sched_request *r);
/* An ended one that no plan names any more gives everything back. */
void request_settle(struct sched *s, struct sched_request *r);
/* Copies that it read until plan `number` at the latest. */
void request_retire(struct sched *s, struct sched_request *r, uint64_t number);
/* Promises more of the home's window, if a leaf to come needs it and there is room. false: there is not enough. */
bool request_window(struct sched *s, struct sched_request *r);
/* More of its blocks may be found when it is computed again. */
void request_ids_extend(struct sched *s, struct sched_request *r);

/* wait.c */
/* A step took so long. */
void wait_stepped(struct sched *s, const struct flight *f, int64_t us);
/* A request is about to wait; one was taken from the queue; of its prompt so much was there already. */
void wait_queued(struct sched *s);
void wait_taken(struct sched *s);
void wait_found(struct sched *s, uint32_t prompt, uint32_t hit);
/* ms until the first step of a request that comes now, as things go; 0 also where nothing is known. tenant NULL: behind all. */
uint32_t wait_estimate(const struct sched *s, uint32_t n_prompt, int32_t priority, const char *tenant);
/* Ends those that have waited longer than queue_wait_ms and that nothing was computed for. -> ms until the next may have */
int64_t wait_check(struct sched *s);

/* queue.c */
/* The tenant of that name, with one more request open (the caller counts n_open down). */
struct tenant *tenant_open(struct sched *s, const char *name);
void tenant_charge(struct tenant *t, uint64_t cost);
enum status tenant_weights_read(struct sched *s, const char *text);
void tenants_free(struct sched *s);
void queue_add(struct sched *s, struct sched_request *r);
void queue_remove(struct sched *s, struct sched_request *r);
/* Who comes next of those that do not await blocks, or NULL. */
struct sched_request *queue_next(struct sched *s);
/* All that wait, in no order: the one after r, or (NULL) the first. */
struct sched_request *queue_each(const struct sched *s, const struct sched_request *r);
/* Who has waited too long. */
void queue_promote(struct sched *s);
/* r is taken, though perhaps others of its tenant came before. */
void queue_overtake(struct sched_request *r);
/* Whole blocks at the start of b's prompt that a could take from it. */
uint32_t queue_common(const struct sched_request *a, const struct sched_request *b);

/* preempt.c */
/* Chooses whose room r needs to fit, and has them give way. false: it would not fit even so. */
bool preempt_for(struct sched *s, struct sched_request *r, bool (*fits)(struct sched *s, struct sched_request *r));
/* No plan in flight names it any more: it waits again. */
void preempt_settle(struct sched *s, struct sched_request *r);

/* place.c */
/* The workers it may use must be of one context. room is set by the caller. */
bool place_local(const struct sched *s, struct place *p, uint8_t home);
bool place_spread(const struct sched *s, struct place *p, uint8_t home, const uint8_t *slots, uint32_t n_slots);
/* Could it ever run on these workers, all alone? */
bool place_ever(struct sched *s, uint32_t n_prompt, uint32_t n_rows, uint32_t bound);
/* Slots of a mask by ascending worker id. -> how many */
uint32_t place_order(const struct sched *s, uint64_t mask, uint8_t slots_out[SCHED_SLOTS]);
/* A copy to send the block from, or NULL. */
struct copy *place_source(const struct place *p, const struct block *b);
/* There is one, or it is on a disk that it may come from. */
bool place_reaches(const struct place *p, const struct block *b);
bool place_spreads(const struct sched *s, uint32_t n_rows, uint64_t usable);
void place_prepare(struct place *p, uint32_t n_prompt, uint32_t n_rows, uint32_t leaf_blocks, uint32_t bound);

/* admit.c */
void admit_all(struct sched *s);
/* Would it find a place, if it gave up its own? s->place has the answer. false also: not known yet. */
bool admit_finds(struct sched *s, struct sched_request *r);
/* It has not started: back to the head of the queue. */
void admit_undo(struct sched *s, struct sched_request *r);

/* recover.c */
/* It gives back all that it has and waits again; what it was told stays told. */
void request_again(struct sched *s, struct sched_request *r);
/*
 * Requests that touch at least n of the guilty are placed again; what is still held of their blocks is found, the rest computed. apart: workers that
 * did not reach each other. One that got no further for the third time ends.
 */
void recover_touched(struct sched *s, uint64_t guilty, int n, bool apart, const char *message);
/* A worker has come: what computes many blocks again is placed once more, and has its help. */
void recover_help(struct sched *s, uint8_t slot);
/* Workers have gone: what waits and can never fit any more ends, after worker_wait_ms. */
void recover_strand(struct sched *s, const char *why);
/* -> ms until one is given up */
int64_t recover_check(struct sched *s);
/* It has rows to compute again before it goes on. */
static inline bool request_recovers(const struct sched_request *r)
{
    return r->n_recovered && r->ahead < r->told;
}

/* transfer.c */
/* From a promise at slot (taken by the caller) a copy of the block that r waits for. src is held until it has arrived; NULL: from the disk there. */
struct copy *transfer_start(struct sched *s, struct block *b, struct copy *src, uint8_t slot);
void transfer_wait(struct copy *dst, struct sched_request *r, enum waiter_kind kind);
/* r waits no more for what comes to dst; a transfer that was not sent and that nobody else wants vanishes (with dst, unless it is referred to). */
void transfer_unwait(struct sched *s, struct copy *dst, struct sched_request *r);
void transfers_send(struct sched *s);
void transfers_check(struct sched *s);
/* The worker is gone: ends what it sends or receives. */
void transfers_lost(struct sched *s, uint8_t slot);
enum status transfer_arrived(struct sched *s, uint8_t slot, const struct control_copied *copied);
int64_t transfers_deadline(const struct sched *s);

/* retain.c */
/* Blocks that a request of so many prompt tokens and this density (0: the deployment's) holds at once, where it is at one worker; 0: all. */
uint32_t retain_bound(const struct sched *s, uint32_t n_prompt, uint32_t density);
/* Gives back what the window has left. */
void retain_step(struct sched *s, struct sched_request *r);
/* Of a bounded one: promises what it will open next, as there is room. false: it has nothing to open a block with, though it will need one. */
bool retain_fill(struct sched *s, struct sched_request *r);

/* ship.c */
void ship_step(struct sched *s, struct sched_request *r);
/* A complete leaf, read where it belongs, goes to another worker, which is tied to the sequence. false: not now. */
bool ship_move(struct sched *s, struct sched_request *r, uint32_t leaf, uint8_t to);
/* One of its transfers has come (or not). */
void ship_arrived(struct sched *s, struct sched_request *r, bool ok);

/* replicate.c: starts copies of what is committed and has no second one. */
void replicate_all(struct sched *s);
/* A worker is gone, and copies with it: all is looked at again. */
void replicate_again(struct sched *s);
/* Blocks whose second copy is on its way or to be started. */
uint32_t replicate_due(const struct sched *s);

/* rebalance.c: starts moves, as long as there is something to move. */
void rebalance_all(struct sched *s);

/* drain.c: sequences that are to leave their workers do so, a step at a time. */
void drain_all(struct sched *s);

/* Workers that it was tied to for a leaf, and that its group does not have yet, are lost: it is tied to them no more. */
void rebalance_untie(struct sched *s, uint64_t guilty);

/* group.c */
void groups_form(struct sched *s);
struct group *group_new(struct sched *s, uint64_t members);
void group_free(struct sched *s, struct group *g);
/* What is in flight is abandoned, the epoch is raised; requests that touch the guilty end (or start again, if nothing was planned yet). */
void group_break(struct sched *s, struct group *g, uint64_t guilty, const char *message);
/* All answered the plan that asked who lives. */
void group_answered(struct sched *s, struct group *g);
/* Deadlines and aborts. -> ms until the next one */
int64_t groups_check(struct sched *s);
void group_remove(struct sched *s, struct group *g, const struct sched_request *r);

/* planner.c: makes and sends the next plan. false: nothing to do. */
bool planner_send(struct sched *s, struct group *g);
/* A plan without rows. */
void planner_probe(struct sched *s, struct group *g);

/* flight.c */
struct flight *flight_new(struct sched *s);
void flight_recycle(struct sched *s, struct flight *f);
void flight_free(struct flight *f);
enum status flight_result(struct sched *s, struct group *g, uint8_t slot, const struct result *result,
                          struct error *err);

#ifdef __cplusplus
}
#endif
#endif
