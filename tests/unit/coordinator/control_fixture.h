#ifndef LONGSPAN_TESTS_UNIT_COORDINATOR_CONTROL_FIXTURE_H
#define LONGSPAN_TESTS_UNIT_COORDINATOR_CONTROL_FIXTURE_H

/* A coordinator's control port on a loop that the test turns, and workers that attach to it and compute nothing. */

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <event2/event.h>

#include "common/clock.h"
#include "coordinator/control.h"
#include "proto/rpc.h"

enum { WAIT_MS = 60000, HEARTBEAT_MS = 50, SILENCE_MS = 1200, BLOCKS = 64, MESSAGE_MAX = 1 << 20 };

static const struct digest model = { { 1, 2, 3, 4 } };

/* ---- the coordinator's side ---- */

struct site {
    struct loop *loop;
    struct control *control;
    char target[32];
    uint64_t higher; /* term that somebody at the door has shown */
};

static void on_higher(void *ctx, uint64_t term)
{
    ((struct site *)ctx)->higher = term;
}

static void turn(struct site *site)
{
    event_base_loop(loop_base(site->loop), EVLOOP_NONBLOCK);
    const struct timespec nap = { .tv_nsec = 500 * 1000 };
    nanosleep(&nap, NULL);
}

/* Turns the loop until it holds; fails the test rather than hanging. */
#define TURN_UNTIL(site, condition)                                                                                    \
    do {                                                                                                               \
        const int64_t until_ = clock_ms() + WAIT_MS;                                                                   \
        while (!(condition)) {                                                                                         \
            if (clock_ms() > until_)                                                                                   \
                fail_msg("gave up waiting for " #condition);                                                           \
            turn(site);                                                                                                \
        }                                                                                                              \
    } while (0)

/* A coordinator that does not lead yet; site has its loop. */
static struct control_config site_config(struct site *site)
{
    return (struct control_config){
        .loop = site->loop,
        .address = "127.0.0.1:0",
        .sched = { .positions_max = 2048,
                   .step_rows_max = 256,
                   .prefill_chunk_rows = 128,
                   .sequences_max = 8,
                   .queue_max = 8,
                   .spread_min_tokens = 1 << 17,
                   .step_deadline_ms = 10000,
                   .plans_ahead = 2,
                   .prefix_sharing = true,
                   .context = { { 9 } },
                   .seed = 1 },
        .welcome = { .model = "a model",
                     .precision = "bf16",
                     .kv_codec = "bf16",
                     .selector = "dense",
                     .positions_max = 2048,
                     .step_rows_max = 256,
                     .heartbeat_ms = HEARTBEAT_MS,
                     .silence_ms = SILENCE_MS },
        .model_digest = model,
    };
}

static void site_start(struct site *site, const struct control_config *config)
{
    struct error err = { 0 };
    if (control_start(config, &site->control, &err))
        fail_msg("%s", err.text);
    snprintf(site->target, sizeof site->target, "127.0.0.1:%u", control_port(site->control));
}

static int site_setup(void **state)
{
    struct site *site = calloc(1, sizeof *site);
    assert_int_equal(loop_new(&site->loop), ST_OK);
    struct control_config config = site_config(site);
    config.n_workers = 2;
    config.term = 5;
    config.on_higher = on_higher;
    config.ctx = site;
    site_start(site, &config);
    *state = site;
    return 0;
}

static int site_teardown(void **state)
{
    struct site *site = *state;
    control_stop(site->control);
    loop_free(site->loop);
    free(site);
    return 0;
}

static const char *state_of(struct site *site, uint16_t id)
{
    static struct gateway_worker workers[80];
    const uint32_t n = control_workers(site->control, workers, 80);
    for (uint32_t i = 0; i < n; i++)
        if (workers[i].id == id)
            return workers[i].state;
    return "";
}

/* ---- a worker that computes nothing ---- */

struct fake {
    struct rpc_channel *channel;
    struct rpc_call *call;
    pthread_t beat_thread;
    atomic_bool beats, quit;
    bool beating, owns_channel;
    atomic_int welcomes, id, members, member_lists, plans, fences, heartbeats, names, done, code;
    atomic_bool idle; /* answers no plan */
    _Atomic int64_t heard_ms;
    atomic_bool deaf; /* reads nothing from its next plan on */
};

static void fake_send(struct fake *f, const struct control_message *m)
{
    uint8_t *bytes;
    size_t n;
    assert_int_equal(control_encode(m, &bytes, &n), ST_OK);
    rpc_call_send(f->call, bytes, n);
    free(bytes);
}

/* Every row that wants a token gets one: its position. */
static void fake_run(struct fake *f, const struct plan *p)
{
    struct result_row rows[64];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct plan_run *r = &p->runs[i];
        if (r->home != atomic_load(&f->id) || !(r->want & WANT_SAMPLE))
            continue;
        const uint32_t pos = r->pos + r->n_rows - 1;
        rows[n++] = (struct result_row){ .seq = p->seqs[r->seq].id, .pos = pos, .token = (int32_t)pos, .logprob = -1 };
    }
    struct result result = {
        .epoch = p->epoch, .number = p->number, .group = p->group, .n_rows = n, .rows = rows, .busy_us = 100
    };
    fake_send(f, &(struct control_message){ .kind = CONTROL_RESULT, .as.result = &result });
}

