#include "worker/control.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "proto/control.h"
#include "proto/rpc.h"
#include "worker/worker.h"

enum { RETRY_MS = 300, MESSAGE_BYTES_MAX = 256 << 20 };

/* An encoded message on its way out. */
struct outgoing {
    struct outgoing *next;
    size_t n;
    uint8_t *bytes;
};

/*
 * One attachment. Callbacks of the stream come on gRPC's thread, of the worker on its step thread; the rest is the main thread's, but for
 * sending: gRPC writes to the socket in the thread that sends, which is a quarter of a millisecond that the step thread can use better.
 */
struct session {
    const struct worker_process_config *config;
    const struct tls *tls;
    struct rpc_channel *channel;
    struct rpc_call *call;
    struct model *model;
    char model_spec[1024], precision[16], kv_codec[16], selector[SELECTOR_TEXT];
    uint16_t id;
    uint32_t step_rows_max, positions_max, heartbeat_ms, silence_ms;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct worker *worker; /* under the lock: messages are forwarded once it is here */
    bool welcome, ended;   /* under the lock */
    _Atomic int64_t heard_ms;

    pthread_t sender;
    bool sends;               /* there is a sender */
    pthread_mutex_t out_lock; /* of what follows */
    pthread_cond_t out_changed;
    struct outgoing *out_first, **out_last;
    bool out_end;
};

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

/* ---- out ---- */

static void session_send(struct session *s, const struct control_message *message)
{
    struct outgoing *out = malloc(sizeof *out);
    if (!out || control_encode(message, &out->bytes, &out->n)) {
        log_error("no memory for a message to the coordinator");
        free(out);
        return;
    }
    out->next = NULL;
    pthread_mutex_lock(&s->out_lock);
    *s->out_last = out;
    s->out_last = &out->next;
    pthread_mutex_unlock(&s->out_lock);
    pthread_cond_signal(&s->out_changed);
}

/* -> what waits, in order; NULL at the end */
static struct outgoing *out_take(struct session *s)
{
    pthread_mutex_lock(&s->out_lock);
    while (!s->out_first && !s->out_end)
        pthread_cond_wait(&s->out_changed, &s->out_lock);
    struct outgoing *first = s->out_first;
    s->out_first = NULL;
    s->out_last = &s->out_first;
    pthread_mutex_unlock(&s->out_lock);
    return first;
}

static void *sender_main(void *arg)
{
    struct session *s = arg;
    struct outgoing *out;
    while ((out = out_take(s))) {
        while (out) {
            struct outgoing *next = out->next;
            rpc_call_send(s->call, out->bytes, out->n);
            free(out->bytes);
            free(out);
            out = next;
        }
    }
    return NULL;
}

static bool sender_start(struct session *s)
{
    s->sends = !pthread_create(&s->sender, NULL, sender_main, s);
    if (!s->sends)
        log_error("no thread for messages to the coordinator");
    return s->sends;
}

/* What was sent before goes out first. */
static void sender_end(struct session *s)
{
    pthread_mutex_lock(&s->out_lock);
    s->out_end = true;
    pthread_mutex_unlock(&s->out_lock);
    pthread_cond_signal(&s->out_changed);
    if (s->sends)
        pthread_join(s->sender, NULL);
}

/* ---- from the worker ---- */

static void on_result(void *ctx, const struct result *result)
{
    const struct control_message m = { .kind = CONTROL_RESULT, .as.result = (struct result *)(uintptr_t)result };
    session_send(ctx, &m);
}

static void on_abort(void *ctx, const struct control_abort *abort)
{
    const struct control_message m = { .kind = CONTROL_ABORT, .as.abort = *abort };
    session_send(ctx, &m);
}

static void on_copied(void *ctx, const struct control_copied *copied)
{
    const struct control_message m = { .kind = CONTROL_COPIED, .as.copied = *copied };
    session_send(ctx, &m);
}

static void on_progress(void *ctx, float fraction)
{
    const struct control_message m = { .kind = CONTROL_PROGRESS, .as.progress = { fraction } };
    session_send(ctx, &m);
}

/* ---- from the coordinator ---- */

