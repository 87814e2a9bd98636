/*
 * The identity contract, with the real scheduler and real workers in one process: tokens and log-probabilities do not depend on the number of workers, on
 * homes, owners, chunks, batches, codecs of KV, selectors, lossless codes of weights (quantised weights have a truth of their own), prefix hits, leaves that are read once for several sequences, leaves that move meanwhile, or pools so small that requests
 * give way to others and are computed again, nor on workers that die in the midst of all that and others that come. Each life draws all of these from its seed and is
 * compared with every request alone on one worker.
 *
 * ctest-labels: tsan
 * Replay: sim_test_identity --seed N
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"
#include "coordinator/sched.h"
#include "kernels/selector.h"
#include "model/calibration.h"
#include "worker/worker.h"

#define MODEL "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=2048,codec=%s:2:5"

enum { WORKERS_MAX = 4, VOICES_MAX = 16, REQUESTS = 16, PROMPT_MAX = 900, NEW_MAX = 40, POSITIONS = 1024, MODELS = 5 };

#ifdef __SANITIZE_THREAD__
enum { LIVES = 3 };
#elif defined(__SANITIZE_ADDRESS__)
enum { LIVES = 5 };
#else
enum { LIVES = 24 };
#endif

static uint64_t first_seed = 1, n_lives = LIVES;

/* ---- a cluster in one process ---- */

/* What workers said, until the scheduler's thread looks. */
struct letter {
    struct letter *next;
    uint16_t worker;
    struct control_message *message;
};

struct shape {
    uint32_t n_workers, n_threads, rows_max, chunk, spread_min, plans_ahead, n_blocks;
    enum kv_codec codec;
    const char *selector;
    uint32_t open_blocks, recovery_share, replicas;
    bool sharing, reads_apart, faults;
    uint64_t seed; /* 0: policy chooses */
};

struct cluster {
    struct sched *sched;
    struct exchange_hub *hub;
    struct voice {
        struct cluster *cluster;
        struct worker *worker;
        struct control_ready ready;
        uint16_t id;
    } voice[VOICES_MAX]; /* of all there ever were; worker NULL: dead */
    uint32_t n;
    const struct model *model;
    const struct shape *shape;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct letter *first, **last;
    struct rng rng;
    bool draws;
};

static struct control_message *copied(const struct control_message *m)
{
    uint8_t *bytes;
    size_t n;
    struct control_message *out;
    struct error err = { 0 };
    assert_int_equal(control_encode(m, &bytes, &n), ST_OK);
    if (control_decode(bytes, n, &out, &err))
        fail_msg("%s", err.text);
    free(bytes);
    return out;
}

