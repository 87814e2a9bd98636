#ifndef LONGSPAN_WORKER_EXCHANGE_GATE_H
#define LONGSPAN_WORKER_EXCHANGE_GATE_H

/*
 * Which epochs of which groups are over, and how a sleeping owner is woken. The owner thread asks; any thread may raise.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Wakes one thread that sleeps in poll(). */
struct waker {
    int fd; /* eventfd */
    atomic_int asleep;
};

enum status waker_init(struct waker *w);
void waker_deinit(struct waker *w);
/* Any thread: writes fd if the owner sleeps or is about to. */
void waker_wake(struct waker *w);
/*
 * Owner: after waker_begin every waker_wake is seen by poll() on fd; look at what is waited for between the two, since a wake before
 * waker_begin is not kept. waker_end after poll() or instead of it.
 */
void waker_begin(struct waker *w);
void waker_end(struct waker *w);

struct gate_entry {
    uint32_t group;
    uint64_t stale_below; /* epochs below are over */
    uint64_t touched;
};

enum { GATE_GROUPS_MAX = 256 };

struct gate {
    pthread_mutex_t lock;
    struct gate_entry entries[GATE_GROUPS_MAX];
    uint32_t n;
    uint64_t clock;
    atomic_uint generation; /* changes with every raise */
};

enum status gate_init(struct gate *g);
void gate_deinit(struct gate *g);
/* Any thread. Never lowers. With more groups than the gate holds, the one that was not touched for longest is forgotten. */
void gate_raise(struct gate *g, uint32_t group, uint64_t stale_below);
bool gate_stale(struct gate *g, uint32_t group, uint64_t epoch);
static inline unsigned gate_generation(struct gate *g)
{
    return atomic_load(&g->generation);
}

#ifdef __cplusplus
}
#endif
#endif
