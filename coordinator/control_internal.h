#ifndef LONGSPAN_COORDINATOR_CONTROL_INTERNAL_H
#define LONGSPAN_COORDINATOR_CONTROL_INTERNAL_H

/*
 * What control.c (the scheduler's loop, watching, life) and control_session.c (one worker's stream) share.
 */

#include <stdatomic.h>

#include "coordinator/control.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CONTROL_SESSIONS_MAX = PLAN_WORKERS_MAX, CONTROL_LOST_MAX = 16 };

enum session_state {
    SESSION_ATTACHED, /* no hello yet */
    SESSION_LOADING,
    SESSION_READY,
    SESSION_DROPPED, /* given up; its stream is about to end */
};

/*
 * One stream of a worker. Made on gRPC's thread, then the loop's, which frees it when the post of its end comes: the last one, as posts keep
 * their order. gRPC's thread keeps to the fields marked so.
 */
struct session {
    struct control *control; /* both */
    struct rpc_call *call;   /* both */
    _Atomic int64_t heard_ms;
    atomic_uint posts;

    struct session *next;
    enum session_state state;
    struct gateway_worker shown;
    uint8_t *address; /* of its exchange */
    uint32_t address_bytes;
    uint8_t secret[TOKEN_SECRET_BYTES]; /* of its exchange */
    int64_t attached_ms, taken_ms;      /* taken: when it last had taken all that was sent */
    uint64_t beats, work;
    bool leaving, stopped;      /* it drains; it was told that nothing is left */
    int64_t work_ms;            /* when work was seen to change */
    struct control_block *held; /* of its inventory, until it is ready */
    uint32_t n_held, held_room;
    uint64_t held_epoch;
    char doom[128]; /* why it is to be dropped, said inside a call of the scheduler */
};

struct lost {
    struct gateway_worker shown;
    int64_t at_ms;
};

struct control {
    struct control_config config;
    struct sched *sched;
    struct rpc_server *server;
    struct rpc_method method;
    struct loop_timer *run_timer, *tick_timer;
    struct session *sessions;
    uint32_t n_sessions, next_id;
    uint64_t roster; /* lists of members sent so far */
    uint64_t term;   /* 0: does not lead yet */
    bool kicked, was_ready, stopping;
    int64_t ticked_ms, beat_ms, deaf_until_ms;
    struct lost lost[CONTROL_LOST_MAX];
    uint32_t n_lost;
};

/* ---- control_session.c; loop thread but for control_attach ---- */

/* A stream begins: of the server's method table, on gRPC's thread. */
void control_attach(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out);
/* LOADING or READY, or NULL. */
struct session *session_find(const struct control *c, uint16_t id);
/* Encodes and queues it; a worker that takes too little is dropped, later. */
void session_send(struct session *s, const struct control_message *message);
/*
 * The worker is out of all tables when this returns; the stream's own end comes later. code RPC_CANCELLED: it is cut, not ended in order.
 */
void session_drop(struct session *s, enum rpc_code code, const char *why);

#ifdef __cplusplus
}
#endif
#endif
