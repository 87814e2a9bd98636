/*
 * Workers of one process, driven by hand-made plans: whatever the owners of leaves, the chunks, the homes and the threads, every row's logits are
 * those of one row at a time on one worker, bit for bit; and these are the model's, by a plain forward pass in double.
 *
 * ctest-labels: tsan
 * Replay: worker_test_step --seed N
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/rng.h"
#include "worker/worker.h"

/* test_cuda.c runs the same tests on a GPU, with other sizes */
#ifndef STEP_DEVICE
#define STEP_DEVICE     "cpu"
#define STEP_PRECISIONS 2 /* bf16; float32 */
#define STEP_LAYOUTS    24
#define TINY            "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=1024,codec=bf16:2:5"
#define CODED           "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=1024,codec=lossless-fast:2:5"
/* Biases and head norms together, an odd number of row groups, a head that is no multiple of vectors */
#define DRESSED                                                                                                        \
    "random:layers=2,d=48,heads=3,kv=3,head_dim=24,ff=96,vocab=256,positions=1024,qkv_bias=1,qk_norm=1,codec=bf16:2:5"
enum { LEAF = 256, WORKERS = 4, POSITIONS = 640, PROMPT = 610 };
#endif

#ifndef STEP_NO_SPILLS
#include "model/source.h"
#include "worker/internal.h"
/* Keys and values that no code takes: each pair of channels of the first head's keys, and of the last one's values, has a power of two of its own. */
static enum kv_codec codec;
static bool wild;

static const void *wild_row(const struct model_tensor *t, uint32_t row, void *scratch)
{
    const bool keys = t->kind == MODEL_ATTN_K && row < 32, values = t->kind == MODEL_ATTN_V && row >= 32;
    uint16_t *x = scratch;
    model_source_random.row(t, row, scratch);
    for (uint32_t i = 0; i < t->n_cols && (keys || values); i++)
        if ((x[i] >> 7 & 255) > 64)
            x[i] = (uint16_t)(x[i] + ((int)(row % 16) * 2 - 22) * 128);
    return scratch;
}

static void wild_model(struct model *m)
{
    static struct model_source source;
    source = model_source_random;
    source.row = wild_row;
    m->source = wild ? &source : m->source;
}
#define FIXTURE_MODEL wild_model
#define STEP_CODEC    codec
#else
#define STEP_CODEC KV_BF16
#endif
#include "workers_fixture.h"

static uint64_t first_seed = 1;

static struct cluster *cluster_new(const char *model, uint32_t n, uint32_t n_threads, bool float32)
{
    const struct worker_config wanted = { .device = STEP_DEVICE,
                                          .float32 = float32,
                                          .kv_codec = STEP_CODEC,
                                          .n_threads = n_threads,
                                          .n_blocks = POSITIONS / 64 + 1,
                                          .open_blocks = POSITIONS / 64 + 2 };
    return workers_new(model, n, &wanted);
}

