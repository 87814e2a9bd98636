#include "worker/exchange/gate.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum status waker_init(struct waker *w)
{
    atomic_init(&w->asleep, 0);
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->fd < 0 ? ST_IO : ST_OK;
}

void waker_deinit(struct waker *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

void waker_wake(struct waker *w)
{
    if (!atomic_exchange(&w->asleep, 0))
        return;
    const uint64_t one = 1;
    /* fails only if the counter is full, and then it is readable */
    const ssize_t n = write(w->fd, &one, sizeof one);
    (void)n;
}

void waker_begin(struct waker *w)
{
    atomic_store(&w->asleep, 1);
}

void waker_end(struct waker *w)
{
    uint64_t count;
    atomic_store(&w->asleep, 0);
    /* whoever took the flag may write only after this: that ends the next sleep at once, no more */
    const ssize_t n = read(w->fd, &count, sizeof count);
    (void)n;
}

enum status gate_init(struct gate *g)
{
    memset(g, 0, sizeof *g);
    atomic_init(&g->generation, 0);
    return pthread_mutex_init(&g->lock, NULL) ? ST_NO_MEMORY : ST_OK;
}

void gate_deinit(struct gate *g)
{
    pthread_mutex_destroy(&g->lock);
}

static struct gate_entry *gate_find(struct gate *g, uint32_t group)
{
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->entries[i].group == group)
            return &g->entries[i];
    }
    return NULL;
}

static struct gate_entry *gate_make(struct gate *g, uint32_t group)
{
    struct gate_entry *e = &g->entries[0];
    if (g->n < GATE_GROUPS_MAX) {
        e = &g->entries[g->n++];
    } else {
        for (uint32_t i = 1; i < g->n; i++) {
            if (g->entries[i].touched < e->touched)
                e = &g->entries[i];
        }
    }
    *e = (struct gate_entry){ .group = group };
    return e;
}

void gate_raise(struct gate *g, uint32_t group, uint64_t stale_below)
{
    pthread_mutex_lock(&g->lock);
    struct gate_entry *e = gate_find(g, group);
    if (!e)
        e = gate_make(g, group);
    e->touched = ++g->clock;
    if (stale_below > e->stale_below)
        e->stale_below = stale_below;
    pthread_mutex_unlock(&g->lock);
    atomic_fetch_add(&g->generation, 1);
}

bool gate_stale(struct gate *g, uint32_t group, uint64_t epoch)
{
    pthread_mutex_lock(&g->lock);
    struct gate_entry *e = gate_find(g, group);
    const bool stale = e && epoch < e->stale_below;
    if (e)
        e->touched = ++g->clock;
    pthread_mutex_unlock(&g->lock);
    return stale;
}
