#include "coordinator/gateway/observe.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/sched.h"

enum { WORKERS_MAX = 256 };

/* Seconds. A first token may take minutes on a long prompt, a later one milliseconds. */
static const double wait_bounds[] = {
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000
};
static const double gap_bounds[] = { 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05,
                                     0.075, 0.1,   0.15,  0.2,  0.3,   0.5,  1,    2,    5 };

static struct metric *histogram(struct metrics *m, const char *name, const char *help, const double *bounds, size_t n)
{
    return metrics_histogram(m, name, help, NULL, bounds, (uint32_t)n);
}

#define LENGTH(a) (sizeof(a) / sizeof *(a))

void observe_init(struct metrics *m, struct generation_host *host)
{
    static const char *const outcomes[] = { [OUTCOME_OK] = "ok",
                                            [OUTCOME_REFUSED] = "refused",
                                            [OUTCOME_BUSY] = "busy",
                                            [OUTCOME_CANCELLED] = "cancelled",
                                            [OUTCOME_FAILED] = "failed" };
    for (size_t i = 0; i < LENGTH(outcomes); i++) {
        char label[40];
        host->metrics.outcome[i] = metrics_counter(m, "longspan_requests_total", "Requests by how they ended.",
                                                   metric_label(label, sizeof label, "outcome", outcomes[i]));
    }
    host->metrics.ttft = histogram(m, "longspan_time_to_first_token_seconds",
                                   "From the request's arrival to its first token.", wait_bounds, LENGTH(wait_bounds));
    host->metrics.tpot =
        histogram(m, "longspan_time_per_output_token_seconds",
                  "Mean time per token after the first, one observation a request.", gap_bounds, LENGTH(gap_bounds));
    host->metrics.itl = histogram(m, "longspan_inter_token_seconds", "Each gap between two tokens of a request.",
                                  gap_bounds, LENGTH(gap_bounds));
    host->metrics.duration = histogram(m, "longspan_request_seconds", "From a request's arrival to its end.",
                                       wait_bounds, LENGTH(wait_bounds));
    host->metrics.prompt_tokens =
        metrics_counter(m, "longspan_prompt_tokens_total", "Tokens of prompts admitted.", NULL);
    host->metrics.cached_tokens =
        metrics_counter(m, "longspan_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache.", NULL);
    host->metrics.completion_tokens = metrics_counter(m, "longspan_completion_tokens_total", "Tokens generated.", NULL);
}

static void one(FILE *out, const char *name, const char *kind, const char *help, double value)
{
    metrics_write_family(out, name, kind, help);
    metrics_write_sample(out, name, NULL, value);
}

