#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/control_internal.h"
#include "coordinator/predecessor.h"

enum {
    POSTS_MAX = 8192,   /* messages of one worker that the loop has not looked at */
    HELD_MAX = 8 << 20, /* blocks of an inventory */
};

/* ---- to workers ---- */

static void drop_doomed(void *arg)
{
    struct control *c = arg;
    for (struct session *s = c->sessions; s; s = s->next)
        if (s->doom[0] && s->state != SESSION_DROPPED)
            session_drop(s, RPC_RESOURCE_EXHAUSTED, s->doom);
}

/* Drops later, as the caller may be the scheduler in the midst of its work. */
static void session_doom(struct session *s, const char *why)
{
    if (s->doom[0])
        return;
    snprintf(s->doom, sizeof s->doom, "%s", why);
    loop_post(s->control->config.loop, drop_doomed, s->control);
}

void session_send(struct session *s, const struct control_message *message)
{
    uint8_t *bytes;
    size_t n;
    if (s->state == SESSION_DROPPED || s->doom[0])
        return;
    if (control_encode(message, &bytes, &n)) {
        session_doom(s, "no memory for a message");
        return;
    }
    const size_t queued = rpc_call_send(s->call, bytes, n);
    free(bytes);
    if (queued <= n)
        s->taken_ms = clock_ms(); /* nothing was waiting before it (or the call has ended, which is told otherwise) */
    if (queued > s->control->config.queued_bytes_max)
        session_doom(s, "takes no messages: too much is queued");
}

struct session *session_find(const struct control *c, uint16_t id)
{
    for (struct session *s = c->sessions; s; s = s->next)
        if (s->shown.id == id && (s->state == SESSION_LOADING || s->state == SESSION_READY))
            return s;
    return NULL;
}

/* To one of them: with the tokens that it shows the others. */
static void members_send(struct session *s, struct control_member *members, uint32_t n)
{
    const struct control *c = s->control;
    for (uint32_t i = 0; i < n; i++)
        members[i].token = token_of(session_find(c, members[i].id)->secret, s->shown.id, c->roster);
    const struct control_message m = { .kind = CONTROL_MEMBERS, .as.members = { n, members, c->roster } };
    session_send(s, &m);
}

/* Who may exchange with whom: all that are ready. Sent before any plan that names a new one. */
static void members_broadcast(struct control *c)
{
    struct control_member members[CONTROL_SESSIONS_MAX];
    uint32_t n = 0;
    for (const struct session *s = c->sessions; s; s = s->next) {
        if (s->state != SESSION_READY)
            continue;
        uint32_t at = n++; /* ids ascend on the wire */
        for (; at && members[at - 1].id > s->shown.id; at--)
            members[at] = members[at - 1];
        members[at] =
            (struct control_member){ .id = s->shown.id, .address = s->address, .address_bytes = s->address_bytes };
    }
    c->roster++;
    for (struct session *s = c->sessions; s; s = s->next)
        if (s->state == SESSION_READY)
            members_send(s, members, n);
}

/* ---- the end of a worker ---- */

static void lost_keep(struct control *c, const struct session *s)
{
    if (c->n_lost == CONTROL_LOST_MAX)
        memmove(c->lost, c->lost + 1, (--c->n_lost) * sizeof *c->lost);
    c->lost[c->n_lost] = (struct lost){ s->shown, clock_ms() };
    snprintf(c->lost[c->n_lost].shown.state, sizeof s->shown.state, "lost");
    c->n_lost++;
}

static void worker_tell(const struct control *c, const struct gateway_worker *w)
{
    if (c->config.on_worker)
        c->config.on_worker(c->config.ctx, w);
}

void session_drop(struct session *s, enum rpc_code code, const char *why)
{
    struct control *c = s->control;
    const enum session_state before = s->state;
    if (before == SESSION_DROPPED)
        return;
    s->state = SESSION_DROPPED;
    if (before == SESSION_ATTACHED && !c->term)
        log_debug("worker at %s: %s", s->shown.address, why);
    else if (!c->stopping && before == SESSION_ATTACHED)
        log_warn("worker at %s is refused: %s", s->shown.address, why);
    else if (!c->stopping && s->stopped)
        log_info("worker %u (pid %u at %s) has drained and left", s->shown.id, s->shown.pid, s->shown.address);
    else if (!c->stopping)
        log_warn("worker %u (pid %u at %s) is lost: %s", s->shown.id, s->shown.pid, s->shown.address, why);
    if (code == RPC_CANCELLED)
        rpc_call_cancel(s->call);
    else
        rpc_call_finish(s->call, code, why);
    if (before != SESSION_ATTACHED)
        lost_keep(c, s);
    if (before == SESSION_READY && !c->stopping) {
        sched_worker_lost(c->sched, s->shown.id, why); /* fences first: who waits for it learns why */
        members_broadcast(c);
        worker_tell(c, &c->lost[c->n_lost - 1].shown);
        control_kick(c);
    }
}

