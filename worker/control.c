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
#include "common/tls_watch.h"
#include "model/calibration.h"
#include "proto/control.h"
#include "proto/rpc.h"
#include "worker/held.h"
#include "worker/sender.h"
#include "worker/worker.h"

enum {
    RETRY_MS = 300,
    REFUSED_MS = 3000, /* it will not be otherwise soon */
    LEAVE_LOOK_MS = 50,
    RETRY_NEXT_MS = 100, /* where there are several addresses */
    ATTACH_MS = 700,     /* for a welcome, then the next address is tried */
    ADDRESSES_MAX = 16,
    ADDRESS_MAX = 160,
    MESSAGE_BYTES_MAX = 256 << 20
};

/* What the welcome asks for. */
struct service {
    char model[1024], precision[16], kv_codec[16], calibration[40], selector[SELECTOR_TEXT];
    uint32_t step_rows_max, positions_max;
};

/* What is kept from one attachment to the next: weights and sealed blocks outlive a coordinator. The main thread's. */
struct keep {
    struct service service;
    struct model *model;
    struct worker *worker; /* paused between attachments; NULL: nothing is kept */
    uint64_t term;         /* the highest that was obeyed */
};

/*
 * One attachment. Callbacks of the stream come on gRPC's thread, of the worker on its step thread; the rest is the main thread's, but for
 * sending (sender.h).
 */
struct session {
    const struct worker_process_config *config;
    const struct tls *tls;
    const char *address; /* of the coordinator that is tried */
    bool others;         /* there are more */
    struct keep *keep;
    struct rpc_channel *channel;
    struct rpc_call *call;
    struct service service;
    uint16_t id;
    uint32_t heartbeat_ms, silence_ms;
    uint64_t term;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct worker *worker; /* under the lock: messages are forwarded once it is here */
    bool welcome, ended;   /* under the lock */
    enum rpc_code code;    /* of the end */
    _Atomic int64_t heard_ms;

    struct sender out; /* messages on their way */
};

static volatile sig_atomic_t stopping; /* now */
static volatile sig_atomic_t leaving;  /* when nothing needs this worker any more */

static void on_signal(int number)
{
    (void)number;
    if (leaving)
        stopping = 1;
    leaving = 1;
}

static void session_send(struct session *s, const struct control_message *message)
{
    sender_send(&s->out, message);
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

static void on_disk(void *ctx, const struct control_blocks *blocks, bool gone)
{
    const struct control_message m = { .kind = gone ? CONTROL_GONE : CONTROL_STORED, .as.blocks = *blocks };
    session_send(ctx, &m);
}

/* ---- from the coordinator ---- */

static void welcome_take(struct session *s, const struct control_welcome *w)
{
    pthread_mutex_lock(&s->lock);
    if (!s->welcome) {
        s->welcome = true;
        s->id = w->worker_id;
        snprintf(s->service.model, sizeof s->service.model, "%s", w->model);
        snprintf(s->service.precision, sizeof s->service.precision, "%s", w->precision);
        snprintf(s->service.kv_codec, sizeof s->service.kv_codec, "%s", w->kv_codec);
        snprintf(s->service.calibration, sizeof s->service.calibration, "%s", w->calibration ? w->calibration : "");
        snprintf(s->service.selector, sizeof s->service.selector, "%s", w->selector);
        s->service.step_rows_max = w->step_rows_max;
        s->service.positions_max = w->positions_max;
        s->term = w->term;
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
        stopping = leaving = 1;
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
    pthread_mutex_lock(&s->lock);
    /* one that was never welcomed is tried again; whoever started it for this stream only says more */
    const bool expected = s->config->once || !s->welcome || !strcmp(message, CONTROL_STOPS);
    log_write(expected ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "control stream to %s ended: code %d %s", s->address,
              (int)code, message);
    s->ended = true;
    s->code = code;
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
                                                         .n_threads = s->config->n_threads,
                                                         .term = s->keep->term } };
    session_send(s, &hello);
}

/*
 * -> welcomed. Waits while the coordinator is not there yet: hosts start in any order. Of several, the next is tried soon. One that led before another that
 * was obeyed here is obeyed no more.
 */
