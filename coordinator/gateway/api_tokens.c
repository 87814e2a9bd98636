#include "coordinator/gateway/api_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/reply.h"
#include "proto/plan.h"

/* One /tokenize or /detokenize; large ones are read beside the loop. */
struct job {
    struct api *api;
    struct http_exchange *x; /* NULL: the client has left */
    bool detokenize;
    size_t bytes;
    struct want want;
    struct refusal refusal;
    int32_t *ids;
    size_t n;
    struct text answer;
};

static void job_free(struct job *j)
{
    want_free(&j->want);
    free(j->ids);
    text_free(&j->answer);
    free(j);
}

static void tokens_json(const struct job *j, struct text *out)
{
    text_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", j->n, j->api->config.host->positions_max);
    for (size_t i = 0; i < j->n; i++)
        text_printf(out, i ? ",%d" : "%d", (int)j->ids[i]);
    text_str(out, "]}");
}

static void prompt_json(const struct job *j, struct text *out)
{
    struct text all = { 0 };
    for (size_t i = 0; i < j->n; i++) {
        size_t n = 0;
        const char *bytes = tokenizer_token_bytes(j->api->config.host->tokenizer, j->ids[i], true, &n);
        text_add(&all, bytes, n);
    }
    const size_t dropped = tokenizer_start_dropped(j->api->config.host->tokenizer, all.data, all.n);
    text_str(out, "{\"prompt\":");
    text_json(out, dropped ? all.data + dropped : all.data, all.n - dropped);
    text_str(out, "}");
    out->bad = out->bad || all.bad;
    text_free(&all);
}

/* Any thread. */
static void work(void *arg)
{
    struct job *j = arg;
    const struct generation_host *host = j->api->config.host;
    if (j->detokenize ? openai_parse_detokenize(&j->want, &j->refusal) : openai_parse_tokenize(&j->want, &j->refusal))
        return;
    if ((j->want.n_tokens || !j->detokenize) &&
        want_tokenize(&j->want, host->tokenizer, host->model, PLAN_POSITIONS_MAX, &j->ids, &j->n, &j->refusal))
        return;
    if (j->detokenize)
        prompt_json(j, &j->answer);
    else
        tokens_json(j, &j->answer);
}

static void reply(struct job *j)
{
    if (!j->refusal.status)
        generation_model_check(j->api->config.host, j->want.model, &j->refusal);
    if (j->refusal.status) {
        if (j->detokenize && !strcmp(j->refusal.field, "prompt"))
            snprintf(j->refusal.field, sizeof j->refusal.field, "tokens");
        http_reply_refusal(j->x, &j->refusal);
        return;
    }
    http_reply_json(j->x, 200, &j->answer);
}

static void done(void *arg)
{
    struct job *j = arg;
    j->api->config.host->pending_bytes -= j->bytes;
    if (j->x)
        reply(j);
    job_free(j);
}

static void on_close(void *user)
{
    struct job *j = user;
    j->x = NULL; /* done frees it */
}

static void start(struct api *a, struct http_exchange *x, bool detokenize)
{
    struct generation_host *host = a->config.host;
    struct refusal r = { 0 };
    struct openai_body *body = NULL;
    struct job *j = NULL;
    const size_t bytes = http_body_bytes(x);
    if (generation_may_wait(host, bytes, &r))
        goto refused;
    j = calloc(1, sizeof *j);
    body = j ? http_body_take(x, api_values_max(a)) : NULL;
    if (!body) {
        refuse(&r, ST_NO_MEMORY, "", "out of memory");
        goto refused;
    }
    want_init(&j->want);
    j->want.source = body;
    j->want.source_free = openai_body_free;
    j->api = a;
    j->x = x;
    j->detokenize = detokenize;
    host->pending_bytes += j->bytes = bytes;
    if (bytes <= GENERATION_INLINE_BYTES_MAX) {
        work(j);
        done(j);
        return;
    }
    http_on_close(x, on_close, j);
    if (!helper_run(host->helper, work, done, j))
        return;
    refuse(&j->refusal, ST_NO_MEMORY, "", "out of memory");
    done(j);
    return;
refused:
    free(j);
    http_reply_refusal(x, &r);
}

void api_tokenize(void *ctx, struct http_exchange *x)
{
    start(ctx, x, false);
}

void api_detokenize(void *ctx, struct http_exchange *x)
{
    start(ctx, x, true);
}