static void session_violates(struct session *s, const char *what)
{
    char why[640];
    snprintf(why, sizeof why, "protocol violation: %s", what);
    session_drop(s, RPC_INVALID_ARGUMENT, why);
}

/* ---- messages of workers, on the loop ---- */

static void on_hello(struct session *s, const struct control_hello *h)
{
    struct control *c = s->control;
    char why[128];
    if (s->state != SESSION_ATTACHED) {
        session_violates(s, "a second hello");
        return;
    }
    if (h->version != CONTROL_VERSION) {
        snprintf(why, sizeof why, "hello.version: the worker speaks version %u, this coordinator %d", h->version,
                 CONTROL_VERSION);
        session_drop(s, RPC_INVALID_ARGUMENT, why);
        return;
    }
    const bool caller = !strcmp(h->device, PREDECESSOR_DEVICE);
    if (!c->term || h->term > c->term || caller) {
        snprintf(why, sizeof why,
                 !c->term             ? "this coordinator does not lead"
                 : h->term <= c->term ? "this coordinator leads in term %" PRIu64
                 : caller             ? "this coordinator's term %" PRIu64 " is over: another leads in term %" PRIu64
                          : "this coordinator's term %" PRIu64 " is over: the worker has obeyed one of term %" PRIu64,
                 c->term, h->term);
        session_drop(s, RPC_UNAVAILABLE, why);
        if (c->term && h->term > c->term && c->config.on_higher)
            c->config.on_higher(c->config.ctx, h->term);
        return;
    }
    if (c->next_id >=
        UINT16_MAX) { /* ids are never used again: late messages of a former worker must not be a new one's */
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "all worker ids have been used: restart the coordinator");
        return;
    }
    s->state = SESSION_LOADING;
    s->shown.id = (uint16_t)c->next_id++;
    s->shown.pid = h->pid;
    snprintf(s->shown.device, sizeof s->shown.device, "%s", h->device);
    snprintf(s->shown.host, sizeof s->shown.host, "%s", h->host);
    snprintf(s->shown.state, sizeof s->shown.state, "loading");
    struct control_message m = { .kind = CONTROL_WELCOME, .as.welcome = c->config.welcome };
    m.as.welcome.worker_id = s->shown.id;
    m.as.welcome.term = c->term;
    log_info("worker %u: pid %u on %s, %s, %s, %u threads, from %s", s->shown.id, h->pid, h->host, h->device,
             h->transport, h->n_threads, s->shown.address);
    session_send(s, &m);
}

/* A piece of what it holds from the time before. */
static void on_inventory(struct session *s, const struct control_blocks *b)
{
    if (s->state != SESSION_LOADING) {
        session_violates(s, "an inventory, but it is not loading");
        return;
    }
    if (b->n_blocks > HELD_MAX - s->n_held) {
        session_violates(s, "inventory: more blocks than any pool has");
        return;
    }
    if (s->n_held + b->n_blocks > s->held_room) {
        const uint32_t room = 2 * (s->n_held + b->n_blocks);
        struct control_block *more = realloc(s->held, room * sizeof *more);
        if (!more) {
            session_drop(s, RPC_RESOURCE_EXHAUSTED, "no memory for its inventory");
            return;
        }
        s->held = more;
        s->held_room = room;
    }
    if (b->n_blocks)
        memcpy(s->held + s->n_held, b->blocks, b->n_blocks * sizeof *s->held);
    s->n_held += b->n_blocks;
    s->held_epoch = b->epoch > s->held_epoch ? b->epoch : s->held_epoch;
}

/* What it holds is cache again. */
static void inventory_take(struct session *s)
{
    if (s->n_held) {
        sched_worker_holds(s->control->sched, s->shown.id, s->held, s->n_held);
        log_info("worker %u: %u sealed blocks of before, up to epoch %" PRIu64, s->shown.id, s->n_held, s->held_epoch);
    }
    free(s->held);
    s->held = NULL;
    s->n_held = s->held_room = 0;
}

