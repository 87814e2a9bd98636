#ifndef LONGSPAN_CLIENT_BENCH_RUNNER_H
#define LONGSPAN_CLIENT_BENCH_RUNNER_H

/* Sends a workload: closed loop (a fixed number of requests open at once) or when they are due, and gathers the records. */

#include "client/bench/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

struct runner_config {
    struct event_base *base;
    struct http_client *client;
    const struct prompts *prompts;
    const char *head;
    bool chat;
    uint32_t timeout_ms;
    uint32_t concurrency; /* at most so many open at once */
    uint64_t duration_ms; /* after which no more are sent; 0: the workload's end */
    bool (*stop)(void);   /* looked at every 50 ms; true: what is open is cancelled */
    bool progress;        /* a line on standard error, if that is a terminal */
    const char *what;     /* it is called there */
};

struct result {
    struct record *records; /* in the order in which they were sent */
    size_t n;
    bool stopped;
};

enum { FAILURES_MAX = 64 /* in a row, after which no more are sent */ };

/* ST_NO_MEMORY; ST_PEER: FAILURES_MAX requests in a row failed (err has the last fault; the result is there all the same). */
enum status runner_run(const struct runner_config *config, struct workload *w, struct result *result_out,
                       struct error *err);
void result_free(struct result *r);

#ifdef __cplusplus
}
#endif
#endif
