/*
 * Workers of several processes and hosts, by UCX active messages: shared memory between processes of one host, TCP (or what UCX finds) between
 * hosts. Payloads are gathered into a buffer of ours, which stays until UCX is done with it.
 */
#include "worker/exchange/ucx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/exchange/gpu.h"

static const size_t unsent_max = (size_t)1 << 30; /* bytes to one peer that takes nothing */
/*
 * Between closing an endpoint and opening another to the same worker. Where the end of the old connection crosses the beginning of the new one,
 * UCX 1.13 trips an assertion (wireup_ep.c) on the side whose first bytes meet a closed socket.
 */
static const int64_t reopen_ns = 100 * 1000000;
static const int64_t unsent_nap_ns = 300 * 1000;
static const size_t no_slot = SIZE_MAX;
static const int64_t close_flush_ns = 200 * 1000000, close_drain_ns = 300 * 1000000;

static struct ucx *ucx_of(struct exchange *x)
{
    return (struct ucx *)x;
}

static void hold(struct ucx *u, struct message *m)
{
    m->next = u->held;
    m->back = &u->held;
    if (m->next)
        m->next->back = &m->next;
    u->held = m;
}

static void let_go(struct message *m)
{
    *m->back = m->next;
    if (m->next)
        m->next->back = m->back;
    m->next = NULL;
}

/* ---- arrival ---- */

static ucs_status_t on_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param)
{
    struct ucx *u = arg;
    struct message_header h;
    if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV || !message_header_read(header, header_bytes, bytes, &h)) {
        exchange_garbage(&u->x, UINT16_MAX, "it makes no sense");
        return UCS_OK; /* which refuses a rendezvous: we make none */
    }
    if (!exchange_genuine(&u->x, &h, data) || !exchange_admit(&u->x, &h))
        return UCS_OK;
    if (h.kind == MESSAGE_BYE && exchange_bye_counts(&u->x, &h))
        u->connections[exchange_peer(&u->x, h.source) - u->x.peers].bye = true;
    if (h.kind == MESSAGE_BYE || h.kind == MESSAGE_HELLO)
        return UCS_OK;
    exchange_arrived(&u->x, &h, data);
    return UCS_OK;
}

/* ---- connections ---- */

static void on_failure(void *arg, ucp_ep_h ep, ucs_status_t st)
{
    struct connection *c = arg;
    if (c->ep == ep) /* the endpoint may be that of an earlier peer of this slot */
        c->failure = st;
}

static void on_closed(void *request, ucs_status_t st, void *user_data)
{
    struct ucx *u = user_data;
    (void)st;
    u->n_closing--;
    ucp_request_free(request);
}

/* What is under way to it ends with an error, from progress. */
static void connection_close(struct ucx *u, size_t slot)
{
    struct connection *c = &u->connections[slot];
    ucp_ep_h ep = c->ep;
    c->ep = NULL;
    c->failure = UCS_OK;
    c->bye = false;
    c->lane[0] = 0;
    c->open_ns = 0;
    while (c->waiting) {
        struct message *m = c->waiting;
        c->waiting = m->next;
        stash_message_free(&u->x.stash, m);
    }
    c->waiting_end = &c->waiting;
    c->unsent = 0;
    for (struct message *m = u->held; m; m = m->next) {
        if (m->slot == slot)
            m->slot = no_slot;
    }
    ucx_block_cancel(u, slot);
    if (!ep)
        return;
    c->closed_ns = clock_ns();
    const ucp_request_param_t param = { .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
                                                        UCP_OP_ATTR_FIELD_USER_DATA,
                                        .flags = UCP_EP_CLOSE_FLAG_FORCE,
                                        .cb.send = on_closed,
                                        .user_data = u };
    u->n_closing++;
    void *request = ucp_ep_close_nbx(ep, &param);
    if (!UCS_PTR_IS_PTR(request))
        u->n_closing--;
    if (UCS_PTR_IS_ERR(request))
        log_warn("exchange ucx: closing an endpoint: %s", ucs_status_string(UCS_PTR_STATUS(request)));
}

static void connection_down(struct ucx *u, size_t slot, const char *why)
{
    exchange_peer_down(&u->x, &u->x.peers[slot], why, u->connections[slot].bye);
    connection_close(u, slot);
}

static enum status message_send(struct ucx *u, size_t slot, struct message *m);

