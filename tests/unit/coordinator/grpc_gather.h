/* A client of Inference/Generate for tests of the gRPC side. */
#ifndef TESTS_GRPC_GATHER_H
#define TESTS_GRPC_GATHER_H

#include "gateway_fixture.h"

#include "proto/longspan.pb-c.h"
#include "proto/rpc.h"

static struct rpc_channel *channel;

static inline void gather_connect(const struct fixture *fix)
{
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%u", fix->grpc);
    const struct rpc_channel_config config = { .target = target, .message_bytes_max = 64 << 20 };
    struct error err = { 0 };
    assert_int_equal(rpc_channel_open(&config, &channel, &err), ST_OK);
}

/* All that one call of Generate gave. Written on gRPC's thread, read after done. */
struct gather {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char text[4096], place[4200];
    size_t n_text, n_messages, n_tokens, n_scores, n_top, n_logits;
    float logprobs[64], scores[256];
    uint32_t first_score, n_done;
    char id[64], message[256];
    bool finished;
    enum rpc_code code;
    Longspan__V1__GenerateResponse *last;
};

/* The text field may hold NUL: looked for in the bytes, as protobuf-c cuts it. It is the first field that our server writes. */
static inline void gather_text(struct gather *g, const uint8_t *data, size_t bytes)
{
    if (bytes < 2 || data[0] != (1 << 3 | 2) || data[1] > 0x7F || g->n_text + data[1] > sizeof g->text)
        return;
    memcpy(g->text + g->n_text, data + 2, data[1]);
    g->n_text += data[1];
}

static inline void on_message(void *user, struct rpc_call *call, const uint8_t *data, size_t bytes)
{
    (void)call;
    struct gather *g = user;
    Longspan__V1__GenerateResponse *m = longspan__v1__generate_response__unpack(NULL, bytes, data);
    pthread_mutex_lock(&g->lock);
    gather_text(g, data, bytes);
    g->n_messages++;
    for (size_t i = 0; i < m->n_logprobs && g->n_tokens < 64; i++)
        g->logprobs[g->n_tokens++] = m->logprobs[i];
    for (size_t i = 0; i < m->n_top; i++)
        g->n_top += m->top[i]->n_items;
    for (size_t i = 0; i < m->n_prompt_logprobs; i++) {
        if (!g->n_scores)
            g->first_score = m->prompt_logprobs[i]->position;
        for (size_t k = 0; k < m->prompt_logprobs[i]->n_logprobs && g->n_scores < 256; k++)
            g->scores[g->n_scores++] = m->prompt_logprobs[i]->logprobs[k];
    }
    if (*m->place)
        snprintf(g->place, sizeof g->place, "%s", m->place);
    g->n_done += m->done != NULL;
    if (*m->id)
        snprintf(g->id, sizeof g->id, "%s", m->id);
    if (g->last)
        longspan__v1__generate_response__free_unpacked(g->last, NULL);
    g->last = m;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static inline void on_done(void *user, struct rpc_call *call, enum rpc_code code, const char *message)
{
    (void)call;
    struct gather *g = user;
    pthread_mutex_lock(&g->lock);
    g->finished = true;
    g->code = code;
    snprintf(g->message, sizeof g->message, "%s", message ? message : "");
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static inline void gather_init(struct gather *g)
{
    memset(g, 0, sizeof *g);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
}

static inline void gather_free(struct gather *g)
{
    if (g->last)
        longspan__v1__generate_response__free_unpacked(g->last, NULL);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
}

static inline struct rpc_call *start_bytes(struct gather *g, uint32_t deadline_ms, const uint8_t *data, size_t n)
{
    static const struct rpc_handlers handlers = { .on_message = on_message, .on_done = on_done };
    struct rpc_call *call;
    gather_init(g);
    assert_int_equal(rpc_call_start(channel, "/longspan.v1.Inference/Generate", deadline_ms, true, &handlers, g, &call),
                     ST_OK);
    rpc_call_send(call, data, n);
    rpc_call_half_close(call);
    return call;
}

static inline struct rpc_call *start(struct gather *g, uint32_t deadline_ms, const Longspan__V1__GenerateRequest *m)
{
    uint8_t data[4096];
    assert_true(longspan__v1__generate_request__get_packed_size(m) <= sizeof data);
    return start_bytes(g, deadline_ms, data, longspan__v1__generate_request__pack(m, data));
}

static inline void gather_wait(struct gather *g)
{
    pthread_mutex_lock(&g->lock);
    while (!g->finished)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

/* Until so many messages have come, or the end. */
static inline void gather_some(struct gather *g, size_t n)
{
    pthread_mutex_lock(&g->lock);
    while (g->n_messages < n && !g->finished)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static inline void run(struct gather *g, const Longspan__V1__GenerateRequest *m)
{
    struct rpc_call *call = start(g, 0, m);
    gather_wait(g);
    rpc_call_unref(call);
}

static inline Longspan__V1__GenerateRequest request(const char *text)
{
    Longspan__V1__GenerateRequest m;
    longspan__v1__generate_request__init(&m);
    m.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_TEXT;
    m.text = (char *)(uintptr_t)text;
    return m;
}

static inline void set_max(Longspan__V1__GenerateRequest *m, uint32_t n)
{
    m->max_tokens_set_case = LONGSPAN__V1__GENERATE_REQUEST__MAX_TOKENS_SET_MAX_TOKENS;
    m->max_tokens = n;
}

#endif
