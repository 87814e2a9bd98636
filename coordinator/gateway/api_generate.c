#include "coordinator/gateway/api_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "coordinator/gateway/reply.h"
#include "coordinator/gateway/resume.h"

enum { GRACE_LOOK_MS = 200 };

/*
 * One /v1/completions or /v1/chat/completions under way. With an Idempotency-Key it has a name: it is in the API's list, its tokens are journaled, and it goes on for
 * a while without its client.
 */
struct completion {
    struct api *api;
    struct http_exchange *x;  /* NULL: the client has gone */
    struct completion *next;  /* those with a name */
    char name[48];            /* the request's id; "": none */
    char label[64];           /* what the client calls the request; "": nothing that may stand in logs */
    char event[4200];         /* Last-Event-ID */
    struct openai_body *body; /* until the journal is open */
    const char *owner;
    char tenant[WANT_TENANT_MAX + 1];
    uint64_t seed;
    struct keeper *keeper;
    bool opening, gone; /* gone: to be freed when the journal is open */
    struct resume from, told;
    bool *caught; /* [n]: what was told before is behind us */
    struct loop_timer *grace;
    int64_t grace_until_ms;
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

/* Memory goes later if the journal is being opened for it. */
static void completion_free(struct completion *c)
{
    struct completion **link = &c->api->named;
    while (*link && *link != c)
        link = &(*link)->next;
    if (*link)
        *link = c->next;
    loop_timer_set(c->ping, -1);
    if (c->opening) {
        c->gone = true;
        return;
    }
    for (uint32_t i = 0; c->whole && i < c->n; i++)
        text_free(&c->whole[i]);
    for (uint32_t i = 0; c->replies && i < c->n; i++)
        reply_deinit(&c->replies[i]);
    free(c->whole);
    free(c->replies);
    free(c->caught);
    openai_body_free(c->body);
    keeper_close(c->keeper);
    loop_timer_free(c->ping);
    loop_timer_free(c->grace);
    free(c);
}

static void told_now(struct completion *c);
static void end_refused(struct completion *c, const struct refusal *r);

static int64_t ping_ms(const struct completion *c)
{
    return c->api->config.ping_ms ? c->api->config.ping_ms : 10000;
}

/* false: the reader was dropped, and the completion with it. */
static bool send_bytes(struct completion *c, const void *data, size_t bytes)
{
    if (!c->x)
        return true;
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

/* How far the client has been told. */
static void told_now(struct completion *c)
{
    c->told.n = c->n;
    for (uint32_t i = 0; i < c->n; i++) {
        struct resume_place *p = &c->told.places[i];
        const struct reply *r = &c->replies[i];
        if (!c->caught[i]) { /* nothing new yet */
            *p = c->from.places[i];
            continue;
        }
        p->begun = p->ended || r->begun || r->echoed;
        p->tokens = (uint32_t)r->tokens;
        p->text = (uint32_t)r->text;
    }
}

/* json: one event's data; freed. An answer that cannot be made for want of memory ends the stream. */
static bool send_event(struct completion *c, struct text *json)
{
    struct text event = { 0 };
    if (c->name[0]) {
        text_str(&event, "id: ");
        told_now(c);
        resume_write(&c->told, c->name, &event);
        text_str(&event, "\ndata: ");
    } else {
        text_printf(&event, "id: %llu\ndata: ", (unsigned long long)c->event_id++);
    }
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

/* Instead of all that was to come. */
static void refuse_now(struct completion *c, const struct refusal *r)
{
    choices_cancel(c->choices);
    end_refused(c, r);
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
        c->caught = calloc(c->n, sizeof *c->caught);
        if (!c->replies || !c->whole || !c->caught) {
            refuse_now(c, &(struct refusal){ .status = ST_NO_MEMORY, .message = "out of memory" });
            return NULL;
        }
        if (c->from.n > c->n || (c->from.n && !c->stream)) {
            refuse_now(c, &(struct refusal){ .status = ST_INVALID,
                                             .field = "Last-Event-ID",
                                             .message = "Last-Event-ID is of a stream of more choices" });
            return NULL;
        }
        c->told.usage = c->from.usage;
        for (uint32_t i = 0; i < c->n; i++) {
            c->replies[i] = c->reply;
            c->replies[i].index = i;
        }
    }
    return &c->replies[g->index];
}

/*
 * Passes over what the client was told before, as if it were told now. false: that is not here yet. The parts of an answer follow from its text, however it came, so
 * what was told ends where it ended.
 */
static bool catch_up(struct completion *c, struct reply *r, const struct generation *g)
{
    const struct resume_place *p = &c->from.places[g->index];
    if (c->caught[g->index])
        return true;
    if (g->n_text < p->text || g->n_tokens < p->tokens || (p->begun && echo_waits(g)))
        return false;
    c->caught[g->index] = true;
    c->told.places[g->index].ended = p->ended;
    if (!p->begun)
        return true;
    struct text passed = { 0 };
    struct generation then = *g;
    then.n_text = p->text;
    then.n_tokens = p->tokens;
    r->begun = true;
    reply_chunk(r, &then, p->ended, &passed);
    text_free(&passed);
    return true;
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
    if (c->keeper)
        resumes_note(c->api->config.resumes, c->keeper, g);
    if (!g->want.stream || echo_waits(g))
        return;
    struct text json = { 0 };
    struct reply *r = reply_of(c, g);
    if (!r || !catch_up(c, r, g) || c->told.places[g->index].ended)
        return;
    if (send_role(c, r, g) && reply_chunk(r, g, false, &json))
        send_event(c, &json);
    else
        text_free(&json);
}

/* The rest of a choice's stream. */
static void finish_choice(struct completion *c, struct reply *r, const struct generation *g,
                          const struct generation_done *done)
{
    struct text json = { 0 };
    if (!catch_up(c, r, g)) {
        refuse_now(c, &(struct refusal){ .status = ST_INVALID,
                                         .field = "Last-Event-ID",
                                         .message = "Last-Event-ID is behind the end of the answer" });
        return;
    }
    if (c->told.places[g->index].ended || !send_role(c, r, g))
        return;
    if (reply_chunk(r, g, true, &json) && !send_event(c, &json))
        return;
    json = (struct text){ 0 };
    c->told.places[g->index].ended = true;
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
    if (c->include_usage && !c->told.usage) {
        c->told.usage = true;
        reply_chunk_usage(&c->reply, c->id, c->created_s, done, &json);
        if (!send_event(c, &json))
            return;
    }
    json = (struct text){ 0 };
    text_str(&json, "[DONE]");
    if (!send_event(c, &json))
        return;
    if (c->x)
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
    if (c->x)
        http_reply_json(c->x, 200, &json);
    else
        text_free(&json);
    completion_free(c);
}

static void end_refused(struct completion *c, const struct refusal *r)
{
    if (!c->x || !c->streaming) {
        if (c->x)
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

static void cancel(struct completion *c)
{
    if (c->choices)
        choices_cancel(c->choices);
    completion_free(c);
}

/* Nobody has come back: it ends. What it has generated stays in the journal. */
static void on_grace(void *arg)
{
    struct completion *c = arg;
    if (clock_ms() >= c->grace_until_ms || c->api->config.host->draining)
        cancel(c);
    else
        loop_timer_set(c->grace, GRACE_LOOK_MS);
}

/* One with a name goes on for a while: the client may be on its way back. */
static void on_close(void *user)
{
    struct completion *c = user;
    const uint32_t grace_ms = c->keeper ? resumes_grace_ms(c->api->config.resumes) : 0;
    c->x = NULL;
    if (!grace_ms || c->api->config.host->draining || c->api->closing) {
        cancel(c);
        return;
    }
    c->grace_until_ms = clock_ms() + grace_ms;
    loop_timer_set(c->grace, GRACE_LOOK_MS);
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
    if (c->choices && choices_streams(c->choices))
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
    c->grace = loop_timer_new(a->config.host->loop, on_grace, c);
    if (!c->ping || !c->grace) {
        loop_timer_free(c->ping);
        loop_timer_free(c->grace);
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

/* The body is there, and what is known of it, if it has a name. */
static void begin(struct completion *c)
{
    struct api *a = c->api;
    struct refusal r = { 0 };
    struct openai_body *body = c->body;
    uint32_t n_told = 0;
    const struct generation_told *told = c->keeper ? keeper_told(c->keeper, &n_told) : NULL;
    const struct generation_start want = {
        .id_prefix = c->reply.chat ? "chatcmpl-" : "cmpl-",
        .id = c->name[0] ? c->name : NULL,
        .label = c->label[0] ? c->label : NULL,
        .has_seed = c->name[0] != 0,
        .seed = c->seed,
        .told = told,
        .n_told = n_told,
        .source = body,
        .source_free = openai_body_free,
        .owner = c->owner,
        .tenant = c->tenant[0] ? c->tenant : NULL,
        .source_bytes = body->bytes,
        .parse = c->reply.chat ? openai_parse_chat : openai_parse_completion,
    };
    c->body = NULL;
    if (choices_start(a->config.host, &want, &events, c, &c->choices, &r)) {
        end_refused(c, &r);
        return;
    }
    if (c->x)
        http_header(c->x, "X-Request-Id", c->label[0] ? c->label : choices_id(c->choices));
}

static void on_opened(void *ctx, struct keeper *k)
{
    struct completion *c = ctx;
    c->opening = false;
    c->keeper = k;
    if (c->gone)
        completion_free(c);
    else
        begin(c);
}

/* Another connection of the same request, perhaps one that nobody reads any more: the new one goes on. */
static void take_over(struct api *a, const char *name)
{
    struct completion *old = a->named;
    while (old && strcmp(old->name, name) != 0)
        old = old->next;
    if (!old)
        return;
    const struct refusal r = { .status = ST_STALE,
                               .message = "the same request has come again, on another connection" };
    struct http_exchange *x = old->x;
    old->x = NULL;
    if (x) {
        http_on_close(x, NULL, NULL);
        if (old->streaming)
            http_stream_end(x, true);
        else
            http_reply_refusal(x, &r);
    }
    cancel(old);
}

/* Names it by its key. -> false: refused, and gone */
static bool name_take(struct completion *c, const char *key)
{
    char name[RESUME_NAME_BYTES + 1];
    const char *event = http_asked_header(c->x, "Last-Event-ID");
    struct refusal r = { 0 };
    if (resumes_name(key, c->owner, http_path(c->x), c->body->data, c->body->bytes, name, &c->seed))
        refuse(&r, ST_INVALID, "Idempotency-Key", "Idempotency-Key: 1 to %d printable characters", (int)RESUME_KEY_MAX);
    snprintf(c->name, sizeof c->name, "%s%s", c->reply.chat ? "chatcmpl-" : "cmpl-", name);
    if (!r.status && event && *event && resume_read(event, c->name, &c->from))
        refuse(&r, ST_INVALID, "Last-Event-ID",
               "Last-Event-ID is not of an event of this request (same key, path and body)");
    if (!r.status && c->api->config.host->standby[0])
        refuse_code(&r, ST_CANCELLED, "", "standby", "%s", c->api->config.host->standby);
    if (r.status) {
        c->name[0] = 0;
        end_refused(c, &r);
        return false;
    }
    take_over(c->api, c->name);
    c->next = c->api->named;
    c->api->named = c;
    c->opening = true;
    if (resumes_open(c->api->config.resumes, name, on_opened, c)) {
        c->opening = false;
        refuse(&r, ST_BUSY, "", "out of memory");
        end_refused(c, &r);
        return false;
    }
    return true;
}

void api_named_end(struct api *a)
{
    while (a->named)
        cancel(a->named);
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
    const char *key = http_asked_header(x, "Idempotency-Key"), *tenant = http_asked_header(x, "x-longspan-tenant"),
               *label = http_asked_header(x, "X-Request-Id");
    c->body = body;
    c->owner = http_identity(x);
    if (tenant)
        snprintf(c->tenant, sizeof c->tenant, "%s", tenant);
    if (generation_label_ok(label))
        snprintf(c->label, sizeof c->label, "%s", label);
    http_on_close(x, on_close, c);
    if (!key || !a->config.resumes)
        begin(c);
    else
        name_take(c, key);
}

void api_completions(void *ctx, struct http_exchange *x)
{
    start(ctx, x, false);
}

void api_chat(void *ctx, struct http_exchange *x)
{
    start(ctx, x, true);
}
