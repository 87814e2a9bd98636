#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/commands.h"
#include "client/remote.h"
#include "client/settings.h"

static json_t *worker_json(const Longspan__V1__WorkerStatus *w)
{
    return json_pack("{s:i, s:i, s:s, s:s, s:f, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "id",
                     (int)w->id, "pid", (int)w->pid, "address", w->address, "state", w->state, "load_fraction",
                     (double)w->load_fraction, "fingerprint", w->fingerprint, "blocks", (int)w->blocks, "n_blocks",
                     (int)w->n_blocks, "blocks_cached", (int)w->blocks_cached, "block_bytes",
                     (json_int_t)w->block_bytes, "weight_bytes", (json_int_t)w->weight_bytes, "pool_bytes",
                     (json_int_t)w->pool_bytes, "resident_bytes", (json_int_t)w->resident_bytes, "bytes_sent",
                     (json_int_t)w->bytes_sent, "bytes_received", (json_int_t)w->bytes_received, "sketch_bytes",
                     (json_int_t)w->sketch_bytes);
}

static json_t *scheduler_json(const Longspan__V1__SchedulerStatus *s)
{
    return json_pack("{s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "waiting", (int)s->waiting,
                     "running", (int)s->running, "groups", (int)s->groups, "steps", (json_int_t)s->steps, "prompt_rows",
                     (json_int_t)s->prompt_rows, "decode_rows", (json_int_t)s->decode_rows, "prefix_hit_tokens",
                     (json_int_t)s->prefix_hit_tokens, "prompt_tokens", (json_int_t)s->prompt_tokens,
                     "completion_tokens", (json_int_t)s->completion_tokens, "requests_done",
                     (json_int_t)s->requests_done, "requests_failed", (json_int_t)s->requests_failed,
                     "requests_cancelled", (json_int_t)s->requests_cancelled, "coordination_us",
                     (json_int_t)s->coordination_us);
}

static void print_json(const Longspan__V1__StatusResponse *s)
{
    json_t *workers = json_array();
    for (size_t i = 0; i < s->n_workers; i++)
        json_array_append_new(workers, worker_json(s->workers[i]));
    json_t *all =
        json_pack("{s:s, s:s, s:i, s:I, s:b, s:s, s:s, s:s, s:s, s:I, s:I, s:o}", "version", s->version, "model",
                  s->model, "positions_max", (int)s->positions_max, "positions_fit", (json_int_t)s->positions_fit,
                  "ready", s->ready, "precision", s->precision, "kv_codec", s->kv_codec, "selector", s->selector,
                  "identity", s->identity, "uptime_ms", (json_int_t)s->uptime_ms, "kv_bytes_per_token",
                  (json_int_t)s->kv_bytes_per_token, "workers", workers);
    if (s->scheduler)
        json_object_set_new(all, "scheduler", scheduler_json(s->scheduler));
    char *text = json_dumps(all, JSON_INDENT(2));
    puts(text ? text : "{}");
    free(text);
    json_decref(all);
}

static void print_text(const Longspan__V1__StatusResponse *s)
{
    printf("%s, longest context %u (pools hold %llu), %s, identity %s, up %llu s\n", s->model, s->positions_max,
           (unsigned long long)s->positions_fit, s->ready ? "ready" : "not ready", s->identity,
           (unsigned long long)s->uptime_ms / 1000);
    if (s->scheduler)
        printf("%u running, %u waiting, %u groups; %llu requests done, %llu failed, %llu cancelled; %llu prompt tokens "
               "(%llu from cache), %llu generated\n",
               s->scheduler->running, s->scheduler->waiting, s->scheduler->groups,
               (unsigned long long)s->scheduler->requests_done, (unsigned long long)s->scheduler->requests_failed,
               (unsigned long long)s->scheduler->requests_cancelled, (unsigned long long)s->scheduler->prompt_tokens,
               (unsigned long long)s->scheduler->prefix_hit_tokens,
               (unsigned long long)s->scheduler->completion_tokens);
    printf("%-6s %-8s %-10s %-22s %-18s %-10s %s\n", "worker", "pid", "state", "address", "blocks used/all", "resident",
           "fingerprint");
    for (size_t i = 0; i < s->n_workers; i++) {
        const Longspan__V1__WorkerStatus *w = s->workers[i];
        char blocks[32];
        snprintf(blocks, sizeof blocks, "%u/%u", w->blocks, w->n_blocks);
        printf("%-6u %-8u %-10s %-22s %-18s %-7.0fMiB %s\n", w->id, w->pid, w->state, w->address, blocks,
               (double)w->resident_bytes / 0x1p20, w->fingerprint);
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