static void write_sched(const struct sched *sched, FILE *out)
{
    struct sched_stats s = { 0 };
    sched_stats(sched, &s);
    one(out, "longspan_requests_waiting", "gauge", "Requests that wait for room.", s.waiting);
    one(out, "longspan_requests_running", "gauge", "Requests that run.", s.running);
    one(out, "longspan_groups", "gauge", "Step groups.", s.groups);
    one(out, "longspan_preemptions_total", "counter", "Requests that gave way to another and were computed again.",
        (double)s.preemptions);
    one(out, "longspan_steps_total", "counter", "Steps done.", (double)s.steps);
    one(out, "longspan_prompt_rows_total", "counter", "Prompt rows computed.", (double)s.prompt_rows);
    one(out, "longspan_decode_rows_total", "counter", "Decode rows computed.", (double)s.decode_rows);
    one(out, "longspan_coordination_seconds_total", "counter",
        "Sum over steps of the step's interval without its slowest worker's time.", 1e-6 * (double)s.coordination_us);
    one(out, "longspan_kv_bytes_read_total", "counter", "Bytes of keys and values read by attention.",
        (double)s.kv_bytes_read);
    one(out, "longspan_kv_bytes_dense_total", "counter",
        "Bytes it would have read if each sequence read all of its blocks by itself.", (double)s.kv_bytes_dense);
    one(out, "longspan_recoveries_total", "counter", "Requests placed again after they had lost a worker.",
        (double)s.recoveries);
    one(out, "longspan_recovered_rows_total", "counter", "Rows computed again after a worker was lost.",
        (double)s.recovered_rows);
    one(out, "longspan_leaves_moved_total", "counter", "Leaves that workers that joined took over from others.",
        (double)s.leaves_moved);
    one(out, "longspan_sequences_moved_total", "counter", "Running sequences that left a worker by command.",
        (double)s.sequences_moved);
    one(out, "longspan_kv_blocks_passed_total", "counter",
        "Blocks that running sequences gave back, as streaming's window had left them.", (double)s.blocks_passed);
    one(out, "longspan_replicas_total", "counter", "Blocks copied to a second worker for the case of a loss.",
        (double)s.replicas);
    one(out, "longspan_replicas_due", "gauge",
        "Sealed blocks of running requests whose second copy is on its way or to be started.", s.replicas_due);
    one(out, "longspan_recovered_copies_total", "counter", "Blocks of lost workers of which another copy was left.",
        (double)s.recovered_copies);
    metrics_write_family(out, "longspan_recovery_seconds", "summary",
                         "From a request's loss of a worker until it was where it had been.");
    metrics_write_sample(out, "longspan_recovery_seconds_sum", NULL, 1e-3 * (double)s.recovery_ms);
    metrics_write_sample(out, "longspan_recovery_seconds_count", NULL, (double)s.recovered);
    one(out, "longspan_positions_fit", "gauge", "Longest context that the ready workers' pools hold.",
        (double)sched_positions_fit(sched));
}

/* One value of every worker, as one family. */
struct column {
    const char *name, *kind, *help;
    double (*value)(const struct gateway_worker *w, const struct sched_worker_stats *s);
};

#define COLUMN(what, expression)                                                                                       \
    static double value_##what(const struct gateway_worker *w, const struct sched_worker_stats *s)                     \
    {                                                                                                                  \
        (void)w;                                                                                                       \
        (void)s;                                                                                                       \
        return (double)(expression);                                                                                   \
    }
COLUMN(ready, !strcmp(w->state, "ready"))
COLUMN(load, w->load_fraction)
COLUMN(total, w->n_blocks)
COLUMN(used, s ? s->blocks_used : w->blocks)
COLUMN(cached, s ? s->blocks_cached : 0)
COLUMN(block_bytes, w->block_bytes)
COLUMN(weights, w->weight_bytes)
COLUMN(pool, w->pool_bytes)
COLUMN(resident, w->resident_bytes)
COLUMN(sketches, w->sketch_bytes)
COLUMN(sent, w->bytes_sent)
COLUMN(received, w->bytes_received)
COLUMN(dropped, w->dropped)
COLUMN(disk_blocks, w->disk.blocks)
COLUMN(disk_bytes, w->disk.bytes)
COLUMN(disk_written, w->disk.written)
COLUMN(disk_read, w->disk.read)
COLUMN(disk_evicted, w->disk.evicted)
COLUMN(disk_dropped, w->disk.dropped)
COLUMN(disk_failed, w->disk.failed)
COLUMN(disk_refused, w->disk.refused)
COLUMN(leaves, w->leaves)
COLUMN(sequences, w->sequences)
COLUMN(epoch, gateway_worker_epoch(w))
COLUMN(term, gateway_worker_term(w))
COLUMN(step_age, w->step_age_ms < 0 ? -1 : (double)w->step_age_ms / 1000)