static void post(struct voice *v, const struct control_message *m)
{
    struct cluster *c = v->cluster;
    struct letter *letter = malloc(sizeof *letter);
    *letter = (struct letter){ NULL, v->id, copied(m) };
    pthread_mutex_lock(&c->lock);
    *c->last = letter;
    c->last = &letter->next;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void on_result(void *ctx, const struct result *r)
{
    const struct control_message m = { .kind = CONTROL_RESULT, .as.result = (struct result *)(uintptr_t)r };
    post(ctx, &m);
}

static void on_abort(void *ctx, const struct control_abort *a)
{
    const struct control_message m = { .kind = CONTROL_ABORT, .as.abort = *a };
    post(ctx, &m);
}

static void on_copied(void *ctx, const struct control_copied *k)
{
    const struct control_message m = { .kind = CONTROL_COPIED, .as.copied = *k };
    post(ctx, &m);
}

static void sched_send(void *ctx, uint16_t worker, const struct control_message *m)
{
    struct cluster *c = ctx;
    assert_true(worker < c->n);
    if (!c->voice[worker].worker)
        return;
    assert_true(m->kind != CONTROL_STOP);
    assert_int_equal(worker_post(c->voice[worker].worker, copied(m)), ST_OK);
}

static int64_t now_ms(void *ctx)
{
    (void)ctx;
    return clock_ms();
}

static uint32_t choose(void *ctx, const char *what, uint32_t n)
{
    struct cluster *c = ctx;
    (void)what;
    return rng_below(&c->rng, n);
}

static void members_tell(struct cluster *c)
{
    struct control_member members[VOICES_MAX];
    struct control_message m = { .kind = CONTROL_MEMBERS, .as.members = { .members = members } };
    for (uint32_t i = 0; i < c->n; i++) {
        const struct voice *v = &c->voice[i];
        if (v->worker)
            members[m.as.members.n_members++] = (struct control_member){ .id = v->id,
                                                                         .address = v->ready.address,
                                                                         .address_bytes = v->ready.address_bytes };
    }
    for (uint32_t i = 0; i < c->n; i++)
        sched_send(c, (uint16_t)i, &m);
}

/* Codebooks of any numbers, for calibrated codecs: of each model that asks. NULL: the codec needs none. */
static struct calibration *calibration_of(const struct model *m, enum kv_codec codec)
{
    static struct {
        struct digest model;
        enum kv_codec codec;
        struct calibration *calibration;
    } kept[3 * MODELS];
    static uint16_t centroids[1 << 18];
    const struct model_config *c = model_config(m);
    const uint32_t channels = codec == KV_NOMAD   ? 1
                              : codec == KV_CQ_2B ? 4
                                                  : 8,
                   centroid_count = codec == KV_NOMAD ? 16 : 256;
    const struct digest digest = model_digest(m);
    struct calibration_origin origin = { .method = "drawn" };
    struct calibration_array arrays[2];
    struct error err = { 0 };
    char path[] = "/tmp/longspan-identity-XXXXXX";
    size_t i = 0, n = (size_t)c->n_layers * c->n_kv_heads * c->head_dim * centroid_count;
    if (!kv_codecs[codec].calibrated)
        return NULL;
    for (; i < 3 * MODELS && kept[i].calibration; i++)
        if (!memcmp(&kept[i].model, &digest, sizeof digest) && kept[i].codec == codec)
            return kept[i].calibration;
    assert_true(i < 3 * MODELS && n <= sizeof centroids / sizeof *centroids);
    for (size_t j = 0; j < n; j++)
        centroids[j] = f32_to_bf16((float)(rng_unit(rng_at(codec, j, 0)) * 4 - 2));
    snprintf(origin.codec, sizeof origin.codec, "%s", kv_codecs[codec].name);
    digest_text(&digest, origin.model);
    for (int part = 0; part < 2; part++) {
        arrays[part] = (struct calibration_array){ .type = CALIBRATION_BF16,
                                                   .n_dims = 5,
                                                   .dims = { c->n_layers, c->n_kv_heads, c->head_dim / channels,
                                                             centroid_count, channels },
                                                   .data = centroids };
        snprintf(arrays[part].name, sizeof arrays[part].name, "%s", part ? "values" : "keys");
    }
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    if (calibration_write(path, NULL, &origin, arrays, codec == KV_NOMAD ? 1 : 2, NULL, NULL, &err) ||
        calibration_open(path, &kept[i].calibration, &err))
        fail_msg("%s", err.text);
    unlink(path);
    kept[i].model = digest;
    kept[i].codec = codec;
    return kept[i].calibration;
}

/* A worker joins. */
static void cluster_join(struct cluster *c)
{
    const struct shape *s = c->shape;
    struct voice *v = &c->voice[c->n];
    struct error err = { 0 };
    assert_true(c->n < VOICES_MAX);
    *v = (struct voice){ .cluster = c, .id = (uint16_t)c->n };
    const struct worker_config w = {
        .device = "cpu",
        .n_threads = s->n_threads,
        .reads_apart = s->reads_apart,
        .step_rows_max = s->rows_max,
        .positions_max = POSITIONS,
        .n_blocks = s->n_blocks,
        .open_blocks = s->open_blocks,
        .kv_codec = s->codec,
        .calibration = calibration_of(c->model, s->codec),
        .selector = s->selector,
        .exchange_ops = &exchange_local,
        .exchange = { .self = v->id, .spin_us = 20, .stash_bytes_max = 64 << 20, .hub = c->hub },
        .on_result = on_result,
        .on_abort = on_abort,
        .on_copied = on_copied,
        .ctx = v,
    };
    if (worker_new(&w, c->model, &v->worker, &err))
        fail_msg("%s", err.text);
    worker_ready(v->worker, &v->ready);
    c->n++;
    members_tell(c);
    assert_int_equal(sched_worker_ready(c->sched, v->id, &v->ready, &err), ST_OK);
}

static uint32_t alive(const struct cluster *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        n += c->voice[i].worker != NULL;
    return n;
}

/* The n-th of those that live dies, whatever it is about. */
static void cluster_kill(struct cluster *c, uint32_t n)
{
    uint32_t i = 0;
    while (!c->voice[i].worker || n--)
        i++;
    worker_free(c->voice[i].worker);
    c->voice[i].worker = NULL;
    sched_worker_lost(c->sched, (uint16_t)i, "killed");
    members_tell(c);
}

static struct cluster *cluster_new(const struct model *model, const struct shape *s)
{
    struct cluster *c = calloc(1, sizeof *c);
    struct selector_spec selector;
    struct error err = { 0 };
    if (selector_parse(s->selector, &selector, &err))
        fail_msg("%s", err.text);
    const struct sched_config config = {
        .density = strcmp(selector.name, "dense") ? selector.density : 0,
        .prompt_sparse = selector.prompt,
        .row_classes = kv_codecs[s->codec].row_classes,
        .window = selector.dense_layers ? 0 : selector.window,
        .positions_max = POSITIONS,
        .step_rows_max = s->rows_max,
        .prefill_chunk_rows = s->chunk,
        .sequences_max = REQUESTS,
        .queue_max = REQUESTS,
        .spread_min_tokens = s->spread_min,
        .step_deadline_ms = 60000,
        .plans_ahead = s->plans_ahead,
        .prefix_sharing = s->sharing,
        .preemption = true,
        .starve_ms = 20,
        .recovery_share = s->recovery_share,
        .worker_wait_ms = 60000,
        .replicas = s->replicas,
    };
    const struct sched_ops ops = { .send = sched_send, .now_ms = now_ms, .choose = s->seed ? choose : NULL };
    c->model = model;
    c->shape = s;
    c->rng = (struct rng){ s->seed, 0 };
    c->last = &c->first;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->hub = exchange_hub_new();
    assert_int_equal(sched_new(&config, &ops, c, &c->sched), ST_OK);
    for (uint32_t i = 0; i < s->n_workers; i++)
        cluster_join(c);
    return c;
}

static void deliver(struct cluster *c, const struct letter *l)
{
    const struct control_message *m = l->message;
    struct error err = { 0 };
    enum status st = ST_OK;
    if (m->kind == CONTROL_RESULT)
        st = sched_result(c->sched, l->worker, m->as.result, &err);
    else if (m->kind == CONTROL_COPIED)
        st = sched_copied(c->sched, l->worker, &m->as.copied);
    else if (c->shape->faults)
        st = sched_abort(c->sched, l->worker, &m->as.abort); /* it waited for one that has died */
    else
        fail_msg("worker %u gave up: %s", l->worker, m->as.abort.reason);
    if (st)
        fail_msg("worker %u: %s", l->worker, err.text);
}

/* Runs the scheduler and hands it what workers say until *open is 0, or they have said something n times. */
static void run(struct cluster *c, const uint32_t *open, uint32_t n)
{
    while (*open && n) {
        const int64_t ms = sched_run(c->sched);
        pthread_mutex_lock(&c->lock);
        if (!c->first && *open) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += (ms < 1 ? 1 : ms > 20 ? 20 : ms) * 1000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&c->changed, &c->lock, &until);
        }
        struct letter *l = c->first;
        c->first = NULL;
        c->last = &c->first;
        pthread_mutex_unlock(&c->lock);
        while (l) {
            struct letter *next = l->next;
            n -= n > 0;
            if (c->voice[l->worker].worker)
                deliver(c, l);
            free(l->message);
            free(l);
            l = next;
        }
    }
}

