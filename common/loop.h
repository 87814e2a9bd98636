#ifndef LONGSPAN_COMMON_LOOP_H
#define LONGSPAN_COMMON_LOOP_H

/*
 * One thread that owns state without locks: a libevent base, timers, and a door for other threads.
 */

#include <stdint.h>

#include "common/status.h"

struct event_base;

#ifdef __cplusplus
extern "C" {
#endif

struct loop;
struct loop_timer;

enum status loop_new(struct loop **loop_out);
void loop_free(struct loop *loop);
/* For libraries that live on the base (evhttp). */
struct event_base *loop_base(struct loop *loop);

/* Runs until loop_stop. Posts that are left then are run before it returns. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop); /* any thread, signal handlers too; before loop_run it makes that return at once */
/* Runs posts until none is left, without waiting: for shutdown, after loop_run returned. Loop thread. loop_free drops posts that are left. */
void loop_drain(struct loop *loop);

/* Runs fn(arg) on the loop's thread, in order of posting. The only call, beside loop_stop, for other threads. Aborts if memory is out. */
void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg);

/* Calls fn(arg) once each time it is set; fn may set or free it. Loop thread only. NULL: out of memory. */
struct loop_timer *loop_timer_new(struct loop *loop, void (*fn)(void *arg), void *arg);
void loop_timer_set(struct loop_timer *timer, int64_t after_ms); /* one shot; set again in fn to repeat; < 0: off */
void loop_timer_free(struct loop_timer *timer);

#ifdef __cplusplus
}
#endif
#endif
