#ifndef LONGSPAN_CLIENT_BENCH_OPTIONS_H
#define LONGSPAN_CLIENT_BENCH_OPTIONS_H

/*
 * What `longspan bench` is told: a table of its own, since a load is no setting of a cluster (and its --json names a file). One row is the key of the
 * file given with --config, the flag, the help text, the check and the default.
 */

#include <stdbool.h>
#include <stdint.h>

#include "client/bench/trace.h"
#include "client/bench/workload.h"
#include "common/config.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bench_options {
    char config[1024];
    /* whom */
    char url[500], tls_ca[1024], api[16], model[1024], api_key_file[1024];
    uint32_t timeout_s;
    /* a cluster of its own; "", 0: as that one's settings say */
    bool local;
    char kv_codec[16], selector[40], settings[1024];
    uint32_t workers;
    /* what */
    char input_tokens[64], output_tokens[64], prompts[8], token_ids[32], temperature[16], density[16], extra_body[4096];
    uint32_t prefix_tokens, input_tokens_max, output_tokens_max, seed;
    bool ignore_eos;
    /* when */
    uint32_t concurrency, requests, duration_s, warmup;
    char rate[32], trace[1024], trace_format[16], trace_scale[32];
    uint32_t trace_block_tokens;
    /* what is said of it */
    char slo_ttft_ms[32], slo_tpot_ms[32], json[1024], svg[1024];
};

extern const struct config_field bench_fields[];

/* The texts among the options, as numbers. */
struct bench_numbers {
    struct dist input, output;
    double rate, trace_scale, temperature, density, slo_ttft_ms, slo_tpot_ms; /* density 0: none is sent */
    uint32_t id_low, id_high;
    enum trace_format trace_format;
};

/* Defaults, then the file of --config, then flags. Prints what is wrong and returns false; --help prints help and exits 0. */
bool bench_options_read(struct bench_options *o, const char *usage, int argc, char **argv);
/* ST_INVALID: err names the flag. */
enum status bench_options_check(const struct bench_options *o, struct bench_numbers *numbers_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
