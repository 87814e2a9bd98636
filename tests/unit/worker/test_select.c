/*
 * Sparse attention over workers of one process, driven by hand-made plans: whatever the owners of leaves, the chunks, the homes and the threads, and
 * whatever is run twice, every row's logits are those of one row at a time, or a few, on one worker, bit for bit.
 *
 * ctest-labels: tsan
 * Replay: worker_test_select --seed N
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
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/rng.h"
#include "model/calibration.h"
#include "worker/sketches.h"
#include "worker/worker.h"

/* test_cuda_select.c runs the same tests on a GPU, with other sizes */
#ifndef SELECT_DEVICE
#define SELECT_DEVICE      "cpu"
#define SELECT_BUDGET      "sketch-walk,layers=1"
#define SELECT_BUDGET_ROWS 4
#define TINY               "random:layers=3,d=32,heads=4,kv=2,head_dim=32,ff=32,vocab=256,positions=2048,codec=bf16:3:5"
enum { LEAF = 256, WORKERS = 4, POSITIONS = 720, PROMPT = 700 };
#endif

#include "workers_fixture.h"

static uint64_t first_seed = 1;

/* What decides bits. */
struct options {
    const char *selector;
    uint32_t density;
    bool prompt; /* prompt rows are sparse */
    enum kv_codec codec;
};

static const struct options *options_of(const struct cluster *c)
{
    return c->options;
}

static struct cluster *cluster_new(const struct options *options, uint32_t n, uint32_t n_threads)
{
    const struct worker_config wanted = {
        .device = SELECT_DEVICE,
        .kv_codec = options->codec,
        .selector = options->selector,
        .n_threads = n_threads,
        .n_blocks = 2 * (POSITIONS / 64 + 1),
        .open_blocks = 32,
    };
    struct cluster *c = workers_new(TINY, n, &wanted);
    c->options = options;
    return c;
}

static kv_handle handle_of(const struct layout *l, uint64_t seq, uint32_t block)
{
    return block + 1 + (block < l->shared ? 1000 : seq * 1000);
}

static uint64_t cast_of(const struct cluster *c, const struct layout *l, uint32_t committed)
{
    uint64_t cast = 0;
    for (uint32_t pos = options_of(c)->prompt || committed >= PROMPT ? committed : PROMPT; pos < POSITIONS; pos++)
        cast |= (uint64_t)1 << home_of(l, pos);
    return cast;
}

