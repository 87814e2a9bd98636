#include "coordinator/control.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/rpc.h"

enum {
    SESSIONS_MAX = PLAN_WORKERS_MAX,
    LOST_MAX = 16,
    LOST_SHOWN_MS = 30000,
    POSTS_MAX = 8192, /* messages of one worker that the loop has not looked at */
    HELLO_WAIT_MS = 5000,
    QUEUED_DEFAULT = 64 << 20,
    LOOKAHEAD_BYTES = 8 << 20,     /* heartbeats wait behind results, which may hold megabytes of logits */
    MESSAGE_BYTES_MAX = 256 << 20, /* a result with whole logit rows */
    TICK_MS = 50,                  /* of the watch over silence */
    DEAF_MS = 200,
    STOP_GRACE_MS = 300,
};

enum session_state {
    SESSION_ATTACHED, /* no hello yet */
    SESSION_LOADING,
    SESSION_READY,
    SESSION_DROPPED, /* given up; its stream is about to end */
};

/*
 * One stream of a worker. Made on gRPC's thread, then the loop's, which frees it when the post of its end comes: the last one, as posts keep
 * their order. gRPC's thread keeps to the fields marked so.
 */
struct session {
    struct control *control; /* both */
    struct rpc_call *call;   /* both */
    _Atomic int64_t heard_ms;
    atomic_uint posts;

    struct session *next;
    enum session_state state;
    struct gateway_worker shown;
    uint8_t *address; /* of its exchange */
    uint32_t address_bytes;
    int64_t attached_ms, taken_ms; /* taken: when it last had taken all that was sent */
    uint64_t beats;
    char doom[128]; /* why it is to be dropped, said inside a call of the scheduler */
};

struct lost {
    struct gateway_worker shown;
    int64_t at_ms;
};

struct control {
    struct control_config config;
    struct sched *sched;
    struct rpc_server *server;
    struct rpc_method method;
    struct loop_timer *run_timer, *tick_timer;
    struct session *sessions;
    uint32_t n_sessions, next_id;
    bool kicked, was_ready, stopping;
    int64_t ticked_ms, beat_ms, deaf_until_ms;
    struct lost lost[LOST_MAX];
    uint32_t n_lost;
};

static void session_drop(struct session *s, enum rpc_code code, const char *why);

/* ---- running the scheduler ---- */

static void control_run(struct control *c)
{
    const int64_t again_ms = sched_run(c->sched);
    loop_timer_set(c->run_timer, again_ms < 0 ? 0 : again_ms > 1000 ? 1000 : again_ms);
}

static void on_kick(void *arg)
{
    struct control *c = arg;
    c->kicked = false;
    if (!c->stopping)
        control_run(c);
}

/* By a post, so that all results that have come are looked at before the next plans are made. */
void control_kick(void *control)
{
    struct control *c = control;
    if (c->kicked)
        return;
    c->kicked = true;
    loop_post(c->config.loop, on_kick, c);
}

static void on_run_timer(void *arg)
{
    control_run(arg);
}

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

static void session_send(struct session *s, const struct control_message *message)
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

static struct session *session_find(const struct control *c, uint16_t id)
{
    for (struct session *s = c->sessions; s; s = s->next)
        if (s->shown.id == id && (s->state == SESSION_LOADING || s->state == SESSION_READY))
            return s;
    return NULL;
}

static void on_sched_send(void *ctx, uint16_t worker, const struct control_message *message)
{
    struct session *s = session_find(ctx, worker);
    if (s)
        session_send(s, message);
}

static int64_t on_sched_now(void *ctx)
{
    (void)ctx;
    return clock_ms();
}

static int64_t on_sched_now_us(void *ctx)
{
    (void)ctx;
    return clock_us();
}

/* Who may exchange with whom: all that are ready. Sent before any plan that names a new one. */
static void members_broadcast(struct control *c)
{
    struct control_member members[SESSIONS_MAX];
    uint32_t n = 0;
    for (const struct session *s = c->sessions; s; s = s->next) {
        if (s->state != SESSION_READY)
            continue;
        uint32_t at = n++; /* ids ascend on the wire */
        for (; at && members[at - 1].id > s->shown.id; at--)
            members[at] = members[at - 1];
        members[at] = (struct control_member){ s->shown.id, s->address, s->address_bytes };
    }
    const struct control_message m = { .kind = CONTROL_MEMBERS, .as.members = { n, members } };
    for (struct session *s = c->sessions; s; s = s->next)
        if (s->state == SESSION_READY)
            session_send(s, &m);
}

