#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/embedded_store.h"
#include "coordinator/registry/registry.h"

/*
 * A thread owns the file, the lock and the leases; calls are jobs that travel to it and back to the loop. Watches live on the loop's thread: the thread
 * posts changes in the order in which it makes them.
 */
enum { LOCK_RETRY_MS = 200 };

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

static struct embedded *self(struct registry *r)
{
    return (struct embedded *)r; /* its first member */
}

static void queue_add(struct queue *q, struct job *j)
{
    j->next = NULL;
    *q->last = j;
    q->last = &j->next;
}

static struct job *queue_take(struct queue *q)
{
    struct job *j = q->first;
    if (j && !(q->first = j->next))
        q->last = &q->first;
    return j;
}

static void embedded_unref(struct embedded *e)
{
    pthread_mutex_lock(&e->lock);
    const uint32_t refs = --e->refs;
    pthread_mutex_unlock(&e->lock);
    if (refs)
        return;
    store_close(e->store);
    if (e->lock_fd >= 0)
        close(e->lock_fd);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    free(e->leases);
    free(e->path);
    free(e->lock_path);
    free(e);
}

static void job_free(struct job *j)
{
    store_items_free(&j->items);
    free((char *)(uintptr_t)j->put.key);
    free(j);
}

/* ---- loop thread: answers and watches ---- */

static void watches_sweep(struct embedded *e)
{
    if (e->telling)
        return;
    for (struct watch **link = &e->watches, *w; (w = *link);) {
        if (!w->dead) {
            link = &w->next;
            continue;
        }
        *link = w->next;
        free(w->prefix);
        free(w);
    }
}

static void watch_begin(struct embedded *e, const struct job *j)
{
    struct watch *w = e->watches;
    while (w && w->id != j->number)
        w = w->next;
    if (!w || w->dead)
        return;
    e->telling++;
    for (size_t i = 0; i < j->items.n && !w->dead; i++)
        w->fn(w->ctx, REGISTRY_PUT, &j->items.items[i]);
    if (!w->dead)
        w->fn(w->ctx, REGISTRY_SYNCED, NULL);
    w->synced = true;
    e->telling--;
    watches_sweep(e);
}

static void watches_tell(struct embedded *e, const struct job *j)
{
    e->telling++;
    for (size_t i = 0; i < j->items.n; i++)
        for (const struct watch *w = e->watches; w; w = w->next)
            if (w->synced && !w->dead && !strncmp(j->items.items[i].key, w->prefix, strlen(w->prefix)))
                w->fn(w->ctx, j->change, &j->items.items[i]);
    e->telling--;
    watches_sweep(e);
}

static void answer(struct embedded *e, const struct job *j)
{
    const struct registry_answer a = { .status = j->status,
                                       .message = j->status ? j->err.text : "",
                                       .revision = j->revision,
                                       .lease = j->kind == JOB_GRANT ? j->number : 0,
                                       .n_items = j->items.n,
                                       .items = j->items.items };
    if (j->kind == JOB_WATCH)
        watch_begin(e, j);
    else if (j->kind == JOB_CHANGE)
        watches_tell(e, j);
    else if (j->done)
        j->done(j->ctx, &a);
}

static void answer_all(struct embedded *e)
{
    for (;;) {
        pthread_mutex_lock(&e->lock);
        struct job *j = queue_take(&e->answers);
        pthread_mutex_unlock(&e->lock);
        if (!j)
            return;
        answer(e, j);
        job_free(j);
    }
}

/* May come after close, and then finds nothing. */
static void on_answers(void *arg)
{
    struct embedded *e = arg;
    answer_all(e);
    embedded_unref(e);
}

/* ---- the thread ---- */

static void post(struct embedded *e, struct job *j)
{
    pthread_mutex_lock(&e->lock);
    queue_add(&e->answers, j);
    e->refs++;
    pthread_mutex_unlock(&e->lock);
    loop_post(e->base.loop, on_answers, e);
}

/* Takes the items. A change that cannot be told for want of memory would leave watchers with an old view for good. */
static void tell(struct embedded *e, enum registry_change change, struct store_items *items)
{
    if (!items->n) {
        store_items_free(items);
        return;
    }
    struct job *j = calloc(1, sizeof *j);
    if (!j) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    j->kind = JOB_CHANGE;
    j->change = change;
    j->items = *items;
    *items = (struct store_items){ 0 };
    post(e, j);
}

