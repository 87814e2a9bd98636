#include "client/bench/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <event2/buffer.h>

#include "client/bench/sse.h"
#include "common/clock.h"

enum { EVENT_BYTES_MAX = 8 << 20, EVENTS_MAX = 1 << 22, PLAIN_BYTES_MAX = 4096, ERROR_BYTES_MAX = 300 };

struct exchange {
    const struct exchange_config *config;
    struct exchange *next; /* the caller's list */
    struct http_call *call;
    struct record record;
    struct sse sse;
    uint64_t index;
    int64_t now_us; /* when the bytes at hand came */
    bool finished;  /* [DONE] */
    bool failed;
    struct error err;
    char plain[PLAIN_BYTES_MAX]; /* a body that is no stream of events */
    size_t plain_bytes;
};

char *exchange_head(const char *model, double temperature, bool ignore_eos, const json_t *extra)
{
    json_t *o =
        json_pack("{s:b, s:{s:b}, s:f}", "stream", 1, "stream_options", "include_usage", 1, "temperature", temperature);
    if (o && model[0])
        json_object_set_new(o, "model", json_string(model));
    if (o && ignore_eos)
        json_object_set_new(o, "ignore_eos", json_true());
    if (o && extra)
        json_object_update(o, (json_t *)(uintptr_t)extra);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (text)
        text[strlen(text) - 1] = 0;
    return text;
}

static void set_fault(struct exchange *x, enum status st, const char *text)
{
    if (!x->failed)
        error_set(&x->err, st, "%.*s", ERROR_BYTES_MAX, text);
    x->failed = true;
}

/* {"error": {"message": ...}} or {"error": "..."} -> the message, or NULL */
static const char *message_of(const json_t *object)
{
    const json_t *e = json_object_get(object, "error");
    const json_t *m = json_is_object(e) ? json_object_get(e, "message") : e;
    return json_is_string(m) ? json_string_value(m) : e && !json_is_null(e) ? "an error without a message" : NULL;
}

static bool has_text(const json_t *object, const char *key)
{
    return json_string_length(json_object_get(object, key)) > 0;
}

/* Does the event bring text? Completions have it in the choice, chats in its delta. */
static bool brings_text(const json_t *event)
{
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    return has_text(choice, "text") || has_text(delta, "content") || has_text(delta, "reasoning_content") ||
           has_text(delta, "reasoning");
}

