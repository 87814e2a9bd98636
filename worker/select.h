#ifndef LONGSPAN_WORKER_SELECT_H
#define LONGSPAN_WORKER_SELECT_H

/*
 * Sparse attention of one step on one worker, as plain data that every sparse layer reuses: whose sketches are made and sent, which lists are chosen, where
 * the lists of each job lie, and what part of them goes with the queries. Made from the plan alone; backends execute it.
 *
 * Workers that are or will be home of a sequence's sparse rows (plan_seq.cast) have the sketches of all blocks before those rows: a block that a step
 * completes sends its sketch to them in each layer (PHASE_SKETCH); when a plan says of a sequence all there is to know (fresh), who lacks sketches of
 * committed blocks asks the readers of their leaves for them before the step.
 *
 * Where sketches stay with owners (selector_impl.at_owners), nothing of that is sent. In a step whose queries travel, who reads blocks scores them for
 * every row that asks, and four messages a layer settle what the best of all are (kernels/selector.h): counts to the home (PHASE_COUNTS), a range back
 * (PHASE_RANGES), the keys in it to the home (PHASE_PAIRS), where to cut back (PHASE_CUTS). Each reader then makes its part of the lists itself.
 *
 * Lists of a job: a bit for each block up to the last own block of its rows. By row: list row * n_kv_heads + head. Else one a block: list
 * (own block of the row) - (own block of the first).
 */

#include "worker/attend.h"
#include "worker/sketches.h"

