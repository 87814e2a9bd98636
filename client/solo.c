#include "client/solo.h"

#include <pthread.h>
#include <stdlib.h>

#include "worker/worker.h"

enum {
    DEADLINE_MS = 600000,
    BLOCKS_MAX = SOLO_POSITIONS_MAX / PLAN_BLOCK,
    LEAVES_MAX = SOLO_POSITIONS_MAX / SOLO_LEAF
};

struct solo {
    struct solo_config config;
    struct exchange_hub *hub;
    struct worker *worker;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t results, aborts;
    uint64_t number;    /* of plans */
    uint64_t sequence;  /* ids begin at 1; 0: none yet */
    uint32_t positions; /* of it, that are there */
    kv_handle table[BLOCKS_MAX], drops[BLOCKS_MAX];
    uint16_t readers[LEAVES_MAX]; /* zeros: this worker */
};

/* ---- what the worker says ---- */

static void on_result(void *ctx, const struct result *result)
{
    struct solo *s = ctx;
    for (uint32_t i = 0; i < result->n_rows && s->config.logits; i++)
        if (result->rows[i].n_logits)
            s->config.logits(s->config.ctx, result->rows[i].pos, result->rows[i].logits, result->rows[i].n_logits);
    pthread_mutex_lock(&s->lock);
    s->results++;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void on_abort(void *ctx, const struct control_abort *abort)
{
    struct solo *s = ctx;
    (void)abort;
    pthread_mutex_lock(&s->lock);
    s->aborts++;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void on_copied(void *ctx, const struct control_copied *copied)
{
    (void)ctx;
    (void)copied;
}

/* ---- what it is told ---- */

/* As the coordinator would send it. */
static enum status post(struct solo *s, const struct control_message *m, struct error *err)
{
    uint8_t *bytes;
    size_t n;
    struct control_message *decoded = NULL;
    enum status st = control_encode(m, &bytes, &n);
    if (!st) {
        st = control_decode(bytes, n, &decoded, err);
        free(bytes);
    }
    return st ? st : worker_post(s->worker, decoded);
}

static enum status introduce(struct solo *s, struct error *err)
{
    struct control_ready ready;
    worker_ready(s->worker, &ready);
    const struct control_member self = { .address = ready.address, .address_bytes = ready.address_bytes };
    const struct control_message m = { .kind = CONTROL_MEMBERS, .as.members = { .n_members = 1, .members = &self } };
    return post(s, &m, err);
}

static uint32_t blocks_of(uint32_t positions)
{
    return (positions + PLAN_BLOCK - 1) / PLAN_BLOCK;
}

/* Another sequence: its handles, and those of the one before, which goes. -> how many of these */
static uint32_t sequence_begin(struct solo *s)
{
    const uint32_t n_drops = blocks_of(s->positions);
    for (uint32_t i = 0; i < n_drops; i++)
        s->drops[i] = s->table[i];
    for (uint32_t i = 0; i < BLOCKS_MAX; i++)
        s->table[i] = s->sequence * BLOCKS_MAX + i + 1;
    s->sequence++;
    s->positions = 0;
    return n_drops;
}

enum status solo_run(struct solo *s, uint32_t pos, uint32_t n, const int32_t *tokens, bool logits, struct error *err)
{
    const uint64_t before = s->sequence;
    const uint32_t n_drops = pos ? 0 : sequence_begin(s);
    const uint16_t self = 0;
    const struct plan_run run = {
        .pos = pos, .n_rows = n, .tokens = tokens, .cls = ROW_PROMPT, .want = logits ? WANT_LOGITS : 0
    };
    const struct plan_seq seq = { .id = s->sequence,
                                  .fresh = pos == 0,
                                  .n_table = blocks_of(pos + n),
                                  .table = s->table,
                                  .n_readers = pos / SOLO_LEAF + 1,
                                  .readers = s->readers };
    struct plan plan = { .epoch = 1,
                         .number = ++s->number,
                         .group = 1,
                         .leaf_blocks = SOLO_LEAF / PLAN_BLOCK,
                         .deadline_ms = DEADLINE_MS,
                         .n_members = 1,
                         .members = &self,
                         .n_seqs = 1,
                         .seqs = &seq,
                         .n_runs = 1,
                         .runs = &run,
                         .n_drops = n_drops,
                         .drops = s->drops,
                         .n_forgets = !pos && before,
                         .forgets = &before };
    const struct control_message m = { .kind = CONTROL_PLAN, .as.plan = &plan };
    const uint32_t results = s->results;
    const enum status st = post(s, &m, err);
    pthread_mutex_lock(&s->lock);
    while (!st && s->results == results && !s->aborts)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    if (!st && s->aborts)
        return error_set(err, ST_INTERNAL, "the model could not be run over positions %u to %u", pos, pos + n - 1);
    s->positions = pos + n;
    return st;
}

void *solo_part(struct solo *s, uint32_t block, uint32_t layer, uint32_t kv_head)
{
    return block < blocks_of(s->positions) ? worker_part(s->worker, s->table[block], layer, kv_head) : NULL;
}

/* ---- life ---- */

static enum status start(struct solo *s, const struct model *model, struct error *err)
{
    const struct worker_config config = {
        .device = "cpu",
        .kv_codec = KV_BF16,
        .tap = s->config.tap,
        .n_threads = s->config.n_threads,
        .step_rows_max = SOLO_LEAF,
        .positions_max = s->config.positions_max,
        .n_blocks = 2 * (s->config.positions_max / PLAN_BLOCK + 1),
        .exchange_ops = &exchange_local,
        .exchange = { .spin_us = 20, .stash_bytes_max = 1 << 20, .hub = s->hub },
        .on_result = on_result,
        .on_abort = on_abort,
        .on_copied = on_copied,
        .ctx = s,
    };
    const enum status st = worker_new(&config, model, &s->worker, err);
    return st ? st : introduce(s, err);
}

enum status solo_new(const struct solo_config *config, const struct model *model, struct solo **solo_out,
                     struct error *err)
{
    if (!config->positions_max || config->positions_max > SOLO_POSITIONS_MAX)
        return error_set(err, ST_INVALID, "sequences of %u positions are run in one process, 1 to %d are possible",
                         config->positions_max, SOLO_POSITIONS_MAX);
    struct solo *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ST_NO_MEMORY, "no memory");
    s->config = *config;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->hub = exchange_hub_new();
    const enum status st = s->hub ? start(s, model, err) : error_set(err, ST_NO_MEMORY, "no memory");
    if (st) {
        solo_free(s);
        return st;
    }
    *solo_out = s;
    return ST_OK;
}

void solo_free(struct solo *s)
{
    if (!s)
        return;
    worker_free(s->worker);
    exchange_hub_free(s->hub);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}
