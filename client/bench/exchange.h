#ifndef LONGSPAN_CLIENT_BENCH_EXCHANGE_H
#define LONGSPAN_CLIENT_BENCH_EXCHANGE_H

/* One measured request: its body, its stream of events, and when they came. */

#include <jansson.h>

#include "client/bench/http.h"
#include "client/bench/prompt.h"
#include "client/bench/stats.h"

#ifdef __cplusplus
extern "C" {
#endif

struct exchange;

struct exchange_config {
    struct http_client *client;
    const struct prompts *prompts;
    const char *head; /* JSON object with the fields that all requests share, without its last brace */
    bool chat;
    uint32_t timeout_ms;
    int64_t start_us; /* of the clock: zero of the records' times */
    /* The exchange is over; its record is taken (record_free). */
    void (*on_done)(void *user, struct exchange *x, struct record *record);
    void *user;
};

/* The fields that all requests share, from the model, the temperature and so on; extra: an object whose fields win. NULL: out of memory. Free it. */
char *exchange_head(const char *model, double temperature, bool ignore_eos, const json_t *extra);

/* config: kept. ST_NO_MEMORY, ST_IO (no socket). */
enum status exchange_start(const struct exchange_config *config, const struct load_request *request, int64_t due_us,
                           struct exchange **out, struct error *err);
/* Ends it as cancelled: on_done is called. Not from its own on_done. */
void exchange_cancel(struct exchange *x);
/* The list of open exchanges is the caller's. */
struct exchange **exchange_link(struct exchange *x);
uint64_t exchange_index(const struct exchange *x);

#ifdef __cplusplus
}
#endif
#endif