#ifdef __cplusplus
extern "C" {
#endif

struct exchange;
struct exchange_ops;
struct exchange_key;

/* What is known of a sequence here. */
struct select_seq {
    uint64_t id;
    struct select_seq *next;  /* of its bucket */
    struct sketch **sketches; /* [n]: of the blocks of its table */
    uint32_t n, room;
    uint32_t committed; /* blocks whose query means are gone */
    bool cast;          /* this worker is, or will be, home of sparse rows */
    void **device;      /* the backend's: `device` of the first n_device sketches, which are ready */
    uint32_t n_device, device_room;
};

/* The lists of one job of attend.jobs. */
struct select_job {
    uint32_t density; /* 0: all its rows read everything */
    uint32_t own;     /* own block of its first row */
    uint32_t n_lists, words;
    size_t at; /* first word in the lists of the step */
    const struct select_seq *seq;
    /* at owners: what is scored here for it: select.scope[begin .. end - 1]; its keys, [n_lists][end - begin]; its first list among those of all jobs */
    uint32_t scope_begin, scope_end, first;
    size_t keys;
};

/* A block that is scored here. */
struct select_scope {
    uint32_t block;
    const struct sketch *sketch;
};

/* What one owner says of one list, beside what the home itself has. */
struct select_voice {
    uint32_t job, index, own;
    uint32_t n;    /* blocks that it scores: at least one */
    uint32_t next; /* of the same list, in select.told; UINT32_MAX: none */
    size_t at;     /* its counts among all */
};

/* With one worker: voices begin .. end - 1, whose counts are one message. */
struct select_talk {
    uint16_t peer;
    uint32_t begin, end;
};

/* Choices to be made here: list `index` of a local job. */
struct select_unit {
    uint32_t job, index, own;
};

/* A worker's part of a job's lists in a message: bits of the blocks of its leaves, list after list in words. */
struct select_ref {
    uint32_t leaf_begin, leaf_end; /* of select.leaves */
    size_t offset;                 /* into the choices, which stand behind the queries */
};

/* Sketches that go to, or come from, one worker in each layer: in the order of the plan's runs. */
struct select_message {
    uint16_t peer;
    uint32_t begin, end; /* of select.sent */
};

struct select {
    struct sketches store;
    struct select_seq *bucket[1024];
    uint32_t leaf_blocks;
    /* of the plan that runs */
    struct select_seq **seqs; /* [plan.n_seqs] */
    struct sketch **rows;     /* [rows here]: of each row's own block */
    struct sketch **seals;    /* [blocks completed here] */
    struct select_job *jobs;  /* [attend.n_jobs] */
    struct select_unit *units;
    struct select_ref *refs;             /* [attend.n_refs] */
    size_t *choices[ATTEND_TRAFFICS];    /* [attend.n_messages]: bytes of choices behind a message */
    struct select_message *sends, *gets; /* of sketches */
    struct sketch **sent;                /* [n_sent] */
    struct u32_list leaves;
    uint32_t n_rows, n_seals, n_units, n_sends, n_gets, n_sent;
    /* at owners, if `spread` */
    bool spread;
    struct select_scope *scope;
    struct select_voice *told, *asked; /* by owners, of local jobs; of this one, by homes */
    struct select_talk *owners, *homes;
    uint32_t *voices; /* [n_lists]: the first told of a list, or the one asked, or UINT32_MAX */
    uint32_t n_scope, n_told, n_asked, n_owners, n_homes, n_lists;
    size_t n_keys, told_bytes, asked_bytes; /* of counts */
    size_t list_words;                      /* of all jobs */
    uint32_t own_max;                       /* of the units */
    bool awaited;                           /* a row here wants a sketch that comes in this step */
    bool sparse;                            /* some row of this step, here or elsewhere, is */
    uint32_t seqs_room, rows_room, seals_room, jobs_room, units_room, refs_room, choices_room[ATTEND_TRAFFICS],
        sends_room, gets_room, sent_room, scope_room, told_room, asked_room, owners_room, homes_room, voices_room;
};

/* spec "dense": nothing is ever selected. ST_UNSUPPORTED: the model and the selector do not fit (err says why). */
enum status select_init(struct select *s, const char *spec, const struct selector_shape *shape, uint32_t n_layers,
                        uint32_t positions_max, uint32_t leaf_blocks, uint32_t caps, struct error *err);
void select_deinit(struct select *s);
static inline bool select_active(const struct select *s)
{
    return s->store.impl != NULL;
}
/* Does it choose by sketches, or by positions alone? */
static inline bool select_sketches(const struct select *s)
{
    return s->store.layer_bytes != 0;
}
/* Do sketches stay where their blocks are read? */
static inline bool select_at_owners(const struct select *s)
{
    return s->store.impl && s->store.impl->at_owners;
}
/* Is layer one that selects? */
static inline bool select_layer(const struct select *s, uint32_t layer)
{
    return s->store.impl && layer >= s->store.spec.dense_layers;
}

/*
 * Does a selector of positions alone keep block c from all rows of a run, in every layer? Such blocks may be gone: the coordinator gives back what a sequence
 * has passed.
 */
bool select_passed(const struct select *s, const struct plan *plan, const struct plan_run *run, uint32_t c);

/* How tables of the plan's sequences are looked up. */
struct select_lookup {
    /* handle of block c of plan sequence i, or 0 */
    kv_handle (*handle)(void *ctx, uint32_t i, uint32_t c);
    void *ctx;
};

/* What a plan says: blocks that are dropped, sequences that are forgotten, tables. Before anything is taken for the plan. ST_NO_MEMORY. */
enum status select_take(struct select *s, const struct plan *plan, uint16_t self, const struct select_lookup *at,
                        struct error *err);
/* Once the pool has the blocks of the rows here, and attend is built. ST_PROTOCOL: a row selects among blocks that the plan does not name. */
enum status select_build(struct select *s, const struct plan *plan, uint16_t self, const struct attend *attend,
                         uint32_t n_kv_heads, const struct attend_lookup *at, const struct select_lookup *handles,
                         struct error *err);
/* Its part of that where sketches stay with owners (owners.c). */
enum status select_owners_build(struct select *s, const struct plan *plan, uint16_t self, const struct attend *attend,
                                uint32_t n_kv_heads, const struct attend_lookup *at,
                                const struct select_lookup *handles, struct error *err);
/* Room for n items; what was there is kept. */
bool select_reserve(void *p, uint32_t *room, uint32_t n, size_t size);

/* Of a job, ascending: how many of its blocks that are scored here a row of block own chooses among. */
uint32_t select_scope_count(const struct select *s, const struct select_job *job, uint32_t own);
/* How many blocks rows of block own choose, of those that are scored: 0: none, or all. */
static inline uint32_t select_wanted(const struct select_job *job, uint32_t own)
{
    return selector_reads_all(own, job->density) ? 0 : selector_budget(own, job->density) - SELECTOR_FORCED;
}
/*
 * Asks for, and gives, the sketches of committed blocks that a fresh sequence's cast lacks. deadline_ns: clock_ns(). Statuses of the exchange, ST_PROTOCOL,
 * ST_NOT_FOUND (a reader has no sketch of its block); peer_out: whom it waited for.
 */
enum status select_catch_up(struct select *s, const struct plan *plan, uint16_t self, const struct attend_lookup *at,
                            const struct select_lookup *handles, const struct exchange_ops *ops,
                            struct exchange *exchange, const struct exchange_key *key, int64_t deadline_ns,
                            uint16_t *peer_out, struct error *err);

/*
 * Bits of the lists of a message of queries (kind SEND_QUERIES or RECEIVE_QUERIES) between a step's lists and the wire: choices[kind][message] bytes, where the
 * blocks of the reader's leaves stand side by side.
 */
void select_choices_move(const struct select *s, const struct attend *attend, enum attend_traffic kind,
                         uint32_t message, uint64_t *lists, uint8_t *wire);

/* The list of a job's row for one KV head in the step's lists; NULL: it reads everything. */
static inline const uint64_t *select_list(const struct select *s, const uint64_t *lists, uint32_t job, uint32_t pos,
                                          uint32_t row, uint32_t n_kv_heads, uint32_t head)
{
    const struct select_job *j = &s->jobs[job];
    const uint32_t index = s->store.impl->by_row ? row * n_kv_heads + head : (pos + row) / PLAN_BLOCK - j->own;
    return j->density ? lists + j->at + (size_t)index * j->words : NULL;
}

#ifdef __cplusplus
}
#endif
#endif
