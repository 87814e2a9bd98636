#ifndef LONGSPAN_TESTS_UNIT_OWN_CLOCK_H
#define LONGSPAN_TESTS_UNIT_OWN_CLOCK_H

/*
 * A clock that stands still when the machine does: a thread looks at the real one all the time, and what is missing between two looks is left out. For upper
 * bounds on how long something takes, which a busy or halted machine is not to break; lower bounds are for clock_ms().
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "common/clock.h"

static _Atomic int64_t own_clock_stood_ms;
static pthread_once_t own_clock_once = PTHREAD_ONCE_INIT;

static void *own_clock_watch(void *arg)
{
    enum { NAP_MS = 10, LATE_MS = 50 };
    (void)arg;
    for (int64_t last = clock_ms(), now;; last = now) {
        nanosleep(&(struct timespec){ .tv_nsec = NAP_MS * 1000 * 1000 }, NULL);
        now = clock_ms();
        if (now - last > LATE_MS)
            atomic_fetch_add(&own_clock_stood_ms, now - last);
    }
    return NULL;
}

static void own_clock_begin(void)
{
    pthread_t thread;
    if (!pthread_create(&thread, NULL, own_clock_watch, NULL))
        pthread_detach(thread);
}

static inline int64_t own_clock_ms(void)
{
    pthread_once(&own_clock_once, own_clock_begin);
    return clock_ms() - atomic_load(&own_clock_stood_ms);
}

#endif