static const struct column columns[] = {
    { "longspan_worker_ready", "gauge", "1 if the worker is ready.", value_ready },
    { "longspan_worker_load_fraction", "gauge", "Share of the model loaded.", value_load },
    { "longspan_kv_blocks_total", "gauge", "KV blocks of the worker's pool.", value_total },
    { "longspan_kv_blocks_used", "gauge", "KV blocks in use, cached ones too.", value_used },
    { "longspan_kv_blocks_cached", "gauge", "KV blocks kept only as prefix cache.", value_cached },
    { "longspan_kv_block_bytes", "gauge", "Bytes of one KV block.", value_block_bytes },
    { "longspan_weight_bytes", "gauge", "Bytes of weights.", value_weights },
    { "longspan_kv_pool_bytes", "gauge", "Bytes of the KV pool.", value_pool },
    { "longspan_sketch_bytes", "gauge", "Bytes of sketches of KV blocks, and of what is kept to choose by them.",
      value_sketches },
    { "longspan_worker_resident_bytes", "gauge", "Resident bytes of the worker's process.", value_resident },
    { "longspan_exchange_sent_bytes_total", "counter", "Bytes sent to other workers.", value_sent },
    { "longspan_exchange_received_bytes_total", "counter", "Bytes received from other workers.", value_received },
    { "longspan_exchange_dropped_total", "counter", "Messages of other workers that were refused.", value_dropped },
    { "longspan_kv_disk_blocks", "gauge", "KV blocks on the worker's disk (--kv-disk).", value_disk_blocks },
    { "longspan_kv_disk_bytes", "gauge", "Bytes of these.", value_disk_bytes },
    { "longspan_kv_disk_written_total", "counter", "KV blocks written to the disk.", value_disk_written },
    { "longspan_kv_disk_read_total", "counter", "KV blocks read from the disk instead of being computed.",
      value_disk_read },
    { "longspan_kv_disk_evicted_total", "counter", "KV blocks removed from the disk for room.", value_disk_evicted },
    { "longspan_kv_disk_dropped_total", "counter", "KV blocks not written: the disk is too slow.", value_disk_dropped },
    { "longspan_kv_disk_failed_total", "counter", "Writes and reads of KV blocks that failed.", value_disk_failed },
    { "longspan_kv_disk_refused_total", "counter", "Files on the disk that were not sound, or of other settings.",
      value_disk_refused },
    { "longspan_worker_leaves", "gauge", "Leaves of running requests that the worker reads.", value_leaves },
    { "longspan_worker_sequences", "gauge", "Sequences that the worker is the home of.", value_sequences },
    { "longspan_worker_epoch", "gauge", "Epoch of the worker's step group, within its coordinator's term.",
      value_epoch },
    { "longspan_worker_term", "gauge", "Term of the coordinator that plans for the worker.", value_term },
    { "longspan_worker_step_age_seconds", "gauge", "Since the worker's last step; -1 if there was none.",
      value_step_age },
};

static const struct sched_worker_stats *stats_of(const struct sched_worker_stats *stats, uint32_t n, uint16_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (stats[i].id == id)
            return &stats[i];
    return NULL;
}

static void write_workers(const struct gateway_config *config, FILE *out)
{
    struct gateway_worker *workers = calloc(WORKERS_MAX, sizeof *workers);
    struct sched_worker_stats *stats = calloc(WORKERS_MAX, sizeof *stats);
    if (workers && stats) {
        const uint32_t n = config->workers(config->ctx, workers, WORKERS_MAX);
        const uint32_t n_stats = sched_worker_stats(config->sched, stats, WORKERS_MAX);
        for (size_t c = 0; c < LENGTH(columns) && n; c++) {
            metrics_write_family(out, columns[c].name, columns[c].kind, columns[c].help);
            for (uint32_t i = 0; i < n; i++) {
                char label[32];
                snprintf(label, sizeof label, "worker=\"%u\"", workers[i].id);
                metrics_write_sample(out, columns[c].name, label,
                                     columns[c].value(&workers[i], stats_of(stats, n_stats, workers[i].id)));
            }
        }
    }
    free(workers);
    free(stats);
}

void observe_write(const struct gateway_config *config, struct metrics *m, FILE *out)
{
    metrics_write(m, out);
    write_sched(config->sched, out);
    one(out, "longspan_stalled_seconds", "gauge",
        "For how long nothing has gone on although there is work; 0: all is well.",
        config->stalled_ms ? 1e-3 * (double)config->stalled_ms(config->ctx) : 0);
    write_workers(config, out);
    metrics_write_process(out);
}
