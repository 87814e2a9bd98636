#include "coordinator/gateway/api_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "coordinator/gateway/reply.h"

/* One /v1/completions or /v1/chat/completions under way. */
struct completion {
    struct api *api;
    struct http_exchange *x;
    struct choices *choices;
    struct reply reply;    /* what all choices share */
    struct reply *replies; /* [n], from the first news on */
    struct text *whole;    /* [n]: choices that have ended, of an answer that goes as one */
    uint32_t n;
    char id[48];
    int64_t created_s;
    bool stream, include_usage; /* as asked */
    char fingerprint[32];
    struct loop_timer *ping;
    int64_t sent_ms;
    uint64_t event_id; /* of the next event: ascends by 1 */
    bool streaming;    /* headers are out */
};

static void completion_free(struct completion *c)
{
    for (uint32_t i = 0; c->whole && i < c->n; i++)
        text_free(&c->whole[i]);
    for (uint32_t i = 0; c->replies && i < c->n; i++)
        reply_deinit(&c->replies[i]);
    free(c->whole);
    free(c->replies);
    loop_timer_free(c->ping);
    free(c);
}

static int64_t ping_ms(const struct completion *c)
{
    return c->api->config.ping_ms ? c->api->config.ping_ms : 10000;
}

/* false: the reader was dropped, and the completion with it. */
static bool send_bytes(struct completion *c, const void *data, size_t bytes)
{
    if (!c->streaming) {
        http_stream_begin(c->x);
        c->streaming = true;
    }
    c->sent_ms = clock_ms();
    if (http_stream_send(c->x, data, bytes))
        return true;
    choices_cancel(c->choices);
    completion_free(c);
    return false;
}

/* json: one event's data; freed. An answer that cannot be made for want of memory ends the stream. */
static bool send_event(struct completion *c, struct text *json)
{
    struct text event = { 0 };
    text_printf(&event, "id: %llu\ndata: ", (unsigned long long)c->event_id++);
    text_add(&event, json->data, json->n);
    text_str(&event, "\n\n");
    event.bad = event.bad || json->bad;
    text_free(json);
    const bool sent = event.bad ? send_bytes(c, ": out of memory\n\n", 17) : send_bytes(c, event.data, event.n);
    text_free(&event);
    return sent;
}

/* The scores of an echoed prompt are complete before the first chunk is made. */
static bool echo_waits(const struct generation *g)
{
    return g->want.echo && g->scores && g->n_scored + 1 < g->n_prompt;
}

/* What was asked is known from the first news on. NULL: no memory, and the completion is gone. */
static struct reply *reply_of(struct completion *c, const struct generation *g)
{
    if (!c->replies) {
        c->stream = g->want.stream;
        c->include_usage = g->want.include_usage;
        c->created_s = g->created_s;
        memcpy(c->id, g->id, sizeof c->id);
        c->n = g->want.n;
        c->replies = calloc(c->n, sizeof *c->replies);
        c->whole = calloc(c->n, sizeof *c->whole);
        if (!c->replies || !c->whole) {
            const struct refusal r = { .status = ST_NO_MEMORY, .message = "out of memory" };
            choices_cancel(c->choices);
            http_reply_refusal(c->x, &r);
            completion_free(c);
            return NULL;
        }
        for (uint32_t i = 0; i < c->n; i++) {
            c->replies[i] = c->reply;
            c->replies[i].index = i;
        }
    }
    return &c->replies[g->index];
}

static bool send_role(struct completion *c, struct reply *r, const struct generation *g)
{
    if (!r->chat || r->begun)
        return true;
    struct text json = { 0 };
    reply_chunk_role(r, g, &json);
    return send_event(c, &json);
}

static void on_output(void *user, struct generation *g)
{
    struct completion *c = user;
    if (!g->want.stream || echo_waits(g))
        return;
    struct text json = { 0 };
    struct reply *r = reply_of(c, g);
    if (r && send_role(c, r, g) && reply_chunk(r, g, false, &json))
        send_event(c, &json);
    else
        text_free(&json);
}

/* The rest of a choice's stream. */
static void finish_choice(struct completion *c, struct reply *r, const struct generation *g,
                          const struct generation_done *done)
{
    struct text json = { 0 };
    if (!send_role(c, r, g))
        return;
    if (reply_chunk(r, g, true, &json) && !send_event(c, &json))
        return;
    json = (struct text){ 0 };
    reply_chunk_last(r, g, done, &json);
    send_event(c, &json);
}

