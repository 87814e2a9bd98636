#include "common/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <event2/event.h>

struct post {
    void (*fn)(void *arg);
    void *arg;
};

struct posts {
    struct post *items;
    size_t n, room;
};

struct loop {
    struct event_base *base;
    struct event *bell;
    int bell_fd;
    atomic_bool stop;
    pthread_mutex_t lock;
    struct posts waiting; /* under lock */
    struct posts running; /* loop thread: the batch taken last; its memory goes back and forth with waiting */
};

struct loop_timer {
    struct event *event;
    void (*fn)(void *arg);
    void *arg;
};

/* Safe in signal handlers: one write, errno kept. A full counter already wakes the loop. */
static void bell_ring(struct loop *loop)
{
    const int saved = errno;
    const uint64_t one = 1;
    while (write(loop->bell_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    errno = saved;
}

static bool posts_take(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    const struct posts taken = loop->waiting;
    loop->waiting = loop->running;
    loop->waiting.n = 0;
    loop->running = taken;
    pthread_mutex_unlock(&loop->lock);
    return taken.n > 0;
}

/* One batch: what is posted meanwhile waits for the next turn, so that posts cannot starve sockets and timers. */
static bool posts_run(struct loop *loop)
{
    if (!posts_take(loop))
        return false;
    for (size_t i = 0; i < loop->running.n; i++) {
        const struct post p = loop->running.items[i];
        p.fn(p.arg);
    }
    loop->running.n = 0;
    return true;
}

static void on_bell(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    struct loop *loop = arg;
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
    if (atomic_load(&loop->stop))
        event_base_loopbreak(loop->base);
    else
        posts_run(loop);
}

enum status loop_new(struct loop **loop_out)
{
    struct event_config *config = NULL;
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return ST_NO_MEMORY;
    pthread_mutex_init(&loop->lock, NULL);
    loop->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->bell_fd < 0)
        goto fail;
    config = event_config_new();
    if (!config)
        goto fail;
    /* libevent's default clock ticks every 4 ms and is read once a turn: a timer set late in a long callback would fire early */
    event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
    event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    loop->base = event_base_new_with_config(config);
    if (!loop->base)
        goto fail;
    loop->bell = event_new(loop->base, loop->bell_fd, EV_READ | EV_PERSIST, on_bell, loop);
    if (!loop->bell || event_add(loop->bell, NULL) < 0)
        goto fail;
    event_config_free(config);
    *loop_out = loop;
    return ST_OK;
fail:
    if (config)
        event_config_free(config);
    loop_free(loop);
    return ST_NO_MEMORY;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    if (loop->bell)
        event_free(loop->bell);
    if (loop->base)
        event_base_free(loop->base);
    if (loop->bell_fd >= 0)
        close(loop->bell_fd);
    free(loop->waiting.items);
    free(loop->running.items);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

struct event_base *loop_base(struct loop *loop)
{
    return loop->base;
}

void loop_run(struct loop *loop)
{
    while (!atomic_load(&loop->stop))
        if (event_base_loop(loop->base, EVLOOP_NO_EXIT_ON_EMPTY) < 0)
            break;
    loop_drain(loop);
    atomic_store(&loop->stop, false);
}

void loop_drain(struct loop *loop)
{
    while (posts_run(loop))
        ;
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    bell_ring(loop);
}

void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&loop->lock);
    struct posts *w = &loop->waiting;
    if (w->n == w->room) {
        const size_t room = w->room ? 2 * w->room : 64;
        struct post *items = realloc(w->items, room * sizeof *items);
        if (!items) {
            /* a lost post would leave some request waiting for ever */
            fputs("out of memory in loop_post\n", stderr);
            abort();
        }
        w->items = items;
        w->room = room;
    }
    w->items[w->n++] = (struct post){ fn, arg };
    const bool first = w->n == 1;
    pthread_mutex_unlock(&loop->lock);
    if (first)
        bell_ring(loop);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    const struct loop_timer *timer = arg;
    timer->fn(timer->arg); /* may free the timer */
}

struct loop_timer *loop_timer_new(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct loop_timer *timer = calloc(1, sizeof *timer);
    if (!timer)
        return NULL;
    timer->fn = fn;
    timer->arg = arg;
    timer->event = evtimer_new(loop->base, on_timer, timer);
    if (!timer->event) {
        free(timer);
        return NULL;
    }
    return timer;
}

void loop_timer_set(struct loop_timer *timer, int64_t after_ms)
{
    if (after_ms < 0) {
        event_del(timer->event);
        return;
    }
    const struct timeval after = { .tv_sec = after_ms / 1000, .tv_usec = after_ms % 1000 * 1000 };
    event_add(timer->event, &after);
}

void loop_timer_free(struct loop_timer *timer)
{
    if (!timer)
        return;
    event_free(timer->event);
    free(timer);
}