static void cluster_free(struct cluster *c)
{
    sched_free(c->sched);
    for (uint32_t i = 0; i < c->n; i++)
        worker_free(c->voice[i].worker);
    for (struct letter *l = c->first, *next; l; l = next) {
        next = l->next;
        free(l->message);
        free(l);
    }
    exchange_hub_free(c->hub);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
}

/* ---- requests ---- */

struct request {
    int32_t prompt[PROMPT_MAX];
    uint32_t n_prompt, n_new;
    struct plan_sampling sampling;
    uint32_t density;
    bool score;
};

struct outcome {
    const struct request *request;
    uint32_t *open;
    int32_t token[NEW_MAX];
    float logprob[NEW_MAX], scored[PROMPT_MAX];
    uint32_t n, n_scored, cached, n_top_seen;
    struct result_top top[NEW_MAX];
    uint64_t kv_read, kv_dense;
};

static void on_token(void *user, const struct result_row *row)
{
    struct outcome *o = user;
    assert_true(o->n < o->request->n_new);
    if (row->n_top)
        o->top[o->n] = row->top[0];
    o->token[o->n] = row->token;
    o->logprob[o->n++] = row->logprob;
}

static void on_scored(void *user, uint32_t position, const struct result_row *row)
{
    struct outcome *o = user;
    assert_int_equal(position, o->n_scored);
    o->scored[o->n_scored++] = row->target_logprob;
}

