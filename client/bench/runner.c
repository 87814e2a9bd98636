#include "client/bench/runner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <event2/event.h>

#include "common/clock.h"

enum { LOOK_MS = 50, SHOW_MS = 500, RECORDS_MAX = 10000000 };

struct slot {
    uint64_t index;
    struct record record;
};

struct runner {
    const struct runner_config *config;
    struct workload *workload;
    struct exchange_config exchange;
    struct event *due, *look;
    struct exchange *open; /* list */
    uint32_t n_open, failures;
    struct load_request next;
    bool has_next, ended, stopped;
    struct slot *slots;
    size_t n_slots, slots_room;
    uint64_t n_sent, n_tokens, shown_tokens;
    int64_t shown_us;
    enum status st;
    struct error err;
};

static int64_t now_us(const struct runner *r)
{
    return clock_us() - r->exchange.start_us;
}

static void pull(struct runner *r)
{
    const uint64_t until_us = r->config->duration_ms * 1000;
    if (r->ended || r->has_next)
        return;
    r->has_next = workload_next(r->workload, &r->next);
    if (r->has_next && until_us && (uint64_t)(r->next.due_us < 0 ? now_us(r) : r->next.due_us) >= until_us)
        r->has_next = false;
    r->ended = !r->has_next;
}

static void no_more(struct runner *r)
{
    r->ended = true;
    r->has_next = false;
}

static void end_if_done(struct runner *r)
{
    if (r->ended && !r->n_open)
        event_base_loopbreak(r->config->base);
}

static void send_one(struct runner *r)
{
    struct exchange *x;
    const enum status st = exchange_start(&r->exchange, &r->next, r->next.due_us, &x, &r->err);
    r->has_next = false;
    if (st) {
        r->st = st;
        no_more(r);
        return;
    }
    *exchange_link(x) = r->open;
    r->open = x;
    r->n_open++;
    r->n_sent++;
}

static void send_due(struct runner *r)
{
    for (pull(r); r->has_next && r->n_open < r->config->concurrency; pull(r)) {
        const int64_t wait_us = r->next.due_us < 0 ? 0 : r->next.due_us - now_us(r);
        if (wait_us > 0) {
            const struct timeval after = { wait_us / 1000000, wait_us % 1000000 };
            event_add(r->due, &after);
            return;
        }
        send_one(r);
    }
    end_if_done(r);
}

static bool add_slot(struct runner *r, uint64_t index, const struct record *record)
{
    if (r->n_slots == r->slots_room) {
        const size_t room = r->slots_room ? r->slots_room * 2 : 256;
        struct slot *bigger = room <= RECORDS_MAX ? realloc(r->slots, room * sizeof *bigger) : NULL;
        if (!bigger)
            return false;
        r->slots = bigger;
        r->slots_room = room;
    }
    r->slots[r->n_slots++] = (struct slot){ index, *record };
    return true;
}

static void on_exchange_done(void *user, struct exchange *x, struct record *record)
{
    struct runner *r = user;
    struct exchange **link = &r->open;
    while (*link != x)
        link = exchange_link(*link);
    *link = *exchange_link(x);
    r->n_open--;
    r->n_tokens += record->output_tokens;
    /* a server under more load than it can serve refuses many in a row, and is right */
    r->failures = record->ok || record->status == 429 ? 0 : r->failures + !record->cancelled;
    if (r->failures == FAILURES_MAX && !r->st) {
        r->st = error_set(&r->err, ST_PEER, "%d requests in a row failed, the last one: %s", FAILURES_MAX,
                          record->error ? record->error : "");
        no_more(r);
    }
    if (!add_slot(r, exchange_index(x), record)) {
        record_free(record);
        r->st = error_set(&r->err, ST_NO_MEMORY, "no memory for more records");
        no_more(r);
    }
    /* not here: this may be deep in another request's handlers */
    event_active(r->due, EV_TIMEOUT, 0);
}

static void on_due(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    send_due(arg);
}

static void show(struct runner *r)
{
    const int64_t now = now_us(r);
    if (!r->config->progress || now - r->shown_us < SHOW_MS * 1000)
        return;
    fprintf(stderr, "\r\033[K%s: %zu done, %u open, %.0f s, %.1f tok/s", r->config->what, r->n_slots, r->n_open,
            (double)now / 1e6, (double)(r->n_tokens - r->shown_tokens) / ((double)(now - r->shown_us) / 1e6));
    fflush(stderr);
    r->shown_us = now;
    r->shown_tokens = r->n_tokens;
}

static void on_look(evutil_socket_t fd, short what, void *arg)
{
    struct runner *r = arg;
    const struct timeval again = { 0, LOOK_MS * 1000 };
    (void)fd;
    (void)what;
    show(r);
    if (r->config->stop && r->config->stop()) {
        r->stopped = true;
        no_more(r);
        while (r->open)
            exchange_cancel(r->open);
    }
    event_add(r->look, &again);
}

static int by_index(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;
    return x->index < y->index ? -1 : x->index > y->index;
}

static enum status gather(struct runner *r, struct result *out)
{
    struct record *records = calloc(r->n_slots + 1, sizeof *records);
    if (!records) {
        for (size_t i = 0; i < r->n_slots; i++)
            record_free(&r->slots[i].record);
        return error_set(&r->err, ST_NO_MEMORY, "no memory");
    }
    if (r->n_slots)
        qsort(r->slots, r->n_slots, sizeof *r->slots, by_index);
    for (size_t i = 0; i < r->n_slots; i++)
        records[i] = r->slots[i].record;
    *out = (struct result){ records, r->n_slots, r->stopped };
    return ST_OK;
}

enum status runner_run(const struct runner_config *config, struct workload *w, struct result *result_out,
                       struct error *err)
{
    struct runner r = { .config = config, .workload = w };
    r.exchange = (struct exchange_config){ .client = config->client,
                                           .prompts = config->prompts,
                                           .head = config->head,
                                           .chat = config->chat,
                                           .timeout_ms = config->timeout_ms,
                                           .start_us = clock_us(),
                                           .on_done = on_exchange_done,
                                           .user = &r };
    r.due = evtimer_new(config->base, on_due, &r);
    r.look = evtimer_new(config->base, on_look, &r);
    if (r.due && r.look) {
        event_active(r.due, EV_TIMEOUT, 0);
        event_active(r.look, EV_TIMEOUT, 0);
        event_base_dispatch(config->base);
    } else {
        r.st = error_set(&r.err, ST_NO_MEMORY, "no memory");
    }
    if (r.due)
        event_free(r.due);
    if (r.look)
        event_free(r.look);
    if (config->progress)
        fprintf(stderr, "\r\033[K");
    const enum status st = gather(&r, result_out);
    free(r.slots);
    if (!r.st && st)
        r.st = st;
    if (r.st)
        *err = r.err;
    return r.st;
}

void result_free(struct result *r)
{
    for (size_t i = 0; i < r->n; i++)
        record_free(&r->records[i]);
    free(r->records);
    *r = (struct result){ 0 };
}