/* One step: positions begin .. end - 1 of a sequence, as runs that cross no leaf. */
static void step(struct cluster *c, const struct layout *l, uint64_t seq, const int32_t *tokens, uint32_t begin,
                 uint32_t end, bool fresh)
{
    enum { RUNS = POSITIONS / LEAF + 2 };
    struct plan_run runs[RUNS];
    kv_handle table[POSITIONS / 64];
    uint16_t readers[POSITIONS / LEAF + 1], members[WORKERS];
    uint32_t n_runs = 0;
    for (uint32_t pos = begin; pos < end;) {
        const uint32_t border = (pos / LEAF + 1) * LEAF, stop = border < end ? border : end;
        runs[n_runs++] = (struct plan_run){
            .pos = pos,
            .n_rows = stop - pos,
            .tokens = tokens + pos,
            .home = home_of(l, pos),
            .cls = pos < PROMPT ? ROW_PROMPT : ROW_GENERATED,
            .want = WANT_LOGITS | WANT_SAMPLE,
        };
        pos = stop;
    }
    const uint32_t n_blocks = (end + 63) / 64, n_leaves = (end + LEAF - 1) / LEAF;
    for (uint32_t i = 0; i < n_blocks; i++)
        table[i] = seq * 1000 + i + 1;
    for (uint32_t i = 0; i < n_leaves; i++)
        readers[i] = (i + 1) * LEAF <= PROMPT ? l->reader[i] : l->home;
    for (uint32_t i = 0; i < c->n; i++)
        members[i] = (uint16_t)i;
    const struct plan_seq s = {
        .id = seq, .fresh = fresh, .n_table = n_blocks, .table = table, .n_readers = n_leaves, .readers = readers
    };
    struct plan plan = {
        .epoch = 1,
        .number = ++c->number,
        .group = 1,
        .leaf_blocks = LEAF / 64,
        .deadline_ms = 60000,
        .n_members = c->n,
        .members = members,
        .n_seqs = 1,
        .seqs = &s,
        .n_runs = n_runs,
        .runs = runs,
    };
    const struct control_message m = { .kind = CONTROL_PLAN, .as.plan = &plan };
    const uint32_t before = c->results;
    for (uint32_t i = 0; i < c->n; i++)
        post(c->worker[i], &m);
    await(c, &c->results, before + c->n);
}

static void prompt_make(int32_t *tokens, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < POSITIONS; i++)
        tokens[i] = (int32_t)(rng_at(7, i, 0) % n_vocab);
}

static void run_layout(struct cluster *c, const struct layout *l, const int32_t *tokens)
{
    for (uint32_t pos = 0; pos < POSITIONS;) {
        const uint32_t n = pos < PROMPT ? l->chunk : 1, stop = pos < PROMPT ? PROMPT : POSITIONS;
        const uint32_t end = pos + n < stop ? pos + n : stop;
        step(c, l, 1, tokens, pos, end, pos == 0);
        pos = end;
    }
}

/* ---- the model by a plain forward pass ---- */

struct dense {
    float *w;
    uint32_t n_out, n_in;
};

static struct dense dense_of(const struct model *m, enum model_tensor_kind kind, uint32_t layer)
{
    struct model_tensor t;
    assert_int_equal(model_tensor(m, kind, layer, &t), ST_OK);
    struct dense d = { malloc((size_t)t.n_rows * t.n_cols * sizeof(float)), t.n_rows, t.n_cols };
    void *scratch = aligned_alloc(64, (t.row_bytes + 63) / 64 * 64);
    for (uint32_t i = 0; i < t.n_rows; i++)
        weight_row_f32(t.codec, model_tensor_row(&t, i, scratch), t.n_cols, d.w + (size_t)i * t.n_cols);
    free(scratch);
    return d;
}

static void product(const struct model *m, enum model_tensor_kind kind, uint32_t layer, const double *x, double *y,
                    bool add)
{
    const struct dense d = dense_of(m, kind, layer);
    for (uint32_t o = 0; o < d.n_out; o++) {
        double sum = 0;
        for (uint32_t i = 0; i < d.n_in; i++)
            sum += (double)d.w[(size_t)o * d.n_in + i] * x[i];
        y[o] = add ? y[o] + sum : sum;
    }
    free(d.w);
}

static void normed(const struct model *m, enum model_tensor_kind kind, uint32_t layer, const double *x, double *y)
{
    const struct dense d = dense_of(m, kind, layer);
    double sum = 0;
    for (uint32_t i = 0; i < d.n_in; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < d.n_in; i++)
        y[i] = x[i] / sqrt(sum / d.n_in + (double)model_config(m)->rms_eps) * (double)d.w[i];
    free(d.w);
}

static void add_vector(const struct model *m, enum model_tensor_kind kind, uint32_t layer, double *y)
{
    const struct dense d = dense_of(m, kind, layer);
    for (uint32_t i = 0; i < d.n_in; i++)
        y[i] += (double)d.w[i];
    free(d.w);
}

