#include "coordinator/control_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

enum {
    LOST_SHOWN_MS = 30000,
    HELLO_WAIT_MS = 5000,
    QUEUED_DEFAULT = 64 << 20,
    LOOKAHEAD_BYTES = 8 << 20,     /* heartbeats wait behind results, which may hold megabytes of logits */
    MESSAGE_BYTES_MAX = 256 << 20, /* a result with whole logit rows */
    TICK_MS = 50,                  /* of the watch over silence */
    DEAF_MS = 200,
    STOP_GRACE_MS = 300,
    STALL_MS = 1000,
};

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

static void on_sched_send(void *ctx, uint16_t worker, const struct control_message *message)
{
    struct session *s = session_find(ctx, worker);
    if (s)
        session_send(s, message);
}

static void on_sched_named(void *ctx, uint16_t worker, const struct control_block *blocks, uint32_t n)
{
    const struct control_message m = { .kind = CONTROL_NAMES, .as.blocks = { .n_blocks = n, .blocks = blocks } };
    on_sched_send(ctx, worker, &m);
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

/* Those that drain and have nothing left are told so. */
static void stop_drained(struct control *c)
{
    struct sched_worker_stats stats[CONTROL_SESSIONS_MAX];
    const uint32_t n = sched_worker_stats(c->sched, stats, CONTROL_SESSIONS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        struct session *s = stats[i].draining && !stats[i].ties ? session_find(c, stats[i].id) : NULL;
        const struct control_message stop = { .kind = CONTROL_STOP };
        if (!s || !s->leaving || s->stopped)
            continue;
        s->stopped = true;
        session_send(s, &stop);
    }
}

static bool any_leaves(const struct control *c)
{
    for (const struct session *s = c->sessions; s; s = s->next)
        if (s->leaving && !s->stopped && s->state == SESSION_READY)
            return true;
    return false;
}

static void on_tick(void *arg)
{
    struct control *c = arg;
    const int64_t now = clock_ms();
    beat_all(c, now);
    if (any_leaves(c))
        stop_drained(c);
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
    struct sched_worker_stats stats[CONTROL_SESSIONS_MAX];
    const uint32_t n_stats = sched_worker_stats(c->sched, stats, CONTROL_SESSIONS_MAX);
    const int64_t now = clock_ms();
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_lost && n < max; i++)
        workers_out[n++] = c->lost[i].shown;
    for (const struct session *s = c->sessions; s && n < max; s = s->next) {
        if (s->state == SESSION_DROPPED)
            continue;
        struct gateway_worker *w = &workers_out[n++];
        *w = s->shown;
        w->step_age_ms = -1;
        for (uint32_t i = 0; i < n_stats; i++) {
            if (s->state != SESSION_READY || stats[i].id != w->id)
                continue;
            w->blocks = stats[i].blocks_used;
            w->blocks_cached = stats[i].blocks_cached;
            w->sequences = stats[i].sequences;
            w->leaves = stats[i].leaves;
            w->group = stats[i].group;
            w->epoch = stats[i].epoch;
            w->step_age_ms = stats[i].step_ms ? now - stats[i].step_ms : -1;
            if (stats[i].draining)
                snprintf(w->state, sizeof w->state, stats[i].ties ? "draining" : "drained");
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

/* ---- what operators ask for ---- */

static bool others_take(const struct control *c, uint16_t worker)
{
    struct sched_worker_stats stats[CONTROL_SESSIONS_MAX];
    const uint32_t n = sched_worker_stats(c->sched, stats, CONTROL_SESSIONS_MAX);
    for (uint32_t i = 0; i < n; i++)
        if (stats[i].id != worker && !stats[i].draining)
            return true;
    return false;
}

enum status control_drain(void *control, uint16_t worker, bool undo, struct error *err)
{
    struct control *c = control;
    const struct session *s = session_find(c, worker);
    if (!c->term)
        return error_set(err, ST_CANCELLED, "this coordinator does not lead");
    if (!s || s->state != SESSION_READY)
        return error_set(err, ST_NOT_FOUND, "worker: %u is not ready, or there is none", worker);
    if (s->leaving)
        return error_set(err, ST_STALE, "worker %u ends: it was told so by a signal", worker);
    if (undo) {
        log_info("worker %u takes sequences again, by command", worker);
        sched_worker_resume(c->sched, worker);
    } else if (!others_take(c, worker)) {
        return error_set(err, ST_STALE, "no worker but %u takes sequences: nothing would be served", worker);
    } else if (sched_worker_empty(c->sched, worker)) {
        log_info("worker %u drains, by command", worker);
    }
    control_kick(c);
    return ST_OK;
}

void control_rebalance(void *control)
{
    struct control *c = control;
    log_info("leaves are evened out, by command");
    sched_rebalance(c->sched);
    control_kick(c);
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

/* A step may take long on a busy machine; then its workers say in their heartbeats that they compute. */
static int64_t worked_ms(const struct control *c)
{
    struct sched_worker_stats stats[CONTROL_SESSIONS_MAX];
    const uint32_t n = sched_worker_stats(c->sched, stats, CONTROL_SESSIONS_MAX);
    int64_t last = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct session *s = stats[i].in_flight ? session_find(c, stats[i].id) : NULL;
        if (s && s->work_ms > last)
            last = s->work_ms;
    }
    return last;
}

int64_t control_stalled_ms(void *control)
{
    const struct control *c = control;
    const int64_t now = clock_ms();
    struct sched_stats stats;
    sched_stats(c->sched, &stats);
    if (!stats.running && !stats.waiting)
        return 0;
    const int64_t worked = worked_ms(c), last = worked > stats.progress_ms ? worked : stats.progress_ms;
    return now - last > STALL_MS ? now - last : 0;
}

enum status control_tls(struct control *c, const struct tls *tls)
{
    return rpc_server_tls(c->server, tls);
}

uint16_t control_port(const struct control *c)
{
    return rpc_server_port(c->server);
}

struct sched *control_sched(struct control *c)
{
    return c->sched;
}

void control_lead(struct control *c, uint64_t term)
{
    if (term <= c->term)
        return;
    sched_begin(c->sched, term); /* a later one too: workers may hold blocks that one of a term between has numbered */
    c->term = term;
}

/* ---- life ---- */

static enum status control_build(struct control *c, struct error *err)
{
    static const struct sched_ops ops = {
        .send = on_sched_send, .named = on_sched_named, .now_ms = on_sched_now, .now_us = on_sched_now_us
    };
    c->config.sched.waits_ms = c->config.welcome.silence_ms;
    const enum status st = sched_new(&c->config.sched, &ops, c, &c->sched);
    if (st)
        return error_set(err, st, "scheduler: %s", status_text(st));
    if (c->config.term)
        control_lead(c, c->config.term);
    c->run_timer = loop_timer_new(c->config.loop, on_run_timer, c);
    c->tick_timer = loop_timer_new(c->config.loop, on_tick, c);
    if (!c->run_timer || !c->tick_timer)
        return error_set(err, ST_NO_MEMORY, "control: out of memory");
    loop_timer_set(c->run_timer, 0);
    loop_timer_set(c->tick_timer, TICK_MS);
    c->method = (struct rpc_method){ "/longspan.v1.Control/Attach", c, control_attach };
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
        session_drop(s, RPC_UNAVAILABLE, CONTROL_STOPS);
    rpc_server_stop(c->server, STOP_GRACE_MS);
    loop_drain(c->config.loop); /* ends of streams: no session is left */
    c->kicked = true;           /* requests that end now would post to what is about to be freed */
    sched_free(c->sched);
    free(c);
}
