#include "coordinator/gateway.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "coordinator/gateway/api.h"
#include "coordinator/gateway/generation.h"
#include "coordinator/gateway/grpc.h"
#include "coordinator/gateway/observe.h"
#include "coordinator/gateway/resume.h"
#include "coordinator/gateway/page.h"

enum { WORKERS_MAX = 256, REFRESH_MS = 250 };

struct gateway {
    struct gateway_config config;
    struct generation_host host;
    struct helper *helper;
    struct metrics *metrics;
    struct resumes *resumes;
    struct api *api;
    struct grpc_gateway *grpc;
    struct loop_timer *refresh, *grace;
    struct digest model_digest;
    char fingerprint
        [32]; /* "fp_" and hex: of model and kernels; the same answer comes for the same request while it stays */
    bool draining;
};

static bool gateway_ready(void *ctx)
{
    const struct gateway *g = ctx;
    return !g->draining && g->config.ready(g->config.ctx);
}

static int64_t gateway_stalled_ms(void *ctx)
{
    const struct gateway *g = ctx;
    return g->config.stalled_ms ? g->config.stalled_ms(g->config.ctx) : 0;
}

static void write_status(void *ctx, struct text *out)
{
    struct gateway *g = ctx;
    page_status(&g->config, &g->host, gateway_ready(g), out);
}

static void write_metrics(void *ctx, FILE *out)
{
    const struct gateway *g = ctx;
    observe_write(&g->config, g->metrics, out);
}

/* Of the workers that are ready, in the order of their ids; NULL, and nothing is written, if memory is out. */
static struct gateway_worker *workers_get(const struct gateway *g, uint32_t *n_out)
{
    struct gateway_worker *workers = calloc(WORKERS_MAX, sizeof *workers);
    if (workers)
        *n_out = g->config.workers(g->config.ctx, workers, WORKERS_MAX);
    return workers;
}

static void refresh_fingerprint(struct gateway *g)
{
    uint32_t n = 0;
    struct gateway_worker *workers = workers_get(g, &n);
    if (!workers)
        return;
    struct hasher *h = hasher_new();
    hasher_add(h, &g->model_digest, sizeof g->model_digest);
    const char *last = "";
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(workers[i].state, "ready") != 0 || !strcmp(workers[i].fingerprint, last))
            continue;
        last = workers[i].fingerprint;
        hasher_add_text(h, last);
    }
    const struct digest d = hasher_end(h);
    char hex[33];
    digest_text(&d, hex);
    snprintf(g->fingerprint, sizeof g->fingerprint, "fp_%.16s", hex);
    free(workers);
}

static void on_refresh(void *arg)
{
    struct gateway *g = arg;
    refresh_fingerprint(g);
    grpc_gateway_ready(g->grpc, gateway_ready(g));
    loop_timer_set(g->refresh, REFRESH_MS);
}

static void on_grace(void *arg)
{
    struct gateway *g = arg;
    if (g->host.n_open)
        log_info("gateway: %u requests do not end in time and are ended", g->host.n_open);
    generation_end_all(&g->host, "the server is shutting down");
    g->config.kick(g->config.ctx);
}

static enum status host_init(struct gateway *g)
{
    const struct gateway_config *config = &g->config;
    g->host = (struct generation_host){
        .loop = config->loop,
        .helper = g->helper,
        .sched = config->sched,
        .model = config->model,
        .tokenizer = config->tokenizer,
        .model_name = config->model_name,
        .positions_max = config->positions_max,
        .selects = config->selector && strcmp(config->selector, "dense") != 0,
        .windowed = config->selector && !strncmp(config->selector, "streaming", strlen("streaming")),
        .max_tokens_default = config->max_tokens_default,
        .requests_max = config->requests_max,
        .kick = config->kick,
        .ctx = config->ctx,
        .started_s = (int64_t)time(NULL),
        .started_ms = clock_ms(),
    };
    observe_init(g->metrics, &g->host);
    return generation_host_init(&g->host);
}

static enum status resumes_begin(struct gateway *g, struct error *err)
{
    const struct gateway_config *config = &g->config;
    const struct resumes_config resumes = { .loop = config->loop,
                                            .dir = config->resumes,
                                            .context = config->resumes_context,
                                            .grace_ms = config->resume_grace_ms,
                                            .keep_s = config->resume_keep_s,
                                            .bytes_max = config->resume_bytes_max };
    return config->resumes && *config->resumes ? resumes_new(&resumes, &g->resumes, err) : ST_OK;
}