static void on_done(void *user, const struct sched_done *done)
{
    struct outcome *o = user;
    if (done->reason == FINISH_ERROR)
        fail_msg("request failed: %s", done->message);
    o->cached = done->cached_tokens;
    o->kv_read = done->kv_bytes_read;
    o->kv_dense = done->kv_bytes_dense;
    (*o->open)--;
}

static const struct sched_events events = { .scored = on_scored, .token = on_token, .done = on_done };

static void submit(struct cluster *c, const struct request *r, int32_t priority, struct outcome *o, uint32_t *open)
{
    const struct sched_want want = {
        .tokens = r->prompt,
        .n_tokens = r->n_prompt,
        .max_tokens = r->n_new,
        .sampling = r->sampling,
        .density = r->density,
        .n_top = 3,
        .score = r->score,
        .label = "test",
        .priority = priority,
    };
    struct sched_request *handle;
    struct error err = { 0 };
    *o = (struct outcome){ .request = r, .open = open };
    (*open)++;
    if (sched_submit(c->sched, &want, &events, o, &handle, &err))
        fail_msg("%s", err.text);
}

/* Prompts that share the start of one of two stems, as much of it as each draws, and loners; greedy and sampled; some scored. */
static void requests_make(struct request *all, uint64_t set)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        struct rng rng = { 1000 * set + i, 0 };
        struct request *r = &all[i];
        const uint32_t family = i % 4, shared = family == 3 ? 0
                                                : i % 3     ? 200 + rng_below(&rng, 600)
                                                            : rng_below(&rng, 300);
        r->n_prompt = shared + 1 + rng_below(&rng, i % 5 ? (PROMPT_MAX - shared) / 4 : PROMPT_MAX - shared - 1);
        r->n_new = 1 + rng_below(&rng, NEW_MAX);
        for (uint32_t p = 0; p < r->n_prompt; p++)
            r->prompt[p] = (int32_t)(rng_at(p < shared ? family / 2 : 77 + i, p, set) % 256);
        r->sampling = (struct plan_sampling){ i % 2 ? 0 : 1, i % 3 ? 1 : 0.9f, i % 3 ? 0 : 40, i, i % 5 ? 0 : 0.01f };
        r->score = i % 4 == 3;
        r->density = i % 8 == 2 ? SELECTOR_DENSITY_ONE : i % 8 == 5 ? 350000 : 0;
    }
}

