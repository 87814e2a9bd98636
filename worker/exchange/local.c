/*
 * Workers of one process. Each exchange has a box that others put messages into; boxes outlive their exchange for as long as a peer points to
 * them, so that a send to one that just closed is an error and not a crash.
 */
#include "worker/exchange/exchange.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "worker/exchange/core.h"

struct box {
    atomic_int refs;
    uint16_t id;
    uint64_t instance;
    struct waker waker;
    pthread_mutex_t lock;
    struct message *first, **end; /* under lock */
    bool shut;                    /* under lock */
    atomic_uint n_pending;
    atomic_bool closed; /* shut, for peers' progress */
    struct box *next;   /* under the hub's lock */
};

struct exchange_hub {
    pthread_mutex_t lock;
    struct box *boxes; /* of open exchanges */
    atomic_uint closings;
};

struct local {
    struct exchange x; /* first: a struct exchange * is a struct local * */
    struct exchange_hub *hub;
    struct box *box;
    struct box *to[EXCHANGE_PEERS_MAX]; /* beside x.peers */
    unsigned closings_seen;
};

struct exchange_hub *exchange_hub_new(void)
{
    struct exchange_hub *hub = calloc(1, sizeof *hub);
    if (hub && pthread_mutex_init(&hub->lock, NULL)) {
        free(hub);
        return NULL;
    }
    return hub;
}

void exchange_hub_free(struct exchange_hub *hub)
{
    if (!hub)
        return;
    pthread_mutex_destroy(&hub->lock);
    free(hub);
}

static void messages_free(struct message *m)
{
    while (m) {
        struct message *next = m->next;
        message_free(m);
        m = next;
    }
}

static struct box *box_new(uint16_t id, uint64_t instance)
{
    struct box *box = calloc(1, sizeof *box);
    if (!box)
        return NULL;
    atomic_init(&box->refs, 1);
    box->id = id;
    box->instance = instance;
    box->end = &box->first;
    if (waker_init(&box->waker)) {
        free(box);
        return NULL;
    }
    if (pthread_mutex_init(&box->lock, NULL)) {
        waker_deinit(&box->waker);
        free(box);
        return NULL;
    }
    return box;
}

static void box_unref(struct box *box)
{
    if (!box || atomic_fetch_sub(&box->refs, 1) != 1)
        return;
    messages_free(box->first);
    pthread_mutex_destroy(&box->lock);
    waker_deinit(&box->waker);
    free(box);
}

/* m is taken, unless the box is shut. */
static bool box_put(struct box *box, struct message *m)
{
    pthread_mutex_lock(&box->lock);
    const bool open = !box->shut;
    if (open) {
        m->next = NULL;
        *box->end = m;
        box->end = &m->next;
        atomic_fetch_add(&box->n_pending, 1);
    }
    pthread_mutex_unlock(&box->lock);
    if (open)
        waker_wake(&box->waker);
    return open;
}

static struct message *box_empty(struct box *box)
{
    if (!atomic_load(&box->n_pending))
        return NULL;
    pthread_mutex_lock(&box->lock);
    struct message *all = box->first;
    box->first = NULL;
    box->end = &box->first;
    atomic_store(&box->n_pending, 0);
    pthread_mutex_unlock(&box->lock);
    return all;
}

static struct local *local_of(struct exchange *x)
{
    return (struct local *)x;
}

static void to_drop(struct local *l, size_t i)
{
    box_unref(l->to[i]);
    l->to[i] = NULL;
}

static void arrive(struct local *l, struct message *m)
{
    const struct message_header *h = &m->header;
    if (!exchange_admit(&l->x, h)) {
        stash_message_free(&l->x.stash, m);
        return;
    }
    if (h->kind == MESSAGE_STEP || h->kind == MESSAGE_BLOCK) {
        exchange_arrived_message(&l->x, m);
        return;
    }
    if (h->kind == MESSAGE_BYE && exchange_bye_counts(&l->x, h)) {
        struct peer *p = exchange_peer(&l->x, h->source);
        exchange_peer_down(&l->x, p, "it dropped us", true);
        to_drop(l, (size_t)(p - l->x.peers));
    }
    stash_message_free(&l->x.stash, m);
}

static struct box *hub_find(struct exchange_hub *hub, uint16_t id, uint64_t instance)
{
    pthread_mutex_lock(&hub->lock);
    struct box *b = hub->boxes;
    while (b && (b->id != id || b->instance != instance))
        b = b->next;
    if (b)
        atomic_fetch_add(&b->refs, 1);
    pthread_mutex_unlock(&hub->lock);
    return b;
}

