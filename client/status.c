#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/commands.h"
#include "client/remote.h"
#include "client/settings.h"

static json_t *worker_json(const Longspan__V1__WorkerStatus *w)
{
    return json_pack(
        "{s:i, s:i, s:s, s:s, s:f, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:i, s:I, s:i, "
        "s:I, s:I, s:I, s:I}",
        "id", (int)w->id, "pid", (int)w->pid, "address", w->address, "state", w->state, "load_fraction",
        (double)w->load_fraction, "fingerprint", w->fingerprint, "blocks", (int)w->blocks, "n_blocks", (int)w->n_blocks,
        "blocks_cached", (int)w->blocks_cached, "block_bytes", (json_int_t)w->block_bytes, "weight_bytes",
        (json_int_t)w->weight_bytes, "pool_bytes", (json_int_t)w->pool_bytes, "resident_bytes",
        (json_int_t)w->resident_bytes, "bytes_sent", (json_int_t)w->bytes_sent, "bytes_received",
        (json_int_t)w->bytes_received, "sketch_bytes", (json_int_t)w->sketch_bytes, "device", w->device, "host",
        w->host, "sequences", (int)w->sequences, "leaves", (json_int_t)w->leaves, "group", (int)w->group, "term",
        (json_int_t)w->term, "epoch", (json_int_t)w->epoch, "step_age_ms", (json_int_t)w->step_age_ms, "dropped",
        (json_int_t)w->dropped);
}

static json_t *scheduler_json(const Longspan__V1__SchedulerStatus *s)
{
    return json_pack(
        "{s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
        "waiting", (int)s->waiting, "running", (int)s->running, "groups", (int)s->groups, "steps", (json_int_t)s->steps,
        "prompt_rows", (json_int_t)s->prompt_rows, "decode_rows", (json_int_t)s->decode_rows, "prefix_hit_tokens",
        (json_int_t)s->prefix_hit_tokens, "prompt_tokens", (json_int_t)s->prompt_tokens, "completion_tokens",
        (json_int_t)s->completion_tokens, "requests_done", (json_int_t)s->requests_done, "requests_failed",
        (json_int_t)s->requests_failed, "requests_cancelled", (json_int_t)s->requests_cancelled, "coordination_us",
        (json_int_t)s->coordination_us, "preemptions", (json_int_t)s->preemptions, "waited_ms",
        (json_int_t)s->waited_ms, "stalled_ms", (json_int_t)s->stalled_ms, "kv_bytes_read",
        (json_int_t)s->kv_bytes_read, "kv_bytes_dense", (json_int_t)s->kv_bytes_dense, "leaves_moved",
        (json_int_t)s->leaves_moved, "sequences_moved", (json_int_t)s->sequences_moved);
}

static void print_json(const Longspan__V1__StatusResponse *s)
{
    json_t *workers = json_array();
    for (size_t i = 0; i < s->n_workers; i++)
        json_array_append_new(workers, worker_json(s->workers[i]));
    json_t *all =
        json_pack("{s:s, s:s, s:s, s:i, s:I, s:b, s:s, s:s, s:s, s:s, s:I, s:I, s:o}", "version", s->version, "role",
                  s->role, "model", s->model, "positions_max", (int)s->positions_max, "positions_fit",
                  (json_int_t)s->positions_fit, "ready", s->ready, "precision", s->precision, "kv_codec", s->kv_codec,
                  "selector", s->selector, "identity", s->identity, "uptime_ms", (json_int_t)s->uptime_ms,
                  "kv_bytes_per_token", (json_int_t)s->kv_bytes_per_token, "workers", workers);
    if (s->scheduler)
        json_object_set_new(all, "scheduler", scheduler_json(s->scheduler));
    char *text = json_dumps(all, JSON_INDENT(2));
    puts(text ? text : "{}");
    free(text);
    json_decref(all);
}

static void print_scheduler(const Longspan__V1__SchedulerStatus *s)
{
    printf("%u running, %u waiting", s->running, s->waiting);
    if (s->waiting)
        printf(" (the first for %.1f s)", (double)s->waited_ms / 1000);
    printf(", %u groups; %llu requests done, %llu failed, %llu cancelled; %llu prompt tokens (%llu from cache), %llu "
           "generated\n",
           s->groups, (unsigned long long)s->requests_done, (unsigned long long)s->requests_failed,
           (unsigned long long)s->requests_cancelled, (unsigned long long)s->prompt_tokens,
           (unsigned long long)s->prefix_hit_tokens, (unsigned long long)s->completion_tokens);
    if (s->stalled_ms)
        printf("STALLED: no step for %.1f s\n", (double)s->stalled_ms / 1000);
}

/* Since its last step: "-" if there was none. */
static const char *age_text(int64_t ms, char out[24])
{
    if (ms < 0)
        return "-";
    snprintf(out, 24, ms < 10000 ? "%.1fs" : "%.0fs", (double)ms / 1000);
    return out;
}

static void print_text(const Longspan__V1__StatusResponse *s)
{
    printf("%s, longest context %u (pools hold %llu), %s, coordinator %s, identity %s, up %llu s\n", s->model,
           s->positions_max, (unsigned long long)s->positions_fit, s->ready ? "ready" : "not ready", s->role,
           s->identity, (unsigned long long)s->uptime_ms / 1000);
    if (s->scheduler)
        print_scheduler(s->scheduler);
    printf("%-6s %-8s %-10s %-22s %-6s %-8s %-10s %-6s %-18s %-6s %-7s %-10s %s\n", "worker", "pid", "state", "address",
           "device", "group", "term", "epoch", "blocks used/all", "leaves", "step", "resident", "fingerprint");
    for (size_t i = 0; i < s->n_workers; i++) {
        const Longspan__V1__WorkerStatus *w = s->workers[i];
        char blocks[32], age[24];
        snprintf(blocks, sizeof blocks, "%u/%u", w->blocks, w->n_blocks);
        printf("%-6u %-8u %-10s %-22s %-6s %-8u %-10llu %-6llu %-18s %-6llu %-7s %-7.0fMiB %s\n", w->id, w->pid,
               w->state, w->address, w->device, w->group, (unsigned long long)w->term, (unsigned long long)w->epoch,
               blocks, (unsigned long long)w->leaves, age_text(w->step_age_ms, age), (double)w->resident_bytes / 0x1p20,
               w->fingerprint);
    }
}

int command_status(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    struct remote *r;
    Longspan__V1__StatusResponse *status;
    const char *prompt, *positional;
    if (!settings_read(&s, SCOPE_STATUS, "usage: longspan status [--grpc HOST:PORT] [--json]", argc, argv, &prompt,
                       &positional))
        return 2;
    enum status st = remote_open(s.grpc, &s, &r, &err);
    if (!st) {
        st = remote_status(r, 5000, &status, &err);
        remote_close(r);
    }
    if (st) {
        fprintf(stderr, "longspan: %s: %s\n", s.grpc, err.text);
        return 1;
    }
    if (s.json)
        print_json(status);
    else
        print_text(status);
    longspan__v1__status_response__free_unpacked(status, NULL);
    return 0;
}
