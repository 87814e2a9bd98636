#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/commands.h"
#include "client/settings.h"
#include "common/log.h"
#include "coordinator/coordinator.h"
#include "kernels/kernels.h"

/* To `up` on its descriptor, to a person on standard output. */
static void on_announce(void *ctx, const char *what, const char *address)
{
    const struct settings *s = ctx;
    if (!s->announce_fd)
        printf("%s %s\n", what, address);
    else if (dprintf((int)s->announce_fd, "%s %s\n", what, address) < 0)
        log_warn("announcing %s: nobody listens", what);
    fflush(stdout);
}

int command_coordinator(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *positional;
    if (!settings_read(
            &s, SCOPE_COORDINATOR,
            "usage: longspan coordinator --http HOST:PORT --grpc HOST:PORT --control HOST:PORT [--registry R] "
            "[--state DIR] [flags]",
            argc, argv, &prompt, &positional))
        return 2;
    if (positional) {
        fprintf(stderr, "longspan: coordinator takes no argument '%s'\n", positional);
        return 2;
    }
    enum kv_codec codec;
    if (kv_codec_find(s.kv_codec, !strcmp(s.precision, "float32"), &codec, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    char selector[SELECTOR_TEXT];
    if (settings_selector(&s, selector, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    char calibration[33];
    if (settings_calibration(&s, calibration, &err) || settings_channels(&s, selector, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 1;
    }
    log_set_name("coordinator");
    settings_state_default(&s);
    const struct coordinator_config config = {
        .http = s.http,
        .grpc = s.grpc,
        .control = s.control,
        .control_advertise = s.control_advertise,
        .registry = s.registry,
        .state = s.state,
        .model = s.model,
        .precision = s.precision,
        .kv_codec = s.kv_codec,
        .calibration = calibration,
        .selector = selector,
        .template_date = s.template_date,
        .chat_template = s.chat_template,
        .tls = { s.tls_client_ca, s.tls_cert, s.tls_key },
        .control_tls = { s.control_ca, s.control_cert, s.control_key },
        .api_keys = s.api_keys,
        .etcd_tls = { s.etcd_ca, s.etcd_cert, s.etcd_key },
        .sched = { .positions_max = s.positions_max,
                   .step_rows_max = s.step_rows_max,
                   .prefill_chunk_rows = s.prefill_chunk_rows,
                   .step_target_ms = s.step_target_ms,
                   .sequences_max = s.sequences_max,
                   .queue_max = s.queue_max,
                   .queue_wait_ms = s.queue_wait_ms,
                   .spread_min_tokens = s.spread_min_tokens,
                   .step_deadline_ms = s.step_deadline_ms,
                   .step_row_ms =
                       strcmp(s.precision, "float32") ? s.step_row_ms : 10 * s.step_row_ms, /* reference kernels */
                   .plans_ahead = s.plans_ahead,
                   .prefix_sharing = s.prefix_sharing,
                   .preemption = s.preemption,
                   .starve_ms = s.starve_ms,
                   .recovery_share = s.recovery_share,
                   .worker_wait_ms = s.worker_wait_ms,
                   .replicas = s.replicas,
                   .tenant_weights = s.tenant_weights },
        .n_workers = s.workers,
        .heartbeat_ms = s.heartbeat_ms,
        .silence_ms = s.silence_ms,
        .drain_ms = s.drain_ms,
        .requests_max = s.requests_max,
        .body_bytes_max = s.body_bytes_max,
        .jobs_max = s.jobs_max,
        .jobs_keep_hours = s.jobs_keep_hours,
        .jobs_running = s.jobs_running,
        .jobs_dir = s.jobs_dir,
        .lease_ms = s.lease_ms,
        .resume_ms = s.resume_ms,
        .resume_keep_s = s.resume_keep_s,
        .resume_bytes = s.resume_bytes,
        .announce = on_announce,
        .ctx = &s,
    };
    if (coordinator_run(&config, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 1;
    }
    return 0;
}