/* To where c->address says; what was sent already goes first. */
static void connection_open(struct ucx *u, size_t slot)
{
    struct connection *c = &u->connections[slot];
    c->open_ns = 0;
    const ucp_ep_params_t params = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                                   UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                                   UCP_EP_PARAM_FIELD_ERR_HANDLER,
                                     .address = (const ucp_address_t *)c->address,
                                     .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                                     .err_handler = { on_failure, c } };
    const ucs_status_t ucs = ucp_ep_create(u->worker, &params, &c->ep);
    if (ucs) {
        c->ep = NULL;
        connection_down(u, slot, ucs_status_string(ucs));
    }
    while (c->ep && c->waiting) {
        struct message *m = c->waiting;
        c->waiting = m->next;
        (void)message_send(u, slot, m); /* a failure is seen to in progress */
    }
    c->waiting_end = &c->waiting;
}

/* again: to a worker that there was an endpoint to. */
static void connection_open_soon(struct ucx *u, size_t slot, bool again)
{
    struct connection *c = &u->connections[slot];
    c->open_ns = again ? c->closed_ns + reopen_ns : 0;
    if (c->open_ns <= clock_ns())
        connection_open(u, slot);
}

static unsigned connections_progress(struct ucx *u)
{
    unsigned n = 0;
    for (size_t i = 0; i < u->x.n_peers; i++) {
        struct connection *c = &u->connections[i];
        if (u->x.peers[i].relink) {
            connection_close(u, i);
            exchange_peer_relink(&u->x.peers[i]);
            connection_open_soon(u, i, true);
            n++;
        } else if (c->bye) {
            connection_down(u, i, "it dropped us or closed");
            n++;
        } else if (c->failure) {
            connection_down(u, i, ucs_status_string(c->failure));
            n++;
        } else if (c->open_ns && c->open_ns <= clock_ns()) {
            connection_open(u, i);
            n++;
        }
        if (c->blocks)
            n += ucx_block_progress(u, i);
    }
    return n;
}

static unsigned ucx_progress(struct exchange *x)
{
    struct ucx *u = ucx_of(x);
    unsigned n = ucp_worker_progress(u->worker);
    return n + connections_progress(u);
}

/*
 * Only arrivals wake the worker. Room to send does not: UCX would refuse to arm at all for as long as anything waits for room in shared memory, also
 * what was meant for a peer that is frozen and dropped. So while something is unsent, sleeps are short.
 */
static int64_t ucx_arm(struct exchange *x)
{
    const struct ucx *u = ucx_of(x);
    int64_t most_ns = INT64_MAX;
    for (size_t i = 0; i < x->n_peers; i++) {
        const struct connection *c = &u->connections[i];
        if (c->ep && !c->failure && ucx_block_due(u, i))
            return 0;
        if (c->open_ns || (c->ep && (c->unsent || c->blocks)))
            most_ns = unsent_nap_ns;
    }
    if (ucp_worker_arm(u->worker) != UCS_OK)
        return 0;
    return most_ns;
}

/* ---- open, close ---- */

static void ucx_free(struct ucx *u)
{
    ucx_context_close(u);
    while (u->held) {
        struct message *m = u->held;
        let_go(m);
        message_free(m);
    }
    ucx_block_abandon(u);
    exchange_deinit(&u->x);
    waker_deinit(&u->waker);
    free(u);
}

static ucs_status_t on_other_message(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                                     const ucp_am_recv_param_t *param)
{
    struct ucx *u = arg;
    (void)header;
    (void)header_bytes;
    (void)data;
    (void)bytes;
    (void)param;
    exchange_garbage(&u->x, UINT16_MAX, "its number is not ours");
    return UCS_OK;
}

/* A handler for every number that fits a message: UCX 1.13 looks up those that have none behind the end of its table, and calls what it finds. */
static enum status handlers_set(struct ucx *u, struct error *err)
{
    for (unsigned i = 0; i <= UINT16_MAX; i++) {
        const unsigned id = UINT16_MAX - i; /* the table grows once */
        const ucp_am_handler_param_t handler = { .field_mask =
                                                     UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                                                     UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
                                                 .id = id,
                                                 .flags = UCP_AM_FLAG_WHOLE_MSG,
                                                 .cb = id == UCX_AM_ID ? on_message : on_other_message,
                                                 .arg = u };
        const ucs_status_t ucs = ucp_worker_set_am_recv_handler(u->worker, &handler);
        if (ucs)
            return error_set(err, ST_INTERNAL, "exchange ucx: handler: %s", ucs_status_string(ucs));
    }
    return ST_OK;
}