static void welcome_take(struct session *s, const struct control_welcome *w)
{
    pthread_mutex_lock(&s->lock);
    if (!s->welcome) {
        s->welcome = true;
        s->id = w->worker_id;
        snprintf(s->model_spec, sizeof s->model_spec, "%s", w->model);
        snprintf(s->precision, sizeof s->precision, "%s", w->precision);
        snprintf(s->kv_codec, sizeof s->kv_codec, "%s", w->kv_codec);
        snprintf(s->selector, sizeof s->selector, "%s", w->selector);
        s->step_rows_max = w->step_rows_max;
        s->positions_max = w->positions_max;
        s->heartbeat_ms = w->heartbeat_ms ? w->heartbeat_ms : 500;
        s->silence_ms = w->silence_ms;
        pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
}

static void on_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    struct session *s = user;
    struct control_message *m;
    struct error err = { 0 };
    atomic_store(&s->heard_ms, clock_ms());
    if (control_decode(data, bytes, &m, &err)) {
        log_error("message from the coordinator: %s", err.text);
        rpc_call_cancel(call);
        return;
    }
    if (m->kind == CONTROL_WELCOME) {
        welcome_take(s, &m->as.welcome);
    } else if (m->kind == CONTROL_STOP) {
        stopping = 1;
    } else if (m->kind != CONTROL_HEARTBEAT) {
        pthread_mutex_lock(&s->lock);
        const bool taken = s->worker && !worker_post(s->worker, m);
        pthread_mutex_unlock(&s->lock);
        if (taken)
            return;
    }
    free(m);
}

static void on_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    struct session *s = user;
    (void)call;
    /* whoever started it for this stream only says more */
    log_write(s->config->once ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "control stream ended: code %d %s", (int)code,
              message);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* ---- the session ---- */

static void wait_ms(struct session *s, uint32_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&s->changed, &s->lock, &until);
}

static void send_hello(struct session *s)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    const struct control_message hello = { .kind = CONTROL_HELLO,
                                           .as.hello = { .version = CONTROL_VERSION,
                                                         .pid = (uint32_t)getpid(),
                                                         .host = host,
                                                         .device = s->config->device,
                                                         .transport = "ucx",
                                                         .n_threads = s->config->n_threads } };
    session_send(s, &hello);
}

/* -> welcomed. Waits while the coordinator is not there yet: hosts start in any order. */
static bool await_welcome(struct session *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->welcome && !s->ended && !stopping)
        wait_ms(s, 200);
    const bool welcome = s->welcome && !s->ended;
    pthread_mutex_unlock(&s->lock);
    return welcome && !stopping;
}

static enum status serve_model(struct session *s)
{
    struct error err = { 0 };
    struct worker *w = NULL;
    const bool float32 = !strcmp(s->precision, "float32");
    enum kv_codec kv_codec = KV_BF16;
    enum status st = kv_codec_find(s->kv_codec, float32, &kv_codec, &err);
    if (!st)
        st = model_open(s->model_spec, &s->model, &err);
    const struct worker_config config = {
        .device = s->config->device,
        .float32 = float32,
        .kv_codec = kv_codec,
        .selector = s->selector,
        .n_threads = s->config->n_threads,
        .step_rows_max = s->step_rows_max,
        .positions_max = s->positions_max,
        .kv_bytes = s->config->kv_bytes,
        .reads_apart = s->config->reads_apart,
        .exchange_ops = &exchange_ucx,
        .exchange = { .self = s->id,
                      .bind = s->config->bind,
                      .port_first = s->config->port_first,
                      .port_last = s->config->port_last,
                      .lanes = s->config->lanes,
                      .spin_us = 20,
                      .stash_bytes_max = (size_t)256 << 20 },
        .on_result = on_result,
        .on_abort = on_abort,
        .on_copied = on_copied,
        .on_progress = on_progress,
        .ctx = s,
    };
    if (!st)
        st = worker_new(&config, s->model, &w, &err);
    if (st) {
        log_error("%s", err.text);
        return st;
    }
    struct control_message ready = { .kind = CONTROL_READY };
    worker_ready(w, &ready.as.ready);
    pthread_mutex_lock(&s->lock);
    s->worker = w;
    pthread_mutex_unlock(&s->lock);
    log_info("worker %u ready: %s, %u blocks of %llu bytes, weights %llu MiB", s->id, ready.as.ready.fingerprint,
             ready.as.ready.n_blocks, (unsigned long long)ready.as.ready.block_bytes,
             (unsigned long long)(ready.as.ready.weight_bytes >> 20));
    session_send(s, &ready);
    return ST_OK;
}

