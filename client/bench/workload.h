#ifndef LONGSPAN_CLIENT_BENCH_WORKLOAD_H
#define LONGSPAN_CLIENT_BENCH_WORKLOAD_H

/* Which requests are made, and when: a function of the configuration and the seed alone. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/bench/dist.h"
#include "client/bench/trace.h"
#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct workload_config {
    uint64_t seed;
    struct dist input, output;      /* tokens; a trace brings its own */
    uint32_t input_max, output_max; /* longer ones are cut; 0: no limit */
    double rate;                    /* requests a second, exponential gaps (Poisson); 0: closed loop */
    const struct trace *trace;      /* kept; NULL: none */
    double trace_scale;             /* the trace's time is divided by it; > 0 */
    uint64_t requests_max;          /* 0: no end (a trace ends by itself) */
};

struct load_request {
    uint64_t index;
    int64_t due_us; /* after the start; -1: as soon as a place is free */
    uint32_t input_tokens, output_tokens;
    const uint64_t *blocks; /* [n_blocks] ids of blocks of the prompt; of the trace */
    size_t n_blocks;
};

/* Zeroed but for config: at the start. */
struct workload {
    struct workload_config config;
    uint64_t next;
    double at_us;
    uint64_t n_cut; /* requests shortened so far */
};

/* false: there are no more. */
bool workload_next(struct workload *w, struct load_request *request_out);

#ifdef __cplusplus
}
#endif
#endif