static enum status ucx_open(const struct exchange_config *config, struct exchange **x_out, struct error *err)
{
    struct ucx *u = calloc(1, sizeof *u);
    if (!u)
        return error_set(err, ST_NO_MEMORY, "exchange ucx: out of memory");
    for (size_t i = 0; i < EXCHANGE_PEERS_MAX; i++) {
        u->connections[i].blocks_end = &u->connections[i].blocks;
        u->connections[i].waiting_end = &u->connections[i].waiting;
    }
    const struct transport transport = { ucx_progress, ucx_arm, -1 };
    enum status st = waker_init(&u->waker);
    if (st) {
        free(u);
        return error_set(err, st, "exchange ucx: no more descriptors");
    }
    st = exchange_init(&u->x, config, &transport, &u->waker, err);
    if (st) {
        waker_deinit(&u->waker);
        free(u);
        return st;
    }
    st = ucx_context_open(u, config, err);
    if (st) {
        ucx_free(u);
        return st;
    }
    st = handlers_set(u, err);
    if (st) {
        ucx_free(u);
        return st;
    }
    *x_out = &u->x;
    return ST_OK;
}

static void tell(struct ucx *u, size_t slot, enum message_kind kind);

static void ucx_close(struct exchange *x)
{
    if (!x)
        return;
    struct ucx *u = ucx_of(x);
    /* what was sent is delivered if peers take it, and then they are told; one that is frozen does not hold us up */
    for (int64_t until = clock_ns() + close_flush_ns; u->n_sending && clock_ns() < until;)
        exchange_progress_all(x);
    for (size_t i = 0; i < x->n_peers; i++)
        tell(u, i, MESSAGE_BYE);
    for (int64_t until = clock_ns() + close_flush_ns; u->n_sending && clock_ns() < until;)
        exchange_progress_all(x);
    for (size_t i = 0; i < x->n_peers; i++) {
        x->peers[i].state = PEER_DOWN;
        connection_close(u, i);
    }
    for (int64_t until = clock_ns() + close_drain_ns; u->n_closing + u->n_sending + u->n_blocks && clock_ns() < until;)
        exchange_progress_all(x);
    ucx_free(u);
}

static size_t ucx_address(const struct exchange *x, uint8_t address_out[EXCHANGE_ADDRESS_MAX])
{
    const struct ucx *u = (const struct ucx *)x;
    memcpy(address_out, u->address, u->address_bytes);
    return u->address_bytes;
}

/* ---- peers ---- */

static enum status peer_set(struct ucx *u, const struct exchange_peer *peer, struct error *err)
{
    struct peer_address a;
    enum status st = exchange_peer_address(&u->x, peer, &a, err);
    if (st)
        return st;
    struct peer *p = exchange_peer(&u->x, peer->id);
    const struct connection *old = p ? &u->connections[p - u->x.peers] : NULL;
    if (p && p->state == PEER_UP && (old->failure || old->bye))
        connection_down(u, (size_t)(p - u->x.peers), "it failed");
    if (p && p->state == PEER_UP && p->instance == a.instance) {
        exchange_peer_named(&u->x, p, peer);
        return ST_OK;
    }
    const bool near = !memcmp(a.host.byte, u->host.byte, sizeof a.host.byte);
    const uint8_t *address = near ? a.full : a.net;
    if (!address)
        return error_set(err, ST_PROTOCOL, "address of worker %u: it is on %s host and names no lane to it", peer->id,
                         near ? "this" : "another");
    const bool again = p && p->instance == a.instance;
    if (p)
        connection_close(u, (size_t)(p - u->x.peers));
    p = exchange_peer_put(&u->x, peer->id, a.instance);
    if (!p)
        return error_set(err, ST_TOO_LARGE, "exchange: more than %d peers", EXCHANGE_PEERS_MAX);
    exchange_peer_named(&u->x, p, peer);
    const size_t slot = (size_t)(p - u->x.peers);
    memcpy(u->connections[slot].address, address, near ? a.full_bytes : a.net_bytes);
    connection_open_soon(u, slot, again);
    if (p->link > 1)
        tell(u, slot, MESSAGE_HELLO);
    return ST_OK;
}

static enum status ucx_peers_set(struct exchange *x, const struct exchange_peer *peers, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (peers[i].id == x->config.self)
            continue;
        const enum status st = peer_set(ucx_of(x), &peers[i], err);
        if (st)
            return st;
    }
    return ST_OK;
}

static void on_sent(void *request, ucs_status_t st, void *user_data)
{
    struct message *m = user_data;
    struct ucx *u = m->owner;
    (void)st; /* the endpoint's failure is told by itself */
    u->n_sending--;
    let_go(m);
    if (m->slot != no_slot)
        u->connections[m->slot].unsent -= m->capacity;
    stash_message_free(&u->x.stash, m);
    ucp_request_free(request);
}