static void on_ready(struct session *s, const struct control_ready *r)
{
    struct control *c = s->control;
    struct error err = { 0 };
    if (s->state != SESSION_LOADING) {
        session_violates(s, "ready, but it is not loading");
        return;
    }
    if (memcmp(r->model_digest, c->config.model_digest.byte, sizeof r->model_digest) != 0) {
        session_drop(s, RPC_INVALID_ARGUMENT,
                     "ready.model_digest: the worker has loaded another model than the coordinator");
        return;
    }
    if (s->n_held > r->n_blocks) {
        session_violates(s, "inventory: more blocks than ready.n_blocks");
        return;
    }
    s->address = malloc(r->address_bytes ? r->address_bytes : 1);
    if (!s->address) {
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "no memory for its address");
        return;
    }
    memcpy(s->address, r->address, r->address_bytes);
    s->address_bytes = r->address_bytes;
    memcpy(s->secret, r->secret, sizeof s->secret);
    struct gateway_worker *w = &s->shown;
    snprintf(w->fingerprint, sizeof w->fingerprint, "%s", r->fingerprint);
    snprintf(w->state, sizeof w->state, "ready");
    w->load_fraction = 1;
    w->n_blocks = r->n_blocks;
    w->block_bytes = r->block_bytes;
    w->weight_bytes = r->weight_bytes;
    w->pool_bytes = r->pool_bytes;
    s->state = SESSION_READY;
    atomic_store(&s->heard_ms, clock_ms());
    members_broadcast(c);
    if (sched_worker_ready(c->sched, w->id, r, &err)) {
        s->state = SESSION_LOADING; /* the scheduler does not know it */
        session_drop(s, RPC_INVALID_ARGUMENT, err.text[0] ? err.text : "the scheduler refuses it");
        members_broadcast(c);
        return;
    }
    inventory_take(s);
    log_info("worker %u ready: %s, %u blocks of %" PRIu64 " bytes", w->id, w->fingerprint, w->n_blocks, w->block_bytes);
    worker_tell(c, w);
    uint32_t n_ready = 0;
    for (const struct session *t = c->sessions; t; t = t->next)
        n_ready += t->state == SESSION_READY;
    if (n_ready >= c->config.n_workers)
        c->was_ready = true;
    control_kick(c);
}

static void on_heartbeat(struct session *s, const struct control_heartbeat *h)
{
    if (s->state == SESSION_READY && h->sequence <= s->beats) {
        session_violates(s, "heartbeat.sequence does not ascend");
        return;
    }
    s->beats = h->sequence;
    if (h->work != s->work)
        s->work_ms = clock_ms();
    s->work = h->work;
    if (s->state == SESSION_READY)
        sched_worker_waits(s->control->sched, s->shown.id, h->waits_ms);
    if (h->waits_ms >= s->control->config.welcome.silence_ms)
        control_kick(s->control);
    s->shown.dropped = h->dropped;
    if (h->leaving && s->state == SESSION_READY && !s->leaving) {
        log_info("worker %u drains", s->shown.id);
        s->leaving = true;
        sched_worker_drain(s->control->sched, s->shown.id);
        control_kick(s->control);
    }
    s->shown.resident_bytes = h->resident_bytes;
    s->shown.sketch_bytes = h->sketch_bytes;
    s->shown.disk = h->disk;
    s->shown.bytes_sent = h->bytes_sent;
    s->shown.bytes_received = h->bytes_received;
    s->shown.blocks = h->blocks_used;
}

/* -> whether it was one of those that a ready worker sends */
static bool on_work(struct session *s, const struct control_message *m)
{
    struct control *c = s->control;
    struct error err = { 0 };
    enum status st;
    switch (m->kind) {
    case CONTROL_RESULT:
        st = sched_result(c->sched, s->shown.id, m->as.result, &err);
        break;
    case CONTROL_ABORT:
        log_warn("worker %u gave up group %u epoch %" PRIu64 " plan %" PRIu64 ": %s", s->shown.id, m->as.abort.group,
                 m->as.abort.epoch, m->as.abort.plan, m->as.abort.reason);
        st = sched_abort(c->sched, s->shown.id, &m->as.abort);
        break;
    case CONTROL_COPIED:
        st = sched_copied(c->sched, s->shown.id, &m->as.copied);
        break;
    case CONTROL_STORED:
    case CONTROL_GONE:
        sched_worker_disk(c->sched, s->shown.id, m->as.blocks.blocks, m->as.blocks.n_blocks, m->kind == CONTROL_GONE);
        return true;
    default:
        return false;
    }
    if (st == ST_PROTOCOL)
        session_violates(s, err.text[0]                ? err.text
                            : m->kind == CONTROL_ABORT ? "abort of what was not sent"
                                                       : "copied, but that was not asked for");
    control_kick(c);
    return true;
}

