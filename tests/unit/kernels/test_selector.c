/* Selectors: against float64 brute force, golden values of an independent numpy script, the published variants' values, and every variant against _c. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "tests/unit/kernels/selector_fixture.h"

#include "tests/golden/selectors/selectors.inc"

enum { HEADS = 4, KV_HEADS = 2, BLOCKS = 40, LAYERS = 3, DIM_MAX = 256 };

struct block {
    uint16_t k[KV_HEADS][KV_BLOCK * DIM_MAX];
    float q_means[KV_BLOCK * DIM_MAX];
};

static struct selector_shape shape_of(uint32_t dim)
{
    return (struct selector_shape){ .n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = dim, .open = KV_BF16 };
}

static void block_draw(struct block *b, uint32_t layer, uint32_t number, uint32_t dim, bool queries)
{
    const struct selector_shape shape = shape_of(dim);
    for (uint32_t p = 0; p < KV_BLOCK; p++) {
        for (uint32_t j = 0; j < KV_HEADS; j++)
            for (uint32_t d = 0; d < dim; d++)
                b->k[j][((size_t)(d / 2) * KV_BLOCK + p) * 2 + d % 2] =
                    f32_to_bf16(drawn(1, layer, number, j, p, d, dim));
        float q[HEADS * DIM_MAX];
        for (uint32_t i = 0; queries && i < HEADS * dim; i++)
            q[i] = drawn(2, layer, number, i / dim, p, i % dim, dim);
        if (queries)
            selector_q_mean(&shape, q, b->q_means + (size_t)p * dim);
    }
}

/* Sketches of all blocks of a layer; free them. */
static void sketches_make(const struct selector_impl *impl, uint32_t layer, uint32_t dim, void **sketches)
{
    const struct selector_shape shape = shape_of(dim);
    struct block *b = malloc(sizeof *b);
    for (uint32_t c = 0; c < BLOCKS; c++) {
        block_draw(b, layer, c, dim, !impl->by_row);
        const void *parts[KV_HEADS] = { b->k[0], b->k[1] };
        sketches[c] = malloc(impl->sketch_bytes(&shape));
        impl->sketch(&shape, &(struct selector_block){ .k_parts = parts, .q_means = b->q_means }, sketches[c]);
    }
    free(b);
}

static void sketches_free(void **sketches)
{
    for (uint32_t c = 0; c < BLOCKS; c++)
        free(sketches[c]);
}

/* ---- budget and choice ---- */

static void budgets(void **state)
{
    (void)state;
    for (uint32_t own = 0; own < 4; own++)
        assert_int_equal(selector_budget(own, 1), own + 1);
    assert_int_equal(selector_budget(99, 1), 4);
    assert_int_equal(selector_budget(99, 100000), 10);
    assert_int_equal(selector_budget(100, 100000), 11); /* 10.1, up */
    assert_int_equal(selector_budget(9, 300000), 4);
    assert_int_equal(selector_budget(99, SELECTOR_DENSITY_ONE), 100);
    assert_int_equal(selector_budget(99, SELECTOR_DENSITY_ONE - 1), 100);
    assert_true(selector_reads_all(99, SELECTOR_DENSITY_ONE));
    assert_true(selector_reads_all(3, 1));
    assert_false(selector_reads_all(4, 1));
}

/* By sorting: score descending, index ascending. */
static void brute_choose(const float *scores, uint32_t own, uint32_t budget, bool *chosen)
{
    memset(chosen, 0, own + 1);
    for (uint32_t b = 0; b <= own; b++)
        chosen[b] = b == 0 || b + 2 >= own;
    for (uint32_t n = 4; n < budget; n++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t b = 0; b < own; b++)
            if (!chosen[b] && !isnan(scores[b]) && (best == UINT32_MAX || scores[b] > scores[best]))
                best = b;
        for (uint32_t b = 0; best == UINT32_MAX && b < own; b++)
            best = chosen[b] ? best : b;
        chosen[best] = true;
    }
}