static void compare(const struct outcome *got, const struct outcome *want, uint32_t i, uint64_t seed)
{
    const size_t n = want->n, s = want->n_scored;
    if (got->n != n || memcmp(got->token, want->token, n * sizeof *got->token) ||
        memcmp(got->logprob, want->logprob, n * sizeof *got->logprob) || got->n_scored != s ||
        memcmp(got->scored, want->scored, s * sizeof *got->scored) || memcmp(got->top, want->top, n * sizeof *got->top))
        fail_msg("seed %llu: request %u differs (replay: --seed %llu)", (unsigned long long)seed, i,
                 (unsigned long long)seed);
}

static struct request requests[REQUESTS];
static struct outcome truth[REQUESTS];

/* One worker, one thread, nothing shared. */
static struct shape plainest(enum kv_codec codec, const char *selector)
{
    return (struct shape){ .n_workers = 1,
                           .codec = codec,
                           .selector = selector,
                           .open_blocks = 2,
                           .n_threads = 1,
                           .rows_max = 1024,
                           .chunk = 64,
                           .spread_min = 4096,
                           .plans_ahead = 1,
                           .n_blocks = 320 };
}

static void alone_on_one_worker(const struct model *model, enum kv_codec codec, const char *selector)
{
    const struct shape shape = plainest(codec, selector);
    struct cluster *c = cluster_new(model, &shape);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        uint32_t open = 0;
        submit(c, &requests[i], 0, &truth[i], &open);
        run(c, &open, UINT32_MAX);
    }
    cluster_free(c);
}

static uint64_t deaths, recoveries, recovered_rows;
static uint64_t hits, lossless, kv_read, kv_dense, preemptions;

/*
 * Models whose products have the same bits: one by one the weights that are no bf16, after those of the same numbers in bf16 and coded without loss. A
 * set of requests, which is two lives, takes one of the groups.
 */
static const struct {
    const char *name;
    enum weight_codec codec;
} weights_drawn[MODELS] = { { "bf16", WEIGHT_BF16 },
                            { "lossless-fast", WEIGHT_LOSSLESS_FAST },
                            { "df11", WEIGHT_DF11 },
                            { "q4_z", WEIGHT_Q4_Z },
                            { "leanquant-3", WEIGHT_LEANQUANT_3 } };

/* The first model of the group of a set, and how many it has. */
static uint32_t group_of(uint64_t set, uint32_t *n_out)
{
    const uint32_t first = set % 6 == 4 ? 3 : set % 6 == 0 ? 4 : 0;
    *n_out = first ? 1 : 3;
    return first;
}