static void fake_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    struct fake *f = user;
    struct control_message *m;
    struct error err = { 0 };
    atomic_store(&f->heard_ms, clock_ms());
    if (control_decode(data, bytes, &m, &err))
        fail_msg("from the coordinator: %s", err.text);
    switch (m->kind) {
    case CONTROL_WELCOME:
        assert_string_equal(m->as.welcome.model, "a model");
        atomic_store(&f->id, m->as.welcome.worker_id);
        atomic_fetch_add(&f->welcomes, 1);
        break;
    case CONTROL_MEMBERS:
        atomic_store(&f->members, (int)m->as.members.n_members);
        atomic_fetch_add(&f->member_lists, 1);
        break;
    case CONTROL_PLAN:
        atomic_fetch_add(&f->plans, 1);
        if (!atomic_load(&f->idle))
            fake_run(f, m->as.plan);
        break;
    case CONTROL_FENCE:
        atomic_fetch_add(&f->fences, 1);
        break;
    case CONTROL_HEARTBEAT:
        atomic_fetch_add(&f->heartbeats, 1);
        break;
    case CONTROL_NAMES:
        atomic_fetch_add(&f->names, (int)m->as.blocks.n_blocks);
        break;
    default:
        fail_msg("a message of kind %d came to a worker", (int)m->kind);
    }
    free(m);
}

static void fake_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    (void)message;
    struct fake *f = user;
    atomic_store(&f->code, (int)code);
    atomic_store(&f->done, 1);
}

static void *fake_beat(void *arg)
{
    struct fake *f = arg;
    for (uint64_t n = 1; !atomic_load(&f->quit);) {
        if (clock_ms() - atomic_load(&f->heard_ms) > SILENCE_MS)
            rpc_call_cancel(f->call); /* as a worker does */
        if (atomic_load(&f->beats))
            fake_send(f, &(struct control_message){ .kind = CONTROL_HEARTBEAT,
                                                    .as.heartbeat = { .sequence = n++, .resident_bytes = 4096 } });
        const struct timespec nap = { .tv_nsec = HEARTBEAT_MS * 1000000L };
        nanosleep(&nap, NULL);
    }
    return NULL;
}

static void fake_attach(struct fake *f, struct rpc_channel *channel, const char *target)
{
    static const struct rpc_handlers handlers = { .on_message = fake_message, .on_done = fake_done };
    memset(f, 0, sizeof *f);
    f->channel = channel;
    f->owns_channel = !channel;
    if (!channel)
        assert_int_equal(
            rpc_channel_open(&(struct rpc_channel_config){ target, MESSAGE_MAX, 0, NULL, NULL }, &f->channel, NULL),
            ST_OK);
    assert_int_equal(rpc_call_start(f->channel, "/longspan.v1.Control/Attach", 0, true, &handlers, f, &f->call), ST_OK);
}

static void fake_hello(struct fake *f, uint32_t version)
{
    fake_send(f, &(struct control_message){ .kind = CONTROL_HELLO,
                                            .as.hello = { version, 77, "host", "cpu", "local", 1, 0 } });
}

static void fake_ready(struct fake *f, const struct digest *digest)
{
    struct control_message m = { .kind = CONTROL_READY,
                                 .as.ready = { .fingerprint = "fake-1",
                                               .leaf_blocks = 4,
                                               .n_blocks = BLOCKS,
                                               .block_bytes = 1000,
                                               .weight_bytes = 5,
                                               .pool_bytes = BLOCKS * 1000,
                                               .address = (const uint8_t *)"here",
                                               .address_bytes = 4 } };
    memcpy(m.as.ready.model_digest, digest->byte, 16);
    fake_send(f, &m);
}

/* Attached, loaded, ready, beating. */
static void fake_up_at(struct fake *f, struct site *site, const char *target)
{
    fake_attach(f, NULL, target);
    fake_hello(f, CONTROL_VERSION);
    TURN_UNTIL(site, atomic_load(&f->welcomes) == 1);
    fake_send(f, &(struct control_message){ .kind = CONTROL_PROGRESS, .as.progress = { 0.5f } });
    atomic_store(&f->beats, true);
    f->beating = true;
    assert_int_equal(pthread_create(&f->beat_thread, NULL, fake_beat, f), 0);
    fake_ready(f, &model);
    TURN_UNTIL(site, atomic_load(&f->member_lists) > 0);
}

static void fake_up(struct fake *f, struct site *site)
{
    fake_up_at(f, site, site->target);
}

static void fake_down(struct fake *f)
{
    atomic_store(&f->quit, true);
    if (f->beating)
        pthread_join(f->beat_thread, NULL);
    rpc_call_cancel(f->call);
    if (f->owns_channel)
        rpc_channel_close(f->channel);
    rpc_call_unref(f->call);
}

#endif
