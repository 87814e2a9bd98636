#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/registry/embedded_internal.h"

static struct embedded *self(struct registry *r)
{
    return (struct embedded *)r; /* its first member */
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

void embedded_post(struct embedded *e, struct job *j)
{
    pthread_mutex_lock(&e->lock);
    queue_add(&e->answers, j);
    e->refs++;
    pthread_mutex_unlock(&e->lock);
    loop_post(e->base.loop, on_answers, e);
}

/* ---- the face ---- */

void embedded_no_memory(void)
{
    fputs("out of memory in the registry\n", stderr);
    abort();
}

static struct job *job_new(enum job_kind kind, registry_done *done, void *ctx)
{
    struct job *j = calloc(1, sizeof *j);
    if (!j)
        embedded_no_memory();
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
    if (!data)
        embedded_no_memory();
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
    if (!w || !(w->prefix = strdup(prefix)))
        embedded_no_memory();
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