static void life(struct model *const models[], uint32_t n_models, uint64_t seed, enum kv_codec codec,
                 const char *selector)
{
    static struct outcome outcome[REQUESTS];
    static const uint32_t chunks[] = { 1, 64, 100, 500, 1024 };
    struct rng rng = { seed * 7919, 0 };
    const struct shape shape = {
        .n_workers = 1 + rng_below(&rng, WORKERS_MAX),
        .n_threads = 1 + rng_below(&rng, 2),
        .rows_max = rng_below(&rng, 2) ? 1024 : 200,
        .chunk = chunks[rng_below(&rng, 5)],
        .spread_min = rng_below(&rng, 3) ? 1 : 500,
        .plans_ahead = 1 + rng_below(&rng, 2),
        .sharing = rng_below(&rng, 4) != 0,
        .reads_apart = rng_below(&rng, 4) == 0,
        .seed = rng_below(&rng, 3) ? seed : 0,
        .n_blocks = rng_below(&rng, 2) ? 320 : POSITIONS / PLAN_BLOCK + 8 + rng_below(&rng, 32),
        .codec = codec,
        .selector = selector,
        .open_blocks = 3 + rng_below(&rng, 3 * REQUESTS),
        .faults = rng_below(&rng, 2),
        .recovery_share = 20 + rng_below(&rng, 81),
        .replicas = rng_below(&rng, 2),
    };
    const uint32_t weights = rng_below(&rng, n_models);
    struct cluster *c = cluster_new(models[weights], &shape);
    uint32_t order[REQUESTS], open = 0;
    for (uint32_t i = 0; i < REQUESTS; i++)
        order[i] = i;
    for (uint32_t i = REQUESTS - 1; i > 0; i--) {
        const uint32_t j = rng_below(&rng, i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    /* a first half whose blocks the second may find; then the rest at once, in two waves, the second of which may come before the first */
    for (uint32_t i = 0; i < REQUESTS; i++) {
        submit(c, &requests[order[i]], -(int32_t)rng_below(&rng, 1 + i), &outcome[order[i]], &open);
        if (i == REQUESTS / 2)
            run(c, &open, UINT32_MAX);
        if (i == REQUESTS * 3 / 4)
            run(c, &open, 3 + rng_below(&rng, 30));
    }
    for (uint32_t i = shape.faults ? 1 + rng_below(&rng, 3) : 0; i > 0 && open; i--) {
        run(c, &open, 1 + rng_below(&rng, 60));
        if (!open)
            break;
        if (c->n < VOICES_MAX && (alive(c) < 2 || rng_below(&rng, 3) == 0))
            cluster_join(c);
        cluster_kill(c, rng_below(&rng, alive(c)));
        deaths++;
    }
    run(c, &open, UINT32_MAX);
    struct sched_stats stats;
    sched_stats(c->sched, &stats);
    preemptions += stats.preemptions;
    recoveries += stats.recoveries;
    recovered_rows += stats.recovered_rows;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        compare(&outcome[i], &truth[i], i, seed);
        hits += outcome[i].cached;
        lossless += weights > 0;
        kv_read += outcome[i].kv_read;
        kv_dense += outcome[i].kv_dense;
        if (shape.reads_apart && !strcmp(selector, "dense"))
            assert_int_equal(outcome[i].kv_read, outcome[i].kv_dense);
        assert_true(outcome[i].kv_read <= outcome[i].kv_dense);
    }
    cluster_free(c);
}

static void bits_do_not_depend_on_the_cluster(void **state)
{
    (void)state;
    struct model *models[MODELS];
    struct model_tensor matrix;
    struct error err = { 0 };
    log_set_level(LOG_LEVEL_ERROR);
    for (int i = 0; i < MODELS; i++) {
        char spec[160];
        snprintf(spec, sizeof spec, MODEL, weights_drawn[i].name);
        if (model_open(spec, &models[i], &err))
            fail_msg("%s", err.text);
        assert_int_equal(model_tensor(models[i], MODEL_FFN_DOWN, 1, &matrix), ST_OK);
        assert_int_equal(matrix.codec, weights_drawn[i].codec);
    }
    static const enum kv_codec codecs[] = { KV_BF16, KV_NOMAD,         KV_INT8,  KV_INT4_ROT, KV_KIVI2,
                                            KV_FP8,  KV_BF16_LOSSLESS, KV_CQ_2B, KV_CQ_1B };
    static const char *const selectors[] = { "quest@0.4,layers=0",
                                             "dense",
                                             "sketch-walk@0.5,layers=1",
                                             "quest@0.5,layers=1,scope=local,prompt=sparse",
                                             "sketch-walk@0.4,layers=0",
                                             "socket@0.4,layers=1",
                                             "double-sparsity@0.5,layers=0,prompt=sparse",
                                             "streaming@128",
                                             "socket@0.3,layers=0,prompt=sparse" };
    enum { CODECS = sizeof codecs / sizeof codecs[0], SELECTORS = sizeof selectors / sizeof selectors[0] };
    for (uint64_t seed = first_seed, set = 0; seed < first_seed + n_lives; seed++) {
        const enum kv_codec codec = codecs[seed / 2 % CODECS];
        const char *selector = selectors[(seed / 2 + seed / (2 * CODECS)) % SELECTORS];
        uint32_t n_models;
        const uint32_t first = group_of(1 + seed / 2, &n_models);
        if (set != 1 + seed / 2) {
            set = 1 + seed / 2;
            requests_make(requests, set);
            /* what is lossless has the bits of bf16 */
            alone_on_one_worker(models[first], codec == KV_BF16_LOSSLESS ? KV_BF16 : codec, selector);
        }
        life(models + first, n_models, seed, codec, selector);
    }
    print_message("%llu lives of %d requests, %llu tokens from prefix hits, %.0f of %.0f MB of keys and values read, "
                  "%llu preemptions; %llu requests with weights coded without loss; %llu deaths, %llu requests placed "
                  "again, %llu rows "
                  "computed again\n",
                  (unsigned long long)n_lives, REQUESTS, (unsigned long long)hits, (double)kv_read / 1e6,
                  (double)kv_dense / 1e6, (unsigned long long)preemptions, (unsigned long long)lossless,
                  (unsigned long long)deaths, (unsigned long long)recoveries, (unsigned long long)recovered_rows);
    assert_true(n_lives < 3 || (hits > 0 && kv_read < kv_dense && lossless > 0));
    assert_true(n_lives < 20 || (preemptions > 0 && recoveries > deaths / 2 && recovered_rows > 0));
    for (int i = 0; i < MODELS; i++)
        model_close(models[i]);
}

/*
 * A reply stands in the next prompt: its blocks are hits, but where classes of rows differ in bits, those that it filled are computed as a prompt's. The
 * answer is the same as without what came before.
 */
static void a_reply_comes_back(void **state)
{
    static const struct {
        enum kv_codec codec;
        uint32_t cached;
    } cases[] = { { KV_INT8, 2 * KV_BLOCK }, { KV_NOMAD, KV_BLOCK } };
    static struct request first, second;
    static struct outcome said, after, fresh;
    struct model *model;
    struct error err = { 0 };
    char spec[160];
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(spec, sizeof spec, MODEL, "bf16");
    if (model_open(spec, &model, &err))
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shape shape = plainest(cases[i].codec, "dense");
        shape.sharing = true;
        uint32_t open = 0;
        first = second = (struct request){ .n_prompt = 100, .n_new = NEW_MAX, .sampling = { 0, 1, 0, 0, 0 } };
        for (uint32_t p = 0; p < PROMPT_MAX; p++)
            first.prompt[p] = second.prompt[p] = (int32_t)(rng_at(5, p, 0) % 256);
        struct cluster *c = cluster_new(model, &shape);
        submit(c, &first, 0, &said, &open);
        run(c, &open, UINT32_MAX);
        assert_int_equal(said.n, NEW_MAX);
        memcpy(second.prompt + first.n_prompt, said.token, NEW_MAX * sizeof *said.token);
        second.n_prompt = first.n_prompt + NEW_MAX + 10;
        submit(c, &second, 0, &after, &open);
        run(c, &open, UINT32_MAX);
        cluster_free(c);
        c = cluster_new(model, &shape);
        submit(c, &second, 0, &fresh, &open);
        run(c, &open, UINT32_MAX);
        cluster_free(c);
        assert_int_equal(after.cached, cases[i].cached);
        assert_int_equal(fresh.cached, 0);
        compare(&after, &fresh, i, 0);
    }
    model_close(model);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && !strcmp(argv[1], "--seed")) {
        first_seed = strtoull(argv[2], NULL, 10);
        n_lives = argc == 5 && !strcmp(argv[3], "--lives") ? strtoull(argv[4], NULL, 10) : 1;
    }
    const struct CMUnitTest tests[] = { cmocka_unit_test(bits_do_not_depend_on_the_cluster),
                                        cmocka_unit_test(a_reply_comes_back) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