/* m is taken. */
static enum status message_send(struct ucx *u, size_t slot, struct message *m)
{
    struct connection *c = &u->connections[slot];
    m->owner = u;
    m->slot = slot;
    if (!c->ep) {
        m->next = NULL;
        *c->waiting_end = m;
        c->waiting_end = &m->next;
        return ST_OK;
    }
    m->header.sum = checksum64(m->payload, m->header.payload_bytes);
    message_header_write(&m->header, m->wire);
    const ucp_request_param_t param = { .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                                                        UCP_OP_ATTR_FIELD_FLAGS,
                                        .flags = UCP_AM_SEND_FLAG_EAGER,
                                        .cb.send = on_sent,
                                        .user_data = m };
    c->unsent += m->capacity;
    u->n_sending++;
    hold(u, m);
    void *request =
        ucp_am_send_nbx(c->ep, UCX_AM_ID, m->wire, sizeof m->wire, m->payload, m->header.payload_bytes, &param);
    if (UCS_PTR_IS_PTR(request))
        return ST_OK;
    c->unsent -= m->capacity;
    u->n_sending--;
    let_go(m);
    stash_message_free(&u->x.stash, m);
    if (!UCS_PTR_IS_ERR(request))
        return ST_OK;
    if (!c->failure)
        c->failure = UCS_PTR_STATUS(request);
    return ST_PEER;
}

/* BYE or HELLO. */
static void tell(struct ucx *u, size_t slot, enum message_kind kind)
{
    const struct connection *c = &u->connections[slot];
    if ((!c->ep && !c->open_ns) || c->failure || c->bye)
        return;
    struct message *m = stash_message_new(&u->x.stash, 0);
    if (!m)
        return; /* it will find out otherwise */
    m->header = exchange_header(&u->x, &u->x.peers[slot], kind, 0);
    (void)message_send(u, slot, m);
}

static void ucx_peer_drop(struct exchange *x, uint16_t id)
{
    struct ucx *u = ucx_of(x);
    struct peer *p = exchange_peer(x, id);
    if (!p)
        return;
    const size_t slot = (size_t)(p - x->peers);
    tell(u, slot, MESSAGE_BYE);
    connection_close(u, slot);
    exchange_peer_forget(x, p);
}

static enum status ucx_send(struct exchange *x, const struct exchange_key *key, const struct iovec *parts,
                            size_t n_parts)
{
    struct ucx *u = ucx_of(x);
    struct peer *p = exchange_peer(x, key->peer);
    size_t bytes;
    if (!p || p->state != PEER_UP)
        return ST_PEER;
    const size_t slot = (size_t)(p - x->peers);
    struct connection *c = &u->connections[slot];
    if ((!c->ep && !c->open_ns) || c->failure || c->bye)
        return ST_PEER;
    if (!iovec_bytes(parts, n_parts, &bytes))
        return ST_INVALID;
    if (c->unsent > unsent_max) {
        connection_down(u, slot, "it takes no messages");
        return ST_PEER;
    }
    struct message *m = stash_message_new(&x->stash, bytes);
    if (!m)
        return ST_NO_MEMORY;
    m->header = exchange_step_header(x, p, key, bytes);
    iovec_gather(parts, n_parts, m->payload);
    const enum status st = message_send(u, slot, m);
    if (st)
        return st;
    x->stats.messages_sent++;
    x->stats.bytes_sent += bytes;
    return ST_OK;
}

static const char *ucx_lane(const struct exchange *x, uint16_t peer)
{
    struct ucx *u = ucx_of((struct exchange *)x);
    const struct peer *p = exchange_peer(&u->x, peer);
    struct connection *c = p ? &u->connections[p - x->peers] : NULL;
    if (!c || !c->ep || p->state != PEER_UP)
        return "";
    ucx_lane_name(c->ep, c->lane, sizeof c->lane);
    return c->lane;
}

/* Beside messages through hosts: how those between GPUs go, where both ends are of one host. */
static const struct exchange_gpu_ops through_hosts = { .name = "ucx" };
#ifdef LONGSPAN_CUDA
#define LINKS(method) (&exchange_gpu_##method)
#else
#define LINKS(method) (&through_hosts)
#endif

#define UCX_OPS(label, links)                                                                                          \
    {                                                                                                                  \
        .name = label, .gpu = links, .open = ucx_open, .close = ucx_close, .address = ucx_address,                     \
        .peers_set = ucx_peers_set, .peer_drop = ucx_peer_drop, .send = ucx_send, .recv = exchange_recv,               \
        .ready = exchange_ready, .send_block = ucx_block_send, .progress = exchange_progress, .sleep = exchange_sleep, \
        .fence = exchange_fence, .abort = exchange_abort, .stats = exchange_stats, .lane = ucx_lane,                   \
    }
const struct exchange_ops exchange_ucx = UCX_OPS("ucx", &through_hosts);
const struct exchange_ops exchange_peer_memory = UCX_OPS("peer", LINKS(peer));
const struct exchange_ops exchange_nccl = UCX_OPS("nccl", LINKS(nccl));