static void on_worker_message(struct session *s, const struct control_message *m)
{
    if (s->state == SESSION_DROPPED)
        return;
    if (m->kind == CONTROL_HELLO)
        on_hello(s, &m->as.hello);
    else if (s->state == SESSION_ATTACHED)
        session_violates(s, "the first message is not hello");
    else if (m->kind == CONTROL_INVENTORY)
        on_inventory(s, &m->as.blocks);
    else if (m->kind == CONTROL_READY)
        on_ready(s, &m->as.ready);
    else if (m->kind == CONTROL_PROGRESS && s->state == SESSION_LOADING)
        s->shown.load_fraction = m->as.progress.fraction;
    else if (m->kind == CONTROL_HEARTBEAT)
        on_heartbeat(s, &m->as.heartbeat);
    else if (s->state != SESSION_READY || !on_work(s, m))
        session_violates(s, "a message that does not belong here");
}

/* ---- from gRPC's thread to the loop ---- */

struct mail {
    struct session *session;
    struct control_message *message; /* NULL: it could not be read */
    char error[512];
};

static void on_attach_post(void *arg)
{
    struct session *s = arg;
    struct control *c = s->control;
    s->next = c->sessions;
    c->sessions = s;
    s->attached_ms = s->taken_ms = clock_ms();
    if (c->n_sessions++ >= CONTROL_SESSIONS_MAX)
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "as many workers are attached as one coordinator takes");
    else if (c->stopping)
        session_drop(s, RPC_UNAVAILABLE, CONTROL_STOPS);
}

static void on_mail_post(void *arg)
{
    struct mail *mail = arg;
    struct session *s = mail->session;
    atomic_fetch_sub(&s->posts, 1);
    if (mail->message)
        on_worker_message(s, mail->message);
    else if (s->state != SESSION_DROPPED)
        session_violates(s, mail->error);
    free(mail->message);
    free(mail);
}

static void on_end_post(void *arg)
{
    struct session *s = arg;
    struct control *c = s->control;
    session_drop(s, RPC_CANCELLED, "its control stream ended");
    struct session **at = &c->sessions;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    c->n_sessions--;
    rpc_call_unref(s->call);
    free(s->address);
    free(s->held);
    free(s);
}

static void on_stream_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    struct session *s = user;
    atomic_store(&s->heard_ms, clock_ms()); /* here: a busy loop does not make a worker silent */
    struct mail *mail = calloc(1, sizeof *mail);
    if (!mail || atomic_fetch_add(&s->posts, 1) >= POSTS_MAX) {
        if (mail)
            atomic_fetch_sub(&s->posts, 1);
        free(mail);
        rpc_call_cancel(call); /* it sends faster than it can be heard, or memory is out */
        return;
    }
    struct error err = { 0 };
    mail->session = s;
    if (control_decode(data, bytes, &mail->message, &err)) {
        mail->message = NULL;
        snprintf(mail->error, sizeof mail->error, "%s", err.text);
    }
    loop_post(s->control->config.loop, on_mail_post, mail);
}

static void on_stream_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish(call, RPC_OK, "");
}

static void on_stream_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    (void)code;
    (void)message;
    struct session *s = user;
    loop_post(s->control->config.loop, on_end_post, s);
}

void control_attach(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
{
    struct control *c = service;
    struct session *s = calloc(1, sizeof *s);
    if (!s) {
        rpc_call_finish(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    s->control = c;
    s->call = call;
    rpc_call_ref(call);
    atomic_init(&s->heard_ms, clock_ms());
    char *peer = rpc_call_peer(call);
    snprintf(s->shown.address, sizeof s->shown.address, "%s",
             peer && !strncmp(peer, "ipv4:", 5) ? peer + 5
             : peer                             ? peer
                                                : "");
    free(peer);
    snprintf(s->shown.state, sizeof s->shown.state, "connecting");
    *handlers_out = (struct rpc_handlers){ on_stream_message, on_stream_half_close, on_stream_done };
    *user_out = s;
    loop_post(c->config.loop, on_attach_post, s);
}