static void tell_one(struct embedded *e, enum registry_change change, const struct registry_put *put, uint64_t revision)
{
    struct store_items items = { 0 };
    const bool is_put = change == REGISTRY_PUT;
    const struct registry_item item = { .key = put->key,
                                        .value = is_put ? put->value : NULL,
                                        .bytes = is_put ? put->bytes : 0,
                                        .revision = revision,
                                        .lease = is_put ? put->lease : 0 };
    if (!store_items_add(&items, &item)) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    tell(e, change, &items);
}

static struct lease *lease_find(struct embedded *e, uint64_t id)
{
    for (size_t i = 0; i < e->n_leases; i++)
        if (e->leases[i].id == id)
            return &e->leases[i];
    return NULL;
}

static enum status lease_end(struct embedded *e, struct lease *l, struct error *err)
{
    struct store_items removed = { 0 };
    const enum status st = store_remove_lease(e->store, l->id, &removed, err);
    if (st)
        return st;
    *l = e->leases[--e->n_leases];
    tell(e, REGISTRY_REMOVED, &removed);
    return ST_OK;
}

/* A lease whose keys cannot be removed now is tried again with the next. */
static void leases_expire(struct embedded *e)
{
    const int64_t now = clock_ms();
    for (size_t i = 0; i < e->n_leases;) {
        struct lease *l = &e->leases[i];
        struct error err = { 0 };
        if (l->ends_ms > now) {
            i++;
            continue;
        }
        if (lease_end(e, l, &err)) {
            log_error("%s", err.text);
            l->ends_ms = now + LOCK_RETRY_MS;
            i++;
        }
    }
}

