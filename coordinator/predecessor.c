#include "coordinator/predecessor.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "proto/control.h"
#include "proto/rpc.h"

enum { EVERY_MS = 500, CALL_MS = 1000, MESSAGE_BYTES_MAX = 1 << 20 };

struct predecessor {
    char address[256];
    const struct tls_files *tls;
    uint64_t term;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, end; /* under the lock: the call is over; nobody wants another */
    bool told;      /* it was reached once */
    enum rpc_code code;
    char says[256];
};

/* Nothing is expected. */
static void on_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)user;
    (void)data;
    (void)bytes;
    rpc_call_cancel(call);
}

static void on_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    struct predecessor *p = user;
    (void)call;
    pthread_mutex_lock(&p->lock);
    p->done = true;
    p->code = code;
    snprintf(p->says, sizeof p->says, "%s", message);
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void call_once(struct predecessor *p, struct rpc_channel *channel)
{
    static const struct rpc_handlers handlers = { .on_message = on_message, .on_done = on_done };
    const struct control_message hello = { .kind = CONTROL_HELLO,
                                           .as.hello = { .version = CONTROL_VERSION,
                                                         .pid = (uint32_t)getpid(),
                                                         .host = "",
                                                         .device = PREDECESSOR_DEVICE,
                                                         .transport = "",
                                                         .n_threads = 1,
                                                         .term = p->term } };
    struct rpc_call *call;
    uint8_t *bytes;
    size_t n;
    p->done = false;
    if (control_encode(&hello, &bytes, &n))
        return;
    if (!rpc_call_start(channel, "/longspan.v1.Control/Attach", CALL_MS, true, &handlers, p, &call)) {
        rpc_call_send(call, bytes, n);
        pthread_mutex_lock(&p->lock);
        while (!p->done)
            pthread_cond_wait(&p->changed, &p->lock);
        pthread_mutex_unlock(&p->lock);
        rpc_call_unref(call);
        if (!p->told && p->code == RPC_UNAVAILABLE)
            log_info("coordinator at %s, which led before: %s", p->address, p->says);
        p->told = p->told || p->code == RPC_UNAVAILABLE;
    }
    free(bytes);
}

/* -> whether to go on */
static bool pause_for(struct predecessor *p)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += EVERY_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&p->lock);
    int late = 0;
    while (!p->end && !late)
        late = pthread_cond_timedwait(&p->changed, &p->lock, &until);
    const bool on = !p->end;
    pthread_mutex_unlock(&p->lock);
    return on;
}

static void *main_of(void *arg)
{
    struct predecessor *p = arg;
    struct tls *tls = NULL;
    struct rpc_channel *channel;
    struct error err = { 0 };
    enum status st = p->tls ? tls_load("control", p->tls, true, &tls, &err) : ST_OK;
    const struct rpc_channel_config config = { p->address, MESSAGE_BYTES_MAX, 0, tls, NULL };
    if (!st)
        st = rpc_channel_open(&config, &channel, &err);
    if (st) {
        log_warn("coordinator at %s, which led before, cannot be called: %s", p->address, err.text);
        tls_free(tls);
        return NULL;
    }
    do
        call_once(p, channel);
    while (pause_for(p));
    rpc_channel_close(channel);
    tls_free(tls);
    return NULL;
}

static void release(struct predecessor *p)
{
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

enum status predecessor_tell(const char *address, const struct tls_files *tls, uint64_t term,
                             struct predecessor **predecessor_out)
{
    struct predecessor *p = calloc(1, sizeof *p);
    pthread_condattr_t monotonic;
    if (!p)
        return ST_NO_MEMORY;
    snprintf(p->address, sizeof p->address, "%s", address);
    p->tls = tls;
    p->term = term;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&p->thread, NULL, main_of, p)) {
        release(p);
        return ST_NO_MEMORY;
    }
    *predecessor_out = p;
    return ST_OK;
}

void predecessor_end(struct predecessor *p)
{
    pthread_mutex_lock(&p->lock);
    p->end = true;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

void predecessor_free(struct predecessor *p)
{
    if (!p)
        return;
    predecessor_end(p);
    pthread_join(p->thread, NULL);
    release(p);
}
