#ifndef LONGSPAN_TESTS_UNIT_OWN_CLOCK_H
#define LONGSPAN_TESTS_UNIT_OWN_CLOCK_H

/*
 * A clock that stands still when the machine does: a thread looks at the real one all the time, and what is missing between two looks is left out. For upper
 * bounds on how long something takes, which a busy or halted machine is not to break; lower bounds are for clock_ms().
 */

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "common/clock.h"

enum { OWN_CLOCK_NAP_MS = 10, OWN_CLOCK_LATE_MS = 50 };

static pthread_mutex_t own_clock_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t own_clock_once = PTHREAD_ONCE_INIT;
static int64_t own_clock_stood_ms, own_clock_looked_ms;

/* With the lock. -> now by the own clock; who comes first after a halt accounts for it, the watch or who asks. */
static int64_t own_clock_look(void)
{
    const int64_t now = clock_ms();
    if (now - own_clock_looked_ms > OWN_CLOCK_LATE_MS)
        own_clock_stood_ms += now - own_clock_looked_ms;
    own_clock_looked_ms = now;
    return now - own_clock_stood_ms;
}

static void *own_clock_watch(void *arg)
{
    (void)arg;
    for (;;) {
        nanosleep(&(struct timespec){ .tv_nsec = OWN_CLOCK_NAP_MS * 1000 * 1000 }, NULL);
        pthread_mutex_lock(&own_clock_lock);
        own_clock_look();
        pthread_mutex_unlock(&own_clock_lock);
    }
    return NULL;
}

static void own_clock_begin(void)
{
    pthread_t thread;
    own_clock_looked_ms = clock_ms();
    if (!pthread_create(&thread, NULL, own_clock_watch, NULL))
        pthread_detach(thread);
}

static inline int64_t own_clock_ms(void)
{
    pthread_once(&own_clock_once, own_clock_begin);
    pthread_mutex_lock(&own_clock_lock);
    const int64_t now = own_clock_look();
    pthread_mutex_unlock(&own_clock_lock);
    return now;
}

#endif