static void on_done(void *user, struct generation *g, const struct generation_done *done)
{
    struct completion *c = user;
    struct reply *r = reply_of(c, g);
    if (!r)
        return;
    if (c->stream)
        finish_choice(c, r, g, done);
    else
        reply_choice(r, g, done, &c->whole[g->index]);
}

static void end_stream(struct completion *c, const struct choices_done *done)
{
    struct text json = { 0 };
    if (c->include_usage) {
        reply_chunk_usage(&c->reply, c->id, c->created_s, done, &json);
        if (!send_event(c, &json))
            return;
    }
    json = (struct text){ 0 };
    text_str(&json, "[DONE]");
    if (!send_event(c, &json))
        return;
    http_stream_end(c->x, false);
    completion_free(c);
}

static void end_whole(struct completion *c, const struct choices_done *done)
{
    struct text json = { 0 }, all = { 0 };
    for (uint32_t i = 0; i < c->n; i++) {
        text_str(&all, i ? "," : "");
        text_add(&all, c->whole[i].data, c->whole[i].n);
        all.bad = all.bad || c->whole[i].bad;
    }
    reply_whole(&c->reply, c->id, c->created_s, &all, done, &json);
    text_free(&all);
    http_reply_json(c->x, 200, &json);
    completion_free(c);
}

static void end_refused(struct completion *c, const struct refusal *r)
{
    if (!c->streaming) {
        http_reply_refusal(c->x, r);
        completion_free(c);
        return;
    }
    struct text json = { 0 };
    reply_error(r, &json);
    if (!send_event(c, &json))
        return;
    http_stream_end(c->x, true);
    completion_free(c);
}

static void on_end(void *user, const struct choices_done *done)
{
    struct completion *c = user;
    if (done->refusal->status)
        end_refused(c, done->refusal);
    else if (c->stream)
        end_stream(c, done);
    else
        end_whole(c, done);
}

static const struct choices_events events = { .output = on_output, .done = on_done, .end = on_end };

static void on_close(void *user)
{
    struct completion *c = user;
    choices_cancel(c->choices);
    completion_free(c);
}

/* A silent stream gets a comment, so that nothing on the way takes it for dead. */
static void on_ping(void *arg)
{
    struct completion *c = arg;
    const int64_t silent = clock_ms() - c->sent_ms;
    if (silent < ping_ms(c)) {
        loop_timer_set(c->ping, ping_ms(c) - silent);
        return;
    }
    loop_timer_set(c->ping, ping_ms(c));
    if (choices_streams(c->choices))
        send_bytes(c, ": ping\n\n", 8);
}

static struct completion *completion_new(struct api *a, struct http_exchange *x, bool chat)
{
    struct completion *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->api = a;
    c->x = x;
    c->ping = loop_timer_new(a->config.host->loop, on_ping, c);
    if (!c->ping) {
        free(c);
        return NULL;
    }
    snprintf(c->fingerprint, sizeof c->fingerprint, "%s", a->config.fingerprint);
    c->reply = (struct reply){ .chat = chat,
                               .tokenizer = a->config.host->tokenizer,
                               .model = a->config.host->model_name,
                               .fingerprint = c->fingerprint };
    c->sent_ms = clock_ms();
    loop_timer_set(c->ping, ping_ms(c));
    return c;
}

static void start(struct api *a, struct http_exchange *x, bool chat)
{
    struct refusal r = { 0 };
    struct openai_body *body = http_body_take(x, api_values_max(a));
    struct completion *c = body ? completion_new(a, x, chat) : NULL;
    if (!c) {
        openai_body_free(body);
        refuse(&r, ST_NO_MEMORY, "", "out of memory");
        http_reply_refusal(x, &r);
        return;
    }
    const struct generation_start want = {
        .id_prefix = chat ? "chatcmpl-" : "cmpl-",
        .source = body,
        .source_free = openai_body_free,
        .owner = http_identity(x),
        .tenant = http_asked_header(x, "x-longspan-tenant"),
        .source_bytes = body->bytes,
        .parse = chat ? openai_parse_chat : openai_parse_completion,
    };
    if (choices_start(a->config.host, &want, &events, c, &c->choices, &r)) {
        http_reply_refusal(x, &r);
        completion_free(c);
        return;
    }
    http_header(x, "X-Request-Id", choices_id(c->choices));
    http_on_close(x, on_close, c);
}

void api_completions(void *ctx, struct http_exchange *x)
{
    start(ctx, x, false);
}

void api_chat(void *ctx, struct http_exchange *x)
{
    start(ctx, x, true);
}