static enum status start_doors(struct gateway *g, struct error *err)
{
    const struct api_config http = {
        .address = g->config.http,
        .tls = g->config.tls,
        .keys = g->config.keys,
        .body_bytes_max = g->config.body_bytes_max ? g->config.body_bytes_max : 64 << 20,
        .host = &g->host,
        .fingerprint = g->fingerprint,
        .resumes = g->resumes,
        .ping_ms = g->config.ping_ms,
        .ready = gateway_ready,
        .stalled_ms = gateway_stalled_ms,
        .metrics = write_metrics,
        .status = write_status,
        .ctx = g,
    };
    const struct grpc_config grpc = {
        .config = &g->config, .host = &g->host, .resumes = g->resumes, .ready = gateway_ready, .ctx = g
    };
    enum status st = api_start(&http, &g->api, err);
    if (!st)
        st = grpc_gateway_start(&grpc, &g->grpc, err);
    return st;
}

enum status gateway_start(const struct gateway_config *config, struct gateway **gateway_out, struct error *err)
{
    struct gateway *g = calloc(1, sizeof *g);
    if (!g)
        return error_set(err, ST_NO_MEMORY, "gateway: out of memory");
    signal(SIGPIPE, SIG_IGN);
    g->config = *config;
    enum status st = ST_NO_MEMORY;
    g->metrics = metrics_new();
    g->refresh = loop_timer_new(config->loop, on_refresh, g);
    g->grace = loop_timer_new(config->loop, on_grace, g);
    if (!g->metrics || !g->refresh || !g->grace || helper_new(config->loop, &g->helper) || host_init(g)) {
        error_set(err, st, "gateway: out of memory");
        goto fail;
    }
    g->model_digest = model_digest(config->model);
    refresh_fingerprint(g);
    st = resumes_begin(g, err);
    if (!st)
        st = start_doors(g, err);
    if (st)
        goto fail;
    loop_timer_set(g->refresh, REFRESH_MS);
    *gateway_out = g;
    return ST_OK;
fail:
    gateway_free(g);
    return st;
}

uint16_t gateway_http_port(const struct gateway *g)
{
    return api_port(g->api);
}

uint16_t gateway_grpc_port(const struct gateway *g)
{
    return grpc_gateway_port(g->grpc);
}

enum status gateway_tls(struct gateway *g, const struct tls *tls, struct error *err)
{
    const enum status st = api_tls(g->api, tls, err);
    if (st)
        return st;
    return grpc_gateway_tls(g->grpc, tls) ? error_set(err, ST_NO_MEMORY, "tls: no memory") : ST_OK;
}

struct generation_host *gateway_host(struct gateway *g)
{
    return &g->host;
}

const char *gateway_fingerprint(const struct gateway *g)
{
    return g->fingerprint;
}

const struct gateway_config *gateway_config_of(const struct gateway *g)
{
    return &g->config;
}

void gateway_standby(struct gateway *g, const char *why)
{
    snprintf(g->host.standby, sizeof g->host.standby, "%s", why ? why : "");
}

void gateway_drain(struct gateway *g)
{
    if (g->draining)
        return;
    g->draining = g->host.draining = true;
    grpc_gateway_ready(g->grpc, false);
    loop_timer_set(g->grace, g->config.grace_ms);
}

void gateway_hand_over(struct gateway *g)
{
    if (g->draining && g->resumes)
        generation_end_named(&g->host, "the server is shutting down; the answer can be taken up again");
}

bool gateway_idle(const struct gateway *g)
{
    return !g->host.n_open && !helper_pending(g->helper) && !api_open(g->api) && !grpc_gateway_open(g->grpc);
}

void gateway_free(struct gateway *g)
{
    if (!g)
        return;
    if (g->host.loop)
        generation_end_all(&g->host, "the server is shutting down");
    grpc_gateway_free(g->grpc); /* delivers what was just said */
    helper_free(g->helper);     /* its jobs may answer on the API, */
    resumes_free(g->resumes);   /* so may these */
    api_free(g->api);
    generation_host_deinit(&g->host);
    loop_timer_free(g->refresh);
    loop_timer_free(g->grace);
    metrics_free(g->metrics);
    free(g);
}
