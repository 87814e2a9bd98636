#ifndef LONGSPAN_CLIENT_SETTINGS_H
#define LONGSPAN_CLIENT_SETTINGS_H

/* Every setting of the program: one row in settings.c is the YAML key, the flag, the help text, the check and the default. */

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"
#include "kernels/selector.h"

#ifdef __cplusplus
extern "C" {
#endif

enum command_scope {
    SCOPE_UP = 1 << 0,
    SCOPE_COORDINATOR = 1 << 1,
    SCOPE_WORKER = 1 << 2,
    SCOPE_GENERATE = 1 << 3,
    SCOPE_STATUS = 1 << 4,
    SCOPE_MODEL = 1 << 5,
    SCOPE_CONFIG = 1 << 6,
    SCOPE_JOBS = 1 << 7,
    SCOPE_BATCH = 1 << 8,
    SCOPE_CHAT = 1 << 9,
    SCOPE_TOP = 1 << 10,
    SCOPE_CLUSTER = SCOPE_UP | SCOPE_COORDINATOR | SCOPE_GENERATE,
    SCOPE_PACK = 1 << 11,
    SCOPE_EVAL = 1 << 12,
    SCOPE_DRAIN = 1 << 13,
    SCOPE_REBALANCE = 1 << 14,
    SCOPE_ALL = (1 << 15) - 1,
};

struct settings {
    char config[1024], log_level[8], log_format[8];
    /* what is served */
    char model[1024], precision[8], kv_codec[16], selector[40], selector_scope[8], selector_prompt[8],
        template_date[16], chat_template[1024];
    char calibration[1024], selector_channels[1024];
    uint32_t positions_max;
    char selector_dense_layers[8];
    /* where */
    char http[128], grpc[512], control[1024], control_advertise[256], registry[1024], state[1024], jobs_dir[1024];
    char api_keys[1024], api_key_file[1024];
    char tls_cert[1024], tls_key[1024], tls_client_ca[1024], tls_ca[1024]; /* to clients, and as one */
    char control_cert[1024], control_key[1024], control_ca[1024], etcd_cert[1024], etcd_key[1024], etcd_ca[1024];
    uint32_t workers;
    /* a worker */
    char bind[128], device[16], exchange[8], lanes[8];
    uint32_t threads;
    uint64_t kv_bytes, kv_disk_bytes;
    char kv_disk[1024];
    bool share_reads;
    /* scheduling */
    uint32_t step_rows_max, prefill_chunk_rows, step_target_ms, sequences_max, queue_max, queue_wait_ms,
        spread_min_tokens, step_deadline_ms, step_row_ms, plans_ahead;
    bool prefix_sharing, preemption;
    uint32_t starve_ms, recovery_share, worker_wait_ms, replicas;
    char tenant_weights[1024];
    uint32_t heartbeat_ms, silence_ms, restarts_max, drain_ms;
    /* gateway */
    uint32_t requests_max;
    uint64_t body_bytes_max;
    uint32_t jobs_max, jobs_keep_hours, jobs_running, lease_ms, resume_ms, resume_keep_s;
    uint64_t resume_bytes;
    /* generate, and the sample answer of up */
    bool local, raw, score, json, ignore_eos, once;
    char prompt_file[1024], temperature[16], top_p[16], density[16], seed[24], dump_logits[1024];
    uint32_t max_tokens, top_k;
    /* jobs, batch */
    char key[257], name[129], output[1024];
    char system[4096];           /* chat */
    char weights[16], out[1024]; /* pack */
    char configs[4096], text_file[1024], calibration_text[1024], corpus[1024], tasks[1024],
        svg[1024]; /* eval; text_file: pack too */
    uint32_t length, samples;
    bool quick;
    uint32_t retry_ms;    /* generate, chat */
    uint32_t interval_ms; /* top */
    bool undo, wait;      /* drain */
    uint32_t announce_fd; /* coordinator: where bound addresses are written, for up; 0: nowhere */
};

extern const struct config_field settings_fields[];

/*
 * Defaults, then the file of --config, then flags: argv[1 ..] of a command. positional: the first argument that is no flag (or NULL). Prints what is wrong and
 * returns false; --help prints help (usage: its first line) and exits 0. prompt: --prompt is of any length and kept apart; NULL if not given.
 */
bool settings_read(struct settings *s, uint32_t scope, const char *usage, int argc, char **argv,
                   const char **prompt_out, const char **positional_out);

/* The selector's settings as one text, for selector_parse(). ST_INVALID. */
enum status settings_selector(const struct settings *s, char text_out[SELECTOR_TEXT], struct error *err);

/*
 * The calibration that the KV codec needs: that of --calibration, or the model's own. digest_out: its digest, "" where the codec needs none. Refuses as
 * calibration_open_wanted.
 */
enum status settings_calibration(const struct settings *s, char digest_out[33], struct error *err);
/*
 * selector: what settings_selector made. Where it may be calibrated, names the calibration that --selector-channels says: the model's own if there is one (default)
 * or in any case (calibrated), that file, or none (block). Refuses as calibration_open_wanted; err says which command makes what is missing.
 */
enum status settings_channels(const struct settings *s, char selector[SELECTOR_TEXT], struct error *err);
/* The file that --selector-channels names; "": none. */
const char *settings_channels_file(const struct settings *s);

/* Fills in the state directory if none is set: one for each HTTP port, so that clusters on one host never meet. */
void settings_state_default(struct settings *s);

#ifdef __cplusplus
}
#endif
#endif
