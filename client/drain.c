#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/remote.h"
#include "client/settings.h"

enum { CALL_MS = 5000, LOOK_MS = 200 };

static bool number_read(const char *text, uint32_t *worker_out)
{
    char *end;
    if (!text || *text < '0' || *text > '9')
        return false;
    const unsigned long n = strtoul(text, &end, 10);
    *worker_out = (uint32_t)n;
    return !*end && n <= UINT16_MAX;
}

static enum status ask(struct remote *r, uint32_t worker, bool undo, Longspan__V1__DrainResponse **answer_out,
                       struct error *err)
{
    Longspan__V1__DrainRequest m = LONGSPAN__V1__DRAIN_REQUEST__INIT;
    uint8_t *reply;
    size_t bytes;
    m.worker = worker;
    m.undo = undo;
    const enum status st = remote_unary(r, "/longspan.v1.Cluster/Drain", CALL_MS, &m.base, &reply, &bytes, NULL, err);
    if (st)
        return st;
    *answer_out = longspan__v1__drain_response__unpack(NULL, bytes, reply);
    free(reply);
    if (*answer_out && (*answer_out)->worker)
        return ST_OK;
    if (*answer_out)
        longspan__v1__drain_response__free_unpacked(*answer_out, NULL);
    return error_set(err, ST_PROTOCOL, "malformed answer");
}

static void show(const struct settings *s, const Longspan__V1__WorkerStatus *w)
{
    if (s->json)
        printf("{\"worker\": %u, \"state\": \"%s\", \"sequences\": %u, \"leaves\": %llu}\n", w->id, w->state,
               w->sequences, (unsigned long long)w->leaves);
    else
        printf("worker %u is %s: home of %u sequences, %llu leaves\n", w->id, w->state, w->sequences,
               (unsigned long long)w->leaves);
    fflush(stdout);
}

/* Asks, and with --wait again until nothing is left; says what has changed. */
static enum status drain(struct remote *r, const struct settings *s, uint32_t worker, struct error *err)
{
    char before[128] = "";
    for (;;) {
        Longspan__V1__DrainResponse *m;
        const enum status st = ask(r, worker, s->undo, &m, err);
        if (st)
            return st;
        char now[128];
        snprintf(now, sizeof now, "%.32s %u %llu", m->worker->state, m->worker->sequences,
                 (unsigned long long)m->worker->leaves);
        if (strcmp(now, before) != 0)
            show(s, m->worker);
        memcpy(before, now, sizeof now);
        const bool done = s->undo || !s->wait || !strcmp(m->worker->state, "drained");
        longspan__v1__drain_response__free_unpacked(m, NULL);
        if (done)
            return ST_OK;
        if (interrupted())
            return error_set(err, ST_CANCELLED, "it goes on draining; --undo takes the worker back");
        nanosleep(&(struct timespec){ .tv_nsec = LOOK_MS * 1000000 }, NULL);
    }
}

int command_drain(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    struct remote *r;
    const char *prompt, *positional;
    uint32_t worker;
    static const char usage[] = "usage: longspan drain WORKER [--wait] [--undo] [--grpc HOST:PORT] [--json]";
    if (!settings_read(&s, SCOPE_DRAIN, usage, argc, argv, &prompt, &positional))
        return 2;
    if (!number_read(positional, &worker)) {
        fprintf(stderr, "longspan: drain: WORKER is a number that `longspan status` shows\n%s\n", usage);
        return 2;
    }
    interrupt_catch();
    enum status st = remote_open(s.grpc, &s, &r, &err);
    if (!st) {
        st = drain(r, &s, worker, &err);
        remote_close(r);
    }
    if (st)
        fprintf(stderr, "longspan: %s: %s\n", s.grpc, err.text);
    return st ? 1 : 0;
}

int command_rebalance(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    struct remote *r;
    const char *prompt, *positional;
    const Longspan__V1__RebalanceRequest request = LONGSPAN__V1__REBALANCE_REQUEST__INIT;
    Longspan__V1__RebalanceResponse *m = NULL;
    uint8_t *reply = NULL;
    size_t bytes = 0;
    if (!settings_read(&s, SCOPE_REBALANCE, "usage: longspan rebalance [--grpc HOST:PORT] [--json]", argc, argv,
                       &prompt, &positional))
        return 2;
    enum status st = remote_open(s.grpc, &s, &r, &err);
    if (!st) {
        st = remote_unary(r, "/longspan.v1.Cluster/Rebalance", CALL_MS, &request.base, &reply, &bytes, NULL, &err);
        remote_close(r);
    }
    if (!st && !(m = longspan__v1__rebalance_response__unpack(NULL, bytes, reply)))
        st = error_set(&err, ST_PROTOCOL, "malformed answer");
    free(reply);
    if (st) {
        fprintf(stderr, "longspan: %s: %s\n", s.grpc, err.text);
        return 1;
    }
    if (s.json)
        printf("{\"leaves_moved\": %llu, \"sequences_moved\": %llu}\n", (unsigned long long)m->leaves_moved,
               (unsigned long long)m->sequences_moved);
    else
        printf("leaves are evened out in the background; so far %llu leaves and %llu sequences were moved\n",
               (unsigned long long)m->leaves_moved, (unsigned long long)m->sequences_moved);
    longspan__v1__rebalance_response__free_unpacked(m, NULL);
    return 0;
}
