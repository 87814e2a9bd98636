#include "coordinator/gateway/page.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

enum { WORKERS_MAX = 256 };

static const uint8_t index_html[] = {
#include "coordinator/gateway/page/index.html.inc"
};
static const uint8_t live_css[] = {
#include "coordinator/gateway/page/live.css.inc"
};
static const uint8_t live_js[] = {
#include "coordinator/gateway/page/live.js.inc"
};

static void file_reply(struct http_exchange *x, const char *type, const uint8_t *data, size_t bytes)
{
    struct text body = { 0 };
    text_add(&body, data, bytes);
    http_header(x, "Content-Security-Policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
                "form-action 'none'; frame-ancestors 'none'");
    http_header(x, "X-Content-Type-Options", "nosniff");
    http_header(x, "Referrer-Policy", "no-referrer");
    http_header(x, "Cache-Control", "no-cache");
    http_reply(x, 200, type, &body);
}

void page_index(void *ctx, struct http_exchange *x)
{
    (void)ctx;
    file_reply(x, "text/html; charset=utf-8", index_html, sizeof index_html);
}

void page_style(void *ctx, struct http_exchange *x)
{
    (void)ctx;
    file_reply(x, "text/css; charset=utf-8", live_css, sizeof live_css);
}

void page_script(void *ctx, struct http_exchange *x)
{
    (void)ctx;
    file_reply(x, "text/javascript; charset=utf-8", live_js, sizeof live_js);
}

/* ---- /status ---- */

static void member(struct text *out, const char *name, const char *value)
{
    text_printf(out, "\"%s\":", name);
    text_json_str(out, value);
    text_str(out, ",");
}

static void number(struct text *out, const char *name, uint64_t value)
{
    text_printf(out, "\"%s\":%llu,", name, (unsigned long long)value);
}

static void worker_json(struct text *out, const struct gateway_worker *w)
{
    text_str(out, "{");
    number(out, "id", w->id);
    number(out, "pid", w->pid);
    member(out, "address", w->address);
    member(out, "state", w->state);
    text_printf(out, "\"load_fraction\":%.3f,", (double)w->load_fraction);
    member(out, "fingerprint", w->fingerprint);
    member(out, "device", w->device);
    member(out, "host", w->host);
    number(out, "blocks", w->blocks);
    number(out, "n_blocks", w->n_blocks);
    number(out, "blocks_cached", w->blocks_cached);
    number(out, "block_bytes", w->block_bytes);
    number(out, "weight_bytes", w->weight_bytes);
    number(out, "pool_bytes", w->pool_bytes);
    number(out, "resident_bytes", w->resident_bytes);
    number(out, "bytes_sent", w->bytes_sent);
    number(out, "bytes_received", w->bytes_received);
    number(out, "sketch_bytes", w->sketch_bytes);
    number(out, "sequences", w->sequences);
    number(out, "leaves", w->leaves);
    number(out, "group", w->group);
    number(out, "term", gateway_worker_term(w));
    number(out, "epoch", gateway_worker_epoch(w));
    number(out, "dropped", w->dropped);
    text_printf(out, "\"step_age_ms\":%lld}", (long long)w->step_age_ms);
}

static void scheduler_json(const struct gateway_config *config, struct text *out)
{
    struct sched_stats s = { 0 };
    sched_stats(config->sched, &s);
    text_str(out, "{");
    number(out, "waiting", s.waiting);
    number(out, "running", s.running);
    number(out, "groups", s.groups);
    number(out, "steps", s.steps);
    number(out, "prompt_rows", s.prompt_rows);
    number(out, "decode_rows", s.decode_rows);
    number(out, "prefix_hit_tokens", s.prefix_hit_tokens);
    number(out, "prompt_tokens", s.prompt_tokens);
    number(out, "completion_tokens", s.completion_tokens);
    number(out, "requests_done", s.requests_done);
    number(out, "requests_failed", s.requests_failed);
    number(out, "requests_cancelled", s.requests_cancelled);
    number(out, "preemptions", s.preemptions);
    number(out, "leaves_moved", s.leaves_moved);
    number(out, "sequences_moved", s.sequences_moved);
    number(out, "coordination_us", s.coordination_us);
    number(out, "kv_bytes_read", s.kv_bytes_read);
    number(out, "kv_bytes_dense", s.kv_bytes_dense);
    number(out, "waited_ms", s.waiting_ms ? (uint64_t)(clock_ms() - s.waiting_ms) : 0);
    text_printf(out, "\"stalled_ms\":%lld}", config->stalled_ms ? (long long)config->stalled_ms(config->ctx) : 0LL);
}

void page_status(const struct gateway_config *config, const struct generation_host *host, bool ready, struct text *out)
{
    struct gateway_worker *workers = calloc(WORKERS_MAX, sizeof *workers);
    if (!workers) {
        out->bad = true;
        return;
    }
    const uint32_t n = config->workers(config->ctx, workers, WORKERS_MAX);
    text_str(out, "{");
    member(out, "version", GATEWAY_VERSION);
    member(out, "role", config->role ? config->role(config->ctx) : "alone");
    member(out, "model", config->model_name);
    number(out, "positions_max", config->positions_max);
    number(out, "positions_fit", sched_positions_fit(config->sched));
    text_printf(out, "\"ready\":%s,", ready ? "true" : "false");
    member(out, "precision", config->precision ? config->precision : "bf16");
    member(out, "kv_codec", config->kv_codec ? config->kv_codec : "bf16");
    member(out, "selector", config->selector ? config->selector : "dense");
    number(out, "uptime_ms", (uint64_t)(clock_ms() - host->started_ms));
    text_str(out, "\"workers\":[");
    for (uint32_t i = 0; i < n; i++) {
        text_str(out, i ? "," : "");
        worker_json(out, &workers[i]);
    }
    text_str(out, "],\"scheduler\":");
    scheduler_json(config, out);
    text_str(out, "}");
    free(workers);
}