static void norm_heads(const struct model *m, enum model_tensor_kind kind, uint32_t layer, double *y, uint32_t heads)
{
    const uint32_t dim = model_config(m)->head_dim;
    for (uint32_t h = 0; h < heads; h++)
        normed(m, kind, layer, y + h * dim, y + h * dim);
}

static void rotate(const struct model_config *c, double *x, uint32_t heads, uint32_t pos)
{
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < c->head_dim / 2; i++) {
            double *a = &x[h * c->head_dim + i], *b = a + c->head_dim / 2;
            const double co = cos(pos * c->inv_freq[i]), si = sin(pos * c->inv_freq[i]), u = *a, v = *b;
            *a = u * co - v * si;
            *b = v * co + u * si;
        }
    }
}

/* Logits of the last of n positions. */
static void forward(const struct model *m, const int32_t *tokens, uint32_t n, double *logits)
{
    const struct model_config *c = model_config(m);
    const uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim,
                   group = c->n_heads / c->n_kv_heads;
    double *x = calloc((size_t)n * c->d_model, sizeof *x), *h = malloc((c->d_model + c->d_ff) * sizeof *h),
           *q = malloc(n * q_dim * sizeof *q);
    double *k = malloc((size_t)n * kv_dim * sizeof *k), *v = malloc((size_t)n * kv_dim * sizeof *v),
           *a = malloc(q_dim * sizeof *a);
    double *gate = malloc(c->d_ff * sizeof *gate), *up = malloc(c->d_ff * sizeof *up), *p = malloc(n * sizeof *p);
    const struct dense emb = dense_of(m, MODEL_EMBEDDING, 0);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < c->d_model; i++)
            x[(size_t)t * c->d_model + i] = (double)emb.w[(size_t)tokens[t] * c->d_model + i];
    free(emb.w);
    for (uint32_t layer = 0; layer < c->n_layers; layer++) {
        for (uint32_t t = 0; t < n; t++) {
            normed(m, MODEL_ATTN_NORM, layer, x + (size_t)t * c->d_model, h);
            product(m, MODEL_ATTN_Q, layer, h, q + (size_t)t * q_dim, false);
            product(m, MODEL_ATTN_K, layer, h, k + (size_t)t * kv_dim, false);
            product(m, MODEL_ATTN_V, layer, h, v + (size_t)t * kv_dim, false);
            if (c->qkv_bias) {
                add_vector(m, MODEL_ATTN_Q_BIAS, layer, q + (size_t)t * q_dim);
                add_vector(m, MODEL_ATTN_K_BIAS, layer, k + (size_t)t * kv_dim);
                add_vector(m, MODEL_ATTN_V_BIAS, layer, v + (size_t)t * kv_dim);
            }
            if (c->qk_norm) {
                norm_heads(m, MODEL_ATTN_Q_NORM, layer, q + (size_t)t * q_dim, c->n_heads);
                norm_heads(m, MODEL_ATTN_K_NORM, layer, k + (size_t)t * kv_dim, c->n_kv_heads);
            }
            rotate(c, q + (size_t)t * q_dim, c->n_heads, t);
            rotate(c, k + (size_t)t * kv_dim, c->n_kv_heads, t);
        }
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t head = 0; head < c->n_heads; head++) {
                const uint32_t kv = head / group * c->head_dim;
                double sum = 0, most = -INFINITY;
                for (uint32_t j = 0; j <= t; j++) {
                    p[j] = 0;
                    for (uint32_t d = 0; d < c->head_dim; d++)
                        p[j] += q[(size_t)t * q_dim + head * c->head_dim + d] * k[(size_t)j * kv_dim + kv + d];
                    p[j] /= sqrt(c->head_dim);
                    most = p[j] > most ? p[j] : most;
                }
                for (uint32_t j = 0; j <= t; j++)
                    sum += p[j] = exp(p[j] - most);
                for (uint32_t d = 0; d < c->head_dim; d++) {
                    double o = 0;
                    for (uint32_t j = 0; j <= t; j++)
                        o += p[j] * v[(size_t)j * kv_dim + kv + d];
                    a[head * c->head_dim + d] = o / sum;
                }
            }
            double *row = x + (size_t)t * c->d_model;
            product(m, MODEL_ATTN_OUT, layer, a, row, true);
            normed(m, MODEL_FFN_NORM, layer, row, h);
            product(m, MODEL_FFN_GATE, layer, h, gate, false);
            product(m, MODEL_FFN_UP, layer, h, up, false);
            for (uint32_t i = 0; i < c->d_ff; i++)
                gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            product(m, MODEL_FFN_DOWN, layer, gate, row, true);
        }
    }
    normed(m, MODEL_OUTPUT_NORM, 0, x + (size_t)(n - 1) * c->d_model, h);
    product(m, c->tied_output ? MODEL_EMBEDDING : MODEL_OUTPUT, 0, h, logits, false);
    void *all[] = { x, h, q, k, v, a, gate, up, p };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static double distance(const float *got, const double *want, uint32_t n)
{
    double diff = 0, norm = 0;
    for (uint32_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(diff / norm);
}

/* ---- tests ---- */

static void one_worker_computes_the_model(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    const struct layout l = { .chunk = 100 };
    for (int kind = 0; kind < 2 * STEP_PRECISIONS; kind++) {
        const bool float32 = kind % STEP_PRECISIONS;
        struct cluster *c = cluster_new(kind < STEP_PRECISIONS ? TINY : DRESSED, 1, 2, float32);
        double *want = malloc(c->n_vocab * sizeof *want);
        prompt_make(tokens, c->n_vocab);
        step(c, &l, 1, tokens, 0, 70, true);
        step(c, &l, 1, tokens, 70, 90, false);
        forward(c->model, tokens, 90, want);
        const double d = distance(c->logits + 89 * c->n_vocab, want, c->n_vocab);
        print_message("%s: |logits - model| / |model| = %.2e\n", float32 ? "float32" : "bf16", d);
        assert_true(d < (float32 ? 1e-5 : 2e-2));
        free(want);
        cluster_free(c);
    }
}

static void compare(const struct cluster *c, const float *want, uint64_t seed)
{
    for (uint32_t pos = 0; pos < POSITIONS; pos++)
        if (memcmp(c->logits + (size_t)pos * c->n_vocab, want + (size_t)pos * c->n_vocab, c->n_vocab * sizeof(float)))
            fail_msg("seed %llu: logits of position %u differ (replay: --seed %llu)", (unsigned long long)seed, pos,
                     (unsigned long long)seed);
}

static void bits_do_not_depend_on_layout(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    struct cluster *ones[] = { cluster_new(TINY, 1, 1, false), cluster_new(DRESSED, 1, 1, false) };
    const struct layout alone = { .chunk = 1 };
    prompt_make(tokens, ones[0]->n_vocab);
    run_layout(ones[0], &alone, tokens);
    run_layout(ones[1], &alone, tokens);
    for (uint64_t seed = first_seed; seed < first_seed + STEP_LAYOUTS; seed++) {
        struct rng rng = { seed, 0 };
        const uint32_t n = 1 + rng_below(&rng, WORKERS);
        const uint32_t dressed = seed % 4 == 0;                               /* a quarter */
        const char *model = dressed ? DRESSED : seed % 4 == 1 ? CODED : TINY; /* a quarter; the bits are TINY's */
        struct cluster *c = cluster_new(model, n, 1 + rng_below(&rng, 2), false);
        static const uint32_t chunks[] = { 5, 64, 100, LEAF, 500, POSITIONS };
        struct layout l = { .home = (uint16_t)rng_below(&rng, n), .chunk = chunks[rng_below(&rng, 6)] };
        for (uint32_t i = 0; i <= POSITIONS / LEAF; i++)
            l.reader[i] = (uint16_t)rng_below(&rng, n);
        run_layout(c, &l, tokens);
        compare(c, ones[dressed]->logits, seed);
        cluster_free(c);
    }
    cluster_free(ones[0]);
    cluster_free(ones[1]);
}

/* A finished leaf goes to another worker, is read there, and the old copy is dropped. */
static void leaf_moves(void)
{
    int32_t tokens[POSITIONS];
    struct cluster *one = cluster_new(TINY, 1, 1, false), *c = cluster_new(TINY, 2, 1, false);
    const struct layout alone = { .chunk = POSITIONS };
    struct layout l = { .chunk = LEAF };
    prompt_make(tokens, c->n_vocab);
    run_layout(one, &alone, tokens);
    step(c, &l, 1, tokens, 0, LEAF, true);
    for (uint32_t i = 0; i < LEAF / 64; i++) {
        const struct control_message copy = { .kind = CONTROL_COPY,
                                              .as.copy = { .handle = 1001 + i, .destination = 1, .position = i } };
        post(c->worker[0], &copy);
    }
    await(c, &c->copied, LEAF / 64);
    l.reader[0] = 1;
    step(c, &l, 1, tokens, LEAF, LEAF + 144, false);
    step(c, &l, 1, tokens, LEAF + 144, PROMPT, false);
    assert_memory_equal(c->logits, one->logits, (size_t)PROMPT * c->n_vocab * sizeof(float));
    cluster_free(c);
    cluster_free(one);
}

static void a_leaf_moves(void **state)
{
    (void)state;
    leaf_moves();
}

#ifndef STEP_NO_SPILLS
static uint32_t spilled_at(const struct cluster *c, uint32_t worker)
{
    struct kv_pool_stats stats;
    kv_pool_stats(c->worker[worker]->pool, &stats);
    return stats.n_spilled;
}

/* bf16-lossless, where half of the parts do not fit: the bits of bf16, in any layout and where leaves move; blocks that are dropped leave nothing. */
static void what_does_not_fit_is_bf16(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    const struct layout alone = { .chunk = 100 };
    wild = true;
    struct cluster *one = cluster_new(TINY, 1, 1, false);
    prompt_make(tokens, one->n_vocab);
    run_layout(one, &alone, tokens);
    assert_int_equal(spilled_at(one, 0), 0);
    codec = KV_BF16_LOSSLESS;
    for (uint64_t seed = first_seed; seed < first_seed + 6; seed++) {
        struct rng rng = { seed, 0 };
        const uint32_t n = (uint32_t)(seed % 3) + 1;
        struct cluster *c = cluster_new(TINY, n, 1 + rng_below(&rng, 2), false);
        struct layout l = { .home = (uint16_t)rng_below(&rng, n), .chunk = seed % 2 ? 70 : POSITIONS };
        for (uint32_t i = 0; i <= POSITIONS / LEAF; i++)
            l.reader[i] = (uint16_t)rng_below(&rng, n);
        run_layout(c, &l, tokens);
        compare(c, one->logits, seed);
        uint32_t spilled = 0;
        for (uint32_t i = 0; i < n; i++)
            spilled += spilled_at(c, i);
        assert_int_equal(spilled, POSITIONS / 64); /* every complete block */
        cluster_free(c);
    }
    cluster_free(one);
    leaf_moves();
    codec = KV_BF16;
    wild = false;
}
#endif

#ifndef STEP_ABSENT /* why these tests can not run here, or NULL */
#define STEP_ABSENT() NULL
#endif

int main(int argc, char **argv)
{
    const char *absent = STEP_ABSENT();
    if (absent) {
        print_message("skipped: %s\n", absent);
        return 77;
    }
    if (argc == 3 && !strcmp(argv[1], "--seed"))
        first_seed = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_worker_computes_the_model),
        cmocka_unit_test(bits_do_not_depend_on_layout),
        cmocka_unit_test(a_leaf_moves),
#ifndef STEP_NO_SPILLS
        cmocka_unit_test(what_does_not_fit_is_bf16),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
