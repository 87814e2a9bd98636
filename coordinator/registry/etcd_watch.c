#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/registry/etcd_internal.h"

/*
 * list -> tell what is new since the last list -> stream from the revision behind it -> the stream ends: open it again from where it was; that revision
 * is compacted: list again. The keys that were told are kept with their revisions, so that a list can be told as changes.
 */
struct known {
    char *key;
    uint64_t revision;
    bool seen; /* in the list that is being told */
};

struct etcd_watcher {
    struct etcd_watcher *next;
    struct etcd *e;
    uint64_t id;
    char *prefix;
    registry_watch_fn *fn;
    void *ctx;
    struct loop_timer *timer; /* the next try */
    bool listing;             /* an answer is to come: it holds the memory */
    bool listed, synced, dead;
    struct etcd_call *stream;
    uint64_t next_revision;
    struct known *known; /* ascending by key */
    size_t n_known, room;
};

static void watcher_free(struct etcd_watcher *w)
{
    for (size_t i = 0; i < w->n_known; i++)
        free(w->known[i].key);
    loop_timer_free(w->timer);
    free(w->known);
    free(w->prefix);
    free(w);
}

static void sweep(struct etcd *e)
{
    if (e->telling)
        return;
    for (struct etcd_watcher **link = &e->watchers, *w; (w = *link);) {
        if (!w->dead || w->listing) {
            link = &w->next;
            continue;
        }
        *link = w->next;
        watcher_free(w);
    }
}

/* ---- what was told ---- */

