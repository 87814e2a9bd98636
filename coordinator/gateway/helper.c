#include "coordinator/gateway/helper.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct job {
    struct job *next;
    void (*work)(void *arg);
    void (*done)(void *arg);
    void *arg;
};

struct queue {
    struct job *first, **last;
};

/* Posts to the loop may come after helper_free: each holds a reference, as the owner does. */
struct helper {
    struct loop *loop;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    uint32_t refs;
    struct queue waiting, finished; /* under lock */
    uint32_t pending;               /* loop thread */
};

static void queue_add(struct queue *q, struct job *job)
{
    job->next = NULL;
    *q->last = job;
    q->last = &job->next;
}

static struct job *queue_take(struct queue *q)
{
    struct job *job = q->first;
    if (job && !(q->first = job->next))
        q->last = &q->first;
    return job;
}

static void helper_unref(struct helper *h)
{
    pthread_mutex_lock(&h->lock);
    const uint32_t refs = --h->refs;
    pthread_mutex_unlock(&h->lock);
    if (refs)
        return;
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

static struct job *take_locked(struct helper *h, struct queue *q)
{
    pthread_mutex_lock(&h->lock);
    struct job *job = queue_take(q);
    pthread_mutex_unlock(&h->lock);
    return job;
}

/* Loop thread. */
static void finish_jobs(struct helper *h, struct queue *q)
{
    for (struct job *job; (job = take_locked(h, q));) {
        h->pending--;
        job->done(job->arg);
        free(job);
    }
}

static void on_finished(void *arg)
{
    struct helper *h = arg;
    finish_jobs(h, &h->finished);
    helper_unref(h);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    pthread_mutex_lock(&h->lock);
    for (;;) {
        while (!h->stop && !h->waiting.first)
            pthread_cond_wait(&h->wake, &h->lock);
        if (h->stop)
            break;
        struct job *job = queue_take(&h->waiting);
        pthread_mutex_unlock(&h->lock);
        job->work(job->arg);
        pthread_mutex_lock(&h->lock);
        queue_add(&h->finished, job);
        h->refs++;
        loop_post(h->loop, on_finished, h);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

enum status helper_new(struct loop *loop, struct helper **helper_out)
{
    struct helper *h = calloc(1, sizeof *h);
    if (!h)
        return ST_NO_MEMORY;
    h->loop = loop;
    h->refs = 1;
    h->waiting.last = &h->waiting.first;
    h->finished.last = &h->finished.first;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->wake, NULL);
    if (pthread_create(&h->thread, NULL, helper_main, h) != 0) {
        helper_unref(h);
        return ST_NO_MEMORY;
    }
    *helper_out = h;
    return ST_OK;
}

enum status helper_run(struct helper *h, void (*work)(void *arg), void (*done)(void *arg), void *arg)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return ST_NO_MEMORY;
    *job = (struct job){ .work = work, .done = done, .arg = arg };
    h->pending++;
    pthread_mutex_lock(&h->lock);
    queue_add(&h->waiting, job);
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
    return ST_OK;
}

uint32_t helper_pending(const struct helper *h)
{
    return h->pending;
}

void helper_free(struct helper *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    h->stop = true;
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    finish_jobs(h, &h->finished);
    finish_jobs(h, &h->waiting);
    helper_unref(h);
}