/* One step: positions begin .. end - 1 of a sequence, as runs that cross no leaf. */
static void step(struct cluster *c, const struct layout *l, uint64_t seq, const int32_t *tokens, uint32_t begin,
                 uint32_t end, bool fresh)
{
    enum { RUNS = POSITIONS / LEAF + 3 };
    struct plan_run runs[RUNS];
    kv_handle table[POSITIONS / 64 + 1];
    uint16_t readers[POSITIONS / LEAF + 1], members[WORKERS];
    uint32_t n_runs = 0;
    for (uint32_t pos = begin; pos < end;) {
        const uint32_t leaf = (pos / LEAF + 1) * LEAF, border = pos < PROMPT && leaf > PROMPT ? PROMPT : leaf,
                       stop = border < end ? border : end;
        runs[n_runs++] = (struct plan_run){
            .pos = pos,
            .n_rows = stop - pos,
            .tokens = tokens + pos,
            .home = home_of(l, pos),
            .cls = pos < PROMPT ? ROW_PROMPT : ROW_GENERATED,
            .want = WANT_LOGITS,
        };
        pos = stop;
    }
    const uint32_t n_blocks = (end + 63) / 64, n_leaves = (end + LEAF - 1) / LEAF;
    for (uint32_t i = 0; i < n_blocks; i++)
        table[i] = handle_of(l, seq, i);
    for (uint32_t i = 0; i < n_leaves; i++)
        readers[i] = (i + 1) * LEAF <= PROMPT ? l->reader[i] : l->home;
    for (uint32_t i = 0; i < c->n; i++)
        members[i] = (uint16_t)i;
    const struct plan_seq s = { .id = seq,
                                .fresh = fresh,
                                .committed = begin,
                                .density = options_of(c)->density,
                                .cast = cast_of(c, l, begin),
                                .n_table = n_blocks,
                                .table = table,
                                .n_readers = n_leaves,
                                .readers = readers };
    struct plan plan = {
        .epoch = c->epoch,
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

static void run_layout(struct cluster *c, const struct layout *l, const int32_t *tokens, struct rng *rng)
{
    for (uint32_t pos = 0; pos < POSITIONS;) {
        const uint32_t n = pos < PROMPT ? l->chunk : 1, stop = pos < PROMPT ? PROMPT : POSITIONS;
        const uint32_t end = pos + n < stop ? pos + n : stop;
        step(c, l, 1, tokens, pos, end, pos == 0);
        if (rng && rng_below(rng, 8) == 0) { /* abandoned at its end: planned again, by an epoch that knows nothing */
            c->epoch++;
            step(c, l, 1, tokens, pos, end, true);
        }
        pos = end;
    }
}

/* ---- tests ---- */

static void compare(const struct cluster *c, const float *want, uint32_t begin, uint64_t seed)
{
    for (uint32_t pos = begin; pos < POSITIONS; pos++)
        if (memcmp(c->logits + (size_t)pos * c->n_vocab, want + (size_t)pos * c->n_vocab, c->n_vocab * sizeof(float)))
            fail_msg("seed %llu: logits of position %u differ (replay: --seed %llu)", (unsigned long long)seed, pos,
                     (unsigned long long)seed);
}

#ifndef SELECT_KINDS
static const struct options kinds[] = {
    { "quest,layers=1", 400000, false, KV_BF16 },
    { "quest,layers=0,prompt=sparse", 300000, true, KV_INT8 },
    { "quest,layers=1,scope=local,prompt=sparse", 500000, true, KV_BF16 },
    { "sketch-walk,layers=0", 400000, true, KV_BF16 },
    { "sketch-walk,layers=1,scope=local", 350000, true, KV_INT4_ROT },
    { "sketch-walk,layers=1,prompt=dense", 300000, false, KV_BF16 },
    { "socket,layers=1", 650000, false, KV_FP8 },
    { "double-sparsity,layers=0,scope=local,prompt=sparse", 400000, true, KV_INT8 },
    { "streaming@128", 1, true, KV_INT4_ROT },
    { "socket,layers=0,prompt=sparse", 700000, true, KV_BF16 },
};
#else
static const struct options kinds[] = SELECT_KINDS;
#endif
enum { KINDS = sizeof kinds / sizeof kinds[0] };
#ifdef __SANITIZE_THREAD__
enum { EACH = 3, FINEST = 30 }; /* one kind of each method; nothing is slower */
#else
enum { EACH = 1, FINEST = 1 };
#endif

static struct layout draw(struct rng *rng, uint32_t n)
{
    static const uint32_t chunks[] = { 30, 64, 100, LEAF, 500, POSITIONS };
    struct layout l = { .home = (uint16_t)rng_below(rng, n), .chunk = chunks[rng_below(rng, 6)] };
    for (uint32_t i = 0; i <= POSITIONS / LEAF; i++)
        l.reader[i] = (uint16_t)rng_below(rng, n);
    return l;
}

static void bits_do_not_depend_on_layout(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    prompt_make(tokens, 256);
    for (uint32_t k = 0; k < KINDS; k += EACH) {
        struct cluster *one = cluster_new(&kinds[k], 1, 1);
        const struct layout alone = { .chunk = k % 3 || k > 3 ? 9 : FINEST };
        run_layout(one, &alone, tokens, NULL);
        assert_true(strcmp(kinds[k].selector, "dense") ? one->read < one->dense : one->read == one->dense);
        for (uint64_t seed = first_seed; seed < first_seed + 1 + k % 2; seed++) {
            struct rng rng = { seed * 100 + k, 0 };
            const uint32_t n = 1 + rng_below(&rng, WORKERS);
            struct cluster *c = cluster_new(&kinds[k], n, 1 + rng_below(&rng, 2));
            const struct layout l = draw(&rng, n);
            run_layout(c, &l, tokens, &rng);
            compare(c, one->logits, 0, seed);
            cluster_free(c);
        }
        cluster_free(one);
    }
}

/* All blocks: the bits are those of no selector; and sketches are made all the same. */
static void density_one_is_dense(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    const struct options dense = { "dense", 0, false, KV_BF16 };
    const struct layout l = { .chunk = 300 };
    struct cluster *one = cluster_new(&dense, 1, 2);
    struct worker_stats stats;
    prompt_make(tokens, 256);
    run_layout(one, &l, tokens, NULL);
    assert_int_equal(one->read, one->dense);
    worker_stats(one->worker[0], &stats);
    assert_int_equal(stats.sketch_bytes, 0);
    for (uint32_t k = 0; k < KINDS; k += EACH) {
        struct options all = kinds[k];
        if (!strcmp(all.selector, "dense"))
            continue;
        all.density = SELECTOR_DENSITY_ONE - (k & 1);
        all.codec = KV_BF16;
        struct cluster *c = cluster_new(&all, 1, 1);
        run_layout(c, &l, tokens, NULL);
        compare(c, one->logits, 0, k);
        worker_stats(c->worker[0], &stats);
        assert_int_equal(stats.sketch_bytes > 0, strncmp(all.selector, "streaming", 9) != 0);
        cluster_free(c);
    }
    cluster_free(one);
}

/* What is read: rows of block c take the budget's blocks in sparse layers, and no more. */
static void the_budget_is_read(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    const struct options sparse = { SELECT_BUDGET, 250000, true, KV_BF16 };
    struct cluster *c = cluster_new(&sparse, 1, 1);
    const struct layout l = { .chunk = SELECT_BUDGET_ROWS };
    uint64_t read = 0, dense = 0;
    prompt_make(tokens, 256);
    run_layout(c, &l, tokens, NULL);
    for (uint32_t pos = 0; pos < POSITIONS; pos += pos < PROMPT ? SELECT_BUDGET_ROWS : 1) {
        read += pos / 64 + 1 + 2 * selector_budget(pos / 64, 250000);
        dense += 3 * (pos / 64 + 1);
    }
    assert_int_equal(c->dense % dense, 0);
    assert_int_equal(c->read, c->dense / dense * read);
    cluster_free(c);
}

/* A sequence that begins with another's blocks, at homes that did not compute them, fetches their sketches. And blocks that move take theirs along. */
static void sketches_follow(void **state)
{
    (void)state;
    int32_t tokens[POSITIONS];
    prompt_make(tokens, 256);
    for (uint32_t k = 0; k < KINDS; k += EACH) {
        struct cluster *one = cluster_new(&kinds[k], 1, 1), *c = cluster_new(&kinds[k], 3, 1);
        const struct layout alone = { .chunk = 500 };
        struct layout l = { .chunk = LEAF, .reader = { 0, 1 }, .home = 1 };
        run_layout(one, &alone, tokens, NULL);
        for (uint32_t pos = 0; pos < 2 * LEAF; pos += LEAF)
            step(c, &l, 1, tokens, pos, pos + LEAF, pos == 0);
        for (uint32_t i = LEAF / 64; i < 2 * LEAF / 64; i++) {
            const struct control_message copy = {
                .kind = CONTROL_COPY, .as.copy = { .handle = handle_of(&l, 1, i), .destination = 0, .position = i }
            };
            post(c->worker[1], &copy);
        }
        await(c, &c->copied, LEAF / 64);
        /* Another sequence of the same blocks, all of which worker 0 now has; worker 2 is home of what follows. */
        l = (struct layout){ .chunk = 77, .reader = { 0, k % 2 }, .home = 2, .shared = 2 * LEAF / 64 };
        for (uint32_t pos = 2 * LEAF, end; pos < POSITIONS; pos = end) {
            end = pos + 16 < POSITIONS ? pos + 16 : POSITIONS;
            step(c, &l, 2, tokens, pos, end, pos == 2 * LEAF);
        }
        compare(c, one->logits, 2 * LEAF, k);
        cluster_free(c);
        cluster_free(one);
    }
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *selector, *reason;
        uint32_t positions;
    } cases[] = {
        { "quest,layers=3", "selector-dense-layers", 1024 },
        { "questing", "there are dense, quest", 1024 },
        { "sketch-walk", "262144", 262145 },
        { "streaming@1000", "a multiple of 64", 1024 },
        { "double-sparsity,layers=1,channels=0123456789abcdef0123456789abcdef", "none is here", 1024 },
    };
    struct model *model;
    struct error err = { 0 };
    assert_int_equal(model_open(TINY, &model, &err), ST_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err = (struct error){ 0 };
        struct exchange_hub *hub = exchange_hub_new();
        struct worker *w;
        const struct worker_config config = { .device = "cpu",
                                              .selector = cases[i].selector,
                                              .n_threads = 1,
                                              .step_rows_max = 64,
                                              .positions_max = cases[i].positions,
                                              .n_blocks = 4,
                                              .exchange_ops = &exchange_local,
                                              .exchange = { .hub = hub } };
        assert_int_not_equal(worker_new(&config, model, &w, &err), ST_OK);
        if (!strstr(err.text, cases[i].reason))
            fail_msg("%s", err.text);
        exchange_hub_free(hub);
    }
    model_close(model);
}

/* ---- channels of a calibration ---- */

/* One of a file with this array; calibration_close it. */
static struct calibration *calibration_with(const char *name, enum calibration_type type, uint32_t layers,
                                            uint32_t heads, uint32_t n, const uint8_t *data)
{
    char path[64];
    struct calibration_origin origin = { .codec = "double-sparsity", .method = "drawn" };
    struct calibration_array array = { .type = type, .n_dims = 3, .dims = { layers, heads, n }, .data = data };
    struct calibration *c;
    struct error err = { 0 };
    snprintf(array.name, sizeof array.name, "%s", name);
    snprintf(path, sizeof path, "/tmp/longspan-channels-%d", (int)getpid());
    if (calibration_write(path, NULL, &origin, &array, 1, NULL, NULL, &err) || calibration_open(path, &c, &err))
        fail_msg("%s", err.text);
    remove(path);
    return c;
}

static void channels_are_checked(void **state)
{
    (void)state;
    enum { LAYERS = 3, HEADS = 2, DIM = 32, N = 4 };
    static const struct {
        const char *name, *reason;
        uint32_t layers, heads, n, at; /* at: which channel is changed, of value `to` */
        uint8_t to;
        enum status st;
    } bad[] = {
        { "labels", "channels", LAYERS, HEADS, N, 0, 1, ST_NOT_FOUND },
        { "channels", "channels", LAYERS - 1, HEADS, N, 0, 1, ST_INVALID },
        { "channels", "channels", LAYERS, HEADS + 1, N, 0, 1, ST_INVALID },
        { "channels", "channels", LAYERS, HEADS, N - 1, 0, 1, ST_INVALID },
        { "channels", "layer 0, KV head 0", LAYERS, HEADS, N, 3, DIM, ST_INVALID },
        { "channels", "layer 1, KV head 1", LAYERS, HEADS, N, 13, 1, ST_INVALID },
        { "channels", "layer 2, KV head 1", LAYERS, HEADS, N, 23, 17, ST_INVALID },
    };
    const struct selector_shape shape = { 4, HEADS, DIM, KV_BF16 };
    struct selector_spec spec;
    struct sketches all;
    struct error err = { 0 };
    uint8_t data[LAYERS * (HEADS + 1) * N];
    for (uint32_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i % N * 8 + i / N);
    assert_int_equal(selector_parse("double-sparsity,layers=1", &spec, &err), ST_OK);
    assert_int_equal(sketches_init(&all, selector_find(spec.name, 0), &spec, &shape, LAYERS), ST_OK);
    assert_null(sketches_channels(&all, 1));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const uint8_t before = data[bad[i].at];
        data[bad[i].at] = bad[i].to;
        struct calibration *c =
            calibration_with(bad[i].name, CALIBRATION_U8, bad[i].layers, bad[i].heads, bad[i].n, data);
        data[bad[i].at] = before;
        err = (struct error){ 0 };
        assert_int_equal(sketches_calibrate(&all, c, LAYERS, &err), bad[i].st);
        if (!strstr(err.text, bad[i].reason))
            fail_msg("%zu: %s", i, err.text);
        assert_null(sketches_channels(&all, 0));
        calibration_close(c);
    }
    struct calibration *c = calibration_with("channels", CALIBRATION_U8, LAYERS, HEADS, N, data);
    assert_int_equal(sketches_calibrate(&all, c, LAYERS, &err), ST_OK);
    calibration_close(c);
    assert_memory_equal(sketches_channels(&all, 2), data + 2 * HEADS * N, HEADS * N);
    sketches_deinit(&all);
}

