#ifndef LONGSPAN_WORKER_SENDER_H
#define LONGSPAN_WORKER_SENDER_H

/*
 * Messages to the coordinator on their way out, sent by a thread of their own: gRPC writes to the socket in the thread that sends, which is a quarter of a
 * millisecond that the step thread can use better.
 */

#include <pthread.h>
#include <stdbool.h>

#include "proto/control.h"
#include "proto/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct outgoing;

struct sender {
    struct rpc_call *call;
    pthread_t thread;
    bool runs;            /* there is a thread */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    struct outgoing *first, **last;
    bool end;
};

void sender_init(struct sender *s);
/* What is sent goes to the call (borrowed until the end). false: no thread, which is logged. */
bool sender_start(struct sender *s, struct rpc_call *call);
/* Any thread. In order; encoded here, so the message may go. What finds no memory is logged and lost. */
void sender_send(struct sender *s, const struct control_message *message);
/* What was sent before goes out first, if it was ever started. */
void sender_end(struct sender *s);
void sender_deinit(struct sender *s);

#ifdef __cplusplus
}
#endif
#endif