static void choices(void **state)
{
    (void)state;
    struct rng r = { 11, 0 };
    static float scores[600];
    static uint32_t scratch[1200];
    uint64_t list[10];
    bool want[600];
    for (int i = 0; i < 400; i++) {
        const struct selector_choice c = { .own = 4 + rng_below(&r, 590), .density = 1 + rng_below(&r, 1000000) };
        const uint32_t kinds = 1 + rng_below(&r, 40);
        for (uint32_t b = 0; b < c.own; b++) { /* many ties, both zeros, infinities, NaN */
            const uint32_t kind = rng_below(&r, kinds);
            scores[b] = kind == 0   ? -0.0f
                        : kind == 1 ? 0.0f
                        : kind == 2 ? INFINITY
                        : kind == 3 ? -NAN
                                    : (float)kind / 7 - 3;
        }
        brute_choose(scores, c.own, selector_budget(c.own, c.density), want);
        selector_choose(&c, scores, scratch, list);
        for (uint32_t b = 0; b <= c.own; b++)
            assert_int_equal(selector_has(list, b), want[b]);
        for (uint32_t b = c.own + 1; b < selector_words(c.own) * 64; b++)
            assert_false(selector_has(list, b));
    }
}

/* Every slot has its share, the best of its own; the whole budget is spent. */
static void choices_by_slot(void **state)
{
    (void)state;
    struct rng r = { 12, 0 };
    static float scores[2000];
    static uint32_t scratch[4000];
    uint64_t list[32];
    for (int i = 0; i < 100; i++) {
        const struct selector_choice c = { .own = 4 + rng_below(&r, 1900),
                                           .density = 1 + rng_below(&r, 999999),
                                           .leaf_blocks = 1 + rng_below(&r, 6),
                                           .by_slot = true };
        for (uint32_t b = 0; b < c.own; b++)
            scores[b] = (float)rng_below(&r, 1000);
        selector_choose(&c, scores, scratch, list);
        uint32_t n = 0, n_slot[64] = { 0 }, of_slot[64] = { 0 };
        float lowest[64], highest[64];
        for (int s = 0; s < 64; s++) {
            lowest[s] = INFINITY;
            highest[s] = -INFINITY;
        }
        for (uint32_t b = 0; b <= c.own; b++) {
            const uint32_t s = b / c.leaf_blocks % 64;
            n += selector_has(list, b);
            if (b == 0 || b + 2 >= c.own) {
                assert_true(selector_has(list, b));
                continue;
            }
            of_slot[s]++;
            n_slot[s] += selector_has(list, b);
            if (selector_has(list, b) && scores[b] < lowest[s])
                lowest[s] = scores[b];
            if (!selector_has(list, b) && scores[b] > highest[s])
                highest[s] = scores[b];
        }
        assert_int_equal(n, selector_budget(c.own, c.density));
        for (int s = 0; s < 64; s++) {
            if (selector_reads_all(c.own, c.density))
                continue;
            assert_true(lowest[s] >= highest[s]);
            const double fair = (double)(n - 4) * of_slot[s] / (c.own - 3);
            assert_true(fabs(n_slot[s] - fair) < 1.0001);
        }
    }
}

/* ---- golden values ---- */

static void check_list(const uint64_t *list, const struct golden_list *want)
{
    if (list[0] != want->blocks)
        print_error("layer %u, block %u, head %u\n", want->layer, want->own, want->head);
    assert_int_equal(list[0], want->blocks);
}