static bool await_welcome(struct session *s)
{
    const int64_t until = s->others ? clock_ms() + ATTACH_MS : INT64_MAX;
    pthread_mutex_lock(&s->lock);
    while (!s->welcome && !s->ended && !leaving && clock_ms() < until)
        wait_ms(s, s->others ? 50 : 200);
    const bool welcome = s->welcome && !s->ended;
    pthread_mutex_unlock(&s->lock);
    if (welcome && s->term < s->keep->term) {
        log_error("coordinator at %s is not obeyed: its term is %llu, one of term %llu led after it", s->address,
                  (unsigned long long)s->term, (unsigned long long)s->keep->term);
        return false;
    }
    return welcome && !leaving;
}

static void keep_drop(struct keep *k)
{
    worker_free(k->worker);
    model_close(k->model);
    k->worker = NULL;
    k->model = NULL;
}

static bool same_service(const struct service *a, const struct service *b)
{
    return !strcmp(a->model, b->model) && !strcmp(a->precision, b->precision) && !strcmp(a->kv_codec, b->kv_codec) &&
           !strcmp(a->calibration, b->calibration) && !strcmp(a->selector, b->selector) &&
           a->step_rows_max == b->step_rows_max && a->positions_max == b->positions_max;
}

/* The worker of the attachment before, if it serves what is asked for. */
static bool serve_kept(struct session *s)
{
    struct keep *k = s->keep;
    struct error err = { 0 };
    if (!k->worker)
        return false;
    if (same_service(&k->service, &s->service) && !worker_resume(k->worker, s->id, s, &err))
        return true;
    log_warn("what was kept is loaded again: %s", err.text[0] ? err.text : "the coordinator asks for something else");
    keep_drop(k);
    return false;
}

/* Is what the coordinator serves what this worker was started for? */
static enum status check_expected(const struct session *s, struct error *err)
{
    const struct worker_process_config *c = s->config;
    struct selector_spec wanted, served;
    enum status st = ST_OK;
    if (c->kv_codec && strcmp(c->kv_codec, s->service.kv_codec) != 0)
        return error_set(err, ST_INVALID, "kv-codec: %s is expected here, the coordinator serves %s", c->kv_codec,
                         s->service.kv_codec);
    if (!c->selector)
        return ST_OK;
    if ((st = selector_parse(c->selector, &wanted, err)) || (st = selector_parse(s->service.selector, &served, err)))
        return st;
    if (strcmp(wanted.name, served.name) != 0 || (strcmp(wanted.name, "dense") && wanted.density != served.density))
        st = error_set(err, ST_INVALID, "selector: %s is expected here, the coordinator serves %s", c->selector,
                       s->service.selector);
    return st;
}

/* Of the codec that is served, and the digest that the coordinator told; NULL: it needs none. */
static enum status open_calibration(const struct session *s, enum kv_codec kv_codec,
                                    struct calibration **calibration_out, struct error *err)
{
    *calibration_out = NULL;
    if (!kv_codecs[kv_codec].calibrated)
        return ST_OK;
    const struct calibration_wanted wanted = { .model_spec = s->service.model,
                                               .path = s->config->calibration,
                                               .codec = kv_codecs[kv_codec].name,
                                               .model = model_digest(s->keep->model),
                                               .digest = s->service.calibration };
    return calibration_open_wanted(&wanted, calibration_out, err);
}

/* The same of the channels that the selector's text names. */
static enum status open_channels(const struct session *s, struct calibration **channels_out, struct error *err)
{
    struct selector_spec spec;
    *channels_out = NULL;
    const enum status st = selector_parse(s->service.selector, &spec, err);
    if (st || !spec.channels[0])
        return st;
    const struct calibration_wanted wanted = { .model_spec = s->service.model,
                                               .path = s->config->channels,
                                               .codec = spec.name,
                                               .model = model_digest(s->keep->model),
                                               .digest = spec.channels,
                                               .flag = "selector" };
    return calibration_open_wanted(&wanted, channels_out, err);
}