static uint32_t count_of(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    const json_int_t n = json_is_integer(v) ? json_integer_value(v) : 0;
    return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static void take_usage(struct record *r, const json_t *usage)
{
    if (!json_is_object(usage))
        return;
    r->prompt_tokens = count_of(usage, "prompt_tokens");
    r->output_tokens = count_of(usage, "completion_tokens");
    r->cached_tokens = count_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
}

static void on_event(void *user, const char *data, size_t bytes)
{
    struct exchange *x = user;
    if (x->failed || x->finished)
        return;
    if (bytes == 6 && !memcmp(data, "[DONE]", 6)) {
        x->finished = true;
        return;
    }
    json_t *event = json_loadb(data, bytes, 0, NULL);
    if (!json_is_object(event)) {
        set_fault(x, ST_PROTOCOL, "an event that is no JSON object");
    } else if (message_of(event)) {
        set_fault(x, ST_PEER, message_of(event));
    } else {
        take_usage(&x->record, json_object_get(event, "usage"));
        if (brings_text(event) && (x->record.n_events >= EVENTS_MAX || !record_event(&x->record, x->now_us)))
            set_fault(x, ST_TOO_LARGE, "too many events");
    }
    json_decref(event);
}

static void on_body(void *user, const struct response *r, const char *data, size_t bytes)
{
    struct exchange *x = user;
    struct error err = { 0 };
    x->now_us = clock_us() - x->config->start_us;
    if (r->status != 200 || !r->event_stream) {
        const size_t room = sizeof x->plain - x->plain_bytes, n = bytes < room ? bytes : room;
        memcpy(x->plain + x->plain_bytes, data, n);
        x->plain_bytes += n;
        return;
    }
    if (sse_feed(&x->sse, data, bytes, on_event, x, &err))
        set_fault(x, err.status, err.text);
    if (x->failed)
        http_call_abort(x->call);
}

/* What a body that is no stream says. */
static void plain_fault(struct exchange *x, uint32_t status)
{
    char text[ERROR_BYTES_MAX + 40];
    json_t *object = json_loadb(x->plain, x->plain_bytes, 0, NULL);
    const char *message = message_of(object);
    if (status == 200)
        snprintf(text, sizeof text, "the answer is no stream of events");
    else
        snprintf(text, sizeof text, "HTTP %u: %.*s", status,
                 message ? ERROR_BYTES_MAX : (int)(x->plain_bytes < 80 ? x->plain_bytes : 80),
                 message ? message : x->plain);
    json_decref(object);
    set_fault(x, ST_PEER, text);
}

static void over(struct exchange *x)
{
    struct record *r = &x->record;
    if (!r->output_tokens)
        r->output_tokens = r->n_events;
    r->ok = !x->failed && !r->cancelled;
    r->end_us = clock_us() - x->config->start_us;
    if (x->failed)
        r->error = strdup(x->err.text);
    sse_free(&x->sse);
    x->config->on_done(x->config->user, x, r);
    free(x);
}

static void on_done(void *user, const struct response *r, enum status st, const struct error *err)
{
    struct exchange *x = user;
    if (r->head_done)
        x->record.status = r->status;
    if (st)
        set_fault(x, st, err->text[0] ? err->text : status_text(st));
    else if (r->status != 200 || !r->event_stream)
        plain_fault(x, r->status);
    else if (!x->finished)
        set_fault(x, ST_PROTOCOL, "the stream ended without [DONE]");
    over(x);
}

static struct evbuffer *make_body(const struct exchange_config *c, const struct load_request *request)
{
    struct evbuffer *body = evbuffer_new();
    if (body &&
        evbuffer_add_printf(body, "%s,\"max_tokens\":%u,%s", c->head, request->output_tokens,
                            c->chat ? "\"messages\":[{\"role\":\"user\",\"content\":" : "\"prompt\":") >= 0 &&
        prompt_write(c->prompts, request, body) && evbuffer_add_printf(body, c->chat ? "}]}" : "}") >= 0)
        return body;
    if (body)
        evbuffer_free(body);
    return NULL;
}

enum status exchange_start(const struct exchange_config *config, const struct load_request *request, int64_t due_us,
                           struct exchange **out, struct error *err)
{
    static const struct http_handlers handlers = { on_body, on_done };
    struct exchange *x = calloc(1, sizeof *x);
    struct evbuffer *body = make_body(config, request);
    if (!x || !body) {
        free(x);
        if (body)
            evbuffer_free(body);
        return error_set(err, ST_NO_MEMORY, "no memory");
    }
    x->config = config;
    x->index = request->index;
    x->sse.event_max = EVENT_BYTES_MAX;
    const int64_t now_us = clock_us() - config->start_us;
    x->record = (struct record){ .due_us = due_us < 0 ? now_us : due_us,
                                 .sent_us = now_us,
                                 .first_us = -1,
                                 .last_us = -1,
                                 .input_tokens = request->input_tokens };
    const enum status st = http_call_start(config->client, config->chat ? "/v1/chat/completions" : "/v1/completions",
                                           body, config->timeout_ms, &handlers, x, &x->call, err);
    if (st)
        free(x);
    else
        *out = x;
    return st;
}

void exchange_cancel(struct exchange *x)
{
    http_call_cancel(x->call);
    x->record.cancelled = true;
    over(x);
}

struct exchange **exchange_link(struct exchange *x)
{
    return &x->next;
}

uint64_t exchange_index(const struct exchange *x)
{
    return x->index;
}