static void walk_golden_dim(uint32_t dim, const float *sketch, size_t n_sketch, const struct golden_list *want,
                            size_t n_want)
{
    const struct selector_impl *impl = selector_find("sketch-walk", 0);
    const struct selector_shape shape = shape_of(dim);
    static void *sketches[LAYERS][BLOCKS];
    static uint16_t weights[BLOCKS][BLOCKS];
    static float walk[LAYERS][BLOCKS][BLOCKS], logits[BLOCKS];
    const uint16_t *rows[BLOCKS];
    uint32_t scratch[2 * BLOCKS];
    for (uint32_t l = 0; l < LAYERS; l++) {
        sketches_make(impl, l, dim, sketches[l]);
        for (uint32_t c = 0; c < BLOCKS; c++) {
            impl->weights(&shape, (const void *const *)sketches[l], c, logits, weights[c]);
            rows[c] = weights[c];
        }
        for (uint32_t own = 4; own < BLOCKS; own++) {
            if (l == 0)
                for (uint32_t j = 0; j < own; j++)
                    walk[0][own][j] = bf16_to_f32(weights[own - 1][j]);
            else
                selector_walk(rows, own, walk[l - 1][own], walk[l][own]);
        }
    }
    assert_int_equal(impl->sketch_bytes(&shape), n_sketch * sizeof(float));
    for (size_t i = 0; i < n_sketch; i++)
        assert_true(fabsf(((float *)sketches[1][7])[i] - sketch[i]) < 2e-5f);
    for (size_t i = 0; i < n_want; i++) {
        const struct selector_choice c = { .own = want[i].own, .density = 300000 };
        uint64_t list;
        selector_choose(&c, walk[want[i].layer][want[i].own], scratch, &list);
        check_list(&list, &want[i]);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        sketches_free(sketches[l]);
}

#define COUNT(x) (sizeof(x) / sizeof(x)[0])

static void walk_golden(void **state)
{
    (void)state;
    walk_golden_dim(16, golden_walk_sketch_16, COUNT(golden_walk_sketch_16), golden_walk_16, COUNT(golden_walk_16));
    walk_golden_dim(80, golden_walk_sketch_80, COUNT(golden_walk_sketch_80), golden_walk_80, COUNT(golden_walk_80));
}

static void quest_golden_dim(uint32_t dim, const float *scores, const struct golden_list *want, size_t n_want)
{
    const struct selector_impl *impl = selector_find("quest", 0);
    const struct selector_shape shape = shape_of(dim);
    void *sketches[BLOCKS];
    float q[2][DIM_MAX], got[BLOCKS];
    const float *group[2] = { q[0], q[1] };
    uint32_t scratch[2 * BLOCKS];
    sketches_make(impl, 2, dim, sketches);
    for (size_t i = 0; i < n_want; i++) {
        for (uint32_t g = 0; g < 2; g++)
            for (uint32_t d = 0; d < dim; d++)
                q[g][d] = drawn(2, 2, want[i].own, want[i].head * 2 + g, 5, d, dim);
        impl->score(&shape, want[i].head, want[i].head + 1, group, (const void *const *)sketches, want[i].own, got);
        const struct selector_choice c = { .own = want[i].own, .density = 300000 };
        uint64_t list;
        selector_choose(&c, got, scratch, &list);
        check_list(&list, &want[i]);
    }
    for (uint32_t g = 0; g < 2; g++)
        for (uint32_t d = 0; d < dim; d++)
            q[g][d] = drawn(2, 2, BLOCKS - 1, 2 + g, 5, d, dim);
    impl->score(&shape, 1, 2, group, (const void *const *)sketches, BLOCKS - 1, got);
    for (uint32_t b = 0; b < BLOCKS - 1; b++)
        assert_true(fabsf(got[b] - scores[b]) <= 1e-5f * fabsf(scores[b]) + 1e-4f);
    sketches_free(sketches);
}

static void quest_golden(void **state)
{
    (void)state;
    quest_golden_dim(16, golden_quest_scores_16, golden_quest_16, COUNT(golden_quest_16));
    quest_golden_dim(80, golden_quest_scores_80, golden_quest_80, COUNT(golden_quest_80));
}

/* ---- properties ---- */

/* A score is no less than any q.k of its block, and equal where all keys are. */
static void quest_bounds(void **state)
{
    (void)state;
    const struct selector_impl *impl = selector_find("quest", 0);
    struct rng r = { 3, 0 };
    for (int round = 0; round < 30; round++) {
        const struct selector_shape shape = { 2, 1, 2 * (1 + rng_below(&r, 128)), KV_F32 };
        const uint32_t dim = shape.head_dim;
        static float k[DIM_MAX * KV_BLOCK], q[2][DIM_MAX], sketch[2 * DIM_MAX];
        const bool equal = round % 3 == 0;
        for (uint32_t d = 0; d < dim; d++) {
            for (uint32_t p = 0; p < KV_BLOCK; p++)
                k[d * KV_BLOCK + p] = equal && p ? k[d * KV_BLOCK] : (float)rng_below(&r, 2001) / 1000 - 1;
            for (int g = 0; g < 2; g++)
                q[g][d] = (float)rng_below(&r, 2001) / 1000 - 1;
        }
        const void *parts[] = { k }, *sketches[] = { sketch };
        const float *group[] = { q[0], q[1] };
        float score;
        impl->sketch(&shape, &(struct selector_block){ .k_parts = parts }, sketch);
        impl->score(&shape, 0, 1, group, sketches, 1, &score);
        double most = -INFINITY;
        for (int g = 0; g < 2; g++) {
            for (uint32_t p = 0; p < KV_BLOCK; p++) {
                double dot = 0;
                for (uint32_t d = 0; d < dim; d++)
                    dot += (double)q[g][d] * k[d * KV_BLOCK + p];
                most = dot > most ? dot : most;
            }
        }
        assert_true(score >= most - 1e-4);
        if (equal)
            assert_true(fabs(score - most) < 1e-4);
    }
}

/* A sketch as no keys would give it, but one that may be scored. */
static void sketch_draw(const struct selector_impl *impl, const struct selector_shape *shape, struct rng *r,
                        uint8_t *sketch)
{
    const size_t bytes = impl->sketch_bytes(shape), per_head = bytes / shape->n_kv_heads;
    const uint32_t labels = selector_labels(shape->head_dim);
    const bool quest = !strcmp(impl->name, "quest"), socket = !strcmp(impl->name, "socket");
    const size_t indices = (labels + 3) / 4 * 4,
                 codes = socket ? (size_t)SOCKET_TABLES * KV_BLOCK : indices + (size_t)labels * KV_BLOCK / 2;
    for (size_t i = 0; i < bytes / (shape->open == KV_F32 ? 4 : 2) && quest; i++) {
        const float x = (float)rng_below(r, 4001) / 1000 - 2;
        if (shape->open == KV_F32)
            ((float *)(void *)sketch)[i] = x;
        else
            ((uint16_t *)(void *)sketch)[i] = f32_to_bf16(x);
    }
    for (uint32_t j = 0; j < shape->n_kv_heads && !quest; j++) {
        uint8_t *head = sketch + j * per_head;
        for (size_t i = 0; i < codes; i++)
            head[i] = (uint8_t)rng_below(r, !socket && i < indices ? shape->head_dim : 256);
        for (size_t i = codes; i < per_head;
             i += 2) { /* f16 from 2^-14 to 2^14, of either sign where there may be one */
            const uint16_t x = (uint16_t)(0x0400 + rng_below(r, 0x7000) + (socket ? 0 : rng_below(r, 2) << 15));
            memcpy(head + i, &x, 2);
        }
    }
}

/* The same bits from every variant, whatever the group, the head size, and who is scored beside. */
static void variants_agree(void **state)
{
    (void)state;
    struct rng r = { 5, 0 };
    cpu_thread_init();
    for (uint32_t v = 0; v < n_selector_impls; v++) {
        const struct selector_impl *impl = &selector_impls[v], *c = selector_find(impl->name, 0);
        if (impl == c || (impl->needs & ~cpu_caps()) || !impl->by_row)
            continue;
        for (int round = 0; round < 60; round++) {
            const uint32_t kv_heads = 1 + rng_below(&r, 3), group = 1 + rng_below(&r, 9),
                           dim = 2 * (1 + rng_below(&r, 128)), n = 1 + rng_below(&r, 9);
            const struct selector_shape shape = { kv_heads * group, kv_heads, dim, round % 4 ? KV_BF16 : KV_F32 };
            const size_t bytes = impl->sketch_bytes(&shape);
            void *sketches[9];
            float *q[27], want[27], got[27];
            for (uint32_t b = 0; b < n; b++) {
                sketches[b] = malloc(bytes);
                sketch_draw(impl, &shape, &r, sketches[b]);
                assert_true(impl->valid(&shape, sketches[b]));
            }
            for (uint32_t g = 0; g < group * kv_heads; g++) {
                q[g] = malloc(dim * sizeof(float));
                for (uint32_t d = 0; d < dim; d++)
                    q[g][d] = rng_below(&r, 20) ? (float)rng_below(&r, 4001) / 1000 - 2 : -0.0f;
            }
            const float *const *qs = (const float *const *)q;
            const void *const *all = (const void *const *)sketches;
            const uint32_t head = rng_below(&r, kv_heads);
            c->score(&shape, 0, kv_heads, qs, all, n, want);
            impl->score(&shape, 0, kv_heads, qs, all, n, got);
            assert_memory_equal(want, got, kv_heads * n * sizeof(float));
            impl->score(&shape, head, head + 1, qs + head * group, all + n - 1, 1, got);
            assert_memory_equal(&want[head * n + n - 1], got, sizeof(float));
            for (uint32_t b = 0; b < n; b++)
                free(sketches[b]);
            for (uint32_t g = 0; g < group * kv_heads; g++)
                free(q[g]);
        }
    }
}

/* The same sketches from every variant. */
static void sketches_agree(void **state)
{
    (void)state;
    struct rng r = { 6, 0 };
    cpu_thread_init();
    for (uint32_t v = 0; v < n_selector_impls; v++) {
        const struct selector_impl *impl = &selector_impls[v], *c = selector_find(impl->name, 0);
        if (impl == c || (impl->needs & ~cpu_caps()))
            continue;
        for (int round = 0; round < 4; round++) {
            const struct selector_shape shape = { 2, 2, 2 * (1 + rng_below(&r, 40)), round % 2 ? KV_BF16 : KV_F32 };
            const size_t numbers = (size_t)KV_BLOCK * shape.head_dim, bytes = impl->sketch_bytes(&shape);
            uint8_t *want = calloc(1, bytes), *got = calloc(1, bytes);
            void *part[4];
            for (int i = 0; i < 4; i++) {
                part[i] = malloc(numbers * 4);
                for (size_t k = 0; k < numbers; k++) {
                    const float x = (float)rng_below(&r, 4001) / 1000 - 2;
                    if (shape.open == KV_F32)
                        ((float *)part[i])[k] = x;
                    else
                        ((uint16_t *)part[i])[k] = f32_to_bf16(x);
                }
            }
            const struct selector_block block = { .k_parts = (const void *const *)part,
                                                  .v_parts = (const void *const *)part + 2 };
            c->sketch(&shape, &block, want);
            impl->sketch(&shape, &block, got);
            assert_true(impl->valid(&shape, got));
            assert_memory_equal(want, got, bytes);
            for (int i = 0; i < 4; i++)
                free(part[i]);
            free(want);
            free(got);
        }
    }
}

/* What the walk does not reach comes after all that it does, by the logits. */
static void walk_unreached(void **state)
{
    (void)state;
    const float walk[6] = { 0, 1e-30f, 0, 2, 0, 1 }, logits[6] = { 900, -5, 901, -1000, -2000, 3 };
    const uint32_t order[6] = { 3, 5, 1, 2, 0, 4 };
    float scores[6];
    selector_walk_scores(walk, logits, 6, scores);
    for (int i = 0; i < 5; i++)
        assert_true(scores[order[i]] > scores[order[i + 1]]);
}

static void transform(void **state)
{
    (void)state;
    float x[4] = { 1, 2, 3, 4 };
    selector_fwht(x, 4);
    assert_true(x[0] == 10 && x[1] == -2 && x[2] == -4 && x[3] == 0);
    selector_fwht(x, 4);
    assert_true(x[0] == 4 && x[1] == 8 && x[2] == 12 && x[3] == 16);
}

/* All coordinates: the sketches' product is that of the means. Some of them: near it, over many blocks without a bias. */
static void walk_products(void **state)
{
    (void)state;
    const struct selector_impl *impl = selector_find("sketch-walk", 0);
    const uint32_t dims[] = { 16, 64, 128 };
    struct block *b = malloc(sizeof *b);
    for (int i = 0; i < 3; i++) {
        const struct selector_shape shape = shape_of(dims[i]);
        const uint32_t r = dims[i] < 64 ? dims[i] : 64;
        float sketch[2 * SELECTOR_WALK_DIM];
        double bias = 0, variance = 0;
        for (uint32_t c = 0; c < 30; c++) {
            block_draw(b, 0, c, dims[i], true);
            const void *parts[KV_HEADS] = { b->k[0], b->k[1] };
            impl->sketch(&shape, &(struct selector_block){ .k_parts = parts, .q_means = b->q_means }, sketch);
            double exact = 0, got = 0, qq = 0, kk = 0;
            for (uint32_t d = 0; d < dims[i]; d++) {
                double q = 0, k = 0;
                for (uint32_t p = 0; p < KV_BLOCK; p++) {
                    q += b->q_means[p * dims[i] + d] / 64;
                    for (uint32_t j = 0; j < KV_HEADS; j++)
                        k += drawn(1, 0, c, j, p, d, dims[i]) / 64 / KV_HEADS;
                }
                exact += q * k;
                qq += q * q;
                kk += k * k;
            }
            for (uint32_t d = 0; d < r; d++)
                got += (double)sketch[d] * sketch[r + d];
            if (r == dims[i])
                assert_true(fabs(got - exact) < 1e-4);
            bias += got - exact;
            variance += qq * kk * (dims[i] - r) / dims[i] / r;
        }
        assert_true(fabs(bias) < 4 * sqrt(variance) + 1e-3);
    }
    free(b);
}

/* Rows of the weights are softmax^8, and a walk is a product, in float64. */
static void walk_brute(void **state)
{
    (void)state;
    const struct selector_impl *impl = selector_find("sketch-walk", 0);
    const struct selector_shape shape = shape_of(16);
    void *sketches[BLOCKS];
    static uint16_t w[BLOCKS][BLOCKS];
    float logits[BLOCKS], r[BLOCKS], out[BLOCKS];
    const uint16_t *rows[BLOCKS];
    sketches_make(impl, 0, 16, sketches);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        double a[BLOCKS], sum = 0;
        impl->weights(&shape, (const void *const *)sketches, i, logits, w[i]);
        rows[i] = w[i];
        for (uint32_t j = 0; j <= i; j++) {
            a[j] = 0;
            for (uint32_t d = 0; d < 16; d++)
                a[j] += (double)((float *)sketches[i])[d] * ((float *)sketches[j])[16 + d] / 4;
            sum += exp(a[j]);
        }
        for (uint32_t j = 0; j <= i; j++) {
            const double want = pow(exp(a[j]) / sum, 8);
            assert_true(fabs(bf16_to_f32(w[i][j]) - want) <= 0.005 * want + 1e-37);
        }
        r[i] = (float)(i + 1) * 1e-30f;
    }
    selector_walk(rows, BLOCKS, r, out);
    for (uint32_t j = 0; j < BLOCKS; j++) {
        double want = 0;
        for (uint32_t i = j; i < BLOCKS; i++)
            want += (double)(i + 1) / BLOCKS * bf16_to_f32(w[i][j]);
        assert_true(fabs(out[j] - want) <= 1e-5 * want);
    }
    sketches_free(sketches);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets),        cmocka_unit_test(choices),        cmocka_unit_test(choices_by_slot),
        cmocka_unit_test(walk_golden),    cmocka_unit_test(quest_golden),   cmocka_unit_test(quest_bounds),
        cmocka_unit_test(walk_unreached), cmocka_unit_test(transform),      cmocka_unit_test(walk_products),
        cmocka_unit_test(walk_brute),     cmocka_unit_test(variants_agree), cmocka_unit_test(sketches_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