static enum status serve_new(struct session *s)
{
    struct error err = { 0 };
    struct worker *w = NULL;
    const bool float32 = !strcmp(s->service.precision, "float32");
    enum kv_codec kv_codec = KV_BF16;
    struct calibration *calibration = NULL, *channels = NULL;
    enum status st = check_expected(s, &err);
    if (!st)
        st = kv_codec_find(s->service.kv_codec, float32, &kv_codec, &err);
    if (!st)
        st = model_open(s->service.model, &s->keep->model, &err);
    if (!st)
        st = open_calibration(s, kv_codec, &calibration, &err);
    if (!st)
        st = open_channels(s, &channels, &err);
    const struct worker_config config = {
        .device = s->config->device,
        .float32 = float32,
        .kv_codec = kv_codec,
        .calibration = calibration,
        .channels = channels,
        .selector = s->keep->service.selector,
        .n_threads = s->config->n_threads,
        .step_rows_max = s->service.step_rows_max,
        .positions_max = s->service.positions_max,
        .kv_bytes = s->config->kv_bytes,
        .disk_dir = s->config->disk_dir,
        .disk_bytes = s->config->disk_bytes,
        .reads_apart = s->config->reads_apart,
        .exchange_ops = exchange_find(s->config->exchange),
        .exchange = { .self = s->id,
                      .bind = s->config->bind,
                      .port_first = s->config->port_first,
                      .port_last = s->config->port_last,
                      .lanes = s->config->lanes,
                      .tokens = true,
                      .spin_us = 20,
                      .stash_bytes_max = (size_t)256 << 20 },
        .on_result = on_result,
        .on_abort = on_abort,
        .on_copied = on_copied,
        .on_progress = on_progress,
        .on_disk = on_disk,
        .ctx = s,
    };
    s->keep->service = s->service;
    if (!st)
        st = worker_new(&config, s->keep->model, &w, &err);
    calibration_close(calibration);
    calibration_close(channels);
    if (st) {
        log_error("%s", err.text);
        keep_drop(s->keep);
        return st;
    }
    s->keep->worker = w;
    return ST_OK;
}

