#include "client/bench/ask.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <event2/buffer.h>
#include <event2/event.h>

enum { ANSWER_BYTES_MAX = 16 << 20, TIMEOUT_MS = 30000, REPEATS = 8, WORDS_MIN = 8 };

struct answer {
    struct evbuffer *data;
    struct http_call *call;
    uint32_t status;
    bool done;
    enum status st;
    struct error err;
};

static void on_body(void *user, const struct response *r, const char *data, size_t bytes)
{
    struct answer *a = user;
    (void)r;
    if (evbuffer_get_length(a->data) + bytes > ANSWER_BYTES_MAX || evbuffer_add(a->data, data, bytes) < 0)
        http_call_abort(a->call);
}

static void on_done(void *user, const struct response *r, enum status st, const struct error *err)
{
    struct answer *a = user;
    a->st = st;
    if (st)
        a->err = *err;
    a->status = r->head_done ? r->status : 0;
    a->done = true;
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg; /* it only lets the loop return */
}

static void await(const struct asker *k, struct answer *a)
{
    const struct timeval look = { 0, 100000 };
    struct event *tick = event_new(k->base, -1, EV_PERSIST, on_tick, NULL);
    if (tick)
        event_add(tick, &look);
    while (!a->done && !(k->stop && k->stop()) && event_base_loop(k->base, EVLOOP_ONCE) == 0) {
    }
    if (tick)
        event_free(tick);
}

/* One request and its whole answer; json_out: NULL if it is no JSON. */
static enum status ask(const struct asker *k, const char *path, const json_t *body, uint32_t *status_out,
                       json_t **json_out, struct error *err)
{
    static const struct http_handlers handlers = { on_body, on_done };
    struct answer a = { .data = evbuffer_new() };
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct evbuffer *sent = text ? evbuffer_new() : NULL;
    enum status st = ST_NO_MEMORY;
    if (!a.data || (body && (!sent || evbuffer_add(sent, text, strlen(text)) < 0))) {
        if (sent)
            evbuffer_free(sent);
        error_set(err, st, "no memory");
        goto end;
    }
    st = http_call_start(k->client, path, sent, TIMEOUT_MS, &handlers, &a, &a.call, err);
    if (st)
        goto end;
    await(k, &a);
    if (!a.done) {
        http_call_cancel(a.call);
        st = error_set(err, ST_CANCELLED, "interrupted");
        goto end;
    }
    st = a.st ? error_set(err, a.st, "%s: %s", path, a.err.text[0] ? a.err.text : status_text(a.st)) : ST_OK;
    *status_out = a.status;
    *json_out = json_loadb((const char *)evbuffer_pullup(a.data, -1), evbuffer_get_length(a.data), 0, NULL);
end:
    free(text);
    if (a.data)
        evbuffer_free(a.data);
    return st;
}

enum status ask_model(const struct asker *a, char *name_out, size_t bytes, struct error *err)
{
    uint32_t status;
    json_t *answer = NULL;
    const enum status st = ask(a, "/v1/models", NULL, &status, &answer, err);
    if (st)
        return st;
    const json_t *first = json_array_get(json_object_get(answer, "data"), 0);
    const char *id = json_string_value(json_object_get(first, "id"));
    snprintf(name_out, bytes, "%s", id && strlen(id) < bytes ? id : "");
    json_decref(answer);
    return ST_OK;
}

/* How many tokens text is; -1: the server does not say. field: of the request, "prompt" or "content" */
static enum status count(const struct asker *a, const char *field, const char *text, int64_t *n_out, struct error *err)
{
    uint32_t status;
    json_t *answer = NULL, *body = json_pack("{s:s}", field, text);
    const enum status st = ask(a, "/tokenize", body, &status, &answer, err);
    json_decref(body);
    if (st)
        return st;
    const json_t *tokens = json_object_get(answer, "tokens"), *n = json_object_get(answer, "count");
    *n_out = status != 200           ? -1
             : json_is_integer(n)    ? json_integer_value(n)
             : json_is_array(tokens) ? (int64_t)json_array_size(tokens)
                                     : -1;
    json_decref(answer);
    return ST_OK;
}

static void repeat(char *out, size_t bytes, const char *word)
{
    size_t n = (size_t)snprintf(out, bytes, "the");
    for (int i = 0; i < REPEATS; i++)
        n += (size_t)snprintf(out + n, bytes - n, " %s", word);
}

static void take_all(struct prompts *p)
{
    for (p->n_words = 0; prompt_words[p->n_words] && p->n_words < PROMPT_WORDS_MAX; p->n_words++)
        p->words[p->n_words] = prompt_words[p->n_words];
    p->overhead = 0;
}

enum status ask_words(const struct asker *a, struct prompts *p, bool *exact_out, struct error *err)
{
    char text[512];
    const char *field = "prompt";
    int64_t base, n;
    enum status st = count(a, field, "the", &base, err);
    if (!st && base < 1) {
        field = "content";
        st = count(a, field, "the", &base, err);
    }
    if (st)
        return st;
    take_all(p);
    *exact_out = base >= 1;
    if (base < 1)
        return ST_OK;
    p->n_words = 0;
    p->overhead = (uint32_t)(base - 1 < 1000 ? base - 1 : 1000);
    for (size_t i = 0; !st && prompt_words[i]; i++) {
        repeat(text, sizeof text, prompt_words[i]);
        st = count(a, field, text, &n, err);
        if (!st && n == base + REPEATS)
            p->words[p->n_words++] = prompt_words[i];
    }
    if (!st && p->n_words < WORDS_MIN)
        st = error_set(err, ST_PEER, "/tokenize: only %u of our words are one token", p->n_words);
    return st;
}