/* ---- the end of a worker ---- */

static void lost_keep(struct control *c, const struct session *s)
{
    if (c->n_lost == LOST_MAX)
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

/* The worker is out of all tables when this returns; the stream's own end comes later. code RPC_CANCELLED: it is cut, not ended in order. */
static void session_drop(struct session *s, enum rpc_code code, const char *why)
{
    struct control *c = s->control;
    const enum session_state before = s->state;
    if (before == SESSION_DROPPED)
        return;
    s->state = SESSION_DROPPED;
    if (!c->stopping && before == SESSION_ATTACHED)
        log_warn("worker at %s is refused: %s", s->shown.address, why);
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
    char why[96];
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
    if (c->next_id >=
        UINT16_MAX) { /* ids are never used again: late messages of a former worker must not be a new one's */
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "all worker ids have been used: restart the coordinator");
        return;
    }
    s->state = SESSION_LOADING;
    s->shown.id = (uint16_t)c->next_id++;
    s->shown.pid = h->pid;
    snprintf(s->shown.state, sizeof s->shown.state, "loading");
    struct control_message m = { .kind = CONTROL_WELCOME, .as.welcome = c->config.welcome };
    m.as.welcome.worker_id = s->shown.id;
    log_info("worker %u: pid %u on %s, %s, %s, %u threads, from %s", s->shown.id, h->pid, h->host, h->device,
             h->transport, h->n_threads, s->shown.address);
    session_send(s, &m);
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
    s->address = malloc(r->address_bytes ? r->address_bytes : 1);
    if (!s->address) {
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "no memory for its address");
        return;
    }
    memcpy(s->address, r->address, r->address_bytes);
    s->address_bytes = r->address_bytes;
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
    s->shown.resident_bytes = h->resident_bytes;
    s->shown.sketch_bytes = h->sketch_bytes;
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
    if (c->n_sessions++ >= SESSIONS_MAX)
        session_drop(s, RPC_RESOURCE_EXHAUSTED, "as many workers are attached as one coordinator takes");
    else if (c->stopping)
        session_drop(s, RPC_UNAVAILABLE, "the coordinator stops");
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

static void on_attach(void *service, struct rpc_call *call, struct rpc_handlers *handlers_out, void **user_out)
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

/* ---- watching ---- */

/* -> why it must be given up, or NULL */
static const char *session_fault(const struct session *s, int64_t now, char why[96])
{
    const struct control_welcome *w = &s->control->config.welcome;
    const int64_t silent = now - atomic_load(&s->heard_ms);
    if (s->state == SESSION_ATTACHED && now - s->attached_ms > HELLO_WAIT_MS)
        return "no hello came";
    if (s->state == SESSION_READY && silent > w->silence_ms) {
        snprintf(why, 96, "nothing heard from it for %" PRId64 " ms", silent);
        return why;
    }
    if ((s->state == SESSION_LOADING || s->state == SESSION_READY) && now - s->taken_ms > 4 * (int64_t)w->silence_ms)
        return "takes no messages";
    return NULL;
}

static void beat_all(struct control *c, int64_t now)
{
    if (now - c->beat_ms < c->config.welcome.heartbeat_ms)
        return;
    c->beat_ms = now;
    for (struct session *s = c->sessions; s; s = s->next) {
        if (s->state != SESSION_LOADING && s->state != SESSION_READY)
            continue;
        const struct control_message m = { .kind = CONTROL_HEARTBEAT, .as.heartbeat.sequence = (uint64_t)now };
        session_send(s, &m);
    }
}

static void on_tick(void *arg)
{
    struct control *c = arg;
    const int64_t now = clock_ms();
    beat_all(c, now);
    /* If this process itself did not run for a while, workers were not silent, we were deaf: what they said is still to be read. */
    if (c->ticked_ms && now - c->ticked_ms > 4 * TICK_MS)
        c->deaf_until_ms = now + DEAF_MS;
    c->ticked_ms = now;
    for (struct session *s = c->sessions; s && now >= c->deaf_until_ms; s = s->next) {
        char text[96];
        const char *why = s->state == SESSION_DROPPED ? NULL : session_fault(s, now, text);
        if (why)
            session_drop(s, RPC_CANCELLED, why);
    }
    uint32_t old = 0;
    while (old < c->n_lost && now - c->lost[old].at_ms > LOST_SHOWN_MS)
        old++;
    c->n_lost -= old;
    memmove(c->lost, c->lost + old, c->n_lost * sizeof *c->lost);
    loop_timer_set(c->tick_timer, TICK_MS);
}

