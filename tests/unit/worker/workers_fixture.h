#ifndef LONGSPAN_TESTS_WORKERS_FIXTURE_H
#define LONGSPAN_TESTS_WORKERS_FIXTURE_H

/* Workers of one process that are driven by hand-made plans. LEAF, WORKERS, POSITIONS and PROMPT are the test's, defined before. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#include "worker/worker.h"

#ifndef FIXTURE_MODEL /* what a test does to a model that was opened */
#define FIXTURE_MODEL(model) ((void)(model))
#endif

/* ---- a cluster of workers, and what they answer ---- */

struct cluster {
    struct model *model;
    struct exchange_hub *hub;
    struct worker *worker[WORKERS];
    uint32_t n;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t results, aborts, copied;
    uint32_t n_vocab;
    float *logits;  /* [POSITIONS][n_vocab] */
    int32_t *token; /* [POSITIONS] sampled after */
    uint64_t number, epoch;
    uint64_t read, dense; /* bytes, by attention */
    const void *options;  /* the test's own */
};

static void on_result(void *ctx, const struct result *r)
{
    struct cluster *c = ctx;
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 0; i < r->n_rows; i++) {
        if (r->rows[i].n_logits == c->n_vocab)
            memcpy(c->logits + (size_t)r->rows[i].pos * c->n_vocab, r->rows[i].logits, c->n_vocab * sizeof(float));
        c->token[r->rows[i].pos] = r->rows[i].token;
    }
    c->results++;
    c->read += r->kv_bytes_read;
    c->dense += r->kv_bytes_dense;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void on_abort(void *ctx, const struct control_abort *a)
{
    struct cluster *c = ctx;
    print_message("abort: plan %llu, worker %u: %s\n", (unsigned long long)a->plan, a->peer, a->reason);
    pthread_mutex_lock(&c->lock);
    c->aborts++;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void on_copied(void *ctx, const struct control_copied *m)
{
    struct cluster *c = ctx;
    assert_int_equal(m->status, ST_OK);
    pthread_mutex_lock(&c->lock);
    c->copied++;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void post(struct worker *w, const struct control_message *m)
{
    uint8_t *bytes;
    size_t n;
    struct control_message *decoded;
    struct error err = { 0 };
    assert_int_equal(control_encode(m, &bytes, &n), ST_OK);
    if (control_decode(bytes, n, &decoded, &err))
        fail_msg("%s", err.text);
    free(bytes);
    assert_int_equal(worker_post(w, decoded), ST_OK);
}

/* config: what the test wants of it; sizes of nothing else but the pool. */
static struct cluster *workers_new(const char *model, uint32_t n, const struct worker_config *wanted)
{
    struct cluster *c = calloc(1, sizeof *c);
    struct error err = { 0 };
    struct control_member members[WORKERS];
    if (model_open(model, &c->model, &err))
        fail_msg("%s", err.text);
    FIXTURE_MODEL(c->model);
    c->epoch = 1;
    c->n = n;
    c->n_vocab = model_config(c->model)->n_vocab;
    c->hub = exchange_hub_new();
    c->logits = calloc((size_t)POSITIONS * c->n_vocab, sizeof(float));
    c->token = calloc(POSITIONS, sizeof *c->token);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    for (uint32_t i = 0; i < n; i++) {
        struct worker_config config = *wanted;
        config.step_rows_max = config.positions_max = POSITIONS;
        config.exchange_ops = &exchange_local;
        config.exchange =
            (struct exchange_config){ .self = (uint16_t)i, .spin_us = 20, .stash_bytes_max = 64 << 20, .hub = c->hub };
        config.on_result = on_result;
        config.on_abort = on_abort;
        config.on_copied = on_copied;
        config.ctx = c;
        if (worker_new(&config, c->model, &c->worker[i], &err))
            fail_msg("%s", err.text);
        struct control_ready ready;
        worker_ready(c->worker[i], &ready);
        members[i] = (struct control_member){ .id = (uint16_t)i,
                                              .address = ready.address,
                                              .address_bytes = ready.address_bytes };
    }
    const struct control_message m = { .kind = CONTROL_MEMBERS, .as.members = { .n_members = n, .members = members } };
    for (uint32_t i = 0; i < n; i++)
        post(c->worker[i], &m);
    return c;
}

static void cluster_free(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n; i++)
        worker_free(c->worker[i]);
    exchange_hub_free(c->hub);
    model_close(c->model);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->logits);
    free(c->token);
    free(c);
}

static void await(struct cluster *c, const uint32_t *count, uint32_t wanted)
{
    pthread_mutex_lock(&c->lock);
    while (*count < wanted && !c->aborts)
        pthread_cond_wait(&c->changed, &c->lock);
    assert_int_equal(c->aborts, 0);
    pthread_mutex_unlock(&c->lock);
}

/* ---- plans ---- */

struct layout {
    uint16_t reader[POSITIONS / LEAF + 1];
    uint16_t home;
    uint32_t chunk;
    uint32_t shared; /* blocks that all sequences have in common, where the test knows such */
};

static uint16_t home_of(const struct layout *l, uint32_t pos)
{
    return (pos / LEAF + 1) * LEAF <= PROMPT ? l->reader[pos / LEAF] : l->home;
}

#endif