/* Whoever has the lock is the only writer. Leases were kept by the process that had it before: they ended with it. */
static void lock_try(struct embedded *e)
{
    if (e->holds || flock(e->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return;
    struct store_items removed = { 0 };
    struct error err = { 0 };
    if (store_remove_lease(e->store, 0, &removed, &err)) {
        log_error("%s", err.text);
        flock(e->lock_fd, LOCK_UN);
        return;
    }
    e->holds = true;
    tell(e, REGISTRY_REMOVED, &removed);
}

static enum status do_put(struct embedded *e, struct job *j)
{
    if (j->put.lease && !lease_find(e, j->put.lease))
        return error_set(&j->err, ST_NOT_FOUND, "registry: the lease has ended");
    const enum status st = store_put(e->store, &j->put, &j->revision, &j->items, &j->err);
    if (!st) {
        store_items_free(&j->items);
        tell_one(e, REGISTRY_PUT, &j->put, j->revision);
    }
    return st;
}

static enum status do_remove(struct embedded *e, struct job *j)
{
    bool removed = false;
    const enum status st =
        store_remove(e->store, j->put.key, j->put.compare, j->put.at, &j->revision, &removed, &j->items, &j->err);
    if (!st) {
        store_items_free(&j->items);
        if (removed)
            tell_one(e, REGISTRY_REMOVED, &j->put, j->revision);
    }
    return st;
}

static enum status do_grant(struct embedded *e, struct job *j)
{
    if (e->n_leases == e->leases_room) {
        const size_t room = e->leases_room ? 2 * e->leases_room : 16;
        struct lease *more = realloc(e->leases, room * sizeof *more);
        if (!more)
            return ST_NO_MEMORY;
        e->leases = more;
        e->leases_room = room;
    }
    const enum status st = store_number(e->store, &j->number, &j->err);
    if (!st)
        e->leases[e->n_leases++] = (struct lease){ j->number, j->ttl_ms, clock_ms() + j->ttl_ms };
    return st;
}

static enum status do_lease(struct embedded *e, struct job *j)
{
    struct lease *l = lease_find(e, j->number);
    if (!l)
        return error_set(&j->err, ST_NOT_FOUND, "registry: the lease has ended");
    if (j->kind == JOB_REVOKE)
        return lease_end(e, l, &j->err);
    l->ends_ms = clock_ms() + l->ttl_ms;
    return ST_OK;
}

static enum status job_do(struct embedded *e, struct job *j)
{
    const bool reads = j->kind == JOB_LIST || j->kind == JOB_WATCH;
    if (!e->holds)
        lock_try(e);
    if (!reads && !e->holds)
        return error_set(&j->err, ST_BUSY, "registry %s: another process holds it", e->path);
    switch (j->kind) {
    case JOB_PUT:
        return do_put(e, j);
    case JOB_REMOVE:
        return do_remove(e, j);
    case JOB_GRANT:
        return do_grant(e, j);
    case JOB_KEEP:
    case JOB_REVOKE:
        return do_lease(e, j);
    default:
        return store_list(e->store, j->put.key, j->exact, &j->items, &j->revision, &j->err);
    }
}

static void job_run(struct embedded *e, struct job *j)
{
    /* a refusal was decided on when it was asked */
    if (!j->status)
        j->status = job_do(e, j);
    if (j->status == ST_STALE)
        error_set(&j->err, ST_STALE, "registry: '%s' is not as expected", j->put.key);
    if (j->status && !*j->err.text)
        error_set(&j->err, j->status, "registry: %s", status_text(j->status));
    if (j->status == ST_IO || j->status == ST_CORRUPT || j->status == ST_NO_MEMORY)
        log_error("%s", j->err.text);
    post(e, j);
}

static int64_t next_ms(const struct embedded *e)
{
    const int64_t now = clock_ms();
    int64_t next = e->holds ? now + 3600000 : now + LOCK_RETRY_MS;
    for (size_t i = 0; i < e->n_leases; i++)
        if (e->leases[i].ends_ms < next)
            next = e->leases[i].ends_ms;
    return next;
}

/* NULL: time has passed, or it is over. */
static struct job *job_wait(struct embedded *e, bool *over_out)
{
    const int64_t next = next_ms(e);
    const struct timespec at = { .tv_sec = next / 1000, .tv_nsec = next % 1000 * 1000000 };
    pthread_mutex_lock(&e->lock);
    while (!e->asked.first && !e->stop)
        if (pthread_cond_timedwait(&e->wake, &e->lock, &at) == ETIMEDOUT)
            break;
    struct job *j = queue_take(&e->asked);
    *over_out = !j && e->stop;
    pthread_mutex_unlock(&e->lock);
    return j;
}

static void *embedded_main(void *arg)
{
    struct embedded *e = arg;
    for (bool over = false; !over;) {
        struct job *j = job_wait(e, &over);
        lock_try(e);
        leases_expire(e);
        if (j)
            job_run(e, j);
    }
    return NULL;
}

/* ---- the face ---- */

static struct job *job_new(enum job_kind kind, registry_done *done, void *ctx)
{
    struct job *j = calloc(1, sizeof *j);
    if (!j) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    j->kind = kind;
    j->done = done;
    j->ctx = ctx;
    return j;
}

static void job_key(struct job *j, const char *key, const void *value, size_t bytes, bool may_be_empty)
{
    const size_t n = strlen(key);
    if (n > REGISTRY_KEY_MAX || (!n && !may_be_empty))
        j->status = error_set(&j->err, ST_INVALID, "registry: a key has 1 to %d bytes", REGISTRY_KEY_MAX);
    else if (bytes > REGISTRY_VALUE_MAX)
        j->status = error_set(&j->err, ST_INVALID, "registry: the value of '%s' has %zu bytes, at most %d are kept",
                              key, bytes, REGISTRY_VALUE_MAX);
    const size_t kept = j->status ? 0 : bytes;
    char *data = malloc(n + 1 + kept);
    if (!data) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    memcpy(data, key, n + 1);
    if (kept)
        memcpy(data + n + 1, value, kept);
    j->put.key = data;
    j->put.value = data + n + 1;
    j->put.bytes = kept;
}

static void job_send(struct registry *r, struct job *j)
{
    struct embedded *e = self(r);
    pthread_mutex_lock(&e->lock);
    queue_add(&e->asked, j);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

static void embedded_put(struct registry *r, const struct registry_put *put, registry_done *done, void *ctx)
{
    struct job *j = job_new(JOB_PUT, done, ctx);
    j->put = *put;
    job_key(j, put->key, put->value, put->bytes, false);
    job_send(r, j);
}

static void embedded_remove(struct registry *r, const char *key, enum registry_compare compare, uint64_t at,
                            registry_done *done, void *ctx)
{
    struct job *j = job_new(JOB_REMOVE, done, ctx);
    j->put.compare = compare;
    j->put.at = at;
    job_key(j, key, NULL, 0, false);
    job_send(r, j);
}

static void embedded_list(struct registry *r, const char *prefix, bool exact, registry_done *done, void *ctx)
{
    struct job *j = job_new(JOB_LIST, done, ctx);
    j->exact = exact;
    job_key(j, prefix, NULL, 0, !exact);
    job_send(r, j);
}

static void embedded_lease_grant(struct registry *r, uint32_t ttl_ms, registry_done *done, void *ctx)
{
    struct job *j = job_new(JOB_GRANT, done, ctx);
    j->ttl_ms = ttl_ms;
    if (ttl_ms < REGISTRY_TTL_MIN_MS || ttl_ms > REGISTRY_TTL_MAX_MS)
        j->status = error_set(&j->err, ST_INVALID, "registry: a lease lasts %d to %d ms", REGISTRY_TTL_MIN_MS,
                              REGISTRY_TTL_MAX_MS);
    job_send(r, j);
}

static void lease_job(struct registry *r, enum job_kind kind, uint64_t lease, registry_done *done, void *ctx)
{
    struct job *j = job_new(kind, done, ctx);
    j->number = lease;
    job_send(r, j);
}

static void embedded_lease_keep(struct registry *r, uint64_t lease, registry_done *done, void *ctx)
{
    lease_job(r, JOB_KEEP, lease, done, ctx);
}

static void embedded_lease_revoke(struct registry *r, uint64_t lease, registry_done *done, void *ctx)
{
    lease_job(r, JOB_REVOKE, lease, done, ctx);
}

static uint64_t embedded_watch(struct registry *r, const char *prefix, registry_watch_fn *fn, void *ctx)
{
    struct embedded *e = self(r);
    struct job *j = job_new(JOB_WATCH, NULL, NULL);
    struct watch *w = calloc(1, sizeof *w);
    if (!w || !(w->prefix = strdup(prefix))) {
        fputs("out of memory in the registry\n", stderr);
        abort();
    }
    w->id = j->number = ++e->last_watch;
    w->fn = fn;
    w->ctx = ctx;
    struct watch **link = &e->watches;
    while (*link)
        link = &(*link)->next;
    *link = w;
    job_key(j, prefix, NULL, 0, true);
    job_send(r, j);
    return w->id;
}

static void embedded_unwatch(struct registry *r, uint64_t watch)
{
    struct embedded *e = self(r);
    for (struct watch *w = e->watches; w; w = w->next)
        if (w->id == watch)
            w->dead = true;
    watches_sweep(e);
}

static void embedded_close(struct registry *r)
{
    struct embedded *e = self(r);
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    answer_all(e);
    for (struct watch *w = e->watches; w; w = w->next)
        w->dead = true;
    watches_sweep(e);
    /* posts to the loop may still hold the rest; the file and the lock are let go of now */
    store_close(e->store);
    e->store = NULL;
    close(e->lock_fd);
    e->lock_fd = -1;
    embedded_unref(e);
}

static const struct registry_ops embedded_ops = { .put = embedded_put,
                                                  .remove = embedded_remove,
                                                  .list = embedded_list,
                                                  .lease_grant = embedded_lease_grant,
                                                  .lease_keep = embedded_lease_keep,
                                                  .lease_revoke = embedded_lease_revoke,
                                                  .watch = embedded_watch,
                                                  .unwatch = embedded_unwatch,
                                                  .close = embedded_close };

static struct embedded *embedded_new(const char *path, struct loop *loop)
{
    struct embedded *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&e->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&e->lock, NULL);
    e->base = (struct registry){ &embedded_ops, loop };
    e->asked.last = &e->asked.first;
    e->answers.last = &e->answers.first;
    e->lock_fd = -1;
    e->refs = 1;
    e->path = strdup(path);
    if (!e->path || asprintf(&e->lock_path, "%s.lock", path) < 0) {
        e->lock_path = NULL;
        embedded_unref(e);
        return NULL;
    }
    return e;
}

enum status registry_embedded_open(const char *path, const struct tls *tls, struct loop *loop,
                                   struct registry **registry_out, struct error *err)
{
    (void)tls; /* nothing leaves this host */
    struct embedded *e = embedded_new(path, loop);
    if (!e)
        return error_set(err, ST_NO_MEMORY, "registry: out of memory");
    enum status st = store_open(path, &e->store, err);
    if (st)
        goto fail;
    e->lock_fd = open(e->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (e->lock_fd < 0) {
        st = error_set(err, ST_IO, "registry %s: %s", e->lock_path, strerror(errno));
        goto fail;
    }
    if (pthread_create(&e->thread, NULL, embedded_main, e) != 0) {
        st = error_set(err, ST_NO_MEMORY, "registry: no thread");
        goto fail;
    }
    *registry_out = &e->base;
    return ST_OK;
fail:
    embedded_unref(e);
    return st;
}