/* ---- what is shown ---- */

uint32_t control_workers(void *control, struct gateway_worker *workers_out, uint32_t max)
{
    const struct control *c = control;
    struct sched_worker_stats stats[SESSIONS_MAX];
    const uint32_t n_stats = sched_worker_stats(c->sched, stats, SESSIONS_MAX);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_lost && n < max; i++)
        workers_out[n++] = c->lost[i].shown;
    for (const struct session *s = c->sessions; s && n < max; s = s->next) {
        if (s->state == SESSION_DROPPED)
            continue;
        struct gateway_worker *w = &workers_out[n++];
        *w = s->shown;
        for (uint32_t i = 0; i < n_stats; i++) {
            if (s->state != SESSION_READY || stats[i].id != w->id)
                continue;
            w->blocks = stats[i].blocks_used;
            if (stats[i].draining)
                snprintf(w->state, sizeof w->state, "draining");
        }
    }
    for (uint32_t i = 1; i < n; i++) /* by id: sessions are kept newest first */
        for (uint32_t j = i; j && workers_out[j - 1].id > workers_out[j].id; j--) {
            const struct gateway_worker w = workers_out[j];
            workers_out[j] = workers_out[j - 1];
            workers_out[j - 1] = w;
        }
    return n;
}

bool control_is_ready(void *control)
{
    const struct control *c = control;
    if (!c->was_ready)
        return false;
    for (const struct session *s = c->sessions; s; s = s->next)
        if (s->state == SESSION_READY)
            return true;
    return false;
}

uint16_t control_port(const struct control *c)
{
    return rpc_server_port(c->server);
}

struct sched *control_sched(struct control *c)
{
    return c->sched;
}

/* ---- life ---- */

static enum status control_build(struct control *c, struct error *err)
{
    static const struct sched_ops ops = { .send = on_sched_send, .now_ms = on_sched_now, .now_us = on_sched_now_us };
    const enum status st = sched_new(&c->config.sched, &ops, c, &c->sched);
    if (st)
        return error_set(err, st, "scheduler: %s", status_text(st));
    c->run_timer = loop_timer_new(c->config.loop, on_run_timer, c);
    c->tick_timer = loop_timer_new(c->config.loop, on_tick, c);
    if (!c->run_timer || !c->tick_timer)
        return error_set(err, ST_NO_MEMORY, "control: out of memory");
    loop_timer_set(c->run_timer, 0);
    loop_timer_set(c->tick_timer, TICK_MS);
    c->method = (struct rpc_method){ "/longspan.v1.Control/Attach", c, on_attach };
    const struct rpc_server_config server = {
        .address = c->config.address,
        .message_bytes_max = MESSAGE_BYTES_MAX,
        .lookahead_bytes = LOOKAHEAD_BYTES,
        .tls = c->config.tls,
        .keepalive_ms = c->config.welcome.silence_ms, /* for workers that load and cannot beat */
    };
    return rpc_server_start(&server, &c->method, 1, &c->server, err);
}

enum status control_start(const struct control_config *config, struct control **control_out, struct error *err)
{
    struct control *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(err, ST_NO_MEMORY, "control: out of memory");
    c->config = *config;
    if (!c->config.queued_bytes_max)
        c->config.queued_bytes_max = QUEUED_DEFAULT;
    const enum status st = control_build(c, err);
    if (st) {
        control_stop(c);
        return st;
    }
    *control_out = c;
    return ST_OK;
}

void control_stop(struct control *c)
{
    if (!c)
        return;
    c->stopping = true;
    loop_timer_free(c->run_timer);
    loop_timer_free(c->tick_timer);
    c->run_timer = c->tick_timer = NULL;
    loop_drain(c->config.loop);
    for (struct session *s = c->sessions; s; s = s->next)
        session_drop(s, RPC_UNAVAILABLE, "the coordinator stops");
    rpc_server_stop(c->server, STOP_GRACE_MS);
    loop_drain(c->config.loop); /* ends of streams: no session is left */
    c->kicked = true;           /* requests that end now would post to what is about to be freed */
    sched_free(c->sched);
    free(c);
}