/* ---- sketches on the wire ---- */

static void wire_is_checked(void **state)
{
    (void)state;
    const struct selector_shape shape = { 4, 2, 32, KV_BF16 };
    struct selector_spec spec;
    struct error err = { 0 };
    struct sketches a, b;
    assert_int_equal(selector_parse("quest,layers=1", &spec, &err), ST_OK);
    assert_int_equal(sketches_init(&a, selector_find("quest", 0), &spec, &shape, 3), ST_OK);
    assert_int_equal(sketches_init(&b, selector_find("quest", 0), &spec, &shape, 3), ST_OK);
    const size_t n = sketch_wire_bytes(&a);
    uint8_t *wire = malloc(n), *bad = malloc(n);
    struct sketch *s = sketch_open(&a, 77);
    assert_int_equal(sketch_export(&a, 77, wire), ST_NOT_FOUND);
    assert_true(sketch_take(&a, s));
    for (size_t i = 0; i < 2 * a.layer_bytes; i++)
        s->data[i] = (uint8_t)(i % 100);
    s->have[0] = 1;
    assert_int_equal(sketch_export(&a, 77, wire), ST_NOT_FOUND); /* a layer is missing */
    s->have[1] = 1;
    assert_int_equal(sketch_export(&a, 77, wire), ST_OK);
    assert_int_equal(sketch_import(&b, wire, n - 1, 77, &err), ST_CORRUPT);
    assert_int_equal(sketch_import(&b, wire, n, 78, &err), ST_CORRUPT);
    for (size_t i = 0; i < n; i++) {
        memcpy(bad, wire, n);
        bad[i] ^= (uint8_t)(1u << i % 8);
        assert_int_equal(sketch_import(&b, bad, n, 77, &err), ST_CORRUPT);
    }
    assert_null(sketch_find(&b, 77));
    assert_int_equal(sketch_import(&b, wire, n, 77, &err), ST_OK);
    assert_memory_equal(sketch_find(&b, 77)->data, s->data, 2 * a.layer_bytes);
    const uint16_t infinite = 0x7F80;
    memcpy(s->data + 10, &infinite, 2);
    assert_int_equal(sketch_export(&a, 77, wire), ST_OK);
    assert_int_equal(sketch_import(&b, wire, n, 77, &err), ST_CORRUPT);
    /* It goes with its block, and with the last sequence that names it. */
    struct sketch *there = sketch_find(&b, 77);
    sketch_hold(there);
    sketch_ref(there);
    sketch_drop(&b, 77);
    assert_non_null(sketch_find(&b, 77));
    sketch_unref(&b, there);
    assert_null(sketch_find(&b, 77));
    assert_int_equal(b.bytes, 0);
    free(wire);
    free(bad);
    sketches_deinit(&a);
    sketches_deinit(&b);
}

#ifndef SELECT_ABSENT /* why these tests can not run here, or NULL */
#define SELECT_ABSENT() NULL
#endif

int main(int argc, char **argv)
{
    const char *absent = SELECT_ABSENT();
    if (absent) {
        print_message("skipped: %s\n", absent);
        return 77;
    }
    if (argc == 3 && !strcmp(argv[1], "--seed"))
        first_seed = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_depend_on_layout),
        cmocka_unit_test(density_one_is_dense),
        cmocka_unit_test(the_budget_is_read),
        cmocka_unit_test(sketches_follow),
        cmocka_unit_test(refused),
        cmocka_unit_test(channels_are_checked),
        cmocka_unit_test(wire_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