/* The place of key, or where it would be. */
static size_t known_at(const struct etcd_watcher *w, const char *key, bool *found_out)
{
    size_t low = 0, high = w->n_known;
    *found_out = false;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(w->known[middle].key, key);
        if (!order) {
            *found_out = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void known_add(struct etcd_watcher *w, size_t at, const struct registry_item *item)
{
    if (w->n_known == w->room) {
        const size_t room = w->room ? 2 * w->room : 16;
        struct known *more = realloc(w->known, room * sizeof *more);
        if (!more)
            etcd_no_memory();
        w->known = more;
        w->room = room;
    }
    char *key = strdup(item->key);
    if (!key)
        etcd_no_memory();
    memmove(w->known + at + 1, w->known + at, (w->n_known - at) * sizeof *w->known);
    w->known[at] = (struct known){ key, item->revision, true };
    w->n_known++;
}

static void known_remove(struct etcd_watcher *w, size_t at)
{
    free(w->known[at].key);
    w->n_known--;
    memmove(w->known + at, w->known + at + 1, (w->n_known - at) * sizeof *w->known);
}

static void tell(struct etcd_watcher *w, enum registry_change change, const struct registry_item *item)
{
    if (!w->dead)
        w->fn(w->ctx, change, item);
}

static void take_put(struct etcd_watcher *w, const struct registry_item *item)
{
    bool found;
    const size_t at = known_at(w, item->key, &found);
    if (found) {
        w->known[at].seen = true;
        if (w->known[at].revision == item->revision)
            return;
        w->known[at].revision = item->revision;
    } else {
        known_add(w, at, item);
    }
    tell(w, REGISTRY_PUT, item);
}

static void take_removal(struct etcd_watcher *w, const struct registry_item *item)
{
    bool found;
    const size_t at = known_at(w, item->key, &found);
    if (!found)
        return;
    known_remove(w, at);
    const struct registry_item told = { .key = item->key, .revision = item->revision };
    tell(w, REGISTRY_REMOVED, &told);
}

/* ---- list ---- */

static void stream_open(struct etcd_watcher *w);

static void tell_list(struct etcd_watcher *w, const struct registry_answer *a)
{
    for (size_t i = 0; i < w->n_known; i++)
        w->known[i].seen = false;
    for (size_t i = 0; i < a->n_items; i++)
        take_put(w, &a->items[i]);
    for (size_t i = w->n_known; i-- > 0;) {
        if (w->known[i].seen)
            continue;
        char *key = w->known[i].key;
        w->known[i].key = NULL;
        known_remove(w, i);
        tell(w, REGISTRY_REMOVED, &(struct registry_item){ .key = key, .revision = a->revision });
        free(key);
    }
    if (!w->synced)
        tell(w, REGISTRY_SYNCED, NULL);
    w->synced = true;
}

static void on_listed(void *ctx, const struct registry_answer *a)
{
    struct etcd_watcher *w = ctx;
    struct etcd *e = w->e;
    w->listing = false;
    if (!w->dead && a->status) {
        loop_timer_set(w->timer, ETCD_BACKOFF_MS);
    } else if (!w->dead) {
        e->telling++;
        w->listed = true;
        w->next_revision = a->revision + 1;
        tell_list(w, a);
        e->telling--;
        if (!w->dead)
            stream_open(w);
    }
    sweep(e);
}

static void list(struct etcd_watcher *w)
{
    w->listed = false;
    w->listing = true;
    w->e->base.ops->list(&w->e->base, w->prefix, false, on_listed, w);
}

static void on_timer(void *arg)
{
    struct etcd_watcher *w = arg;
    if (w->listing || w->stream)
        return;
    if (w->listed)
        stream_open(w);
    else
        list(w);
}

/* ---- stream ---- */

static void again(struct etcd_watcher *w, bool from_list)
{
    etcd_call_drop(w->stream);
    w->stream = NULL;
    if (from_list)
        w->listed = false;
    loop_timer_set(w->timer, ETCD_BACKOFF_MS);
}

static void on_event(void *ctx, bool removed, const struct registry_item *item)
{
    struct etcd_watcher *w = ctx;
    if (item->revision >= w->next_revision)
        w->next_revision = item->revision + 1;
    if (removed)
        take_removal(w, item);
    else
        take_put(w, item);
}

static void take_message(struct etcd_watcher *w, const struct etcd_reply *reply)
{
    struct etcd *e = w->e;
    struct etcd_watched watched = { .event = on_event, .ctx = w };
    const uint64_t before = w->next_revision;
    e->telling++;
    const enum status st = etcd_read_watch(reply->data, reply->bytes, e->ns, &watched);
    e->telling--;
    if (w->dead)
        return;
    etcd_revision_seen(e, watched.revision);
    if (st) {
        log_warn("registry: etcd: a watch message of %zu bytes cannot be read", reply->bytes);
        again(w, true);
    } else if (watched.cancelled) {
        again(w, watched.compacted);
    } else if (watched.created && watched.revision + 1 < before) {
        again(w, true); /* it is behind what was seen: a member that lags, or a store that began anew */
    } else if (!watched.created && watched.revision >= w->next_revision) {
        w->next_revision = watched.revision + 1; /* all before was told */
    }
}

static void on_reply(void *ctx, const struct etcd_reply *reply)
{
    struct etcd_watcher *w = ctx;
    struct etcd *e = w->e;
    if (reply->data) {
        take_message(w, reply);
    } else {
        struct etcd_call *call = w->stream;
        w->stream = NULL;
        if (etcd_code_passes(reply->code))
            etcd_call_blame(call, reply->text);
        loop_timer_set(w->timer, ETCD_BACKOFF_MS);
    }
    sweep(e);
}

static void stream_open(struct etcd_watcher *w)
{
    const struct etcd_key key = { .ns = w->e->ns, .key = w->prefix };
    struct etcd_packed packed = etcd_watch(&key, w->next_revision);
    if (!packed.data)
        etcd_no_memory();
    w->stream = etcd_call_start(w->e->net, "/etcdserverpb.Watch/Watch", 0, packed.data, packed.bytes, on_reply, w);
    etcd_packed_free(&packed);
    if (!w->stream)
        loop_timer_set(w->timer, ETCD_BACKOFF_MS);
}

/* ---- the face ---- */

uint64_t etcd_watch_start(struct registry *r, const char *prefix, registry_watch_fn *fn, void *ctx)
{
    struct etcd *e = (struct etcd *)r; /* its first member */
    struct etcd_watcher *w = calloc(1, sizeof *w);
    if (!w || !(w->prefix = strdup(prefix)) || !(w->timer = loop_timer_new(r->loop, on_timer, w)))
        etcd_no_memory();
    w->e = e;
    w->id = ++e->last_watch;
    w->fn = fn;
    w->ctx = ctx;
    struct etcd_watcher **link = &e->watchers;
    while (*link)
        link = &(*link)->next;
    *link = w;
    list(w);
    return w->id;
}

static void watcher_kill(struct etcd_watcher *w)
{
    w->dead = true;
    etcd_call_drop(w->stream);
    w->stream = NULL;
    loop_timer_set(w->timer, -1);
}

void etcd_watch_stop(struct registry *r, uint64_t watch)
{
    struct etcd *e = (struct etcd *)r;
    for (struct etcd_watcher *w = e->watchers; w; w = w->next)
        if (w->id == watch)
            watcher_kill(w);
    sweep(e);
}

void etcd_watches_move(struct etcd *e)
{
    for (struct etcd_watcher *w = e->watchers; w; w = w->next)
        if (w->stream)
            again(w, false);
}

void etcd_watches_free(struct etcd *e)
{
    for (struct etcd_watcher *w = e->watchers; w; w = w->next)
        watcher_kill(w);
    sweep(e);
}