static void to_connect(struct local *l, size_t i)
{
    struct peer *p = &l->x.peers[i];
    to_drop(l, i);
    l->to[i] = hub_find(l->hub, p->id, p->instance);
    if (!l->to[i])
        exchange_peer_down(&l->x, p, "it is not of this process, or has closed", false);
}

static unsigned local_progress(struct exchange *x)
{
    struct local *l = local_of(x);
    unsigned n = 0;
    /* who closed is looked up before the box is emptied, so that what it sent before is found first */
    const unsigned closings = atomic_load(&l->hub->closings);
    bool closed[EXCHANGE_PEERS_MAX] = { 0 };
    const bool look = closings != l->closings_seen;
    for (size_t i = 0; look && i < x->n_peers; i++)
        closed[i] = l->to[i] && atomic_load(&l->to[i]->closed);
    for (struct message *m = box_empty(l->box), *next; m; m = next) {
        next = m->next;
        arrive(l, m);
        n++;
    }
    for (size_t i = 0; n && i < x->n_peers; i++) {
        if (x->peers[i].relink) {
            exchange_peer_relink(&x->peers[i]);
            to_connect(l, i);
        }
    }
    for (size_t i = 0; look && i < x->n_peers; i++) {
        if (!closed[i] || !l->to[i])
            continue;
        exchange_peer_down(x, &x->peers[i], "it closed", true);
        to_drop(l, i);
        n++;
    }
    l->closings_seen = closings;
    return n;
}

static int64_t local_arm(struct exchange *x)
{
    const struct local *l = local_of(x);
    const bool quiet = !atomic_load(&l->box->n_pending) && atomic_load(&l->hub->closings) == l->closings_seen;
    return quiet ? INT64_MAX : 0;
}

static enum status local_open(const struct exchange_config *config, struct exchange **x_out, struct error *err)
{
    if (!config->hub)
        return error_set(err, ST_INVALID, "exchange local: no hub");
    struct local *l = calloc(1, sizeof *l);
    if (!l)
        return error_set(err, ST_NO_MEMORY, "exchange local: out of memory");
    const struct transport transport = { local_progress, local_arm, -1 };
    enum status st = exchange_init(&l->x, config, &transport, NULL, err);
    if (!st && !(l->box = box_new(config->self, l->x.instance))) {
        exchange_deinit(&l->x);
        st = error_set(err, ST_NO_MEMORY, "exchange local: out of memory or descriptors");
    }
    if (st) {
        free(l);
        return st;
    }
    l->x.waker = &l->box->waker;
    l->hub = config->hub;
    pthread_mutex_lock(&l->hub->lock);
    l->closings_seen = atomic_load(&l->hub->closings);
    l->box->next = l->hub->boxes;
    l->hub->boxes = l->box;
    pthread_mutex_unlock(&l->hub->lock);
    *x_out = &l->x;
    return ST_OK;
}

static void local_close(struct exchange *x)
{
    if (!x)
        return;
    struct local *l = local_of(x);
    pthread_mutex_lock(&l->box->lock);
    l->box->shut = true;
    pthread_mutex_unlock(&l->box->lock);
    atomic_store(&l->box->closed, true);
    pthread_mutex_lock(&l->hub->lock);
    for (struct box **at = &l->hub->boxes; *at; at = &(*at)->next) {
        if (*at == l->box) {
            *at = l->box->next;
            break;
        }
    }
    atomic_fetch_add(&l->hub->closings, 1);
    for (struct box *b = l->hub->boxes; b; b = b->next)
        waker_wake(&b->waker);
    pthread_mutex_unlock(&l->hub->lock);
    for (size_t i = 0; i < x->n_peers; i++)
        to_drop(l, i);
    exchange_deinit(x);
    box_unref(l->box);
    free(l);
}

static size_t local_address(const struct exchange *x, uint8_t address_out[EXCHANGE_ADDRESS_MAX])
{
    const struct peer_address a = { .id = x->config.self, .instance = x->instance };
    return peer_address_write(&a, address_out);
}

static enum status put(struct local *l, struct box *box, const struct message_header *h, const struct iovec *parts,
                       size_t n_parts)
{
    struct message *m = stash_message_new(&l->x.stash, h->payload_bytes);
    if (!m)
        return ST_NO_MEMORY;
    m->header = *h;
    iovec_gather(parts, n_parts, m->payload);
    if (!box_put(box, m)) {
        stash_message_free(&l->x.stash, m);
        return ST_PEER;
    }
    return ST_OK;
}

