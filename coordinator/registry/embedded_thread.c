/* The thread of an embedded registry: what is asked is done, and leases end. */
#include <errno.h>
#include <stdlib.h>
#include <sys/file.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/embedded_internal.h"

enum { LOCK_RETRY_MS = 200 };

/* Takes the items. A change that cannot be told for want of memory would leave watchers with an old view for good. */
static void tell(struct embedded *e, enum registry_change change, struct store_items *items)
{
    if (!items->n) {
        store_items_free(items);
        return;
    }
    struct job *j = calloc(1, sizeof *j);
    if (!j)
        embedded_no_memory();
    j->kind = JOB_CHANGE;
    j->change = change;
    j->items = *items;
    *items = (struct store_items){ 0 };
    embedded_post(e, j);
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
    if (!store_items_add(&items, &item))
        embedded_no_memory();
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
    embedded_post(e, j);
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

void *embedded_main(void *arg)
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
