#include "coordinator/gateway/api.h"

#include <stdlib.h>
#include <string.h>

#include <event2/http.h>

#include "coordinator/gateway/api_internal.h"
#include "coordinator/gateway/keys.h"
#include "coordinator/gateway/page.h"
#include "coordinator/gateway/reply.h"

static void reply_status(struct http_exchange *x, int code, const char *status)
{
    struct text body = { 0 };
    text_printf(&body, "{\"status\":\"%s\"}", status);
    http_reply_json(x, code, &body);
}

static void on_health(void *ctx, struct http_exchange *x)
{
    (void)ctx;
    reply_status(x, 200, "ok");
}

static void on_ready(void *ctx, struct http_exchange *x)
{
    const struct api *a = ctx;
    if (a->config.host->draining)
        reply_status(x, 503, "shutting down");
    else if (a->config.host->standby[0])
        reply_status(x, 503, "standby");
    else if (a->config.ready(a->config.ctx))
        reply_status(x, 200, "ready");
    else if (a->config.stalled_ms(a->config.ctx))
        reply_status(x, 503, "steps have stopped");
    else
        reply_status(x, 503, "waiting for workers");
}

static void model_json(const struct generation_host *host, struct text *out)
{
    text_str(out, "{\"id\":");
    text_json_str(out, host->model_name);
    text_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"longspan\",\"max_model_len\":%u}",
                (long long)host->started_s, host->positions_max);
}

static void on_models(void *ctx, struct http_exchange *x)
{
    const struct api *a = ctx;
    struct text body = { 0 };
    text_str(&body, "{\"object\":\"list\",\"data\":[");
    model_json(a->config.host, &body);
    text_str(&body, "]}");
    http_reply_json(x, 200, &body);
}

static void on_model(void *ctx, struct http_exchange *x)
{
    const struct api *a = ctx;
    struct refusal r = { 0 };
    size_t n = 0;
    char *name = evhttp_uridecode(http_path(x) + strlen("/v1/models/"), 0, &n);
    if (!name || strlen(name) != n)
        refuse(&r, ST_INVALID, "model", "model: the name in the path is malformed");
    else
        generation_model_check(a->config.host, name, &r);
    free(name);
    if (r.status) {
        http_reply_refusal(x, &r);
        return;
    }
    struct text body = { 0 };
    model_json(a->config.host, &body);
    http_reply_json(x, 200, &body);
}

static void on_metrics(void *ctx, struct http_exchange *x)
{
    const struct api *a = ctx;
    char *data = NULL;
    size_t n = 0;
    struct text body = { 0 };
    FILE *out = open_memstream(&data, &n);
    if (out) {
        a->config.metrics(a->config.ctx, out);
        if (fclose(out) != 0)
            body.bad = true;
    }
    body.bad = body.bad || !out;
    if (!body.bad)
        text_add(&body, data, n);
    free(data);
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

static void on_status(void *ctx, struct http_exchange *x)
{
    const struct api *a = ctx;
    struct text body = { 0 };
    a->config.status(a->config.ctx, &body);
    http_header(x, "Cache-Control", "no-store");
    http_reply_json(x, 200, &body);
}

static const struct http_route routes[] = {
    { HTTP_METHOD_POST, "/v1/chat/completions", api_chat },
    { HTTP_METHOD_POST, "/v1/completions", api_completions },
    { HTTP_METHOD_GET, "/v1/models", on_models },
    { HTTP_METHOD_GET, "/v1/models/", on_model },
    { HTTP_METHOD_POST, "/tokenize", api_tokenize },
    { HTTP_METHOD_POST, "/detokenize", api_detokenize },
    { HTTP_METHOD_GET, "/health", on_health },
    { HTTP_METHOD_GET, "/ready", on_ready },
    { HTTP_METHOD_GET, "/metrics", on_metrics },
    { HTTP_METHOD_GET, "/status", on_status },
    { HTTP_METHOD_GET, "/", page_index },
    { HTTP_METHOD_GET, "/live.css", page_style },
    { HTTP_METHOD_GET, "/live.js", page_script },
};

/* Probes of whoever runs the cluster need no key, nor does the page, which shows nothing without one. */
static const char *admit(void *ctx, const char *path, const char *authorization)
{
    static const char *const open[] = { "/health", "/ready", "/metrics", "/", "/live.css", "/live.js" };
    const struct api *a = ctx;
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (!strcmp(path, open[i]))
            return "";
    return keys_tenant(a->config.keys, authorization);
}

enum status api_start(const struct api_config *config, struct api **api_out, struct error *err)
{
    struct api *a = calloc(1, sizeof *a);
    if (!a)
        return error_set(err, ST_NO_MEMORY, "http: out of memory");
    a->config = *config;
    const struct http_config http = { .loop = config->host->loop,
                                      .address = config->address,
                                      .tls = config->tls,
                                      .admit = config->keys ? admit : NULL,
                                      .body_bytes_max = config->body_bytes_max,
                                      .idle_ms = config->idle_ms,
                                      .routes = routes,
                                      .n_routes = sizeof routes / sizeof *routes,
                                      .ctx = a };
    const enum status st = http_server_start(&http, &a->server, err);
    if (st) {
        free(a);
        return st;
    }
    *api_out = a;
    return ST_OK;
}

uint16_t api_port(const struct api *a)
{
    return http_server_port(a->server);
}

enum status api_tls(struct api *a, const struct tls *tls, struct error *err)
{
    return http_server_tls(a->server, tls, err);
}

uint32_t api_open(const struct api *a)
{
    return http_server_open(a->server);
}

void api_free(struct api *a)
{
    if (!a)
        return;
    a->closing = true;
    http_server_free(a->server);
    api_named_end(a);
    free(a);
}
