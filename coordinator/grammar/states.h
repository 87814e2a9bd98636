#ifndef LONGSPAN_COORDINATOR_GRAMMAR_STATES_H
#define LONGSPAN_COORDINATOR_GRAMMAR_STATES_H

/*
 * The states of a grammar's automaton, shared by its matchers: states.c makes them when they are met, matcher.c follows them. A state is a set of threads; a
 * thread is a node that takes a byte, or the end, and a stack of returns. States have numbers, which hold until they are made anew.
 */

#include <stdatomic.h>

#include "coordinator/grammar/program.h"
#include "coordinator/grammar/vocabulary.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers of states that are none: not known (or no memory for it), and where nothing goes on. */
enum { STATE_UNKNOWN = 0, STATE_DEAD = 1, STATE_FIRST = 2 };

struct frame {
    node_id back;
    uint32_t parent, depth;
};

struct thread {
    node_id at;
    uint32_t frame;
};

struct state {
    uint32_t from, n;   /* threads */
    uint32_t *next;     /* [256], NULL until a byte was tried */
    uint32_t plain;     /* the state after any plain character; STATE_DEAD: they lead to several, or nowhere */
    uint8_t *mask;      /* NULL: not made, or given up */
    uint32_t n_allowed; /* in mask */
    bool end;           /* one thread is the end */
};

/* Open addressing over numbers of states, or of frames. */
struct table {
    uint32_t *slots;
    uint32_t room, n;
};

struct grammar {
    atomic_uint refs; /* the rest belongs to the thread of its matchers, while it has any */
    struct program program;
    struct frame *frames; /* [0] is none */
    uint32_t n_frames, frames_room;
    struct thread *threads;
    uint32_t n_threads, threads_room;
    struct state *states;
    uint32_t n_states, states_room;
    struct table frame_table, state_table;
    uint32_t n_masks;
    const struct vocabulary *vocabulary; /* that masks are of */
    struct matcher *matchers;
    /* a closure under way */
    struct thread *work;
    uint32_t n_work, work_room;
    uint64_t *seen; /* of this closure */
    uint32_t n_seen, seen_room;
    uint64_t spent; /* nodes looked at */
    bool limited;   /* a state had too many threads, and was left out */
    bool no_memory;
};

struct matcher {
    struct grammar *grammar;
    const struct vocabulary *vocabulary;
    uint32_t state;
    struct matcher *next, **link;
    uint32_t *path; /* [longest + 1]: a walk's states */
};

/* The state before any byte. STATE_UNKNOWN: no memory; STATE_DEAD: nothing fits. */
uint32_t state_first(struct grammar *g);
/* The state after a byte: STATE_DEAD, or STATE_UNKNOWN if there is no memory. Pointers to states may have moved. */
uint32_t state_step(struct grammar *g, uint32_t state, uint8_t byte);
/* What has grown too large is made anew, and the matchers' states have other numbers. false: no memory, for good. */
bool states_ready(struct grammar *g);
/* Nobody follows them now: what few states take is kept for the next who does. */
void states_rest(struct grammar *g);

#ifdef __cplusplus
}
#endif
#endif