/* BYE or HELLO. If there is no memory for it, the peer will find out otherwise. */
static void tell(struct local *l, size_t i, enum message_kind kind)
{
    const struct message_header h = exchange_header(&l->x, &l->x.peers[i], kind, 0);
    (void)put(l, l->to[i], &h, NULL, 0);
}

static enum status peer_set(struct local *l, const struct exchange_peer *peer, struct error *err)
{
    struct exchange *x = &l->x;
    struct peer_address a;
    const enum status st = exchange_peer_address(x, peer, &a, err);
    if (st)
        return st;
    struct peer *old = exchange_peer(x, peer->id);
    if (old && old->state == PEER_UP && old->instance == a.instance) {
        exchange_peer_named(x, old, peer);
        return ST_OK;
    }
    struct peer *p = exchange_peer_put(x, peer->id, a.instance);
    if (!p)
        return error_set(err, ST_TOO_LARGE, "exchange: more than %d peers", EXCHANGE_PEERS_MAX);
    exchange_peer_named(x, p, peer);
    const size_t i = (size_t)(p - x->peers);
    to_connect(l, i);
    if (l->to[i] && p->link > 1)
        tell(l, i, MESSAGE_HELLO);
    return ST_OK;
}

static enum status local_peers_set(struct exchange *x, const struct exchange_peer *peers, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (peers[i].id == x->config.self)
            continue;
        const enum status st = peer_set(local_of(x), &peers[i], err);
        if (st)
            return st;
    }
    return ST_OK;
}

/* The box of a peer that can be sent to, or NULL. */
static struct box *to_find(struct local *l, uint16_t id, struct peer **p_out)
{
    struct peer *p = exchange_peer(&l->x, id);
    if (!p || p->state != PEER_UP)
        return NULL;
    *p_out = p;
    return l->to[p - l->x.peers];
}

static void local_peer_drop(struct exchange *x, uint16_t id)
{
    struct local *l = local_of(x);
    struct peer *p = exchange_peer(x, id);
    if (!p)
        return;
    const size_t i = (size_t)(p - x->peers);
    if (l->to[i])
        tell(l, i, MESSAGE_BYE);
    to_drop(l, i);
    exchange_peer_forget(x, p);
}

static enum status local_send(struct exchange *x, const struct exchange_key *key, const struct iovec *parts,
                              size_t n_parts)
{
    struct local *l = local_of(x);
    struct peer *p;
    size_t bytes;
    struct box *box = to_find(l, key->peer, &p);
    if (!box)
        return ST_PEER;
    if (!iovec_bytes(parts, n_parts, &bytes))
        return ST_INVALID;
    const struct message_header h = exchange_step_header(x, p, key, bytes);
    const enum status st = put(l, box, &h, parts, n_parts);
    if (st)
        return st;
    x->stats.messages_sent++;
    x->stats.bytes_sent += bytes;
    return ST_OK;
}

static enum status local_send_block(struct exchange *x, uint16_t peer, const struct iovec *parts, size_t n_parts,
                                    void (*on_sent)(void *ctx, enum status st), void *ctx)
{
    struct local *l = local_of(x);
    struct peer *p;
    size_t bytes;
    struct box *box = to_find(l, peer, &p);
    if (!box)
        return ST_PEER;
    if (!iovec_bytes(parts, n_parts, &bytes) || !bytes)
        return ST_INVALID;
    struct message_header h = exchange_header(x, p, MESSAGE_BLOCK, bytes);
    h.block.number = ++p->block_number;
    h.block.total = bytes;
    const enum status st = put(l, box, &h, parts, n_parts);
    if (st)
        return st;
    x->stats.messages_sent++;
    x->stats.bytes_sent += bytes;
    exchange_sent_later(x, on_sent, ctx, ST_OK);
    return ST_OK;
}

static const char *local_lane(const struct exchange *x, uint16_t peer)
{
    const struct peer *p = exchange_peer((struct exchange *)x, peer);
    return p && p->state == PEER_UP ? "local" : "";
}

const struct exchange_ops exchange_local = {
    .name = "local",
    .open = local_open,
    .close = local_close,
    .address = local_address,
    .peers_set = local_peers_set,
    .peer_drop = local_peer_drop,
    .send = local_send,
    .recv = exchange_recv,
    .ready = exchange_ready,
    .send_block = local_send_block,
    .progress = exchange_progress,
    .sleep = exchange_sleep,
    .fence = exchange_fence,
    .abort = exchange_abort,
    .stats = exchange_stats,
    .lane = local_lane,
};
