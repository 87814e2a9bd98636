#ifndef LONGSPAN_COORDINATOR_REGISTRY_EMBEDDED_INTERNAL_H
#define LONGSPAN_COORDINATOR_REGISTRY_EMBEDDED_INTERNAL_H

/*
 * The two sides of an embedded registry. A thread (embedded_thread.c) owns the file, the lock and the leases; calls are jobs that travel to it and back to the
 * loop (embedded.c). Watches live on the loop's thread: the thread posts changes in the order in which it makes them.
 */

#include <pthread.h>

#include "coordinator/registry/embedded_store.h"
#include "coordinator/registry/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

enum job_kind { JOB_PUT, JOB_REMOVE, JOB_LIST, JOB_GRANT, JOB_KEEP, JOB_REVOKE, JOB_WATCH, JOB_CHANGE };

struct job {
    struct job *next;
    enum job_kind kind;
    struct registry_put put; /* key and value: one allocation, at put.key; remove and list use key, compare, at */
    bool exact;
    uint32_t ttl_ms;
    uint64_t number; /* lease or watch */
    registry_done *done;
    void *ctx;
    /* the answer */
    enum status status;
    struct error err;
    uint64_t revision;
    enum registry_change change;
    struct store_items items;
};

struct queue {
    struct job *first, **last;
};

struct lease {
    uint64_t id;
    uint32_t ttl_ms;
    int64_t ends_ms;
};

struct watch {
    struct watch *next;
    uint64_t id;
    char *prefix;
    registry_watch_fn *fn;
    void *ctx;
    bool synced, dead;
};

struct embedded {
    struct registry base;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* under lock */
    struct queue asked, answers;
    bool stop;
    uint32_t refs; /* the owner and every post to the loop */
    /* the thread's */
    struct store *store;
    char *path, *lock_path;
    int lock_fd;
    bool holds;
    struct lease *leases;
    size_t n_leases, leases_room;
    /* the loop's */
    struct watch *watches;
    uint64_t last_watch;
    uint32_t telling;
};

static inline void queue_add(struct queue *q, struct job *j)
{
    j->next = NULL;
    *q->last = j;
    q->last = &j->next;
}

static inline struct job *queue_take(struct queue *q)
{
    struct job *j = q->first;
    if (j && !(q->first = j->next))
        q->last = &q->first;
    return j;
}

/* The thread, till e->stop; arg: struct embedded. */
void *embedded_main(void *arg);
/* The thread has an answer, or a change to tell: it travels to the loop. */
void embedded_post(struct embedded *e, struct job *j);
/* For want of memory a change could not be told, or a call not be asked: views would be old for good. Does not return. */
void embedded_no_memory(void) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif
#endif