static uint64_t resident_bytes(void)
{
    unsigned long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%lu %lu", &size, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Heartbeats until the stream ends, a signal comes, or the coordinator has been silent too long. */
static void heartbeats(struct session *s)
{
    uint64_t n = 0;
    atomic_store(&s->heard_ms, clock_ms());
    for (;;) {
        struct worker_stats stats;
        worker_stats(s->worker, &stats);
        const struct control_message beat = { .kind = CONTROL_HEARTBEAT,
                                              .as.heartbeat = { .sequence = ++n,
                                                                .plans_done = stats.plans_done,
                                                                .blocks_used = stats.blocks_used,
                                                                .resident_bytes = resident_bytes(),
                                                                .sketch_bytes = stats.sketch_bytes,
                                                                .bytes_sent = stats.bytes_sent,
                                                                .bytes_received = stats.bytes_received } };
        session_send(s, &beat);
        pthread_mutex_lock(&s->lock);
        if (!s->ended && !stopping)
            wait_ms(s, s->heartbeat_ms);
        const bool ended = s->ended;
        pthread_mutex_unlock(&s->lock);
        if (ended || stopping)
            return;
        const int64_t silent = clock_ms() - atomic_load(&s->heard_ms);
        if (s->silence_ms && silent > s->silence_ms) {
            log_warn("nothing heard from the coordinator for %lld ms", (long long)silent);
            return;
        }
    }
}

/* -> false: the coordinator said what this worker cannot serve */
static bool session_run(struct session *s)
{
    const struct rpc_handlers handlers = { .on_message = on_message, .on_done = on_done };
    struct error err = { 0 };
    const struct rpc_channel_config channel = { s->config->control, MESSAGE_BYTES_MAX, 1000, s->tls, NULL };
    bool served = true;
    if (rpc_channel_open(&channel, &s->channel, &err) ||
        rpc_call_start(s->channel, "/longspan.v1.Control/Attach", 0, true, &handlers, s, &s->call)) {
        log_error("control %s: %s", s->config->control, err.text);
        return false;
    }
    if (!sender_start(s))
        return false;
    send_hello(s);
    if (await_welcome(s)) {
        served = !serve_model(s);
        if (served)
            heartbeats(s);
    }
    return served;
}

/* The worker goes first: until it is gone its step thread may still send; nothing is forwarded to it any more. */
static void session_end(struct session *s)
{
    pthread_mutex_lock(&s->lock);
    struct worker *w = s->worker;
    s->worker = NULL;
    pthread_mutex_unlock(&s->lock);
    if (s->call)
        rpc_call_cancel(s->call);
    worker_free(w);
    sender_end(s);
    if (s->call)
        rpc_call_unref(s->call);
    if (s->channel)
        rpc_channel_close(s->channel); /* no callback after this */
    model_close(s->model);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->out_changed);
    pthread_mutex_destroy(&s->out_lock);
}

int worker_process_run(const struct worker_process_config *config)
{
    struct worker_process_config mine = *config;
    const struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    cpu_caps(); /* asks for AMX before threads start */
    if (!mine.n_threads)
        mine.n_threads = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    struct tls *tls;
    struct error err = { 0 };
    if (tls_load("control", &mine.tls, true, &tls, &err)) {
        log_error("%s", err.text);
        return 1;
    }
    bool refused = false;
    while (!stopping && !refused) {
        struct session s = { .config = &mine, .tls = tls, .out_last = &s.out_first };
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_mutex_init(&s.lock, NULL);
        pthread_cond_init(&s.changed, &monotonic);
        pthread_condattr_destroy(&monotonic);
        pthread_mutex_init(&s.out_lock, NULL);
        pthread_cond_init(&s.out_changed, NULL);
        const bool served = session_run(&s);
        session_end(&s);
        refused = !stopping && (!served || mine.once);
        if (!stopping && !refused)
            usleep(RETRY_MS * 1000);
    }
    tls_free(tls);
    return refused;
}