static enum status serve_model(struct session *s)
{
    const bool kept = serve_kept(s);
    enum status st = kept ? ST_OK : serve_new(s);
    if (!st && kept)
        st = held_send(&s->out, s->keep->worker); /* nothing is posted to the worker yet */
    if (st)
        return st;
    s->keep->term = s->term;
    struct control_message ready = { .kind = CONTROL_READY };
    worker_ready(s->keep->worker, &ready.as.ready);
    pthread_mutex_lock(&s->lock);
    s->worker = s->keep->worker;
    pthread_mutex_unlock(&s->lock);
    log_info("worker %u ready: %s, %u blocks of %llu bytes, weights %llu MiB", s->id, ready.as.ready.fingerprint,
             ready.as.ready.n_blocks, (unsigned long long)ready.as.ready.block_bytes,
             (unsigned long long)(ready.as.ready.weight_bytes >> 20));
    session_send(s, &ready);
    return held_disk_send(&s->out, s->keep->worker);
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

/*
 * Heartbeats until the stream ends, the coordinator has been silent too long, or, after a signal, nothing here is needed any more (the coordinator says so)
 * or the time for that is over.
 */
static void heartbeats(struct session *s)
{
    uint64_t n = 0;
    int64_t leave_ms = 0;
    atomic_store(&s->heard_ms, clock_ms());
    for (;;) {
        struct worker_stats stats;
        const struct kv_disk_stats *disk = &stats.disk;
        worker_stats(s->worker, &stats);
        const struct control_message beat = { .kind = CONTROL_HEARTBEAT,
                                              .as.heartbeat = { .sequence = ++n,
                                                                .plans_done = stats.plans_done,
                                                                .blocks_used = stats.blocks_used,
                                                                .resident_bytes = resident_bytes(),
                                                                .sketch_bytes = stats.sketch_bytes,
                                                                .bytes_sent = stats.bytes_sent,
                                                                .bytes_received = stats.bytes_received,
                                                                .work = stats.work,
                                                                .dropped = stats.dropped,
                                                                .leaving = leaving,
                                                                .waits_ms = stats.waits_ms,
                                                                .disk = { .blocks = disk->blocks,
                                                                          .bytes = disk->bytes,
                                                                          .written = disk->written,
                                                                          .read = disk->read,
                                                                          .evicted = disk->evicted,
                                                                          .dropped = disk->dropped,
                                                                          .failed = disk->failed,
                                                                          .refused = disk->refused } } };
        session_send(s, &beat);
        if (leaving && !leave_ms)
            leave_ms = clock_ms() + s->config->drain_ms;
        const int64_t since_ms = clock_ms();
        pthread_mutex_lock(&s->lock);
        if (!s->ended && !stopping)
            wait_ms(s, leaving && s->heartbeat_ms > LEAVE_LOOK_MS ? LEAVE_LOOK_MS : s->heartbeat_ms);
        const bool ended = s->ended;
        pthread_mutex_unlock(&s->lock);
        if (ended || stopping || (leave_ms && clock_ms() >= leave_ms))
            return;
        const int64_t now = clock_ms(), silent = now - atomic_load(&s->heard_ms);
        /* If this process itself did not run for a while, the coordinator was not silent: what it said is still to be read. */
        const bool deaf = now - since_ms > 2 * (int64_t)s->heartbeat_ms;
        if (!deaf && s->silence_ms && silent > s->silence_ms) {
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
    const struct rpc_channel_config channel = { s->address, MESSAGE_BYTES_MAX, 1000, s->tls, NULL };
    bool served = true;
    if (rpc_channel_open(&channel, &s->channel, &err) ||
        rpc_call_start(s->channel, "/longspan.v1.Control/Attach", 0, true, &handlers, s, &s->call)) {
        log_error("control %s: %s", s->address, err.text);
        return false;
    }
    if (!sender_start(&s->out, s->call))
        return false;
    send_hello(s);
    if (await_welcome(s)) {
        served = !serve_model(s);
        if (served)
            heartbeats(s);
    }
    return served;
}

/* The worker stops first: until then its step thread may still send; nothing is forwarded to it any more. */
static void session_end(struct session *s)
{
    struct error err = { 0 };
    pthread_mutex_lock(&s->lock);
    const bool serving = s->worker != NULL;
    s->worker = NULL;
    pthread_mutex_unlock(&s->lock);
    if (s->call)
        rpc_call_cancel(s->call);
    if (serving && worker_pause(s->keep->worker, &err)) {
        log_error("%s", err.text);
        keep_drop(s->keep);
    }
    sender_end(&s->out);
    if (s->call)
        rpc_call_unref(s->call);
    if (s->channel)
        rpc_channel_close(s->channel); /* no callback after this */
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    sender_deinit(&s->out);
}

/* "host:port,host:port": -> how many; 0: err says what is wrong */
static uint32_t addresses_read(const char *list, char addresses_out[ADDRESSES_MAX][ADDRESS_MAX], struct error *err)
{
    uint32_t n = 0;
    for (const char *at = list;; at++) {
        const size_t bytes = strcspn(at, ",");
        if (!bytes || bytes >= ADDRESS_MAX || n == ADDRESSES_MAX) {
            error_set(err, ST_INVALID, "control: '%s' is not HOST:PORT[,HOST:PORT...], %d at most", list,
                      (int)ADDRESSES_MAX);
            return 0;
        }
        snprintf(addresses_out[n++], ADDRESS_MAX, "%.*s", (int)bytes, at);
        at += bytes;
        if (!*at)
            return n;
    }
}

/* A stream is opened with the certificates that are there now. */
static void tls_renew(struct tls_watch *watch, struct tls **tls)
{
    struct tls *now;
    if (!*tls || !tls_watch_look(watch, false, &now))
        return;
    log_info("control: certificates were read again");
    tls_free(*tls);
    *tls = now;
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
    char addresses[ADDRESSES_MAX][ADDRESS_MAX];
    const uint32_t n_addresses = addresses_read(mine.control, addresses, &err);
    struct tls_watch *watch = tls_watch_new("control", &mine.tls, true);
    if (!watch)
        return 1;
    if (!n_addresses || tls_load("control", &mine.tls, true, &tls, &err)) {
        log_error("%s", err.text);
        tls_watch_free(watch);
        return 1;
    }
    struct keep keep = { 0 };
    bool refused = false;
    for (uint32_t turn = 0; !leaving && !refused; turn++) {
        tls_renew(watch, &tls);
        struct session s = { .config = &mine,
                             .tls = tls,
                             .address = addresses[turn % n_addresses],
                             .others = n_addresses > 1,
                             .keep = &keep };
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_mutex_init(&s.lock, NULL);
        pthread_cond_init(&s.changed, &monotonic);
        pthread_condattr_destroy(&monotonic);
        sender_init(&s.out);
        const bool served = session_run(&s);
        session_end(&s);
        refused = !leaving && (!served || mine.once);
        if (!leaving && !refused)
            usleep((s.code == RPC_INVALID_ARGUMENT ? REFUSED_MS : n_addresses > 1 ? RETRY_NEXT_MS : RETRY_MS) * 1000);
    }
    keep_drop(&keep);
    tls_free(tls);
    tls_watch_free(watch);
    return refused;
}
